//! The other way round: what is on disk and no record names. A running instance places files and writes manifests
//! meanwhile, so what is unknown is looked up in the newest intents and records, and looked at again, before it is
//! reported.

use std::collections::{BTreeSet, HashSet};
use std::fs::{DirEntry, Metadata};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::ledger::lmdb::{Lmdb, Snapshot};
use crate::ledger::{OwedKind, RecordState};
use crate::pipeline::record::hidden::Hidden;
use crate::pipeline::record::layout;
use crate::quarantine::is_busy;
use crate::session::MARKER_TEMPORARY;

use super::warehouse::{Names, is_absent};
use super::{Kind, Report, Scope, newer_records};

/// Unknown files that are held before they are looked up.
const UNKNOWN_MAX: usize = 4096;
/// What `fsck` finds, on a warehouse that is a filesystem's root.
const LOST_AND_FOUND: &str = "lost+found";
/// Files with which it is found out what a directory can do.
const PROBE_PREFIX: &[u8] = b".ringest-probe";

/// Reports files in the warehouse that no record and no intent names.
pub fn warehouse(
    ledger: &Lmdb,
    scope: Scope<'_>,
    snapshot: &Snapshot,
    mut names: Names,
    report: &mut Report,
) -> Result<(), Failure> {
    let root = scope.warehouse;
    let mut unknown: Vec<PathBuf> = Vec::new();
    let mut seen_to = snapshot.recorded_to;
    let mut settle = |unknown: &mut Vec<PathBuf>, names: &mut Names, report: &mut Report| {
        // Intents first: what is an intent no more is a record by then, or gone.
        for intent in ledger.intents()? {
            names.add_intent(&intent);
        }
        seen_to = newer_records(ledger, seen_to, |record| {
            if let RecordState::Done { arrival, .. } = &record.state {
                names.add_newer(arrival);
            }
            Ok(())
        })?;
        for path in unknown.drain(..) {
            let absolute = root.join(&path);
            if names.contain(&path) || std::fs::symlink_metadata(&absolute).is_err() {
                continue;
            }
            if path.starts_with(layout::TMP_DIR) {
                let message = "it is what an unfinished copy left; the next start removes it";
                report.add(Kind::Leftover, Some(absolute), None, message.into());
            } else {
                let message = "it is an orphan: no arrival put it there";
                report.add(Kind::Orphan, Some(absolute), None, message.into());
            }
        }
        Ok::<(), Failure>(())
    };
    let mut failure = None;
    walk(root, report, |path, entry, _, report| {
        let at_top = path.parent() == Some(Path::new(""));
        let name = entry.file_name();
        let ignored = at_top
            && (name == layout::MARKER
                || name == MARKER_TEMPORARY
                || name == LOST_AND_FOUND
                || scope.running && name == layout::TMP_DIR
                || name.as_encoded_bytes().starts_with(PROBE_PREFIX));
        if ignored {
            return Next::Skip;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let apart = scope.apart.contains(&root.join(path));
            return if apart { Next::Skip } else { Next::Descend };
        }
        if !names.contain(path) {
            unknown.push(path.to_path_buf());
            if unknown.len() == UNKNOWN_MAX {
                failure = settle(&mut unknown, &mut names, report).err();
            }
        }
        match failure {
            Some(_) => Next::Stop,
            None => Next::Skip,
        }
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    if unknown.is_empty() {
        return Ok(());
    }
    settle(&mut unknown, &mut names, report)
}

/// Reports manifests that no record points into. An empty one was made ready for lines that did not come.
pub fn manifests(
    ledger: &Lmdb,
    scope: Scope<'_>,
    snapshot: &Snapshot,
    mut known: BTreeSet<PathBuf>,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut unknown: Vec<PathBuf> = Vec::new();
    walk(scope.manifests, report, |path, entry, metadata, _| {
        if metadata.is_dir() {
            return match entry.file_name() == LOST_AND_FOUND {
                true => Next::Skip,
                false => Next::Descend,
            };
        }
        let is_manifest = entry.file_name() == layout::MANIFEST && metadata.len() > 0;
        if is_manifest && !known.contains(path) {
            unknown.push(path.to_path_buf());
        }
        Next::Skip
    });
    if unknown.is_empty() {
        return Ok(());
    }
    newer_records(ledger, snapshot.recorded_to, |record| {
        if let RecordState::Done { arrival, .. } = &record.state {
            known.insert(layout::manifest_path(layout::hour(arrival.time_micros)));
        }
        Ok(())
    })?;
    for path in unknown.into_iter().filter(|path| !known.contains(path)) {
        let message = "it is an orphan: no arrival has a line in it";
        let path = scope.manifests.join(path);
        report.add(Kind::Orphan, Some(path), None, message.into());
    }
    Ok(())
}

/// Reports hidden names in staging, of files on their way out, that nothing owed explains. Only when nobody is at it. Names that only
/// look like them are their uploaders' business, as is what lies in a directory that they have closed.
pub fn staging(ledger: &Lmdb, snapshot: &Snapshot, report: &mut Report) -> Result<(), Failure> {
    let names = ledger.hidden_names()?;
    let intents: HashSet<u64> = snapshot.intents.iter().map(|intent| intent.seq).collect();
    let mut found: Vec<(PathBuf, Hidden, u64)> = Vec::new();
    let mut seen = BTreeSet::new();
    for source in ledger.sources()? {
        // A staging directory of an earlier day may be gone.
        if !source.input.is_dir() || !seen.insert(source.input.clone()) {
            continue;
        }
        let mut closed = Report::default();
        walk(&source.input, &mut closed, |path, entry, metadata, _| {
            if metadata.is_dir() {
                return Next::Descend;
            }
            if let Some((kind, seq)) = names.parse(&entry.file_name()) {
                found.push((source.input.join(path), kind, seq));
            }
            Next::Skip
        });
    }
    for (path, kind, seq) in found {
        let explained = match kind {
            // It may be on its way at this moment.
            Hidden::Returning => is_busy(ledger.dir()),
            Hidden::Sidecar => ledger.owes(seq, OwedKind::Sidecar)?,
            Hidden::Leaving => {
                intents.contains(&seq)
                    || ledger.owes(seq, OwedKind::Source)?
                    || ledger.owes(seq, OwedKind::Duplicate)?
            }
        };
        // It may have gone meanwhile.
        if explained || std::fs::symlink_metadata(&path).is_err() {
            continue;
        }
        let message = match kind {
            Hidden::Returning => format!(
                "it is what an interrupted `ringest quarantine retry {seq}` left; say that again, or drop it"
            ),
            _ => "it is a file on its way out that nothing in the ledger waits for".into(),
        };
        report.add(Kind::Leftover, Some(path), Some(seq), message);
    }
    Ok(())
}

/// How a walk goes on.
enum Next {
    /// Into this directory.
    Descend,
    /// Past this entry.
    Skip,
    /// Not at all.
    Stop,
}

/// Shows every entry beneath `root`, with its path beneath it. Symbolic links are shown, not followed; what goes away
/// meanwhile is left out.
fn walk(
    root: &Path,
    report: &mut Report,
    mut visit: impl FnMut(&Path, &DirEntry, &Metadata, &mut Report) -> Next,
) {
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let absolute = root.join(&directory);
        let entries = match std::fs::read_dir(&absolute) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => continue,
            Err(error) => {
                report.unreadable(&absolute, &error);
                continue;
            }
        };
        for entry in entries {
            let (entry, metadata) = match entry.and_then(|entry| Ok((entry.metadata()?, entry))) {
                Ok((metadata, entry)) => (entry, metadata),
                Err(error) if is_absent(&error) => continue,
                Err(error) => {
                    report.unreadable(&absolute, &error);
                    break;
                }
            };
            let path = directory.join(entry.file_name());
            match visit(&path, &entry, &metadata, report) {
                Next::Descend => directories.push(path),
                Next::Skip => {}
                Next::Stop => return,
            }
        }
    }
}
