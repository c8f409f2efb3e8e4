//! What is told of a batch once it is durable: to the log, the histograms and the discoverer. Its files are closed with it, which
//! gives their leases back. Nothing of that waits for the disk, and nothing on the disk waits for it, so it may be left to
//! another thread.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::ledger::{Arrival, Outcome, Placement, SourceEntry, SourceId};
use crate::observe::events;
use crate::observe::metrics::{Count, Metrics, Stage};
use crate::pipeline::{Fate, Ticket};
use crate::settings::OnDuplicate;
use crate::trial::points;

use super::{Item, between};

/// What it takes to speak of files as people know them.
pub(super) struct Reporter {
    pub metrics: Arc<Metrics>,
    pub sources: HashMap<SourceId, SourceEntry>,
    pub warehouse: PathBuf,
}

/// A batch that is durable and that nobody has heard of yet.
pub struct Finished<File> {
    pub(super) reporter: Arc<Reporter>,
    pub(super) items: Vec<Item<File>>,
    /// Where the first copies of its duplicates are.
    pub(super) firsts: HashMap<u64, PathBuf>,
    pub(super) began: Instant,
    pub(super) placed: Instant,
    pub(super) done: Instant,
}

impl<File> Finished<File> {
    /// Tells everyone who waits, and closes the files.
    pub fn report(self) {
        let metrics = &self.reporter.metrics;
        let recorded = || self.items.iter().filter(|item| item.dropped.is_none());
        let (began, placed, done) = (self.began, self.placed, self.done);
        metrics.record_many(Stage::Place, recorded().map(|_| between(began, placed)));
        metrics.record_many(Stage::Commit, recorded().map(|_| between(placed, done)));
        let settled = recorded()
            .filter_map(|item| item.staged.as_ref())
            .map(|staged| between(staged.candidate.settled_at, done));
        metrics.record_many(Stage::Total, settled);
        let mut ends = Vec::with_capacity(self.items.len());
        for item in self.items {
            let fate = match item.dropped {
                Some(fate) => fate,
                None => {
                    self.reporter.announce(&item, &self.firsts);
                    Fate::Done
                }
            };
            ends.extend(item.staged.map(|staged| (staged.candidate.ticket, fate)));
        }
        // Before the discoverer hears of the last, and everything may come to its end.
        points::reached("reported");
        Ticket::close_all(ends);
    }
}

impl Reporter {
    /// The path that people know a source by.
    pub fn source_path(&self, arrival: &Arrival) -> PathBuf {
        let entry = self.sources.get(&arrival.source);
        let input = entry.map_or(Path::new(""), |entry| &entry.input);
        input.join(&arrival.path)
    }

    /// Where an arrival is in the warehouse.
    pub fn placed_path(&self, arrival: &Arrival) -> PathBuf {
        self.warehouse.join(&arrival.placed)
    }

    fn announce<File>(&self, item: &Item<File>, firsts: &HashMap<u64, PathBuf>) {
        let arrival = &item.arrival;
        let count = Count::file(arrival.identity.size);
        match &arrival.outcome {
            Outcome::Ingest => {
                self.metrics.ingested.add(count);
                if events::tells_of_files() {
                    let source = self.sources.get(&arrival.source);
                    events::file_ingested(
                        &self.source_path(arrival),
                        &self.placed_path(arrival),
                        &arrival.digest,
                        count.bytes,
                        arrival.seq,
                        source.map_or("", |entry| entry.name.as_str()),
                    );
                }
            }
            Outcome::Duplicate { of } => {
                self.metrics.duplicate.add(count);
                let action = match arrival.placement {
                    Placement::None => policy_of(item).done(),
                    _ => OnDuplicate::Move.done(),
                };
                let path = self.source_path(arrival);
                let first = firsts.get(of).map_or(Path::new(""), PathBuf::as_path);
                events::file_duplicate(&path, *of, first, &arrival.digest, count.bytes, action);
            }
            Outcome::Quarantine { rule, message, .. } => {
                self.metrics.quarantined.add(count);
                let (path, placed) = (self.source_path(arrival), self.placed_path(arrival));
                events::file_quarantined(&path, &placed, rule, message, count.bytes);
            }
        }
    }
}

/// What becomes of it if it is a duplicate. What recovery finds is placed, or was to be deleted.
pub(super) fn policy_of<File>(item: &Item<File>) -> OnDuplicate {
    let staged = item.staged.as_ref();
    staged.map_or(OnDuplicate::Delete, |staged| {
        staged.candidate.input.settings.on_duplicate
    })
}
