//! One place that names everything observable.
//!
//! Each function emits one tracing event whose first field, `event`, is its name; the log writes the
//! fields in the order given here. Paths and names need not be UTF-8: they are logged lossy. Events
//! that a rescan would repeat about the same file ([`file_waiting`], [`file_ignored`],
//! [`file_failed`], [`file_kept`], [`file_changed`]) are written at most once an hour for each file. Of these, and of those that
//! cost an uploader nothing ([`file_withdrawn`]), 100 a minute are written of each name for each source; the rest is counted
//! ([`tell_of_suppressed`]).

use std::path::Path;

use data_encoding::HEXLOWER;
use serde::Serialize;
use tracing::{Level, debug, enabled, error, info, warn};

use super::metrics::Summary;
use super::repeats::{self, admit, within_budget};
pub use super::repeats::{LINES_WITHIN, are_suppressed};
use super::usage::Usage;

/// Whether the log takes events about single files.
pub fn tells_of_files() -> bool {
    enabled!(Level::INFO)
}

/// A file is in the warehouse and its manifest line is durable.
pub fn file_ingested(
    path: &Path,
    warehouse_path: &Path,
    sha256: &[u8; 32],
    bytes: u64,
    seq: u64,
    source: &str,
) {
    info!(
        event = "file_ingested",
        path = &*path.to_string_lossy(),
        warehouse_path = &*warehouse_path.to_string_lossy(),
        sha256 = HEXLOWER.encode(sha256),
        bytes,
        seq,
        source,
    );
}

/// A file holds content that was ingested before, as record `of_seq`. `action` says what became of
/// it: `moved`, `deleted` or `kept`.
pub fn file_duplicate(
    path: &Path,
    of_seq: u64,
    of_path: &Path,
    sha256: &[u8; 32],
    bytes: u64,
    action: &str,
) {
    info!(
        event = "file_duplicate",
        path = &*path.to_string_lossy(),
        of_seq,
        of_path = &*of_path.to_string_lossy(),
        sha256 = HEXLOWER.encode(sha256),
        bytes,
        action,
    );
}

/// A file broke a rule and was set aside.
pub fn file_quarantined(
    path: &Path,
    quarantine_path: &Path,
    rule: &str,
    message: &str,
    bytes: u64,
) {
    warn!(
        event = "file_quarantined",
        path = &*path.to_string_lossy(),
        quarantine_path = &*quarantine_path.to_string_lossy(),
        rule,
        message,
        bytes,
    );
}

/// Something odd lies in a staging directory and is left alone: a symlink, a FIFO, a device, …
pub fn file_ignored(path: &Path, reason: &str) {
    if enabled!(Level::INFO) && admit("file_ignored", path) {
        info!(
            event = "file_ignored",
            path = &*path.to_string_lossy(),
            reason
        );
    }
}

/// Lines for debugging take none of the others.
const IGNORED_QUIETLY: &str = "file_ignored at debug";

/// A name that is expected to be left alone, such as a temporary one: the same event, for debugging.
pub fn file_ignored_quietly(path: &Path, reason: &str) {
    if enabled!(Level::DEBUG) && admit(IGNORED_QUIETLY, path) {
        debug!(
            event = "file_ignored",
            path = &*path.to_string_lossy(),
            reason
        );
    }
}

/// A file is not finished yet, for longer than usual.
pub fn file_waiting(path: &Path, reason: &str) {
    if enabled!(Level::INFO) && admit("file_waiting", path) {
        info!(
            event = "file_waiting",
            path = &*path.to_string_lossy(),
            reason
        );
    }
}

/// A file changed while it was read or placed, and starts over.
pub fn file_changed(path: &Path, reason: &str) {
    if enabled!(Level::INFO) && admit("file_changed", path) {
        info!(
            event = "file_changed",
            path = &*path.to_string_lossy(),
            reason
        );
    }
}

/// A file went away before anything was acknowledged.
pub fn file_withdrawn(path: &Path, reason: &str) {
    if enabled!(Level::INFO) && within_budget("file_withdrawn", path) {
        info!(
            event = "file_withdrawn",
            path = &*path.to_string_lossy(),
            reason
        );
    }
}

/// How many events about files were not written, once a minute has passed since the first of them; or `all`, at once.
pub fn tell_of_suppressed(all: bool) {
    macro_rules! tell {
        ($level:ident, $it:expr) => {
            $level!(
                event = "events_suppressed",
                of = $it.of,
                input = $it.input.as_deref().map(Path::to_string_lossy).as_deref(),
                suppressed = $it.lines,
            )
        };
    }
    for suppressed in repeats::take_suppressed(all) {
        match suppressed.of {
            "file_failed" | "file_kept" => tell!(warn, suppressed),
            IGNORED_QUIETLY => tell!(debug, suppressed),
            _ => tell!(info, suppressed),
        }
    }
}

