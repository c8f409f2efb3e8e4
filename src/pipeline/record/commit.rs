//! The commit protocol, in order. What each crash leaves is in the table of [`super::recover`].

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::failure::{Exit, Failure};
use crate::io::Disk;
use crate::ledger::{
    Commit, KEPT_DUPLICATE, Kept, Ledger, Outcome, Owed, OwedKind, PendingLines, Placement, Record,
    RecordState,
};
use crate::observe::events;
use crate::observe::metrics::Count;
use crate::pipeline::{Fate, Staged};
use crate::settings::OnDuplicate;
use crate::trial::{mutants, points};

use super::report::{Finished, policy_of};
use super::{BatchDirs, Item, Recorder, Root, layout, manifest};

/// Time between two tries to write a promised manifest line to a full disk.
const FULL_DISK_REST: Duration = Duration::from_secs(1);

/// What a batch needs room for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Needs {
    arrivals: usize,
    /// Bytes of paths and messages.
    names: u64,
    /// Bytes of manifest lines.
    lines: u64,
}

impl Needs {
    fn of<File>(items: &[Item<File>]) -> Needs {
        let mut needs = Needs {
            arrivals: items.len(),
            ..Needs::default()
        };
        for item in items {
            let arrival = &item.arrival;
            let sidecar = arrival.sidecar.as_ref().map(|(path, _)| path.as_path());
            let aside = arrival.aside.as_deref();
            let paths = [&*arrival.path, &arrival.placed].into_iter();
            for path in paths.chain(sidecar).chain(aside) {
                needs.names += path.as_os_str().len() as u64;
            }
            if let Outcome::Quarantine {
                rule,
                message,
                position,
            } = &arrival.outcome
            {
                let pointer = position.pointer.as_ref().map_or(0, String::len);
                needs.names += (rule.len() + message.len() + pointer) as u64;
            }
            needs.lines += item.line.as_ref().map_or(0, |line| line.len() as u64);
        }
        needs
    }

    fn max(&self, other: &Needs) -> Needs {
        Needs {
            arrivals: self.arrivals.max(other.arrivals),
            names: self.names.max(other.names),
            lines: self.lines.max(other.lines),
        }
    }
}

/// The files of a batch whose bytes must be durable before anything points at them.
fn files_to_sync<File>(items: &[Item<File>]) -> BTreeMap<Root, Vec<&File>> {
    let mut files: BTreeMap<Root, Vec<&File>> = BTreeMap::new();
    for item in items {
        let Some(staged) = &item.staged else { continue };
        let stays = staged.candidate.input.settings.on_duplicate == OnDuplicate::Keep;
        let (root, file) = match (item.arrival.placement, &staged.copy) {
            // A file that is kept is known by its state, and that must outlive a power cut.
            (Placement::None, _) if !stays => continue,
            (Placement::Rename | Placement::None, _) => {
                (Root::Input(item.arrival.source), &staged.file)
            }
            (Placement::Copy, Some(copy)) => (Root::Warehouse, &copy.file),
            (Placement::Copy, None) => continue,
        };
        files.entry(root).or_default().push(file);
    }
    files
}

fn no_room(path: &Path, error: &std::io::Error) -> String {
    format!("no room for {}: {error}", path.display())
}

/// What is done with a batch once it is known what it is. [`STEPS`] is their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The bytes are durable before anything points at them, and commit A is. Both take their time on the disk and neither
    /// needs the other, so they are made side by side.
    Prepare,
    /// Every file gets its name in the warehouse.
    Place,
    /// On btrfs a file comes back under both names after a power cut if only one directory was synced.
    SyncDestinations,
    /// And a name that staging shows again would be a second arrival.
    SyncSources,
    /// What is in the warehouse is what was hashed, or it is undone.
    CheckAgain,
    /// Commit B, the commit point.
    CommitRecords,
    /// The manifest lines that B promised.
    WriteLines,
    /// Sources of copies, deleted duplicates, sidecars, reasons. It may wait until the bytes of the next batch are synced, and
    /// be done meanwhile.
    PayDebts,
}

/// The commit protocol.
const STEPS: [Step; 8] = [
    Step::Prepare,          // 2, 3
    Step::Place,            // 4
    Step::SyncDestinations, // 5
    Step::SyncSources,      // 5
    Step::CheckAgain,       // 6
    Step::CommitRecords,    // 6
    Step::WriteLines,       // 7
    Step::PayDebts,         // 8
];

impl Step {
    /// The point that is reached when it is done.
    fn point(self) -> &'static str {
        match self {
            Step::Prepare => "data_synced",
            Step::Place => "placed",
            Step::SyncDestinations => "destinations_synced",
            Step::SyncSources => "sources_synced",
            Step::CheckAgain => "checked",
            Step::CommitRecords => "records_committed",
            Step::WriteLines => "batch_manifested",
            // Not before `settle`.
            Step::PayDebts => "debts_paid",
        }
    }
}

