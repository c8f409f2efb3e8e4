//! Settled files of a source that has an order, until they are handed on. Those that settle at the same time are sorted here, and
//! each takes a turn when it is handed on, in which the recorder hears of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::io::disk::Handle;
use crate::pipeline::queue::{Queue, Turns};
use crate::pipeline::{Candidate, Staged};
use crate::settings::Order;

use super::shares::{Needs, Shares};

/// How long the first that settles waits for others: they may have come with it.
const GATHER_REST: Duration = Duration::from_millis(200);
/// How long it waits for a walk over its source at most, where new files may keep that going.
const WALK_PATIENCE: Duration = Duration::from_secs(10);

/// Settled files of one source.
pub struct Ordered {
    order: Order,
    needs: Needs,
    turns: Arc<Turns<Staged<Handle>>>,
    waiting: BTreeMap<(i128, OsString), Candidate>,
    /// How many of those are whose.
    owners: HashMap<u32, usize>,
    /// Since when some have been waiting.
    since: Option<Instant>,
    /// There was too little of what the first one needs.
    short: bool,
}

impl Ordered {
    /// Nothing yet; `None` for a source without an order. No more than `most` files are read ahead of one that still is.
    pub fn new(
        order: Order,
        needs: Needs,
        staged: &Arc<Queue<Staged<Handle>>>,
        most: usize,
    ) -> Option<Ordered> {
        (order != Order::Arrival).then(|| Ordered {
            order,
            needs,
            turns: Turns::new(Arc::clone(staged), most),
            waiting: BTreeMap::new(),
            owners: HashMap::new(),
            since: None,
            short: false,
        })
    }

    /// Adds a settled file, or one that was handed on and comes back: then it gives up its turn.
    pub fn add(&mut self, mut candidate: Candidate, now: Instant) {
        candidate.turn = None;
        candidate.shares = Shares::default();
        self.since.get_or_insert(now);
        let time = match self.order {
            Order::Mtime => candidate.identity.mtime.as_nanos(),
            Order::Name | Order::Arrival => 0,
        };
        let path = candidate.path().as_os_str().to_os_string();
        *self.owners.entry(candidate.owner).or_default() += 1;
        if let Some(before) = self.waiting.insert((time, path), candidate) {
            self.left(before.owner);
        }
    }

    /// One less is waiting.
    fn left(&mut self, owner: u32) {
        if let Some(files) = self.owners.get_mut(&owner) {
            *files -= 1;
            if *files == 0 {
                self.owners.remove(&owner);
            }
        }
        if self.waiting.is_empty() {
            self.since = None;
        }
    }

    /// Takes out so many files of that owner, the last first.
    pub fn take_last(&mut self, owner: u32, files: usize) -> Vec<Candidate> {
        let of_owner = self
            .waiting
            .iter()
            .rev()
            .filter(|(_, it)| it.owner == owner);
        let last: Vec<_> = of_owner.take(files).map(|(key, _)| key.clone()).collect();
        let taken: Vec<Candidate> = last
            .iter()
            .filter_map(|key| self.waiting.remove(key))
            .collect();
        taken.iter().for_each(|it| self.left(it.owner));
        taken
    }

    /// The first of those that wait, with its turn. `None` also while as many as may be are being read, or while there is too little
    /// of what it needs.
    pub fn next(&mut self) -> Option<Candidate> {
        let mut first = self.waiting.first_entry()?;
        self.short = !self.needs.give(first.get_mut());
        if self.short {
            return None;
        }
        let Some(turn) = self.turns.take() else {
            first.get_mut().shares = Shares::default();
            return None;
        };
        let mut candidate = first.remove();
        candidate.turn = Some(turn);
        self.left(candidate.owner);
        Some(candidate)
    }

    /// Whether those that wait may be handed on: others of the same time have had time to settle. `walks`: a walk over the source
    /// goes on; `patient`: its end is waited for however long it takes.
    pub fn is_open(&self, now: Instant, walks: bool, patient: bool) -> bool {
        let waited = self.since.map(|since| now.saturating_duration_since(since));
        waited.is_some_and(|waited| {
            waited >= GATHER_REST && (!walks || (!patient && waited >= WALK_PATIENCE))
        })
    }

    /// When those that wait may be handed on at the earliest; `None` if there are none.
    pub fn opens_at(&self) -> Option<Instant> {
        self.since.map(|since| since + GATHER_REST)
    }

    /// Whether those that wait do so for what is short, not for their turn.
    pub fn is_short(&self) -> bool {
        self.short
    }

    /// How many of that owner wait, and of how many owners any do.
    pub fn of(&self, owner: u32) -> (usize, usize) {
        let own = self.owners.get(&owner).copied();
        (own.unwrap_or(0), self.owners.len())
    }

    /// Forgets those that wait.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.owners.clear();
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::*;
    use crate::io::{Identity, Timestamp, open, stat};
    use crate::ledger::SourceId;
    use crate::pipeline::{Input, Proof, Ticket, Verdicts};
    use crate::settings::{Purpose, RawSettings};

