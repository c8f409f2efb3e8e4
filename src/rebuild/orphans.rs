//! An intent for each file in the warehouse that nothing recorded: it was placed, or even recorded, and its line or its
//! reason did not reach the disk before the ledger was lost. Recovery records it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::failure::{Exit, Failure};
use crate::io::{Clock, Disk, Identity, clock::WallClock};
use crate::ledger::{
    Arrival, ContentKey, Counts, Digest, Ledger, Outcome, Placement, Position, SourceId,
};
use crate::pipeline::record::{dirs, layout};

use super::{Kind, Rebuild, name_of, walk};

/// The rule of a file that was set aside, nobody knows why any more.
const LOST_REASON_RULE: &str = "reason_lost";

/// Whence an orphan came, as far as that can be told.
struct Origin {
    source: SourceId,
    path: PathBuf,
    /// Its source in staging, if that is still there.
    identity: Option<Identity>,
    placement: Placement,
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// What is known of the content of other orphans.
#[derive(Default)]
struct Adopted {
    intents: Vec<Arrival>,
    keys: HashMap<ContentKey, u64>,
}

impl Rebuild<'_> {
    /// Makes intents, in the order of their numbers.
    pub(super) fn adopt(&mut self, unexplained: Vec<PathBuf>) -> Result<Vec<Arrival>, Failure> {
        let mut orphans = Vec::new();
        let (disk, root) = (self.disk, self.warehouse.clone());
        let shown = self.settings.warehouse.clone();
        let tree = &self.tree;
        let is_data = |path: &Path| tree.is_data(path);
        let marker = |name: &std::ffi::OsStr| name == layout::MARKER;
        walk::walk(&disk, &root, &shown, is_data, Err, |path, dir, names| {
            if tree.partition_depth(path).is_none() {
                return Ok(());
            }
            for name in names {
                let placed = path.join(&name);
                if self.names.contain(&placed) || marker(&name) {
                    continue;
                }
                let seen = disk
                    .stat(dir, &name)
                    .map_err(|error| Failure::io("look at", &shown.join(&placed), &error))?;
                if seen.is_some_and(|seen| super::is_regular(&seen)) {
                    orphans.push(placed);
                }
            }
            Ok(())
        })?;
        let mut adopted = Adopted::default();
        // New content first: what was set aside may be a duplicate of it.
        for placed in orphans.into_iter().chain(unexplained) {
            self.adopt_one(placed, &mut adopted)?;
        }
        Ok(adopted.intents)
    }

    fn adopt_one(&mut self, mut placed: PathBuf, adopted: &mut Adopted) -> Result<(), Failure> {
        let digest = self.digest_of_placed(&placed)?;
        // It was read a moment ago.
        let Some(seen) = self.look(&placed)? else {
            return Ok(());
        };
        let is_aside = self.tree.aside_depth(parent(&placed)).is_some();
        let origin = self.origin(&placed, is_aside, &seen.identity, &digest)?;
        let seq = self.report.next_seq;
        let key = self.key_of(origin.source, &origin.path, &digest, seen.identity.size);
        let of = self.first_of(key, &digest, is_aside, adopted)?;
        let outcome = match of {
            Some(of) => Outcome::Duplicate { of },
            None if !is_aside => Outcome::Ingest,
            None => Outcome::Quarantine {
                rule: LOST_REASON_RULE.into(),
                message: "it was set aside; why, was lost with the ledger".into(),
                position: Position::default(),
            },
        };
        if let (Outcome::Duplicate { .. }, false) = (&outcome, is_aside) {
            placed = self.set_aside(&placed, &origin.path, seq)?;
        }
        let key = key.filter(|_| outcome == Outcome::Ingest);
        adopted.keys.extend(key.map(|key| (key, seq)));
        // A batch of recovery is what has one time.
        let batch = (adopted.intents.len() / super::CHUNK) as i64;
        if adopted.intents.is_empty() {
            self.last_time_micros = self.last_time_micros.max(WallClock.now_micros());
        }
        let time_micros = self.last_time_micros + batch;
        let what = match &outcome {
            Outcome::Ingest => "it is taken in",
            Outcome::Duplicate { .. } => "it is recorded as a duplicate",
            Outcome::Quarantine { .. } => "it is recorded as quarantined",
        };
        let path = self.settings.warehouse.join(&placed);
        let source = self.input_path(origin.source);
        let message = format!(
            "nothing had recorded it; {what} as arrival {seq}, from {}",
            source.join(&origin.path).display()
        );
        self.say(Kind::Adopted, path, Some(seq), message);
        self.report.adopted += 1;
        self.report.next_seq += 1;
        adopted.intents.push(Arrival {
            seq,
            source: origin.source,
            path: origin.path,
            identity: origin.identity.unwrap_or(seen.identity),
            sidecar: None,
            digest,
            key,
            outcome,
            placement: origin.placement,
            placed,
            placed_inode: seen.identity.inode,
            time_micros,
            counts: Counts::default(),
            aside: None,
            placed_ctime: Default::default(),
            ctime_vouches: false,
        });
        Ok(())
    }

