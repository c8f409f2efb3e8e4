//! Settings of the whole kernel, put back afterwards. Nobody else who runs at the same time may depend on them.

use std::fs;
use std::process::Command;

use rustix::process::Signal;

use crate::support::{Running, Site, is_root, skip};

/// A sysctl that has another value for a while.
struct Sysctl {
    path: String,
    before: String,
}

impl Sysctl {
    /// `None`, and skipped, if it cannot be set here.
    fn set(name: &str, value: &str) -> Option<Sysctl> {
        let path = format!("/proc/sys/{name}");
        if !is_root() {
            skip("needs root to change a sysctl");
            return None;
        }
        let before = fs::read_to_string(&path).ok()?;
        if let Err(error) = fs::write(&path, value) {
            skip(&format!("cannot set {name}: {error}"));
            return None;
        }
        Some(Sysctl { path, before })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.before);
    }
}

#[test]
fn files_are_found_although_the_queue_of_events_overflows() {
    // A queue keeps the length it was made with.
    let Some(short) = Sysctl::set("fs/inotify/max_queued_events", "16") else {
        return;
    };
    let site = Site::new();
    let mut running = site.start(&["--mode", "closed", "--stability-seconds", "0.2"]);
    running.wait_for_event("started", "");
    drop(short);
    running.send(Signal::STOP);
    for i in 0..3000 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    running.send(Signal::CONT);
    site.wait_for_lines(&mut running, 3000);
    let log = running.log().join("\n");
    running.terminate();
    assert!(log.contains("overflow"), "the queue did not overflow");
    assert_eq!(site.manifest().len(), 3000);
    site.assert_sound();
}

#[test]
fn a_ring_that_the_kernel_forbids_is_done_without_unless_it_was_asked_for() {
    let Some(_forbidden) = Sysctl::set("kernel/io_uring_disabled", "2") else {
        return;
    };
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    for i in 0..20 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    site.try_once(&["--io", "uring"])
        .with_code(69)
        .naming("io_uring_disabled=2");
    let ended = site.run_once(&["--io", "auto"]);
    assert_eq!(ended.event("fallback", "")["what"], "io_uring", "{ended}");
    assert_eq!(site.manifest().len(), 20);
    site.assert_sound();
}

#[test]
fn directories_beyond_the_limit_of_watches_are_counted_and_their_files_found() {
    if !is_root() {
        return skip("needs root for a user namespace");
    }
    let site = Site::new();
    for i in 0..50 {
        fs::create_dir(site.staging.join(format!("directory {i}"))).expect("make a directory");
    }
    // The limit of a namespace of its own concerns nobody else.
    let run = site.run(&[
        "--recursive",
        "--stability-seconds",
        "0.1",
        "--rescan-seconds",
        "1",
    ]);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c"]);
    command.arg("echo 6 > /proc/sys/user/max_inotify_watches && exec \"$@\"");
    command
        .arg("sh")
        .arg(run.get_program())
        .args(run.get_args());
    let mut running = Running::spawn(command);
    running.wait_for_event("started", "");
    for round in 0..3 {
        for i in 0..50 {
            site.put(format!("directory {i}/{round}.csv"), format!("{round} {i}"));
        }
        site.wait_for_lines(&mut running, 50 * (round + 1));
    }
    let ended = running.terminate();
    let told = ended.events("fallback", "");
    let causes: Vec<&str> = told.iter().filter_map(|e| e["cause"].as_str()).collect();
    let named = |cause: &&&str| cause.contains("fs.inotify.max_user_watches");
    assert_eq!(causes.iter().filter(named).count(), 1, "{causes:?}");
    // The staging directory itself is one of the six.
    let counted = |cause: &&&str| cause.starts_with("cannot watch 45 directories beneath ");
    assert_eq!(causes.iter().filter(counted).count(), 1, "{causes:?}");
    site.assert_sound();
}
