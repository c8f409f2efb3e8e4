//! The state is lost, and made again from what is left; and backups, which make that unnecessary.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::program::{Program, State};
use support::{
    Finished, Random, RunArgs, Running, Site, files_beneath, sha256, sha256_of_file, tree,
};

const QUICK: RunArgs = &["--mode", "closed", "--stability-seconds", "0.1"];

fn rebuild_command(site: &Site, args: RunArgs) -> Command {
    let mut command = site.command("rebuild", &["--input"]);
    command.arg(&site.staging).args(args);
    command
}

fn rebuild(site: &Site, args: RunArgs) -> Finished {
    Finished::of(rebuild_command(site, args))
}

/// The summary of a rebuild with `--json`, and what was said before it.
fn rebuilt(site: &Site, args: RunArgs) -> (Value, Vec<Value>) {
    let args = [args, &["--json"]].concat();
    said(&rebuild(site, &args).ok())
}

fn said(finished: &Finished) -> (Value, Vec<Value>) {
    let mut objects: Vec<Value> = finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line is an object"))
        .collect();
    let summary = objects.pop().expect("a summary");
    (summary, objects)
}

fn code(finished: &Finished) -> Option<i32> {
    finished.status.code()
}

fn lose_state(site: &Site) {
    fs::remove_dir_all(&site.state).expect("remove the state");
}

fn manifest_files(site: &Site) -> Vec<PathBuf> {
    let mut files = files_beneath(&site.manifests);
    files.retain(|file| file.ends_with("manifest.jsonl"));
    files
}

/// The only manifest, which holds everything unless the hour changes in the middle of a test.
fn newest_manifest(site: &Site) -> PathBuf {
    manifest_files(site).pop().expect("a manifest")
}

/// New files, duplicates that are moved, a bad sidecar, subdirectories, names that are not UTF-8, names that clash.
fn a_mix(site: &Site) {
    fs::create_dir_all(site.staging.join("sub/deep")).expect("make directories");
    site.put("a.csv", "a");
    site.put("sub/deep/a.csv", "sub a");
    site.put(OsStr::from_bytes(b"not \xff utf8.csv"), "not utf8");
    site.put("empty.csv", "");
    site.run_once(&[]);
    site.put("a.csv", "another a");
    site.put("again.csv", "a");
    site.put("sub/again.csv", "sub a");
    site.run_once(&[]);
    site.put("again.csv", "a");
    site.put(OsStr::from_bytes(b"dup \xff.csv"), "a");
    site.run_once(&[]);
    site.put("deleted.csv", "a");
    site.run_once(&["--on-duplicate", "delete"]);
    site.put("bad.csv", "bad");
    site.put("bad.csv.ok", sha256(b"something else"));
    site.put("good.csv", "good");
    site.put("good.csv.ok", sha256(b"good"));
    site.run_once(&["--mode", "sidecar"]);
    site.assert_sound();
}

fn recursive() -> Site {
    Site::new().with(&["--recursive", "--stability-seconds", "0.1"])
}

#[test]
fn a_lost_state_is_made_again_from_manifests_and_warehouse() {
    let site = recursive();
    a_mix(&site);
    let before = site.manifest().len();
    let found = Finished::of(site.command("find", &["again.csv", "--json"])).ok();
    let last = site.manifest().last().expect("lines").number("seq");
    lose_state(&site);
    let (untouched_warehouse, untouched_manifests) = (tree(&site.warehouse), tree(&site.manifests));
    let (summary, words) = rebuilt(&site, &["--deep", "--recursive"]);
    assert_eq!(words, Vec::<Value>::new());
    assert_eq!(summary["lines"], before);
    assert_eq!(summary["duplicates"], 4);
    assert_eq!(summary["quarantined"], 1);
    assert_eq!(summary["void"], 1, "the deleted duplicate");
    assert_eq!(summary["adopted"], 0);
    // Nothing was changed: every name, inode, size and time is as it was.
    assert_eq!(tree(&site.warehouse), untouched_warehouse);
    assert_eq!(tree(&site.manifests), untouched_manifests);
    site.assert_agrees();
    let found_again = Finished::of(site.command("find", &["again.csv", "--json"])).ok();
    assert_eq!(found.stdout, found_again.stdout);

    // What came before is a duplicate, what is new gets the next number.
    site.put("resent.csv", "good");
    site.put("new.csv", "new");
    site.run_once(&[]);
    assert_eq!(site.lines_of("resent.csv").len(), 0);
    let next = summary["next_seq"].as_u64().expect("a number");
    assert!(next > last);
    assert!((next..next + 2).contains(&site.line("new.csv").number("seq")));
    assert_eq!(site.duplicates().len(), 5);
    site.assert_sound();
}

