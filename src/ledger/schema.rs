//! The bytes of the ledger.
//!
//! Keys are big-endian, so that LMDB's order is sequence order. Every value is
//!
//! ```text
//!  0        1                    n-8         n
//!  ┌────────┬────────────────────┬───────────┐
//!  │version │ fields             │ xxh3-64   │   integers little-endian, byte strings as u32 length + bytes
//!  └────────┴────────────────────┴───────────┘   the checksum covers version and fields
//! ```
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | as the name says |
//! | `sources` | source id, u16 | [`SourceEntry`] |
//! | `intents` | seq, u64 | [`Arrival`] |
//! | `records` | seq, u64 | [`Record`] |
//! | `content` | [`ContentKey`] | seq, u64 big-endian, without version and checksum: it is checked against its record |
//! | `owed` | seq, u64, kind, u8 | [`Owed`] |
//! | `lines` | hour, i64 big-endian, offset, u64 | [`PendingLines`] |
//! | `kept` | fingerprint, u128 | [`Kept`] |

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::io::{Identity, Timestamp};
use crate::observe::mask::mask;

/// Version of every value written by this program.
pub const VALUE_VERSION: u8 = 4;
/// From this version on, an [`Identity`] says when its inode was made. Older values are read without.
const SINCE_BORN: u8 = 2;
/// From this version on, an [`Arrival`] has [`Counts`], a directory for what is undone, and a [`Position`].
const SINCE_COUNTS: u8 = 3;
/// From this version on, an [`Arrival`] has the ctime of its placed file.
const SINCE_PLACED_CTIME: u8 = 4;

/// A SHA-256.
pub type Digest = [u8; 32];

/// The number under which a staging directory is known to a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SourceId(pub u16);

/// A staging directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceEntry {
    /// Its number.
    pub id: SourceId,
    /// Its name in manifest and logs.
    pub name: String,
    /// Where it is.
    pub input: PathBuf,
}

/// Where a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Its own inode is renamed.
    Rename,
    /// A copy in a new inode gets a name; the source goes last.
    Copy,
    /// It stays where it is, or goes without a trace.
    None,
}

/// What an arrival turns out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// New content.
    Ingest,
    /// Content that arrival `of` brought before.
    Duplicate {
        /// The sequence number of the first.
        of: u64,
    },
    /// A file set aside.
    Quarantine {
        /// The rule it broke.
        rule: String,
        /// What was wrong, for people.
        message: String,
        /// Where, for programs.
        position: Position,
    },
}

/// Where in a file something is wrong, as far as that can be said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Position {
    /// Its line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Its column, from 1, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// Bytes before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub byte: Option<u64>,
    /// In a JSON document: the pointer to the value (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
}

impl Position {
    /// Whether nothing can be said.
    pub fn is_unknown(&self) -> bool {
        *self == Position::default()
    }

    /// As it may be told: a pointer is made of names that the document holds.
    pub fn masked(&self) -> Position {
        let pointer = self.pointer.as_deref();
        Position {
            pointer: pointer.map(|pointer| mask(pointer).into_owned()),
            ..self.clone()
        }
    }
}

/// What was counted in a file while it was checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records: rows of CSV without the header, values of JSON Lines.
    pub records: Option<u64>,
    /// Columns of CSV.
    pub columns: Option<u64>,
}

