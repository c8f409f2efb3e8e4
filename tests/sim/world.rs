//! The world around the recorder: uploaders, readers, operators, crashes. What ringest itself does is the production
//! code; the reader is a model, since it talks to the kernel directly: it hashes with the production code what it reads
//! through the simulated disk.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringest::failure::{Exit, Failure};
use ringest::io::probe::Ctimes;
use ringest::io::{Disk, Timestamp};
use ringest::ledger::{Ledger, Outcome, Position, SourceId};
use ringest::observe::metrics::Metrics;
use ringest::pipeline::queue::Queue;
use ringest::pipeline::read::copy::Temporary;
use ringest::pipeline::read::digest;
use ringest::pipeline::record::{KeptSet, Place, Recorder, RecorderParts, Recovery, layout};
use ringest::pipeline::{Candidate, Copied, Fate, Finding, Input, Proof, Staged, Ticket, Verdicts};
use ringest::settings::{
    ContentRules, Dedupe, EmptyPolicy, Layout, LeasePolicy, Mode, OnDuplicate, Order, Source,
};

use crate::check::{self, Brought, Checked, Memory};
use crate::disk::{
    Crash, Crashed, Happening, Id, Image, Op, Role, SimDisk, SimFile, State, Survivors,
};
use crate::ledger::{SimLedger, Tables};
use crate::random::Random;
use crate::upload;

type SimRecorder = Recorder<SimDisk, SimLedger>;

/// One source of a world.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    pub fs: u8,
    pub dedupe: Dedupe,
    pub on_duplicate: OnDuplicate,
    pub leases: bool,
}

/// What does not change in a world.
#[derive(Debug, Clone)]
pub struct Config {
    pub sources: Vec<SourceConfig>,
    pub manifests_fs: u8,
    /// Whether copies may be unnamed files.
    pub unnamed: bool,
    pub batch_files: usize,
    /// Whether the first start after a power cut trusts the cache, which is empty then. ringest itself does not.
    pub trusts_reboot: bool,
    /// How long a process waits for room, with what it has begun.
    pub pause_max: Option<Duration>,
}

impl Config {
    pub fn random(random: &mut Random) -> Config {
        let sources = (0..1 + random.below(3))
            .map(|number| SourceConfig {
                fs: if random.percent(65) {
                    0
                } else {
                    2 + number as u8
                },
                dedupe: *random.pick(&[
                    Dedupe::Global,
                    Dedupe::Global,
                    Dedupe::Global,
                    Dedupe::Source,
                    Dedupe::Name,
                    Dedupe::Off,
                ]),
                on_duplicate: *random.pick(&[
                    OnDuplicate::Move,
                    OnDuplicate::Move,
                    OnDuplicate::Delete,
                    OnDuplicate::Delete,
                    OnDuplicate::Keep,
                ]),
                leases: random.percent(70),
            })
            .collect();
        Config {
            sources,
            manifests_fs: random.below(2) as u8,
            unnamed: random.percent(60),
            batch_files: 1 + random.below(12) as usize,
            trusts_reboot: random.percent(50),
            pause_max: random.percent(20).then_some(Duration::from_secs(3)),
        }
    }
}

/// What the simulated processes share and nobody looks at.
#[derive(Clone)]
pub struct Dummies {
    null: Arc<OwnedFd>,
    verdicts: Arc<Verdicts>,
    metrics: Arc<Metrics>,
}

impl Dummies {
    pub fn new() -> Dummies {
        Dummies {
            null: Arc::new(std::fs::File::open("/dev/null").expect("/dev/null").into()),
            verdicts: Verdicts::new().expect("an eventfd"),
            metrics: Arc::new(Metrics::new()),
        }
    }
}

/// How a process ended.
#[derive(Debug)]
pub enum End {
    Crashed(Crash),
    Failed(Failure),
    Violated(String),
}

/// A process: a recorder after its start.
pub struct Process {
    recorder: SimRecorder,
    kept: Arc<KeptSet>,
    inputs: Vec<Arc<Input>>,
    /// Files whose ctime is not later are read past the cache.
    suspect_until: Option<Timestamp>,
}

