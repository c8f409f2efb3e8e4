//! The ledger in LMDB, through heed.
//!
//! LMDB maps its file: a page that a truncation took away would end the program with SIGBUS. So the file is kept
//! longer than any page in use, and a shorter one is refused before it is mapped. How long it was made is noted in it, so
//! that any truncation is found at the next start.
#![allow(unsafe_code)]
// The ledger makes and keeps its own directory.
#![allow(clippy::disallowed_methods)]

mod room;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, MdbError, PutFlags, RoTxn, RwTxn, WithoutTls};

use crate::failure::{Exit, Failure};
use crate::observe::metrics::Totals;
use crate::pipeline::record::hidden::HiddenNames;
use crate::settings::Durability;
use crate::trial::{mutants, points};

use room::Room;

use super::schema::{Value, lines_key, owed_key};
use super::{
    Arrival, Commit, ContentKey, Kept, Ledger, ManifestEnd, Opening, Owed, OwedKind, PendingLines,
    Record, RecordState, Secret, SourceEntry, SourceId,
};

/// Version of the tables as a whole.
const FORMAT: u64 = 1;
/// Address space reserved at the start, in bytes. Not memory, not disk.
const MAP_BYTES: usize = 64 << 30;
/// How much longer than its last page the file is kept, in bytes; a hole, except for what is in use.
const HEADROOM_BYTES: u64 = 64 << 20;
/// Most readers (`find`, `verify`, `status`) beside the writer.
const READERS_MAX: u32 = 126;
/// Time between two looks for readers that were killed.
const READERS_CHECK: Duration = Duration::from_secs(60);

type Table = Database<Bytes, Bytes>;

/// A ledger on disk.
pub struct Lmdb {
    env: Env<WithoutTls>,
    dir: PathBuf,
    tables: Tables,
    file: Option<File>,
    file_bytes: u64,
    page_bytes: u64,
    room: Room,
    readers_checked: Instant,
}

#[derive(Clone, Copy)]
struct Tables {
    meta: Table,
    sources: Table,
    intents: Table,
    records: Table,
    content: Table,
    owed: Table,
    lines: Table,
    kept: Table,
}

const TABLE_NAMES: [&str; 8] = [
    "meta", "sources", "intents", "records", "content", "owed", "lines", "kept",
];

impl Tables {
    fn from_list(list: [Table; 8]) -> Tables {
        let [meta, sources, intents, records, content, owed, lines, kept] = list;
        Tables {
            meta,
            sources,
            intents,
            records,
            content,
            owed,
            lines,
            kept,
        }
    }
}

/// Names in `meta`.
mod meta {
    pub const FORMAT: &[u8] = b"format";
    pub const FILE_BYTES: &[u8] = b"file_bytes";
    pub const UUID: &[u8] = b"uuid";
    pub const NEXT_SEQ: &[u8] = b"next_seq";
    pub const LAST_TIME: &[u8] = b"last_time_micros";
    pub const CLEAN: &[u8] = b"clean";
    pub const ASSIGNED: &[u8] = b"manifest_assigned";
    pub const SYNCED: &[u8] = b"manifest_synced";
    pub const TOTALS: &[u8] = b"totals";
    pub const NUMBERS: &[u8] = b"numbers";
    pub const SECRET: &[u8] = b"secret";
    pub const SECRET_SINCE: &[u8] = b"secret_since";
    pub const OWED_TOLD: &[u8] = b"owed_told";
}

/// How far manifests go.
#[derive(Debug, Clone, Copy, Default)]
pub struct ManifestEnds {
    /// The end that is promised.
    pub assigned: Option<ManifestEnd>,
    /// The end that is known to be durable.
    pub synced: Option<ManifestEnd>,
}

/// One moment of the ledger, for `verify`. Records up to `recorded_to` never change again.
#[derive(Debug)]
pub struct Snapshot {
    /// The ledger's own name; `None` before it was named.
    pub uuid: Option<String>,
    /// Whether the last session ended by itself; false while one runs.
    pub clean: bool,
    /// One past the last sequence number given out.
    pub next_seq: u64,
    /// The last sequence number with a record, 0 before the first.
    pub recorded_to: u64,
    /// Files and bytes of these records.
    pub totals: Totals,
    /// Number of content keys.
    pub content_keys: u64,
    /// Manifest lines from here on are promised and not known to be written.
    pub pending_from: Option<ManifestEnd>,
    /// Open intents, in order.
    pub intents: Vec<Arrival>,
}

/// What went wrong inside a transaction.
enum TxnError {
    Heed(heed::Error),
    Failure(Failure),
}

impl From<heed::Error> for TxnError {
    fn from(error: heed::Error) -> TxnError {
        TxnError::Heed(error)
    }
}

impl From<Failure> for TxnError {
    fn from(failure: Failure) -> TxnError {
        TxnError::Failure(failure)
    }
}

