//! Log files, and what is told of panics.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Finished, Site, wait_until};

const FILES: usize = 200;

/// A site whose runs have log files, and where those are.
fn site(args: &[&str]) -> (Site, PathBuf) {
    let site = Site::new();
    let logs = site.root.join("logs/ringest");
    let site = site.with(&[
        "--stability-seconds",
        "0.1",
        "--log-dir",
        logs.to_str().expect("UTF-8"),
    ]);
    (site.with(args), logs)
}

/// The lines of a log and of what it was rotated to, oldest first. Each is one JSON object.
fn lines(logs: &Path, name: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for path in rotated(logs, name) {
        let text = fs::read_to_string(path).expect("read a log file");
        assert!(text.is_empty() || text.ends_with('\n'), "{text}");
        for line in text.lines() {
            serde_json::from_str::<Value>(line).expect(line);
            lines.push(line.to_owned());
        }
    }
    lines
}

/// A log and what it was rotated to, oldest first.
fn rotated(logs: &Path, name: &str) -> Vec<PathBuf> {
    let numbered = |number: &usize| logs.join(format!("{name}.{number}"));
    let mut paths: Vec<PathBuf> = (1..)
        .map(|it| numbered(&it))
        .take_while(|it| it.exists())
        .collect();
    paths.reverse();
    paths.push(logs.join(name));
    paths
}

/// The same lines, in whatever order: two threads may have logged at the same moment.
fn assert_same(some: Vec<String>, others: &str) {
    let count = some.len();
    let some: BTreeSet<&str> = some.iter().map(String::as_str).collect();
    let others: Vec<&str> = others.lines().collect();
    assert_eq!(count, others.len());
    assert_eq!(some, others.into_iter().collect());
}

fn events(lines: &[String], name: &str) -> Vec<Value> {
    let all = lines
        .iter()
        .map(|line| serde_json::from_str(line).expect(line));
    all.filter(|event: &Value| event["event"] == name).collect()
}

#[test]
fn files_are_rotated_and_no_line_is_lost_or_torn() {
    let (site, logs) = site(&["--log-file-bytes", "8192", "--log-files", "1000"]);
    for number in 0..FILES {
        site.put(format!("{number}.csv"), number.to_string());
    }
    let ended = site.run_once(&[]);
    let app = lines(&logs, "app.log");
    assert_eq!(events(&app, "file_ingested").len(), FILES);
    assert_same(app, &ended.stderr);
    assert_eq!(lines(&logs, "error.log"), [""; 0]);
    let debug: BTreeSet<String> = lines(&logs, "debug.log").into_iter().collect();
    assert!(ended.stderr.lines().all(|line| debug.contains(line)));

    let files = rotated(&logs, "app.log");
    assert!(files.len() > 5, "{files:?}");
    for two in files.windows(2) {
        let [older, newer] = [&two[0], &two[1]].map(|path| fs::read(path).expect("read"));
        let first = newer
            .iter()
            .position(|&byte| byte == b'\n')
            .expect("a line")
            + 1;
        assert!(older.len() <= 8192 && older.len() + first > 8192);
    }
    site.assert_sound();
}

#[test]
fn the_oldest_file_is_replaced() {
    let (site, logs) = site(&["--log-file-bytes", "8KiB", "--log-files", "3"]);
    for number in 0..FILES {
        site.put(format!("{number}.csv"), number.to_string());
    }
    let first = site.run_once(&[]);
    site.put("last.csv", "last");
    let second = site.run_once(&[]);
    let names: BTreeSet<_> = (fs::read_dir(&logs).expect("list"))
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    let expected = [
        "app.log",
        "app.log.1",
        "app.log.2",
        "debug.log",
        "debug.log.1",
        "debug.log.2",
        "error.log",
    ];
    assert_eq!(names, expected.map(Into::into).into());
    let app = lines(&logs, "app.log");
    let all = format!("{}\n{}", first.stderr, second.stderr);
    let all: BTreeSet<&str> = all.lines().collect();
    assert!(app.iter().all(|line| all.contains(line.as_str())));
    // What is left is the end.
    let ended = events(&app, "stopped");
    assert_eq!(ended.last().expect("the end")["files"], 1);
    assert!(app.len() < all.len());
}

