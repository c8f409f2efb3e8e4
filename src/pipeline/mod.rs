//! The way of a file. Stage names sort in the order of the flow; each stage takes one type and yields the next, and
//! each type is evidence of what has been proved:
//!
//! ```text
//! discover ──Candidate──▶ queue ──▶ read ──Staged──▶ record ──▶ manifest, warehouse, ledger
//!     ▲                               │                 │
//!     └───────────Verdict─────────────┴─────────────────┘
//! ```

pub mod claim;
pub mod discover;
pub mod queue;
pub mod read;
pub mod record;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::io::disk::Handle;
use crate::io::{FileStat, Identity};
use crate::ledger::{Counts, Digest, Outcome, Position, SourceId};
use crate::observe::mask::mask;
use crate::settings::Source;

use claim::{Claim, ClaimDir};
use discover::shares::Shares;
use queue::Turn;

/// A staging directory in use.
#[derive(Debug)]
pub struct Input {
    /// Its number in the ledger.
    pub id: SourceId,
    /// How its files are taken.
    pub settings: Source,
    /// The directory itself; every path is opened beneath it.
    pub dir: Arc<OwnedFd>,
    /// Its own state when it was opened.
    pub root: FileStat,
    /// Whether leases are worth asking for.
    pub leases: bool,
    /// Whether the kernel reports what happens in it.
    pub inotify: bool,
    /// Whether its files must be copied, because a rename into the warehouse does not work.
    pub copy: bool,
    /// Where its files are moved before they are read.
    pub claim: Option<Arc<ClaimDir>>,
}

impl Input {
    /// The path that people know a file by.
    pub fn absolute(&self, path: &Path) -> std::path::PathBuf {
        self.settings.input.join(path)
    }
}

/// Whose a file is. What is bounded is shared out among uploaders, so that no one's files keep out those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uploader {
    /// Where it lies.
    pub source: SourceId,
    /// Who owns it.
    pub user: u32,
}

/// Why the settler took a file for finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It held still, its sidecar came, or its writer closed it.
    Settled,
    /// It looked old enough; only a granted lease makes that sure.
    IfLeased,
}

/// A file that the settler saw holding still, or whose sidecar arrived.
#[derive(Debug)]
pub struct Candidate {
    /// Where it lies.
    pub input: Arc<Input>,
    /// Who owned it then.
    pub owner: u32,
    /// In which state it was settled.
    pub identity: Identity,
    /// On what grounds.
    pub proof: Proof,
    /// Whether it must be copied although others of its input are renamed.
    pub copy: bool,
    /// When it was first seen.
    pub seen_at: Instant,
    /// When it was settled.
    pub settled_at: Instant,
    /// Its place in the order of its source, if that has one.
    pub turn: Option<Turn<Staged<Handle>>>,
    /// What it was given of what is short.
    pub shares: Shares,
    /// Its path, and the promise to tell the discoverer how it ended.
    pub ticket: Ticket,
}

impl Candidate {
    /// Whose it is.
    pub fn uploader(&self) -> Uploader {
        Uploader {
            source: self.input.id,
            user: self.owner,
        }
    }

    /// Its path beneath the input.
    pub fn path(&self) -> &Path {
        &self.ticket.path
    }
}

/// A file whose bytes were read to the end and hashed, that did not change meanwhile, and that is still open.
#[derive(Debug)]
pub struct Staged<File> {
    /// What it was settled as.
    pub candidate: Candidate,
    /// Its state while it was read.
    pub stat: FileStat,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// The open file, under a lease where one was granted.
    pub file: File,
    /// Its copy on the warehouse's filesystem, if it has to be copied.
    pub copy: Option<Copied<File>>,
    /// Its sidecar: path beneath the input and state when read.
    pub sidecar: Option<(std::path::PathBuf, Identity)>,
    /// What is wrong with its content.
    pub finding: Option<Finding>,
    /// What was counted in it.
    pub counts: Counts,
    /// When its reading began and ended.
    pub read: (Instant, Instant),
}

/// A copy without a name in the warehouse.
#[derive(Debug)]
pub struct Copied<File> {
    /// The copy, open for writing.
    pub file: File,
    /// Its state.
    pub stat: FileStat,
    /// Its name in `_tmp`, on filesystems that have no unnamed files.
    pub temporary: Option<read::copy::Temporary>,
}

/// A rule that a file's content breaks; the file is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: String,
    /// What is wrong, for people.
    pub message: String,
    /// Where, for programs.
    pub position: Position,
}

impl Finding {
    /// What it makes of an arrival: names and pointers may hold card numbers.
    pub fn outcome(&self) -> Outcome {
        Outcome::Quarantine {
            rule: self.rule.clone(),
            message: mask(&self.message).into_owned(),
            position: self.position.masked(),
        }
    }
}

/// What became of a candidate, for the discoverer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It left staging, or stays there for good.
    Done,
    /// It has to settle again.
    Again {
        /// How long to leave it alone.
        after: Duration,
        /// Why.
        why: Waiting,
    },
    /// It changed after it was moved, and was moved back: that is heard of as if its writer were done with it.
    TakenBack {
        /// How long to leave it alone.
        after: Duration,
    },
    /// No lease is to be had: it has to hold still for the full interval.
    NeedsInterval,
    /// It cannot be renamed into the warehouse.
    NeedsCopy,
    /// It is gone.
    Withdrawn,
    /// It is nothing to ingest.
    Ignored(&'static str),
    /// There is no room (disk, descriptors): intake pauses.
    NoRoom(String),
}

