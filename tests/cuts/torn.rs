//! A power cut that tears the source of a copy that is recorded already.

use std::ffi::OsStr;
use std::fs;

use crate::grid::{INPUTS, command, ends_well};
use crate::history::{History, Manner, Methods};
use crate::place::{Crash, Layout, Machine};
use crate::support::Random;
use crate::support::image::{self, Fs};
use crate::support::program::{Log, Program, State};

const BYTES: usize = 200 << 10;
const BYTES_ON_DISK: usize = 128 << 10;

#[test]
fn the_torn_source_of_a_recorded_copy_goes() {
    if !image::possible() {
        return;
    }
    let directory = crate::directory_for_images();
    let mut machine = Machine::new([Fs::Ext4; 4], directory.path().join("torn"));
    let mut place = machine.place(Layout::Other, "site");
    let manner = Manner {
        sidecars: false,
        claims: false,
        delete: false,
        methods: Methods::DEFAULT,
    };
    let log = Log(place.log.clone());
    for input in INPUTS {
        fs::create_dir_all(place.site.staging.join(input)).expect("make a staging directory");
    }
    place.sync();
    let mut history = History::new(manner);
    let path = place.site.staging.join(INPUTS[0]).join("large.csv");
    history.send(path.clone(), Random::new().bytes(BYTES));
    let mut run = command(&place, manner, &["--once"]);
    run.env("RINGEST_STOP_AT", "records_committed");
    let mut program = Program::start(run, &place.log);
    assert_eq!(program.wait(), State::Stopped, "{}", log.tail());
    // Its first part reaches the disk, and so does the size that it has there.
    let part = format!("sync_range -abw 0 {BYTES_ON_DISK}");
    let words = ["-r", "-c", &part].map(OsStr::new);
    image::run("xfs_io", words.into_iter().chain([path.as_os_str()]));
    let parent = fs::File::open(path.parent().expect("a directory"));
    parent.and_then(|it| it.sync_all()).expect("sync");
    place.crash(&mut program, Crash::Cut);
    let torn = fs::metadata(&path).expect("it is still owed").len() as usize;
    assert!((1..BYTES).contains(&torn), "{torn} bytes");
    history.check_survivors(&place.site, &log, Crash::Cut);
    let once = command(&place, manner, &["--once"]);
    ends_well(&mut Program::start(once, &place.log));
    history.check_end(&place.site, &log);
    assert!(!path.exists());
    place.remove();
}
