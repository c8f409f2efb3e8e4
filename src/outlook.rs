//! What would become of a file, and why: `run --dry-run` says it of all that lie in staging, `check --file` of one, wherever it
//! lies. The rules are those of intake: names ([`Source::takes`]), [`judge`], [`checks`], [`content_key`] and `layout`.
//!
//! Takes no lock and no lease, makes nothing but what a `check_command` makes, and works beside a running instance as well as without any ledger. What happens
//! meanwhile is not seen.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rustix::fs::FileType;

use crate::failure::Failure;
use crate::io::{Clock, FileStat, clock, open, stat};
use crate::ledger::lmdb::Lmdb;
use crate::ledger::{
    Arrival, ContentKey, Counts, Digest, Kept, Outcome, RecordState, SourceEntry, SourceId,
};
use crate::observe::control;
use crate::pipeline::read::checks::{self, Asked, Judgement};
use crate::pipeline::read::digest::{self, Stream};
use crate::pipeline::read::inspect::Inspection;
use crate::pipeline::read::judge::judge;
use crate::pipeline::read::{nothing_to_ingest, sidecar, sidecar_path};
use crate::pipeline::record::{content_key, is_absent, is_stored_copy, layout};
use crate::pipeline::{Finding, Waiting};
use crate::settings::{EmptyPolicy, Mode, OnDuplicate, Settings, Source};

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// What a look at a name and its inode says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// It is left alone.
    Ignored(&'static str),
    /// It stays as long as it is what it is.
    Held(&'static str),
    /// It is not finished yet, as far as one look can tell.
    Unsettled(&'static str),
    /// It is read.
    Settled,
}

/// A file that was read to its end.
#[derive(Debug)]
pub struct Examined {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// How many there were.
    pub bytes: u64,
    /// What was counted in it.
    pub counts: Counts,
    /// The first rule that it breaks.
    pub finding: Option<Finding>,
    /// Whether it changed meanwhile, so that nothing of this may hold.
    pub changed: bool,
}

/// Why a file could not be read to its end.
#[derive(Debug)]
pub enum Unread {
    /// It is nothing to ingest.
    Ignored(&'static str),
    /// An error of it or of its sidecar.
    Failed(Failure),
}

/// What would become of a file that was examined.
#[derive(Debug)]
pub struct Prospect {
    /// What it would be.
    pub outcome: Outcome,
    /// Where it would be placed; `None`: it would not be.
    pub placed: Option<PathBuf>,
    /// Where the content lies that it has again, if it is in the ledger.
    pub first: Option<PathBuf>,
}

/// What is known before any file is looked at, and what files that were looked at would add to that.
pub struct Outlook<'a> {
    settings: &'a Settings,
    ledger: Option<Lmdb>,
    sources: Vec<SourceEntry>,
    kept: HashSet<u128>,
    warehouse: Option<OwnedFd>,
    /// The sequence number that the next file would get.
    next_seq: u64,
    /// Content that files before would have brought.
    coming: HashMap<ContentKey, u64>,
    /// Hashes of the paths where they would have been placed.
    taken: HashSet<u64>,
    hasher: RandomState,
}

impl Outlook<'_> {
    /// Reads what is known.
    ///
    /// # Errors
    /// Ledger or warehouse are there and cannot be read.
    pub fn open(settings: &Settings) -> Result<Outlook<'_>, Failure> {
        let dir = settings.ledger_dir();
        let running = matches!(control::ask(&settings.control_socket()), Ok(Some(_)));
        let data = dir.join("data.mdb");
        let there = data.try_exists();
        let ledger = match there.map_err(|error| Failure::io("look for", &data, &error))? {
            true => Some(Lmdb::open_untouched(&dir, running)?),
            false => None,
        };
        let (mut kept, mut sources, mut next_seq) = (Vec::new(), Vec::new(), 1);
        if let Some(ledger) = &ledger {
            kept = ledger.kept()?;
            sources = ledger.sources()?;
            next_seq = ledger.next_seq()?;
        }
        let warehouse = match open::root_dir(&settings.warehouse) {
            Ok(root) => Some(root),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let failure = Failure::io("open the warehouse", &settings.warehouse, &error);
                return Err(failure);
            }
        };
        let fingerprint = |kept: &Kept| Kept::fingerprint(kept.source, &kept.path, &kept.identity);
        Ok(Outlook {
            settings,
            ledger,
            sources,
            kept: kept.iter().map(fingerprint).collect(),
            warehouse,
            next_seq,
            coming: HashMap::new(),
            taken: HashSet::new(),
            hasher: RandomState::new(),
        })
    }

    /// Whether there is a ledger, which knows what came before.
    pub fn has_ledger(&self) -> bool {
        self.ledger.is_some()
    }

    /// What is known of the file at `path` beneath `root` without opening it. Its name was looked at before.
    pub fn sight(
        &self,
        source: &Source,
        root: &OwnedFd,
        path: &Path,
        seen: &FileStat,
    ) -> io::Result<Sight> {
        if seen.kind != FileType::RegularFile {
            return Ok(Sight::Ignored("not a regular file"));
        }
        let is_source = |it: &&SourceEntry| it.name == source.name && it.input == source.input;
        let entry = self.sources.iter().find(is_source);
        let id = entry.map_or(SourceId(u16::MAX), |entry| entry.id);
        if (self.kept).contains(&Kept::fingerprint(id, path, &seen.identity)) {
            return Ok(Sight::Ignored("kept: it was taken before"));
        }
        let is_empty = seen.identity.size == 0;
        if is_empty && seen.links == 1 {
            match source.empty {
                EmptyPolicy::Ingest => {}
                EmptyPolicy::Hold => return Ok(Sight::Held(Waiting::Empty.as_str())),
                EmptyPolicy::Skip => return Ok(Sight::Ignored("it is empty")),
            }
        }
        if seen.links > 1 {
            return Ok(Sight::Unsettled(Waiting::Links.as_str()));
        }
        if source.mode == Mode::Sidecar && !is_empty {
            let sidecar = sidecar_path(path, &source.sidecar_suffix);
            let there = open::stat_beneath(root, &sidecar)?
                .is_some_and(|seen| seen.kind == FileType::RegularFile);
            return Ok(match there {
                true => Sight::Settled,
                false => Sight::Unsettled(Waiting::Sidecar.as_str()),
            });
        }
        let age = clock::realtime().as_nanos() - seen.identity.ctime.as_nanos();
        let young = age < source.stability.as_nanos() as i128;
        Ok(match source.mode == Mode::Stability && young {
            true => Sight::Unsettled("it changed a moment ago"),
            false => Sight::Settled,
        })
    }

    /// What would become of a file of `source` that came as `path` and was examined, after all files of which this was asked before.
    ///
    /// # Errors
    /// Ledger or warehouse cannot be read.
    pub fn of(
        &mut self,
        source: &Source,
        path: &Path,
        examined: &Examined,
    ) -> Result<Prospect, Failure> {
        let seq = self.next_seq;
        let mut first = None;
        let outcome = match &examined.finding {
            Some(finding) => finding.outcome(),
            None => match content_key(source, path, &examined.digest, examined.bytes) {
                Some(key) => match self.known(&key)? {
                    Some(known) => {
                        first = known.placed.map(|it| self.settings.warehouse.join(it));
                        Outcome::Duplicate { of: known.seq }
                    }
                    None => {
                        self.coming.insert(key, seq);
                        Outcome::Ingest
                    }
                },
                None => Outcome::Ingest,
            },
        };
        self.next_seq += 1;
        let stays = matches!(outcome, Outcome::Duplicate { .. })
            && source.on_duplicate != OnDuplicate::Move;
        let placed = match stays {
            true => None,
            false => Some(self.place(source, path, &outcome, &examined.digest, seq)?),
        };
        Ok(Prospect {
            outcome,
            placed,
            first,
        })
    }

    /// The arrival that brought content of that key, if its copy still stands.
    fn known(&self, key: &ContentKey) -> Result<Option<Known>, Failure> {
        if let Some(&seq) = self.coming.get(key) {
            return Ok(Some(Known { seq, placed: None }));
        }
        let Some(ledger) = &self.ledger else {
            return Ok(None);
        };
        let Some(seq) = ledger.lookup_all(&[*key])?[0] else {
            return Ok(None);
        };
        let Some(RecordState::Done { arrival, .. }) = ledger.record_of(seq)?.map(|it| it.state)
        else {
            return Ok(Some(Known { seq, placed: None }));
        };
        let placed = arrival.placed.clone();
        let stands = self.stands(&arrival).map_err(|error| {
            Failure::io(
                "compare with",
                &self.settings.warehouse.join(&placed),
                &error,
            )
        })?;
        let placed = Some(placed);
        Ok(stands.then_some(Known { seq, placed }))
    }

    /// Whether the file that an arrival brought is still in the warehouse. If somebody took it, the next one with its content is
    /// ingested.
    fn stands(&self, arrival: &Arrival) -> io::Result<bool> {
        let Some(root) = &self.warehouse else {
            return Ok(false);
        };
        let path = arrival.placed.as_os_str();
        let file = match open::file_beneath(root, path) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        if let Some(stands) = is_stored_copy(&stat::stat_fd(&file)?, arrival) {
            return Ok(stands);
        }
        let (digest, _) = read(file.as_fd(), None)?;
        Ok(digest == arrival.digest)
    }

    /// The first free name, as the recorder would choose it.
    fn place(
        &mut self,
        source: &Source,
        path: &Path,
        outcome: &Outcome,
        digest: &Digest,
        seq: u64,
    ) -> Result<PathBuf, Failure> {
        let time_micros = clock::WallClock.now_micros();
        let path = layout::path_of(outcome, source, path, time_micros);
        let name = path.file_name().unwrap_or(OsStr::new("_"));
        let free = |name: &OsStr| {
            let path = path.with_file_name(name);
            if self.taken.contains(&self.hasher.hash_one(&path)) {
                return Ok(false);
            }
            let Some(root) = &self.warehouse else {
                return Ok(true);
            };
            Ok(stat::stat_at(root, path.as_os_str())?.is_none())
        };
        let absolute = self.settings.warehouse.join(&path);
        let chosen = layout::first_free(outcome, name, digest, seq, free)
            .and_then(|chosen| chosen.ok_or(io::ErrorKind::AlreadyExists.into()))
            .map_err(|error| Failure::io("find a free name for", &absolute, &error))?;
        let (name, reason) = chosen;
        for name in reason.iter().chain([&name]) {
            let path = path.with_file_name(name);
            self.taken.insert(self.hasher.hash_one(path));
        }
        Ok(absolute.with_file_name(name))
    }
}

