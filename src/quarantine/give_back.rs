//! The steps of a retry and of a drop. Each ends with the directory synced in which something was changed.
//!
//! | step of a retry | a crash after it leaves | another retry |
//! |---|---|---|
//! | 1 the file gets a hidden name in its own directory in staging: it is renamed or, across filesystems, copied and synced | the hidden name, and that in quarantine (a copy, or a power cut) | removes the hidden name and begins again |
//! | | the hidden name alone | goes on at 3 |
//! | 2 its name in quarantine goes (of a copy; a rename took it) | the hidden name alone | goes on at 3 |
//! | 3 the hidden name becomes its own, if that is free | the file in staging, and its reason | removes the reason |
//! | 4 its reason goes | the file in staging | finds nothing to do |
//!
//! Intake sees the file after step 3, when its name in quarantine is gone for good, so it is recorded once. If a power cut
//! takes step 3 back although a running instance has recorded a copy of the file meanwhile, the hidden name shows the inode of
//! that record, and goes.
//!
//! A drop removes the hidden name, if there is one, then the file, then its reason; another drop goes on wherever it ended.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::failure::{Exit, Failure};
use crate::io::disk::DirHandle;
use crate::io::open::{self, SyncFailed};
use crate::io::{Disk, FileStat};
use crate::ledger::{Arrival, RecordState};
use crate::pipeline::read::copy::CopyTarget;
use crate::pipeline::record::{CHANGED_RULE, dirs, is_absent, is_stored_copy, layout};
use crate::rebuild::digest_of;
use crate::settings::Layout;
use crate::trial::{mutants, points};

use super::{CHUNK, Held, Quarantine, ReasonBeside, State, lock_against_others, reason_beside};

/// How long a running instance may take to write the reason of a file that it has just set aside.
const REASON_PATIENCE: Duration = Duration::from_secs(2);
const REASON_POLL: Duration = Duration::from_millis(20);
/// Bytes copied at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// What a retry came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Returned {
    /// It is in staging, under this path.
    To(PathBuf),
    /// Nothing was left of it but its reason, which is removed.
    ReasonOnly,
    /// An earlier retry had given it back, and it was recorded since; what was left is removed.
    Before,
}

/// The right to change what lies in quarantine, for as long as this lives.
pub struct Changes<'a> {
    quarantine: &'a Quarantine,
    _locked: OwnedFd,
}

/// A name in an open directory, and how people know it.
struct Name<'a> {
    dir: &'a DirHandle,
    name: &'a OsStr,
    path: PathBuf,
}

impl Quarantine {
    /// Keeps everybody else from giving back or dropping.
    ///
    /// # Errors
    /// Somebody else does (75).
    pub fn change(&self) -> Result<Changes<'_>, Failure> {
        Ok(Changes {
            quarantine: self,
            _locked: lock_against_others(self.ledger.dir())?,
        })
    }
}