impl Lmdb {
    /// Opens the ledger in `dir`, making it if it is not there. It is made beside its place and renamed into it, so that
    /// what is there is whole or was damaged later.
    pub fn open(dir: &Path, durability: Durability) -> Result<Lmdb, Failure> {
        if !dir.exists() {
            let making = dir.with_extension("new");
            let failed = |error: io::Error| Failure::io("make the ledger in", dir, &error);
            match std::fs::remove_dir_all(&making) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            crate::io::open::make_private_dirs(&making).map_err(failed)?;
            Lmdb::open_there(&making, durability)?.keep_headroom()?;
            points::reached("ledger_made");
            std::fs::rename(&making, dir).map_err(failed)?;
            points::reached("ledger_renamed");
        } else {
            refuse_if_damaged(dir)?;
        }
        // Also if it was there: who made it may have been killed between the rename and this.
        let parent = dir.parent().unwrap_or(dir);
        crate::io::open::sync_dir(parent)
            .map_err(|error| Failure::sync("sync the directory", parent, &error))?;
        let mut ledger = Lmdb::open_there(dir, durability)?;
        ledger.check_format()?;
        ledger.refuse_if_shortened()?;
        ledger.make_room_for_a_start()?;
        ledger.keep_headroom()?;
        ledger.forget_dead_readers();
        Ok(ledger)
    }

    /// Takes killed readers (a `verify`, say) out of LMDB's table: no page that they could still see is used again,
    /// and the file grows and grows. Best effort: nothing but space depends on it.
    fn forget_dead_readers(&mut self) {
        let _ = self.env.clear_stale_readers();
        self.readers_checked = Instant::now();
    }

