//! What lies between the threads that log and a thread that writes.
//!
//! ```text
//! line ──▶ queue (16,384 lines) ──────────▶ writer thread ──▶ output
//!            └─ full: info, debug → counted as dropped
//!                     warn, error → overflow (64 MiB)
//! ```
//!
//! While there is nothing to write, the thread is parked.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use tracing::Level;

/// Lines that may wait for the writer. Some 8 MiB of them.
pub(super) const QUEUE_LINES: usize = 16_384;

/// Bytes of warnings and errors that may wait besides, when the queue is full. Beyond that, even
/// those are dropped: a stuck terminal must not take the machine's memory.
const OVERFLOW_BYTES_MAX: usize = 64 << 20;

/// How long after a write the writer lets lines gather. At 30,000 events a second this makes 200
/// wakeups and writes of them instead of 30,000. After a quiet time the first line is written at once.
pub(super) const GATHER: Duration = Duration::from_millis(5);

/// Where a writer thread puts lines.
pub(super) trait Output: Send + 'static {
    /// Takes a line, to be written now or with others.
    fn append(&mut self, level: Level, line: &[u8]);

    /// So many lines never came here: whoever reads it is to be told.
    fn missed(&mut self, lines: u64);

    /// Writes all that was taken. Returns how many lines could not be written since the last call.
    fn write(&mut self) -> u64;

    /// Somebody may have moved its files away.
    fn reopen(&mut self) {}
}

/// Starts the thread that writes to an output, and returns what is between it and the others.
///
/// # Panics
/// If there can be no thread.
pub(super) fn start(name: &str, output: impl Output) -> Arc<Lines> {
    let lines = Arc::new(Lines {
        queue: ArrayQueue::new(QUEUE_LINES),
        overflow: Mutex::default(),
        dropped: AtomicU64::new(0),
        missed: AtomicU64::new(0),
        reopen: AtomicBool::new(false),
        writer: OnceLock::new(),
        writer_parked: AtomicBool::new(false),
        flushes: Mutex::default(),
        flushed: Condvar::new(),
    });
    let writer = Writer {
        lines: Arc::clone(&lines),
        output,
    };
    let thread = thread::Builder::new()
        .name(name.into())
        .spawn(move || writer.run())
        .expect("a process that cannot start one thread cannot run");
    lines.writer.get_or_init(|| thread.thread().clone());
    lines
}

/// What lies between the threads that log and the one that writes.
#[derive(Debug)]
pub(super) struct Lines {
    queue: ArrayQueue<(Level, Vec<u8>)>,
    overflow: Mutex<Overflow>,
    /// Lines that were not written, for whatever reason.
    dropped: AtomicU64,
    /// Those that found no room here and that the output does not know of.
    missed: AtomicU64,
    reopen: AtomicBool,
    writer: OnceLock<Thread>,
    /// Set by the writer before it looks for work a last time; whoever clears it unparks it.
    writer_parked: AtomicBool,
    flushes: Mutex<Flushes>,
    flushed: Condvar,
}

/// Warnings and errors that found the queue full.
#[derive(Debug, Default)]
struct Overflow {
    lines: Vec<(Level, Vec<u8>)>,
    bytes: usize,
}

/// Numbers of the last flush asked for and of the last one done.
#[derive(Debug, Default)]
struct Flushes {
    asked: u64,
    done: u64,
}

impl Lines {
    /// Queues a line. Never waits on the output.
    pub(super) fn push(&self, level: Level, line: Vec<u8>) {
        if let Err((level, line)) = self.queue.push((level, line)) {
            let mut overflow = lock(&self.overflow);
            if level <= Level::WARN && overflow.bytes + line.len() <= OVERFLOW_BYTES_MAX {
                overflow.bytes += line.len();
                overflow.lines.push((level, line));
            } else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                self.missed.fetch_add(1, Ordering::Relaxed);
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

    /// Lines that were not written since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Lets the output open its files anew, before it writes anything else.
    pub(super) fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
        self.unpark_writer();
    }

    /// Whether this is the thread that writes: what it queues now may never be written.
    pub(super) fn is_written_here(&self) -> bool {
        let myself = thread::current().id();
        self.writer.get().is_some_and(|w| w.id() == myself)
    }

    /// Waits until what is queued now is written; says whether it was within `limit`.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        if self.is_written_here() {
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

    #[cfg(test)]
    pub(super) fn is_writer_parked(&self) -> bool {
        self.writer_parked.load(Ordering::SeqCst)
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
            || self.reopen.load(Ordering::Relaxed)
            || self.missed.load(Ordering::Relaxed) > 0
            || !lock(&self.overflow).lines.is_empty()
    }

    fn flush_is_asked(&self) -> bool {
        let flushes = lock(&self.flushes);
        flushes.asked > flushes.done
    }
}

/// How long lines gather now that were last written then.
pub(super) fn rest_after(written: Option<Instant>, now: Instant) -> Duration {
    written.map_or(Duration::ZERO, |written| {
        GATHER.saturating_sub(now.saturating_duration_since(written))
    })
}

/// The thread that writes.
struct Writer<O> {
    lines: Arc<Lines>,
    output: O,
}

impl<O: Output> Writer<O> {
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
        if self.lines.reopen.swap(false, Ordering::Acquire) {
            self.output.reopen();
        }
        for _ in 0..QUEUE_LINES {
            let Some((level, line)) = self.lines.queue.pop() else {
                break;
            };
            self.output.append(level, &line);
        }
        let overflow = std::mem::take(&mut *lock(&self.lines.overflow));
        for (level, line) in overflow.lines {
            self.output.append(level, &line);
        }
        let missed = self.lines.missed.swap(0, Ordering::Relaxed);
        if missed > 0 {
            self.output.missed(missed);
        }
        let lost = self.output.write();
        self.lines.dropped.fetch_add(lost, Ordering::Relaxed);
        lock(&self.lines.flushes).done = ticket;
        self.lines.flushed.notify_all();
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
