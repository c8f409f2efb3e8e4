//! Whether ledger, manifests and warehouse agree one to one. Reads only, and works beside a running instance.
//!
//! Everything is compared with one [`Snapshot`] of the ledger. Its records never change
//! again, so what they say must hold at any later moment too; what came after the snapshot is looked up again before it
//! is called a mismatch. The records are walked once, in sequence order:
//!
//! ```text
//!                     ┌▶ sequence   every number has a record or an open intent      (this file)
//!                     ├▶ totals     files and bytes add up                           (this file)
//!  records, in order ─┼▶ content    every key leads to an arrival with that content  (this file)
//!                     ├▶ warehouse  every file is there, whole, with its reason      (warehouse.rs)
//!                     └▶ manifest   every line is there, once, unchanged, in order   (manifest.rs)
//!  then the other way round: files and manifests that no record names, names on their way out (leftovers.rs)
//! ```
//!
//! Memory: one 64-bit hash for each file in the warehouse, and nothing else that grows with the number of records.

pub(crate) mod leftovers;
mod manifest;
#[cfg(test)]
mod tests;
pub(crate) mod warehouse;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::failure::Failure;
use crate::ledger::lmdb::{Lmdb, Snapshot};
use crate::ledger::{Arrival, ContentKey, Outcome, Record, RecordState};
use crate::observe::metrics::{Count, Totals};
use crate::pipeline::record::layout;

/// Records looked at in one read transaction.
const CHUNK: usize = 4096;
/// Findings that are kept; more are only counted.
const FINDINGS_MAX: usize = 1_000;

/// What to compare the ledger with.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Root of the warehouse.
    pub warehouse: &'a Path,
    /// Root of the manifests.
    pub manifests: &'a Path,
    /// Directories in the warehouse that are none of its own: staging, manifests, state.
    pub apart: &'a [PathBuf],
    /// Whether every file is read and hashed.
    pub deep: bool,
    /// Whether an instance runs, so that unfinished work is nothing to wonder about.
    pub running: bool,
}

/// What does not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A root directory is not there or belongs to another ledger.
    Marker,
    /// A sequence number without record or intent.
    Sequence,
    /// The ledger's totals.
    Totals,
    /// What the ledger knows of a content.
    Content,
    /// A record contradicts itself or its neighbours.
    Record,
    /// A file that is not where its record says.
    FileMissing,
    /// A file that is not what its record says.
    FileChanged,
    /// A file that was set aside, without its reason.
    ReasonMissing,
    /// A manifest that is not there.
    ManifestMissing,
    /// A manifest line that is not there.
    LineMissing,
    /// A manifest line that was edited.
    LineChanged,
    /// A manifest line that no record put there.
    LineForeign,
    /// A file that no record names.
    Orphan,
    /// Unfinished work that the ledger does not know of.
    Leftover,
    /// Something that cannot be looked at.
    Unreadable,
}

/// One mismatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What does not agree.
    pub kind: Kind,
    /// Where.
    pub path: Option<PathBuf>,
    /// At which arrival.
    pub seq: Option<u64>,
    /// What is, and what is expected; names path and sequence number too.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}: {}", path.display(), self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// What was looked at, and what was found.
#[derive(Debug, Default)]
pub struct Report {
    /// The first mismatches, 1,000 at most.
    pub findings: Vec<Finding>,
    /// All mismatches.
    pub mismatches: u64,
    /// Records looked at, void ones included.
    pub records: u64,
    /// Manifest lines that are as they should be.
    pub manifest_lines: u64,
    /// Files looked at in the warehouse.
    pub files: u64,
    /// Bytes read and hashed.
    pub bytes_hashed: u64,
}

impl Report {
    fn add(&mut self, kind: Kind, path: Option<PathBuf>, seq: Option<u64>, message: String) {
        self.mismatches += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding {
                kind,
                path,
                seq,
                message,
            });
        }
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        let message = format!("cannot be looked at: {error}");
        self.add(Kind::Unreadable, Some(path.to_path_buf()), None, message);
    }
}

/// Compares everything. Mismatches are in the report; a failure is a ledger that cannot be read.
pub fn verify(ledger: &Lmdb, scope: Scope<'_>) -> Result<Report, Failure> {
    verify_at(ledger, scope, &ledger.snapshot()?)
}

