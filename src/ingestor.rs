//! Wiring: which thread does what, and how they start and end. Nothing else.
//!
//! ```text
//!   main ── waits for the others        signals ── SIGTERM, SIGINT
//!   discover ──▶ reader 0..R ──▶ record      leases, log, reporter, control: beside the flow, never waited on
//! ```
//!
//! Ending runs down the flow: discovery closes the queue of candidates, the readers finish and end, the queue of staged
//! files is closed, the recorder finishes and closes the session.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::failure::{Exit, Failure};
use crate::io::clock::WallClock;
use crate::io::disk::Handle;
use crate::io::{Identity, RealDisk, Reserve, descriptors, lease_keeper, priority};
use crate::ledger::SourceId;
use crate::ledger::lmdb::Lmdb;
use crate::observe::control::ControlSocket;
use crate::observe::metrics::{Metrics, State};
use crate::observe::reporter::Reporter;
use crate::observe::{events, log, systemd};
use crate::pipeline::discover::{Discoverer, DiscovererParts, ONCE_PAUSE_MAX};
use crate::pipeline::queue::{Budget, Queue};
use crate::pipeline::read::checks::Checks;
use crate::pipeline::read::inspect::DOCUMENT_BYTES_MAX;
use crate::pipeline::read::method::Methods;
use crate::pipeline::read::{Governor, Large, Pace, Reader, ReaderShared};
use crate::pipeline::record::{Finished, KeptSet, Place, Recorder, RecorderParts};
use crate::pipeline::{Candidate, Input, Staged, Verdicts};
use crate::session::{self, Session, Suspicion};
use crate::settings::{Durability, IoChoice, IoPriority, Order, Settings};
use crate::trial::points;

/// Settled files that wait for a reader at most.
const QUEUE_FILES: usize = 4096;
/// How long files in flight may take once ringest is asked to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Rest of a reader that panicked for the first time; it doubles with each time.
const PANIC_REST: Duration = Duration::from_secs(1);
/// Longest rest of a reader: the file that makes it panic is met again and again.
const PANIC_REST_MAX: Duration = Duration::from_secs(60);
/// Batches that are durable and wait to be reported.
const BATCHES_REPORTED: usize = 1;
/// Descriptors kept for everything that is not a staged file; among that are those of files that readers have open, up to four
/// of each.
const SPARE_DESCRIPTORS: u64 = 256 + 4 * 128;
/// A commit for fewer files than that costs more than the files do.
const BATCH_FILES_FEW: usize = 64;

