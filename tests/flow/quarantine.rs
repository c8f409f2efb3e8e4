//! What was set aside is listed, shown, given back and removed; alone, beside a running instance, and after a kill.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::support::program::{Program, State};
use super::support::{Finished, Site, files_beneath, sha256, wait_until};

/// What a retry passes where files are renamed...
const RETRY: &[&str] = &[
    "retry_hidden",
    "retry_hidden_synced",
    "retry_left",
    "retry_named",
    "retry_named_synced",
    "reason_removed",
    "reason_removal_synced",
];
/// ...and where they are copied.
const RETRY_BY_COPY: &[&str] = &[
    "copy_written",
    "retry_hidden",
    "retry_hidden_synced",
    "retry_source_removed",
    "retry_left",
    "retry_named",
    "retry_named_synced",
    "reason_removed",
    "reason_removal_synced",
];
/// What a drop passes.
const DROP: &[&str] = &[
    "drop_file_removed",
    "drop_file_synced",
    "reason_removed",
    "reason_removal_synced",
];

const CSV: &str = "content = \"csv\"\n";
const ANY: &str = "";

/// A site whose every arrival is ingested, so that nothing is ingested twice unnoticed.
fn settle(site: Site) -> Site {
    site.with(&["--stability-seconds", "0.1", "--dedupe", "off"])
}

fn site() -> Site {
    settle(Site::new())
}

fn config(site: &Site, rules: &str) -> String {
    let config = site.root.join("ringest.toml");
    fs::write(&config, rules).expect("write the settings");
    config.to_str().expect("UTF-8").to_owned()
}

fn run_once(site: &Site, rules: &str) -> Finished {
    site.run_once(&["--config", &config(site, rules)])
}

fn command(site: &Site, action: &str, args: &[&str]) -> Command {
    let mut command = site.ringest(false);
    command.args(["quarantine", action]);
    for (flag, path) in [
        ("--warehouse", &site.warehouse),
        ("--manifests", &site.manifests),
        ("--state-path", &site.state),
    ] {
        command.arg(flag).arg(path);
    }
    command.args(args);
    command
}

fn quarantine(site: &Site, action: &str, args: &[&str]) -> Finished {
    Finished::of(command(site, action, args))
}

/// What lies there, in the order of arrival.
fn listed(site: &Site, args: &[&str]) -> Vec<Value> {
    let list = quarantine(site, "list", &[args, &["--json"]].concat()).ok();
    let lines = list.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("a line is an object"))
        .collect()
}

fn seqs(files: &[Value]) -> Vec<u64> {
    let seqs = files.iter().map(|file| file["seq"].as_u64());
    seqs.map(|seq| seq.expect("a number")).collect()
}

/// One file of these bytes, which are no CSV, is set aside as arrival 1.
fn set_aside(site: &Site, name: &str, content: &[u8]) {
    if let Some(parent) = Path::new(name).parent() {
        fs::create_dir_all(site.staging.join(parent)).expect("make directories");
    }
    site.put(name, content);
    run_once(site, CSV);
    assert_eq!(seqs(&listed(site, &[])), [1]);
    site.assert_agrees();
}

const BAD: &[u8] = b"a,b\n1\n";

