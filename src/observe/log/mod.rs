//! Events as lines on stderr and in files, each written by a thread of its own, so that the flow never waits on a
//! terminal, a pipe or a disk, and neither of them on the other.
//!
//! ```text
//!             ┌─▶ queue ──▶ thread `log` ──────▶ stderr, at the log level
//! event ──▶ line
//!             └─▶ queue ──▶ thread `log files` ──▶ app.log, at the log level; error.log; debug.log
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | `line` | an event as one JSON object, or one line of text, with exactly one newline, at its end, whatever the names in it hold; card numbers are masked there |
//! | `queue` | what lies between the threads that log and one that writes |
//! | `batch` | lines for one place, and the account of those that it refused |
//! | `console` | stderr |
//! | [`files`] | files that are rotated |
//!
//! A field named `json.<name>` is taken to be JSON already and is written as it is under `<name>`. Lines dropped are
//! counted and reported as `log_dropped`, where they are missing, once there is room.

mod batch;
mod console;
pub mod files;
mod line;
mod queue;

use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber, span};

use super::events;
use super::mask::mask;
use console::{Console, Stderr};
use files::LogFiles;
use line::{Format, Line};
use queue::{Lines, Output};

/// How long a flush waits for a stderr, or a disk, that is stuck.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// Where the log of this process goes, once [`init`] was called.
static LOG: OnceLock<Vec<Arc<Lines>>> = OnceLock::new();

/// Keeps the log going; on drop, everything queued is written (5 s at most for each place that is stuck).
#[must_use = "lines still queued are lost when the process ends before the guard is dropped"]
#[derive(Debug)]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        flush();
    }
}

/// Starts the log of this process. `level` is off, error, warn, info, debug or trace (anything else means info); `format`,
/// that of stderr, is text or json (anything else means json). Nothing goes to stderr without `console`, nothing to files
/// without `files`. A second call changes nothing.
pub fn init(level: &str, format: &str, console: bool, files: Option<LogFiles>) -> LogGuard {
    LOG.get_or_init(|| {
        let level = level.parse().unwrap_or(LevelFilter::INFO);
        let format = match format {
            "text" => Format::Text,
            _ => Format::Json,
        };
        let mut log = Log::default();
        if console {
            log.add("log", Console::new(Stderr, format), level, format);
        }
        if let Some(files) = files {
            let level = files.level();
            log.add("log files", files, level, Format::Json);
        }
        let places = log.places.iter();
        let places = places.map(|place| Arc::clone(&place.lines)).collect();
        let _ = tracing::subscriber::set_global_default(log);
        places
    });
    LogGuard(())
}

fn places() -> impl Iterator<Item = &'static Lines> {
    LOG.get().into_iter().flatten().map(|lines| &**lines)
}

/// Waits until everything queued before the call is written, 5 s at most for each place.
pub fn flush() {
    for lines in places() {
        lines.flush(FLUSH_MAX);
    }
}

/// Lines dropped since the start, because stderr or a file was too slow or refused them.
pub fn dropped() -> u64 {
    places().map(Lines::dropped).sum()
}

/// Opens the files anew: somebody has moved them away.
pub fn reopen() {
    for lines in places() {
        lines.reopen();
    }
}

/// Makes a panic of any thread an event, written before the thread unwinds or the process aborts; where there is no log, one
/// line on stderr. Call it before there are threads.
pub fn tell_panics() {
    panic::set_hook(Box::new(|info: &PanicHookInfo| {
        let payload = info.payload();
        let message = (payload.downcast_ref::<&str>().copied())
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic without a message");
        let location = info.location().map_or(String::new(), |l| l.to_string());
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let backtrace = std::backtrace::Backtrace::force_capture().to_string();
        events::panicked(thread, &location, message, &backtrace);
        // Of a thread that writes, nobody else may be left to tell.
        if LOG.get().is_none() || places().any(Lines::is_written_here) {
            let text = format!("thread {thread:?} panicked at {location}: {message}");
            let _ = writeln!(Stderr, "ringest: {}\n{}", mask(&text), mask(&backtrace));
        }
        flush();
    }));
}

/// The tracing subscriber: renders each event and queues it. Spans carry nothing here.
#[derive(Default)]
struct Log {
    places: Vec<Place>,
}

struct Place {
    lines: Arc<Lines>,
    level: LevelFilter,
    format: Format,
}

impl Log {
    /// Starts the thread that writes to one more place.
    fn add(&mut self, thread: &str, output: impl Output, level: LevelFilter, format: Format) {
        self.places.push(Place {
            lines: queue::start(thread, output),
            level,
            format,
        });
    }

