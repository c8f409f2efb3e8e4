//! Every line that a record promises is in its manifest: once, unchanged, in order, and nothing else is.
//!
//! Records and lines are walked side by side. Where they part, one look at what the line itself says decides which side
//! to move, so that one removed or added line is one finding and not one for every line after it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Take};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failure::Failure;
use crate::ledger::lmdb::{Lmdb, Snapshot};
use crate::ledger::{Arrival, Line, ManifestEnd, RecordState};
use crate::pipeline::record::{layout, manifest};

use super::{Kind, Report, newer_records};

/// What is longer is no line of ours: two paths of 4,096 bytes, each byte escaped, and some numbers.
const LINE_BYTES_MAX: u64 = 1 << 18;

/// What a line says of itself.
#[derive(Deserialize)]
struct Entry<'a> {
    seq: u64,
    sha256: &'a str,
    size: u64,
}

/// The check of lines, record by record.
pub struct Lines<'a> {
    ledger: &'a Lmdb,
    root: &'a Path,
    recorded_to: u64,
    pending_from: Option<ManifestEnd>,
    file: Option<HourFile>,
    seen: BTreeSet<PathBuf>,
}

impl<'a> Lines<'a> {
    /// A check of the manifests beneath `root`.
    pub fn new(ledger: &'a Lmdb, root: &'a Path, snapshot: &Snapshot) -> Lines<'a> {
        Lines {
            ledger,
            root,
            recorded_to: snapshot.recorded_to,
            pending_from: snapshot.pending_from,
            file: None,
            seen: BTreeSet::new(),
        }
    }

    /// The manifests that records point into, as paths beneath the root.
    pub fn seen(&mut self) -> BTreeSet<PathBuf> {
        std::mem::take(&mut self.seen)
    }

    /// Looks for the line of one record.
    pub fn check(
        &mut self,
        arrival: &Arrival,
        line: Line,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let hour = layout::hour(arrival.time_micros);
        let mut file = match self.file.take() {
            Some(file) if file.hour == hour => file,
            other => {
                if let Some(file) = other {
                    file.finish(self.ledger, report)?;
                }
                self.open(hour, arrival.seq, report)
            }
        };
        let pending = self
            .pending_from
            .is_some_and(|from| (hour, line.offset) >= (from.hour, from.offset));
        file.check(self.ledger, arrival, line, pending, report)?;
        self.file = Some(file);
        Ok(())
    }

    /// Ends with what the last file holds beyond the lines of the walk.
    pub fn finish(&mut self, report: &mut Report) -> Result<(), Failure> {
        let Some(mut file) = self.file.take() else {
            return Ok(());
        };
        // Lines that a running instance has written since the snapshot: their records were committed before them.
        if file.size > file.end {
            newer_records(self.ledger, self.recorded_to, |record| {
                if let RecordState::Done {
                    arrival,
                    line: Some(line),
                } = &record.state
                    && layout::hour(arrival.time_micros) == file.hour
                    && file.size > file.end
                {
                    file.check(self.ledger, arrival, *line, true, report)?;
                }
                Ok(())
            })?;
        }
        file.finish(self.ledger, report)
    }

    fn open(&mut self, hour: i64, seq: u64, report: &mut Report) -> HourFile {
        let relative = layout::manifest_path(hour);
        let path = self.root.join(&relative);
        if !self.seen.insert(relative) {
            let message = format!(
                "arrival {seq} goes back to it, although later manifests have lines by then"
            );
            report.add(Kind::Record, Some(path.clone()), Some(seq), message);
        }
        HourFile::open(hour, path, report)
    }
}

/// Lines that are missing, one after another.
struct Missing {
    first: u64,
    last: u64,
    lines: u64,
    /// The number of the line that is there instead.
    at: u64,
}