#[test]
fn what_lies_there_is_listed_by_source_by_rule_and_by_time_and_shown_with_all_that_is_known() {
    let site = site().with(&["--recursive"]);
    fs::create_dir(site.staging.join("sub")).expect("make a directory");
    site.put("sub/width.csv", BAD);
    site.put("good.csv", "a\n1\n");
    run_once(&site, CSV);
    site.put("text.csv", b"a\n\xff\n");
    run_once(&site, CSV);

    let all = listed(&site, &[]);
    let rules: Vec<_> = all.iter().map(|file| file["rule"].as_str()).collect();
    assert_eq!(rules, [Some("csv_width"), Some("utf8")]);
    let [width, text] = &all[..] else {
        panic!("{all:?}")
    };
    assert_eq!(width["relative_path"], "sub/width.csv");
    assert_eq!(width["source"], "staging");
    assert_eq!(width["size"], BAD.len());
    assert_eq!(width["sha256"], sha256(BAD));
    assert_eq!(width["state"], "quarantined");
    let lies = PathBuf::from(width["quarantine_path"].as_str().expect("a path"));
    assert_eq!(fs::read(&lies).expect("it lies there"), BAD);
    let reason = width["reason_path"].as_str().expect("a path");
    assert!(Path::new(reason).is_file(), "{reason}");

    let only_text = std::slice::from_ref(text);
    assert_eq!(listed(&site, &["--rule", "utf8"]), only_text);
    assert_eq!(listed(&site, &["--source", "staging"]).len(), 2);
    quarantine(&site, "list", &["--source", "other"])
        .with_code(1)
        .naming("staging");
    let since = text["time"].as_str().expect("a time");
    assert_eq!(listed(&site, &["--since", since]), only_text);
    assert_eq!(listed(&site, &["--since", &since[..10]]).len(), 2);
    assert_eq!(listed(&site, &["--since", "2999-01-01"]), [] as [Value; 0]);
    let table = quarantine(&site, "list", &[]).ok();
    assert_eq!(table.stdout.lines().count(), 3, "{table}");
    assert!(table.stdout.contains("sub/width.csv"), "{table}");

    let seq = width["seq"].to_string();
    let came_from = site.staging.join("sub/width.csv");
    for asked in [&lies, &came_from, Path::new(&seq)] {
        let asked = asked.to_str().expect("UTF-8");
        let shown = quarantine(&site, "show", &[asked, "--json"]).ok();
        let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
        assert_eq!(shown, *width, "{asked}");
        let text = quarantine(&site, "show", &[asked]).ok();
        assert!(text.stdout.contains(&sha256(BAD)), "{text}");
    }
    for (asked, says) in [
        ("99", "not recorded"),
        ("nowhere.csv", "nowhere.csv"),
        (&good_seq(&site), "ingested"),
    ] {
        quarantine(&site, "show", &[asked])
            .with_code(1)
            .naming(says);
    }

    // The ledger says it all without the reason.
    fs::remove_file(reason).expect("remove the reason");
    let without = listed(&site, &[]);
    assert_eq!(seqs(&without), seqs(&all));
    assert_eq!(without[0]["reason_path"], Value::Null);
    assert_eq!(without[0]["message"], width["message"]);
}

fn good_seq(site: &Site) -> String {
    site.line("good.csv").number("seq").to_string()
}

#[test]
fn a_rebuilt_ledger_lists_the_same() {
    let site = site();
    site.put("a.csv", BAD);
    site.put("b.csv", b"\xff");
    site.put("dropped.csv", b"\xfe");
    run_once(&site, CSV);
    let dropped = site.staging.join("dropped.csv");
    quarantine(&site, "drop", &["--yes", dropped.to_str().expect("UTF-8")]).ok();
    let before = listed(&site, &[]);
    fs::remove_dir_all(&site.state).expect("lose the state");
    let mut rebuild = site.command("rebuild", &["--input"]);
    Finished::of({
        rebuild.arg(&site.staging);
        rebuild
    })
    .ok();
    assert_eq!(listed(&site, &[]), before);
    site.assert_agrees();
    let a = site.staging.join("a.csv");
    quarantine(&site, "retry", &[a.to_str().expect("UTF-8")]).ok();
    run_once(&site, ANY);
    site.line("a.csv");
    site.assert_sound();
}

#[test]
fn a_file_is_ingested_after_its_rule_has_changed() {
    let site = site().with(&["--recursive"]);
    set_aside(&site, "sub/deep/a.csv", BAD);
    // Its directory may be gone by then.
    fs::remove_dir_all(site.staging.join("sub")).expect("remove directories");
    let said = quarantine(&site, "retry", &["1"]).ok();
    let back = site.staging.join("sub/deep/a.csv");
    assert!(
        said.stdout.contains(back.to_str().expect("UTF-8")),
        "{said}"
    );
    assert_eq!(files_beneath(&site.staging), [back]);
    assert_eq!(
        files_beneath(&site.warehouse.join("_quarantine")),
        [] as [PathBuf; 0]
    );
    assert_eq!(listed(&site, &[]), [] as [Value; 0]);
    site.verify(&["--deep"]).ok();
    let shown = quarantine(&site, "show", &["1", "--json"]).ok();
    assert!(shown.stdout.contains("\"gone\""), "{shown}");
    quarantine(&site, "retry", &["1"])
        .with_code(1)
        .naming("given back");
    run_once(&site, ANY);
    assert_eq!(site.line("sub/deep/a.csv").sha256(), sha256(BAD));
    site.assert_sound();
}

