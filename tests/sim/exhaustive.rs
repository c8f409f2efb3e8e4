//! The exhaustive core: small workloads, crashed everywhere.
//!
//! *Enumerated*: every multiset of one to three files (`RINGEST_SIM_FILES`) over the seven kinds of [`Kind`]; a crash of its batch before every event that
//! finds a new state (a crash between two events that change nothing leaves the same), as a kill and as power cuts; a crash of the recovery
//! from there, before each of its events likewise; then a recovery that is let be, and the drain. After both, every
//! invariant of [`check`](crate::check) is looked at, and that a further recovery changes nothing.
//!
//! *Power cuts*: nothing that was pending survives; all of it does; and every legal subset (each change of a name, each file's pending
//! bytes as a whole) while there are at most [`QUESTIONS_MAX`] of them, in the batch; in the recovery at most [`QUESTIONS_MAX_AGAIN`].
//!
//! *Sampled*: beyond these, [`SAMPLES`] random cuts, which tear blocks too. Within a multiset the files arrive in one order, that of
//! their kinds; the seeds vary it. Sources are leased, files are never synced by their uploaders.
//!
//! States that were reached before, by whatever way, are not looked at again.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringest::ledger::SourceId;
use ringest::pipeline::record::hidden::{Hidden, HiddenNames};
use ringest::pipeline::record::layout;
use ringest::settings::{Dedupe, OnDuplicate};

use crate::check::{self, Checked, Memory};
use crate::disk::{Fault, Happening, Image, Origin, Role, State, Survivors};
use crate::ledger::Tables;
use crate::upload;
use crate::world::{self, Absent, Config, Dummies, End, Process, SourceConfig, found, start};

const QUESTIONS_MAX: u32 = 6;
const QUESTIONS_MAX_AGAIN: u32 = 3;
const SAMPLES: u64 = 6;

/// What goes wrong once.
const FAULTS: [Fault; 10] = [
    Fault::Sync,
    Fault::Read,
    Fault::Look,
    Fault::Make,
    Fault::Full(1),
    Fault::Descriptors(1),
    Fault::ShortWrite,
    Fault::OtherFilesystem,
    Fault::Denied,
    Fault::Commit,
];

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    New,
    /// Its content is in the warehouse; duplicates are deleted.
    Duplicate,
    /// A file of the same name and content is in the warehouse; duplicates are moved.
    Resent,
    /// A file of the same name and another content is in the warehouse.
    Clash,
    /// It comes from another filesystem.
    Copied,
    /// It is written to once it is placed.
    Changed,
    /// It is taken away once its intent is committed.
    Withdrawn,
}

const KINDS: [Kind; 7] = [
    Kind::New,
    Kind::Duplicate,
    Kind::Resent,
    Kind::Clash,
    Kind::Copied,
    Kind::Changed,
    Kind::Withdrawn,
];

/// Sources: duplicates moved, duplicates deleted, another filesystem.
fn config() -> Config {
    let source = |fs, on_duplicate| SourceConfig {
        fs,
        dedupe: Dedupe::Global,
        on_duplicate,
        leases: true,
    };
    Config {
        sources: vec![
            source(0, OnDuplicate::Move),
            source(0, OnDuplicate::Delete),
            source(2, OnDuplicate::Move),
        ],
        manifests_fs: 1,
        unnamed: true,
        batch_files: 12,
        trusts_reboot: true,
        pause_max: Some(Duration::from_secs(3)),
    }
}

/// A state of disk and ledger between two processes, and what must not be lost from it.
#[derive(Clone)]
struct Stopped {
    image: Image,
    ledger: Tables,
    /// Whether the cache may show what the disk does not hold.
    suspect: bool,
}

fn hash(stopped: &Stopped) -> u64 {
    let mut hasher = DefaultHasher::new();
    stopped.image.hash(&mut hasher);
    std::hash::Hash::hash(&stopped.ledger, &mut hasher);
    hasher.write_u8(stopped.suspect.into());
    hasher.finish()
}

