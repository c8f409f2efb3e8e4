//! `status`, `find` and `check`: what people ask.

use serde_json::Value;

use super::support::{Finished, Site, sha256, wait_until};

fn status(site: &Site) -> Value {
    let answer = Finished::of(site.command("status", &["--json"])).ok();
    serde_json::from_str(&answer.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {answer}"))
}

#[test]
fn status_counts_what_became_of_the_files() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for (name, content) in [
        ("a.csv", "aaa"),
        ("b.csv", "bb"),
        ("c.csv", "c"),
        ("a again.csv", "aaa"),
    ] {
        site.put(name, content);
    }
    site.run_once(&[]);
    let status = status(&site);
    assert!(status["state"].is_string(), "{status}");
    assert_eq!(status["files"]["ingested"], 3, "{status}");
    assert_eq!(status["files"]["duplicate"], 1, "{status}");
    assert_eq!(status["files"]["discovered"], 4, "{status}");
    assert_eq!(status["bytes"]["ingested"], 6, "{status}");
    assert_eq!(status["queue_depth"], 0, "{status}");
}

#[test]
fn status_answers_beside_a_running_instance() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    site.put("a.csv", "aaa");
    site.wait_for_line(&mut watching, "a.csv");
    wait_until("status counts the file", || {
        status(&site)["files"]["ingested"] == 1
    });
    let status = status(&site);
    assert_eq!(status["latency_ms"]["total"]["count"], 1, "{status}");
    for figure in ["p50", "p90", "p99", "max"] {
        assert!(
            status["latency_ms"]["total"][figure].is_number(),
            "{figure}: {status}"
        );
    }
    watching.terminate();
}

#[test]
fn verify_works_beside_a_running_instance() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    for i in 0..200 {
        site.put(format!("{i}.csv"), format!("{i}"));
        if i % 40 == 0 {
            site.verify(&["--deep"]).ok();
        }
    }
    site.wait_for_lines(&mut watching, 200);
    site.verify(&["--deep"]).ok();
    watching.terminate();
    site.assert_sound();
}

#[test]
fn find_knows_a_file_by_path_by_name_and_by_digest() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let path = site.put("wanted.csv", "wanted");
    site.put("other.csv", "other");
    site.run_once(&[]);
    let placed = site.line("wanted.csv").placed();
    let digest = sha256(b"wanted");
    for asked in [
        path.to_str().expect("UTF-8"),
        placed.to_str().expect("UTF-8"),
        "wanted.csv",
        &digest,
    ] {
        let found = Finished::of(site.command("find", &[asked])).ok();
        assert!(
            found.stdout.contains(placed.to_str().expect("UTF-8")),
            "find {asked}: {found}"
        );
        assert!(found.stdout.contains("MANIFESTED"), "find {asked}: {found}");
        assert!(!found.stdout.contains("other.csv"), "find {asked}: {found}");
    }
}

#[test]
fn find_says_so_when_there_is_nothing() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("a.csv", "a");
    site.run_once(&[]);
    for asked in ["nothing.csv", "/nowhere/nothing.csv", &sha256(b"nothing")] {
        Finished::of(site.command("find", &[asked])).with_code(1);
    }
}

#[test]
fn check_names_the_directories_and_how_files_will_get_there() {
    let site = Site::new();
    let said = check(&site);
    for directory in [&site.staging, &site.warehouse] {
        let directory = directory.to_str().expect("UTF-8");
        assert!(said.stdout.contains(directory), "{directory}: {said}");
    }
    assert!(!site.warehouse.exists(), "check makes nothing");
    // Which way files will go can be tried once the warehouse is there.
    site.run_once(&[]);
    let said = check(&site);
    assert!(said.stdout.contains("rename"), "{said}");
}

#[test]
fn check_says_that_files_will_be_copied_across_filesystems() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    site.run_once(&[]);
    let said = check(&site);
    assert!(said.stdout.contains("copy"), "{said}");
}

fn check(site: &Site) -> Finished {
    let mut check = site.command("check", &[]);
    check.arg("--input").arg(&site.staging);
    Finished::of(check).ok()
}
