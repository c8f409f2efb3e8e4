//! Is the file finished? A pure state machine: what was seen goes in, what to do next comes out. It never looks at the
//! disk or the clock itself.
//!
//! ```text
//!            sighted                    held still / sidecar / closed
//!   ──────────────▶ waiting ──────────────────────────────────────────▶ settled
//!                   ▲     │ looked old and leases work ──▶ settled, if a lease is granted
//!                   └─────┘ changed, held open, second link, empty, no sidecar
//! ```

use std::time::{Duration, Instant};

use crate::io::Identity;
use crate::pipeline::{Proof, Waiting};
use crate::settings::{EmptyPolicy, Mode};

/// How a source's files settle.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// By what a file is known to be finished.
    pub mode: Mode,
    /// How long it must hold still.
    pub stability: Duration,
    /// What becomes of empty files.
    pub empty: EmptyPolicy,
    /// Whether a lease can stand for the holding still of a file that looks old.
    pub leases: bool,
}

/// What brought a file to the settler's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeenBy {
    /// A scan of its directory.
    Scan,
    /// Its name appeared: it was created, or linked.
    Created,
    /// Its writer closed it, or it was renamed into place; or its sidecar was.
    Finished,
    /// The time to look again came.
    Timer,
}

/// What was seen.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The file's state.
    pub identity: Identity,
    /// Number of its names.
    pub links: u32,
    /// How old its ctime is by the wall clock; `None` when it lies in the future.
    pub age: Option<Duration>,
    /// Whether its sidecar is there.
    pub sidecar: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Read it.
    Settled(Proof),
    /// Look again.
    Look {
        /// When; `None`: when something is heard of it, or at the next scan.
        after: Option<Duration>,
        /// What it waits for.
        why: Waiting,
    },
    /// Leave it alone.
    Leave(&'static str),
}

/// A second name is often gone a moment later: SFTP servers rename by link and unlink.
pub const LINK_REST: Duration = Duration::from_secs(1);

/// How long a file that was taken back has to hold still at least, whatever the settings say.
pub const TAKEN_BACK_REST_MIN: Duration = Duration::from_secs(1);

/// Waits of a file that somebody holds open. Right after a close the filesystem itself may hold it for milliseconds.
const HELD_OPEN_RESTS_MS: [u64; 6] = [2, 10, 50, 200, 1_000, 5_000];

/// How long a file that somebody holds open rests before the next try.
pub fn held_open_rest(tries: u32) -> Duration {
    let at = (tries as usize).min(HELD_OPEN_RESTS_MS.len() - 1);
    Duration::from_millis(HELD_OPEN_RESTS_MS[at])
}

/// Times that a file may have its turn again at once.
const TURNS_AT_ONCE: u32 = 3;
/// Longest rest of a file that fails again and again.
const FAILED_REST_MAX: Duration = Duration::from_secs(60);

/// How long a file rests that failed `tries` times before, and rested for `first` the first time.
pub fn failed_rest(first: Duration, tries: u32) -> Duration {
    first
        .saturating_mul(2u32.saturating_pow(tries))
        .min(FAILED_REST_MAX)
}

/// How long a file rests until its next turn. One that may have it at once is held back when that does not help.
pub fn turn_rest(first: Duration, tries: u32) -> Duration {
    if !first.is_zero() {
        failed_rest(first, tries)
    } else if tries < TURNS_AT_ONCE {
        Duration::ZERO
    } else {
        failed_rest(Duration::from_secs(1), tries - TURNS_AT_ONCE)
    }
}

/// A file that has not settled.
#[derive(Debug, Clone, Copy)]
pub struct Unsettled {
    /// Its last known state.
    pub identity: Identity,
    /// When it was first seen.
    pub first_seen: Instant,
    /// Since when it has been in that state.
    pub since: Instant,
    /// Whether a lease on it was refused for good.
    pub lease_refused: bool,
    /// Whether it changed after it was moved, and was moved back. Moving it back is heard of as its writer's close would be,
    /// so no close proves anything any more.
    pub taken_back: bool,
    /// Whether its second name was seen before.
    linked_before: bool,
    /// Whether it was closed in that very state: a look that a rest put off does not wait for another close.
    closed: bool,
}

impl Unsettled {
    /// A file just seen.
    pub fn new(identity: Identity, now: Instant) -> Unsettled {
        Unsettled {
            identity,
            first_seen: now,
            since: now,
            lease_refused: false,
            taken_back: false,
            linked_before: false,
            closed: false,
        }
    }

