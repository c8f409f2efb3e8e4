//! SHA-256 of several streams at once.
//!
//! One stream is bound by the latency of the SHA instructions, so [`update`] takes all the buffers that are ready and
//! feeds them in lockstep (`sha256.rs`). Where the CPU lacks the instructions, `ring` takes one after the other.

use std::cmp::Reverse;

use crate::ledger::Digest;

use super::sha256::{Block, Extensions, START, State};

/// Streams in lockstep. On an AMD EPYC (Zen 3) two run 1.87 times as fast as one, three 2.06, four 2.12; but beside a
/// busy neighbour on the same core the fourth costs more than it brings.
pub const LANES: usize = 3;
/// More streams than lanes take turns, so that they end together and no lane is empty before the end. A turn has this
/// many blocks: the change costs less than a hundredth of it.
const TURN_BLOCKS: usize = 256;

/// One stream on its way to a digest.
#[derive(Clone)]
pub struct Stream(Way);

#[derive(Clone)]
enum Way {
    Lanes(Lane),
    Ring(ring::digest::Context),
}

/// A stream that can be fed beside others.
#[derive(Clone)]
struct Lane {
    extensions: Extensions,
    state: State,
    /// The bytes since the last whole block, at its beginning.
    tail: Block,
    /// All bytes so far.
    bytes: u64,
}

/// Blocks that a stream is to be fed.
struct Run<'a> {
    extensions: Extensions,
    state: &'a mut State,
    blocks: &'a [Block],
}

impl Default for Stream {
    fn default() -> Stream {
        match Extensions::detect() {
            Some(extensions) => Stream::on(extensions),
            None => Stream::on_ring(),
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stream")
    }
}

impl Stream {
    fn on(extensions: Extensions) -> Stream {
        Stream(Way::Lanes(Lane {
            extensions,
            state: START,
            tail: [0; 64],
            bytes: 0,
        }))
    }

    fn on_ring() -> Stream {
        Stream(Way::Ring(ring::digest::Context::new(&ring::digest::SHA256)))
    }

    /// The digest of all bytes so far.
    pub fn finish(self) -> Digest {
        match self.0 {
            Way::Lanes(lane) => lane.finish(),
            Way::Ring(context) => {
                let digest = context.finish();
                digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
            }
        }
    }
}

impl Lane {
    fn used(&self) -> usize {
        (self.bytes % 64) as usize
    }

    /// Takes in the bytes but for the whole blocks among them, which are still to be fed.
    fn take<'a>(&'a mut self, mut bytes: &'a [u8]) -> Run<'a> {
        let used = self.used();
        self.bytes += bytes.len() as u64;
        if used > 0 {
            let (head, rest) = bytes.split_at(bytes.len().min(64 - used));
            self.tail[used..][..head.len()].copy_from_slice(head);
            bytes = rest;
            if used + head.len() == 64 {
                self.extensions.compress([&mut self.state], [&[self.tail]]);
            }
        }
        let (blocks, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            self.tail[..rest.len()].copy_from_slice(rest);
        }
        Run {
            extensions: self.extensions,
            state: &mut self.state,
            blocks,
        }
    }

