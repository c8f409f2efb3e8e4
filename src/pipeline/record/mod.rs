//! Recording: the only writer of ledger, manifests and warehouse.
//!
//! `commit.rs` has the order of the protocol on one screen; `recover.rs` the table of what a crash can leave. Both run
//! the same steps, against a real disk or a simulated one.

mod classify;
mod commit;
pub mod dirs;
pub mod hidden;
pub mod layout;
pub mod manifest;
pub mod owed;
mod place;
mod recover;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use crate::failure::{Exit, Failure};
use crate::io::open::SyncFailed;
use crate::io::probe::Ctimes;
use crate::io::{Clock, Disk, Identity};
use crate::ledger::lmdb::Lmdb;
use crate::ledger::{Arrival, Commit, Digest, Kept, Ledger, Opening, Owed, SourceEntry, SourceId};
use crate::observe::metrics::{Metrics, Totals};
use crate::pipeline::queue::Queue;
use crate::pipeline::{Fate, Staged};
use crate::trial::{mutants, points};

use commit::{Batch, Needs};
use dirs::Dirs;
use hidden::HiddenNames;
use manifest::ManifestWriter;

pub use classify::{content_key, is_absent, is_stored_copy};
pub use place::CHANGED_RULE;
pub use recover::Recovery;
pub use report::Finished;
use report::Reporter;

/// Files that stay in staging and are not read again. Shared with the discoverer.
#[derive(Debug, Default)]
pub struct KeptSet(RwLock<LeftAlone>);

#[derive(Debug, Default)]
struct LeftAlone {
    /// One state of a file, by fingerprint.
    states: HashSet<u128>,
    /// A file whatever its state, by its path.
    files: HashMap<SourceId, HashMap<PathBuf, Identity>>,
}

impl KeptSet {
    /// Whether this state of this file is to be left alone.
    pub fn contains(&self, source: SourceId, path: &Path, identity: &Identity) -> bool {
        let left = self.0.read().unwrap_or_else(|e| e.into_inner());
        let states = &left.states;
        if !states.is_empty() && states.contains(&Kept::fingerprint(source, path, identity)) {
            return true;
        }
        let file = left.files.get(&source).and_then(|files| files.get(path));
        file.is_some_and(|file| file.same_inode(identity))
    }

    /// Adds a file in one state.
    pub fn add(&self, kept: &Kept) {
        let fingerprint = Kept::fingerprint(kept.source, &kept.path, &kept.identity);
        let mut left = self.0.write().unwrap_or_else(|e| e.into_inner());
        left.states.insert(fingerprint);
    }

    /// Adds a file of which nobody knows in which state it is.
    fn add_unseen(&self, owed: &Owed) {
        let mut left = self.0.write().unwrap_or_else(|e| e.into_inner());
        let files = left.files.entry(owed.source).or_default();
        files.insert(owed.path.clone(), owed.identity);
    }
}

/// Which root a directory lies beneath.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Root {
    Warehouse,
    /// Where the files of a source lie: its staging directory, or its claim directory.
    Input(SourceId),
    /// The staging directory of a source that has a claim directory.
    ClaimedFrom(SourceId),
}

/// A root directory: how it is reached, and how people know it.
pub struct Place<D: Disk> {
    /// The directory.
    pub dir: D::Dir,
    /// Its absolute path.
    pub path: PathBuf,
}

/// What a recorder works with.
pub struct RecorderParts<D: Disk, L: Ledger> {
    /// The disk.
    pub disk: D,
    /// The ledger.
    pub ledger: L,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Root of the warehouse.
    pub warehouse: Place<D>,
    /// Root of the manifests.
    pub manifests: Place<D>,
    /// Every staging directory that can be reached, those of earlier settings included.
    pub inputs: HashMap<SourceId, D::Dir>,
    /// Staging directories of those whose files are in a claim directory: that is what `inputs` has of them.
    pub claimed_from: HashMap<SourceId, D::Dir>,
    /// Every staging directory the ledger knows.
    pub sources: Vec<SourceEntry>,
    /// Files to leave alone.
    pub kept: Arc<KeptSet>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Most files of one commit.
    pub batch_files: usize,
    /// Whether the cache may show what the disk does not hold: read past it before anything is acknowledged.
    pub suspect: bool,
    /// Set when ringest is asked to stop: then nobody waits for room any longer.
    pub stop: Arc<AtomicBool>,
    /// How long it may wait for room; `None`: as long as it takes.
    pub pause_max: Option<Duration>,
    /// What ctimes tell on the filesystem of the warehouse.
    pub ctimes: Ctimes,
}

