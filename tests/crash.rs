//! Never lost, never twice: files arrive while ringest is killed again and again.
//!
//! What SIGKILL cannot show: the page cache survives it, so a missing sync goes unnoticed here. Power cuts are
//! another test.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::{Random, RunArgs, Running, Site, sha256, wait_until};

const FILES: usize = 5000;
const KILLS: usize = 50;
/// Every so many files one brings content that came before.
const DUPLICATE_EVERY: usize = 25;

#[test]
fn five_thousand_files_survive_fifty_kills() {
    survive(
        Site::new(),
        &["--mode", "closed", "--stability-seconds", "0.2"],
    );
}

#[test]
fn five_thousand_files_survive_fifty_kills_across_filesystems() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    survive(site, &["--mode", "closed", "--stability-seconds", "0.2"]);
}

#[test]
fn five_thousand_files_survive_fifty_kills_without_leases() {
    // Without a lease, only time tells that a file found by a scan is whole: more time than any write here takes.
    survive(
        Site::new(),
        &[
            "--mode",
            "closed",
            "--stability-seconds",
            "3",
            "--lease",
            "off",
        ],
    );
}

#[test]
fn five_thousand_files_survive_fifty_kills_in_stability_mode() {
    survive(Site::new(), &["--stability-seconds", "0.2"]);
}

/// What arrived.
#[derive(Default)]
struct Arrived {
    /// Digest → content length, of every content.
    contents: BTreeMap<String, usize>,
    duplicates: usize,
}

fn survive(site: Site, args: RunArgs) {
    let site = site.with(args);
    let mut random = Random::new();
    let mut writing = random.fork();
    let kills = AtomicUsize::new(0);
    let written = AtomicUsize::new(0);

    let (arrived, lines_before_the_last_run) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_files(&site, &mut writing, &kills, &written));
        for kill in 0..KILLS {
            let mut running = site.start(&[]);
            // Half of the kills hit the start and the recovery, half hit the work, however long it takes here until
            // there is some: without leases a file that a scan found waits for its interval first.
            if kill % 2 == 0 {
                running.wait_for_event("started", "");
                let all_written = || written.load(Ordering::Acquire) == may_be_written(kill);
                wait_until("a file is ingested or none is left", || {
                    at_work(&mut running) || all_written() && nothing_is_left(&site)
                });
            }
            std::thread::sleep(Duration::from_millis(5 + random.below(395)));
            running.kill();
            kills.fetch_add(1, Ordering::Release);
        }
        let arrived = writer.join().expect("the writer");
        (arrived, site.manifest_so_far().len())
    });
    // Otherwise nothing was killed in the middle of anything.
    assert!(
        lines_before_the_last_run > 100,
        "only {lines_before_the_last_run} files were ingested between the kills"
    );

    site.run_once(&[]);
    site.assert_sound();
    let ingested: BTreeSet<String> = site
        .manifest()
        .iter()
        .map(|line| line.sha256().to_owned())
        .collect();
    let missing: Vec<_> = arrived
        .contents
        .iter()
        .filter(|(digest, _)| !ingested.contains(*digest))
        .collect();
    assert!(missing.is_empty(), "lost: {missing:?}");
    let invented: Vec<_> = ingested
        .iter()
        .filter(|digest| !arrived.contents.contains_key(*digest))
        .collect();
    assert!(invented.is_empty(), "never sent: {invented:?}");
    assert_eq!(site.manifest().len(), arrived.contents.len());
    assert_eq!(site.duplicates().len(), arrived.duplicates);
    assert_eq!(site.quarantined().len(), 0);

    // And once more: there is nothing left to do.
    let before = site.manifest().len();
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), before);
    site.assert_sound();
}

/// How many files the writer writes before it waits for the next kill.
fn may_be_written(kills: usize) -> usize {
    (kills + 1) * FILES / KILLS
}

/// Whether this run has ingested a file.
fn at_work(running: &mut Running) -> bool {
    assert!(!running.has_ended(), "ringest ended by itself");
    let log = running.log();
    log.iter().any(|line| line.contains("\"file_ingested\""))
}

/// Whether no file waits in the staging directory.
fn nothing_is_left(site: &Site) -> bool {
    let mut entries = fs::read_dir(&site.staging).expect("list the staging directory");
    !entries.any(|entry| {
        let name = entry.expect("list the staging directory").file_name();
        name.to_string_lossy().ends_with(".csv")
    })
}

/// Writes all files, an even part of them between any two kills.
fn write_files(
    site: &Site,
    random: &mut Random,
    kills: &AtomicUsize,
    written: &AtomicUsize,
) -> Arrived {
    let mut arrived = Arrived::default();
    let mut earlier: Vec<Vec<u8>> = Vec::new();
    for i in 0..FILES {
        while i >= may_be_written(kills.load(Ordering::Acquire)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let content = if i % DUPLICATE_EVERY == DUPLICATE_EVERY - 1 {
            arrived.duplicates += 1;
            earlier.swap_remove(random.below(earlier.len() as u64) as usize)
        } else {
            let content = new_content(random, i);
            // Empty files are told apart by name: another one is no duplicate.
            if !content.is_empty() {
                earlier.push(content.clone());
            }
            content
        };
        let name = format!("{i}.csv");
        if random.below(2) == 0 {
            let unfinished = site.put(format!("{name}.tmp"), &content);
            fs::rename(unfinished, site.staging.join(name)).expect("rename");
        } else {
            let mut file = fs::File::create(site.staging.join(name)).expect("create");
            file.write_all(&content).expect("write");
        }
        arrived.contents.insert(sha256(&content), content.len());
        written.store(i + 1, Ordering::Release);
        if random.below(4) == 0 {
            std::thread::sleep(Duration::from_millis(random.below(8)));
        }
    }
    assert_eq!(
        arrived.contents.len() + arrived.duplicates,
        FILES,
        "the contents were meant to differ"
    );
    arrived
}

/// From nothing at all, once, to 64 KiB.
fn new_content(random: &mut Random, i: usize) -> Vec<u8> {
    match i {
        0 => Vec::new(),
        i if i % 7 == 0 => format!("{i}\n").into_bytes(),
        _ => {
            let len = 8 + random.below(64 * 1024 - 7) as usize;
            random.bytes(len)
        }
    }
}
