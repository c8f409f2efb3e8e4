//! Step 1: what each arrival is, and where it will go.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FileType;

use crate::failure::{Exit, Failure};
use crate::io::{Disk, FileStat, Timestamp};
use crate::ledger::{Arrival, ContentKey, Digest, Ledger, Outcome, Placement, RecordState};
use crate::observe::events;
use crate::pipeline::{Fate, Staged, Waiting, is_no_room};
use crate::settings::{Dedupe, OnDuplicate, Source};
use crate::trial::mutants;

use super::{BatchDirs, Item, Recorder, Root, layout};

/// How long a file rests after an error that concerned only it.
pub(super) const ERROR_REST: Duration = Duration::from_secs(1);

/// How many directories are tried in whose way files are.
const DIR_TRIES_MAX: u32 = 16;

/// Whether nothing can be placed for now, and nothing is broken.
pub(super) fn is_full(error: &io::Error) -> bool {
    use rustix::io::Errno;
    is_no_room(error) || Errno::from_io_error(error) == Some(Errno::ROFS)
}

/// What an error of changing the warehouse means for a file.
pub(super) fn fate_of(error: &io::Error, operation: &str, path: &Path) -> Fate {
    if is_full(error) {
        return Fate::NoRoom(format!("cannot {operation} {}: {error}", path.display()));
    }
    let remedy =
        "the file stays in staging and is tried again; check permissions and what is in its way";
    events::file_failed(path, operation, &error.to_string(), remedy);
    Fate::Again {
        after: ERROR_REST,
        why: Waiting::Turn,
    }
}

impl<D: Disk, L: Ledger> Recorder<D, L> {
    /// Tells novel from known content and chooses destinations. Content that this very batch is placing is parked:
    /// whether it is a duplicate is known once that batch stands.
    pub(super) fn classify(
        &mut self,
        dirs: &mut BatchDirs<D>,
        staged: Vec<Staged<D::File>>,
    ) -> Result<Vec<Item<D::File>>, Failure> {
        let keys: Vec<Option<ContentKey>> = staged
            .iter()
            .map(|staged| {
                let candidate = &staged.candidate;
                let size = staged.stat.identity.size;
                content_key(
                    &candidate.input.settings,
                    candidate.path(),
                    &staged.digest,
                    size,
                )
                .filter(|_| staged.finding.is_none())
            })
            .collect();
        let mut asked: Vec<ContentKey> = keys.iter().flatten().copied().collect();
        asked.sort_unstable();
        asked.dedup();
        let found = self.ledger.lookup(&asked)?;
        let known: HashMap<ContentKey, u64> = asked
            .into_iter()
            .zip(found)
            .filter_map(|(key, seq)| Some((key, seq?)))
            .collect();

        let time_micros = self.now_micros();
        let mut in_batch: HashSet<ContentKey> = HashSet::new();
        let mut taken: HashSet<PathBuf> = HashSet::new();
        let mut items = Vec::with_capacity(staged.len());
        for (staged, key) in staged.into_iter().zip(keys) {
            if !self.disk.unbroken(&staged.file) {
                let path = staged.candidate.input.absolute(staged.candidate.path());
                events::file_changed(&path, "opened for writing before it was placed");
                staged.candidate.ticket.close(Fate::Again {
                    after: Duration::from_millis(20),
                    why: Waiting::HeldOpen,
                });
                continue;
            }
            let outcome = match (&staged.finding, key) {
                (Some(finding), _) => finding.outcome(),
                (None, Some(key))
                    if in_batch.contains(&key) && !mutants::on("twins_not_parked") =>
                {
                    self.parked.push(staged);
                    continue;
                }
                (None, Some(key)) => match known.get(&key) {
                    _ if mutants::on("known_content_ingested") => Outcome::Ingest,
                    None => Outcome::Ingest,
                    Some(&of) => match self.stored_copy_stands(dirs, of)? {
                        Ok(true) => Outcome::Duplicate { of },
                        Ok(false) => Outcome::Ingest,
                        Err(error) => {
                            let fate = fate_of(&error, "compare with", &self.first_path(of));
                            staged.candidate.ticket.close(fate);
                            continue;
                        }
                    },
                },
                (None, None) => Outcome::Ingest,
            };
            let placement = match (&outcome, staged.candidate.input.settings.on_duplicate) {
                (Outcome::Duplicate { .. }, OnDuplicate::Delete | OnDuplicate::Keep) => {
                    Placement::None
                }
                _ if staged.copy.is_some() => Placement::Copy,
                _ => Placement::Rename,
            };
            let source = &staged.candidate.input.settings;
            let aside = layout::quarantine_dir(source, time_micros);
            let mut arrival = Arrival {
                seq: self.next_seq,
                source: staged.candidate.input.id,
                path: staged.candidate.path().to_path_buf(),
                identity: staged.stat.identity,
                sidecar: staged.sidecar.clone(),
                digest: staged.digest,
                key: key.filter(|_| outcome == Outcome::Ingest),
                outcome,
                placement,
                placed: PathBuf::new(),
                placed_inode: match &staged.copy {
                    Some(copy) => copy.stat.identity.inode,
                    None => staged.stat.identity.inode,
                },
                time_micros,
                counts: staged.counts,
                aside: (aside != layout::default_quarantine_dir(time_micros)).then_some(aside),
                placed_ctime: Timestamp::default(),
                ctime_vouches: false,
            };
            if placement != Placement::None {
                match self.choose_name(dirs, source, &arrival, &mut taken)? {
                    Ok(placed) => arrival.placed = placed,
                    Err((error, path)) => {
                        let fate = fate_of(&error, "make a place for", &path);
                        staged.candidate.ticket.close(fate);
                        continue;
                    }
                }
            }
            in_batch.extend(arrival.key);
            self.next_seq += 1;
            let line = (arrival.outcome == Outcome::Ingest).then(|| self.line_of(&arrival));
            items.push(Item {
                arrival,
                staged: Some(staged),
                held: None,
                set_aside: false,
                line,
                dropped: None,
            });
        }
        Ok(items)
    }

