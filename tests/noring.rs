//! Where io_uring is forbidden, plain system calls do the work, and the log says so once.
//!
//! `tools/test` runs the tests of `flow` and `crash` again in this state.

mod support;

use std::process::Command;

use support::{Finished, Running, Site, has_program, skip, through};

/// `command` in a process whose io_uring_setup answers EPERM.
fn without_ring(command: &Command) -> Command {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/no-uring.py");
    through(&["python3", script], command)
}

#[test]
fn a_forbidden_ring_is_replaced_by_plain_calls_and_said_once() {
    if !has_program("python3", "--version") {
        return skip("needs python3");
    }
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for i in 0..50 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    let mut run = site.run(&["--once"]);
    let ended = Finished::of(without_ring(run.env_remove("RINGEST_DISABLE"))).ok();
    let about_the_ring = ended
        .events("fallback", "")
        .iter()
        .filter(|event| event.to_string().contains("uring"))
        .count();
    // With `--io sync` in RINGEST_TEST_RUN_ARGS nobody asked for a ring.
    let asked = !std::env::var("RINGEST_TEST_RUN_ARGS")
        .unwrap_or_default()
        .contains("--io");
    assert_eq!(about_the_ring, usize::from(asked), "{ended}");
    assert_eq!(site.manifest().len(), 50);
    site.assert_sound();
}

#[test]
fn a_ring_that_was_asked_for_and_is_forbidden_is_69() {
    if !has_program("python3", "--version") {
        return skip("needs python3");
    }
    if std::env::var("RINGEST_TEST_RUN_ARGS")
        .unwrap_or_default()
        .contains("--io")
    {
        return skip("RINGEST_TEST_RUN_ARGS already chooses --io");
    }
    let site = Site::new();
    let mut run = site.run(&["--once", "--io", "uring"]);
    Finished::of(without_ring(run.env_remove("RINGEST_DISABLE")))
        .with_code(69)
        .naming("uring");
}

#[test]
fn each_kernel_feature_can_be_missing() {
    for feature in ["uring", "lease", "cachestat", "dioalign", "inotify"] {
        let site = Site::new().with(&["--stability-seconds", "0.2", "--rescan-seconds", "1"]);
        let mut run = site.run(&[]);
        run.env("RINGEST_DISABLE", feature);
        let mut running = Running::spawn(run);
        running.wait_for_event("started", "");
        for i in 0..20 {
            site.put(format!("{i}.csv"), format!("{i}"));
        }
        site.put("the same as 7.csv", "7");
        site.wait_for_lines(&mut running, 20);
        running.terminate();
        site.run_once(&[]);
        assert_eq!(site.manifest().len(), 20, "without {feature}");
        site.assert_sound();
    }
}
