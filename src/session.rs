//! What a run holds from start to end: its directories, locked; its ledger; the proof that they belong together.

// Markers and the note of suspicion are written before there is a recorder.
#![allow(clippy::disallowed_methods)]

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};
use crate::io::open::SyncFailed;
use crate::io::{RealDisk, Timestamp, clock, lock, open, probe, stat};
use crate::ledger::lmdb::Lmdb;
use crate::ledger::{Ledger, Opening, SourceEntry, SourceId};
use crate::observe::events;
use crate::observe::hlog::Hlog;
use crate::pipeline::Input;
use crate::pipeline::claim::ClaimDir;
use crate::pipeline::record::layout;
use crate::settings::{Durability, LeasePolicy, Settings, Source};
use crate::trial::{mutants, points};

/// File in the state directory that says that the page cache is not to be trusted.
const SUSPECT: &str = "suspect";

/// Name of a marker while it is written. One name for all processes: the directory is locked.
pub const MARKER_TEMPORARY: &str = ".ringest-ledger.new";

/// A directory that is locked.
pub struct Locked {
    /// The directory.
    pub dir: Arc<OwnedFd>,
    /// Its path.
    pub path: PathBuf,
    /// Held for as long as this is; `None` where there is no marker yet.
    lock: Option<OwnedFd>,
}

/// Everything a run holds.
pub struct Session {
    /// Staging directories of this run.
    pub inputs: Vec<Arc<Input>>,
    /// Staging directories of earlier runs that unfinished work refers to, where they can be opened.
    pub former: Vec<(SourceId, Arc<OwnedFd>)>,
    /// All staging directories that the ledger knows.
    pub sources: Vec<SourceEntry>,
    /// The warehouse.
    pub warehouse: Locked,
    /// The manifests.
    pub manifests: Locked,
    /// Where the ledger stands.
    pub opening: Opening,
    /// Which files the cache may be wrong about.
    pub suspicion: Option<Suspicion>,
    /// Whether one `syncfs` may stand for many `fsync`s on all of these filesystems.
    pub syncfs: bool,
    /// What ctimes tell in the warehouse.
    pub ctimes: probe::Ctimes,
    /// The state.
    pub state: Locked,
    /// The locks of staging and claim directories.
    _locks: Vec<OwnedFd>,
    /// Where the latencies of each interval go, if anywhere.
    pub hlog: Option<Hlog>,
}