    /// The first free name, in a directory that is there. The inner error concerns only this file.
    #[allow(clippy::type_complexity)]
    fn choose_name(
        &self,
        dirs: &mut BatchDirs<D>,
        source: &Source,
        arrival: &Arrival,
        taken: &mut HashSet<PathBuf>,
    ) -> Result<Result<PathBuf, (io::Error, PathBuf)>, Failure> {
        let time = arrival.time_micros;
        let path = layout::path_of(&arrival.outcome, source, &arrival.path, time);
        let (mut base, name) = (super::place::parent(&path), super::place::name_of(&path));
        // What a file came with, in place of the partition's directories.
        let own = base.iter().count() - super::place::parent(&arrival.path).iter().count();
        let mut tries = DIR_TRIES_MAX;
        let dir = loop {
            let dir = match self.is_promised(dirs, &base, own, taken)? {
                Some(depth) => Err((depth, io::ErrorKind::NotADirectory.into())),
                None => match self.dir_of(dirs, Root::Warehouse, &base.join(name), true)? {
                    Ok(dir) => Ok(dir),
                    Err(error) => match self.file_on_the_way(dirs, &base, own)? {
                        Some(depth) => Err((depth, error)),
                        None => return Ok(Err((error, self.warehouse.path.join(base)))),
                    },
                },
            };
            match dir {
                Ok(dir) => break dir,
                Err((depth, _)) if tries > 0 => base = layout::dir_beside(&base, depth),
                Err((_, error)) => return Ok(Err((error, self.warehouse.path.join(base)))),
            }
            tries -= 1;
        };
        let free = |name: &OsStr| -> io::Result<bool> {
            Ok(!taken.contains(&base.join(name)) && self.disk.stat(&dir, name)?.is_none())
        };
        let (digest, seq) = (&arrival.digest, arrival.seq);
        let chosen = match layout::first_free(&arrival.outcome, name, digest, seq, free) {
            Ok(chosen) => chosen,
            Err(error) => return Ok(Err((error, self.warehouse.path.join(base)))),
        };
        let Some((name, reason)) = chosen else {
            let error = io::Error::from(io::ErrorKind::AlreadyExists);
            return Ok(Err((error, self.warehouse.path.join(base).join(name))));
        };
        taken.extend(reason.map(|reason| base.join(reason)));
        taken.insert(base.join(&name));
        Ok(Ok(base.join(name)))
    }

    /// Which component of a directory, from number `own` on, is the name that a file or a reason of this batch is about to get.
    fn is_promised(
        &self,
        dirs: &mut BatchDirs<D>,
        base: &Path,
        own: usize,
        taken: &HashSet<PathBuf>,
    ) -> Result<Option<usize>, Failure> {
        if taken.is_empty() || base.iter().count() <= own {
            return Ok(None);
        }
        // A directory that is there has its name already.
        if self
            .dir_of(dirs, Root::Warehouse, &base.join("_"), false)?
            .is_ok()
        {
            return Ok(None);
        }
        let depths = own..base.iter().count();
        let path_to = |depth: usize| base.iter().take(depth + 1).collect::<PathBuf>();
        let mut promised = depths.filter(|depth| taken.contains(&path_to(*depth)));
        Ok(promised.next())
    }

