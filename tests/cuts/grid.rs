//! One cell: one point, one way to end there, one layout, one kind of filesystem.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::history::{CLAIMS, History, Manner, Methods};
use crate::place::{Crash, Layout, Machine, Place};
use crate::points::{Meddle, Needs, Row};
use crate::support::image::Fs;
use crate::support::program::{Log, Program, State};
use crate::support::{Random, files_beneath};

#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub row: Row,
    /// How the first run ends, if the point is one of recovery, and how the one that gets to it.
    pub crashes: (Crash, Crash),
    pub layout: Layout,
    pub fs: Fs,
}

/// A file that a scan finds is as old as this before it counts as finished.
const STABLE_SECONDS: &str = "0.02";
const STABLE: Duration = Duration::from_millis(25);

/// How often a cell is tried.
const TRIES: usize = 5;

impl Cell {
    /// Runs it; returns how many files were acknowledged before the last crash.
    pub fn run(&self, number: usize, machine: &mut Machine, random: &mut Random) -> usize {
        // Which files make a batch is up to their readers: one in which there is nothing to undo, say, is no failure.
        let found = (0..TRIES).find_map(|_| self.try_run(number, machine, random));
        found.unwrap_or_else(|| panic!("{self:?}: {} is not reached", self.row.at))
    }

    /// `None`: it did not come past the point, and ended well.
    fn try_run(&self, number: usize, machine: &mut Machine, random: &mut Random) -> Option<usize> {
        let mut place = machine.place(self.layout, &format!("cell{number}"));
        let saying = Saying(
            format!("in cell {number}: {self:?}"),
            Log(place.log.clone()),
        );
        // A sidecar may hold the digest, and a file that somebody writes to does not keep to that.
        let sidecars =
            number % 4 == 3 && self.row.meddle != Meddle::Write && self.row.needs != Needs::Claims;
        let manner = Manner {
            sidecars,
            claims: !sidecars && (self.row.needs == Needs::Claims || number % 5 == 4),
            delete: match self.row.needs {
                Needs::Debts => !self.layout.copies(),
                Needs::Reasons => false,
                _ => number % 3 == 2,
            },
            // Not in step with the others.
            methods: Methods::number(number / 12),
        };
        let mut history = History::new(manner);
        fill(&place, &mut history, random);
        let mut acknowledged = 0;
        if let Some(first) = self.row.first {
            let mut program = start(&place, manner, Some(first));
            assert_eq!(program.wait(), State::Stopped, "{first} is not reached");
            place.crash(&mut program, self.crashes.0);
            if self.row.meddle == Meddle::Write {
                write_to_a_placed_file(&place, &mut history);
            }
            let log = Log(place.log.clone());
            acknowledged += history.check_survivors(&place.site, &log, self.crashes.0);
        }
        let mut program = start(&place, manner, Some(self.row.at));
        let mut stops = self.row.at.split(',').skip(1);
        loop {
            if let State::Ended(status) = program.wait() {
                assert_eq!(status.code(), Some(0), "before {}", self.row.at);
                history.check_end(&place.site, &Log(place.log.clone()));
                drop(saying);
                place.remove();
                return None;
            }
            let Some(stop) = stops.next() else { break };
            if stop == "taken_back" {
                touch_a_placed_file(&place);
            }
            program.go_on();
        }
        place.crash(&mut program, self.crashes.1);
        acknowledged +=
            history.check_survivors(&place.site, &Log(place.log.clone()), self.crashes.1);
        send_more(&place, &mut history, random);
        finish(&place, manner, &mut history);
        drop(saying);
        place.remove();
        Some(acknowledged)
    }
}

/// Says where it happened, if the test fails meanwhile.
pub struct Saying(pub String, pub Log);

impl Drop for Saying {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}; the end of the log:\n{}", self.0, self.1.tail());
        }
    }
}

/// `ringest run` on two staging directories.
pub fn command(place: &Place, manner: Manner, more: &[&str]) -> Command {
    let inputs = INPUTS.map(|name| place.site.staging.join(name));
    let [a, b] = inputs.each_ref().map(|path| path.to_str().expect("UTF-8"));
    let mut args = vec!["--input", a, "--input", b, "--recursive"];
    args.extend(["--stability-seconds", STABLE_SECONDS]);
    args.extend([
        "--on-duplicate",
        if manner.delete { "delete" } else { "move" },
    ]);
    if manner.sidecars {
        args.extend(["--mode", "sidecar"]);
    }
    let claims = place.site.staging.join(CLAIMS).join("{source}");
    if manner.claims {
        args.extend(["--claim-dir", claims.to_str().expect("UTF-8")]);
    }
    args.extend(["--read-method", manner.methods.read]);
    args.extend(["--copy-method", manner.methods.copy]);
    args.extend(more);
    place.site.run(&args)
}

