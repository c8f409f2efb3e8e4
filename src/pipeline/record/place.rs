//! Steps 4 to 6: moving names, making them durable, and making sure that what was placed is what was hashed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::failure::Failure;
use crate::io::probe::Ctimes;
use crate::io::{Disk, FileStat, TICK, Timestamp};
use crate::ledger::{Arrival, Ledger, Outcome, Placement, Position, SourceId};
use crate::observe::events;
use crate::pipeline::read::access;
use crate::pipeline::{Fate, Staged, Waiting};
use crate::trial::{mutants, points};

use super::classify::{fate_of, is_absent, is_full};
use super::{BatchDirs, Item, Recorder, Root, layout};

/// Rule of a file that changed after it was placed and whose own name is taken.
pub const CHANGED_RULE: &str = "changed_after_placement";

/// How long a file rests that a writer came back to.
const CHANGED_REST: Duration = Duration::from_millis(50);

impl<D: Disk, L: Ledger> Recorder<D, L> {
    /// Step 4: every file gets its name in the warehouse. What cannot be placed is dropped from the batch.
    pub(super) fn place(
        &self,
        dirs: &mut BatchDirs<D>,
        items: &mut [Item<D::File>],
    ) -> Result<(), Failure> {
        self.sync_claims(dirs, items)?;
        for item in items {
            let Some(staged) = &item.staged else { continue };
            let arrival = &item.arrival;
            let source = Root::Input(arrival.source);
            let placed = match (arrival.placement, &staged.copy) {
                (Placement::Rename, _) => {
                    // A rename moves whatever has the name by now; most replacements are seen here.
                    let seen = match self.look(dirs, source, &arrival.path)? {
                        Ok(seen) => seen,
                        Err(error) => {
                            let path = self.source_path(arrival);
                            item.dropped = Some(fate_of(&error, "look at", &path));
                            continue;
                        }
                    };
                    if seen.is_some_and(|seen| !seen.identity.same_inode(&arrival.identity)) {
                        events::file_changed(
                            &self.source_path(arrival),
                            "replaced before it was placed",
                        );
                        item.dropped = Some(Fate::Again {
                            after: Duration::ZERO,
                            why: Waiting::Still,
                        });
                        continue;
                    }
                    match self.move_name(
                        dirs,
                        (source, &arrival.path),
                        (Root::Warehouse, &arrival.placed),
                    )? {
                        Ok(()) => Ok(()),
                        Err(error) => Err(error),
                    }
                }
                (Placement::Copy, Some(copy)) => match &copy.temporary {
                    None => match self.dir_of(dirs, Root::Warehouse, &arrival.placed, true)? {
                        Ok(dir) => self.disk.link(&copy.file, &dir, name_of(&arrival.placed)),
                        Err(error) => Err(error),
                    },
                    Some(temporary) => {
                        let temporary = Path::new(layout::TMP_DIR).join(temporary.name());
                        self.move_name(
                            dirs,
                            (Root::Warehouse, &temporary),
                            (Root::Warehouse, &arrival.placed),
                        )?
                    }
                },
                _ => continue,
            };
            match placed {
                Ok(()) => points::reached("placed_one"),
                Err(error) => {
                    item.dropped = Some(self.fate_of_failed_placement(dirs, arrival, &error)?);
                }
            }
        }
        Ok(())
    }

