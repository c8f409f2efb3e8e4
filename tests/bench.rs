//! `ringest bench`, and the interval logs that it and `run` write. Nothing here says how fast anything is.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use support::{
    Finished, RunArgs, Running, Site, files_beneath, has_program, output, skip, wait_until,
};

const STAGES: [&str; 6] = ["settle", "queue", "read", "place", "commit", "total"];

/// `ringest bench` beneath the site's directory.
fn bench(site: &Site, args: RunArgs) -> Command {
    let mut command = site.ringest(false);
    command
        .arg("bench")
        .arg("--dir")
        .arg(ground(site))
        .args(args);
    command
}

/// Where the benches of a site are.
fn ground(site: &Site) -> PathBuf {
    let ground = site.root.join("ground");
    fs::create_dir_all(&ground).expect("make a directory");
    ground
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("list {directory:?}: {e}"));
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    entries
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect()
}

/// Its figures. Everything that holds of all of them is looked at here.
fn measured(site: &Site, args: RunArgs) -> Value {
    let mut command = bench(site, args);
    command.arg("--json");
    let finished = Finished::of(command).ok();
    assert_eq!(finished.stderr, "", "a bar where nobody looks");
    let figures: Value = serde_json::from_str(&finished.stdout).expect("one JSON object");
    let number = |pointer: &str| number(&figures, pointer);

    assert_eq!(
        number("/files_ingested") + number("/duplicates_found"),
        number("/files")
    );
    let seconds = number("/elapsed_seconds");
    let rate = number("/files") / seconds;
    assert!(
        (number("/files_per_second") / rate - 1.0).abs() < 0.01,
        "{figures}"
    );
    let rate = number("/files") * number("/file_bytes") / seconds;
    assert!(
        (number("/bytes_per_second") / rate - 1.0).abs() < 0.01,
        "{figures}"
    );
    for stage in STAGES {
        in_order(&figures["latency_ms"][stage]);
        let (measured, files) = (
            number(&format!("/latency_ms/{stage}/count")),
            number("/files"),
        );
        // A file whose writer had not quite let go of it is settled and read again.
        let again = ["settle", "queue", "read"].contains(&stage) && measured > files;
        assert!(measured == files || again, "{stage}: {measured} of {files}");
    }
    let shares = figures["stage_share_percent"].as_object().expect("shares");
    let sum: f64 = shares.values().filter_map(Value::as_f64).sum();
    assert!(
        (99.0..101.0).contains(&sum),
        "the shares make {sum} %: {shares:?}"
    );
    assert!(number("/startup_seconds") > 0.0);
    // Less than a tick is none.
    assert!(number("/cpu_user_seconds") >= 0.0 && number("/cpu_system_seconds") >= 0.0);
    assert!(number("/rss_peak_bytes") > 1e6);
    assert_eq!(number("/log_dropped"), 0.0);
    figures
}

fn number(figures: &Value, pointer: &str) -> f64 {
    let found = figures.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number {pointer} in {figures}"))
}

fn in_order(latency: &Value) {
    let names = ["p50", "p90", "p99", "p99_9", "max"];
    let numbers = names.map(|name| number(latency, &format!("/{name}")));
    assert!(numbers.is_sorted() && numbers[0] > 0.0, "{latency}");
}

// ---- Everything there beforehand

#[test]
fn what_a_bench_says_adds_up_and_nothing_is_left_behind() {
    let site = Site::new();
    for (args, dirty, cold) in [
        (&[][..], false, false),
        (&["--warm", "--same-fs"][..], false, false),
        (&["--dirty"][..], true, false),
        (&["--cold"][..], false, true),
    ] {
        let wanted = [
            &["--files", "100", "--size", "1KiB", "--duplicates", "10"],
            args,
        ]
        .concat();
        let figures = measured(&site, &wanted);
        assert_eq!(number(&figures, "/files"), 100.0);
        assert_eq!(number(&figures, "/file_bytes"), 1024.0);
        assert_eq!(number(&figures, "/duplicates_made"), 10.0);
        assert_eq!(number(&figures, "/duplicates_found"), 10.0);
        assert_eq!(figures["dirty"], dirty);
        assert_eq!(figures["cold"], cold);
        assert_eq!(figures["cross_fs"], false);
        assert_eq!(figures["pace"], Value::Null);
        assert!(number(&figures, "/startup_seconds") < number(&figures, "/elapsed_seconds"));
        let left = names_in(&ground(&site));
        assert!(left.is_empty(), "{args:?} left {left:?}");
    }
}

