//! Recovery: what a crash can leave, and what is done about it.
//!
//! | crash after step | recovery finds | and does |
//! |---|---|---|
//! | 1, 2 | the file in staging | nothing; it will be seen again |
//! | 3 (A), 2 done or not | intent, source only | drops the intent; the normal flow sees the file again |
//! | 3 (A) | intent, neither name | drops it: withdrawn; nothing was acknowledged |
//! | 3 (A) | a number given out without intent or record | leaves a void row |
//! | 4, 5 | intent, its inode at the destination, digest right | goes on at step 5 |
//! | 4, 5 | the same, and its source too (a rename of which one directory is durable) | removes the source name, goes on |
//! | 4, 5 | intent, its inode at the destination, digest wrong | undoes it |
//! | undo | another inode at the destination of a rename, and at its source too | removes the destination name |
//! | any | a source that cannot be looked at: its uploader has closed its directory | takes it for there where something would be given up, for gone where something would be removed |
//! | 4, 5 | another inode at the destination of a copy | leaves it; drops the intent |
//! | 4, 5 | another inode at the destination of a rename (a file that replaced the source was moved instead) | undoes it |
//! | undo | intent, its inode at its place in quarantine | records it as quarantined |
//! | undo | the same, and at the destination too (a rename of which one directory is durable) | removes the destination name, then the same |
//! | 6 (B) | record, manifest short of the assigned end | rewrites from the synced watermark, without comparing |
//! | 7 | record, owed work | does it (8), hidden names first |
//!
//! Recovering twice equals recovering once: every action ends in the same commit B as the normal flow, and is found
//! again by the same observation if that commit does not come.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::io::{Disk, FileStat};
use crate::ledger::{Arrival, Ledger, Opening, Outcome, Placement, Record, RecordState};
use crate::observe::events;
use crate::observe::metrics::Count;
use crate::pipeline::Fate;
use crate::trial::{mutants, points};

use super::classify::{is_absent, is_of_device};
use super::commit::Batch;
use super::hidden::Hidden;
use super::place::{name_of, parent};
use super::{BatchDirs, Item, Recorder, Root, layout};

pub use crate::observe::events::Recovered as Recovery;

/// What is at an intent's source name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtSource {
    /// Nothing.
    Absent,
    /// The inode that was hashed, or that of a rename's destination.
    Same,
    /// Another file.
    Other,
    /// Nobody can tell: its uploader keeps us out of its directory.
    Unknown,
}

/// What is at an intent's destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtDestination {
    /// Nothing.
    Absent,
    /// The intent's inode, and its digest is right.
    Good,
    /// The intent's inode, and its digest is wrong. Or one that replaced it, and that has both names.
    Bad,
    /// Somebody else's file.
    Other,
}

/// What recovery does about one intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Drop the intent; the file is in staging.
    Drop,
    /// Drop the intent; the file is gone.
    Withdrawn,
    /// Go on at step 5.
    Finish,
    /// Remove the source name, then go on at step 5.
    RemoveSourceAndFinish,
    /// Remove the destination name; staging still has the file. Drop the intent.
    RemoveDestination,
    /// Rename it back, or set it aside if its name is taken.
    Undo,
    /// It was set aside already: record it so.
    FinishSetAside,
}

impl Action {
    const ALL: [Action; 7] = [
        Action::Drop,
        Action::Withdrawn,
        Action::Finish,
        Action::RemoveSourceAndFinish,
        Action::RemoveDestination,
        Action::Undo,
        Action::FinishSetAside,
    ];
}

