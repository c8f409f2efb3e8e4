//! SHA-256 of several streams at once.
//!
//! One stream is bound by the latency of the SHA instructions, so the interface takes all the buffers that are ready.

use crate::ledger::Digest;

/// One stream on its way to a digest.
#[derive(Clone)]
pub struct Stream(ring::digest::Context);

impl Default for Stream {
    fn default() -> Stream {
        Stream(ring::digest::Context::new(&ring::digest::SHA256))
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stream")
    }
}

impl Stream {
    /// The digest of all bytes so far.
    pub fn finish(self) -> Digest {
        self.0
            .finish()
            .as_ref()
            .try_into()
            .expect("SHA-256 has 32 bytes")
    }
}

/// Feeds each stream its next bytes. The streams are independent; their bytes may differ in length.
pub fn update(lanes: &mut [(&mut Stream, &[u8])]) {
    for (stream, bytes) in lanes {
        stream.0.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest as _;

    proptest! {
        #[test]
        fn interleaved_streams_agree_with_the_oracle(
            streams in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8), 1..5),
        ) {
            let mut ours: Vec<Stream> = streams.iter().map(|_| Stream::default()).collect();
            for step in 0..8 {
                let mut lanes: Vec<(&mut Stream, &[u8])> = ours
                    .iter_mut()
                    .zip(&streams)
                    .filter_map(|(stream, pieces)| Some((stream, pieces.get(step)?.as_slice())))
                    .collect();
                update(&mut lanes);
            }
            for (stream, pieces) in ours.into_iter().zip(&streams) {
                let oracle: Digest = sha2::Sha256::digest(pieces.concat()).into();
                prop_assert_eq!(stream.finish(), oracle);
            }
        }
    }
}