    fn open_there(dir: &Path, durability: Durability) -> Result<Lmdb, Failure> {
        let flags = match durability {
            Durability::Full if mutants::on("ledger_unsynced") => EnvFlags::NO_SYNC,
            Durability::Full => EnvFlags::empty(),
            Durability::None => EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC,
        };
        let opened = crate::io::open::root_dir(dir)
            .map_err(|error| Failure::io("open the ledger's directory", dir, &error))?;
        make_private(&opened, dir)?;
        room::secure_lock_file(dir)?;
        let env = open_env(dir, flags)?;
        let create = || -> Result<Tables, heed::Error> {
            let mut txn = env.write_txn()?;
            let mut list = Vec::new();
            for name in TABLE_NAMES {
                list.push(env.create_database::<Bytes, Bytes>(&mut txn, Some(name))?);
            }
            txn.commit()?;
            Ok(Tables::from_list(list.try_into().expect("eight names")))
        };
        let tables =
            create().map_err(|error| damaged(dir, "open the tables of the ledger", &error))?;
        let data = dir.join("data.mdb");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&data)
            .map_err(|error| Failure::io("open the ledger", &data, &error))?;
        make_private(&file, &data)?;
        let page_bytes = read_meta(&file, 0)
            .map_err(|error| Failure::io("read the ledger", &data, &error))?
            .ok_or_else(|| broken(&data, "it is not an LMDB file".into()))?
            .page_bytes;
        // LMDB syncs its file, not the name of it.
        crate::io::open::sync_dir(dir)
            .map_err(|error| Failure::sync("sync the ledger's directory", dir, &error))?;
        Ok(Lmdb {
            env,
            dir: dir.to_path_buf(),
            tables,
            file: Some(file),
            file_bytes: 0,
            page_bytes,
            room: Room::default(),
            readers_checked: Instant::now(),
        })
    }

    /// The directory it is in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the ledger in `dir` for reading only, also beside a running instance.
    pub fn open_read_only(dir: &Path) -> Result<Lmdb, Failure> {
        Lmdb::open_to_read(dir, EnvFlags::READ_ONLY)
    }

    /// Opens the ledger in `dir` for reading only and, unless an instance is `running` whose writes have to be kept off,
    /// without even entering itself in LMDB's table of readers.
    pub fn open_untouched(dir: &Path, running: bool) -> Result<Lmdb, Failure> {
        match running {
            true => Lmdb::open_to_read(dir, EnvFlags::READ_ONLY),
            false => Lmdb::open_to_read(dir, EnvFlags::READ_ONLY | EnvFlags::NO_LOCK),
        }
    }

    /// Copies this ledger, as it is at one moment, into `dir`, which it makes. Works beside a running instance. Returns
    /// the copy and its length in bytes.
    pub fn copy_to(&self, dir: &Path) -> Result<(Lmdb, u64), Failure> {
        let data = dir.join("data.mdb");
        let failed = |error: io::Error| Failure::io("copy the ledger to", &data, &error);
        crate::io::open::make_private_dirs(dir).map_err(failed)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&data)
            .map_err(failed)?;
        self.env
            .copy_to_file(&mut file, heed::CompactionOption::Enabled)
            .map_err(|error| match error {
                heed::Error::Io(error) => failed(error),
                error => damaged(&self.dir, "copy the ledger in", &error),
            })?;
        let bytes = file.metadata().map_err(failed)?.len();
        drop(file);
        // The copy is shorter than the original noted.
        let mut copy = Lmdb::open_there(dir, Durability::Full)?;
        copy.keep_headroom()?;
        copy.sync()?;
        Ok((copy, bytes))
    }

    /// Makes everything durable, whatever was written without a sync.
    pub fn sync(&self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::sync("sync the ledger in", &self.dir, &error);
        self.env.force_sync().map_err(|error| Failure {
            suspect: true,
            ..damaged(&self.dir, "sync the ledger in", &error)
        })?;
        if let Some(file) = &self.file {
            file.sync_all().map_err(failed)?;
        }
        crate::io::open::sync_dir(&self.dir).map_err(failed)
    }

    /// Removes a ledger that nobody has opened, if there is one.
    pub fn remove(dir: &Path) -> Result<(), Failure> {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::io("remove", dir, &error))
            }
            _ => Ok(()),
        }
    }

    /// Gives a directory with a whole and durable ledger its place, where there is nothing or an empty directory.
    pub fn move_into_place(made: &Path, place: &Path) -> Result<(), Failure> {
        std::fs::rename(made, place)
            .map_err(|error| Failure::io("give the ledger its place at", place, &error))?;
        let parent = place.parent().unwrap_or(place);
        crate::io::open::sync_dir(parent)
            .map_err(|error| Failure::sync("sync the directory", parent, &error))
    }

    fn open_to_read(dir: &Path, flags: EnvFlags) -> Result<Lmdb, Failure> {
        if !dir.exists() {
            return Err(Failure::new(
                Exit::Config,
                "open the ledger in",
                dir,
                "there is none",
                "name the state directory of a ringest that has run (--state-path)",
            ));
        }
        refuse_if_damaged(dir)?;
        let env = open_env(dir, flags)?;
        let open = || -> Result<Option<Tables>, heed::Error> {
            let txn = env.read_txn()?;
            let mut list = Vec::new();
            for name in TABLE_NAMES {
                match env.open_database::<Bytes, Bytes>(&txn, Some(name))? {
                    Some(table) => list.push(table),
                    None => return Ok(None),
                }
            }
            // Committed, not dropped: LMDB closes handles that an aborted transaction opened.
            txn.commit()?;
            Ok(Some(Tables::from_list(
                list.try_into().expect("eight names"),
            )))
        };
        let tables = open()
            .map_err(|error| damaged(dir, "open the tables of the ledger", &error))?
            .ok_or_else(|| {
                Failure::new(
                    Exit::Io,
                    "read the ledger in",
                    dir,
                    "tables are missing",
                    "start `ringest run` once, or restore the state directory from a backup",
                )
            })?;
        let ledger = Lmdb {
            env,
            dir: dir.to_path_buf(),
            tables,
            file: None,
            file_bytes: 0,
            // Only who writes asks for it.
            page_bytes: 0,
            room: Room::default(),
            readers_checked: Instant::now(),
        };
        ledger.check_format()?;
        ledger.refuse_if_shortened()?;
        Ok(ledger)
    }

    fn check_format(&self) -> Result<(), Failure> {
        match self.meta::<u64>(meta::FORMAT)? {
            Some(format) if format > FORMAT => Err(Failure::new(
                Exit::Config,
                "use the ledger in",
                &self.dir,
                format!("it has format {format}, this program knows {FORMAT}"),
                "run the newer ringest that wrote it",
            )),
            _ => Ok(()),
        }
    }

    /// Keeps the file longer than its last page, and notes how long; see the head of this module.
    fn keep_headroom(&mut self) -> Result<(), Failure> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let used = (self.env.info().last_page_number as u64 + 1) * self.page_bytes;
        if used + HEADROOM_BYTES / 2 <= self.file_bytes {
            return Ok(());
        }
        let wanted = used.next_multiple_of(HEADROOM_BYTES) + HEADROOM_BYTES;
        let extend = || -> io::Result<u64> {
            let length = file.metadata()?.len();
            if length < wanted {
                file.set_len(wanted)?;
            }
            Ok(length.max(wanted))
        };
        let length =
            extend().map_err(|error| Failure::io("extend the ledger in", &self.dir, &error))?;
        self.file_bytes = length;
        // The commit syncs the file, and with it the length that it promises.
        self.write("note the length of the ledger in", |txn, tables| {
            tables.meta.put(txn, meta::FILE_BYTES, &length.encode())
        })
    }

    /// Refuses a file that is shorter than it was made.
    fn refuse_if_shortened(&self) -> Result<(), Failure> {
        let path = self.dir.join("data.mdb");
        let length = std::fs::metadata(&path)
            .map_err(|error| Failure::io("look at the ledger", &path, &error))?
            .len();
        match self.meta::<u64>(meta::FILE_BYTES)? {
            Some(noted) if length < noted && !mutants::on("ledger_may_be_shorter") => Err(broken(
                &path,
                format!("it is truncated: {length} of {noted} bytes are there"),
            )),
            _ => Ok(()),
        }
    }

    /// Runs `change` in a transaction and commits it. A full map is grown and the change replayed.
    fn write(
        &mut self,
        operation: &str,
        change: impl Fn(&mut RwTxn<'_>, &Tables) -> Result<(), heed::Error>,
    ) -> Result<(), Failure> {
        loop {
            let attempt = || -> Result<(), heed::Error> {
                let mut txn = self.env.write_txn()?;
                change(&mut txn, &self.tables)?;
                txn.commit()
            };
            match attempt() {
                Ok(()) => return self.keep_headroom(),
                Err(heed::Error::Mdb(MdbError::MapFull)) => {
                    let size = self.env.info().map_size * 2;
                    // SAFETY: this process has no other transaction open: the recorder is the ledger's only
                    // user here, and the failed transaction is gone.
                    unsafe { self.env.resize(size) }.map_err(|error| {
                        damaged(&self.dir, "grow the map of the ledger in", &error)
                    })?;
                }
                Err(error) => {
                    return Err(Failure {
                        suspect: true,
                        ..damaged(&self.dir, operation, &error)
                    });
                }
            }
        }
    }

    fn read<T>(
        &self,
        operation: &str,
        look: impl FnOnce(&RoTxn<'_, WithoutTls>, &Tables) -> Result<T, TxnError>,
    ) -> Result<T, Failure> {
        let looked = match self.env.read_txn() {
            Ok(txn) => look(&txn, &self.tables),
            // Others have taken all places of readers. Who writes needs none: a write that changes nothing.
            Err(full @ heed::Error::Mdb(MdbError::ReadersFull)) => match self.env.write_txn() {
                Ok(txn) => look(&txn, &self.tables),
                Err(_) => Err(full.into()),
            },
            Err(error) => Err(error.into()),
        };
        looked.map_err(|error| match error {
            TxnError::Heed(error) => damaged(&self.dir, operation, &error),
            TxnError::Failure(failure) => failure,
        })
    }

    fn meta<V: Value>(&self, name: &[u8]) -> Result<Option<V>, Failure> {
        self.read("read the ledger in", |txn, tables| {
            self.meta_in(txn, tables, name)
        })
    }

    /// This ledger's name, in 32 hex digits; `None` before it was named.
    pub fn uuid(&self) -> Result<Option<String>, Failure> {
        self.meta(meta::UUID)
    }

    /// Files and bytes so far.
    pub fn totals(&self) -> Result<Totals, Failure> {
        Ok(self
            .meta::<String>(meta::TOTALS)?
            .and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default())
    }

    /// Numbers that the last session left, as JSON.
    pub fn numbers(&self) -> Result<Option<String>, Failure> {
        self.meta(meta::NUMBERS)
    }

    /// Whether the last session ended by itself.
    pub fn clean(&self) -> Result<bool, Failure> {
        Ok(self.meta::<u64>(meta::CLEAN)?.unwrap_or(1) == 1)
    }

    /// One past the last sequence number.
    pub fn next_seq(&self) -> Result<u64, Failure> {
        Ok(self.meta(meta::NEXT_SEQ)?.unwrap_or(1))
    }

    /// The last sequence number with a record, 0 before the first.
    pub fn recorded_to(&self) -> Result<u64, Failure> {
        self.read("read the ledger in", |txn, tables| {
            Ok(match tables.records.last(txn)? {
                Some((key, _)) => seq_value(&self.dir, key)?,
                None => 0,
            })
        })
    }

    /// How far the manifests go.
    pub fn manifest_ends(&self) -> Result<ManifestEnds, Failure> {
        Ok(ManifestEnds {
            assigned: self.meta(meta::ASSIGNED)?,
            synced: self.meta(meta::SYNCED)?,
        })
    }

    /// This ledger's secret; `None` in one that no session has opened since there are secrets.
    pub fn secret(&self) -> Result<Option<Secret>, Failure> {
        let Some(hex) = self.meta::<String>(meta::SECRET)? else {
            return Ok(None);
        };
        let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        let cause = || broken(&self.dir, "its secret is not one".into());
        Ok(Some(Secret {
            bytes: bytes.ok_or_else(cause)?,
            since: self.meta(meta::SECRET_SINCE)?.unwrap_or(u64::MAX),
        }))
    }

    /// What this ledger's files in staging are called on their way out and back.
    pub fn hidden_names(&self) -> Result<HiddenNames, Failure> {
        let uuid = self.uuid()?.unwrap_or_default();
        Ok(HiddenNames::new(&uuid, self.secret()?.as_ref()))
    }

    /// Its secret, drawn if there is none.
    pub fn secret_or_new(&mut self) -> Result<Secret, Failure> {
        use ring::rand::{SecureRandom, SystemRandom};
        if let Some(secret) = self.secret()? {
            return Ok(secret);
        }
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| {
            let error = io::Error::other("the kernel gives no random bytes");
            Failure::io("draw a secret for the ledger in", &self.dir, &error)
        })?;
        let since = self.next_seq()?;
        let hex = data_encoding::HEXLOWER.encode(&bytes);
        self.write("note a secret in the ledger in", |txn, tables| {
            tables.meta.put(txn, meta::SECRET, &hex.encode())?;
            tables.meta.put(txn, meta::SECRET_SINCE, &since.encode())
        })?;
        Ok(Secret { bytes, since })
    }

    /// All staging directories ever used.
    pub fn sources(&self) -> Result<Vec<SourceEntry>, Failure> {
        self.all(|tables| tables.sources, "sources")
    }

    /// Open intents, in order.
    pub fn intents(&self) -> Result<Vec<Arrival>, Failure> {
        self.all(|tables| tables.intents, "intents")
    }

    /// Removals owed, in order.
    pub fn owed(&self) -> Result<Vec<Owed>, Failure> {
        self.all(|tables| tables.owed, "owed")
    }

    /// Files that stay in staging.
    pub fn kept(&self) -> Result<Vec<Kept>, Failure> {
        self.all(|tables| tables.kept, "kept")
    }

    /// Lines promised and not known to be written.
    pub fn pending_lines(&self) -> Result<Vec<PendingLines>, Failure> {
        self.all(|tables| tables.lines, "lines")
    }

    /// Up to `limit` records from sequence number `from` on. Ask again from past the last one: no transaction
    /// stays open between two calls.
    pub fn records_from(&self, from: u64, limit: usize) -> Result<Vec<Record>, Failure> {
        self.read("read the ledger in", |txn, tables| {
            let start = from.to_be_bytes();
            let range = (Bound::Included(start.as_slice()), Bound::Unbounded);
            let mut records = Vec::with_capacity(limit);
            for entry in tables.records.range(txn, &range)?.take(limit) {
                records.push(decode(&self.dir, "records", entry?.1)?);
            }
            Ok(records)
        })
    }

    /// Sequence numbers of all content keys of this digest.
    pub fn by_digest(&self, digest: &[u8; 32]) -> Result<Vec<u64>, Failure> {
        self.read("read the ledger in", |txn, tables| {
            let mut found = Vec::new();
            for entry in tables.content.prefix_iter(txn, digest)? {
                found.push(seq_value(&self.dir, entry?.1)?);
            }
            Ok(found)
        })
    }

    /// Which arrival brought each content.
    pub fn lookup_all(&self, keys: &[ContentKey]) -> Result<Vec<Option<u64>>, Failure> {
        self.read("read the ledger in", |txn, tables| {
            keys.iter()
                .map(|key| {
                    Ok(tables
                        .content
                        .get(txn, key.as_bytes())?
                        .map(|bytes| seq_value(&self.dir, bytes))
                        .transpose()?)
                })
                .collect()
        })
    }

    /// What became of an arrival.
    pub fn record_of(&self, seq: u64) -> Result<Option<Record>, Failure> {
        self.read("read the ledger in", |txn, tables| {
            Ok(tables
                .records
                .get(txn, &seq.to_be_bytes())?
                .map(|bytes| decode(&self.dir, "records", bytes))
                .transpose()?)
        })
    }

    /// Whether this work is still owed.
    pub fn owes(&self, seq: u64, kind: OwedKind) -> Result<bool, Failure> {
        self.read("read the ledger in", |txn, tables| {
            Ok(tables.owed.get(txn, &owed_key(seq, kind))?.is_some())
        })
    }

    /// Everything that must agree with one another, read in one transaction.
    pub fn snapshot(&self) -> Result<Snapshot, Failure> {
        self.read("read the ledger in", |txn, tables| {
            let number = |name| self.meta_in::<u64>(txn, tables, name);
            let totals = self.meta_in::<String>(txn, tables, meta::TOTALS)?;
            let recorded_to = match tables.records.last(txn)? {
                Some((key, _)) => seq_value(&self.dir, key)?,
                None => 0,
            };
            let pending_from = match tables.lines.first(txn)? {
                Some((_, bytes)) => {
                    let lines: PendingLines = decode(&self.dir, "lines", bytes)?;
                    let (hour, offset) = (lines.hour, lines.offset);
                    Some(ManifestEnd { hour, offset })
                }
                None => None,
            };
            let mut intents = Vec::new();
            for entry in tables.intents.iter(txn)? {
                intents.push(decode(&self.dir, "intents", entry?.1)?);
            }
            Ok(Snapshot {
                uuid: self.meta_in(txn, tables, meta::UUID)?,
                clean: number(meta::CLEAN)?.unwrap_or(1) == 1,
                next_seq: number(meta::NEXT_SEQ)?.unwrap_or(1),
                recorded_to,
                totals: totals
                    .and_then(|json| serde_json::from_str(&json).ok())
                    .unwrap_or_default(),
                content_keys: tables.content.len(txn)?,
                pending_from,
                intents,
            })
        })
    }

    fn meta_in<V: Value>(
        &self,
        txn: &RoTxn<'_, WithoutTls>,
        tables: &Tables,
        name: &[u8],
    ) -> Result<Option<V>, TxnError> {
        Ok(tables
            .meta
            .get(txn, name)?
            .map(|bytes| decode(&self.dir, "meta", bytes))
            .transpose()?)
    }

    fn all<V: Value>(
        &self,
        table: impl Fn(&Tables) -> Table,
        name: &str,
    ) -> Result<Vec<V>, Failure> {
        self.read("read the ledger in", |txn, tables| {
            let mut values = Vec::new();
            for entry in table(tables).iter(txn)? {
                values.push(decode(&self.dir, name, entry?.1)?);
            }
            Ok(values)
        })
    }
}

