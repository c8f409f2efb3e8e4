//! A new ledger from what the lost one left: manifests, warehouse, and their markers.
//!
//! ```text
//!  manifests, hour by hour ──▶ a record for each line                                        (lines.rs)
//!  _duplicates, _quarantine ─▶ a record for each file with its reason                        (aside.rs)
//!                              void rows for all other numbers                               (this file)
//!  warehouse, what is left ──▶ an intent for each file that nothing recorded                 (orphans.rs)
//!  staging ──────────────────▶ owed work: sources and sidecars of what is recorded           (staging.rs)
//! ```
//!
//! An intent at whose destination its file lies is what a crash leaves between placing and recording. So the next
//! start's recovery does the rest, by the steps that it is proved for: line, record, reason, removal of the source.
//! Rebuilding itself writes no line.
//!
//! What it changes, in order, and what a crash leaves:
//!
//! | step | crash before the next one leaves | running again |
//! |---|---|---|
//! | ledger made in `ledger.rebuilding`, lines and reasons read into it | that directory | begins by removing it |
//! | torn bytes cut off the newest manifest | a manifest of whole lines | finds nothing torn |
//! | an orphan whose content is recorded moved to `_duplicates` | it there, without a reason | finds it there |
//! | hidden names in staging removed (their content is in the warehouse) or given a name back | fewer of them | finds the others |
//! | ledger synced, renamed to `ledger` | a whole ledger | refuses: there is one |
//!
//! Until the last step there is no ledger, and nothing starts without one where there are markers.
//!
//! Memory: a 64-bit hash for each file in the warehouse, the names of one directory, and the files that nothing
//! recorded (at most a batch, after a crash).

mod aside;
mod lines;
mod orphans;
mod staging;
mod tree;
mod walk;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::io::disk::{DirHandle, Handle};
use crate::io::{Disk, FileStat, Identity, RealDisk, lock, open};
use crate::ledger::lmdb::Lmdb;
use crate::ledger::{
    Arrival, Commit, ContentKey, Digest, Ledger, ManifestEnd, Outcome, Owed, OwedKind,
    PendingLines, Record, RecordState, SourceEntry, SourceId,
};
use crate::observe::metrics::{Count, Totals};
use crate::pipeline::read::digest;
use crate::pipeline::record::{content_key, layout};
use crate::session::{self, Locked};
use crate::settings::{Durability, Settings, Source};
use crate::verify::warehouse::{Names, is_absent};

use tree::Tree;

/// Records of one commit.
const CHUNK: usize = 4096;
/// A larger gap between two numbers is no gap but a damaged number: each costs a void row.
const GAP_MAX: u64 = 1 << 27;

/// What was found, or done, that is worth a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Bytes after the last whole line of the newest manifest were cut off.
    TornLine,
    /// A file that is recorded is not there.
    FileMissing,
    /// A file that is recorded has other bytes.
    FileChanged,
    /// A file in the warehouse that nothing recorded is taken in.
    Adopted,
    /// A file on its way out of staging is removed: its content is in the warehouse.
    Removed,
    /// A file on its way out of staging whose content is nowhere else gets a name again.
    GivenBack,
    /// A file on its way out of staging that cannot be removed or renamed stays.
    Left,
}

/// A word about one file.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What it is about.
    pub kind: Kind,
    /// Which file.
    pub path: PathBuf,
    /// Which arrival.
    pub seq: Option<u64>,
    /// For people.
    pub message: String,
}

/// What the new ledger holds.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Arrivals recorded from manifest lines.
    pub lines: u64,
    /// Duplicates recorded from their reasons.
    pub duplicates: u64,
    /// Quarantined files recorded from their reasons.
    pub quarantined: u64,
    /// Numbers that came to nothing, as far as can be told.
    pub void: u64,
    /// Files that nothing had recorded; the next start finishes them.
    pub adopted: u64,
    /// Files that are missing or have other bytes: their content is taken in anew when it comes again.
    pub damaged: u64,
    /// The number that the next arrival gets.
    pub next_seq: u64,
}