    fn level(&self) -> LevelFilter {
        let levels = self.places.iter().map(|place| place.level);
        levels.max().unwrap_or(LevelFilter::OFF)
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level())
    }

    fn event(&self, event: &Event<'_>) {
        let level = *event.metadata().level();
        let mut last: Option<(Format, Vec<u8>)> = None;
        for place in self.places.iter().filter(|place| level <= place.level) {
            let line = match last.take() {
                Some((format, line)) if format == place.format => line,
                _ => {
                    let mut line = Line::begin(place.format, level);
                    event.record(&mut line);
                    line.end()
                }
            };
            if self.places.len() > 1 {
                last = Some((place.format, line.clone()));
            }
            place.lines.push(level, line);
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::io;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::sync::{Condvar, Mutex};
    use std::time::Instant;

    use serde_json::Value;
    use tracing::{debug, info, warn};

    use super::queue::{GATHER, QUEUE_LINES, lock, rest_after};
    use super::*;

    /// Memory whose writes can be held up or refused.
    #[derive(Clone, Default)]
    struct Sink(Arc<SinkState>);

    #[derive(Default)]
    struct SinkState {
        written: Mutex<Vec<u8>>,
        blocked: Mutex<bool>,
        unblocked: Condvar,
        /// Bytes it takes before it refuses a write, if any.
        room: Mutex<Option<usize>>,
    }

    impl Sink {
        fn block(&self, blocked: bool) {
            *lock(&self.0.blocked) = blocked;
            self.0.unblocked.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(lock(&self.0.written).clone()).expect("UTF-8")
        }

        fn json(&self) -> Vec<Value> {
            let text = self.text();
            assert!(text.is_empty() || text.ends_with('\n'));
            text.lines()
                .map(|line| serde_json::from_str(line).expect(line))
                .collect()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let blocked = lock(&self.0.blocked);
            drop(self.0.unblocked.wait_while(blocked, |blocked| *blocked));
            let mut taken = bytes.len();
            if let Some(room) = &mut *lock(&self.0.room) {
                taken = taken.min(*room);
                *room -= taken;
            }
            if taken == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            lock(&self.0.written).extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn started(sink: Sink, level: LevelFilter, format: Format) -> (Log, Arc<Lines>) {
        let mut log = Log::default();
        log.add("log", Console::new(sink, format), level, format);
        let lines = Arc::clone(&log.places[0].lines);
        (log, lines)
    }

    /// Runs `f` with a log of its own and returns what that wrote.
    fn logged(level: LevelFilter, format: Format, f: impl FnOnce()) -> Sink {
        let sink = Sink::default();
        let (log, lines) = started(sink.clone(), level, format);
        tracing::subscriber::with_default(log, f);
        assert!(lines.flush(FLUSH_MAX));
        sink
    }

    fn logged_json(f: impl FnOnce()) -> Vec<Value> {
        logged(LevelFilter::DEBUG, Format::Json, f).json()
    }

    #[test]
    fn an_event_is_one_json_object_with_its_fields_in_order() {
        let sink = logged(LevelFilter::INFO, Format::Json, || {
            events::file_ingested(
                Path::new("/in/a.csv"),
                Path::new("/w/ingest_date=2026-01-02/a.csv"),
                &[0xab; 32],
                12,
                7,
                "default",
            );
        });
        let text = sink.text();
        let (time, rest) = text.split_at(r#"{"ts":"2026-01-02T03:04:05.678901Z""#.len());
        assert!(time.starts_with(r#"{"ts":"2"#) && time.ends_with("Z\""));
        assert_eq!(
            rest,
            format!(
                concat!(
                    r#","level":"info","event":"file_ingested","path":"/in/a.csv","#,
                    r#""warehouse_path":"/w/ingest_date=2026-01-02/a.csv","sha256":"{}","#,
                    r#""bytes":12,"seq":7,"source":"default"}}"#,
                    "\n"
                ),
                "ab".repeat(32)
            )
        );
    }

    #[test]
    fn a_line_holds_exactly_one_newline_whatever_the_names_hold() {
        let hostile = Path::new(OsStr::from_bytes(
            b"/in/a\n\"b\\\r\x00\x1b[31m\xff\xe2\x80\xa8",
        ));
        for format in [Format::Json, Format::Text] {
            let sink = logged(LevelFilter::INFO, format, || {
                events::file_withdrawn(hostile, "two\nlines");
            });
            let text = sink.text();
            assert_eq!(text.matches('\n').count(), 1, "{text:?}");
            assert!(text.ends_with('\n') && !text.contains(['\0', '\r', '\x1b']));
        }
        let lines = logged_json(|| events::file_withdrawn(hostile, "two\nlines"));
        assert_eq!(lines[0]["path"], hostile.to_string_lossy().as_ref());
        assert_eq!(lines[0]["reason"], "two\nlines");
    }

    #[test]
    fn prebuilt_json_is_inlined_under_the_rest_of_its_name() {
        let lines = logged_json(|| {
            info!(
                event = "e",
                json.list = "[1,\n{\"a\":\"\\n\"}]",
                f = f64::NAN
            );
        });
        assert_eq!(lines[0]["list"], serde_json::json!([1, {"a": "\n"}]));
        assert_eq!(lines[0]["f"], Value::Null);
    }

    #[test]
    fn an_event_without_a_name_is_a_message() {
        let lines = logged_json(|| info!("from {}", "a library"));
        assert_eq!(lines[0]["event"], "message");
        assert_eq!(lines[0]["message"], "from a library");
    }

    #[test]
    fn text_is_readable_and_quotes_only_what_needs_it() {
        let sink = logged(LevelFilter::INFO, Format::Text, || {
            events::file_withdrawn(Path::new("/in/a b"), "gone");
        });
        let text = sink.text();
        assert_eq!(
            &text[27..],
            " INFO file_withdrawn path=\"/in/a b\" reason=gone\n"
        );
    }

    #[test]
    fn what_is_below_the_level_is_not_written() {
        let sink = logged(LevelFilter::WARN, Format::Json, || {
            info!(event = "no");
            warn!(event = "yes");
        });
        assert_eq!(sink.json().len(), 1);
    }

    #[test]
    fn an_event_that_was_off_when_it_first_happened_is_not_held_back_later() {
        let path = Path::new("/in/off-then-on");
        let off = logged(LevelFilter::WARN, Format::Json, || {
            events::file_waiting(path, "growing");
        });
        assert!(off.text().is_empty());
        let on = logged_json(|| {
            events::file_waiting(path, "growing");
            events::file_waiting(path, "still growing");
        });
        assert_eq!(on.len(), 1);
    }

    #[test]
    fn a_blocked_sink_drops_and_counts_info_but_keeps_every_warning_and_never_blocks() {
        let sink = Sink::default();
        sink.block(true);
        let (log, lines) = started(sink.clone(), LevelFilter::DEBUG, Format::Json);
        const INFOS: usize = 3 * QUEUE_LINES;
        tracing::subscriber::with_default(log, || {
            for n in 0..INFOS {
                if n % 1000 == 0 {
                    warn!(event = "important", n);
                }
                debug!(event = "chatter", n);
            }
        });
        let dropped = lines.dropped() as usize;
        // The writer holds at most one batch in its hands besides what the queue holds.
        assert!(
            (INFOS - QUEUE_LINES - 2000..INFOS).contains(&dropped),
            "{dropped}"
        );
        assert!(
            !lines.flush(Duration::from_millis(20)),
            "nothing can be written yet"
        );

        sink.block(false);
        assert!(lines.flush(FLUSH_MAX));
        let written = sink.json();
        let count = |event: &str| written.iter().filter(|line| line["event"] == event).count();
        assert_eq!(count("important"), INFOS.div_ceil(1000));
        assert_eq!(count("chatter"), INFOS - dropped);
        let told: u64 = (written.iter().filter(|line| line["event"] == "log_dropped"))
            .map(|line| line["lines"].as_u64().expect("a number"))
            .sum();
        assert_eq!(told as usize, dropped);
    }

    #[test]
    fn a_closed_sink_is_survived_and_the_lost_lines_are_counted() {
        let sink = Sink::default();
        *lock(&sink.0.room) = Some(10);
        let (log, lines) = started(sink.clone(), LevelFilter::INFO, Format::Json);
        tracing::subscriber::with_default(log, || {
            info!(event = "lost");
            assert!(lines.flush(FLUSH_MAX));
            assert_eq!(lines.dropped(), 1);
            *lock(&sink.0.room) = None;
            info!(event = "written");
            assert!(lines.flush(FLUSH_MAX));
        });
        assert_eq!(lines.dropped(), 1);
        let text = sink.text();
        assert!(text.ends_with('\n'));
        let (torn, whole) = text.split_once('\n').expect("more than the torn line");
        assert_eq!(torn.len(), 10, "what the sink took before it closed");
        // The loss may be told while the sink is still closed, and then it is not seen here; or later, before or after
        // the line that was written then.
        let mut events = Vec::new();
        for line in whole.lines() {
            let line: Value = serde_json::from_str(line).expect("a line of its own");
            events.push((line["event"].clone(), line["lines"].clone()));
        }
        let written = (Value::from("written"), Value::Null);
        let told = (Value::from("log_dropped"), Value::from(1));
        assert_eq!(events.iter().filter(|event| **event == written).count(), 1);
        assert!(events.iter().filter(|event| **event == told).count() <= 1);
        assert!(
            events
                .iter()
                .all(|event| *event == written || *event == told)
        );
    }

    #[test]
    fn lines_gather_after_a_write_and_not_after_a_quiet_time() {
        let now = Instant::now();
        let millis = Duration::from_millis;
        assert_eq!(rest_after(None, now), Duration::ZERO);
        assert_eq!(rest_after(Some(now), now), GATHER);
        assert_eq!(rest_after(Some(now), now + millis(2)), GATHER - millis(2));
        assert_eq!(rest_after(Some(now), now + millis(100)), Duration::ZERO);
    }

    #[test]
    fn an_idle_writer_stays_parked() {
        let (_log, lines) = started(Sink::default(), LevelFilter::INFO, Format::Json);
        assert!(lines.flush(FLUSH_MAX));
        let is_parked = || lines.is_writer_parked();
        while !is_parked() {
            thread::yield_now();
        }
        thread::sleep(4 * GATHER);
        assert!(is_parked());
    }
}
