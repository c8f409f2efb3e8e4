//! Keeps events about files from flooding the log: a rescan meets the same odd file every minute, and somebody may have made a
//! million of them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an event about a file stays quiet after it was written.
const QUIET: Duration = Duration::from_secs(60 * 60);

/// Most events remembered. When full, the older half is forgotten (and may be written again).
const REMEMBERED_MAX: usize = 8192;

/// So many events of one name are written about the files of one source...
const LINES_MAX: u32 = 100;
/// ...in that time.
pub const LINES_WITHIN: Duration = Duration::from_secs(60);

/// Lines that were not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppressed {
    /// Name of their event.
    pub of: &'static str,
    /// The staging directory, if they are about files of one.
    pub input: Option<PathBuf>,
    /// How many.
    pub lines: u64,
}

#[derive(Default)]
struct Told {
    repeats: Repeats,
    budgets: Budgets,
}

static TOLD: LazyLock<Mutex<Told>> = LazyLock::new(Mutex::default);
/// Whether any were suppressed that nobody was told of.
static ARE_SUPPRESSED: AtomicBool = AtomicBool::new(false);

fn told<T>(with: impl FnOnce(&mut Told, Instant) -> T) -> T {
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    with(&mut told, Instant::now())
}

/// Each of these staging directories has a budget of its own from now on.
pub(super) fn share_out(inputs: Vec<PathBuf>) {
    told(|told, _| told.budgets.inputs = inputs);
}

/// Whether this event was not admitted for this path within the last hour, and its source has lines left.
pub(super) fn admit(event: &'static str, path: &Path) -> bool {
    told(|told, now| {
        let budgets = &mut told.budgets;
        let within_budget = || budgets.take(event, path, now);
        told.repeats.admit(event, path, now, within_budget)
    })
}

/// Whether the source of that path has lines left for this event.
pub(super) fn within_budget(event: &'static str, path: &Path) -> bool {
    told(|told, now| told.budgets.take(event, path, now))
}

/// Whether lines were suppressed that nobody was told of.
pub fn are_suppressed() -> bool {
    ARE_SUPPRESSED.load(Ordering::Relaxed)
}

/// What was suppressed, once a minute has passed since the first; or `all` of it, at once.
pub(super) fn take_suppressed(all: bool) -> Vec<Suppressed> {
    match are_suppressed() {
        true => told(|told, now| told.budgets.take_suppressed(now, all)),
        false => Vec::new(),
    }
}

/// What was written when. A path is remembered as its hash with the event's name: with 64 random
/// bits, that one of 8,192 silences another by chance does not happen in practice.
#[derive(Default)]
struct Repeats {
    hasher: RandomState,
    written: HashMap<u64, Instant>,
}

impl Repeats {
    /// `may` is asked only for what would be written, and what it refuses is not remembered.
    fn admit(
        &mut self,
        event: &'static str,
        path: &Path,
        now: Instant,
        may: impl FnOnce() -> bool,
    ) -> bool {
        let key = self.hasher.hash_one((event, path.as_os_str()));
        if let Some(&written) = self.written.get(&key)
            && now.duration_since(written) < QUIET
        {
            return false;
        }
        if !may() {
            return false;
        }
        if self.written.len() >= REMEMBERED_MAX {
            self.forget_older_half();
        }
        self.written.insert(key, now);
        true
    }

    fn forget_older_half(&mut self) {
        let mut times: Vec<Instant> = self.written.values().copied().collect();
        let middle = times.len() / 2;
        let (_, &mut median, _) = times.select_nth_unstable(middle);
        self.written.retain(|_, written| *written > median);
    }
}

/// How many lines each event of each source has left.
#[derive(Default)]
struct Budgets {
    inputs: Vec<PathBuf>,
    /// By the event and the index of the source.
    of: HashMap<(&'static str, Option<usize>), Budget>,
}

struct Budget {
    since: Instant,
    left: u32,
    suppressed: u64,
    suppressed_since: Instant,
}

impl Budgets {
    fn take(&mut self, event: &'static str, path: &Path, now: Instant) -> bool {
        let input = self.inputs.iter().position(|input| path.starts_with(input));
        let budget = self.of.entry((event, input)).or_insert(Budget {
            since: now,
            left: LINES_MAX,
            suppressed: 0,
            suppressed_since: now,
        });
        if now.duration_since(budget.since) >= LINES_WITHIN {
            (budget.since, budget.left) = (now, LINES_MAX);
        }
        if budget.left > 0 {
            budget.left -= 1;
            return true;
        }
        if budget.suppressed == 0 {
            budget.suppressed_since = now;
            ARE_SUPPRESSED.store(true, Ordering::Relaxed);
        }
        budget.suppressed += 1;
        false
    }