/// One arrival on its way into the warehouse: as an intent a promise, as part of a [`Record`] a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Its place in the order of all arrivals, from 1.
    pub seq: u64,
    /// Whence it came.
    pub source: SourceId,
    /// Its path beneath the input.
    pub path: PathBuf,
    /// The state in which it was hashed.
    pub identity: Identity,
    /// Its sidecar: the path beneath the input and the state in which it was read.
    pub sidecar: Option<(PathBuf, Identity)>,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Under which key its content is known; `None` when its source does not deduplicate or it is set aside.
    pub key: Option<ContentKey>,
    /// What it is.
    pub outcome: Outcome,
    /// How it is placed.
    pub placement: Placement,
    /// Its path beneath the warehouse; empty with [`Placement::None`].
    pub placed: PathBuf,
    /// The inode that carries that name: its own, or that of the copy.
    pub placed_inode: u64,
    /// The ctime of that inode when it was last looked at before commit B; zero in an intent, and where earlier versions or a
    /// rebuilt ledger do not know it.
    pub placed_ctime: Timestamp,
    /// Whether nobody can have changed the file between its reading and that look, and every later change shows in its ctime: as long as
    /// it has that, its bytes need not be read to know them.
    pub ctime_vouches: bool,
    /// When it was taken, in microseconds since the epoch.
    pub time_micros: i64,
    /// What was counted in it.
    pub counts: Counts,
    /// The directory beneath the warehouse into which it goes if it changed after it was placed and its own name is taken;
    /// `None`: that of the default layout.
    pub aside: Option<PathBuf>,
}

/// A line of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its bytes, newline included.
    pub length: u32,
    /// xxh3-64 of its bytes.
    pub checksum: u64,
}

/// What became of a sequence number.
// Void rows are rare; a box would be one more allocation for every arrival.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordState {
    /// It is in the warehouse and has a manifest line, or was set aside.
    Done {
        /// The arrival.
        arrival: Arrival,
        /// Its line; only what was ingested has one.
        line: Option<Line>,
    },
    /// Nothing: the intent was dropped.
    Void,
}

/// The last word on a sequence number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The number.
    pub seq: u64,
    /// What became of it.
    pub state: RecordState,
}

/// What is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum OwedKind {
    /// The source of a copy.
    Source = 1,
    /// A duplicate that is deleted.
    Duplicate = 2,
    /// A sidecar.
    Sidecar = 3,
    /// Nothing to remove: the `.reason.json` of what was set aside is still to be written.
    Reason = 4,
}

/// Work that a record leaves behind: a name that must go, or a reason that must be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// The arrival it belongs to.
    pub seq: u64,
    /// Why it must go.
    pub kind: OwedKind,
    /// In which staging directory.
    pub source: SourceId,
    /// Its path beneath the input; of a reason, the path beneath the warehouse of the file it explains.
    pub path: PathBuf,
    /// The file that may be removed, and no other.
    pub identity: Identity,
}

/// A file that stays in staging and is not read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// In which staging directory.
    pub source: SourceId,
    /// Its path beneath the input.
    pub path: PathBuf,
    /// Its state.
    pub identity: Identity,
    /// The arrival that it was.
    pub seq: u64,
    /// Why it stays.
    pub reason: String,
}

/// The reason of a file that stays on purpose.
pub const KEPT_DUPLICATE: &str = "duplicate";

impl Kept {
    /// Whether it could not be removed, and is still there in this staging directory.
    pub fn is_owed_in(&self, input: impl std::os::fd::AsFd) -> bool {
        let seen = crate::io::open::stat_beneath(input, &self.path);
        let is = |now: &Identity| {
            let (source, path) = (self.source, &*self.path);
            Kept::fingerprint(source, path, now) == Kept::fingerprint(source, path, &self.identity)
        };
        self.reason != KEPT_DUPLICATE
            && seen.is_ok_and(|seen| seen.is_some_and(|it| is(&it.identity)))
    }

    /// What tells this state of this file from any other. The device is left out: reboots renumber it.
    pub fn fingerprint(source: SourceId, path: &Path, identity: &Identity) -> u128 {
        let mut bytes = Vec::with_capacity(64 + path.as_os_str().len());
        bytes.extend(source.0.to_le_bytes());
        bytes.extend(identity.inode.to_le_bytes());
        bytes.extend(identity.size.to_le_bytes());
        for time in [identity.mtime, identity.ctime] {
            bytes.extend(time.seconds.to_le_bytes());
            bytes.extend(time.nanos.to_le_bytes());
        }
        bytes.extend(path.as_os_str().as_bytes());
        xxh3_128(&bytes)
    }
}