/// A manifest, walked line by line.
struct HourFile {
    hour: i64,
    path: PathBuf,
    /// `None` when it is not there or cannot be read.
    reader: Option<BufReader<Take<File>>>,
    /// Whether it is not there.
    absent: bool,
    /// Its length when it was opened, in bytes.
    size: u64,
    /// How far it is assigned by the records so far, in bytes.
    end: u64,
    /// Lines that were looked at and are not used up, two at most.
    ahead: VecDeque<Vec<u8>>,
    /// The number of the first of these, from 1.
    number: u64,
    missing: Option<Missing>,
    /// Set where lines begin that may not be written yet, or that cannot be read.
    given_up: bool,
}

impl HourFile {
    fn open(hour: i64, path: PathBuf, report: &mut Report) -> HourFile {
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let mut file = HourFile {
            hour,
            path,
            reader: None,
            absent: false,
            size: 0,
            end: 0,
            ahead: VecDeque::new(),
            number: 1,
            missing: None,
            given_up: false,
        };
        match opened {
            Ok((size, opened)) => {
                file.size = size;
                file.reader = Some(BufReader::with_capacity(1 << 18, opened.take(size)));
            }
            Err(error) if super::warehouse::is_absent(&error) => file.absent = true,
            Err(error) => file.cannot_read(&error, report),
        }
        file
    }

    /// Takes the next record. One that is `pending` may have its line or not.
    fn check(
        &mut self,
        ledger: &Lmdb,
        arrival: &Arrival,
        line: Line,
        pending: bool,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let (seq, hour) = (arrival.seq, self.hour);
        if line.offset != self.end {
            let message = format!(
                "the line of arrival {seq} begins at byte {} by the ledger, the one before ends at {}",
                line.offset, self.end
            );
            report.add(Kind::Record, Some(self.path.clone()), Some(seq), message);
        }
        self.end = line.offset + u64::from(line.length);
        loop {
            if self.given_up {
                return Ok(());
            }
            let Some(found) = self.peek(0, report) else {
                if pending {
                    self.given_up = true;
                } else if !self.given_up {
                    self.miss(seq);
                }
                return Ok(());
            };
            if is_line(found, line) {
                let complaint = complaint(found, arrival);
                self.tell_missing(report);
                if let Some(complaint) = complaint {
                    self.tell(Kind::LineChanged, Some(seq), &complaint, report);
                }
                report.manifest_lines += 1;
                self.next();
                return Ok(());
            }
            if pending {
                self.given_up = true;
                return Ok(());
            }
            let stated = stated_line(ledger, found, hour)?;
            let expected_follows = self.peek(1, report).is_some_and(|next| is_line(next, line));
            match stated {
                Some(other) if other > seq && !expected_follows => {
                    self.miss(seq);
                    return Ok(());
                }
                Some(other) if other < seq || expected_follows => {
                    let what = format!("it repeats the line of arrival {other}");
                    self.tell(Kind::LineForeign, Some(other), &what, report);
                }
                _ if expected_follows => {
                    self.tell(Kind::LineForeign, None, "it belongs to no record", report);
                }
                _ => {
                    self.tell_missing(report);
                    let what = format!(
                        "it is not what was written for arrival {seq}: {} bytes with sha256 {}",
                        line.length,
                        data_encoding::HEXLOWER.encode(&arrival.digest)
                    );
                    self.tell(Kind::LineChanged, Some(seq), &what, report);
                    self.next();
                    return Ok(());
                }
            }
            self.next();
        }
    }

    /// Reports what is left over.
    fn finish(mut self, ledger: &Lmdb, report: &mut Report) -> Result<(), Failure> {
        self.tell_missing(report);
        if self.given_up {
            if self.size > self.end {
                let message = format!(
                    "it has {} bytes; the ledger gave out only {}",
                    self.size, self.end
                );
                report.add(Kind::LineForeign, Some(self.path), None, message);
            }
            return Ok(());
        }
        let hour = self.hour;
        while let Some(found) = self.peek(0, report) {
            let stated = stated_line(ledger, found, hour)?;
            let what = match stated {
                Some(other) => format!("it repeats the line of arrival {other}"),
                None => "it belongs to no record".to_string(),
            };
            self.tell(Kind::LineForeign, stated, &what, report);
            self.next();
        }
        Ok(())
    }