/// The recorder.
pub struct Recorder<D: Disk, L: Ledger> {
    disk: D,
    ledger: L,
    clock: Arc<dyn Clock>,
    warehouse: Place<D>,
    inputs: HashMap<SourceId, D::Dir>,
    claimed_from: HashMap<SourceId, D::Dir>,
    reporter: Arc<Reporter>,
    /// Who reports a batch; `None`: the recorder itself.
    report_by: Option<ReportBy<D::File>>,
    manifest: ManifestWriter<D>,
    kept: Arc<KeptSet>,
    metrics: Arc<Metrics>,
    batch_files: usize,
    suspect: bool,
    stop: Arc<AtomicBool>,
    pause_max: Option<Duration>,
    /// How long it has waited for room by now.
    waited: Duration,
    ctimes: Ctimes,
    /// Whose files nobody else can change.
    own_uid: u32,
    hidden: HiddenNames,
    /// Removals that are owed up to this number were told of.
    owed_told: u64,
    /// Removals for which there was no room in staging.
    postponed: VecDeque<Owed>,
    next_seq: u64,
    last_time_micros: i64,
    totals: Totals,
    /// What rides in the next commit: removals done, the manifest's watermark.
    later: Commit,
    later_waits: bool,
    /// Copies of content that the batch before was still placing.
    parked: Vec<Staged<D::File>>,
    /// A batch that is recorded, and owes something.
    unpaid: Option<Batch<D>>,
    /// Where batches come from, once there are any.
    queue: Option<Arc<Queue<Staged<D::File>>>>,
    /// What there was no room for the last time.
    wanted: Needs,
}

/// Takes a batch that is to be reported.
pub type ReportBy<File> = Box<dyn FnMut(Finished<File>) + Send>;

/// One arrival of a batch.
struct Item<File> {
    arrival: Arrival,
    /// The open file; `None` when recovery found the arrival in the ledger.
    staged: Option<Staged<File>>,
    /// What recovery holds open of it, under a lease where one is to be had.
    held: Option<File>,
    /// Whether it was set aside because it changed: then it need not be what was hashed.
    set_aside: bool,
    /// Its manifest line, if it gets one.
    line: Option<Vec<u8>>,
    /// Set when it is not recorded after all: what the discoverer hears.
    dropped: Option<Fate>,
}

/// Directories that a batch has open.
type BatchDirs<D> = Dirs<Root, D>;

impl<D: Disk, L: Ledger> Recorder<D, L> {
    /// A recorder that goes on where the ledger stands.
    pub fn new(parts: RecorderParts<D, L>, opening: &Opening) -> Recorder<D, L> {
        let manifest = ManifestWriter::new(parts.manifests, opening.manifest);
        let sources = parts.sources.into_iter();
        let reporter = Reporter {
            metrics: Arc::clone(&parts.metrics),
            sources: sources.map(|entry| (entry.id, entry)).collect(),
            warehouse: parts.warehouse.path.clone(),
        };
        Recorder {
            disk: parts.disk,
            ledger: parts.ledger,
            clock: parts.clock,
            warehouse: parts.warehouse,
            inputs: parts.inputs,
            claimed_from: parts.claimed_from,
            reporter: Arc::new(reporter),
            report_by: None,
            manifest,
            kept: parts.kept,
            metrics: parts.metrics,
            batch_files: parts.batch_files,
            suspect: parts.suspect,
            stop: parts.stop,
            pause_max: parts.pause_max,
            waited: Duration::ZERO,
            ctimes: parts.ctimes,
            own_uid: rustix::process::geteuid().as_raw(),
            hidden: HiddenNames::new(&opening.uuid, Some(&opening.secret)),
            owed_told: opening.owed_told,
            postponed: VecDeque::new(),
            next_seq: opening.next_seq,
            last_time_micros: opening.last_time_micros,
            totals: opening.totals,
            later: Commit::default(),
            later_waits: false,
            parked: Vec::new(),
            unpaid: None,
            queue: None,
            wanted: Needs::default(),
        }
    }

    /// Records what is staged until the queue is closed and empty.
    pub fn run(&mut self, staged: &Arc<Queue<Staged<D::File>>>) -> Result<(), Failure> {
        self.queue = Some(Arc::clone(staged));
        loop {
            let mut batch = std::mem::take(&mut self.parked);
            while batch.len() < self.batch_files {
                match staged.try_pop() {
                    Some(next) => batch.push(next),
                    None => break,
                }
            }
            if batch.is_empty() {
                self.settle()?;
                self.commit_later()?;
                match staged.pop() {
                    Some(next) => batch.push(next),
                    None => return Ok(()),
                }
                // Others may have come with it.
                while batch.len() < self.batch_files {
                    match staged.try_pop() {
                        Some(next) => batch.push(next),
                        None => break,
                    }
                }
            }
            self.process(batch)?;
        }
    }

    /// Leaves it to somebody else to report what is durable, or takes that back.
    pub fn report_by(&mut self, report: Option<ReportBy<D::File>>) {
        self.report_by = report;
    }

