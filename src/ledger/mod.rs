//! The ledger: the truth about what was taken in. Everything else is a projection of it or waits in staging.
//!
//! A commit is atomic and, once it returns, durable. There is one writer, the recorder; `find`, `status` and
//! `verify` read a snapshot beside it.

pub mod lmdb;
pub mod schema;

use crate::failure::Failure;
pub use schema::{
    Arrival, ContentKey, Counts, Digest, KEPT_DUPLICATE, Kept, Line, ManifestEnd, Outcome, Owed,
    OwedKind, PendingLines, Placement, Position, Record, RecordState, SourceEntry, SourceId,
};

/// Everything a recorder needs to know at its start.
#[derive(Debug, Default)]
pub struct Opening {
    /// This ledger's own name, in 32 hex digits; empty before the first commit.
    pub uuid: String,
    /// The sequence number that the next arrival gets. The first is 1.
    pub next_seq: u64,
    /// The last sequence number with a record, 0 before the first.
    pub recorded_to: u64,
    /// Latest time given to an arrival, in microseconds since the epoch.
    pub last_time_micros: i64,
    /// Whether the last session ended by itself.
    pub clean: bool,
    /// The manifest file in use: how far it is assigned, and how far it is known to be durable.
    pub manifest: Option<ManifestEnd>,
    /// Files and bytes so far.
    pub totals: crate::observe::metrics::Totals,
    /// Placements begun and not committed, in order.
    pub intents: Vec<Arrival>,
    /// Names still to be removed, in order.
    pub owed: Vec<Owed>,
    /// Lines whose manifest is not known to hold them yet, in order.
    pub pending_lines: Vec<PendingLines>,
    /// Every staging directory ever used.
    pub sources: Vec<SourceEntry>,
    /// The key of hidden names, which nobody else knows.
    pub secret: Secret,
    /// Owed removals up to this number were told of before, and wait without another word.
    pub owed_told: u64,
}

/// The key that makes hidden names in staging unforeseeable, drawn once for each ledger.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Secret {
    /// Random.
    pub bytes: [u8; 32],
    /// The first sequence number whose hidden names have always been made with it: the ledger may be older.
    pub since: u64,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret(since {})", self.since)
    }
}

/// One atomic change: commit B of a batch and the housekeeping that rides with it.
#[derive(Debug, Default)]
pub struct Commit {
    /// What became of arrivals, in sequence order. Their intents end with this commit.
    pub records: Vec<Record>,
    /// Content now known, and the arrival that brought it.
    pub content: Vec<(ContentKey, u64)>,
    /// Manifest lines of these records.
    pub lines: Option<PendingLines>,
    /// Names that must go now that the records stand.
    pub owed: Vec<Owed>,
    /// Names that are gone for good.
    pub paid: Vec<(u64, OwedKind)>,
    /// Names that cannot be removed, or are kept on purpose.
    pub kept: Vec<Kept>,
    /// How far the manifest is durable.
    pub synced: Option<ManifestEnd>,
    /// Files and bytes so far, this commit included.
    pub totals: crate::observe::metrics::Totals,
    /// One past the last sequence number given out.
    pub next_seq: u64,
    /// Numbers, as JSON, for `status` when nobody is running.
    pub numbers: Option<String>,
    /// Set when the session begins (false) or ends by itself (true).
    pub clean: Option<bool>,
    /// Owed removals up to this number were told of.
    pub owed_told: Option<u64>,
}

/// What the recorder asks of a ledger. Every error is final: the program stops and recovers at its next start.
pub trait Ledger {
    /// Reads what a start needs.
    fn open_session(&mut self) -> Result<Opening, Failure>;
    /// Names a new ledger.
    fn found(&mut self, uuid: &str) -> Result<(), Failure>;
    /// The number under which a staging directory is known, given out at first sight.
    fn source_id(&mut self, name: &str, input: &std::path::Path) -> Result<SourceId, Failure>;
    /// Which arrival brought each content; `keys` are best sorted.
    fn lookup(&self, keys: &[ContentKey]) -> Result<Vec<Option<u64>>, Failure>;
    /// What became of an arrival.
    fn record(&self, seq: u64) -> Result<Option<Record>, Failure>;
    /// Makes room for both commits of a batch, and for what is noted after them, before anything is promised: a commit
    /// that finds its disk full is final. `names` counts the bytes of paths and messages of all these arrivals once,
    /// `lines` those of their manifest lines. The inner error is want of room; it changes nothing in the ledger.
    fn reserve(
        &mut self,
        arrivals: usize,
        names: u64,
        lines: u64,
    ) -> Result<std::io::Result<()>, Failure>;
    /// Commit A: what is about to be placed.
    fn commit_intents(&mut self, intents: &[Arrival], next_seq: u64) -> Result<(), Failure>;
    /// Commit B, and housekeeping.
    fn commit_records(&mut self, commit: &Commit) -> Result<(), Failure>;
}
