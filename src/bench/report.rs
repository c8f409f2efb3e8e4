//! What a bench found: one JSON object, or a table for people.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Bench;
use super::ingest::Ended;
use super::pace::Measured;
use crate::observe::metrics::{Latency, Stage, Totals, grouped};
use crate::observe::usage::Usage;

/// The tag of latencies that count from a file's time in the schedule.
pub const SCHEDULED: &str = "scheduled";

/// The rest of a file's way: it was read, and waits until the recorder takes the batch that it belongs to.
const WAITING: &str = "waiting";

/// The stages that a file's way from first sight to durable line is divided into, besides [`WAITING`].
const PARTS: [Stage; 5] = [
    Stage::Settle,
    Stage::Queue,
    Stage::Read,
    Stage::Place,
    Stage::Commit,
];

/// The rows of the table, in the order of the flow.
const ROWS: [&str; 8] = [
    Stage::Settle.as_str(),
    Stage::Queue.as_str(),
    Stage::Read.as_str(),
    WAITING,
    Stage::Place.as_str(),
    Stage::Commit.as_str(),
    Stage::Total.as_str(),
    SCHEDULED,
];

/// The figures. Times have their unit in their name; rates are of the whole process, from its start to its end, or, with a
/// pace, from one interval before the time of the first file, so that there are as many intervals as files, until the last
/// one was durable.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of ringest.
    pub version: &'static str,
    /// Files made.
    pub files: u64,
    /// Bytes of each.
    pub file_bytes: u64,
    /// How many of them have the content of another one.
    pub duplicates_made: u64,
    /// They were not synced beforehand.
    pub dirty: bool,
    /// Their content was dropped from the page cache.
    pub cold: bool,
    /// The warehouse was on another filesystem.
    pub cross_fs: bool,
    /// Beneath this directory.
    pub cross_fs_directory: Option<PathBuf>,
    /// Files that the ledger says were ingested.
    pub files_ingested: u64,
    /// Files that the ledger says were duplicates.
    pub duplicates_found: u64,
    /// What the rates are of.
    pub elapsed_seconds: f64,
    /// From the start of the process until it took files; part of `elapsed_seconds`, except with a pace.
    pub startup_seconds: Option<f64>,
    /// Files over `elapsed_seconds`.
    pub files_per_second: f64,
    /// Their bytes over `elapsed_seconds`.
    pub bytes_per_second: u64,
    /// How the time of all files from first sight to durable line is divided among the stages; `waiting` is between read and
    /// place, until the recorder takes the batch.
    pub stage_share_percent: BTreeMap<&'static str, f64>,
    /// By stage, and with a pace `scheduled`: from the time of a file in the schedule until its line was durable.
    pub latency_ms: BTreeMap<String, Latency>,
    /// Processor time and memory of the process.
    #[serde(flatten)]
    pub usage: Usage,
    /// Most memory of its own, looked at every 50 ms.
    pub rss_anon_peak_bytes: Option<u64>,
    /// Events that the log dropped.
    pub log_dropped: u64,
    /// Files whose latencies are not known, because the ingestor could not write all of its interval log.
    pub unmeasured_files: u64,
    /// The last warnings of the ingestor, and what it fell back to, as it logged them.
    pub notices: Vec<String>,
    /// How the schedule was kept.
    pub pace: Option<Paced>,
    /// With `--keep`: where everything is.
    pub directory: Option<PathBuf>,
    /// With `--keep`: where the warehouse is.
    pub warehouse: Option<PathBuf>,
}

/// How a schedule was kept.
#[derive(Debug, Serialize)]
pub struct Paced {
    /// Files a second, as scheduled.
    pub rate_files_per_second: f64,
    /// How long files were scheduled for.
    pub scheduled_seconds: f64,
    /// Files durable more than 1 s after their time, besides the time of holding still.
    pub behind_files: u64,
    /// Files that were delivered more than 10 ms after their time.
    pub late_delivery_files: u64,
    /// How late a file was delivered at most.
    pub delivery_late_max_ms: f64,
    /// Most files that were due and not yet durable.
    pub backlog_files_max: u64,
    /// From the time of the last file until all were durable.
    pub drain_ms: f64,
    /// Files of which the log said nothing; their latencies are not known.
    pub unmeasured_files: u64,
    /// How far the wall clock, by which ends are known, and the steady one came apart.
    pub clock_drift_ms: f64,
}

