//! A record for each manifest line.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::failure::{Exit, Failure};
use crate::io::{Disk, Identity, Timestamp};
use crate::ledger::{
    Arrival, ManifestEnd, Outcome, OwedKind, PendingLines, Placement, Record, RecordState,
};
use crate::pipeline::record::layout;
use crate::pipeline::record::manifest::{self, Stated};

use crate::settings::Settings;

use super::tree::{self, Tree};
use super::{FileReader, GAP_MAX, Kind, Rebuild, walk};

/// What is longer is no line of ours; as `verify` has it.
const LINE_BYTES_MAX: u64 = 1 << 18;

/// Bytes after the last whole line.
struct Torn {
    hour: i64,
    offset: u64,
    number: u64,
    cause: String,
}

impl Rebuild<'_> {
    /// Reads all manifests. Returns their end and the last line, which begins where the end promised before stood.
    pub(super) fn read_manifests(
        &mut self,
    ) -> Result<Option<(ManifestEnd, PendingLines)>, Failure> {
        let hours = self.hours()?;
        let newest = hours.last().copied();
        let mut last_line: Option<PendingLines> = None;
        let mut torn = None;
        for hour in hours {
            torn = self.read_manifest(hour, newest == Some(hour), &mut last_line)?;
        }
        // Nothing was found that forbids going on: from here on, something changes.
        if let Some(torn) = torn {
            self.cut(torn)?;
        }
        Ok(last_line.map(|line| (line.end(), line)))
    }

    /// The hours whose manifests hold anything, in order.
    fn hours(&self) -> Result<Vec<i64>, Failure> {
        let mut hours = Vec::new();
        let root = &self.settings.manifests;
        let is_number = |path: &Path| {
            let name = super::name_of(path).as_encoded_bytes();
            path.iter().count() <= 4 && name.iter().all(u8::is_ascii_digit)
        };
        walk::walk(
            &self.disk,
            &self.manifests,
            root,
            is_number,
            Err,
            |path, dir, names| {
                let path = path.join(layout::MANIFEST);
                let Some(hour) = layout::hour_of(&path) else {
                    return Ok(());
                };
                if names.iter().any(|name| name == layout::MANIFEST) {
                    let seen = self
                        .disk
                        .stat(dir, OsStr::new(layout::MANIFEST))
                        .map_err(|error| Failure::io("look at", &root.join(&path), &error))?;
                    if seen.is_some_and(|seen| seen.identity.size > 0) {
                        hours.push(hour);
                    }
                }
                Ok(())
            },
        )?;
        hours.sort_unstable();
        Ok(hours)
    }

    fn read_manifest(
        &mut self,
        hour: i64,
        newest: bool,
        last_line: &mut Option<PendingLines>,
    ) -> Result<Option<Torn>, Failure> {
        let relative = layout::manifest_path(hour);
        let path = self.settings.manifests.join(&relative);
        let failed = |error| Failure::io("read the manifest", &path, &error);
        let disk = self.disk;
        let parent = relative.parent().unwrap_or(Path::new(""));
        let dir = disk.open_dir(&self.manifests, parent).map_err(failed)?;
        let file = disk
            .open(&dir, OsStr::new(layout::MANIFEST))
            .map_err(failed)?;
        // Synced, and then as the disk holds it: the ledger will say that it is durable.
        disk.forget_cached(&file)
            .map_err(|error| Failure::sync("sync the manifest", &path, &error))?;
        let mut reader = BufReader::with_capacity(1 << 18, FileReader::new(&disk, &file, 0));
        let (mut offset, mut number) = (0, 0);
        loop {
            let mut line = Vec::new();
            let length = (&mut reader)
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line)
                .map_err(failed)? as u64;
            if length == 0 {
                return Ok(None);
            }
            number += 1;
            let stated = match manifest::parse(&line) {
                Ok(stated) => stated,
                Err(cause) => {
                    let whole = line.ends_with(b"\n");
                    if newest && is_last(&mut reader, whole).map_err(failed)? {
                        return Ok(Some(Torn {
                            hour,
                            offset,
                            number,
                            cause,
                        }));
                    }
                    return Err(refuse(&path, number, offset, &cause));
                }
            };
            self.take_line(hour, offset, &line, stated)
                .map_err(|problem| match problem {
                    Problem::Line(cause) => refuse(&path, number, offset, &cause),
                    Problem::Failure(failure) => failure,
                })?;
            *last_line = Some(PendingLines {
                hour,
                offset,
                bytes: line,
            });
            offset += length;
        }
    }

    fn take_line(
        &mut self,
        hour: i64,
        offset: u64,
        bytes: &[u8],
        stated: Stated,
    ) -> Result<(), Problem> {
        let seq = stated.seq;
        let last = self.report.next_seq - 1;
        if seq == last {
            return Err(Problem::Line(format!("arrival {seq} has a line already")));
        }
        if seq < last {
            let cause = format!("arrival {seq} comes after arrival {last}");
            return Err(Problem::Line(cause));
        }
        if seq - last > GAP_MAX {
            let cause = format!("its seq leaps from {last} to {seq}");
            return Err(Problem::Line(cause));
        }
        if layout::hour(stated.time_micros) != hour {
            let cause = "its ingested_at lies in another hour than its manifest";
            return Err(Problem::Line(cause.into()));
        }
        let parts = Parts::of(&stated, self.settings, &self.tree).ok_or_else(|| {
            Problem::Line("its path and warehouse_path do not fit together".into())
        })?;
        let source = self.source_id(&stated.source, &parts.input)?;
        let seen = self.look(&parts.placed)?;
        let placement = match seen {
            Some(seen) if seen.identity.inode != stated.inode => Placement::Copy,
            _ => Placement::Rename,
        };
        let mut arrival = Arrival {
            seq,
            source,
            path: parts.path,
            identity: Identity {
                device: stated.device,
                inode: stated.inode,
                size: stated.size,
                mtime: stated.mtime,
                // It is not in the line, and of use only while a source is to be removed.
                ctime: Timestamp::default(),
                born: Timestamp::default(),
            },
            sidecar: None,
            digest: stated.digest,
            key: None,
            outcome: Outcome::Ingest,
            placement,
            placed: parts.placed,
            placed_inode: seen.map_or(stated.inode, |seen| seen.identity.inode),
            time_micros: stated.time_micros,
            counts: stated.counts,
            aside: None,
            placed_ctime: Default::default(),
            ctime_vouches: false,
        };
        let source_left = match placement {
            Placement::Copy => self.source_of_copy(&arrival)?,
            _ => None,
        };
        // Before the last other copy goes, this one is read.
        let read = self.deep || source_left.is_some();
        if self.stands(&arrival, seen, read)? {
            arrival.key = self.key_of(source, &arrival.path, &arrival.digest, stated.size);
            if let Some(identity) = source_left {
                self.owe(seq, OwedKind::Source, source, &arrival.path, identity);
            }
        }
        self.owe_sidecar(&arrival)?;
        let line = Some(manifest::line_at(offset, bytes));
        self.report.lines += 1;
        Ok(self.record(Record {
            seq,
            state: RecordState::Done { arrival, line },
        })?)
    }

    fn cut(&mut self, torn: Torn) -> Result<(), Failure> {
        let relative = layout::manifest_path(torn.hour);
        let path = self.settings.manifests.join(&relative);
        let message = format!(
            "line {} was not written to its end ({}); the file is cut off at byte {}",
            torn.number, torn.cause, torn.offset
        );
        self.say(Kind::TornLine, path.clone(), None, message);
        let parent = relative.parent().unwrap_or(Path::new(""));
        self.disk
            .open_dir(&self.manifests, parent)
            .and_then(|dir| self.disk.create(&dir, OsStr::new(layout::MANIFEST)))
            .and_then(|file| self.disk.cut(&file, torn.offset))
            .map_err(|error| Failure::sync("cut off the end of", &path, &error))
    }
}

