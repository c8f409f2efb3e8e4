//! Room on the disk for commits, before they are made.
//!
//! LMDB finds out in the middle of a commit that its disk is full, and a failed commit is final. So the blocks of every
//! page that the next commits can take are allocated first, beyond the last page in use; a page gets its number only
//! from there, or from LMDB's list of free pages, which were allocated when they were new. Without that, the file's end
//! is a hole. Filesystems that write a page elsewhere each time (btrfs, and who knows) promise nothing by an allocation;
//! there, as much must be free as the commits can write.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::io::Errno;

use crate::failure::Failure;
use crate::io::disk::allocate;
use crate::io::probe;
use crate::pipeline::is_no_room;

use super::{Lmdb, Table, TxnError};

/// How far blocks are allocated ahead while the disk has plenty, in bytes: one call for thousands of arrivals.
const AHEAD_BYTES: u64 = 8 << 20;
/// Plenty.
const PLENTY_BYTES: u64 = 64 * AHEAD_BYTES;
/// What the fixed fields of all rows of one arrival take, with keys and headers, in bytes: its intent (twice: commit B
/// rewrites the pages from which it takes it), its record, content key, three debts, and a reason to keep it.
const ROW_BYTES: u64 = 1536;
/// How often a name can be stored: intent (twice, as above), record, debts together, kept.
const NAME_COPIES: u64 = 5;
/// Pages of one commit whatever is in it: `meta`, the table of tables, and the two lists of free pages.
const COMMIT_PAGES: u64 = 24;
/// Commits that one reservation is for: A, B, what is noted after B, the length of the file; and those of an end and a
/// start.
const COMMITS: u64 = 8;
/// Pages that a start makes sure of, in place of all the above: what the session before kept for it.
const START_PAGES: u64 = 2 * COMMIT_PAGES;
/// Bytes of LMDB's table of readers, with some to spare. It is mapped: a hole in it on a full disk is a SIGBUS.
const LOCK_BYTES: u64 = 16 << 10;

/// Filesystems on which allocated blocks are the ones that are written: ext4, xfs, tmpfs.
const IN_PLACE: [u64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];

/// What is known of the blocks beneath the ledger.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Every page before this offset has its block.
    allocated_to: u64,
    /// Arrivals of the reservation before; what they leave behind rides in later commits.
    earlier: u64,
    /// Whether a block that is allocated is the block that is written.
    in_place: Option<bool>,
}

/// What LMDB says of a table.
#[derive(Debug, Clone, Copy, Default)]
struct Tree {
    leaves: u64,
    branches: u64,
    depth: u64,
}

impl Tree {
    fn pages(&self) -> u64 {
        self.leaves + self.branches
    }

    /// Pages that are copied, or made by splitting one, when `keys` arrive anywhere in the table: a leaf each, its
    /// branches, and for each of them another half.
    fn scattered(&self, keys: u64) -> u64 {
        let branches = (keys * self.depth.saturating_sub(1)).min(self.branches);
        2 * (keys.min(self.leaves) + branches)
    }
}

/// The tables as a batch finds them.
#[derive(Debug, Clone, Copy, Default)]
struct Trees {
    records: Tree,
    content: Tree,
    kept: Tree,
    /// `meta`, `intents`, `lines`: small, or about to be rewritten whole.
    whole: u64,
    /// `owed`: whole, since what was done for the batch before is taken out.
    owed: u64,
    last_page: u64,
    page_bytes: u64,
}

/// Most pages that the commits of a batch can take from the end of the file, if no page before it is free.
fn pages_at_most(trees: &Trees, earlier: u64, arrivals: u64, names: u64, lines: u64) -> u64 {
    let page = trees.page_bytes;
    // Every node is at most half a page, or has pages of its own; a page that was split is half full.
    let rows = 2 * (arrivals * ROW_BYTES + names * NAME_COPIES) / page;
    let lines = lines / page + 1;
    let old = trees.records.depth
        + arrivals / 8 // recovery fills gaps near the end of the table
        + trees.content.scattered(arrivals)
        + trees.kept.scattered(arrivals + earlier)
        + trees.whole
        + trees.owed;
    let taken = rows + lines + old;
    // Eight bytes in the list of free pages for each that was replaced, and the list as it was may be written again.
    let free_list = 2 * (taken + trees.last_page) / (page / 8);
    taken + free_list + COMMITS * COMMIT_PAGES
}

impl Lmdb {
    /// Room for the commits of a start and an end that have nothing to recover. The session before kept blocks for
    /// them, so a full disk does not keep a ledger that was in use from starting; intake then pauses.
    pub(super) fn make_room_for_a_start(&mut self) -> Result<(), Failure> {
        let trees = self.trees()?;
        let mut made = self.allocate_pages(&trees, pages_at_most(&trees, 0, 0, 0, 0))?;
        if made.is_err() {
            made = self.allocate_pages(&trees, START_PAGES)?;
        }
        made.map_err(|error| {
            Failure::io(
                "make room for the next commits of the ledger in",
                &self.dir,
                &error,
            )
        })
    }

