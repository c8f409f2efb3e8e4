//! `ringest run --dry-run`: one look at the staging directories, and what `run` would do with each file, as JSON lines on
//! stdout. Takes no lock and no lease, and makes nothing.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::io::open;
use crate::ledger::{Outcome, Position};
use crate::outlook::{self, Outlook, Sight, Unread};
use crate::pipeline::discover::scan::{Entry, Scan};
use crate::pipeline::discover::scan_bytes;
use crate::settings::{Settings, Source};

/// One planned action.
#[derive(Debug, Default, Serialize)]
struct Action<'a> {
    /// `ingest`, `duplicate`, `quarantine`, `wait` or `ignore`.
    action: &'a str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Position::is_unknown")]
    position: Position,
    #[serde(skip_serializing_if = "Option::is_none")]
    warehouse_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

/// Prints the plan.
pub fn run(settings: &Settings) -> Result<(), Failure> {
    let mut outlook = Outlook::open(settings)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for source in &settings.sources {
        let root = match open::root_dir(&source.input) {
            Ok(root) => Arc::new(root),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(Failure {
                    exit: Exit::Config,
                    ..Failure::io("open the input", &source.input, &error)
                });
            }
        };
        let mut scan = Scan::new(Arc::clone(&root), PathBuf::new(), scan_bytes(1));
        while let Some(entry) = scan.next() {
            let (path, reason) = match entry {
                Entry::Directory { .. } => continue,
                Entry::Failed { path, error } => (path, error.to_string()),
                Entry::Name {
                    path,
                    kind: FileType::Directory,
                    ..
                } => {
                    if source.enters(&path) {
                        scan.enter(&path);
                    }
                    continue;
                }
                Entry::Name { path, .. } => {
                    plan_file(source, &root, &path, &mut outlook, &mut out)?;
                    continue;
                }
            };
            say(&mut out, "wait", &source.input.join(path), &reason)?;
        }
    }
    super::printed(out.flush())
}

fn plan_file(
    source: &Source,
    root: &OwnedFd,
    path: &Path,
    outlook: &mut Outlook<'_>,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let absolute = source.input.join(path);
    let mut say = |action, reason: &str| say(out, action, &absolute, reason);
    if let Err(reason) = outlook::takes(source, path) {
        return say("ignore", reason);
    }
    let seen = match open::stat_beneath(root, path) {
        Ok(Some(seen)) => seen,
        Ok(None) => return Ok(()),
        Err(error) => return say("wait", &error.to_string()),
    };
    match outlook.sight(source, root, path, &seen) {
        Ok(Sight::Ignored(reason)) => return say("ignore", reason),
        Ok(Sight::Held(reason) | Sight::Unsettled(reason)) => return say("wait", reason),
        Ok(Sight::Settled) => {}
        Err(error) => return say("wait", &error.to_string()),
    }
    let examined = match outlook::examine(source, root, path, &absolute) {
        Ok(examined) if examined.changed => return say("wait", "it changed while it was read"),
        Ok(examined) => examined,
        Err(Unread::Ignored(reason)) => return say("ignore", reason),
        Err(Unread::Failed(failure)) => return say("wait", &failure.cause),
    };
    let prospect = outlook.of(source, path, &examined)?;
    let lossy = |path: &Path| path.to_string_lossy().into_owned();
    let action = Action {
        path: lossy(&absolute),
        warehouse_path: prospect.placed.as_deref().map(lossy),
        sha256: Some(data_encoding::HEXLOWER.encode(&examined.digest)),
        bytes: Some(examined.bytes),
        ..Action::default()
    };
    let action = match prospect.outcome {
        Outcome::Ingest => Action {
            action: "ingest",
            ..action
        },
        Outcome::Duplicate { .. } => Action {
            action: "duplicate",
            reason: Some(source.on_duplicate.as_str()),
            ..action
        },
        Outcome::Quarantine {
            rule,
            message,
            position,
        } => Action {
            action: "quarantine",
            rule: Some(rule),
            message: Some(message),
            position,
            ..action
        },
    };
    print(out, &action)
}

/// Of a file that is not read.
fn say(out: &mut impl Write, action: &str, path: &Path, reason: &str) -> Result<(), Failure> {
    let action = Action {
        action,
        path: path.to_string_lossy().into_owned(),
        reason: Some(reason),
        ..Action::default()
    };
    print(out, &action)
}

fn print(out: &mut impl Write, action: &Action<'_>) -> Result<(), Failure> {
    let mut write = || -> io::Result<()> {
        serde_json::to_writer(&mut *out, action)?;
        out.write_all(b"\n")
    };
    super::printed(write())
}
