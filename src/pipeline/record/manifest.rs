//! The manifest: one JSON object a line, one file an hour. A projection of the ledger: where each line goes and what it
//! says is fixed there before it is written, so writing it again is harmless.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::failure::{Exit, Failure};
use crate::io::open::SyncFailed;
use crate::io::{Disk, Timestamp};
use crate::ledger::{Arrival, Counts, Digest, Line, ManifestEnd, PendingLines};
use crate::trial::{mutants, points};

use super::dirs::ensure_dir;
use super::{Place, layout};

/// A line's fields, in the order in which they are written.
#[derive(Serialize)]
struct Entry<'a> {
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    sha256: String,
    device: u64,
    inode: u64,
    size: u64,
    mtime: i64,
    warehouse_path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    warehouse_path_b64: Option<String>,
    seq: u64,
    source: &'a str,
    mtime_ns: i128,
    ingested_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    columns: Option<u64>,
}

/// The line of an arrival, newline included.
pub fn line(arrival: &Arrival, source: &str, input: &Path, warehouse: &Path) -> Vec<u8> {
    let path = input.join(&arrival.path);
    let placed = warehouse.join(&arrival.placed);
    let mut bytes = serde_json::to_vec(&Entry {
        path: &path.to_string_lossy(),
        path_b64: exact(&path),
        sha256: data_encoding::HEXLOWER.encode(&arrival.digest),
        device: arrival.identity.device,
        inode: arrival.identity.inode,
        size: arrival.identity.size,
        mtime: arrival.identity.mtime.seconds,
        warehouse_path: &placed.to_string_lossy(),
        warehouse_path_b64: exact(&placed),
        seq: arrival.seq,
        source,
        mtime_ns: arrival.identity.mtime.as_nanos(),
        ingested_at: layout::rfc3339(arrival.time_micros),
        records: arrival.counts.records,
        columns: arrival.counts.columns,
    })
    .expect("strings and numbers");
    bytes.push(b'\n');
    bytes
}

/// What a line states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    /// Where the file came from, absolute.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Device of the source when it was hashed.
    pub device: u64,
    /// Inode of the source when it was hashed.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// The file in the warehouse, absolute.
    pub placed: PathBuf,
    /// The number of the arrival.
    pub seq: u64,
    /// The name of its source.
    pub source: String,
    /// When it was taken, in microseconds since the epoch.
    pub time_micros: i64,
    /// What was counted in it.
    pub counts: Counts,
}

/// A line's fields as they are read.
#[derive(Deserialize)]
struct Fields {
    path: String,
    path_b64: Option<String>,
    sha256: String,
    device: u64,
    inode: u64,
    size: u64,
    mtime_ns: i128,
    warehouse_path: String,
    warehouse_path_b64: Option<String>,
    seq: u64,
    source: String,
    ingested_at: String,
    records: Option<u64>,
    columns: Option<u64>,
}

/// Reads a line, newline included: the inverse of [`line()`]. The error says what is wrong with it.
pub fn parse(line: &[u8]) -> Result<Stated, String> {
    let json = line
        .strip_suffix(b"\n")
        .ok_or("it does not end with a newline")?;
    let fields: Fields = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let digest = data_encoding::HEXLOWER
        .decode(fields.sha256.as_bytes())
        .ok()
        .and_then(|digest| digest.try_into().ok())
        .ok_or("its sha256 is not a SHA-256 in hexadecimal digits")?;
    let seconds = i64::try_from(fields.mtime_ns.div_euclid(1_000_000_000))
        .map_err(|_| "its mtime_ns is out of range")?;
    if fields.seq == 0 {
        return Err("its seq is 0; the first is 1".into());
    }
    Ok(Stated {
        path: exact_path("path", fields.path, fields.path_b64)?,
        digest,
        device: fields.device,
        inode: fields.inode,
        size: fields.size,
        mtime: Timestamp {
            seconds,
            nanos: fields.mtime_ns.rem_euclid(1_000_000_000) as u32,
        },
        placed: exact_path(
            "warehouse_path",
            fields.warehouse_path,
            fields.warehouse_path_b64,
        )?,
        seq: fields.seq,
        source: fields.source,
        time_micros: layout::time_micros(&fields.ingested_at)
            .ok_or("its ingested_at is not a time")?,
        counts: Counts {
            records: fields.records,
            columns: fields.columns,
        },
    })
}

