//! Counters, gauges and latency histograms, and the two ways they are shown: [`Status`] and
//! [`Summary`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::AddAssign;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::log;
use super::mask::mask;

/// Longest latency told apart; longer ones count as this. In microseconds: one hour.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// Significant decimal digits of a latency.
const LATENCY_DIGITS: u8 = 3;

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
        self.files.fetch_add(count.files, Ordering::Relaxed);
        self.bytes.fetch_add(count.bytes, Ordering::Relaxed);
    }

    /// Takes from it; never below zero.
    pub fn sub(&self, count: Count) {
        let take = |from: &AtomicU64, n: u64| {
            let less = |value: u64| Some(value.saturating_sub(n));
            let _ = from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        };
        take(&self.files, count.files);
        take(&self.bytes, count.bytes);
    }

    /// Replaces it.
    pub fn set(&self, count: Count) {
        self.files.store(count.files, Ordering::Relaxed);
        self.bytes.store(count.bytes, Ordering::Relaxed);
    }

    /// Its value now.
    pub fn get(&self) -> Count {
        Count {
            files: self.files.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
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
    /// Bytes that readers have read in this run: of files, or of the copies that the kernel made of them, and of sidecars. What is
    /// read again counts again.
    pub bytes_read: AtomicU64,
    /// Names in staging that could not be removed.
    owed: Mutex<OwedRemovals>,
    /// Operations that failed.
    pub errors: AtomicU64,
    /// Readers that work, and files that each may have open.
    readers: AtomicU64,
    files_in_flight: AtomicU64,
    started: Instant,
    /// What earlier runs had processed.
    processed_before: Tally,
    oldest_pending: Mutex<Option<Instant>>,
    pause_reason: Mutex<Option<String>>,
    /// Microseconds, in the order of [`Stage::ALL`].
    latencies: [Mutex<Histogram<u64>>; 6],
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
pub struct Standing {
    /// Ever seen.
    pub discovered: u64,
    /// In the warehouse, with a manifest line.
    pub ingested: u64,
    /// Same content as one ingested before.
    pub duplicate: u64,
    /// Set aside by a rule.
    pub quarantined: u64,
    /// Gone before anything was acknowledged.
    pub withdrawn: u64,
    /// Not recorded yet.
    pub pending: u64,
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// Nine in ten were no slower.
    pub p90: f64,
    /// 99 in 100 were no slower.
    pub p99: f64,
    /// 999 in 1,000 were no slower.
    // Earlier versions left none.
    #[serde(default)]
    pub p99_9: f64,
    /// Slowest.
    pub max: f64,
    /// Number of files measured.
    pub count: u64,
}

/// Names in staging that are done with and could not be removed yet: their uploader keeps us out of its directory, say. The next start
/// tries again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwedRemovals {
    /// How many.
    pub files: u64,
    /// The first [`OWED_PATHS_MAX`] of them.
    pub paths: Vec<String>,
}

/// Most paths that `status` shows of names that could not be removed.
pub const OWED_PATHS_MAX: usize = 10;

impl OwedRemovals {
    /// Adds one.
    pub fn add(&mut self, path: &Path) {
        self.files += 1;
        if self.paths.len() < OWED_PATHS_MAX {
            self.paths.push(mask(&path.to_string_lossy()).into_owned());
        }
    }
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
    /// Readers that work now; 0 without an instance.
    #[serde(default)]
    pub readers: u64,
    /// Files that each of them may have open at once.
    #[serde(default)]
    pub files_in_flight: u64,
    /// Bytes that readers have read in this run; those of files that were read again count again.
    #[serde(default)]
    pub bytes_read: u64,
    /// Names in staging that could not be removed yet.
    #[serde(default)]
    pub owed: OwedRemovals,
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
    /// Bytes that readers have read in this run; those of files that were read again count again.
    pub bytes_read: u64,
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
pub struct SummaryLatency {
    /// Median.
    pub p50: f64,
    /// 99 in 100 were no slower.
    pub p99: f64,
    /// Slowest.
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
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Settle => "settle",
            Stage::Queue => "queue",
            Stage::Read => "read",
            Stage::Place => "place",
            Stage::Commit => "commit",
            Stage::Total => "total",
        }
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// Everything zero; the run begins now.
    pub fn new() -> Metrics {
        Metrics {
            ingested: Tally::default(),
            duplicate: Tally::default(),
            quarantined: Tally::default(),
            withdrawn: Tally::default(),
            pending: Tally::default(),
            queue_depth: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            owed: Mutex::default(),
            errors: AtomicU64::new(0),
            readers: AtomicU64::new(0),
            files_in_flight: AtomicU64::new(0),
            started: Instant::now(),
            processed_before: Tally::default(),
            oldest_pending: Mutex::new(None),
            pause_reason: Mutex::new(None),
            latencies: std::array::from_fn(|_| Mutex::new(latencies())),
        }
    }

    /// Takes over what earlier runs recorded. Call it before the flow starts.
    pub fn restore(&self, totals: Totals) {
        self.ingested.set(totals.ingested);
        self.duplicate.set(totals.duplicate);
        self.quarantined.set(totals.quarantined);
        self.withdrawn.set(totals.withdrawn);
        self.processed_before.set(self.processed_ever());
    }

    /// What became of all files ever recorded.
    pub fn totals(&self) -> Totals {
        Totals {
            ingested: self.ingested.get(),
            duplicate: self.duplicate.get(),
            quarantined: self.quarantined.get(),
            withdrawn: self.withdrawn.get(),
        }
    }

    /// What was processed in this run: ingested, duplicate and quarantined.
    pub fn processed(&self) -> Count {
        difference(self.processed_ever(), self.processed_before.get())
    }

    fn processed_ever(&self) -> Count {
        let mut count = self.ingested.get();
        count += self.duplicate.get();
        count += self.quarantined.get();
        count
    }

    /// Records how long a stage took for one file.
    pub fn record(&self, stage: Stage, took: Duration) {
        self.record_many(stage, std::iter::once(took));
    }

    /// The same for many files, under one lock.
    pub fn record_many(&self, stage: Stage, took: impl Iterator<Item = Duration>) {
        let mut histogram = lock(&self.latencies[stage as usize]);
        for took in took {
            record(&mut histogram, took);
        }
    }

    /// Since when the oldest pending file is known; `None` if nothing is pending.
    pub fn set_oldest_pending(&self, since: Option<Instant>) {
        *lock(&self.oldest_pending) = since;
    }

    /// Intake stops for this reason, which is shown with card numbers masked. Says whether that is news.
    pub fn pause(&self, reason: &str) -> bool {
        let reason = &*mask(reason);
        let mut paused = lock(&self.pause_reason);
        let news = paused.as_deref() != Some(reason);
        if news {
            *paused = Some(reason.to_owned());
        }
        news
    }

    /// Intake goes on. Says whether it was paused.
    pub fn resume(&self) -> bool {
        lock(&self.pause_reason).take().is_some()
    }

    /// So many readers work now, and each may have so many files open.
    pub fn set_readers(&self, readers: usize, files_in_flight: usize) {
        self.readers.store(readers as u64, Ordering::Relaxed);
        (self.files_in_flight).store(files_in_flight as u64, Ordering::Relaxed);
    }

    /// A name in staging could not be removed.
    pub fn owes_removal(&self, path: &Path) {
        lock(&self.owed).add(path);
    }

    /// Why intake is paused, if it is.
    pub fn pause_reason(&self) -> Option<String> {
        lock(&self.pause_reason).clone()
    }

    /// What `status` shows. A running instance that has a reason to pause is shown as paused.
    pub fn status(&self, state: State) -> Status {
        let pause_reason = self.pause_reason();
        let state = match state {
            State::Running if pause_reason.is_some() => State::Paused,
            state => state,
        };
        let alive = state != State::Stopped;
        let totals = self.totals();
        let pending = self.pending.get();
        let oldest_pending = lock(&self.oldest_pending).map_or(0, |at| at.elapsed().as_secs());
        let while_alive = |gauge: &AtomicU64| match alive {
            true => gauge.load(Ordering::Relaxed),
            false => 0,
        };
        Status {
            state,
            pause_reason,
            files: Standing::of(&totals, pending, |count| count.files),
            bytes: Standing::of(&totals, pending, |count| count.bytes),
            queue_depth: self.queue_depth.load(Ordering::Relaxed),
            oldest_pending_seconds: oldest_pending,
            readers: while_alive(&self.readers),
            files_in_flight: while_alive(&self.files_in_flight),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            owed: lock(&self.owed).clone(),
            latency_ms: self.latencies(),
            errors: self.errors.load(Ordering::Relaxed),
            log_dropped: log::dropped(),
            pid: alive.then(std::process::id),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: if alive {
                self.started.elapsed().as_secs()
            } else {
                0
            },
        }
    }

    /// The interval from the start of the run until now.
    pub fn run(&self) -> Interval {
        Interval {
            since: self.started,
            processed: Count::default(),
        }
    }

    /// An interval that begins now.
    pub fn interval(&self) -> Interval {
        Interval {
            since: Instant::now(),
            processed: self.processed(),
        }
    }

    /// The numbers since `interval` began; the next interval begins here.
    pub fn summary(&self, interval: &mut Interval) -> Summary {
        let next = self.interval();
        let seconds = (next.since - interval.since).as_secs_f64().max(1e-9);
        let done = difference(next.processed, interval.processed);
        *interval = next;
        let latency_ms = self.latencies().into_iter().map(|(stage, latency)| {
            let Latency { p50, p99, max, .. } = latency;
            (stage, SummaryLatency { p50, p99, max })
        });
        Summary {
            files_processed: next.processed.files,
            bytes_processed: next.processed.bytes,
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            queue_depth: self.queue_depth.load(Ordering::Relaxed),
            pending: self.pending.get().files,
            files_per_second: (done.files as f64 / seconds * 10.0).round() / 10.0,
            bytes_per_second: (done.bytes as f64 / seconds).round() as u64,
            latency_ms: latency_ms.collect(),
        }
    }

    /// All latencies of a stage in this run, as of now.
    pub fn histogram(&self, stage: Stage) -> Histogram<u64> {
        lock(&self.latencies[stage as usize]).clone()
    }

    fn latencies(&self) -> BTreeMap<Stage, Latency> {
        let of = |stage: Stage| Latency::of(&lock(&self.latencies[stage as usize]));
        Stage::ALL.map(|stage| (stage, of(stage))).into()
    }
}

/// An empty histogram of latencies, in microseconds.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, LATENCY_DIGITS)
        .expect("constant bounds that HdrHistogram takes")
}