#[test]
fn copies_across_filesystems_are_known_again_and_their_sources_go() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let site = site.with(&["--recursive", "--stability-seconds", "0.1"]);
    a_mix(&site);
    for point in ["records_committed", "lines_synced", "source_hidden"] {
        site.put(format!("{point}.csv"), point);
        stop_at(&site, point, &[]);
        lose_state(&site);
        rebuild(&site, &["--recursive"]).ok();
        site.verify(&["--deep"]).ok();
        site.run_once(&[]);
        site.assert_sound();
        assert_eq!(
            site.line(&format!("{point}.csv")).number("size") as usize,
            point.len()
        );
        assert_eq!(site.duplicates().len(), 4, "{point}");
    }
}

/// Runs into a point and is killed there.
fn stop_at(site: &Site, point: &str, args: RunArgs) {
    let mut command = site.run(args);
    command.arg("--once").env("RINGEST_STOP_AT", point);
    let mut program = Program::start(command, &site.root.join("stopped.log"));
    match program.wait() {
        State::Stopped => drop(program.kill(false)),
        State::Ended(status) => assert_eq!(status.code(), Some(0), "{point}"),
    }
}

/// Every point that a start and its batches may pass.
const POINTS: &[&str] = &[
    "ledger_made",
    "ledger_renamed",
    "ledger_named",
    "marker_written",
    "marker_renamed",
    "marker_synced",
    "session_begun",
    "directory_made",
    "manifest_made",
    "classified",
    "reserved",
    "data_synced",
    "intents_committed",
    "placed_one",
    "placed",
    "destinations_synced",
    "sources_synced",
    "checked",
    "records_committed",
    "lines_written",
    "lines_synced",
    "source_hidden",
    "source_removed",
    "reason_written",
    "debts_paid",
    "reported",
    "closing",
    "closed",
];

#[test]
fn state_lost_after_a_kill_at_every_point_loses_nothing_and_lands_nothing_twice() {
    survive_at_every_point(Site::new);
}

#[test]
fn state_lost_after_a_kill_at_every_point_across_filesystems() {
    let Some(_) = Site::across_filesystems() else {
        return;
    };
    survive_at_every_point(|| Site::across_filesystems().expect("there was one"));
}

fn survive_at_every_point(site: impl Fn() -> Site) {
    for point in POINTS {
        for with_past in [false, true] {
            let site = site().with(&["--stability-seconds", "0.1"]);
            let mut contents = vec!["one", "two", "three"];
            if with_past {
                site.put("past.csv", "past");
                site.run_once(&[]);
                contents.push("past");
            }
            site.put("one.csv", "one");
            site.put("two.csv", "two");
            site.put("three.csv", "three");
            if with_past {
                site.put("duplicate.csv", "past");
            }
            stop_at(&site, point, &[]);
            lose_state(&site);
            let marked = |root: &Path| root.join(".ringest-ledger").exists();
            if marked(&site.warehouse) || marked(&site.manifests) {
                let refused = site.try_once(&[]);
                assert_eq!(code(&refused), Some(78), "{point}: {refused}");
                assert!(refused.stderr.contains("ringest rebuild"), "{refused}");
                rebuild(&site, &[]).ok();
                if with_past {
                    site.verify(&["--deep"]).ok();
                }
            }
            site.run_once(&[]);
            site.assert_sound();
            let mut expected: Vec<String> = contents
                .iter()
                .map(|text| sha256(text.as_bytes()))
                .collect();
            let mut ingested: Vec<String> = site
                .manifest()
                .iter()
                .map(|line| line.sha256().to_owned())
                .collect();
            expected.sort();
            ingested.sort();
            assert_eq!(ingested, expected, "{point}, past: {with_past}");
            let duplicates = site.duplicates().len();
            assert_eq!(duplicates, usize::from(with_past), "{point}");
        }
    }
}