impl Report {
    pub(super) fn new(
        bench: &Bench,
        ended: &Ended,
        latencies: &BTreeMap<String, Histogram<u64>>,
        measured: Option<Measured>,
        totals: Totals,
    ) -> Report {
        let of_schedule = bench.pace.as_ref().zip(measured.as_ref());
        let seconds = match of_schedule {
            Some((pace, measured)) => measured.elapsed.as_secs_f64() + 1.0 / pace.rate,
            None => ended.elapsed.as_secs_f64().max(1e-6),
        };
        let totals_known = latencies
            .get(Stage::Total.as_str())
            .map_or(0, Histogram::len);
        let data = &bench.data;
        let kept = |path: &PathBuf| bench.keep.then(|| path.clone());
        Report {
            version: env!("CARGO_PKG_VERSION"),
            files: data.files,
            file_bytes: data.file_bytes,
            duplicates_made: data.duplicates(),
            dirty: data.dirty,
            cold: data.cold,
            cross_fs: bench.elsewhere.is_some(),
            cross_fs_directory: bench
                .elsewhere
                .as_deref()
                .and_then(|it| Some(it.parent()?.to_owned())),
            files_ingested: totals.ingested.files,
            duplicates_found: totals.duplicate.files,
            elapsed_seconds: rounded(seconds, 6),
            startup_seconds: ended.startup.map(|it| rounded(it.as_secs_f64(), 6)),
            files_per_second: rounded(data.files as f64 / seconds, 3),
            bytes_per_second: ((data.files * data.file_bytes) as f64 / seconds).round() as u64,
            stage_share_percent: shares(latencies),
            latency_ms: latencies
                .iter()
                .map(|(tag, histogram)| (tag.clone(), Latency::of(histogram)))
                .collect(),
            usage: ended.usage,
            rss_anon_peak_bytes: ended.rss_anon_peak_bytes,
            log_dropped: ended.log_dropped,
            unmeasured_files: data.files.saturating_sub(totals_known),
            notices: ended.words.clone(),
            pace: bench.pace.zip(measured).map(|(pace, measured)| Paced {
                rate_files_per_second: pace.rate,
                scheduled_seconds: pace.seconds,
                behind_files: measured.behind_files,
                late_delivery_files: measured.late_deliveries,
                delivery_late_max_ms: ms(measured.delivery_late_max),
                backlog_files_max: measured.backlog_files_max,
                drain_ms: ms(measured.drain),
                unmeasured_files: measured.unmeasured_files,
                clock_drift_ms: ms(measured.clock_drift),
            }),
            directory: kept(&bench.root),
            warehouse: kept(&bench.settings.warehouse),
        }
    }
}

fn ms(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64() * 1000.0, 3)
}

fn rounded(number: f64, decimals: i32) -> f64 {
    let factor = 10f64.powi(decimals);
    (number * factor).round() / factor
}