#[test]
fn a_running_instance_takes_what_is_given_back() {
    for mode in ["closed", "stability"] {
        let site = site();
        set_aside(&site, "a.csv", BAD);
        let mut running = site.start(&["--config", &config(&site, ANY), "--mode", mode]);
        running.wait_for_event("started", "");
        quarantine(&site, "retry", &["--all"]).ok();
        assert_eq!(
            site.wait_for_line(&mut running, "a.csv").sha256(),
            sha256(BAD)
        );
        running.terminate();
        site.assert_sound();
        assert_eq!(site.manifest().len(), 1);
    }
}

#[test]
fn other_layouts_are_followed_wherever_files_were_claimed_and_set_aside() {
    let site = site();
    let claims = site.root.join("processing");
    let layout = format!(
        "partition = \"\"\nquarantine_dir = \"returns/{{source}}\"\nclaim_dir = {:?}\n",
        claims.display()
    );
    site.put("a.csv", BAD);
    site.put("b.csv", [BAD, b"2\n"].concat());
    run_once(&site, &format!("{CSV}{layout}"));
    let lies = site.warehouse.join("returns/staging/a.csv");
    let lies = lies.to_str().expect("UTF-8");
    // Readers end in any order.
    let all = listed(&site, &[]);
    assert!(
        all.iter().any(|it| it["quarantine_path"] == lies),
        "{all:?}"
    );
    // Of today's layout or not: the ledger knows where it lies.
    stopped_at(&site, "retry", &[lies], "retry_left").kill(false);
    quarantine(&site, "retry", &[lies]).ok();
    site.verify(&["--deep"]).ok();
    run_once(&site, &layout);
    assert_eq!(site.line("a.csv").placed(), site.warehouse.join("a.csv"));
    quarantine(&site, "drop", &["--all", "--yes"]).ok();
    assert_eq!(
        files_beneath(&site.warehouse.join("returns")),
        [] as [PathBuf; 0]
    );
    site.assert_staging_is_empty();
    site.verify(&["--deep"]).ok();
}

#[test]
fn what_breaks_its_rule_again_lies_there_again_and_verify_agrees_all_the_while() {
    const FILES: usize = 30;
    let site = site();
    let mut running = site.start(&["--config", &config(&site, CSV), "--mode", "closed"]);
    running.wait_for_event("started", "");
    for i in 0..FILES {
        site.put(
            format!("{i}.csv"),
            [BAD, format!("{i}\n").as_bytes()].concat(),
        );
    }
    let mut last = 0;
    for _ in 0..8 {
        wait_until("all lie in quarantine, by new numbers", || {
            assert!(!running.has_ended());
            let seqs = seqs(&listed(&site, &[]));
            seqs.len() == FILES && seqs.iter().all(|seq| *seq > last)
        });
        last = *seqs(&listed(&site, &[])).last().expect("files");
        quarantine(&site, "retry", &["--all", "--rule", "csv_width"]).ok();
        site.verify(&["--deep"]).ok();
    }
    running.terminate();
    run_once(&site, CSV);
    let after = listed(&site, &[]);
    assert_eq!(after.len(), FILES);
    let places: BTreeSet<_> = after
        .iter()
        .map(|it| it["quarantine_path"].to_string())
        .collect();
    assert_eq!(places.len(), FILES);
    site.assert_sound();
}

#[test]
fn another_file_under_the_name_of_one_that_has_left_is_another() {
    let site = site();
    set_aside(&site, "a.csv", BAD);
    quarantine(&site, "drop", &["1", "--yes"]).ok();
    let other = [BAD, b"2\n"].concat();
    site.put("a.csv", &other);
    run_once(&site, CSV);
    let now = listed(&site, &[]);
    assert_eq!(seqs(&now), [2]);
    assert_eq!(now[0]["sha256"], sha256(&other));
    site.assert_agrees();
    for action in ["retry", "drop"] {
        quarantine(&site, action, &["1"]).with_code(if action == "drop" { 2 } else { 1 });
    }
    quarantine(&site, "drop", &["1", "--yes"]).with_code(1);
    assert_eq!(listed(&site, &[]), now);
    // Without its reason it is still the later one's.
    fs::remove_file(now[0]["reason_path"].as_str().expect("a path")).expect("remove");
    assert_eq!(seqs(&listed(&site, &[])), [2]);
    quarantine(&site, "drop", &["1", "--yes"]).with_code(1);
    assert_eq!(seqs(&listed(&site, &[])), [2]);
    quarantine(&site, "retry", &["2"]).ok();
    run_once(&site, ANY);
    site.assert_sound();
}