/// A batch on its way through the steps.
pub(super) struct Batch<D: Disk> {
    pub dirs: BatchDirs<D>,
    pub items: Vec<Item<D::File>>,
    /// What step 6 committed.
    commit: Commit,
    /// What is left to be done of that.
    debts: Vec<Owed>,
    began: Instant,
    placed: Instant,
}

impl<D: Disk> Batch<D> {
    pub fn new() -> Batch<D> {
        let now = Instant::now();
        Batch {
            dirs: BatchDirs::default(),
            items: Vec::new(),
            commit: Commit::default(),
            debts: Vec::new(),
            began: now,
            placed: now,
        }
    }
}

impl<D: Disk> Batch<D> {
    /// Whether what it owes can wait for the next batch. Reasons are new names in the warehouse, which that must not
    /// choose, and need room.
    fn may_owe(&self) -> bool {
        let debts = &self.debts;
        !debts.is_empty() && debts.iter().all(|owed| owed.kind != OwedKind::Reason)
    }
}

impl<D: Disk, L: Ledger> Recorder<D, L> {
    /// Takes one batch from staged to recorded.
    pub(super) fn process(&mut self, staged: Vec<Staged<D::File>>) -> Result<(), Failure> {
        let mut batch = Batch::new();
        batch.items = self.classify(&mut batch.dirs, staged)?; // 1
        points::reached("classified");
        if batch.items.is_empty() || !self.reserve(&mut batch.items)? {
            return self.settle();
        }
        points::reached("reserved");
        self.carry_out(&STEPS, batch)?;
        match &self.unpaid {
            // While the bytes of the next batch are synced.
            Some(batch) if batch.may_owe() => Ok(()),
            _ => self.settle(),
        }
    }

    /// Steps 5 to 8, for what recovery found placed.
    pub(super) fn finish(&mut self, batch: Batch<D>) -> Result<(), Failure> {
        self.carry_out(&STEPS[2..], batch)?;
        self.settle()
    }

    /// Does what the last batch left to be done, and has it reported.
    pub(super) fn settle(&mut self) -> Result<(), Failure> {
        let Some(mut batch) = self.unpaid.take() else {
            return Ok(());
        };
        // Their descriptors are for what is paid.
        batch.dirs = BatchDirs::default();
        let paid = self.pay(std::mem::take(&mut batch.debts), &batch.items)?;
        self.later.paid.extend(paid.paid);
        self.later.kept.extend(paid.kept);
        self.note_told(paid.owed_told);
        self.later_waits = true;
        points::reached(Step::PayDebts.point());
        self.report(batch);
        Ok(())
    }

    /// Notes up to which number it was told that removals are owed.
    pub(super) fn note_told(&mut self, seq: Option<u64>) {
        let told = self.later.owed_told.max(seq);
        self.later.owed_told = told.filter(|told| *told > self.owed_told);
    }

    fn carry_out(&mut self, steps: &[Step], mut batch: Batch<D>) -> Result<(), Failure> {
        for step in mutants::altered(steps).iter() {
            let Batch {
                dirs,
                items,
                commit,
                ..
            } = &mut batch;
            match step {
                Step::Prepare => self.prepare(items)?,
                Step::Place => self.place(dirs, items)?,
                Step::SyncDestinations => self.sync_destinations(dirs, items)?,
                Step::SyncSources => self.sync_sources(dirs, items)?,
                Step::CheckAgain => {
                    self.check_again(dirs, items)?;
                    batch.placed = Instant::now();
                }
                Step::CommitRecords => *commit = self.commit_batch(items)?,
                Step::WriteLines => {
                    if let Some(lines) = &commit.lines {
                        self.write_manifest(lines)?;
                    }
                }
                Step::PayDebts => {
                    batch.debts = std::mem::take(&mut commit.owed);
                    continue;
                }
            }
            points::reached(step.point());
        }
        self.unpaid = Some(batch);
        Ok(())
    }

    /// Makes room in manifest and ledger before anything is promised. False when there is none: the batch is back in
    /// staging.
    fn reserve(&mut self, items: &mut Vec<Item<D::File>>) -> Result<bool, Failure> {
        let needs = Needs::of(items);
        // What a batch did not find, a smaller one must not find in its place: intake would go on, file by file, and
        // pause again with each full batch.
        let wanted = needs.max(&self.wanted);
        let hour = layout::hour(items[0].arrival.time_micros);
        let Err(reason) = self.try_reserve(hour, needs.lines > 0, &wanted)? else {
            self.wanted = Needs::default();
            return Ok(true);
        };
        self.wanted = wanted;
        // Nothing was promised yet: these numbers are given out again.
        if !mutants::on("numbers_not_given_back") {
            self.next_seq = items[0].arrival.seq;
        }
        for staged in items.drain(..).filter_map(|item| item.staged) {
            staged.candidate.ticket.close(Fate::NoRoom(reason.clone()));
        }
        Ok(false)
    }

