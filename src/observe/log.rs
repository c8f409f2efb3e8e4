//! Events as lines on stderr.

/// Keeps the log going; on drop, everything queued is written (5 s at most, if stderr is stuck).
#[must_use]
pub struct LogGuard(());

/// Starts the log: `level` is off, error, warn, info, debug or trace; `format` is json or text.
pub fn init(_level: &str, _format: &str) -> LogGuard {
    todo!()
}

/// Waits until everything queued before the call is written, 5 s at most.
pub fn flush() {}

/// Lines dropped since the start, because stderr was too slow or refused them.
pub fn dropped() -> u64 {
    0
}
