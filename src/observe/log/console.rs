//! The log on standard error.

use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, poll};
use tracing::Level;

use super::batch::{Batch, Sink};
use super::line::Format;
use super::queue::Output;

/// Lines to a stream that is shared with others.
pub(super) struct Console<W>(Batch<Stream<W>>);

impl<W: Write> Console<W> {
    pub(super) fn new(stream: W, format: Format) -> Console<W> {
        let stream = Stream {
            stream,
            torn: false,
        };
        Console(Batch::new(stream, format))
    }
}

impl<W: Write + Send + 'static> Output for Console<W> {
    fn append(&mut self, _: Level, line: &[u8]) {
        self.0.append(line);
    }

    fn missed(&mut self, lines: u64) {
        self.0.missed(lines);
    }

    fn write(&mut self) -> u64 {
        self.0.write();
        self.0.take_refused()
    }
}

struct Stream<W> {
    stream: W,
    /// The last write failed in the middle of a line.
    torn: bool,
}

impl<W: Write> Sink for Stream<W> {
    fn write_lines(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        if self.torn {
            write_all(&mut self.stream, b"\n").map_err(|(_, error)| (0, error))?;
            self.torn = false;
        }
        write_all(&mut self.stream, lines).inspect_err(|(taken, _)| {
            self.torn = lines[..*taken].last().is_some_and(|&byte| byte != b'\n');
        })
    }
}

/// Writes everything, or says how much it has written.
pub(super) fn write_all(stream: &mut impl Write, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// Standard error without the lock of `std::io::stderr`, which a blocked write would hold against
/// everyone else.
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(io::stderr(), bytes) {
                // Whoever shares the terminal may have made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => {
                    let stderr = io::stderr();
                    poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None)?;
                }
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
