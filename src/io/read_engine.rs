//! Reads of several files at once, through an io_uring or, where there is none, by plain `pread`.
//!
//! The engine owns a buffer while its read is in flight; the caller gets it back with the completion. The caller
//! keeps the descriptor open until then.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use crate::settings::IoChoice;

/// A read that has ended.
#[derive(Debug)]
pub struct ReadDone {
    /// What the caller named the read.
    pub token: u64,
    /// The buffer of the read.
    pub buffer: Box<[u8]>,
    /// Bytes read into it, 0 at the end of the file.
    pub read: io::Result<usize>,
}

/// Where reads go.
// One to a reader, and never moved while it works.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum ReadEngine {
    /// Through a ring.
    Uring(uring::Ring),
    /// One call after the other.
    Sync(VecDeque<ReadDone>),
}

impl ReadEngine {
    /// Opens an engine for up to `depth` reads in flight. With [`IoChoice::Auto`] a missing ring gives the plain
    /// engine; the second value says why.
    pub fn open(choice: IoChoice, depth: u32) -> io::Result<(ReadEngine, Option<io::Error>)> {
        if choice == IoChoice::Sync {
            return Ok((ReadEngine::Sync(VecDeque::new()), None));
        }
        match uring::Ring::new(depth) {
            Ok(ring) => Ok((ReadEngine::Uring(ring), None)),
            Err(error) if choice == IoChoice::Auto => {
                Ok((ReadEngine::Sync(VecDeque::new()), Some(error)))
            }
            Err(error) => Err(error),
        }
    }

    /// Starts reading at `offset` into `buffer`, at most `length` bytes.
    pub fn read(
        &mut self,
        token: u64,
        fd: BorrowedFd<'_>,
        buffer: Box<[u8]>,
        offset: u64,
        length: usize,
    ) -> io::Result<()> {
        debug_assert!(length <= buffer.len());
        match self {
            ReadEngine::Uring(ring) => ring.read(token, fd.as_raw_fd(), buffer, offset, length),
            ReadEngine::Sync(done) => {
                let mut buffer = buffer;
                let read = loop {
                    match rustix::io::pread(fd, &mut buffer[..length], offset) {
                        Err(rustix::io::Errno::INTR) => {}
                        read => break read.map_err(io::Error::from),
                    }
                };
                done.push_back(ReadDone {
                    token,
                    buffer,
                    read,
                });
                Ok(())
            }
        }
    }

    /// Waits for at least one read, if any is in flight, and moves all that have ended to `done`.
    pub fn wait(&mut self, done: &mut Vec<ReadDone>) -> io::Result<()> {
        match self {
            ReadEngine::Uring(ring) => ring.wait(done),
            ReadEngine::Sync(ended) => {
                done.extend(ended.drain(..));
                Ok(())
            }
        }
    }
}

mod uring {
    #![allow(unsafe_code)]

    use super::*;
    use io_uring::{IoUring, opcode, types};

    /// A ring and the buffers that are in the kernel's hands.
    ///
    /// # Safety
    ///
    /// The kernel writes into a buffer until its completion arrives. So a buffer is owned by `flying` from
    /// submission to completion, and dropping the ring first waits for what is in flight.
    pub struct Ring {
        ring: IoUring,
        flying: Vec<Option<(u64, Box<[u8]>)>>,
        free: Vec<usize>,
        in_flight: usize,
    }

    impl std::fmt::Debug for Ring {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "Ring {{ in_flight: {} }}", self.in_flight)
        }
    }

    impl Ring {
        pub fn new(depth: u32) -> io::Result<Ring> {
            // Newer kernels save interrupts and locks with these; older ones refuse them.
            let ring = IoUring::builder()
                .setup_single_issuer()
                .setup_coop_taskrun()
                .setup_defer_taskrun()
                .build(depth)
                .or_else(|_| IoUring::new(depth))?;
            Ok(Ring {
                ring,
                flying: (0..depth).map(|_| None).collect(),
                free: (0..depth as usize).rev().collect(),
                in_flight: 0,
            })
        }

        pub fn read(
            &mut self,
            token: u64,
            fd: RawFd,
            mut buffer: Box<[u8]>,
            offset: u64,
            length: usize,
        ) -> io::Result<()> {
            let Some(index) = self.free.pop() else {
                return Err(io::Error::other("more reads than the ring was opened for"));
            };
            let entry = opcode::Read::new(types::Fd(fd), buffer.as_mut_ptr(), length as u32)
                .offset(offset)
                .build()
                .user_data(index as u64);
            // A boxed slice does not move when the box does.
            self.flying[index] = Some((token, buffer));
            // SAFETY: the buffer stays in `flying` until its completion, also when the ring is dropped; the
            // caller keeps the descriptor open.
            unsafe { self.ring.submission().push(&entry) }
                .map_err(|_| io::Error::other("the submission queue is full"))?;
            self.in_flight += 1;
            Ok(())
        }

        pub fn wait(&mut self, done: &mut Vec<ReadDone>) -> io::Result<()> {
            if self.in_flight == 0 {
                return Ok(());
            }
            loop {
                match self.ring.submit_and_wait(1) {
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // The completion queue is full: take what is there first.
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => break,
                    Err(error) => return Err(error),
                }
            }
            for completion in self.ring.completion() {
                let index = completion.user_data() as usize;
                let Some((token, buffer)) = self.flying[index].take() else {
                    continue;
                };
                self.free.push(index);
                self.in_flight -= 1;
                let read = match completion.result() {
                    result if result < 0 => Err(io::Error::from_raw_os_error(-result)),
                    result => Ok(result as usize),
                };
                done.push(ReadDone {
                    token,
                    buffer,
                    read,
                });
            }
            Ok(())
        }
    }

    impl Drop for Ring {
        fn drop(&mut self) {
            let mut done = Vec::new();
            while self.in_flight > 0 {
                if self.wait(&mut done).is_err() {
                    // Never free what the kernel may still write to.
                    for buffer in self.flying.drain(..).flatten() {
                        std::mem::forget(buffer);
                    }
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn every_engine_reads_the_same_bytes_and_returns_every_buffer() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        file.write_all(&content).unwrap();
        for choice in [IoChoice::Sync, IoChoice::Auto] {
            let (mut engine, _) = ReadEngine::open(choice, 8).unwrap();
            let mut seen = vec![0u8; content.len()];
            for token in 0..8u64 {
                engine
                    .read(
                        token,
                        file.as_fd(),
                        vec![0; 50_000].into(),
                        token * 50_000,
                        50_000,
                    )
                    .unwrap();
            }
            let mut done = Vec::new();
            while done.len() < 8 {
                engine.wait(&mut done).unwrap();
            }
            for ReadDone {
                token,
                buffer,
                read,
            } in done
            {
                let at = token as usize * 50_000;
                let read = read.unwrap();
                seen[at..at + read].copy_from_slice(&buffer[..read]);
            }
            assert!(seen == content);
        }
    }

    #[test]
    fn a_ring_dropped_with_reads_in_flight_waits_for_them() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let file = tempfile::tempfile().unwrap();
        let (mut engine, _) = ReadEngine::open(IoChoice::Auto, 4).unwrap();
        engine
            .read(1, file.as_fd(), vec![0; 4096].into(), 0, 4096)
            .unwrap();
        drop(engine);
        drop(reader);
    }
}