    /// The arrival that brought this content before, within the scope of the key. Of what was set aside any will do.
    fn first_of(
        &self,
        key: Option<ContentKey>,
        digest: &Digest,
        is_aside: bool,
        adopted: &Adopted,
    ) -> Result<Option<u64>, Failure> {
        if let Some(key) = key {
            let known = self.ledger.lookup(&[key])?[0];
            if let Some(of) = known.or_else(|| adopted.keys.get(&key).copied()) {
                return Ok(Some(of));
            }
        }
        if is_aside {
            for of in self.ledger.by_digest(digest)? {
                if self.brought(of, digest)? {
                    return Ok(Some(of));
                }
            }
        }
        Ok(None)
    }

    /// Looks in staging for where it came from: a second name of the same file, or the source of a copy. Otherwise the
    /// first source that may have had such a path.
    fn origin(
        &self,
        placed: &Path,
        is_aside: bool,
        identity: &Identity,
        digest: &Digest,
    ) -> Result<Origin, Failure> {
        let parent = parent(placed);
        let depth = match is_aside {
            true => self.tree.aside_depth(parent),
            false => self.tree.partition_depth(parent),
        };
        let dirs: PathBuf = parent.iter().skip(depth.unwrap_or(0)).collect();
        let name = name_of(placed);
        let original = layout::original_name(name, digest);
        let mut paths = vec![dirs.join(&original)];
        if original != name {
            paths.push(dirs.join(name));
        }
        for source in self.own_sources() {
            for path in &paths {
                let Some(seen) = self.look_in_staging(source, path)? else {
                    continue;
                };
                let found = |placement| Origin {
                    source,
                    path: path.clone(),
                    identity: Some(seen.identity),
                    placement,
                };
                if seen.identity.same_file(identity) {
                    return Ok(found(Placement::Rename));
                }
                if self.is_copy_of(source, path, &seen, identity, digest)? {
                    return Ok(found(Placement::Copy));
                }
            }
        }
        let nested = !dirs.as_os_str().is_empty();
        let sources = &self.settings.sources;
        let likely = sources
            .iter()
            .position(|source| source.recursive || !nested);
        let source = self.own_sources().nth(likely.unwrap_or(0));
        Ok(Origin {
            source: source.unwrap_or_default(),
            path: paths.swap_remove(0),
            identity: None,
            placement: Placement::Rename,
        })
    }

    /// Sources of the settings, in their order: they were the first to be given a number.
    fn own_sources(&self) -> impl Iterator<Item = SourceId> + use<> {
        let own = self.sources.iter().take(self.settings.sources.len());
        own.map(|entry| entry.id).collect::<Vec<_>>().into_iter()
    }

    /// Moves an orphan whose content is recorded out of its partition, durably.
    fn set_aside(&mut self, placed: &Path, path: &Path, seq: u64) -> Result<PathBuf, Failure> {
        let shown = self.settings.warehouse.join(placed);
        let failed = |error| Failure::io("set aside", &shown, &error);
        let depth = self.tree.partition_depth(parent(placed)).unwrap_or(0);
        let partition: PathBuf = placed.iter().take(depth).collect();
        let base = Path::new(layout::DUPLICATES_DIR)
            .join(partition)
            .join(parent(path));
        let base: PathBuf = base.components().collect();
        let to = dirs::ensure_dir(&self.disk, &self.warehouse, &base).map_err(failed)?;
        let from = self.dir_of(placed)?;
        let from = from.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        for name in layout::aside_names(name_of(path), seq) {
            let reason = layout::reason_name(&name);
            if self.disk.stat(&to, &reason).map_err(failed)?.is_some() {
                continue;
            }
            match self.disk.rename(&from, name_of(placed), &to, &name) {
                Ok(()) => {
                    self.disk
                        .sync_dir(&to)
                        .and_then(|()| self.disk.sync_dir(&from))
                        .map_err(|error| Failure::sync("set aside", &shown, &error))?;
                    return Ok(base.join(name));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(Failure::new(
            Exit::Io,
            "set aside",
            &shown,
            format!("its name and the next one are taken in {}", base.display()),
            "move it out of the warehouse, or the others, and try again",
        ))
    }
}
