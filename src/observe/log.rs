//! Events as lines on stderr, written by a thread of its own, so that the flow never waits on a
//! terminal, a pipe or a disk.
//!
//! ```text
//! event ──▶ line ──▶ queue (16,384 lines) ──────────▶ writer thread ──▶ stderr
//!                      └─ full: info, debug → counted as dropped
//!                               warn, error → overflow (64 MiB)
//! ```
//!
//! A line is one JSON object, or one line of text, and holds exactly one newline, at its end,
//! whatever the names in it hold. A field named `json.<name>` is taken to be JSON already and is
//! written as it is under `<name>`. Lines dropped are counted and reported as `log_dropped` once
//! there is room. While there is nothing to write, the thread is parked.

use std::cell::Cell;
use std::fmt::{Debug, Write as _};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_queue::ArrayQueue;
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::events;

/// Lines that may wait for the writer. Some 8 MiB of them.
const QUEUE_LINES: usize = 16_384;

/// Bytes of warnings and errors that may wait besides, when the queue is full. Beyond that, even
/// those are dropped: a stuck terminal must not take the machine's memory.
const OVERFLOW_BYTES_MAX: usize = 64 << 20;

/// Bytes given to one write.
const BATCH_BYTES: usize = 64 << 10;

/// How long after a write the writer lets lines gather. At 30,000 events a second this makes 200
/// wakeups and writes of them instead of 30,000. After a quiet time the first line is written at once.
const GATHER: Duration = Duration::from_millis(5);

/// How long a flush waits for a stderr that is stuck.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// The log of this process, once [`init`] was called.
static LOG: OnceLock<Arc<Lines>> = OnceLock::new();

/// Keeps the log going; on drop, everything queued is written (5 s at most, if stderr is stuck).
#[must_use = "lines still queued are lost when the process ends before the guard is dropped"]
#[derive(Debug)]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        flush();
    }
}

/// Starts the log of this process and makes panics part of it. `level` is off, error, warn, info,
/// debug or trace (anything else means info); `format` is text or json (anything else means json).
/// A second call changes nothing.
pub fn init(level: &str, format: &str) -> LogGuard {
    LOG.get_or_init(|| {
        let format = match format {
            "text" => Format::Text,
            _ => Format::Json,
        };
        let log = Log::start(Stderr, level.parse().unwrap_or(LevelFilter::INFO), format);
        let lines = Arc::clone(&log.lines);
        if tracing::subscriber::set_global_default(log).is_ok() {
            log_panics();
        }
        lines
    });
    LogGuard(())
}

/// Waits until everything queued before the call is written, 5 s at most.
pub fn flush() {
    if let Some(lines) = LOG.get() {
        lines.flush(FLUSH_MAX);
    }
}

/// Lines dropped since the start, because stderr was too slow or refused them.
pub fn dropped() -> u64 {
    LOG.get()
        .map_or(0, |lines| lines.dropped.load(Ordering::Relaxed))
}

/// Makes a panic an event, written before the thread unwinds or the process aborts.
fn log_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info: &PanicHookInfo| {
        if !tracing::enabled!(Level::ERROR) {
            return before(info);
        }
        let payload = info.payload();
        let cause = (payload.downcast_ref::<&str>().copied())
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic without a message");
        let location = info.location().map_or(String::new(), |l| l.to_string());
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured)
            .then(|| backtrace.to_string());
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        events::panicked(thread, &location, cause, backtrace.as_deref());
        flush();
    }));
}

/// The tracing subscriber: renders each event and queues it. Spans carry nothing here.
struct Log {
    lines: Arc<Lines>,
    level: LevelFilter,
    format: Format,
}

