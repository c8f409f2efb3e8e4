//! The wall clock, behind a trait so that a simulation can make it jump.

use std::time::Duration;

use crate::io::Timestamp;

/// Tells the time of day.
pub trait Clock: Send + Sync {
    /// Microseconds since the epoch, UTC.
    fn now_micros(&self) -> i64;
    /// Waits.
    fn rest(&self, duration: Duration);
}

/// The kernel's CLOCK_REALTIME.
#[derive(Debug, Clone, Copy, Default)]
pub struct WallClock;

impl Clock for WallClock {
    fn now_micros(&self) -> i64 {
        let now = realtime();
        now.seconds * 1_000_000 + i64::from(now.nanos) / 1_000
    }

    fn rest(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// CLOCK_REALTIME, in the form in which files carry their times.
pub fn realtime() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Timestamp {
        seconds: now.tv_sec,
        nanos: now.tv_nsec as u32,
    }
}

/// Processor time that this thread has taken.
pub fn thread_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(spent.tv_sec).unwrap_or(0),
        u32::try_from(spent.tv_nsec).unwrap_or(0),
    )
}