/// Where a manifest file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestEnd {
    /// The hour whose file it is, in hours since the epoch.
    pub hour: i64,
    /// Its end in bytes.
    pub offset: u64,
}

/// Lines that are promised to a manifest file at a fixed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingLines {
    /// The hour whose file it is, in hours since the epoch.
    pub hour: i64,
    /// Where they begin.
    pub offset: u64,
    /// The lines, each with its newline.
    pub bytes: Vec<u8>,
}

impl PendingLines {
    /// The end of the file once they are written.
    pub fn end(&self) -> ManifestEnd {
        ManifestEnd {
            hour: self.hour,
            offset: self.offset + self.bytes.len() as u64,
        }
    }
}

/// What makes two arrivals the same: the digest, and within which scope it counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentKey([u8; 49]);

impl ContentKey {
    /// The same bytes anywhere.
    pub fn global(digest: &Digest) -> ContentKey {
        ContentKey::scoped(digest, 0, &[])
    }

    /// The same bytes from the same source.
    pub fn within_source(digest: &Digest, source: &str) -> ContentKey {
        ContentKey::scoped(digest, 1, source.as_bytes())
    }

    /// The same bytes at the same path beneath an input.
    pub fn with_name(digest: &Digest, path: &Path) -> ContentKey {
        ContentKey::scoped(digest, 2, path.as_os_str().as_bytes())
    }

    fn scoped(digest: &Digest, tag: u8, scope: &[u8]) -> ContentKey {
        // The digest comes first, so that a sorted batch walks the table once.
        let mut key = [0; 49];
        key[..32].copy_from_slice(digest);
        key[32] = tag;
        key[33..].copy_from_slice(&xxh3_128(scope).to_be_bytes());
        ContentKey(key)
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ContentKey({})", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// Why bytes are not a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The checksum does not fit.
    #[error("its checksum does not match: the ledger is damaged")]
    Checksum,
    /// A later version of ringest wrote it.
    #[error("it has version {0}, which is newer than this program")]
    Newer(u8),
    /// The checksum fits and the fields do not.
    #[error("its fields do not add up: the ledger is damaged")]
    Malformed,
}

/// A value with its byte form.
pub trait Value: Sized {
    /// Appends the fields.
    fn put(&self, to: &mut Writer);
    /// Takes the fields.
    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The whole value.
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(vec![VALUE_VERSION]);
        self.put(&mut writer);
        let checksum = xxh3_64(&writer.0);
        writer.u64(checksum);
        writer.0
    }

    /// The value that `bytes` hold.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let at = bytes.len().checked_sub(8).ok_or(DecodeError::Malformed)?;
        let (body, checksum) = bytes.split_at(at);
        if checksum != xxh3_64(body).to_le_bytes() {
            return Err(DecodeError::Checksum);
        }
        match body.first() {
            Some(0) | None => return Err(DecodeError::Malformed),
            Some(&version) if version > VALUE_VERSION => return Err(DecodeError::Newer(version)),
            Some(_) => {}
        }
        let mut reader = Reader {
            version: body[0],
            rest: &body[1..],
        };
        let value = Self::take(&mut reader)?;
        if reader.rest.is_empty() {
            Ok(value)
        } else {
            Err(DecodeError::Malformed)
        }
    }
}

/// Fields on their way into bytes.
#[derive(Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
    fn i64(&mut self, value: i64) {
        self.0.extend(value.to_le_bytes());
    }
    /// Which of up to 8 values are there, and those.
    fn some<const N: usize>(&mut self, values: [Option<u64>; N]) {
        let bits = values.iter().enumerate();
        self.u8(bits.fold(0, |bits, (at, value)| {
            bits | u8::from(value.is_some()) << at
        }));
        values.iter().flatten().for_each(|value| self.u64(*value));
    }
    fn bytes(&mut self, value: &[u8]) {
        self.u32(value.len() as u32);
        self.0.extend(value);
    }
    fn optional(&mut self, value: Option<&[u8]>) {
        self.u8(value.is_some().into());
        if let Some(value) = value {
            self.bytes(value);
        }
    }
    fn path(&mut self, value: &Path) {
        self.bytes(value.as_os_str().as_bytes());
    }
    fn identity(&mut self, identity: &Identity) {
        self.u64(identity.device);
        self.u64(identity.inode);
        self.u64(identity.size);
        for time in [identity.mtime, identity.ctime, identity.born] {
            self.timestamp(time);
        }
    }
    fn timestamp(&mut self, time: Timestamp) {
        self.i64(time.seconds);
        self.u32(time.nanos);
    }
}