#[derive(Debug, Clone, Copy, Default)]
struct Numbers {
    workloads: u64,
    states: u64,
    again: u64,
    recoveries: u64,
}

struct Explorer {
    config: Config,
    dummies: Dummies,
    /// States from which a recovery that is let be was seen to end well.
    good: HashSet<u64>,
    /// What is remembered of the manifests before the workload.
    memory: Memory,
    numbers: Numbers,
}

impl Explorer {
    fn new() -> Explorer {
        Explorer {
            config: config(),
            dummies: Dummies::new(),
            good: HashSet::new(),
            memory: Memory::default(),
            numbers: Numbers::default(),
        }
    }

    fn state(&self, image: &Image, ledger: &Tables) -> Rc<RefCell<State>> {
        let mut state = State::new(1);
        state.image = image.clone();
        state.ledger = ledger.clone();
        // What may be left then is more.
        state.syncs_first_percent = 0;
        let now = 1_760_000_000_000_000;
        state.clock.micros.store(now, Ordering::Relaxed);
        Rc::new(RefCell::new(state))
    }

    /// Everything that a crash at a moment can leave.
    fn crashes(&self, image: &Image, ledger: &Tables, questions_max: u32) -> Vec<Stopped> {
        let mut left = Vec::new();
        let mut killed = image.clone();
        killed.kill();
        left.push(Stopped {
            image: killed,
            ledger: ledger.clone(),
            suspect: true,
        });
        let mut cut = |survivors| {
            let mut image = image.clone();
            image.cut(survivors);
            left.push(Stopped {
                image,
                ledger: ledger.clone(),
                suspect: false,
            });
        };
        let questions = image.questions();
        if questions <= questions_max {
            (0..1 << questions).for_each(|bits| cut(Survivors::Bits(bits)));
        } else {
            cut(Survivors::None);
            cut(Survivors::All);
        }
        if questions > 0 {
            (0..SAMPLES).for_each(|seed| cut(Survivors::Random(seed)));
        }
        left
    }

    /// A process that has taken files before, and a batch of these kinds in staging.
    fn arrange(&self, kinds: &[Kind]) -> Result<(Rc<RefCell<State>>, Process, Memory), String> {
        let mut fresh = State::new(1);
        found(&self.config, &mut fresh);
        let state = self.state(&fresh.image, &fresh.ledger);
        let put = |role, name: &str, bytes: &[u8]| {
            upload::put(&mut state.borrow_mut().image, role, Path::new(name), bytes).expect("room")
        };
        let moved = Role::Source(1);
        let started = start(
            &state,
            &self.config,
            &self.dummies,
            false,
            Absent::default(),
        );
        let (mut process, _) = started.map_err(told)?;
        put(moved, "old", b"old content, more than a block of it");
        put(moved, "clash", b"first of that name");
        self.round(&state, &mut process, &mut BTreeSet::new())
            .map_err(told)?;
        let mut memory = Memory::default();
        check::settled(&state.borrow(), &mut memory)?;
        state.borrow_mut().image.sync_everything();
        for (at, kind) in kinds.iter().enumerate() {
            let own = format!("f{at}");
            let bytes = format!("content of file {at}");
            let bytes = bytes.as_bytes();
            let old: &[u8] = b"old content, more than a block of it";
            match kind {
                Kind::New => drop(put(moved, &own, bytes)),
                Kind::Duplicate => drop(put(Role::Source(2), &own, old)),
                // Only one can have the name; the others come in directories.
                Kind::Resent => drop(put(moved, &format!("{}old", "d/".repeat(at)), old)),
                Kind::Clash => drop(put(moved, &format!("{}clash", "d/".repeat(at)), bytes)),
                Kind::Copied => drop(put(Role::Source(3), &own, bytes)),
                Kind::Changed => {
                    let id = put(moved, &own, bytes);
                    state.borrow_mut().on_placed.push(id);
                }
                Kind::Withdrawn => {
                    put(moved, &own, bytes);
                    state
                        .borrow_mut()
                        .withdraw_on_intents
                        .push((moved, own.into()));
                }
            }
        }
        Ok((state, process, memory))
    }

