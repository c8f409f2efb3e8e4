//! Memory for reads.

use std::ops::{Deref, DerefMut};

/// What buffers begin at a multiple of, in bytes: no device asks direct reads for more.
pub const ALIGNMENT: usize = 4096;

/// Bytes that begin at a multiple of [`ALIGNMENT`], as direct reads want them.
#[derive(Debug)]
pub struct Buffer {
    memory: Box<[u8]>,
    /// Where the aligned bytes begin.
    start: usize,
    /// Its place in the table of the ring that it is registered with.
    pub(super) registered: Option<u16>,
}

impl Buffer {
    /// `length` zeros. Memory that is never read into costs nothing.
    pub fn new(length: usize) -> Buffer {
        let memory = vec![0; length + ALIGNMENT - 1].into_boxed_slice();
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Buffer {
            memory,
            start,
            registered: None,
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let length = self.memory.len() - (ALIGNMENT - 1);
        &self.memory[self.start..][..length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let length = self.memory.len() - (ALIGNMENT - 1);
        &mut self.memory[self.start..][..length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_they_should_be() {
        for length in [1, 77, 4096, 256 << 10] {
            let mut buffer = Buffer::new(length);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(buffer.len(), length);
            buffer.fill(7);
            assert!(buffer.iter().all(|&byte| byte == 7));
        }
    }
}