#[test]
fn deleted_duplicates_on_their_way_out_go() {
    let site = Site::new().with(&["--stability-seconds", "0.1", "--on-duplicate", "delete"]);
    site.put("one.csv", "one");
    site.run_once(&[]);
    site.put("again.csv", "one");
    stop_at(&site, "source_hidden", &[]);
    assert_eq!(files_beneath(&site.staging).len(), 1);
    lose_state(&site);
    let (_, words) = rebuilt(&site, &[]);
    assert_eq!(words.len(), 1);
    assert_eq!(words[0]["kind"], "removed");
    site.run_once(&[]);
    site.assert_sound();
}

#[test]
fn a_hidden_name_with_content_that_is_nowhere_else_is_taken_in() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    site.put("one.csv", "one");
    site.run_once(&[]);
    let marker = fs::read(site.warehouse.join(".ringest-ledger")).expect("a marker");
    let marker: Value = serde_json::from_slice(&marker).expect("JSON");
    let uuid = marker["ledger"].as_str().expect("a name");
    site.put(format!(".ringest-{uuid}-1"), "nowhere else");
    site.put(format!(".ringest-{uuid}-99999999999"), "nor this");
    lose_state(&site);
    let (summary, words) = rebuilt(&site, &[]);
    assert!(
        words.iter().all(|word| word["kind"] == "given_back"),
        "{words:?}"
    );
    assert_eq!(summary["next_seq"], 2);
    site.run_once(&[]);
    site.assert_sound();
    assert_eq!(site.manifest().len(), 3);
}

#[test]
fn a_sidecar_goes_with_the_file_that_it_came_with() {
    let site = Site::new().with(&["--mode", "sidecar"]);
    site.put("one.csv", "one");
    site.put("one.csv.ok", "");
    stop_at(&site, "lines_synced", &[]);
    assert!(site.staging.join("one.csv.ok").exists());
    lose_state(&site);
    rebuild(&site, &["--mode", "sidecar"]).ok();
    site.run_once(&[]);
    site.assert_sound();
}

#[test]
fn a_torn_last_line_is_cut_off_and_its_file_taken_in() {
    for torn in [&b"{\"path\":\"/x"[..], b"{\"path\":\"/x\n", b"\0\0\0\0\0\0"] {
        let site = Site::new().with(&["--stability-seconds", "0.1"]);
        site.put("one.csv", "one");
        site.run_once(&[]);
        site.put("two.csv", "two");
        site.run_once(&[]);
        let manifest = newest_manifest(&site);
        let bytes = fs::read(&manifest).expect("read");
        let whole = bytes.len() - site.line("two.csv").raw.len() - 1;
        fs::write(&manifest, [&bytes[..whole], torn].concat()).expect("tear");
        lose_state(&site);
        let (summary, words) = rebuilt(&site, &[]);
        assert_eq!(words[0]["kind"], "torn_line");
        assert_eq!(words[1]["kind"], "adopted");
        assert_eq!(
            (&summary["lines"], &summary["adopted"]),
            (&1.into(), &1.into())
        );
        site.verify(&["--deep"]).ok();
        site.run_once(&[]);
        site.assert_sound();
        assert_eq!(site.line("two.csv").number("size"), 3);
        assert_eq!(site.manifest().len(), 2);
        // Once more, now from what the last one made of it.
        lose_state(&site);
        let (summary, words) = rebuilt(&site, &["--deep"]);
        assert_eq!((words.len(), &summary["lines"]), (0, &2.into()));
        site.run_once(&[]);
        site.assert_sound();
    }
}