fn exact_path(field: &str, text: String, exact: Option<String>) -> Result<PathBuf, String> {
    let path = match exact {
        None => PathBuf::from(text),
        Some(exact) => {
            let bytes = data_encoding::BASE64
                .decode(exact.as_bytes())
                .map_err(|error| format!("its {field}_b64 is not base64: {error}"))?;
            let path = PathBuf::from(OsString::from_vec(bytes));
            if path.to_string_lossy() != text {
                return Err(format!("its {field} and {field}_b64 differ"));
            }
            path
        }
    };
    let plain = path.is_absolute()
        && path
            .components()
            .all(|part| part != std::path::Component::ParentDir)
        && !path.as_os_str().as_bytes().contains(&0);
    match plain {
        true => Ok(path),
        false => Err(format!("its {field} is not an absolute path")),
    }
}

/// The bytes of a path that is not UTF-8, in base64; `None` for all others.
pub fn exact(path: &Path) -> Option<String> {
    let bytes = path.as_os_str().as_bytes();
    std::str::from_utf8(bytes)
        .is_err()
        .then(|| data_encoding::BASE64.encode(bytes))
}

/// What the ledger remembers of a line at `offset`.
pub fn line_at(offset: u64, bytes: &[u8]) -> Line {
    Line {
        offset,
        length: bytes.len() as u32,
        checksum: xxh3_64(bytes),
    }
}

/// The manifest file in use.
pub struct ManifestWriter<D: Disk> {
    root: Place<D>,
    end: Option<ManifestEnd>,
    open: Option<(i64, D::File)>,
}

impl<D: Disk> ManifestWriter<D> {
    /// A writer that goes on at `end`.
    pub fn new(root: Place<D>, end: Option<ManifestEnd>) -> ManifestWriter<D> {
        ManifestWriter {
            root,
            end,
            open: None,
        }
    }

    /// Root of the manifests.
    pub fn place(&self) -> &Place<D> {
        &self.root
    }

    /// Where the next line of `hour` goes.
    pub fn next_offset(&self, hour: i64) -> u64 {
        match self.end {
            Some(end) if end.hour == hour => end.offset,
            _ => 0,
        }
    }

    /// The file's path, for people.
    pub fn file_path(&self, hour: i64) -> PathBuf {
        self.root.path.join(layout::manifest_path(hour))
    }

    /// Makes the file of `hour`, durable in its directory, with room for `bytes` more. The inner error is want of room.
    pub fn reserve(
        &mut self,
        disk: &D,
        hour: i64,
        bytes: u64,
    ) -> Result<std::io::Result<()>, Failure> {
        let path = self.file_path(hour);
        let offset = self.next_offset(hour);
        if let Err(error) = self.open(disk, hour)? {
            return Ok(Err(error));
        }
        let file = self.file();
        let length = disk
            .stat_file(file)
            .map_err(|error| Failure::io("look at the manifest", &path, &error))?
            .identity
            .size;
        if length > offset {
            return Err(beyond(&path, length, offset));
        }
        match disk.reserve(file, offset, bytes) {
            Err(error) if !crate::pipeline::is_no_room(&error) => {
                Err(Failure::io("reserve space in the manifest", &path, &error))
            }
            reserved => Ok(reserved),
        }
    }

    /// Makes sure that the file of that hour is open, and made if it was not there.
    fn open(&mut self, disk: &D, hour: i64) -> Result<std::io::Result<()>, Failure> {
        if matches!(&self.open, Some((open, _)) if *open == hour) {
            return Ok(Ok(()));
        }
        Ok(self.make(disk, hour)?.map(|file| {
            self.open = Some((hour, file));
        }))
    }

    fn file(&self) -> &D::File {
        &self.open.as_ref().expect("opened before").1
    }

    fn make(&self, disk: &D, hour: i64) -> Result<std::io::Result<D::File>, Failure> {
        let path = self.file_path(hour);
        let relative = layout::manifest_path(hour);
        let parent = relative.parent().unwrap_or(Path::new(""));
        let made = ensure_dir(disk, &self.root.dir, parent).and_then(|dir| {
            let file = disk.create(&dir, OsStr::new(layout::MANIFEST))?;
            Ok((dir, file))
        });
        let (dir, file) = match made {
            Ok(made) => made,
            Err(error) if crate::pipeline::is_no_room(&error) => return Ok(Err(error)),
            Err(error) if SyncFailed::is(&error) => {
                return Err(Failure::sync("make the manifest", &path, &error));
            }
            Err(error) => return Err(Failure::io("make the manifest", &path, &error)),
        };
        points::reached("manifest_made");
        if !mutants::on("manifest_name_unsynced") {
            disk.sync_dir(&dir).map_err(|error| {
                Failure::sync("sync the directory of the manifest", &path, &error)
            })?;
        }
        Ok(Ok(file))
    }