impl Ledger for Lmdb {
    fn open_session(&mut self) -> Result<Opening, Failure> {
        let ends = self.manifest_ends()?;
        Ok(Opening {
            secret: self.secret_or_new()?,
            owed_told: self.meta(meta::OWED_TOLD)?.unwrap_or(0),
            uuid: self.uuid()?.unwrap_or_default(),
            next_seq: self.next_seq()?,
            recorded_to: self.recorded_to()?,
            last_time_micros: self.meta::<u64>(meta::LAST_TIME)?.unwrap_or(0) as i64,
            clean: self.clean()?,
            manifest: ends.assigned,
            totals: self.totals()?,
            intents: self.intents()?,
            owed: self.owed()?,
            pending_lines: self.pending_lines()?,
            sources: self.sources()?,
        })
    }

    fn found(&mut self, uuid: &str) -> Result<(), Failure> {
        self.write("name the ledger in", |txn, tables| {
            tables.meta.put(txn, meta::FORMAT, &FORMAT.encode())?;
            tables
                .meta
                .put(txn, meta::UUID, &uuid.to_string().encode())?;
            Ok(())
        })
    }

    fn source_id(&mut self, name: &str, input: &Path) -> Result<SourceId, Failure> {
        let known = self.sources()?;
        if let Some(entry) = known
            .iter()
            .find(|entry| entry.name == name && entry.input == input)
        {
            return Ok(entry.id);
        }
        let next = known.iter().map(|entry| entry.id.0).max().unwrap_or(0) + 1;
        let entry = SourceEntry {
            id: SourceId(next),
            name: name.to_string(),
            input: input.to_path_buf(),
        };
        self.write("add a source to the ledger in", |txn, tables| {
            tables
                .sources
                .put(txn, &next.to_be_bytes(), &entry.encode())
        })?;
        Ok(entry.id)
    }