    /// One batch of everything that waits. What must be copied from now on is added to `forced`.
    fn round(
        &self,
        state: &Rc<RefCell<State>>,
        process: &mut Process,
        forced: &mut BTreeSet<(Role, PathBuf)>,
    ) -> Result<(), End> {
        let now_forced = process.round(state, &self.config, &self.dummies, forced, 12, 0)?;
        forced.extend(now_forced);
        Ok(())
    }

    /// The first moment of a batch of one file at which the ledger is as wanted.
    fn first(&self, kind: Kind, wanted: impl Fn(&Tables) -> bool) -> (Image, Tables) {
        let (moments, _) = self.batch(&[kind]).expect("a batch");
        let mut moments = moments.into_iter();
        let first = moments.find(|(_, ledger)| wanted(ledger));
        first.expect("such a moment")
    }

    /// A batch of these kinds, up to its end. Returns the states on the way.
    fn batch(&self, kinds: &[Kind]) -> Result<(Vec<(Image, Tables)>, Memory), String> {
        let (state, mut process, mut memory) = self.arrange(kinds)?;
        state.borrow_mut().snapshots = Some(Vec::new());
        self.round(&state, &mut process, &mut BTreeSet::new())
            .map_err(told)?;
        let mut state = state.borrow_mut();
        check::settled(&state, &mut memory)?;
        let mut snapshots = state.snapshots.take().unwrap_or_default();
        snapshots.push((state.image.clone(), state.ledger.clone()));
        Ok((snapshots, Memory::default()))
    }

    /// Lets a process take what is left and end. `before` must not be lost.
    fn drain(
        &self,
        state: &Rc<RefCell<State>>,
        mut process: Process,
        before: &[check::Brought],
        memory: &mut Memory,
    ) -> Checked {
        let mut forced = BTreeSet::new();
        for _ in 0..3 {
            self.round(state, &mut process, &mut forced)
                .map_err(|end| format!("drain: {}", told(end)))?;
        }
        let kept = process.kept();
        let closed = process.close(state);
        closed.map_err(|end| format!("close: {}", told(end)))?;
        let mut state = state.borrow_mut();
        let state = &mut *state;
        check::nothing_lost(before, &state.image, &state.ledger)?;
        for survivors in [None, Some(Survivors::None)] {
            if let Some(survivors) = survivors {
                state.image.cut(survivors);
            }
            check::settled(state, memory)?;
            check::drained(state, |role, path, id| match role {
                Role::Source(number) => {
                    let identity = state.image.stat(id).identity;
                    kept.contains(SourceId(number), path, &identity)
                }
                _ => false,
            })?;
        }
        Ok(())
    }

    /// A recovery. Returns the states on the way, if they are wanted.
    fn recover(
        &mut self,
        stopped: &Stopped,
        on_the_way: bool,
    ) -> Result<Vec<(Image, Tables)>, String> {
        self.numbers.recoveries += 1;
        let state = self.state(&stopped.image, &stopped.ledger);
        if on_the_way {
            state.borrow_mut().snapshots = Some(Vec::new());
        }
        let before = check::brought(&stopped.image);
        let none = Absent::default();
        let started = start(&state, &self.config, &self.dummies, stopped.suspect, none);
        let (process, _) = started.map_err(|end| format!("recovery: {}", told(end)))?;
        let snapshots = state.borrow_mut().snapshots.take().unwrap_or_default();
        let mut memory = self.memory.clone();
        {
            let state = state.borrow();
            check::nothing_lost(&before, &state.image, &state.ledger)?;
            check::settled(&state, &mut memory)?;
            world::recovers_to_itself(&state, &self.config, &self.dummies, none)?;
        }
        self.drain(&state, process, &before, &mut memory)?;
        Ok(snapshots)
    }