    /// Takes in what was seen and says what to do. True in the second place when the file changed.
    pub fn step(&mut self, rules: &Rules, seen: &Seen, by: SeenBy, now: Instant) -> (Step, bool) {
        let changed = seen.identity != self.identity;
        if changed {
            self.identity = seen.identity;
            self.since = now;
            self.closed = false;
        }
        match by {
            SeenBy::Finished => self.closed = true,
            SeenBy::Created => self.closed = false,
            SeenBy::Scan | SeenBy::Timer => {}
        }
        (self.decide(rules, seen, by, now), changed)
    }

    fn decide(&mut self, rules: &Rules, seen: &Seen, by: SeenBy, now: Instant) -> Step {
        if seen.links > 1 {
            let after = (!self.linked_before).then_some(LINK_REST);
            self.linked_before = true;
            let why = Waiting::Links;
            return Step::Look { after, why };
        }
        self.linked_before = false;
        if seen.identity.size == 0 {
            return match rules.empty {
                EmptyPolicy::Ingest => self.held_still(rules, seen, by, now),
                EmptyPolicy::Hold => Step::Look {
                    after: None,
                    why: Waiting::Empty,
                },
                EmptyPolicy::Skip => Step::Leave("it is empty"),
            };
        }
        match rules.mode {
            Mode::Stability => self.held_still(rules, seen, by, now),
            // Its writer is still at it; if it was linked into place, nothing more is heard of it.
            Mode::Sidecar if seen.sidecar && by == SeenBy::Created => Step::Look {
                after: Some(LINK_REST),
                why: Waiting::Sidecar,
            },
            Mode::Sidecar if seen.sidecar => Step::Settled(Proof::Settled),
            Mode::Sidecar => Step::Look {
                after: None,
                why: Waiting::Sidecar,
            },
            Mode::Closed
                if !self.taken_back
                    && (by == SeenBy::Finished || (by == SeenBy::Timer && self.closed)) =>
            {
                Step::Settled(Proof::Settled)
            }
            Mode::Closed if rules.leases && !self.lease_refused => {
                if by == SeenBy::Created {
                    // Its writer will close it; if it was linked into place, nobody will.
                    let after = Some(LINK_REST);
                    let why = Waiting::HeldOpen;
                    Step::Look { after, why }
                } else {
                    Step::Settled(Proof::IfLeased)
                }
            }
            Mode::Closed => self.held_still(rules, seen, by, now),
        }
    }

