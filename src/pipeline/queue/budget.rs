//! Something of which all that is under way together may take so much.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An amount of something, of which shares are taken and given back.
#[derive(Debug)]
pub struct Budget {
    most: u64,
    taken: AtomicU64,
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
        })
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
}