fn start(place: &Place, manner: Manner, stop_at: Option<&str>) -> Program {
    let mut command = command(place, manner, &["--once", "--batch-files", "8"]);
    if let Some(point) = stop_at {
        command.env(ringest::trial::points::VARIABLE, point);
    }
    Program::start(command, &place.log)
}

/// Two staging directories: names clash.
pub const INPUTS: [&str; 2] = ["a", "b"];

/// Files of every sort, of which their writers synced a part.
fn fill(place: &Place, history: &mut History, random: &mut Random) {
    let staging = &place.site.staging;
    let small = |random: &mut Random| {
        let len = 8 + random.below(5000) as usize;
        random.bytes(len)
    };
    let (twice, again) = (small(random), small(random));
    for name in [
        "a/twice.csv",
        "a/sub/twice.csv",
        "b/sub/twice.csv",
        "b/other.csv",
    ] {
        history.send(staging.join(name), twice.clone());
    }
    for i in 0..8 {
        let directory = ["a", "b", "a/sub", "b/sub/deeper"][i % 4];
        let content = small(random);
        history.send(
            staging.join(directory).join(format!("synced{i}.csv")),
            content,
        );
    }
    // Both staging directories are there, whatever happens to the rest.
    place.sync();
    history.all_is_durable();
    for i in 0..8 {
        let directory = ["a", "b", "a/sub", "b/sub/new"][i % 4];
        let content = small(random);
        history.send(
            staging.join(directory).join(format!("file{i}.csv")),
            content,
        );
    }
    history.send(staging.join("b/late.csv"), twice);
    for directory in INPUTS {
        let content = small(random);
        history.send(staging.join(directory).join("clash.csv"), content);
        history.send(staging.join(directory).join("again.csv"), again.clone());
    }
    history.send(
        staging.join("a/large.csv"),
        random.bytes((1 << 20) + (300 << 10)),
    );
    if !history.manner().sidecars {
        history.send(staging.join("b/empty.csv"), Vec::new());
    }
    std::thread::sleep(STABLE);
}

/// What arrives after the crash: a name and a content that came before.
fn send_more(place: &Place, history: &mut History, random: &mut Random) {
    let directory = place.site.staging.join("a/more");
    history.send(directory.join("clash.csv"), random.bytes(100));
    let known = history.any_content().expect("something was sent");
    history.send(directory.join("known.csv"), known);
    std::thread::sleep(STABLE);
}

/// The last start takes everything, and one more has nothing to do.
fn finish(place: &Place, manner: Manner, history: &mut History) {
    ends_well(&mut start(place, manner, None));
    history.check_end(&place.site, &Log(place.log.clone()));
    let before = manifests(place);
    ends_well(&mut start(place, manner, None));
    assert_eq!(manifests(place), before, "a start with nothing to do wrote");
}

pub fn ends_well(program: &mut Program) {
    match program.wait() {
        State::Ended(status) => assert_eq!(status.code(), Some(0), "{status}"),
        State::Stopped => panic!("it stopped"),
    }
}

fn manifests(place: &Place) -> Vec<(PathBuf, Vec<u8>)> {
    let manifests = files_beneath(&place.site.manifests).into_iter();
    manifests
        .map(|path| (path.clone(), fs::read(path).expect("read a manifest")))
        .collect()
}

/// A file in the warehouse that is not in the manifest yet, if the batch has one.
fn placed_file(place: &Place) -> Option<PathBuf> {
    let lines = place.site.manifest_so_far();
    let recorded: Vec<PathBuf> = lines.iter().map(|line| line.placed()).collect();
    let mut placed = place.site.placed_files().into_iter();
    placed.find(|path| !recorded.contains(path))
}

/// Its time changes, not its content: no lease notices.
fn touch_a_placed_file(place: &Place) {
    let Some(path) = placed_file(place) else {
        return;
    };
    let file = fs::File::open(path).expect("open a placed file");
    file.set_modified(std::time::SystemTime::now())
        .expect("touch a placed file");
}

fn write_to_a_placed_file(place: &Place, history: &mut History) {
    // A power cut may have taken all of them.
    let Some(path) = placed_file(place) else {
        return;
    };
    let old = fs::read(&path).expect("read a placed file");
    let mut file = fs::File::options()
        .append(true)
        .open(&path)
        .expect("open a placed file");
    file.write_all(b"more").expect("write to a placed file");
    history.overwritten(&old, &[&old[..], b"more"].concat());
}
