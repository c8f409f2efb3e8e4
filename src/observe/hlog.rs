//! Interval logs in the format of HdrHistogram (version 1.3, payload V2 compressed), which its own tools read: one
//! histogram for each [`Stage`] and interval in which something was measured, tagged with the stage's name.
//!
//! ```text
//! #[Histogram log format version 1.3]
//! #[StartTime: 1795326122.877 (seconds since epoch)]
//! #[BaseTime: 1795326122.877 (seconds since epoch)]
//! "StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"
//! Tag=read,0.000,10.000,1.253,HISTFAAA…
//! ```
//!
//! The values are microseconds; `Interval_Max`, which is for people, is in milliseconds. A file is appended to, each run
//! with its own start and base, so that a service that starts again loses nothing.

// It writes a file that the operator named, never one of the flow.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

use super::metrics::{Metrics, Stage, latencies};
use crate::failure::{Exit, Failure};
use crate::io::{lock, open};

/// How every interval log begins.
const HEAD: &[u8] = b"#[Histogram log format version ";
/// More than any line holds: the end of the last whole line is looked for in so much of a file's end.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// An interval log that is written.
pub struct Hlog {
    path: PathBuf,
    file: File,
    serializer: V2DeflateSerializer,
    start: Instant,
    /// Since when the next interval is measured.
    since: Duration,
    /// What was measured until then, in the order of [`Stage::ALL`].
    before: [Histogram<u64>; Stage::ALL.len()],
}

impl Hlog {
    /// Appends to `path`, or makes it. The first interval begins now.
    pub fn open(path: &Path) -> Result<Hlog, Failure> {
        Hlog::open_since(path, Instant::now())
    }

