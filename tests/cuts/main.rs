//! Never lost, never twice, also when the power goes: the program is stopped at every named point of its commit protocol and at
//! random moments, and there it is killed, or its filesystems lose everything that was not on the disk.
//!
//! | variable | meaning |
//! |---|---|
//! | `RINGEST_CUTS_RANDOM` | how many random power cuts (default: 300) |
//! | `RINGEST_CUTS_MINUTES` | random power cuts for so long instead |
//! | `RINGEST_CUTS_CELLS` | only cells whose description contains this |

#[path = "../support/mod.rs"]
mod support;

mod grid;
mod history;
mod place;
mod points;
mod random;
mod retry;
mod starts;
mod torn;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use grid::Cell;
use place::{Crash, Layout, Machine};
use support::Random;
use support::image::{self, Fs};

/// Sites at work side by side. Mounting and unmounting is mostly waiting.
const WORKERS: usize = 4;

fn directory_for_images() -> tempfile::TempDir {
    let directory = tempfile::Builder::new()
        .prefix("ringest-cuts-")
        .tempdir_in("/dev/shm");
    directory.expect("make a directory for images")
}

#[test]
fn every_point_is_in_the_table() {
    let rows = points::rows();
    for point in ringest::trial::points::ALL {
        assert!(
            rows.iter().any(|row| row.stops_at(point)),
            "no cell stops at {point}"
        );
    }
}

/// Every point × how it ends × layout × filesystem. Clones, each on its own filesystem, and btrfs, only where power is cut.
fn cells() -> Vec<Cell> {
    use Crash::{Cut, Kill, KillGroup};
    let mut cells = Vec::new();
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        for (number, row) in points::rows().into_iter().enumerate() {
            let crashes = match (row.first, number % 2) {
                (None, 0) => vec![(Kill, Kill), (Cut, Cut)],
                (None, _) => vec![(Kill, KillGroup), (Cut, Cut)],
                // What a killed run left unsynced is what recovery must not rely on.
                (Some(_), 0) => vec![(Kill, KillGroup), (Kill, Cut), (Cut, Cut)],
                (Some(_), _) => vec![(KillGroup, Kill), (KillGroup, Cut), (Cut, Cut)],
            };
            for crashes in crashes {
                // A cut may take the claim itself.
                if row.stops_at("claim_given_back") && crashes.0 == Cut {
                    continue;
                }
                for layout in Layout::ALL {
                    let everywhere =
                        matches!(layout, Layout::Same | Layout::Other) && fs != Fs::Btrfs;
                    if row.fits(layout) && (everywhere || wanted(crashes.1, layout, fs)) {
                        cells.push(Cell {
                            row,
                            crashes,
                            layout,
                            fs,
                        });
                    }
                }
            }
        }
    }
    if let Ok(only) = std::env::var("RINGEST_CUTS_CELLS") {
        cells.retain(|cell| format!("{cell:?}").contains(&only));
    }
    cells
}

fn wanted(crash: Crash, layout: Layout, fs: Fs) -> bool {
    let chosen = match fs {
        Fs::Ext4 => layout == Layout::Each,
        Fs::Xfs => layout == Layout::Apart,
        Fs::Btrfs => matches!(layout, Layout::Same | Layout::Apart),
    };
    chosen && crash == Crash::Cut
}

#[test]
fn nothing_is_lost_or_doubled_by_a_kill_or_a_power_cut_at_any_point() {
    if !image::possible() {
        return;
    }
    let directory = directory_for_images();
    let cells = cells();
    let next = AtomicUsize::new(0);
    let acknowledged = AtomicUsize::new(0);
    let mut seeds = Random::new();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let mut random = seeds.fork();
            let (cells, next, acknowledged, directory) = (&cells, &next, &acknowledged, &directory);
            scope.spawn(move || {
                let mut machines: BTreeMap<Fs, Machine> = BTreeMap::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(cell) = cells.get(number) else {
                        return;
                    };
                    let machine = machines.entry(cell.fs).or_insert_with(|| {
                        let name = format!("{:?}-{worker}", cell.fs);
                        Machine::new([cell.fs; 4], directory.path().join(name))
                    });
                    let found = cell.run(number, machine, &mut random);
                    acknowledged.fetch_add(found, Ordering::Relaxed);
                }
            });
        }
    });
    let count = |of: &dyn Fn(&Cell) -> bool| cells.iter().filter(|cell| of(cell)).count();
    support::counts::say(&format!(
        "{} cells: {} points × kill {}, cut {} × same {}, other {}, apart {}, each {} × ext4 {}, xfs {}, btrfs {}; \
         {} files acknowledged before a crash; {:.0?}",
        cells.len(),
        ringest::trial::points::ALL.len(),
        count(&|cell| cell.crashes.1 != Crash::Cut),
        count(&|cell| cell.crashes.1 == Crash::Cut),
        count(&|cell| cell.layout == Layout::Same),
        count(&|cell| cell.layout == Layout::Other),
        count(&|cell| cell.layout == Layout::Apart),
        count(&|cell| cell.layout == Layout::Each),
        count(&|cell| cell.fs == Fs::Ext4),
        count(&|cell| cell.fs == Fs::Xfs),
        count(&|cell| cell.fs == Fs::Btrfs),
        acknowledged.into_inner(),
        start.elapsed()
    ));
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number")),
    )
}

#[test]
fn nothing_is_lost_or_doubled_by_power_cuts_at_random_moments() {
    if !image::possible() {
        return;
    }
    let directory = directory_for_images();
    let minutes = number("RINGEST_CUTS_MINUTES");
    let wanted = match minutes {
        Some(_) => u64::MAX,
        None => number("RINGEST_CUTS_RANDOM").unwrap_or(300),
    };
    let start = Instant::now();
    let end = minutes.map(|minutes| start + Duration::from_secs(60 * minutes));
    let cuts = AtomicU64::new(0);
    let total = Mutex::new(random::Sum::default());
    let mut seeds = Random::new();
    println!("seed {}", seeds.seed());
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let mut random = seeds.fork();
            let (cuts, total, directory) = (&cuts, &total, directory.path());
            scope.spawn(move || {
                let directory = directory.join(format!("worker{worker}"));
                std::fs::create_dir(&directory).expect("make a directory");
                let mut machines = random::Machines::new();
                let mut sum = random::Sum::default();
                for site in 0.. {
                    let left = wanted.saturating_sub(cuts.load(Ordering::Relaxed));
                    if left == 0 || end.is_some_and(|end| Instant::now() > end) {
                        break;
                    }
                    let name = format!("site{site}");
                    let lived = random::one_site(
                        &name,
                        left,
                        &mut machines,
                        &directory,
                        &mut random,
                        &mut sum,
                    );
                    cuts.fetch_add(lived, Ordering::Relaxed);
                }
                total.lock().expect("sum").add(sum);
            });
        }
    });
    support::counts::say(&format!(
        "{} random cuts, {}, 0 violations; {:.0?}",
        cuts.into_inner(),
        total.into_inner().expect("sum"),
        start.elapsed()
    ));
}