#[test]
fn what_is_kept_is_a_warehouse_that_verify_finds_whole() {
    let site = Site::new();
    let figures = measured(
        &site,
        &[
            "--files",
            "20",
            "--size",
            "1200000",
            "--duplicates",
            "20",
            "--keep",
        ],
    );
    let root = PathBuf::from(figures["directory"].as_str().expect("a directory"));
    assert!(root.starts_with(ground(&site)));
    let kept = Site::at(
        &root,
        ["staging", "warehouse", "manifests", "state"].map(|name| root.join(name)),
    );
    Finished::of(kept.command("verify", &["--deep"])).ok();
    assert_eq!(kept.manifest().len(), 16);
    assert_eq!(kept.duplicates().len(), 4);
    assert!(files_beneath(&kept.staging).is_empty());
    let sizes = kept
        .manifest()
        .iter()
        .all(|line| line.number("size") == 1_200_000);
    assert!(sizes);
}

#[test]
fn across_filesystems_both_directories_go() {
    let Some(other) = Site::across_filesystems() else {
        return;
    };
    let site = Site::new();
    let there = other.warehouse.parent().expect("on the other filesystem");
    let there_arg = there.to_str().expect("UTF-8");
    let args = ["--files", "100", "--cross-fs", there_arg];
    let figures = measured(&site, &args);
    assert_eq!(figures["cross_fs"], true);
    assert!(names_in(&ground(&site)).is_empty() && names_in(there).is_empty());

    // Where nothing is said, one of the usual places is taken.
    let mut command = bench(&site, &["--files", "10", "--cross-fs"]);
    command.env("TMPDIR", there);
    let text = Finished::of(command).ok().stdout;
    let named = format!("to another filesystem in {}", there.display());
    assert!(text.contains(&named), "{text}");
    assert!(names_in(&ground(&site)).is_empty() && names_in(there).is_empty());

    let figures = measured(&site, &[&args[..], &["--keep"]].concat());
    let warehouse = figures["warehouse"].as_str().expect("a warehouse");
    assert!(Path::new(warehouse).starts_with(there));
    assert_eq!(
        files_beneath(Path::new(warehouse)).len(),
        101,
        "the files and the marker"
    );
}

#[test]
fn settings_of_run_reach_the_ingestion() {
    let site = Site::new();
    let args = [
        "--files",
        "50",
        "--duplicates",
        "50",
        "--keep",
        "--dedupe",
        "off",
    ];
    let mut command = bench(&site, &args);
    command.args(["--durability", "none", "--io", "sync", "--json"]);
    // The environment, too, but never its directories.
    command
        .env("RINGEST_CONCURRENCY", "3")
        .env("RINGEST_INPUT", "/nowhere");
    let finished = Finished::of(command).ok();
    let figures: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(number(&figures, "/duplicates_made"), 25.0);
    assert_eq!(number(&figures, "/duplicates_found"), 0.0);
    assert_eq!(number(&figures, "/files_ingested"), 50.0);
}

