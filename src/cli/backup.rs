//! `ringest backup DIR`: a copy of the ledger at one moment, made beside its place and renamed when it is whole and
//! durable.

// The copy lies outside everything that `io::Disk` works in.
#![allow(clippy::disallowed_methods)]

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::io::{lock, open};
use crate::ledger::lmdb::Lmdb;
use crate::settings::{Loaded, Settings};

/// What was written.
#[derive(Debug, Serialize)]
struct Summary {
    path: String,
    records: u64,
    next_seq: u64,
    bytes: u64,
}

/// Copies the ledger into `to`, which can then serve as a state directory, and says so on stdout.
pub fn run(loaded: &Loaded, to: &Path, json: bool) -> Result<ExitCode, Failure> {
    let ledger = Lmdb::open_read_only(&loaded.settings.ledger_dir())?;
    let to = refuse_bad_place(&loaded.settings, &ledger, to)?;
    let failed = |error: io::Error| Failure::io("back up to", &to, &error);
    let mut making = to.clone().into_os_string();
    making.push(".ringest-backup");
    let making = PathBuf::from(making);
    open::make_private_dirs(&making).map_err(failed)?;
    let Some(held) = lock::lock_dir(&making).map_err(failed)? else {
        return Err(Failure::new(
            Exit::Busy,
            "back up to",
            &to,
            "another backup writes there",
            "let that one finish",
        ));
    };
    if !open::make_private(&held).map_err(failed)? {
        return Err(Failure::new(
            Exit::Config,
            "back up to",
            &to,
            format!("{} belongs to another user", making.display()),
            "remove it, or name a directory that only you can write beside",
        ));
    }
    sweep(&making).map_err(failed)?;
    let (copy, bytes) = ledger.copy_to(&making.join("ledger"))?;
    // Of the copy: the ledger may have gone on.
    let snapshot = copy.snapshot()?;
    drop(copy);
    open::sync_dir(&making).map_err(failed)?;
    // An empty directory is replaced, anything else is not.
    std::fs::rename(&making, &to).map_err(failed)?;
    let parent = to.parent().unwrap_or(Path::new("/"));
    open::sync_dir(parent).map_err(failed)?;
    let summary = Summary {
        path: to.to_string_lossy().into_owned(),
        records: snapshot.recorded_to,
        next_seq: snapshot.next_seq,
        bytes,
    };
    let Summary {
        path,
        records,
        next_seq,
        ..
    } = &summary;
    let shown = match json {
        true => serde_json::to_string(&summary).expect("strings and numbers"),
        false => super::one_line(&format!(
            "backed up: {records} records, next sequence number {next_seq}, {bytes} bytes in {path}"
        )),
    };
    let _ = writeln!(io::stdout(), "{shown}");
    Ok(ExitCode::SUCCESS)
}

/// Removes what a killed backup left. Only that: anything else in the way is an error.
fn sweep(making: &Path) -> io::Result<()> {
    let ledger = making.join("ledger");
    let absent = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    for name in ["data.mdb", "lock.mdb"] {
        absent(std::fs::remove_file(ledger.join(name)))?;
    }
    absent(std::fs::remove_dir(&ledger))
}

/// The absolute path of a directory that is empty or not there, outside everything that ringest works in.
fn refuse_bad_place(settings: &Settings, ledger: &Lmdb, to: &Path) -> Result<PathBuf, Failure> {
    let refuse = |cause: String| {
        Failure::new(
            Exit::Config,
            "back up to",
            to,
            cause,
            "name a directory that does not exist, outside warehouse, manifests, state and staging",
        )
    };
    let place = real(to).map_err(|error| refuse(error.to_string()))?;
    if place.file_name().is_none() {
        return Err(refuse("it is no place for a backup".into()));
    }
    match std::fs::read_dir(&place).map(|mut entries| entries.next().is_some()) {
        Ok(true) => return Err(refuse("it is not empty".into())),
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(refuse(error.to_string())),
    }
    let inputs = ledger.sources()?.into_iter().map(|entry| entry.input);
    let own = [
        &settings.warehouse,
        &settings.manifests,
        &settings.state_path,
    ];
    for root in own.into_iter().cloned().chain(inputs) {
        if real(&root).is_ok_and(|root| place.starts_with(root)) {
            return Err(refuse(format!("it lies in {}", root.display())));
        }
    }
    Ok(place)
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let mut missing: Vec<OsString> = Vec::new();
    let mut existing = absolute.as_path();
    loop {
        match std::fs::canonicalize(existing) {
            Ok(mut found) => {
                found.extend(missing.iter().rev());
                return Ok(found);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else {
                    return Err(error);
                };
                missing.push(name.to_os_string());
                existing = parent;
            }
            Err(error) => return Err(error),
        }
    }
}
