//! Where files end up: names, subdirectories, other filesystems.

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use super::support::{Random, Site, sha256, sha256_of_file, wait_until};

#[test]
fn a_taken_name_gets_digits_of_the_digest() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for content in ["first", "second", "third"] {
        site.put("report.csv", content);
        site.put("README", format!("{content}, without an extension"));
        site.run_once(&[]);
    }
    let placed_name = |content: &str| {
        let digest = sha256(content.as_bytes());
        let line = site
            .manifest()
            .into_iter()
            .find(|line| line.sha256() == digest)
            .expect("ingested");
        line.placed()
            .file_name()
            .expect("a name")
            .to_str()
            .expect("UTF-8")
            .to_owned()
    };
    let eight = |content: &str| sha256(content.as_bytes())[..8].to_owned();
    assert_eq!(placed_name("first"), "report.csv");
    assert_eq!(
        placed_name("second"),
        format!("report.{}.csv", eight("second"))
    );
    assert_eq!(
        placed_name("third"),
        format!("report.{}.csv", eight("third"))
    );
    assert_eq!(placed_name("first, without an extension"), "README");
    let second = "second, without an extension";
    assert_eq!(placed_name(second), format!("README.{}", eight(second)));
    site.assert_sound();
}

#[test]
fn a_file_all_of_whose_names_are_taken_waits_for_one_of_them() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("first.csv", "first");
    site.run_once(&[]);
    let partition = site.line("first.csv").placed();
    let digest = sha256(b"content");
    // The last one has the number that the file gets.
    let names = [
        "a.csv".to_owned(),
        format!("a.{}.csv", &digest[..8]),
        format!("a.{}.csv", &digest[..16]),
        format!("a.{digest}.csv"),
        format!("a.{digest}.2.csv"),
    ];
    let names = names.map(|name| partition.with_file_name(name));
    for name in &names {
        fs::write(name, "theirs").expect("write");
    }
    let source = site.put("a.csv", "content");
    let mut running = site.start(&[]);
    running.wait_for_event("file_failed", "a.csv");
    assert!(source.is_file());
    for name in &names {
        assert_eq!(fs::read_to_string(name).expect("read"), "theirs");
        fs::remove_file(name).expect("remove");
    }
    site.wait_for_line(&mut running, "a.csv");
    running.terminate().ok();
    site.assert_sound();
}

#[test]
fn a_stranger_in_the_warehouse_is_not_overwritten() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("a.csv", "a");
    site.run_once(&[]);
    let partition = site
        .line("a.csv")
        .placed()
        .parent()
        .expect("a partition")
        .to_owned();
    let stranger = partition.join("b.csv");
    fs::write(&stranger, "somebody else's").expect("write");
    site.put("b.csv", "b");
    site.run_once(&[]);
    assert_eq!(fs::read(&stranger).expect("read"), b"somebody else's");
    assert_ne!(site.line("b.csv").placed(), stranger);
    assert_eq!(fs::read(site.line("b.csv").placed()).expect("read"), b"b");
}

#[test]
fn the_partition_is_the_day_of_ingestion() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("a.csv", "a");
    site.run_once(&[]);
    let line = site.line("a.csv");
    let day = &line.text("ingested_at")[..10];
    assert_eq!(
        line.placed(),
        site.warehouse
            .join(format!("ingest_date={day}"))
            .join("a.csv")
    );
}

#[test]
fn a_rename_keeps_the_inode() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let source = fs::metadata(site.put("a.csv", "a")).expect("written");
    site.run_once(&[]);
    let line = site.line("a.csv");
    let placed = fs::metadata(line.placed()).expect("placed");
    assert_eq!((placed.dev(), placed.ino()), (source.dev(), source.ino()));
    assert_eq!(
        (line.number("device"), line.number("inode")),
        (source.dev(), source.ino())
    );
}

#[test]
fn files_that_are_hashed_side_by_side_have_their_own_digests() {
    let mut random = Random::new();
    for lanes in ["1", "2", "3", "4"] {
        let site = Site::new().with(&["--stability-seconds", "0.2", "--concurrency", "1"]);
        let large = 8 << 20;
        let sizes = [
            large + 1,
            64,
            3 * large / 2,
            300_000,
            large + 4096,
            4096,
            large,
            63,
        ];
        let mut digests = Vec::new();
        for (number, size) in sizes.into_iter().enumerate() {
            let content = random.bytes(size);
            site.put(number.to_string(), &content);
            digests.push(sha256(&content));
        }
        site.run_once(&["--hash-lanes", lanes]);
        for (number, digest) in digests.iter().enumerate() {
            assert_eq!(site.line(&number.to_string()).sha256(), digest);
        }
        site.assert_sound();
    }
}

#[test]
fn a_copy_to_another_filesystem_keeps_mode_and_time() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let site = site.with(&["--stability-seconds", "0.2"]);
    let mut random = Random::new();
    let content = random.bytes(3_000_001);
    let path = site.put("a.csv", &content);
    fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("chmod");
    let time = UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    let file = File::options().write(true).open(&path).expect("open");
    file.set_times(FileTimes::new().set_modified(time))
        .expect("touch");
    drop(file);
    let source = fs::metadata(&path).expect("written");

    site.run_once(&[]);
    let line = site.line("a.csv");
    assert_eq!(line.sha256(), sha256(&content));
    assert_eq!(
        (line.number("device"), line.number("inode")),
        (source.dev(), source.ino()),
        "the source's"
    );
    let placed = fs::metadata(line.placed()).expect("placed");
    assert_ne!(placed.dev(), source.dev());
    assert_eq!(placed.mode(), source.mode());
    assert_eq!(
        (placed.mtime(), placed.mtime_nsec()),
        (1_234_567_890, 123_456_789)
    );
    assert_eq!((placed.uid(), placed.gid()), (source.uid(), source.gid()));
    assert_eq!(placed.nlink(), 1);
    site.assert_sound();
}