impl Log {
    /// Starts the writer thread of a log to `sink`.
    fn start(sink: impl Write + Send + 'static, level: LevelFilter, format: Format) -> Log {
        let lines = Arc::new(Lines {
            queue: ArrayQueue::new(QUEUE_LINES),
            overflow: Mutex::default(),
            dropped: AtomicU64::new(0),
            dropped_told: AtomicU64::new(0),
            writer: OnceLock::new(),
            writer_parked: AtomicBool::new(false),
            flushes: Mutex::default(),
            flushed: Condvar::new(),
        });
        let writer = Writer {
            lines: Arc::clone(&lines),
            sink,
            format,
            batch: Vec::with_capacity(BATCH_BYTES + 4096),
            batch_lines: 0,
            torn: false,
        };
        let thread = thread::Builder::new()
            .name("log".into())
            .spawn(move || writer.run())
            .expect("a process that cannot start one thread cannot run");
        lines.writer.get_or_init(|| thread.thread().clone());
        Log {
            lines,
            level,
            format,
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let level = *event.metadata().level();
        let mut line = Line::begin(self.format, level);
        event.record(&mut line);
        self.lines.push(line.end(), level <= Level::WARN);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// What lies between the threads that log and the one that writes.
#[derive(Debug)]
struct Lines {
    queue: ArrayQueue<Vec<u8>>,
    overflow: Mutex<Overflow>,
    dropped: AtomicU64,
    /// How many of those the log itself has told of.
    dropped_told: AtomicU64,
    writer: OnceLock<Thread>,
    /// Set by the writer before it looks for work a last time; whoever clears it unparks it.
    writer_parked: AtomicBool,
    flushes: Mutex<Flushes>,
    flushed: Condvar,
}

/// Warnings and errors that found the queue full.
#[derive(Debug, Default)]
struct Overflow {
    lines: Vec<Vec<u8>>,
    bytes: usize,
}

/// Numbers of the last flush asked for and of the last one done.
#[derive(Debug, Default)]
struct Flushes {
    asked: u64,
    done: u64,
}

impl Lines {
    /// Queues a line. Never waits on the sink.
    fn push(&self, line: Vec<u8>, urgent: bool) {
        if let Err(line) = self.queue.push(line) {
            let mut overflow = lock(&self.overflow);
            if urgent && overflow.bytes + line.len() <= OVERFLOW_BYTES_MAX {
                overflow.bytes += line.len();
                overflow.lines.push(line);
            } else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Pairs with the fence in `wait`: either this thread sees that the writer is parked, or
        // the writer sees the line.
        fence(Ordering::SeqCst);
        if self.writer_parked.load(Ordering::Relaxed)
            && self.writer_parked.swap(false, Ordering::Relaxed)
        {
            self.unpark_writer();
        }
    }

    /// Waits until what is queued now is written; says whether it was within `limit`.
    fn flush(&self, limit: Duration) -> bool {
        let myself = thread::current().id();
        if self.writer.get().is_some_and(|w| w.id() == myself) {
            return false; // The writer itself panicked.
        }
        let mut flushes = lock(&self.flushes);
        flushes.asked += 1;
        let ticket = flushes.asked;
        self.unpark_writer();
        let (flushes, _) = self
            .flushed
            .wait_timeout_while(flushes, limit, |flushes| flushes.done < ticket)
            .unwrap_or_else(PoisonError::into_inner);
        flushes.done >= ticket
    }

    fn unpark_writer(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// Parks the calling writer until there is something to do and, if it wrote a moment ago, lets that gather.
    fn wait(&self, written: Option<Instant>) {
        loop {
            self.writer_parked.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.has_work() {
                break;
            }
            thread::park();
        }
        self.writer_parked.store(false, Ordering::Relaxed);
        let rest = rest_after(written, Instant::now());
        if !rest.is_zero() && !self.flush_is_asked() {
            thread::park_timeout(rest); // A flush cuts it short.
        }
    }

    fn has_work(&self) -> bool {
        !self.queue.is_empty()
            || self.flush_is_asked()
            || self.dropped.load(Ordering::Relaxed) > self.dropped_told.load(Ordering::Relaxed)
            || !lock(&self.overflow).lines.is_empty()
    }

    fn flush_is_asked(&self) -> bool {
        let flushes = lock(&self.flushes);
        flushes.asked > flushes.done
    }
}

/// How long lines gather now that were last written then.
fn rest_after(written: Option<Instant>, now: Instant) -> Duration {
    written.map_or(Duration::ZERO, |written| {
        GATHER.saturating_sub(now.saturating_duration_since(written))
    })
}

/// The thread that writes.
struct Writer<W> {
    lines: Arc<Lines>,
    sink: W,
    format: Format,
    batch: Vec<u8>,
    batch_lines: u64,
    /// The last write failed in the middle of a line.
    torn: bool,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        let mut written = None;
        loop {
            self.lines.wait(written);
            self.drain();
            written = Some(Instant::now());
        }
    }

    /// Writes everything that was queued when it was called.
    fn drain(&mut self) {
        let ticket = lock(&self.lines.flushes).asked;
        for _ in 0..QUEUE_LINES {
            let Some(line) = self.lines.queue.pop() else {
                break;
            };
            self.append(&line);
        }
        let overflow = std::mem::take(&mut *lock(&self.lines.overflow));
        for line in overflow.lines {
            self.append(&line);
        }
        self.tell_of_dropped();
        self.write();
        lock(&self.lines.flushes).done = ticket;
        self.lines.flushed.notify_all();
    }

    fn append(&mut self, line: &[u8]) {
        self.batch.extend_from_slice(line);
        self.batch_lines += 1;
        if self.batch.len() >= BATCH_BYTES {
            self.write();
        }
    }

    /// This line is not counted when it is lost, or a closed stderr would make more of them forever.
    fn tell_of_dropped(&mut self) {
        let dropped = self.lines.dropped.load(Ordering::Relaxed);
        let told = self.lines.dropped_told.swap(dropped, Ordering::Relaxed);
        if dropped > told {
            let mut line = Line::begin(self.format, Level::WARN);
            line.string("event", "log_dropped");
            line.value("lines", &(dropped - told));
            self.batch.extend_from_slice(&line.end());
        }
    }

    /// Writes the batch. What the sink refuses (EPIPE, ENOSPC, …) is dropped and counted: a log
    /// that cannot be written is no reason to stop.
    fn write(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.torn {
            self.batch.insert(0, b'\n');
        }
        let mut written = 0;
        while written < self.batch.len() {
            match self.sink.write(&self.batch[written..]) {
                Ok(n) if n > 0 => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.lines
                        .dropped
                        .fetch_add(self.batch_lines, Ordering::Relaxed);
                    break;
                }
            }
        }
        if let Some(last) = written.checked_sub(1) {
            self.torn = self.batch[last] != b'\n';
        }
        self.batch.clear();
        self.batch_lines = 0;
    }
}

/// Standard error without the lock of `std::io::stderr`, which a blocked write would hold against
/// everyone else.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(io::stderr(), bytes) {
                // Whoever shares the terminal may have made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => {
                    let stderr = io::stderr();
                    poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None)?;
                }
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Text,
}