/// The table.
fn decide(
    placement: Placement,
    source: AtSource,
    destination: AtDestination,
    set_aside: bool,
) -> Action {
    use AtDestination as D;
    use AtSource as S;
    match (placement, destination, source, set_aside) {
        // Set aside by an undo that did not reach its commit. The destination was empty then.
        (_, D::Absent | D::Other, _, true) => Action::FinishSetAside,
        // The name was free when it was chosen, and only we move files there: what replaced the source was moved. A power
        // cut may have brought the source back.
        (Placement::Rename, D::Other, _, false) => Action::Undo,
        (_, D::Absent | D::Other, S::Absent, false) => Action::Withdrawn,
        (_, D::Absent | D::Other, S::Same | S::Other | S::Unknown, false) => Action::Drop,
        (Placement::Rename, D::Good, S::Same, _) => Action::RemoveSourceAndFinish,
        (_, D::Good, _, _) => Action::Finish,
        (Placement::Rename, D::Bad, S::Same, _) => Action::RemoveDestination,
        (Placement::Rename | Placement::None, D::Bad, _, _) => Action::Undo,
        // A bad copy is worth something only if nothing else is left of the file.
        (Placement::Copy, D::Bad, S::Same | S::Other, _) => Action::RemoveDestination,
        (Placement::Copy, D::Bad, S::Absent | S::Unknown, _) => Action::Undo,
    }
}

impl<D: Disk, L: Ledger> Recorder<D, L> {
    /// Brings disk and ledger to where the last session would have brought them.
    pub fn recover(&mut self, opening: &Opening) -> Result<Recovery, Failure> {
        let mut recovery = Recovery::default();
        points::reached("recovery_begun");
        if self.suspect && !mutants::on("suspect_start_unsynced") {
            self.sync_everything()?;
        }
        let synced = opening.pending_lines.first().map(|lines| {
            // Everything before the first pending line is synced.
            crate::ledger::ManifestEnd {
                hour: lines.hour,
                offset: lines.offset,
            }
        });
        self.manifest
            .check(&self.disk, synced.or(opening.manifest))?;
        for lines in &opening.pending_lines {
            if mutants::on("promised_lines_left") {
                break;
            }
            self.write_manifest(lines)?;
        }
        points::reached("recovery_lines_rewritten");
        self.sweep_temporaries()?;
        points::reached("recovery_swept");
        self.void_unused(opening)?;
        points::reached("recovery_numbers_voided");
        // One batch at most is in flight; a time tells batches apart if there should ever be more.
        let mut batches: BTreeMap<i64, Vec<&Arrival>> = BTreeMap::new();
        for intent in &opening.intents {
            batches.entry(intent.time_micros).or_default().push(intent);
        }
        for intents in batches.into_values() {
            self.recover_batch(&intents, &mut recovery)?;
            points::reached("recovery_batch_finished");
        }
        recovery.owed = opening.owed.len() as u64;
        let names = opening.owed.iter().map(|owed| owed.path.as_os_str().len());
        self.wait_for_ledger(opening.owed.len(), names.sum())?;
        let paid = self.pay(opening.owed.clone(), &[])?;
        points::reached("recovery_paid");
        self.later.paid.extend(paid.paid);
        self.later.kept.extend(paid.kept);
        self.note_told(paid.owed_told);
        self.later_waits = true;
        self.commit_later()?;
        points::reached("recovered");
        Ok(recovery)
    }

    /// What is dirty reaches the disk now, or the error shows now; later reads can then drop clean pages. Directories
    /// that were made and not yet synced when the last session ended are among it.
    fn sync_everything(&self) -> Result<(), Failure> {
        // In order, so that a simulation does the same each time.
        let by_source: BTreeMap<_, _> = self.inputs.iter().collect();
        let inputs = by_source
            .into_iter()
            .map(|(&source, dir)| (dir, self.input_path(source)));
        let own =
            [&self.warehouse, self.manifest.place()].map(|place| (&place.dir, place.path.clone()));
        for (dir, path) in inputs.chain(own) {
            self.disk
                .sync_filesystem(dir)
                .map_err(|error| Failure::sync("sync the filesystem of", &path, &error))?;
        }
        Ok(())
    }

