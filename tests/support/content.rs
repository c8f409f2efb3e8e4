//! Pseudo-random content that a seed replays, and digests by another implementation than ringest's own.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

/// A xorshift64* generator (Vigna 2016). A test that fails while one is alive prints its seed.
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// Takes the seed from `RINGEST_TEST_SEED`, else from the clock.
    pub fn new() -> Random {
        let seed = match std::env::var("RINGEST_TEST_SEED") {
            Ok(text) => text.parse().expect("RINGEST_TEST_SEED is a number"),
            Err(_) => {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .expect("a clock after 1970");
                now.as_nanos() as u64
            }
        };
        Random::with_seed(seed)
    }

    /// What replays it.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Another generator for another thread, which the same seed replays too.
    pub fn fork(&mut self) -> Random {
        Random {
            seed: self.seed,
            state: self.next() | 1,
        }
    }

    fn with_seed(seed: u64) -> Random {
        // The state must not be zero, and small seeds must not look alike.
        let state = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1;
        Random { seed, state }
    }

    pub fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 to `limit - 1`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// `len` bytes that, from eight bytes on, nothing else in the test will equal.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

impl Drop for Random {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("").to_owned();
            eprintln!(
                "replay with: RINGEST_TEST_SEED={} cargo test {test}",
                self.seed
            );
        }
    }
}

/// The digest as the manifest writes it: 64 lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// As [`sha256`], of a file's content.
pub fn sha256_of_file(path: &Path) -> String {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("open {path:?}: {e}"));
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file
            .read(&mut buffer)
            .unwrap_or_else(|e| panic!("read {path:?}: {e}"))
        {
            0 => return hex(&digest.finalize()),
            n => digest.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
