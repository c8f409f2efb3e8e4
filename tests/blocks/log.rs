//! What a disk holds, and everything that was ever asked of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Blocks of this size are kept, and shared between images until one changes them.
pub const BLOCK: usize = 4096;

/// The content of a disk. What was never written, or with zeros, takes no memory.
#[derive(Clone, Default)]
pub struct Image {
    blocks: HashMap<u64, Arc<[u8; BLOCK]>>,
}

impl Image {
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        for (number, within, range) in pieces(offset, into.len()) {
            let into = &mut into[range];
            match self.blocks.get(&number) {
                Some(block) => into.copy_from_slice(&block[within..within + into.len()]),
                None => into.fill(0),
            }
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (number, within, range) in pieces(offset, bytes.len()) {
            let bytes = &bytes[range];
            if bytes.len() == BLOCK && bytes.iter().all(|&byte| byte == 0) {
                self.blocks.remove(&number);
                continue;
            }
            let block = self
                .blocks
                .entry(number)
                .or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[within..within + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// What it holds, as offsets and blocks.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, &[u8; BLOCK])> {
        let blocks = self.blocks.iter();
        blocks.map(|(number, block)| (number * BLOCK as u64, &**block))
    }
}

/// The blocks that a range touches: number, offset within it, and which part of the range that is.
fn pieces(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % BLOCK as u64) as usize;
        let range = done..length.min(done + BLOCK - within);
        done = range.end;
        Some((at / BLOCK as u64, within, range))
    })
}

/// What was asked of a disk.
pub enum Op {
    Write { offset: u64, bytes: Box<[u8]> },
    Flush,
}

/// The number of a disk among those that share a log.
pub type DiskId = usize;

/// Everything asked of some disks, in the order in which they did it. A disk does one thing after the other, so what
/// comes before a flush of the same disk was done when that flush was.
#[derive(Default)]
pub struct Log {
    entries: Mutex<Vec<(DiskId, Op)>>,
}

impl Log {
    pub fn push(&self, disk: DiskId, op: Op) {
        self.entries.lock().expect("log").push((disk, op));
    }

    /// How much was asked so far: a moment that other things can be compared with.
    pub fn now(&self) -> usize {
        self.entries.lock().expect("log").len()
    }

    pub fn take(&self) -> Vec<(DiskId, Op)> {
        std::mem::take(&mut self.entries.lock().expect("log"))
    }
}