    fn explore(&mut self, kinds: &[Kind]) -> Checked {
        let (moments, memory) = self.batch(kinds)?;
        self.memory = memory;
        self.numbers.workloads += 1;
        for (at, (image, ledger)) in moments.iter().enumerate() {
            for stopped in self.crashes(image, ledger, QUESTIONS_MAX) {
                self.explore_crash(&stopped).map_err(|what| {
                    let how = if stopped.suspect { "kill" } else { "cut" };
                    format!("{kinds:?}, {how} at state {at}: {what}")
                })?;
            }
        }
        Ok(())
    }

    /// Recovers, and crashes every recovery everywhere.
    fn explore_crash(&mut self, stopped: &Stopped) -> Checked {
        if !self.good.insert(hash(stopped)) {
            return Ok(());
        }
        self.numbers.states += 1;
        let on_the_way = self.recover(stopped, true)?;
        for (again, (image, ledger)) in on_the_way.iter().enumerate() {
            for second in self.crashes(image, ledger, QUESTIONS_MAX_AGAIN) {
                if !self.good.insert(hash(&second)) {
                    continue;
                }
                self.numbers.again += 1;
                let how = if second.suspect { "kill" } else { "cut" };
                self.recover(&second, false)
                    .map_err(|what| format!("{how} again at {again}: {what}"))?;
            }
        }
        Ok(())
    }

    /// A batch in which something goes wrong once, at or after its event number `after`. False once it has fewer.
    fn fault_in_batch(&mut self, kinds: &[Kind], fault: Fault, after: u64) -> Result<bool, String> {
        let (state, mut process, mut memory) = self.arrange(kinds)?;
        let due = {
            let mut state = state.borrow_mut();
            let due = state.events + after;
            state.due.push((due, Happening::Fault(fault)));
            due
        };
        let before = check::brought(&state.borrow().image);
        let ran = self.round(&state, &mut process, &mut BTreeSet::new());
        let came = state.borrow().events >= due;
        self.goes_on(&state, ran.map(|()| process), &before, &mut memory)?;
        Ok(came)
    }

    /// The same for a recovery.
    fn fault_in_recovery(
        &mut self,
        stopped: &Stopped,
        fault: Fault,
        after: u64,
    ) -> Result<bool, String> {
        let state = self.state(&stopped.image, &stopped.ledger);
        state
            .borrow_mut()
            .due
            .push((after, Happening::Fault(fault)));
        let before = check::brought(&stopped.image);
        let (config, dummies) = (&self.config, &self.dummies);
        let started = start(&state, config, dummies, stopped.suspect, Absent::default());
        let came = state.borrow().events >= after;
        let started = started.map(|(process, _)| process);
        self.goes_on(&state, started, &before, &mut self.memory.clone())?;
        Ok(came)
    }

    /// Starts, each time with an error at another event, and takes what is in staging; the next start must find nothing wrong. Returns
    /// how many debts were left by them all.
    fn starts_with(&mut self, stopped: &Stopped, fault: Fault) -> usize {
        let mut stayed = 0;
        for after in 0.. {
            let state = self.state(&stopped.image, &stopped.ledger);
            let due = (after, Happening::Fault(fault));
            state.borrow_mut().due.push(due);
            let before = check::brought(&stopped.image);
            let (config, dummies) = (&self.config, &self.dummies);
            let started = start(&state, config, dummies, stopped.suspect, Absent::default());
            let came = state.borrow().events >= after;
            state.borrow_mut().calm();
            let outlived = started.and_then(|(mut process, _)| {
                stayed += state.borrow().ledger.owed().len();
                self.round(&state, &mut process, &mut BTreeSet::new())?;
                Ok(process)
            });
            let went_on = self.goes_on(&state, outlived, &before, &mut Memory::default());
            assert_eq!(went_on, Ok(()), "event {after}");
            if !came {
                break;
            }
        }
        stayed
    }

