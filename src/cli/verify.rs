//! `ringest verify`: whether ledger, manifests and warehouse agree.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::Failure;
use crate::io::lock;
use crate::ledger::lmdb::Lmdb;
use crate::observe::control;
use crate::pipeline::record::manifest;
use crate::settings::Loaded;
use crate::settings::Settings;
use crate::verify::{Finding, Kind, Report, Scope, verify};

/// Prints every mismatch on stdout, and a summary. 1: there are mismatches.
pub fn run(loaded: &Loaded, deep: bool, json: bool) -> Result<ExitCode, Failure> {
    let settings = &loaded.settings;
    let ledger = Lmdb::open_read_only(&settings.ledger_dir())?;
    let mut apart = settings.apart_dirs();
    apart.extend(ledger.sources()?.into_iter().map(|source| source.input));
    let scope = Scope {
        warehouse: &settings.warehouse,
        manifests: &settings.manifests,
        apart: &apart,
        deep,
        running: is_running(settings),
    };
    let report = verify(&ledger, scope)?;
    super::printed(print(&report, deep, json))?;
    Ok(match report.mismatches {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Whether an instance works with this state: it answers, or holds the lock.
fn is_running(settings: &Settings) -> bool {
    !matches!(control::ask(&settings.control_socket()), Ok(None))
        || lock::is_locked(&settings.state_path, lock::OF_STATE)
}

/// A mismatch in JSON.
#[derive(Serialize)]
struct Mismatch<'a> {
    kind: Kind,
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    seq: Option<u64>,
    message: &'a str,
}

impl<'a> Mismatch<'a> {
    fn of(finding: &'a Finding) -> Mismatch<'a> {
        let path = finding.path.as_deref();
        Mismatch {
            kind: finding.kind,
            path: path.map(|path| path.to_string_lossy().into_owned()),
            path_b64: path.and_then(manifest::exact),
            seq: finding.seq,
            message: &finding.message,
        }
    }
}

/// The last line.
#[derive(Serialize)]
struct Summary {
    records: u64,
    manifest_lines: u64,
    files: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_hashed: Option<u64>,
    mismatches: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary {
            records,
            manifest_lines,
            files,
            bytes_hashed,
            mismatches,
        } = self;
        write!(
            f,
            "verified: {records} records, {manifest_lines} manifest lines, {files} files"
        )?;
        if let Some(bytes) = bytes_hashed {
            write!(f, " (deep: {bytes} bytes hashed)")?;
        }
        write!(f, ", {mismatches} mismatches")
    }
}

fn print(report: &Report, deep: bool, json: bool) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for finding in &report.findings {
        match json {
            true => writeln!(out, "{}", serde_json::to_string(&Mismatch::of(finding))?)?,
            false => writeln!(out, "{}", super::one_line(&finding.to_string()))?,
        }
    }
    let untold = report.mismatches - report.findings.len() as u64;
    if untold > 0 && !json {
        writeln!(out, "and {untold} more")?;
    }
    let summary = Summary {
        records: report.records,
        manifest_lines: report.manifest_lines,
        files: report.files,
        bytes_hashed: deep.then_some(report.bytes_hashed),
        mismatches: report.mismatches,
    };
    match json {
        true => writeln!(out, "{}", serde_json::to_string(&summary)?)?,
        false => writeln!(out, "{summary}")?,
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_a_running_instance_and_a_look_leaves_none() {
        let dir = tempfile::tempdir().unwrap();
        let is_locked = || lock::is_locked(dir.path(), lock::OF_STATE);
        assert!(!is_locked());
        let state = crate::io::open::root_dir(dir.path()).unwrap();
        lock::make_own(&state, lock::OF_STATE).unwrap();
        let held = lock::lock_own(&state, lock::OF_STATE).unwrap().unwrap();
        assert!(is_locked());
        drop(held);
        assert!(!is_locked());
        assert!(lock::lock_own(&state, lock::OF_STATE).unwrap().is_some());
    }

    #[test]
    fn a_mismatch_is_one_line_and_one_object() {
        let finding = Finding {
            kind: Kind::FileMissing,
            path: Some("/wh/a\nb".into()),
            seq: Some(3),
            message: "it is missing".into(),
        };
        assert_eq!(
            super::super::one_line(&finding.to_string()),
            "/wh/a\\nb: it is missing"
        );
        let object = serde_json::to_value(Mismatch::of(&finding)).unwrap();
        let expected = serde_json::json!({
            "kind": "file_missing", "path": "/wh/a\nb", "seq": 3, "message": "it is missing",
        });
        assert_eq!(object, expected);
    }
}
