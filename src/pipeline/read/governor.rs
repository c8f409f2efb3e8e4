//! Which readers work and which are parked, and how many files each has open.
//!
//! ```text
//!   readers ──work, waits──▶ Governor ──Interval──▶ Tuner
//!      ▲                        │                     │
//!      └──seats, files in flight┴──────Setting────────┘
//! ```
//!
//! A reader works while it has a seat. There are as many as readers are wanted; who finds none is parked, with nothing
//! open. The seat of a reader that dies is free for the next, so somebody always works. Readers themselves look at the
//! numbers when half a second has passed: no thread of its own, and none that wakes up while there is nothing to read.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::observe::events;
use crate::observe::metrics::Metrics;
use crate::settings::Concurrency;

use super::tuner::{self, HELD_BACK, Interval, Reason, Setting, Tuner};

/// Readers with `--concurrency auto` at most: each hashes some 3 GB/s, so more of them only help once disks are faster
/// than this many cores.
const READERS_MAX: usize = 16;
/// Readers that even a single core may get: where each file waits for a slow disk, so do its readers.
const READERS_MAX_LEAST: usize = 4;
/// How long numbers are gathered before they are looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// Opening, leasing, looking at and handing on a file takes about as long as reading and hashing this many bytes. So
/// small and large files count alike.
pub const FILE_WORK: u64 = 64 << 10;

/// Shared by the readers.
#[derive(Debug)]
pub struct Governor {
    /// Readers that are wanted.
    readers: AtomicUsize,
    /// Files that each may have open.
    files: AtomicUsize,
    threads: usize,
    files_max: usize,
    why: &'static str,
    metrics: Arc<Metrics>,
    seats: Mutex<Seats>,
    /// A seat is free, or there will be none any more.
    called: Condvar,
    /// Bytes, and [`FILE_WORK`] for each file.
    work: AtomicU64,
    /// Nanoseconds that readers waited for the recorder.
    held_back: AtomicU64,
    began: Instant,
    /// Nanoseconds after `began` when the interval is over; [`NEVER`] if there is nothing to tune.
    due: AtomicU64,
    tuning: Mutex<Option<Tuning>>,
}

const NEVER: u64 = u64::MAX;

#[derive(Debug)]
struct Seats {
    taken: Vec<bool>,
    closed: bool,
}

#[derive(Debug)]
struct Tuning {
    tuner: Tuner,
    /// What was last said.
    announced: Setting,
    /// Where the interval began.
    since: Duration,
    work: u64,
    held_back: u64,
    waiting: bool,
}

/// The right of a reader to open files.
#[derive(Debug)]
pub struct Seat {
    governor: Arc<Governor>,
    rank: usize,
}

/// How many readers are tried at most, with so many cores' worth of processor time on so many cores.
fn readers_max(cores: usize, allowed: usize) -> usize {
    match cores < allowed {
        // A quota: whoever has used it up waits, and with it whatever it holds.
        true => cores.clamp(1, READERS_MAX),
        false => (cores * 2).clamp(READERS_MAX_LEAST, READERS_MAX),
    }
}

impl Governor {
    /// As many readers as are asked for. With `auto` one for each core that the process may use, then what the tuner
    /// finds; twice as many at most, and under a CPU quota no more than that is worth.
    pub fn new(concurrency: Concurrency, metrics: Arc<Metrics>) -> Arc<Governor> {
        match concurrency {
            Concurrency::Fixed(readers) => {
                let fixed = Setting {
                    readers: readers.get(),
                    files: tuner::FILES,
                };
                Governor::with(fixed, None, "as set", metrics)
            }
            Concurrency::Auto => {
                // On Linux what sched_getaffinity(2) says (cpusets are in it), and the CPU quotas of the cgroup and
                // those above it, of both versions, rounded down.
                let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
                let start = Setting {
                    readers: cores.min(READERS_MAX),
                    files: tuner::FILES,
                };
                let allowed = rustix::thread::sched_getaffinity(None)
                    .map_or(cores, |cores| cores.count() as usize);
                let readers_max = readers_max(cores, allowed);
                let why = "by the number of cores";
                Governor::with(start, Some(readers_max), why, metrics)
            }
        }
    }