    fn fate_of_failed_placement(
        &self,
        dirs: &mut BatchDirs<D>,
        arrival: &Arrival,
        error: &io::Error,
    ) -> Result<Fate, Failure> {
        let again = Fate::Again {
            after: Duration::ZERO,
            why: Waiting::Turn,
        };
        Ok(match Errno::from_io_error(error) {
            // Somebody took the name since it was chosen: the next one is tried.
            Some(Errno::EXIST) => again,
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                match self.look(dirs, Root::Input(arrival.source), &arrival.path)? {
                    // It was the destination's directory that went.
                    Ok(Some(_)) => again,
                    Ok(None) => Fate::Withdrawn,
                    Err(error) => fate_of(&error, "look at", &self.source_path(arrival)),
                }
            }
            // Another filesystem after all, or a file we may read but not take away.
            Some(Errno::XDEV | Errno::PERM | Errno::ACCESS)
                if arrival.placement == Placement::Rename =>
            {
                Fate::NeedsCopy
            }
            // The same words for every file: it is told once.
            _ if is_full(error) => Fate::NoRoom(format!(
                "no room in the warehouse {}: {error}",
                self.warehouse.path.display()
            )),
            _ => fate_of(error, "move", &self.source_path(arrival)),
        })
    }

    /// Step 5: destination directories first.
    pub(super) fn sync_destinations(
        &self,
        dirs: &mut BatchDirs<D>,
        items: &[Item<D::File>],
    ) -> Result<(), Failure> {
        let placed = placed(items).filter(|arrival| arrival.placement != Placement::None);
        let parents = placed.map(|arrival| (Root::Warehouse, parent(&arrival.placed)));
        self.sync_all(dirs, parents.collect())
    }

    /// Before step 4: what is to be placed is durable in its claim directory, and gone from its input. So whatever is in the
    /// warehouse has its source, if any, where recovery looks for it.
    fn sync_claims(&self, dirs: &mut BatchDirs<D>, items: &[Item<D::File>]) -> Result<(), Failure> {
        let claimed = placed(items).filter(|it| self.claimed_from.contains_key(&it.source));
        let claimed: Vec<(SourceId, PathBuf)> =
            claimed.map(|it| (it.source, parent(&it.path))).collect();
        let parents = |root: fn(SourceId) -> Root| {
            let claimed = claimed.iter();
            claimed
                .map(|(source, path)| (root(*source), path.clone()))
                .collect()
        };
        if !mutants::on("claims_unsynced") {
            self.sync_all(dirs, parents(Root::Input))?;
        }
        if !mutants::on("claimed_names_unsynced") {
            self.sync_all(dirs, parents(Root::ClaimedFrom))?;
        }
        Ok(())
    }

    /// Step 5: then the directories whence files were renamed.
    pub(super) fn sync_sources(
        &self,
        dirs: &mut BatchDirs<D>,
        items: &[Item<D::File>],
    ) -> Result<(), Failure> {
        let renamed = placed(items).filter(|arrival| arrival.placement == Placement::Rename);
        let parents = renamed.map(|arrival| (Root::Input(arrival.source), parent(&arrival.path)));
        self.sync_all(dirs, parents.collect())
    }

    pub(super) fn sync_all(
        &self,
        dirs: &mut BatchDirs<D>,
        wanted: BTreeSet<(Root, PathBuf)>,
    ) -> Result<(), Failure> {
        for (root, path) in wanted {
            let place = match root {
                Root::Warehouse => self.warehouse.path.join(&path),
                Root::Input(source) | Root::ClaimedFrom(source) => {
                    self.input_path(source).join(&path)
                }
            };
            // Opened before, or found again by recovery; gone only if somebody removed it, and then it holds nothing.
            match self.dir_of(dirs, root, &path.join("_"), false)? {
                Ok(dir) => mutants::forgiven("failed_directory_sync", self.disk.sync_dir(&dir))
                    .map_err(|error| Failure::sync("sync the directory", &place, &error))?,
                Err(error) if is_absent(&error) => {}
                // Its owner keeps us out of it. What was done in it becomes durable with everything else there.
                Err(_) if root != Root::Warehouse => self
                    .disk
                    .sync_filesystem(self.root(root)?)
                    .map_err(|error| Failure::sync("sync the filesystem of", &place, &error))?,
                Err(error) => return Err(Failure::io("open the directory", &place, &error)),
            }
        }
        Ok(())
    }

    /// Step 6: what is in the warehouse now must be what was hashed. What is not is undone.
    pub(super) fn check_again(
        &self,
        dirs: &mut BatchDirs<D>,
        items: &mut [Item<D::File>],
    ) -> Result<(), Failure> {
        let mut touched = BTreeSet::new();
        for item in items.iter_mut() {
            let placed = item.arrival.placement != Placement::None;
            if item.dropped.is_some() || item.set_aside || !placed {
                continue;
            }
            let arrival = &item.arrival;
            let seen = self.look_in_warehouse(dirs, &arrival.placed)?;
            let staged = item.staged.as_ref();
            let open = staged.map(|staged| &staged.file).or(item.held.as_ref());
            let unbroken =
                open.is_none_or(|file| self.disk.unbroken(file)) || mutants::on("lease_unchecked");
            let copy = staged.and_then(|staged| staged.copy.as_ref());
            let mtime = match arrival.placement {
                Placement::Copy => copy.map(|copy| copy.stat.identity.mtime),
                _ => Some(arrival.identity.mtime),
            };
            let as_hashed = |stat: &FileStat| {
                is_as_hashed(arrival, mtime, stat)
                    && staged.is_none_or(|staged| has_its_rights(staged, stat))
            };
            if unbroken && let Some(seen) = seen.filter(as_hashed) {
                // A copy is open for writing, and so without a lease.
                let leased = copy.is_none() && open.is_some_and(|file| self.disk.is_leased(file));
                item.arrival.placed_ctime = seen.identity.ctime;
                item.arrival.ctime_vouches = self.ctime_vouches(leased, &seen);
                continue;
            }
            // A placed name was moved by somebody else, or its file was written to.
            self.undo(dirs, item, seen, &mut touched)?;
            points::reached("taken_back");
        }
        self.sync_undone(dirs, touched)
    }

    /// Makes what was taken back durable in staging before it leaves the warehouse for good.
    pub(super) fn sync_undone(
        &self,
        dirs: &mut BatchDirs<D>,
        touched: BTreeSet<(Root, PathBuf)>,
    ) -> Result<(), Failure> {
        let (warehouse, staging): (BTreeSet<_>, BTreeSet<_>) = touched
            .into_iter()
            .partition(|(root, _)| *root == Root::Warehouse);
        if !mutants::on("undo_unsynced_in_staging") {
            self.sync_all(dirs, staging)?;
        }
        if !mutants::on("undo_unsynced_in_warehouse") {
            self.sync_all(dirs, warehouse)?;
        }
        Ok(())
    }

    /// Takes a placement back. The caller syncs the directories in `touched` before the intent is dropped.
    pub(super) fn undo(
        &self,
        dirs: &mut BatchDirs<D>,
        item: &mut Item<D::File>,
        seen: Option<FileStat>,
        touched: &mut BTreeSet<(Root, PathBuf)>,
    ) -> Result<(), Failure> {
        let arrival = item.arrival.clone();
        let source = Root::Input(arrival.source);
        let path = self.source_path(&arrival);
        touched.insert((Root::Warehouse, parent(&arrival.placed)));
        touched.insert((source, parent(&arrival.path)));
        let again = Fate::Again {
            after: CHANGED_REST,
            why: Waiting::Still,
        };
        if seen.is_none() {
            events::file_withdrawn(&path, "it was taken away while it was being placed");
            item.dropped = Some(Fate::Withdrawn);
            return Ok(());
        }
        let placed = self.placed_path(&arrival);
        let failed = |error: io::Error| Failure::io("take back", &placed, &error);
        let source_there = self.look(dirs, source, &arrival.path)?;
        let source_there = matches!(source_there, Ok(Some(_)));
        let ours = seen.is_some_and(|stat| stat.identity.inode == arrival.placed_inode);
        let source_there = source_there || mutants::on("last_copy_removed");
        if arrival.placement == Placement::Copy && ours && source_there {
            // The source still has everything.
            let dir = self
                .dir_of(dirs, Root::Warehouse, &arrival.placed, false)?
                .map_err(failed)?;
            self.disk
                .unlink(&dir, name_of(&arrival.placed))
                .map_err(failed)?;
            events::file_changed(&path, "opened for writing while it was placed");
            item.dropped = Some(again);
            return Ok(());
        }
        let ours = ours || mutants::on("foreign_file_taken_back");
        if arrival.placement == Placement::Copy && !ours {
            // Somebody replaced the copy: theirs is not ours to move, and the source is untouched.
            item.dropped = Some(again);
            return Ok(());
        }
        let back = self.move_name(
            dirs,
            (Root::Warehouse, &arrival.placed),
            (source, &arrival.path),
        )?;
        match back {
            Ok(()) => {
                events::file_changed(&path, "changed while it was placed; back in staging");
                item.dropped = Some(Fate::TakenBack {
                    after: CHANGED_REST,
                });
                Ok(())
            }
            Err(_) if self.look_in_warehouse(dirs, &arrival.placed)?.is_none() => {
                events::file_withdrawn(&path, "it was taken away while it was taken back");
                item.dropped = Some(Fate::Withdrawn);
                Ok(())
            }
            // Something that is no file took its place and was moved: it is nothing to set aside.
            Err(_) if self.let_go(dirs, &arrival, seen)? => {
                item.dropped = Some(again);
                Ok(())
            }
            // Its name is taken again, its directory went or keeps us out, its owner's quota is used up, or it was never there:
            // a copy on another filesystem.
            Err(_) => {
                let mut aside = layout::changed_path(&arrival);
                // What was quarantined for another reason may be there already.
                if arrival.placed != aside {
                    let moved = self.move_name(
                        dirs,
                        (Root::Warehouse, &arrival.placed),
                        (Root::Warehouse, &aside),
                    )?;
                    match moved {
                        Ok(()) => drop(touched.insert((Root::Warehouse, parent(&aside)))),
                        // Its uploader chose directories that are too long for that, or whose names files have there.
                        Err(_) => aside = arrival.placed,
                    }
                }
                self.set_aside(item, aside, seen);
                Ok(())
            }
        }
    }

    /// Has what is at an arrival's destination and is no file leave the warehouse: under the next name in staging, or, but for a
    /// directory, for good. False if it is a file, or stays.
    fn let_go(
        &self,
        dirs: &mut BatchDirs<D>,
        arrival: &Arrival,
        seen: Option<FileStat>,
    ) -> Result<bool, Failure> {
        let Some(seen) = seen.filter(|seen| seen.kind != FileType::RegularFile) else {
            return Ok(false);
        };
        let numbered = layout::numbered(name_of(&arrival.path), arrival.seq);
        let numbered = arrival.path.with_file_name(numbered);
        let (from, to) = (&arrival.placed, &numbered);
        let source = Root::Input(arrival.source);
        if self
            .move_name(dirs, (Root::Warehouse, from), (source, to))?
            .is_ok()
        {
            return Ok(true);
        }
        if seen.kind == FileType::Directory {
            return Ok(false);
        }
        let dir = self.dir_of(dirs, Root::Warehouse, from, false)?;
        Ok(dir
            .and_then(|dir| self.disk.unlink(&dir, name_of(from)))
            .is_ok())
    }

    /// Turns an arrival into one that was set aside because it changed after it was placed.
    pub(super) fn set_aside(
        &self,
        item: &mut Item<D::File>,
        aside: PathBuf,
        seen: Option<FileStat>,
    ) {
        item.set_aside = true;
        // It may be a file that was moved in place of the hashed one, which a power cut can bring back.
        if let Some(seen) = seen
            && seen.identity.inode != item.arrival.placed_inode
        {
            item.arrival.identity = seen.identity;
            item.arrival.placed_inode = seen.identity.inode;
        }
        item.line = None;
        if !mutants::on("changed_content_known") {
            item.arrival.key = None;
        }
        item.arrival.placed = aside;
        item.arrival.outcome = Outcome::Quarantine {
            rule: CHANGED_RULE.into(),
            message: "it was written to after it was hashed, and another file has taken its name; \
                      its digest is that of the bytes before the change"
                .into(),
            position: Position::default(),
        };
    }

    /// Renames between roots, in directories that are made where they lie in the warehouse. The inner error is that of
    /// the rename or of opening its directories.
    pub(super) fn move_name(
        &self,
        dirs: &mut BatchDirs<D>,
        (from, old): (Root, &Path),
        (to, new): (Root, &Path),
    ) -> Result<io::Result<()>, Failure> {
        let from = match self.dir_of(dirs, from, old, false)? {
            Ok(dir) => dir,
            Err(error) => return Ok(Err(error)),
        };
        let to = match self.dir_of(dirs, to, new, to == Root::Warehouse)? {
            Ok(dir) => dir,
            Err(error) => return Ok(Err(error)),
        };
        Ok(self.disk.rename(&from, name_of(old), &to, name_of(new)))
    }

    /// Looks at a path; `None` when it or its directory is not there. The inner error is that of looking: in staging it is
    /// its uploader's doing, and concerns nothing else.
    pub(super) fn look(
        &self,
        dirs: &mut BatchDirs<D>,
        root: Root,
        path: &Path,
    ) -> Result<io::Result<Option<FileStat>>, Failure> {
        Ok(match self.dir_of(dirs, root, path, false)? {
            Ok(dir) => self.disk.stat(&dir, name_of(path)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// The same in the warehouse, where nobody else makes or closes directories: an error is final.
    pub(super) fn look_in_warehouse(
        &self,
        dirs: &mut BatchDirs<D>,
        path: &Path,
    ) -> Result<Option<FileStat>, Failure> {
        let failed = |error| Failure::io("look at", &self.warehouse.path.join(path), &error);
        self.look(dirs, Root::Warehouse, path)?.map_err(failed)
    }

    /// Whether a placed file holds what was hashed as long as it has this ctime: nobody was able to write to it since it was read,
    /// because of its lease or because it is ours alone, and every later change will show.
    fn ctime_vouches(&self, leased: bool, seen: &FileStat) -> bool {
        let ours = seen.uid == self.own_uid && seen.mode & 0o022 == 0;
        let ctime = seen.identity.ctime;
        let age_nanos = i128::from(self.clock.now_micros()) * 1000 - ctime.as_nanos();
        let tells = match self.ctimes {
            Ctimes::Exact => true,
            Ctimes::Coarse => age_nanos >= TICK.as_nanos() as i128,
            Ctimes::Silent => false,
        };
        (leased || ours) && tells
    }
}

/// What a batch places and has not dropped.
fn placed<File>(items: &[Item<File>]) -> impl Iterator<Item = &Arrival> {
    items
        .iter()
        .filter(|item| item.dropped.is_none())
        .map(|item| &item.arrival)
}

/// The directory of a path beneath a root.
pub(super) fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_path_buf()
}

/// Whether a placed file is what was hashed. Its ctime changed when it was renamed. The mtime of a copy is what its
/// filesystem made of the source's; recovery, which has compared the digest, does without it.
fn is_as_hashed(arrival: &Arrival, mtime: Option<Timestamp>, placed: &FileStat) -> bool {
    let inode = placed.identity.inode == arrival.placed_inode;
    let links = placed.links == 1;
    let size = placed.identity.size == arrival.identity.size;
    let mtime = mtime.is_none_or(|mtime| placed.identity.mtime == mtime);
    (inode || mutants::on("inode_unchecked"))
        && (links || mutants::on("links_unchecked"))
        && (size && mtime || mutants::on("change_unchecked"))
}

/// Whether owner and permissions of a placed file are those with which it was read, or its copy made.
fn has_its_rights<File>(staged: &Staged<File>, placed: &FileStat) -> bool {
    let set = staged.copy.as_ref().map_or(&staged.stat, |copy| &copy.stat);
    let layout = &staged.candidate.input.settings.layout;
    access::is_still_set(placed, set, layout) || mutants::on("rights_unchecked")
}

pub(super) fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(OsStr::new("."))
}
