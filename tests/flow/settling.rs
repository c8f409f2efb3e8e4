//! Which files are finished, and when.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::{Site, files_beneath, sha256, wait_until};

#[test]
fn a_file_that_is_appended_to_waits_until_it_is_whole() {
    let site = Site::new().with(&["--stability-seconds", "1"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    // On a machine so busy that this writer itself pauses for too long, the file rightly counts as finished: then
    // another one shows what was to be shown.
    for attempt in 0.. {
        assert!(
            attempt < 10,
            "this machine is too busy to append to a file once a second"
        );
        let path = site.staging.join(format!("slow-{attempt}.csv"));
        let mut whole = Vec::new();
        let mut longest_pause = Duration::ZERO;
        let mut last = Instant::now();
        for row in 0..30 {
            let text = format!("{attempt},{row},some text\n");
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .expect("open to append");
            file.write_all(text.as_bytes()).expect("append");
            whole.extend_from_slice(text.as_bytes());
            longest_pause = longest_pause.max(last.elapsed());
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(100));
        }
        if longest_pause < Duration::from_millis(900) {
            let line = site.wait_for_line(&mut watching, &format!("slow-{attempt}.csv"));
            assert_eq!(
                line.sha256(),
                sha256(&whole),
                "taken before it was whole: {}",
                line.raw
            );
            break;
        }
    }
    watching.terminate();
    site.assert_sound();
}

#[test]
fn a_file_that_is_held_open_for_writing_waits_for_its_writer() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let mut held = File::create(site.staging.join("held.csv")).expect("create");
    held.write_all(b"first half, ").expect("write");
    let mut watching = site.start(&[]);
    watching.wait_for_event("file_waiting", "held.csv");
    assert_eq!(site.manifest_so_far().len(), 0);
    held.write_all(b"second half").expect("write");
    drop(held);
    let line = site.wait_for_line(&mut watching, "held.csv");
    assert_eq!(line.sha256(), sha256(b"first half, second half"));
    watching.terminate();
    site.assert_sound();
}

#[test]
fn once_leaves_a_file_that_is_held_open_and_says_so() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let mut held = File::create(site.staging.join("held.csv")).expect("create");
    held.write_all(b"not yet").expect("write");
    site.put("free.csv", "free");
    let ended = site.run_once(&[]);
    assert!(!ended.events_about("held.csv").is_empty(), "{ended}");
    assert_eq!(site.manifest().len(), 1);
    drop(held);
    site.run_once(&[]);
    assert_eq!(site.line("held.csv").sha256(), sha256(b"not yet"));
    site.assert_sound();
}

#[test]
fn unfinished_names_are_ignored_and_the_final_name_is_ingested_once() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    let unfinished = [
        "a.csv.tmp",
        "b.csv.part",
        "c.partial",
        "d.csv.filepart",
        "e.csv~",
        "f.crdownload",
        ".g.csv",
    ];
    for name in unfinished {
        site.put(name, format!("the content of {name}"));
    }
    // Files that came later have settled; the others had more time, and are still there.
    site.put("later.csv", "later");
    site.wait_for_line(&mut watching, "later.csv");
    site.put("much later.csv", "much later");
    site.wait_for_line(&mut watching, "much later.csv");
    assert_eq!(site.manifest_so_far().len(), 2);
    for name in unfinished {
        assert!(site.staging.join(name).exists(), "{name} was taken");
    }

    for (i, name) in unfinished.iter().enumerate() {
        fs::rename(
            site.staging.join(name),
            site.staging.join(format!("final-{i}.csv")),
        )
        .expect("rename");
    }
    for (i, name) in unfinished.iter().enumerate() {
        let line = site.wait_for_line(&mut watching, &format!("final-{i}.csv"));
        assert_eq!(
            line.sha256(),
            sha256(format!("the content of {name}").as_bytes())
        );
    }
    watching.terminate();
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 2 + unfinished.len());
    site.assert_sound();
}