    fn take_suppressed(&mut self, now: Instant, all: bool) -> Vec<Suppressed> {
        let mut taken = Vec::new();
        for ((event, input), budget) in &mut self.of {
            let due = all || now.duration_since(budget.suppressed_since) >= LINES_WITHIN;
            if due && budget.suppressed > 0 {
                taken.push(Suppressed {
                    of: event,
                    input: input.and_then(|input| self.inputs.get(input).cloned()),
                    lines: std::mem::take(&mut budget.suppressed),
                });
            }
        }
        let left = self.of.values().any(|budget| budget.suppressed > 0);
        ARE_SUPPRESSED.store(left, Ordering::Relaxed);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_about_a_file_is_admitted_once_an_hour() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        let (a, b) = (Path::new("/in/a"), Path::new("/in/b"));
        let mut admit = |event, path, now| repeats.admit(event, path, now, || true);
        assert!(admit("file_waiting", a, start));
        assert!(!admit("file_waiting", a, start + Duration::from_secs(3599)));
        assert!(admit("file_waiting", b, start), "another file");
        assert!(admit("file_failed", a, start), "another event");
        assert!(admit("file_waiting", a, start + QUIET));
        assert!(!admit("file_waiting", a, start + QUIET));
    }

    #[test]
    fn memory_is_bounded_and_the_newer_half_is_kept() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        let path = |n: usize| std::path::PathBuf::from(format!("/in/{n}"));
        let at = |n: usize| start + Duration::from_millis(n as u64);
        for n in 0..=REMEMBERED_MAX {
            assert!(repeats.admit("file_waiting", &path(n), at(n), || true));
            assert!(repeats.written.len() <= REMEMBERED_MAX);
        }
        let later = at(REMEMBERED_MAX + 1);
        assert!(!repeats.admit("file_waiting", &path(REMEMBERED_MAX - 1), later, || true));
        assert!(repeats.admit("file_waiting", &path(0), later, || true));
    }

    #[test]
    fn what_there_was_no_line_for_is_told_when_there_is_one() {
        let mut repeats = Repeats::default();
        let (file, now) = (Path::new("/in/a"), Instant::now());
        assert!(!repeats.admit("file_waiting", file, now, || false));
        assert!(repeats.admit("file_waiting", file, now, || true));
        assert!(!repeats.admit("file_waiting", file, now, || panic!("asked in vain")));
    }

    #[test]
    fn a_flood_of_one_source_and_event_takes_no_line_of_another_and_is_counted() {
        let start = Instant::now();
        let mut budgets = Budgets {
            inputs: vec!["/in/a".into(), "/in/b".into()],
            ..Budgets::default()
        };
        let written = |budgets: &mut Budgets, event, path: &str, now| {
            let lines = (0..500).filter(|_| budgets.take(event, Path::new(path), now));
            lines.count()
        };
        assert_eq!(written(&mut budgets, "file_waiting", "/in/a/x", start), 100);
        assert_eq!(written(&mut budgets, "file_waiting", "/in/b/x", start), 100);
        assert_eq!(written(&mut budgets, "file_failed", "/in/a/x", start), 100);
        assert_eq!(written(&mut budgets, "file_waiting", "/else", start), 100);
        let soon = start + LINES_WITHIN - Duration::from_secs(1);
        assert_eq!(written(&mut budgets, "file_waiting", "/in/a/x", soon), 0);
        assert_eq!(budgets.take_suppressed(soon, false), []);
        let later = start + LINES_WITHIN;
        assert_eq!(written(&mut budgets, "file_waiting", "/in/a/x", later), 100);
        let mut suppressed = budgets.take_suppressed(later, false);
        suppressed.sort_by_key(|it| (it.of, it.input.clone()));
        let told = |it: &Suppressed| (it.of, it.input.clone(), it.lines);
        assert_eq!(
            suppressed.iter().map(told).collect::<Vec<_>>(),
            [
                ("file_failed", Some("/in/a".into()), 400),
                ("file_waiting", None, 400),
                ("file_waiting", Some("/in/a".into()), 1300),
                ("file_waiting", Some("/in/b".into()), 400),
            ]
        );
        assert_eq!(budgets.take_suppressed(later, true), []);
    }
}
