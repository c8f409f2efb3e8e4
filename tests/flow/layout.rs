//! Where files are placed, and how they are called there: folder layouts as people have them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::support::{Finished, Site, files_beneath, wait_until};

/// Directories beside each other: `flow/<input>`, and the warehouse as given.
fn folders(input: &str, warehouse: &str, settings: &str) -> Site {
    let mut site = Site::new().with(&["--stability-seconds", "0.1"]);
    let flow = site.root.join("flow");
    site.staging = flow.join(input);
    site.warehouse = flow.join(warehouse).components().collect();
    fs::create_dir_all(&site.staging).expect("make a directory");
    fs::write(site.root.join("ringest.toml"), settings).expect("write the settings");
    site
}

fn run(site: &Site, args: &[&str]) -> Finished {
    let mut run = site.run(&["--once", "--config"]);
    run.arg(site.root.join("ringest.toml")).args(args);
    Finished::of(run).ok()
}

/// A file whose content is its name, in directories that are made.
fn put(site: &Site, name: &str) {
    let directory = site.staging.join(name);
    fs::create_dir_all(directory.parent().expect("a directory")).expect("make a directory");
    site.put(name, name);
}

/// Files in this directory of the flow, and beneath it.
fn files(site: &Site, name: &str) -> Vec<String> {
    let directory = site.root.join("flow").join(name);
    let relative = |path: PathBuf| {
        path.strip_prefix(&directory)
            .expect("beneath it")
            .to_owned()
    };
    let files = files_beneath(&directory).into_iter().map(relative);
    let mut files: Vec<String> = files.map(|path| path.display().to_string()).collect();
    files.sort();
    files
}

/// Nothing is wrong, also with a ledger that is made anew from manifests, warehouse and reasons.
fn assert_agrees(site: &Site, lines: usize) {
    site.assert_staging_is_empty();
    assert_eq!(site.manifest().len(), lines);
    site.verify(&["--deep"]).ok();
    fs::rename(&site.state, site.root.join("state.lost")).expect("lose the state");
    let config = site.root.join("ringest.toml");
    let mut rebuild = site.command("rebuild", &["--config"]);
    rebuild.arg(&config).arg("--input").arg(&site.staging);
    Finished::of(rebuild).ok();
    run(site, &[]);
    site.verify(&["--deep"]).ok();
    assert_eq!(site.manifest().len(), lines);
}

#[test]
fn an_archive_keeps_every_file_under_its_name_and_time() {
    let settings = "partition = \"\"\nname = \"{name}.{timestamp}\"";
    let site = folders("inbox", "archive", settings);
    for content in ["one", "two"] {
        site.put("file.csv", content);
        site.put(format!("only {content}.csv"), "same");
        run(&site, &[]);
    }
    // As much of a long name as there is room for.
    site.put("l".repeat(255), "long");
    run(&site, &[]);
    let archived = files(&site, "archive");
    let long = archived.iter().filter(|name| name.starts_with("ll"));
    assert_eq!(long.map(String::len).collect::<Vec<_>>(), [255]);
    let placed: Vec<&String> = archived
        .iter()
        .filter(|name| name.starts_with("file.csv."))
        .collect();
    assert_eq!(placed.len(), 2, "{archived:?}");
    for name in placed {
        let time = name.strip_prefix("file.csv.").expect("a time");
        assert_eq!(time.len(), "20250629T103045.123".len(), "{name}");
        let (digits, rest) = time.split_once('T').expect("a date");
        assert!(
            digits.parse::<u32>().is_ok() && rest.parse::<f64>().is_ok(),
            "{name}"
        );
    }
    let same = |name: &&String| name.starts_with("only one.csv.");
    assert_eq!(archived.iter().filter(same).count(), 1, "{archived:?}");
    assert!(
        archived.contains(&"_duplicates/only two.csv".into()),
        "{archived:?}"
    );
    assert_agrees(&site, 4);
}

#[test]
fn good_and_bad_files_go_to_folders_beside_the_one_they_came_to() {
    let settings = "partition = \"validated\"\nquarantine_dir = \"returns\"\ncontent = \"csv\"";
    let site = folders("data", "", settings);
    for (name, content) in [
        ("a.csv", "x,y\n1,2\n"),
        ("b.csv", "x,y\n1\n"),
        ("c.csv", "x\n3\n"),
    ] {
        site.put(name, content);
    }
    run(&site, &[]);
    assert_eq!(files(&site, "validated"), ["a.csv", "c.csv"]);
    assert_eq!(files(&site, "returns"), ["b.csv", "b.csv.reason.json"]);
    assert_agrees(&site, 2);
    assert_eq!(files(&site, "returns"), ["b.csv", "b.csv.reason.json"]);
}

