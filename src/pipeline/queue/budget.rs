//! Something of which all that is under way together may take so much.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Who has asked in vain for so long is given what comes back before anybody else.
const PATIENCE: Duration = Duration::from_secs(1);
/// Who has not asked for so long does not any more.
const ASKS_WITHIN: Duration = Duration::from_millis(200);

/// An amount of something, of which shares are taken and given back.
#[derive(Debug)]
pub struct Budget {
    most: u64,
    taken: AtomicU64,
    /// Who has asked in vain for longest.
    first: Mutex<Option<Asking>>,
}

#[derive(Debug, Clone, Copy)]
struct Asking {
    who: u64,
    since: Instant,
    last: Instant,
}

/// Part of a [`Budget`], given back when it is dropped.
pub struct Share {
    of: Arc<Budget>,
    amount: u64,
}

impl Budget {
    /// A budget of that amount.
    pub fn new(most: u64) -> Arc<Budget> {
        Arc::new(Budget {
            most,
            taken: AtomicU64::new(0),
            first: Mutex::new(None),
        })
    }

    /// A share for one of several that ask again and again. Who needs much is not passed by for ever by those that need little.
    pub fn take_in_turn(self: &Arc<Budget>, who: u64, amount: u64, now: Instant) -> Option<Share> {
        if amount == 0 {
            return self.take(0);
        }
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let asks = |it: &Asking| now.saturating_duration_since(it.last) < ASKS_WITHIN;
        let before = first.filter(|it| it.who != who && asks(it));
        if before.is_some_and(|it| now.saturating_duration_since(it.since) >= PATIENCE) {
            return None;
        }
        let share = self.take(amount);
        if before.is_none() {
            let since = first.filter(asks).map_or(now, |it| it.since);
            let last = now;
            *first = share.is_none().then_some(Asking { who, since, last });
        }
        share
    }

    /// Whether anything is left.
    pub fn is_left(&self) -> bool {
        self.taken.load(Ordering::Acquire) < self.most
    }

    /// A share of what is more than is left, perhaps: the next one waits for that.
    pub fn take_anyway(self: &Arc<Budget>, amount: u64) -> Share {
        self.taken.fetch_add(amount, Ordering::AcqRel);
        Share {
            of: Arc::clone(self),
            amount,
        }
    }

    /// A share, if there is as much left. A share of more than all is one of all.
    pub fn take(self: &Arc<Budget>, amount: u64) -> Option<Share> {
        let amount = amount.min(self.most);
        let fits = |taken: u64| (taken + amount <= self.most).then_some(taken + amount);
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .ok()?;
        Some(Share {
            of: Arc::clone(self),
            amount,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.taken.fetch_sub(self.amount, Ordering::AcqRel);
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Share").field(&self.amount).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_what_is_dropped_is_given_back() {
        let budget = Budget::new(10);
        let (some, rest) = (budget.take(7).unwrap(), budget.take(3).unwrap());
        assert!(budget.take(1).is_none());
        assert!(budget.take(0).is_some());
        drop(rest);
        assert!(budget.take(4).is_none());
        drop(some);
        let all = budget.take(1000).unwrap();
        assert!(budget.take(1).is_none());
        drop(all);
        assert!(budget.take(10).is_some());
    }

    #[test]
    fn the_last_share_may_be_more_than_is_left_and_the_next_one_waits() {
        let budget = Budget::new(10);
        let some = budget.take_anyway(9);
        assert!(budget.is_left());
        let more = budget.take_anyway(9);
        assert!(!budget.is_left() && budget.take(1).is_none());
        drop(some);
        assert!(budget.is_left());
        drop(more);
        assert!(budget.take(10).is_some());
    }

    #[test]
    fn who_needs_much_is_passed_by_for_a_while_only() {
        let budget = Budget::new(10);
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let some = budget.take_in_turn(1, 3, start).unwrap();
        let mut others = Vec::new();
        for millis in (0..=1000).step_by(100) {
            assert!(budget.take_in_turn(2, 9, after(millis)).is_none());
            others.push(budget.take_in_turn(1, 1, after(millis)));
            if others.len() == 5 {
                others.clear();
            }
        }
        // Until then they came first, and now nobody does.
        assert!(others[..others.len() - 1].iter().all(Option::is_some));
        assert!(others.pop().unwrap().is_none());
        assert!(budget.take_in_turn(3, 1, after(1050)).is_none());
        assert!(budget.take_in_turn(3, 0, after(1050)).is_some());
        others.clear();
        drop(some);
        let all = budget.take_in_turn(2, 9, after(1100));
        assert!(all.is_some());
        assert!(budget.take_in_turn(3, 1, after(1100)).is_some());
    }

    #[test]
    fn who_does_not_ask_any_more_holds_up_nobody() {
        let budget = Budget::new(10);
        let start = Instant::now();
        let some = budget.take_in_turn(1, 5, start);
        for millis in (0..=1200).step_by(100) {
            let now = start + Duration::from_millis(millis);
            assert!(budget.take_in_turn(2, 9, now).is_none());
        }
        let later = start + Duration::from_millis(1300);
        assert!(budget.take_in_turn(1, 1, later).is_none());
        assert!(budget.take_in_turn(1, 1, later + ASKS_WITHIN).is_some());
        drop(some);
    }
}