impl Session {
    /// Makes what is missing, locks everything, opens the ledger and makes sure that warehouse and manifests are its own.
    pub fn open(settings: &Settings) -> Result<(Session, Lmdb), Failure> {
        let sources = open_sources(settings);
        let roles = sources
            .iter()
            .flat_map(|source| {
                let claims = source.claim_dir.as_deref();
                [
                    Some((source.input.as_path(), "input")),
                    claims.map(|path| (path, "claims")),
                ]
            })
            .flatten()
            .chain([
                (settings.warehouse.as_path(), "warehouse"),
                (settings.manifests.as_path(), "manifests"),
                (settings.state_path.as_path(), "state"),
            ]);
        // Missing directories cannot be locked by anybody; so locking comes first where there is something.
        let missing: Vec<(&Path, &str)> = roles.filter(|(path, _)| !path.exists()).collect();
        for (path, role) in &missing {
            let made = match *role {
                "state" => open::make_private_dirs(path),
                _ => open::make_dirs(path),
            };
            made.map_err(|error| config("make the directory", path, &error))?;
        }
        let state = lock_state(&settings.state_path)?;
        let mut roots = Vec::new();
        let mut claims = Vec::new();
        for source in &sources {
            roots.push(lock_shared(&source.input)?);
            let claim_dir = source.claim_dir.as_deref();
            let claim_dir = claim_dir.map(lock_shared);
            claims.push(claim_dir.transpose()?);
        }
        let mut warehouse = lock_marked(&settings.warehouse)?;
        let mut manifests = lock_marked(&settings.manifests)?;
        let hlog = settings.hlog.as_deref().map(Hlog::open).transpose()?;
        for (path, role) in missing {
            events::directory_made(path, role);
        }
        // All is locked: only what a killed start left can be in the way, and the probes below must not add to it.
        for place in roots.iter().chain([&warehouse, &manifests, &state]) {
            probe::sweep(&place.dir);
        }
        for place in [&warehouse, &manifests] {
            let _ = rustix::fs::unlinkat(&place.dir, MARKER_TEMPORARY, AtFlags::empty());
        }

        let ledger_dir = settings.ledger_dir();
        if !ledger_dir.exists() {
            // A new ledger would be in the way of the lost one's successor.
            for place in [&warehouse, &manifests] {
                if let Some(marker) = read_marker(place)? {
                    return Err(foreign(place, &marker, "none"));
                }
            }
        }
        let mut ledger = Lmdb::open(&ledger_dir, settings.durability)?;
        let mut opening = ledger.open_session()?;
        if opening.uuid.is_empty() {
            let uuid = uuid::Uuid::new_v4().simple().to_string();
            // A marker of another ledger must be seen before this one exists.
            for place in [&warehouse, &manifests] {
                if let Some(marker) = read_marker(place)? {
                    return Err(foreign(place, &marker, "a ledger without a name"));
                }
            }
            ledger.found(&uuid)?;
            points::reached("ledger_named");
            opening.uuid = uuid;
        }
        for place in [&mut warehouse, &mut manifests] {
            claim(place, &opening, settings.durability)?;
            if place.lock.is_none() {
                *place = lock_marked(&place.path)?;
            }
        }
        if let Some((path, error)) = misplaced(settings).first() {
            return Err(config("place files in", path, error));
        }

        let suspicion = suspicion(&state, &opening)?;
        let mut inputs = Vec::new();
        let mut syncfs = !settings.disable.syncfs;
        for place in [&warehouse, &manifests] {
            syncfs &= trusts_syncfs(&place.path)?;
        }
        let mut locks = Vec::new();
        for ((source, root), claims) in sources.into_iter().zip(roots).zip(claims) {
            locks.extend(root.lock);
            let root = root.dir;
            let id = ledger.source_id(&source.name, &source.input)?;
            let failed = |error: io::Error| config("use the input", &source.input, &error);
            let kind = probe::filesystem(&source.input).map_err(failed)?;
            syncfs &= kind.trusts_syncfs();
            // overlayfs does not see a writer whose mapping outlives its descriptor.
            let leases = source.lease == LeasePolicy::Auto
                && !settings.disable.lease
                && !kind.network
                && !kind.overlay;
            let claim = claims
                .map(|claims| {
                    locks.extend(claims.lock);
                    let durable = settings.durability == Durability::Full;
                    claim_dir(source, &root, (claims.dir, claims.path), durable)
                })
                .transpose()?;
            inputs.push(Arc::new(Input {
                id,
                settings: source.clone(),
                root: stat::stat_fd(&root).map_err(failed)?,
                dir: root,
                leases,
                inotify: !settings.disable.inotify && !kind.network,
                copy: !probe::rename_works(&source.input, &settings.warehouse).map_err(failed)?,
                claim,
            }));
        }
        let ctimes = probe::filesystem(&warehouse.path)
            .map_err(|error| config("use", &warehouse.path, &error))?
            .ctimes();
        let sources = ledger.sources()?;
        let former = former_inputs(&sources, &inputs);
        let session = Session {
            inputs,
            former,
            sources,
            warehouse,
            manifests,
            opening,
            suspicion,
            syncfs,
            ctimes,
            state,
            _locks: locks,
            hlog,
        };
        Ok((session, ledger))
    }
}

/// The sources whose staging directories let us in, with a word about the others.
fn open_sources(settings: &Settings) -> Vec<&Source> {
    let (closed, open) = closed_sources(settings);
    for source in closed {
        events::source_closed(&source.name, &source.input);
    }
    open
}

/// The sources whose staging directories do not let us in, and those that do. One that its owner has closed keeps nobody else's files
/// waiting. If all are, none counts as closed: a start then fails on the first.
pub(crate) fn closed_sources(settings: &Settings) -> (Vec<&Source>, Vec<&Source>) {
    use rustix::fs::{Access, CWD};
    let closed = |source: &&Source| {
        let access = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        let may = rustix::fs::accessat(CWD, &source.input, access, AtFlags::EACCESS);
        may == Err(rustix::io::Errno::ACCESS)
    };
    let (closed, open): (Vec<&Source>, Vec<&Source>) = settings.sources.iter().partition(closed);
    match open.is_empty() {
        true => (open, closed),
        false => (closed, open),
    }
}