    /// The same with a first interval that has begun already.
    pub fn open_since(path: &Path, start: Instant) -> Result<Hlog, Failure> {
        let opened = || -> io::Result<Hlog> {
            let mut file = open_to_append(path)?;
            let began = SystemTime::now() - start.elapsed();
            let began = began.duration_since(UNIX_EPOCH);
            let began = began.unwrap_or_default().as_secs_f64();
            let head = format!(
                "#[Histogram log format version 1.3]\n\
                 #[ringest {}: microseconds; Interval_Max: milliseconds]\n\
                 #[StartTime: {began:.3} (seconds since epoch)]\n\
                 #[BaseTime: {began:.3} (seconds since epoch)]\n\
                 \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n",
                env!("CARGO_PKG_VERSION")
            );
            file.write_all(head.as_bytes())?;
            Ok(Hlog {
                path: path.to_owned(),
                file,
                serializer: V2DeflateSerializer::new(),
                start,
                since: Duration::ZERO,
                before: std::array::from_fn(|_| latencies()),
            })
        };
        opened().map_err(|error| unusable(path, &error))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what was measured since the last call, and nothing if that is nothing.
    pub fn write_interval(&mut self, metrics: &Metrics) -> io::Result<()> {
        let until = self.start.elapsed();
        let mut lines = String::new();
        for stage in Stage::ALL {
            let all = metrics.histogram(stage);
            let before = &mut self.before[stage as usize];
            let mut new = all.clone();
            new.subtract(&*before).map_err(io::Error::other)?;
            *before = all;
            if !new.is_empty() {
                self.render(&mut lines, stage.as_str(), self.since, until, &new)?;
            }
        }
        self.since = until;
        // One write: whoever reads meanwhile sees whole intervals.
        self.file.write_all(lines.as_bytes())
    }

    /// Writes one histogram of microseconds that was measured for so long, from the start of the log on.
    pub fn write_one(
        &mut self,
        tag: &str,
        histogram: &Histogram<u64>,
        until: Duration,
    ) -> io::Result<()> {
        let mut line = String::new();
        self.render(&mut line, tag, Duration::ZERO, until, histogram)?;
        self.file.write_all(line.as_bytes())
    }

    fn render(
        &mut self,
        out: &mut String,
        tag: &str,
        from: Duration,
        until: Duration,
        histogram: &Histogram<u64>,
    ) -> io::Result<()> {
        let mut payload = Vec::new();
        self.serializer
            .serialize(histogram, &mut payload)
            .map_err(io::Error::other)?;
        let (start, length) = (from.as_secs_f64(), (until - from).as_secs_f64());
        let max_ms = histogram.max() as f64 / 1000.0;
        // Writing to a String cannot fail.
        let _ = write!(out, "Tag={tag},{start:.3},{length:.3},{max_ms:.3},");
        BASE64.encode_append(&payload, out);
        out.push('\n');
        Ok(())
    }
}

/// Appends a log to the one at `path`, which is made if there is none.
pub fn append(log: &[u8], path: &Path) -> Result<(), Failure> {
    open_to_append(path)
        .and_then(|mut file| file.write_all(log))
        .map_err(|error| unusable(path, &error))
}

/// All of a log: for each tag the sum of its intervals.
pub fn read(log: &[u8]) -> io::Result<BTreeMap<String, Histogram<u64>>> {
    let malformed = |what: String| io::Error::new(ErrorKind::InvalidData, what);
    let mut deserializer = Deserializer::new();
    let mut sums: BTreeMap<String, Histogram<u64>> = BTreeMap::new();
    for entry in IntervalLogIterator::new(log) {
        let entry = entry.map_err(|error| malformed(format!("{error:?}")))?;
        let LogEntry::Interval(interval) = entry else {
            continue;
        };
        let payload = BASE64
            .decode(interval.encoded_histogram().as_bytes())
            .map_err(|error| malformed(error.to_string()))?;
        let histogram: Histogram<u64> = deserializer
            .deserialize(&mut &payload[..])
            .map_err(|error| malformed(error.to_string()))?;
        let tag = interval.tag().map_or("", |tag| tag.as_str()).to_owned();
        sums.entry(tag)
            .or_insert_with(latencies)
            .add(&histogram)
            .map_err(|error| malformed(error.to_string()))?;
    }
    Ok(sums)
}

/// Opens a log for appending, and locks it as long as it is open: two that write would cut off each other's lines. A last
/// line that a crash cut off goes: HdrHistogram's readers would stumble over it.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        // A FIFO without a reader is an error, not a wait.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let refused = |what: &str| Err(io::Error::new(ErrorKind::InvalidInput, what));
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return refused("it is not a regular file");
    }
    // Without a lock where there are none: some network filesystems.
    if matches!(lock::lock(&file), Ok(false)) {
        return refused("another process writes its latencies to it");
    }
    // Whoever had the lock before may have written.
    let length = file.metadata()?.len();
    let mut head = vec![0; HEAD.len().min(length as usize)];
    file.read_exact_at(&mut head, 0)?;
    if !HEAD.starts_with(&head) {
        return refused("there is a file that is not an interval log");
    }
    open::make_private(&file)?;
    let from = length.saturating_sub(LINE_BYTES_MAX);
    let mut end = vec![0; (length - from) as usize];
    file.read_exact_at(&mut end, from)?;
    let whole = match end.iter().rposition(|&byte| byte == b'\n') {
        Some(newline) => from + newline as u64 + 1,
        None if from == 0 => 0,
        None => return refused("it does not end as an interval log does"),
    };
    if whole < length {
        file.set_len(whole)?;
    }
    Ok(file)
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    let operation = "write latencies to";
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Failure::io(operation, path, error),
        _ => Failure::new(
            Exit::Config,
            operation,
            path,
            error,
            "give --hlog a file that can be made, or an interval log to append to",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run.hlog");
        (directory, path)
    }

    fn counts(path: &Path) -> Vec<(String, u64)> {
        let sums = read(&std::fs::read(path).expect("read")).expect("a log");
        sums.into_iter()
            .map(|(tag, sum)| (tag, sum.len()))
            .collect()
    }

    #[test]
    fn the_intervals_add_up_to_what_was_measured() {
        let (_directory, path) = here();
        let metrics = Metrics::new();
        let mut hlog = Hlog::open(&path).expect("open");
        hlog.write_interval(&metrics).expect("nothing to write");
        for round in 1..=3 {
            metrics.record_many(Stage::Read, (1..=100 * round).map(Duration::from_micros));
            metrics.record(Stage::Total, Duration::from_millis(7 * round));
            hlog.write_interval(&metrics).expect("write");
        }
        hlog.write_interval(&metrics).expect("nothing new");
        let text = std::fs::read_to_string(&path).expect("read");
        let intervals = |tag: &str| text.lines().filter(|line| line.starts_with(tag)).count();
        assert_eq!((intervals("Tag=read,"), intervals("Tag=total,")), (3, 3));
        assert_eq!(intervals("Tag="), 6);
        let sums = read(text.as_bytes()).expect("a log");
        for stage in [Stage::Read, Stage::Total] {
            assert_eq!(sums[stage.as_str()], metrics.histogram(stage), "{stage:?}");
        }
    }

    #[test]
    fn a_second_run_is_appended_and_what_a_crash_cut_off_goes() {
        let (_directory, path) = here();
        let mut one = latencies();
        one.record(5).expect("in bounds");
        let write = || {
            let mut hlog = Hlog::open(&path).expect("open");
            hlog.write_one("read", &one, Duration::from_secs(2))
                .expect("write");
        };
        write();
        let whole = std::fs::read(&path).expect("read");
        std::fs::write(&path, [&whole[..], b"Tag=read,0.000,1.0"].concat()).expect("tear");
        write();
        assert_eq!(counts(&path), [("read".into(), 2)]);
        assert!(std::fs::read(&path).expect("read").starts_with(&whole));
        append(&whole, &path).expect("append");
        assert_eq!(counts(&path), [("read".into(), 3)]);
    }

    #[test]
    fn one_at_a_time_writes_to_a_log() {
        let (_directory, path) = here();
        let open = Hlog::open(&path).expect("open");
        let refused = append(b"", &path).expect_err("it is written to");
        assert_eq!(refused.exit, Exit::Config);
        assert!(refused.cause.contains("another process"), "{refused}");
        drop(open);
        append(b"", &path).expect("it is free again");
    }

    #[test]
    fn a_log_that_is_written_afterwards_begins_when_it_was_measured() {
        let (_directory, path) = here();
        let start = Instant::now() - Duration::from_secs(3);
        let mut hlog = Hlog::open_since(&path, start).expect("open");
        let mut one = latencies();
        one.record(5).expect("in bounds");
        hlog.write_one("scheduled", &one, Duration::from_secs(60))
            .expect("write");
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(text.contains("Tag=scheduled,0.000,60.000,"), "{text}");
        let line = text.lines().find(|line| line.starts_with("#[StartTime: "));
        let began = line.and_then(|line| line[13..].split(' ').next()?.parse::<f64>().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later");
        let since = now.as_secs_f64() - began.expect("a time");
        assert!(since >= 2.9, "{since}");
    }

    #[test]
    fn a_file_that_is_no_interval_log_is_left_as_it_is() {
        let (directory, path) = here();
        for text in ["a,b\n1,2\n", "#", "# notes\n"] {
            std::fs::write(&path, text).expect("write");
            let refused = Hlog::open(&path).map(drop);
            assert_eq!(refused.is_err(), text != "#", "{text:?}");
            if let Err(failure) = refused {
                assert_eq!(failure.exit, Exit::Config);
                assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
            }
        }
        let refused = Hlog::open(directory.path())
            .map(drop)
            .expect_err("a directory");
        assert_eq!(refused.exit, Exit::Config);
    }
}
