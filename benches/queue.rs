//! The bounded queue: an item pushed and popped by one thread, and items handed by one or two producers to a consumer.
//!
//! `cargo bench --bench queue`; with `-- --test` each is run once.
//!
//! Items are as large as those between discovery and readers. A hand-over includes the start of its producers, some ten
//! microseconds in the time of all its items.

use std::thread;

use divan::Bencher;
use divan::counter::ItemsCount;
use ringest::pipeline::Candidate;
use ringest::pipeline::queue::Queue;

/// As many as wait for a reader at most.
const CAPACITY: usize = 4096;
/// Items of one hand-over: the queue fills up and runs empty many times.
const ITEMS: usize = 100_000;

const WORDS: usize = size_of::<Candidate>() / 8;
type Item = [u64; WORDS];

fn main() {
    divan::main();
}

#[divan::bench]
fn push_and_pop(bencher: Bencher) {
    let queue: Queue<Item> = Queue::new(CAPACITY);
    bencher.counter(ItemsCount::new(1usize)).bench_local(|| {
        let pushed = queue.try_push(divan::black_box([1; WORDS]));
        assert!(pushed.is_ok());
        queue.try_pop()
    });
}

#[divan::bench(args = [1, 2], sample_count = 30, sample_size = 1)]
fn producers_to_a_consumer(bencher: Bencher, producers: usize) {
    bencher
        .counter(ItemsCount::new(ITEMS))
        .bench_local(|| hand_over(producers));
}

fn hand_over(producers: usize) {
    let queue: Queue<Item> = Queue::new(CAPACITY);
    thread::scope(|scope| {
        for _ in 0..producers {
            scope.spawn(|| {
                for item in 0..ITEMS / producers {
                    let pushed = queue.push(divan::black_box([item as u64; WORDS]));
                    assert!(pushed.is_ok());
                }
            });
        }
        for _ in 0..ITEMS {
            divan::black_box(queue.pop());
        }
    });
}