    fn with(
        start: Setting,
        tuned_to: Option<usize>,
        why: &'static str,
        metrics: Arc<Metrics>,
    ) -> Arc<Governor> {
        let threads = tuned_to.unwrap_or(start.readers);
        let governor = Governor {
            readers: AtomicUsize::new(start.readers),
            files: AtomicUsize::new(start.files),
            threads,
            files_max: tuned_to.map_or(start.files, |_| tuner::FILES_MAX),
            why,
            metrics,
            seats: Mutex::new(Seats {
                taken: vec![false; threads],
                closed: false,
            }),
            called: Condvar::new(),
            work: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            began: Instant::now(),
            due: AtomicU64::new(tuned_to.map_or(NEVER, |_| 0)),
            tuning: Mutex::new(tuned_to.map(|readers_max| Tuning {
                tuner: Tuner::new(start, readers_max),
                announced: start,
                since: Duration::ZERO,
                work: 0,
                held_back: 0,
                waiting: false,
            })),
        };
        governor.apply(start);
        Arc::new(governor)
    }

    /// Readers that may ever work.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Files that a reader may ever have open at once.
    pub fn files_max(&self) -> usize {
        self.files_max
    }

    /// Readers that are wanted now.
    pub fn readers(&self) -> usize {
        self.readers.load(Ordering::Relaxed)
    }

    /// Logs what the run begins with.
    pub fn announce(&self) {
        let files = self.files.load(Ordering::Relaxed);
        events::concurrency(self.readers(), files, self.why);
    }

