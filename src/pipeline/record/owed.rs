//! Step 8: what records leave behind. Names that must go, and reasons that must be written.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::failure::Failure;
use crate::io::{Disk, FileStat};
use crate::ledger::{Commit, Kept, Ledger, Outcome, Owed, OwedKind};
use crate::observe::events;

use super::classify::is_absent;
use super::place::name_of;
use super::{BatchDirs, Item, Recorder, Root, layout};

/// Why a file was set aside, as its `.reason.json` says it.
#[derive(Serialize)]
struct Reason<'a> {
    rule: &'a str,
    message: String,
    time: String,
    sha256: String,
    seq: u64,
    path: String,
}

impl<D: Disk, L: Ledger> Recorder<D, L> {
    /// Does what is owed. The result rides in a later commit, once everything in it is durable.
    pub(super) fn pay(&self, owed: Vec<Owed>, items: &[Item<D::File>]) -> Result<Commit, Failure> {
        let mut done = Commit::default();
        if owed.is_empty() {
            return Ok(done);
        }
        let open: HashMap<u64, &Item<D::File>> = items
            .iter()
            .filter(|item| item.staged.is_some())
            .map(|item| (item.arrival.seq, item))
            .collect();
        let mut dirs = BatchDirs::default();
        let mut touched = BTreeSet::new();
        for owed in owed {
            if owed.kind == OwedKind::Reason {
                self.write_reason(&mut dirs, &owed, &mut touched)?;
            } else {
                let item = open.get(&owed.seq).copied();
                if let Some(reason) = self.remove(&mut dirs, &owed, item, &mut touched)? {
                    self.keep(&mut dirs, &owed, reason, &mut done)?;
                }
            }
            done.paid.push((owed.seq, owed.kind));
        }
        self.sync_all(&mut dirs, touched)?;
        for kept in &done.kept {
            self.kept.add(kept);
        }
        Ok(done)
    }

