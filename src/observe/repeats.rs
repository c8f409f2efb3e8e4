//! Keeps events about one file from repeating: a rescan meets the same odd file every minute.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an event about a file stays quiet after it was written.
const QUIET: Duration = Duration::from_secs(60 * 60);

/// Most events remembered. When full, the older half is forgotten (and may be written again).
const REMEMBERED_MAX: usize = 8192;

/// Whether this event was not admitted for this path within the last hour.
pub(super) fn first_this_hour(event: &'static str, path: &Path) -> bool {
    static REPEATS: LazyLock<Mutex<Repeats>> = LazyLock::new(Mutex::default);
    let mut repeats = REPEATS.lock().unwrap_or_else(PoisonError::into_inner);
    repeats.admit(event, path, Instant::now())
}

/// What was written when. A path is remembered as its hash with the event's name: with 64 random
/// bits, that one of 8,192 silences another by chance does not happen in practice.
#[derive(Default)]
struct Repeats {
    hasher: RandomState,
    written: HashMap<u64, Instant>,
}

impl Repeats {
    fn admit(&mut self, event: &'static str, path: &Path, now: Instant) -> bool {
        let key = self.hasher.hash_one((event, path.as_os_str()));
        if let Some(&written) = self.written.get(&key)
            && now.duration_since(written) < QUIET
        {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_about_a_file_is_admitted_once_an_hour() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        let (a, b) = (Path::new("/in/a"), Path::new("/in/b"));
        assert!(repeats.admit("file_waiting", a, start));
        assert!(!repeats.admit("file_waiting", a, start + Duration::from_secs(3599)));
        assert!(repeats.admit("file_waiting", b, start), "another file");
        assert!(repeats.admit("file_failed", a, start), "another event");
        assert!(repeats.admit("file_waiting", a, start + QUIET));
        assert!(!repeats.admit("file_waiting", a, start + QUIET));
    }

    #[test]
    fn memory_is_bounded_and_the_newer_half_is_kept() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        let path = |n: usize| std::path::PathBuf::from(format!("/in/{n}"));
        let at = |n: usize| start + Duration::from_millis(n as u64);
        for n in 0..=REMEMBERED_MAX {
            assert!(repeats.admit("file_waiting", &path(n), at(n)));
            assert!(repeats.written.len() <= REMEMBERED_MAX);
        }
        let later = at(REMEMBERED_MAX + 1);
        assert!(!repeats.admit("file_waiting", &path(REMEMBERED_MAX - 1), later));
        assert!(repeats.admit("file_waiting", &path(0), later));
    }
}