/// Compares everything with this moment of the ledger, which may have gone on since.
fn verify_at(ledger: &Lmdb, scope: Scope<'_>, snapshot: &Snapshot) -> Result<Report, Failure> {
    let mut report = Report::default();
    let check_warehouse = root_is_ours(&mut report, snapshot, scope.warehouse);
    let check_manifests = root_is_ours(&mut report, snapshot, scope.manifests);

    let mut sequence = Sequence::new(snapshot);
    let mut totals = Totals::default();
    let mut content = Content::default();
    let mut files = warehouse::Files::new(ledger, scope, snapshot);
    let mut lines = manifest::Lines::new(ledger, scope.manifests, snapshot);

    let mut next = 1;
    while next <= snapshot.recorded_to {
        let mut records = ledger.records_from(next, CHUNK)?;
        records.retain(|record| record.seq <= snapshot.recorded_to);
        let Some(last) = records.last() else { break };
        next = last.seq + 1;
        content.check(ledger, snapshot, &records, &mut report)?;
        for record in &records {
            report.records += 1;
            sequence.check(record.seq, &mut report);
            let RecordState::Done { arrival, line } = &record.state else {
                continue;
            };
            add_to(&mut totals, arrival);
            check_shape(record.seq, arrival, line.is_some(), &mut report);
            if check_warehouse {
                files.check(arrival, &mut report)?;
            }
            if let (true, Some(line)) = (check_manifests, line) {
                lines.check(arrival, *line, &mut report)?;
            }
        }
    }

    sequence.finish(&mut report);
    content.finish(snapshot, &mut report);
    compare_totals(snapshot, &totals, &mut report);
    if check_manifests {
        lines.finish(&mut report)?;
        leftovers::manifests(ledger, scope, snapshot, lines.seen(), &mut report)?;
    }
    if check_warehouse {
        leftovers::warehouse(ledger, scope, snapshot, files.names(), &mut report)?;
    }
    if !scope.running {
        leftovers::staging(ledger, snapshot, &mut report)?;
    }
    Ok(report)
}

/// Whether a root directory is worth looking into: an unmounted disk or another ledger's directory is one finding, not
/// one for every file.
fn root_is_ours(report: &mut Report, snapshot: &Snapshot, root: &Path) -> bool {
    let used = snapshot.recorded_to > 0;
    let mut say = |message: String| {
        let path = Some(root.to_path_buf());
        report.add(Kind::Marker, path, None, message);
    };
    let Some(uuid) = &snapshot.uuid else {
        return used;
    };
    let empty = match std::fs::read_dir(root) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !used => return false,
        Err(error) => {
            say(format!(
                "cannot be looked at, although {} arrivals are recorded: {error}; mount or restore it",
                snapshot.recorded_to
            ));
            return false;
        }
    };
    match std::fs::read(root.join(layout::MARKER)) {
        Ok(bytes) => match marked_uuid(&bytes) {
            Some(found) if found == *uuid => true,
            Some(found) => {
                say(format!(
                    "it belongs to ledger {found}, this one is {uuid}; name the directory that belongs to this state"
                ));
                false
            }
            None => {
                say(format!(
                    "{} is damaged, it should name ledger {uuid}",
                    layout::MARKER
                ));
                true
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && !used => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound && empty => {
            say(format!(
                "it is empty, although {} arrivals are recorded; mount or restore it",
                snapshot.recorded_to
            ));
            false
        }
        Err(error) => {
            say(format!(
                "{}, which should name ledger {uuid}, cannot be read: {error}",
                layout::MARKER
            ));
            true
        }
    }
}

/// The ledger that a marker names: `{"format":1,"ledger":"<uuid>"}`.
fn marked_uuid(bytes: &[u8]) -> Option<String> {
    let marker: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    Some(marker.get("ledger")?.as_str()?.to_string())
}

/// Only what was ingested has a manifest line, and it always has one.
fn check_shape(seq: u64, arrival: &Arrival, has_line: bool, report: &mut Report) {
    let mut say = |message| report.add(Kind::Record, None, Some(seq), message);
    if arrival.seq != seq {
        say(format!(
            "arrival {seq}: its record says that it is arrival {}",
            arrival.seq
        ));
    }
    if has_line != (arrival.outcome == Outcome::Ingest) {
        say(match has_line {
            true => format!("arrival {seq}: it was not ingested, and yet has a manifest line"),
            false => format!("arrival {seq}: it was ingested, and has no manifest line"),
        });
    }
}

fn add_to(totals: &mut Totals, arrival: &Arrival) {
    let count = Count::file(arrival.identity.size);
    match &arrival.outcome {
        Outcome::Ingest => totals.ingested += count,
        Outcome::Duplicate { .. } => totals.duplicate += count,
        Outcome::Quarantine { .. } => totals.quarantined += count,
    }
}

fn compare_totals(snapshot: &Snapshot, counted: &Totals, report: &mut Report) {
    let kept = &snapshot.totals;
    for (name, kept, counted) in [
        ("ingested", kept.ingested, counted.ingested),
        ("duplicate", kept.duplicate, counted.duplicate),
        ("quarantined", kept.quarantined, counted.quarantined),
    ] {
        if kept != counted {
            let message = format!(
                "totals of the ledger: {name} is {} files, {} bytes; its records add up to {} files, {} bytes",
                kept.files, kept.bytes, counted.files, counted.bytes
            );
            report.add(Kind::Totals, None, None, message);
        }
    }
}

/// Sequence numbers have no holes.
struct Sequence<'a> {
    snapshot: &'a Snapshot,
    expected: u64,
}