/// What the main thread hears.
enum Message {
    /// The discoverer ended.
    Discovered(Result<(), Failure>),
    /// A reader ended.
    ReaderEnded,
    /// A thread that runs commands ended.
    CheckerEnded,
    /// The recorder ended.
    Recorded(Result<Box<Recorder<RealDisk, Lmdb>>, Failure>),
    /// Something failed for good.
    Failed(Failure),
    /// A signal to stop came.
    Stop(&'static str),
}

/// Takes files until told to stop or, with `--once`, until nothing more can settle. `doubts` are about the settings.
pub fn run(settings: &Settings, doubts: &[String], version: &str) -> Result<(), Failure> {
    let ended = run_session(settings, doubts, version);
    if let Err(failure) = &ended
        && failure.suspect
    {
        // Only who held the locks can have failed to sync, at whatever moment between start and end.
        session::raise_suspicion(&settings.state_path, true);
    }
    ended
}

fn run_session(settings: &Settings, doubts: &[String], version: &str) -> Result<(), Failure> {
    let descriptors = descriptors::raise_limit();
    let (sender, messages) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(sender.clone(), Arc::clone(&stop))?;
    let (session, ledger) = Session::open(settings)?;
    // Not before it is open: who finds everything locked says that and nothing else.
    for doubt in doubts {
        events::settings_doubtful(doubt);
    }
    match Flow::start(
        settings,
        session,
        ledger,
        version,
        descriptors,
        sender,
        stop,
    ) {
        Ok(flow) => flow.wait(&messages),
        Err(failure) if failure.exit == Exit::Done => {
            events::stopped("asked to stop while waiting for room", 0, 0);
            Ok(())
        }
        Err(failure) => Err(failure),
    }
}

/// The running threads and what they share.
struct Flow {
    candidates: Arc<Queue<Candidate>>,
    governor: Arc<Governor>,
    staged: Arc<Queue<Staged<Handle>>>,
    verdicts: Arc<Verdicts>,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
    state: Arc<AtomicU8>,
    readers: Arc<AtomicUsize>,
    checkers: Arc<AtomicUsize>,
    checks: Arc<Checks>,
    reader_threads: Vec<JoinHandle<()>>,
    reporter: Reporter,
    control: Option<ControlSocket>,
    /// Keeps the directories locked to the end.
    _session: Session,
}

impl Flow {
    fn start(
        settings: &Settings,
        mut session: Session,
        ledger: Lmdb,
        version: &str,
        descriptors: u64,
        sender: Sender<Message>,
        stop: Arc<AtomicBool>,
    ) -> Result<Flow, Failure> {
        let state_path = &settings.state_path;
        let failed = |operation: &str, error: std::io::Error| {
            Failure::io(operation.to_string(), state_path, &error)
        };
        let in_order = |input: &&Arc<Input>| input.settings.order != Order::Arrival;
        let in_order = session.inputs.iter().filter(in_order).count();
        let checks = Arc::new(Checks::new(&session.inputs));
        let left = descriptors.saturating_sub(checks.descriptors());
        let batch_files = batch_files(settings.batch_files, left, in_order > 0);
        if batch_files < settings.batch_files.min(BATCH_FILES_FEW) {
            events::settings_doubtful(&few_descriptors(
                settings.batch_files,
                batch_files,
                descriptors,
                checks.descriptors(),
            ));
        }
        let metrics = Arc::new(Metrics::new());
        metrics.restore(session.opening.totals);
        let kept = Arc::new(KeptSet::default());
        for entry in ledger.kept()? {
            kept.add(&entry);
            let input = session.inputs.iter().find(|input| input.id == entry.source);
            if let Some(input) = input
                && entry.is_owed_in(&input.dir)
            {
                metrics.owes_removal(&input.absolute(&entry.path));
            }
        }
        let candidates = Arc::new(Queue::new(QUEUE_FILES));
        let staged = Arc::new(Queue::new(batch_files));
        let verdicts = Verdicts::new().map_err(|error| failed("make an eventfd for", error))?;
        let lease_signal = lease_keeper::start()
            .map_err(|error| failed("start the keeper of leases for", error))?;
        let leases = session.inputs.iter().any(|input| input.leases);
        let disk = RealDisk {
            durable: settings.durability == Durability::Full,
            syncfs: session.syncfs,
            lease_signal: leases.then_some(lease_signal),
        };

        // Recovery comes before everything that could see its files.
        let mut recorder = Recorder::new(
            RecorderParts {
                disk,
                ledger,
                clock: Arc::new(WallClock),
                warehouse: place(&session.warehouse),
                manifests: place(&session.manifests),
                inputs: input_dirs(&session),
                claimed_from: claimed_from(&session),
                sources: session.sources.clone(),
                kept: Arc::clone(&kept),
                metrics: Arc::clone(&metrics),
                batch_files,
                suspect: session.suspicion.is_some(),
                stop: Arc::clone(&stop),
                pause_max: settings.once.then_some(ONCE_PAUSE_MAX),
                ctimes: session.ctimes,
            },
            &session.opening,
        );
        let recovery = recorder.recover(&session.opening)?;
        if !session.opening.clean || recovery != events::Recovered::default() {
            events::recovery_summary(&recovery);
        }
        // What is still to be done there is done; what could not be waits where it is.
        let owed = recorder.owed_paths()?;
        for input in &session.inputs {
            if let Some(claims) = &input.claim {
                let owed = owed.get(&input.id);
                let stays = |path: &Path, identity: &Identity| {
                    owed.is_some_and(|owed| owed.contains(path))
                        || kept.contains(input.id, path, identity)
                };
                let returned = claims.give_all_back(stays)?;
                points::reached("claims_returned");
                events::claims_returned(&claims.path, &claims.input_path, returned);
            }
        }
        let suspicion = session.suspicion.map(Suspicion::until_now);
        recorder.begin_session()?;

        let governor = Governor::new(settings.concurrency, Arc::clone(&metrics));
        let readers = governor.threads();
        let reserve = Arc::new(Reserve::new(
            settings.min_free_bytes,
            (
                session.warehouse.path.clone(),
                Arc::clone(&session.warehouse.dir),
            ),
            [&session.manifests, &session.state]
                .map(|place| (place.path.clone(), Arc::clone(&place.dir)))
                .into(),
        ));
        let failures = sender.clone();
        let shared = Arc::new(ReaderShared {
            candidates: Arc::clone(&candidates),
            large: Arc::new(Large::new(QUEUE_FILES)),
            governor: Arc::clone(&governor),
            pace: Pace::new(settings.max_bytes_per_second),
            idle: AtomicUsize::new(0),
            checks: Arc::clone(&checks),
            staged: Arc::clone(&staged),
            warehouse: Arc::clone(&session.warehouse.dir),
            reserve: Arc::clone(&reserve),
            io: match settings.disable.uring {
                true => IoChoice::Sync,
                false => settings.io,
            },
            methods: Methods::new(settings),
            hash_lanes: settings.hash_lanes,
            unnamed_copies: !settings.disable.tmpfile,
            suspicion,
            disk,
            lease_signal,
            stopping: Arc::clone(&stop),
            metrics: Arc::clone(&metrics),
            failed: Box::new(move |failure| {
                let _ = failures.send(Message::Failed(failure));
            }),
        });
        let living = Arc::new(AtomicUsize::new(readers));
        let (reader_threads, io) =
            start_readers(readers, settings.io_priority, &shared, &living, &sender)
                .map_err(|error| failed("start a reader for", error))?;
        let checkers = start_checkers(&shared, &sender)
            .map_err(|error| failed("start a thread for check_command for", error))?;
        start_recorder(recorder, Arc::clone(&staged), sender.clone())
            .map_err(|error| failed("start the recorder for", error))?;

        let reporter = Reporter::start(
            Arc::clone(&metrics),
            settings.metrics_interval,
            session.hlog.take(),
        );
        let state = Arc::new(AtomicU8::new(RUNNING));
        let control = start_control(settings, &metrics, &state);
        // Whoever was told that it has started is heard.
        let mut discoverer = Discoverer::new(DiscovererParts {
            inputs: session.inputs.clone(),
            candidates: Arc::clone(&candidates),
            staged: Arc::clone(&staged),
            document_memory: Budget::new(readers as u64 * DOCUMENT_BYTES_MAX as u64),
            held_back_max: batch_files / in_order.max(1),
            verdicts: Arc::clone(&verdicts),
            kept,
            reserve,
            metrics: Arc::clone(&metrics),
            stop: Arc::clone(&stop),
            once: settings.once,
            rescan: settings.rescan,
        });
        events::started(&events::Started {
            version,
            pid: std::process::id(),
            sources: &session
                .inputs
                .iter()
                .map(|input| {
                    let source = &input.settings;
                    let mode = source.mode.as_str();
                    (source.name.as_str(), source.input.as_path(), mode)
                })
                .collect::<Vec<_>>(),
            warehouse: &settings.warehouse,
            manifests: &settings.manifests,
            state_path,
            readers: governor.readers(),
            io,
        });
        governor.announce();
        spawn("discover", move || {
            let ended = or_abort(|| discoverer.run());
            let _ = sender.send(Message::Discovered(ended));
        })
        .map_err(|error| failed("start the discoverer for", error))?;
        systemd::ready();
        Ok(Flow {
            candidates,
            governor,
            staged,
            verdicts,
            metrics,
            stop,
            state,
            readers: living,
            checkers,
            checks,
            reader_threads,
            reporter,
            control,
            _session: session,
        })
    }