    fn recover_batch(
        &mut self,
        intents: &[&Arrival],
        recovery: &mut Recovery,
    ) -> Result<(), Failure> {
        let mut batch = Batch::new();
        let mut touched = BTreeSet::new();
        for intent in intents {
            let mut item = Item {
                arrival: (*intent).clone(),
                staged: None,
                held: None,
                set_aside: false,
                line: (intent.outcome == Outcome::Ingest).then(|| self.line_of(intent)),
                dropped: None,
            };
            self.unhide(&mut batch.dirs, intent, &mut touched)?;
            self.leave_destination(&mut batch.dirs, intent, &mut touched)?;
            let action = self.observe_and_decide(&mut batch.dirs, intent, &mut item.held)?;
            points::reached("recovery_decided");
            self.act(action, &mut batch.dirs, &mut item, &mut touched, recovery)?;
            points::reached("recovery_acted");
            batch.items.push(item);
        }
        self.sync_undone(&mut batch.dirs, touched)?;
        points::reached("recovery_undone");
        self.wait_to_reserve(&batch.items)?;
        self.finish(batch)
    }

    /// Gives a source its name back that was on its way out when a recovery before this one ended. If a newer file has that
    /// name, and what it was moved to has its own, it goes.
    fn unhide(
        &self,
        dirs: &mut BatchDirs<D>,
        intent: &Arrival,
        touched: &mut BTreeSet<(Root, PathBuf)>,
    ) -> Result<(), Failure> {
        let root = Root::Input(intent.source);
        let parent = intent.path.parent().unwrap_or(Path::new(""));
        let mut names = self.hidden.names(Hidden::Leaving, intent.seq);
        let (hidden, seen) = loop {
            let Some(name) = names.next() else {
                return Ok(());
            };
            let hidden = parent.join(name);
            match self.look(dirs, root, &hidden)? {
                Ok(Some(seen)) => break (hidden, seen),
                Err(error) if is_of_device(&error) => {
                    return Err(Failure::io("look at", &self.source_path(intent), &error));
                }
                _ => {}
            }
        };
        let ours = |seen: FileStat| seen.identity.same_inode(&intent.identity);
        if !ours(seen) || mutants::on("hidden_source_left") {
            return Ok(());
        }
        touched.insert((root, parent.to_path_buf()));
        let path = self.source_path(intent);
        let remedy = "it stays under its hidden name; check the permissions of its directory";
        let numbered = parent.join(layout::numbered(name_of(&intent.path), intent.seq));
        for name in [&intent.path, &numbered] {
            let error = match self.move_name(dirs, (root, &hidden), (root, name))? {
                Ok(()) => return Ok(()),
                Err(error) if is_of_device(&error) => {
                    return Err(Failure::io("give its name back to", &path, &error));
                }
                Err(error) => error,
            };
            // A second name would keep it from being recorded, or wait in staging for ever once it was set aside.
            for twin in [&intent.placed, &layout::changed_path(intent)] {
                let seen = self.look_in_warehouse(dirs, twin)?;
                if !seen.is_some_and(ours) || mutants::on("hidden_twin_left") {
                    continue;
                }
                let removed = self
                    .dir_of(dirs, root, &hidden, false)?
                    .and_then(|dir| self.disk.unlink(&dir, name_of(&hidden)));
                // Only a recovery that was killed leaves that; what is left of it would be nobody's.
                return removed.map_err(|error| Failure::io("remove", &path, &error));
            }
            if error.kind() != std::io::ErrorKind::AlreadyExists {
                events::file_failed(&path, "give its name back to", &error.to_string(), remedy);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Removes the destination name of a file that an undo set aside, where a power cut left it under both names: the other one
    /// is as durable.
    fn leave_destination(
        &self,
        dirs: &mut BatchDirs<D>,
        intent: &Arrival,
        touched: &mut BTreeSet<(Root, PathBuf)>,
    ) -> Result<(), Failure> {
        let aside = layout::changed_path(intent);
        if aside == intent.placed || mutants::on("set_aside_file_left_at_destination") {
            return Ok(());
        }
        let Some(seen) = self.look_in_warehouse(dirs, &aside)? else {
            return Ok(());
        };
        let placed = self.look_in_warehouse(dirs, &intent.placed)?;
        if !placed.is_some_and(|placed| placed.identity.same_file(&seen.identity)) {
            return Ok(());
        }
        let failed = |error| Failure::io("take back", &self.placed_path(intent), &error);
        let dir = self
            .dir_of(dirs, Root::Warehouse, &intent.placed, false)?
            .map_err(failed)?;
        touched.insert((Root::Warehouse, parent(&intent.placed)));
        let name = name_of(&intent.placed);
        self.disk.unlink(&dir, name).map_err(failed)
    }

    /// `held` keeps the placed file open, so that a writer who was let in by the end of the last session is noticed.
    fn observe_and_decide(
        &self,
        dirs: &mut BatchDirs<D>,
        intent: &Arrival,
        held: &mut Option<D::File>,
    ) -> Result<Action, Failure> {
        let at_source = self.look(dirs, Root::Input(intent.source), &intent.path)?;
        let mut source = match &at_source {
            Err(error) if is_of_device(error) => {
                return Err(Failure::io("look at", &self.source_path(intent), error));
            }
            Err(_) => AtSource::Unknown,
            Ok(None) => AtSource::Absent,
            Ok(Some(seen))
                if seen.identity.same_inode(&intent.identity)
                    || mutants::on("source_inode_unchecked") =>
            {
                AtSource::Same
            }
            Ok(Some(_)) => AtSource::Other,
        };
        let at_source = at_source.unwrap_or(None);
        let destination = match self.look_in_warehouse(dirs, &intent.placed)? {
            None => AtDestination::Absent,
            Some(seen)
                if seen.identity.inode != intent.placed_inode
                    && !mutants::on("destination_inode_unchecked") =>
            {
                let both = at_source.is_some_and(|it| it.identity.same_inode(&seen.identity));
                match intent.placement == Placement::Rename && both {
                    // One that replaced the hashed file was moved, and was on its way back.
                    true => {
                        source = AtSource::Same;
                        AtDestination::Bad
                    }
                    false => AtDestination::Other,
                }
            }
            Some(seen) if seen.identity.size != intent.identity.size => AtDestination::Bad,
            Some(_) if self.holds_digest(dirs, intent, held)? => AtDestination::Good,
            Some(_) => AtDestination::Bad,
        };
        let aside = layout::changed_path(intent);
        // What is quarantined for another reason may have that very name; then nothing needs to be moved.
        let set_aside = aside != intent.placed && self.look_in_warehouse(dirs, &aside)?.is_some();
        let placement = intent.placement;
        let action = decide(placement, source, destination, set_aside);
        let case = (placement, source, destination, set_aside);
        Ok(mutants::decided(case, action, &Action::ALL))
    }

    /// Whether the placed file is the one that was hashed. One that cannot be read, or that somebody has open for
    /// writing, is not.
    fn holds_digest(
        &self,
        dirs: &mut BatchDirs<D>,
        intent: &Arrival,
        held: &mut Option<D::File>,
    ) -> Result<bool, Failure> {
        let path = self.placed_path(intent);
        let opened = self
            .dir_of(dirs, Root::Warehouse, &intent.placed, false)?
            .and_then(|dir| self.disk.open(&dir, name_of(&intent.placed)));
        let digest = match opened {
            Ok(file) => {
                let digest = self.digest_of(&file, &path)?;
                *held = Some(file);
                digest
            }
            Err(error) => Err(error),
        };
        Ok(match digest {
            Ok(digest) => digest == intent.digest || mutants::on("recovery_trusts_bytes"),
            Err(error) => {
                let remedy = "it is taken back to staging; check its permissions and the device";
                events::file_failed(&path, "read", &error.to_string(), remedy);
                false
            }
        })
    }

    fn act(
        &self,
        action: Action,
        dirs: &mut BatchDirs<D>,
        item: &mut Item<D::File>,
        touched: &mut BTreeSet<(Root, PathBuf)>,
        recovery: &mut Recovery,
    ) -> Result<(), Failure> {
        let arrival = item.arrival.clone();
        let path = self.source_path(&arrival);
        let source = Root::Input(arrival.source);
        let did = match action {
            Action::Drop => {
                item.dropped = Some(Fate::Done);
                recovery.dropped += 1;
                "dropped"
            }
            Action::Withdrawn => {
                events::file_withdrawn(&path, "it was gone when ringest started again");
                self.metrics
                    .withdrawn
                    .add(Count::file(arrival.identity.size));
                item.dropped = Some(Fate::Withdrawn);
                recovery.withdrawn += 1;
                "withdrawn"
            }
            Action::Finish => {
                recovery.finished += 1;
                "finished"
            }
            Action::RemoveSourceAndFinish => {
                // Both names are durable: after a kill everything was synced first, after a power cut they were on the disk.
                touched.insert((source, parent(&arrival.path)));
                if !self.unlink_exactly(dirs, source, &arrival)? {
                    return self.act(Action::RemoveDestination, dirs, item, touched, recovery);
                }
                recovery.finished += 1;
                "finished"
            }
            Action::RemoveDestination => {
                // Staging has the file, durably, for the same reason.
                let failed = |error| Failure::io("take back", &self.placed_path(&arrival), &error);
                let dir = self
                    .dir_of(dirs, Root::Warehouse, &arrival.placed, false)?
                    .map_err(failed)?;
                self.disk
                    .unlink(&dir, name_of(&arrival.placed))
                    .map_err(failed)?;
                touched.insert((Root::Warehouse, parent(&arrival.placed)));
                item.dropped = Some(Fate::Done);
                recovery.undone += 1;
                "undone"
            }
            Action::Undo => {
                let seen = self.look_in_warehouse(dirs, &arrival.placed)?;
                self.undo(dirs, item, seen, touched)?;
                recovery.undone += 1;
                "undone"
            }
            Action::FinishSetAside => {
                let aside = layout::changed_path(&arrival);
                let seen = self.look_in_warehouse(dirs, &aside)?;
                self.set_aside(item, aside, seen);
                recovery.undone += 1;
                "quarantined"
            }
        };
        events::recovery(did, &path, arrival.seq);
        Ok(())
    }

    /// Removes the source name of a file that is durable in the warehouse under its other name. False: it cannot be
    /// removed, and is still there.
    fn unlink_exactly(
        &self,
        dirs: &mut BatchDirs<D>,
        root: Root,
        arrival: &Arrival,
    ) -> Result<bool, Failure> {
        let path = self.source_path(arrival);
        let remedy = "check the permissions of its directory";
        let failed = |operation: &str, error: std::io::Error| match is_of_device(&error) {
            true => Err(Failure::io(operation, &path, &error)),
            false => {
                events::file_failed(&path, operation, &error.to_string(), remedy);
                Ok(())
            }
        };
        let dir = match self.dir_of(dirs, root, &arrival.path, false)? {
            Ok(dir) => dir,
            Err(error) if is_absent(&error) => return Ok(true),
            Err(error) => return failed("remove", error).map(|()| false),
        };
        let name = name_of(&arrival.path);
        let hidden = self.hidden.name(Hidden::Leaving, arrival.seq);
        match self.disk.rename(&dir, name, &dir, &hidden) {
            Ok(()) => {}
            // Its uploader took it away just now.
            Err(error) if is_absent(&error) => return Ok(true),
            Err(error) => return failed("remove", error).map(|()| false),
        }
        let seen = match self.disk.stat(&dir, &hidden) {
            Ok(seen) => seen,
            Err(error) => failed("look at", error).map(|()| None)?,
        };
        let ours = seen.is_some_and(|seen| seen.identity.same_inode(&arrival.identity));
        if ours || mutants::on("replaced_source_removed") {
            match self.disk.unlink(&dir, &hidden) {
                Ok(()) => return Ok(true),
                Err(error) if is_absent(&error) => return Ok(true),
                Err(error) => failed("remove", error)?,
            }
        }
        // Somebody else's, or not to be removed: it gets its name back, or the next one.
        let numbered = layout::numbered(name, arrival.seq);
        for name in [name, &numbered] {
            match self.disk.rename(&dir, &hidden, &dir, name) {
                Ok(()) => return Ok(!ours),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    failed("give its name back to", error)?;
                    break;
                }
            }
        }
        // The look before commit B finds a second name, if it is ours, and takes the file back.
        Ok(true)
    }

    /// Leaves void rows for numbers that were given out and never used: those of arrivals without a placement in a
    /// batch that did not reach its commit.
    fn void_unused(&mut self, opening: &Opening) -> Result<(), Failure> {
        let intents: BTreeSet<u64> = opening.intents.iter().map(|intent| intent.seq).collect();
        let unused: Vec<u64> = (opening.recorded_to + 1..opening.next_seq)
            .filter(|seq| !intents.contains(seq))
            .collect();
        if unused.is_empty() || mutants::on("unused_numbers_left") {
            return Ok(());
        }
        self.wait_for_ledger(unused.len(), 0)?;
        let mut commit = self.take_later();
        commit.records = unused
            .into_iter()
            .map(|seq| Record {
                seq,
                state: RecordState::Void,
            })
            .collect();
        self.ledger.commit_records(&commit)
    }

    /// Removes what copies left behind on filesystems without unnamed files.
    fn sweep_temporaries(&self) -> Result<(), Failure> {
        let path = self.warehouse.path.join(layout::TMP_DIR);
        let failed = |error| Failure::io("sweep", &path, &error);
        let dir = match self
            .disk
            .open_dir(&self.warehouse.dir, Path::new(layout::TMP_DIR))
        {
            Ok(dir) => dir,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for name in self.disk.list(&dir).map_err(failed)? {
            if mutants::on("temporaries_left") {
                break;
            }
            self.disk.unlink(&dir, &name).map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination, against what must hold whatever the reason for the combination.
    #[test]
    fn every_combination_keeps_the_content_and_acknowledges_only_what_was_hashed() {
        use AtDestination as D;
        use AtSource as S;
        let mut combinations = 0;
        for placement in [Placement::Rename, Placement::Copy] {
            for source in [S::Absent, S::Same, S::Other, S::Unknown] {
                for destination in [D::Absent, D::Good, D::Bad, D::Other] {
                    for set_aside in [false, true] {
                        combinations += 1;
                        let action = decide(placement, source, destination, set_aside);
                        let case = (placement, source, destination, set_aside, action);
                        // Recorded as ingested only with the right digest, and always then.
                        let finishes =
                            matches!(action, Action::Finish | Action::RemoveSourceAndFinish);
                        assert_eq!(finishes, destination == D::Good, "{case:?}");
                        // A source name is removed only where the same inode is in the warehouse.
                        if action == Action::RemoveSourceAndFinish {
                            assert_eq!(
                                (placement, source),
                                (Placement::Rename, S::Same),
                                "{case:?}"
                            );
                        }
                        // A destination name is removed only where it is ours and staging has a file.
                        if action == Action::RemoveDestination {
                            assert_eq!(destination, D::Bad, "{case:?}");
                            assert!(matches!(source, S::Same | S::Other), "{case:?}");
                            assert!(
                                placement == Placement::Copy || source == S::Same,
                                "{case:?}"
                            );
                        }
                        // Another file at the destination is recorded under no circumstances, and never removed.
                        if destination == D::Other {
                            assert!(
                                matches!(
                                    action,
                                    Action::Drop
                                        | Action::Withdrawn
                                        | Action::FinishSetAside
                                        | Action::Undo
                                ),
                                "{case:?}"
                            );
                            // What a rename moved in place of the source goes back, so that it is seen again.
                            let expected = placement == Placement::Rename && !set_aside;
                            assert_eq!(action == Action::Undo, expected, "{case:?}");
                        }
                        // Gone means gone: nothing of ours is anywhere.
                        if action == Action::Withdrawn {
                            assert!(source == S::Absent && !set_aside, "{case:?}");
                        }
                    }
                }
            }
        }
        assert_eq!(combinations, 64);
    }
}