    /// What an error left is done by the next start, whether the process outlived it or not.
    fn goes_on(
        &mut self,
        state: &Rc<RefCell<State>>,
        outlived: Result<Process, End>,
        before: &[check::Brought],
        memory: &mut Memory,
    ) -> Checked {
        let suspect = match outlived {
            Ok(process) => {
                check::settled(&state.borrow(), memory)?;
                state.borrow_mut().calm();
                process.close(state).map_err(told)?;
                false
            }
            Err(End::Failed(_)) => !state.borrow().image.is_read_only(),
            Err(end) => return Err(told(end)),
        };
        let stopped = {
            let state = state.borrow();
            check::nothing_lost(before, &state.image, &state.ledger)?;
            let mut image = state.image.clone();
            // A journal that has aborted is there again after a reboot.
            match image.is_read_only() {
                true => image.cut(Survivors::None),
                false => image.kill(),
            }
            Stopped {
                image,
                ledger: state.ledger.clone(),
                suspect,
            }
        };
        match self.good.insert(hash(&stopped)) {
            true => self.recover(&stopped, false).map(|_| ()),
            false => Ok(()),
        }
    }

    /// Everything that can go wrong, at every event of a batch and of every recovery from a kill in it.
    fn explore_faults(&mut self, kinds: &[Kind]) -> Checked {
        self.numbers.workloads += 1;
        let (moments, memory) = self.batch(kinds)?;
        self.memory = memory;
        for fault in FAULTS {
            let told = format!("{kinds:?}, {fault:?}");
            for after in 0.. {
                let came = self.fault_in_batch(kinds, fault, after);
                self.numbers.states += 1;
                if !came.map_err(|what| format!("{}, event {after}: {what}", told))? {
                    break;
                }
            }
            for (at, (image, ledger)) in moments.iter().enumerate() {
                let stopped = self.crashes(image, ledger, 0).swap_remove(0);
                for after in 0.. {
                    let came = self.fault_in_recovery(&stopped, fault, after);
                    self.numbers.again += 1;
                    let came = came
                        .map_err(|what| format!("{}, kill at {at}, event {after}: {what}", told))?;
                    if !came {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

fn told(end: End) -> String {
    match end {
        End::Violated(what) => what,
        End::Failed(failure) => failure.to_string(),
        End::Crashed(crash) => format!("{crash:?}"),
    }
}

/// Every multiset of up to `most` kinds, small ones first.
fn workloads(most: usize) -> Vec<Vec<Kind>> {
    let mut all: Vec<Vec<Kind>> = Vec::new();
    let mut last: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..most {
        let mut longer = Vec::new();
        for chosen in &last {
            let from = chosen.last().copied().unwrap_or(0);
            longer.extend((from..KINDS.len()).map(|kind| [chosen.as_slice(), &[kind]].concat()));
        }
        all.extend(
            longer
                .iter()
                .map(|list| list.iter().map(|&kind| KINDS[kind]).collect()),
        );
        last = longer;
    }
    all
}

/// Explores workloads on all cores.
fn explore_all(
    workloads: &[Vec<Kind>],
    explore: impl Fn(&mut Explorer, &[Kind]) -> Checked + Sync,
) -> Numbers {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<String>> = Mutex::new(None);
    let total = Mutex::new(Numbers::default());
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut explorer = Explorer::new();
                while let Some(kinds) = workloads.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(what) = explore(&mut explorer, kinds) {
                        next.store(workloads.len(), Ordering::Relaxed);
                        failed.lock().unwrap().get_or_insert(what);
                    }
                    explorer.good.clear();
                }
                let mut total = total.lock().unwrap();
                let numbers = explorer.numbers;
                total.workloads += numbers.workloads;
                total.states += numbers.states;
                total.again += numbers.again;
                total.recoveries += numbers.recoveries;
            });
        }
    });
    if let Some(what) = failed.into_inner().unwrap() {
        panic!("{what}");
    }
    let total = *total.lock().unwrap();
    assert_eq!(total.workloads as usize, workloads.len());
    total
}