    /// Waits for the end, whatever brings it, and winds down in the order of the flow.
    fn wait(mut self, messages: &Receiver<Message>) -> Result<(), Failure> {
        let mut outcome: Result<(), Failure> = Ok(());
        let mut reason = "done";
        let mut deadline: Option<Instant> = None;
        let recorder = loop {
            let message = match deadline {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => messages.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match message {
                Ok(Message::Stop(signal)) => {
                    reason = signal;
                    self.begin_stop();
                    deadline.get_or_insert(Instant::now() + STOP_PATIENCE);
                }
                Ok(Message::Discovered(ended)) => {
                    self.state.store(DRAINING, Ordering::Relaxed);
                    if let Err(failure) = ended {
                        outcome = Err(failure);
                        self.begin_stop();
                        deadline.get_or_insert(Instant::now() + STOP_PATIENCE);
                    }
                    self.candidates.close();
                    self.governor.close();
                }
                Ok(Message::ReaderEnded) => {
                    if self.readers.load(Ordering::Acquire) == 0 {
                        self.checks.close();
                        self.close_staged_if_all_ended();
                    }
                }
                Ok(Message::CheckerEnded) => self.close_staged_if_all_ended(),
                Ok(Message::Recorded(Ok(recorder))) => break Some(recorder),
                // What waited for room waits for the next start.
                Ok(Message::Recorded(Err(failure))) if failure.exit == Exit::Done => break None,
                Ok(Message::Recorded(Err(failure)) | Message::Failed(failure)) => {
                    return Err(failure);
                }
                // What is in flight took too long: the next start recovers it.
                Err(RecvTimeoutError::Timeout) => break None,
                Err(RecvTimeoutError::Disconnected) => break None,
            }
        };
        systemd::stopping();
        // Nobody may ask a session that is being closed.
        drop(self.control.take());
        let numbers = self.metrics.status(State::Stopped);
        if let Some(recorder) = recorder {
            // They have nothing open any more. But a ring's worker threads must have ended with it before anybody stops this
            // process (SIGSTOP): else both wait for each other, and it does not stop (Linux 6.18).
            for thread in self.reader_threads.drain(..) {
                let _ = thread.join();
            }
            recorder.close(serde_json::to_string(&numbers).unwrap_or_default())?;
        }
        let processed = self.metrics.processed();
        self.reporter.final_summary();
        events::stopped(reason, processed.files, processed.bytes);
        outcome
    }

    /// Nothing more is staged without readers, and those that run commands for them.
    fn close_staged_if_all_ended(&self) {
        let living = [&self.readers, &self.checkers].map(|it| it.load(Ordering::Acquire));
        if living == [0, 0] {
            self.staged.close();
        }
    }

    fn begin_stop(&self) {
        self.state.store(DRAINING, Ordering::Relaxed);
        self.stop.store(true, Ordering::Release);
        self.verdicts.ring();
    }
}

const RUNNING: u8 = 0;
const DRAINING: u8 = 1;

fn start_control(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    state: &Arc<AtomicU8>,
) -> Option<ControlSocket> {
    let path = settings.control_socket();
    let (metrics, state) = (Arc::clone(metrics), Arc::clone(state));
    let bound = ControlSocket::bind(&path, move || {
        let state = match state.load(Ordering::Relaxed) {
            RUNNING => State::Running,
            _ => State::Draining,
        };
        serde_json::to_string(&metrics.status(state)).unwrap_or_default()
    });
    match bound {
        Ok(control) => Some(control),
        Err(error) => {
            let cause = format!("cannot listen at {}: {error}", path.display());
            events::fallback("control socket", &cause, "status reads the ledger");
            None
        }
    }
}

fn start_readers(
    readers: usize,
    priority: IoPriority,
    shared: &Arc<ReaderShared>,
    living: &Arc<AtomicUsize>,
    sender: &Sender<Message>,
) -> std::io::Result<(Vec<JoinHandle<()>>, &'static str)> {
    let (opened, engines) = channel();
    let mut threads = Vec::with_capacity(readers);
    for number in 0..readers {
        let (shared, living) = (Arc::clone(shared), Arc::clone(living));
        let (sender, opened) = (sender.clone(), opened.clone());
        let thread = thread::Builder::new().name(format!("reader {number}"));
        let thread = thread.spawn(move || {
            // What one may not, none may.
            if let Err(error) = priority::set_own(priority)
                && number == 0
            {
                let cause = error.to_string();
                events::fallback("I/O priority", &cause, "readers have that of the process");
            }
            // A ring belongs to the thread that made it.
            let mut opened = Some(opened);
            read_until_closed(&shared, &mut opened, &sender);
            living.fetch_sub(1, Ordering::AcqRel);
            let _ = sender.send(Message::ReaderEnded);
        })?;
        threads.push(thread);
    }
    drop(opened);
    let mut io = "uring";
    let mut told = false;
    while let Ok(fallback) = engines.recv() {
        if let Some(cause) = fallback {
            io = "sync";
            if !told {
                told = true;
                events::fallback("io_uring", &cause, "plain system calls");
            }
        }
    }
    if shared.io == IoChoice::Sync {
        io = "sync";
    }
    Ok((threads, io))
}

/// Starts the threads that run commands for files that were read. Returns how many live.
fn start_checkers(
    shared: &Arc<ReaderShared>,
    sender: &Sender<Message>,
) -> std::io::Result<Arc<AtomicUsize>> {
    let threads = shared.checks.threads();
    let living = Arc::new(AtomicUsize::new(threads.len()));
    for checks in threads {
        let (shared, living, sender) = (Arc::clone(shared), Arc::clone(&living), sender.clone());
        spawn("check", move || {
            checks.run(&shared);
            living.fetch_sub(1, Ordering::AcqRel);
            let _ = sender.send(Message::CheckerEnded);
        })?;
    }
    Ok(living)
}

/// Runs a reader; one that panics starts again after a rest. Its files are discovered again.
fn read_until_closed(
    shared: &Arc<ReaderShared>,
    opened: &mut Option<Sender<Option<String>>>,
    sender: &Sender<Message>,
) {
    let mut rest = PANIC_REST;
    loop {
        let ran = catch_unwind(AssertUnwindSafe(|| -> Result<(), Failure> {
            let fail = |error: &std::io::Error| Failure {
                exit: Exit::Unavailable,
                operation: "read through io_uring".into(),
                path: None,
                cause: error.to_string(),
                remedy: "use --io auto or --io sync".into(),
                suspect: false,
            };
            let (mut reader, fallback) =
                Reader::new(Arc::clone(shared)).map_err(|error| fail(&error))?;
            if let Some(opened) = opened.take() {
                let _ = opened.send(fallback.map(|error| error.to_string()));
            }
            reader.run().map_err(|error| fail(&error))
        }));
        match ran {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => {
                opened.take();
                let _ = sender.send(Message::Failed(failure));
                return;
            }
            // The panic hook has told.
            Err(_) => {
                let awake = Instant::now() + rest;
                let ending =
                    || shared.stopping.load(Ordering::Acquire) || shared.candidates.is_closed();
                // An end does not wait for a reader that only rests.
                loop {
                    thread::sleep(PANIC_REST / 10);
                    if Instant::now() >= awake || ending() {
                        break;
                    }
                }
                rest = (rest * 2).min(PANIC_REST_MAX);
            }
        }
    }
}

fn start_recorder(
    mut recorder: Recorder<RealDisk, Lmdb>,
    staged: Arc<Queue<Staged<Handle>>>,
    sender: Sender<Message>,
) -> std::io::Result<()> {
    let (finished, batches) = sync_channel::<Finished<Handle>>(BATCHES_REPORTED);
    let (told, all_told) = channel::<()>();
    spawn("report", move || {
        or_abort(|| batches.iter().for_each(Finished::report));
        drop(told);
    })?;
    recorder.report_by(Some(Box::new(move |batch| {
        finished.send(batch).expect("it ends after the recorder");
    })));
    spawn("record", move || {
        // Half a commit must not go on.
        let ended = or_abort(|| recorder.run(&staged));
        recorder.report_by(None);
        // Everything durable has been told of when its end is.
        let _ = all_told.recv();
        let ended = ended.map(|()| Box::new(recorder));
        let _ = sender.send(Message::Recorded(ended));
    })
}

/// Runs a thread that there is only one of. Without it the process would live on and do nothing; recovery at the next
/// start is what is proved.
fn or_abort<T>(run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        // The panic hook has told.
        log::flush();
        std::process::abort()
    })
}

