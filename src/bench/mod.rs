//! `ringest bench`: makes a data set, has it ingested by `ringest run` in a process of its own, and reports what that took.
//!
//! ```text
//! dataset ──files──▶ staging ──▶ ringest run --once ──▶ its interval log, its events ──▶ Report
//! pace    ──a file when its time comes──▶ ringest run ──▶ when each line was durable ──▶ Report
//! ```
//!
//! What is measured is the program as it is used: the same binary, started with `run`, with the settings that were given.
//! A process of its own, so that making the data set costs it neither processor time nor memory. It ends with the bench,
//! however that ends.

// It makes and removes directories and files of its own, none of which anybody relies on.
#![allow(clippy::disallowed_methods)]

mod dataset;
mod ingest;
mod pace;
mod progress;
mod report;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hdrhistogram::Histogram;

pub use dataset::{DataSet, FILE_BYTES_MIN, FILES_MAX};
pub use pace::Pace;
pub use progress::Progress;
pub use report::{Paced, Report};

use crate::failure::{Exit, Failure};
use crate::io::probe;
use crate::ledger::lmdb::Lmdb;
use crate::observe::hlog::{self, Hlog};
use crate::settings::{Mode, Settings};
use ingest::Ingest;
use pace::Measured;

/// Filesystems that have no disk beneath, and so no cold files.
const MEMORY_FILESYSTEMS: [&str; 2] = ["tmpfs", "ramfs"];

/// What to do.
#[derive(Debug)]
pub struct Bench {
    /// The files.
    pub data: DataSet,
    /// When they come; `None`: all are there before ingestion starts.
    pub pace: Option<Pace>,
    /// Where everything happens. Made, and removed afterwards.
    pub root: PathBuf,
    /// Where the warehouse is when it is on another filesystem. Made, and removed afterwards.
    pub elsewhere: Option<PathBuf>,
    /// Nothing is removed afterwards.
    pub keep: bool,
    /// Where the latencies are appended to, as an interval log.
    pub hlog: Option<PathBuf>,
    /// What the ingestor is started with, after `ringest run`.
    pub arguments: Vec<OsString>,
    /// What it makes of these arguments.
    pub settings: Settings,
}

/// Runs it. `None`: it was interrupted.
pub fn run(bench: &Bench, progress: &mut Progress) -> Result<Option<Report>, Failure> {
    let interrupted = watch_signals()?;
    let mut ground = Ground::prepare(bench)?;
    let report = measure(bench, progress, &interrupted);
    progress.clear();
    ground.after = match &report {
        Ok(Some(_)) => After::Report,
        Ok(None) => After::Interruption,
        Err(_) => After::Failure,
    };
    report
}

fn measure(
    bench: &Bench,
    progress: &mut Progress,
    interrupted: &AtomicBool,
) -> Result<Option<Report>, Failure> {
    if let Some(path) = &bench.hlog {
        // Before minutes of work, not after.
        hlog::append(&[], path)?;
    }
    let staging = &bench.settings.sources[0].input;
    let bench_io =
        |what: &'static str| move |error: io::Error| Failure::io(what, &bench.root, &error);

    let (ended, pace) = match &bench.pace {
        None => {
            let made = bench.data.make(staging, progress, interrupted);
            if !made.map_err(bench_io("make the files of"))? {
                return Ok(None);
            }
            let mut ingest = start(bench, false)?;
            progress.begin("ingesting", bench.data.files);
            while ingest.next().is_some() {
                progress.ask(&bench.settings.control_socket());
                if interrupted.load(Ordering::Relaxed) {
                    ingest.stop();
                }
            }
            (ingest.end()?, None)
        }
        Some(pace) => {
            let prepared = bench.root.join("prepared");
            fs::create_dir(&prepared).map_err(bench_io("make a directory in"))?;
            if !bench.data.dirty {
                let made = bench.data.make(&prepared, progress, interrupted);
                if !made.map_err(bench_io("make the files of"))? {
                    return Ok(None);
                }
            }
            let mut ingest = start(bench, true)?;
            progress.begin("delivering", bench.data.files);
            let paced = pace.run(
                bench,
                &prepared,
                staging,
                &mut ingest,
                progress,
                interrupted,
            );
            ingest.stop();
            while ingest.next().is_some() {}
            let ended = ingest.end()?;
            (
                ended,
                Some(paced.map_err(bench_io("deliver the files of"))?),
            )
        }
    };
    if interrupted.load(Ordering::Relaxed) {
        return Ok(None);
    }

    let latencies = read_latencies(bench, pace.as_ref())?;
    let report = Report::new(bench, &ended, &latencies, pace, totals(bench, &ended)?);
    Ok(Some(report))
}

