//! What of one input is being walked over, and when it will be next. Each input has its own: a tree without end holds up the walks
//! of no other.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::scan::Scan;

/// Scans of new directories that may wait for their turn. Beyond, a walk over all of them makes up for it.
const SCANS_MAX: usize = 1024;
/// As many of them take turns: a large one does not keep all others waiting.
const SIDE_BY_SIDE: usize = 8;
/// Bytes of what all scans of all inputs have still to look at.
const WAITING_BYTES: usize = 64 << 20;
/// Where inotify watches everything, walks over all directories may take one part in so many of a core...
const WALK_SHARE: u32 = 200;
/// ...but come after so many intervals at the latest.
const WALK_INTERVALS_MAX: u32 = 10;

/// The walks over one input.
pub struct Walks {
    /// Over all of it.
    all: Option<Scan>,
    /// Over new directories in it. The first has its turn.
    fresh: VecDeque<Scan>,
    /// Whether the next turn is one of those.
    fresh_is_next: bool,
    /// A walk begins as soon as none goes on.
    pub due: bool,
    /// Hints were dropped: a walk has to follow then.
    pub make_up_at: Option<Instant>,
    /// Not before then are all directories walked over, unless something may have been missed.
    pub next: Instant,
    /// Whether there is something that only a walk finds: a directory that cannot be watched or listed, a file that could not be
    /// looked at or was forgotten.
    pub unwatched: bool,
    began: Instant,
    /// Processor time of the walk that goes on.
    takes: Duration,
    /// That of the one before.
    took: Duration,
    /// Watches that the walk that goes on was refused, and how many were told of.
    refused_watches: u64,
    refused_told: u64,
}

/// A scan that has its turn.
pub enum Turn {
    /// One over all of the input.
    All(Scan),
    /// One over a new directory.
    Fresh(Scan),
}

impl Turn {
    /// What is scanned.
    pub fn scan(&mut self) -> &mut Scan {
        match self {
            Turn::All(scan) | Turn::Fresh(scan) => scan,
        }
    }
}

/// Bytes that each scan of one of so many inputs may remember.
pub fn scan_bytes(inputs: usize) -> usize {
    WAITING_BYTES / inputs.max(1) / (SIDE_BY_SIDE + 1)
}

impl Walks {
    /// None yet.
    pub fn new(now: Instant) -> Walks {
        Walks {
            all: None,
            fresh: VecDeque::new(),
            fresh_is_next: false,
            due: false,
            make_up_at: None,
            next: now,
            unwatched: false,
            began: now,
            takes: Duration::ZERO,
            took: Duration::ZERO,
            refused_watches: 0,
            refused_told: 0,
        }
    }

    /// Whether no scan goes on.
    pub fn are_over(&self) -> bool {
        self.all.is_none() && self.fresh.is_empty()
    }

    /// Adds a scan of a new directory. False: there are too many.
    pub fn add(&mut self, scan: Scan) -> bool {
        let has_place = self.fresh.len() < SCANS_MAX;
        if has_place {
            self.fresh.push_back(scan);
        }
        has_place
    }

    /// Whether a walk over all of it is to begin.
    pub fn may_begin(&self) -> bool {
        self.due && self.all.is_none()
    }

    /// Begins one.
    pub fn begin(&mut self, scan: Scan, now: Instant) {
        self.due = false;
        self.unwatched = false;
        self.refused_watches = 0;
        self.began = now;
        self.takes = Duration::ZERO;
        self.all = Some(scan);
    }

    /// The scan that has its turn: new directories and the walk over all take turns.
    pub fn take_turn(&mut self) -> Option<Turn> {
        let fresh = self.fresh_is_next || self.all.is_none();
        match fresh.then(|| self.fresh.pop_front()).flatten() {
            Some(scan) => Some(Turn::Fresh(scan)),
            None => self.all.take().map(Turn::All),
        }
    }

    /// Takes back one that is not over; `whole`: it has used its turn. One that has to wait for its next keeps nothing open.
    pub fn take_back(&mut self, mut turn: Turn, whole: bool) {
        let others = !self.are_over();
        if whole && others {
            turn.scan().pause();
        }
        match turn {
            Turn::All(scan) => {
                self.all = Some(scan);
                self.fresh_is_next |= whole;
            }
            Turn::Fresh(scan) => {
                let behind = match whole {
                    true => self.fresh.len().min(SIDE_BY_SIDE - 1),
                    false => 0,
                };
                self.fresh.insert(behind, scan);
                self.fresh_is_next = !whole;
            }
        }
    }

    /// The walk over all has taken so much more processor time.
    pub fn spent(&mut self, time: Duration) {
        self.takes += time;
    }

    /// It is over. `dear`: how many inputs have walks that take long, this one among them. How many watches it was refused, if that
    /// is to be told.
    pub fn end(&mut self, rescan: Duration, dear: u32) -> Option<u64> {
        self.took = self.takes;
        self.next = self.began + rest_after_walk(self.took * dear, rescan);
        let refused = std::mem::take(&mut self.refused_watches);
        let tell = refused > self.refused_told + self.refused_told / 2;
        if tell || refused == 0 {
            self.refused_told = refused;
        }
        tell.then_some(refused)
    }

    /// Whether its walks take so long that they come more rarely.
    pub fn are_dear(&self, rescan: Duration) -> bool {
        self.took.max(self.takes) * WALK_SHARE > rescan
    }

    /// A directory could not be watched, which the walk over all came across or another. There may be many, at each walk: true for one
    /// that is told of by name.
    pub fn refused_watch(&mut self, of_all: bool) -> bool {
        self.unwatched = true;
        self.refused_watches += u64::from(of_all);
        let first = self.refused_told == 0;
        self.refused_told = self.refused_told.max(1);
        first
    }
}

/// How long no directory is walked over after a walk that took so much processor time.
fn rest_after_walk(took: Duration, rescan: Duration) -> Duration {
    (took * WALK_SHARE).clamp(rescan, rescan * WALK_INTERVALS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::open;
    use std::path::PathBuf;
    use std::sync::Arc;

    #[test]
    fn a_walk_that_takes_long_is_taken_more_rarely() {
        let rest = |took| rest_after_walk(Duration::from_millis(took), Duration::from_secs(60));
        for (took_ms, seconds) in [(0, 60), (300, 60), (1000, 200), (3000, 600), (60_000, 600)] {
            assert_eq!(rest(took_ms), Duration::from_secs(seconds));
        }
    }

    #[test]
    fn new_directories_and_the_walk_over_all_take_turns() {
        let root = tempfile::tempdir().unwrap();
        let dir = Arc::new(open::root_dir(root.path()).unwrap());
        let scan = || Scan::new(Arc::clone(&dir), PathBuf::new(), 0);
        let mut walks = Walks::new(Instant::now());
        walks.due = true;
        walks.begin(scan(), Instant::now());
        assert!(!walks.may_begin() && walks.add(scan()) && walks.add(scan()));
        let mut order = Vec::new();
        for turn in 0..6 {
            let taken = walks.take_turn().unwrap();
            order.push(matches!(taken, Turn::All(_)));
            // Who could not use its turn has the next one.
            walks.take_back(taken, turn != 2);
        }
        assert_eq!(order, [true, false, true, true, false, true]);
        while walks.add(scan()) {}
        assert_eq!(walks.fresh.len(), SCANS_MAX);
    }
}
