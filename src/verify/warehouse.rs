//! Every file that a record names is in the warehouse, whole.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::failure::Failure;
use crate::io::Timestamp;
use crate::ledger::lmdb::{Lmdb, Snapshot};
use crate::ledger::{Arrival, Digest, Outcome, OwedKind, Placement};
use crate::pipeline::read::digest;
use crate::pipeline::record::{CHANGED_RULE, layout};
use crate::quarantine::{self, ReasonBeside, reason_beside};

use crate::trial::mutants;

use super::{Kind, Report, Scope};

/// Bytes hashed at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// The check of files, record by record.
pub struct Files<'a> {
    ledger: &'a Lmdb,
    scope: Scope<'a>,
    root: Option<OwnedFd>,
    names: Names,
    buffer: Vec<u8>,
}

impl<'a> Files<'a> {
    /// A check that knows the names of open intents already.
    pub fn new(ledger: &'a Lmdb, scope: Scope<'a>, snapshot: &Snapshot) -> Files<'a> {
        let mut names = Names::default();
        for intent in &snapshot.intents {
            names.add_intent(intent);
        }
        Files {
            ledger,
            scope,
            // What is missing was reported by its marker.
            root: crate::io::open::root_dir(scope.warehouse).ok(),
            names,
            buffer: Vec::new(),
        }
    }

    /// The names of all files that were checked, and of those that are being placed.
    pub fn names(self) -> Names {
        self.names
    }

    /// Looks at the file of one record.
    pub fn check(&mut self, arrival: &Arrival, report: &mut Report) -> Result<(), Failure> {
        if arrival.placement == Placement::None {
            return Ok(());
        }
        self.names.add(arrival);
        if self.has_left(arrival)? {
            return Ok(());
        }
        let path = self.scope.warehouse.join(&arrival.placed);
        let seq = arrival.seq;
        let mut say = |kind, message| report.add(kind, Some(path.clone()), Some(seq), message);
        let found = match std::fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return self.missing(arrival, report),
            Err(error) => {
                say(
                    Kind::Unreadable,
                    format!("arrival {seq} cannot be looked at: {error}"),
                );
                return Ok(());
            }
        };
        if !found.is_file() {
            let message = format!("it is not a regular file; arrival {seq} put one there");
            say(Kind::FileChanged, message);
            return Ok(());
        }
        // The record of a file that changed after it was placed has the digest of what it was.
        let changed = matches!(&arrival.outcome,
            Outcome::Quarantine { rule, .. } if rule == CHANGED_RULE);
        if found.len() != arrival.identity.size && !changed {
            let message = format!(
                "it has {} bytes; arrival {seq} put {} there",
                found.len(),
                arrival.identity.size
            );
            say(Kind::FileChanged, message);
        } else if (self.scope.deep || was_touched(arrival, &found)) && !changed {
            match self.digest_of(&arrival.placed) {
                Ok((digest, bytes)) => {
                    report.bytes_hashed += bytes;
                    if digest != arrival.digest {
                        let hex = |digest| data_encoding::HEXLOWER.encode(digest);
                        let message = format!(
                            "its SHA-256 is {}; arrival {seq} had {}",
                            hex(&digest),
                            hex(&arrival.digest)
                        );
                        report.add(Kind::FileChanged, Some(path.clone()), Some(seq), message);
                    }
                }
                Err(error) if is_absent(&error) => return self.missing(arrival, report),
                Err(error) => {
                    let message = format!("arrival {seq} cannot be read: {error}");
                    say(Kind::Unreadable, message);
                }
            }
        }
        report.files += 1;
        if arrival.outcome != Outcome::Ingest {
            self.check_reason(arrival, report)?;
        }
        Ok(())
    }

    /// Reports a file that is not there, unless it has left quarantine or is just leaving it.
    fn missing(&self, arrival: &Arrival, report: &mut Report) -> Result<(), Failure> {
        let Arrival { seq, identity, .. } = arrival;
        let mut message = format!(
            "it is missing; arrival {seq} put {} bytes there",
            identity.size
        );
        if matches!(arrival.outcome, Outcome::Quarantine { .. }) {
            if quarantine::is_busy(self.ledger.dir()) || self.has_left(arrival)? {
                return Ok(());
            }
            message += &format!(
                ", and its reason is there: `ringest quarantine retry {seq}` ends what was interrupted"
            );
        }
        let path = self.scope.warehouse.join(&arrival.placed);
        report.add(Kind::FileMissing, Some(path), Some(*seq), message);
        Ok(())
    }

    /// Whether a file was quarantined and has left since: given back, dropped, or taken away with its reason. A later one may
    /// have its name.
    fn has_left(&self, arrival: &Arrival) -> Result<bool, Failure> {
        let Some(root) = &self.root else {
            return Ok(false);
        };
        if !matches!(arrival.outcome, Outcome::Quarantine { .. }) {
            return Ok(false);
        }
        let (seq, placed) = (arrival.seq, &arrival.placed);
        let beside = || reason_beside(root, placed);
        match beside() {
            Ok(ReasonBeside::Absent) if !self.ledger.owes(seq, OwedKind::Reason)? => {}
            Ok(ReasonBeside::Of(other)) => return Ok(other != seq),
            _ => return Ok(false),
        }
        let path = self.scope.warehouse.join(placed);
        if std::fs::symlink_metadata(path).is_err_and(|error| is_absent(&error)) {
            return Ok(true);
        }
        // Another one may be there whose reason is not written yet, or has been since the first look.
        let intents = self.ledger.intents()?;
        let owed = self.ledger.owed()?;
        let is_anothers = intents.iter().any(|intent| intent.placed == *placed)
            || owed.iter().any(|owed| {
                owed.kind == OwedKind::Reason && owed.seq != seq && owed.path == *placed
            });
        Ok(is_anothers || matches!(beside(), Ok(ReasonBeside::Of(other)) if other != seq))
    }

    /// What is set aside has a reason beside it, or is still owed one.
    fn check_reason(&self, arrival: &Arrival, report: &mut Report) -> Result<(), Failure> {
        let path = self.scope.warehouse.join(&arrival.placed);
        let reason = path.with_file_name(layout::reason_name(path.file_name().unwrap_or_default()));
        let there = || std::fs::symlink_metadata(&reason).is_ok();
        // In this order: it may be written between the first look and the second.
        if !there() && !self.ledger.owes(arrival.seq, OwedKind::Reason)? && !there() {
            let message = format!(
                "it is missing; it should say why arrival {} was set aside",
                arrival.seq
            );
            report.add(
                Kind::ReasonMissing,
                Some(reason),
                Some(arrival.seq),
                message,
            );
        }
        Ok(())
    }

    fn digest_of(&mut self, placed: &Path) -> io::Result<(Digest, u64)> {
        let root = self.root.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut file = File::from(crate::io::open::file_beneath(root, placed.as_os_str())?);
        self.buffer.resize(BUFFER_BYTES, 0);
        let mut stream = digest::Stream::default();
        let mut total = 0;
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => return Ok((stream.finish(), total)),
                Ok(bytes) => {
                    digest::update(&mut [(&mut stream, &self.buffer[..bytes])]);
                    total += bytes as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a placed file has another ctime than when it was known to be whole. Its owner can set its size and mtime back after a
/// change, not its ctime; only its bytes can tell then whether it was changed, or just given other permissions.
fn was_touched(arrival: &Arrival, found: &Metadata) -> bool {
    let was = arrival.placed_ctime;
    let is = (found.ctime(), found.ctime_nsec());
    was != Timestamp::default()
        && is != (was.seconds, i64::from(was.nanos))
        && !mutants::on("verify_blind_to_ctime")
}

/// Paths beneath the warehouse that the ledger accounts for, as hashes: eight bytes for each.
#[derive(Default)]
pub struct Names {
    hashes: Vec<u64>,
    sorted: bool,
    newer: HashSet<u64>,
}

impl Names {
    /// Adds the file of a record, with its reason.
    pub fn add(&mut self, arrival: &Arrival) {
        let hashes = &mut self.hashes;
        names_of(arrival, |path| hashes.push(hash(path)));
        self.sorted = false;
    }

    /// The same for a record that was committed after the walk.
    pub fn add_newer(&mut self, arrival: &Arrival) {
        let newer = &mut self.newer;
        names_of(arrival, |path| {
            newer.insert(hash(path));
        });
    }

    /// Adds what an intent may leave: the file at its place, or where an undo sets it aside.
    pub fn add_intent(&mut self, intent: &Arrival) {
        self.newer.insert(hash(&layout::changed_path(intent)));
        self.add_newer(intent);
    }

    /// Whether the ledger accounts for this path.
    pub fn contain(&mut self, path: &Path) -> bool {
        if !self.sorted {
            self.hashes.sort_unstable();
            self.sorted = true;
        }
        let hash = hash(path);
        self.hashes.binary_search(&hash).is_ok() || self.newer.contains(&hash)
    }
}

fn names_of(arrival: &Arrival, mut each: impl FnMut(&Path)) {
    if arrival.placement == Placement::None {
        return;
    }
    each(&arrival.placed);
    if arrival.outcome != Outcome::Ingest {
        let name = arrival.placed.file_name().unwrap_or_default();
        each(&arrival.placed.with_file_name(layout::reason_name(name)));
    }
}

fn hash(path: &Path) -> u64 {
    xxh3_64(path.as_os_str().as_bytes())
}

/// Whether an error means that there is nothing.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