    /// Notes that the ledger has promised these lines.
    pub fn assign(&mut self, lines: &PendingLines) {
        debug_assert_eq!(lines.offset, self.next_offset(lines.hour));
        self.end = Some(lines.end());
    }

    /// Writes lines where the ledger has put them, and makes them durable. Returns the watermark. Want of room is given
    /// back as an error to try again.
    pub fn write(
        &mut self,
        disk: &D,
        lines: &PendingLines,
    ) -> Result<std::io::Result<ManifestEnd>, Failure> {
        let path = self.file_path(lines.hour);
        if let Err(error) = self.open(disk, lines.hour)? {
            return Ok(Err(error));
        }
        let file = self.file();
        match disk.write_at(file, &lines.bytes, lines.offset) {
            Ok(()) => {}
            Err(error) if crate::pipeline::is_no_room(&error) => return Ok(Err(error)),
            Err(error) => return Err(Failure::io("write the manifest", &path, &error)),
        }
        points::reached("lines_written");
        if !mutants::on("lines_unsynced") {
            let synced = disk.sync_files(&self.root.dir, &[file]);
            mutants::forgiven("failed_lines_sync", synced)
                .map_err(|error| Failure::sync("sync the manifest", &path, &error))?;
        }
        points::reached("lines_synced");
        Ok(Ok(lines.end()))
    }

    /// Refuses a manifest that the order of writes makes impossible: longer than promised or shorter than synced.
    pub fn check(&self, disk: &D, synced: Option<ManifestEnd>) -> Result<(), Failure> {
        if let Some((hour, length)) = self.newest(disk)?
            && self.end.is_none_or(|end| end.hour < hour)
        {
            return Err(beyond(&self.file_path(hour), length, 0));
        }
        let Some(assigned) = self.end else {
            return Ok(());
        };
        let path = self.file_path(assigned.hour);
        let relative = layout::manifest_path(assigned.hour);
        let parent = relative.parent().unwrap_or(Path::new(""));
        let length = disk
            .open_dir(&self.root.dir, parent)
            .and_then(|dir| disk.stat(&dir, OsStr::new(layout::MANIFEST)))
            .or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(None),
                _ => Err(error),
            })
            .map_err(|error| Failure::io("look at the manifest", &path, &error))?
            .map_or(0, |stat| stat.identity.size);
        if length > assigned.offset && !mutants::on("manifest_may_be_longer") {
            return Err(beyond(&path, length, assigned.offset));
        }
        let synced = match synced {
            Some(synced) if synced.hour == assigned.hour => synced.offset,
            _ => 0,
        };
        if length < synced && !mutants::on("manifest_may_be_shorter") {
            let cause = format!("it holds {length} bytes, {synced} were written and synced");
            return Err(impossible(&path, cause));
        }
        Ok(())
    }
}

impl<D: Disk> ManifestWriter<D> {
    /// The hour of the newest manifest that holds anything, and its length. Looks at the newest directories only: one
    /// made ready for lines that did not come is empty.
    fn newest(&self, disk: &D) -> Result<Option<(i64, u64)>, Failure> {
        let failed = |error| Failure::io("look for manifests in", &self.root.path, &error);
        // Directories to look into, the newest on top.
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let dir = match disk.open_dir(&self.root.dir, &path) {
                Ok(dir) => dir,
                // Not a directory, or somebody else's link.
                Err(error) if super::classify::is_absent(&error) => continue,
                Err(error) => return Err(failed(error)),
            };
            let file = path.join(layout::MANIFEST);
            if let Some(hour) = layout::hour_of(&file) {
                let seen = disk
                    .stat(&dir, OsStr::new(layout::MANIFEST))
                    .map_err(failed)?;
                match seen.map_or(0, |seen| seen.identity.size) {
                    0 => continue,
                    length => return Ok(Some((hour, length))),
                }
            }
            if path.components().count() == 4 {
                continue;
            }
            let mut names = disk.list(&dir).map_err(failed)?;
            names.retain(|name| name.as_bytes().iter().all(u8::is_ascii_digit));
            names.sort_unstable();
            waiting.extend(names.into_iter().map(|name| path.join(name)));
        }
        Ok(None)
    }
}