#[test]
fn a_taken_name_stays_taken_and_the_others_go_on() {
    let Some(across) = Site::across_filesystems() else {
        return;
    };
    for site in [Site::new(), across].map(settle) {
        for name in ["a.csv", "b.csv", "c.csv"] {
            site.put(name, [BAD, name.as_bytes()].concat());
        }
        run_once(&site, CSV);
        let theirs = site.put("b.csv", "theirs");
        let said = quarantine(&site, "retry", &["--all"]).with_code(1);
        assert!(
            said.stderr.contains(theirs.to_str().expect("UTF-8")),
            "{said}"
        );
        assert_eq!(fs::read(&theirs).expect("read"), b"theirs");
        let left = listed(&site, &[]);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0]["relative_path"], "b.csv");
        assert_eq!(left[0]["state"], "quarantined");
        run_once(&site, ANY);
        site.assert_agrees();
        quarantine(&site, "retry", &["--all"]).ok();
        run_once(&site, ANY);
        assert_eq!(site.lines_of("b.csv").len(), 2);
        assert_eq!(site.manifest().len(), 4);
        site.assert_sound();
    }
}

#[test]
fn a_name_by_which_several_came_is_refused_until_one_is_numbered() {
    let site = site();
    site.put("a.csv", BAD);
    run_once(&site, CSV);
    let path = site.put("a.csv", [BAD, BAD].concat());
    run_once(&site, CSV);
    let path = path.to_str().expect("UTF-8");
    for (action, more) in [("retry", vec![]), ("drop", vec!["--yes"])] {
        let said = quarantine(&site, action, &[&[path], &more[..]].concat()).with_code(1);
        assert!(said.stderr.contains("1, 2"), "{said}");
    }
    assert_eq!(seqs(&listed(&site, &[])), [1, 2]);
    quarantine(&site, "retry", &["1"]).ok();
    let shown = quarantine(&site, "show", &[path, "--json"]).ok();
    assert!(shown.stdout.contains("\"seq\":2"), "{shown}");
    site.verify(&["--deep"]).ok();
}

#[test]
fn across_filesystems_a_file_comes_back_as_it_was() {
    let Some(site) = Site::across_filesystems().map(settle) else {
        return;
    };
    let path = site.staging.join("sparse.csv");
    let file = File::create(&path).expect("create");
    file.write_all_at(b"a,b\n1\n", 0).expect("write");
    file.write_all_at(b"end", 4_000_000).expect("write");
    file.set_len(32 << 20).expect("a hole at the end");
    let time = UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    file.set_times(FileTimes::new().set_modified(time))
        .expect("touch");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("chmod");
    drop(file);
    let (before, content) = (
        fs::metadata(&path).expect("there"),
        fs::read(&path).expect("read"),
    );
    run_once(&site, CSV);
    assert!(!path.exists());
    quarantine(&site, "retry", &["1"]).ok();
    let after = fs::metadata(&path).expect("back");
    assert_eq!(fs::read(&path).expect("read"), content);
    let facts = |it: &fs::Metadata| {
        (
            it.mode(),
            it.uid(),
            it.gid(),
            it.mtime(),
            it.mtime_nsec(),
            it.nlink(),
        )
    };
    assert_eq!(facts(&after), facts(&before));
    assert!(after.blocks() * 512 < 4 << 20, "{} blocks", after.blocks());
    run_once(&site, ANY);
    site.line("sparse.csv");
    site.assert_sound();
}

#[test]
fn what_cannot_be_given_back_stays_and_says_why() {
    // Its staging directory is gone.
    let site = site();
    set_aside(&site, "a.csv", BAD);
    let moved = site.root.join("moved");
    fs::rename(&site.staging, &moved).expect("move the staging directory");
    quarantine(&site, "retry", &["1"])
        .with_code(1)
        .naming(&site.staging);
    assert_eq!(seqs(&listed(&site, &[])), [1]);
    fs::rename(&moved, &site.staging).expect("move it back");
    // The recorder is not done with one that was set aside a moment before it was killed.
    site.put("b.csv", [BAD, b"2\n"].concat());
    let mut run = site.run(&["--config", &config(&site, CSV), "--once"]);
    run.env("RINGEST_STOP_AT", "records_committed");
    kill_at(run, &site);
    quarantine(&site, "retry", &["2"])
        .with_code(1)
        .naming("reason");
    quarantine(&site, "drop", &["2", "--yes"])
        .with_code(1)
        .naming("reason");
    assert_eq!(seqs(&listed(&site, &[])), [1, 2]);
    run_once(&site, ANY);
    quarantine(&site, "retry", &["--all", "--source", "staging"]).ok();
    run_once(&site, ANY);
    site.assert_sound();
    assert_eq!(site.manifest().len(), 2);
}