/// The first signal sets `stop`, also while nobody reads messages yet.
fn watch_signals(sender: Sender<Message>, stop: Arc<AtomicBool>) -> Result<(), Failure> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
    // A write beyond RLIMIT_FSIZE is an error of that write, not the end of the process.
    let ignored = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, ignored).map_err(Failure::signals)?;
    let signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGUSR1]);
    let mut signals = signals.map_err(Failure::signals)?;
    spawn("signals", move || {
        let mut asked = false;
        for signal in signals.forever() {
            if signal == SIGUSR1 {
                log::reopen();
                continue;
            }
            if asked {
                log::flush();
                std::process::exit(128 + signal);
            }
            asked = true;
            stop.store(true, Ordering::Release);
            let name = if signal == SIGTERM {
                "SIGTERM"
            } else {
                "SIGINT"
            };
            if sender.send(Message::Stop(name)).is_err() {
                return;
            }
        }
    })
    .map_err(Failure::signals)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map(drop)
}

fn place(locked: &session::Locked) -> Place<RealDisk> {
    Place {
        dir: Arc::clone(&locked.dir),
        path: locked.path.clone(),
    }
}

fn input_dirs(session: &Session) -> HashMap<SourceId, Arc<std::os::fd::OwnedFd>> {
    session
        .inputs
        .iter()
        .map(|input| {
            let claim = input.claim.as_ref();
            let dir = claim.map_or(&input.dir, |claim| &claim.dir);
            (input.id, Arc::clone(dir))
        })
        .chain(session.former.iter().cloned())
        .collect()
}