    fn held_still(&self, rules: &Rules, seen: &Seen, by: SeenBy, now: Instant) -> Step {
        let held = now.saturating_duration_since(self.since);
        let stability = match self.taken_back {
            true => rules.stability.max(TAKEN_BACK_REST_MIN),
            false => rules.stability,
        };
        if held >= stability {
            return Step::Settled(Proof::Settled);
        }
        let looks_old = by == SeenBy::Scan && seen.age.is_some_and(|age| age >= stability);
        if looks_old && rules.leases && !self.lease_refused {
            return Step::Settled(Proof::IfLeased);
        }
        Step::Look {
            after: Some(stability - held),
            why: Waiting::Still,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Timestamp;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rules(mode: Mode) -> Rules {
        Rules {
            mode,
            stability: 5 * SECOND,
            empty: EmptyPolicy::Ingest,
            leases: true,
        }
    }

    fn seen(size: u64) -> Seen {
        Seen {
            identity: Identity {
                size,
                ..Identity::default()
            },
            links: 1,
            age: Some(SECOND),
            sidecar: false,
        }
    }

    fn look(seconds: u64) -> Step {
        Step::Look {
            after: Some(seconds as u32 * SECOND),
            why: Waiting::Still,
        }
    }

    #[test]
    fn a_file_settles_after_holding_still_for_the_whole_interval() {
        let start = Instant::now();
        let rules = rules(Mode::Stability);
        let mut file = Unsettled::new(seen(1).identity, start);
        let mut at = |seconds, size, by| {
            file.step(&rules, &seen(size), by, start + seconds * SECOND)
                .0
        };
        assert_eq!(at(0, 1, SeenBy::Created), look(5));
        assert_eq!(at(3, 1, SeenBy::Finished), look(2));
        assert_eq!(at(4, 2, SeenBy::Timer), look(5));
        assert_eq!(at(8, 2, SeenBy::Timer), look(1));
        assert_eq!(at(9, 2, SeenBy::Timer), Step::Settled(Proof::Settled));
    }

    #[test]
    fn a_file_that_looks_old_settles_at_once_only_under_a_lease() {
        let start = Instant::now();
        let old = Seen {
            age: Some(5 * SECOND),
            ..seen(1)
        };
        let mut file = Unsettled::new(old.identity, start);
        let with = rules(Mode::Stability);
        let by = SeenBy::Scan;
        assert_eq!(
            file.step(&with, &old, by, start).0,
            Step::Settled(Proof::IfLeased)
        );
        file.lease_refused = true;
        assert_eq!(file.step(&with, &old, by, start).0, look(5));
        let without = Rules {
            leases: false,
            ..with
        };
        let mut file = Unsettled::new(old.identity, start);
        assert_eq!(file.step(&without, &old, by, start).0, look(5));
        let future = Seen { age: None, ..old };
        assert_eq!(file.step(&with, &future, by, start).0, look(5));
    }

    #[test]
    fn a_close_settles_in_closed_mode_and_a_creation_waits() {
        let start = Instant::now();
        let rules = rules(Mode::Closed);
        let mut file = Unsettled::new(seen(1).identity, start);
        let waits = Step::Look {
            after: Some(LINK_REST),
            why: Waiting::HeldOpen,
        };
        assert_eq!(file.step(&rules, &seen(1), SeenBy::Created, start).0, waits);
        let settled = Step::Settled(Proof::IfLeased);
        assert_eq!(file.step(&rules, &seen(1), SeenBy::Timer, start).0, settled);
        let settled = Step::Settled(Proof::Settled);
        let by = SeenBy::Finished;
        assert_eq!(file.step(&rules, &seen(1), by, start).0, settled);
        // An empty file has to hold still in every mode.
        assert_eq!(file.step(&rules, &seen(0), by, start).0, look(5));
    }

    #[test]
    fn a_close_is_remembered_until_the_file_changes() {
        let start = Instant::now();
        let rules = Rules {
            leases: false,
            ..rules(Mode::Closed)
        };
        let mut file = Unsettled::new(seen(1).identity, start);
        let mut at = |size, by| file.step(&rules, &seen(size), by, start).0;
        let settled = Step::Settled(Proof::Settled);
        assert_eq!(at(1, SeenBy::Timer), look(5));
        assert_eq!(at(1, SeenBy::Finished), settled);
        assert_eq!(at(1, SeenBy::Timer), settled);
        assert_eq!(at(2, SeenBy::Timer), look(5));
        assert_eq!(at(2, SeenBy::Finished), settled);
        assert_eq!(at(2, SeenBy::Created), look(5));
        assert_eq!(at(2, SeenBy::Timer), look(5));
    }

    #[test]
    fn no_close_is_believed_of_a_file_that_was_taken_back() {
        let start = Instant::now();
        let by = SeenBy::Finished;
        let mut file = Unsettled::new(seen(1).identity, start);
        file.taken_back = true;
        let with = rules(Mode::Closed);
        let leased = Step::Settled(Proof::IfLeased);
        assert_eq!(file.step(&with, &seen(1), by, start).0, leased);
        let without = Rules {
            leases: false,
            ..with
        };
        assert_eq!(file.step(&without, &seen(1), by, start).0, look(5));
        let timer = SeenBy::Timer;
        assert_eq!(file.step(&without, &seen(2), timer, start).0, look(5));
        assert_eq!(file.step(&without, &seen(2), by, start).0, look(5));
        // What was moved back may be another file than the one that was read.
        let mut other = seen(2);
        other.identity.inode += 1;
        assert_eq!(file.step(&without, &other, by, start).0, look(5));
    }

    #[test]
    fn rests_double_up_to_a_minute_and_turns_at_once_are_few() {
        let rests = |first: Duration| (0..9).map(move |tries| turn_rest(first, tries).as_secs());
        assert_eq!(
            rests(SECOND).collect::<Vec<_>>(),
            [1, 2, 4, 8, 16, 32, 60, 60, 60]
        );
        assert_eq!(
            rests(Duration::ZERO).collect::<Vec<_>>(),
            [0, 0, 0, 1, 2, 4, 8, 16, 32]
        );
        assert_eq!(failed_rest(SECOND, u32::MAX), FAILED_REST_MAX);
    }

    #[test]
    fn a_second_name_is_a_wait_and_not_a_verdict() {
        let start = Instant::now();
        let rules = rules(Mode::Closed);
        let two = Seen {
            links: 2,
            ..seen(1)
        };
        let mut file = Unsettled::new(two.identity, start);
        let why = Waiting::Links;
        let first = file.step(&rules, &two, SeenBy::Created, start).0;
        let after = Some(LINK_REST);
        assert_eq!(first, Step::Look { after, why });
        let later = file.step(&rules, &two, SeenBy::Timer, start).0;
        assert_eq!(later, Step::Look { after: None, why });
        let gone = file.step(&rules, &seen(1), SeenBy::Timer, start).0;
        assert_eq!(gone, Step::Settled(Proof::IfLeased));
    }

    #[test]
    fn a_sidecar_settles_and_empty_files_follow_their_policy() {
        let start = Instant::now();
        let rules = rules(Mode::Sidecar);
        let mut file = Unsettled::new(seen(1).identity, start);
        let why = Waiting::Sidecar;
        let step = file.step(&rules, &seen(1), SeenBy::Timer, start).0;
        assert_eq!(step, Step::Look { after: None, why });
        let with = Seen {
            sidecar: true,
            ..seen(1)
        };
        let after = Some(LINK_REST);
        let step = file.step(&rules, &with, SeenBy::Created, start).0;
        assert_eq!(step, Step::Look { after, why });
        for by in [SeenBy::Finished, SeenBy::Timer, SeenBy::Scan] {
            let step = file.step(&rules, &with, by, start).0;
            assert_eq!(step, Step::Settled(Proof::Settled));
        }
        for (empty, expected) in [
            (
                EmptyPolicy::Hold,
                Step::Look {
                    after: None,
                    why: Waiting::Empty,
                },
            ),
            (EmptyPolicy::Skip, Step::Leave("it is empty")),
        ] {
            let rules = Rules { empty, ..rules };
            let mut file = Unsettled::new(seen(0).identity, start);
            let late = start + 60 * SECOND;
            assert_eq!(file.step(&rules, &seen(0), SeenBy::Timer, late).0, expected);
        }
    }

    proptest! {
        /// Without leases, only a close of the very state that is seen stands for the interval.
        #[test]
        fn closed_mode_settles_by_a_close_of_that_state_or_by_the_interval(
            sightings in proptest::collection::vec((0u64..2, 0u8..4, 0u64..4_000), 1..40),
        ) {
            let rules = Rules { leases: false, ..rules(Mode::Closed) };
            let mut now = Instant::now();
            let mut file = Unsettled::new(seen(1).identity, now);
            let (mut size, mut since, mut closed) = (1, now, false);
            for (growth, by, pause_ms) in sightings {
                now += Duration::from_millis(pause_ms);
                if growth > 0 {
                    (size, since, closed) = (size + growth, now, false);
                }
                let by = match by {
                    0 => SeenBy::Scan,
                    1 => SeenBy::Created,
                    2 => SeenBy::Finished,
                    _ => SeenBy::Timer,
                };
                closed = by == SeenBy::Finished || (closed && by != SeenBy::Created);
                let (step, _) = file.step(&rules, &seen(size), by, now);
                let by_close = closed && matches!(by, SeenBy::Finished | SeenBy::Timer);
                let settles = by_close || now - since >= rules.stability;
                prop_assert_eq!(step == Step::Settled(Proof::Settled), settles);
            }
        }

        /// The mere creation of a sidecar never settles its file, and any later look does.
        #[test]
        fn a_sidecar_settles_at_any_look_but_its_creation(
            sightings in proptest::collection::vec((any::<bool>(), 0u8..4, 1u64..3), 1..40),
        ) {
            let rules = rules(Mode::Sidecar);
            let now = Instant::now();
            let mut file = Unsettled::new(seen(1).identity, now);
            for (sidecar, by, size) in sightings {
                let by = match by {
                    0 => SeenBy::Scan,
                    1 => SeenBy::Created,
                    2 => SeenBy::Finished,
                    _ => SeenBy::Timer,
                };
                let (step, _) = file.step(&rules, &Seen { sidecar, ..seen(size) }, by, now);
                let expected = match (sidecar, by) {
                    (true, SeenBy::Created) => Step::Look {
                        after: Some(LINK_REST),
                        why: Waiting::Sidecar,
                    },
                    (true, _) => Step::Settled(Proof::Settled),
                    (false, _) => Step::Look { after: None, why: Waiting::Sidecar },
                };
                prop_assert_eq!(step, expected);
            }
        }

        /// Whatever is seen, a file never settles by holding still within the interval after a change.
        #[test]
        fn stability_is_never_claimed_early(
            sightings in proptest::collection::vec((0u64..3, 0i64..3, 0u64..4_000), 1..40),
        ) {
            let rules = Rules { leases: false, ..rules(Mode::Stability) };
            let start = Instant::now();
            let mut now = start;
            let mut last: Option<(Identity, Instant)> = None;
            let mut file: Option<Unsettled> = None;
            for (size, mtime, pause_ms) in sightings {
                now += Duration::from_millis(pause_ms);
                let mut seen = seen(size + 1);
                seen.identity.mtime = Timestamp { seconds: mtime, nanos: 0 };
                let unsettled = file.get_or_insert_with(|| Unsettled::new(seen.identity, now));
                let since = match last {
                    Some((identity, since)) if identity == seen.identity => since,
                    _ => now,
                };
                last = Some((seen.identity, since));
                let (step, _) = unsettled.step(&rules, &seen, SeenBy::Timer, now);
                let held = now - since;
                match step {
                    Step::Settled(_) => prop_assert!(held >= rules.stability),
                    Step::Look { after, .. } => prop_assert_eq!(after, Some(rules.stability - held)),
                    Step::Leave(_) => prop_assert!(false),
                }
            }
        }
    }
}
