//! Arrivals of files that never were, and the commits that record them: for what measures a ledger without its files.

use std::io;
use std::path::{Path, PathBuf};

use ringest::failure::Failure;
use ringest::io::{Identity, Timestamp};
use ringest::ledger::{
    Arrival, Commit, ContentKey, Counts, Digest, Ledger, ManifestEnd, Outcome, PendingLines,
    Placement, Record, RecordState, SourceEntry,
};
use ringest::observe::metrics::{Count, Totals};
use ringest::pipeline::record::{layout, manifest};

const FILE_BYTES: u64 = 4096;

/// Arrivals one after the other, all in the same hour, each with a digest like no other.
pub struct Arrivals {
    /// Whence they come.
    pub source: SourceEntry,
    /// Where they are said to lie.
    pub warehouse: PathBuf,
    /// When they come, in microseconds since the epoch.
    pub time_micros: i64,
    /// The number of the next one.
    pub next_seq: u64,
    /// Where its manifest line begins.
    pub offset: u64,
    /// Files and bytes so far.
    pub totals: Totals,
}

/// Arrivals that are committed together.
pub struct Batch {
    /// Commit A.
    pub intents: Vec<Arrival>,
    /// Commit B.
    pub records: Commit,
}

impl Arrivals {
    /// The next batch.
    pub fn batch(&mut self, count: u64) -> Batch {
        let mut lines = PendingLines {
            hour: layout::hour(self.time_micros),
            offset: self.offset,
            bytes: Vec::new(),
        };
        // What came before is in the manifest by now.
        let synced = ManifestEnd {
            hour: lines.hour,
            offset: self.offset,
        };
        let mut batch = Batch {
            intents: Vec::new(),
            records: Commit::default(),
        };
        for seq in self.next_seq..self.next_seq + count {
            let arrival = self.arrival(seq);
            let (name, input) = (&self.source.name, &self.source.input);
            let line = manifest::line(&arrival, name, input, &self.warehouse);
            let state = RecordState::Done {
                arrival: arrival.clone(),
                line: Some(manifest::line_at(lines.end().offset, &line)),
            };
            lines.bytes.extend(line);
            batch.records.records.push(Record { seq, state });
            batch
                .records
                .content
                .extend(arrival.key.map(|key| (key, seq)));
            batch.intents.push(arrival);
            self.totals.ingested += Count::file(FILE_BYTES);
        }
        self.next_seq += count;
        self.offset = lines.end().offset;
        batch.records.totals = self.totals;
        batch.records.next_seq = self.next_seq;
        batch.records.synced = (synced.offset > 0).then_some(synced);
        batch.records.lines = Some(lines);
        batch
    }

    fn arrival(&self, seq: u64) -> Arrival {
        let digest = digest_of(seq);
        let path = PathBuf::from(format!("sensor-{}.{seq:010}.csv", seq % 100));
        let inode = 1_000_000 + seq;
        let time = Timestamp {
            seconds: self.time_micros / 1_000_000,
            nanos: (seq % 1_000_000_000) as u32,
        };
        Arrival {
            seq,
            source: self.source.id,
            identity: Identity {
                device: 1,
                inode,
                size: FILE_BYTES,
                mtime: time,
                ctime: time,
                born: time,
            },
            sidecar: None,
            digest,
            key: Some(ContentKey::global(&digest)),
            outcome: Outcome::Ingest,
            placement: Placement::Rename,
            placed: layout::partition(self.time_micros).join(&path),
            placed_inode: inode,
            time_micros: self.time_micros,
            counts: Counts::default(),
            aside: None,
            placed_ctime: Default::default(),
            ctime_vouches: false,
            path,
        }
    }
}

impl Batch {
    /// Makes room for both commits, as the recorder does. The inner error is want of room.
    pub fn reserve(&self, ledger: &mut impl Ledger) -> Result<io::Result<()>, Failure> {
        let bytes = |path: &Path| path.as_os_str().len() as u64;
        let names = self
            .intents
            .iter()
            .map(|arrival| bytes(&arrival.path) + bytes(&arrival.placed));
        let lines = self.lines().bytes.len() as u64;
        ledger.reserve(self.intents.len(), names.sum(), lines)
    }

    /// Commits A and B.
    pub fn commit(&self, ledger: &mut impl Ledger) -> Result<(), Failure> {
        ledger.commit_intents(&self.intents, self.records.next_seq)?;
        ledger.commit_records(&self.records)
    }

    /// Its manifest lines.
    pub fn lines(&self) -> &PendingLines {
        self.records.lines.as_ref().expect("every batch has lines")
    }
}

/// As random as that of a file.
fn digest_of(seq: u64) -> Digest {
    let digest = ring::digest::digest(&ring::digest::SHA256, &seq.to_le_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}