    /// Finds the component of a directory, from number `own` on, that is a file in the warehouse.
    fn file_on_the_way(
        &self,
        dirs: &mut BatchDirs<D>,
        base: &Path,
        own: usize,
    ) -> Result<Option<usize>, Failure> {
        for depth in own..base.iter().count() {
            let path: PathBuf = base.iter().take(depth + 1).collect();
            match self.look(dirs, Root::Warehouse, &path)? {
                Ok(Some(seen)) if seen.kind != FileType::Directory => return Ok(Some(depth)),
                Ok(Some(_)) => {}
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Whether the file that an earlier arrival brought is still in the warehouse. If somebody took it, the newcomer is
    /// what is left of that content. The inner error is that of looking.
    pub(super) fn stored_copy_stands(
        &self,
        dirs: &mut BatchDirs<D>,
        of: u64,
    ) -> Result<io::Result<bool>, Failure> {
        let Some(first) = self.ledger_arrival(of)? else {
            return Err(Failure::new(
                Exit::Io,
                "look up a duplicate in the ledger of",
                &self.warehouse.path,
                format!("content is assigned to arrival {of}, which is not recorded"),
                "restore the state directory from a backup; `ringest verify` lists what does not agree",
            ));
        };
        let dir = match self.dir_of(dirs, Root::Warehouse, &first.placed, false)? {
            Ok(dir) => dir,
            Err(error) if is_absent(&error) => return Ok(Ok(false)),
            Err(error) => return Ok(Err(error)),
        };
        let name = first.placed.file_name().unwrap_or_default();
        let stat = match self.disk.stat(&dir, name) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Ok(Ok(mutants::on("lost_copy_stands"))),
            Err(error) => return Ok(Err(error)),
        };
        let stands = is_stored_copy(&stat, &first);
        let stands = stands.or(mutants::on("other_inode_stands").then_some(true));
        if let Some(stands) = stands {
            return Ok(Ok(stands));
        }
        let file = match self.disk.open(&dir, name) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(Ok(false)),
            Err(error) => return Ok(Err(error)),
        };
        let path = self.placed_path(&first);
        Ok(self
            .digest_of(&file, &path)?
            .map(|digest| digest == first.digest))
    }

    /// The arrival recorded under a number.
    pub(super) fn ledger_arrival(&self, seq: u64) -> Result<Option<Arrival>, Failure> {
        Ok(match self.ledger.record(seq)?.map(|record| record.state) {
            Some(RecordState::Done { arrival, .. }) => Some(arrival),
            _ => None,
        })
    }

    /// Where an earlier arrival is stored, for people.
    pub(super) fn first_path(&self, seq: u64) -> PathBuf {
        match self.ledger_arrival(seq) {
            Ok(Some(arrival)) => self.placed_path(&arrival),
            _ => PathBuf::new(),
        }
    }
}

/// Whether what lies where an arrival was placed is its file, as it was when it was found whole. `None`: its content decides. It was
/// restored from a backup, perhaps, or its owner, who may still write to it and set its mtime back, has changed it.
pub fn is_stored_copy(seen: &FileStat, arrival: &Arrival) -> Option<bool> {
    if seen.kind != FileType::RegularFile || seen.identity.size != arrival.identity.size {
        return Some(false);
    }
    let same = seen.identity.inode == arrival.placed_inode
        && arrival.ctime_vouches
        && seen.identity.ctime == arrival.placed_ctime;
    let same = same
        || mutants::on("stored_copy_by_mtime")
            && seen.identity.inode == arrival.placed_inode
            && seen.identity.mtime == arrival.identity.mtime;
    same.then_some(true)
}

/// Under which key the content of a file of `source` is known; `None` when every arrival is ingested.
pub fn content_key(source: &Source, path: &Path, digest: &Digest, size: u64) -> Option<ContentKey> {
    match source.dedupe {
        Dedupe::Off => None,
        // All empty files have the same content, which says nothing.
        _ if size == 0 => Some(ContentKey::with_name(digest, path)),
        Dedupe::Global => Some(ContentKey::global(digest)),
        Dedupe::Source => Some(ContentKey::within_source(digest, &source.name)),
        Dedupe::Name => Some(ContentKey::with_name(digest, path)),
    }
}

/// Whether an error is that of the device, which no uploader makes.
pub(super) fn is_of_device(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::IO | Errno::NXIO | Errno::NODEV | Errno::STALE | Errno::UCLEAN | Errno::BADMSG)
    )
}

/// Whether an error says that there is nothing beneath a root at that path. A directory that was swapped for a symbolic
/// link, or mounted over, is not there as far as ringest is concerned.
pub fn is_absent(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
    )
}
