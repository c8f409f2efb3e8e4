//! Reads and writes of several files at once, and splices, through an io_uring or, where there is none, by plain system calls.
//!
//! The engine owns a buffer while its read is in flight; the caller gets it back with the completion. The caller
//! keeps the descriptors open until then.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use rustix::pipe::SpliceFlags;

use super::buffer::Buffer;
use crate::settings::IoChoice;

/// A read, a write or a splice that has ended.
#[derive(Debug)]
pub struct Done {
    /// What the caller named it.
    pub token: u64,
    /// The buffer of a read or a write.
    pub buffer: Option<Buffer>,
    /// Bytes read, written or moved; 0 at the end of the file.
    pub bytes: io::Result<usize>,
}

/// One end of a splice: a file and the offset in it, or a pipe.
#[derive(Debug, Clone, Copy)]
pub enum End<'a> {
    /// A file, from this offset on.
    File(BorrowedFd<'a>, u64),
    /// A pipe.
    Pipe(BorrowedFd<'a>),
}

impl End<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            End::File(fd, _) | End::Pipe(fd) => *fd,
        }
    }

    fn offset(&self) -> Option<u64> {
        match self {
            End::File(_, offset) => Some(*offset),
            End::Pipe(_) => None,
        }
    }
}

/// Where reads go.
// One to a reader, and never moved while it works.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum ReadEngine {
    /// Through a ring.
    Uring(uring::Ring),
    /// One call after the other.
    Sync(VecDeque<Done>),
}

impl ReadEngine {
    /// Opens an engine for up to `depth` reads, writes and splices in flight. With [`IoChoice::Auto`] a missing ring gives the plain
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

    /// Starts reading at `offset` into `buffer`, at most `length` bytes. With `direct` the buffer is worth registering with
    /// the ring: the device writes to it, and its pages need not be looked up each time.
    pub fn read(
        &mut self,
        token: u64,
        fd: BorrowedFd<'_>,
        mut buffer: Buffer,
        offset: u64,
        length: usize,
        direct: bool,
    ) -> io::Result<()> {
        assert!(length <= buffer.len(), "the kernel would write behind it");
        match self {
            ReadEngine::Uring(ring) => {
                ring.read(token, fd.as_raw_fd(), buffer, offset, length, direct)
            }
            ReadEngine::Sync(done) => {
                let bytes = retried(|| rustix::io::pread(fd, &mut buffer[..length], offset));
                done.push_back(Done {
                    token,
                    buffer: Some(buffer),
                    bytes,
                });
                Ok(())
            }
        }
    }

    /// Starts a direct write of the first `length` bytes of `buffer` at `offset`.
    pub fn write(
        &mut self,
        token: u64,
        fd: BorrowedFd<'_>,
        buffer: Buffer,
        offset: u64,
        length: usize,
    ) -> io::Result<()> {
        assert!(length <= buffer.len(), "the kernel would read behind it");
        match self {
            ReadEngine::Uring(ring) => ring.write(token, fd.as_raw_fd(), buffer, offset, length),
            ReadEngine::Sync(done) => {
                let bytes = retried(|| rustix::io::pwrite(fd, &buffer[..length], offset));
                done.push_back(Done {
                    token,
                    buffer: Some(buffer),
                    bytes,
                });
                Ok(())
            }
        }
    }

    /// Starts moving at most `length` bytes; one of the ends is a pipe.
    pub fn splice(
        &mut self,
        token: u64,
        from: End<'_>,
        to: End<'_>,
        length: usize,
    ) -> io::Result<()> {
        match self {
            ReadEngine::Uring(ring) => ring.splice(token, from, to, length),
            ReadEngine::Sync(done) => {
                let bytes = retried(|| {
                    let (mut here, mut there) = (from.offset(), to.offset());
                    let flags = SpliceFlags::empty();
                    let (here, there) = (here.as_mut(), there.as_mut());
                    rustix::pipe::splice(from.fd(), here, to.fd(), there, length, flags)
                });
                done.push_back(Done {
                    token,
                    buffer: None,
                    bytes,
                });
                Ok(())
            }
        }
    }

    /// Begins at once with what was started, instead of with the next wait.
    pub fn begin(&mut self) {
        match self {
            ReadEngine::Uring(ring) => ring.begin(),
            ReadEngine::Sync(_) => {}
        }
    }