    fn lookup(&self, keys: &[ContentKey]) -> Result<Vec<Option<u64>>, Failure> {
        self.lookup_all(keys)
    }

    fn record(&self, seq: u64) -> Result<Option<Record>, Failure> {
        self.record_of(seq)
    }

    fn reserve(
        &mut self,
        arrivals: usize,
        names: u64,
        lines: u64,
    ) -> Result<io::Result<()>, Failure> {
        self.make_room(arrivals as u64, names, lines)
    }

    fn commit_intents(&mut self, intents: &[Arrival], next_seq: u64) -> Result<(), Failure> {
        let time = intents.iter().map(|intent| intent.time_micros).max();
        self.write("commit intents to the ledger in", |txn, tables| {
            for intent in intents {
                tables.intents.put_with_flags(
                    txn,
                    PutFlags::APPEND,
                    &intent.seq.to_be_bytes(),
                    &intent.encode(),
                )?;
            }
            if let Some(time) = time {
                let time = time as u64;
                tables.meta.put(txn, meta::LAST_TIME, &time.encode())?;
            }
            if !mutants::on("ledger_forgets_next_number") {
                tables.meta.put(txn, meta::NEXT_SEQ, &next_seq.encode())?;
            }
            Ok(())
        })
    }

    fn commit_records(&mut self, commit: &Commit) -> Result<(), Failure> {
        if self.readers_checked.elapsed() >= READERS_CHECK {
            self.forget_dead_readers();
        }
        let mut content: Vec<&(ContentKey, u64)> = commit.content.iter().collect();
        content.sort_unstable();
        let totals = serde_json::to_string(&commit.totals).expect("plain numbers");
        let time = commit
            .records
            .iter()
            .filter_map(|record| match &record.state {
                RecordState::Done { arrival, .. } => Some(arrival.time_micros),
                RecordState::Void => None,
            })
            .max();
        // A rebuilt ledger gets its records out of order.
        let time = match time {
            Some(time) => {
                let known = self.meta::<u64>(meta::LAST_TIME)?;
                Some((time as u64).max(known.unwrap_or(0)))
            }
            None => None,
        };
        self.write("commit records to the ledger in", |txn, tables| {
            // Recovery may record numbers out of order; everything else comes at the end of the table.
            let last = tables.records.last(txn)?.map(|(key, _)| key.to_vec());
            let first = commit
                .records
                .first()
                .map(|record| record.seq.to_be_bytes());
            let flags = match (last, first) {
                (Some(last), Some(first)) if last.as_slice() >= &first[..] => PutFlags::empty(),
                _ => PutFlags::APPEND,
            };
            let flags = match mutants::on("ledger_only_appends") {
                true => PutFlags::APPEND,
                false => flags,
            };
            for record in &commit.records {
                let key = record.seq.to_be_bytes();
                tables
                    .records
                    .put_with_flags(txn, flags, &key, &record.encode())?;
                if !mutants::on("ledger_keeps_intents") {
                    tables.intents.delete(txn, &key)?;
                }
            }
            for (key, seq) in &content {
                if mutants::on("ledger_forgets_content") {
                    break;
                }
                tables
                    .content
                    .put(txn, key.as_bytes(), &seq.to_be_bytes())?;
            }
            if let Some(lines) = &commit.lines {
                let key = lines_key(lines.hour, lines.offset);
                if !mutants::on("ledger_forgets_lines") {
                    tables.lines.put(txn, &key, &lines.encode())?;
                }
                tables
                    .meta
                    .put(txn, meta::ASSIGNED, &lines.end().encode())?;
            }
            for owed in &commit.owed {
                if mutants::on("ledger_forgets_debts") {
                    break;
                }
                tables
                    .owed
                    .put(txn, &owed_key(owed.seq, owed.kind), &owed.encode())?;
            }
            for (seq, kind) in &commit.paid {
                if mutants::on("ledger_keeps_paid_debts") {
                    break;
                }
                tables.owed.delete(txn, &owed_key(*seq, *kind))?;
            }
            for kept in &commit.kept {
                if mutants::on("ledger_forgets_kept") {
                    break;
                }
                let key = Kept::fingerprint(kept.source, &kept.path, &kept.identity);
                tables.kept.put(txn, &key.to_be_bytes(), &kept.encode())?;
            }
            if let Some(synced) = &commit.synced {
                tables.meta.put(txn, meta::SYNCED, &synced.encode())?;
                let end = lines_key(synced.hour, synced.offset);
                let done = match mutants::on("ledger_forgets_unsynced_lines") {
                    true => (Bound::Unbounded, Bound::Unbounded),
                    false => (Bound::Unbounded, Bound::Excluded(end.as_slice())),
                };
                tables.lines.delete_range(txn, &done)?;
            }
            if let Some(numbers) = &commit.numbers {
                tables.meta.put(txn, meta::NUMBERS, &numbers.encode())?;
            }
            if let Some(clean) = commit.clean {
                tables
                    .meta
                    .put(txn, meta::CLEAN, &u64::from(clean).encode())?;
            }
            if let Some(told) = commit.owed_told {
                tables.meta.put(txn, meta::OWED_TOLD, &told.encode())?;
            }
            if let Some(time) = time {
                tables.meta.put(txn, meta::LAST_TIME, &time.encode())?;
            }
            tables
                .meta
                .put(txn, meta::TOTALS, &totals.clone().encode())?;
            tables
                .meta
                .put(txn, meta::NEXT_SEQ, &commit.next_seq.encode())?;
            Ok(())
        })
    }
}

