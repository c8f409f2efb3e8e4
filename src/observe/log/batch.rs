//! Lines gathered for one place, and what is done when it does not take them.

use std::io;

use tracing::Level;

use super::line::{Format, Line};

/// Bytes given to one write.
const BATCH_BYTES: usize = 64 << 10;

/// A place that takes lines.
pub(super) trait Sink {
    /// Writes whole lines, each with its newline.
    ///
    /// # Errors
    /// With how many bytes it has taken before.
    fn write_lines(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)>;

    /// Hears why nothing can be written, for as long as that is so.
    fn failed(&mut self, _error: &io::Error) {}
}

/// Lines for one sink. What it refuses (EPIPE, ENOSPC, …) is dropped and counted: a log that cannot be written is no reason to
/// stop. The first line that it takes afterwards says how many are missing.
pub(super) struct Batch<S> {
    pub(super) sink: S,
    format: Format,
    bytes: Vec<u8>,
    /// Lines that are missing there without a word.
    untold: u64,
    /// Lines that it refused since anybody asked.
    refused: u64,
}

impl<S: Sink> Batch<S> {
    pub(super) fn new(sink: S, format: Format) -> Batch<S> {
        Batch {
            sink,
            format,
            bytes: Vec::with_capacity(BATCH_BYTES + 4096),
            untold: 0,
            refused: 0,
        }
    }

    pub(super) fn append(&mut self, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        if self.bytes.len() >= BATCH_BYTES {
            self.write();
        }
    }

    pub(super) fn missed(&mut self, lines: u64) {
        self.untold += lines;
    }

    /// Lines refused since the last call.
    pub(super) fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    pub(super) fn write(&mut self) {
        let told = match self.untold {
            0 => Vec::new(),
            lines => self.missing(lines),
        };
        if told.is_empty() && self.bytes.is_empty() {
            return;
        }
        self.bytes.splice(..0, told.iter().copied());
        match self.sink.write_lines(&self.bytes) {
            Ok(()) => self.untold = 0,
            Err((taken, error)) => {
                if taken >= told.len() {
                    self.untold = 0;
                }
                let lost = self.bytes[taken.max(told.len())..].iter();
                let lost = lost.filter(|&&byte| byte == b'\n').count() as u64;
                self.untold += lost;
                self.refused += lost;
                self.sink.failed(&error);
            }
        }
        self.bytes.clear();
    }

    /// The line that says so. It is not counted when it is lost, or a closed stderr would make more of them forever.
    fn missing(&self, lines: u64) -> Vec<u8> {
        let mut line = Line::begin(self.format, Level::WARN);
        line.string("event", "log_dropped");
        line.value("lines", &lines);
        line.end()
    }
}
