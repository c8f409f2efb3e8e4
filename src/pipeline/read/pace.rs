//! `max_bytes_per_second`: what all readers together may read.
//!
//! Every read takes its turn behind the one before it, whoever does it, and lasts as long as its bytes take at that rate
//! (GCRA, the virtual scheduling of ITU-T I.371). What was not used is kept for [`CREDIT_NANOS`]; one read always goes
//! through, however large.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much of an idle time may be made up for.
const CREDIT_NANOS: u64 = 100_000_000;
/// Shorter waits are not slept: they add up.
const SHORTEST: Duration = Duration::from_millis(1);
/// How often a reader that waits looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Shared by the readers.
#[derive(Debug)]
pub struct Pace {
    /// 0: as fast as it goes.
    bytes_per_second: u64,
    began: Instant,
    /// When the next read has its turn, in nanoseconds after `began`.
    next: AtomicU64,
}

impl Pace {
    /// At most so many bytes a second; 0: as many as there are.
    pub fn new(bytes_per_second: u64) -> Pace {
        Pace {
            bytes_per_second,
            began: Instant::now(),
            next: AtomicU64::new(0),
        }
    }

    /// Whether anybody may have to wait.
    pub fn is_limited(&self) -> bool {
        self.bytes_per_second > 0
    }

    /// Waits until so many bytes may be read. False if it is to stop meanwhile.
    pub fn wait(&self, bytes: u64, stopping: &AtomicBool) -> bool {
        if !self.is_limited() {
            return true;
        }
        let turn = Duration::from_nanos(self.take_turn(self.now_nanos(), bytes));
        loop {
            let left = turn.saturating_sub(self.began.elapsed());
            if left < SHORTEST {
                return true;
            }
            if stopping.load(Ordering::Relaxed) {
                return false;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    fn now_nanos(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// When a read of so many bytes has its turn. The next one has its own after it.
    fn take_turn(&self, now: u64, bytes: u64) -> u64 {
        let lasts = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        let lasts = u64::try_from(lasts).unwrap_or(u64::MAX);
        let turn = |next: u64| next.max(now.saturating_sub(CREDIT_NANOS));
        let taken = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                Some(turn(next).saturating_add(lasts))
            });
        // It always succeeds; both are what was there before.
        turn(taken.unwrap_or_else(|next| next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Reads of `bytes` one after the other, each begun at its turn or when it comes, if that is later.
    fn reads(pace: &Pace, from: u64, bytes: u64, count: u64) -> u64 {
        (0..count).fold(from, |now, _| now.max(pace.take_turn(now, bytes)))
    }

    #[test]
    fn reads_take_their_turns_at_the_rate() {
        let pace = Pace::new(1 << 20);
        // Eleven of twelve are paid for when the last begins, but for the credit.
        let last = reads(&pace, SECOND, 256 << 10, 12);
        assert_eq!(last, SECOND + 11 * SECOND / 4 - CREDIT_NANOS);
    }

    #[test]
    fn whoever_reads_the_sum_is_the_same() {
        let pace = Pace::new(1_000_000);
        let (mut one, mut other) = (0, 0);
        for _ in 0..50 {
            one = reads(&pace, one, 10_000, 1);
            other = reads(&pace, other, 10_000, 1);
        }
        assert_eq!(other, 99 * SECOND / 100);
    }

    #[test]
    fn an_idle_time_gives_no_more_credit_than_a_tenth_of_a_second() {
        let pace = Pace::new(1_000_000);
        assert_eq!(reads(&pace, 0, 1000, 1), 0);
        // Whatever is begun at once after an hour is a tenth of a second's worth, and one more.
        let hour = 3600 * SECOND;
        let at_once = (0..1000).take_while(|_| pace.take_turn(hour, 1000) <= hour);
        assert_eq!(at_once.count(), 101);
    }

    #[test]
    fn a_read_larger_than_any_credit_goes_through_and_the_next_one_pays() {
        let pace = Pace::new(1000);
        assert_eq!(pace.take_turn(0, 256_000), 0);
        assert_eq!(pace.take_turn(0, 1), 256 * SECOND);
    }

    #[test]
    fn without_a_limit_nobody_waits_and_with_one_nobody_waits_who_is_to_stop() {
        let stopping = AtomicBool::new(true);
        let free = Pace::new(0);
        assert!((0..1000).all(|_| free.wait(u64::MAX, &stopping)));
        let slow = Pace::new(1);
        assert!(slow.wait(1 << 20, &stopping), "its turn has come");
        assert!(!slow.wait(1, &stopping));
    }
}
