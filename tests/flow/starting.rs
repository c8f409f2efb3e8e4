//! Starting, watching, ending; several inputs; what a new user sees.

use std::fs;
use std::process::Command;

use super::support::{Finished, Random, Running, Site, sha256, tree};

#[test]
fn a_new_user_finds_the_directories_made_and_the_first_file_ingested() {
    let site = Site::new();
    fs::remove_dir(&site.staging).expect("start with an empty directory");
    let here = |command: &mut Command| {
        command.current_dir(&site.root);
    };

    let mut first = site.bare_run();
    here(first.arg("--once"));
    let first = Finished::of(first).ok();
    for made in [&site.staging, &site.warehouse, &site.manifests, &site.state] {
        assert!(made.is_dir(), "not made: {made:?}: {first}");
        assert!(
            first.stderr.contains(made.to_str().expect("UTF-8")),
            "not said that {made:?} was made: {first}"
        );
    }
    assert_eq!(site.manifest().len(), 0);

    let mut watching = site.bare_run();
    here(&mut watching);
    let mut watching = Running::spawn(watching);
    watching.wait_for_event("started", "");
    let content = b"id,name\n1,first\n";
    site.put("first.csv", content);
    let line = site.wait_for_line(&mut watching, "first.csv");
    assert_eq!(line.sha256(), sha256(content));
    watching.wait_for_event("file_ingested", "staging/first.csv");
    watching.terminate();
    site.assert_sound();
}

#[test]
fn once_ingests_everything_that_is_there_and_ends() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let mut random = Random::new();
    for i in 0..300 {
        let len = random.below(100_000) as usize + 8;
        site.put(format!("file-{i}.csv"), random.bytes(len));
    }
    let ended = site.run_once(&[]);
    assert_eq!(ended.events("file_ingested", ".csv").len(), 300);
    let summary = ended
        .events("summary", "")
        .pop()
        .expect("a summary at the end");
    assert_eq!(summary["files_processed"], 300, "{summary}");
    assert_eq!(site.manifest().len(), 300);
    site.assert_sound();
}

#[test]
fn a_second_run_finds_nothing_to_do() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("a.csv", "a");
    site.run_once(&[]);
    let before = site.manifest();
    let ended = site.run_once(&[]);
    assert_eq!(ended.events("file_ingested", "").len(), 0);
    assert_eq!(site.manifest().len(), before.len());
    site.assert_sound();
}

#[test]
fn a_dry_run_says_what_it_would_do_and_changes_nothing() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("done.csv", "done");
    site.run_once(&[]);
    site.put("planned.csv", "planned");
    site.put("planned too.csv", "planned too");
    site.put("unfinished.csv.tmp", "unfinished");

    let before = tree(&site.root);
    let planned = Finished::of(site.run(&["--dry-run"])).ok();
    assert_eq!(
        tree(&site.root),
        before,
        "the dry run changed something: {planned}"
    );

    let plan: Vec<serde_json::Value> = planned
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect();
    let planned_for = |name: &str| {
        let path = site.staging.join(name).to_str().expect("UTF-8").to_owned();
        plan.iter().filter(|action| action["path"] == path).count()
    };
    assert_eq!(planned_for("planned.csv"), 1, "{planned}");
    assert_eq!(planned_for("planned too.csv"), 1, "{planned}");
}

#[test]
fn a_dry_run_makes_no_directories() {
    let site = Site::new();
    site.put("planned.csv", "planned");
    let before = tree(&site.root);
    Finished::of(site.run(&["--dry-run"])).ok();
    assert_eq!(tree(&site.root), before);
}

#[test]
fn two_inputs_go_into_one_warehouse() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let (north, south) = (site.root.join("north"), site.root.join("south"));
    for (input, content) in [(&north, "from the north"), (&south, "from the south")] {
        fs::create_dir(input).expect("make an input");
        fs::write(input.join("report.csv"), content).expect("write");
    }
    let args = [
        "--input",
        north.to_str().expect("UTF-8"),
        "--input",
        south.to_str().expect("UTF-8"),
    ];
    site.run_once(&args);

    assert_eq!(
        site.line("north/report.csv").sha256(),
        sha256(b"from the north")
    );
    assert_eq!(
        site.line("south/report.csv").sha256(),
        sha256(b"from the south")
    );
    assert_ne!(
        site.line("north/report.csv").text("source"),
        site.line("south/report.csv").text("source")
    );
    assert!(!north.join("report.csv").exists() && !south.join("report.csv").exists());
    site.assert_sound();
}

#[test]
fn a_rescan_finds_what_inotify_does_not_report() {
    let site = Site::new().with(&["--stability-seconds", "0.2", "--rescan-seconds", "1"]);
    let mut blind = site.run(&[]);
    let disabled = match std::env::var("RINGEST_DISABLE") {
        Ok(already) if !already.is_empty() => format!("{already},inotify"),
        _ => "inotify".to_owned(),
    };
    blind.env("RINGEST_DISABLE", disabled);
    let mut blind = Running::spawn(blind);
    blind.wait_for_event("started", "");

    site.put("unseen.csv", "unseen");
    site.wait_for_line(&mut blind, "unseen.csv");
    site.put("unseen too.csv", "unseen too");
    site.wait_for_line(&mut blind, "unseen too.csv");
    blind.terminate();
    site.assert_sound();
}

#[test]
fn sigint_ends_a_run_as_sigterm_does() {
    let site = Site::new();
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    watching.send(rustix::process::Signal::INT);
    let ended = watching.finish().ok();
    assert_eq!(ended.events("stopped", "").len(), 1, "{ended}");
}
