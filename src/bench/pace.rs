//! Files that come on a schedule, whatever ingestion does meanwhile.
//!
//! Each latency counts from the time at which its file *should* have come. So if deliveries or ingestion stall, all files
//! that were due meanwhile count as late, not only the one that was stuck: nothing is omitted because the generator waited,
//! too ("coordinated omission", Gil Tene).

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;

use super::dataset::{DataSet, Writer};
use super::ingest::{Done, Heard, Ingest};
use super::{Bench, Progress};
use crate::observe::metrics::{latencies, record};
use crate::settings::Mode;

/// From the start of ingestion to the first file.
const LEAD: Duration = Duration::from_millis(200);
/// A delivery later than this is counted.
const LATE: Duration = Duration::from_millis(10);
/// A file has fallen behind that is this late, besides the time that it has to hold still.
const BEHIND: Duration = Duration::from_secs(1);
/// How long nothing may be heard, once all files are there, before the rest is given up.
const STALLED: Duration = Duration::from_secs(30);
/// How long the generator sleeps before it looks whether it is still wanted.
const NAP: Duration = Duration::from_millis(50);

/// The schedule.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Files a second.
    pub rate: f64,
    /// For how long.
    pub seconds: f64,
}

/// What came of it.
#[derive(Debug)]
pub struct Measured {
    /// The time of the first file.
    pub begin: Instant,
    /// From there until the last one was durable.
    pub elapsed: Duration,
    /// From the time of each file until it was durable, in microseconds.
    pub latencies: Histogram<u64>,
    /// From the time of the last file until the last one was durable.
    pub drain: Duration,
    /// Files that came more than [`LATE`] after their time.
    pub late_deliveries: u64,
    /// How much too late a file came at most.
    pub delivery_late_max: Duration,
    /// Files that were durable more than [`BEHIND`] after their time (and that of holding still).
    pub behind_files: u64,
    /// Most files that were due and not yet durable.
    pub backlog_files_max: u64,
    /// Files of which nothing was heard.
    pub unmeasured_files: u64,
    /// How far the wall clock, by which the ends are known, ran away from the steady one, by which files come.
    pub clock_drift: Duration,
}

/// The schedule on the clock.
struct Schedule {
    files: u64,
    rate: f64,
    begin: Instant,
    begin_at: SystemTime,
}

impl Pace {
    /// How many files that makes; more than [`super::FILES_MAX`] are refused.
    pub fn files(&self) -> u64 {
        ((self.rate * self.seconds).round() as u64).max(1)
    }

    /// Delivers all files and waits for their ends.
    pub(super) fn run(
        &self,
        bench: &Bench,
        prepared: &Path,
        staging: &Path,
        ingest: &mut Ingest,
        progress: &mut Progress,
        interrupted: &AtomicBool,
    ) -> io::Result<Measured> {
        // An end before its start is told by its exit code.
        while let Some(heard) = ingest.next()
            && !matches!(heard, Heard::Started)
            && !interrupted.load(Ordering::Relaxed)
        {}
        let schedule = Schedule {
            files: bench.data.files,
            rate: self.rate,
            begin: Instant::now() + LEAD,
            begin_at: SystemTime::now() + LEAD,
        };
        let source = &bench.settings.sources[0];
        let behind = BEHIND
            + match source.mode {
                Mode::Stability => source.stability,
                Mode::Closed | Mode::Sidecar => Duration::ZERO,
            };
        let writer = bench.data.dirty.then(|| Writer::new(&bench.data));
        let deliver = |number| match &writer {
            Some(writer) => writer.write(staging, number, interrupted).map(drop),
            None => {
                let name = DataSet::name(number);
                fs::rename(prepared.join(&name), staging.join(&name))
            }
        };
        // Either side may end it for both.
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let generator = scope.spawn(|| {
                let delivered = schedule.generate(&over, deliver);
                if delivered.is_err() {
                    over.store(true, Ordering::Relaxed);
                }
                delivered
            });
            let is_over = || over.load(Ordering::Relaxed) || interrupted.load(Ordering::Relaxed);
            let ends = schedule.follow(behind, ingest, progress, is_over);
            over.store(true, Ordering::Relaxed);
            let (late_deliveries, delivery_late_max) = generator
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let last = schedule.offset(schedule.files - 1);
            let elapsed = ends
                .last
                .duration_since(schedule.begin_at)
                .unwrap_or_default();
            let wall = SystemTime::now().duration_since(schedule.begin_at);
            Ok(Measured {
                begin: schedule.begin,
                elapsed,
                drain: elapsed.saturating_sub(last),
                late_deliveries,
                delivery_late_max,
                behind_files: ends.behind,
                backlog_files_max: ends.backlog_max,
                unmeasured_files: schedule.files.saturating_sub(ends.latencies.len()),
                clock_drift: wall.unwrap_or_default().abs_diff(schedule.begin.elapsed()),
                latencies: ends.latencies,
            })
        })
    }
}

/// What is known of the ends of files.
struct Ends {
    latencies: Histogram<u64>,
    last: SystemTime,
    behind: u64,
    backlog_max: u64,
}