#[test]
fn a_sidecar_finishes_a_file_and_goes_with_it() {
    let site = Site::new().with(&["--mode", "sidecar"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    site.put("empty sidecar.csv", "one");
    site.put("bare digest.csv", "two");
    site.put("sum form.csv", "three");
    site.put("unmarked.csv", "four");
    site.put("empty sidecar.csv.ok", "");
    site.put("bare digest.csv.ok", sha256(b"two"));
    site.put(
        "sum form.csv.ok",
        format!("{}  sum form.csv\n", sha256(b"three")),
    );
    for (name, content) in [
        ("empty sidecar.csv", "one"),
        ("bare digest.csv", "two"),
        ("sum form.csv", "three"),
    ] {
        let line = site.wait_for_line(&mut watching, name);
        assert_eq!(line.sha256(), sha256(content.as_bytes()));
    }
    wait_until("only the unmarked file is left", || {
        files_beneath(&site.staging) == [site.staging.join("unmarked.csv")]
    });
    site.put("unmarked.csv.ok", "");
    site.wait_for_line(&mut watching, "unmarked.csv");
    watching.terminate();
    assert_eq!(site.manifest().len(), 4);
    site.assert_sound();
}

#[test]
fn a_file_whose_sidecar_names_another_digest_is_quarantined() {
    let site = Site::new().with(&["--mode", "sidecar"]);
    site.put("bad.csv", "what arrived");
    site.put("bad.csv.ok", sha256(b"what was sent"));
    site.put("good.csv", "good");
    site.put("good.csv.ok", "");
    let ended = site.run_once(&[]);
    ended.event("file_quarantined", "bad.csv");
    assert_eq!(site.manifest().len(), 1);
    assert_eq!(site.line("good.csv").sha256(), sha256(b"good"));

    let quarantined = site.quarantined();
    assert_eq!(quarantined.len(), 1, "{quarantined:?}");
    assert_eq!(fs::read(&quarantined[0]).expect("read"), b"what arrived");
    let reason = format!("{}.reason.json", quarantined[0].display());
    let reason: Value =
        serde_json::from_slice(&fs::read(reason).expect("a reason beside it")).expect("JSON");
    assert!(reason.is_object(), "{reason}");
    assert!(!site.staging.join("bad.csv").exists());
    site.assert_agrees();
}

#[test]
fn once_leaves_a_file_without_a_sidecar_and_reports_a_sidecar_without_a_file() {
    let site = Site::new().with(&["--mode", "sidecar"]);
    site.put("waits.csv", "waits");
    site.put("lonely.csv.ok", "");
    let ended = site.run_once(&[]);
    assert!(
        !ended.events_about("waits.csv").is_empty(),
        "the file without a sidecar is not listed: {ended}"
    );
    assert!(
        !ended.events_about("lonely.csv.ok").is_empty(),
        "the sidecar without its file is not reported: {ended}"
    );
    assert_eq!(site.manifest().len(), 0);
    assert!(site.staging.join("waits.csv").exists());
}

#[test]
fn a_sidecar_may_have_another_suffix() {
    let site = Site::new().with(&["--mode", "sidecar", "--sidecar-suffix", ".done"]);
    site.put("a.csv", "a");
    site.put("a.csv.done", "");
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 1);
    site.assert_sound();
}

#[test]
fn closed_mode_takes_a_file_when_its_writer_closes_it() {
    // So long that nothing in this test can settle by standing still.
    let site = Site::new().with(&["--mode", "closed", "--stability-seconds", "600"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");

    let mut open = File::create(site.staging.join("open.csv")).expect("create");
    open.write_all(b"half").expect("write");
    site.put("closed.csv", "closed");
    site.wait_for_line(&mut watching, "closed.csv");
    assert_eq!(
        site.lines_of("open.csv").len(),
        0,
        "taken while it was open"
    );
    open.write_all(b", whole").expect("write");
    drop(open);
    assert_eq!(
        site.wait_for_line(&mut watching, "open.csv").sha256(),
        sha256(b"half, whole")
    );

    let unfinished = site.put("renamed.csv.tmp", "renamed");
    fs::rename(unfinished, site.staging.join("renamed.csv")).expect("rename");
    site.wait_for_line(&mut watching, "renamed.csv");

    watching.terminate();
    assert_eq!(site.manifest().len(), 3);
    site.assert_sound();
}

#[test]
fn closed_mode_takes_a_closed_file_without_leases_too() {
    let site = Site::new().with(&["--mode", "closed", "--lease", "off"]);
    // Longer than this test waits for anything: only the close can have settled it.
    let site = site.with(&["--stability-seconds", "60", "--rescan-seconds", "1"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    let began = Instant::now();
    for i in 0..5 {
        let name = format!("closed-{i}.csv");
        let content = format!("closed {i}");
        site.put(&name, &content);
        let line = site.wait_for_line(&mut watching, &name);
        assert_eq!(line.sha256(), sha256(content.as_bytes()));
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(50), "settled by time: {took:?}");
    watching.terminate();
    assert_eq!(site.manifest().len(), 5);
    site.assert_sound();
}

#[test]
fn what_is_closed_once_it_has_started_is_heard_before_the_first_scan_gets_there() {
    // So long that nothing in this test can settle by standing still; and what a scan finds gets no lease.
    let waits = ["--stability-seconds", "600", "--rescan-seconds", "600"];
    let site = Site::new().with(&["--mode", "closed", "--lease", "off"]);
    let site = site.with(&waits);
    for i in 0..10_000 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    let second = site.root.join("second");
    fs::create_dir(&second).expect("make an input");
    let [first, last] = [&site.staging, &second].map(|input| input.to_str().expect("UTF-8"));
    let mut watching = site.start(&["--input", first, "--input", last]);
    watching.wait_for_event("started", "");
    fs::write(second.join("closed.csv"), "closed").expect("write");
    site.wait_for_line(&mut watching, "closed.csv");
    watching.terminate();
    assert_eq!(site.manifest().len(), 1);
    site.assert_agrees();
}

#[test]
fn a_sidecar_that_is_still_being_written_is_waited_for() {
    let site = Site::new().with(&["--mode", "sidecar", "--rescan-seconds", "1"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    site.put("summed.csv", "summed");
    // As `sha256sum summed.csv > summed.csv.ok` does with a large file.
    let mut sidecar = File::create(site.staging.join("summed.csv.ok")).expect("create");
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(site.manifest_so_far().len(), 0, "its sidecar was empty");
    sidecar
        .write_all(sha256(b"something else").as_bytes())
        .expect("write");
    drop(sidecar);
    watching.wait_for_event("file_quarantined", "summed.csv");
    watching.terminate();
    assert_eq!(site.manifest().len(), 0);
    assert_eq!(site.quarantined().len(), 1);
    site.assert_agrees();
}

#[test]
fn a_rename_by_link_and_unlink_is_seen_in_closed_mode() {
    let site = Site::new().with(&[
        "--mode",
        "closed",
        "--stability-seconds",
        "600",
        "--rescan-seconds",
        "1",
    ]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    let unfinished = site.put("linked.csv.part", "linked");
    fs::hard_link(&unfinished, site.staging.join("linked.csv")).expect("link");
    fs::remove_file(&unfinished).expect("unlink");
    assert_eq!(
        site.wait_for_line(&mut watching, "linked.csv").sha256(),
        sha256(b"linked")
    );
    watching.terminate();
    site.assert_sound();
}

#[test]
fn a_second_link_is_waited_for_and_not_a_verdict() {
    let site = Site::new().with(&["--stability-seconds", "0.2", "--rescan-seconds", "1"]);
    let path = site.put("two names.csv", "two names");
    let elsewhere = site.root.join("the other name");
    fs::hard_link(&path, &elsewhere).expect("link");
    let mut watching = site.start(&[]);
    watching.wait_for_event("file_waiting", "two names.csv");
    site.put("one name.csv", "one name");
    site.wait_for_line(&mut watching, "one name.csv");
    assert_eq!(site.manifest_so_far().len(), 1);
    fs::remove_file(&elsewhere).expect("unlink");
    site.wait_for_line(&mut watching, "two names.csv");
    watching.terminate();
    let placed = site.line("two names.csv").placed();
    assert_eq!(fs::metadata(placed).expect("placed").nlink(), 1);
    site.assert_sound();
}

#[test]
fn empty_files_are_ingested_by_name() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("empty.csv", "");
    site.put("empty too.csv", "");
    site.run_once(&[]);
    assert_eq!(site.line("empty.csv").number("size"), 0);
    assert_eq!(site.line("empty too.csv").sha256(), sha256(b""));
    site.assert_sound();
    // The same name again is the same file again.
    site.put("empty.csv", "");
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 2);
    site.assert_sound();
}

#[test]
fn empty_files_settle_in_closed_mode_too() {
    let site = Site::new().with(&["--mode", "closed", "--stability-seconds", "0.2"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    site.put("empty.csv", "");
    site.wait_for_line(&mut watching, "empty.csv");
    watching.terminate();
    site.assert_sound();
}

#[test]
fn empty_files_can_be_held_or_skipped() {
    for policy in ["hold", "skip"] {
        let site = Site::new().with(&["--stability-seconds", "0.2", "--empty", policy]);
        let path = site.put("empty.csv", "");
        site.put("full.csv", "full");
        let ended = site.run_once(&[]);
        assert_eq!(site.manifest().len(), 1, "--empty {policy}: {ended}");
        assert!(path.exists(), "--empty {policy}: {ended}");
        assert!(
            !ended.events_about("/empty.csv").is_empty(),
            "--empty {policy}: nothing said: {ended}"
        );
        site.assert_agrees();
        // What is written into it later is ingested.
        fs::write(&path, "no longer empty").expect("write");
        site.run_once(&[]);
        assert_eq!(
            site.line("empty.csv").sha256(),
            sha256(b"no longer empty"),
            "--empty {policy}"
        );
        site.assert_sound();
    }
}

#[test]
fn globs_choose_what_is_taken() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let site = site.with(&[
        "--include",
        "*.csv",
        "--include",
        "*.json",
        "--exclude",
        "secret*",
    ]);
    for name in ["a.csv", "b.json", "c.txt", "secret.csv"] {
        site.put(name, name);
    }
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 2);
    assert_eq!(site.line("a.csv").sha256(), sha256(b"a.csv"));
    assert_eq!(site.line("b.json").sha256(), sha256(b"b.json"));
    assert_eq!(
        files_beneath(&site.staging),
        [site.staging.join("c.txt"), site.staging.join("secret.csv")]
    );
    site.assert_agrees();
}

/// The watches that a process has.
fn watches(process: u32) -> usize {
    let described = fs::read_dir(format!("/proc/{process}/fdinfo")).expect("list descriptors");
    let of_one = |entry: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(entry.expect("an entry").path()).unwrap_or_default();
        let watches = text.lines().filter(|line| line.starts_with("inotify wd:"));
        watches.count()
    };
    described.map(of_one).sum()
}

#[test]
fn directories_that_are_moved_are_watched_where_they_are_and_nowhere_else() {
    let site = Site::new().with(&[
        "--recursive",
        "--mode",
        "closed",
        "--stability-seconds",
        "0.1",
    ]);
    fs::create_dir_all(site.staging.join("job/below")).expect("make directories");
    let mut running = site.start(&[]);
    wait_until("all are watched", || watches(running.id()) == 3);
    fs::rename(site.staging.join("job"), site.root.join("elsewhere")).expect("move it away");
    wait_until("it is not watched any more", || watches(running.id()) == 1);
    fs::create_dir_all(site.staging.join("job/below")).expect("make directories");
    wait_until("the new one is watched", || watches(running.id()) == 3);
    fs::rename(site.staging.join("job"), site.staging.join("other")).expect("move it");
    site.put("other/below/a.csv", "a");
    site.wait_for_line(&mut running, "a.csv");
    wait_until("it is watched there", || watches(running.id()) == 3);
    running.terminate();
    site.assert_sound();
}