impl Sequence<'_> {
    fn new(snapshot: &Snapshot) -> Sequence<'_> {
        Sequence {
            snapshot,
            expected: 1,
        }
    }

    fn check(&mut self, seq: u64, report: &mut Report) {
        self.skip_to(seq, report);
        self.expected = seq + 1;
    }

    fn finish(mut self, report: &mut Report) {
        let next = self.snapshot.next_seq;
        // A crash can leave numbers that were given out to arrivals without a placement; the next start voids them.
        if self.snapshot.clean {
            self.skip_to(next, report);
        }
        if self.expected > next {
            let last = self.expected - 1;
            let message = format!(
                "arrival {last}: it has a record, but the next number to give out is {next}"
            );
            report.add(Kind::Sequence, None, Some(last), message);
        }
    }

    /// Reports every run of numbers from the expected one up to `to` that has no intent either.
    fn skip_to(&mut self, to: u64, report: &mut Report) {
        let mut from = self.expected;
        let intents = self.snapshot.intents.iter().map(|intent| intent.seq);
        for stop in intents
            .filter(|seq| (self.expected..to).contains(seq))
            .chain([to])
        {
            if from < stop {
                let message = match stop - from {
                    1 => format!("arrival {from}: it has neither a record nor an intent"),
                    _ => format!(
                        "arrivals {from} to {}: they have neither records nor intents",
                        stop - 1
                    ),
                };
                report.add(Kind::Sequence, None, Some(from), message);
            }
            from = stop + 1;
        }
    }
}

/// Content keys lead to arrivals that brought this content.
#[derive(Default)]
struct Content {
    /// Keys that lead to the record that brought them.
    owned: u64,
    /// Whether some lead past the snapshot, so that they cannot be counted.
    moved_on: bool,
}

impl Content {
    fn check(
        &mut self,
        ledger: &Lmdb,
        snapshot: &Snapshot,
        records: &[Record],
        report: &mut Report,
    ) -> Result<(), Failure> {
        let mut keys: Vec<(ContentKey, u64)> = Vec::new();
        for record in records {
            let RecordState::Done { arrival, .. } = &record.state else {
                continue;
            };
            match arrival.outcome {
                Outcome::Ingest => keys.extend(arrival.key.map(|key| (key, record.seq))),
                Outcome::Duplicate { of } if of >= record.seq || !brought(ledger, of, arrival)? => {
                    let message = format!(
                        "arrival {}: it is a duplicate of arrival {of}, which did not bring this content",
                        record.seq
                    );
                    report.add(Kind::Content, None, Some(record.seq), message);
                }
                _ => {}
            }
        }
        keys.sort_unstable();
        let asked: Vec<ContentKey> = keys.iter().map(|(key, _)| *key).collect();
        for ((_, seq), found) in keys.into_iter().zip(ledger.lookup_all(&asked)?) {
            let message = match found {
                Some(found) if found == seq => {
                    self.owned += 1;
                    continue;
                }
                // A later arrival brought it again after its file was lost.
                Some(found) if found > snapshot.recorded_to => {
                    self.moved_on = true;
                    continue;
                }
                Some(found) if found > seq && same_key(ledger, found, seq)? => continue,
                Some(found) => {
                    format!(
                        "arrival {seq}: its content is assigned to arrival {found}, which did not bring it"
                    )
                }
                None => format!("arrival {seq}: its content is not in the table of contents"),
            };
            self.owned += u64::from(found.is_some());
            report.add(Kind::Content, None, Some(seq), message);
        }
        Ok(())
    }

    fn finish(&self, snapshot: &Snapshot, report: &mut Report) {
        if !self.moved_on && self.owned != snapshot.content_keys {
            let message = format!(
                "the table of contents has {} keys, {} of them belong to records",
                snapshot.content_keys, self.owned
            );
            report.add(Kind::Content, None, None, message);
        }
    }
}

/// Whether arrival `seq` was ingested with the content of `arrival`.
fn brought(ledger: &Lmdb, seq: u64, arrival: &Arrival) -> Result<bool, Failure> {
    let found = ledger.record_of(seq)?;
    Ok(found.is_some_and(|record| {
        matches!(record.state, RecordState::Done { arrival: first, .. }
            if first.outcome == Outcome::Ingest && first.digest == arrival.digest)
    }))
}

/// Whether two arrivals brought the same content key.
fn same_key(ledger: &Lmdb, one: u64, other: u64) -> Result<bool, Failure> {
    let key = |seq| -> Result<Option<ContentKey>, Failure> {
        Ok(match ledger.record_of(seq)?.map(|record| record.state) {
            Some(RecordState::Done { arrival, .. }) => arrival.key,
            _ => None,
        })
    };
    Ok(key(one)?.is_some() && key(one)? == key(other)?)
}

/// Hands on every record after `last`, those that are committed meanwhile included. Gives back the last one's number.
fn newer_records(
    ledger: &Lmdb,
    mut last: u64,
    mut each: impl FnMut(&Record) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    loop {
        let records = ledger.records_from(last + 1, CHUNK)?;
        let Some(newest) = records.last() else {
            return Ok(last);
        };
        last = newest.seq;
        records.iter().try_for_each(&mut each)?;
    }
}