#[test]
fn files_that_were_moved_away_are_made_anew_on_sigusr1() {
    let (site, logs) = site(&[]);
    let mut running = site.start(&[]);
    site.put("1.csv", "1");
    running.wait_for_event("file_ingested", "1.csv");
    for name in ["app.log", "error.log", "debug.log"] {
        fs::rename(logs.join(name), logs.join(format!("{name}.moved"))).expect("move");
    }
    site.put("2.csv", "2");
    running.wait_for_event("file_ingested", "2.csv");
    running.send(Signal::USR1);
    for name in ["app.log", "error.log", "debug.log"] {
        wait_until("it is there again", || logs.join(name).exists());
    }
    site.put("3.csv", "3");
    running.wait_for_event("file_ingested", "3.csv");
    let ended = running.terminate();
    let moved = lines(&logs, "app.log.moved");
    let anew = lines(&logs, "app.log");
    assert!(moved.iter().any(|line| line.contains("/1.csv")));
    assert!(anew.iter().any(|line| line.contains("/3.csv")));
    assert_same([moved, anew].concat(), &ended.stderr);
}

#[test]
fn sigusr1_hurts_nobody_who_has_no_files() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    let mut running = site.start(&[]);
    running.wait_for_event("started", "");
    running.send(Signal::USR1);
    site.put("a.csv", "a");
    running.wait_for_event("file_ingested", "a.csv");
    running.terminate();
}

#[test]
fn levels_and_formats_of_console_and_files_are_their_own() {
    let (site, logs) = site(&["--log-level", "warn", "--log-format", "text"]);
    site.put("a.csv", "a");
    site.put("b.tmp", "b");
    site.put("c.txt", "c");
    let ended = site.run_once(&["--extensions", ".csv"]);
    assert!(
        ended.stderr.contains(" WARN file_quarantined path="),
        "{ended}"
    );
    let app = lines(&logs, "app.log");
    assert_eq!(app.len(), ended.stderr.lines().count());
    assert_eq!(events(&app, "file_quarantined").len(), 1);
    let debug = lines(&logs, "debug.log");
    for (event, path) in [("file_ingested", "a.csv"), ("file_ignored", "b.tmp")] {
        let found = events(&debug, event);
        assert_eq!(found.len(), 1, "{event}");
        assert!(found[0]["path"].as_str().expect("a path").ends_with(path));
    }
    assert_eq!(
        events(&debug, "directory_made").len(),
        4,
        "logs are one of them"
    );
}

#[test]
fn without_the_console_only_a_failure_is_seen_there() {
    let (site, logs) = site(&["--log-to-console=false"]);
    site.put("a.csv", "a");
    let ended = site.run_once(&[]);
    assert_eq!(ended.stderr, "");
    assert_eq!(events(&lines(&logs, "app.log"), "file_ingested").len(), 1);

    fs::write(site.state.join("ledger/data.mdb"), "no ledger").expect("damage the ledger");
    let ended = site.try_once(&[]).with_code(74);
    assert!(ended.stderr.starts_with("ringest: cannot "), "{ended}");
    let errors = lines(&logs, "error.log");
    assert_eq!(events(&errors, "error")[0]["exit_code"], 74);

    // Nobody would hear anything.
    let site = Site::new();
    site.try_once(&["--log-to-console=false"])
        .with_code(2)
        .naming("log_dir");
}