/// Which sources a start finds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Absent {
    /// No longer in the settings.
    pub former: Option<u16>,
    /// Not even there.
    pub gone: Option<u16>,
}

pub fn input_path(source: u16) -> PathBuf {
    format!("/in{source}").into()
}

/// Runs what a process does, up to its end if it ends.
pub fn guarded<T>(
    state: &Rc<RefCell<State>>,
    act: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, End> {
    let ended = catch_unwind(AssertUnwindSafe(act));
    let mut state = state.borrow_mut();
    match ended {
        Ok(Ok(value)) if !state.sync_failed => Ok(value),
        Ok(Ok(_)) => Err(End::Violated(
            "a failed sync did not end the program".into(),
        )),
        Ok(Err(failure)) => {
            let explained = state.errors > 0 || failure.exit == Exit::Config;
            Err(match state.sync_failed {
                true if failure.exit != Exit::Io || !failure.suspect => End::Violated(format!(
                    "a failed sync ended the program without suspicion: {failure}"
                )),
                false if !explained => {
                    End::Violated(format!("it failed without a cause: {failure}"))
                }
                _ => End::Failed(failure),
            })
        }
        Err(payload) if payload.is::<Crashed>() => {
            Err(match (state.violation.take(), state.crash.take()) {
                (None, Some(crash)) => End::Crashed(crash),
                (violation, _) => End::Violated(violation.unwrap_or_default()),
            })
        }
        Err(payload) => {
            let text = payload.downcast_ref::<String>().cloned();
            let text = text.or_else(|| Some(payload.downcast_ref::<&str>()?.to_string()));
            Err(End::Violated(format!(
                "it panicked: {}",
                text.unwrap_or_default()
            )))
        }
    }
}

/// One start: recovery, and the beginning of a session.
pub fn start(
    state: &Rc<RefCell<State>>,
    config: &Config,
    dummies: &Dummies,
    suspect: bool,
    absent: Absent,
) -> Result<(Process, Recovery), End> {
    state.borrow_mut().suspect = suspect;
    guarded(state, || {
        let mut ledger = SimLedger(state.clone());
        let opening = ledger.open_session()?;
        dummies.metrics.restore(opening.totals);
        let kept = Arc::new(KeptSet::default());
        let (parts, inputs) = {
            let state_ref = state.borrow();
            for entry in state_ref.ledger.kept() {
                kept.add(&entry);
            }
            let root = |role| state_ref.image.roots[&role];
            let place = |role, path: &str| Place {
                dir: root(role),
                path: path.into(),
            };
            let numbers = 1..=config.sources.len() as u16;
            let dirs: HashMap<SourceId, Id> = numbers
                .clone()
                .filter(|&number| absent.gone != Some(number))
                .map(|number| (SourceId(number), root(Role::Source(number))))
                .collect();
            let inputs: Vec<Arc<Input>> = numbers
                .filter(|&number| absent.gone != Some(number) && absent.former != Some(number))
                .map(|number| Arc::new(input(&state_ref.image, config, dummies, number)))
                .collect();
            let parts = RecorderParts {
                disk: SimDisk(state.clone()),
                ledger,
                clock: state_ref.clock.clone(),
                warehouse: place(Role::Warehouse, "/warehouse"),
                manifests: place(Role::Manifests, "/manifests"),
                inputs: dirs,
                claimed_from: HashMap::new(),
                sources: opening.sources.clone(),
                kept: kept.clone(),
                metrics: dummies.metrics.clone(),
                batch_files: config.batch_files,
                suspect,
                stop: Arc::default(),
                pause_max: config.pause_max,
                ctimes: Ctimes::Exact,
            };
            (parts, inputs)
        };
        let mut recorder = Recorder::new(parts, &opening);
        let recovery = recorder.recover(&opening)?;
        let now = state.borrow().image.now;
        let suspect_until = suspect.then(|| Timestamp {
            seconds: 1_700_000_000 + (now / 1_000_000_000) as i64,
            nanos: (now % 1_000_000_000) as u32,
        });
        recorder.begin_session()?;
        let process = Process {
            recorder,
            kept,
            inputs,
            suspect_until,
        };
        Ok((process, recovery))
    })
}

fn input(image: &Image, config: &Config, dummies: &Dummies, number: u16) -> Input {
    let source = &config.sources[usize::from(number) - 1];
    let role = Role::Source(number);
    Input {
        id: SourceId(number),
        settings: Source {
            name: format!("in{number}"),
            input: input_path(number),
            mode: Mode::Stability,
            stability: Duration::ZERO,
            sidecar_suffix: upload::SIDECAR.into(),
            recursive: true,
            include: None,
            exclude: None,
            ignore_suffixes: Vec::new(),
            empty: EmptyPolicy::Ingest,
            order: Order::Arrival,
            lease: LeasePolicy::Auto,
            dedupe: source.dedupe,
            on_duplicate: source.on_duplicate,
            content: ContentRules::default(),
            layout: match number {
                // Every second one keeps an archive with times, and what is bad beside it.
                2 => Layout {
                    partition: "archive".parse().expect("a template"),
                    placed_name: "{name}.{timestamp}".parse().expect("a template"),
                    quarantine_dir: "returns".parse().expect("a template"),
                    ..Layout::default()
                },
                _ => Layout::default(),
            },
            claim_dir: None,
        },
        dir: dummies.null.clone(),
        root: image.stat(image.roots[&role]),
        leases: source.leases,
        inotify: false,
        copy: source.fs != 0,
        claim: None,
    }
}

/// A disk and a ledger before the first file.
pub fn found(config: &Config, state: &mut State) {
    state.image.add_root(Role::Warehouse, 0);
    state.image.add_root(Role::Manifests, config.manifests_fs);
    state.ledger.found("0123456789abcdef");
    for (at, source) in config.sources.iter().enumerate() {
        let number = at as u16 + 1;
        let role = Role::Source(number);
        state.image.add_root(role, source.fs);
        if !source.leases {
            state.image.unleased.insert(role);
        }
        state
            .ledger
            .source_id(&format!("in{number}"), &input_path(number));
    }
    let start = 1_760_000_000_000_000;
    state.clock.micros.store(start, Ordering::Relaxed);
}

impl Process {
    /// Reads up to `take` files that are waiting, and records them. Returns what must be copied from now on.
    pub fn round(
        &mut self,
        state: &Rc<RefCell<State>>,
        config: &Config,
        dummies: &Dummies,
        forced: &BTreeSet<(Role, PathBuf)>,
        take: usize,
        skip: usize,
    ) -> Result<Vec<(Role, PathBuf)>, End> {
        let mut waiting = self.waiting(&state.borrow().image);
        let middle = skip % waiting.len().max(1);
        waiting.rotate_left(middle);
        waiting.truncate(take);
        let Process {
            recorder,
            inputs,
            suspect_until,
            ..
        } = self;
        let ran = guarded(state, || {
            let queue = Arc::new(Queue::new(waiting.len().max(1)));
            for (role, path) in waiting {
                let Some(input) = inputs.iter().find(|input| Role::Source(input.id.0) == role)
                else {
                    continue;
                };
                let copy = input.copy || forced.contains(&(role, path.clone()));
                let staged = read(state, config, dummies, input, &path, copy, *suspect_until);
                if let Ok(Some(staged)) = staged {
                    let _ = queue.push(staged);
                }
            }
            queue.close();
            recorder.run(&queue)
        });
        let verdicts = dummies.verdicts.take();
        ran?;
        let mut state = state.borrow_mut();
        state.staged.clear();
        let image = &mut state.image;
        if let Some(dir) = image.find(Role::Warehouse, layout::TMP_DIR.as_ref(), false) {
            // Temporaries go when their owners are dropped.
            for (path, _) in image.files(Role::Warehouse, false) {
                if path.starts_with(layout::TMP_DIR) {
                    let _ = image.unlink(dir, path.file_name().unwrap_or_default());
                }
            }
        }
        let busy: Vec<Id> = image.uploaded(false).into_iter().collect();
        for id in busy {
            if image.inode(id).busy {
                image.edit(id).busy = false;
            }
        }
        Ok(verdicts
            .into_iter()
            .filter(|(_, _, fate)| *fate == Fate::NeedsCopy)
            .map(|(source, path, _)| (Role::Source(source.0), path.to_path_buf()))
            .collect())
    }

    /// Files that a scan would hand to the readers.
    fn waiting(&self, image: &Image) -> Vec<(Role, PathBuf)> {
        let files = upload::visible(image).into_iter();
        files
            .filter(|(role, path)| {
                let Some(id) = image.find(*role, path, false) else {
                    return false;
                };
                image.inode(id).links == 1 && !self.is_kept(image, *role, path, id)
            })
            .collect()
    }

    pub fn is_kept(&self, image: &Image, role: Role, path: &Path, id: Id) -> bool {
        let Role::Source(number) = role else {
            return false;
        };
        let identity = image.stat(id).identity;
        self.kept.contains(SourceId(number), path, &identity)
    }

    pub fn kept(&self) -> Arc<KeptSet> {
        self.kept.clone()
    }

    pub fn close(self, state: &Rc<RefCell<State>>) -> Result<(), End> {
        guarded(state, || self.recorder.close("{}".into()))
    }
}

/// The reader. An error concerns this file alone.
fn read(
    state: &Rc<RefCell<State>>,
    config: &Config,
    dummies: &Dummies,
    input: &Arc<Input>,
    path: &Path,
    copy: bool,
    suspect_until: Option<Timestamp>,
) -> std::io::Result<Option<Staged<SimFile>>> {
    let began = Instant::now();
    let disk = SimDisk(state.clone());
    let role = Role::Source(input.id.0);
    let root = state.borrow().image.roots[&role];
    let dir = disk.open_dir(&root, path.parent().unwrap_or(Path::new("")))?;
    let file = disk.open(&dir, path.file_name().unwrap_or_default())?;
    let stat = disk.stat_file(&file)?;
    match suspect_until.is_some_and(|until| stat.identity.ctime <= until) {
        true => state.borrow_mut().forget(file.id),
        false => state.borrow_mut().believe(file.id),
    }
    let mut bytes = vec![0; stat.identity.size as usize];
    disk.read_at(&file, &mut bytes, 0)?;
    let mut stream = digest::Stream::default();
    digest::update(&mut [(&mut stream, &bytes)]);
    let mut sidecar_name = path.file_name().unwrap_or_default().to_os_string();
    sidecar_name.push(upload::SIDECAR);
    let sidecar = disk
        .stat(&dir, &sidecar_name)?
        .map(|stat| (path.with_file_name(&sidecar_name), stat.identity));
    let copy = match copy {
        true => Some(write_copy(state, &disk, config, dummies, &bytes, file.id)?),
        false => None,
    };
    if disk.stat_file(&file)?.identity != stat.identity {
        return Ok(None);
    }
    let mut borrowed = state.borrow_mut();
    borrowed.staged.push(file.id);
    let bad = path.to_string_lossy().contains("bad");
    let ticket = Ticket::new(input.id, Arc::from(path), dummies.verdicts.clone());
    Ok(Some(Staged {
        candidate: Candidate {
            input: input.clone(),
            owner: 0,
            identity: stat.identity,
            proof: Proof::Settled,
            copy: copy.is_some(),
            seen_at: began,
            settled_at: began,
            turn: None,
            shares: Default::default(),
            ticket,
        },
        stat,
        digest: stream.finish(),
        file,
        copy,
        sidecar,
        finding: bad.then(|| Finding {
            rule: "bad".into(),
            message: "it says so".into(),
            position: Position::default(),
        }),
        counts: ringest::ledger::Counts::default(),
        read: (began, began),
    }))
}

fn write_copy(
    state: &Rc<RefCell<State>>,
    disk: &SimDisk,
    config: &Config,
    dummies: &Dummies,
    bytes: &[u8],
    source: Id,
) -> std::io::Result<Copied<SimFile>> {
    let warehouse = state.borrow().image.roots[&Role::Warehouse];
    let (file, temporary) = if config.unnamed {
        let mut state = state.borrow_mut();
        if let Some(errno) = state.event(Op::Create, || "make an unnamed file".into()) {
            return Err(errno.into());
        }
        let id = state.image.make_unnamed(Role::Warehouse)?;
        (SimFile::unleased(id), None)
    } else {
        let tmp = OsStr::new(layout::TMP_DIR);
        match disk.make_dir(&warehouse, tmp) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let dir = disk.open_dir(&warehouse, Path::new(tmp))?;
        let name = format!("{}-{}", source, state.borrow().events);
        let file = disk.create(&dir, OsStr::new(&name))?;
        // Its drop unlinks on the real disk, where there is nothing of that name; see `Process::round`.
        let null = dummies.null.try_clone()?;
        (file, Some(Temporary::new(null, name.into())))
    };
    disk.write_at(&file, bytes, 0)?;
    let mtime = state.borrow().image.inode(source).mtime;
    state.borrow_mut().image.set_mtime(file.id, mtime);
    let stat = disk.stat_file(&file)?;
    Ok(Copied {
        file,
        stat,
        temporary,
    })
}

/// What happens in a world, one after the other. Every step makes sense after any other, so that steps can be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A file arrives. Its content is a function of `tag`; 0 is empty.
    Put {
        source: u16,
        name: u8,
        tag: u32,
        sync: Sync,
        sidecar: bool,
    },
    /// The n-th file in staging is written to in place.
    Overwrite(u16),
    Withdraw(u16),
    /// The n-th file in staging is synced, with its directories.
    Fsync(u16),
    /// Somebody takes an ingested file out of the warehouse.
    DeleteStored(u16),
    /// The clock jumps.
    Clock(i64),
    /// Which sources are absent at the next starts.
    Absent(Absent),
    /// In the next round, after so many events.
    During(u32, Happening),
    /// In one of the next starts, after so many events.
    DuringStart(u32, Happening),
    /// Files are read and recorded.
    Round {
        take: u8,
        skip: u8,
    },
    /// The process ends by itself and starts again.
    Restart,
    /// The process ends between two rounds and starts again.
    Crash(Crash),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    Never,
    /// The bytes, not the name.
    Data,
    All,
}