/// Makes the ledger. `tell` hears of everything out of the ordinary while it goes on.
///
/// # Errors
/// What is there cannot be made a ledger of, or may not; then nothing was changed.
pub fn rebuild(
    settings: &Settings,
    deep: bool,
    tell: &mut dyn FnMut(Finding),
) -> Result<Report, Failure> {
    let roots = Roots::lock(settings)?;
    let uuid = roots.agreed_name(&settings.apart_dirs())?;
    let place = settings.ledger_dir();
    let nameless = refuse_to_replace(&place)?;
    let making = settings.state_path.join("ledger.rebuilding");
    Lmdb::remove(&making)?;
    // Durable at the end, all at once.
    let mut ledger = Lmdb::open(&making, Durability::None)?;
    ledger.found(&uuid)?;
    // Before any number is given out: all hidden names are made with it.
    ledger.secret_or_new()?;
    let mut rebuild = Rebuild::new(settings, &roots, ledger, uuid, deep, tell)?;
    match rebuild.fill() {
        Ok(()) => {}
        Err(failure) => {
            drop(rebuild);
            let _ = Lmdb::remove(&making);
            return Err(failure);
        }
    }
    let Rebuild { ledger, report, .. } = rebuild;
    ledger.sync()?;
    drop(ledger);
    if nameless {
        Lmdb::remove(&place)?;
    }
    Lmdb::move_into_place(&making, &place)?;
    Ok(report)
}

/// Refuses to build where a ledger is. One without a name is that of a start that went no further: true.
fn refuse_to_replace(place: &Path) -> Result<bool, Failure> {
    if !place.exists() {
        return Ok(false);
    }
    let nameless = Lmdb::open_read_only(place)
        .and_then(|ledger| Ok(ledger.uuid()?.is_none() && ledger.next_seq()? == 1));
    match nameless {
        Ok(true) => Ok(true),
        _ => Err(Failure::new(
            Exit::Config,
            "rebuild the ledger at",
            place,
            "there is one",
            format!(
                "if it is damaged or too old, move it away first: mv {0} {0}.old",
                place.display()
            ),
        )),
    }
}

/// The directories, locked.
struct Roots {
    inputs: Vec<Locked>,
    warehouse: Locked,
    manifests: Locked,
    _state: Locked,
}

impl Roots {
    fn lock(settings: &Settings) -> Result<Roots, Failure> {
        let inputs = settings.sources.iter().map(|source| &source.input);
        for path in inputs.chain([&settings.warehouse, &settings.manifests]) {
            if !path.is_dir() {
                return Err(Failure::new(
                    Exit::Config,
                    "rebuild the ledger from",
                    path,
                    "there is no such directory",
                    "mount or restore it; make it if it is gone for good",
                ));
            }
        }
        open::make_private_dirs(&settings.state_path)
            .map_err(|error| session::config("make the directory", &settings.state_path, &error))?;
        let state = session::lock_state(&settings.state_path)?;
        let inputs = settings.sources.iter();
        Ok(Roots {
            inputs: inputs
                .map(|source| session::lock_shared(&source.input))
                .collect::<Result<_, _>>()?,
            warehouse: session::lock_marked(&settings.warehouse)?,
            manifests: session::lock_marked(&settings.manifests)?,
            _state: state,
        })
    }

    /// The name of the ledger that warehouse and manifests belonged to.
    fn agreed_name(&self, apart: &[PathBuf]) -> Result<String, Failure> {
        let refuse = |place: &Locked, cause: String, remedy: &str| {
            let operation = "rebuild the ledger from";
            Failure::new(Exit::Config, operation, &place.path, cause, remedy)
        };
        let (warehouse, manifests) = (&self.warehouse, &self.manifests);
        let marked = |place| session::read_marker(place);
        match (marked(warehouse)?, marked(manifests)?) {
            (Some(one), Some(other)) if one == other => Ok(one),
            (Some(one), Some(other)) => Err(refuse(
                manifests,
                format!("it belongs to ledger {other}, the warehouse to {one}"),
                "name a warehouse and manifests that belong together (--warehouse, --manifests)",
            )),
            (None, None) => Err(refuse(
                warehouse,
                format!(
                    "neither it nor the manifests directory has a marker ({})",
                    layout::MARKER
                ),
                "mount or restore them; if nothing was ever recorded, `ringest run` makes a new ledger",
            )),
            // A first start that was killed between the two: nothing was recorded.
            (Some(one), None) | (None, Some(one))
                if holds_nothing(warehouse, apart)? && holds_nothing(manifests, apart)? =>
            {
                Ok(one)
            }
            (one, _) => Err(refuse(
                if one.is_some() { manifests } else { warehouse },
                format!(
                    "it has no marker ({}): is its disk mounted?",
                    layout::MARKER
                ),
                "mount or restore it",
            )),
        }
    }
}