/// Runs into the point that its environment names, and is killed there.
fn kill_at(command: Command, site: &Site) {
    let mut program = Program::start(command, &site.root.join("stopped.log"));
    assert_eq!(program.wait(), State::Stopped, "the point is not reached");
    program.kill(false);
}

fn stopped_at(site: &Site, action: &str, args: &[&str], point: &str) -> Program {
    let mut command = command(site, action, args);
    command.env("RINGEST_STOP_AT", point);
    let mut program = Program::start(command, &site.root.join("stopped.log"));
    assert_eq!(program.wait(), State::Stopped, "{point} is not reached");
    program
}

/// How often these bytes are somewhere in staging or in quarantine.
fn copies(site: &Site, content: &[u8]) -> usize {
    let mut files = files_beneath(&site.staging);
    files.extend(site.quarantined());
    let same = |path: &&PathBuf| fs::read(path).expect("read") == content;
    files.iter().filter(same).count()
}

#[test]
fn a_retry_that_is_killed_anywhere_loses_nothing_and_lands_nothing_twice() {
    survive_kills(RETRY, || Some(site()));
}

#[test]
fn a_retry_across_filesystems_that_is_killed_anywhere_loses_nothing_and_lands_nothing_twice() {
    survive_kills(RETRY_BY_COPY, || Site::across_filesystems().map(settle));
}

fn survive_kills(points: &[&str], site: impl Fn() -> Option<Site>) {
    for point in points {
        for run_between in [false, true] {
            let Some(site) = site() else { return };
            set_aside(&site, "a.csv", BAD);
            let mut stopped = stopped_at(&site, "retry", &["1"], point);
            if !run_between && *point == "retry_left" {
                // Nobody else may go on with it meanwhile.
                quarantine(&site, "retry", &["1"]).with_code(75);
                quarantine(&site, "drop", &["1", "--yes"]).with_code(75);
            }
            site.verify(&["--deep"]).ok();
            stopped.kill(false);
            assert!(copies(&site, BAD) >= 1, "{point}");
            if run_between {
                run_once(&site, ANY);
            }
            // There is something to finish as long as the reason is there.
            let is_finished = point.starts_with("reason_");
            assert_eq!(listed(&site, &[]).is_empty(), is_finished, "{point}");
            let code = if is_finished { 1 } else { 0 };
            quarantine(&site, "retry", &["1"]).with_code(code);
            site.verify(&["--deep"]).ok();
            run_once(&site, ANY);
            assert_eq!(site.line("a.csv").sha256(), sha256(BAD));
            assert_eq!(listed(&site, &[]), [] as [Value; 0]);
            assert_eq!(
                files_beneath(&site.warehouse.join("_quarantine")),
                [] as [PathBuf; 0]
            );
            site.assert_sound();
        }
    }
}

#[test]
fn an_interrupted_retry_is_shown_and_named_by_verify_and_can_be_dropped() {
    let Some(across) = Site::across_filesystems() else {
        return;
    };
    for (site, point, state) in [
        (Site::new(), "retry_left", "giving_back"),
        (Site::new(), "retry_named", "missing"),
        (across, "copy_written", "quarantined"),
    ] {
        let site = settle(site);
        set_aside(&site, "a.csv", BAD);
        stopped_at(&site, "retry", &["1"], point).kill(false);
        assert_eq!(listed(&site, &[])[0]["state"], state);
        site.verify(&[])
            .with_code(1)
            .naming("ringest quarantine retry 1");
        // One that runs does not see the hidden one, and does not mind it.
        run_once(&site, CSV);
        quarantine(&site, "drop", &["1", "--yes"]).ok();
        let again = listed(&site, &[]);
        // What had its own name in staging again was an arrival.
        assert_eq!(again.len(), usize::from(state == "missing"), "{point}");
        site.assert_sound();
    }
}