/// What was done, for people.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub events: u64,
    pub kills: u64,
    pub cuts: u64,
    pub failures: u64,
    pub recoveries: u64,
    pub ingested: u64,
    pub duplicates: u64,
    pub quarantined: u64,
    pub undone: u64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts {
            events,
            kills,
            cuts,
            failures,
            recoveries,
            ingested,
            duplicates,
            quarantined,
            undone,
        } = self;
        write!(
            f,
            "{events} events, {kills} kills, {cuts} power cuts, {failures} failures, {recoveries} recoveries, {ingested} ingested, \
             {duplicates} duplicates, {quarantined} quarantined, {undone} undone"
        )
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.events += other.events;
        self.kills += other.kills;
        self.cuts += other.cuts;
        self.failures += other.failures;
        self.recoveries += other.recoveries;
        self.ingested += other.ingested;
        self.duplicates += other.duplicates;
        self.quarantined += other.quarantined;
        self.undone += other.undone;
    }
}

pub struct World {
    pub state: Rc<RefCell<State>>,
    config: Config,
    dummies: Dummies,
    process: Option<Process>,
    forced: BTreeSet<(Role, PathBuf)>,
    /// Whether suspicion was raised since the last boot.
    suspicion: bool,
    just_booted: bool,
    absent: Absent,
    memory: Memory,
    during: Vec<(u32, Happening)>,
    during_start: VecDeque<(u32, Happening)>,
    before: Vec<Brought>,
    pub counts: Counts,
}