#[test]
fn what_is_damaged_in_the_middle_is_refused_by_line_and_nothing_changes() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    for name in ["one", "two", "three"] {
        site.put(format!("{name}.csv"), name);
        site.run_once(&[]);
    }
    lose_state(&site);
    let manifest = newest_manifest(&site);
    let whole = fs::read_to_string(&manifest).expect("read");
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let [.., one, two, three] = lines[..] else {
        panic!("the hour changed: {lines:?}")
    };
    let other_hour = two.replace("\"ingested_at\":\"2", "\"ingested_at\":\"1");
    let other_path = two.replace("two.csv\",\"sha", "too.csv\",\"sha");
    let leap = three.replace("\"seq\":3", "\"seq\":9999999999");
    let cases: [(&str, Vec<&str>, &str); 7] = [
        ("damaged", vec![one, "{\"path\":7}\n", three], "line 2"),
        ("not JSON", vec![one, "\0\0\0\n", three], "line 2"),
        ("twice", vec![one, two, two, three], "line 3"),
        ("out of order", vec![one, three, two], "line 3"),
        ("another hour", vec![one, &other_hour, three], "line 2"),
        (
            "paths that do not fit",
            vec![one, &other_path, three],
            "line 2",
        ),
        ("a leap", vec![one, two, &leap], "line 3"),
    ];
    for (what, lines, expected) in cases {
        fs::write(&manifest, lines.concat()).expect("damage");
        let before = (tree(&site.warehouse), tree(&site.manifests));
        let refused = rebuild(&site, &[]);
        assert_eq!(code(&refused), Some(74), "{what}: {refused}");
        let names = [expected, manifest.to_str().expect("UTF-8")];
        assert!(
            names.iter().all(|name| refused.stderr.contains(name)),
            "{what}: {refused}"
        );
        assert_eq!(
            (tree(&site.warehouse), tree(&site.manifests)),
            before,
            "{what}"
        );
        assert_eq!(
            files_beneath(&site.state),
            [site.state.join("lock")],
            "{what}"
        );
    }
    fs::write(&manifest, &whole).expect("repair");
    rebuild(&site, &[]).ok();
    site.assert_agrees();
}

#[test]
fn hours_are_read_in_order_and_only_the_newest_may_be_torn() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    for name in ["one", "two", "three"] {
        site.put(format!("{name}.csv"), name);
        site.run_once(&[]);
    }
    // Two of the lines were written long ago.
    let lines = site.manifest();
    let of_hour = |name: &str, hour: &str| {
        let line = lines
            .iter()
            .find(|line| line.raw.contains(name))
            .expect("a line");
        let raw = line.raw.replace(
            line.text("ingested_at"),
            &format!("2020-02-29T{hour}:59:59.999999Z"),
        );
        let dir = site.manifests.join("2020/02/29").join(hour);
        fs::create_dir_all(&dir).expect("make");
        fs::write(dir.join("manifest.jsonl"), format!("{raw}\n")).expect("write");
        dir.join("manifest.jsonl")
    };
    let newest = site.line("three.csv");
    let first = of_hour("one.csv", "09");
    of_hour("two.csv", "23");
    fs::write(&newest.manifest, format!("{}\n", newest.raw)).expect("write");
    lose_state(&site);
    assert_eq!(rebuilt(&site, &["--deep"]).0["lines"], 3);
    site.assert_agrees();
    site.put("four.csv", "four");
    site.put("again.csv", "one");
    site.run_once(&[]);
    site.assert_sound();
    assert_eq!(site.line("four.csv").manifest, newest.manifest);

    let whole = fs::read(&first).expect("read");
    for (bytes, expected) in [
        (&whole[..whole.len() - 1], "line 1"),
        (&[&whole[..], b"{\"torn\""].concat()[..], "line 2"),
    ] {
        fs::write(&first, bytes).expect("tear");
        lose_state(&site);
        let refused = rebuild(&site, &[]);
        assert_eq!(code(&refused), Some(74), "{refused}");
        assert!(refused.stderr.contains(expected), "{refused}");
    }
    // The hours change places.
    fs::write(&first, fs::read(&newest.manifest).expect("read")).expect("write");
    let refused = rebuild(&site, &[]);
    assert_eq!(code(&refused), Some(74), "{refused}");
}

