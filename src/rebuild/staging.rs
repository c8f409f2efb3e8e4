//! What the lost session still had to remove from staging: sources of copies, sidecars, names on their way out.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::io::disk::DirHandle;
use crate::io::{Disk, FileStat, Identity, Timestamp};
use crate::ledger::{Arrival, Digest, OwedKind, RecordState, SourceId};
use crate::pipeline::record::hidden::{Hidden, claimed};
use crate::settings::Mode;

use super::{CHUNK, Kind, Rebuild, digest_of, is_regular, name_of, walk};

/// A file in staging with a hidden name.
struct HiddenFile {
    dir: DirHandle,
    source: SourceId,
    /// Beneath the staging directory.
    parent: PathBuf,
    name: OsString,
    seen: FileStat,
    digest: Option<Digest>,
}

impl Rebuild<'_> {
    /// Looks at a regular file in a staging directory that can be reached.
    pub(super) fn look_in_staging(
        &self,
        source: SourceId,
        path: &Path,
    ) -> Result<Option<FileStat>, Failure> {
        let Some(root) = self.inputs.get(&source) else {
            return Ok(None);
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let seen = self
            .disk
            .open_dir(root, parent)
            .and_then(|dir| self.disk.stat(&dir, name_of(path)));
        match seen {
            Ok(seen) => Ok(seen.filter(is_regular)),
            // Gone, or in a directory that its uploader has closed.
            Err(_) => Ok(None),
        }
    }

    /// Whether what is in staging is what a copy was made of: everything that a copy keeps, and the bytes.
    pub(super) fn is_copy_of(
        &self,
        source: SourceId,
        path: &Path,
        seen: &FileStat,
        copy: &Identity,
        digest: &Digest,
    ) -> Result<bool, Failure> {
        if seen.identity.size != copy.size || seen.identity.mtime != copy.mtime {
            return Ok(false);
        }
        let Some(root) = self.inputs.get(&source) else {
            return Ok(false);
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let found = self
            .disk
            .open_dir(root, parent)
            .and_then(|dir| digest_of(&self.disk, &dir, name_of(path)));
        // One that is gone, or is being written to, is another.
        Ok(found.is_ok_and(|found| found == *digest))
    }

    /// The source of a copy that has a line, if it is still there: the line says which file it was, and its bytes whether it still
    /// is, for its owner can set size and mtime back.
    pub(super) fn source_of_copy(&self, arrival: &Arrival) -> Result<Option<Identity>, Failure> {
        let copied = self.copy_in_staging(arrival)?;
        Ok(copied.filter(|now| now.inode == arrival.identity.inode))
    }

    /// The source of a copy, if it is still there, by its bytes.
    pub(super) fn copy_in_staging(&self, arrival: &Arrival) -> Result<Option<Identity>, Failure> {
        let Some(seen) = self.look_in_staging(arrival.source, &arrival.path)? else {
            return Ok(None);
        };
        let (source, path) = (arrival.source, &arrival.path);
        let is_copy = self.is_copy_of(source, path, &seen, &arrival.identity, &arrival.digest)?;
        Ok(is_copy.then_some(seen.identity))
    }

    /// A sidecar that was there when its file was taken belonged to it; one that came later waits for another.
    pub(super) fn owe_sidecar(&mut self, arrival: &Arrival) -> Result<(), Failure> {
        let entry = self.sources.iter().find(|entry| entry.id == arrival.source);
        let Some(entry) = entry else { return Ok(()) };
        let settings = self.settings_of(&entry.name);
        if settings.mode != Mode::Sidecar || settings.input != entry.input {
            return Ok(());
        }
        let mut name = name_of(&arrival.path).to_os_string();
        name.push(&settings.sidecar_suffix);
        let path = arrival.path.with_file_name(name);
        let Some(seen) = self.look_in_staging(arrival.source, &path)? else {
            return Ok(());
        };
        let taken = Timestamp {
            seconds: arrival.time_micros.div_euclid(1_000_000),
            nanos: (arrival.time_micros.rem_euclid(1_000_000) * 1000) as u32,
        };
        if seen.identity.ctime <= taken {
            let kind = OwedKind::Sidecar;
            self.owe(arrival.seq, kind, arrival.source, &path, seen.identity);
        }
        Ok(())
    }

    /// Deals with names on their way out. Such a name is given only to what is recorded, durably: where the record is
    /// known again, the next start goes on; a file whose content is in the warehouse goes now; anything else gets a name
    /// and is seen again.
    pub(super) fn resolve_hidden(&mut self, intents: &[Arrival]) -> Result<(), Failure> {
        let mut found = Vec::new();
        let mut unknown = Vec::new();
        let disk = self.disk;
        let uuid = self.uuid.clone();
        let inputs: Vec<(SourceId, DirHandle)> = self
            .inputs
            .iter()
            .map(|(id, dir)| (*id, dir.clone()))
            .collect();
        let mut looked_into = Vec::new();
        for (source, root) in inputs {
            let shown = self.input_path(source);
            if looked_into.contains(&shown) {
                continue;
            }
            looked_into.push(shown.clone());
            walk::walk(
                &disk,
                &root,
                &shown,
                |_| true,
                // What its uploader has closed stays as it is.
                |_| Ok(()),
                |parent, dir, names| {
                    for name in names {
                        let leaving = match claimed(&uuid, &name) {
                            Some((Hidden::Leaving, seq)) => (seq, false),
                            Some((Hidden::Sidecar, seq)) => (seq, true),
                            _ => continue,
                        };
                        let seen = disk.stat(dir, &name).unwrap_or(None);
                        if let Some(seen) = seen.filter(is_regular) {
                            let (dir, parent) = (dir.clone(), parent.to_path_buf());
                            let hidden = HiddenFile {
                                dir,
                                source,
                                parent,
                                name,
                                seen,
                                digest: None,
                            };
                            found.push((leaving, hidden));
                        }
                    }
                    Ok(())
                },
            )?;
        }
        for ((seq, sidecar), hidden) in found {
            let path = self.path_of_hidden(seq, &hidden)?;
            match (sidecar, path) {
                // Nothing remembers its name, and its file is done with.
                (true, _) => self.remove_hidden(&hidden, "its file is done with")?,
                (false, Some((source, path))) => {
                    // The next start looks for the name that the new ledger gives.
                    let name = self.ledger.hidden_names()?.name(Hidden::Leaving, seq);
                    let (dir, old) = (&hidden.dir, &hidden.name);
                    let renamed = match name == *old {
                        true => Ok(()),
                        false => self.disk.rename(dir, old, dir, &name),
                    };
                    if let Err(error) = renamed {
                        self.leave(&hidden, &error);
                        continue;
                    }
                    self.sync_dir_of(&hidden)?;
                    let identity = hidden.seen.identity;
                    self.owe(seq, OwedKind::Source, source, &path, identity);
                }
                (false, None) => unknown.push(hidden),
            }
        }
        self.resolve_unknown(unknown, intents)
    }

    /// Source and path of the recorded arrival that gave this name, if it was this file.
    fn path_of_hidden(
        &self,
        seq: u64,
        hidden: &HiddenFile,
    ) -> Result<Option<(SourceId, PathBuf)>, Failure> {
        let Some(record) = self.ledger.record_of(seq)? else {
            return Ok(None);
        };
        let RecordState::Done { arrival, .. } = record.state else {
            return Ok(None);
        };
        let here = arrival.path.parent() == Some(&hidden.parent)
            && self.input_path(arrival.source) == self.input_path(hidden.source);
        if !here || arrival.identity.size != hidden.seen.identity.size {
            return Ok(None);
        }
        // The last look before its only other copy is trusted.
        let digest = digest_of(&self.disk, &hidden.dir, &hidden.name).ok();
        let stored = self.warehouse_digest(&arrival.placed);
        let same = digest == Some(arrival.digest) && stored == Some(arrival.digest);
        Ok(same.then_some((arrival.source, arrival.path)))
    }

    fn warehouse_digest(&self, placed: &Path) -> Option<Digest> {
        let parent = placed.parent().unwrap_or(Path::new(""));
        let dir = self.disk.open_dir(&self.warehouse, parent).ok()?;
        digest_of(&self.disk, &dir, name_of(placed)).ok()
    }

    fn resolve_unknown(
        &mut self,
        mut unknown: Vec<HiddenFile>,
        intents: &[Arrival],
    ) -> Result<(), Failure> {
        if unknown.is_empty() {
            return Ok(());
        }
        for hidden in &mut unknown {
            hidden.digest = digest_of(&self.disk, &hidden.dir, &hidden.name).ok();
        }
        // Where each content is stored: one walk over the records, for all of them.
        let mut stored: HashMap<Digest, Vec<PathBuf>> = unknown
            .iter()
            .filter_map(|hidden| Some((hidden.digest?, Vec::new())))
            .collect();
        let mut next = 1;
        loop {
            let records = self.ledger.records_from(next, CHUNK)?;
            let Some(last) = records.last() else { break };
            next = last.seq + 1;
            for record in records {
                if let RecordState::Done { arrival, .. } = record.state
                    && let Some(places) = stored.get_mut(&arrival.digest)
                {
                    places.push(arrival.placed);
                }
            }
        }
        for intent in intents {
            if let Some(places) = stored.get_mut(&intent.digest) {
                places.push(intent.placed.clone());
            }
        }
        for hidden in unknown {
            let digest = hidden.digest;
            let places = digest.and_then(|digest| stored.get(&digest));
            let is_stored = places
                .into_iter()
                .flatten()
                .any(|place| self.warehouse_digest(place) == digest);
            match is_stored {
                true => self.remove_hidden(&hidden, "its content is in the warehouse")?,
                false => self.give_back(&hidden)?,
            }
        }
        Ok(())
    }

    fn remove_hidden(&mut self, hidden: &HiddenFile, why: &str) -> Result<(), Failure> {
        let path = self.shown(hidden);
        if let Err(error) = self.disk.unlink(&hidden.dir, &hidden.name) {
            self.leave(hidden, &error);
            return Ok(());
        }
        self.sync_dir_of(hidden)?;
        let message = format!("it was on its way out, and {why}: it is removed");
        self.say(Kind::Removed, path, None, message);
        Ok(())
    }

    /// Its directory is its uploader's, who may have closed it or taken its other name.
    fn leave(&mut self, hidden: &HiddenFile, error: &io::Error) {
        let message = format!("it was on its way out, and stays where it is: {error}");
        self.say(Kind::Left, self.shown(hidden), None, message);
    }

    /// Without the dot it is an arrival like any other.
    fn give_back(&mut self, hidden: &HiddenFile) -> Result<(), Failure> {
        let path = self.shown(hidden);
        let bytes = hidden.name.as_encoded_bytes();
        let name = String::from_utf8_lossy(bytes.strip_prefix(b".").unwrap_or(bytes)).into_owned();
        let (dir, old) = (&hidden.dir, &hidden.name);
        if let Err(error) = self.disk.rename(dir, old, dir, name.as_ref()) {
            self.leave(hidden, &error);
            return Ok(());
        }
        self.sync_dir_of(hidden)?;
        let message =
            format!("it was on its way out, and its content is nowhere else: it is called {name}");
        self.say(Kind::GivenBack, path, None, message);
        Ok(())
    }

    fn sync_dir_of(&self, hidden: &HiddenFile) -> Result<(), Failure> {
        self.disk
            .sync_dir(&hidden.dir)
            .map_err(|error| Failure::sync("sync the directory of", &self.shown(hidden), &error))
    }

    fn shown(&self, hidden: &HiddenFile) -> PathBuf {
        let input = self.input_path(hidden.source);
        input.join(&hidden.parent).join(&hidden.name)
    }
}