    /// Waits for at least one to end, if any is in flight, and moves all that have ended to `done`.
    pub fn wait(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        match self {
            ReadEngine::Uring(ring) => ring.wait(done),
            ReadEngine::Sync(ended) => {
                done.extend(ended.drain(..));
                Ok(())
            }
        }
    }
}

fn retried(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            ended => return Ok(ended?),
        }
    }
}

mod uring {
    #![allow(unsafe_code)]

    use super::*;
    use io_uring::{Builder, IoUring, opcode, types};

    /// A ring and the buffers that are in the kernel's hands.
    ///
    /// # Safety
    ///
    /// The kernel writes into a buffer, or reads from it, until its completion arrives. So a buffer is owned by `flying` from
    /// submission to completion, and dropping the ring first waits for what is in flight.
    pub struct Ring {
        ring: IoUring,
        flying: Vec<Option<(u64, Option<Buffer>)>>,
        free: Vec<usize>,
        in_flight: usize,
        table: Table,
    }

    /// The buffers that the kernel knows, so that it need not look up their pages for each read.
    enum Table {
        /// Not made yet: reads through the page cache gain nothing by it.
        Unmade,
        /// So many have their place.
        Holds(u16),
        /// Not to be had: a limit on locked memory (`ulimit -l`), or a kernel before 5.19.
        Refused,
    }

    type Flag = fn(&mut Builder) -> &mut Builder;

    /// They save interrupts and locks. Linux 5.19 has the first, 6.0 the second, 6.1 the third; each is refused before.
    const FLAGS: [Flag; 3] = [
        Builder::setup_coop_taskrun,
        Builder::setup_single_issuer,
        Builder::setup_defer_taskrun,
    ];

    /// How often a request is offered that the kernel has no memory for, and the time between.
    const MEMORY_TRIES: u32 = 500;
    const MEMORY_REST: Duration = Duration::from_millis(10);