#[test]
fn a_source_that_is_gone_from_the_settings_is_kept() {
    let site = recursive();
    let former = site.root.join("former");
    fs::create_dir_all(former.join("sub")).expect("make");
    fs::write(former.join("sub/one.csv"), "one").expect("write");
    let input = former.to_str().expect("UTF-8").to_owned();
    site.run_once(&["--input", &input]);
    fs::write(former.join("again.csv"), "one").expect("write");
    site.run_once(&["--input", &input]);
    site.put("two.csv", "two");
    site.run_once(&[]);
    let found = |path: &Path| {
        let path = path.to_str().expect("UTF-8");
        Finished::of(site.command("find", &[path, "--json"]))
            .ok()
            .stdout
    };
    let paths = [former.join("sub/one.csv"), former.join("again.csv")];
    let before = paths.each_ref().map(|path| found(path));
    lose_state(&site);
    fs::remove_dir_all(&former).expect("remove");
    let (summary, _) = rebuilt(&site, &["--recursive"]);
    assert_eq!(
        (&summary["lines"], &summary["duplicates"]),
        (&2.into(), &1.into())
    );
    assert_eq!(paths.each_ref().map(|path| found(path)), before);
    site.put("resent.csv", "one");
    site.run_once(&[]);
    site.assert_sound();
    assert_eq!(site.duplicates().len(), 2);
}

#[test]
fn a_file_that_is_missing_or_changed_is_history_and_its_content_comes_in_anew() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    for name in ["missing", "longer", "changed", "whole"] {
        site.put(format!("{name}.csv"), name);
    }
    site.run_once(&[]);
    let placed = |name: &str| site.line(&format!("{name}.csv")).placed();
    let changed = placed("changed");
    fs::remove_file(placed("missing")).expect("remove");
    fs::write(placed("longer"), "longer than it was").expect("write");
    fs::write(&changed, "CHANGED").expect("write");
    lose_state(&site);
    let finished = rebuild(&site, &["--json"]);
    let (summary, words) = said(&finished);
    assert_eq!((code(&finished), &summary["damaged"]), (Some(1), &2.into()));
    let mut kinds: Vec<&str> = words
        .iter()
        .filter_map(|word| word["kind"].as_str())
        .collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["file_changed", "file_missing"]);
    // The same length takes a look at the bytes.
    lose_state(&site);
    let finished = rebuild(&site, &["--json", "--deep"]);
    assert_eq!(
        (code(&finished), &said(&finished).0["damaged"]),
        (Some(1), &3.into())
    );
    let verified = site.verify(&["--deep"]);
    assert_eq!(code(&verified), Some(1));
    for name in ["missing.csv", "longer.csv", "changed.csv"] {
        assert!(verified.stdout.contains(name), "{verified}");
    }
    for name in ["missing", "longer", "changed", "whole"] {
        site.put(format!("{name}-again.csv"), name);
    }
    site.run_once(&[]);
    for name in ["missing", "longer", "changed"] {
        let line = site.line(&format!("{name}-again.csv"));
        assert_eq!(sha256_of_file(&line.placed()), sha256(name.as_bytes()));
    }
    assert_eq!(site.duplicates().len(), 1);
    let verified = site.verify(&["--deep"]);
    assert!(verified.stdout.contains("3 mismatches"), "{verified}");
}