/// A file that should have been removed stays where it is and will not be read again.
pub fn file_kept(path: &Path, reason: &str) {
    if enabled!(Level::WARN) && admit("file_kept", path) {
        warn!(event = "file_kept", path = &*path.to_string_lossy(), reason);
    }
}

/// An operation on one file failed; the others go on.
pub fn file_failed(path: &Path, operation: &str, cause: &str, remedy: &str) {
    if enabled!(Level::WARN) && admit("file_failed", path) {
        warn!(
            event = "file_failed",
            path = &*path.to_string_lossy(),
            operation,
            cause,
            remedy,
        );
    }
}

/// A `check_command` has left something in its working directory that cannot be removed.
pub fn check_left(path: &Path, cause: &str) {
    if enabled!(Level::WARN) && admit("check_left", Path::new("")) {
        warn!(
            event = "check_left",
            path = &*path.to_string_lossy(),
            cause,
            remedy = "remove it by hand",
        );
    }
}

/// A file that `--once` could not settle and leaves behind.
pub fn leftover(path: &Path, reason: &str) {
    info!(
        event = "file_leftover",
        path = &*path.to_string_lossy(),
        reason
    );
}

/// No new files are taken until the reason goes away.
pub fn intake_paused(reason: &str) {
    warn!(event = "intake_paused", reason);
}

/// Files are taken again.
pub fn intake_resumed() {
    info!(event = "intake_resumed");
}

/// So many readers work from now on, and each has at most so many files open.
pub fn concurrency(readers: usize, files_in_flight: usize, reason: &str) {
    info!(event = "concurrency", readers, files_in_flight, reason);
}

/// The same for a while, or again as before. What led to it: bytes a second, with an allowance for each file, and the
/// share of their time that readers waited for the recorder.
pub fn concurrency_trial(readers: usize, files_in_flight: usize, rate: f64, held_back: f64) {
    debug!(
        event = "concurrency_trial",
        readers,
        files_in_flight,
        rate = rate.round(),
        held_back = (held_back * 100.0).round() / 100.0,
    );
}

/// Recovery settled one thing that an earlier run left open.
pub fn recovery(action: &str, path: &Path, seq: u64) {
    info!(
        event = "recovery",
        action,
        path = &*path.to_string_lossy(),
        seq
    );
}

/// How many things recovery settled, by what it did with them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Intents carried through to their record.
    pub finished: u64,
    /// Intents dropped; the file will be seen again.
    pub dropped: u64,
    /// Placements taken back.
    pub undone: u64,
    /// Intents whose file is under neither name.
    pub withdrawn: u64,
    /// Removals that were still owed, now done.
    pub owed: u64,
}

/// Recovery is over.
pub fn recovery_summary(recovered: &Recovered) {
    info!(
        event = "recovery_summary",
        finished = recovered.finished,
        dropped = recovered.dropped,
        undone = recovered.undone,
        withdrawn = recovered.withdrawn,
        owed = recovered.owed,
    );
}

/// Something preferred (`what`) cannot be had here, and `instead` is used.
pub fn fallback(what: &str, cause: &str, instead: &str) {
    info!(event = "fallback", what, cause, instead);
}

/// Events of inotify were lost. Whoever makes many can have that happen again and again.
pub fn events_lost() {
    if enabled!(Level::INFO) && within_budget("fallback", Path::new("")) {
        fallback(
            "inotify",
            "its queue overflowed",
            "a scan finds what was missed",
        );
    }
}

/// No more latencies are written to the interval log at `path`.
pub fn hlog_ended(path: &Path, cause: &str) {
    warn!(
        event = "hlog_ended",
        path = &*path.to_string_lossy(),
        cause,
        remedy = "free space or give --hlog another file, then restart",
    );
}

/// Something about the settings looks like a mistake, and the run goes on without it.
pub fn settings_doubtful(message: &str) {
    warn!(event = "settings_doubtful", message);
}

/// A missing directory was made. `role`: input, warehouse, manifests or state.
pub fn directory_made(path: &Path, role: &str) {
    info!(
        event = "directory_made",
        path = &*path.to_string_lossy(),
        role
    );
}

/// What an unclean end had left in a claim directory is back in its input.
pub fn claims_returned(path: &Path, input: &Path, files: u64) {
    if files > 0 {
        info!(
            event = "claims_returned",
            path = &*path.to_string_lossy(),
            input = &*input.to_string_lossy(),
            files
        );
    }
}