/// The claim directory of a source, to which a rename has to work.
fn claim_dir(
    source: &Source,
    root: &Arc<OwnedFd>,
    (dir, path): (Arc<OwnedFd>, PathBuf),
    durable: bool,
) -> Result<Arc<ClaimDir>, Failure> {
    let failed = |error: io::Error| config("use the claim directory", &path, &error);
    if !probe::rename_works(&source.input, &path).map_err(failed)? {
        return Err(Failure::new(
            Exit::Config,
            "use the claim directory",
            &path,
            format!(
                "files cannot be renamed to it from {}",
                source.input.display()
            ),
            "choose one on the same filesystem (and mount) as the input",
        ));
    }
    Ok(Arc::new(ClaimDir {
        disk: RealDisk {
            durable,
            syncfs: false,
            lease_signal: None,
        },
        input: Arc::clone(root),
        input_path: source.input.clone(),
        dir,
        path,
    }))
}

pub(crate) fn trusts_syncfs(path: &Path) -> Result<bool, Failure> {
    let kind = probe::filesystem(path)
        .map_err(|error| Failure::io("look at the filesystem of", path, &error))?;
    Ok(kind.trusts_syncfs())
}

/// Directories of the layouts in which no file can be placed: those that are there, and lie on another filesystem or behind a
/// symbolic link.
pub(crate) fn misplaced(settings: &Settings) -> Vec<(PathBuf, io::Error)> {
    use rustix::io::Errno;
    let Ok(warehouse) = open::root_dir(&settings.warehouse) else {
        return Vec::new();
    };
    let layouts = settings.sources.iter().map(|source| &source.layout);
    let templates = layouts.flat_map(|layout| [&layout.partition, &layout.quarantine_dir]);
    let mut found: Vec<(PathBuf, io::Error)> = Vec::new();
    for template in templates {
        let text = template.to_string();
        // What is to be filled in becomes a directory of ringest's own.
        let fixed = Path::new(&text)
            .iter()
            .take_while(|part| !part.as_bytes().contains(&b'{'));
        let fixed: PathBuf = fixed.collect();
        let path = settings.warehouse.join(&fixed);
        match open::dir_beneath(&warehouse, &fixed) {
            Err(error) if found.iter().all(|(known, _)| *known != path) => {
                let cause = match Errno::from_io_error(&error) {
                    Some(Errno::XDEV) => {
                        "it is on another filesystem than the warehouse, and files are renamed within that"
                    }
                    Some(Errno::LOOP | Errno::NOTDIR) => {
                        "a symbolic link is on its path, or a file"
                    }
                    _ => continue,
                };
                found.push((path, io::Error::new(error.kind(), cause)));
            }
            _ => {}
        }
    }
    found
}

/// What hinders a start is a matter of settings, unless the disk itself fails.
pub(crate) fn config(operation: &str, path: &Path, error: &io::Error) -> Failure {
    use rustix::io::Errno;
    if SyncFailed::is(error) {
        return Failure::sync(operation, path, error);
    }
    let exit = match Errno::from_io_error(error) {
        Some(Errno::IO) => Exit::Io,
        _ => Exit::Config,
    };
    Failure {
        exit,
        ..Failure::io(operation, path, error)
    }
}

/// Locks a state directory that is there.
pub(crate) fn lock_state(path: &Path) -> Result<Locked, Failure> {
    let failed = |error: io::Error| config("lock", path, &error);
    let dir = open::root_dir(path).map_err(failed)?;
    lock::make_own(&dir, lock::OF_STATE).map_err(failed)?;
    match lock::lock_own(&dir, lock::OF_STATE).map_err(failed)? {
        Some(lock) => Ok(Locked::new(dir, path, Some(lock))),
        None => Err(busy(path)),
    }
}