fn decode<V: Value>(dir: &Path, table: &str, bytes: &[u8]) -> Result<V, Failure> {
    use super::schema::DecodeError;
    V::decode(bytes).map_err(|error| {
        let (exit, remedy) = match error {
            DecodeError::Newer(_) => (Exit::Config, "run the newer ringest that wrote it"),
            _ => (Exit::Io, "restore the state directory from a backup"),
        };
        let cause = format!("a value in table {table}: {error}");
        Failure::new(exit, "read the ledger in", dir, cause, remedy)
    })
}

fn seq_value(dir: &Path, bytes: &[u8]) -> Result<u64, Failure> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| {
        Failure::new(
            Exit::Io,
            "read the ledger in",
            dir,
            "a value in table content is not a sequence number",
            "restore the state directory from a backup",
        )
    })
}

fn damaged(dir: &Path, operation: &str, error: &heed::Error) -> Failure {
    match error {
        heed::Error::Io(error) => Failure::io(operation, dir, error),
        heed::Error::Mdb(MdbError::ReadersFull) => Failure::new(
            Exit::Io,
            operation,
            dir,
            error,
            "too many read it at once: try again when some of them have ended",
        ),
        error => Failure::new(
            Exit::Io,
            operation,
            dir,
            error,
            "the ledger is damaged: restore the state directory from a backup",
        ),
    }
}

