//! ringest as an ordinary user, over files that somebody else owns: no leases, no links, perhaps no renames.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use support::program::{Program, State};
use support::{Random, Site, is_root, sha256, skip, wait_until};

/// The user of these tests: nobody.
const NOBODY: u32 = 65534;

/// A site that nobody runs in, and root drops files into. `None`, and skipped, if this is not root.
fn site_of_nobody(staging_mode: u32) -> Option<Site> {
    if !is_root() {
        skip("only root can run ringest as another user");
        return None;
    }
    // Not where the other tests run: cargo's directory may be out of nobody's reach.
    let site = Site::beneath(Path::new("/var/tmp"))
        .run_by(NOBODY)
        .with(&["--stability-seconds", "0.3"]);
    fs::set_permissions(&site.staging, Permissions::from_mode(staging_mode)).expect("chmod");
    Some(site)
}

/// Writes a file that root owns and others may read.
fn put_as_root(site: &Site, name: &str, content: &[u8]) {
    let path = site.put(name, content);
    fs::set_permissions(path, Permissions::from_mode(0o644)).expect("chmod");
}

#[test]
fn the_files_of_another_user_are_ingested() {
    let Some(site) = site_of_nobody(0o777) else {
        return;
    };
    let mut random = Random::new();
    let contents: Vec<Vec<u8>> = (0..50).map(|i| random.bytes(i * 997 + 8)).collect();
    for (i, content) in contents.iter().enumerate() {
        put_as_root(&site, &format!("{i}.csv"), content);
    }
    put_as_root(&site, "the same as 7.csv", &contents[7]);
    site.run_once(&[]);
    for (i, content) in contents.iter().enumerate().filter(|(i, _)| *i != 7) {
        assert_eq!(site.line(&format!("{i}.csv")).sha256(), sha256(content));
    }
    assert_eq!(site.manifest().len(), contents.len());
    assert_eq!(site.duplicates().len(), 1);
    site.assert_sound();
}

#[test]
fn a_watching_run_takes_the_files_of_another_user() {
    for mode in ["stability", "closed"] {
        let Some(site) = site_of_nobody(0o777) else {
            return;
        };
        let mut watching = site.start(&["--mode", mode]);
        watching.wait_for_event("started", "");
        for i in 0..20 {
            put_as_root(
                &site,
                &format!("{i}.csv.tmp"),
                format!("{mode} {i}").as_bytes(),
            );
            fs::rename(
                site.staging.join(format!("{i}.csv.tmp")),
                site.staging.join(format!("{i}.csv")),
            )
            .expect("rename");
        }
        site.wait_for_lines(&mut watching, 20);
        watching.terminate();
        site.assert_sound();
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_stops_nothing() {
    let Some(site) = site_of_nobody(0o777) else {
        return;
    };
    let secret = site.put("secret.csv", "secret");
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("chmod");
    put_as_root(&site, "open.csv", b"open");
    let ended = site.run_once(&[]);
    assert!(
        !ended.events_about("/secret.csv").is_empty(),
        "nothing about secret.csv: {ended}"
    );
    assert_eq!(site.line("open.csv").sha256(), sha256(b"open"));
    assert_eq!(site.manifest().len(), 1);
    assert!(secret.exists());

    fs::set_permissions(&secret, Permissions::from_mode(0o644)).expect("chmod");
    site.run_once(&[]);
    assert_eq!(site.line("secret.csv").sha256(), sha256(b"secret"));
    site.assert_sound();
}

#[test]
fn an_unreadable_file_is_tried_again_while_watching() {
    let Some(site) = site_of_nobody(0o777) else {
        return;
    };
    let mut watching = site.start(&["--rescan-seconds", "1"]);
    watching.wait_for_event("started", "");
    let secret = site.put("secret.csv", "secret");
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("chmod");
    wait_until("the log names it", || {
        watching
            .log()
            .iter()
            .any(|line| line.contains("secret.csv"))
    });
    fs::set_permissions(&secret, Permissions::from_mode(0o644)).expect("chmod");
    site.wait_for_line(&mut watching, "secret.csv");
    watching.terminate();
    site.assert_sound();
}

#[test]
fn what_cannot_be_removed_is_ingested_once_and_kept() {
    // Sticky: only the owner may rename or remove a file.
    let Some(site) = site_of_nobody(0o1777) else {
        return;
    };
    put_as_root(&site, "a.csv", b"not yours to remove");
    put_as_root(&site, "b.csv", b"nor this");
    put_as_root(&site, "the same as b.csv", b"nor this");
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 2);
    site.assert_agrees();

    let again = site.run_once(&[]);
    assert_eq!(again.events("file_ingested", "").len(), 0, "{again}");
    assert_eq!(again.events("file_duplicate", "").len(), 0, "{again}");
    let lines = site.assert_agrees();
    assert_eq!(lines.len(), 2);
    for name in ["a.csv", "b.csv", "the same as b.csv"] {
        assert!(site.staging.join(name).exists(), "{name} is gone");
    }
    for line in &lines {
        // A copy, since the name could not be moved: it belongs to whoever made it.
        assert_eq!(fs::metadata(line.placed()).expect("placed").uid(), NOBODY);
    }

    // A file that root puts in its place is another file.
    fs::remove_file(site.staging.join("a.csv")).expect("remove");
    put_as_root(&site, "a.csv", b"a new one");
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 3);
    site.assert_agrees();
}