    /// The end of the message: a one, zeros, its length in bits (FIPS 180-4, section 5.1.1).
    fn finish(mut self) -> Digest {
        let used = self.used();
        let mut last = [0; 128];
        last[..used].copy_from_slice(&self.tail[..used]);
        last[used] = 0x80;
        let end = if used < 56 { 64 } else { 128 };
        last[end - 8..end].copy_from_slice(&(self.bytes * 8).to_be_bytes());
        let (blocks, _) = last[..end].as_chunks();
        self.extensions.compress([&mut self.state], [blocks]);
        let words = self.state.map(u32::to_be_bytes);
        words.as_flattened().try_into().expect("32 bytes")
    }
}

/// Feeds each stream its next bytes. The streams are independent; their bytes may differ in length.
pub fn update(pieces: &mut [(&mut Stream, &[u8])]) {
    update_in(LANES, pieces);
}

/// As [`update`], with that many lanes, for comparisons. One: one stream after the other.
pub fn update_in(lanes: usize, pieces: &mut [(&mut Stream, &[u8])]) {
    let mut runs = Vec::with_capacity(pieces.len());
    for (stream, bytes) in pieces {
        match &mut stream.0 {
            Way::Lanes(lane) => runs.push(lane.take(bytes)),
            Way::Ring(context) => context.update(bytes),
        }
    }
    feed(lanes, runs);
}

/// The longest go first.
fn feed(lanes: usize, mut runs: Vec<Run<'_>>) {
    assert!(lanes > 0, "without a lane nothing is hashed");
    loop {
        runs.retain(|run| !run.blocks.is_empty());
        runs.sort_unstable_by_key(|run| Reverse(run.blocks.len()));
        let turns = lanes > 1 && runs.len() > lanes;
        let turn = if turns { TURN_BLOCKS } else { usize::MAX };
        let first = runs.len().min(lanes);
        match &mut runs[..first] {
            [] => return,
            [a] => side_by_side(turn, [a]),
            [a, b] => side_by_side(turn, [a, b]),
            [a, b, c] => side_by_side(turn, [a, b, c]),
            [a, b, c, d, ..] => side_by_side(turn, [a, b, c, d]),
        }
    }
}

/// Feeds what all of the runs have, `most` blocks at most.
fn side_by_side<const N: usize>(most: usize, mut runs: [&mut Run<'_>; N]) {
    let common = runs
        .iter()
        .map(|run| run.blocks.len())
        .fold(most, usize::min);
    let extensions = runs[0].extensions;
    let blocks = runs.each_mut().map(|run| {
        let (now, later) = run.blocks.split_at(common);
        run.blocks = later;
        now
    });
    extensions.compress(runs.map(|run| &mut *run.state), blocks);
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use sha2::Digest as _;

    const LANES_TRIED: std::ops::RangeInclusive<usize> = 1..=5;

    type Begin = fn() -> Stream;

    /// Both ways, also on a CPU that would take the first.
    fn ways() -> Vec<Begin> {
        let on_extensions: Begin = || {
            let stream = Stream::default();
            assert!(matches!(stream.0, Way::Lanes(_)));
            stream
        };
        let mut ways: Vec<Begin> = vec![Stream::on_ring];
        match Extensions::detect() {
            Some(_) => ways.push(on_extensions),
            None => eprintln!("skipped: this CPU has no SHA extensions, so only ring is tried"),
        }
        ways
    }

    fn of_sha2(message: &[u8]) -> Digest {
        sha2::Sha256::digest(message).into()
    }

    fn of_ring(message: &[u8]) -> Digest {
        let digest = ring::digest::digest(&ring::digest::SHA256, message);
        digest.as_ref().try_into().unwrap()
    }

    /// The digests of messages that are fed side by side, each in its own pieces.
    fn digests(begin: Begin, lanes: usize, messages: &[Vec<&[u8]>]) -> Vec<Digest> {
        let mut streams: Vec<Stream> = messages.iter().map(|_| begin()).collect();
        let steps = messages.iter().map(Vec::len).max().unwrap_or(0);
        for step in 0..steps {
            let mut pieces: Vec<(&mut Stream, &[u8])> = streams
                .iter_mut()
                .zip(messages)
                .filter_map(|(stream, pieces)| Some((stream, *pieces.get(step)?)))
                .collect();
            update_in(lanes, &mut pieces);
        }
        streams.into_iter().map(Stream::finish).collect()
    }

    fn noise(seed: usize, bytes: usize) -> Vec<u8> {
        let mut state = seed as u64;
        let next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(bytes).collect()
    }

    /// The examples of FIPS 180 and the first of the validation program's `SHA256ShortMsg`.
    #[test]
    fn the_vectors_of_nist_come_out_in_every_lane() {
        let million = vec![b'a'; 1_000_000];
        let vectors: [(&[u8], &str); 10] = [
            (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
            (
                b"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
                "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
            ),
            (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
            (b"\xd3", "28969cdfa74a12c82f3bad960b0b000aca2ac329deea5c2328ebc6f2ba9802c1"),
            (b"\x11\xaf", "5ca7133fa735326081558ac312c620eeca9970d1e70a4b95533d956f072d1f98"),
            (b"\xb4\x19\x0e", "dff2e73091f6c05e528896c4c831b9448653dc2ff043528f6769437bc7b975c2"),
            (b"\x74\xba\x25\x21", "b16aa56be3880d18cd41e68384cf1ec8c17680c45a02b1575dc1518923ae8b0e"),
            (
                b"\xc2\x99\x20\x96\x82",
                "f0887fe961c9cd3beab957e8222494abb969b1ce4c6557976df8b0f6d20e9166",
            ),
        ];
        for begin in ways() {
            for lanes in LANES_TRIED {
                for turned in 0..vectors.len() {
                    let mut vectors = vectors;
                    vectors.rotate_left(turned);
                    let messages: Vec<_> = vectors.iter().map(|(text, _)| vec![*text]).collect();
                    for (digest, (_, expected)) in
                        digests(begin, lanes, &messages).iter().zip(vectors)
                    {
                        assert_eq!(HEXLOWER.encode(digest), expected, "{lanes} lanes");
                    }
                }
            }
        }
    }

    /// `SHA256Monte` of the validation program: a chain of 100,000 digests, of which each depends on all before. The same in
    /// each lane.
    #[test]
    fn the_chain_of_nist_ends_where_it_should_in_every_lane() {
        const SEED: &[u8] = b"6d1e72ad03ddeb5de891e572e2396f8da015d899ef0e79503152d6010a3fe691";
        const FIRST: &str = "e93c330ae5447738c8aa85d71a6c80f2a58381d05872d26bdd39f1fcd4f2b788";
        const LAST: &str = "6a912ba4188391a78e6f13d88ed2d14e13afce9db6f7dcbf4a48c24f3db02778";
        for begin in ways() {
            for lanes in LANES_TRIED {
                let mut seed = HEXLOWER.decode(SEED).unwrap();
                for count in 0..100 {
                    let mut message = seed.repeat(3);
                    for _ in 0..1000 {
                        let messages = vec![vec![&message[..]]; lanes];
                        let digests = digests(begin, lanes, &messages);
                        assert!(digests.iter().all(|digest| *digest == digests[0]));
                        message.drain(..32);
                        message.extend(digests[0]);
                    }
                    seed = message.split_off(64);
                    match count {
                        0 => assert_eq!(HEXLOWER.encode(&seed), FIRST, "{lanes} lanes"),
                        99 => assert_eq!(HEXLOWER.encode(&seed), LAST, "{lanes} lanes"),
                        _ => {}
                    }
                }
            }
        }
    }

    #[test]
    fn all_lengths_up_to_a_kibibyte_agree_with_both_oracles() {
        let messages: Vec<Vec<u8>> = (0..=1024).map(|bytes| noise(bytes, bytes)).collect();
        for begin in ways() {
            for lanes in LANES_TRIED {
                let whole: Vec<Vec<&[u8]>> = messages.iter().map(|m| vec![&m[..]]).collect();
                let ours = digests(begin, lanes, &whole);
                for (message, ours) in messages.iter().zip(ours) {
                    let bytes = message.len();
                    assert_eq!(ours, of_sha2(message), "{bytes} bytes, {lanes} lanes");
                    assert_eq!(ours, of_ring(message), "{bytes} bytes, {lanes} lanes");
                }
            }
        }
    }

    #[test]
    fn a_message_that_is_cut_anywhere_has_the_same_digest() {
        let message = noise(7, 200);
        let expected = of_sha2(&message);
        for begin in ways() {
            for first in 0..=message.len() {
                for second in first..=message.len() {
                    let pieces = vec![
                        &message[..first],
                        &message[first..second],
                        &message[second..],
                    ];
                    assert_eq!(
                        digests(begin, 1, &[pieces]),
                        [expected],
                        "{first}, {second}"
                    );
                }
            }
        }
    }

    /// Long enough for turns, and for lanes that run out and are filled again.
    #[test]
    fn long_streams_of_any_lengths_share_the_lanes() {
        let lengths = [
            1, 40_000, 40_000, 300_007, 63, 16_384, 100_000, 262_144, 0, 65_536,
        ];
        let messages: Vec<Vec<u8>> = lengths
            .iter()
            .enumerate()
            .map(|(seed, &bytes)| noise(seed, bytes))
            .collect();
        for begin in ways() {
            for lanes in LANES_TRIED {
                for streams in 0..=messages.len() {
                    let messages = &messages[..streams];
                    let whole: Vec<Vec<&[u8]>> = messages.iter().map(|m| vec![&m[..]]).collect();
                    let expected: Vec<Digest> = messages.iter().map(|m| of_ring(m)).collect();
                    assert_eq!(digests(begin, lanes, &whole), expected, "{lanes} lanes");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn interleaved_streams_agree_with_the_oracle(
            streams in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..8), 1..9),
            lanes in LANES_TRIED,
        ) {
            let messages: Vec<Vec<&[u8]>> =
                streams.iter().map(|pieces| pieces.iter().map(|piece| &piece[..]).collect()).collect();
            let expected: Vec<Digest> = streams.iter().map(|pieces| of_sha2(&pieces.concat())).collect();
            for begin in ways() {
                prop_assert_eq!(&digests(begin, lanes, &messages), &expected);
            }
        }
    }
}