    /// Removes a name: renamed to a hidden one in its own directory, looked at, and only then unlinked, so that a file
    /// that took its place a moment ago is not hit. Gives back why it stays, if it does.
    fn remove(
        &self,
        dirs: &mut BatchDirs<D>,
        owed: &Owed,
        item: Option<&Item<D::File>>,
        touched: &mut BTreeSet<(Root, PathBuf)>,
    ) -> Result<Option<String>, Failure> {
        let root = Root::Input(owed.source);
        let path = self.input_path(owed.source).join(&owed.path);
        let failed = |error: io::Error| Failure::io("remove", &path, &error);
        if !self.inputs.contains_key(&owed.source) {
            return Ok(Some("its staging directory is not there".into()));
        }
        let dir = match self.dir_of(dirs, root, &owed.path, false)? {
            Ok(dir) => dir,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Ok(Some(error.to_string())),
        };
        let parent = owed.path.parent().unwrap_or(Path::new(""));
        touched.insert((root, parent.to_path_buf()));
        let name = name_of(&owed.path);
        let hidden = layout::leaving_name(&self.uuid, owed.seq, owed.kind == OwedKind::Sidecar);
        if self.disk.stat(&dir, &hidden).map_err(failed)?.is_none() {
            let Some(seen) = self.disk.stat(&dir, name).map_err(failed)? else {
                return Ok(None);
            };
            // Whatever has its name by now is a new arrival.
            if !is_meant(owed, &seen) || !self.may_go(dirs, owed, item)? {
                return Ok(None);
            }
            match self.disk.rename(&dir, name, &dir, &hidden) {
                Ok(()) => {}
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => return Ok(Some(error.to_string())),
            }
        }
        let seen = self.disk.stat(&dir, &hidden).map_err(failed)?;
        let meant = seen.is_some_and(|seen| is_meant(owed, &seen));
        let unbroken = item
            .filter(|_| owed.kind != OwedKind::Sidecar)
            .and_then(|item| item.staged.as_ref())
            .is_none_or(|staged| self.disk.unbroken(&staged.file));
        let stays = if meant && unbroken {
            match self.disk.unlink(&dir, &hidden) {
                Ok(()) => return Ok(None),
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => Some(error.to_string()),
            }
        } else {
            None
        };
        // Not ours, or not to be removed: it gets its name back, or the next free one.
        let numbered = layout::numbered(name, owed.seq);
        for name in [name, &numbered] {
            match self.disk.rename(&dir, &hidden, &dir, name) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(stays)
    }

    /// Whether a name may go: nobody came back to the file, and of a duplicate the first is still stored.
    fn may_go(
        &self,
        dirs: &mut BatchDirs<D>,
        owed: &Owed,
        item: Option<&Item<D::File>>,
    ) -> Result<bool, Failure> {
        let staged = item.and_then(|item| item.staged.as_ref());
        if owed.kind != OwedKind::Sidecar
            && staged.is_some_and(|staged| !self.disk.unbroken(&staged.file))
        {
            return Ok(false);
        }
        if owed.kind == OwedKind::Duplicate {
            let Some(arrival) = self.ledger_arrival(owed.seq)? else {
                return Ok(false);
            };
            if let Outcome::Duplicate { of } = arrival.outcome {
                return self.stored_copy_stands(dirs, of);
            }
        }
        Ok(true)
    }

    /// Remembers a file that cannot be removed.
    fn keep(
        &self,
        dirs: &mut BatchDirs<D>,
        owed: &Owed,
        reason: String,
        done: &mut Commit,
    ) -> Result<(), Failure> {
        let path = self.input_path(owed.source).join(&owed.path);
        events::file_kept(&path, &reason);
        if !self.inputs.contains_key(&owed.source) {
            return Ok(());
        }
        let seen = self.look(dirs, Root::Input(owed.source), &owed.path)?;
        if let Some(seen) = seen {
            done.kept.push(Kept {
                source: owed.source,
                path: owed.path.clone(),
                identity: seen.identity,
                seq: owed.seq,
                reason,
            });
        }
        Ok(())
    }

    /// Writes why a file was set aside. What it says is a function of the record, so writing it again is harmless.
    fn write_reason(
        &self,
        dirs: &mut BatchDirs<D>,
        owed: &Owed,
        touched: &mut BTreeSet<(Root, PathBuf)>,
    ) -> Result<(), Failure> {
        let Some(arrival) = self.ledger_arrival(owed.seq)? else {
            return Ok(());
        };
        let (rule, message) = match &arrival.outcome {
            Outcome::Ingest => return Ok(()),
            Outcome::Duplicate { of } => {
                let first = self.first_path(*of);
                let message = format!("same content as arrival {of}, {}", first.display());
                ("duplicate", message)
            }
            Outcome::Quarantine { rule, message } => (rule.as_str(), message.clone()),
        };
        let mut bytes = serde_json::to_vec_pretty(&Reason {
            rule,
            message,
            time: layout::rfc3339(arrival.time_micros),
            sha256: data_encoding::HEXLOWER.encode(&arrival.digest),
            seq: arrival.seq,
            path: self.source_path(&arrival).to_string_lossy().into_owned(),
        })
        .expect("strings and numbers");
        bytes.push(b'\n');
        let path = self.placed_path(&arrival);
        let failed = |error: io::Error| Failure::io("write the reason of", &path, &error);
        let dir = self
            .dir_of(dirs, Root::Warehouse, &owed.path, true)?
            .map_err(failed)?;
        let file = self
            .disk
            .create(&dir, &layout::reason_name(name_of(&owed.path)))
            .map_err(failed)?;
        match self.disk.write_at(&file, &bytes, 0) {
            Ok(()) => {}
            // The record stands without it; a full disk is no reason to stop.
            Err(error) if crate::pipeline::is_no_room(&error) => {
                events::file_failed(
                    &path,
                    "write the reason of",
                    &error.to_string(),
                    "free space",
                );
            }
            Err(error) => return Err(failed(error)),
        }
        self.disk
            .sync_files(&self.warehouse.dir, &[&file])
            .map_err(|error| Failure::sync("sync the reason of", &path, &error))?;
        let parent = owed.path.parent().unwrap_or(Path::new(""));
        touched.insert((Root::Warehouse, parent.to_path_buf()));
        Ok(())
    }
}

/// Whether a name carries the very file that is owed its removal.
fn is_meant(owed: &Owed, seen: &FileStat) -> bool {
    seen.identity.inode == owed.identity.inode
        && seen.identity.size == owed.identity.size
        && seen.identity.mtime == owed.identity.mtime
}