/// Content that came before.
struct Known {
    seq: u64,
    /// Beneath the warehouse; `None`: it would be placed before.
    placed: Option<PathBuf>,
}

/// Why a name is left alone.
///
/// # Errors
/// The word for it in logs, or what no log says: nobody looks there.
pub fn takes(source: &Source, path: &Path) -> Result<(), &'static str> {
    source.takes(path).map_err(|reason| reason.as_str())?;
    let directory = path.parent().unwrap_or(Path::new(""));
    match directory.as_os_str().is_empty() || source.enters(directory) {
        true => Ok(()),
        false => Err("in a directory beneath the input, which is not recursive"),
    }
}

/// Reads and judges the file at `path` beneath `root`, as a reader would, and asks its source's command; `shown` is its absolute path.
///
/// # Errors
/// It cannot be read.
pub fn examine(
    source: &Source,
    root: &OwnedFd,
    path: &Path,
    shown: &Path,
) -> Result<Examined, Unread> {
    let failed = |operation: &str| {
        let operation = operation.to_owned();
        move |error: io::Error| Unread::Failed(Failure::io(operation, shown, &error))
    };
    let file =
        open::file_beneath(root, path.as_os_str()).map_err(|error| {
            match nothing_to_ingest(&error) {
                Some(reason) => Unread::Ignored(reason),
                None => failed("open")(error),
            }
        })?;
    let before = stat::stat_fd(&file).map_err(failed("look at"))?;
    if before.kind != FileType::RegularFile {
        return Err(Unread::Ignored("not a regular file"));
    }
    let claimed = claimed(source, root, path).map_err(failed("read the sidecar of"))?;
    let mut inspection = Inspection::begin(&source.content, path, before.identity.size);
    let (digest, bytes) = read(file.as_fd(), inspection.as_mut()).map_err(failed("read"))?;
    let judged = judge(&digest, claimed.as_ref(), inspection);
    let counts = *judged.as_ref().unwrap_or(&Counts::default());
    let mut finding = judged.err();
    if finding.is_none() && source.content.command.is_some() {
        let asked = open::again(&file).and_then(|handed| {
            let asked = Asked {
                hashed: file.as_fd(),
                handed,
                path: shown,
                source: &source.name,
                digest: &digest,
            };
            checks::judge(&source.content, &asked, &AtomicBool::new(false))
        });
        if let Judgement::Refused(refused) = asked.map_err(failed("run check_command for"))? {
            finding = Some(refused);
        }
    }
    let after = stat::stat_fd(&file).map_err(failed("look at"))?;
    Ok(Examined {
        digest,
        bytes,
        counts,
        finding,
        changed: before.identity != after.identity || bytes != before.identity.size,
    })
}