#[test]
fn an_orphan_with_content_that_is_recorded_is_set_aside() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    site.put("one.csv", "one");
    site.run_once(&[]);
    let placed = site.line("one.csv").placed();
    fs::copy(&placed, placed.with_file_name("copy.csv")).expect("copy");
    let aside = site.warehouse.join("_duplicates").join(
        placed
            .parent()
            .and_then(Path::file_name)
            .expect("a partition"),
    );
    fs::create_dir_all(&aside).expect("make a directory");
    fs::copy(&placed, aside.join("no-reason.csv")).expect("copy");
    fs::write(aside.join("other.csv"), "nobody knows").expect("write");
    lose_state(&site);
    let (summary, _) = rebuilt(&site, &[]);
    assert_eq!(summary["adopted"], 3);
    site.verify(&["--deep"]).ok();
    site.run_once(&[]);
    site.assert_sound();
    assert_eq!(site.manifest().len(), 1);
    assert_eq!(site.duplicates().len(), 3);
    let reason = |name: &str| -> Value {
        let path = aside.join(format!("{name}.reason.json"));
        serde_json::from_slice(&fs::read(path).expect("a reason")).expect("JSON")
    };
    assert_eq!(reason("copy.csv")["rule"], "duplicate");
    assert_eq!(reason("no-reason.csv")["rule"], "duplicate");
    assert_eq!(reason("other.csv")["rule"], "reason_lost");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    // Nothing at all.
    let refused = rebuild(&site, &[]);
    assert_eq!(code(&refused), Some(78), "{refused}");
    fs::create_dir_all(&site.warehouse).expect("make");
    fs::create_dir_all(&site.manifests).expect("make");
    let refused = rebuild(&site, &[]);
    assert!(refused.stderr.contains("marker"), "{refused}");
    assert_eq!(code(&refused), Some(78));
    site.put("one.csv", "one");
    site.run_once(&[]);
    // A ledger is there.
    let refused = rebuild(&site, &[]);
    assert_eq!(code(&refused), Some(78));
    assert!(refused.stderr.contains("mv "), "{refused}");
    // An instance is at work.
    let running = site.start(&[]);
    let mut running = running;
    running.wait_for_event("started", "");
    assert_eq!(code(&rebuild(&site, &[])), Some(75));
    running.terminate();
    lose_state(&site);
    // A marker is missing, or another's.
    let marker = site.manifests.join(".ringest-ledger");
    let bytes = fs::read(&marker).expect("read");
    fs::remove_file(&marker).expect("remove");
    assert_eq!(code(&rebuild(&site, &[])), Some(78));
    fs::write(
        &marker,
        "{\"format\":1,\"ledger\":\"00000000000000000000000000000000\"}",
    )
    .expect("write");
    let refused = rebuild(&site, &[]);
    assert_eq!(code(&refused), Some(78));
    assert!(
        refused.stderr.contains("belongs to ledger 0000"),
        "{refused}"
    );
    assert_eq!(files_beneath(&site.state), [site.state.join("lock")]);
    fs::write(&marker, bytes).expect("write");
    rebuild(&site, &[]).ok();
    site.run_once(&[]);
    site.assert_sound();
}