/// Fields on their way out of bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    version: u8,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Malformed)?;
        self.rest = tail;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }
    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.array()?))
    }
    fn some<const N: usize>(&mut self) -> Result<[Option<u64>; N], DecodeError> {
        let bits = self.u8()?;
        if u32::from(bits) >> N != 0 {
            return Err(DecodeError::Malformed);
        }
        let mut values = [None; N];
        for (at, value) in values.iter_mut().enumerate() {
            if bits >> at & 1 == 1 {
                *value = Some(self.u64()?);
            }
        }
        Ok(values)
    }
    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()? as usize;
        if length > self.rest.len() {
            return Err(DecodeError::Malformed);
        }
        let (head, tail) = self.rest.split_at(length);
        self.rest = tail;
        Ok(head)
    }
    fn optional(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        match self.u8()? {
            0 => Ok(None),
            1 => self.bytes().map(Some),
            _ => Err(DecodeError::Malformed),
        }
    }
    fn counts(&mut self) -> Result<Counts, DecodeError> {
        let [records, columns] = self.some()?;
        Ok(Counts { records, columns })
    }
    fn position(&mut self) -> Result<Position, DecodeError> {
        let [line, column, byte] = self.some()?;
        let pointer = self.optional()?.map(<[u8]>::to_vec);
        let pointer = pointer.map(String::from_utf8).transpose();
        Ok(Position {
            line,
            column,
            byte,
            pointer: pointer.map_err(|_| DecodeError::Malformed)?,
        })
    }
    fn path(&mut self) -> Result<PathBuf, DecodeError> {
        Ok(path_of(self.bytes()?))
    }
    fn string(&mut self) -> Result<String, DecodeError> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| DecodeError::Malformed)
    }
    fn timestamp(&mut self) -> Result<Timestamp, DecodeError> {
        Ok(Timestamp {
            seconds: self.i64()?,
            nanos: self.u32()?,
        })
    }
    fn identity(&mut self) -> Result<Identity, DecodeError> {
        Ok(Identity {
            device: self.u64()?,
            inode: self.u64()?,
            size: self.u64()?,
            mtime: self.timestamp()?,
            ctime: self.timestamp()?,
            born: match self.version {
                SINCE_BORN.. => self.timestamp()?,
                _ => Timestamp::default(),
            },
        })
    }
}