    /// See [`crate::ledger::Ledger::reserve`].
    pub(super) fn make_room(
        &mut self,
        arrivals: u64,
        names: u64,
        lines: u64,
    ) -> Result<io::Result<()>, Failure> {
        let trees = self.trees()?;
        let pages = pages_at_most(&trees, self.room.earlier, arrivals, names, lines);
        let made = self.allocate_pages(&trees, pages)?;
        if made.is_ok() {
            self.room.earlier = arrivals;
        }
        Ok(made.map_err(|error| {
            let full = format!("{}: {error}", self.dir.display());
            io::Error::new(error.kind(), full)
        }))
    }

    /// Makes sure of blocks for so many pages after the last one. The inner error is want of room.
    fn allocate_pages(&mut self, trees: &Trees, pages: u64) -> Result<io::Result<()>, Failure> {
        match self.try_to_allocate(trees, pages) {
            Err(error) if !is_no_room(&error) => {
                Err(Failure::io("make room in the ledger in", &self.dir, &error))
            }
            made => Ok(made),
        }
    }

    fn try_to_allocate(&mut self, trees: &Trees, pages: u64) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let bytes = pages * self.page_bytes;
        let end = (trees.last_page + 1) * self.page_bytes + bytes;
        let in_place = match self.room.in_place {
            Some(in_place) => in_place,
            None => IN_PLACE.contains(&probe::magic_of(file)?),
        };
        self.room.in_place = Some(in_place);
        if in_place && end <= self.room.allocated_to {
            return Ok(());
        }
        let seen = rustix::fs::fstatvfs(file)?;
        let free = seen.f_bavail.saturating_mul(seen.f_frsize);
        if !in_place && free < bytes {
            return Err(Errno::NOSPC.into());
        }
        if end > self.room.allocated_to {
            let end = end + if free >= PLENTY_BYTES { AHEAD_BYTES } else { 0 };
            // The first time from the beginning: a ledger that was copied back may have holes anywhere. What a failed
            // attempt got stays, so that the next one needs less.
            let from = self.room.allocated_to;
            allocate(file, from, end - from)?;
            self.room.allocated_to = end;
        }
        Ok(())
    }

    fn trees(&self) -> Result<Trees, Failure> {
        let last_page = self.env.info().last_page_number as u64;
        self.read("look at the tables of the ledger in", |txn, tables| {
            let tree = |table: &Table| -> Result<Tree, TxnError> {
                let stat = table.stat(txn)?;
                Ok(Tree {
                    leaves: stat.leaf_pages as u64,
                    branches: stat.branch_pages as u64,
                    depth: u64::from(stat.depth),
                })
            };
            let mut whole = 0;
            for table in [
                &tables.meta,
                &tables.sources,
                &tables.intents,
                &tables.lines,
            ] {
                whole += tree(table)?.pages();
            }
            Ok(Trees {
                records: tree(&tables.records)?,
                content: tree(&tables.content)?,
                kept: tree(&tables.kept)?,
                whole,
                owed: tree(&tables.owed)?.pages(),
                last_page,
                page_bytes: self.page_bytes,
            })
        })
    }
}