pub fn content(tag: u32) -> Vec<u8> {
    match tag {
        0 => Vec::new(),
        tag => format!("content {tag}, ")
            .repeat(1 + tag as usize % 7)
            .into_bytes(),
    }
}

const NAMES: [&str; 8] = [
    "a.csv",
    "b.csv",
    "c",
    "sub/a.csv",
    "sub/deep/d",
    "bad.csv",
    "e.f.g",
    "sub/b",
];

impl World {
    pub fn new(seed: u64, config: Config, dummies: &Dummies) -> World {
        let mut state = State::new(seed);
        found(&config, &mut state);
        World {
            state: Rc::new(RefCell::new(state)),
            config,
            dummies: dummies.clone(),
            process: None,
            forced: BTreeSet::new(),
            suspicion: false,
            just_booted: false,
            absent: Absent::default(),
            memory: Memory::default(),
            during: Vec::new(),
            during_start: VecDeque::new(),
            before: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub fn step(&mut self, step: &Step) -> Checked {
        if self.state.borrow().trace {
            println!("== {step:?}");
        }
        match step {
            Step::Put {
                source,
                name,
                tag,
                sync,
                sidecar,
            } => {
                let number = 1 + source % self.config.sources.len() as u16;
                let role = Role::Source(number);
                let path = Path::new(NAMES[usize::from(*name) % NAMES.len()]);
                let mut state = self.state.borrow_mut();
                let image = &mut state.image;
                if let Some(id) = upload::put(image, role, path, &content(*tag)) {
                    match sync {
                        Sync::Never => {}
                        Sync::Data => image.sync_data(id),
                        Sync::All => image.promise(role, path),
                    }
                }
                if *sidecar {
                    let mut beside = path.as_os_str().to_os_string();
                    beside.push(upload::SIDECAR);
                    upload::put(image, role, Path::new(&beside), b"ok");
                }
            }
            Step::Overwrite(nth) => {
                if let Some((role, path)) = self.nth(*nth) {
                    let mut state = self.state.borrow_mut();
                    let bytes = format!("rewritten at event {}", state.events);
                    if let Some(id) = state.image.find(role, &path, false) {
                        state.image.overwrite(id, bytes.as_bytes());
                    }
                }
            }
            Step::Withdraw(nth) => {
                if let Some((role, path)) = self.nth(*nth) {
                    upload::remove(&mut self.state.borrow_mut().image, role, &path);
                }
            }
            Step::Fsync(nth) => {
                if let Some((role, path)) = self.nth(*nth) {
                    self.state.borrow_mut().image.promise(role, &path);
                }
            }
            Step::DeleteStored(nth) => self.delete_stored(*nth),
            Step::Clock(by) => {
                let state = self.state.borrow();
                state.clock.micros.fetch_add(*by, Ordering::Relaxed);
            }
            Step::Absent(absent) => self.absent = *absent,
            Step::During(after, what) => self.during.push((*after, *what)),
            Step::DuringStart(after, what) => self.during_start.push_back((*after, *what)),
            Step::Round { take, skip } => self.round((*take).into(), (*skip).into())?,
            Step::Restart => {
                self.ensure_started()?;
                self.before = check::brought(&self.state.borrow().image);
                if let Some(process) = self.process.take() {
                    self.state.borrow_mut().calm();
                    match process.close(&self.state) {
                        Ok(()) => self.state.borrow_mut().image.kill(),
                        Err(end) => self.ended(end)?,
                    }
                }
                self.ensure_started()?;
            }
            Step::Crash(crash) => {
                self.before = check::brought(&self.state.borrow().image);
                self.ended(End::Crashed(*crash))?;
                self.ensure_started()?;
            }
        }
        Ok(())
    }

    fn nth(&self, nth: u16) -> Option<(Role, PathBuf)> {
        let files = upload::visible(&self.state.borrow().image);
        let at = usize::from(nth) % files.len().max(1);
        files.into_iter().nth(at)
    }

    fn delete_stored(&mut self, nth: u16) {
        let mut state = self.state.borrow_mut();
        if self.process.is_none() || !state.ledger.intents().is_empty() {
            return;
        }
        let stored: Vec<_> = state
            .ledger
            .records()
            .into_iter()
            .filter_map(|record| match record.state {
                ringest::ledger::RecordState::Done { arrival, .. } => Some(arrival),
                ringest::ledger::RecordState::Void => None,
            })
            .filter(|arrival| arrival.outcome == Outcome::Ingest)
            .filter(|arrival| !self.memory.deleted.contains_key(&arrival.seq))
            .collect();
        let Some(arrival) = stored.get(usize::from(nth) % stored.len().max(1)) else {
            return;
        };
        let next_seq = state.ledger.next_seq();
        let dir = arrival.placed.parent().unwrap_or(Path::new(""));
        if let Some(dir) = state.image.find(Role::Warehouse, dir, false)
            && state
                .image
                .unlink(dir, arrival.placed.file_name().unwrap_or_default())
                .is_ok()
        {
            state.image.sync_dir(dir);
            self.memory.deleted.insert(arrival.seq, next_seq);
        }
    }

    fn round(&mut self, take: usize, skip: usize) -> Checked {
        self.ensure_started()?;
        {
            let mut state = self.state.borrow_mut();
            let now = state.events;
            state.due = self
                .during
                .drain(..)
                .map(|(after, what)| (now + u64::from(after), what))
                .collect();
        }
        self.before = check::brought(&self.state.borrow().image);
        let process = self.process.as_mut().expect("started");
        let ran = process.round(
            &self.state,
            &self.config,
            &self.dummies,
            &self.forced,
            take,
            skip,
        );
        self.state.borrow_mut().calm();
        match ran {
            Ok(forced) => {
                self.forced.extend(forced);
                let state = self.state.borrow();
                check::nothing_lost(&self.before, &state.image, &state.ledger)?;
                check::settled(&state, &mut self.memory)
            }
            Err(end) => self.ended(end),
        }
    }

    /// A process is over. What is durable now, and what is not?
    fn ended(&mut self, end: End) -> Checked {
        self.process = None;
        let crash = match end {
            End::Violated(what) => return Err(what),
            End::Crashed(crash) => crash,
            End::Failed(failure) => {
                self.counts.failures += 1;
                self.suspicion |= failure.suspect;
                if failure.exit == Exit::Config {
                    // The operator brings it back.
                    self.absent.gone = None;
                }
                let mut state = self.state.borrow_mut();
                if state.trace {
                    println!("       failed: {failure}");
                }
                // A journal that has aborted is there again after a reboot.
                match state.image.is_read_only() || state.random.percent(20) {
                    true => Crash::Cut(state.random.next()),
                    false => Crash::Kill,
                }
            }
        };
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        check::nothing_lost(&self.before, &state.image, &state.ledger)?;
        check::acknowledged(state, &self.memory)?;
        match crash {
            Crash::Kill => {
                self.counts.kills += 1;
                state.image.kill();
            }
            Crash::Cut(seed) => {
                self.counts.cuts += 1;
                let before = state.image.clone();
                state.image.cut(match seed % 8 {
                    0 | 1 => Survivors::None,
                    2 => Survivors::All,
                    _ => Survivors::Random(seed),
                });
                check::promises_kept(&before, &state.image, &state.ledger)?;
                upload::tidy(&mut state.image);
                self.suspicion = false;
                self.just_booted = true;
            }
        }
        check::acknowledged(state, &self.memory)?;
        self.before = check::brought(&state.image);
        state.begin_process();
        Ok(())
    }

    fn ensure_started(&mut self) -> Checked {
        let mut tries = 0;
        while self.process.is_none() {
            tries += 1;
            if tries > 30 {
                return Err("it does not start any more".into());
            }
            {
                let mut state = self.state.borrow_mut();
                state.begin_process();
                let unclean = !state.ledger.clean();
                self.suspicion |= unclean && !(self.just_booted && self.config.trusts_reboot);
                self.just_booted = false;
                let now = state.events;
                if let Some((after, what)) = self.during_start.pop_front() {
                    state.due.push((now + u64::from(after), what));
                }
            }
            self.before = check::brought(&self.state.borrow().image);
            match start(
                &self.state,
                &self.config,
                &self.dummies,
                self.suspicion,
                self.absent,
            ) {
                Ok((process, recovery)) => {
                    self.counts.recoveries += 1;
                    self.counts.undone += recovery.undone;
                    self.process = Some(process);
                    self.state.borrow_mut().calm();
                    self.recovered()?;
                }
                Err(end) => self.ended(end)?,
            }
        }
        Ok(())
    }

    /// What holds after every recovery; and recovering again changes nothing (I5).
    fn recovered(&mut self) -> Checked {
        let state = self.state.borrow();
        check::nothing_lost(&self.before, &state.image, &state.ledger)?;
        check::settled(&state, &mut self.memory)?;
        if state.errors > 0 || !state.ledger.owed().is_empty() && self.absent.gone.is_some() {
            return Ok(());
        }
        recovers_to_itself(&state, &self.config, &self.dummies, self.absent)
    }

    /// The end: no more faults, and everything that waits is taken.
    pub fn drain(&mut self) -> Checked {
        self.during.clear();
        self.during_start.clear();
        self.absent = Absent::default();
        // A start with every source there pays what is owed.
        self.step(&Step::Restart)?;
        let mut rounds = 0;
        loop {
            self.round(usize::MAX, 0)?;
            let state = self.state.borrow();
            let process = self
                .process
                .as_ref()
                .ok_or("it ended while nothing went wrong")?;
            if process.waiting(&state.image).is_empty() {
                break;
            }
            rounds += 1;
            if rounds > 20 {
                return Err(format!(
                    "it does not come to an end: {:?}",
                    process.waiting(&state.image)
                ));
            }
        }
        let process = self.process.take().expect("started");
        let kept = process.kept();
        match process.close(&self.state) {
            Ok(()) => {}
            Err(end) => return self.ended(end),
        }
        let mut state = self.state.borrow_mut();
        check::settled(&state, &mut self.memory)?;
        check::drained(&state, |role, path, id| {
            let Role::Source(number) = role else {
                return false;
            };
            kept.contains(SourceId(number), path, &state.image.stat(id).identity)
        })?;
        let totals = state.ledger.totals();
        self.counts.ingested = totals.ingested.files;
        self.counts.duplicates = totals.duplicate.files;
        self.counts.quarantined = totals.quarantined.files;
        self.counts.events = state.events;
        // And what was acknowledged survives the loss of everything that is not durable.
        state.image.cut(Survivors::None);
        check::settled(&state, &mut self.memory)
    }
}

/// I5: a second recovery finds nothing to do.
pub fn recovers_to_itself(
    state: &State,
    config: &Config,
    dummies: &Dummies,
    absent: Absent,
) -> Checked {
    let mut again = State::new(0);
    again.image = state.image.clone();
    again.ledger = state.ledger.clone();
    again.clock.micros.store(
        state.clock.micros.load(Ordering::Relaxed),
        Ordering::Relaxed,
    );
    again.image.kill();
    let tree = again.image.tree();
    let again = Rc::new(RefCell::new(again));
    match start(&again, config, dummies, true, absent) {
        Ok(_) => {}
        Err(end) => return Err(format!("I5: a second recovery ended with {end:?}")),
    }
    let again = again.borrow();
    if again.image.tree() != tree {
        return Err(format!(
            "I5: a second recovery turned {tree:#?} into {:#?}",
            again.image.tree()
        ));
    }
    same_tables(&state.ledger, &again.ledger)
}

fn same_tables(one: &Tables, other: &Tables) -> Checked {
    match one == other {
        true => Ok(()),
        false => Err(format!(
            "I5: a second recovery changed the ledger from {:#?} to {:#?}",
            one.opening(),
            other.opening()
        )),
    }
}