/// What an unsettled file waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Waiting {
    /// To hold still.
    Still,
    /// For its writer to close it.
    HeldOpen,
    /// For its sidecar.
    Sidecar,
    /// For its second name to go.
    Links,
    /// For content.
    Empty,
    /// To become readable.
    Unreadable,
    /// Its turn: what it depends on is being worked on.
    Turn,
}

impl Waiting {
    /// The reason, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Waiting::Still => "still changing",
            Waiting::HeldOpen => "held open for writing",
            Waiting::Sidecar => "its sidecar has not arrived",
            Waiting::Links => "it has a second name (hard link)",
            Waiting::Empty => "it is empty",
            Waiting::Unreadable => "it cannot be read",
            Waiting::Turn => "waits for its turn",
        }
    }
}

/// Whether an error means that something is full: disk, quota, descriptors. Then intake pauses; nothing is broken.
pub fn is_no_room(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM)
    )
}

/// A candidate's path, and the promise that its discoverer hears of it: a ticket that is dropped says "again", so that
/// nothing is forgotten even when a thread dies.
#[derive(Debug)]
pub struct Ticket {
    source: SourceId,
    path: Arc<Path>,
    verdicts: Arc<Verdicts>,
    /// Given back before anybody hears that the file is not taken.
    claim: Option<Claim>,
    open: bool,
}

/// How long a file rests that was dropped without a word.
const DROPPED_REST: Duration = Duration::from_secs(1);

impl Ticket {
    /// A promise about `path`.
    pub fn new(source: SourceId, path: Arc<Path>, verdicts: Arc<Verdicts>) -> Ticket {
        Ticket {
            source,
            path,
            verdicts,
            claim: None,
            open: true,
        }
    }

    /// Moves the file to its claim directory, if it has one. Whether it was moved.
    ///
    /// # Errors
    /// Of the move.
    pub fn claim(&mut self, claims: Option<&Arc<ClaimDir>>) -> std::io::Result<bool> {
        self.claim = claims.map(|claims| claims.take(&self.path)).transpose()?;
        Ok(self.claim.is_some())
    }

    /// What became of it, once it is back if it was claimed and is not taken.
    fn end(&mut self, fate: Fate) -> Fate {
        self.open = false;
        let given_back = match (self.claim.take(), &fate) {
            (None, _) | (_, Fate::Done) => false,
            (Some(claim), _) => claim.give_back(),
        };
        match fate {
            // That is heard of as if its writer were done with it.
            Fate::Again { after, .. } if given_back => Fate::TakenBack { after },
            fate => fate,
        }
    }

    /// Tells the discoverer.
    pub fn close(self, fate: Fate) {
        Ticket::close_all([(self, fate)]);
    }

    /// Tells the discoverer of many at once, and wakes it once. They are all of one session.
    pub fn close_all(tickets: impl IntoIterator<Item = (Ticket, Fate)>) {
        let mut verdicts = None;
        let told = tickets.into_iter().map(|(mut ticket, fate)| {
            let fate = ticket.end(fate);
            verdicts.get_or_insert_with(|| Arc::clone(&ticket.verdicts));
            (ticket.source, Arc::clone(&ticket.path), fate)
        });
        let told: Vec<Verdict> = told.collect();
        if let Some(verdicts) = verdicts {
            verdicts.give(told);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            let fate = self.end(Fate::Again {
                after: DROPPED_REST,
                why: Waiting::Turn,
            });
            let verdict = (self.source, Arc::clone(&self.path), fate);
            self.verdicts.give([verdict]);
        }
    }
}

/// A verdict on one candidate.
pub type Verdict = (SourceId, Arc<Path>, Fate);

/// The way back to the discoverer. Bounded by the number of candidates in the flow.
#[derive(Debug)]
pub struct Verdicts {
    list: Mutex<Vec<Verdict>>,
    bell: OwnedFd,
}

impl Verdicts {
    /// An empty list with its bell.
    pub fn new() -> std::io::Result<Arc<Verdicts>> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        Ok(Arc::new(Verdicts {
            list: Mutex::new(Vec::new()),
            bell: rustix::event::eventfd(0, flags)?,
        }))
    }

    fn give(&self, verdicts: impl IntoIterator<Item = Verdict>) {
        let was_empty = {
            let mut list = self.list.lock().unwrap_or_else(|e| e.into_inner());
            let was_empty = list.is_empty();
            list.extend(verdicts);
            was_empty
        };
        if was_empty {
            self.ring();
        }
    }

    /// Wakes the discoverer.
    pub fn ring(&self) {
        // EAGAIN: the bell is ringing already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Takes all verdicts and silences the bell.
    pub fn take(&self) -> Vec<Verdict> {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        std::mem::take(&mut *self.list.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// What to poll for the bell.
    pub fn bell(&self) -> impl AsFd + '_ {
        self.bell.as_fd()
    }
}