/// Why a line cannot be taken.
enum Problem {
    /// It is wrong.
    Line(String),
    /// Something else is.
    Failure(Failure),
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Problem {
        Problem::Failure(failure)
    }
}

/// Whether nothing follows the line that was read, or began to be.
fn is_last(reader: &mut impl BufRead, mut ended: bool) -> std::io::Result<bool> {
    loop {
        let bytes = reader.fill_buf()?;
        match bytes.iter().position(|&byte| byte == b'\n') {
            _ if bytes.is_empty() => return Ok(true),
            _ if ended => return Ok(false),
            Some(newline) => {
                ended = true;
                reader.consume(newline + 1);
            }
            None => {
                let length = bytes.len();
                reader.consume(length);
            }
        }
    }
}

fn refuse(path: &Path, number: u64, offset: u64, cause: &str) -> Failure {
    Failure::new(
        Exit::Io,
        "rebuild the ledger from",
        path,
        format!("line {number}, which begins at byte {offset}: {cause}"),
        "restore this file from a backup, or take out the line; its file in the warehouse is then taken in anew. \
         Nothing was changed",
    )
}

/// A line's paths, taken apart.
struct Parts {
    /// Beneath the warehouse.
    placed: PathBuf,
    /// The staging directory.
    input: PathBuf,
    /// Beneath the staging directory.
    path: PathBuf,
}

impl Parts {
    /// The directories between partition and name are those beneath the input, and the name is one that such a file gets.
    fn of(stated: &Stated, settings: &Settings, tree: &Tree) -> Option<Parts> {
        let is_placed = |path: &Path| tree.partition_depth(path.parent()?);
        // The warehouse may have been moved since.
        let beneath = stated.placed.strip_prefix(&settings.warehouse);
        let beneath = beneath.ok().filter(|placed| is_placed(placed).is_some());
        let placed: PathBuf = match beneath {
            Some(placed) => placed.to_path_buf(),
            None => {
                let ends = (0..stated.placed.iter().count())
                    .map(|skip| stated.placed.iter().skip(skip).collect::<PathBuf>());
                ends.into_iter()
                    .find(|end| is_placed(end).is_some_and(|depth| depth > 0))?
            }
        };
        let name = stated.path.file_name()?;
        let depth = is_placed(&placed)?;
        let dirs: PathBuf = placed.parent()?.iter().skip(depth).collect();
        // It may have made way for ringest's own directories, or for files.
        let cleared = (depth == 0).then(|| layout::not_cleared(&dirs)).flatten();
        let dirs = cleared.unwrap_or(dirs);
        let came: PathBuf = {
            let parent = stated.path.parent()?;
            let skip = parent.iter().count().checked_sub(dirs.iter().count())?;
            parent.iter().skip(skip).collect()
        };
        let dirs = match layout::is_dir_of(&dirs, &came) {
            true => came,
            false => dirs,
        };
        let path = dirs.join(name);
        let mut sources = settings.sources.iter();
        let source = sources.find(|source| source.name == stated.source);
        let fits = tree::may_be_called(source, &path, stated.time_micros)
            .iter()
            .flat_map(|name| layout::candidate_names(name.as_os_str(), &stated.digest, stated.seq))
            .any(|candidate| placed.file_name() == Some(&candidate));
        if !fits || !stated.path.ends_with(&path) {
            return None;
        }
        let depth = path.iter().count();
        let input = stated.path.ancestors().nth(depth)?.to_path_buf();
        Some(Parts {
            placed,
            input,
            path,
        })
    }
}