    /// The same for what is placed already: it can only wait.
    pub(super) fn wait_to_reserve(&mut self, items: &[Item<D::File>]) -> Result<(), Failure> {
        let needs = Needs::of(items);
        let hour = layout::hour(items[0].arrival.time_micros);
        while let Err(reason) = self.try_reserve(hour, needs.lines > 0, &needs)? {
            self.wait_for_room(&reason)?;
        }
        self.go_on();
        Ok(())
    }

    /// The same for what earlier sessions left: numbers without a record, and debts, of which some may turn into files
    /// that are kept.
    pub(super) fn wait_for_ledger(&mut self, rows: usize, names: usize) -> Result<(), Failure> {
        if rows == 0 {
            return Ok(());
        }
        while let Err(error) = self.ledger.reserve(rows, names as u64, 0)? {
            self.wait_for_room(&format!("no room for the ledger: {error}"))?;
        }
        self.go_on();
        Ok(())
    }

    /// The inner error says what is full.
    fn try_reserve(
        &mut self,
        hour: i64,
        has_lines: bool,
        needs: &Needs,
    ) -> Result<Result<(), String>, Failure> {
        if has_lines && let Err(error) = self.manifest.reserve(&self.disk, hour, needs.lines)? {
            return Ok(Err(no_room(&self.manifest.file_path(hour), &error)));
        }
        let reserved = self
            .ledger
            .reserve(needs.arrivals, needs.names, needs.lines)?;
        Ok(reserved.map_err(|error| format!("no room for the ledger: {error}")))
    }

    /// Makes the bytes durable. Meanwhile the intents are committed (commit A), and the batch before is settled.
    fn prepare(&mut self, items: &[Item<D::File>]) -> Result<(), Failure> {
        let mut syncs = Vec::new();
        for (root, files) in files_to_sync(items) {
            syncs.push((root, (self.root(root)?.clone(), files)));
        }
        if mutants::on("data_unsynced") {
            syncs.clear();
        }
        let (roots, syncs): (Vec<Root>, Vec<_>) = syncs.into_iter().unzip();
        let mut intents: Vec<_> = items
            .iter()
            .filter(|item| item.arrival.placement != Placement::None)
            .map(|item| item.arrival.clone())
            .collect();
        if mutants::on("intents_uncommitted") {
            intents.clear();
        }
        let disk = self.disk.clone();
        let (synced, done) = disk.sync_files_beside(&syncs, || {
            if !intents.is_empty() {
                self.ledger.commit_intents(&intents, self.next_seq)?;
            }
            points::reached("intents_committed");
            self.settle()
        });
        if let Err((at, error)) = synced
            && !mutants::on("failed_data_sync")
        {
            let path = match roots[at] {
                Root::Warehouse => self.warehouse.path.clone(),
                Root::Input(source) | Root::ClaimedFrom(source) => self.input_path(source),
            };
            return Err(Failure::sync("make the files durable in", &path, &error));
        }
        done
    }

    /// Commit B, the commit point.
    fn commit_batch(&mut self, items: &[Item<D::File>]) -> Result<Commit, Failure> {
        let mut commit = self.take_later();
        let mut lines: Option<PendingLines> = None;
        for item in items {
            let arrival = &item.arrival;
            let seq = arrival.seq;
            if item.dropped.is_some() {
                if !mutants::on("dropped_numbers_left") {
                    let state = RecordState::Void;
                    commit.records.push(Record { seq, state });
                }
                continue;
            }
            let count = Count::file(arrival.identity.size);
            let mut line = None;
            match &arrival.outcome {
                Outcome::Ingest => {
                    self.totals.ingested += count;
                    if let Some(key) = arrival.key {
                        commit.content.push((key, seq));
                    }
                    let bytes = item.line.as_deref().unwrap_or_default();
                    let hour = layout::hour(arrival.time_micros);
                    let lines = lines.get_or_insert_with(|| PendingLines {
                        hour,
                        offset: self.manifest.next_offset(hour),
                        bytes: Vec::new(),
                    });
                    line = Some(manifest::line_at(lines.end().offset, bytes));
                    lines.bytes.extend_from_slice(bytes);
                }
                Outcome::Duplicate { .. } => self.totals.duplicate += count,
                Outcome::Quarantine { .. } => self.totals.quarantined += count,
            }
            self.debts_of(item, &mut commit);
            let arrival = arrival.clone();
            let state = RecordState::Done { arrival, line };
            commit.records.push(Record { seq, state });
        }
        commit.totals = self.totals;
        commit.lines = lines;
        self.ledger.commit_records(&commit)?;
        for kept in &commit.kept {
            self.kept.add(kept);
        }
        if let Some(lines) = &commit.lines {
            self.manifest.assign(lines);
        }
        Ok(commit)
    }