#[test]
fn every_small_workload_survives_a_crash_everywhere_and_another_one_during_recovery() {
    let files = crate::seeds::number("RINGEST_SIM_FILES", 3) as usize;
    let began = Instant::now();
    let total = explore_all(&workloads(files), Explorer::explore);
    crate::counts::say(&format!(
        "{} workloads of up to {files} files: {} states after a crash, {} after another during recovery, {} recoveries; {:.1?}",
        total.workloads,
        total.states,
        total.again,
        total.recoveries,
        began.elapsed()
    ));
}

/// Where each file is a batch, and what one owes is done while the bytes of the next are synced.
#[test]
fn every_small_workload_in_batches_of_one_survives_a_crash_everywhere_and_another_one_during_recovery()
 {
    let files = crate::seeds::number("RINGEST_SIM_BATCHES", 2) as usize;
    let began = Instant::now();
    let total = explore_all(&workloads(files), |explorer, kinds| {
        explorer.config.batch_files = 1;
        explorer.explore(kinds)
    });
    crate::counts::say(&format!(
        "{} workloads of up to {files} batches: {} states after a crash, {} after another during recovery, {} recoveries; {:.1?}",
        total.workloads,
        total.states,
        total.again,
        total.recoveries,
        began.elapsed()
    ));
}

#[test]
fn every_small_workload_survives_every_fault_at_every_event_and_in_every_recovery() {
    let files = crate::seeds::number("RINGEST_SIM_FAULT_FILES", 2) as usize;
    let began = Instant::now();
    let total = explore_all(&workloads(files), Explorer::explore_faults);
    crate::counts::say(&format!(
        "{} workloads of up to {files} files, {} kinds of faults: {} in a batch, {} in a recovery; {:.1?}",
        total.workloads,
        FAULTS.len(),
        total.states,
        total.again,
        began.elapsed()
    ));
}

/// What the source of an arrival is called on its way out.
fn hidden_name(ledger: &Tables, seq: u64) -> OsString {
    let opening = ledger.opening();
    HiddenNames::new(&opening.uuid, Some(&opening.secret)).name(Hidden::Leaving, seq)
}

/// A recovery was on its way to remove the source name of a file that a power cut had left under both names, and was
/// killed; then somebody wrote to the file, or a newer one took its name, or both. What gets its name back there has it for
/// good.
#[test]
fn a_hidden_source_gets_its_name_back_for_good() {
    for (changed, newer) in [(true, false), (false, true), (true, true)] {
        let told = format!("changed: {changed}, newer: {newer}");
        let mut explorer = Explorer::new();
        let (mut image, ledger) = explorer.first(Kind::New, |ledger| !ledger.intents().is_empty());
        let intent = &ledger.intents()[0];
        let staging = image.roots[&Role::Source(1)];
        let parent = intent.placed.parent().expect("a partition");
        let partition = image.find(Role::Warehouse, parent, false).expect("made");
        let name = intent.path.file_name().expect("a name");
        let hidden = hidden_name(&ledger, intent.seq);
        let file = image.child(staging, name, false).expect("in staging");
        image.link(file, partition, name).expect("free");
        image.rename(staging, name, staging, &hidden).expect("free");
        if changed {
            image.overwrite(file, b"changed, and of another size");
        }
        if newer {
            upload::put(&mut image, Role::Source(1), &intent.path, b"newer").expect("room");
        }
        image.sync_everything();
        for stopped in explorer.crashes(&image, &ledger, QUESTIONS_MAX) {
            assert_eq!(explorer.explore_crash(&stopped), Ok(()), "{told}");
        }
        assert!(explorer.numbers.again > 0);
        let killed = explorer.crashes(&image, &ledger, 0).swap_remove(0);
        for fault in FAULTS {
            for after in 0.. {
                let came = explorer.fault_in_recovery(&killed, fault, after);
                if !came.unwrap_or_else(|what| panic!("{told}, {fault:?}, event {after}: {what}")) {
                    break;
                }
            }
        }
    }
}

