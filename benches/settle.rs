//! Settling: many files, each seen, looked at again and found finished. No disk, no clock, no timers: only what is decided.
//!
//! `cargo bench --bench settle`; with `-- --test` each is run once.
//!
//! Per file, all its looks together. All files have their first look before one has its second, as when they come side by side.

use std::time::{Duration, Instant};

use divan::Bencher;
use divan::counter::ItemsCount;
use ringest::io::Identity;
use ringest::pipeline::discover::settle::{Rules, Seen, SeenBy, Step, Unsettled};
use ringest::settings::{EmptyPolicy, Mode};

const FILES: u64 = 100_000;
const STABILITY: Duration = Duration::from_secs(5);

/// A look at a file: what brought it about, after how many seconds, and how large the file is by then.
type Look = (SeenBy, u64, u64);

fn main() {
    divan::main();
}

/// Written for three seconds: the first timer comes too early.
#[divan::bench]
fn holds_still(bencher: Bencher) {
    let looks = [
        (SeenBy::Created, 0, 1),
        (SeenBy::Finished, 3, 2),
        (SeenBy::Timer, 5, 2),
        (SeenBy::Timer, 8, 2),
    ];
    bench(bencher, Mode::Stability, &looks);
}

/// Its writer closes it.
#[divan::bench]
fn closed(bencher: Bencher) {
    let looks = [(SeenBy::Created, 0, 1), (SeenBy::Finished, 3, 2)];
    bench(bencher, Mode::Closed, &looks);
}

/// The same, and its reader sends it back: the filesystem still holds it open.
#[divan::bench]
fn closed_and_sent_back(bencher: Bencher) {
    let looks = [
        (SeenBy::Created, 0, 1),
        (SeenBy::Finished, 3, 2),
        (SeenBy::Timer, 4, 2),
    ];
    bench(bencher, Mode::Closed, &looks);
}

/// It was there before, and looks old.
#[divan::bench]
fn found_by_a_scan(bencher: Bencher) {
    bench(bencher, Mode::Stability, &[(SeenBy::Scan, 0, 1)]);
}

fn bench(bencher: Bencher, mode: Mode, looks: &[Look]) {
    let rules = Rules {
        mode,
        stability: STABILITY,
        empty: EmptyPolicy::Ingest,
        leases: true,
    };
    bencher
        .counter(ItemsCount::new(FILES))
        .bench_local(|| assert_eq!(settled(&rules, divan::black_box(looks)), FILES));
}

/// How many files the last look finds finished.
fn settled(rules: &Rules, looks: &[Look]) -> u64 {
    let start = Instant::now();
    let (_, _, size) = looks[0];
    let mut files: Vec<Unsettled> = (0..FILES)
        .map(|inode| Unsettled::new(identity(inode, size), start))
        .collect();
    let mut settled = 0;
    for &(by, seconds, size) in looks {
        let now = start + Duration::from_secs(seconds);
        settled = 0;
        for (inode, file) in (0..).zip(&mut files) {
            let seen = Seen {
                identity: identity(inode, size),
                links: 1,
                age: Some(2 * STABILITY),
                sidecar: false,
            };
            let (step, _) = file.step(rules, &seen, by, now);
            settled += u64::from(matches!(step, Step::Settled(_)));
        }
    }
    settled
}

fn identity(inode: u64, size: u64) -> Identity {
    Identity {
        inode,
        size,
        ..Identity::default()
    }
}