fn beyond(path: &Path, length: u64, assigned: u64) -> Failure {
    let cause = format!("it holds {length} bytes, the ledger gave out only {assigned}");
    impossible(path, cause)
}

fn impossible(path: &Path, cause: String) -> Failure {
    Failure::new(
        Exit::Io,
        "go on with the manifest",
        path,
        cause,
        "somebody else changed it, or the state is older than the manifests (a restored backup): restore what belongs \
         together, or move the ledger away and run `ringest rebuild`; `ringest verify` shows what differs",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::schema::tests::arrival;
    use proptest::prelude::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn a_line_has_the_documented_fields_in_order() {
        let line = line(&arrival(), "in", Path::new("/in"), Path::new("/wh"));
        let expected = concat!(
            r#"{"path":"/in/a/b.csv","sha256":"abababababababababababababababababababababababababababababababab","#,
            r#""device":1,"inode":2,"size":3,"mtime":4,"warehouse_path":"/wh/ingest_date=2026-01-01/b.csv","#,
            r#""seq":8,"source":"in","mtime_ns":4000000005,"ingested_at":"1970-01-01T00:00:00.000011Z","records":16}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }

    #[test]
    fn a_name_that_is_not_utf8_is_kept_exactly_and_the_line_stays_one_line() {
        let mut arrival = arrival();
        arrival.path = PathBuf::from(OsString::from_vec(b"a\xff\n\".csv".to_vec()));
        let line = line(&arrival, "in", Path::new("/in"), Path::new("/wh"));
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let entry: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let exact = data_encoding::BASE64
            .decode(entry["path_b64"].as_str().unwrap().as_bytes())
            .unwrap();
        assert_eq!(exact, b"/in/a\xff\n\".csv");
    }

    #[test]
    fn a_line_that_contradicts_itself_is_refused() {
        let line = line(&arrival(), "in", Path::new("/in"), Path::new("/wh"));
        let line = String::from_utf8(line).unwrap();
        let with = |from: &str, to: &str| parse(line.replace(from, to).as_bytes());
        assert!(with("", "").is_ok());
        let refused = [
            (with("\"seq\":8", "\"seq\":0"), "seq is 0"),
            (
                with("\"/wh/", "\"wh/"),
                "warehouse_path is not an absolute path",
            ),
            (
                // "/other"
                with("}", ",\"path_b64\":\"L290aGVy\"}"),
                "path and path_b64 differ",
            ),
            (
                with("}", ",\"warehouse_path_b64\":\"L290aGVy\"}"),
                "warehouse_path and warehouse_path_b64 differ",
            ),
        ];
        for (parsed, cause) in refused {
            let error = parsed.map(|_| ()).unwrap_err();
            assert!(error.contains(cause), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_again(
            path in proptest::collection::vec(1u8.., 1..60),
            seq in 1u64..,
            seconds in -1_000_000_000_000i64..1_000_000_000_000,
            nanos in 0u32..1_000_000_000,
            time_micros in 0i64..4_000_000_000_000_000,
        ) {
            let path = PathBuf::from(OsString::from_vec(path.into_iter().map(|byte| match byte {
                b'/' | b'.' => b'_',
                byte => byte,
            }).collect()));
            let mut arrival = arrival();
            arrival.path = Path::new("sub").join(&path);
            arrival.placed = Path::new("ingest_date=2026-01-01/sub").join(&path);
            arrival.seq = seq;
            arrival.identity.mtime = Timestamp { seconds, nanos };
            arrival.time_micros = time_micros;
            let written = line(&arrival, "na\"me", Path::new("/in"), Path::new("/wh"));
            let stated = Stated {
                path: Path::new("/in").join(&arrival.path),
                digest: arrival.digest,
                device: 1,
                inode: 2,
                size: 3,
                mtime: arrival.identity.mtime,
                placed: Path::new("/wh").join(&arrival.placed),
                seq,
                source: "na\"me".into(),
                time_micros,
                counts: arrival.counts,
            };
            prop_assert_eq!(parse(&written), Ok(stated));
            for length in 0..written.len() {
                prop_assert!(parse(&written[..length]).is_err());
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_a_panic(bytes: Vec<u8>) {
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