/// Every byte, once, through the hash and the checks.
fn read(
    file: BorrowedFd<'_>,
    mut inspection: Option<&mut Inspection>,
) -> io::Result<(Digest, u64)> {
    let mut stream = Stream::default();
    let mut buffer = vec![0; READ_BYTES];
    let mut all = 0;
    loop {
        match rustix::io::read(file, &mut buffer[..]) {
            Ok(0) => return Ok((stream.finish(), all)),
            Ok(bytes) => {
                let read = &buffer[..bytes];
                digest::update(&mut [(&mut stream, read)]);
                if let Some(inspection) = &mut inspection {
                    inspection.feed(read);
                }
                all += bytes as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The digest that the file's sidecar holds, if files of that source have one and it is there.
fn claimed(source: &Source, root: &OwnedFd, path: &Path) -> io::Result<Option<Digest>> {
    if source.mode != Mode::Sidecar {
        return Ok(None);
    }
    let beside = sidecar_path(path, &source.sidecar_suffix);
    let sidecar = match open::file_beneath(root, beside.as_os_str()) {
        Ok(sidecar) => sidecar,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let seen = stat::stat_fd(&sidecar)?;
    if seen.kind != FileType::RegularFile {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or_default();
    Ok(sidecar::read_claim(&sidecar, seen.identity.size, name)?.digest)
}