/// Adds a latency to such a histogram.
pub fn record(histogram: &mut Histogram<u64>, took: Duration) {
    let us = u64::try_from(took.as_micros()).unwrap_or(LATENCY_MAX_US);
    histogram.saturating_record(us.clamp(1, LATENCY_MAX_US));
}

impl Standing {
    fn of(totals: &Totals, pending: Count, part: impl Fn(Count) -> u64) -> Standing {
        let mut standing = Standing {
            discovered: 0,
            ingested: part(totals.ingested),
            duplicate: part(totals.duplicate),
            quarantined: part(totals.quarantined),
            withdrawn: part(totals.withdrawn),
            pending: part(pending),
        };
        standing.discovered = standing.ingested
            + standing.duplicate
            + standing.quarantined
            + standing.withdrawn
            + standing.pending;
        standing
    }

    /// Each part with its name, in the order of the table.
    fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("discovered", self.discovered),
            ("ingested", self.ingested),
            ("duplicate", self.duplicate),
            ("quarantined", self.quarantined),
            ("withdrawn", self.withdrawn),
            ("pending", self.pending),
        ]
    }
}

impl Latency {
    /// Those of latencies in microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Latency {
        // Whole microseconds: at most three decimals.
        let ms = |us: u64| us as f64 / 1000.0;
        Latency {
            p50: ms(histogram.value_at_quantile(0.50)),
            p90: ms(histogram.value_at_quantile(0.90)),
            p99: ms(histogram.value_at_quantile(0.99)),
            p99_9: ms(histogram.value_at_quantile(0.999)),
            max: ms(histogram.max()),
            count: histogram.len(),
        }
    }
}

