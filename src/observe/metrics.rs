//! Counters, gauges and latency histograms.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A number of files and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Files.
    pub files: u64,
    /// Bytes of those files.
    pub bytes: u64,
}

impl Count {
    /// One file of this many bytes.
    pub fn file(bytes: u64) -> Count {
        Count { files: 1, bytes }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// What became of all files ever recorded; kept in the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// In the warehouse, with a manifest line.
    pub ingested: Count,
    /// Same content as one ingested before.
    pub duplicate: Count,
    /// Set aside by a rule.
    pub quarantined: Count,
    /// Gone before anything was acknowledged.
    pub withdrawn: Count,
}

/// A [`Count`] that many threads keep.
#[derive(Debug, Default)]
pub struct Tally {
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// Adds to it.
    pub fn add(&self, count: Count) {
        todo!()
    }
    /// Takes from it; never below zero.
    pub fn sub(&self, count: Count) {
        todo!()
    }
    /// Replaces it.
    pub fn set(&self, count: Count) {
        todo!()
    }
    /// Its value now.
    pub fn get(&self) -> Count {
        todo!()
    }
}

/// A part of a file's way whose duration is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// From the first sighting until it is known to be finished.
    Settle,
    /// Waiting for a reader.
    Queue,
    /// Reading, hashing, inspecting and copying.
    Read,
    /// From the end of the read until the file has its name in the warehouse.
    Place,
    /// From there until the manifest line is durable.
    Commit,
    /// From settled until the manifest line is durable.
    Total,
}

/// Everything counted and measured in one instance. Shared by `Arc`.
#[derive(Debug)]
pub struct Metrics {
    /// Files in the warehouse with a manifest line.
    pub ingested: Tally,
    /// Files whose content was ingested before.
    pub duplicate: Tally,
    /// Files set aside by a rule.
    pub quarantined: Tally,
    /// Files that went away before anything was acknowledged.
    pub withdrawn: Tally,
    /// Files seen and not recorded yet (a gauge).
    pub pending: Tally,
    /// Candidates in the queue (a gauge).
    pub queue_depth: AtomicU64,
    /// Operations that failed.
    pub errors: AtomicU64,
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Taking files.
    Running,
    /// Not taking files until a reason goes away.
    Paused,
    /// Finishing what is in flight.
    Draining,
    /// There is no instance; the numbers are the ledger's.
    Stopped,
}

/// Files or bytes by where they are. `discovered` is the sum of the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Standing {
    pub discovered: u64,
    pub ingested: u64,
    pub duplicate: u64,
    pub quarantined: u64,
    pub withdrawn: u64,
    pub pending: u64,
}

/// Percentiles of one stage, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
    /// Number of files measured.
    pub count: u64,
}

/// The answer to `ringest status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What the instance is doing.
    pub state: State,
    /// Why it is paused, if it is.
    pub pause_reason: Option<String>,
    /// Files ever discovered, by where they are.
    pub files: Standing,
    /// Their bytes.
    pub bytes: Standing,
    /// Candidates in the queue.
    pub queue_depth: u64,
    /// Age of the oldest file that is not recorded yet; 0 if there is none.
    pub oldest_pending_seconds: u64,
    /// Latencies of this run.
    pub latency_ms: BTreeMap<Stage, Latency>,
    /// Failed operations in this run.
    pub errors: u64,
    /// Log lines dropped in this run.
    pub log_dropped: u64,
    /// Process id, if there is an instance.
    pub pid: Option<u32>,
    /// Version of the program that answers.
    pub version: String,
    /// Since the start of the instance.
    pub uptime_seconds: u64,
}

/// The numbers of a `summary` event.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Files ingested, set aside or found to be duplicates in this run.
    pub files_processed: u64,
    /// Their bytes.
    pub bytes_processed: u64,
    /// Candidates in the queue.
    pub queue_depth: u64,
    /// Files seen and not recorded yet.
    pub pending: u64,
    /// Over the interval.
    pub files_per_second: f64,
    /// Over the interval.
    pub bytes_per_second: u64,
    /// p50, p99 and max of each stage in this run.
    pub latency_ms: BTreeMap<Stage, SummaryLatency>,
}

/// The percentiles that a summary shows, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct SummaryLatency {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// Where an interval of [`Metrics::summary`] began.
#[derive(Debug, Clone, Copy)]
pub struct Interval {
    since: Instant,
    processed: Count,
}

impl Stage {
    /// All stages, in the order of the flow.
    pub const ALL: [Stage; 6] = [
        Stage::Settle,
        Stage::Queue,
        Stage::Read,
        Stage::Place,
        Stage::Commit,
        Stage::Total,
    ];

    /// Its name in logs and status.
    pub fn as_str(self) -> &'static str {
        todo!()
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        todo!()
    }
}

impl Metrics {
    /// Everything zero; the run begins now.
    pub fn new() -> Metrics {
        todo!()
    }
    /// Takes over what earlier runs recorded. Before the flow starts.
    pub fn restore(&self, totals: Totals) {
        todo!()
    }
    /// What became of all files ever recorded.
    pub fn totals(&self) -> Totals {
        todo!()
    }
    /// What was processed in this run: ingested, duplicate and quarantined.
    pub fn processed(&self) -> Count {
        todo!()
    }
    /// Records how long a stage took for one file.
    pub fn record(&self, stage: Stage, took: Duration) {
        todo!()
    }
    /// The same for many files, under one lock.
    pub fn record_many(&self, stage: Stage, took: impl Iterator<Item = Duration>) {
        todo!()
    }
    /// Since when the oldest pending file is known; `None` if nothing is pending.
    pub fn set_oldest_pending(&self, since: Option<Instant>) {
        todo!()
    }
    /// Intake stops for this reason. Says whether that is news.
    pub fn pause(&self, reason: &str) -> bool {
        todo!()
    }
    /// Intake goes on. Says whether it was paused.
    pub fn resume(&self) -> bool {
        todo!()
    }
    /// Why intake is paused, if it is.
    pub fn pause_reason(&self) -> Option<String> {
        todo!()
    }
    /// What `status` shows. `Running` becomes `Paused` by itself.
    pub fn status(&self, state: State) -> Status {
        todo!()
    }
    /// The beginning of the run, as an interval.
    pub fn run(&self) -> Interval {
        todo!()
    }
    /// The numbers since `interval` began; the next interval begins here.
    pub fn summary(&self, interval: &mut Interval) -> Summary {
        todo!()
    }
}

impl Status {
    /// For people: an aligned table.
    pub fn to_text(&self) -> String {
        todo!()
    }
}