/// Gives the lock file in `dir` its blocks before LMDB maps it.
pub(super) fn secure_lock_file(dir: &Path) -> Result<(), Failure> {
    let path = dir.join("lock.mdb");
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    made.and_then(|file| {
        crate::io::open::make_private(&file)?;
        allocate(&file, 0, LOCK_BYTES)
    })
    .map_err(|error| Failure::io("make room for", &path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::schema::tests::arrival;
    use crate::ledger::{
        Arrival, Commit, ContentKey, Kept, Ledger, Outcome, Owed, OwedKind, PendingLines,
        Placement, Record, RecordState,
    };
    use crate::settings::Durability;

    /// Arrivals with every row that one can have. Their digests are scattered.
    fn batch(first: u64, count: u64, name: usize) -> Vec<Arrival> {
        (first..first + count)
            .map(|seq| {
                let digest = *ring::digest::digest(&ring::digest::SHA256, &seq.to_le_bytes())
                    .as_ref()
                    .first_chunk()
                    .unwrap();
                let path = format!("{seq:0name$}");
                let identity = arrival().identity;
                Arrival {
                    seq,
                    sidecar: Some((format!("{path}.ok").into(), identity)),
                    placed: format!("ingest_date=2026-01-01/{path}").into(),
                    path: path.into(),
                    digest,
                    key: Some(ContentKey::global(&digest)),
                    placement: Placement::Copy,
                    outcome: Outcome::Ingest,
                    ..arrival()
                }
            })
            .collect()
    }

    fn rows_of(arrivals: &[Arrival], lines: u64, offset: u64) -> (Commit, Commit) {
        let mut records = Commit::default();
        let mut after = Commit::default();
        for arrival in arrivals {
            let (seq, source, identity) = (arrival.seq, arrival.source, arrival.identity);
            records.records.push(Record {
                seq,
                state: RecordState::Done {
                    arrival: arrival.clone(),
                    line: None,
                },
            });
            records.content.push((arrival.key.unwrap(), seq));
            for (kind, path) in [
                (OwedKind::Source, &arrival.path),
                (OwedKind::Sidecar, &arrival.path),
                (OwedKind::Reason, &arrival.placed),
            ] {
                records.owed.push(Owed {
                    seq,
                    kind,
                    source,
                    path: path.clone(),
                    identity,
                });
                after.paid.push((seq, kind));
            }
            after.kept.push(Kept {
                source,
                path: arrival.path.clone(),
                identity,
                seq,
                reason: "Operation not permitted (os error 1)".into(),
            });
        }
        let promised = PendingLines {
            hour: 1,
            offset,
            bytes: vec![b'x'; lines as usize],
        };
        after.synced = Some(promised.end());
        after.numbers = Some("n".repeat(3000));
        records.lines = Some(promised);
        (records, after)
    }

    fn names_of(arrivals: &[Arrival]) -> u64 {
        let bytes = arrivals.iter().map(|arrival| {
            let sidecar = &arrival.sidecar.as_ref().unwrap().0;
            let paths = [&arrival.path, &arrival.placed, sidecar];
            paths
                .map(|path| path.as_os_str().len() as u64)
                .iter()
                .sum::<u64>()
        });
        bytes.sum()
    }

    #[test]
    fn the_commits_of_a_batch_never_take_more_pages_than_were_reserved() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Lmdb::open(&dir.path().join("ledger"), Durability::None).unwrap();
        let mut seq = 1;
        let mut offset = 0;
        let mut tightest: f64 = 0.0;
        let mut readers = Vec::new();
        for (round, count) in [1, 1, 700, 3, 4096, 1, 200, 1000, 4096, 2, 64, 1, 1]
            .into_iter()
            .enumerate()
        {
            let name = [12, 240, 40, 90][round % 4];
            let arrivals = batch(seq, count, name);
            // A reader of long ago keeps every page that was free: all come from the end of the file.
            readers.push(ledger.env.clone().static_read_txn().unwrap());
            let lines = 400 * count;
            let trees = ledger.trees().unwrap();
            let most = pages_at_most(
                &trees,
                ledger.room.earlier,
                count,
                names_of(&arrivals),
                lines,
            );
            ledger
                .reserve(count as usize, names_of(&arrivals), lines)
                .unwrap()
                .unwrap();
            let (records, after) = rows_of(&arrivals, lines, offset);
            seq += count;
            offset += lines;
            ledger.commit_intents(&arrivals, seq).unwrap();
            ledger.commit_records(&records).unwrap();
            ledger.commit_records(&after).unwrap();
            let taken = ledger.trees().unwrap().last_page - trees.last_page;
            assert!(taken <= most, "round {round}: {taken} of {most} pages");
            tightest = tightest.max(taken as f64 / most as f64);
            let end = (trees.last_page + 1 + taken) * ledger.page_bytes;
            assert!(end <= ledger.room.allocated_to);
        }
        // The bound is not so wide that it would stop intake for nothing.
        assert!(tightest > 0.25, "{tightest}");
    }

    #[test]
    fn what_was_reserved_is_allocated_and_the_file_is_no_longer() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut ledger = Lmdb::open(&path, Durability::None).unwrap();
        let length = || std::fs::metadata(path.join("data.mdb")).unwrap();
        let before = length().len();
        ledger.reserve(1000, 50_000, 400_000).unwrap().unwrap();
        let after = length();
        assert_eq!(after.len(), before);
        let trees = ledger.trees().unwrap();
        let most = pages_at_most(&trees, 0, 1000, 50_000, 400_000) * ledger.page_bytes;
        assert!(after.blocks() * 512 >= most, "{after:?}");
    }

    #[test]
    fn where_allocated_blocks_are_not_those_that_are_written_as_much_must_be_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut ledger = Lmdb::open(&path, Durability::None).unwrap();
        ledger.room.in_place = Some(false);
        ledger.reserve(1, 12, 400).unwrap().unwrap();
        let seen = rustix::fs::statvfs(&path).unwrap();
        let allocated = ledger.room.allocated_to;
        let free = seen.f_bavail * seen.f_frsize;
        let full = ledger.reserve(1, free, 400).unwrap().unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(full.to_string().contains(path.to_str().unwrap()), "{full}");
        assert_eq!(ledger.room.allocated_to, allocated);
    }

    #[test]
    fn an_error_other_than_want_of_room_ends_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut ledger = Lmdb::open(&path, Durability::None).unwrap();
        // EBADF, in place of what a device answers that fails.
        ledger.file = Some(std::fs::File::open(path.join("data.mdb")).unwrap());
        let failure = ledger.reserve(100_000, 12, 400).unwrap_err();
        assert_eq!(failure.exit, crate::failure::Exit::Io);
        assert!(
            failure.to_string().contains("make room in the ledger"),
            "{failure}"
        );
    }
}