#[test]
fn partitions_may_be_hours_and_sources() {
    let settings = "partition = \"{source}/{year}/{month}-{day}/hour={hour}\"\nrecursive = true";
    // What begins like a directory of ringest's own is called otherwise.
    for (input, source) in [("meters", "meters"), ("_meters", "source_meters")] {
        let site = folders(input, "warehouse", settings);
        put(&site, "sub/a.csv");
        run(&site, &[]);
        let placed = site.line("a.csv").placed();
        let beneath = placed
            .strip_prefix(&site.warehouse)
            .expect("in the warehouse");
        let parts: Vec<&str> = beneath.iter().filter_map(|part| part.to_str()).collect();
        assert_eq!(
            (parts[0], parts.len(), parts[4]),
            (source, 6, "sub"),
            "{parts:?}"
        );
        assert_eq!(
            (parts[1].len(), parts[2].len(), parts[3].len()),
            (4, 5, 7),
            "{parts:?}"
        );
        assert_agrees(&site, 1);
    }
}

#[test]
fn directories_of_uploaders_are_not_taken_for_those_of_the_warehouse() {
    let site = folders("in", "out", "partition = \"\"\nrecursive = true");
    for name in ["_tmp/a", "_duplicates/b", "_quarantine/c", "_d", "e/_tmp/f"] {
        put(&site, name);
    }
    run(&site, &[]);
    // What is in `_tmp` does not outlive a start.
    run(&site, &[]);
    let placed = [
        "__d",
        "__duplicates/b",
        "__quarantine/c",
        "__tmp/a",
        "e/_tmp/f",
    ];
    let found = files(&site, "out");
    for name in placed {
        assert!(found.contains(&name.into()), "{found:?}");
    }
    assert_agrees(&site, 5);
}

#[test]
fn files_get_the_permissions_and_the_group_that_are_wanted() {
    let own = fs::metadata("/proc/self").expect("a process");
    let settings = format!("placed_mode = \"0640\"\nplaced_group = \"{}\"", own.gid());
    let sites = [Some(Site::new()), Site::across_filesystems()];
    for site in sites.into_iter().flatten() {
        let site = site.with(&["--stability-seconds", "0.1"]);
        fs::create_dir_all(&site.staging).expect("make a directory");
        fs::write(site.root.join("ringest.toml"), &settings).expect("write the settings");
        site.put("a.csv", "a");
        site.put("large.csv", "b".repeat(3 << 20));
        run(&site, &[]);
        for name in ["a.csv", "large.csv"] {
            let placed = fs::metadata(site.line(name).placed()).expect("it is there");
            assert_eq!(
                (placed.mode() & 0o777, placed.gid()),
                (0o640, own.gid()),
                "{name}"
            );
        }
        site.assert_sound();
    }
}

#[test]
fn layouts_that_would_mix_up_files_are_refused() {
    for (input, settings, says) in [
        ("in", "partition = \"/a\"", "relative"),
        ("in", "partition = \"{name}\"", "no directory"),
        ("in", "quarantine_dir = \"{date}\"", "fixed name"),
        (
            "in",
            "quarantine_dir = \"/srv/returns\"",
            "beneath the warehouse",
        ),
        ("in", "placed_name = \"{timestamp}\"", "{name}"),
        // What is set aside would lie among what is placed.
        (
            "in",
            "partition = \"done\"\nquarantine_dir = \"done\"",
            "is inside",
        ),
        (
            "in",
            "partition = \"done/{date}\"\nquarantine_dir = \"done\"",
            "is inside",
        ),
        (
            "done",
            "partition = \"{source}/x\"\nquarantine_dir = \"done\"",
            "is inside",
        ),
        ("in", "partition = \"_quarantine\"", "not for data"),
        ("in", "placed_mode = \"rw\"", "octal"),
        ("in", "placed_group = \"nobody has this\"", "/etc/group"),
        // The input is in the warehouse, and files might come to lie in it.
        ("in", "partition = \"\"", "is inside"),
        ("in", "partition = \"in/{date}\"", "is inside"),
        ("in", "quarantine_dir = \"in\"", "is inside"),
        ("ingest_date=today", "", "is inside"),
        ("_duplicates/in", "", "is inside"),
    ] {
        let site = folders(input, "", settings);
        let config = site.root.join("ringest.toml");
        let config = config.to_str().expect("UTF-8");
        site.try_once(&["--config", config])
            .with_code(78)
            .naming(says);
    }
}

