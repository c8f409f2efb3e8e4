//! What others do between two steps of a batch: the process stops at a named point, somebody does something to the very
//! file that is on its way, and the process goes on.

mod support;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use support::program::{Log, Program, State};
use support::{RunArgs, Site, files_beneath, sha256};

const ARGS: RunArgs = &["--stability-seconds", "0.02"];

/// Runs until it stops at a point, from which it can go on: there is another one, which never comes.
fn stopped_at(point: &str, site: &Site, args: RunArgs) -> (Program, Log) {
    let log = Log(site.root.join("ringest.log"));
    let mut command = site.run(&[ARGS, args].concat());
    command
        .arg("--once")
        .env("RINGEST_STOP_AT", format!("{point},none"));
    let mut program = Program::start(command, &log.0);
    assert_eq!(program.wait(), State::Stopped, "{}", log.tail());
    (program, log)
}

/// Lets it go on, to its end.
fn ends_well((mut program, log): (Program, Log)) {
    program.go_on();
    match program.wait() {
        State::Ended(status) => assert_eq!(status.code(), Some(0), "{}", log.tail()),
        State::Stopped => panic!("it stopped again"),
    }
}

fn killed((mut program, _): (Program, Log)) {
    program.kill(false);
}

/// The one file that has its place in the warehouse, whether it is recorded or not.
fn placed(site: &Site) -> PathBuf {
    let mut files = files_beneath(&site.warehouse);
    files.retain(|path| path.extension().is_some_and(|suffix| suffix == "csv"));
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

/// What a writer does that does not wait for the end of a lease.
fn open_for_writing(path: &Path) {
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path);
    assert_eq!(
        opened.expect_err("it is leased").kind(),
        ErrorKind::WouldBlock
    );
}

/// Puts another file in the place of one.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).expect("write");
    fs::rename(&new, path).expect("rename");
}

fn append(path: &Path, content: &str) {
    let file = OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(content.as_bytes()))
        .expect("append");
}

#[test]
fn a_placed_file_that_a_writer_opened_is_taken_back_and_read_again() {
    let site = Site::new();
    site.put("a.csv", "content");
    let run = stopped_at("placed", &site, &[]);
    open_for_writing(&placed(&site));
    ends_well(run);
    // Its first number is that of the placement that was undone.
    assert_eq!(site.line("a.csv").number("seq"), 2);
    site.assert_sound();
}

#[test]
fn a_placed_file_that_got_other_rights_than_it_was_given_is_taken_back_and_read_again() {
    let given: [(RunArgs, u32); 4] = [
        (&[], 0o4644),
        (&[], 0o2644),
        (&["--placed-mode", "0640"], 0o666),
        (&["--placed-owner", "self"], 0o666),
    ];
    for (args, mode) in given {
        let site = Site::new();
        site.put("a.csv", "content");
        let run = stopped_at("placed", &site, args);
        let own = fs::metadata(placed(&site)).expect("look").mode();
        let set = |mode| fs::set_permissions(placed(&site), Permissions::from_mode(mode));
        set(mode).expect("chmod");
        ends_well(run);
        let line = site.line("a.csv");
        assert_eq!(line.number("seq"), 2, "{args:?} {mode:o}");
        let again = fs::metadata(line.placed()).expect("look").mode();
        assert_eq!(again, own & !0o7022, "{args:?} {mode:o}");
        site.assert_sound();
    }
}

#[test]
fn a_placed_file_whose_owner_changes_its_plain_permissions_is_what_was_hashed() {
    let site = Site::new();
    site.put("a.csv", "content");
    let run = stopped_at("placed", &site, &[]);
    fs::set_permissions(placed(&site), Permissions::from_mode(0o600)).expect("chmod");
    ends_well(run);
    assert_eq!(site.line("a.csv").number("seq"), 1);
    site.assert_sound();
}

#[test]
fn a_placed_file_that_was_replaced_by_one_of_the_same_size_and_time_is_taken_back_and_read_again() {
    let site = Site::new();
    let source = site.put("a.csv", "content");
    let time = fs::metadata(source)
        .and_then(|it| it.modified())
        .expect("look");
    let run = stopped_at("placed", &site, &[]);
    replace(&placed(&site), "CONTENT");
    let replaced = File::options().write(true).open(placed(&site));
    replaced
        .and_then(|file| file.set_modified(time))
        .expect("set its time");
    ends_well(run);
    assert_eq!(site.line("a.csv").sha256(), sha256(b"CONTENT"));
    site.assert_sound();
}