impl Schedule {
    /// From the first file to that one.
    fn offset(&self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.rate)
    }

    /// Delivers each file when its time comes, or at once if that is over. Returns how many came late, and how late one
    /// came at most.
    fn generate(
        &self,
        over: &AtomicBool,
        deliver: impl Fn(u64) -> io::Result<()>,
    ) -> io::Result<(u64, Duration)> {
        let (mut late_files, mut late_max) = (0, Duration::ZERO);
        for number in 0..self.files {
            let due = self.begin + self.offset(number);
            loop {
                let left = due.saturating_duration_since(Instant::now());
                if over.load(Ordering::Relaxed) {
                    return Ok((late_files, late_max));
                }
                if left.is_zero() {
                    break;
                }
                thread::sleep(left.min(NAP));
            }
            deliver(number)?;
            let late = due.elapsed();
            late_files += u64::from(late > LATE);
            late_max = late_max.max(late);
        }
        Ok((late_files, late_max))
    }

    /// Hears of the ends until all are known, or nothing more is heard.
    fn follow(
        &self,
        behind: Duration,
        ingest: &mut Ingest,
        progress: &mut Progress,
        is_over: impl Fn() -> bool,
    ) -> Ends {
        let mut ends = Ends::new(self.begin_at);
        let all_there = self.begin + self.offset(self.files - 1);
        let mut last_heard = Instant::now();
        while ends.latencies.len() < self.files && !is_over() {
            match ingest.next() {
                None => break,
                Some(Heard::Done(done)) => {
                    last_heard = Instant::now();
                    ends.add(self, done, behind);
                    progress.show(ends.latencies.len());
                }
                Some(Heard::Started | Heard::Nothing) => {
                    if last_heard.max(all_there).elapsed() > STALLED + behind {
                        break;
                    }
                }
            }
        }
        ends
    }
}

impl Ends {
    fn new(begin_at: SystemTime) -> Ends {
        Ends {
            latencies: latencies(),
            last: begin_at,
            behind: 0,
            backlog_max: 0,
        }
    }

    fn add(&mut self, schedule: &Schedule, done: Done, behind: Duration) {
        let since_begin = done
            .at
            .duration_since(schedule.begin_at)
            .unwrap_or_default();
        let late = since_begin.saturating_sub(schedule.offset(done.number));
        let due = (since_begin.as_secs_f64() * schedule.rate) as u64 + 1;
        let backlog = due.min(schedule.files).saturating_sub(self.latencies.len());
        self.backlog_max = self.backlog_max.max(backlog);
        record(&mut self.latencies, late);
        self.last = self.last.max(done.at);
        self.behind += u64::from(late > behind);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn schedule(files: u64, rate: f64) -> Schedule {
        Schedule {
            files,
            rate,
            begin: Instant::now(),
            begin_at: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_stall_counts_for_every_file_that_was_due_meanwhile() {
        // Ten files, 100 ms apart; all are done at once, 2 s after the first was due.
        let schedule = schedule(10, 10.0);
        let mut ends = Ends::new(schedule.begin_at);
        let at = schedule.begin_at + Duration::from_secs(2);
        for number in 0..10 {
            ends.add(&schedule, Done { number, at }, BEHIND);
        }
        // To three digits.
        for (quantile, ms) in [(0.0, 1100), (0.5, 1500), (1.0, 2000_u64)] {
            let found = ends.latencies.value_at_quantile(quantile) / 1000;
            assert!(found.abs_diff(ms) <= 2, "{quantile}: {found} ms");
        }
        assert_eq!(ends.behind, 10);
        assert_eq!(ends.backlog_max, 10);
    }

    #[test]
    fn a_late_generator_goes_on_with_what_is_due_and_tells() {
        let mut schedule = schedule(5, 1000.0);
        schedule.begin = Instant::now() - Duration::from_secs(60);
        let delivered = Mutex::new(Vec::new());
        let deliver = |number| {
            delivered.lock().expect("lock").push(number);
            Ok(())
        };
        let (late, max) = schedule
            .generate(&AtomicBool::new(false), deliver)
            .expect("delivered");
        assert_eq!(*delivered.lock().expect("lock"), [0, 1, 2, 3, 4]);
        assert_eq!(late, 5);
        assert!(max >= Duration::from_secs(60));
    }

    #[test]
    fn nothing_comes_before_its_time_and_an_end_is_not_waited_for() {
        let mut schedule = schedule(2, 1.0);
        schedule.begin = Instant::now() + Duration::from_secs(3600);
        let over = AtomicBool::new(true);
        let (late, _) = schedule
            .generate(&over, |_| panic!("it is not due"))
            .expect("nothing");
        assert_eq!(late, 0);
    }

    #[test]
    fn a_pace_makes_at_least_one_file() {
        let files = |rate, seconds| Pace { rate, seconds }.files();
        assert_eq!(files(1000.0, 2.0), 2000);
        assert_eq!(files(0.1, 1.0), 1);
    }
}
