//! The ledger: commits A and B of a batch of arrivals that were never seen, into an empty ledger and into one that holds 100,000.
//!
//! `cargo bench --bench ledger`; with `-- --test` each is run once.
//!
//! Each commit syncs the ledger's file, as it does with `--durability full`; with a small batch that is all that is measured. So the
//! ledgers lie in the target directory, not in a temporary one, which might be in memory. Each batch goes into a ledger made
//! for it; making it and reserving its room are not measured.

use std::path::PathBuf;

use divan::Bencher;
use divan::counter::ItemsCount;
use ringest::ledger::lmdb::Lmdb;
use ringest::ledger::{SourceEntry, SourceId};
use ringest::observe::metrics::Totals;
use ringest::settings::Durability;
use tempfile::TempDir;

#[path = "../perf/arrivals.rs"]
mod arrivals;
use arrivals::{Arrivals, Batch};

/// Arrivals of one batch: alone on an idle machine, some, and as many as a batch has at most.
const BATCHES: [u64; 3] = [1, 64, 4096];
const BATCH_MAX: u64 = 4096;

fn main() {
    divan::main();
}

#[divan::bench(args = BATCHES, sample_count = 20, sample_size = 1)]
fn into_an_empty_one(bencher: Bencher, batch: u64) {
    bench(bencher, 0, batch);
}

#[divan::bench(args = BATCHES, sample_count = 10, sample_size = 1)]
fn into_one_that_holds_100_000(bencher: Bencher, batch: u64) {
    bench(bencher, 100_000, batch);
}

fn bench(bencher: Bencher, held: u64, batch: u64) {
    bencher
        .counter(ItemsCount::new(batch))
        .with_inputs(|| Prepared::new(held, batch))
        .bench_local_refs(|prepared| {
            let committed = prepared.batch.commit(&mut prepared.ledger);
            committed.expect("both commits");
        });
}

/// A ledger, and a batch that is about to be committed.
struct Prepared {
    ledger: Lmdb,
    batch: Batch,
    /// Removed after the ledger is closed.
    _directory: TempDir,
}

impl Prepared {
    fn new(held: u64, batch: u64) -> Prepared {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let path = directory.path().join("ledger");
        let mut arrivals = Arrivals {
            source: SourceEntry {
                id: SourceId(1),
                name: "incoming".into(),
                input: "/data/staging/incoming".into(),
            },
            warehouse: PathBuf::from("/data/warehouse"),
            time_micros: 1_767_225_600_000_000,
            next_seq: 1,
            offset: 0,
            totals: Totals::default(),
        };
        let mut filled = Lmdb::open(&path, Durability::None).expect("a ledger");
        while arrivals.next_seq <= held {
            let left = held + 1 - arrivals.next_seq;
            let batch = arrivals.batch(left.min(BATCH_MAX));
            batch.commit(&mut filled).expect("what it holds");
        }
        filled.sync().expect("what it holds is durable");
        drop(filled);

        let mut ledger = Lmdb::open(&path, Durability::Full).expect("the ledger again");
        let batch = arrivals.batch(batch);
        let reserved = batch.reserve(&mut ledger).expect("a ledger that works");
        reserved.expect("room on the disk");
        Prepared {
            ledger,
            batch,
            _directory: directory,
        }
    }
}