#[test]
fn one_process_writes_the_files() {
    let (site, logs) = site(&[]);
    let mut running = site.start(&[]);
    running.wait_for_event("started", "");
    let other = Site::new();
    let log_dir = ["--log-dir", logs.to_str().expect("UTF-8")];
    let refused = other.try_once(&log_dir).with_code(75);
    assert_eq!(refused.event("another_instance", "")["path"], log_dir[1]);
    assert!(!other.warehouse.exists(), "nothing was made");
    let refused = site.try_once(&["--log-to-console=false"]).with_code(75);
    refused.naming(&logs);
    for (name, args) in [("status", &[][..]), ("verify", &[]), ("find", &["a"])] {
        let mut command = site.command(name, args);
        command.env("RINGEST_LOG_DIR", &logs);
        Finished::of(command);
    }
    // It has what that one said and nothing else.
    let ended = running.terminate();
    assert_same(lines(&logs, "app.log"), &ended.stderr);

    let elsewhere = site.root.join("elsewhere");
    let mut command = site.command("status", &[]);
    command.env("RINGEST_LOG_DIR", &elsewhere);
    Finished::of(command).ok();
    assert!(!elsewhere.exists(), "only a run makes it");
}

#[test]
fn directories_that_cannot_be_used_are_refused() {
    let (site, _) = site(&[]);
    fs::write(site.root.join("file"), "").expect("write");
    let inside = |path: &Path| path.join("logs");
    for (path, says) in [
        (inside(&site.staging), "is inside the input"),
        (inside(&site.warehouse), "is inside the warehouse"),
        (inside(&site.manifests), "is inside the manifests"),
        (site.state.clone(), "is inside the state"),
        (
            inside(&site.root.join("file")),
            "cannot make the directory for log files",
        ),
    ] {
        let site = Site::at(
            &site.root,
            [&site.staging, &site.warehouse, &site.manifests, &site.state].map(PathBuf::clone),
        );
        let mut command = site.run(&["--once"]);
        command.env("RINGEST_LOG_DIR", &path);
        let refused = Finished::of(command).with_code(78);
        assert!(
            refused.naming(&path).stderr.contains(says) || says.starts_with("cannot"),
            "{says}"
        );
        assert!(!site.state.exists() && !site.warehouse.exists());
        let mut command = site.command("check", &[]);
        command
            .arg("--input")
            .arg(&site.staging)
            .env("RINGEST_LOG_DIR", &path);
        Finished::of(command).with_code(78).naming(&path);
    }
    // Beside the ledger they are in nobody's way.
    let site = Site::new();
    let beside = inside(&site.state);
    site.run_once(&["--log-dir", beside.to_str().expect("UTF-8")]);
    assert!(beside.join("app.log").exists());
    site.run_once(&["--log-dir", beside.to_str().expect("UTF-8")]);
}

#[test]
fn a_panic_is_an_event_with_its_backtrace_everywhere() {
    for (point, thread) in [("session_begun", "main"), ("classified", "record")] {
        let (site, logs) = site(&[]);
        site.put("a.csv", "a");
        let mut command = site.run(&["--once"]);
        command.env("RINGEST_PANIC_AT", format!("{point} for a test"));
        let ended = Finished::of(command);
        match thread {
            "main" => assert_eq!(ended.status.code(), Some(101)),
            _ => assert_eq!(ended.status.signal(), Some(Signal::ABORT.as_raw())),
        }
        let told = ended.event("panic", "");
        assert_eq!(told["message"], "for a test");
        assert_eq!(told["thread"], thread);
        let location = told["location"].as_str().expect("a location");
        assert!(location.contains("points.rs:"), "{location}");
        let backtrace = told["backtrace"].as_str().expect("a backtrace");
        assert!(backtrace.contains("src/trial/points.rs"), "{backtrace}");
        for name in ["app.log", "error.log", "debug.log"] {
            let there = events(&lines(&logs, name), "panic");
            assert!(there.len() == 1 && there[0] == told, "{name}: {there:?}");
        }
        // The next run goes on.
        site.run_once(&[]);
        site.assert_sound();
    }
}