fn start(bench: &Bench, watch: bool) -> Result<Ingest, Failure> {
    let started = || {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").args(&bench.arguments);
        command.arg(flag("hlog", latencies_path(bench)));
        if !watch {
            command.arg("--once");
        }
        Ingest::start(command, watch)
    };
    started().map_err(|error| Failure::io("start ringest in", &bench.root, &error))
}

/// `--name=value`.
pub fn flag(name: &str, value: impl AsRef<std::ffi::OsStr>) -> OsString {
    let mut flag = OsString::from(format!("--{name}="));
    flag.push(value);
    flag
}

fn latencies_path(bench: &Bench) -> PathBuf {
    bench.root.join("latencies.hlog")
}

/// What the ingestor logged, and what was measured from outside; also goes where the user wants it.
fn read_latencies(
    bench: &Bench,
    paced: Option<&Measured>,
) -> Result<std::collections::BTreeMap<String, Histogram<u64>>, Failure> {
    let path = latencies_path(bench);
    let failed = |error: io::Error| Failure::io("read the latencies in", &path, &error);
    if let Some(paced) = paced {
        let mut log = Hlog::open_since(&path, paced.begin)?;
        log.write_one(report::SCHEDULED, &paced.latencies, paced.elapsed)
            .map_err(failed)?;
    }
    let log = fs::read(&path).map_err(failed)?;
    if let Some(wanted) = &bench.hlog {
        hlog::append(&log, wanted)?;
    }
    hlog::read(&log).map_err(failed)
}

/// What the ledger says. Files that were not taken would make every figure look better than it is.
fn totals(
    bench: &Bench,
    ended: &ingest::Ended,
) -> Result<crate::observe::metrics::Totals, Failure> {
    let ledger = Lmdb::open_read_only(&bench.settings.ledger_dir())?;
    let totals = ledger.snapshot()?.totals;
    let taken = totals.ingested.files + totals.duplicate.files;
    if taken == bench.data.files {
        return Ok(totals);
    }
    let cause = format!(
        "{} files were made, {} ingested, {} found to be duplicates, {} quarantined{}",
        bench.data.files,
        totals.ingested.files,
        totals.duplicate.files,
        totals.quarantined.files,
        ended.last_words()
    );
    let remedy = match bench.pace {
        Some(_) => "give a slower --rate, or settings with which every file is taken",
        None => "use settings with which every file is taken",
    };
    Err(Failure::new(
        Exit::Data,
        "measure the ingestion in",
        &bench.root,
        cause,
        format!("{remedy}; --keep leaves everything to be looked at"),
    ))
}

/// The directories of one bench.
struct Ground<'a> {
    made: Vec<&'a Path>,
    keep: bool,
    after: After,
}

/// What the directories are left after.
enum After {
    /// It says where they are, if they are kept.
    Report,
    Interruption,
    Failure,
}

impl<'a> Ground<'a> {
    fn prepare(bench: &'a Bench) -> Result<Ground<'a>, Failure> {
        let mut ground = Ground {
            made: Vec::new(),
            keep: false,
            after: After::Failure,
        };
        for path in [Some(&bench.root), bench.elsewhere.as_ref()]
            .into_iter()
            .flatten()
        {
            fs::create_dir(path)
                .map_err(|error| Failure::io("make the directory", path, &error))?;
            ground.made.push(path);
        }
        refuse(bench)?;
        let staging = &bench.settings.sources[0].input;
        fs::create_dir(staging)
            .map_err(|error| Failure::io("make the directory", staging, &error))?;
        ground.keep = bench.keep;
        Ok(ground)
    }
}

impl Drop for Ground<'_> {
    fn drop(&mut self) {
        // Nobody may be at the terminal any more.
        let tell = |what: String| {
            let _ = writeln!(io::stderr(), "ringest: {what}");
        };
        for path in &self.made {
            let shown = path.display();
            match (self.keep, &self.after) {
                (true, After::Report) => continue,
                (true, _) => {
                    tell(format!("kept {shown}"));
                    continue;
                }
                (false, After::Interruption) => {
                    tell(format!("removing {shown}; interrupt again to leave it"));
                }
                (false, _) => {}
            }
            if let Err(error) = fs::remove_dir_all(path) {
                tell(format!("cannot remove {shown}: {error}"));
            }
        }
    }
}