#[test]
fn a_placed_file_that_somebody_takes_away_is_withdrawn() {
    let site = Site::new();
    site.put("a.csv", "content");
    let run = stopped_at("placed", &site, &[]);
    fs::remove_file(placed(&site)).expect("remove");
    ends_well(run);
    assert_eq!(site.manifest().len(), 0);
    site.put("a.csv", "content");
    site.run_once(ARGS);
    assert_eq!(site.line("a.csv").number("seq"), 2);
    site.assert_sound();
}

/// The file in the new directory sends no event of its own, and its name is still on its way.
#[test]
fn a_file_in_a_directory_that_replaces_the_one_whence_its_namesake_was_placed_is_an_arrival() {
    let site = Site::new();
    fs::create_dir(site.staging.join("job")).expect("make a directory");
    site.put("job/data.csv", "first");
    let run = stopped_at("placed", &site, &["--recursive"]);
    let (job, next) = (site.staging.join("job"), site.root.join("next"));
    fs::remove_dir(&job).expect("it is empty");
    fs::create_dir(&next).expect("make a directory");
    fs::write(next.join("data.csv"), "second").expect("write");
    fs::rename(&next, &job).expect("rename");
    ends_well(run);
    let contents = site
        .manifest()
        .iter()
        .map(|line| fs::read_to_string(line.placed()).expect("read"))
        .collect::<Vec<_>>();
    assert_eq!(contents, ["first", "second"]);
    assert!(files_beneath(&site.staging).is_empty());
    site.assert_sound();
}

#[test]
fn a_name_that_somebody_takes_before_the_file_is_placed_stays_theirs() {
    let site = Site::new();
    site.put("first.csv", "first");
    site.run_once(ARGS);
    let theirs = site.line("first.csv").placed().with_file_name("a.csv");
    site.put("a.csv", "content");
    let run = stopped_at("intents_committed", &site, &[]);
    fs::write(&theirs, "theirs").expect("write");
    ends_well(run);
    assert_eq!(fs::read_to_string(&theirs).expect("read"), "theirs");
    let line = site.line("a.csv");
    assert_ne!(line.placed(), theirs);
    assert_eq!(fs::read_to_string(line.placed()).expect("read"), "content");
    fs::remove_file(theirs).expect("remove");
    site.assert_sound();
}

#[test]
fn a_partition_that_somebody_removes_before_a_file_is_placed_is_made_again() {
    let site = Site::new();
    site.put("a.csv", "content");
    let run = stopped_at("intents_committed", &site, &[]);
    for entry in fs::read_dir(&site.warehouse).expect("list") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            fs::remove_dir(path).expect("remove");
        }
    }
    ends_well(run);
    assert_eq!(site.line("a.csv").number("seq"), 2);
    site.assert_sound();
}

#[test]
fn a_manifest_that_somebody_else_writes_to_ends_the_run_before_anything_is_promised() {
    let site = Site::new();
    site.put("a.csv", "content");
    site.run_once(ARGS);
    let manifest = files_beneath(&site.manifests)
        .into_iter()
        .find(|path| path.ends_with("manifest.jsonl"))
        .expect("a manifest");
    site.put("b.csv", "more");
    let (mut program, log) = stopped_at("classified", &site, &[]);
    append(&manifest, "{}\n");
    program.go_on();
    match program.wait() {
        State::Ended(status) => assert_eq!(status.code(), Some(74), "{}", log.tail()),
        State::Stopped => panic!("it stopped again"),
    }
    assert!(
        log.tail().contains("somebody else changed it"),
        "{}",
        log.tail()
    );
    assert!(site.staging.join("b.csv").is_file());
}

#[test]
fn a_placed_file_that_got_a_second_name_is_not_what_is_recorded() {
    let site = Site::new();
    site.put("a.csv", "content");
    let run = stopped_at("placed", &site, &[]);
    let theirs = site.root.join("theirs.csv");
    fs::hard_link(placed(&site), &theirs).expect("link");
    run.0.go_on();
    // It waits in staging until it has one name again.
    let (mut program, log) = run;
    assert!(matches!(program.wait(), State::Ended(_)), "{}", log.tail());
    assert_eq!(site.manifest().len(), 0, "{}", log.tail());
    fs::remove_file(theirs).expect("remove");
    site.run_once(ARGS);
    assert_eq!(
        fs::metadata(site.line("a.csv").placed())
            .expect("look")
            .nlink(),
        1
    );
    site.assert_sound();
}

