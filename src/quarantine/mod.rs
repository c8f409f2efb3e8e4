//! Files that were set aside: which of them still lie there, and how they go back to staging or for good.
//!
//! The ledger's record says, for ever, all that is known of such a file. Whether it still lies there is not in the ledger, which
//! only the recorder writes: the disk says it, by the file and by the reason beside it. The reason names its arrival, so
//! that a later file under the same name is told from it. It is removed last:
//!
//! | file | reason | |
//! |---|---|---|
//! | there | there | it lies in quarantine |
//! | there | gone | the same; somebody removed its reason |
//! | gone | there | a retry or a drop was interrupted, or somebody took the file away |
//! | gone, or another arrival's | gone, or another arrival's | it was given back, dropped, or taken away with its reason |
//!
//! `give_back.rs` has the steps of a retry and of a drop, and what a crash leaves between them.
//!
//! Memory: what is known of the files that lie there.

mod give_back;

pub use give_back::{Changes, Returned};

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};
use crate::io::disk::DirHandle;
use crate::io::{Disk, FileStat, RealDisk, lock, open};
use crate::ledger::lmdb::Lmdb;
use crate::ledger::{Arrival, Outcome, OwedKind, Placement, RecordState, SourceEntry, SourceId};
use crate::pipeline::record::hidden::{Hidden, HiddenNames};
use crate::pipeline::record::owed::REASON_BYTES_MAX;
use crate::pipeline::record::{is_absent, layout};
use crate::settings::{Durability, Settings};

/// Records looked at in one read transaction.
const CHUNK: usize = 4096;

/// What is left of a file that was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It lies there.
    Quarantined,
    /// A retry was interrupted: it waits in staging under a hidden name. Another retry finishes it.
    GivingBack,
    /// Only its reason is there.
    Missing,
    /// It was given back, dropped, or taken away.
    Gone,
}

/// A file that was set aside.
#[derive(Debug, Clone)]
pub struct Held {
    /// What the ledger knows of it.
    pub arrival: Arrival,
    /// The staging directory whence it came.
    pub source: SourceEntry,
    /// Where it is.
    pub state: State,
    /// The file that lies there.
    pub seen: Option<FileStat>,
    /// Whether its reason is beside it.
    pub has_reason: bool,
}

impl Held {
    /// The rule that it broke.
    pub fn rule(&self) -> &str {
        match &self.arrival.outcome {
            Outcome::Quarantine { rule, .. } => rule,
            _ => "",
        }
    }
}

/// Which files are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those of the source of this name.
    pub source: Option<String>,
    /// Those that broke this rule.
    pub rule: Option<String>,
    /// Those that were taken since, in microseconds since the epoch.
    pub since_micros: Option<i64>,
}

/// What lies in quarantine.
pub struct Quarantine {
    ledger: Lmdb,
    disk: RealDisk,
    names: HiddenNames,
    warehouse: PathBuf,
    root: DirHandle,
    sources: HashMap<SourceId, SourceEntry>,
}

/// What is beside a file that was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasonBeside {
    /// Nothing.
    Absent,
    /// The reason of the arrival with this number.
    Of(u64),
    /// A reason that names no arrival: somebody changed it.
    Unknown,
}