/// Whether the data set fits. Before minutes of work, and before ingestion waits for room that nobody will make.
fn refuse_full_disk(bench: &Bench, directory: &Path) -> Result<(), Failure> {
    let disk = rustix::fs::statvfs(directory)
        .map_err(|error| Failure::io("look at the disk of", directory, &error.into()))?;
    let block = disk.f_frsize.max(1);
    let of_files = u128::from(bench.data.files)
        * u128::from(bench.data.file_bytes.div_ceil(block))
        * u128::from(block);
    let needed = of_files + u128::from(bench.settings.min_free_bytes);
    let free = u128::from(disk.f_bavail) * u128::from(disk.f_frsize);
    // Some filesystems do not count files.
    let inodes_short = disk.f_files > 0 && disk.f_favail < bench.data.files;
    let cause = match (needed > free, inodes_short) {
        (false, false) => return Ok(()),
        (true, _) => format!("{needed} bytes are needed, {free} are free"),
        (false, true) => format!(
            "{} files are to be made, the filesystem has room for {}",
            bench.data.files, disk.f_favail
        ),
    };
    let remedy = "make fewer or smaller files (--files, --size), or use another filesystem (--dir, --cross-fs)";
    Err(Failure::new(
        Exit::Config,
        "bench in",
        directory,
        cause,
        remedy,
    ))
}

/// What cannot be measured here.
fn refuse(bench: &Bench) -> Result<(), Failure> {
    let wrong = |path: &Path, cause: &str, remedy: &str| {
        Err(Failure::new(Exit::Config, "bench in", path, cause, remedy))
    };
    if bench.settings.sources[0].mode == Mode::Sidecar {
        let cause = "files are made without sidecars";
        return wrong(&bench.root, cause, "use --mode closed or --mode stability");
    }
    let failed = |error: io::Error| Failure::io("look at", &bench.root, &error);
    if let Some(elsewhere) = &bench.elsewhere {
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
        if device(elsewhere).map_err(failed)? == device(&bench.root).map_err(failed)? {
            return wrong(
                elsewhere,
                "--cross-fs names a directory on the filesystem where the files are made",
                "name one on another filesystem, or leave it away",
            );
        }
    }
    if bench.data.files > FILES_MAX {
        let cause = format!("the schedule makes {} files", bench.data.files);
        let remedy = format!("{FILES_MAX} are the most: give less --rate or --seconds");
        return wrong(&bench.root, &cause, &remedy);
    }
    for directory in [Some(&bench.root), bench.elsewhere.as_ref()] {
        directory.map_or(Ok(()), |it| refuse_full_disk(bench, it))?;
    }
    if bench.data.cold {
        let filesystem = probe::filesystem(&bench.root).map_err(failed)?;
        if MEMORY_FILESYSTEMS.contains(&&*filesystem.name) {
            return wrong(
                &bench.root,
                "nothing is ever cold on a filesystem in memory",
                "give --dir a directory on a disk, or leave --cold away",
            );
        }
    }
    Ok(())
}

/// The first signal ends the ingestion and cleans up, a second one ends at once.
fn watch_signals() -> Result<Arc<AtomicBool>, Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        // As nohup has it.
        if signal == SIGHUP && is_ignored(signal) {
            continue;
        }
        let flag = || Arc::clone(&interrupted);
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, flag())
            .and_then(|_| signal_hook::flag::register(signal, flag()))
            .map_err(Failure::signals)?;
    }
    Ok(interrupted)
}

/// Whether this process was started with that signal ignored, from proc_pid_status(5).
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut masks = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigIgn:"));
    let mask = masks
        .next()
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