/// Inputs whose files lie in a claim directory when they are recorded.
fn claimed_from(session: &Session) -> HashMap<SourceId, Arc<std::os::fd::OwnedFd>> {
    let claiming = session.inputs.iter().filter(|input| input.claim.is_some());
    claiming
        .map(|input| (input.id, Arc::clone(&input.dir)))
        .collect()
}

/// A staged file and its copy hold two descriptors; and there is a batch in the making, one in the queue, one parked, one that
/// owes something, one waiting to be reported and one being reported. In deep trees a batch has up to three directories open
/// for each file, and two more to do what is owed. If any source has an order, as many files as in a batch are held back for it.
fn batch_files(wanted: usize, descriptors: u64, in_order: bool) -> usize {
    let each = if in_order { 19 } else { 17 };
    let spare = SPARE_DESCRIPTORS.min(descriptors * 3 / 4);
    wanted.min(((descriptors - spare) / each).max(1) as usize)
}

/// Why batches are smaller than they were to be.
fn few_descriptors(wanted: usize, batch_files: usize, limit: u64, checks: u64) -> String {
    let checks = match checks {
        0 => String::new(),
        most => format!(", of which check_command may take {most}"),
    };
    format!(
        "batch_files is {wanted}, but the limit on open files ({limit}{checks}) allows batches of {batch_files}, which is \
         slower; raise it (LimitNOFILE=, ulimit -Hn)"
    )
}