#[test]
fn a_rebuild_that_is_killed_leaves_no_ledger_or_a_whole_one() {
    let site = Site::new().with(&["--stability-seconds", "0.1", "--mode", "closed"]);
    for i in 0..400 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    site.run_once(&[]);
    site.put("late.csv", "late");
    stop_at(&site, "placed", &[]);
    let mut random = Random::new();
    lose_state(&site);
    let begun = Instant::now();
    rebuild(&site, &["--deep"]).ok();
    let longest = begun.elapsed().as_micros() as u64 * 5 / 4;
    let (mut killed, mut whole) = (0, 0);
    for _ in 0..30 {
        lose_state(&site);
        let mut running = Running::spawn(rebuild_command(&site, &["--deep"]));
        std::thread::sleep(Duration::from_micros(random.below(longest)));
        match running.has_ended() {
            true => {
                running.finish().ok();
            }
            false => {
                running.send(rustix::process::Signal::KILL);
                running.finish();
                killed += 1;
            }
        }
        match site.state.join("ledger").exists() {
            true => {
                whole += 1;
                assert_eq!(code(&rebuild(&site, &[])), Some(78));
            }
            // Running again works, in the state that the killed one left.
            false => drop(rebuild(&site, &[]).ok()),
        }
        site.verify(&["--deep"]).ok();
    }
    assert!(
        killed > 5,
        "{killed} of 30 were killed, {whole} had made a ledger"
    );
    site.run_once(&[]);
    site.assert_sound();
    assert_eq!(site.manifest().len(), 401);
}

fn back_up(site: &Site, to: &Path) -> Finished {
    Finished::of(site.command("backup", &[to.to_str().expect("UTF-8"), "--json"]))
}

#[test]
fn a_backup_of_a_stopped_one_serves_as_state() {
    let site = recursive();
    a_mix(&site);
    let backup = site.root.join("backup");
    fs::create_dir(&backup).expect("an empty one may be there");
    let (summary, _) = said(&back_up(&site, &backup).ok());
    let last = site.manifest().last().expect("lines").number("seq");
    let records = summary["records"].as_u64().expect("a number");
    // The last arrival may be the one that went to quarantine.
    assert!(records >= last);
    assert_eq!(summary["next_seq"], records + 1);
    assert!(summary["bytes"].as_u64() > Some(10_000));
    let beside: Vec<_> = fs::read_dir(&site.root)
        .expect("list")
        .map(|entry| entry.expect("list").file_name())
        .filter(|name| name.to_string_lossy().contains("ringest-backup"))
        .collect();
    assert!(beside.is_empty(), "{beside:?}");
    lose_state(&site);
    fs::rename(&backup, &site.state).expect("restore");
    site.assert_agrees();
    site.put("resent.csv", "sub a");
    site.put("new.csv", "new");
    site.run_once(&[]);
    site.assert_sound();
    assert_eq!(site.line("new.csv").number("size"), 3);
}

#[test]
fn a_backup_is_refused_where_it_would_be_in_the_way() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    site.put("one.csv", "one");
    site.run_once(&[]);
    let full = site.root.join("full");
    fs::create_dir(&full).expect("make");
    fs::write(full.join("mine"), "mine").expect("write");
    let file = full.join("mine");
    let linked = site.root.join("linked");
    std::os::unix::fs::symlink(&site.warehouse, &linked).expect("link");
    for to in [
        full.clone(),
        file,
        linked.join("b"),
        site.warehouse.join("b"),
        site.manifests.join("x/b"),
        site.state.clone(),
        site.state.join("b"),
        site.staging.join("b"),
        PathBuf::from("/"),
    ] {
        let refused = back_up(&site, &to);
        assert_eq!(code(&refused), Some(78), "{to:?}: {refused}");
    }
    assert_eq!(fs::read(full.join("mine")).expect("read"), b"mine");
    assert!(!site.warehouse.join("b").exists() && !site.staging.join("b").exists());
    // Nothing to back up.
    lose_state(&site);
    assert_eq!(code(&back_up(&site, &site.root.join("none"))), Some(78));
}

#[test]
fn a_backup_that_was_killed_is_not_in_the_way_of_the_next() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    site.put("one.csv", "one");
    site.run_once(&[]);
    let left = site.root.join("b.ringest-backup/ledger");
    fs::create_dir_all(&left).expect("make");
    fs::write(left.join("data.mdb"), "half").expect("write");
    back_up(&site, &site.root.join("b")).ok();
    lose_state(&site);
    fs::rename(site.root.join("b"), &site.state).expect("restore");
    site.assert_agrees();
}