#[test]
fn a_file_that_somebody_put_in_place_of_a_copy_stays_there() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    site.put("a.csv", "content");
    let run = stopped_at("placed", &site, &[]);
    let path = placed(&site);
    replace(&path, "theirs");
    ends_well(run);
    assert_eq!(fs::read_to_string(&path).expect("read"), "theirs");
    let line = site.line("a.csv");
    assert_ne!(line.placed(), path);
    assert_eq!(fs::read_to_string(line.placed()).expect("read"), "content");
    site.assert_staging_is_empty();
}

#[test]
fn the_source_of_a_copy_that_a_writer_opened_is_not_removed() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let source = site.put("a.csv", "content");
    let run = stopped_at("batch_manifested", &site, &[]);
    open_for_writing(&source);
    ends_well(run);
    // It may have more to say, and is looked at again.
    assert!(source.exists());
    site.run_once(ARGS);
    assert_eq!(site.line("a.csv").sha256(), sha256(b"content"));
    assert_eq!(site.duplicates().len(), 1);
    site.assert_sound();
}

#[test]
fn the_source_of_a_copy_that_was_written_to_after_a_kill_is_not_removed() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let source = site.put("a.csv", "content");
    let time = fs::metadata(&source)
        .and_then(|it| it.modified())
        .expect("look");
    killed(stopped_at("records_committed", &site, &[]));
    append(&source, ", and more");
    // As rsync and tar do.
    let written = File::options().write(true).open(&source);
    written
        .and_then(|file| file.set_modified(time))
        .expect("set its time");
    site.run_once(ARGS);
    let digests = site.lines_of("a.csv");
    let digests: Vec<&str> = digests.iter().map(|line| line.sha256()).collect();
    assert_eq!(digests, [sha256(b"content"), sha256(b"content, and more")]);
    site.assert_sound();
}

#[test]
fn the_source_of_a_copy_that_was_moved_about_after_a_kill_is_no_arrival() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let site = site.with(&["--dedupe", "off"]);
    let source = site.put("a.csv", "content");
    killed(stopped_at("records_committed", &site, &[]));
    let aside = source.with_extension("aside");
    fs::rename(&source, &aside).expect("rename");
    fs::rename(&aside, &source).expect("rename back");
    site.run_once(ARGS);
    assert_eq!(site.lines_of("a.csv").len(), 1);
    site.assert_staging_is_empty();
}

#[test]
fn a_duplicate_stays_if_the_first_is_gone_by_the_time_it_would_be_deleted() {
    let site = Site::new().with(&["--on-duplicate", "delete"]);
    site.put("first.csv", "content");
    site.run_once(ARGS);
    site.put("again.csv", "content");
    killed(stopped_at("records_committed", &site, &[]));
    fs::remove_file(placed(&site)).expect("remove");
    site.run_once(ARGS);
    let line = site.line("again.csv");
    assert_eq!(fs::read_to_string(line.placed()).expect("read"), "content");
}

#[test]
fn a_file_that_replaces_a_source_while_recovery_removes_its_name_is_an_arrival() {
    let site = Site::new();
    let source = site.put("a.csv", "content");
    killed(stopped_at("placed", &site, &[]));
    // As a power cut leaves it on some filesystems.
    fs::hard_link(placed(&site), &source).expect("link");
    let run = stopped_at("recovery_decided", &site, &[]);
    replace(&source, "newer");
    ends_well(run);
    let digests = site.lines_of("a.csv");
    let digests: Vec<&str> = digests.iter().map(|line| line.sha256()).collect();
    assert_eq!(digests, [sha256(b"content"), sha256(b"newer")]);
    site.assert_sound();
}

#[test]
fn a_start_after_a_kill_distrusts_the_cache_and_one_after_an_end_does_not() {
    let site = Site::new();
    let suspicion = || site.state.join("suspect").is_file();
    site.run_once(ARGS);
    site.run_once(ARGS);
    assert!(!suspicion());
    site.put("a.csv", "content");
    killed(stopped_at("placed", &site, &[]));
    assert!(!suspicion());
    site.run_once(ARGS);
    assert!(suspicion());
    site.assert_sound();
}
