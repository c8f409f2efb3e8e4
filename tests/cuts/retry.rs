//! Power cuts while a quarantined file is given back or dropped.

use std::fs;
use std::process::Command;

use crate::place::{Crash, Layout, Machine, Place};
use crate::support::image::{self, Fs};
use crate::support::program::{Program, State};
use crate::support::{Finished, files_beneath, sha256};

const BAD: &[u8] = b"a,b\n1\n";

/// Where a retry is cut off; `true` where only a copy comes by.
const RETRY: &[(&str, bool)] = &[
    ("copy_written", true),
    ("retry_hidden", false),
    ("retry_hidden_synced", false),
    ("retry_source_removed", true),
    ("retry_left", false),
    ("retry_named", false),
    ("retry_named_synced", false),
    ("reason_removed", false),
    ("reason_removal_synced", false),
];
const DROP: &[&str] = &[
    "drop_file_removed",
    "drop_file_synced",
    "reason_removed",
    "reason_removal_synced",
];
const LAYOUTS: [Layout; 3] = [Layout::Same, Layout::Other, Layout::Apart];

fn quarantine(place: &Place, action: &str, args: &[&str]) -> Command {
    let mut command = place.site.ringest(false);
    command.args(["quarantine", action]);
    for (flag, path) in [
        ("--warehouse", &place.site.warehouse),
        ("--manifests", &place.site.manifests),
        ("--state-path", &place.site.state),
    ] {
        command.arg(flag).arg(path);
    }
    command.args(args);
    command
}

/// Takes what there is, under these rules, so that nothing is ingested twice unnoticed.
fn take(place: &Place, rules: &str) {
    let config = place.site.root.join("rules.toml");
    fs::write(&config, rules).expect("write the settings");
    let mut run = place.site.run(&["--once", "--dedupe", "off", "--config"]);
    run.arg(config).args(["--stability-seconds", "0.02"]);
    Finished::of(run).ok();
}

/// Files of these bytes in staging and in quarantine.
fn copies(place: &Place) -> usize {
    let mut files = files_beneath(&place.site.staging);
    files.extend(place.site.quarantined());
    let whole = files
        .iter()
        .filter(|path| fs::read(path).expect("read") == BAD);
    whole.count()
}

/// Sets a file aside and cuts the power when this command gets to that point.
fn cut_at(place: &mut Place, action: &str, args: &[&str], point: &str) {
    fs::create_dir_all(&place.site.staging).expect("make the staging directory");
    place.site.put("a.csv", BAD);
    place.sync();
    take(place, "content = \"csv\"\n");
    assert_eq!(place.site.quarantined().len(), 1);
    let mut command = quarantine(place, action, args);
    command.env(ringest::trial::points::VARIABLE, point);
    let mut program = Program::start(command, &place.log);
    assert_eq!(program.wait(), State::Stopped, "{point} is not reached");
    place.crash(&mut program, Crash::Cut);
}

#[test]
fn a_retry_or_a_drop_in_which_the_power_is_cut_loses_nothing_and_lands_nothing_twice() {
    if !image::possible() {
        return;
    }
    let directory = crate::directory_for_images();
    std::thread::scope(|scope| {
        for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
            let path = directory.path().join(format!("retry-{fs:?}"));
            scope.spawn(move || {
                let mut machine = Machine::new([fs; 4], path);
                for layout in LAYOUTS {
                    retries(&mut machine, layout);
                    drops(&mut machine, layout);
                }
            });
        }
    });
}

fn retries(machine: &mut Machine, layout: Layout) {
    let points = RETRY.iter().filter(|(_, copy)| layout.copies() || !copy);
    for (number, (point, _)) in points.enumerate() {
        for run_between in [false, true] {
            let name = format!("retry{layout:?}{number}{run_between}");
            let mut place = machine.place(layout, &name);
            cut_at(&mut place, "retry", &["1"], point);
            assert!(copies(&place) >= 1, "{layout:?} {point}");
            if run_between {
                take(&place, "");
            }
            Finished::of(quarantine(&place, "retry", &["--all"])).ok();
            take(&place, "");
            assert_eq!(
                place.site.line("a.csv").sha256(),
                sha256(BAD),
                "{layout:?} {point}"
            );
            let left = files_beneath(&place.site.warehouse.join("_quarantine"));
            assert!(left.is_empty(), "{layout:?} {point}: {left:?}");
            place.site.assert_sound();
            place.remove();
        }
    }
}

fn drops(machine: &mut Machine, layout: Layout) {
    for (number, point) in DROP.iter().enumerate() {
        let mut place = machine.place(layout, &format!("drop{layout:?}{number}"));
        cut_at(&mut place, "drop", &["1", "--yes"], point);
        Finished::of(quarantine(&place, "drop", &["--all", "--yes"])).ok();
        let left = files_beneath(&place.site.warehouse.join("_quarantine"));
        assert!(left.is_empty(), "{layout:?} {point}: {left:?}");
        place.site.assert_sound();
        place.remove();
    }
}
