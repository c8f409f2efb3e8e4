//! The same content again: in one batch, after a restart, under every policy.

use std::fs;

use serde_json::Value;

use super::support::{Finished, Site, sha256};

const CONTENT: &[u8] = b"id,name\n1,the same again\n";

#[test]
fn of_two_equal_files_in_one_batch_one_is_ingested() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("one.csv", CONTENT);
    site.put("two.csv", CONTENT);
    let ended = site.run_once(&[]);
    assert_eq!(ended.events("file_ingested", "").len(), 1, "{ended}");
    assert_eq!(ended.events("file_duplicate", "").len(), 1, "{ended}");
    assert_eq!(site.manifest().len(), 1);

    let set_aside = site.duplicates();
    assert_eq!(set_aside.len(), 1, "{set_aside:?}");
    assert_eq!(fs::read(&set_aside[0]).expect("read"), CONTENT);
    let reason =
        fs::read(format!("{}.reason.json", set_aside[0].display())).expect("a reason beside it");
    let reason: Value = serde_json::from_slice(&reason).expect("JSON");
    assert!(reason.is_object(), "{reason}");

    let name = set_aside[0]
        .file_name()
        .expect("a name")
        .to_str()
        .expect("UTF-8");
    let found = Finished::of(site.command("find", &[name])).ok();
    assert!(found.stdout.contains("SKIPPED_DUPLICATE"), "{found}");
    site.assert_sound();
}

#[test]
fn many_equal_files_in_one_batch_are_one() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for i in 0..200 {
        site.put(format!("copy-{i}.csv"), CONTENT);
    }
    let ended = site.run_once(&[]);
    assert_eq!(site.manifest().len(), 1);
    assert_eq!(site.duplicates().len(), 199);
    assert_eq!(ended.events("file_duplicate", "").len(), 199);
    site.assert_sound();
}

#[test]
fn content_is_remembered_across_a_restart_and_on_the_third_resend() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("sent.csv", CONTENT);
    site.run_once(&[]);
    site.put("sent again.csv", CONTENT);
    site.run_once(&[]).event("file_duplicate", "sent again.csv");
    site.put("sent.csv", CONTENT);
    site.run_once(&[]).event("file_duplicate", "sent.csv");
    assert_eq!(site.manifest().len(), 1);
    assert_eq!(site.line("sent.csv").sha256(), sha256(CONTENT));
    assert_eq!(site.duplicates().len(), 2);
    site.assert_sound();
}

#[test]
fn a_duplicate_of_the_same_name_does_not_overwrite_the_one_set_aside_before() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for _ in 0..4 {
        site.put("again.csv", CONTENT);
        site.run_once(&[]);
    }
    assert_eq!(site.manifest().len(), 1);
    assert_eq!(site.duplicates().len(), 3);
    site.assert_sound();
}

#[test]
fn a_duplicate_whose_stored_copy_is_gone_is_ingested_instead() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("sent.csv", CONTENT);
    site.put("other.csv", "another, so that the warehouse is not empty");
    site.run_once(&[]);
    fs::remove_file(site.line("sent.csv").placed()).expect("lose the stored copy");
    site.put("resent.csv", CONTENT);
    site.run_once(&[]);
    let stored = site
        .placed_files()
        .iter()
        .any(|file| fs::read(file).expect("read") == CONTENT);
    assert!(stored, "the content is nowhere in the warehouse");
}

#[test]
fn dedupe_by_source_compares_within_one_input() {
    let site = Site::new().with(&["--stability-seconds", "0.2", "--dedupe", "source"]);
    let (north, south) = (site.root.join("north"), site.root.join("south"));
    let args = [
        "--input",
        north.to_str().expect("UTF-8"),
        "--input",
        south.to_str().expect("UTF-8"),
    ];
    for input in [&north, &south] {
        fs::create_dir(input).expect("make an input");
        fs::write(input.join("a.csv"), CONTENT).expect("write");
        fs::write(input.join("b.csv"), CONTENT).expect("write");
    }
    site.run_once(&args);
    let lines = site.manifest();
    assert_eq!(lines.len(), 2, "one of each input: {lines:?}");
    assert_ne!(lines[0].text("source"), lines[1].text("source"));
    assert_eq!(site.duplicates().len(), 2);
    site.assert_agrees();
}