/// Locks a warehouse or manifests that are there, by their marker. Where there is none yet, whoever writes it is alone: the marker of another
/// ledger is refused.
pub(crate) fn lock_marked(path: &Path) -> Result<Locked, Failure> {
    let failed = |error: io::Error| config("lock", path, &error);
    let dir = open::root_dir(path).map_err(failed)?;
    match lock::lock_own(&dir, layout::MARKER) {
        Ok(Some(lock)) => Ok(Locked::new(dir, path, Some(lock))),
        Ok(None) => Err(busy(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Locked::new(dir, path, None)),
        Err(error) => Err(failed(error)),
    }
}

/// Locks a staging or a claim directory that is there.
pub(crate) fn lock_shared(path: &Path) -> Result<Locked, Failure> {
    match lock::lock_shared(path) {
        Ok(Some(held)) => {
            if held.locked_by_others {
                events::foreign_lock_ignored(path);
            }
            Ok(Locked::new(held.dir, path, Some(held.record)))
        }
        Ok(None) => Err(busy(path)),
        Err(error) => Err(config("open", path, &error)),
    }
}

impl Locked {
    fn new(dir: OwnedFd, path: &Path, lock: Option<OwnedFd>) -> Locked {
        Locked {
            dir: Arc::new(dir),
            path: path.to_path_buf(),
            lock,
        }
    }
}

fn busy(path: &Path) -> Failure {
    Failure::new(
        Exit::Busy,
        "lock",
        path,
        "another ringest works on it",
        "let that one finish or stop it, or use other directories",
    )
}

/// Staging directories of earlier settings: unfinished work may refer to them.
fn former_inputs(sources: &[SourceEntry], inputs: &[Arc<Input>]) -> Vec<(SourceId, Arc<OwnedFd>)> {
    sources
        .iter()
        .filter(|entry| inputs.iter().all(|input| input.id != entry.id))
        .filter_map(|entry| {
            // The same directory under another source name is open and locked already.
            let open_already = inputs
                .iter()
                .find(|input| input.settings.input == entry.input)
                .map(|input| Arc::clone(&input.dir));
            let dir = open_already.or_else(|| open::root_dir(&entry.input).ok().map(Arc::new))?;
            Some((entry.id, dir))
        })
        .collect()
}

// ---- markers ----

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    ledger: String,
}

/// The ledger that a directory says it belongs to.
pub(crate) fn read_marker(place: &Locked) -> Result<Option<String>, Failure> {
    let path = place.path.join(layout::MARKER);
    match std::fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice::<Marker>(&bytes) {
            Ok(marker) => Ok(Some(marker.ledger)),
            Err(error) => Err(Failure::new(
                Exit::Config,
                "read the marker",
                &path,
                error,
                "it says which ledger the directory belongs to; restore it",
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io("read the marker", &path, &error)),
    }
}

fn foreign(place: &Locked, marker: &str, own: &str) -> Failure {
    Failure::new(
        Exit::Config,
        "use",
        &place.path,
        format!("it belongs to ledger {marker}, the state directory holds {own}"),
        "name the state directory that goes with it (--state-path), or an empty directory; if that state is lost, \
         `ringest rebuild` makes a new one from warehouse and manifests",
    )
}

/// Makes sure that a directory belongs to this ledger: by its marker, or, while nothing was ever recorded, by writing one.
fn claim(place: &Locked, opening: &Opening, durability: Durability) -> Result<(), Failure> {
    match read_marker(place)? {
        Some(marker) if marker == opening.uuid || mutants::on("foreign_marker_accepted") => {
            return Ok(());
        }
        Some(marker) => {
            return Err(foreign(place, &marker, &format!("ledger {}", opening.uuid)));
        }
        None if opening.next_seq > 1 && !mutants::on("missing_marker_accepted") => {
            return Err(Failure::new(
                Exit::Config,
                "use",
                &place.path,
                format!(
                    "the ledger has recorded {} arrivals, and this directory has no marker ({}): is its disk mounted?",
                    opening.next_seq - 1,
                    layout::MARKER
                ),
                "mount the disk, or name the directory that goes with this state (--warehouse, --manifests, --state-path)",
            ));
        }
        None => {}
    }
    let path = place.path.join(layout::MARKER);
    let write = || -> io::Result<()> {
        let marker = Marker {
            format: 1,
            ledger: opening.uuid.clone(),
        };
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = std::fs::File::from(rustix::fs::openat(
            &place.dir,
            MARKER_TEMPORARY,
            flags,
            mode,
        )?);
        // It is the lock, too.
        lock::keep_to_owner(&file, &place.dir)?;
        serde_json::to_writer(&file, &marker)?;
        file.write_all(b"\n")?;
        if durability == Durability::Full && !mutants::on("marker_unsynced") {
            file.sync_all().map_err(SyncFailed::mark)?;
        }
        points::reached("marker_written");
        let renamed = rustix::fs::renameat_with(
            &place.dir,
            MARKER_TEMPORARY,
            &place.dir,
            layout::MARKER,
            RenameFlags::NOREPLACE,
        );
        if renamed.is_err() {
            let _ = rustix::fs::unlinkat(&place.dir, MARKER_TEMPORARY, AtFlags::empty());
        }
        renamed?;
        points::reached("marker_renamed");
        if durability == Durability::Full && !mutants::on("marker_name_unsynced") {
            rustix::fs::fsync(&place.dir).map_err(|error| SyncFailed::mark(error.into()))?;
        }
        points::reached("marker_synced");
        Ok(())
    };
    write().map_err(|error| config("write the marker", &path, &error))
}

// ---- suspicion ----

/// The page cache, or the inode in memory, may show what the disk does not hold: a sync failed, or nobody can tell
/// whether one did. A reboot empties the cache.
#[derive(Debug, Clone, Copy)]
pub struct Suspicion {
    /// Files whose ctime is not later are read past the cache.
    pub until: Timestamp,
    /// A sync did fail. Then not even the size that an inode shows is that of the disk (xfs: what follows a failed
    /// write-back is a hole until the inode is read anew, and then it is not there). A copy has a size of its own.
    pub sync_failed: bool,
}

impl Suspicion {
    /// The same, of everything until now: a file that recovery took back has a ctime of this moment, and what the cache
    /// shows of it is no better for that.
    pub fn until_now(self) -> Suspicion {
        Suspicion {
            until: clock::realtime(),
            ..self
        }
    }
}

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Suspect {
    boot_id: String,
    seconds: i64,
    nanos: u32,
    #[serde(default)]
    sync_failed: bool,
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_string())
        .unwrap_or_default()
}