#[test]
fn a_sparse_file_stays_sparse_on_another_filesystem() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let site = site.with(&["--stability-seconds", "0.2"]);
    let path = site.staging.join("sparse.bin");
    let file = File::create(&path).expect("create");
    file.write_all_at(b"the beginning", 0).expect("write");
    file.write_all_at(b"the middle", 40_000_000).expect("write");
    file.set_len(128 << 20).expect("a hole at the end");
    drop(file);
    let digest = sha256_of_file(&path);
    site.run_once(&[]);
    let line = site.line("sparse.bin");
    assert_eq!(line.sha256(), digest);
    let placed = fs::metadata(line.placed()).expect("placed");
    assert_eq!(placed.size(), 128 << 20);
    assert!(
        placed.blocks() * 512 < 8 << 20,
        "{} bytes allocated",
        placed.blocks() * 512
    );
    site.assert_sound();
}

#[test]
fn the_source_of_a_copy_goes_last() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let site = site.with(&["--mode", "closed", "--stability-seconds", "0.2"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    let mut random = Random::new();
    for i in 0..20 {
        let name = format!("big-{i}.bin");
        let path = site.put(&name, random.bytes(2_000_000));
        // Looks again and again, without a pause: whenever the source is gone, the line is there.
        wait_until("the source is gone", || {
            let gone = !path.exists();
            assert!(
                !gone || site.lines_of(&name).len() == 1,
                "{name} went before its manifest line was written"
            );
            gone
        });
    }
    watching.terminate();
    site.assert_sound();
}

#[test]
fn duplicates_and_clashes_work_across_filesystems() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let site = site.with(&["--stability-seconds", "0.2"]);
    site.put("a.csv", "a");
    site.put("same as a.csv", "a");
    site.run_once(&[]);
    site.put("a.csv", "another a");
    site.put("third.csv", "a");
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 2);
    assert_eq!(site.duplicates().len(), 2);
    site.assert_sound();
}

#[test]
fn subdirectories_are_left_alone_unless_asked_for() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    fs::create_dir(site.staging.join("below")).expect("mkdir");
    let below = site.put("below/a.csv", "below");
    site.put("a.csv", "above");
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 1);
    assert!(below.exists());
    site.run_once(&["--recursive"]);
    let line = site.line("below/a.csv");
    assert!(
        line.placed().ends_with("below/a.csv"),
        "the relative directory is kept: {}",
        line.raw
    );
    site.assert_sound();
}

#[test]
fn files_in_directories_made_at_the_same_moment_are_all_found() {
    let site = Site::new().with(&[
        "--mode",
        "closed",
        "--stability-seconds",
        "0.2",
        "--recursive",
    ]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    let mut count = 0;
    for i in 0..100 {
        // Three levels at once, and a file in each before ringest can have put a watch on it.
        let mut directory = site.staging.clone();
        for level in 0..3 {
            directory.push(format!("{level}-{i}"));
            fs::create_dir(&directory).expect("mkdir");
            fs::write(directory.join("file.csv"), format!("{i} {level}")).expect("write");
            count += 1;
        }
        if i % 10 == 0 {
            // A tree that was made elsewhere and is moved in.
            let elsewhere = site.root.join("elsewhere");
            fs::create_dir_all(elsewhere.join("below")).expect("mkdir");
            fs::write(elsewhere.join("below/moved.csv"), format!("moved {i}")).expect("write");
            fs::rename(&elsewhere, site.staging.join(format!("moved-{i}"))).expect("rename");
            count += 1;
        }
    }
    site.wait_for_lines(&mut watching, count);
    watching.terminate();
    assert_eq!(site.manifest().len(), count);
    for line in site.manifest() {
        let source = line.source_path();
        let relative = source
            .strip_prefix(&site.staging)
            .expect("beneath the input");
        assert!(
            line.placed().ends_with(relative),
            "the relative directory is kept: {}",
            line.raw
        );
    }
    site.assert_sound();
}

#[test]
fn the_simulators_deliver_what_they_say() {
    let site = Site::new().with(&["--stability-seconds", "1"]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    for (kind, files) in [
        ("slow-copy", 1),
        ("rename-tmp", 1),
        ("duplicates", 3),
        ("cross-fs", 1),
    ] {
        let simulate = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/simulate");
        let mut simulate = Command::new(simulate);
        simulate
            .args([kind, "--seconds", "2", "--to"])
            .arg(&site.staging);
        let output = simulate.output().expect("start tools/simulate");
        assert!(output.status.success(), "{kind}: {output:?}");
        // It prints what it delivered as sha256sum does.
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let delivered: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| line.split_once("  "))
            .collect();
        assert_eq!(delivered.len(), files, "{kind}: {text}");
        let digest = delivered[0].0;
        wait_until("it was taken", || {
            delivered
                .iter()
                .all(|(_, path)| !std::path::Path::new(path).exists())
        });
        wait_until("the content is in the manifest", || {
            site.manifest_so_far()
                .iter()
                .any(|line| line.sha256() == digest)
        });
    }
    watching.terminate();
    assert_eq!(site.manifest().len(), 4);
    assert_eq!(site.duplicates().len(), 2);
    site.assert_sound();
}