/// Whoever reads the ledger knows every path, and whoever writes to it decides what is a duplicate.
fn make_private(fd: impl AsFd, path: &Path) -> Result<(), Failure> {
    crate::io::open::make_private(fd)
        .map(drop)
        .map_err(|error| Failure::io("set the mode of", path, &error))
}

fn open_env(dir: &Path, flags: EnvFlags) -> Result<Env<WithoutTls>, Failure> {
    let mut map_bytes = MAP_BYTES;
    loop {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options
            .map_size(map_bytes)
            .max_dbs(TABLE_NAMES.len() as u32)
            .max_readers(READERS_MAX);
        // SAFETY: NO_SYNC and NO_META_SYNC give up durability, not integrity against kills; nobody else writes to
        // the file (the state directory is locked), and its length was checked before it is mapped.
        let opened = unsafe {
            options.flags(flags);
            options.open(dir)
        };
        match opened {
            Ok(env) => {
                keep_from_children(dir);
                return Ok(env);
            }
            // A limit on address space: ask for less.
            Err(heed::Error::Io(error))
                if error.raw_os_error() == Some(libc::ENOMEM) && map_bytes > 64 << 20 =>
            {
                map_bytes /= 4;
            }
            Err(error) => return Err(damaged(dir, "open the ledger in", &error)),
        }
    }
}