fn path_of(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

impl Value for Arrival {
    fn put(&self, to: &mut Writer) {
        to.u64(self.seq);
        to.u16(self.source.0);
        to.path(&self.path);
        to.identity(&self.identity);
        match &self.sidecar {
            None => to.u8(0),
            Some((path, identity)) => {
                to.u8(1);
                to.path(path);
                to.identity(identity);
            }
        }
        to.0.extend(self.digest);
        match &self.key {
            None => to.u8(0),
            Some(key) => {
                to.u8(1);
                to.0.extend(&key.0[32..]);
            }
        }
        match &self.outcome {
            Outcome::Ingest => to.u8(1),
            Outcome::Duplicate { of } => {
                to.u8(2);
                to.u64(*of);
            }
            Outcome::Quarantine {
                rule,
                message,
                position,
            } => {
                to.u8(3);
                to.bytes(rule.as_bytes());
                to.bytes(message.as_bytes());
                to.some([position.line, position.column, position.byte]);
                to.optional(position.pointer.as_ref().map(String::as_bytes));
            }
        }
        to.u8(match self.placement {
            Placement::Rename => 1,
            Placement::Copy => 2,
            Placement::None => 3,
        });
        to.path(&self.placed);
        to.u64(self.placed_inode);
        to.i64(self.time_micros);
        to.some([self.counts.records, self.counts.columns]);
        let aside = self.aside.as_ref();
        to.optional(aside.map(|aside| aside.as_os_str().as_bytes()));
        to.timestamp(self.placed_ctime);
        to.u8(self.ctime_vouches.into());
    }

    fn take(from: &mut Reader<'_>) -> Result<Arrival, DecodeError> {
        let seq = from.u64()?;
        let source = SourceId(from.u16()?);
        let path = from.path()?;
        let identity = from.identity()?;
        let sidecar = match from.u8()? {
            0 => None,
            1 => Some((from.path()?, from.identity()?)),
            _ => return Err(DecodeError::Malformed),
        };
        let digest: Digest = from.array()?;
        let key = match from.u8()? {
            0 => None,
            1 => {
                let mut key = [0; 49];
                key[..32].copy_from_slice(&digest);
                key[32..].copy_from_slice(&from.array::<17>()?);
                Some(ContentKey(key))
            }
            _ => return Err(DecodeError::Malformed),
        };
        let outcome = match from.u8()? {
            1 => Outcome::Ingest,
            2 => Outcome::Duplicate { of: from.u64()? },
            3 => Outcome::Quarantine {
                rule: from.string()?,
                message: from.string()?,
                position: match from.version {
                    SINCE_COUNTS.. => from.position()?,
                    _ => Position::default(),
                },
            },
            _ => return Err(DecodeError::Malformed),
        };
        let placement = match from.u8()? {
            1 => Placement::Rename,
            2 => Placement::Copy,
            3 => Placement::None,
            _ => return Err(DecodeError::Malformed),
        };
        Ok(Arrival {
            seq,
            source,
            path,
            identity,
            sidecar,
            digest,
            key,
            outcome,
            placement,
            placed: from.path()?,
            placed_inode: from.u64()?,
            time_micros: from.i64()?,
            counts: match from.version {
                SINCE_COUNTS.. => from.counts()?,
                _ => Counts::default(),
            },
            aside: match from.version {
                SINCE_COUNTS.. => from.optional()?.map(path_of),
                _ => None,
            },
            placed_ctime: match from.version {
                SINCE_PLACED_CTIME.. => from.timestamp()?,
                _ => Timestamp::default(),
            },
            ctime_vouches: match from.version {
                SINCE_PLACED_CTIME.. => match from.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(DecodeError::Malformed),
                },
                _ => false,
            },
        })
    }
}

impl Value for Record {
    fn put(&self, to: &mut Writer) {
        to.u64(self.seq);
        match &self.state {
            RecordState::Void => to.u8(0),
            RecordState::Done { arrival, line } => {
                to.u8(1);
                arrival.put(to);
                match line {
                    None => to.u8(0),
                    Some(line) => {
                        to.u8(1);
                        to.u64(line.offset);
                        to.u32(line.length);
                        to.u64(line.checksum);
                    }
                }
            }
        }
    }

    fn take(from: &mut Reader<'_>) -> Result<Record, DecodeError> {
        let seq = from.u64()?;
        let state = match from.u8()? {
            0 => RecordState::Void,
            1 => RecordState::Done {
                arrival: Arrival::take(from)?,
                line: match from.u8()? {
                    0 => None,
                    1 => Some(Line {
                        offset: from.u64()?,
                        length: from.u32()?,
                        checksum: from.u64()?,
                    }),
                    _ => return Err(DecodeError::Malformed),
                },
            },
            _ => return Err(DecodeError::Malformed),
        };
        Ok(Record { seq, state })
    }
}

impl Value for Owed {
    fn put(&self, to: &mut Writer) {
        to.u64(self.seq);
        to.u8(self.kind as u8);
        to.u16(self.source.0);
        to.path(&self.path);
        to.identity(&self.identity);
    }

