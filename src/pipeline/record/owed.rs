//! Step 8: what records leave behind. Names that must go, and reasons that must be written.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::io::open::SyncFailed;
use crate::io::{Disk, FileStat, Identity, Timestamp};
use crate::ledger::{Commit, Kept, Ledger, Outcome, Owed, OwedKind, Position};
use crate::observe::events;
use crate::observe::mask::mask;
use crate::pipeline::is_no_room;
use crate::trial::{mutants, points};

use super::classify::is_absent;
use super::hidden::Hidden;
use super::place::name_of;
use super::{BatchDirs, Item, Recorder, Root, layout};

/// Removals that are tried again with the debts of a batch.
const POSTPONED_PER_BATCH: usize = 64;

/// How it went.
enum Removal {
    /// What was owed is done, or no longer there to be done.
    Gone,
    /// The file cannot be removed: where it is now, beneath its root, and why.
    Stays(PathBuf, String),
    /// Not before there is room, and where there is none.
    NoRoom(String),
    /// Not now: the next start tries again.
    Later,
    /// Its staging directory has no room for a hidden name. A later batch tries again.
    Postponed,
}

/// Why a file was set aside, as its `.reason.json` says it: with card numbers masked, in its path too.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reason {
    /// The rule it broke; `duplicate` for content that came before.
    pub rule: String,
    /// What was wrong, for people.
    pub message: String,
    /// Where.
    #[serde(default, skip_serializing_if = "Position::is_unknown")]
    pub position: Position,
    /// When it was taken, in RFC 3339.
    pub time: String,
    /// Its digest, in hex.
    pub sha256: String,
    /// The number of its arrival.
    pub seq: u64,
    /// Where it came from; lossy if that is not UTF-8. Its own name, if that was masked, is beside it.
    pub path: String,
}

/// Longer is no reason of ours, in bytes: two paths of 4,096 bytes, each byte escaped, and some words.
pub const REASON_BYTES_MAX: usize = 1 << 18;

/// The rule of a duplicate.
pub const DUPLICATE_RULE: &str = "duplicate";

/// What the reason of a duplicate says before the number of the first arrival; a comma follows that.
pub const SAME_CONTENT_AS: &str = "same content as arrival ";