#[test]
fn a_directory_of_the_layout_that_leads_elsewhere_is_refused_at_the_start() {
    for setting in ["partition = \"done/{date}\"", "quarantine_dir = \"done\""] {
        let site = folders("in", "warehouse", setting);
        let elsewhere = site.root.join("elsewhere");
        fs::create_dir_all(&elsewhere).expect("make a directory");
        fs::create_dir_all(&site.warehouse).expect("make the warehouse");
        std::os::unix::fs::symlink(&elsewhere, site.warehouse.join("done")).expect("link");
        site.put("a", "a");
        let config = site.root.join("ringest.toml");
        for name in ["run", "check"] {
            let mut command = site.command(name, &["--config"]);
            command.arg(&config).arg("--input").arg(&site.staging);
            command.args((name == "run").then_some("--once"));
            let ended = Finished::of(command);
            assert_eq!(ended.status.code(), Some(78), "{ended}");
            let said = ended.stderr.clone() + &ended.stdout;
            assert!(
                said.contains("warehouse/done") && said.contains("symbolic link"),
                "{said}"
            );
        }
        fs::remove_file(site.warehouse.join("done")).expect("unlink");
        run(&site, &[]);
        site.assert_staging_is_empty();
    }
}

#[test]
fn a_claim_directory_shows_what_is_in_work_and_gives_back_what_is_not_taken() {
    let settings = "partition = \"done\"\nrecursive = true";
    let site = folders("in", "", settings);
    let claims = site.root.join("flow/work");
    let claim = claims.to_str().expect("UTF-8");
    put(&site, "sub/a.csv");
    // What an earlier start left there, once with a name that is taken.
    fs::create_dir_all(claims.join("sub")).expect("make a directory");
    fs::write(claims.join("sub/a.csv"), "left behind").expect("write");
    fs::write(claims.join("b.csv"), "left behind, too").expect("write");
    // A power cut may leave a file under both names.
    let both = site.put("both.csv", "once");
    fs::hard_link(both, claims.join("both.csv")).expect("link");
    let ended = run(&site, &["--claim-dir", claim]);
    ended.event("claims_returned", "work");
    let placed = files(&site, "done");
    assert_eq!(
        placed,
        ["b.csv", "both.csv", "sub/a.csv", "sub/a.returned1.csv"]
    );
    assert_eq!(files(&site, "work"), [""; 0]);
    // A file that somebody writes to goes back, and comes when he is done.
    let path = site.put("slow.csv", "begun");
    let mut writer = fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .expect("open");
    let ended = run(&site, &["--claim-dir", claim]);
    assert_eq!(files(&site, "in"), ["slow.csv"], "{ended}");
    std::io::Write::write_all(&mut writer, b" and ended").expect("write");
    drop(writer);
    run(&site, &["--claim-dir", claim]);
    assert_eq!(files(&site, "done").len(), 5);
    assert_agrees(&site, 5);
}

#[test]
fn a_claimed_file_that_a_stop_leaves_unread_goes_back() {
    let site = folders("in", "", "partition = \"done\"");
    let claims = site.root.join("flow/work");
    let claim = claims.to_str().expect("UTF-8");
    site.put("slow.csv", "x".repeat(4 << 20));
    // The second piece of it would be read minutes later.
    let config = site.root.join("ringest.toml");
    let config = config.to_str().expect("UTF-8");
    let slowly = ["--max-bytes-per-second", "1KiB"];
    let running = site.start(&[&["--config", config, "--claim-dir", claim], &slowly[..]].concat());
    wait_until("it is claimed", || files(&site, "work") == ["slow.csv"]);
    running.terminate();
    assert_eq!(files(&site, "in"), ["slow.csv"]);
    assert_eq!(files(&site, "work"), [""; 0]);
    run(&site, &["--claim-dir", claim]);
    assert_agrees(&site, 1);
}

#[test]
fn claim_directories_that_cannot_work_are_refused() {
    for (settings, claims, code, says) in [
        ("mode = \"sidecar\"", "work", 2, "sidecars"),
        ("on_duplicate = \"keep\"", "work", 2, "stays in the input"),
        ("", "in/work", 78, "is inside"),
        ("", "in", 78, "same directory"),
        ("", "/proc/self", 78, "claim"),
    ] {
        let site = folders("in", "out", settings);
        let claims = site.root.join("flow").join(claims);
        let config = site.root.join("ringest.toml");
        let config = config.to_str().expect("UTF-8");
        let claims = claims.to_str().expect("UTF-8");
        site.try_once(&["--config", config, "--claim-dir", claims])
            .with_code(code)
            .naming(says);
    }
}