/// A recovery removes a hidden source that was recorded, and may not; its own name has gone to a newer file.
#[test]
fn a_source_that_cannot_be_removed_is_kept_under_the_name_that_it_gets_back() {
    let explorer = Explorer::new();
    let (mut image, ledger) = explorer.first(Kind::Copied, |ledger| !ledger.owed().is_empty());
    let owed = &ledger.owed()[0];
    let (source, name) = (Role::Source(3), owed.path.file_name().expect("a name"));
    let staging = image.roots[&source];
    let hidden = hidden_name(&ledger, owed.seq);
    image.rename(staging, name, staging, &hidden).expect("free");
    upload::put(&mut image, source, &owed.path, b"newer").expect("room");
    image.kill();
    let state = explorer.state(&image, &ledger);
    state.borrow_mut().happen(Happening::Fault(Fault::Denied));
    let (config, dummies) = (&explorer.config, &explorer.dummies);
    let started = start(&state, config, dummies, true, Absent::default());
    let (mut process, _) = started.map_err(told).expect("a start");
    for _ in 0..2 {
        let ran = process.round(&state, config, dummies, &BTreeSet::new(), 12, 0);
        ran.map_err(told).expect("a round");
    }
    let state = state.borrow();
    assert_eq!(check::settled(&state, &mut Memory::default()), Ok(()));
    let numbered = layout::numbered(name, owed.seq);
    assert!(
        state
            .image
            .find(source, Path::new(&numbered), false)
            .is_some()
    );
    assert_eq!(state.image.find(source, &owed.path, false), None);
    assert_eq!(state.ledger.kept()[0].path, Path::new(&numbered));
}

/// A copy is recorded, its source could not be removed and was given its name back, and a kill came before that was
/// noted. Its bytes would be taken a second time.
fn given_back(explorer: &mut Explorer) -> Stopped {
    explorer.config.sources[2].dedupe = Dedupe::Off;
    let (mut image, ledger) = explorer.first(Kind::Copied, |ledger| !ledger.owed().is_empty());
    let owed = &ledger.owed()[0];
    let name = owed.path.file_name().expect("a name");
    let staging = image.roots[&Role::Source(3)];
    let hidden = hidden_name(&ledger, owed.seq);
    image.rename(staging, name, staging, &hidden).expect("free");
    image.rename(staging, &hidden, staging, name).expect("free");
    image.kill();
    Stopped {
        image,
        ledger,
        suspect: true,
    }
}

#[test]
fn a_recorded_source_that_cannot_be_read_stays_owed_and_is_not_taken_again() {
    let mut explorer = Explorer::new();
    let stopped = given_back(&mut explorer);
    let stayed = explorer.starts_with(&stopped, Fault::Read);
    assert!(stayed > 1, "when it was opened and when it was read");
}

#[test]
fn a_recorded_source_that_cannot_be_looked_at_is_not_taken_whatever_a_cut_left_of_it() {
    let mut explorer = Explorer::new();
    let (image, ledger) = explorer.first(Kind::Copied, |ledger| !ledger.owed().is_empty());
    let crashes = explorer.crashes(&image, &ledger, QUESTIONS_MAX);
    for stopped in &crashes {
        assert!(explorer.starts_with(stopped, Fault::Look) > 0);
    }
}