/// A line in the making; fields are visited straight into it.
struct Line {
    format: Format,
    bytes: Vec<u8>,
    named: bool,
}

impl Line {
    fn begin(format: Format, level: Level) -> Line {
        let mut bytes = Vec::with_capacity(512);
        let timestamp = timestamp(SystemTime::now());
        match format {
            Format::Json => {
                bytes.extend_from_slice(b"{\"ts\":\"");
                bytes.extend_from_slice(&timestamp);
                bytes.extend_from_slice(b"\",\"level\":\"");
                bytes.extend_from_slice(level_name(level).as_bytes());
                bytes.push(b'"');
            }
            Format::Text => {
                bytes.extend_from_slice(&timestamp);
                bytes.push(b' ');
                bytes.extend_from_slice(level.as_str().as_bytes());
            }
        }
        Line {
            format,
            bytes,
            named: false,
        }
    }

    fn end(mut self) -> Vec<u8> {
        if self.format == Format::Json {
            self.bytes.push(b'}');
        }
        self.bytes.push(b'\n');
        self.bytes
    }

    /// Every line has an event; one of a library that names none is a `message`.
    fn name(&mut self, name: &str) {
        if !self.named {
            self.named = true;
            if name != "event" {
                self.string("event", "message");
            }
        }
        match self.format {
            Format::Json => {
                self.bytes.extend_from_slice(b",\"");
                self.bytes.extend_from_slice(name.as_bytes());
                self.bytes.extend_from_slice(b"\":");
            }
            Format::Text => {
                self.bytes.push(b' ');
                if name != "event" {
                    self.bytes.extend_from_slice(name.as_bytes());
                    self.bytes.push(b'=');
                }
            }
        }
    }

    fn string(&mut self, name: &str, value: &str) {
        self.name(name);
        match self.format {
            Format::Json => self.json(value),
            Format::Text if is_plain(value) => self.bytes.extend_from_slice(value.as_bytes()),
            // Also escapes what a terminal would obey.
            Format::Text => self
                .bytes
                .extend_from_slice(format!("{value:?}").as_bytes()),
        }
    }

    fn value(&mut self, name: &str, value: &impl Serialize) {
        self.name(name);
        self.json(value);
    }

