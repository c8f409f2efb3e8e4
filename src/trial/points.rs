//! Named points between two steps of the commit protocol, at which a test stops the process to kill it or to cut the
//! power.
//!
//! `RINGEST_STOP_AT=placed` stops the process (SIGSTOP) when it gets there for the first time, `RINGEST_STOP_AT=placed:3`
//! at the third. It does not go on: whoever asked kills it. `RINGEST_STOP_AT=placed,taken_back` stops it at the first of
//! them until it is told to go on (SIGCONT), and then at the second. `RINGEST_PANIC_AT="placed words"` panics there, with these
//! words, when it gets there for the first time. Without the variables a point costs two loads.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// The variable that names a point.
pub const VARIABLE: &str = "RINGEST_STOP_AT";

/// The variable that names a point at which to panic, and what to say.
pub const PANIC_VARIABLE: &str = "RINGEST_PANIC_AT";

/// Every point of `run`, in the order in which a first run with something to recover passes them.
pub const ALL: &[&str] = &[
    // A start.
    "ledger_made",
    "ledger_renamed",
    "ledger_named",
    "marker_written",
    "marker_renamed",
    "marker_synced",
    // Recovery, before and beside the steps that it shares with a batch.
    "recovery_begun",
    "recovery_lines_rewritten",
    "recovery_swept",
    "recovery_numbers_voided",
    "recovery_decided",
    "recovery_acted",
    "recovery_undone",
    "recovery_batch_finished",
    "recovery_paid",
    "recovered",
    "session_begun",
    // A batch.
    "claim_given_back",
    "claims_returned",
    "claimed",
    "copy_written",
    "directory_made",
    "directory_synced",
    "classified",
    "manifest_made",
    "reserved",
    "intents_committed",
    "data_synced",
    "placed_one",
    "placed",
    "destinations_synced",
    "sources_synced",
    "taken_back",
    "checked",
    "records_committed",
    "lines_written",
    "lines_synced",
    "batch_manifested",
    "source_hidden",
    "source_removed",
    "reason_written",
    "debts_paid",
    "reported",
    // The end of a session.
    "closing",
    "closed",
];

/// Those of `ringest quarantine`, in its order: a retry, then a drop.
pub const QUARANTINE: &[&str] = &[
    "retry_hidden",
    "retry_hidden_synced",
    "retry_source_removed",
    "retry_left",
    "retry_named",
    "retry_named_synced",
    "drop_hidden_removed",
    "drop_file_removed",
    "drop_file_synced",
    "reason_removed",
    "reason_removal_synced",
];

/// How long a stop takes at most: the signal may be another thread's to take.
const STOPPED_AFTER: Duration = Duration::from_millis(200);

struct Wanted {
    point: String,
    left: AtomicU64,
}

/// Says that the process has got to a point.
pub fn reached(point: &'static str) {
    static WANTED: OnceLock<Vec<Wanted>> = OnceLock::new();
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    debug_assert!(
        ALL.contains(&point) || QUARANTINE.contains(&point),
        "{point} is not in the list"
    );
    panic_at(point);
    let wanted = WANTED.get_or_init(|| parse(&std::env::var(VARIABLE).unwrap_or_default()));
    let passed = PASSED.load(Ordering::Relaxed);
    let Some(next) = wanted.get(passed) else {
        return;
    };
    if next.point == point && next.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        crate::observe::log::flush();
        let _ = kill_process(getpid(), Signal::STOP);
        std::thread::sleep(STOPPED_AFTER);
        while passed + 1 == wanted.len() {
            std::thread::park();
        }
        PASSED.store(passed + 1, Ordering::Relaxed);
    }
}

fn panic_at(point: &str) {
    static AT: OnceLock<Option<String>> = OnceLock::new();
    static DONE: AtomicBool = AtomicBool::new(false);
    let at = AT.get_or_init(|| std::env::var(PANIC_VARIABLE).ok());
    let words = at
        .as_ref()
        .and_then(|at| at.strip_prefix(point)?.strip_prefix(' '));
    if let Some(words) = words
        && !DONE.swap(true, Ordering::Relaxed)
    {
        panic!("{words}");
    }
}

fn parse(text: &str) -> Vec<Wanted> {
    let one = |text: &str| {
        let (point, time) = text.split_once(':').unwrap_or((text, "1"));
        Some(Wanted {
            point: point.to_string(),
            left: AtomicU64::new(time.parse().ok()?),
        })
    };
    text.split(',').map_while(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_may_have_numbers_and_follow_one_another() {
        let of = |text| -> Vec<(String, u64)> {
            let wanted = parse(text).into_iter();
            wanted
                .map(|wanted| (wanted.point, wanted.left.into_inner()))
                .collect()
        };
        assert_eq!(of("placed"), [("placed".into(), 1)]);
        assert_eq!(of("placed_one:7"), [("placed_one".into(), 7)]);
        assert_eq!(
            of("placed:2,taken_back"),
            [("placed".into(), 2), ("taken_back".into(), 1)]
        );
        assert_eq!(of("placed:x"), []);
    }
}
