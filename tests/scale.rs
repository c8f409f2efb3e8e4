//! Many files waiting, and none: what discovery costs.
//!
//! The limits are promises, not waits: a machine that is too busy to keep them fails the test.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::{Running, Site, files_beneath, wait_until};

const WAITING: usize = 300_000;
const FIRST_WITHIN: Duration = Duration::from_secs(2);
const RSS_ANON_MAX_KIB: u64 = 300 * 1024;
/// How many of the files are ingested before the measurement of memory ends.
const INGESTED: usize = 100_000;

#[test]
fn with_300_000_files_waiting_the_first_is_ingested_within_two_seconds() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for i in 0..WAITING {
        site.put(format!("{i:06}.csv"), format!("{i},a small file\n"));
    }
    // They wait, they are not being written: otherwise the first sync of ringest would be the one that brings all of
    // them to the disk, since ext4 commits its journal as a whole.
    rustix::fs::sync();
    let start = Instant::now();
    let mut running = site.start(&[]);
    wait_until("the first file is in the manifest", || {
        assert!(!running.has_ended(), "ringest ended by itself");
        lines(&site) > 0
    });
    let first = start.elapsed();
    assert!(first < FIRST_WITHIN, "the first file took {first:?}");

    let mut highest = 0;
    wait_until("a third of the files is ingested", || {
        assert!(!running.has_ended(), "ringest ended by itself");
        highest = highest.max(rss_anon_kib(&running));
        lines(&site) >= INGESTED
    });
    assert!(
        highest > 0 && highest < RSS_ANON_MAX_KIB,
        "RssAnon rose to {highest} KiB"
    );
    running.terminate();
    site.verify(&[]).ok();
}

#[test]
fn an_idle_watcher_uses_no_more_than_one_percent_of_a_core() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let mut running = site.start(&[]);
    for i in 0..1000 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    site.wait_for_lines(&mut running, 1000);
    let measured = Duration::from_secs(10);
    let before = cpu_time(&running);
    std::thread::sleep(measured);
    let used = cpu_time(&running) - before;
    assert!(
        used * 100 <= measured,
        "{used:?} of processor time in {measured:?}"
    );
    running.terminate();
}

/// How many lines the manifest has, without reading them as JSON.
fn lines(site: &Site) -> usize {
    let manifests = files_beneath(&site.manifests).into_iter();
    let manifests = manifests.filter(|file| file.ends_with("manifest.jsonl"));
    let count = |bytes: Vec<u8>| bytes.iter().filter(|&&byte| byte == b'\n').count();
    manifests
        .map(|file| count(fs::read(file).expect("read the manifest")))
        .sum()
}

fn rss_anon_kib(running: &Running) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", running.id())).expect("read its status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .expect("RssAnon in its status")
        .parse()
        .expect("a number")
}

/// Processor time of all its threads: user and system, in ticks of 10 ms.
fn cpu_time(running: &Running) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", running.id())).expect("read its stat");
    // The name in parentheses may hold anything; utime and stime are the 14th and 15th field.
    let after_name = stat.rsplit_once(") ").expect("a name in parentheses").1;
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks = |field: &str| field.parse::<u64>().expect("a number of ticks");
    Duration::from_millis((ticks(fields[11]) + ticks(fields[12])) * 10)
}