fn suspicion(state: &Locked, opening: &Opening) -> Result<Option<Suspicion>, Failure> {
    if !opening.clean && !mutants::on("unclean_end_unnoticed") {
        raise_suspicion(&state.path, false);
    }
    let now = |sync_failed| Suspicion {
        until: clock::realtime(),
        sync_failed,
    };
    let path = state.path.join(SUSPECT);
    let Ok(bytes) = std::fs::read(&path) else {
        // It could not be written either: then everything so far is suspect.
        let unclean = !opening.clean && !mutants::on("unclean_end_unnoticed");
        return Ok(unclean.then(|| now(true)));
    };
    match serde_json::from_slice::<Suspect>(&bytes) {
        Ok(suspect) if suspect.boot_id == boot_id() => Ok(Some(Suspicion {
            until: Timestamp {
                seconds: suspect.seconds,
                nanos: suspect.nanos,
            },
            sync_failed: suspect.sync_failed,
        })),
        Ok(_) => {
            std::fs::remove_file(&path).map_err(|error| Failure::io("remove", &path, &error))?;
            Ok(None)
        }
        Err(_) => Ok(Some(now(true))),
    }
}

/// Notes that files as they are now are to be read past the cache. Best effort: the ledger's open session says it too.
pub fn raise_suspicion(state_path: &Path, sync_failed: bool) {
    let path = state_path.join(SUSPECT);
    let boot_id = boot_id();
    let before = std::fs::read(&path).ok();
    let before = before.and_then(|bytes| serde_json::from_slice::<Suspect>(&bytes).ok());
    let failed_before = before.is_some_and(|it| it.sync_failed && it.boot_id == boot_id);
    let now = clock::realtime();
    let suspect = Suspect {
        boot_id,
        seconds: now.seconds,
        nanos: now.nanos,
        sync_failed: sync_failed || failed_before,
    };
    let write = || -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags | OFlags::NOFOLLOW, open::PRIVATE_FILE)?;
        open::make_private(&file)?;
        Ok(serde_json::to_writer(std::fs::File::from(file), &suspect)?)
    };
    let _ = write();
}