/// Whether there is nothing of ours but a marker.
fn holds_nothing(place: &Locked, apart: &[PathBuf]) -> Result<bool, Failure> {
    let failed = |error| Failure::io("look into", &place.path, &error);
    let entries = std::fs::read_dir(&place.path).map_err(failed)?;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if apart.contains(&entry.path()) {
            continue;
        }
        if !name.as_encoded_bytes().starts_with(b".") && name != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Work in hand.
struct Rebuild<'a> {
    settings: &'a Settings,
    deep: bool,
    tell: &'a mut dyn FnMut(Finding),
    disk: RealDisk,
    warehouse: DirHandle,
    manifests: DirHandle,
    /// Every staging directory that can be reached.
    inputs: HashMap<SourceId, DirHandle>,
    /// Locks of staging directories of earlier settings.
    held: Vec<OwnedFd>,
    sources: Vec<SourceEntry>,
    ledger: Lmdb,
    uuid: String,
    /// Where files lie in the warehouse.
    tree: Tree,
    /// What is recorded of the warehouse.
    names: Names,
    /// Records on their way into the ledger.
    commit: Commit,
    totals: Totals,
    last_time_micros: i64,
    report: Report,
    /// The directory looked into last.
    last_dir: Option<(PathBuf, Option<DirHandle>)>,
}