#[test]
fn dedupe_by_name_compares_files_of_the_same_name() {
    let site = Site::new().with(&["--stability-seconds", "0.2", "--dedupe", "name"]);
    site.put("monday.csv", CONTENT);
    site.put("tuesday.csv", CONTENT);
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 2);
    site.put("monday.csv", CONTENT);
    site.run_once(&[]).event("file_duplicate", "monday.csv");
    assert_eq!(site.manifest().len(), 2);
    assert_eq!(site.duplicates().len(), 1);
    site.assert_agrees();
}

#[test]
fn without_dedupe_every_arrival_is_ingested() {
    let site = Site::new().with(&["--stability-seconds", "0.2", "--dedupe", "off"]);
    site.put("a.csv", CONTENT);
    site.put("b.csv", CONTENT);
    site.run_once(&[]);
    site.put("a.csv", CONTENT);
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 3);
    assert_eq!(site.placed_files().len(), 3);
    assert_eq!(site.duplicates().len(), 0);
    site.assert_agrees();
}

#[test]
fn a_duplicate_can_be_deleted() {
    let site = Site::new().with(&["--stability-seconds", "0.2", "--on-duplicate", "delete"]);
    site.put("one.csv", CONTENT);
    site.run_once(&[]);
    site.put("two.csv", CONTENT);
    site.run_once(&[]).event("file_duplicate", "two.csv");
    assert_eq!(site.duplicates().len(), 0);
    assert_eq!(site.manifest().len(), 1);
    site.assert_sound();
}

#[test]
fn a_duplicate_can_be_kept_and_is_not_read_again() {
    let site = Site::new().with(&["--stability-seconds", "0.2", "--on-duplicate", "keep"]);
    site.put("one.csv", CONTENT);
    site.run_once(&[]);
    let kept = site.put("two.csv", CONTENT);
    site.run_once(&[]).event("file_duplicate", "two.csv");
    assert!(kept.exists());
    let again = site.run_once(&[]);
    assert_eq!(
        again.events("file_duplicate", "").len(),
        0,
        "looked at again: {again}"
    );
    assert!(kept.exists());
    assert_eq!(site.manifest().len(), 1);
    site.assert_agrees();

    // It is remembered by what it is, not by its name: a new file of that name is a new arrival.
    fs::remove_file(&kept).expect("remove the kept file");
    site.put("two.csv", "something else");
    site.run_once(&[]);
    assert_eq!(site.line("two.csv").sha256(), sha256(b"something else"));
    site.assert_sound();
}

/// Rewrites a file in place, with as many bytes, and sets its mtime back.
fn rewrite_unseen(path: &std::path::Path) {
    use std::io::{Seek, Write};
    let mut file = fs::File::options()
        .write(true)
        .open(path)
        .expect("its owner's");
    let before = file.metadata().expect("look at");
    let bytes = vec![b'x'; before.len() as usize];
    file.rewind().expect("rewind");
    file.write_all(&bytes).expect("write");
    file.set_modified(before.modified().expect("an mtime"))
        .expect("set back");
}

#[test]
fn a_stored_copy_that_was_rewritten_does_not_stand_for_its_content() {
    for policy in ["delete", "move"] {
        let site = Site::new().with(&["--stability-seconds", "0.2", "--on-duplicate", policy]);
        site.put("first.csv", CONTENT);
        site.run_once(&[]);
        let first = site.manifest()[0].placed();
        rewrite_unseen(&first);
        site.put("second.csv", CONTENT);
        let ended = site.run_once(&[]);
        ended.event("file_ingested", "second.csv");
        let second = site.manifest()[1].placed();
        assert_eq!(fs::read(second).expect("read"), CONTENT);
        assert_eq!(site.duplicates().len(), 0);
        // Without reading every file: its ctime says that it was touched.
        let verified = Finished::of(site.command("verify", &[]));
        let verified = verified.with_code(1);
        assert!(verified.stdout.contains("first.csv"), "{verified}");
        assert!(verified.stdout.contains("1 mismatches"), "{verified}");
    }
}

#[test]
fn a_stored_copy_that_only_got_other_permissions_stands() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new().with(&["--stability-seconds", "0.2", "--on-duplicate", "delete"]);
    site.put("first.csv", CONTENT);
    site.run_once(&[]);
    let first = site.manifest()[0].placed();
    fs::set_permissions(&first, fs::Permissions::from_mode(0o444)).expect("chmod");
    site.put("second.csv", CONTENT);
    site.run_once(&[]).event("file_duplicate", "second.csv");
    assert_eq!(site.manifest().len(), 1);
    site.assert_sound();
}
