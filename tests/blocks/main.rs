//! Power cuts at the level of blocks. Every write and every flush that a filesystem asks of its disk is noted, and what
//! the disk may hold after a cut is brought forth from that, mounted, and given to ringest.
//!
//! | variable | meaning |
//! |---|---|
//! | `RINGEST_BLOCKS_STATES` | how many states are tried |

#[path = "../support/mod.rs"]
mod support;

mod eio;
mod log;
mod record;
mod replay;
mod server;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use log::Op;
use record::World;
use server::Kind;
use support::Random;

const STATES: usize = 300;
/// States tried of one recording; then another one is made.
const STATES_OF_A_RECORDING: usize = 60;
const WORKERS: usize = 2;

/// Everything on one filesystem, and the warehouse on another one.
const CELLS: &[(&str, &[Kind])] = &[
    ("ext4", &[Kind::Ext4]),
    ("xfs", &[Kind::Xfs]),
    ("btrfs", &[Kind::Btrfs]),
    ("ext4 to xfs", &[Kind::Ext4, Kind::Xfs]),
    ("btrfs to ext4", &[Kind::Btrfs, Kind::Ext4]),
];

/// Whether the tests of this file can run here.
fn can_run() -> bool {
    let tools = ["losetup", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"];
    let missing: Vec<_> = tools
        .into_iter()
        .filter(|tool| !support::has_program(tool, "-V"))
        .collect();
    if !support::is_root() {
        support::skip("needs root to mount filesystems");
    } else if !std::path::Path::new("/dev/fuse").exists() {
        support::skip("needs /dev/fuse");
    } else if !missing.is_empty() {
        support::skip(&format!("needs {missing:?}"));
    } else {
        return true;
    }
    false
}

#[test]
fn what_was_acknowledged_survives_every_cut_that_the_disk_may_make_of_it() {
    if !can_run() {
        return;
    }
    let states = std::env::var("RINGEST_BLOCKS_STATES").map_or(STATES, |text| {
        text.parse().expect("RINGEST_BLOCKS_STATES is a number")
    });
    let mut random = Random::new();
    let seed = random.seed();
    let recordings = states.div_ceil(STATES_OF_A_RECORDING);
    // The seed of each recording does not depend on which worker takes it.
    let randoms: Vec<Mutex<Random>> = (0..recordings).map(|_| Mutex::new(random.fork())).collect();
    let next = AtomicUsize::new(0);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(random) = randoms.get(number) else {
                        return;
                    };
                    let (name, kinds) = CELLS[number % CELLS.len()];
                    let random = &mut *random.lock().expect("one worker");
                    let mut world = World::new(kinds);
                    let recorded = record::record(&mut world, &[], random);
                    let wanted = STATES_OF_A_RECORDING.min(states - number * STATES_OF_A_RECORDING);
                    let tally = replay::replay(&mut world, &recorded, wanted, true, random);
                    totals.lock().expect("totals").add(name, &recorded, tally);
                }
            });
        }
    });
    let totals = totals.into_inner().expect("totals");
    support::counts::say(&format!("{totals}; seed {seed}"));
    assert_eq!(totals.unmountable, Vec::<String>::new());
    assert_eq!(totals.violations, Vec::<String>::new());
    assert_eq!(totals.states.values().sum::<usize>(), states);
}

/// The proof that the above could fail.
#[test]
fn a_run_that_syncs_nothing_is_found_out() {
    if !can_run() {
        return;
    }
    let mut random = Random::new();
    for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs] {
        let mut world = World::new(&[kind]);
        let recorded = record::record(&mut world, &["--durability", "none"], &mut random);
        let tally = replay::replay(&mut world, &recorded, 30, false, &mut random);
        assert_eq!(tally.unmountable, Vec::<String>::new());
        assert!(!tally.violations.is_empty(), "{}", kind.name());
    }
}

#[derive(Default)]
struct Totals {
    states: std::collections::BTreeMap<&'static str, usize>,
    writes: usize,
    flushes: usize,
    acknowledged: usize,
    unmountable: Vec<String>,
    violations: Vec<String>,
}

impl Totals {
    fn add(&mut self, name: &'static str, recorded: &record::Recorded, tally: replay::Tally) {
        *self.states.entry(name).or_default() += tally.states;
        let flush = |entry: &&(usize, Op)| matches!(entry.1, Op::Flush);
        let flushes = recorded.entries.iter().filter(flush).count();
        self.flushes += flushes;
        self.writes += recorded.entries.len() - flushes;
        self.acknowledged += recorded.acknowledged.len();
        self.unmountable.extend(tally.unmountable);
        self.violations.extend(tally.violations);
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of_each: Vec<String> = self
            .states
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        write!(
            f,
            "{} states ({}), {} writes and {} flushes logged, {} unmountable, {} violations",
            self.states.values().sum::<usize>(),
            of_each.join(", "),
            self.writes,
            self.flushes,
            self.unmountable.len(),
            self.violations.len(),
        )
    }
}