impl<'a> Rebuild<'a> {
    fn new(
        settings: &'a Settings,
        roots: &Roots,
        mut ledger: Lmdb,
        uuid: String,
        deep: bool,
        tell: &'a mut dyn FnMut(Finding),
    ) -> Result<Rebuild<'a>, Failure> {
        let mut inputs = HashMap::new();
        for (source, root) in settings.sources.iter().zip(&roots.inputs) {
            let id = ledger.source_id(&source.name, &source.input)?;
            inputs.insert(id, Arc::clone(&root.dir));
        }
        Ok(Rebuild {
            settings,
            deep,
            tell,
            disk: RealDisk {
                durable: settings.durability == Durability::Full,
                syncfs: false,
                // A writer shows by what it changes while a file is read.
                lease_signal: None,
            },
            warehouse: Arc::clone(&roots.warehouse.dir),
            manifests: Arc::clone(&roots.manifests.dir),
            inputs,
            held: Vec::new(),
            sources: ledger.sources()?,
            ledger,
            uuid,
            tree: Tree::new(settings),
            names: Names::default(),
            commit: Commit::default(),
            totals: Totals::default(),
            last_time_micros: 0,
            report: Report {
                next_seq: 1,
                ..Report::default()
            },
            last_dir: None,
        })
    }

    fn fill(&mut self) -> Result<(), Failure> {
        self.sync_all()?;
        let end = self.read_manifests()?;
        let unexplained = self.read_reasons()?;
        self.fill_gaps()?;
        let intents = self.adopt(unexplained)?;
        self.resolve_hidden(&intents)?;
        self.finish(end)?;
        // In one batch each, as recovery takes them: by their time.
        for batch in intents.chunks(CHUNK) {
            self.ledger.commit_intents(batch, self.report.next_seq)?;
        }
        Ok(())
    }

    /// What the new ledger says is on the disk, is. Directories made shortly before the loss are among it.
    fn sync_all(&self) -> Result<(), Failure> {
        let inputs = self
            .inputs
            .iter()
            .map(|(id, dir)| (dir, self.input_path(*id)));
        let own = [
            (&self.warehouse, self.settings.warehouse.clone()),
            (&self.manifests, self.settings.manifests.clone()),
        ];
        for (dir, path) in own.into_iter().chain(inputs) {
            self.disk
                .sync_filesystem(dir)
                .map_err(|error| Failure::sync("sync the filesystem of", &path, &error))?;
        }
        Ok(())
    }

    // ---- records ----

    /// Adds a record, and its content if the file stands.
    fn record(&mut self, record: Record) -> Result<(), Failure> {
        if let RecordState::Done { arrival, .. } = &record.state {
            let count = Count::file(arrival.identity.size);
            match &arrival.outcome {
                Outcome::Ingest => self.totals.ingested += count,
                Outcome::Duplicate { .. } => self.totals.duplicate += count,
                Outcome::Quarantine { .. } => self.totals.quarantined += count,
            }
            self.names.add(arrival);
            self.last_time_micros = self.last_time_micros.max(arrival.time_micros);
            let content = arrival.key.map(|key| (key, arrival.seq));
            self.commit.content.extend(content);
        }
        self.report.next_seq = self.report.next_seq.max(record.seq + 1);
        self.commit.records.push(record);
        match self.commit.records.len() {
            CHUNK.. => self.flush(),
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let mut commit = std::mem::take(&mut self.commit);
        commit.records.sort_unstable_by_key(|record| record.seq);
        commit.totals = self.totals;
        commit.next_seq = self.report.next_seq;
        // Nobody can tell how the lost session ended: the next start reads past the cache.
        commit.clean = Some(false);
        self.ledger.commit_records(&commit)
    }

    /// Numbers without a line or a reason: deleted duplicates, and what crashes left.
    fn fill_gaps(&mut self) -> Result<(), Failure> {
        self.flush()?;
        let mut expected = 1;
        loop {
            let records = self.ledger.records_from(expected, CHUNK)?;
            if records.is_empty() {
                return self.flush();
            }
            for record in records {
                for seq in expected..record.seq {
                    self.report.void += 1;
                    let state = RecordState::Void;
                    self.record(Record { seq, state })?;
                }
                expected = record.seq + 1;
            }
        }
    }

    /// The ends of the manifest, and everything that is not a record.
    fn finish(&mut self, end: Option<(ManifestEnd, PendingLines)>) -> Result<(), Failure> {
        if let Some((end, last)) = end {
            // The last line stands for the end that is promised; being synced, it is not pending.
            self.commit.lines = Some(last);
            self.commit.synced = Some(end);
        }
        self.flush()
    }

    // ---- sources ----

    fn input_path(&self, id: SourceId) -> PathBuf {
        let entry = self.sources.iter().find(|entry| entry.id == id);
        entry.map(|entry| entry.input.clone()).unwrap_or_default()
    }

    /// The number of a source, old or new.
    fn source_id(&mut self, name: &str, input: &Path) -> Result<SourceId, Failure> {
        let known = self
            .sources
            .iter()
            .find(|entry| entry.name == name && entry.input == input);
        if let Some(entry) = known {
            return Ok(entry.id);
        }
        let id = self.ledger.source_id(name, input)?;
        self.sources = self.ledger.sources()?;
        // Not locked, as in a session: nobody takes files from it now. The same directory may be open already.
        let open_already = self
            .sources
            .iter()
            .filter(|entry| entry.input == input)
            .find_map(|entry| self.inputs.get(&entry.id).cloned());
        let dir = open_already.or_else(|| match lock::lock_shared(input) {
            Ok(Some(held)) => {
                self.held.push(held.record);
                Some(Arc::new(held.dir))
            }
            _ => None,
        });
        if let Some(dir) = dir {
            self.inputs.insert(id, dir);
        }
        Ok(id)
    }

    /// The settings of a source; of one that is no longer there, those of the first: they mostly agree.
    fn settings_of(&self, name: &str) -> &'a Source {
        let sources = &self.settings.sources;
        let found = sources.iter().find(|source| source.name == name);
        found.unwrap_or(&sources[0])
    }

    fn key_of(
        &self,
        source: SourceId,
        path: &Path,
        digest: &Digest,
        size: u64,
    ) -> Option<ContentKey> {
        let entry = self.sources.iter().find(|entry| entry.id == source)?;
        let mut settings = self.settings_of(&entry.name).clone();
        settings.name.clone_from(&entry.name);
        content_key(&settings, path, digest, size)
    }

    fn owe(&mut self, seq: u64, kind: OwedKind, source: SourceId, path: &Path, identity: Identity) {
        self.commit.owed.push(Owed {
            seq,
            kind,
            source,
            path: path.to_path_buf(),
            identity,
        });
    }

    fn say(&mut self, kind: Kind, path: PathBuf, seq: Option<u64>, message: String) {
        (self.tell)(Finding {
            kind,
            path,
            seq,
            message,
        });
    }

    // ---- files ----

    /// The directory of a path beneath the warehouse; `None` if it is not there.
    fn dir_of(&mut self, placed: &Path) -> Result<Option<DirHandle>, Failure> {
        let parent = placed.parent().unwrap_or(Path::new(""));
        if let Some((path, dir)) = &self.last_dir
            && path == parent
        {
            return Ok(dir.clone());
        }
        let dir = match self.disk.open_dir(&self.warehouse, parent) {
            Ok(dir) => Some(dir),
            Err(error) if is_absent(&error) => None,
            Err(error) => {
                let path = self.settings.warehouse.join(parent);
                return Err(Failure::io("open the directory", &path, &error));
            }
        };
        self.last_dir = Some((parent.to_path_buf(), dir.clone()));
        Ok(dir)
    }

    /// Looks at a regular file in the warehouse.
    fn look(&mut self, placed: &Path) -> Result<Option<FileStat>, Failure> {
        let Some(dir) = self.dir_of(placed)? else {
            return Ok(None);
        };
        let seen = self.disk.stat(&dir, name_of(placed)).map_err(|error| {
            Failure::io("look at", &self.settings.warehouse.join(placed), &error)
        })?;
        Ok(seen.filter(is_regular))
    }

    /// SHA-256 of a file in the warehouse, as the disk holds it.
    fn digest_of_placed(&mut self, placed: &Path) -> Result<Digest, Failure> {
        let path = self.settings.warehouse.join(placed);
        let dir = self.dir_of(placed)?;
        let dir = dir.ok_or_else(|| {
            let error = io::ErrorKind::NotFound.into();
            Failure::io("read", &path, &error)
        })?;
        digest_of(&self.disk, &dir, name_of(placed))
            .map_err(|error| Failure::io("read", &path, &error))
    }

    /// Whether the file of a record is there, whole. Tells of one that is not.
    fn stands(
        &mut self,
        arrival: &Arrival,
        seen: Option<FileStat>,
        read: bool,
    ) -> Result<bool, Failure> {
        let (seq, path) = (arrival.seq, self.settings.warehouse.join(&arrival.placed));
        let (kind, message) = match seen {
            None => (
                Kind::FileMissing,
                format!("it is missing; arrival {seq} put it there"),
            ),
            Some(seen) if seen.identity.size != arrival.identity.size => {
                let (has, had) = (seen.identity.size, arrival.identity.size);
                let message = format!("it has {has} bytes; arrival {seq} had {had}");
                (Kind::FileChanged, message)
            }
            Some(_) if !read || self.digest_of_placed(&arrival.placed)? == arrival.digest => {
                return Ok(true);
            }
            Some(_) => (
                Kind::FileChanged,
                format!("its SHA-256 is not that of arrival {seq}"),
            ),
        };
        self.report.damaged += 1;
        let message = format!("{message}; its content will be taken in anew when it comes again");
        self.say(kind, path, Some(seq), message);
        Ok(false)
    }
}