    /// The line `ahead` of the current one, without using it up.
    fn peek(&mut self, ahead: usize, report: &mut Report) -> Option<&[u8]> {
        while self.ahead.len() <= ahead {
            let mut line = Vec::new();
            let reader = self.reader.as_mut()?;
            match reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) => self.ahead.push_back(line),
                Err(error) => {
                    self.cannot_read(&error, report);
                    return None;
                }
            }
        }
        self.ahead.get(ahead).map(Vec::as_slice)
    }

    fn next(&mut self) {
        self.ahead.pop_front();
        self.number += 1;
    }

    fn miss(&mut self, seq: u64) {
        let missing = self.missing.get_or_insert(Missing {
            first: seq,
            last: seq,
            lines: 0,
            at: self.number,
        });
        missing.last = seq;
        missing.lines += 1;
    }

    fn tell_missing(&mut self, report: &mut Report) {
        let Some(Missing {
            first,
            last,
            lines,
            at,
        }) = self.missing.take()
        else {
            return;
        };
        let (kind, what) = match (self.absent, lines) {
            (true, 1) => (
                Kind::ManifestMissing,
                format!("it is missing; it should hold the line of arrival {first}"),
            ),
            (true, _) => (
                Kind::ManifestMissing,
                format!(
                    "it is missing; it should hold {lines} lines, of arrivals {first} to {last}"
                ),
            ),
            (false, 1) => (
                Kind::LineMissing,
                format!("the line of arrival {first} is missing; it should be line {at}"),
            ),
            (false, _) => (
                Kind::LineMissing,
                format!(
                    "{lines} lines are missing from line {at} on, of arrivals {first} to {last}"
                ),
            ),
        };
        report.add(kind, Some(self.path.clone()), Some(first), what);
    }

    fn tell(&self, kind: Kind, seq: Option<u64>, what: &str, report: &mut Report) {
        let message = format!("line {}: {what}", self.number);
        report.add(kind, Some(self.path.clone()), seq, message);
    }

    fn cannot_read(&mut self, error: &io::Error, report: &mut Report) {
        report.unreadable(&self.path, error);
        self.given_up = true;
        self.reader = None;
    }
}

fn is_line(bytes: &[u8], line: Line) -> bool {
    manifest::line_at(line.offset, bytes) == line
}

/// The arrival whose line in the manifest of `hour` these very bytes are.
fn stated_line(ledger: &Lmdb, bytes: &[u8], hour: i64) -> Result<Option<u64>, Failure> {
    let Some(seq) = serde_json::from_slice::<Entry<'_>>(bytes)
        .ok()
        .map(|entry| entry.seq)
    else {
        return Ok(None);
    };
    let record = ledger.record_of(seq)?;
    let is_its_line = record.is_some_and(|record| {
        matches!(record.state, RecordState::Done { arrival, line: Some(line) }
            if layout::hour(arrival.time_micros) == hour && is_line(bytes, line))
    });
    Ok(is_its_line.then_some(seq))
}

/// What is wrong with a line that is exactly as the ledger promised it.
fn complaint(bytes: &[u8], arrival: &Arrival) -> Option<String> {
    let seq = arrival.seq;
    match serde_json::from_slice::<Entry<'_>>(bytes) {
        Err(error) => Some(format!(
            "the line of arrival {seq} is not what it should be: {error}"
        )),
        Ok(entry)
            if entry.seq != seq
                || entry.size != arrival.identity.size
                || entry.sha256 != data_encoding::HEXLOWER.encode(&arrival.digest) =>
        {
            Some(format!(
                "the line of arrival {seq} states another seq, size or sha256 than its record"
            ))
        }
        Ok(_) => None,
    }
}