impl State {
    /// Its name in `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Paused => "paused",
            State::Draining => "draining",
            State::Stopped => "stopped",
        }
    }
}

impl Status {
    /// For people: an aligned table.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        write!(out, "ringest {}: {}", self.version, self.state.as_str())?;
        if let Some(pid) = self.pid {
            write!(out, ", pid {pid}, up {} s", grouped(self.uptime_seconds))?;
        }
        writeln!(out)?;
        if let Some(reason) = &self.pause_reason {
            writeln!(out, "paused: {}", reason.escape_debug())?;
        }

        writeln!(out, "\n{:<12}{:>16}{:>24}", "", "files", "bytes")?;
        for ((name, files), (_, bytes)) in self.files.parts().into_iter().zip(self.bytes.parts()) {
            let (files, bytes) = (grouped(files), grouped(bytes));
            writeln!(out, "{name:<12}{files:>16}{bytes:>24}")?;
        }

        writeln!(out, "\nqueue depth     {}", grouped(self.queue_depth))?;
        let oldest = grouped(self.oldest_pending_seconds);
        writeln!(out, "oldest pending  {oldest} s")?;
        if self.readers > 0 {
            let (readers, files) = (self.readers, self.files_in_flight);
            writeln!(
                out,
                "readers         {readers}, each with up to {files} files in flight"
            )?;
        }
        writeln!(out, "bytes read      {}", grouped(self.bytes_read))?;
        if self.owed.files > 0 {
            let files = grouped(self.owed.files);
            writeln!(out, "not removed     {files} names in staging, such as")?;
            for path in &self.owed.paths {
                writeln!(out, "                {}", path.escape_debug())?;
            }
        }
        writeln!(out, "errors          {}", grouped(self.errors))?;
        writeln!(out, "log dropped     {}", grouped(self.log_dropped))?;