/// SHA-256 of a file as the disk holds it. An error if it changes meanwhile.
pub(crate) fn digest_of(disk: &RealDisk, dir: &DirHandle, name: &OsStr) -> io::Result<Digest> {
    let file = disk.open(dir, name)?;
    disk.forget_cached(&file)?;
    let before = disk.stat_file(&file)?;
    let mut stream = digest::Stream::default();
    let mut reader = FileReader::new(disk, &file, 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut reader, &mut buffer)? {
            0 => break,
            bytes => digest::update(&mut [(&mut stream, &buffer[..bytes])]),
        }
    }
    match disk.stat_file(&file)?.identity == before.identity {
        true => Ok(stream.finish()),
        false => Err(io::Error::other(
            "somebody writes to it; stop them and try again",
        )),
    }
}

/// A file of a [`Disk`], read from front to back.
struct FileReader<'a> {
    disk: &'a RealDisk,
    file: &'a Handle,
    offset: u64,
}

impl<'a> FileReader<'a> {
    fn new(disk: &'a RealDisk, file: &'a Handle, offset: u64) -> FileReader<'a> {
        FileReader { disk, file, offset }
    }
}

impl io::Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.disk.read_at(self.file, buffer, self.offset)?;
        self.offset += bytes as u64;
        Ok(bytes)
    }
}

fn is_regular(seen: &FileStat) -> bool {
    seen.kind == rustix::fs::FileType::RegularFile
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(OsStr::new("."))
}