#[test]
fn the_table_for_people_has_every_figure() {
    let site = Site::new();
    let finished = Finished::of(bench(&site, &["--files", "100", "--duplicates", "3"])).ok();
    let text = &finished.stdout;
    for part in [
        "100 files of 4,096 bytes, synced beforehand",
        "97 ingested, 3 duplicates",
        "files/s",
        "MB/s",
        "s user",
        "MiB at most",
        "p99.9",
        "waiting",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    for stage in STAGES {
        assert!(
            text.lines().any(|line| line.starts_with(stage)),
            "{stage} is not in {text}"
        );
    }
}

// ---- On a schedule

#[test]
fn a_paced_bench_measures_every_file_from_its_scheduled_time() {
    let site = Site::new();
    for (args, dirty) in [(&[][..], false), (&["--dirty"][..], true)] {
        let wanted = [
            &["--rate", "50", "--seconds", "2", "--duplicates", "10"],
            args,
        ]
        .concat();
        let figures = measured(&site, &wanted);
        assert_eq!(number(&figures, "/files"), 100.0);
        assert_eq!(number(&figures, "/duplicates_found"), 10.0);
        assert_eq!(figures["dirty"], dirty);
        let scheduled = &figures["latency_ms"]["scheduled"];
        in_order(scheduled);
        assert_eq!(number(scheduled, "/count"), 100.0);
        // No file can be durable before its time comes: nothing is faster than its schedule.
        assert!(number(&figures, "/elapsed_seconds") >= 2.0);
        assert!(number(&figures, "/files_per_second") <= 50.0);
        let pace = &figures["pace"];
        assert_eq!(number(pace, "/rate_files_per_second"), 50.0);
        assert_eq!(number(pace, "/scheduled_seconds"), 2.0);
        assert_eq!(number(pace, "/unmeasured_files"), 0.0);
        assert!(number(pace, "/backlog_files_max") >= 1.0);
        assert!(names_in(&ground(&site)).is_empty());
    }
    // As many as are asked for.
    let figures = measured(&site, &["--rate", "100", "--files", "30"]);
    assert_eq!(number(&figures, "/files"), 30.0);
    assert_eq!(number(&figures, "/pace/scheduled_seconds"), 0.3);
}

#[test]
fn files_that_must_hold_still_for_longer_than_they_come_apart_have_a_backlog() {
    let site = Site::new();
    let figures = measured(
        &site,
        &[
            "--rate",
            "100",
            "--seconds",
            "1",
            "--mode",
            "stability",
            "--stability-seconds",
            "0.5",
        ],
    );
    // 50 files are due before the first one can be done.
    assert!(
        number(&figures, "/pace/backlog_files_max") >= 50.0,
        "{figures}"
    );
    assert!(
        number(&figures, "/latency_ms/scheduled/p50") >= 499.0,
        "{figures}"
    );
    assert!(number(&figures, "/pace/drain_ms") >= 499.0, "{figures}");
}

#[test]
fn an_interrupted_bench_says_so_and_leaves_nothing() {
    let site = Site::new();
    let running = Running::spawn(bench(
        &site,
        &["--rate", "10", "--seconds", "3600", "--dirty"],
    ));
    let placed = || {
        let files = files_beneath(&ground(&site));
        files.iter().any(|file| file.ends_with("manifest.jsonl"))
    };
    wait_until("a file is ingested", placed);
    running.send(Signal::INT);
    let finished = running.finish().with_code(130);
    assert!(finished.stderr.contains("interrupted"), "{finished}");
    assert!(finished.stderr.contains("removing"), "{finished}");
    assert_eq!(finished.stdout, "");
    assert!(names_in(&ground(&site)).is_empty());
}

#[test]
fn the_ingestion_of_a_killed_bench_ends_with_it() {
    let site = Site::new();
    let args = ["--rate", "10", "--seconds", "3600", "--dirty"];
    let running = Running::spawn(bench(&site, &args));
    let placed = || {
        let files = files_beneath(&ground(&site));
        files.iter().any(|file| file.ends_with("manifest.jsonl"))
    };
    wait_until("a file is ingested", placed);
    let root = ground(&site).join(&names_in(&ground(&site))[0]);
    let is_locked = || {
        let state = fs::File::open(root.join("state/lock")).expect("open");
        let taken = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&state, taken).is_err()
    };
    assert!(is_locked(), "nothing is ingested");
    running.kill();
    wait_until("the ingestion has ended", || !is_locked());
}

#[test]
fn files_that_cannot_be_delivered_end_a_paced_bench_at_once() {
    let site = Site::new();
    let args = ["--rate", "20", "--seconds", "3600", "--dirty", "--keep"];
    let running = Running::spawn(bench(&site, &args));
    let placed = || {
        let files = files_beneath(&ground(&site));
        files.iter().any(|file| file.ends_with("manifest.jsonl"))
    };
    wait_until("a file is ingested", placed);
    let root = ground(&site).join(&names_in(&ground(&site))[0]);
    // Whichever comes next finds its name taken.
    for number in (0..2000).rev() {
        let _ = fs::create_dir(root.join(format!("staging/{number:09}.dat")));
    }
    let finished = running.finish().with_code(74);
    assert!(finished.stderr.contains("deliver the files"), "{finished}");
    let kept = format!("kept {}", root.display());
    assert!(finished.stderr.contains(&kept), "{finished}");
}

// ---- What cannot be measured

#[test]
fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let site = Site::new();
    let here = ground(&site);
    let here = here.to_str().expect("UTF-8");
    let notes = site.root.join("notes.txt");
    fs::write(&notes, "mine").expect("write");
    let notes = notes.to_str().expect("UTF-8");
    for (args, code, named) in [
        (&["--cold", "--dirty"][..], 2, "--dirty"),
        (
            &["--rate", "5", "--seconds", "5", "--files", "5"][..],
            2,
            "--files",
        ),
        (&["--seconds", "5"][..], 2, "--rate"),
        (&["--size", "7"][..], 2, "8 bytes at least"),
        (&["--warehouse", "w"][..], 2, "--warehouse"),
        (&["--mode", "sidecar"][..], 78, "sidecars"),
        (&["--cross-fs", here][..], 78, "another filesystem"),
        (&["--hlog", notes][..], 78, notes),
        (&["--cross-fs", "/no/such/place"][..], 74, "/no/such/place"),
        (&["--concurrency", "0"][..], 2, "--concurrency"),
    ] {
        let finished = Finished::of(bench(&site, args))
            .with_code(code)
            .naming(named);
        assert_eq!(finished.stdout, "", "{args:?}");
        assert!(names_in(&ground(&site)).is_empty(), "{args:?}");
    }
    assert_eq!(fs::read_to_string(notes).expect("read"), "mine");
}