fn shares(latencies: &BTreeMap<String, Histogram<u64>>) -> BTreeMap<&'static str, f64> {
    let sum = |stage: Stage| {
        let histogram = latencies.get(stage.as_str());
        histogram.map_or(0.0, |it| it.mean() * it.len() as f64)
    };
    let known: f64 = PARTS.map(sum).iter().sum();
    let all = (sum(Stage::Settle) + sum(Stage::Total)).max(known);
    let share = |part: f64| rounded(100.0 * part / all.max(1.0), 1);
    let parts = PARTS.map(|stage| (stage.as_str(), share(sum(stage))));
    parts
        .into_iter()
        .chain([(WAITING, share(all - known))])
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all_bytes = grouped(self.file_bytes);
        write!(f, "{} files of {all_bytes} bytes", grouped(self.files))?;
        let kinds = [
            (self.dirty, "never synced"),
            (!self.dirty, "synced beforehand"),
            (self.cold, "cold"),
        ];
        for (_, kind) in kinds.iter().filter(|(is, _)| *is) {
            write!(f, ", {kind}")?;
        }
        if let Some(directory) = &self.cross_fs_directory {
            write!(f, ", to another filesystem in {}", directory.display())?;
        }
        let (ingested, duplicate) = (self.files_ingested, self.duplicates_found);
        let (ingested, duplicate) = (grouped(ingested), grouped(duplicate));
        writeln!(f, "\n{ingested} ingested, {duplicate} duplicates\n")?;

        let rate = grouped(self.files_per_second.round() as u64);
        let megabytes = self.bytes_per_second as f64 / 1e6;
        let seconds = self.elapsed_seconds;
        write!(
            f,
            "rate        {rate} files/s, {megabytes:.1} MB/s over {seconds:.3} s"
        )?;
        match self.startup_seconds.filter(|_| self.pace.is_none()) {
            Some(startup) => writeln!(f, ", {startup:.3} s of them to start")?,
            None => writeln!(f)?,
        }
        let shown = |number: Option<f64>| number.map_or("?".into(), |it| format!("{it:.2}"));
        let (user, system) = (self.usage.cpu_user_seconds, self.usage.cpu_system_seconds);
        writeln!(
            f,
            "processor   {} s user, {} s system",
            shown(user),
            shown(system)
        )?;
        let mib = |bytes: Option<u64>| shown(bytes.map(|it| it as f64 / 1_048_576.0));
        let (peak, anon) = (self.usage.rss_peak_bytes, self.rss_anon_peak_bytes);
        writeln!(
            f,
            "memory      {} MiB at most, {} MiB of it its own",
            mib(peak),
            mib(anon)
        )?;
        if let Some(pace) = &self.pace {
            write!(f, "{pace}")?;
        }

        let [share, p50, p90, p99, p99_9, max] = ["share", "p50", "p90", "p99", "p99.9", "max"];
        writeln!(
            f,
            "\n{:<12}{share:>8}{p50:>12}{p90:>12}{p99:>12}{p99_9:>12}{max:>12}",
            "latency, ms"
        )?;
        for name in ROWS {
            let (share, latency) = (
                self.stage_share_percent.get(name),
                self.latency_ms.get(name),
            );
            if share.is_none() && latency.is_none() {
                continue;
            }
            let share = share.map_or(String::new(), |share| format!("{share:.1} %"));
            write!(f, "{name:<12}{share:>8}")?;
            for number in latency
                .iter()
                .flat_map(|it| [it.p50, it.p90, it.p99, it.p99_9, it.max])
            {
                write!(f, "{number:>12.3}")?;
            }
            writeln!(f)?;
        }
        if self.unmeasured_files > 0 {
            let files = grouped(self.unmeasured_files);
            writeln!(f, "\nof {files} files the latencies are not known")?;
        }
        for notice in &self.notices {
            writeln!(f, "\nit said: {notice}")?;
        }
        if let Some(directory) = &self.directory {
            writeln!(f, "\nkept in {}", directory.display())?;
        }
        if let Some(warehouse) = self.warehouse.as_ref().filter(|_| self.cross_fs) {
            writeln!(f, "the warehouse in {}", warehouse.display())?;
        }
        Ok(())
    }
}

impl fmt::Display for Paced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, seconds) = (self.rate_files_per_second, self.scheduled_seconds);
        writeln!(f, "schedule    {rate} files/s for {seconds} s")?;
        match self.behind_files {
            0 if self.unmeasured_files > 0 => writeln!(f, "behind      nothing that was measured")?,
            0 => writeln!(f, "behind      nothing fell behind")?,
            files => writeln!(
                f,
                "behind      {} files fell behind by more than 1 s",
                grouped(files)
            )?,
        }
        let (backlog, drain) = (grouped(self.backlog_files_max), self.drain_ms);
        writeln!(
            f,
            "backlog     {backlog} files at most; {drain:.1} ms after the last one's time, all were done"
        )?;
        let (late, max) = (grouped(self.late_delivery_files), self.delivery_late_max_ms);
        writeln!(
            f,
            "deliveries  {late} more than 10 ms late, {max:.1} ms at most; that counts as latency"
        )?;
        if self.unmeasured_files > 0 {
            let files = grouped(self.unmeasured_files);
            writeln!(
                f,
                "unmeasured  {files} files, of which the log said nothing"
            )?;
        }
        if self.clock_drift_ms >= 1.0 {
            let drift = self.clock_drift_ms;
            writeln!(
                f,
                "clock       was adjusted by {drift:.1} ms meanwhile: latencies are wrong by up to that"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::{latencies, record};

    #[test]
    fn shares_are_of_the_time_of_all_files_and_add_up() {
        let of = |millis: &[u64]| {
            let mut histogram = latencies();
            for &ms in millis {
                record(&mut histogram, Duration::from_millis(ms));
            }
            histogram
        };
        let all = BTreeMap::from([
            ("read".to_owned(), of(&[10, 20])),
            ("commit".to_owned(), of(&[30, 30])),
            ("settle".to_owned(), of(&[3, 7])),
            ("total".to_owned(), of(&[50, 60])),
        ]);
        let shares = shares(&all);
        assert_eq!((shares["read"], shares["commit"]), (25.0, 50.0));
        assert_eq!((shares["settle"], shares["queue"]), (8.3, 0.0));
        assert_eq!(shares["waiting"], 16.7, "what is left of settle and total");
        assert!(!shares.contains_key("total"));
        assert_eq!(super::shares(&BTreeMap::new())["read"], 0.0);
    }
}
