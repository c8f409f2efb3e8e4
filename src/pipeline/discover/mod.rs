//! Discovery: notices files, waits until they are finished, and hands them on.
//!
//! The staging directory itself is the durable queue. Everything here is a hint that may be dropped, as long as a scan
//! follows; so all memory is bounded, and a full queue downstream simply stops the scan.

mod order;
mod room;
pub mod scan;
pub mod settle;
pub mod shares;
mod walks;
mod watcher;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Timespec};

use crate::failure::{Exit, Failure};
use crate::io::disk::Handle;
use crate::io::{FileStat, Reserve, Timestamp, clock, open, stat};
use crate::observe::events;
use crate::observe::metrics::{Count, Metrics, Stage};
use crate::pipeline::queue::{Budget, Fair, Queue, part};
use crate::pipeline::read::{is_large, sidecar_path};
use crate::pipeline::record::KeptSet;
use crate::pipeline::{Candidate, Fate, Input, Proof, Staged, Ticket, Uploader, Verdicts, Waiting};
use crate::settings::{IgnoreReason, Mode};

use order::Ordered;
use room::{Claim, Room, weight};
use scan::{Entry as ScanEntry, Scan};
use settle::{Rules, Seen, SeenBy, Step, Unsettled, failed_rest, held_open_rest, turn_rest};
use shares::{Needs, Scarce, Shares};
pub use walks::scan_bytes;
use walks::{Turn, Walks};
use watcher::{Report, Watcher};

/// Files that are remembered while they settle. What comes beyond is dropped, and a scan finds it again; every uploader has a
/// part of them.
const ENTRIES_MAX: usize = 100_000;
/// Timers that fire before events and scans have their turn again.
const TIMERS_SLICE: usize = 4096;
/// More timers than this are looked through: most are of files that were forgotten.
const TIMERS_MAX: usize = 2 * ENTRIES_MAX;
/// Directory entries looked at before events and timers have their turn again.
const SCAN_SLICE: usize = 256;
/// Bytes of files that may wait in the queue: whoever comes behind them does not wait for long. Large ones wait elsewhere.
const QUEUE_BYTES: u64 = 256 << 20;
/// Settled files of a source that may wait for room in the queue before its scan pauses.
const READY_MAX: usize = 256;
/// A file that has failed more often in a row is told of, and forgotten where there is no room for another one.
const TRIES_MAX: u32 = 4;
/// Time to the scan that makes up for dropped hints.
const MAKE_UP_REST: Duration = Duration::from_millis(500);
/// How often room in a full queue is looked for.
const FULL_QUEUE_POLL: Duration = Duration::from_millis(1);
/// How often it is looked whether more of a source with an order may be read.
const TURN_POLL: Duration = Duration::from_millis(2);
/// The same for files that wait for a share of what is short. Each verdict is a reason to look, too.
const SHARE_POLL: Duration = Duration::from_millis(20);
/// How often a paused intake tries again.
const PAUSE_REST: Duration = Duration::from_secs(1);
/// Longest rest of a file that is too large while there is room for others.
const NO_ROOM_REST_MAX: Duration = Duration::from_secs(8);
/// With `--once`: how long a pause may last.
pub const ONCE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// With `--once`: how long a file may change or be held open at least, before it is left.
const ONCE_PATIENCE_MIN: Duration = Duration::from_secs(10);
/// How often the age of the oldest file is worked out, and the end of `--once` looked for.
const BOOKKEEPING_REST: Duration = Duration::from_millis(50);

/// What the discoverer works with.
pub struct DiscovererParts {
    /// The staging directories.
    pub inputs: Vec<Arc<Input>>,
    /// Where settled files go.
    pub candidates: Arc<Queue<Candidate>>,
    /// Where they go from there: those of a source with an order in that.
    pub staged: Arc<Queue<Staged<Handle>>>,
    /// Files of each such source that may be read ahead of one that still is, at least one.
    pub held_back_max: usize,
    /// For documents that are gathered to be parsed, in bytes.
    pub document_memory: Arc<Budget>,
    /// What became of them.
    pub verdicts: Arc<Verdicts>,
    /// Files to leave alone.
    pub kept: Arc<KeptSet>,
    /// What is to stay free.
    pub reserve: Arc<Reserve>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Set to stop intake.
    pub stop: Arc<AtomicBool>,
    /// End when nothing more can settle.
    pub once: bool,
    /// Time between two scans.
    pub rescan: Duration,
}

/// The discoverer.
pub struct Discoverer {
    parts: DiscovererParts,
    watcher: Option<Watcher>,
    entries: Vec<HashMap<Arc<Path>, Entry>>,
    /// Whose those are.
    room: Room,
    timers: BinaryHeap<Reverse<(Instant, usize, Arc<Path>)>>,
    /// Of each input.
    walks: Vec<Walks>,
    /// The input whose scan has its turn.
    turn: usize,
    /// Bytes that wait in the queue.
    queued: Arc<Budget>,
    /// Settled files of sources without an order that need nothing else.
    ready: Fair<Candidate>,
    /// Those of each input that has one.
    ordered: Vec<Option<Ordered>>,
    /// Those of each other input whose files need a share of what is short.
    scarce: Vec<Option<Scarce>>,
    /// Most files that wait for their turn or their shares, of each input whose files may have to wait for long: those of one
    /// must not take the room of all others. Its owners share it.
    crowd: usize,
    /// Owners, of each input, of whom files were left to a later walk for that.
    left_out: Vec<HashSet<u32>>,
    /// Who had a turn last to hand one on: 0 is `ready`, then come the inputs.
    lane: usize,
    in_flight: usize,
    pending: Count,
    next_rescan: Instant,
    /// Nothing can be forgotten before then to make room for another file.
    no_room_before: Option<Instant>,
    pause: Option<Pause>,
    /// When the last of those was settled that arrived.
    room_found: Option<Instant>,
    /// Where less is free than is to stay free.
    short: Option<PathBuf>,
    next_look_at_reserve: Instant,
    /// With `--once`: whether the last look around has been taken.
    looked_around: bool,
    next_bookkeeping: Instant,
}

/// A file that was seen and has not left yet.
#[derive(Debug)]
struct Entry {
    file: Unsettled,
    owner: u32,
    state: State,
    copy: bool,
    proof: Proof,
    /// How often it came back in a row, and what for.
    tries: u32,
    tries_for: Waiting,
    /// When there was no room for it, if that was so when it was tried last.
    no_room: Option<Instant>,
    /// With `--once`: since when it has been changing or coming back. Its patience begins there, not when it came.
    restless_since: Option<Instant>,
    /// When it was last settled or, while intake pauses, handed on to find out about room.
    settled_at: Instant,
    /// What was heard of it while it was downstream. The next look counts as that.
    heard: Option<Heard>,
}