    impl std::fmt::Debug for Ring {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "Ring {{ in_flight: {} }}", self.in_flight)
        }
    }

    impl Ring {
        pub fn new(depth: u32) -> io::Result<Ring> {
            let with = |flags: &[Flag]| {
                let mut builder = IoUring::builder();
                for flag in flags {
                    flag(&mut builder);
                }
                builder.build(depth)
            };
            let fewer = (0..FLAGS.len()).rev();
            let ring = fewer.fold(with(&FLAGS), |ring, left| {
                ring.or_else(|_| with(&FLAGS[..left]))
            });
            Ok(Ring {
                ring: ring?,
                flying: (0..depth).map(|_| None).collect(),
                free: (0..depth as usize).rev().collect(),
                in_flight: 0,
                table: Table::Unmade,
            })
        }

        pub fn read(
            &mut self,
            token: u64,
            fd: RawFd,
            mut buffer: Buffer,
            offset: u64,
            length: usize,
            direct: bool,
        ) -> io::Result<()> {
            if direct && buffer.registered.is_none() {
                buffer.registered = self.register(&mut buffer);
            }
            let fd = types::Fd(fd);
            let (memory, bytes) = (buffer.as_mut_ptr(), length as u32);
            let entry = match buffer.registered.filter(|_| direct) {
                Some(place) => opcode::ReadFixed::new(fd, memory, bytes, place)
                    .offset(offset)
                    .build(),
                None => opcode::Read::new(fd, memory, bytes).offset(offset).build(),
            };
            // What a buffer holds does not move when the buffer does.
            self.push(token, entry, Some(buffer))
        }

        pub fn write(
            &mut self,
            token: u64,
            fd: RawFd,
            mut buffer: Buffer,
            offset: u64,
            length: usize,
        ) -> io::Result<()> {
            if buffer.registered.is_none() {
                buffer.registered = self.register(&mut buffer);
            }
            let fd = types::Fd(fd);
            let (memory, bytes) = (buffer.as_ptr(), length as u32);
            let entry = match buffer.registered {
                Some(place) => opcode::WriteFixed::new(fd, memory, bytes, place)
                    .offset(offset)
                    .build(),
                None => opcode::Write::new(fd, memory, bytes).offset(offset).build(),
            };
            self.push(token, entry, Some(buffer))
        }

        pub fn splice(
            &mut self,
            token: u64,
            from: End<'_>,
            to: End<'_>,
            length: usize,
        ) -> io::Result<()> {
            // Pipes have no offset.
            let at = |end: &End<'_>| end.offset().map_or(-1, |offset| offset as i64);
            let fd = |end: &End<'_>| types::Fd(end.fd().as_raw_fd());
            let (here, there) = (at(&from), at(&to));
            let entry = opcode::Splice::new(fd(&from), here, fd(&to), there, length as u32).build();
            self.push(token, entry, None)
        }

        fn push(
            &mut self,
            token: u64,
            entry: io_uring::squeue::Entry,
            buffer: Option<Buffer>,
        ) -> io::Result<()> {
            let Some(index) = self.free.pop() else {
                return Err(io::Error::other("more than the ring was opened for"));
            };
            let entry = entry.user_data(index as u64);
            self.flying[index] = Some((token, buffer));
            // SAFETY: the buffer stays in `flying` until its completion, also when the ring is dropped; the
            // caller keeps the descriptors open.
            unsafe { self.ring.submission().push(&entry) }
                .map_err(|_| io::Error::other("the submission queue is full"))?;
            self.in_flight += 1;
            Ok(())
        }

        /// Gives a buffer its place in the table.
        fn register(&mut self, buffer: &mut Buffer) -> Option<u16> {
            let submitter = self.ring.submitter();
            if let Table::Unmade = self.table {
                let places = self.flying.len() as u32;
                self.table = match submitter.register_buffers_sparse(places) {
                    Ok(()) => Table::Holds(0),
                    Err(_) => Table::Refused,
                };
            }
            let Table::Holds(place) = self.table else {
                return None;
            };
            let memory = libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            };
            // SAFETY: the kernel holds on to the pages, also beyond the life of the buffer, and touches them only in a
            // read or write that names this place; such a one is made only with this very buffer, and `flying` owns it meanwhile.
            let registered =
                unsafe { submitter.register_buffers_update(place.into(), &[memory], None) };
            match registered {
                Ok(()) => {
                    self.table = Table::Holds(place + 1);
                    Some(place)
                }
                Err(_) => {
                    self.table = Table::Refused;
                    None
                }
            }
        }

        pub fn begin(&mut self) {
            // What the kernel does not take now it is given, or refuses, at the next wait.
            let _ = self.ring.submit();
        }

        pub fn wait(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
            if self.in_flight == 0 {
                return Ok(());
            }
            let mut tries_left = MEMORY_TRIES;
            loop {
                match self.ring.submit_and_wait(1) {
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // The completion queue is full: take what is there first.
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => break,
                    // No memory for a request: what was not taken stays in the queue, and is offered again.
                    Err(error) if is_want_of_memory(&error) && tries_left > 0 => {
                        if !self.ring.completion().is_empty() {
                            break;
                        }
                        tries_left -= 1;
                        std::thread::sleep(MEMORY_REST);
                    }
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
                let bytes = match completion.result() {
                    result if result < 0 => Err(io::Error::from_raw_os_error(-result)),
                    result => Ok(result as usize),
                };
                done.push(Done {
                    token,
                    buffer,
                    bytes,
                });
            }
            Ok(())
        }
    }

    fn is_want_of_memory(error: &io::Error) -> bool {
        matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM))
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
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    const CHOICES: [IoChoice; 2] = [IoChoice::Sync, IoChoice::Auto];

    fn some_file(bytes: usize) -> (std::fs::File, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        let words = (0..bytes as u32 / 4).flat_map(u32::to_le_bytes);
        let content: Vec<u8> = words.collect();
        file.write_all(&content).unwrap();
        (file, content)
    }

    #[test]
    fn every_engine_reads_the_same_bytes_and_returns_every_buffer() {
        let (file, content) = some_file(400_000);
        for choice in CHOICES {
            for direct in [false, true] {
                let (mut engine, _) = ReadEngine::open(choice, 8).unwrap();
                let mut buffers: Vec<Buffer> = (0..8).map(|_| Buffer::new(50_000)).collect();
                // Twice: a buffer that was registered comes back and is used again, whichever way.
                for direct in [direct, !direct] {
                    let mut seen = vec![0u8; content.len()];
                    for token in 0..8u64 {
                        let buffer = buffers.pop().expect("it came back");
                        let read = engine.read(
                            token,
                            file.as_fd(),
                            buffer,
                            token * 50_000,
                            50_000,
                            direct,
                        );
                        read.unwrap();
                    }
                    let mut done = Vec::new();
                    while done.len() < 8 {
                        engine.wait(&mut done).unwrap();
                    }
                    for ended in done {
                        let at = ended.token as usize * 50_000;
                        let (read, buffer) = (ended.bytes.unwrap(), ended.buffer.unwrap());
                        seen[at..at + read].copy_from_slice(&buffer[..read]);
                        buffers.push(buffer);
                    }
                    assert!(seen == content);
                }
            }
        }
    }

    #[test]
    fn every_engine_writes_the_same_bytes_and_returns_every_buffer() {
        for choice in CHOICES {
            let mut file = tempfile::tempfile().unwrap();
            let (mut engine, _) = ReadEngine::open(choice, 4).unwrap();
            let mut expected = Vec::new();
            for token in 0..4u64 {
                let mut buffer = Buffer::new(50_000);
                buffer.fill(token as u8 + 1);
                expected.extend_from_slice(&buffer[..40_000]);
                let offset = token * 40_000;
                let written = engine.write(token, file.as_fd(), buffer, offset, 40_000);
                written.unwrap();
            }
            let mut done = Vec::new();
            while done.len() < 4 {
                engine.wait(&mut done).unwrap();
            }
            for ended in done {
                assert_eq!(ended.bytes.unwrap(), 40_000);
                assert_eq!(ended.buffer.unwrap()[49_999], ended.token as u8 + 1);
            }
            let mut seen = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut seen).unwrap();
            assert!(seen == expected);
        }
    }

    #[test]
    fn every_engine_splices_from_a_file_through_a_pipe_to_a_file() {
        let (file, content) = some_file(300_000);
        for choice in CHOICES {
            let (mut engine, _) = ReadEngine::open(choice, 2).unwrap();
            let mut copy = tempfile::tempfile().unwrap();
            let (out, into) = rustix::pipe::pipe().unwrap();
            let mut one = |from: End<'_>, to: End<'_>, length: usize| {
                engine.splice(7, from, to, length).unwrap();
                let mut done = Vec::new();
                while done.is_empty() {
                    engine.wait(&mut done).unwrap();
                }
                let ended = done.pop().unwrap();
                assert!(ended.token == 7 && ended.buffer.is_none());
                ended.bytes.unwrap()
            };
            let mut at = 0;
            loop {
                let from = End::File(file.as_fd(), at);
                let mut in_pipe = one(from, End::Pipe(into.as_fd()), 50_000);
                if in_pipe == 0 {
                    break;
                }
                while in_pipe > 0 {
                    let to = End::File(copy.as_fd(), at);
                    let moved = one(End::Pipe(out.as_fd()), to, in_pipe);
                    assert!(moved > 0);
                    (at, in_pipe) = (at + moved as u64, in_pipe - moved);
                }
            }
            let mut seen = Vec::new();
            copy.rewind().unwrap();
            copy.read_to_end(&mut seen).unwrap();
            assert!(seen == content);
        }
    }

    #[test]
    fn every_engine_begins_before_it_is_waited_for() {
        let (file, content) = some_file(4096);
        for choice in CHOICES {
            let (mut engine, _) = ReadEngine::open(choice, 2).unwrap();
            let (out, into) = rustix::pipe::pipe().unwrap();
            let (from, to) = (End::File(file.as_fd(), 0), End::Pipe(into.as_fd()));
            engine.splice(7, from, to, 4096).unwrap();
            engine.begin();
            let mut poll = [rustix::event::PollFd::new(
                &out,
                rustix::event::PollFlags::IN,
            )];
            let patience = rustix::fs::Timespec {
                tv_sec: 10,
                tv_nsec: 0,
            };
            assert_eq!(rustix::event::poll(&mut poll, Some(&patience)), Ok(1));
            let mut seen = vec![0; 4096];
            let read = rustix::io::read(&out, &mut seen).unwrap();
            assert!(seen[..read] == content[..read]);
        }
    }

    #[test]
    fn a_ring_dropped_with_reads_in_flight_waits_for_them() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let file = tempfile::tempfile().unwrap();
        let (mut engine, _) = ReadEngine::open(IoChoice::Auto, 4).unwrap();
        engine
            .read(1, file.as_fd(), Buffer::new(4096), 0, 4096, false)
            .unwrap();
        drop(engine);
        drop(reader);
    }
}