/// Its state is not known to be on the disk, so it cannot be what it is known by.
#[test]
fn a_source_that_can_neither_be_removed_nor_opened_stays_owed_through_a_power_cut() {
    let mut explorer = Explorer::new();
    let (mut kept, mut stayed) = (0, 0);
    for after in 0.. {
        let (state, mut process, memory) = explorer.arrange(&[Kind::Copied]).expect("a start");
        explorer.memory = memory;
        let due = {
            let mut state = state.borrow_mut();
            let (now, due) = (state.events, state.events + after);
            let denied = Happening::Fault(Fault::Denied);
            state.due.push((now, denied));
            state.due.push((due, Happening::Fault(Fault::Read)));
            due
        };
        let ran = explorer.round(&state, &mut process, &mut BTreeSet::new());
        ran.map_err(told).expect("it goes on");
        let state = state.borrow();
        kept += state.ledger.kept().len();
        stayed += state.ledger.owed().len();
        for stopped in explorer.crashes(&state.image, &state.ledger, QUESTIONS_MAX) {
            let recovered = explorer.recover(&stopped, false).map(|_| ());
            assert_eq!(recovered, Ok(()), "event {after}");
        }
        if state.events < due {
            break;
        }
    }
    assert!(kept > 0, "it could be opened");
    assert!(stayed > 0, "it could not");
}

/// Who has it open has more to say than what was recorded.
#[test]
fn a_recorded_source_that_somebody_has_open_is_an_arrival() {
    let mut explorer = Explorer::new();
    let stopped = given_back(&mut explorer);
    let recorded = stopped.ledger.records().len();
    let state = explorer.state(&stopped.image, &stopped.ledger);
    state.borrow_mut().happen(Happening::Hold(0));
    let (config, dummies) = (&explorer.config, &explorer.dummies);
    let started = start(&state, config, dummies, stopped.suspect, Absent::default());
    let (mut process, _) = started.map_err(told).expect("a start");
    assert_eq!(state.borrow().ledger.owed(), []);
    // It can be read from the second round on.
    for _ in 0..3 {
        let ran = explorer.round(&state, &mut process, &mut BTreeSet::new());
        ran.map_err(told).expect("a round");
    }
    let state = state.borrow();
    assert_eq!(check::settled(&state, &mut Memory::default()), Ok(()));
    assert_eq!(state.ledger.records().len(), recorded + 1);
}

/// Another inode has the place of the stored copy, from a backup perhaps: its bytes decide.
#[test]
fn a_duplicate_waits_while_the_stored_copy_cannot_be_read() {
    let explorer = Explorer::new();
    let old: &[u8] = b"old content, more than a block of it";
    for after in 0.. {
        let (state, mut process, _) = explorer.arrange(&[Kind::Duplicate]).expect("a start");
        let due = {
            let mut state = state.borrow_mut();
            let state = &mut *state;
            let image = &mut state.image;
            let mut stored = image.files(Role::Warehouse, false).into_iter();
            let stored = stored.find(|(_, id)| image.data(*id).cache == old);
            let (path, _) = stored.expect("the first copy");
            let parent = path.parent().expect("a partition");
            let dir = image.find(Role::Warehouse, parent, false).expect("made");
            let name = path.file_name().expect("a name");
            image.unlink(dir, name).expect("it is there");
            let restored = image.make_file(dir, name, Origin::Recorder).expect("room");
            image.write(restored, 0, old);
            image.sync_everything();
            let due = state.events + after;
            state.due.push((due, Happening::Fault(Fault::Read)));
            due
        };
        let mut came = false;
        for round in 0..3 {
            let ran = explorer.round(&state, &mut process, &mut BTreeSet::new());
            ran.map_err(told).expect("a round");
            came |= round == 0 && state.borrow().events >= due;
        }
        let state = state.borrow();
        assert_eq!(
            state.image.files(Role::Source(2), false),
            [],
            "event {after}"
        );
        assert_eq!(state.ledger.totals().ingested.files, 2, "event {after}");
        if !came {
            break;
        }
    }
}