#[test]
fn nothing_is_cold_in_memory() {
    let Some(other) = Site::across_filesystems() else {
        return;
    };
    let there = other.warehouse.parent().expect("on tmpfs");
    let mut command = other.ringest(false);
    command.arg("bench").arg("--cold").arg("--dir").arg(there);
    Finished::of(command).with_code(78).naming("--cold");
    assert!(names_in(there).is_empty());
}

#[test]
fn files_that_are_not_taken_are_no_measurement() {
    let site = Site::new();
    let args = ["--files", "20", "--exclude", "*.dat"];
    let finished = Finished::of(bench(&site, &args)).with_code(1);
    assert!(
        finished.stderr.contains("20 files were made, 0 ingested"),
        "{finished}"
    );
    assert_eq!(finished.stdout, "");
    assert!(names_in(&ground(&site)).is_empty());
}

#[test]
fn a_data_set_that_does_not_fit_is_refused_before_it_is_made() {
    let site = Site::new();
    for (args, named) in [
        (
            &["--files", "1000000", "--size", "1TiB"][..],
            "bytes are needed",
        ),
        (
            &["--files", "1", "--min-free-bytes", "100000TiB"][..],
            "bytes are needed",
        ),
        (
            &["--rate", "1000000", "--seconds", "86400"][..],
            "the schedule makes",
        ),
    ] {
        let finished = Finished::of(bench(&site, args)).with_code(78).naming(named);
        assert_eq!(finished.stdout, "", "{args:?}");
        assert!(names_in(&ground(&site)).is_empty(), "{args:?}");
    }
}

// ---- For those who look on

#[test]
fn what_the_ingestion_warned_of_is_told() {
    let site = Site::new();
    let with = |more: RunArgs| {
        let mut command = bench(&site, &["--files", "10"]);
        command.args(more).env("RINGEST_CONCURENCY", "3");
        Finished::of(command).ok()
    };
    let figures: Value = serde_json::from_str(&with(&["--json"]).stdout).expect("JSON");
    let notices = figures["notices"].as_array().expect("notices");
    let told = |it: &Value| it.as_str().is_some_and(|it| it.contains("CONCURENCY"));
    assert!(notices.iter().any(told), "{figures}");
    let text = with(&[]).stdout;
    assert!(
        text.contains("it said: ") && text.contains("CONCURENCY"),
        "{text}"
    );
}

#[test]
fn figures_that_cannot_be_printed_are_a_failure() {
    let site = Site::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = bench(&site, &["--files", "10"]);
    command.stdout(full.expect("open"));
    let done = command.output().expect("run");
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(74), "{said}");
    assert!(said.contains("cannot print to stdout"), "{said}");
}

#[test]
fn a_terminal_shows_a_bar() {
    // Of util-linux: gives the program a terminal.
    if !has_program("script", "--version") {
        return skip("needs script(1)");
    }
    let site = Site::new();
    let bench = bench(&site, &["--files", "300"]);
    let words = std::iter::once(bench.get_program()).chain(bench.get_args());
    let line: Vec<_> = words.map(|word| word.to_str().expect("UTF-8")).collect();
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line.join(" "), "/dev/null"]);
    let shown = output(&mut script);
    assert!(
        shown.contains("making [") && shown.contains("of 300"),
        "{shown}"
    );
    assert!(shown.contains("300 ingested"), "{shown}");
}

// ---- Interval logs

#[test]
fn the_logs_of_the_service_are_left_alone() {
    let site = Site::new();
    let (log, settings) = (
        site.root.join("service.hlog"),
        site.root.join("settings.toml"),
    );
    let logs = site.root.join("logs");
    let others = format!("hlog = {log:?}\nlog_dir = {logs:?}\nlog_to_console = false\n");
    fs::write(&settings, others).expect("write");
    let mut command = site.ringest(false);
    command.arg("--config").arg(&settings).arg("bench");
    command
        .arg("--dir")
        .arg(ground(&site))
        .args(["--files", "10"]);
    Finished::of(command).ok();
    assert!(!log.exists() && !logs.exists());
}

