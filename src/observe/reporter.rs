//! Every interval: the `summary` event, the status line of the service manager, and the latencies of the interval.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::hlog::Hlog;
use super::metrics::{Metrics, Summary, Totals, grouped};
use super::{events, systemd};

/// A thread that reports every interval; ends when dropped.
#[derive(Debug)]
pub struct Reporter {
    metrics: Arc<Metrics>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Reporter {
    /// Starts it. An interval in which nothing changed is not reported, so an idle instance is
    /// silent; an interval of zero reports nothing but the end.
    pub fn start(metrics: Arc<Metrics>, interval: Duration, hlog: Option<Hlog>) -> Reporter {
        let stop = Arc::new(Stop::default());
        let thread = (!interval.is_zero()).then(|| {
            let (metrics, stop) = (Arc::clone(&metrics), Arc::clone(&stop));
            thread::Builder::new()
                .name("reporter".into())
                .spawn(move || report(&metrics, &stop, interval, hlog, events::summary))
        });
        let thread = thread.transpose().unwrap_or_else(|error| {
            // The numbers stay in `status`.
            events::fallback(
                "reporter thread",
                &error.to_string(),
                "no periodic summaries, no interval log",
            );
            None
        });
        Reporter {
            metrics,
            stop,
            thread,
        }
    }

    /// Ends it, emits a last summary with the rates of the whole run, and returns it.
    pub fn final_summary(mut self) -> Summary {
        self.end();
        let summary = self.metrics.summary(&mut self.metrics.run());
        events::summary(&summary);
        summary
    }

    fn end(&mut self) {
        *(self.stop.asked.lock()).unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.end();
    }
}

impl Stop {
    /// Waits for the interval; says whether the end was asked for meanwhile.
    fn wait(&self, interval: Duration) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, _) = self
            .changed
            .wait_timeout_while(asked, interval, |asked| !*asked)
            .unwrap_or_else(PoisonError::into_inner);
        *asked
    }
}

fn report(
    metrics: &Metrics,
    stop: &Stop,
    every: Duration,
    mut hlog: Option<Hlog>,
    emit: impl Fn(&Summary),
) {
    let mut log_latencies = || {
        if let Some(open) = &mut hlog
            && let Err(error) = open.write_interval(metrics)
        {
            // The flow goes on, and so do its other numbers.
            events::hlog_ended(open.path(), &error.to_string());
            hlog = None;
        }
    };
    let mut interval = metrics.run();
    let mut last = Snapshot::of(metrics);
    systemd::status(&last.to_line());
    while !stop.wait(every) {
        let now = Snapshot::of(metrics);
        if now != last {
            emit(&metrics.summary(&mut interval));
            systemd::status(&now.to_line());
            last = now;
        } else {
            interval = metrics.interval();
        }
        log_latencies();
    }
    log_latencies();
}

/// What a change of is worth a summary.
#[derive(Debug, PartialEq)]
struct Snapshot {
    totals: Totals,
    pending_files: u64,
    pause_reason: Option<String>,
}

impl Snapshot {
    fn of(metrics: &Metrics) -> Snapshot {
        Snapshot {
            totals: metrics.totals(),
            pending_files: metrics.pending.get().files,
            pause_reason: metrics.pause_reason(),
        }
    }

    /// For `systemctl status`.
    fn to_line(&self) -> String {
        let ingested = grouped(self.totals.ingested.files);
        let pending = grouped(self.pending_files);
        match &self.pause_reason {
            None => format!("Running: {ingested} files ingested, {pending} pending"),
            Some(reason) => {
                format!("Paused ({reason}): {ingested} files ingested, {pending} pending")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::Count;
    use super::*;

    #[test]
    fn the_last_summary_is_of_this_run_only() {
        let metrics = Arc::new(Metrics::new());
        metrics.restore(Totals {
            ingested: Count {
                files: 10,
                bytes: 100,
            },
            ..Totals::default()
        });
        let reporter = Reporter::start(Arc::clone(&metrics), Duration::ZERO, None);
        metrics.ingested.add(Count::file(5));
        metrics.duplicate.add(Count::file(6));
        let summary = reporter.final_summary();
        assert_eq!(summary.files_processed, 2);
        assert_eq!(summary.bytes_processed, 11);
        assert!(summary.files_per_second > 0.0);
    }

    #[test]
    fn an_interval_in_which_nothing_changed_is_not_reported() {
        let (metrics, stop) = (Metrics::new(), Stop::default());
        let (sender, summaries) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            let emit = move |summary: &Summary| sender.send(summary.clone()).expect("received");
            scope.spawn(|| report(&metrics, &stop, Duration::from_millis(1), None, emit));
            thread::sleep(Duration::from_millis(50));
            assert!(summaries.try_recv().is_err(), "nothing happened yet");
            metrics.ingested.add(Count::file(5));
            summaries
                .recv_timeout(Duration::from_secs(10))
                .expect("one");
            // Files and bytes are counted one after the other, so there may be a second.
            let _ = summaries.recv_timeout(Duration::from_millis(50));
            assert!(
                (summaries.recv_timeout(Duration::from_millis(50))).is_err(),
                "nothing happened since"
            );
            *stop.asked.lock().expect("lock") = true;
            stop.changed.notify_all();
        });
    }

    #[test]
    fn dropping_the_reporter_does_not_wait_for_the_interval() {
        let start = std::time::Instant::now();
        drop(Reporter::start(
            Arc::new(Metrics::new()),
            Duration::from_secs(3600),
            None,
        ));
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_status_line_names_the_pause() {
        let metrics = Metrics::new();
        metrics.pending.set(Count {
            files: 1234,
            bytes: 0,
        });
        assert_eq!(
            Snapshot::of(&metrics).to_line(),
            "Running: 0 files ingested, 1,234 pending"
        );
        metrics.pause("disk full");
        assert_eq!(
            Snapshot::of(&metrics).to_line(),
            "Paused (disk full): 0 files ingested, 1,234 pending"
        );
    }
}