impl<D: Disk, L: Ledger> Recorder<D, L> {
    /// Does what is owed. The result rides in a later commit, once everything in it is durable.
    pub(super) fn pay(
        &mut self,
        owed: Vec<Owed>,
        items: &[Item<D::File>],
    ) -> Result<Commit, Failure> {
        let mut done = Commit::default();
        let again = self.postponed.len().min(POSTPONED_PER_BATCH);
        let owed: Vec<Owed> = self.postponed.drain(..again).chain(owed).collect();
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
            let item = open.get(&owed.seq).copied();
            let removal = loop {
                let removal = match owed.kind {
                    OwedKind::Reason => self.write_reason(&mut dirs, &owed, &mut touched)?,
                    _ => self.remove(&mut dirs, &owed, item, &mut touched)?,
                };
                match removal {
                    Removal::NoRoom(reason) => self.wait_for_room(&reason)?,
                    removal => break removal,
                }
            };
            self.go_on();
            match removal {
                Removal::Gone | Removal::NoRoom(_) => {}
                Removal::Postponed => {
                    // It is recorded: until its name is gone it must not be read again.
                    self.kept.add_unseen(&owed);
                    self.postponed.push_back(owed);
                    continue;
                }
                Removal::Stays(path, reason) => {
                    if !self.keep(&mut dirs, &owed, path, reason, &mut done)? {
                        done.owed_told = done.owed_told.max(Some(owed.seq));
                        continue;
                    }
                }
                // The row stays; the next start tries again.
                Removal::Later => {
                    done.owed_told = done.owed_told.max(Some(owed.seq));
                    let input = self.input_path(owed.source);
                    self.metrics.owes_removal(&input.join(&owed.path));
                    continue;
                }
            }
            done.paid.push((owed.seq, owed.kind));
        }
        if !mutants::on("removals_unsynced") {
            self.sync_all(&mut dirs, touched)?;
        }
        for kept in &done.kept {
            self.kept.add(kept);
        }
        Ok(done)
    }

    /// Removes a name: renamed to a hidden one in its own directory, looked at, and only then unlinked, so that a file
    /// that took its place a moment ago is not hit.
    fn remove(
        &self,
        dirs: &mut BatchDirs<D>,
        owed: &Owed,
        item: Option<&Item<D::File>>,
        touched: &mut BTreeSet<(Root, PathBuf)>,
    ) -> Result<Removal, Failure> {
        let root = Root::Input(owed.source);
        let path = self.input_path(owed.source).join(&owed.path);
        let stays = |error: io::Error| Removal::Stays(owed.path.clone(), error.to_string());
        // It was recorded: until its name is gone it must not be read again.
        let later = |seen: Option<Identity>, reason: &str| {
            // An earlier session has said so; `status` goes on to.
            if owed.seq > self.owed_told {
                events::file_kept(&path, reason);
            }
            let by_state = mutants::on("unseen_source_by_state").then_some(owed.identity);
            match seen.or(by_state) {
                Some(identity) => self.kept.add(&Kept {
                    source: owed.source,
                    path: owed.path.clone(),
                    identity,
                    seq: owed.seq,
                    reason: reason.to_owned(),
                }),
                // A power cut may have torn it since it was recorded.
                None => self.kept.add_unseen(owed),
            }
            Ok(match mutants::on("unreachable_debt_paid") {
                true => Removal::Gone,
                false => Removal::Later,
            })
        };
        if !self.inputs.contains_key(&owed.source) {
            return later(None, "its staging directory is not there");
        }
        let dir = match self.dir_of(dirs, root, &owed.path, false)? {
            Ok(dir) => dir,
            Err(error) if is_absent(&error) => return Ok(Removal::Gone),
            Err(error) => return later(None, &error.to_string()),
        };
        let parent = owed.path.parent().unwrap_or(Path::new(""));
        touched.insert((root, parent.to_path_buf()));
        let name = name_of(&owed.path);
        let kind = match owed.kind {
            OwedKind::Sidecar => Hidden::Sidecar,
            _ => Hidden::Leaving,
        };
        let mut hidden = self.hidden.name(kind, owed.seq);
        let mut is_hidden = false;
        for name in self.hidden.names(kind, owed.seq) {
            match self.disk.stat(&dir, &name) {
                Ok(None) => {}
                Ok(Some(_)) => {
                    (hidden, is_hidden) = (name, true);
                    break;
                }
                Err(error) => return later(None, &error.to_string()),
            }
        }
        if !is_hidden {
            let seen = match self.disk.stat(&dir, name) {
                Ok(seen) => seen,
                Err(error) => return later(None, &error.to_string()),
            };
            let Some(seen) = seen else {
                return Ok(Removal::Gone);
            };
            // Whatever has its name by now is a new arrival, or was touched since.
            let recorded = match is_untouched(owed, &seen) {
                true => true,
                false => match self.is_unchanged(&dir, owed, &seen)? {
                    Ok(unchanged) => unchanged,
                    Err(_) if mutants::on("unreadable_debt_paid") => false,
                    Err(error) => return later(Some(seen.identity), &error.to_string()),
                },
            };
            if !recorded || !self.first_stands(dirs, owed)? || self.is_written(owed, item) {
                return Ok(Removal::Gone);
            }
            match self.disk.rename(&dir, name, &dir, &hidden) {
                Ok(()) => {}
                Err(error) if is_absent(&error) => return Ok(Removal::Gone),
                Err(error) if is_no_room(&error) => return Ok(Removal::Postponed),
                Err(error) => return Ok(stays(error)),
            }
        }
        points::reached("source_hidden");
        // That may take long, if the first has to be read: what can change meanwhile is looked at after it.
        let first_stands = self.first_stands(dirs, owed)?;
        let seen = match self.disk.stat(&dir, &hidden) {
            Ok(Some(seen)) => Some(seen),
            // Its uploader has found it, and taken it away.
            Ok(None) => return Ok(Removal::Gone),
            Err(error) => return later(None, &error.to_string()),
        };
        let meant = seen.is_some_and(|seen| is_meant(owed, &seen))
            || mutants::on("hidden_file_not_looked_at");
        let mut denied = None;
        if meant && first_stands && !self.is_written(owed, item) {
            match self.disk.unlink(&dir, &hidden) {
                Ok(()) => {
                    points::reached("source_removed");
                    return Ok(Removal::Gone);
                }
                Err(error) if is_absent(&error) => return Ok(Removal::Gone),
                Err(error) if is_no_room(&error) => return Ok(Removal::Postponed),
                Err(error) => denied = Some(error.to_string()),
            }
        }
        // Not ours, or not to be removed: it gets its name back, or the next free one.
        let numbered = layout::numbered(name, owed.seq);
        for name in [name, &numbered] {
            match self.disk.rename(&dir, &hidden, &dir, name) {
                Ok(()) => {
                    return Ok(match denied {
                        Some(reason) => Removal::Stays(parent.join(name), reason),
                        None => Removal::Gone,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if is_absent(&error) => return Ok(Removal::Gone),
                // In a sticky directory what somebody put there is his to move.
                Err(error) => return later(seen.map(|seen| seen.identity), &error.to_string()),
            }
        }
        later(
            seen.map(|seen| seen.identity),
            "its name and the next one are taken",
        )
    }

    /// Whether somebody came back to the file.
    fn is_written(&self, owed: &Owed, item: Option<&Item<D::File>>) -> bool {
        let staged = item.and_then(|item| item.staged.as_ref());
        owed.kind != OwedKind::Sidecar
            && staged.is_some_and(|staged| !self.disk.unbroken(&staged.file))
            && !mutants::on("written_source_removed")
    }

    /// Whether, of a duplicate, the first is still stored.
    fn first_stands(&self, dirs: &mut BatchDirs<D>, owed: &Owed) -> Result<bool, Failure> {
        if owed.kind != OwedKind::Duplicate || mutants::on("first_copy_not_looked_at") {
            return Ok(true);
        }
        let Some(arrival) = self.ledger_arrival(owed.seq)? else {
            return Ok(false);
        };
        match arrival.outcome {
            Outcome::Duplicate { of } => Ok(self.stored_copy_stands(dirs, of)?.unwrap_or(false)),
            _ => Ok(true),
        }
    }

    /// Whether a file that was touched holds what was recorded all the same, by its bytes: perhaps it was given its name
    /// back, and a crash came before that was noted. The inner error is that of reading it.
    fn is_unchanged(
        &self,
        dir: &D::Dir,
        owed: &Owed,
        seen: &FileStat,
    ) -> Result<io::Result<bool>, Failure> {
        let (was, is) = (&owed.identity, &seen.identity);
        let same = is.same_inode(was) && is.size == was.size && is.mtime == was.mtime;
        if owed.kind == OwedKind::Sidecar || !same {
            return Ok(Ok(false));
        }
        let Some(arrival) = self.ledger_arrival(owed.seq)? else {
            return Ok(Ok(false));
        };
        let file = match self.disk.open(dir, name_of(&owed.path)) {
            Ok(file) => file,
            // Who writes to it now has more to say.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_absent(&error) => {
                return Ok(Ok(false));
            }
            Err(error) => return Ok(Err(error)),
        };
        let path = self.input_path(owed.source).join(&owed.path);
        let digest = self.digest_of(&file, &path)?;
        Ok(digest.map(|digest| digest == arrival.digest))
    }

    /// Remembers a file that cannot be removed, by the name that it has now. False if it stays owed.
    fn keep(
        &self,
        dirs: &mut BatchDirs<D>,
        owed: &Owed,
        path: PathBuf,
        reason: String,
        done: &mut Commit,
    ) -> Result<bool, Failure> {
        let root = Root::Input(owed.source);
        let shown = self.input_path(owed.source).join(&path);
        if owed.seq > self.owed_told {
            events::file_kept(&shown, &reason);
        }
        // It is known by its state, and that must outlive a power cut.
        let opened = self
            .dir_of(dirs, root, &path, false)?
            .and_then(|dir| self.disk.open(&dir, name_of(&path)));
        let durable = match opened {
            Ok(file) => {
                self.disk
                    .sync_files(self.root(root)?, &[&file])
                    .map_err(|error| Failure::sync("sync", &shown, &error))?;
                true
            }
            Err(_) => mutants::on("unsynced_state_kept"),
        };
        // What has its name by now is an arrival.
        let Ok(seen) = self.look(dirs, root, &path)? else {
            self.kept.add_unseen(owed);
            return Ok(false);
        };
        let Some(seen) = seen.filter(|seen| seen.identity.same_inode(&owed.identity)) else {
            return Ok(true);
        };
        // Under another name what is owed would not find it.
        self.metrics.owes_removal(&shown);
        let stays_owed = !durable && path == owed.path;
        let kept = Kept {
            source: owed.source,
            path,
            identity: seen.identity,
            seq: owed.seq,
            reason,
        };
        if stays_owed {
            self.kept.add(&kept);
        } else {
            done.kept.push(kept);
        }
        Ok(!stays_owed)
    }

    /// Writes why a file was set aside. What it says is a function of the record, so writing it again is harmless.
    fn write_reason(
        &self,
        dirs: &mut BatchDirs<D>,
        owed: &Owed,
        touched: &mut BTreeSet<(Root, PathBuf)>,
    ) -> Result<Removal, Failure> {
        let Some(arrival) = self.ledger_arrival(owed.seq)? else {
            return Ok(Removal::Gone);
        };
        let nowhere = Position::default();
        let (rule, message, position) = match &arrival.outcome {
            Outcome::Ingest => return Ok(Removal::Gone),
            Outcome::Duplicate { of } => {
                let first = self.first_path(*of);
                let message = format!("{SAME_CONTENT_AS}{of}, {}", first.display());
                (DUPLICATE_RULE, message, &nowhere)
            }
            Outcome::Quarantine {
                rule,
                message,
                position,
            } => (rule.as_str(), message.clone(), position),
        };
        let mut bytes = serde_json::to_vec_pretty(&Reason {
            rule: rule.to_string(),
            message: mask(&message).into_owned(),
            position: position.masked(),
            time: layout::rfc3339(arrival.time_micros),
            sha256: data_encoding::HEXLOWER.encode(&arrival.digest),
            seq: arrival.seq,
            path: mask(&self.source_path(&arrival).to_string_lossy()).into_owned(),
        })
        .expect("strings and numbers");
        bytes.push(b'\n');
        let path = self.placed_path(&arrival);
        let failed = |error: io::Error| Failure::io("write the reason of", &path, &error);
        let written = self
            .dir_of(dirs, Root::Warehouse, &owed.path, true)?
            .and_then(|dir| {
                let name = layout::reason_name(name_of(&owed.path));
                let file = self.disk.create(&dir, &name)?;
                if !self.is_begun(&file, &bytes)? && !mutants::on("reason_overwrites") {
                    return Err(rustix::io::Errno::EXIST.into());
                }
                self.disk.write_at(&file, &bytes, 0)?;
                Ok(file)
            });
        let file = match written {
            Ok(file) => file,
            Err(error) if is_no_room(&error) => {
                return Ok(no_room("write the reason of", &path, &error));
            }
            Err(error) if SyncFailed::is(&error) => {
                return Err(Failure::sync("sync the reason of", &path, &error));
            }
            // A directory may have its name, or the path be too long: nobody else is to wait for that.
            Err(error) if is_in_the_way(&error) => {
                if owed.seq > self.owed_told {
                    let remedy = "the next start tries again; look at what is in its way";
                    events::file_failed(&path, "write the reason of", &error.to_string(), remedy);
                }
                return Ok(Removal::Later);
            }
            Err(error) => return Err(failed(error)),
        };
        points::reached("reason_written");
        if !mutants::on("reason_unsynced") {
            self.disk
                .sync_files(&self.warehouse.dir, &[&file])
                .map_err(|error| Failure::sync("sync the reason of", &path, &error))?;
        }
        let parent = owed.path.parent().unwrap_or(Path::new(""));
        touched.insert((Root::Warehouse, parent.to_path_buf()));
        Ok(Removal::Gone)
    }
}

impl<D: Disk, L: Ledger> Recorder<D, L> {
    /// Whether a file is new, or what a crash has left of the one that is to hold `bytes`: some of them, or zeros. Any other was
    /// set aside under that name.
    fn is_begun(&self, file: &D::File, bytes: &[u8]) -> io::Result<bool> {
        let size = self.disk.stat_file(file)?.identity.size;
        if size == 0 || size > bytes.len() as u64 {
            return Ok(size == 0);
        }
        if self.suspect {
            self.disk.forget_cached(file).map_err(SyncFailed::mark)?;
        }
        let mut there = vec![0; size as usize];
        let read = self.disk.read_at(file, &mut there, 0)?;
        let mut pairs = there[..read].iter().zip(bytes);
        Ok(pairs.all(|(there, wanted)| there == wanted || *there == 0))
    }
}

/// Whether an error is that of a name, not of the disk.
fn is_in_the_way(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::ISDIR | Errno::NOTDIR | Errno::EXIST | Errno::NAMETOOLONG | Errno::LOOP)
    )
}