    /// What an arrival leaves to be done once it is recorded.
    fn debts_of(&self, item: &Item<D::File>, commit: &mut Commit) {
        let arrival = &item.arrival;
        let owe = |kind, path: &Path, identity| Owed {
            seq: arrival.seq,
            kind,
            source: arrival.source,
            path: path.to_path_buf(),
            identity,
        };
        let source = |kind| owe(kind, &arrival.path, arrival.identity);
        let mut stays = false;
        match (arrival.placement, &arrival.outcome) {
            // Not what was hashed: if the source is there after all, it has the content.
            (Placement::Copy, _) if item.set_aside && !mutants::on("source_of_bad_copy_owed") => {
                stays = true;
            }
            (Placement::Copy, _) => commit.owed.push(source(OwedKind::Source)),
            (Placement::None, Outcome::Duplicate { .. }) => {
                if policy_of(item) == OnDuplicate::Keep {
                    stays = true;
                    commit.kept.push(Kept {
                        source: arrival.source,
                        path: arrival.path.clone(),
                        identity: arrival.identity,
                        seq: arrival.seq,
                        reason: KEPT_DUPLICATE.into(),
                    });
                } else {
                    commit.owed.push(source(OwedKind::Duplicate));
                }
            }
            _ => {}
        }
        if let (Some((path, identity)), false) = (&arrival.sidecar, stays) {
            commit.owed.push(owe(OwedKind::Sidecar, path, *identity));
        }
        if arrival.outcome != Outcome::Ingest && arrival.placement != Placement::None {
            commit
                .owed
                .push(owe(OwedKind::Reason, &arrival.placed, arrival.identity));
        }
    }

    /// Writes promised lines, whatever it takes: the ledger already counts on them.
    pub(super) fn write_manifest(&mut self, lines: &PendingLines) -> Result<(), Failure> {
        loop {
            match self.manifest.write(&self.disk, lines)? {
                Ok(end) => {
                    self.later.synced = Some(end);
                    self.later_waits = true;
                    self.go_on();
                    return Ok(());
                }
                Err(error) => {
                    let path = self.manifest.file_path(lines.hour);
                    self.wait_for_room(&no_room(&path, &error))?;
                }
            }
        }
    }

    /// Waits a moment for room, without holding on to any file that is still in staging but for those whose bytes are being
    /// synced (if there is none to remove the sources of the batch before). What waits is promised or
    /// placed, so it is left to the next start when ringest is asked to stop.
    pub(super) fn wait_for_room(&mut self, reason: &str) -> Result<(), Failure> {
        if self.metrics.pause(reason) {
            events::intake_paused(reason);
        }
        let queued = std::iter::from_fn(|| self.queue.as_ref().and_then(|queue| queue.try_pop()));
        for staged in self.parked.drain(..).chain(queued) {
            let fate = Fate::NoRoom(reason.to_string());
            staged.candidate.ticket.close(fate);
        }
        if self.stop.load(Ordering::Acquire) {
            return Err(Failure::stopped());
        }
        if self.pause_max.is_some_and(|most| self.waited >= most) {
            return Err(Failure::new(
                Exit::Io,
                "finish what was begun in",
                &self.warehouse.path,
                reason,
                "free space; nothing is lost, start again afterwards",
            ));
        }
        self.clock.rest(FULL_DISK_REST);
        self.waited += FULL_DISK_REST;
        Ok(())
    }

    /// There is room again.
    pub(super) fn go_on(&mut self) {
        let waited = std::mem::take(&mut self.waited);
        if !waited.is_zero() && self.metrics.resume() {
            events::intake_resumed();
        }
    }

    /// Has everyone told who waits.
    fn report(&mut self, batch: Batch<D>) {
        let mut firsts = HashMap::new();
        for item in &batch.items {
            if let (Outcome::Duplicate { of }, None) = (&item.arrival.outcome, &item.dropped) {
                firsts.entry(*of).or_insert_with(|| self.first_path(*of));
            }
        }
        let finished = Finished {
            reporter: Arc::clone(&self.reporter),
            items: batch.items,
            firsts,
            began: batch.began,
            placed: batch.placed,
            done: Instant::now(),
        };
        match &mut self.report_by {
            Some(report) => report(finished),
            None => finished.report(),
        }
    }
}
