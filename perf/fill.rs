//! Fills a ledger: what so many arrivals leave in ledger and manifests, but for the files.
//!
//! `fill COUNT FLAGS…`, with the flags of `ringest run`. A session makes directories, markers and ledger; then batch after
//! batch is reserved, committed as intents, committed as records, and its lines are written to the manifest, all of it by the code
//! that `run` has for it. So `run` goes on there. With `--durability none` nothing is synced before the end.
//!
//! `verify` misses the files, and the content of such an arrival is ingested again, since its first copy is gone.
//!
//! Prints the seconds it took, the syncs at the end included.

mod arrivals;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser as _;
use ringest::cli::{Cli, Command};
use ringest::failure::Failure;
use ringest::io::clock::{Clock, WallClock};
use ringest::io::{Disk, RealDisk};
use ringest::ledger::{Commit, Ledger};
use ringest::pipeline::record::manifest::ManifestWriter;
use ringest::pipeline::record::{Place, layout};
use ringest::session::Session;
use ringest::settings::{Durability, Settings};

use arrivals::Arrivals;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let count = words.next().and_then(|word| word.to_str()?.parse().ok());
    let Some(count) = count else {
        eprintln!("usage: fill COUNT FLAGS-OF-RUN…");
        return ExitCode::from(2);
    };
    let run = ["ringest", "run"].map(OsString::from);
    let loaded = match Cli::parse_from(run.into_iter().chain(words)).load(Vec::new()) {
        Ok(Command::Run(loaded)) => loaded,
        Ok(_) => unreachable!("it was given `run`"),
        Err(error) => {
            eprintln!("fill: {error}");
            return ExitCode::from(error.exit_code());
        }
    };
    let began = Instant::now();
    match fill(count, &loaded.settings) {
        Ok(()) => {
            println!("{}", began.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("fill: {failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn fill(count: u64, settings: &Settings) -> Result<(), Failure> {
    let (session, mut ledger) = Session::open(settings)?;
    let opening = &session.opening;
    let source = session
        .sources
        .iter()
        .find(|source| source.id == session.inputs[0].id)
        .expect("a session enters its inputs");
    let disk = RealDisk {
        durable: settings.durability == Durability::Full,
        syncfs: session.syncfs,
        lease_signal: None,
    };
    let place = Place {
        dir: Arc::clone(&session.manifests.dir),
        path: session.manifests.path.clone(),
    };
    let mut manifest = ManifestWriter::<RealDisk>::new(place, opening.manifest);
    let time_micros = WallClock.now_micros().max(opening.last_time_micros);
    let mut arrivals = Arrivals {
        source: source.clone(),
        warehouse: settings.warehouse.clone(),
        time_micros,
        next_seq: opening.next_seq,
        offset: manifest.next_offset(layout::hour(time_micros)),
        totals: opening.totals,
    };
    let end_seq = arrivals.next_seq + count;
    let mut synced = None;
    while arrivals.next_seq < end_seq {
        let left = end_seq - arrivals.next_seq;
        let batch = arrivals.batch(left.min(settings.batch_files as u64));
        let lines = batch.lines();
        let bytes = lines.bytes.len() as u64;
        manifest
            .reserve(&disk, lines.hour, bytes)?
            .map_err(full(&settings.manifests))?;
        batch
            .reserve(&mut ledger)?
            .map_err(full(&settings.state_path))?;
        batch.commit(&mut ledger)?;
        manifest.assign(lines);
        let written = manifest.write(&disk, lines)?;
        synced = Some(written.map_err(full(&settings.manifests))?);
    }
    ledger.commit_records(&Commit {
        synced,
        totals: arrivals.totals,
        next_seq: arrivals.next_seq,
        ..Commit::default()
    })?;
    ledger.sync()?;
    let disk = RealDisk {
        durable: true,
        ..disk
    };
    disk.sync_filesystem(&session.manifests.dir)
        .map_err(|error| Failure::sync("sync", &settings.manifests, &error))
}

fn full(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::io("make room in", path, &error)
}