fn no_room(operation: &str, path: &Path, error: &io::Error) -> Removal {
    Removal::NoRoom(format!(
        "no room to {operation} {}: {error}",
        path.display()
    ))
}

/// Whether a name in staging carries the file that was recorded, as it was then or before. Nobody need have synced it: a
/// power cut can take its last bytes and changes, but cannot make it younger. Where an inode does not say when it was made, its
/// number may be another file's, and only what is just as it was recorded is meant.
fn is_untouched(owed: &Owed, seen: &FileStat) -> bool {
    let (seen, owed) = (&seen.identity, &owed.identity);
    if mutants::on("touched_source_removed") {
        return seen.same_inode(owed);
    }
    match seen.born == Timestamp::default() || owed.born == Timestamp::default() {
        true => seen.inode == owed.inode && seen.ctime == owed.ctime && seen.size == owed.size,
        false => seen.same_inode(owed) && seen.ctime <= owed.ctime,
    }
}

/// Whether a hidden name carries it: hiding it changed its ctime. Who writes to it now has had it open since before it was
/// hashed, and makes it later than its recorded state; a power cut makes it what it was before.
fn is_meant(owed: &Owed, seen: &FileStat) -> bool {
    let (seen, owed) = (&seen.identity, &owed.identity);
    seen.same_inode(owed) && (seen.mtime == owed.mtime || seen.mtime <= owed.ctime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::SourceId;
    use rustix::fs::FileType;

    fn time(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    #[test]
    fn an_inode_that_does_not_say_when_it_was_made_must_be_as_it_was_recorded() {
        let recorded = crate::io::Identity {
            inode: 1,
            size: 2,
            mtime: time(3),
            ctime: time(4),
            ..Default::default()
        };
        let owed = Owed {
            seq: 1,
            kind: OwedKind::Source,
            source: SourceId(1),
            path: "a.csv".into(),
            identity: recorded,
        };
        let seen = |change: fn(&mut crate::io::Identity)| {
            let mut seen = FileStat {
                identity: recorded,
                kind: FileType::RegularFile,
                links: 1,
                mode: 0o644,
                uid: 0,
                gid: 0,
                blocks: 0,
            };
            change(&mut seen.identity);
            is_untouched(&owed, &seen)
        };
        assert!(seen(|_| ()));
        assert!(!seen(|seen| seen.inode = 9));
        assert!(!seen(|seen| seen.size = 1));
        assert!(!seen(|seen| seen.ctime = time(5)));
        // Torn by a power cut, perhaps, or another file with the same number.
        assert!(!seen(|seen| seen.ctime = time(3)));
    }
}