#[test]
fn a_file_that_was_recorded_again_is_not_given_back_twice() {
    let Some(site) = Site::across_filesystems().map(settle) else {
        return;
    };
    set_aside(&site, "a.csv", BAD);
    // Its hidden name is the same each time.
    stopped_at(&site, "retry", &["1"], "retry_left").kill(false);
    let [hidden] = &files_beneath(&site.staging)[..] else {
        panic!("{:?}", files_beneath(&site.staging));
    };
    let hidden = hidden.clone();
    stopped_at(&site, "retry", &["1"], "retry_named").kill(false);
    let mut run = site.run(&["--config", &config(&site, ANY), "--once"]);
    run.env("RINGEST_STOP_AT", "lines_synced");
    kill_at(run, &site);
    // A power cut takes the last rename back, which nobody had synced.
    let own = site.staging.join("a.csv");
    fs::rename(&own, &hidden).expect("take the rename back");
    run_once(&site, ANY);
    site.line("a.csv");
    assert!(hidden.exists());
    let said = quarantine(&site, "retry", &["1"]).ok();
    assert!(said.stdout.contains("is recorded"), "{said}");
    run_once(&site, ANY);
    site.line("a.csv");
    site.assert_sound();
}

#[test]
fn a_strange_file_under_the_hidden_name_is_neither_given_back_nor_removed() {
    let site = site();
    set_aside(&site, "a.csv", BAD);
    stopped_at(&site, "retry", &["1"], "retry_left").kill(false);
    let [hidden] = &files_beneath(&site.staging)[..] else {
        panic!("one hidden file")
    };
    fs::write(hidden, "half").expect("write");
    quarantine(&site, "retry", &["1"])
        .with_code(1)
        .naming(hidden);
    assert_eq!(fs::read(hidden).expect("read"), b"half");
    fs::write(hidden, BAD).expect("write");
    quarantine(&site, "retry", &["1"]).ok();
    run_once(&site, ANY);
    site.line("a.csv");
    site.assert_sound();
}

#[test]
fn every_point_of_a_retry_and_of_a_drop_is_one_at_which_they_are_killed() {
    let killed_at = [RETRY_BY_COPY, DROP, &["drop_hidden_removed"]].concat();
    for point in ringest::trial::points::QUARANTINE {
        assert!(killed_at.contains(point), "{point}");
    }
}

#[test]
fn a_drop_that_is_killed_anywhere_ends_with_another_one() {
    for point in DROP {
        let site = site();
        set_aside(&site, "a.csv", BAD);
        site.put("b.csv", [BAD, b"2\n"].concat());
        run_once(&site, CSV);
        stopped_at(&site, "drop", &["1", "--yes"], point).kill(false);
        let is_finished = point.starts_with("reason_");
        assert_eq!(listed(&site, &[]).len(), if is_finished { 1 } else { 2 });
        let code = if is_finished { 1 } else { 0 };
        quarantine(&site, "drop", &["1", "--yes"]).with_code(code);
        assert_eq!(copies(&site, BAD), 0);
        run_once(&site, ANY);
        site.assert_sound();
        quarantine(&site, "drop", &["--all", "--yes", "--rule", "utf8"]).ok();
        assert_eq!(seqs(&listed(&site, &[])), [2]);
        quarantine(&site, "drop", &["--all", "--yes"]).ok();
        assert_eq!(
            files_beneath(&site.warehouse.join("_quarantine")),
            [] as [PathBuf; 0]
        );
        site.assert_sound();
    }
    // The hidden name that an interrupted retry left goes first.
    let site = site();
    set_aside(&site, "a.csv", BAD);
    stopped_at(&site, "retry", &["1"], "retry_left").kill(false);
    stopped_at(&site, "drop", &["1", "--yes"], "drop_hidden_removed").kill(false);
    quarantine(&site, "drop", &["1", "--yes"]).ok();
    site.assert_sound();
}

#[test]
fn a_drop_asks_at_a_terminal_and_needs_a_yes_without_one() {
    let site = site();
    set_aside(&site, "a.csv", BAD);
    quarantine(&site, "drop", &["1"])
        .with_code(2)
        .naming("--yes");
    assert_eq!(seqs(&listed(&site, &[])), [1]);
    for (answer, left) in [("n\n", 1), ("\n", 1), ("y\n", 0)] {
        let said = at_a_terminal(&command(&site, "drop", &["--all"]), answer);
        assert!(said.contains("a.csv"), "{said}");
        assert_eq!(listed(&site, &[]).len(), left, "{answer:?}: {said}");
    }
    site.assert_sound();
}

/// Runs a command with a terminal before it, at which this is typed.
fn at_a_terminal(command: &Command, typed: &str) -> String {
    let spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut terminal = Command::new("python3");
    terminal
        .args(["-c", spawn])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, _) in command.get_envs() {
        terminal.env_remove(name);
    }
    let mut terminal = terminal
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start python3");
    let mut keyboard = terminal.stdin.take().expect("a pipe");
    keyboard.write_all(typed.as_bytes()).expect("type");
    let ended = terminal.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{said}");
    said
}