    fn take(from: &mut Reader<'_>) -> Result<Owed, DecodeError> {
        Ok(Owed {
            seq: from.u64()?,
            kind: match from.u8()? {
                1 => OwedKind::Source,
                2 => OwedKind::Duplicate,
                3 => OwedKind::Sidecar,
                4 => OwedKind::Reason,
                _ => return Err(DecodeError::Malformed),
            },
            source: SourceId(from.u16()?),
            path: from.path()?,
            identity: from.identity()?,
        })
    }
}

impl Value for Kept {
    fn put(&self, to: &mut Writer) {
        to.u16(self.source.0);
        to.path(&self.path);
        to.identity(&self.identity);
        to.u64(self.seq);
        to.bytes(self.reason.as_bytes());
    }

    fn take(from: &mut Reader<'_>) -> Result<Kept, DecodeError> {
        Ok(Kept {
            source: SourceId(from.u16()?),
            path: from.path()?,
            identity: from.identity()?,
            seq: from.u64()?,
            reason: from.string()?,
        })
    }
}

impl Value for PendingLines {
    fn put(&self, to: &mut Writer) {
        to.i64(self.hour);
        to.u64(self.offset);
        to.bytes(&self.bytes);
    }

    fn take(from: &mut Reader<'_>) -> Result<PendingLines, DecodeError> {
        Ok(PendingLines {
            hour: from.i64()?,
            offset: from.u64()?,
            bytes: from.bytes()?.to_vec(),
        })
    }
}

impl Value for ManifestEnd {
    fn put(&self, to: &mut Writer) {
        to.i64(self.hour);
        to.u64(self.offset);
    }

    fn take(from: &mut Reader<'_>) -> Result<ManifestEnd, DecodeError> {
        Ok(ManifestEnd {
            hour: from.i64()?,
            offset: from.u64()?,
        })
    }
}

impl Value for SourceEntry {
    fn put(&self, to: &mut Writer) {
        to.u16(self.id.0);
        to.bytes(self.name.as_bytes());
        to.path(&self.input);
    }

    fn take(from: &mut Reader<'_>) -> Result<SourceEntry, DecodeError> {
        Ok(SourceEntry {
            id: SourceId(from.u16()?),
            name: from.string()?,
            input: from.path()?,
        })
    }
}

impl Value for String {
    fn put(&self, to: &mut Writer) {
        to.bytes(self.as_bytes());
    }

    fn take(from: &mut Reader<'_>) -> Result<String, DecodeError> {
        from.string()
    }
}

impl Value for u64 {
    fn put(&self, to: &mut Writer) {
        to.u64(*self);
    }

    fn take(from: &mut Reader<'_>) -> Result<u64, DecodeError> {
        from.u64()
    }
}

/// Key of `owed`.
pub fn owed_key(seq: u64, kind: OwedKind) -> [u8; 9] {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&seq.to_be_bytes());
    key[8] = kind as u8;
    key
}

