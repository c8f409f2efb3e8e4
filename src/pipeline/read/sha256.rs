//! The compression function of SHA-256 (FIPS 180-4, section 6.2.2) on the SHA extensions of x86-64, for several streams
//! in lockstep.
//!
//! `sha256rnds2` takes four cycles and each waits for the one before, but the unit can begin another every second cycle:
//! a single stream leaves half of it idle. The instructions of a second and third stream fill it.

/// The eight working words between two blocks.
pub type State = [u32; 8];
/// What one step of the function takes in.
pub type Block = [u8; 64];

/// The state before the first block.
pub const START: State = [
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
];

#[cfg(target_arch = "x86_64")]
pub use x86_64::Extensions;

#[cfg(not(target_arch = "x86_64"))]
pub use elsewhere::Extensions;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    #![allow(unsafe_code)]

    use super::{Block, State};
    use std::arch::x86_64::*;

    /// The round constants, four rounds a row.
    #[rustfmt::skip]
    const K: [[u32; 4]; 16] = [
        [0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5], [0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5],
        [0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3], [0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174],
        [0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc], [0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da],
        [0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7], [0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967],
        [0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13], [0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85],
        [0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3], [0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070],
        [0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5], [0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3],
        [0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208], [0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2],
    ];

    /// Shows that this CPU has the instructions: only [`Extensions::detect`] makes one.
    #[derive(Debug, Clone, Copy)]
    pub struct Extensions(());

    impl Extensions {
        /// AVX spares the copies that two-operand instructions need; of the CPUs with SHA only a few Atoms lack it.
        pub fn detect() -> Option<Extensions> {
            (is_x86_feature_detected!("sha") && is_x86_feature_detected!("avx"))
                .then_some(Extensions(()))
        }

        /// Takes each lane's blocks into its state. All lanes have as many blocks.
        pub fn compress<const N: usize>(self, states: [&mut State; N], blocks: [&[Block]; N]) {
            // SAFETY: `self` shows that the CPU has the features that the function is compiled for.
            unsafe { lockstep(states, blocks) }
        }
    }

    /// Sixteen bytes of a block as four words.
    #[inline]
    #[target_feature(enable = "sha,avx")]
    fn words(block: &Block, group: usize) -> __m128i {
        let half = |at: usize| i64::from_le_bytes(std::array::from_fn(|byte| block[at + byte]));
        let bytes = _mm_set_epi64x(half(16 * group + 8), half(16 * group));
        let big_endian = _mm_set_epi64x(0x0c0d0e0f_08090a0b, 0x04050607_00010203);
        _mm_shuffle_epi8(bytes, big_endian)
    }

    /// Writes the body out for each group: in a loop, the compiler would keep the schedule in memory, at half the speed.
    macro_rules! for_each_group {
        ($($group:literal)+: $body:block) => {
            $({
                const GROUP: usize = $group;
                $body
            })+
        };
    }

    /// The instructions keep the state as ABEF and CDGH, A and C on top. In a group of four rounds each lane's
    /// instructions stand together, so that few registers are in use at a time; the CPU reorders them across lanes.
    #[target_feature(enable = "sha,avx")]
    #[allow(
        clippy::needless_range_loop,
        reason = "the lanes' blocks are counted together"
    )]
    fn lockstep<const N: usize>(states: [&mut State; N], blocks: [&[Block]; N]) {
        let nothing = [_mm_setzero_si128(); N];
        let (mut abef, mut cdgh) = (nothing, nothing);
        for lane in 0..N {
            let [a, b, c, d, e, f, g, h] = states[lane].map(|word| word as i32);
            abef[lane] = _mm_set_epi32(a, b, e, f);
            cdgh[lane] = _mm_set_epi32(c, d, g, h);
        }
        let count = blocks.first().map_or(0, |blocks| blocks.len());
        let blocks = blocks.map(|blocks| {
            assert_eq!(blocks.len(), count, "lanes of different lengths");
            &blocks[..count]
        });
        for at in 0..count {
            let (abef_before, cdgh_before) = (abef, cdgh);
            // The last sixteen words of the schedule, four a row.
            let mut w = [nothing; 4];
            for_each_group!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15: {
                let [k0, k1, k2, k3] = K[GROUP];
                let k = _mm_set_epi32(k3 as i32, k2 as i32, k1 as i32, k0 as i32);
                for lane in 0..N {
                    let [w16, w12, w8, w4] = [
                        w[GROUP % 4][lane],
                        w[(GROUP + 1) % 4][lane],
                        w[(GROUP + 2) % 4][lane],
                        w[(GROUP + 3) % 4][lane],
                    ];
                    let now = if GROUP < 4 {
                        words(&blocks[lane][at], GROUP)
                    } else {
                        let sum = _mm_add_epi32(
                            _mm_sha256msg1_epu32(w16, w12),
                            _mm_alignr_epi8::<4>(w4, w8),
                        );
                        _mm_sha256msg2_epu32(sum, w4)
                    };
                    w[GROUP % 4][lane] = now;
                    let now = _mm_add_epi32(now, k);
                    cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], now);
                    let upper = _mm_shuffle_epi32::<0x0e>(now);
                    abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], upper);
                }
            });
            for lane in 0..N {
                abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
                cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
            }
        }
        for (lane, state) in states.into_iter().enumerate() {
            let [a, b, e, f] = unpack(abef[lane]);
            let [c, d, g, h] = unpack(cdgh[lane]);
            *state = [a, b, c, d, e, f, g, h];
        }
    }

    #[inline]
    #[target_feature(enable = "sha,avx")]
    fn unpack(words: __m128i) -> [u32; 4] {
        [
            _mm_extract_epi32::<3>(words) as u32,
            _mm_extract_epi32::<2>(words) as u32,
            _mm_extract_epi32::<1>(words) as u32,
            _mm_extract_epi32::<0>(words) as u32,
        ]
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use super::{Block, State};

    /// There are none: no value of this type exists.
    #[derive(Debug, Clone, Copy)]
    pub enum Extensions {}

    impl Extensions {
        /// Finds none.
        pub fn detect() -> Option<Extensions> {
            None
        }

        /// Is never called.
        pub fn compress<const N: usize>(self, _: [&mut State; N], _: [&[Block]; N]) {
            match self {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each lane's state depends on its own blocks, on every word of them, and on nothing else.
    #[test]
    fn a_changed_bit_changes_its_own_lane_and_no_other() {
        fn check<const N: usize>(extensions: Extensions) {
            let run = |blocks: &[[Block; 2]; N]| {
                let mut states = [START; N];
                extensions.compress(states.each_mut(), blocks.each_ref().map(|lane| &lane[..]));
                states
            };
            let mut blocks: [[Block; 2]; N] =
                std::array::from_fn(|lane| [[lane as u8; 64], [0x5a; 64]]);
            let before = run(&blocks);
            for changed in 0..N {
                for byte in 0..128 {
                    blocks[changed][byte / 64][byte % 64] ^= 0x10;
                    let after = run(&blocks);
                    blocks[changed][byte / 64][byte % 64] ^= 0x10;
                    for lane in 0..N {
                        let same = before[lane] == after[lane];
                        assert_eq!(same, lane != changed, "lane {lane} of {N}, byte {byte}");
                    }
                }
            }
        }
        let Some(extensions) = Extensions::detect() else {
            eprintln!("skipped: this CPU has no SHA extensions");
            return;
        };
        check::<1>(extensions);
        check::<2>(extensions);
        check::<3>(extensions);
        check::<4>(extensions);
    }

    #[test]
    fn lanes_of_no_blocks_keep_their_state() {
        let Some(extensions) = Extensions::detect() else {
            eprintln!("skipped: this CPU has no SHA extensions");
            return;
        };
        let mut states = [[1; 8], [2; 8]];
        extensions.compress(states.each_mut(), [&[], &[]]);
        assert_eq!(states, [[1; 8], [2; 8]]);
    }
}