/// Reads whose reason lies beside the file at `placed` beneath a root.
///
/// # Errors
/// Those of reading it.
pub fn reason_beside(root: impl AsFd, placed: &Path) -> io::Result<ReasonBeside> {
    #[derive(Deserialize)]
    struct Number {
        seq: u64,
    }
    let name = layout::reason_name(placed.file_name().unwrap_or_default());
    let path = placed.with_file_name(name);
    let file = match open::file_beneath(root, path.as_os_str()) {
        Ok(file) => File::from(file),
        Err(error) if is_absent(&error) => return Ok(ReasonBeside::Absent),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(REASON_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    Ok(match serde_json::from_slice::<Number>(&bytes) {
        Ok(Number { seq }) => ReasonBeside::Of(seq),
        Err(_) => ReasonBeside::Unknown,
    })
}

/// Keeps two from giving back or dropping at once. Nobody else locks that directory.
fn lock_against_others(ledger_dir: &Path) -> Result<OwnedFd, Failure> {
    match lock::lock_dir(ledger_dir) {
        Ok(Some(locked)) => Ok(locked),
        Ok(None) => Err(Failure::new(
            Exit::Busy,
            "change the quarantine that belongs to",
            ledger_dir,
            "another `ringest quarantine` is at it",
            "wait until it has ended",
        )),
        Err(error) => Err(Failure::io("lock", ledger_dir, &error)),
    }
}

/// Whether somebody gives back or drops at this moment.
pub fn is_busy(ledger_dir: &Path) -> bool {
    // The lock goes with the descriptor, at once.
    open::root_dir(ledger_dir).is_ok_and(|dir| {
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockShared)
            == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

impl Quarantine {
    /// Opens ledger and warehouse, beside a running instance too.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub fn open(settings: &Settings) -> Result<Quarantine, Failure> {
        let ledger = Lmdb::open_read_only(&settings.ledger_dir())?;
        let sources = ledger.sources()?.into_iter();
        let warehouse = settings.warehouse.clone();
        let root = open::root_dir(&warehouse)
            .map_err(|error| Failure::io("open the warehouse", &warehouse, &error))?;
        Ok(Quarantine {
            names: ledger.hidden_names()?,
            sources: sources.map(|entry| (entry.id, entry)).collect(),
            ledger,
            disk: RealDisk {
                durable: settings.durability == Durability::Full,
                syncfs: false,
                lease_signal: None,
            },
            warehouse,
            root: Arc::new(root),
        })
    }

    /// Everything that lies there, or of which something is left, in the order of arrival.
    ///
    /// # Errors
    /// The ledger cannot be read, or no source has the name that is asked for.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Held>, Failure> {
        if let Some(name) = &filter.source
            && !self.sources.values().any(|entry| entry.name == *name)
        {
            let mut known: Vec<&str> = self.sources.values().map(|it| it.name.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(Failure::new(
                Exit::Data,
                "look for files of the source",
                Path::new(name),
                "the ledger knows no source of that name",
                format!("it knows: {}", known.join(", ")),
            ));
        }
        let wanted = |arrival: &Arrival| {
            let source = self.sources.get(&arrival.source).map(|it| it.name.as_str());
            let Outcome::Quarantine { rule, .. } = &arrival.outcome else {
                return false;
            };
            filter.source.as_deref().is_none_or(|it| source == Some(it))
                && filter.rule.as_ref().is_none_or(|it| it == rule)
                && filter
                    .since_micros
                    .is_none_or(|since| arrival.time_micros >= since)
        };
        self.walk(1, None, wanted)
    }

    /// The file that was set aside under a number, whatever became of it since.
    ///
    /// # Errors
    /// There was none.
    pub fn numbered(&self, seq: u64) -> Result<Held, Failure> {
        let number = PathBuf::from(seq.to_string());
        let refuse = |cause: &str| {
            let remedy = "`ringest quarantine list` shows what lies there";
            Failure::new(Exit::Data, "look up arrival", &number, cause, remedy)
        };
        let arrival = match self.ledger.record_of(seq)?.map(|record| record.state) {
            Some(RecordState::Done { arrival, .. }) => arrival,
            Some(RecordState::Void) => return Err(refuse("its number came to nothing")),
            None => return Err(refuse("it is not recorded")),
        };
        match arrival.outcome {
            Outcome::Quarantine { .. } => {}
            Outcome::Ingest => return Err(refuse("it was ingested, not quarantined")),
            Outcome::Duplicate { .. } => {
                return Err(refuse("it is a duplicate, which is not quarantined"));
            }
        }
        let found = self.walk(seq, Some(seq), |arrival| arrival.seq == seq)?;
        Ok(found.into_iter().next().unwrap_or_else(|| Held {
            source: self.source_of(&arrival),
            arrival,
            state: State::Gone,
            seen: None,
            has_reason: false,
        }))
    }

    /// The files that lie at a path or came from it, of those that are left.
    ///
    /// # Errors
    /// There is none.
    pub fn at(&self, path: &Path) -> Result<Vec<Held>, Failure> {
        let absolute = std::path::absolute(path)
            .map_err(|error| Failure::io("make an absolute path of", path, &error))?;
        let wanted = |arrival: &Arrival| {
            matches!(arrival.outcome, Outcome::Quarantine { .. })
                && (self.warehouse.join(&arrival.placed) == absolute
                    || arrival.placed == path
                    || self.source_of(arrival).input.join(&arrival.path) == absolute)
        };
        let found = self.walk(1, None, wanted)?;
        match found.is_empty() {
            false => Ok(found),
            true => Err(Failure::new(
                Exit::Data,
                "find in quarantine",
                path,
                "nothing lies there, and nothing that lies in quarantine came from there",
                "`ringest quarantine list` shows what there is",
            )),
        }
    }

    /// Where it lies, or lay.
    pub fn quarantine_path(&self, arrival: &Arrival) -> PathBuf {
        self.warehouse.join(&arrival.placed)
    }

    fn source_of(&self, arrival: &Arrival) -> SourceEntry {
        let unknown = || SourceEntry {
            id: arrival.source,
            name: String::new(),
            input: PathBuf::new(),
        };
        self.sources
            .get(&arrival.source)
            .cloned()
            .unwrap_or_else(unknown)
    }

    /// Looks for what is wanted from a number on, to another one at least.
    fn walk(
        &self,
        from: u64,
        to: Option<u64>,
        wanted: impl Fn(&Arrival) -> bool,
    ) -> Result<Vec<Held>, Failure> {
        let mut found: Vec<Held> = Vec::new();
        // Without a reason only later records tell whose a file is that lies there: the last one's.
        let mut doubtful: HashMap<PathBuf, u64> = HashMap::new();
        let mut others: HashSet<u64> = HashSet::new();
        let mut next = from;
        'records: loop {
            let records = self.ledger.records_from(next, CHUNK)?;
            let Some(last) = records.last() else { break };
            next = last.seq + 1;
            for record in records {
                if to.is_some_and(|to| record.seq > to) && doubtful.is_empty() {
                    break 'records;
                }
                let RecordState::Done { arrival, .. } = record.state else {
                    continue;
                };
                others.extend(doubtful.remove(&arrival.placed));
                if !wanted(&arrival) {
                    continue;
                }
                let Some(held) = self.look(arrival)? else {
                    continue;
                };
                if !held.has_reason {
                    doubtful.insert(held.arrival.placed.clone(), held.arrival.seq);
                }
                found.push(held);
            }
        }
        if !doubtful.is_empty() {
            for intent in self.ledger.intents()? {
                others.extend(doubtful.remove(&intent.placed));
            }
        }
        found.retain(|held| !others.contains(&held.arrival.seq));
        Ok(found)
    }

    /// What is left of a file; `None` if it is nothing.
    fn look(&self, arrival: Arrival) -> Result<Option<Held>, Failure> {
        if arrival.placement == Placement::None {
            return Ok(None);
        }
        let path = self.quarantine_path(&arrival);
        let failed = |error| Failure::io("look at", &path, &error);
        // The file first: it is gone before its reason.
        let seen = self.stat(&self.root, &arrival.placed).map_err(failed)?;
        let seen = seen.filter(|seen| seen.kind.is_file());
        let reason = reason_beside(&self.root, &arrival.placed).map_err(failed)?;
        let state = match (seen.is_some(), reason) {
            (_, ReasonBeside::Of(other)) if other != arrival.seq => return Ok(None),
            (false, ReasonBeside::Absent) => return Ok(None),
            (true, _) => State::Quarantined,
            // Where its uploader lets nobody look, it is not there for us.
            (false, _) => match self.hidden(&arrival) {
                Ok((_, Some(_))) => State::GivingBack,
                _ => State::Missing,
            },
        };
        Ok(Some(Held {
            source: self.source_of(&arrival),
            arrival,
            state,
            seen,
            has_reason: reason != ReasonBeside::Absent,
        }))
    }

    /// The name that a file has in its staging directory until it has left quarantine for good, which intake leaves alone, and
    /// the file that an interrupted return has left there.
    fn hidden(&self, arrival: &Arrival) -> Result<(OsString, Option<FileStat>), Failure> {
        let input = self.source_of(arrival).input;
        let free = (self.names.name(Hidden::Returning, arrival.seq), None);
        let failed = |error| Failure::io("look into", &input.join(&arrival.path), &error);
        let root = match open::root_dir(&input) {
            Ok(root) => Arc::new(root),
            // A staging directory of an earlier day may be gone.
            Err(error) if is_absent(&error) => return Ok(free),
            Err(error) => return Err(failed(error)),
        };
        for name in self.names.names(Hidden::Returning, arrival.seq) {
            let path = arrival.path.with_file_name(&name);
            let seen = self.stat(&root, &path).map_err(failed)?;
            if let Some(seen) = seen.filter(|seen| seen.kind.is_file()) {
                return Ok((name, Some(seen)));
            }
        }
        Ok(free)
    }

    fn stat(&self, root: &DirHandle, path: &Path) -> io::Result<Option<FileStat>> {
        let parent = path.parent().unwrap_or(Path::new(""));
        match self.disk.open_dir(root, parent) {
            Ok(dir) => self.disk.stat(&dir, path.file_name().unwrap_or_default()),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether its reason is still to be written: until then the recorder is not done with it.
    fn owes_reason(&self, seq: u64) -> Result<bool, Failure> {
        self.ledger.owes(seq, OwedKind::Reason)
    }
}