impl Changes<'_> {
    /// Gives a file back to the staging directory whence it came, under the path that it had there.
    ///
    /// # Errors
    /// [`Exit::Data`]: this file stays as it is. Others: an error of the disk; what was begun, another retry finishes. One of
    /// a sync ([`Failure::suspect`]) is final.
    pub fn give_back(&self, seq: u64) -> Result<Returned, Failure> {
        let held = self.settled(seq)?;
        let arrival = &held.arrival;
        let place = self.quarantine.quarantine_path(arrival);
        let staging = self.staging(&held)?;
        if held.state == State::Missing {
            self.remove_reason(arrival)?;
            return Ok(Returned::ReasonOnly);
        }
        let own = self.in_staging(&held, &staging, name_of(&arrival.path));
        let (hidden, _) = self.quarantine.hidden(arrival)?;
        let hidden = self.in_staging(&held, &staging, &hidden);
        let lies_in = self.quarantine_dir(arrival)?;
        let placed = Name {
            dir: &lies_in,
            name: name_of(&arrival.placed),
            path: place,
        };
        let at_hidden = self.stat(&hidden)?;
        match (held.state, &at_hidden) {
            (State::GivingBack, Some(seen)) => {
                if self.is_recorded_since(arrival, seen)?
                    && !mutants::on("retried_record_unnoticed")
                {
                    self.unlink(&hidden)?;
                    self.sync_dir(&hidden)?;
                    self.remove_reason(arrival)?;
                    return Ok(Returned::Before);
                }
                self.require_itself(arrival, &hidden, seen)?;
                self.require_free(&own, &hidden)?;
            }
            _ => {
                self.require_free(&own, &placed)?;
                if let Some(seen) = &held.seen
                    && at_hidden.is_some()
                {
                    // The hidden one is half a copy, or the same file: if what lies there is what was recorded.
                    self.require_itself(arrival, &placed, seen)?;
                    self.unlink(&hidden)?;
                }
                let copied = self.hide(&placed, &hidden)?;
                points::reached("retry_hidden");
                self.sync_dir(&hidden)?;
                points::reached("retry_hidden_synced");
                if copied && !mutants::on("retried_copy_left") {
                    self.unlink(&placed)?;
                    points::reached("retry_source_removed");
                }
            }
        }
        // In this order, and after an interrupted retry again: nothing says what that one had synced.
        self.sync_dir(&hidden)?;
        if !mutants::on("left_name_unsynced") {
            self.sync_dir(&placed)?;
        }
        points::reached("retry_left");
        let renamed = self
            .quarantine
            .disk
            .rename(hidden.dir, hidden.name, own.dir, own.name);
        match renamed {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(taken(&own, &hidden));
            }
            Err(error) => return Err(Failure::io("give its name back to", &own.path, &error)),
        }
        points::reached("retry_named");
        self.sync_dir(&own)?;
        points::reached("retry_named_synced");
        self.remove_reason(arrival)?;
        Ok(Returned::To(own.path))
    }

    /// Removes a file, and its reason, for good.
    ///
    /// # Errors
    /// As for [`Changes::give_back`].
    pub fn drop_for_good(&self, seq: u64) -> Result<(), Failure> {
        let held = self.settled(seq)?;
        let arrival = &held.arrival;
        if held.state == State::Missing {
            // What an interrupted retry left may lie there; without its reason nobody would look for it.
            self.staging(&held)?;
        }
        if let (name, Some(_)) = self.quarantine.hidden(arrival)? {
            let staging = self.staging(&held)?;
            let hidden = self.in_staging(&held, &staging, &name);
            self.unlink(&hidden)?;
            self.sync_dir(&hidden)?;
            points::reached("drop_hidden_removed");
        }
        if held.state == State::Quarantined {
            let dir = self.quarantine_dir(arrival)?;
            let placed = Name {
                dir: &dir,
                name: name_of(&arrival.placed),
                path: self.quarantine.quarantine_path(arrival),
            };
            self.unlink(&placed)?;
            points::reached("drop_file_removed");
            self.sync_dir(&placed)?;
            points::reached("drop_file_synced");
        }
        self.remove_reason(arrival)
    }

    /// A file that the recorder is done with.
    fn settled(&self, seq: u64) -> Result<Held, Failure> {
        let held = self.quarantine.numbered(seq)?;
        let place = self.quarantine.quarantine_path(&held.arrival);
        let refuse = |cause: &str, remedy: &str| {
            Err(Failure::new(Exit::Data, "take", &place, cause, remedy))
        };
        let deadline = Instant::now() + REASON_PATIENCE;
        while self.quarantine.owes_reason(seq)? && !mutants::on("owed_reason_unawaited") {
            // It would be written to the place of a file that is gone.
            if Instant::now() > deadline {
                return refuse(
                    "it was set aside, and its reason is still to be written",
                    "try again once `ringest run` has written it; it does so when it starts, and when there is room",
                );
            }
            std::thread::sleep(REASON_POLL);
        }
        match self.quarantine.numbered(seq)? {
            held if held.state == State::Gone => refuse(
                "it does not lie there any more: it was given back, dropped, or taken away",
                "`ringest find` shows what became of it if it came again",
            ),
            held => Ok(held),
        }
    }

    /// The directory in staging whence a file came. It is made if it is gone, as long as the staging directory is there.
    fn staging(&self, held: &Held) -> Result<DirHandle, Failure> {
        let input = &held.source.input;
        let root = match open::root_dir(input) {
            Ok(root) => Arc::new(root),
            Err(error) if is_absent(&error) => {
                return Err(Failure::new(
                    Exit::Data,
                    "give a file back to",
                    input,
                    format!("the staging directory of this source is not there: {error}"),
                    "mount it or make it, then try again",
                ));
            }
            Err(error) => return Err(Failure::io("open the staging directory", input, &error)),
        };
        let parent = held.arrival.path.parent().unwrap_or(Path::new(""));
        let path = input.join(parent);
        dirs::ensure_dir(&self.quarantine.disk, &root, parent).map_err(
            |error| match SyncFailed::is(&error) {
                true => Failure::sync("sync the parent of", &path, &error),
                false => Failure::io("open or make the directory", &path, &error),
            },
        )
    }

    fn in_staging<'n>(&self, held: &Held, dir: &'n DirHandle, name: &'n OsStr) -> Name<'n> {
        let path = held.source.input.join(&held.arrival.path);
        Name {
            dir,
            name,
            path: path.with_file_name(name),
        }
    }

    fn quarantine_dir(&self, arrival: &Arrival) -> Result<DirHandle, Failure> {
        let parent = arrival.placed.parent().unwrap_or(Path::new(""));
        let Quarantine { disk, root, .. } = self.quarantine;
        disk.open_dir(root, parent).map_err(|error| {
            let path = self.quarantine.warehouse.join(parent);
            Failure::io("open the directory", &path, &error)
        })
    }

    /// Step 1. True if the file was copied, and is still there.
    fn hide(&self, placed: &Name<'_>, hidden: &Name<'_>) -> Result<bool, Failure> {
        let disk = &self.quarantine.disk;
        match disk.rename(placed.dir, placed.name, hidden.dir, hidden.name) {
            Ok(()) => Ok(false),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::XDEV) => {
                let copied = self.copy(placed, hidden);
                if copied.is_err() {
                    // Half a copy is worth nothing; what stays of it, another retry removes.
                    let _ = disk.unlink(hidden.dir, hidden.name);
                }
                copied.map(|()| true)
            }
            Err(error) => Err(Failure::io("move out of quarantine", &placed.path, &error)),
        }
    }

    /// Copies a file, with its times, mode, owner, attributes and holes, and makes its bytes durable.
    fn copy(&self, from: &Name<'_>, to: &Name<'_>) -> Result<(), Failure> {
        let disk = &self.quarantine.disk;
        let reading = |error: io::Error| Failure::io("read", &from.path, &error);
        let writing = |error: io::Error| Failure::io("write", &to.path, &error);
        let file = disk.open(from.dir, from.name).map_err(reading)?;
        let before = disk.stat_file(&file).map_err(reading)?;
        let target = CopyTarget::named(to.dir, to.name, &before).map_err(writing)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut offset = 0;
        loop {
            let bytes = disk.read_at(&file, &mut buffer, offset).map_err(reading)?;
            if bytes == 0 {
                break;
            }
            target.write(&buffer[..bytes], offset).map_err(writing)?;
            offset += bytes as u64;
        }
        if disk.stat_file(&file).map_err(reading)?.identity != before.identity {
            let remedy = "stop whoever does, and try again; it is still in quarantine";
            let cause = "somebody writes to it";
            return Err(Failure::new(Exit::Data, "copy", &from.path, cause, remedy));
        }
        let copied = target
            .finish(&file, &before, &Layout::default())
            .map_err(writing)?;
        if mutants::on("returned_copy_unsynced") {
            return Ok(());
        }
        disk.sync_files(to.dir, &[&copied.file])
            .map_err(|error| Failure::sync("sync", &to.path, &error))
    }

    /// Whether the file with the hidden name is one that was recorded again already.
    fn is_recorded_since(&self, arrival: &Arrival, seen: &FileStat) -> Result<bool, Failure> {
        let mut next = arrival.seq + 1;
        loop {
            let records = self.quarantine.ledger.records_from(next, CHUNK)?;
            let Some(last) = records.last() else {
                return Ok(false);
            };
            next = last.seq + 1;
            let found = records.into_iter().any(|record| {
                matches!(record.state, RecordState::Done { arrival: later, .. }
                    if (later.source, &later.path) == (arrival.source, &arrival.path)
                        && later.identity.same_inode(&seen.identity)
                        && later.identity.size == seen.identity.size
                        && later.identity.mtime == seen.identity.mtime)
            });
            if found {
                return Ok(true);
            }
        }
    }

    /// Refuses to go on with a file that is not the recorded one.
    fn require_itself(
        &self,
        arrival: &Arrival,
        at: &Name<'_>,
        seen: &FileStat,
    ) -> Result<(), Failure> {
        // The record of one that changed after it was placed has the digest of what it was. Of any other, size and mtime say
        // nothing: its owner may set them.
        let changed = matches!(&arrival.outcome,
            crate::ledger::Outcome::Quarantine { rule, .. } if rule == CHANGED_RULE);
        if changed && seen.identity.inode == arrival.placed_inode {
            return Ok(());
        }
        if is_stored_copy(seen, arrival) == Some(true) {
            return Ok(());
        }
        let digest = digest_of(&self.quarantine.disk, at.dir, at.name)
            .map_err(|error| Failure::io("read", &at.path, &error))?;
        match digest == arrival.digest || mutants::on("retried_file_unchecked") {
            true => Ok(()),
            false => Err(Failure::new(
                Exit::Data,
                "go on with an interrupted retry of",
                &at.path,
                "its content is not that which was quarantined",
                "nothing is touched: look at it, and at what else is there of the file (`ringest quarantine show`)",
            )),
        }
    }

    /// Refuses to go on where a file has the name that is to be given back. `lies` is where this one is meanwhile.
    fn require_free(&self, own: &Name<'_>, lies: &Name<'_>) -> Result<(), Failure> {
        match self.stat(own)? {
            None => Ok(()),
            Some(_) => Err(taken(own, lies)),
        }
    }

    /// Step 4.
    fn remove_reason(&self, arrival: &Arrival) -> Result<(), Failure> {
        let dir = self.quarantine_dir(arrival)?;
        let name = layout::reason_name(name_of(&arrival.placed));
        let place = self.quarantine.quarantine_path(arrival);
        let reason = Name {
            dir: &dir,
            name: &name,
            path: place.with_file_name(&name),
        };
        let beside = reason_beside(&self.quarantine.root, &arrival.placed)
            .map_err(|error| Failure::io("read", &reason.path, &error))?;
        match beside {
            ReasonBeside::Of(seq) if seq != arrival.seq => return Ok(()),
            ReasonBeside::Absent => return Ok(()),
            ReasonBeside::Of(_) | ReasonBeside::Unknown => self.unlink(&reason)?,
        }
        points::reached("reason_removed");
        self.sync_dir(&reason)?;
        points::reached("reason_removal_synced");
        Ok(())
    }

    fn stat(&self, at: &Name<'_>) -> Result<Option<FileStat>, Failure> {
        let seen = self.quarantine.disk.stat(at.dir, at.name);
        seen.map_err(|error| Failure::io("look at", &at.path, &error))
    }

    fn unlink(&self, at: &Name<'_>) -> Result<(), Failure> {
        match self.quarantine.disk.unlink(at.dir, at.name) {
            Err(error) if !is_absent(&error) => Err(Failure::io("remove", &at.path, &error)),
            _ => Ok(()),
        }
    }

    /// Makes the names in the directory of this one durable.
    fn sync_dir(&self, at: &Name<'_>) -> Result<(), Failure> {
        let path = at.path.parent().unwrap_or(Path::new(""));
        let synced = self.quarantine.disk.sync_dir(at.dir);
        synced.map_err(|error| Failure::sync("sync the directory", path, &error))
    }
}

fn taken(own: &Name<'_>, lies: &Name<'_>) -> Failure {
    Failure::new(
        Exit::Data,
        "give back",
        &own.path,
        "another file has that name",
        format!(
            "move that one away and try again; this one stays where it is, {}",
            lies.path.display()
        ),
    )
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}