    /// Ends the session: what rode along is committed, with the numbers for `status`.
    pub fn close(mut self, numbers: String) -> Result<(), Failure> {
        self.later.numbers = Some(numbers);
        self.later.clean = Some(true);
        self.later_waits = true;
        points::reached("closing");
        self.commit_later()?;
        points::reached("closed");
        Ok(())
    }

    /// Marks the session as begun, so that an end without [`Recorder::close`] shows.
    pub fn begin_session(&mut self) -> Result<(), Failure> {
        self.later.clean = Some(false);
        self.later_waits = true;
        self.commit_later()?;
        points::reached("session_begun");
        Ok(())
    }

    /// Commits what waits for the next batch, when there is none.
    fn commit_later(&mut self) -> Result<(), Failure> {
        if !self.later_waits {
            return Ok(());
        }
        let commit = self.take_later();
        self.ledger.commit_records(&commit)
    }

    fn take_later(&mut self) -> Commit {
        self.later_waits = false;
        let mut commit = std::mem::take(&mut self.later);
        self.totals.withdrawn = self.metrics.withdrawn.get();
        commit.totals = self.totals;
        commit.next_seq = self.next_seq;
        commit
    }

    /// The time of the next arrival. It never runs back, whatever the clock does.
    fn now_micros(&mut self) -> i64 {
        let now = self.clock.now_micros();
        self.last_time_micros = match mutants::on("time_runs_back") {
            true => now,
            false => now.max(self.last_time_micros),
        };
        self.last_time_micros
    }

    fn root(&self, root: Root) -> Result<&D::Dir, Failure> {
        match root {
            Root::Warehouse => Ok(&self.warehouse.dir),
            Root::ClaimedFrom(source) => Ok(&self.claimed_from[&source]),
            Root::Input(source) => self.inputs.get(&source).ok_or_else(|| {
                let path = self.input_path(source);
                Failure::new(
                    Exit::Config,
                    "go on with unfinished work in",
                    &path,
                    "this staging directory of an earlier run is not there",
                    "mount or restore it, then start again",
                )
            }),
        }
    }

    /// The directory of `path` beneath `root`.
    fn dir_of(
        &self,
        dirs: &mut BatchDirs<D>,
        root: Root,
        path: &Path,
        make: bool,
    ) -> Result<std::io::Result<D::Dir>, Failure> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let opened = dirs.get(&self.disk, root, self.root(root)?, parent, make);
        match opened {
            Err(error) if SyncFailed::is(&error) => {
                // Only there is anything made.
                let path = self.warehouse.path.join(parent);
                Err(Failure::sync("sync the parent of", &path, &error))
            }
            opened => Ok(opened),
        }
    }

    fn input_path(&self, source: SourceId) -> PathBuf {
        let entry = self.reporter.sources.get(&source);
        entry.map(|entry| entry.input.clone()).unwrap_or_default()
    }

    fn source_path(&self, arrival: &Arrival) -> PathBuf {
        self.reporter.source_path(arrival)
    }

    fn placed_path(&self, arrival: &Arrival) -> PathBuf {
        self.reporter.placed_path(arrival)
    }

    /// The manifest line of an arrival.
    fn line_of(&self, arrival: &Arrival) -> Vec<u8> {
        let (name, input) = match self.reporter.sources.get(&arrival.source) {
            Some(entry) => (entry.name.as_str(), entry.input.as_path()),
            None => ("", Path::new("")),
        };
        manifest::line(arrival, name, input, &self.warehouse.path)
    }

    /// SHA-256 of a file in the warehouse, as the disk holds it when the cache is not to be trusted. The inner error is
    /// that of reading it.
    fn digest_of(&self, file: &D::File, path: &Path) -> Result<std::io::Result<Digest>, Failure> {
        use crate::pipeline::read::digest;
        if self.suspect && !mutants::on("cache_trusted") {
            self.disk.forget_cached(file).map_err(|error| {
                Failure::sync("sync before reading past the cache", path, &error)
            })?;
        }
        let mut stream = digest::Stream::default();
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        loop {
            match self.disk.read_at(file, &mut buffer, offset) {
                Ok(0) => return Ok(Ok(stream.finish())),
                Ok(bytes) => {
                    digest::update(&mut [(&mut stream, &buffer[..bytes])]);
                    offset += bytes as u64;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }
}

impl<D: Disk> Recorder<D, Lmdb> {
    /// What is still owed its removal, by source.
    pub fn owed_paths(&self) -> Result<HashMap<SourceId, HashSet<PathBuf>>, Failure> {
        let mut paths: HashMap<SourceId, HashSet<PathBuf>> = HashMap::new();
        for owed in self.ledger.owed()? {
            paths.entry(owed.source).or_default().insert(owed.path);
        }
        Ok(paths)
    }
}

/// The time between two points, for the histograms.
fn between(from: Instant, to: Instant) -> Duration {
    to.saturating_duration_since(from)
}