    /// Inlines JSON. Between tokens a newline is only space; within a string it cannot be.
    fn raw(&mut self, name: &str, json: &str) {
        self.name(name);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(json.as_bytes());
        for byte in &mut self.bytes[start..] {
            if *byte == b'\n' {
                *byte = b' ';
            }
        }
    }

    fn json(&mut self, value: &(impl Serialize + ?Sized)) {
        let start = self.bytes.len();
        if serde_json::to_writer(&mut self.bytes, value).is_err() {
            self.bytes.truncate(start);
            self.bytes.extend_from_slice(b"null");
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name().strip_prefix("json.") {
            Some(name) => self.raw(name, value),
            None => self.string(field.name(), value),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.value(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.value(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.value(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.value(field.name(), &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Whether a value reads well without quotes in a line of text.
fn is_plain(value: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '"';
    !value.is_empty() && value.chars().all(plain)
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// RFC 3339 in UTC with microseconds. The calendar is worked out once a second for each thread.
fn timestamp(now: SystemTime) -> [u8; 27] {
    thread_local! {
        static SECOND: Cell<(u64, [u8; 27])> = const { Cell::new((u64::MAX, [b'0'; 27])) };
    }
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut text) = SECOND.get();
    if second != since_epoch.as_secs() {
        second = since_epoch.as_secs();
        text = calendar(second);
        SECOND.set((second, text));
    }
    let mut micros = since_epoch.subsec_micros();
    for digit in text[20..26].iter_mut().rev() {
        *digit = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    text
}

/// `YYYY-MM-DDThh:mm:ss.000000Z`; a clock beyond the year 9999 stays at the epoch.
fn calendar(second: u64) -> [u8; 27] {
    let time = i64::try_from(second)
        .ok()
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .unwrap_or_default();
    let mut text = String::with_capacity(27);
    let _ = write!(text, "{time:.6}");
    let mut bytes = *b"1970-01-01T00:00:00.000000Z";
    if text.len() == bytes.len() {
        bytes.copy_from_slice(text.as_bytes());
    }
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use serde_json::Value;
    use tracing::{debug, info, warn};

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

    /// Runs `f` with a log of its own and returns what that wrote.
    fn logged(level: LevelFilter, format: Format, f: impl FnOnce()) -> Sink {
        let sink = Sink::default();
        let log = Log::start(sink.clone(), level, format);
        let lines = Arc::clone(&log.lines);
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
        let log = Log::start(sink.clone(), LevelFilter::DEBUG, Format::Json);
        let lines = Arc::clone(&log.lines);
        const INFOS: usize = 3 * QUEUE_LINES;
        tracing::subscriber::with_default(log, || {
            for n in 0..INFOS {
                if n % 1000 == 0 {
                    warn!(event = "important", n);
                }
                debug!(event = "chatter", n);
            }
        });
        let dropped = lines.dropped.load(Ordering::Relaxed) as usize;
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
        let log = Log::start(sink.clone(), LevelFilter::INFO, Format::Json);
        let lines = Arc::clone(&log.lines);
        tracing::subscriber::with_default(log, || {
            info!(event = "lost");
            assert!(lines.flush(FLUSH_MAX));
            assert_eq!(lines.dropped.load(Ordering::Relaxed), 1);
            *lock(&sink.0.room) = None;
            info!(event = "written");
            assert!(lines.flush(FLUSH_MAX));
        });
        assert_eq!(lines.dropped.load(Ordering::Relaxed), 1);
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
        let log = Log::start(Sink::default(), LevelFilter::INFO, Format::Json);
        assert!(log.lines.flush(FLUSH_MAX));
        let is_parked = || log.lines.writer_parked.load(Ordering::SeqCst);
        while !is_parked() {
            thread::yield_now();
        }
        thread::sleep(4 * GATHER);
        assert!(is_parked());
    }

    #[test]
    fn timestamps_are_rfc_3339_in_utc_with_microseconds() {
        let at = |us| timestamp(UNIX_EPOCH + Duration::from_micros(us));
        assert_eq!(&at(0), b"1970-01-01T00:00:00.000000Z");
        assert_eq!(&at(1_767_323_045_678_901), b"2026-01-02T03:04:05.678901Z");
        assert_eq!(&at(1_767_323_045_009_000), b"2026-01-02T03:04:05.009000Z");
    }
}
