//! A record for each file that was set aside, from the reason beside it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::io::disk::DirHandle;
use crate::io::{Disk, FileStat, Identity};
use crate::ledger::{
    Arrival, Counts, Digest, Outcome, OwedKind, Placement, Record, RecordState, SourceId,
};
use crate::observe::mask::mask;
use crate::pipeline::record::owed::{DUPLICATE_RULE, REASON_BYTES_MAX, Reason, SAME_CONTENT_AS};
use crate::pipeline::record::{CHANGED_RULE, layout};

use super::tree::Tree;
use super::{GAP_MAX, Rebuild, is_regular, walk};

impl Rebuild<'_> {
    /// Reads all reasons. Returns the files that have none.
    pub(super) fn read_reasons(&mut self) -> Result<Vec<PathBuf>, Failure> {
        self.flush()?;
        let mut unexplained = Vec::new();
        let (disk, root) = (self.disk, self.warehouse.clone());
        let shown = self.settings.warehouse.clone();
        let tree = Tree::new(self.settings);
        walk::walk(
            &disk,
            &root,
            &shown,
            |path| tree.leads_aside(path),
            Err,
            |path, dir, names| {
                if tree.aside_depth(path).is_none() {
                    return Ok(());
                }
                self.read_directory(path, dir, names, &mut unexplained)
            },
        )?;
        self.flush()?;
        Ok(unexplained)
    }

    fn read_directory(
        &mut self,
        path: &Path,
        dir: &DirHandle,
        names: Vec<OsString>,
        unexplained: &mut Vec<PathBuf>,
    ) -> Result<(), Failure> {
        let all: HashSet<&OsStr> = names.iter().map(OsString::as_os_str).collect();
        // What a reason explains comes before it, also if it looks like one.
        let mut ordered: Vec<&OsString> = names.iter().collect();
        ordered.sort_by_key(|name| (file_explained_by(name).is_some(), name.len()));
        let mut reasons: HashSet<OsString> = HashSet::new();
        for name in ordered {
            if reasons.contains(name) {
                continue;
            }
            let placed = path.join(name);
            let reason_name = layout::reason_name(name);
            let reason = match all.contains(reason_name.as_os_str()) {
                true => self.read_reason(dir, &reason_name),
                false => None,
            };
            if let Some(reason) = reason {
                reasons.insert(reason_name);
                let seen = self.look(&placed)?;
                if !self.take_reason(&placed, seen, &reason)? {
                    unexplained.push(placed);
                }
                continue;
            }
            // Alone: somebody took away the file that it explains.
            if let Some(reason) = self.read_reason(dir, name)
                && let Some(file) = file_explained_by(name)
                && self.take_reason(&path.join(file), None, &reason)?
            {
                continue;
            }
            if self.look(&placed)?.is_some_and(|seen| is_regular(&seen)) {
                unexplained.push(placed);
            }
        }
        Ok(())
    }

    fn read_reason(&self, dir: &DirHandle, name: &OsStr) -> Option<Reason> {
        file_explained_by(name)?;
        let file = self.disk.open(dir, name).ok()?;
        let mut bytes = vec![0; REASON_BYTES_MAX];
        let length = self.disk.read_at(&file, &mut bytes, 0).ok()?;
        serde_json::from_slice(&bytes[..length]).ok()
    }

    /// Records what a reason says. False if it cannot be: then it is as if there were none.
    fn take_reason(
        &mut self,
        placed: &Path,
        seen: Option<FileStat>,
        reason: &Reason,
    ) -> Result<bool, Failure> {
        let seq = reason.seq;
        let digest: Option<Digest> = data_encoding::HEXLOWER
            .decode(reason.sha256.as_bytes())
            .ok()
            .and_then(|digest| digest.try_into().ok());
        let time_micros = layout::time_micros(&reason.time);
        let (Some(digest), Some(time_micros)) = (digest, time_micros) else {
            return Ok(false);
        };
        let taken = self.ledger.record_of(seq)?.is_some()
            || self.commit.records.iter().any(|record| record.seq == seq);
        if seq == 0 || seq > self.report.next_seq + GAP_MAX || taken {
            return Ok(false);
        }
        let (source, path) = self.whence(placed, reason)?;
        let outcome = match reason.rule.as_str() {
            DUPLICATE_RULE => self.outcome_of_duplicate(&digest, seq, reason)?,
            rule => Outcome::Quarantine {
                rule: rule.into(),
                message: reason.message.clone(),
                position: reason.position.clone(),
            },
        };
        let changed = reason.rule == CHANGED_RULE;
        let identity = seen.map_or(Identity::default(), |seen| seen.identity);
        let mut arrival = Arrival {
            seq,
            source,
            path,
            identity,
            sidecar: None,
            digest,
            key: None,
            outcome,
            placement: Placement::Rename,
            placed: placed.to_path_buf(),
            placed_inode: identity.inode,
            time_micros,
            counts: Counts::default(),
            aside: None,
            placed_ctime: Default::default(),
            ctime_vouches: false,
        };
        let source_left = match changed || seen.is_none() {
            true => None,
            false => self.copy_in_staging(&arrival)?,
        };
        let read = !changed && (self.deep || source_left.is_some());
        let stands = self.stands(&arrival, seen, read)?;
        if let (Some(identity), true) = (source_left, stands) {
            arrival.placement = Placement::Copy;
            arrival.identity = identity;
            self.owe(seq, OwedKind::Source, source, &arrival.path, identity);
        }
        self.owe_sidecar(&arrival)?;
        match arrival.outcome {
            Outcome::Duplicate { .. } => self.report.duplicates += 1,
            _ => self.report.quarantined += 1,
        }
        let state = RecordState::Done {
            arrival,
            line: None,
        };
        self.record(Record { seq, state })?;
        Ok(true)
    }

    /// A duplicate of an arrival that is recorded with this content; else just a file that was set aside.
    fn outcome_of_duplicate(
        &self,
        digest: &Digest,
        seq: u64,
        reason: &Reason,
    ) -> Result<Outcome, Failure> {
        let stated = reason
            .message
            .strip_prefix(SAME_CONTENT_AS)
            .and_then(|rest| rest.split(',').next()?.parse().ok());
        let known = self.ledger.by_digest(digest)?;
        for of in stated.into_iter().chain(known) {
            if of < seq && self.brought(of, digest)? {
                return Ok(Outcome::Duplicate { of });
            }
        }
        Ok(Outcome::Quarantine {
            rule: reason.rule.clone(),
            message: reason.message.clone(),
            position: reason.position.clone(),
        })
    }

    /// Whether an arrival was ingested with this content.
    pub(super) fn brought(&self, seq: u64, digest: &Digest) -> Result<bool, Failure> {
        let record = self.ledger.record_of(seq)?;
        Ok(record.is_some_and(|record| {
            matches!(record.state, RecordState::Done { arrival, .. }
                if arrival.outcome == Outcome::Ingest && arrival.digest == *digest)
        }))
    }

    /// Source and path of a file that was set aside. Its reason has them lossy, and masked; its directories are beside it.
    fn whence(&mut self, placed: &Path, reason: &Reason) -> Result<(SourceId, PathBuf), Failure> {
        let stated = Path::new(&reason.path);
        let parent = placed.parent().unwrap_or(Path::new(""));
        let depth = self.tree.aside_depth(parent).unwrap_or(0);
        let mut dirs: PathBuf = parent.iter().skip(depth).collect();
        let came = stated.parent().unwrap_or(Path::new(""));
        let skip = came.iter().count().saturating_sub(dirs.iter().count());
        let came: PathBuf = came.iter().skip(skip).collect();
        if layout::is_dir_of(&dirs, &came) {
            dirs = came;
        }
        let mut names = vec![super::name_of(placed).to_os_string()];
        names.extend(unnumbered(super::name_of(placed), reason.seq));
        names.extend(stated.file_name().map(OsStr::to_os_string));
        for name in &names {
            let path = dirs.join(name);
            let known = self
                .sources
                .iter()
                .find(|entry| is_stated_as(&entry.input.join(&path), &reason.path));
            if let Some(entry) = known {
                return Ok((entry.id, path));
            }
        }
        // A source of which nothing else is left.
        let name = stated.file_name().unwrap_or(super::name_of(placed));
        let stated_so = |it: &&OsString| is_stated_as(Path::new(it), &name.to_string_lossy());
        let path = dirs.join(names.iter().find(stated_so).map_or(name, |it| it));
        let depth = path.iter().count();
        let input = stated.ancestors().nth(depth).unwrap_or(stated);
        let name = input.to_string_lossy().into_owned();
        Ok((self.source_id(&name, input)?, path))
    }
}

/// Whether a reason has this path so.
fn is_stated_as(path: &Path, stated: &str) -> bool {
    let path = path.to_string_lossy();
    path == stated || mask(&path) == stated
}

/// The name without the number that made it free.
fn unnumbered(name: &OsStr, seq: u64) -> Option<OsString> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let number = format!(".{seq}");
    let name = name.as_bytes().strip_suffix(number.as_bytes())?;
    Some(OsString::from_vec(name.to_vec()))
}

/// The name of the file that a reason of this name explains, unless that was cut.
fn file_explained_by(name: &OsStr) -> Option<OsString> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let file = name.as_bytes().strip_suffix(b".reason.json")?;
    (!file.is_empty()).then(|| OsString::from_vec(file.to_vec()))
}