        if self.latency_ms.values().any(|latency| latency.count > 0) {
            let [p50, p90, p99, max, count] = ["p50", "p90", "p99", "max", "files"];
            writeln!(
                out,
                "\n{:<12}{p50:>12}{p90:>12}{p99:>12}{max:>12}{count:>14}",
                "latency, ms"
            )?;
            for (stage, latency) in &self.latency_ms {
                let Latency {
                    p50,
                    p90,
                    p99,
                    max,
                    count,
                    ..
                } = latency;
                let (stage, count) = (stage.as_str(), grouped(*count));
                writeln!(
                    out,
                    "{stage:<12}{p50:>12.3}{p90:>12.3}{p99:>12.3}{max:>12.3}{count:>14}"
                )?;
            }
        }
        Ok(())
    }
}

/// A number with its thousands apart: `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What was added since; files and bytes are read one after the other, so never below zero.
fn difference(now: Count, before: Count) -> Count {
    Count {
        files: now.files.saturating_sub(before.files),
        bytes: now.bytes.saturating_sub(before.bytes),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(files: u64, bytes: u64) -> Count {
        Count { files, bytes }
    }

    #[test]
    fn discovered_is_the_sum_of_everything_else() {
        let metrics = Metrics::new();
        metrics.restore(Totals {
            ingested: count(10, 1000),
            duplicate: count(2, 20),
            quarantined: count(3, 33),
            withdrawn: count(1, 0),
        });
        metrics.ingested.add(Count::file(7));
        metrics.pending.add(count(5, 50));
        metrics.pending.sub(count(1, 60));
        let status = metrics.status(State::Running);
        assert_eq!(status.files.discovered, 11 + 2 + 3 + 1 + 4);
        assert_eq!(status.bytes.discovered, 1007 + 20 + 33);
        assert_eq!(metrics.totals().ingested, count(11, 1007));
        assert_eq!(metrics.processed(), Count::file(7), "of this run only");
    }

    #[test]
    fn percentiles_are_in_milliseconds_within_a_thousandth() {
        let metrics = Metrics::new();
        metrics.record_many(Stage::Read, (1..=1000).map(Duration::from_millis));
        let latency = metrics.status(State::Running).latency_ms[&Stage::Read];
        let close = |value: f64, wanted: f64| (value - wanted).abs() <= wanted / 1000.0;
        assert!(close(latency.p50, 500.0), "{latency:?}");
        assert!(close(latency.p90, 900.0), "{latency:?}");
        assert!(close(latency.p99, 990.0), "{latency:?}");
        assert!(close(latency.p99_9, 999.0), "{latency:?}");
        assert!(close(latency.max, 1000.0), "{latency:?}");
        assert_eq!(latency.count, 1000);
    }

    #[test]
    fn latencies_out_of_bounds_count_as_the_bound() {
        let metrics = Metrics::new();
        metrics.record(Stage::Settle, Duration::ZERO);
        metrics.record(Stage::Total, Duration::MAX);
        let latency_ms = metrics.status(State::Running).latency_ms;
        assert_eq!(latency_ms[&Stage::Settle].max, 0.001);
        let hour_ms = 3_600_000.0;
        assert!((latency_ms[&Stage::Total].max - hour_ms).abs() < hour_ms / 1000.0);
    }

    #[test]
    fn rates_are_of_the_interval_and_counts_of_the_run() {
        let metrics = Metrics::new();
        let mut interval = metrics.run();
        metrics.ingested.add(count(100, 1000));
        let first = metrics.summary(&mut interval);
        assert_eq!((first.files_processed, first.bytes_processed), (100, 1000));
        assert!(first.files_per_second > 0.0 && first.bytes_per_second > 0);
        let second = metrics.summary(&mut interval);
        assert_eq!(second.files_processed, 100);
        assert_eq!((second.files_per_second, second.bytes_per_second), (0.0, 0));
    }

    #[test]
    fn a_card_number_in_a_reason_to_pause_is_masked() {
        let metrics = Metrics::new();
        assert!(metrics.pause("no room for /w/4111111111111111.csv"));
        assert!(!metrics.pause("no room for /w/4111111111111111.csv"));
        let reason = metrics.status(State::Running).pause_reason;
        assert_eq!(reason.as_deref(), Some("no room for /w/****1111.csv"));
    }

    #[test]
    fn a_pause_shows_until_it_ends_and_is_news_once() {
        let metrics = Metrics::new();
        assert!(metrics.pause("disk full"));
        assert!(!metrics.pause("disk full"));
        let status = metrics.status(State::Running);
        assert_eq!(status.state, State::Paused);
        assert_eq!(status.pause_reason.as_deref(), Some("disk full"));
        assert_eq!(metrics.status(State::Draining).state, State::Draining);
        assert!(metrics.resume() && !metrics.resume());
        assert_eq!(metrics.status(State::Running).state, State::Running);
    }

    #[test]
    fn a_status_survives_json_with_its_stages_in_the_order_of_the_flow() {
        let metrics = Metrics::new();
        metrics.record(Stage::Commit, Duration::from_micros(1234));
        metrics.set_oldest_pending(Some(Instant::now()));
        let status = metrics.status(State::Running);
        let json = serde_json::to_string(&status).expect("JSON");
        assert!(json.starts_with(r#"{"state":"running","pause_reason":null,"files":{"#));
        let at = |stage: Stage| json.find(&format!("\"{}\":{{", stage.as_str()));
        let places = Stage::ALL.map(|stage| at(stage).expect("every stage"));
        assert!(places.is_sorted());
        let back: Status = serde_json::from_str(&json).expect("a status");
        assert_eq!(back, status);
    }

    #[test]
    fn the_status_of_no_instance_has_no_pid() {
        let status = Metrics::new().status(State::Stopped);
        assert_eq!((status.pid, status.uptime_seconds), (None, 0));
    }

    #[test]
    fn readers_are_shown_while_there_are_any() {
        let metrics = Metrics::new();
        metrics.set_readers(3, 16);
        let status = metrics.status(State::Running);
        assert_eq!((status.readers, status.files_in_flight), (3, 16));
        let line = "\nreaders         3, each with up to 16 files in flight\n";
        assert!(status.to_text().contains(line), "{}", status.to_text());
        let status = metrics.status(State::Stopped);
        assert_eq!((status.readers, status.files_in_flight), (0, 0));
        assert!(!status.to_text().contains("readers"));
        // What an older version left in the ledger is still understood.
        let mut older = serde_json::to_value(&status).expect("JSON");
        let fields = older.as_object_mut().expect("an object");
        let newer = ["readers", "files_in_flight", "bytes_read"];
        fields.retain(|name, _| !newer.contains(&name.as_str()));
        let back: Status = serde_json::from_value(older).expect("a status");
        assert_eq!(back, status);
    }

    #[test]
    fn the_table_is_aligned() {
        let metrics = Metrics::new();
        metrics.ingested.add(count(1_234_567, 89_000_000_000));
        metrics.record(Stage::Read, Duration::from_micros(1500));
        let mut status = metrics.status(State::Running);
        (status.pid, status.uptime_seconds) = (Some(42), 3600);
        status.version = "0.1.0".into();
        let text = status.to_text();
        assert!(text.starts_with("ringest 0.1.0: running, pid 42, up 3,600 s\n"));
        assert!(text.contains("ingested           1,234,567          89,000,000,000\n"));
        let table = |name: &str| {
            let mut rows = text.lines().filter(|line| line.starts_with(name));
            rows.next().expect("a row").len()
        };
        assert_eq!(table("discovered"), table("pending"));
        assert_eq!(table("latency, ms"), table("read"));
    }
}