#[test]
fn what_cannot_be_removed_from_a_claim_directory_is_ingested_once() {
    let Some(site) = site_of_nobody(0o777) else {
        return;
    };
    let claims = site.root.join("claims");
    fs::create_dir(&claims).expect("mkdir, as root");
    let may_remove = |mode| fs::set_permissions(&claims, Permissions::from_mode(mode));
    may_remove(0o777).expect("chmod");
    let claim_dir = ["--claim-dir", claims.to_str().expect("UTF-8")];
    // Of a file that is another's the mode cannot be set: it is copied.
    let args = [&claim_dir[..], &["--placed-mode", "0640"]].concat();
    put_as_root(&site, "a.csv", b"not yours to remove");
    let mut run = site.run(&[&args[..], &["--once"]].concat());
    run.env("RINGEST_STOP_AT", "records_committed,none");
    let mut stopped = Program::start(run, &site.root.join("stopped.log"));
    assert_eq!(stopped.wait(), State::Stopped, "the point is not reached");
    may_remove(0o1777).expect("chmod");
    stopped.go_on();
    assert!(matches!(stopped.wait(), State::Ended(status) if status.success()));
    assert!(claims.join("a.csv").exists());

    for mode in [0o1777, 0o777] {
        may_remove(mode).expect("chmod");
        let again = site.run_once(&args);
        assert_eq!(again.events("file_ingested", "").len(), 0, "{again}");
        assert_eq!(again.events("file_duplicate", "").len(), 0, "{again}");
        assert_eq!(site.assert_agrees().len(), 1);
        assert!(claims.join("a.csv").exists());
    }
}

#[test]
fn a_directory_that_cannot_be_written_ends_with_78_and_its_name() {
    let Some(site) = site_of_nobody(0o777) else {
        return;
    };
    for directory in [&site.warehouse, &site.manifests, &site.state] {
        fs::create_dir(directory).expect("mkdir, as root");
        fs::set_permissions(directory, Permissions::from_mode(0o755)).expect("chmod");
        site.try_once(&[]).with_code(78).naming(directory);
        std::os::unix::fs::chown(directory, Some(NOBODY), Some(NOBODY)).expect("give it away");
    }
    put_as_root(&site, "a.csv", b"now it works");
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 1);
    site.assert_sound();
}

/// A second staging directory, of a stranger who lets nobody in, or nobody any more.
fn strangers_input(site: &Site, mode: u32) -> std::path::PathBuf {
    let input = site.root.join("strangers");
    fs::create_dir(&input).expect("make a directory");
    std::os::unix::fs::chown(&input, Some(2001), Some(2001)).expect("give away");
    fs::set_permissions(&input, Permissions::from_mode(mode)).expect("chmod");
    input
}

#[test]
fn a_staging_directory_that_its_owner_has_closed_keeps_no_other_waiting() {
    let Some(site) = site_of_nobody(0o777) else {
        return;
    };
    let closed = strangers_input(&site, 0o700);
    let both = |open: &Path| {
        let inputs = [open, &closed].map(|it| it.to_str().expect("UTF-8").to_owned());
        [
            "--input".to_owned(),
            inputs[0].clone(),
            "--input".to_owned(),
            inputs[1].clone(),
        ]
    };
    let both = both(&site.staging);
    let both: Vec<&str> = both.iter().map(String::as_str).collect();
    put_as_root(&site, "a.csv", b"honest");
    let ended = site.run_once(&both);
    ended.event("source_closed", "strangers");
    ended.event("file_ingested", "a.csv");
    // Once it is open, its files come in.
    fs::set_permissions(&closed, Permissions::from_mode(0o777)).expect("chmod");
    fs::write(closed.join("b.csv"), "strangers").expect("write");
    site.run_once(&both).event("file_ingested", "b.csv");
    assert_eq!(site.manifest().len(), 2);
}

#[test]
fn a_staging_directory_that_is_renamed_ends_nothing_as_long_as_there_is_another() {
    let Some(site) = site_of_nobody(0o777) else {
        return;
    };
    let strangers = strangers_input(&site, 0o777);
    let inputs = [&site.staging, &strangers].map(|it| it.to_str().expect("UTF-8"));
    let args = [
        "--input",
        inputs[0],
        "--input",
        inputs[1],
        "--rescan-seconds",
        "0.2",
    ];
    let mut watching = site.start(&args);
    watching.wait_for_event("started", "");
    fs::rename(&strangers, site.root.join("elsewhere")).expect("rename");
    watching.wait_for_event("source_gone", "strangers");
    put_as_root(&site, "a.csv", b"honest");
    site.wait_for_line(&mut watching, "a.csv");
    // The last one is missed.
    fs::rename(&site.staging, site.root.join("gone too")).expect("rename");
    let ended = watching.finish().with_code(74);
    ended.event("error", "");
}