/// Keeps the ledger from child processes: LMDB opens its data file without O_CLOEXEC, for writing. Best effort, as where there is no
/// `/proc`: no child gets a descriptor that it is not handed ([`child::inherit_only`](crate::io::child::inherit_only)).
fn keep_from_children(dir: &Path) {
    let files = ["data.mdb", "lock.mdb"].map(|name| dir.join(name));
    let _ = crate::io::child::close_on_exec(&files.each_ref().map(|path| &**path));
}

/// Refuses a data file that LMDB would map beyond its end.
fn refuse_if_damaged(dir: &Path) -> Result<(), Failure> {
    let path = dir.join("data.mdb");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(broken(&path, "it is missing".into()));
        }
        Err(error) => return Err(Failure::io("open the ledger", &path, &error)),
    };
    let read = |error: io::Error| Failure::io("read the ledger", &path, &error);
    let truncated = |length: u64| broken(&path, format!("it is truncated to {length} bytes"));
    let length = file.metadata().map_err(read)?.len();
    if length < META_BYTES as u64 {
        return Err(truncated(length));
    }
    let Some(first) = read_meta(&file, 0).map_err(read)? else {
        return Err(broken(&path, "it is not an LMDB file".into()));
    };
    if length < 2 * first.page_bytes {
        return Err(truncated(length));
    }
    let last_page = match read_meta(&file, first.page_bytes).map_err(read)? {
        Some(second) if second.txn > first.txn => second.last_page,
        _ => first.last_page,
    };
    let needed = last_page.saturating_add(1).saturating_mul(first.page_bytes);
    if length < needed {
        return Err(broken(
            &path,
            format!("it is truncated: {length} bytes, {needed} are in use"),
        ));
    }
    Ok(())
}

fn broken(path: &Path, cause: String) -> Failure {
    Failure::new(
        Exit::Io,
        "use the ledger",
        path,
        cause,
        "it is damaged: restore the state directory from a backup; warehouse and manifests are untouched",
    )
}

/// What a meta page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meta {
    /// Size of all pages: that of the operating system that made the file.
    page_bytes: u64,
    last_page: u64,
    txn: u64,
}

/// As much of a page as is looked at; no page is smaller.
const META_BYTES: usize = 512;
/// Sizes that LMDB knows.
const PAGE_BYTES: std::ops::RangeInclusive<u32> = META_BYTES as u32..=65536;

/// Reads the meta page that begins at `offset`. `None`: there is none.
fn read_meta(file: &File, offset: u64) -> io::Result<Option<Meta>> {
    let mut page = [0; META_BYTES];
    file.read_exact_at(&mut page, offset)?;
    Ok(parse_meta(&page))
}

/// Offsets from `struct MDB_page` and `MDB_meta` of LMDB 0.9 and its master branch: a 16 or 24 byte page header, then
/// magic u32, version u32, address, map size, two trees of 48 bytes, last page u64, transaction u64. The first tree
/// begins with the page size (`mm_psize`), a u32.
fn parse_meta(page: &[u8; META_BYTES]) -> Option<Meta> {
    const MAGIC: [u8; 4] = 0xBEEF_C0DE_u32.to_ne_bytes();
    const TREES: usize = 24;
    const AFTER_TREES: usize = TREES + 2 * 48;
    let at = [16, 24].into_iter().find(|&at| page[at..at + 4] == MAGIC)?;
    let word = |offset: usize| page[at + offset..][..8].try_into().map(u64::from_ne_bytes);
    let size = page[at + TREES..][..4].try_into().map(u32::from_ne_bytes);
    let size = size.ok()?;
    let known = size.is_power_of_two() && PAGE_BYTES.contains(&size);
    Some(Meta {
        page_bytes: known.then_some(size.into())?,
        last_page: word(AFTER_TREES).ok()?,
        txn: word(AFTER_TREES + 8).ok()?,
    })
}
