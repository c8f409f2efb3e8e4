//! A disk that answers EIO, and is well again later.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::server::{Disk, Fault, Kind};
use crate::support::{Finished, Line, Random, Site, sha256};

const ARGS: &[&str] = &["--stability-seconds", "0.05"];

/// What the write-back of one file fails on. It is in every block of that file.
const POISON: &[u8] = b"this never gets to the disk";

#[test]
fn what_only_the_cache_holds_is_not_acknowledged_on_ext4() {
    a_failed_write_back(Kind::Ext4);
}

#[test]
fn what_only_the_cache_holds_is_not_acknowledged_on_xfs() {
    a_failed_write_back(Kind::Xfs);
}

#[test]
fn what_only_the_cache_holds_is_not_acknowledged_on_btrfs() {
    a_failed_write_back(Kind::Btrfs);
}

/// After a sync that failed, a second one says that all is well, and a read shows bytes that the disk does not hold.
fn a_failed_write_back(kind: Kind) {
    if !crate::can_run() {
        return;
    }
    let mut random = Random::new();
    let mut disk = Disk::new(kind);
    disk.mount().expect("mount a new filesystem");
    let elsewhere = Site::new();
    let mut site = Site::beneath(disk.path());
    site.state = elsewhere.state.clone();
    for i in 0..5 {
        site.put(format!("{i}.csv"), random.bytes(5000));
    }
    // A disk may be given the bytes of many files in one write, and fail that. These are not at stake.
    let root = std::fs::File::open(disk.path()).expect("open the filesystem");
    rustix::fs::syncfs(root).expect("sync it");
    let poison = POISON.repeat(600);
    let poisoned = site.put("poisoned.csv", &poison);
    disk.fail(Fault::WritesWith(POISON.to_vec()));

    let failed = site.try_once(ARGS).with_code(74);
    assert!(disk.failed() > 0, "no write failed: {failed}");
    let mut acknowledged = Vec::new();
    acknowledge(&failed, &mut acknowledged);
    // Others may have been in a batch before.
    assert!(acknowledged.iter().all(|(path, _)| *path != poisoned));
    assert!(site.state.join("suspect").is_file(), "{failed}");
    // Otherwise nothing is shown here.
    let cached = std::fs::read(&poisoned).expect("read the file");
    assert_eq!(cached, poison, "the cache shows what never got to the disk");

    // The disk is well again. The kernel tells of an error once for each file and once for the filesystem.
    disk.fail(Fault::None);
    let told_again = site.try_once(ARGS);
    let recovered = if told_again.status.success() {
        told_again
    } else {
        let told_again = told_again.with_code(74);
        acknowledge(&told_again, &mut acknowledged);
        site.run_once(ARGS)
    };
    acknowledge(&recovered, &mut acknowledged);
    disk.unmount();
    disk.mount().expect("mount it again");
    let lines = site.assert_agrees();
    for i in 0..5 {
        site.line(&format!("{i}.csv"));
    }
    assert_recorded_once(&lines, &acknowledged);
    let never_stored = sha256(&poison);
    assert!(lines.iter().all(|line| line.sha256() != never_stored));
    disk.unmount();
}

#[test]
fn a_disk_under_staging_and_warehouse_that_fails_a_flush_loses_nothing() {
    for_each_flush(Kind::Ext4, |site, disk| {
        site.staging = disk.join("staging");
        site.warehouse = disk.join("warehouse");
    });
}

#[test]
fn a_disk_under_the_manifests_that_fails_a_flush_loses_nothing() {
    for_each_flush(Kind::Xfs, |site, disk| {
        site.manifests = disk.join("manifests")
    });
}

#[test]
fn a_disk_under_the_ledger_that_fails_a_flush_loses_nothing() {
    for_each_flush(Kind::Ext4, |site, disk| site.state = disk.join("state"));
}

/// Runs, with the first flush failing and all after it, then with the second, and so on, until none is left to fail.
/// After each failure the disk is mounted anew, and is well.
fn for_each_flush(kind: Kind, put_on: fn(&mut Site, &Path)) {
    if !crate::can_run() {
        return;
    }
    let mut random = Random::new();
    let mut disk = Disk::new(kind);
    disk.mount().expect("mount a new filesystem");
    let mut site = Site::new();
    put_on(&mut site, disk.path());
    std::fs::create_dir_all(&site.staging).expect("make the staging directory");
    let mut sent = BTreeSet::new();
    let mut acknowledged: Vec<(PathBuf, String)> = Vec::new();
    for flush in 0.. {
        assert!(flush < 500, "there is always another flush to fail");
        for i in 0..4 {
            let content = random.bytes(3000);
            sent.insert(sha256(&content));
            site.put(format!("{flush}-{i}.csv"), content);
        }
        // What the writers wrote is the only copy, and is not what is at stake here.
        let root = std::fs::File::open(&site.staging).expect("open staging");
        rustix::fs::syncfs(root).expect("sync staging");
        disk.fail(Fault::FlushesFrom(flush));
        let run = site.try_once(ARGS);
        let failed = disk.failed() > 0;
        acknowledge(&run, &mut acknowledged);
        disk.fail(Fault::None);
        if !failed {
            run.ok();
            break;
        }
        // A flush of the filesystem's own, after the last of ringest's, concerns nobody.
        if !run.status.success() {
            let code = run.status.code();
            assert_eq!(code, Some(74), "flush {flush} failed: {run}");
        }
        disk.unmount();
        disk.mount().expect("mount it again");
        acknowledge(&site.run_once(ARGS), &mut acknowledged);
        let lines = site.assert_agrees();
        assert_recorded_once(&lines, &acknowledged);
    }
    site.assert_sound();
    let there: BTreeSet<String> = site
        .manifest()
        .iter()
        .map(|line| line.sha256().to_owned())
        .collect();
    assert_eq!(there, sent);
    disk.unmount();
}

fn acknowledge(run: &Finished, acknowledged: &mut Vec<(PathBuf, String)>) {
    for event in run.events("file_ingested", "") {
        let text = |field: &str| event[field].as_str().expect("text").to_owned();
        acknowledged.push((text("path").into(), text("sha256")));
    }
}

fn assert_recorded_once(lines: &[Line], acknowledged: &[(PathBuf, String)]) {
    for (path, digest) in acknowledged {
        let same = |line: &&Line| line.sha256() == digest && line.source_path() == *path;
        let count = lines.iter().filter(same).count();
        assert_eq!(count, 1, "acknowledged: {path:?} with {digest}");
    }
}
