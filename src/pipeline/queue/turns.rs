//! What is worked on side by side is handed on in the order in which it was taken up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Queue;

/// Hands items on to a queue in the order in which turns were taken for them. An item whose turn has not come waits here; a turn
/// that is dropped holds nobody up. Whoever ends a turn hands on what waited for it, so nothing here needs a thread or a clock.
#[derive(Debug)]
pub struct Turns<T> {
    to: Arc<Queue<T>>,
    /// Turns that may be under way.
    most: u64,
    /// Turns taken.
    taken: AtomicU64,
    /// All turns before this one have ended, and their items are handed on.
    next: AtomicU64,
    /// Turns that have ended before their time, with their items if they brought any.
    waiting: Mutex<BTreeMap<u64, Option<T>>>,
}

/// A place in the order.
pub struct Turn<T> {
    of: Arc<Turns<T>>,
    number: u64,
    open: bool,
}

impl<T> Turns<T> {
    /// Turns of which at most `most`, and at least one, are under way: so many items wait here at most.
    pub fn new(to: Arc<Queue<T>>, most: usize) -> Arc<Turns<T>> {
        Arc::new(Turns {
            to,
            most: most.max(1) as u64,
            taken: AtomicU64::new(0),
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
        })
    }

    /// The next turn; `None` while as many as may be are under way.
    pub fn take(self: &Arc<Turns<T>>) -> Option<Turn<T>> {
        let fits = |taken: u64| {
            let under_way = taken.saturating_sub(self.next.load(Ordering::Acquire));
            (under_way < self.most).then_some(taken + 1)
        };
        let number = self
            .taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        Some(Turn {
            of: Arc::clone(self),
            number: number.ok()?,
            open: true,
        })
    }

    fn end(&self, number: u64, item: Option<T>, rested: impl Fn(Duration)) {
        // It is held while what is next is handed on: nobody may come between.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(number, item);
        let mut next = self.next.load(Ordering::Relaxed);
        while let Some(item) = waiting.remove(&next) {
            if let Some(item) = item {
                // A closed queue: nobody takes it any more.
                let _ = self.to.push_telling(item, &rested);
            }
            next += 1;
            self.next.store(next, Ordering::Release);
        }
    }
}

impl<T> Turn<T> {
    /// Ends the turn with an item, which holds no turn itself. `rested` hears of each rest for want of room.
    pub fn hand_on(mut self, item: T, rested: impl Fn(Duration)) {
        self.open = false;
        self.of.end(self.number, Some(item), rested);
    }
}

impl<T> Drop for Turn<T> {
    fn drop(&mut self) {
        if self.open {
            self.of.end(self.number, None, |_| {});
        }
    }
}

impl<T> fmt::Debug for Turn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Turn").field(&self.number).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all<T>(queue: &Queue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.try_pop()).collect()
    }

    #[test]
    fn an_item_waits_for_all_turns_before_its_own() {
        let queue = Arc::new(Queue::new(8));
        let turns = Turns::new(Arc::clone(&queue), 8);
        let [a, b, c, d] = std::array::from_fn(|_| turns.take().unwrap());
        d.hand_on("d", |_| {});
        b.hand_on("b", |_| {});
        assert_eq!(queue.depth(), 0);
        a.hand_on("a", |_| {});
        assert_eq!(all(&queue), ["a", "b"]);
        // Given up: nobody waits for it.
        drop(c);
        assert_eq!(all(&queue), ["d"]);
        turns.take().unwrap().hand_on("e", |_| {});
        assert_eq!(all(&queue), ["e"]);
    }

    #[test]
    fn no_more_turns_are_under_way_than_may_be() {
        let queue = Arc::new(Queue::new(8));
        let turns = Turns::new(Arc::clone(&queue), 2);
        let first = turns.take().unwrap();
        turns.take().unwrap().hand_on(2, |_| {});
        // The second has ended, but its item waits here.
        assert!(turns.take().is_none());
        first.hand_on(1, |_| {});
        assert_eq!(all(&queue), [1, 2]);
        let again = [turns.take(), turns.take(), turns.take()];
        assert_eq!(again.iter().flatten().count(), 2);
        let at_least_one = Turns::new(queue, 0);
        let _turn = at_least_one.take().unwrap();
        assert!(at_least_one.take().is_none());
    }

    #[test]
    fn what_a_closed_queue_refuses_is_dropped() {
        let queue = Arc::new(Queue::new(1));
        let turns = Turns::new(Arc::clone(&queue), 2);
        let item = Arc::new(());
        let [first, second] = std::array::from_fn(|_| turns.take().unwrap());
        second.hand_on(Arc::clone(&item), |_| {});
        queue.close();
        drop(first);
        assert_eq!(Arc::strong_count(&item), 1);
    }

    #[test]
    fn many_workers_keep_the_order_through_a_queue_that_is_full_most_of_the_time() {
        let (work, queue) = (Arc::new(Queue::new(16)), Arc::new(Queue::new(4)));
        let turns = Turns::new(Arc::clone(&queue), 8);
        let workers: Vec<_> = (0..4u32)
            .map(|worker| {
                let work: Arc<Queue<(u32, Turn<u32>)>> = Arc::clone(&work);
                std::thread::spawn(move || {
                    while let Some((number, turn)) = work.pop() {
                        // The four are of different speed.
                        for _ in 0..worker * 8 {
                            std::thread::yield_now();
                        }
                        // One in seven gives up.
                        if number % 7 != 3 {
                            turn.hand_on(number, |_| {});
                        }
                    }
                })
            })
            .collect();
        let taker = {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>())
        };
        for number in 0..20_000 {
            let turn = loop {
                match turns.take() {
                    Some(turn) => break turn,
                    None => std::thread::yield_now(),
                }
            };
            work.push((number, turn)).unwrap();
        }
        work.close();
        for worker in workers {
            worker.join().unwrap();
        }
        queue.close();
        let expected: Vec<u32> = (0..20_000).filter(|number| number % 7 != 3).collect();
        assert_eq!(taker.join().unwrap(), expected);
    }
}
