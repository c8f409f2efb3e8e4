//! Power cuts at random moments, while files keep arriving whose writers sync few of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::grid::{INPUTS, Saying, command, ends_well};
use crate::history::{History, Manner, Methods};
use crate::place::{Crash, Layout, Machine, Place};
use crate::support::Random;
use crate::support::image::Fs;
use crate::support::program::{Log, Program};

/// Power cuts that one site lives through, at most.
const CUTS_OF_A_SITE: u64 = 12;

/// What the cuts were.
#[derive(Debug, Default)]
pub struct Sum {
    pub cuts: BTreeMap<Fs, usize>,
    pub layouts: BTreeMap<Layout, usize>,
    pub acknowledged: usize,
    pub sent: usize,
}

impl Sum {
    pub fn add(&mut self, other: Sum) {
        for (fs, cuts) in other.cuts {
            *self.cuts.entry(fs).or_default() += cuts;
        }
        for (layout, cuts) in other.layouts {
            *self.layouts.entry(layout).or_default() += cuts;
        }
        self.acknowledged += other.acknowledged;
        self.sent += other.sent;
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sent, acknowledged) = (self.sent, self.acknowledged);
        write!(
            f,
            "{:?}, {:?}, {sent} files sent, ",
            self.cuts, self.layouts
        )?;
        write!(f, "{acknowledged} acknowledged before a cut")
    }
}

/// A machine for each kind of filesystem, and one with all of them.
pub struct Machines(BTreeMap<u64, Machine>);

impl Machines {
    pub fn new() -> Machines {
        Machines(BTreeMap::new())
    }

    fn get(&mut self, kind: u64, directory: &Path) -> &mut Machine {
        self.0.entry(kind).or_insert_with(|| {
            let kinds = match kind {
                0 => [Fs::Ext4; 4],
                1 => [Fs::Xfs; 4],
                2 => [Fs::Btrfs; 4],
                _ => [Fs::Xfs, Fs::Ext4, Fs::Btrfs, Fs::Ext4],
            };
            Machine::new(kinds, directory.join(format!("random{kind}")))
        })
    }
}

/// One site, from its first start until it has survived up to `most` power cuts.
pub fn one_site(
    name: &str,
    most: u64,
    machines: &mut Machines,
    directory: &Path,
    random: &mut Random,
    sum: &mut Sum,
) -> u64 {
    // btrfs less often: its images are copied.
    let kind = [0, 0, 0, 1, 1, 2, 2, 3][random.below(8) as usize];
    let layout = Layout::ALL[[0, 0, 0, 1, 1, 2, 2, 3][random.below(8) as usize]];
    let machine = machines.get(kind, directory);
    let mut place = machine.place(layout, name);
    let manner = Manner {
        sidecars: false,
        claims: random.below(3) == 0,
        delete: random.below(3) == 0,
        methods: Methods::number(random.below(8) as usize),
    };
    let saying = Saying(
        format!("in {name}: {layout:?} on kind {kind}, {manner:?}"),
        Log(place.log.clone()),
    );
    let log = Log(place.log.clone());
    let mut history = History::new(manner);
    for input in INPUTS {
        fs::create_dir_all(place.site.staging.join(input)).expect("make a staging directory");
    }
    place.sync();
    let mode = ["closed", "stability"][random.below(2) as usize];
    let batch = ["1", "3", "16", "4096"][random.below(4) as usize];
    let mut cuts = 0;
    let most = most.min(CUTS_OF_A_SITE);
    let mut acknowledged = 0;
    while cuts < most {
        // One cut, or more in a row, so that recoveries are cut too.
        for _ in 0..=random.below(3).min(most - cuts - 1) {
            let args = ["--mode", mode, "--batch-files", batch];
            let mut program = Program::start(command(&place, manner, &args), &place.log);
            deliver(&place, cuts, &mut history, random);
            if random.below(2) == 0 || place.must_stop_first() {
                program.stop();
            }
            place.crash(&mut program, Crash::Cut);
            acknowledged = history.check_survivors(&place.site, &log, Crash::Cut);
            cuts += 1;
        }
        let once = command(&place, manner, &["--once"]);
        ends_well(&mut Program::start(once, &place.log));
        history.check_end(&place.site, &log);
    }
    *sum.cuts.entry(machine_fs(kind)).or_default() += cuts as usize;
    *sum.layouts.entry(layout).or_default() += cuts as usize;
    sum.acknowledged += acknowledged;
    sum.sent += history.files();
    drop(saying);
    place.remove();
    cuts
}

/// The filesystem of the warehouse.
fn machine_fs(kind: u64) -> Fs {
    [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Xfs][kind as usize]
}

/// Files arrive for up to 60 ms. Their writers sync one in six.
fn deliver(place: &Place, round: u64, history: &mut History, random: &mut Random) {
    let micros = random.below(60_000);
    let end = std::time::Instant::now() + Duration::from_micros(micros);
    let mut number = 0;
    while std::time::Instant::now() < end {
        number += 1;
        let directory = ["a", "b", "a/sub", "b/sub"][random.below(4) as usize];
        let path = place.site.staging.join(directory);
        let path = path.join(format!("{round}-{number}.csv"));
        let known = match random.below(12) {
            0 => history.any_content(),
            _ => None,
        };
        let content = match (random.below(12), known) {
            (_, Some(known)) => known,
            (0, _) => random.bytes(200 << 10),
            // A copy of it is written directly.
            (1, _) if random.below(4) == 0 => random.bytes((1 << 20) + 300),
            _ => {
                let len = 8 + random.below(4000) as usize;
                random.bytes(len)
            }
        };
        history.send(path.clone(), content.clone());
        if random.below(6) == 0 {
            let directory = path.parent().expect("a file in a directory");
            for synced in [&path, directory] {
                if let Ok(synced) = fs::File::open(synced) {
                    synced.sync_all().expect("sync");
                }
            }
            // Taken already: then its writer may have synced the directory without it.
            if path.exists() {
                history.is_durable(&content);
            }
        }
        std::thread::sleep(Duration::from_micros(random.below(3000)));
    }
}
