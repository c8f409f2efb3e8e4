//! SHA-256: twelve messages one after the other through `ring` and `sha2`, and side by side in one to four lanes.
//!
//! `cargo bench --bench digest`; with `-- --test` each is run once.

use divan::Bencher;
use divan::counter::BytesCount;
use ringest::pipeline::read::digest::{self, Stream};
use sha2::Digest as _;

/// Divisible by every number of lanes.
const MESSAGES: usize = 12;
/// A small file, and a read of a large one.
const BYTES: [usize; 2] = [4 << 10, 256 << 10];

fn main() {
    divan::main();
}

fn messages(bytes: usize) -> Vec<Vec<u8>> {
    (0..MESSAGES)
        .map(|message| vec![message as u8; bytes])
        .collect()
}

fn with_messages(bencher: Bencher, bytes: usize, hash: impl Fn(&[Vec<u8>]) + Sync) {
    let messages = messages(bytes);
    bencher
        .counter(BytesCount::new(MESSAGES * bytes))
        .bench(|| hash(divan::black_box(&messages)));
}

#[divan::bench(args = BYTES)]
fn ring(bencher: Bencher, bytes: usize) {
    with_messages(bencher, bytes, |messages| {
        for message in messages {
            divan::black_box(ring::digest::digest(&ring::digest::SHA256, message));
        }
    });
}

#[divan::bench(args = BYTES)]
fn sha2(bencher: Bencher, bytes: usize) {
    with_messages(bencher, bytes, |messages| {
        for message in messages {
            divan::black_box(sha2::Sha256::digest(message));
        }
    });
}

#[divan::bench(args = BYTES, consts = [1, 2, 3, 4])]
fn lanes<const LANES: usize>(bencher: Bencher, bytes: usize) {
    with_messages(bencher, bytes, |messages| {
        let mut streams = [(); MESSAGES].map(|()| Stream::default());
        let mut pieces: Vec<(&mut Stream, &[u8])> = streams
            .iter_mut()
            .zip(messages.iter().map(Vec::as_slice))
            .collect();
        digest::update_in(LANES, &mut pieces);
        for stream in streams {
            divan::black_box(stream.finish());
        }
    });
}