/// What an instance starts with.
#[derive(Debug, Clone, Copy)]
pub struct Started<'a> {
    /// Version of the program.
    pub version: &'a str,
    /// Process id.
    pub pid: u32,
    /// Name, staging directory and mode of each source.
    pub sources: &'a [(&'a str, &'a Path, &'a str)],
    /// Root of the warehouse.
    pub warehouse: &'a Path,
    /// Root of the manifests.
    pub manifests: &'a Path,
    /// Directory of the ledger.
    pub state_path: &'a Path,
    /// Number of readers that work.
    pub readers: usize,
    /// How they read: `uring` or `sync`.
    pub io: &'a str,
}

/// The instance is watching.
pub fn started(started: &Started) {
    let inputs = started
        .sources
        .iter()
        .map(|(_, input, _)| input.to_path_buf());
    repeats::share_out(inputs.collect());
    #[derive(Serialize)]
    struct Source<'a> {
        name: &'a str,
        input: &'a str,
        mode: &'a str,
    }
    let sources_json = || {
        let inputs: Vec<_> = (started.sources.iter())
            .map(|(_, input, _)| input.to_string_lossy())
            .collect();
        let sources: Vec<_> = (started.sources.iter().zip(&inputs))
            .map(|(&(name, _, mode), input)| Source { name, input, mode })
            .collect();
        serde_json::to_string(&sources).unwrap_or_default()
    };
    info!(
        event = "started",
        version = started.version,
        pid = started.pid,
        json.sources = sources_json(),
        warehouse = &*started.warehouse.to_string_lossy(),
        manifests = &*started.manifests.to_string_lossy(),
        state_path = &*started.state_path.to_string_lossy(),
        readers = started.readers,
        io = started.io,
    );
}

/// The instance is ending. `files` and `bytes` are those processed in this run; what it cost is of the whole process.
pub fn stopped(reason: &str, files: u64, bytes: u64) {
    tell_of_suppressed(true);
    let usage = Usage::now();
    info!(
        event = "stopped",
        reason,
        files,
        bytes,
        cpu_user_seconds = usage.cpu_user_seconds,
        cpu_system_seconds = usage.cpu_system_seconds,
        rss_peak_bytes = usage.rss_peak_bytes,
    );
}

/// A staging directory cannot be entered, and others can.
pub fn source_closed(source: &str, path: &Path) {
    let path = &*path.to_string_lossy();
    let cause = "permission denied: files can be neither read nor removed there";
    let remedy = "its files wait; give the service the rights to read, write and enter it, then start ringest again";
    error!(event = "source_closed", source, path, cause, remedy);
}

/// A staging directory is not the one that is watched any more, and others are.
pub fn source_gone(path: &Path, cause: &str, remedy: &str) {
    if enabled!(Level::ERROR) && admit("source_gone", path) {
        let path = &*path.to_string_lossy();
        error!(event = "source_gone", path, cause, remedy);
    }
}

/// Somebody who is no instance holds a lock on a staging directory.
pub fn foreign_lock_ignored(path: &Path) {
    let path = &*path.to_string_lossy();
    let reason = "a process of another user or program holds a lock on it; no instance does, so it keeps nobody out";
    warn!(event = "foreign_lock_ignored", path, reason);
}

/// Another instance holds the lock at `path`.
pub fn another_instance(path: &Path) {
    info!(event = "another_instance", path = &*path.to_string_lossy());
}

/// The program cannot go on and ends with `exit_code`.
pub fn failure(operation: &str, path: Option<&Path>, cause: &str, remedy: &str, exit_code: u8) {
    error!(
        event = "error",
        operation,
        path = path.map(Path::to_string_lossy).as_deref(),
        cause,
        remedy,
        exit_code,
    );
}

/// A thread panicked, with this message.
pub fn panicked(thread: &str, location: &str, message: &str, backtrace: &str) {
    error!(event = "panic", thread, location, message, backtrace);
}

/// A log file cannot be written. Its lines are counted, and told of in the file once it can be.
pub fn log_file_failed(path: &Path, cause: &str) {
    warn!(
        event = "log_file_failed",
        path = &*path.to_string_lossy(),
        cause,
        remedy = "free space, or make the file and its directory writable; ingestion goes on",
    );
}

/// The numbers of an interval, or of a whole run at its end.
pub fn summary(summary: &Summary) {
    info!(
        event = "summary",
        files_processed = summary.files_processed,
        bytes_processed = summary.bytes_processed,
        bytes_read = summary.bytes_read,
        queue_depth = summary.queue_depth,
        pending = summary.pending,
        files_per_second = summary.files_per_second,
        bytes_per_second = summary.bytes_per_second,
        json.latency_ms = serde_json::to_string(&summary.latency_ms).unwrap_or_default(),
    );
}