/// What was heard of a name, and when by the wall clock: a close says nothing of what was changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard {
    by: SeenBy,
    at: Timestamp,
}

impl Heard {
    /// What it says of a file that was last changed then.
    fn of(self, changed: Timestamp) -> SeenBy {
        match self.by {
            SeenBy::Finished if changed > self.at => SeenBy::Created,
            by => by,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Looked at again at that time; `None`: when it is heard of, or at the next scan.
    Waiting { due: Option<Instant>, why: Waiting },
    /// Downstream. `again`: the last that was heard of its name meanwhile.
    InFlight { again: Option<Heard> },
}

#[derive(Debug)]
struct Pause {
    since: Instant,
    retry_at: Instant,
}

impl Discoverer {
    /// A discoverer that has not looked yet. It hears of the staging directories from now on, and of those beneath them once
    /// [`Discoverer::run`] scans them.
    pub fn new(parts: DiscovererParts) -> Discoverer {
        let watcher = if parts.inputs.iter().any(|input| input.inotify) {
            match Watcher::new(parts.inputs.len()) {
                Ok(mut watcher) => {
                    for (index, input) in parts.inputs.iter().enumerate() {
                        if input.inotify {
                            // The scan tries again, and tells if that fails too.
                            let _ = watcher.watch(index, Path::new(""), &input.dir);
                        }
                    }
                    Some(watcher)
                }
                Err(error) => {
                    events::fallback("inotify", &error.to_string(), "rescans only");
                    None
                }
            }
        } else {
            None
        };
        let now = Instant::now();
        let (mut ordered, mut scarce) = (Vec::new(), Vec::new());
        for input in &parts.inputs {
            let needs = || Needs::of(input, &parts.document_memory);
            let order = input.settings.order;
            let sorted = Ordered::new(order, needs(), &parts.staged, parts.held_back_max);
            scarce.push(match sorted {
                Some(_) => None,
                None => Scarce::new(needs()),
            });
            ordered.push(sorted);
        }
        let crowds = parts.inputs.iter().filter(|input| may_wait_long(input));
        let crowd = ENTRIES_MAX / crowds.count().max(1);
        Discoverer {
            watcher,
            entries: parts.inputs.iter().map(|_| HashMap::new()).collect(),
            room: Room::new(ENTRIES_MAX, parts.inputs.len()),
            timers: BinaryHeap::new(),
            walks: parts.inputs.iter().map(|_| Walks::new(now)).collect(),
            turn: 0,
            queued: Budget::new(QUEUE_BYTES),
            ready: Fair::default(),
            ordered,
            scarce,
            crowd,
            left_out: vec![HashSet::new(); parts.inputs.len()],
            lane: 0,
            in_flight: 0,
            pending: Count::default(),
            next_rescan: now,
            no_room_before: None,
            pause: None,
            room_found: None,
            short: None,
            next_look_at_reserve: now,
            looked_around: false,
            next_bookkeeping: now,
            parts,
        }
    }

    /// Discovers until it is told to stop or, with `--once`, until nothing more can settle. Closes the queue.
    pub fn run(&mut self) -> Result<(), Failure> {
        let ended = self.discover();
        self.ready.clear();
        self.ordered.iter_mut().flatten().for_each(Ordered::clear);
        self.scarce.iter_mut().flatten().for_each(Scarce::clear);
        ended
    }

    fn discover(&mut self) -> Result<(), Failure> {
        loop {
            if self.parts.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            self.take_verdicts();
            let quiet = !self.take_reports()?;
            self.fire_timers();
            self.begin_scans()?;
            self.advance_scan();
            self.hand_on();
            self.let_in();
            self.keep_books();
            if self.parts.once && quiet && self.is_done()? {
                self.list_leftovers();
                return Ok(());
            }
            self.wait();
        }
    }

    // ---- what is heard ----

    fn take_verdicts(&mut self) {
        for (source, path, fate) in self.parts.verdicts.take() {
            let position = self
                .parts
                .inputs
                .iter()
                .position(|input| input.id == source);
            if let Some(input) = position {
                self.in_flight -= 1;
                self.conclude(input, path, fate);
            }
        }
    }

    fn conclude(&mut self, input: usize, path: Arc<Path>, fate: Fate) {
        let now = Instant::now();
        let Some(entry) = self.entries[input].get_mut(&path) else {
            return;
        };
        let again = match entry.state {
            State::InFlight { again } => again,
            State::Waiting { .. } => None,
        };
        // Those that come again keep their rest, whatever was heard: taking a file back is heard of, too.
        entry.heard = again.filter(|heard| heard.by != SeenBy::Scan);
        let no_room = matches!(fate, Fate::NoRoom(_)).then_some(now);
        let had_no_room = std::mem::replace(&mut entry.no_room, no_room);
        let size = entry.file.identity.size;
        let mut look = |entry: &mut Entry, after: Duration, why| {
            let due = now + after;
            entry.state = State::Waiting {
                due: Some(due),
                why,
            };
            self.timers.push(Reverse((due, input, Arc::clone(&path))));
        };
        match fate {
            Fate::Done => {
                // What was on its way already when there was no room says nothing.
                let settled_at = entry.settled_at;
                self.room_found = self.room_found.max(Some(settled_at));
                self.forget(input, &path);
                if self
                    .pause
                    .as_ref()
                    .is_none_or(|pause| settled_at > pause.since)
                {
                    self.resume();
                }
                if let Some(heard) = again {
                    self.sight_again(input, &path, heard);
                }
            }
            Fate::Again { after, why } => {
                // When somebody let go of it, the rests begin with the shortest.
                let finished = again.is_some_and(|heard| heard.by == SeenBy::Finished);
                let let_go = finished && why != Waiting::Turn;
                if let_go || entry.tries_for != why {
                    entry.tries = 0;
                    entry.tries_for = why;
                }
                // Having to wait for others is not its fault; failing when its turn comes is.
                entry.restless_since = if why == Waiting::Turn && after.is_zero() {
                    None
                } else {
                    entry.restless_since.or(Some(now))
                };
                let after = match why {
                    // A sidecar that is still held open, too.
                    Waiting::HeldOpen | Waiting::Sidecar => after.max(held_open_rest(entry.tries)),
                    Waiting::Unreadable => failed_rest(after, entry.tries),
                    Waiting::Turn => turn_rest(after, entry.tries),
                    _ => after,
                };
                entry.tries += 1;
                look(entry, after, why);
                let long = entry.tries > TRIES_MAX && matches!(why, Waiting::HeldOpen);
                if long {
                    let path = self.parts.inputs[input].absolute(&path);
                    events::file_waiting(&path, why.as_str());
                }
            }
            Fate::TakenBack { after } => {
                entry.file.taken_back = true;
                entry.restless_since.get_or_insert(now);
                look(entry, after, Waiting::Still);
            }
            Fate::NeedsInterval => {
                entry.file.lease_refused = true;
                look(entry, Duration::ZERO, Waiting::Still);
            }
            Fate::NeedsCopy => {
                entry.copy = true;
                let (identity, proof) = (entry.file.identity, entry.proof);
                self.settled(input, Arc::clone(&path), identity, proof);
                if let Some(entry) = self.entries[input].get_mut(&path) {
                    entry.state = State::InFlight { again };
                }
            }
            Fate::Withdrawn => {
                self.withdrawn(input, &path, size);
                if let Some(heard) = again {
                    self.sight_again(input, &path, heard);
                }
            }
            Fate::Ignored(reason) => {
                self.forget(input, &path);
                events::file_ignored(&self.parts.inputs[input].absolute(&path), reason);
                if let Some(heard) = again {
                    self.sight_again(input, &path, heard);
                }
            }
            Fate::NoRoom(reason) => {
                if entry.tries_for != Waiting::Turn {
                    entry.tries = 0;
                    entry.tries_for = Waiting::Turn;
                }
                // If another file has found room since, it is too large, and no reason to hold them up again.
                let others_fit = had_no_room.is_some_and(|then| self.room_found > Some(then));
                if others_fit && self.pause.is_none() && !self.parts.once {
                    entry.tries += 1;
                    let rest = failed_rest(PAUSE_REST, entry.tries).min(NO_ROOM_REST_MAX);
                    look(entry, rest, Waiting::Turn);
                    events::file_waiting(&self.parts.inputs[input].absolute(&path), &reason);
                    return;
                }
                entry.tries = 0;
                entry.restless_since = None;
                look(entry, PAUSE_REST, Waiting::Turn);
                self.pause_intake(&reason, now);
            }
        }
    }

    fn take_reports(&mut self) -> Result<bool, Failure> {
        let mut any = false;
        // Bounded, so that a flood of events does not keep settled files from being handed on.
        for _ in 0..16 {
            let Some(watcher) = &mut self.watcher else {
                break;
            };
            let mut reports = Vec::new();
            let read = watcher.read(&mut reports).map_err(|error| {
                Failure::io("read inotify events of", &self.first_input(), &error)
            })?;
            if !read {
                break;
            }
            any = true;
            for report in reports {
                self.take_report(report)?;
            }
        }
        Ok(any)
    }

    fn take_report(&mut self, report: Report) -> Result<(), Failure> {
        match report {
            Report::Lost => {
                events::events_lost();
                (0..self.walks.len()).for_each(|input| self.make_up(input));
            }
            Report::Moved { input } => self.make_up(input),
            Report::RootGone => self.check_roots()?,
            Report::Name {
                input,
                path,
                directory: true,
                ..
            } => {
                let root = &self.parts.inputs[input];
                if root.settings.enters(&path) {
                    // The scan watches first and lists then, so nothing that is made meanwhile is missed.
                    let most_bytes = scan_bytes(self.parts.inputs.len());
                    let scan = Scan::new(Arc::clone(&root.dir), path, most_bytes);
                    if !self.walks[input].add(scan) {
                        self.make_up(input);
                    }
                }
            }
            Report::Name {
                input, path, by, ..
            } => self.sight(input, &path, by, None),
        }
        Ok(())
    }

    fn first_input(&self) -> PathBuf {
        self.parts.inputs[0].settings.input.clone()
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        if self.timers.len() > TIMERS_MAX {
            let entries = &self.entries;
            self.timers.retain(|Reverse((due, input, path))| {
                let state = entries[*input].get(path).map(|entry| entry.state);
                matches!(state, Some(State::Waiting { due: Some(at), .. }) if at == *due)
            });
        }
        for _ in 0..TIMERS_SLICE {
            let due = self.timers.peek().map(|Reverse((due, _, _))| *due);
            if due.is_none_or(|due| due > now) {
                return;
            }
            let Some(Reverse((due, input, path))) = self.timers.pop() else {
                return;
            };
            let state = self.entries[input].get(&path).map(|entry| entry.state);
            // Others are timers of a time before.
            if matches!(state, Some(State::Waiting { due: Some(at), .. }) if at == due) {
                self.sight(input, &path, SeenBy::Timer, None);
            }
        }
    }

    // ---- what is looked at ----

    fn begin_scans(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let regular = now >= self.next_rescan;
        if regular {
            self.next_rescan = now + self.parts.rescan;
        }
        for index in 0..self.parts.inputs.len() {
            let hears_of_all = self.hears_of_all(index);
            let walks = &mut self.walks[index];
            let hurried = walks.make_up_at.is_some_and(|at| now >= at);
            if regular || hurried {
                walks.due |= hurried || now >= walks.next || !hears_of_all;
                if hurried {
                    walks.make_up_at = None;
                }
                self.check_roots()?;
                // Those that only a scan wakes may be gone by now, and a scan does not see what is gone.
                let unheard: Vec<Arc<Path>> = self.entries[index]
                    .iter()
                    .filter(|(_, entry)| matches!(entry.state, State::Waiting { due: None, .. }))
                    .map(|(path, _)| Arc::clone(path))
                    .collect();
                for path in unheard {
                    self.sight(index, &path, SeenBy::Timer, None);
                }
            }
            if self.walks[index].may_begin() {
                let root = Arc::clone(&self.parts.inputs[index].dir);
                let most_bytes = scan_bytes(self.parts.inputs.len());
                let scan = Scan::new(root, PathBuf::new(), most_bytes);
                self.walks[index].begin(scan, now);
            }
        }
        Ok(())
    }

    fn is_scanning(&self) -> bool {
        self.walks.iter().any(|walks| !walks.are_over())
    }

    /// Whether inotify tells of all that happens in that input, as far as is known.
    fn hears_of_all(&self, input: usize) -> bool {
        let watched = self.watcher.is_some() && self.parts.inputs[input].inotify;
        watched && !self.walks[input].unwatched
    }

    fn end_walk(&mut self, input: usize) {
        let rescan = self.parts.rescan;
        let dear = self.walks.iter().filter(|walks| walks.are_dear(rescan));
        let dear = (dear.count() as u32).max(1);
        if let Some(refused) = self.walks[input].end(rescan, dear) {
            let root = &self.parts.inputs[input].settings.input;
            let cause = format!(
                "cannot watch {refused} directories beneath {}",
                root.display()
            );
            events::fallback("inotify", &cause, "rescans only");
        }
    }

    /// Ends the program once no staging directory is left. As long as one is, whoever may rename another keeps nobody's files waiting
    /// but its own.
    fn check_roots(&self) -> Result<(), Failure> {
        let inputs = 0..self.parts.inputs.len();
        let gone: Vec<Failure> = inputs.filter_map(|it| self.check_root(it).err()).collect();
        let all = gone.len() == self.parts.inputs.len();
        for failure in gone {
            if all {
                return Err(failure);
            }
            let path = failure.path.as_deref().unwrap_or(Path::new(""));
            events::source_gone(path, &failure.cause, &failure.remedy);
        }
        Ok(())
    }

    /// Another directory under the input's name would never be looked at.
    fn check_root(&self, index: usize) -> Result<(), Failure> {
        let input = &self.parts.inputs[index];
        let path = &input.settings.input;
        let seen = rustix::fs::stat(path).map_err(io::Error::from);
        let root = &input.root.identity;
        match seen {
            Ok(seen) if (seen.st_dev, seen.st_ino) == (root.device, root.inode) => Ok(()),
            Ok(_) => Err(Failure::new(
                Exit::Io,
                "go on watching",
                path,
                "another directory has taken its place",
                "start ringest again to watch the new one",
            )),
            Err(error) => Err(Failure::io("go on watching", path, &error)),
        }
    }

    fn advance_scan(&mut self) {
        if self.pause.is_some() {
            return;
        }
        // A long one of one input does not keep those of others waiting.
        let inputs = self.walks.len();
        let mut turns = (1..=inputs).map(|next| (self.turn + next) % inputs);
        let Some(input) = turns.find(|next| self.can_scan(*next)) else {
            return;
        };
        self.turn = input;
        let Some(mut turn) = self.walks[input].take_turn() else {
            return;
        };
        let of_all = matches!(turn, Turn::All(_));
        let began = clock::thread_time();
        let mut entries = 0;
        let over = loop {
            if entries == SCAN_SLICE || !self.has_place_for_ready(input) {
                break false;
            }
            match turn.scan().next() {
                None => break true,
                Some(entry) => self.come_across(input, turn.scan(), of_all, entry),
            }
            entries += 1;
        };
        let walks = &mut self.walks[input];
        if of_all {
            walks.spent(clock::thread_time().saturating_sub(began));
        }
        match over {
            false => walks.take_back(turn, entries == SCAN_SLICE),
            true if of_all => self.end_walk(input),
            true => {}
        }
    }

    fn come_across(&mut self, input: usize, scan: &mut Scan, of_all: bool, entry: ScanEntry) {
        match entry {
            ScanEntry::Directory { path, fd } => self.watch(input, &path, &fd, of_all),
            ScanEntry::Name { path, dir, kind } => {
                // Some filesystems leave it to us to find out.
                let is_directory = match kind {
                    FileType::Unknown => {
                        let name = path.file_name().unwrap_or(OsStr::new("."));
                        stat::stat_at(&dir, name)
                            .is_ok_and(|seen| seen.is_some_and(|s| s.kind.is_dir()))
                    }
                    kind => kind.is_dir(),
                };
                if is_directory {
                    if self.parts.inputs[input].settings.enters(&path) {
                        scan.enter(&path);
                    }
                } else {
                    self.sight(input, &path, SeenBy::Scan, Some(&dir));
                }
            }
            ScanEntry::Failed { path, error } => {
                self.walks[input].unwatched = true;
                self.scan_failed(input, &path, &error);
            }
        }
    }

    fn watch(&mut self, input: usize, path: &Path, fd: impl AsFd, of_all: bool) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        if !self.parts.inputs[input].inotify {
            return;
        }
        match watcher.watch(input, path, fd) {
            Ok(None) => {}
            Ok(Some(other)) => self.walks[other].unwatched = true,
            Err(error) => {
                if self.walks[input].refused_watch(of_all) {
                    let path = self.parts.inputs[input].absolute(path);
                    let cause = format!("cannot watch {}: {error}", path.display());
                    events::fallback("inotify", &cause, "rescans only");
                }
            }
        }
    }

    /// Whether more files of that input may settle before some are handed on.
    fn has_place_for_ready(&self, input: usize) -> bool {
        self.ready.of_source(self.parts.inputs[input].id) < READY_MAX
    }

    /// Whether a scan of that input goes on.
    fn can_scan(&self, input: usize) -> bool {
        !self.walks[input].are_over() && self.has_place_for_ready(input)
    }

    fn scan_failed(&self, input: usize, path: &Path, error: &io::Error) {
        use rustix::io::Errno;
        let absolute = self.parts.inputs[input].absolute(path);
        match Errno::from_io_error(error) {
            Some(Errno::NOENT | Errno::NOTDIR) if !path.as_os_str().is_empty() => {}
            Some(Errno::LOOP) => events::file_ignored(&absolute, "a symbolic link is on its path"),
            Some(Errno::XDEV) => {
                events::file_ignored(&absolute, "another filesystem is mounted there");
            }
            _ => events::file_failed(
                &absolute,
                "list",
                &error.to_string(),
                "let the user ringest runs as read and search this directory",
            ),
        }
    }

    /// Something was seen at a path. `dir` is the directory it is in, if that is open.
    fn sight(
        &mut self,
        input: usize,
        path: &Path,
        by: SeenBy,
        dir: Option<&Arc<std::os::fd::OwnedFd>>,
    ) {
        let root = Arc::clone(&self.parts.inputs[input]);
        match root.settings.takes(path) {
            Ok(()) => {}
            Err(IgnoreReason::Sidecar) => return self.sight_sidecar(input, path, by),
            Err(reason) => {
                return events::file_ignored_quietly(&root.absolute(path), reason.as_str());
            }
        }
        match self.entries[input].get_mut(path) {
            Some(Entry {
                state: State::InFlight { again },
                ..
            }) => {
                // A scan may have met another file of that name, of which nothing else will be heard.
                let at = clock::realtime();
                match by {
                    SeenBy::Scan => again.get_or_insert(Heard { by, at }),
                    _ => again.insert(Heard { by, at }),
                };
                return;
            }
            // Its timer looks at it soon enough; a scan that came between a close and the look at it would put that off
            // by a whole interval. A close is worth a look, though: the interval begins with it.
            Some(Entry {
                state: State::Waiting { due: Some(_), .. },
                ..
            }) if by == SeenBy::Scan
                || (by == SeenBy::Created && root.settings.mode == Mode::Stability) =>
            {
                return;
            }
            _ => {}
        }
        let seen = match dir {
            Some(dir) => stat::stat_at(dir, path.file_name().unwrap_or(OsStr::new("."))),
            None => open::stat_beneath(&*root.dir, path),
        };
        match seen {
            Ok(Some(seen)) if seen.kind == FileType::RegularFile => {
                self.settle(input, path, seen, by);
            }
            Ok(Some(seen)) => {
                self.forget(input, path);
                if let Some(what) = describe(seen.kind) {
                    events::file_ignored(&root.absolute(path), what);
                }
            }
            Ok(None) => {
                if let Some(entry) = self.entries[input].get(path) {
                    let size = entry.file.identity.size;
                    self.withdrawn(input, path, size);
                }
            }
            Err(error) => {
                self.forget(input, path);
                self.walks[input].unwatched = true;
                let remedy = "it stays in staging and is looked at again at the next scan";
                events::file_failed(&root.absolute(path), "look at", &error.to_string(), remedy);
            }
        }
    }

    /// What was heard of a name while the file that had it was downstream.
    fn sight_again(&mut self, input: usize, path: &Path, heard: Heard) {
        let root = Arc::clone(&self.parts.inputs[input]);
        let by = match open::stat_beneath(&*root.dir, path) {
            Ok(Some(seen)) => heard.of(seen.identity.ctime),
            _ => heard.by,
        };
        self.sight(input, path, by, None);
    }

    /// A sidecar speaks for its file.
    fn sight_sidecar(&mut self, input: usize, path: &Path, by: SeenBy) {
        let root = Arc::clone(&self.parts.inputs[input]);
        let suffix = root.settings.sidecar_suffix.as_bytes();
        let bytes = path.as_os_str().as_bytes();
        let file = Path::new(OsStr::from_bytes(&bytes[..bytes.len() - suffix.len()]));
        if file.file_name().is_none() {
            return;
        }
        if by != SeenBy::Scan {
            return self.sight(input, file, by, None);
        }
        // Its file has its own turn in the scan, if it is there.
        let known = self.entries[input].contains_key(file);
        let alone = !known && matches!(open::stat_beneath(&*root.dir, file), Ok(None));
        // One that could not be removed with its file was told of then.
        let still_there = || match open::stat_beneath(&*root.dir, path) {
            Ok(Some(seen)) => !self.parts.kept.contains(root.id, path, &seen.identity),
            _ => false,
        };
        if alone && still_there() {
            events::file_waiting(&root.absolute(path), "a sidecar without its file");
        }
    }

    fn settle(&mut self, input: usize, path: &Path, seen: FileStat, by: SeenBy) {
        let root = Arc::clone(&self.parts.inputs[input]);
        if self.parts.kept.contains(root.id, path, &seen.identity) {
            return self.forget(input, path);
        }
        let now = Instant::now();
        let (known, owner) = (self.entries[input].contains_key(path), seen.uid);
        if !known && self.is_crowded(input, owner) {
            self.left_out[input].insert(owner);
            return;
        }
        if !known && !self.make_room(input, owner) {
            self.make_up(input);
            return;
        }
        let age = clock::realtime().as_nanos() - seen.identity.ctime.as_nanos();
        let seen = Seen {
            identity: seen.identity,
            links: seen.links,
            age: u64::try_from(age).ok().map(Duration::from_nanos),
            sidecar: root.settings.mode == Mode::Sidecar && self.has_sidecar(&root, path),
        };
        let rules = Rules {
            mode: root.settings.mode,
            stability: root.settings.stability,
            empty: root.settings.empty,
            leases: root.leases,
        };
        let shared: Arc<Path> = match self.entries[input].get_key_value(path) {
            Some((known, _)) => Arc::clone(known),
            None => path.into(),
        };
        let (mut count, room) = (Count::default(), &mut self.room);
        let entry = self.entries[input]
            .entry(Arc::clone(&shared))
            .or_insert_with(|| {
                count = Count::file(seen.identity.size);
                room.add(input, owner, weight(path));
                Entry {
                    file: Unsettled::new(seen.identity, now),
                    owner,
                    state: State::Waiting {
                        due: None,
                        why: Waiting::Turn,
                    },
                    copy: false,
                    proof: Proof::Settled,
                    tries: 0,
                    tries_for: Waiting::Still,
                    no_room: None,
                    restless_since: None,
                    settled_at: now,
                    heard: None,
                }
            });
        self.pending += count;
        if entry.owner != owner {
            room.remove(input, entry.owner, weight(path));
            room.add(input, owner, weight(path));
            entry.owner = owner;
        }
        let heard = entry.heard.take();
        let by = match by {
            SeenBy::Timer | SeenBy::Scan => heard.map_or(by, |heard| heard.of(seen.identity.ctime)),
            SeenBy::Created | SeenBy::Finished => by,
        };
        let size_before = entry.file.identity.size;
        let (step, changed) = entry.file.step(&rules, &seen, by, now);
        self.pending.bytes += seen.identity.size;
        self.pending.bytes -= size_before;
        if changed {
            entry.tries = 0;
            entry.restless_since.get_or_insert(now);
        }
        match step {
            Step::Settled(proof) => self.settled(input, shared, seen.identity, proof),
            Step::Look { after, why } => {
                let due = after.map(|after| now + after);
                let running = match entry.state {
                    State::Waiting { due, .. } => due.filter(|at| *at > now),
                    State::InFlight { .. } => None,
                };
                // One timer a file: the one that runs comes first, and finds out how long is left.
                let keeps = running.is_some() && running <= due;
                let due = if keeps { running } else { due };
                entry.state = State::Waiting { due, why };
                if let (Some(due), false) = (due, keeps) {
                    self.timers.push(Reverse((due, input, shared)));
                }
                let speaks = match why {
                    Waiting::Still => changed && by == SeenBy::Timer,
                    Waiting::HeldOpen | Waiting::Turn => false,
                    Waiting::Links | Waiting::Sidecar => due.is_none(),
                    Waiting::Empty | Waiting::Unreadable => true,
                };
                if speaks {
                    events::file_waiting(&root.absolute(path), why.as_str());
                }
            }
            Step::Leave(reason) => {
                self.forget(input, path);
                events::file_ignored(&root.absolute(path), reason);
            }
        }
    }

    fn has_sidecar(&self, root: &Input, path: &Path) -> bool {
        let path = sidecar_path(path, &root.settings.sidecar_suffix);
        match open::stat_beneath(&*root.dir, &path) {
            Ok(Some(seen)) => {
                seen.kind == FileType::RegularFile
                    && !self.parts.kept.contains(root.id, &path, &seen.identity)
            }
            _ => false,
        }
    }

    fn settled(
        &mut self,
        input: usize,
        path: Arc<Path>,
        identity: crate::io::Identity,
        proof: Proof,
    ) {
        let Some(entry) = self.entries[input].get(&path) else {
            return;
        };
        let (owner, copy) = (entry.owner, entry.copy);
        // What is known of one that has to be copied, no walk finds out.
        if !copy && self.is_crowded(input, owner) {
            self.left_out[input].insert(owner);
            return self.forget(input, &path);
        }
        let Some(entry) = self.entries[input].get_mut(&path) else {
            return;
        };
        let now = Instant::now();
        entry.state = State::InFlight { again: None };
        entry.settled_at = now;
        entry.proof = proof;
        self.in_flight += 1;
        let root = Arc::clone(&self.parts.inputs[input]);
        let took = now.saturating_duration_since(entry.file.first_seen);
        self.parts.metrics.record(Stage::Settle, took);
        let candidate = Candidate {
            owner,
            identity,
            proof,
            copy,
            seen_at: entry.file.first_seen,
            settled_at: now,
            turn: None,
            shares: Shares::default(),
            ticket: Ticket::new(root.id, path, Arc::clone(&self.parts.verdicts)),
            input: root,
        };
        match (&mut self.ordered[input], &mut self.scarce[input]) {
            (Some(ordered), _) => ordered.add(candidate, now),
            (None, Some(scarce)) => scarce.add(candidate),
            (None, None) => self.ready.push(candidate.uploader(), candidate),
        }
    }

    /// Hints were dropped: a scan finds what they were about.
    fn make_up(&mut self, input: usize) {
        let soon = Instant::now() + MAKE_UP_REST;
        self.walks[input].make_up_at.get_or_insert(soon);
    }

    /// Room for one more file of that owner. Whoever has more than a part that is somebody else's makes place, and files that wait
    /// for nothing but a scan do, or that have failed for long: as many of those as are remembered must not keep all others out.
    fn make_room(&mut self, input: usize, owner: u32) -> bool {
        if !self.room.is_full() {
            return true;
        }
        if let Some(claim) = self.room.claim(input, owner)
            && self.make_place(claim)
        {
            return true;
        }
        // Going through all of them for each file that comes would leave no time for anything else.
        let now = Instant::now();
        if self.no_room_before.is_some_and(|then| now < then) {
            return false;
        }
        let mut gone = 0;
        for input in 0..self.entries.len() {
            gone += self.forget_some(input, usize::MAX, waits_for_a_walk);
        }
        self.no_room_before = (gone < ENTRIES_MAX / 64).then(|| now + MAKE_UP_REST);
        gone > 0
    }

    /// Forgets files of somebody who has too many: those first of which a walk is awaited anyway, those last that have settled.
    fn make_place(&mut self, claim: Claim) -> bool {
        let Claim {
            input,
            owner,
            files,
        } = claim;
        let owned = |entry: &Entry| entry.owner == owner;
        let idle = |entry: &Entry| owned(entry) && waits_for_a_walk(entry);
        let waits = |entry: &Entry| owned(entry) && matches!(entry.state, State::Waiting { .. });
        let mut gone = self.forget_some(input, files, idle);
        gone += self.forget_some(input, files.saturating_sub(gone), waits);
        let uploader = Uploader {
            source: self.parts.inputs[input].id,
            user: owner,
        };
        let left = files.saturating_sub(gone);
        let last: Vec<Candidate> = match (&mut self.ordered[input], &mut self.scarce[input]) {
            (Some(ordered), _) => ordered.take_last(owner, left),
            (None, Some(scarce)) => {
                let last = std::iter::from_fn(|| scarce.take_last(uploader));
                last.take(left).collect()
            }
            (None, None) => {
                let last = std::iter::from_fn(|| self.ready.pop_back(uploader));
                last.take(left).collect()
            }
        };
        gone += last.len();
        self.walks[input].unwatched |= !last.is_empty();
        for candidate in last {
            self.forget(input, candidate.path());
            candidate.ticket.close(Fate::Again {
                after: Duration::ZERO,
                why: Waiting::Turn,
            });
        }
        gone > 0
    }

    /// Forgets files of that input, of so much weight at most. The next walk finds them.
    fn forget_some(&mut self, input: usize, most: usize, which: impl Fn(&Entry) -> bool) -> usize {
        let (mut gone, mut count) = (0, Count::default());
        if most == 0 {
            return 0;
        }
        let room = &mut self.room;
        self.entries[input].retain(|path, entry| {
            let stays = gone >= most || !which(entry);
            if !stays {
                count += Count::file(entry.file.identity.size);
                gone += weight(path);
                room.remove(input, entry.owner, weight(path));
            }
            stays
        });
        self.pending.files -= count.files;
        self.pending.bytes -= count.bytes;
        self.walks[input].unwatched |= gone > 0;
        gone
    }

    fn forget(&mut self, input: usize, path: &Path) {
        if let Some(entry) = self.entries[input].remove(path) {
            self.room.remove(input, entry.owner, weight(path));
            self.pending.files -= 1;
            self.pending.bytes -= entry.file.identity.size;
        }
    }

    fn withdrawn(&mut self, input: usize, path: &Path, size: u64) {
        self.forget(input, path);
        self.parts.metrics.withdrawn.add(Count::file(size));
        let path = self.parts.inputs[input].absolute(path);
        events::file_withdrawn(&path, "it is no longer in staging");
    }

    // ---- what is handed on ----

    /// Pauses while less is free than is to stay free. Looks while there is something to hand on, or to wait for.
    fn watch_reserve(&mut self) {
        let now = Instant::now();
        let nothing = self.ready.is_empty() && !self.is_short() && self.opens_at(now).is_none();
        let idle = nothing && self.pause.is_none();
        if idle || now < self.next_look_at_reserve {
            return;
        }
        self.next_look_at_reserve = now + PAUSE_REST;
        let reserve = Arc::clone(&self.parts.reserve);
        match reserve.shortage() {
            None => {
                if self.short.take().is_some() {
                    self.resume();
                }
            }
            // Its numbers change all the time; only another place is news, or that somebody else has told that it is over.
            Some((path, _))
                if self.short.as_deref() == Some(path)
                    && self.parts.metrics.pause_reason().is_some() => {}
            Some((path, reason)) => {
                self.short = Some(path.to_path_buf());
                self.pause_intake(&reason, now);
            }
        }
    }

    fn hand_on(&mut self) {
        self.watch_reserve();
        let short = self.short.is_some();
        if let Some(pause) = &mut self.pause {
            let now = Instant::now();
            if now < pause.retry_at {
                return;
            }
            // One file finds out whether there is room again.
            pause.retry_at = now + PAUSE_REST;
            if short {
                return;
            }
            if self.in_flight == 0 && !self.entries.iter().any(finds_out_about_room) {
                // Those that could have are gone or changing. The next that is found does.
                self.resume();
                return;
            }
            if let Some(candidate) = self.next_settled() {
                // However long ago it settled: what becomes of it now tells whether there is room.
                let inputs = self.parts.inputs.iter().zip(&mut self.entries);
                for (input, entries) in inputs {
                    if Arc::ptr_eq(input, &candidate.input)
                        && let Some(entry) = entries.get_mut(candidate.path())
                    {
                        entry.settled_at = now;
                    }
                }
                if let Err(candidate) = self.parts.candidates.try_push(candidate)
                    && let Some(candidate) = self.take_back(candidate)
                {
                    self.ready.push_front(candidate.uploader(), candidate);
                }
            }
            return;
        }
        while !self.is_queue_full()
            && let Some(mut candidate) = self.next_settled()
        {
            let size = candidate.identity.size;
            if !is_large(size) {
                candidate.shares.queue = Some(self.queued.take_anyway(size));
            }
            if let Err(candidate) = self.parts.candidates.try_push(candidate) {
                if let Some(candidate) = self.take_back(candidate) {
                    self.ready.push_front(candidate.uploader(), candidate);
                }
                return;
            }
        }
    }

    fn is_queue_full(&self) -> bool {
        self.parts.candidates.is_full() || !self.queued.is_left()
    }

    /// The next file to hand on. Sources with an order, or whose files need what is short, take turns with each other and with all
    /// others. During a pause they do not wait for more files to sort: one of those that are here has to find out about room.
    fn next_settled(&mut self) -> Option<Candidate> {
        let now = Instant::now();
        let lanes = 1 + self.ordered.len();
        for lane in (1..=lanes).map(|next| (self.lane + next) % lanes) {
            let candidate = match lane.checked_sub(1) {
                None => self.ready.pop(),
                Some(input) => {
                    let walks = !self.walks[input].are_over();
                    let ordered = self.ordered[input].as_mut();
                    let paused = self.pause.is_some();
                    let sorted = ordered
                        .filter(|it| paused || it.is_open(now, walks, self.parts.once))
                        .and_then(Ordered::next);
                    sorted.or_else(|| {
                        self.scarce[input]
                            .as_mut()
                            .and_then(Scarce::next_with_shares)
                    })
                }
            };
            if candidate.is_some() {
                self.lane = lane;
                return candidate;
            }
        }
        None
    }

    /// Puts a file that is not handed on after all back among those of its source; returned if that has no place of its own.
    fn take_back(&mut self, mut candidate: Candidate) -> Option<Candidate> {
        candidate.shares.queue = None;
        let same = |input: &Arc<Input>| Arc::ptr_eq(input, &candidate.input);
        let Some(input) = self.parts.inputs.iter().position(same) else {
            return Some(candidate);
        };
        match (&mut self.ordered[input], &mut self.scarce[input]) {
            (Some(ordered), _) => ordered.add(candidate, Instant::now()),
            (None, Some(scarce)) => scarce.take_back(candidate),
            (None, None) => return Some(candidate),
        }
        None
    }

    /// How many files of that owner wait for their turn or their shares, and how many it may have waiting.
    fn waiting(&self, input: usize, owner: u32) -> (usize, usize) {
        let uploader = Uploader {
            source: self.parts.inputs[input].id,
            user: owner,
        };
        let ordered = self.ordered[input].as_ref().map(|it| it.of(owner));
        let scarce = || self.scarce[input].as_ref().map(|it| it.of(uploader));
        let (own, owners) = ordered.or_else(scarce).unwrap_or_default();
        let owners = owners + usize::from(own == 0);
        (own, part(self.crowd, owners))
    }

    /// Whether no more files of that owner may wait.
    fn is_crowded(&self, input: usize, owner: u32) -> bool {
        may_wait_long(&self.parts.inputs[input]) && {
            let (own, most) = self.waiting(input, owner);
            own >= most
        }
    }

    /// Has those found that were left out, once there is place for them.
    fn let_in(&mut self) {
        for input in 0..self.left_out.len() {
            let has_place = |owner: &u32| {
                let (own, most) = self.waiting(input, *owner);
                own <= most / 2
            };
            if self.left_out[input].iter().any(has_place) {
                self.left_out[input].clear();
                self.make_up(input);
            }
        }
    }

    /// Whether files wait for what is short.
    fn is_short(&self) -> bool {
        self.scarce.iter().flatten().any(|it| !it.is_empty())
    }

    /// When the first of those that are to be sorted may be handed on.
    fn opens_at(&self, now: Instant) -> Option<Instant> {
        let ordered = self.ordered.iter().flatten();
        let opens_at = |ordered: &Ordered| {
            let poll = match ordered.is_short() {
                true => SHARE_POLL,
                false => TURN_POLL,
            };
            Some(ordered.opens_at()?.max(now + poll))
        };
        ordered.filter_map(opens_at).min()
    }

    /// Files that wait for a reader come back; those that have been read do so when they find no room.
    fn pause_intake(&mut self, reason: &str, now: Instant) {
        while let Some(candidate) = self.parts.candidates.try_pop() {
            if let Some(candidate) = self.take_back(candidate) {
                self.ready.push(candidate.uploader(), candidate);
            }
        }
        if self.parts.metrics.pause(reason) {
            events::intake_paused(reason);
        }
        let retry_at = now + PAUSE_REST;
        self.pause
            .get_or_insert(Pause {
                since: now,
                retry_at,
            })
            .retry_at = retry_at;
    }

    fn resume(&mut self) {
        if self.short.is_some() {
            return;
        }
        self.pause = None;
        if self.parts.metrics.resume() {
            events::intake_resumed();
        }
    }

    // ---- the end of `--once` ----

    fn is_done(&mut self) -> Result<bool, Failure> {
        if let Some(pause) = &self.pause {
            if pause.since.elapsed() >= ONCE_PAUSE_MAX {
                return Err(Failure::new(
                    Exit::Io,
                    "take in files from",
                    &self.first_input(),
                    self.parts.metrics.pause_reason().unwrap_or_default(),
                    "free space or raise the limit; nothing is lost, start again afterwards",
                ));
            }
            return Ok(false);
        }
        let busy = self.is_scanning() || !self.ready.is_empty() || self.in_flight > 0;
        if busy || Instant::now() < self.next_bookkeeping {
            return Ok(false);
        }
        let now = Instant::now();
        self.next_bookkeeping = now + BOOKKEEPING_REST;
        let stuck = self.entries.iter().enumerate().all(|(input, entries)| {
            let stability = self.parts.inputs[input].settings.stability;
            let patience = ONCE_PATIENCE_MIN.max(3 * stability);
            entries.values().all(|entry| match entry.state {
                State::InFlight { .. } => false,
                State::Waiting { due: None, .. } => true,
                State::Waiting { .. } => entry
                    .restless_since
                    .is_some_and(|since| now.saturating_duration_since(since) > patience),
            })
        });
        if !stuck {
            return Ok(false);
        }
        // What came while the rest was worked on counts as present, also where nobody reports it.
        let make_up = |walks: &Walks| walks.due || walks.make_up_at.is_some();
        let hears_of_all = (0..self.walks.len()).all(|input| self.hears_of_all(input));
        if self.walks.iter().any(make_up) || !(self.looked_around || hears_of_all) {
            self.looked_around = true;
            self.next_rescan = now;
            self.walks.iter_mut().for_each(|walks| walks.next = now);
            return Ok(false);
        }
        Ok(true)
    }

    fn list_leftovers(&self) {
        for (input, entries) in self.entries.iter().enumerate() {
            for (path, entry) in entries {
                if let State::Waiting { why, .. } = entry.state {
                    let path = self.parts.inputs[input].absolute(path);
                    events::leftover(&path, why.as_str());
                }
            }
        }
    }

    // ---- waiting ----

    fn keep_books(&mut self) {
        let metrics = &self.parts.metrics;
        if metrics.pending.get() != self.pending {
            metrics.pending.set(self.pending);
        }
        let depth = self.parts.candidates.depth() as u64;
        metrics.queue_depth.store(depth, Ordering::Relaxed);
        if !self.parts.once {
            let now = Instant::now();
            if now >= self.next_bookkeeping {
                self.next_bookkeeping = now + 20 * BOOKKEEPING_REST;
                events::tell_of_suppressed(false);
                let entries = self.entries.iter().flat_map(HashMap::values);
                metrics.set_oldest_pending(entries.map(|entry| entry.file.first_seen).min());
            }
        }
    }

    fn wait(&self) {
        let timeout = self.time_to_wait();
        if timeout == Some(Duration::ZERO) {
            return;
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let bell = self.parts.verdicts.bell();
        let bell = bell.as_fd();
        let mut fds = vec![PollFd::new(&bell, PollFlags::IN)];
        let inotify = self.watcher.as_ref().map(Watcher::fd);
        if let Some(inotify) = &inotify {
            fds.push(PollFd::new(inotify, PollFlags::IN));
        }
        // An error or a signal is as good as a wake-up.
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    }

    fn time_to_wait(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = |at: Instant| at.saturating_duration_since(now);
        if let Some(pause) = &self.pause {
            return Some(until(pause.retry_at).max(FULL_QUEUE_POLL));
        }
        let scans = (0..self.walks.len()).any(|input| self.can_scan(input));
        if !self.ready.is_empty() && (!scans || self.is_queue_full()) {
            return Some(FULL_QUEUE_POLL);
        }
        if self.is_scanning() || self.walks.iter().any(Walks::may_begin) {
            return Some(Duration::ZERO);
        }
        let make_up = self.walks.iter().filter_map(|walks| walks.make_up_at);
        let mut next = make_up
            .min()
            .map_or(self.next_rescan, |at| at.min(self.next_rescan));
        if let Some(Reverse((due, _, _))) = self.timers.peek() {
            next = next.min(*due);
        }
        if let Some(at) = self.opens_at(now) {
            next = next.min(at);
        }
        if self.is_short() {
            next = next.min(now + SHARE_POLL);
        }
        if self.parts.once {
            next = next.min(now + BOOKKEEPING_REST);
        }
        if events::are_suppressed() {
            next = next.min(now + events::LINES_WITHIN);
        }
        Some(until(next))
    }
}

/// Whether a file waits for nothing but a scan, or has failed for long.
fn waits_for_a_walk(entry: &Entry) -> bool {
    match entry.state {
        State::Waiting { due: None, .. } => true,
        State::Waiting { why, .. } => {
            entry.tries > TRIES_MAX && matches!(why, Waiting::Unreadable | Waiting::HeldOpen)
        }
        State::InFlight { .. } => false,
    }
}

/// Whether files of an input may have to wait however little there is to do for others: for a command that takes its time, or for memory
/// that large documents have.
fn may_wait_long(input: &Input) -> bool {
    let rules = &input.settings.content;
    rules.command.is_some() || rules.gathers()
}

/// Whether one of these files will be tried for want of room.
fn finds_out_about_room(entries: &HashMap<Arc<Path>, Entry>) -> bool {
    let soon = Instant::now() + PAUSE_REST;
    let waits = |entry: &Entry| match entry.state {
        State::Waiting {
            due: Some(due),
            why: Waiting::Turn,
        } => entry.no_room.is_some() && due <= soon,
        _ => false,
    };
    entries.values().any(waits)
}

/// What something that is no regular file is. Directories are nothing odd.
fn describe(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::Directory => None,
        FileType::Symlink => Some("a symbolic link"),
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        FileType::BlockDevice => Some("a block device"),
        FileType::CharacterDevice => Some("a character device"),
        _ => Some("not a regular file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_symbolic_link_leads_to_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::fs::write(dir.path().join("real/file"), "x").unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let root = open::root_dir(dir.path()).unwrap();
        let size = |path: &str| {
            let seen = open::stat_beneath(&root, Path::new(path)).unwrap();
            seen.map(|seen| seen.identity.size)
        };
        assert_eq!(size("real/file"), Some(1));
        assert_eq!(size("link/file"), None);
        assert_eq!(size("real/other"), None);
        assert_eq!(size("none/file"), None);
        assert_eq!(size("real/file/below"), None);
    }

    #[test]
    fn only_a_file_that_will_be_tried_keeps_a_pause_going() {
        let path: Arc<Path> = Path::new("file").into();
        let finds_out = |no_room: bool, due, why| {
            let now = Instant::now();
            let entry = Entry {
                file: Unsettled::new(crate::io::Identity::default(), now),
                owner: 0,
                state: State::Waiting { due, why },
                copy: false,
                proof: Proof::Settled,
                tries: 0,
                tries_for: why,
                no_room: no_room.then_some(now),
                restless_since: None,
                settled_at: now,
                heard: None,
            };
            finds_out_about_room(&HashMap::from([(Arc::clone(&path), entry)]))
        };
        let soon = Some(Instant::now());
        assert!(finds_out(true, soon, Waiting::Turn));
        assert!(!finds_out(false, soon, Waiting::Turn));
        let late = soon.map(|soon| soon + NO_ROOM_REST_MAX);
        assert!(!finds_out(true, late, Waiting::Turn));
        assert!(!finds_out(true, soon, Waiting::Still));
        assert!(!finds_out(true, None, Waiting::Links));
        assert!(!finds_out_about_room(&HashMap::new()));
    }
}