    fn candidates(files: &[(&[u8], i64)]) -> Vec<Candidate> {
        let directory = tempfile::tempdir().unwrap();
        let raw = RawSettings {
            environment: vec![("RINGEST_INPUT".into(), directory.path().into())],
            ..RawSettings::default()
        };
        let settings = raw.resolve(Purpose::Store).unwrap().settings;
        let dir = Arc::new(open::root_dir(directory.path()).unwrap());
        let input = Arc::new(Input {
            id: SourceId(1),
            settings: settings.sources[0].clone(),
            root: stat::stat_fd(&dir).unwrap(),
            dir,
            leases: false,
            inotify: false,
            copy: false,
            claim: None,
        });
        let verdicts = Verdicts::new().unwrap();
        let candidate = |&(name, seconds): &(&[u8], i64)| Candidate {
            input: Arc::clone(&input),
            owner: 0,
            identity: Identity {
                mtime: Timestamp { seconds, nanos: 0 },
                ..Identity::default()
            },
            proof: Proof::Settled,
            copy: false,
            seen_at: Instant::now(),
            settled_at: Instant::now(),
            turn: None,
            shares: Shares::default(),
            ticket: Ticket::new(
                input.id,
                Path::new(OsStr::from_bytes(name)).into(),
                Arc::clone(&verdicts),
            ),
        };
        files.iter().map(candidate).collect()
    }

    fn handed_on(order: Order, files: &[(&[u8], i64)]) -> Vec<Vec<u8>> {
        let mut ordered =
            Ordered::new(order, Needs::default(), &Arc::new(Queue::new(1)), 100).unwrap();
        for candidate in candidates(files) {
            ordered.add(candidate, Instant::now());
        }
        let next = std::iter::from_fn(|| ordered.next());
        next.map(|candidate| candidate.path().as_os_str().as_bytes().to_vec())
            .collect()
    }

    #[test]
    fn names_are_compared_byte_by_byte_and_times_before_names() {
        let files: [(&[u8], i64); 6] = [
            (b"b", 3),
            (b"a/b", 9),
            (b"caf\xe9", -1),
            (b"a.b", 9),
            (b"B", 5),
            (b"a", 9),
        ];
        // As paths, a/b would come before a.b.
        let by_name: [&[u8]; 6] = [b"B", b"a", b"a.b", b"a/b", b"b", b"caf\xe9"];
        assert_eq!(handed_on(Order::Name, &files), by_name);
        let by_time: [&[u8]; 6] = [b"caf\xe9", b"b", b"B", b"a", b"a.b", b"a/b"];
        assert_eq!(handed_on(Order::Mtime, &files), by_time);
        assert!(
            Ordered::new(
                Order::Arrival,
                Needs::default(),
                &Arc::new(Queue::new(1)),
                1
            )
            .is_none()
        );
    }

    #[test]
    fn those_that_settle_wait_a_moment_and_for_the_walk_that_finds_the_others() {
        let start = Instant::now();
        let mut ordered =
            Ordered::new(Order::Name, Needs::default(), &Arc::new(Queue::new(1)), 1).unwrap();
        assert_eq!(ordered.opens_at(), None);
        assert!(!ordered.is_open(start, false, false));
        for candidate in candidates(&[(b"b", 0), (b"a", 0)]) {
            ordered.add(candidate, start);
        }
        assert_eq!(ordered.opens_at(), Some(start + GATHER_REST));
        assert!(!ordered.is_open(start, false, false));
        let later = start + GATHER_REST;
        assert!(ordered.is_open(later, false, false));
        assert!(!ordered.is_open(later, true, false));
        assert!(ordered.is_open(start + WALK_PATIENCE, true, false));
        assert!(!ordered.is_open(start + WALK_PATIENCE, true, true));
        let first = ordered.next().unwrap();
        assert_eq!(first.path(), Path::new("a"));
        assert!(ordered.next().is_none(), "one may be read");
        assert!(ordered.is_open(later, false, false));
        // It comes back, and has its place again.
        ordered.add(first, later);
        assert_eq!(ordered.next().unwrap().path(), Path::new("a"));
        assert_eq!(ordered.next().unwrap().path(), Path::new("b"));
        assert_eq!(ordered.opens_at(), None);
    }

    #[test]
    fn the_last_of_an_owner_are_taken_out_and_no_more_counted() {
        let mut ordered =
            Ordered::new(Order::Name, Needs::default(), &Arc::new(Queue::new(1)), 9).unwrap();
        for (at, mut candidate) in candidates(&[(b"a", 0), (b"b", 0), (b"c", 0), (b"d", 0)])
            .into_iter()
            .enumerate()
        {
            candidate.owner = [1, 1, 2, 1][at];
            ordered.add(candidate, Instant::now());
        }
        assert_eq!((ordered.of(1), ordered.of(2)), ((3, 2), (1, 2)));
        let paths = |taken: Vec<Candidate>| -> Vec<String> {
            let path = |it: &Candidate| it.path().display().to_string();
            taken.iter().map(path).collect()
        };
        assert_eq!(paths(ordered.take_last(1, 2)), ["d", "b"]);
        assert_eq!(paths(ordered.take_last(1, 9)), ["a"]);
        assert_eq!((ordered.of(1), ordered.of(2)), ((0, 1), (1, 1)));
        assert_eq!(ordered.next().unwrap().path(), Path::new("c"));
        assert_eq!(ordered.opens_at(), None);
    }
}