#[test]
fn backups_while_files_pour_in_are_each_of_one_moment() {
    let site = Site::new().with(QUICK);
    let mut running = site.start(&[]);
    running.wait_for_event("started", "");
    for round in 0..8 {
        for i in 0..150 {
            site.put(format!("{round}-{i}.csv.tmp"), format!("{round} {i}"));
            let from = site.staging.join(format!("{round}-{i}.csv.tmp"));
            fs::rename(from, site.staging.join(format!("{round}-{i}.csv"))).expect("rename");
        }
        let backup = site.root.join(format!("backup-{round}"));
        let (summary, _) = said(&back_up(&site, &backup).ok());
        let mut verify = site.ringest(false);
        verify.arg("verify").arg("--state-path").arg(&backup);
        verify.arg("--warehouse").arg(&site.warehouse);
        verify.arg("--manifests").arg(&site.manifests);
        let verified = Finished::of(verify);
        // What came since is unknown to it; what it knows is there.
        for word in ["missing", "neither", "totals", "content", "SHA-256"] {
            assert!(!verified.stdout.contains(word), "{verified}");
        }
        let records = summary["records"].as_u64().expect("a number");
        assert!(
            verified
                .stdout
                .contains(&format!("verified: {records} records")),
            "{verified}"
        );
    }
    site.wait_for_lines(&mut running, 8 * 150);
    let last = site.root.join("backup-last");
    back_up(&site, &last).ok();
    running.kill();
    // The last one is as new as everything else, and a running one's.
    lose_state(&site);
    fs::rename(&last, &site.state).expect("restore");
    site.run_once(&[]);
    site.assert_sound();
    assert_eq!(site.manifest().len(), 8 * 150);

    // An older one is refused, and says what helps.
    for older in ["backup-0", "backup-6"] {
        lose_state(&site);
        fs::rename(site.root.join(older), &site.state).expect("restore");
        let refused = site.try_once(&[]);
        assert_eq!(code(&refused), Some(74), "{refused}");
        assert!(refused.stderr.contains("ringest rebuild"), "{refused}");
    }
    let moved = site.state.join("ledger.old");
    fs::rename(site.state.join("ledger"), moved).expect("move away");
    rebuild(&site, QUICK).ok();
    site.run_once(&[]);
    site.assert_sound();
    assert_eq!(site.manifest().len(), 8 * 150);
}

#[test]
fn a_backup_from_before_the_hour_or_before_anything_is_refused_too() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    site.run_once(&[]);
    let before_anything = site.root.join("nothing");
    back_up(&site, &before_anything).ok();
    site.put("one.csv", "one");
    site.run_once(&[]);
    let before_the_hour = site.root.join("hour");
    back_up(&site, &before_the_hour).ok();
    // The next hour's manifest, as it will be.
    let later = site.manifests.join("2999/12/31/23");
    fs::create_dir_all(&later).expect("make");
    fs::write(later.join("manifest.jsonl"), "").expect("write");
    lose_state(&site);
    fs::rename(&before_the_hour, &site.state).expect("restore");
    // An empty one was made ready and never used.
    site.run_once(&[]);
    fs::write(later.join("manifest.jsonl"), "{}\n").expect("write");
    let refused = site.try_once(&[]);
    assert_eq!(code(&refused), Some(74), "{refused}");
    assert!(refused.stderr.contains("2999/12/31/23"), "{refused}");
    fs::remove_file(later.join("manifest.jsonl")).expect("remove");
    lose_state(&site);
    fs::rename(&before_anything, &site.state).expect("restore");
    let refused = site.try_once(&[]);
    assert_eq!(code(&refused), Some(74), "{refused}");
    assert!(refused.stderr.contains("ringest rebuild"), "{refused}");
}