/// What HdrHistogram's own reader makes of a log. `None`, and skipped, if it is not there.
fn read_by_others(log: &Path) -> Option<Value> {
    let python = |args: &[&str]| {
        let mut command = Command::new("python3");
        command.args(args);
        if let Ok(packages) = std::env::var("RINGEST_TEST_HDRHISTOGRAM") {
            command.env("PYTHONPATH", packages);
        }
        command
    };
    let there = python(&["-c", "import hdrh.log"]).output();
    if !there.is_ok_and(|done| done.status.success()) {
        skip(
            "needs python3 and PyPI's hdrhistogram, in the directory that RINGEST_TEST_HDRHISTOGRAM names",
        );
        return None;
    }
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/hlog.py");
    let said = output(&mut python(&[reader, log.to_str().expect("UTF-8")]));
    Some(serde_json::from_str(&said).expect("JSON"))
}

#[test]
fn the_interval_log_of_a_run_says_what_its_status_says() {
    let site = Site::new().with(&["--mode", "closed"]);
    let log = site.root.join("run.hlog");
    let args = [
        "--hlog",
        log.to_str().expect("UTF-8"),
        "--metrics-interval",
        "0.1",
    ];
    let mut running = site.start(&args);
    for round in 0..5 {
        for number in 0..40 {
            site.put(
                format!("{round}-{number}.csv"),
                format!("{round},{number}\n"),
            );
        }
        site.wait_for_lines(&mut running, 40 * (round + 1));
        wait_until("the interval is in the log", || {
            let text = fs::read_to_string(&log).expect("the log");
            let intervals = text.lines().filter(|line| line.starts_with("Tag=total,"));
            intervals.count() > round
        });
    }
    running.terminate();

    let status = Finished::of(site.command("status", &["--json"])).ok();
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    let Some(read) = read_by_others(&log) else {
        return;
    };
    for stage in STAGES {
        let (own, read) = (&status["latency_ms"][stage], &read[stage]);
        assert_eq!(number(own, "/count"), number(read, "/count"), "{stage}");
        assert!(number(own, "/count") >= 200.0, "{stage}");
        for name in ["/p50", "/p90", "/p99", "/max"] {
            let us = (number(own, name) * 1000.0).round();
            assert_eq!(us, number(read, name), "{stage} {name}");
        }
    }
}

#[test]
fn the_interval_logs_of_two_benches_add_up_in_one_file() {
    let site = Site::new();
    let log = site.root.join("bench.hlog");
    let log_arg = log.to_str().expect("UTF-8");
    let once = measured(&site, &["--files", "100", "--hlog", log_arg]);
    let first = read_by_others(&log);
    let paced = measured(
        &site,
        &["--rate", "50", "--seconds", "1", "--hlog", log_arg],
    );
    let (Some(first), Some(both)) = (first, read_by_others(&log)) else {
        return;
    };
    assert_eq!(number(&first, "/total/count"), 100.0);
    assert_eq!(number(&both, "/total/count"), 150.0);
    for stage in STAGES {
        for name in ["p50", "p90", "p99", "max"] {
            let pointer = format!("/{stage}/{name}");
            let own = number(&once["latency_ms"], &pointer) * 1000.0;
            assert_eq!(own.round(), number(&first, &pointer), "{pointer}");
        }
    }
    assert_eq!(first["scheduled"], Value::Null);
    let own = number(&paced, "/latency_ms/scheduled/p99") * 1000.0;
    assert_eq!(own.round(), number(&both, "/scheduled/p99"));
    assert_eq!(number(&both, "/scheduled/count"), 50.0);
}

#[test]
fn an_interval_log_inside_a_directory_of_the_flow_is_78() {
    let site = Site::new();
    for place in [&site.staging, &site.warehouse, &site.manifests] {
        let log = place.join("run.hlog");
        let finished = site.try_once(&["--hlog", log.to_str().expect("UTF-8")]);
        finished.with_code(78).naming(&log);
    }
    let beside_the_ledger = site.state.join("run.hlog");
    site.put("a.csv", "a\n");
    site.run_once(&[
        "--hlog",
        beside_the_ledger.to_str().expect("UTF-8"),
        "--stability-seconds",
        "0",
    ]);
    let text = fs::read_to_string(beside_the_ledger).expect("the log");
    assert!(text.contains("\nTag=total,"), "{text}");
}
