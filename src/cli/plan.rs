//! `ringest run --dry-run`: one look at the staging directories, and what `run` would do with each file, as JSON lines on
//! stdout. Takes no lock and no lease, and makes nothing.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::io::stat::{self, FileStat};
use crate::io::{Clock, clock, open};
use crate::ledger::lmdb::Lmdb;
use crate::ledger::{ContentKey, Digest, Kept, SourceId};
use crate::observe::control;
use crate::pipeline::discover::scan::{Entry, Scan};
use crate::pipeline::read::digest::{self, Stream};
use crate::pipeline::read::sidecar_path;
use crate::pipeline::record::{content_key, layout};
use crate::settings::{EmptyPolicy, Mode, Settings, Source};

/// One planned action.
#[derive(Debug, Serialize)]
struct Action<'a> {
    /// `ingest`, `duplicate`, `wait` or `ignore`.
    action: &'a str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warehouse_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

/// What is known before anything is looked at.
struct Known {
    ledger: Option<Lmdb>,
    kept: HashSet<u128>,
    sources: Vec<crate::ledger::SourceEntry>,
    in_plan: HashSet<ContentKey>,
}

/// Prints the plan.
pub fn run(settings: &Settings) -> Result<(), Failure> {
    let dir = settings.ledger_dir();
    let socket = settings.control_socket();
    let running = matches!(control::ask(&socket), Ok(Some(_)));
    let ledger = match dir.join("data.mdb").exists() {
        true => Some(Lmdb::open_untouched(&dir, running)?),
        false => None,
    };
    let kept = match &ledger {
        Some(ledger) => ledger.kept()?,
        None => Vec::new(),
    };
    let mut known = Known {
        kept: kept
            .iter()
            .map(|kept| Kept::fingerprint(kept.source, &kept.path, &kept.identity))
            .collect(),
        sources: match &ledger {
            Some(ledger) => ledger.sources()?,
            None => Vec::new(),
        },
        ledger,
        in_plan: HashSet::new(),
    };
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
        let mut scan = Scan::new(Arc::clone(&root), PathBuf::new());
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
                        scan.enter(path);
                    }
                    continue;
                }
                Entry::Name { path, .. } => {
                    plan_file(settings, source, &root, &path, &mut known, &mut out)?;
                    continue;
                }
            };
            print(
                &mut out,
                "wait",
                &source.input.join(path),
                Some(&reason),
                None,
            )?;
        }
    }
    super::printed(out.flush())
}

fn plan_file(
    settings: &Settings,
    source: &Source,
    root: &std::os::fd::OwnedFd,
    path: &Path,
    known: &mut Known,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let absolute = source.input.join(path);
    let mut say =
        |action, reason: Option<&str>, content| print(out, action, &absolute, reason, content);
    if let Err(reason) = source.takes(path) {
        return say("ignore", Some(reason.as_str()), None);
    }
    let seen = match stat::stat_at(root, path.as_os_str()) {
        Ok(Some(seen)) => seen,
        Ok(None) => return Ok(()),
        Err(error) => return say("wait", Some(&error.to_string()), None),
    };
    if seen.kind != FileType::RegularFile {
        return say("ignore", Some("not a regular file"), None);
    }
    let id = known
        .sources
        .iter()
        .find(|entry| entry.name == source.name && entry.input == source.input)
        .map_or(SourceId(u16::MAX), |entry| entry.id);
    let fingerprint = Kept::fingerprint(id, path, &seen.identity);
    if known.kept.contains(&fingerprint) {
        return say("ignore", Some("kept: it was taken before"), None);
    }
    if let Some(reason) = unsettled(source, root, path, &seen) {
        return say("wait", Some(reason), None);
    }
    let digest = match hash(root, path) {
        Ok(digest) => digest,
        Err(error) => return say("wait", Some(&error.to_string()), None),
    };
    let key = content_key(source, path, &digest, seen.identity.size);
    let mut duplicate = false;
    if let Some(key) = key {
        let recorded = match &known.ledger {
            Some(ledger) => ledger.lookup_all(&[key])?[0].is_some(),
            None => false,
        };
        duplicate = !known.in_plan.insert(key) || recorded;
    }
    let placed = layout::new_path(source, path, clock::WallClock.now_micros());
    let placed = settings.warehouse.join(placed);
    let content = Some((digest, seen.identity.size, (!duplicate).then_some(placed)));
    match duplicate {
        true => say("duplicate", Some(source.on_duplicate.as_str()), content),
        false => say("ingest", None, content),
    }
}

/// Why a file would have to wait, as far as one look can tell.
fn unsettled(
    source: &Source,
    root: &std::os::fd::OwnedFd,
    path: &Path,
    seen: &FileStat,
) -> Option<&'static str> {
    if seen.links > 1 {
        return Some("it has a second name (hard link)");
    }
    if seen.identity.size == 0 {
        match source.empty {
            EmptyPolicy::Ingest => {}
            EmptyPolicy::Hold | EmptyPolicy::Skip => return Some("it is empty"),
        }
    } else if source.mode == Mode::Sidecar {
        let sidecar = sidecar_path(path, &source.sidecar_suffix);
        let there = matches!(stat::stat_at(root, sidecar.as_os_str()), Ok(Some(_)));
        return (!there).then_some("its sidecar has not arrived");
    }
    let age = clock::realtime().as_nanos() - seen.identity.ctime.as_nanos();
    let young = age < source.stability.as_nanos() as i128;
    (source.mode == Mode::Stability && young).then_some("it changed a moment ago")
}

fn hash(root: &std::os::fd::OwnedFd, path: &Path) -> io::Result<Digest> {
    let fd = open::file_beneath(root, path.as_os_str())?;
    let mut stream = Stream::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match rustix::io::read(&fd, &mut buffer[..]) {
            Ok(0) => return Ok(stream.finish()),
            Ok(bytes) => digest::update(&mut [(&mut stream, &buffer[..bytes])]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn print(
    out: &mut impl Write,
    action: &str,
    path: &Path,
    reason: Option<&str>,
    content: Option<(Digest, u64, Option<PathBuf>)>,
) -> Result<(), Failure> {
    let (sha256, bytes, placed) = match content {
        Some((digest, bytes, placed)) => {
            let hex = data_encoding::HEXLOWER.encode(&digest);
            (Some(hex), Some(bytes), placed)
        }
        None => (None, None, None),
    };
    let action = Action {
        action,
        path: path.to_string_lossy().into_owned(),
        reason,
        warehouse_path: placed.map(|placed| placed.to_string_lossy().into_owned()),
        sha256,
        bytes,
    };
    let mut write = || -> io::Result<()> {
        serde_json::to_writer(&mut *out, &action)?;
        out.write_all(b"\n")
    };
    super::printed(write())
}
