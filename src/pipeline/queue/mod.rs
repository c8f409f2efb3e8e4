//! A bounded queue between stages. Lock-free while there is work; a thread with nothing to do sleeps.

mod budget;
mod fair;
mod turns;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;

pub use budget::{Budget, Share};
pub use fair::{Fair, part};
pub use turns::{Turn, Turns};

/// A bounded queue for many producers and many consumers.
#[derive(Debug)]
pub struct Queue<T> {
    items: ArrayQueue<T>,
    closed: AtomicBool,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

/// A producer that found no room asks again after this time; so a consumer never has to wake one.
const FULL_REST_MIN: Duration = Duration::from_micros(200);
/// Each time it finds none again it rests twice as long, up to this: much less than it takes to use up a queue.
const FULL_REST_MAX: Duration = Duration::from_millis(2);

impl<T> Queue<T> {
    /// A queue for `capacity` items, at least one.
    pub fn new(capacity: usize) -> Queue<T> {
        Queue {
            items: ArrayQueue::new(capacity.max(1)),
            closed: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    /// Adds an item, or gives it back when the queue is full or closed.
    pub fn try_push(&self, item: T) -> Result<(), T> {
        if self.closed.load(Ordering::Acquire) {
            return Err(item);
        }
        self.items.push(item)?;
        self.wake();
        Ok(())
    }

    /// Adds an item, waiting for room. Gives it back when the queue is closed.
    pub fn push(&self, item: T) -> Result<(), T> {
        self.push_telling(item, |_| {})
    }

    /// The same; `rested` hears of each rest, as it ends.
    pub fn push_telling(&self, mut item: T, rested: impl Fn(Duration)) -> Result<(), T> {
        let mut rest = FULL_REST_MIN;
        loop {
            match self.try_push(item) {
                Ok(()) => return Ok(()),
                Err(back) if self.is_closed() => return Err(back),
                Err(back) => item = back,
            }
            let began = Instant::now();
            std::thread::sleep(rest);
            rested(began.elapsed());
            rest = (rest * 2).min(FULL_REST_MAX);
        }
    }

    /// Takes an item if there is one.
    pub fn try_pop(&self) -> Option<T> {
        self.items.pop()
    }

    /// Takes an item, waiting for one. `None` once the queue is closed and empty.
    pub fn pop(&self) -> Option<T> {
        loop {
            if let Some(item) = self.items.pop() {
                return Some(item);
            }
            let guard = self.lock.lock().unwrap_or_else(|e| e.into_inner());
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            // A producer that misses this sleeper pushed before the fence, so its item is seen here.
            fence(Ordering::SeqCst);
            let item = self.items.pop();
            let done = item.is_some() || self.is_closed();
            if !done {
                drop(self.changed.wait(guard).unwrap_or_else(|e| e.into_inner()));
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            if item.is_some() {
                return item;
            }
            if done {
                // Closed: what a producer pushed just before is still there.
                return self.items.pop();
            }
        }
    }

    /// Refuses new items. What is in the queue can still be taken.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _guard = self.lock.lock().unwrap_or_else(|e| e.into_inner());
        self.changed.notify_all();
    }

    /// Whether the queue was closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Items waiting.
    pub fn depth(&self) -> usize {
        self.items.len()
    }

    /// Whether another item would be refused for want of room.
    pub fn is_full(&self) -> bool {
        self.items.is_full()
    }

    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = self.lock.lock().unwrap_or_else(|e| e.into_inner());
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn every_item_is_taken_exactly_once_and_nobody_sleeps_forever() {
        let queue = Arc::new(Queue::new(8));
        let producers: Vec<_> = (0..4u64)
            .map(|producer| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || {
                    for item in 0..20_000 {
                        queue.push(producer * 20_000 + item).unwrap();
                    }
                })
            })
            .collect();
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || {
                    let mut taken = Vec::new();
                    while let Some(item) = queue.pop() {
                        taken.push(item);
                    }
                    taken
                })
            })
            .collect();
        for producer in producers {
            producer.join().unwrap();
        }
        queue.close();
        let mut taken: Vec<u64> = consumers
            .into_iter()
            .flat_map(|consumer| consumer.join().unwrap())
            .collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..80_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_queue_gives_the_item_back() {
        let queue = Queue::new(1);
        assert_eq!(queue.try_push(1), Ok(()));
        assert!(queue.is_full());
        assert_eq!(queue.try_push(2), Err(2));
        assert_eq!(queue.depth(), 1);
    }

    #[test]
    fn a_producer_without_room_rests_longer_each_time_and_hears_of_it() {
        let queue = Arc::new(Queue::new(1));
        queue.try_push(1).unwrap();
        let (sender, rests) = std::sync::mpsc::channel();
        let producer = Arc::clone(&queue);
        let producer =
            std::thread::spawn(move || producer.push_telling(2, |rest| sender.send(rest).unwrap()));
        for least in [1, 2, 4, 8, 10, 10].map(|times| FULL_REST_MIN * times) {
            assert!(rests.recv().unwrap() >= least);
        }
        assert_eq!(queue.try_pop(), Some(1));
        assert_eq!(producer.join().unwrap(), Ok(()));
        assert_eq!(queue.pop(), Some(2));
    }

    #[test]
    fn a_closed_queue_hands_out_what_it_holds_and_takes_no_more() {
        let queue = Queue::new(4);
        queue.try_push(1).unwrap();
        queue.close();
        assert_eq!(queue.push(2), Err(2));
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.pop(), None);
    }
}