    /// Waits for a seat. `None` once there are none left and nothing more will come.
    pub fn seat(self: &Arc<Self>) -> Option<Seat> {
        let mut seats = lock(&self.seats);
        loop {
            let wanted = self.readers();
            if let Some(rank) = seats.taken[..wanted].iter().position(|taken| !taken) {
                seats.taken[rank] = true;
                let governor = Arc::clone(self);
                return Some(Seat { governor, rank });
            }
            if seats.closed {
                return None;
            }
            seats = (self.called.wait(seats)).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing more will come: lets go of the readers that are parked.
    pub fn close(&self) {
        lock(&self.seats).closed = true;
        self.called.notify_all();
    }

    /// Work was done: bytes, or `FILE_WORK`.
    pub fn count(&self, work: u64) {
        self.work.fetch_add(work, Ordering::Relaxed);
    }

    /// A reader waited so long for the recorder.
    pub fn held_back(&self, rest: Duration) {
        self.held_back.fetch_add(nanos(rest), Ordering::Relaxed);
    }

    /// Looks at the numbers, if it is time. `waiting` says whether files wait for a reader.
    pub fn look(&self, waiting: impl FnOnce() -> bool) {
        let due = self.due.load(Ordering::Relaxed);
        if due == NEVER {
            return;
        }
        let now = self.began.elapsed();
        if nanos(now) >= due {
            self.look_at(now, waiting());
        }
    }

    fn look_at(&self, now: Duration, waiting: bool) {
        // One reader is enough.
        let Ok(mut tuning) = self.tuning.try_lock() else {
            return;
        };
        let Some(tuning) = tuning.as_mut() else {
            return;
        };
        if nanos(now) < self.due.load(Ordering::Relaxed) {
            return;
        }
        self.due.store(nanos(now + INTERVAL), Ordering::Relaxed);
        let seen = self.interval(tuning, now, waiting);
        let before = tuning.tuner.setting();
        tuning.tuner.observe(seen);
        let setting = tuning.tuner.setting();
        if setting != before {
            self.apply(setting);
            events::concurrency_trial(setting.readers, setting.files, seen.rate, seen.held_back);
        }
        if let Some((settled, reason)) = tuning.tuner.settled()
            && settled != tuning.announced
        {
            tuning.announced = settled;
            let reason = match reason {
                Reason::Start => self.why,
                Reason::Throughput => "more gets done",
                Reason::Recorder => "the recorder is the limit",
            };
            events::concurrency(settled.readers, settled.files, reason);
        }
    }

    /// The interval that ends now; the next begins.
    fn interval(&self, tuning: &mut Tuning, now: Duration, waiting: bool) -> Interval {
        let took = now.saturating_sub(tuning.since);
        let (work, held_back) = (
            self.work.load(Ordering::Relaxed),
            self.held_back.load(Ordering::Relaxed),
        );
        let seconds = took.as_secs_f64().max(1e-9);
        let waited = (held_back - tuning.held_back) as f64 / 1e9;
        let share = (waited / seconds / self.readers() as f64).min(1.0);
        // Nobody looked for long: because there was nothing to read, or because all waited for the recorder.
        let whole = took <= INTERVAL * 2 || share >= HELD_BACK;
        let seen = Interval {
            rate: (work - tuning.work) as f64 / seconds,
            held_back: share,
            demand: tuning.waiting && waiting && whole,
        };
        tuning.since = now;
        (tuning.work, tuning.held_back) = (work, held_back);
        tuning.waiting = waiting;
        seen
    }

    /// Makes it hold. Who has become too much goes on to the end of its files.
    pub(super) fn apply(&self, setting: Setting) {
        let Setting { readers, files } = setting;
        // Under the lock, so that no reader parks just after it was called.
        let _seats = lock(&self.seats);
        self.readers.store(readers, Ordering::Relaxed);
        self.files.store(files, Ordering::Relaxed);
        self.metrics.set_readers(readers, files);
        self.called.notify_all();
    }
}

impl Seat {
    /// How many files its reader may have open: none once fewer readers are wanted.
    pub fn files(&self) -> usize {
        match self.rank < self.governor.readers() {
            true => self.governor.files.load(Ordering::Relaxed),
            false => 0,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.governor.seats).taken[self.rank] = false;
        self.governor.called.notify_all();
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER - 1)
}

fn lock(seats: &Mutex<Seats>) -> MutexGuard<'_, Seats> {
    seats.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc::channel;
    use std::thread;

    /// Starts with as many readers, each with 8 files.
    fn tuned(readers: usize, readers_max: usize) -> Arc<Governor> {
        let start = Setting { readers, files: 8 };
        Governor::with(start, Some(readers_max), "a test", Arc::default())
    }

    fn wants(governor: &Governor, readers: usize, files: usize) {
        governor.apply(Setting { readers, files });
    }

    #[test]
    fn a_number_that_was_asked_for_stays() {
        let metrics = Arc::new(Metrics::new());
        let three = Concurrency::Fixed(3.try_into().unwrap());
        let governor = Governor::new(three, Arc::clone(&metrics));
        for _ in 0..100 {
            governor.look(|| panic!("nobody cares"));
        }
        assert_eq!((governor.readers(), governor.threads()), (3, 3));
        let seats: Vec<Seat> = (0..3).map(|_| governor.seat().unwrap()).collect();
        assert!(seats.iter().all(|seat| seat.files() == 8));
        assert_eq!(governor.files_max(), 8);
        let status = metrics.status(crate::observe::metrics::State::Running);
        assert_eq!((status.readers, status.files_in_flight), (3, 8));
    }

    #[test]
    fn auto_begins_with_the_cores_of_the_process_and_may_double_them() {
        let cores = thread::available_parallelism().unwrap().get();
        let governor = Governor::new(Concurrency::Auto, Arc::default());
        assert_eq!(governor.readers(), cores.min(16));
        assert_eq!(governor.files_max(), tuner::FILES_MAX);
        for (cores, allowed, most) in [(1, 1, 4), (2, 2, 4), (4, 4, 8), (32, 32, 16)] {
            assert_eq!(readers_max(cores, allowed), most);
        }
    }

    #[test]
    fn under_a_quota_no_more_readers_are_tried_than_it_is_worth() {
        for (cores, allowed, most) in [(1, 2, 1), (2, 8, 2), (20, 64, 16)] {
            assert_eq!(readers_max(cores, allowed), most);
        }
    }

    #[test]
    fn who_finds_no_seat_is_parked_until_more_are_wanted_one_is_left_or_nothing_will_come() {
        let governor = tuned(1, 3);
        let first = governor.seat().unwrap();
        let (sender, seats) = channel();
        let parked: Vec<_> = (0..3)
            .map(|_| {
                let (governor, sender) = (Arc::clone(&governor), sender.clone());
                thread::spawn(move || sender.send(governor.seat()).unwrap())
            })
            .collect();
        assert!(seats.try_recv().is_err());
        wants(&governor, 2, 4);
        let second = seats.recv().unwrap().expect("a second one is wanted");
        assert_eq!((first.files(), second.files()), (4, 4));
        // The first is left: somebody else takes it.
        drop(first);
        let first = seats.recv().unwrap().expect("the seat that was left");
        wants(&governor, 1, 8);
        assert_eq!((first.files(), second.files()), (8, 0));
        // The second is left too, but wanted no more.
        drop(second);
        assert!(seats.try_recv().is_err());
        governor.close();
        assert!(seats.recv().unwrap().is_none());
        for parked in parked {
            parked.join().unwrap();
        }
        // What is still in the queue can be read by who has a seat, or finds one free.
        assert_eq!(first.files(), 8);
        assert!(governor.seat().is_none());
        drop(first);
        assert!(governor.seat().is_some());
    }

    #[test]
    fn the_seat_of_a_reader_that_panics_is_taken_by_one_that_was_parked() {
        let governor = tuned(1, 2);
        let (sender, seats) = channel();
        let seat = governor.seat().unwrap();
        let parked = Arc::clone(&governor);
        let parked = thread::spawn(move || sender.send(parked.seat().is_some()).unwrap());
        let died = catch_unwind(AssertUnwindSafe(|| {
            let _seat = seat;
            panic!("a reader");
        }));
        assert!(died.is_err());
        assert!(seats.recv().unwrap());
        parked.join().unwrap();
    }

    /// A reader that looks every half second, after so much work and waiting for each reader that works.
    struct Clock {
        governor: Arc<Governor>,
        now: Duration,
    }

    impl Clock {
        fn looks(&mut self, times: u32, work: impl Fn(usize) -> u64, held_back: Duration) {
            for _ in 0..times {
                self.now += INTERVAL;
                let readers = self.governor.readers();
                self.governor.count(work(readers));
                for _ in 0..readers {
                    self.governor.held_back(held_back);
                }
                self.governor.look_at(self.now, true);
            }
        }
    }

    fn clock(governor: &Arc<Governor>) -> Clock {
        Clock {
            governor: Arc::clone(governor),
            now: Duration::ZERO,
        }
    }

    #[test]
    fn readers_are_added_while_more_gets_done() {
        let governor = tuned(2, 4);
        clock(&governor).looks(60, |readers| readers as u64 * 1000, Duration::ZERO);
        assert_eq!(governor.readers(), 4);
    }

    #[test]
    fn readers_that_wait_for_the_recorder_become_fewer() {
        let governor = tuned(4, 8);
        let waits = Duration::from_millis(400);
        clock(&governor).looks(60, |_| 1000, waits);
        assert_eq!(governor.readers(), 1);
    }

    #[test]
    fn a_long_interval_counts_if_all_waited_for_the_recorder_and_not_if_all_slept() {
        for (waits, readers) in [(Duration::from_secs(3), 1), (Duration::ZERO, 2)] {
            let governor = tuned(2, 4);
            let mut clock = clock(&governor);
            for _ in 0..60 {
                clock.now += Duration::from_secs(3);
                clock.looks(1, |_| 1000, waits);
            }
            assert_eq!(governor.readers(), readers);
        }
    }

    #[test]
    fn an_interval_is_looked_at_once() {
        let governor = tuned(2, 4);
        let mut clock = clock(&governor);
        clock.looks(1, |_| 1000, Duration::ZERO);
        governor.count(5);
        governor.look_at(clock.now, true);
        governor.look_at(clock.now + INTERVAL / 2, true);
        let tuning = governor.tuning.lock().unwrap();
        assert_eq!(tuning.as_ref().unwrap().work, 1000);
    }
}