/// Key of `lines`. Hours before the epoch sort wrongly and do not occur.
pub fn lines_key(hour: i64, offset: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&hour.to_be_bytes());
    key[8..].copy_from_slice(&offset.to_be_bytes());
    key
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn arrival() -> Arrival {
        let identity = Identity {
            device: 1,
            inode: 2,
            size: 3,
            mtime: Timestamp {
                seconds: 4,
                nanos: 5,
            },
            ctime: Timestamp {
                seconds: 6,
                nanos: 7,
            },
            born: Timestamp {
                seconds: 12,
                nanos: 13,
            },
        };
        Arrival {
            seq: 8,
            source: SourceId(9),
            path: "a/b.csv".into(),
            identity,
            sidecar: Some(("a/b.csv.ok".into(), identity)),
            digest: [0xab; 32],
            key: Some(ContentKey::global(&[0xab; 32])),
            outcome: Outcome::Quarantine {
                rule: "r".into(),
                message: "m".into(),
                position: Position {
                    line: Some(14),
                    column: None,
                    byte: Some(15),
                    pointer: Some("/a".into()),
                },
            },
            placement: Placement::Copy,
            placed: "ingest_date=2026-01-01/b.csv".into(),
            placed_inode: 10,
            time_micros: 11,
            counts: Counts {
                records: Some(16),
                columns: None,
            },
            aside: Some("returns".into()),
            placed_ctime: Timestamp {
                seconds: 17,
                nanos: 18,
            },
            ctime_vouches: true,
        }
    }

    /// Ledgers in the field hold these bytes. A change of format gets a new version and an upgrade, not new bytes here.
    #[test]
    fn the_bytes_of_every_format_stay_as_they_are() {
        let arrival = arrival();
        let identity = arrival.identity;
        let record = |state| Record { seq: 8, state };
        let line = Some(Line {
            offset: 1,
            length: 2,
            checksum: 3,
        });
        let done = RecordState::Done {
            arrival: arrival.clone(),
            line,
        };
        let owed = Owed {
            seq: 8,
            kind: OwedKind::Sidecar,
            source: SourceId(9),
            path: "x".into(),
            identity,
        };
        let kept = Kept {
            source: SourceId(9),
            path: "x".into(),
            identity,
            seq: 8,
            reason: "why".into(),
        };
        let lines = PendingLines {
            hour: 1,
            offset: 2,
            bytes: b"{}\n".to_vec(),
        };
        let source = SourceEntry {
            id: SourceId(9),
            name: "in".into(),
            input: "/in".into(),
        };
        let with_name = ContentKey::with_name(&[1; 32], Path::new("n"));
        let within = ContentKey::within_source(&[1; 32], "in");
        let formats: [(&str, Vec<u8>); 13] = [
            ("arrival", arrival.encode()),
            ("record void", record(RecordState::Void).encode()),
            ("record done", record(done).encode()),
            ("owed", owed.encode()),
            ("kept", kept.encode()),
            ("lines", lines.encode()),
            ("manifest end", lines.end().encode()),
            ("source", source.encode()),
            ("string", "text".to_string().encode()),
            ("content key, name", with_name.0.to_vec()),
            ("content key, source", within.0.to_vec()),
            ("owed key", owed_key(1, OwedKind::Source).to_vec()),
            ("lines key", lines_key(1, 2).to_vec()),
        ];
        let listing: String = formats
            .iter()
            .map(|(name, bytes)| format!("{name}: {}\n", data_encoding::HEXLOWER.encode(bytes)))
            .collect();
        assert_eq!(listing, include_str!("golden.txt"), "\n{listing}");
    }

    #[test]
    fn values_of_earlier_versions_are_read_without_what_they_lack() {
        for (version, golden) in [
            (1, include_str!("golden_v1.txt")),
            (2, include_str!("golden_v2.txt")),
            (3, include_str!("golden_v3.txt")),
        ] {
            let bytes_of = |name: &str| {
                let line = golden
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                data_encoding::HEXLOWER
                    .decode(line.unwrap().as_bytes())
                    .unwrap()
            };
            let mut expected = arrival();
            (expected.placed_ctime, expected.ctime_vouches) = (Timestamp::default(), false);
            if version < SINCE_COUNTS {
                (expected.counts, expected.aside) = (Counts::default(), None);
                expected.outcome = Outcome::Quarantine {
                    rule: "r".into(),
                    message: "m".into(),
                    position: Position::default(),
                };
            }
            if version < SINCE_BORN {
                expected.identity.born = Timestamp::default();
                expected.sidecar = Some(("a/b.csv.ok".into(), expected.identity));
            }
            let identity = expected.identity;
            assert_eq!(Arrival::decode(&bytes_of("arrival")), Ok(expected));
            let owed = Owed::decode(&bytes_of("owed")).unwrap();
            assert_eq!(owed.identity, identity);
            let kept = Kept::decode(&bytes_of("kept")).unwrap();
            assert_eq!(kept.identity, identity);
            for done in ["record done", "record void"] {
                assert_eq!(Record::decode(&bytes_of(done)).unwrap().seq, 8);
            }
            assert_eq!(String::decode(&bytes_of("string")), Ok("text".into()));
        }
    }

    fn sealed(mut body: Vec<u8>) -> Vec<u8> {
        let checksum = xxh3_64(&body);
        body.extend(checksum.to_le_bytes());
        body
    }

    /// Whatever byte is changed, with the right checksum: what is still a value has just these bytes.
    fn only_its_own_bytes_are_a_value<V: Value>(name: &str) {
        let golden = include_str!("golden.txt").lines();
        let mut named = golden.filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let bytes = named.next().expect("a golden value").as_bytes();
        let mut body = data_encoding::HEXLOWER.decode(bytes).expect("hex");
        body.truncate(body.len() - 8);
        for at in 1..body.len() {
            let was = body[at];
            for byte in [0, 1, 2, 3, 4, 5, 0x7f, 0xff] {
                body[at] = byte;
                let bytes = sealed(body.clone());
                if let Ok(value) = V::decode(&bytes) {
                    assert_eq!(value.encode(), bytes, "{name}, byte {at} is {byte}");
                }
            }
            body[at] = was;
        }
        for length in 0..body.len() {
            let cut = V::decode(&sealed(body[..length].to_vec()));
            assert!(cut.is_err(), "{name}, {length} bytes of it");
        }
        body.push(0);
        let longer = V::decode(&sealed(body)).err();
        assert_eq!(longer, Some(DecodeError::Malformed), "{name}, longer");
    }

    #[test]
    fn a_value_has_no_other_bytes_than_its_own() {
        only_its_own_bytes_are_a_value::<Arrival>("arrival");
        only_its_own_bytes_are_a_value::<Record>("record void");
        only_its_own_bytes_are_a_value::<Record>("record done");
        only_its_own_bytes_are_a_value::<Owed>("owed");
        only_its_own_bytes_are_a_value::<Kept>("kept");
        only_its_own_bytes_are_a_value::<PendingLines>("lines");
        only_its_own_bytes_are_a_value::<SourceEntry>("source");
        only_its_own_bytes_are_a_value::<String>("string");
    }

    #[test]
    fn a_value_of_a_newer_version_is_refused_by_name() {
        let mut bytes = 7u64.encode();
        bytes.truncate(bytes.len() - 8);
        bytes[0] = VALUE_VERSION + 1;
        assert_eq!(
            u64::decode(&sealed(bytes)),
            Err(DecodeError::Newer(VALUE_VERSION + 1))
        );
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_any_damage_is_seen(
            path in proptest::collection::vec(any::<u8>(), 0..300),
            seq: u64,
            flip in 0usize..1000,
        ) {
            let mut arrival = arrival();
            arrival.seq = seq;
            arrival.path = PathBuf::from(OsString::from_vec(path));
            arrival.outcome = Outcome::Duplicate { of: seq / 2 };
            let line = Some(Line { offset: seq, length: 9, checksum: seq });
            let record = Record { seq, state: RecordState::Done { arrival, line } };
            let mut bytes = record.encode();
            prop_assert_eq!(Record::decode(&bytes), Ok(record));
            let at = flip % bytes.len();
            bytes[at] ^= 1;
            prop_assert!(Record::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Record::decode(&bytes);
            for version in 1..=VALUE_VERSION {
                let _ = Record::take(&mut Reader { version, rest: &bytes });
            }
        }
    }

    #[test]
    fn a_pointer_is_told_without_card_numbers() {
        let position = Position {
            line: Some(4_111_111_111_111_111),
            pointer: Some("/cards/4111111111111111/0".into()),
            ..Position::default()
        };
        let masked = Position {
            pointer: Some("/cards/****1111/0".into()),
            ..position.clone()
        };
        assert_eq!(position.masked(), masked);
    }
}
