//! The simulated disk.
//!
//! # Fault model
//!
//! There are two views of everything: what processes see (the *cache*) and what a power cut leaves (the *disk*).
//!
//! - **Names.** Making, linking, renaming and removing a name changes the cache and is *pending* on the disk, until its
//!   directory or the whole filesystem is synced. A power cut keeps any subset of the pending changes in which
//!   - the changes of one name in one directory keep their order: a prefix of them survives;
//!   - a rename within one directory is one change. Of one between two directories, the old name goes only if the new one
//!     came; the new name may be there and the old one too (btrfs does that). A link and a later unlink are two changes: losing the file is legal;
//!   - of two names that one file lost in one directory, the later does not go without the earlier.
//!
//!   The ctime of a file goes back with the changes of its names that are lost.
//!
//!   Syncing a directory makes the changes of its own names durable; for a name that was moved away that means its new
//!   name too (anybody may sync a staging directory at any time). A directory whose own name is not durable is lost with everything in it, synced or not.
//! - **Bytes.** A write is pending for each block of 16 bytes, the size of the file apart from them. A power cut keeps, loses or tears
//!   each block; a lost block is what it was, or zeros behind the old end. `fsync` and `syncfs` make bytes durable, not names.
//! - **Failed syncs.** A sync of bytes that fails leaves the cache with the new bytes and marks them clean, while the disk
//!   keeps the old: the next sync says OK and does nothing. Dropping the cache shows the truth. A sync of a
//!   directory or of a filesystem that fails is a journal that aborts: nothing pending ever becomes durable, and
//!   the filesystem is read-only until the next boot.
//! - **Errors.** Any operation may fail where the kernel may: EIO of reads, looks, names that are made and syncs, ENOSPC, EDQUOT and EMFILE for a
//!   while, EXDEV between directories that were believed to be on one filesystem, EACCES and EPERM, and writes that fail half way.
//! - **Crashes.** Every operation is a numbered event, and the process may end before any of them. A *kill* leaves
//!   the cache as it is. A *power cut* leaves a legal part of what was pending, and renumbers the devices. Inode numbers of
//!   files that are gone are given out again.
//! - **Leases.** A writer that opens a leased file breaks the lease and then writes. A file that is being written cannot be opened.
//!
//! Not modelled: a size that a failed sync leaves in memory alone (xfs may); bytes that rot on the disk; drives that lie about flushes; an mtime that a power cut turns back;
//! attributes other than size and times; writers that keep a file open past the last look before commit B (nothing
//! but a copy protects from those); a change to the disk in the middle of one call of [`Disk`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use ringest::io::disk::SyncedBeneath;
use ringest::io::{Clock, Disk, FileStat, Identity, Timestamp};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::ledger::Tables;
use crate::random::Random;

const BLOCK: usize = 16;

/// An inode, for ever. Its number, which the recorder sees, may be that of an earlier one.
pub type Id = u32;
pub type Name = Rc<OsStr>;

/// Root directories. A filesystem belongs to each, perhaps the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Warehouse,
    Manifests,
    Source(u16),
}

/// Who made a file: what an uploader brought must not be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    Uploader,
    Recorder,
}

#[derive(Debug, Clone, Default)]
pub struct Data {
    pub cache: Vec<u8>,
    pub disk: Vec<u8>,
    dirty: BTreeSet<u32>,
    size_dirty: bool,
    /// A sync of bytes that were dirty failed: what the uploader wrote was never durable and never will be.
    pub lied: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Entries {
    pub cache: BTreeMap<Name, Id>,
    pub disk: BTreeMap<Name, Id>,
}

#[derive(Debug, Clone)]
pub enum Kind {
    File(Data),
    Dir(Entries),
}

#[derive(Debug, Clone)]
pub struct Inode {
    pub number: u64,
    pub fs: u8,
    pub role: Role,
    pub kind: Kind,
    pub links: u32,
    pub mtime: u64,
    pub ctime: u64,
    pub born: u64,
    /// The ctime that a power cut leaves.
    disk_ctime: u64,
    pub origin: Origin,
    /// Times a writer has opened it since a lease may have been granted.
    writers: u32,
    /// A writer has it open.
    pub busy: bool,
    /// It was looked at for the last time before commit B; see the model.
    sealed: bool,
    /// Its uploader knows its bytes and its name to be durable, or a reboot has shown them.
    pub promised: bool,
    /// Its uploader took it away.
    pub withdrawn: bool,
}

/// A change of names that the disk does not hold yet.
#[derive(Debug, Clone)]
struct Pending {
    fs: u8,
    /// Whose names change.
    id: Id,
    ctime: u64,
    add: Option<(Id, Name, Id)>,
    remove: Option<(Id, Name)>,
}

#[derive(Debug, Clone, Default)]
pub struct Image {
    pub inodes: BTreeMap<Id, Rc<Inode>>,
    pub roots: BTreeMap<Role, Id>,
    /// Sources whose files are not leased.
    pub unleased: BTreeSet<Role>,
    pending: Vec<Pending>,
    read_only: BTreeSet<u8>,
    next: Id,
    numbers: BTreeMap<u8, (u64, Vec<u64>)>,
    /// Inode number and mtime of files that a writer came back to: for ringest they are other files, which arrive again.
    pub touched: BTreeSet<(u64, Timestamp)>,
    /// The same of files that a power cut tore, because nobody had synced them.
    pub torn: BTreeSet<(u64, Timestamp)>,
    pub now: u64,
    pub boot: u64,
    /// Counts changes, so that a state need be looked at only once.
    version: u64,
}

/// What a power cut leaves of what was pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    None,
    All,
    /// Each change of a name by one bit; each block whole if its bit is set.
    Bits(u64),
    Random(u64),
}

impl Pending {
    /// A rename within one directory is one change: both names or neither.
    fn is_within_one_directory(&self) -> bool {
        match (&self.add, &self.remove) {
            (Some((to, ..)), Some((from, _))) => to == from,
            _ => false,
        }
    }
}

impl Image {
    pub fn add_root(&mut self, role: Role, fs: u8) {
        let id = self.make(fs, role, Kind::Dir(Entries::default()), Origin::Recorder);
        self.roots.insert(role, id);
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// Every change passes here.
    pub fn edit(&mut self, id: Id) -> &mut Inode {
        self.version += 1;
        Rc::make_mut(self.inodes.get_mut(&id).expect("an inode"))
    }

    pub fn inode(&self, id: Id) -> &Inode {
        &self.inodes[&id]
    }

    fn entries(&self, id: Id) -> Option<&Entries> {
        match &self.inodes.get(&id)?.kind {
            Kind::Dir(entries) => Some(entries),
            Kind::File(_) => None,
        }
    }

    fn entries_mut(&mut self, id: Id) -> &mut Entries {
        match &mut self.edit(id).kind {
            Kind::Dir(entries) => entries,
            Kind::File(_) => unreachable!("a directory"),
        }
    }

    pub fn data(&self, id: Id) -> &Data {
        match &self.inode(id).kind {
            Kind::File(data) => data,
            Kind::Dir(_) => unreachable!("a file"),
        }
    }

    fn data_mut(&mut self, id: Id) -> &mut Data {
        match &mut self.edit(id).kind {
            Kind::File(data) => data,
            Kind::Dir(_) => unreachable!("a file"),
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn make(&mut self, fs: u8, role: Role, kind: Kind, origin: Origin) -> Id {
        let (next, free) = self.numbers.entry(fs).or_insert((10, Vec::new()));
        let number = free.pop().unwrap_or_else(|| {
            *next += 1;
            *next
        });
        self.next += 1;
        let now = self.tick();
        let inode = Inode {
            number,
            fs,
            role,
            kind,
            links: 0,
            mtime: now,
            ctime: now,
            born: now,
            disk_ctime: now,
            origin,
            writers: 0,
            busy: false,
            sealed: false,
            promised: false,
            withdrawn: false,
        };
        self.inodes.insert(self.next, Rc::new(inode));
        self.version += 1;
        self.next
    }

    // ---- looking ----

    pub fn child(&self, dir: Id, name: &OsStr, durable: bool) -> Option<Id> {
        let entries = self.entries(dir)?;
        let map = if durable {
            &entries.disk
        } else {
            &entries.cache
        };
        map.get(name).copied()
    }

    pub fn find(&self, role: Role, path: &Path, durable: bool) -> Option<Id> {
        path.iter().try_fold(self.roots[&role], |dir, name| {
            self.child(dir, name, durable)
        })
    }

    /// Every file beneath a root, by path.
    pub fn files(&self, role: Role, durable: bool) -> Vec<(PathBuf, Id)> {
        let mut found = Vec::new();
        self.walk(self.roots[&role], &PathBuf::new(), durable, &mut found);
        found
    }

    fn walk(&self, dir: Id, path: &Path, durable: bool, found: &mut Vec<(PathBuf, Id)>) {
        let Some(entries) = self.entries(dir) else {
            return;
        };
        let map = if durable {
            &entries.disk
        } else {
            &entries.cache
        };
        for (name, &id) in map {
            let path = path.join(&**name);
            match self.inode(id).kind {
                Kind::Dir(_) => self.walk(id, &path, durable, found),
                Kind::File(_) => found.push((path, id)),
            }
        }
    }

    /// What of this has files that uploaders brought.
    pub fn uploaded(&self, durable: bool) -> BTreeSet<Id> {
        let all = self
            .roots
            .keys()
            .flat_map(|&role| self.files(role, durable));
        all.map(|(_, id)| id)
            .filter(|&id| self.inode(id).origin == Origin::Uploader)
            .collect()
    }

    pub fn stat(&self, id: Id) -> FileStat {
        let inode = self.inode(id);
        let (kind, size) = match &inode.kind {
            Kind::File(data) => (FileType::RegularFile, data.cache.len() as u64),
            Kind::Dir(_) => (FileType::Directory, 0),
        };
        FileStat {
            identity: Identity {
                device: self.boot * 100 + u64::from(inode.fs),
                inode: inode.number,
                size,
                mtime: timestamp(inode.mtime),
                ctime: timestamp(inode.ctime),
                born: timestamp(inode.born),
            },
            kind,
            links: inode.links,
            mode: 0o644,
            blocks: size.div_ceil(512),
            uid: 0,
            gid: 0,
        }
    }

    // ---- names ----

    pub fn is_read_only(&self) -> bool {
        !self.read_only.is_empty()
    }

    fn refuse_read_only(&self, fs: u8) -> Result<(), Errno> {
        match self.read_only.contains(&fs) {
            true => Err(Errno::ROFS),
            false => Ok(()),
        }
    }

    pub fn make_dir(&mut self, parent: Id, name: &OsStr, origin: Origin) -> Result<Id, Errno> {
        let (fs, role) = (self.inode(parent).fs, self.inode(parent).role);
        if self.child(parent, name, false).is_some() {
            return Err(Errno::EXIST);
        }
        self.refuse_read_only(fs)?;
        let id = self.make(fs, role, Kind::Dir(Entries::default()), origin);
        self.add_name(parent, name.into(), id, None);
        Ok(id)
    }

    pub fn make_file(&mut self, dir: Id, name: &OsStr, origin: Origin) -> Result<Id, Errno> {
        let (fs, role) = (self.inode(dir).fs, self.inode(dir).role);
        self.refuse_read_only(fs)?;
        let id = self.make(fs, role, Kind::File(Data::default()), origin);
        self.add_name(dir, name.into(), id, None);
        Ok(id)
    }

    /// A file without a name on the filesystem of a root.
    pub fn make_unnamed(&mut self, role: Role) -> Result<Id, Errno> {
        let fs = self.inode(self.roots[&role]).fs;
        self.refuse_read_only(fs)?;
        Ok(self.make(fs, role, Kind::File(Data::default()), Origin::Recorder))
    }

    fn add_name(&mut self, dir: Id, name: Name, id: Id, remove: Option<(Id, Name)>) {
        self.entries_mut(dir).cache.insert(name.clone(), id);
        let (fs, role) = (self.inode(dir).fs, self.inode(dir).role);
        let now = self.tick();
        let inode = self.edit(id);
        inode.ctime = now;
        inode.role = role;
        inode.sealed = false;
        if remove.is_none() {
            inode.links += 1;
        }
        self.pending.push(Pending {
            fs,
            id,
            ctime: now,
            add: Some((dir, name, id)),
            remove,
        });
    }

    pub fn link(&mut self, id: Id, dir: Id, name: &OsStr) -> Result<(), Errno> {
        if self.inode(id).fs != self.inode(dir).fs {
            return Err(Errno::XDEV);
        }
        if self.child(dir, name, false).is_some() {
            return Err(Errno::EXIST);
        }
        self.refuse_read_only(self.inode(dir).fs)?;
        self.add_name(dir, name.into(), id, None);
        Ok(())
    }

    /// Never replaces.
    pub fn rename(&mut self, from: Id, old: &OsStr, to: Id, new: &OsStr) -> Result<(), Errno> {
        if self.inode(from).fs != self.inode(to).fs {
            return Err(Errno::XDEV);
        }
        let Some(id) = self.child(from, old, false) else {
            return Err(Errno::NOENT);
        };
        if self.child(to, new, false).is_some() {
            return Err(Errno::EXIST);
        }
        self.refuse_read_only(self.inode(to).fs)?;
        self.entries_mut(from).cache.remove(old);
        self.add_name(to, new.into(), id, Some((from, old.into())));
        Ok(())
    }

    /// What an uploader's rename does: whatever had the name is gone with the same change.
    pub fn rename_over(&mut self, dir: Id, old: &OsStr, new: &OsStr) -> Result<(), Errno> {
        let replaced = self.child(dir, new, false).ok_or(Errno::NOENT)?;
        let id = self.child(dir, old, false).ok_or(Errno::NOENT)?;
        self.refuse_read_only(self.inode(dir).fs)?;
        let inode = self.edit(replaced);
        inode.links -= 1;
        inode.withdrawn |= inode.links == 0;
        self.entries_mut(dir).cache.remove(old);
        self.add_name(dir, new.into(), id, Some((dir, old.into())));
        Ok(())
    }

    pub fn unlink(&mut self, dir: Id, name: &OsStr) -> Result<(), Errno> {
        let Some(id) = self.child(dir, name, false) else {
            return Err(Errno::NOENT);
        };
        if matches!(self.inode(id).kind, Kind::Dir(_)) {
            return Err(Errno::ISDIR);
        }
        self.refuse_read_only(self.inode(dir).fs)?;
        self.entries_mut(dir).cache.remove(name);
        let now = self.tick();
        let inode = self.edit(id);
        inode.links -= 1;
        inode.ctime = now;
        self.pending.push(Pending {
            fs: self.inode(dir).fs,
            id,
            ctime: now,
            add: None,
            remove: Some((dir, name.into())),
        });
        Ok(())
    }

    // ---- bytes ----

    pub fn write(&mut self, id: Id, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let now = self.tick();
        let inode = self.edit(id);
        inode.mtime = now;
        inode.ctime = now;
        let Kind::File(data) = &mut inode.kind else {
            unreachable!("a file")
        };
        let end = offset + bytes.len();
        if data.cache.len() < end {
            data.cache.resize(end, 0);
            data.size_dirty = true;
        }
        // After a failed sync the disk may be shorter than the cache says.
        data.size_dirty |= data.disk.len() < end;
        data.cache[offset..end].copy_from_slice(bytes);
        data.dirty
            .extend((offset / BLOCK) as u32..=((end - 1) / BLOCK) as u32);
    }

    /// A writer replaces all bytes in place.
    pub fn overwrite(&mut self, id: Id, bytes: &[u8]) {
        let inode = self.edit(id);
        inode.writers += 1;
        inode.promised = false;
        let data = self.data_mut(id);
        data.cache.clear();
        data.dirty.clear();
        data.size_dirty = true;
        data.lied = false;
        self.write(id, 0, bytes);
    }

    /// Whether it has no name but hidden ones: it was looked at for the last time before it goes.
    fn is_leaving(&self, id: Id) -> bool {
        let mut names = self.roots.keys().flat_map(|&role| self.files(role, false));
        !names.any(|(path, named)| named == id && !crate::upload::is_hidden(&path))
    }

    pub fn is_sealed(&self, id: Id) -> bool {
        self.inode(id).sealed
    }

    pub fn set_mtime(&mut self, id: Id, mtime: u64) {
        self.edit(id).mtime = mtime;
    }

    // ---- durability ----

    pub fn sync_data(&mut self, id: Id) {
        let data = self.data(id);
        if data.dirty.is_empty() && !data.size_dirty {
            return;
        }
        let data = self.data_mut(id);
        if data.size_dirty {
            data.disk.resize(data.cache.len(), 0);
        }
        for block in std::mem::take(&mut data.dirty) {
            copy_block(&data.cache, &mut data.disk, block as usize, BLOCK);
        }
        data.size_dirty = false;
        let inode = self.edit(id);
        inode.disk_ctime = inode.ctime;
    }

    fn is_dirty(&self, id: Id) -> bool {
        let data = self.data(id);
        !data.dirty.is_empty() || data.size_dirty
    }

    /// The bytes stay in the cache, marked clean. The size stays pending, like everything the journal holds.
    fn fail_data(&mut self, id: Id) {
        if self.is_dirty(id) {
            let data = self.data_mut(id);
            data.dirty.clear();
            data.lied = true;
        }
    }

    /// Clean pages go; the next read shows what the disk holds.
    pub fn drop_clean(&mut self, id: Id) {
        let data = self.data(id);
        if data.cache == data.disk {
            return;
        }
        let data = self.data_mut(id);
        let mut seen = data.disk.clone();
        seen.resize(data.cache.len(), 0);
        for &block in &data.dirty {
            copy_block(&data.cache, &mut seen, block as usize, BLOCK);
        }
        data.cache = seen;
    }

    /// Whether the disk holds the file as the cache shows it.
    fn is_durable(&self, id: Id) -> bool {
        let data = self.data(id);
        data.cache == data.disk
    }

    pub fn sync_dir(&mut self, dir: Id) {
        self.harden(|op| {
            (
                op.add.as_ref().is_some_and(|add| add.0 == dir),
                op.remove.as_ref().is_some_and(|remove| remove.0 == dir),
            )
        });
    }

    pub fn sync_everything(&mut self) {
        let all: BTreeSet<u8> = self.inodes.values().map(|inode| inode.fs).collect();
        all.into_iter().for_each(|fs| self.sync_filesystem(fs));
    }

    pub fn sync_filesystem(&mut self, fs: u8) {
        self.harden(|op| (op.fs == fs, op.fs == fs));
        for id in self.files_of(fs) {
            self.sync_data(id);
        }
    }

    fn files_of(&self, fs: u8) -> Vec<Id> {
        let files = self.inodes.iter();
        files
            .filter(|(_, inode)| inode.fs == fs && matches!(inode.kind, Kind::File(_)))
            .map(|(&id, _)| id)
            .collect()
    }

    /// Makes these changes durable, and those that must come before them or with them.
    fn harden(&mut self, wanted: impl Fn(&Pending) -> (bool, bool)) {
        let mut chosen: Vec<(bool, bool)> = self.pending.iter().map(wanted).collect();
        if chosen.iter().all(|&(add, remove)| !add && !remove) {
            return;
        }
        loop {
            let before = chosen.clone();
            for at in 0..chosen.len() {
                let op = &self.pending[at];
                let whole = op.is_within_one_directory() && chosen[at].0;
                chosen[at].1 |= whole && op.remove.is_some();
                chosen[at].0 |= chosen[at].1 && op.add.is_some();
                let names = [
                    op.add
                        .as_ref()
                        .filter(|_| chosen[at].0)
                        .map(|(dir, name, _)| (*dir, name)),
                    op.remove
                        .as_ref()
                        .filter(|_| chosen[at].1)
                        .map(|(dir, name)| (*dir, name)),
                ];
                for (dir, name) in names.into_iter().flatten() {
                    for (earlier, chosen) in self.pending[..at].iter().zip(&mut chosen) {
                        let is = |of: (&Id, &Name)| *of.0 == dir && of.1 == name;
                        chosen.0 |= earlier.add.as_ref().is_some_and(|add| is((&add.0, &add.1)));
                        chosen.1 |= earlier.remove.as_ref().is_some_and(|r| is((&r.0, &r.1)));
                    }
                }
            }
            if chosen == before {
                break;
            }
        }
        let mut rest = Vec::new();
        for (mut op, (add, remove)) in std::mem::take(&mut self.pending).into_iter().zip(chosen) {
            if add || remove {
                self.edit(op.id).disk_ctime = op.ctime;
            }
            if add && let Some((dir, name, id)) = op.add.take() {
                self.entries_mut(dir).disk.insert(name, id);
            }
            if remove && let Some((dir, name)) = op.remove.take() {
                self.entries_mut(dir).disk.remove(&name);
            }
            if op.add.is_some() || op.remove.is_some() {
                rest.push(op);
            }
        }
        self.pending = rest;
    }

    /// How many yes-or-no questions a power cut would ask now: one for each name added or removed, one for each file.
    pub fn questions(&self) -> u32 {
        let names = self
            .pending
            .iter()
            .map(|op| match op.is_within_one_directory() {
                true => 1,
                false => u32::from(op.add.is_some()) + u32::from(op.remove.is_some()),
            });
        let files = self.inodes.values().filter(
            |inode| matches!(&inode.kind, Kind::File(d) if d.size_dirty || !d.dirty.is_empty()),
        );
        names.sum::<u32>() + files.count() as u32
    }

    /// The power goes, and comes back.
    pub fn cut(&mut self, survivors: Survivors) {
        let mut random = Random::new(match survivors {
            Survivors::Random(seed) => seed,
            _ => 0,
        });
        let keeps = [0, 25, 50, 75, 100];
        let (names_kept, data_kept) = (*random.pick(&keeps), *random.pick(&keeps));
        let mut bits = match survivors {
            Survivors::Bits(bits) => bits,
            _ => 0,
        };
        let mut ask = |percent: u64| match survivors {
            Survivors::None => false,
            Survivors::All => true,
            Survivors::Bits(_) => {
                let bit = bits & 1 == 1;
                bits >>= 1;
                bit
            }
            Survivors::Random(_) => random.percent(percent),
        };
        let mut lost: BTreeSet<(Id, Name)> = BTreeSet::new();
        let mut stuck: BTreeSet<(Id, Id)> = BTreeSet::new();
        for op in std::mem::take(&mut self.pending) {
            let within = op.is_within_one_directory();
            let mut added = true;
            let mut applied = false;
            let blocked = op.remove.as_ref().is_some_and(|(dir, name)| {
                stuck.contains(&(*dir, op.id)) || lost.contains(&(*dir, name.clone()))
            });
            if let Some((dir, name, id)) = op.add {
                added =
                    ask(names_kept) && !lost.contains(&(dir, name.clone())) && !(within && blocked);
                if added {
                    self.entries_mut(dir).disk.insert(name, id);
                    applied = true;
                } else {
                    lost.insert((dir, name));
                }
            }
            if let Some((dir, name)) = op.remove {
                if (within || ask(names_kept)) && added && !blocked {
                    self.entries_mut(dir).disk.remove(&name);
                    applied = true;
                } else {
                    lost.insert((dir, name));
                    stuck.insert((dir, op.id));
                }
            }
            if applied && self.inodes.contains_key(&op.id) {
                self.edit(op.id).disk_ctime = op.ctime;
            }
        }
        let ids: Vec<Id> = self.inodes.keys().copied().collect();
        for &id in &ids {
            if matches!(self.inode(id).kind, Kind::File(_)) && self.is_dirty(id) {
                let whole = matches!(survivors, Survivors::Bits(_)).then(|| ask(0));
                let mut ask = || match whole {
                    Some(kept) => kept,
                    None => ask(data_kept),
                };
                let data = self.data_mut(id);
                if data.size_dirty && ask() {
                    data.disk.resize(data.cache.len(), 0);
                }
                for block in std::mem::take(&mut data.dirty) {
                    if ask() {
                        let torn = whole.is_none() && !ask();
                        let bytes = if torn { BLOCK / 2 } else { BLOCK };
                        copy_block(&data.cache, &mut data.disk, block as usize, bytes);
                    }
                }
            }
        }
        for id in ids {
            if matches!(&self.inode(id).kind, Kind::File(data) if data.cache != data.disk) {
                let identity = self.stat(id).identity;
                self.torn.insert((identity.inode, identity.mtime));
            }
            let inode = self.edit(id);
            inode.links = 0;
            // Bytes do not come without the times of their writing.
            inode.disk_ctime = inode.disk_ctime.max(inode.mtime);
            inode.ctime = inode.disk_ctime;
            inode.sealed = false;
            inode.busy = false;
            match &mut inode.kind {
                Kind::File(data) => {
                    data.cache = data.disk.clone();
                    data.size_dirty = false;
                    data.lied = false;
                }
                Kind::Dir(entries) => entries.cache = entries.disk.clone(),
            }
        }
        self.read_only.clear();
        self.boot += 1;
        self.forget_unreachable();
        for role in self.roots.clone().into_keys() {
            for (_, id) in self.files(role, false) {
                self.edit(id).links += 1;
            }
        }
        for id in self.uploaded(false) {
            let inode = self.edit(id);
            inode.promised = true;
            inode.withdrawn = false;
        }
    }

    /// The process is gone, and with it every file that only it held open.
    pub fn kill(&mut self) {
        let ids: Vec<Id> = self.inodes.keys().copied().collect();
        for id in ids {
            if self.inode(id).sealed {
                self.edit(id).sealed = false;
            }
        }
        self.forget_unreachable();
    }

    fn forget_unreachable(&mut self) {
        let mut reached: BTreeSet<Id> = BTreeSet::new();
        let mut todo: Vec<Id> = self.roots.values().copied().collect();
        todo.extend(
            self.pending
                .iter()
                .filter_map(|op| Some(op.add.as_ref()?.2)),
        );
        while let Some(id) = todo.pop() {
            if reached.insert(id)
                && let Some(entries) = self.entries(id)
            {
                todo.extend(entries.cache.values().chain(entries.disk.values()));
            }
        }
        let gone: Vec<Id> = self
            .inodes
            .keys()
            .copied()
            .filter(|id| !reached.contains(id))
            .collect();
        for id in gone {
            self.version += 1;
            let inode = self.inodes.remove(&id).expect("it was there");
            if let Some((_, free)) = self.numbers.get_mut(&inode.fs) {
                free.push(inode.number);
            }
        }
    }

    /// An uploader syncs a file and every directory above it.
    pub fn promise(&mut self, role: Role, path: &Path) {
        let mut dirs = vec![self.roots[&role]];
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            let last = *dirs.last().expect("the root");
            let Some(id) = self.child(last, name, false) else {
                return;
            };
            dirs.push(id);
        }
        let file = dirs.pop().expect("the file");
        if self.read_only.contains(&self.inode(file).fs) {
            return;
        }
        self.sync_data(file);
        for dir in dirs {
            self.sync_dir(dir);
        }
        let durable = self.find(role, path, true) == Some(file) && self.is_durable(file);
        self.edit(file).promised |= durable;
    }

    /// Everything that matters of a state, for comparisons: what is seen, what is durable, what is pending.
    pub fn hash(&self, into: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        for (id, inode) in &self.inodes {
            (id, inode.number, inode.role, inode.links, inode.origin).hash(into);
            (inode.promised, inode.withdrawn, inode.mtime, inode.ctime).hash(into);
            match &inode.kind {
                Kind::File(data) => {
                    (&data.cache, &data.disk, &data.dirty, data.size_dirty).hash(into)
                }
                Kind::Dir(entries) => (&entries.cache, &entries.disk).hash(into),
            }
        }
        for op in &self.pending {
            (&op.add, &op.remove).hash(into);
        }
        self.read_only.hash(into);
    }

    /// What processes see, in words, for comparisons that people read.
    pub fn tree(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for &role in self.roots.keys() {
            for (path, id) in self.files(role, false) {
                let inode = self.inode(id);
                let bytes = String::from_utf8_lossy(&self.data(id).cache).into_owned();
                lines.push(format!(
                    "{role:?}/{} inode {} links {} {bytes:?}",
                    path.display(),
                    inode.number,
                    inode.links
                ));
            }
        }
        lines
    }
}

fn copy_block(from: &[u8], to: &mut [u8], block: usize, bytes: usize) {
    let start = block * BLOCK;
    let end = (start + bytes).min(from.len()).min(to.len());
    if start < end {
        to[start..end].copy_from_slice(&from[start..end]);
    }
}

fn timestamp(ticks: u64) -> Timestamp {
    Timestamp {
        seconds: 1_700_000_000 + (ticks / 1_000_000_000) as i64,
        nanos: (ticks % 1_000_000_000) as u32,
    }
}

// ---- events ----

/// Kinds of operations, as far as faults tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Look,
    Open,
    Read,
    MakeDir,
    Create,
    Rename,
    RenameAcross,
    Link,
    Unlink,
    Write,
    Reserve,
    Sync,
    Commit,
}

/// How a process ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    Kill,
    Cut(u64),
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The next sync fails.
    Sync,
    /// The next read or opening of a file fails.
    Read,
    /// The next look at a name, a file or a directory fails.
    Look,
    /// The next making of a name or of room for bytes fails.
    Make,
    /// Nothing can be allocated for so many operations, or until somebody has rested.
    Full(u32),
    /// Nothing can be opened for so many operations.
    Descriptors(u32),
    /// The next write gets half way.
    ShortWrite,
    /// The next rename between directories: EXDEV.
    OtherFilesystem,
    /// The next rename or removal: EPERM.
    Denied,
    /// The next commit fails, and is in the ledger or not.
    Commit,
}

/// What happens between two events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    Crash(Crash),
    Fault(Fault),
    /// A writer opens the n-th file of the batch and changes it.
    Write(u16),
    /// The n-th file in staging is taken away by its uploader.
    Withdraw(u16),
    /// A new file is renamed over the n-th in staging.
    Replace(u16),
    /// Who has opened it: nobody gets a lease on the n-th file in staging for a while.
    Hold(u16),
}

/// The payload of the unwinding that ends a simulated process.
pub struct Crashed;

/// Goes on while processes come and go.
pub struct State {
    pub image: Image,
    pub ledger: Tables,
    pub commits: u64,
    pub clock: Arc<SimClock>,
    pub random: Random,
    pub events: u64,
    pub due: Vec<(u64, Happening)>,
    faults: Vec<Fault>,
    /// Errors that this process was given.
    pub errors: u32,
    /// A sync or a commit failed: nothing may be acknowledged after it.
    pub sync_failed: bool,
    pub crash: Option<Crash>,
    pub violation: Option<String>,
    /// Files that readers hold open for the recorder.
    pub staged: Vec<Id>,
    /// The cache may show what the disk does not hold: the recorder must not believe it.
    pub suspect: bool,
    /// Files of which it may, having dropped what the cache holds, or because they are new.
    believed: BTreeSet<Id>,
    pub trace: bool,
    /// States before each event that had a new one.
    pub snapshots: Option<Vec<(Image, Tables)>>,
    /// What happens once a file that is named here is placed, or once its intent is committed.
    pub on_placed: Vec<Id>,
    pub withdraw_on_intents: Vec<(Role, PathBuf)>,
    /// How often bytes are synced before, and not after, what is done beside their sync.
    pub syncs_first_percent: u64,
    seen_version: (u64, u64),
}

impl State {
    pub fn new(seed: u64) -> State {
        State {
            image: Image::default(),
            ledger: Tables::default(),
            commits: 0,
            clock: Arc::new(SimClock::default()),
            random: Random::new(seed),
            events: 0,
            due: Vec::new(),
            faults: Vec::new(),
            errors: 0,
            sync_failed: false,
            crash: None,
            violation: None,
            staged: Vec::new(),
            suspect: false,
            believed: BTreeSet::new(),
            trace: false,
            snapshots: None,
            on_placed: Vec::new(),
            withdraw_on_intents: Vec::new(),
            syncs_first_percent: 50,
            seen_version: (u64::MAX, 0),
        }
    }

    /// A new process begins.
    pub fn begin_process(&mut self) {
        self.due.clear();
        self.faults.clear();
        self.errors = 0;
        self.sync_failed = false;
        self.crash = None;
        self.staged.clear();
        self.suspect = false;
        self.believed.clear();
        self.on_placed.clear();
        self.withdraw_on_intents.clear();
    }

    pub fn calm(&mut self) {
        self.due.clear();
        self.faults.clear();
    }

    pub fn violate(&mut self, what: String) -> ! {
        self.violation.get_or_insert(what);
        std::panic::resume_unwind(Box::new(Crashed))
    }

    /// Drops what the cache holds of a file.
    pub fn forget(&mut self, id: Id) {
        self.image.drop_clean(id);
        self.believe(id);
    }

    /// Takes what the cache shows of a file for what the disk holds.
    pub fn believe(&mut self, id: Id) {
        self.believed.insert(id);
    }

    /// One event. The error is what the kernel answers instead of doing it.
    pub fn event(&mut self, op: Op, what: impl FnOnce() -> String) -> Option<Errno> {
        self.events += 1;
        if self.trace {
            println!("{:>6} {}", self.events, what());
        }
        if let Some(snapshots) = &mut self.snapshots {
            let version = (self.image.version(), self.commits);
            if version != self.seen_version {
                self.seen_version = version;
                snapshots.push((self.image.clone(), self.ledger.clone()));
            }
        }
        while let Some(at) = self.due.iter().position(|(due, _)| *due <= self.events) {
            let (_, happening) = self.due.remove(at);
            self.happen(happening);
        }
        let errno = self.fault(op)?;
        self.errors += 1;
        if self.trace {
            println!("       fails with {errno:?}");
        }
        Some(errno)
    }

    pub fn happen(&mut self, happening: Happening) {
        if self.trace {
            println!("       {happening:?}");
        }
        match happening {
            Happening::Crash(crash) => {
                self.crash = Some(crash);
                std::panic::resume_unwind(Box::new(Crashed));
            }
            Happening::Fault(fault) => self.faults.push(fault),
            Happening::Write(nth) => {
                let open: Vec<Id> = self
                    .staged
                    .iter()
                    .copied()
                    .filter(|&id| !self.image.is_sealed(id) && !self.image.is_leaving(id))
                    .collect();
                if let Some(&id) = open.get(usize::from(nth) % open.len().max(1)) {
                    self.image
                        .overwrite(id, format!("written by event {}", self.events).as_bytes());
                }
            }
            Happening::Withdraw(nth) => {
                if let Some((role, path)) = self.nth_staged(nth) {
                    crate::upload::remove(&mut self.image, role, &path);
                }
            }
            Happening::Replace(nth) => {
                if let Some((role, path)) = self.nth_staged(nth) {
                    let bytes = format!("new at event {}", self.events);
                    crate::upload::put(&mut self.image, role, &path, bytes.as_bytes());
                }
            }
            Happening::Hold(nth) => {
                if let Some((role, path)) = self.nth_staged(nth)
                    && let Some(id) = self.image.find(role, &path, false)
                {
                    let identity = self.image.stat(id).identity;
                    self.image.touched.insert((identity.inode, identity.mtime));
                    let inode = self.image.edit(id);
                    inode.busy = true;
                    inode.writers += 1;
                }
            }
        }
    }

    fn nth_staged(&self, nth: u16) -> Option<(Role, PathBuf)> {
        let files = crate::upload::visible(&self.image);
        let at = usize::from(nth) % files.len().max(1);
        files.into_iter().nth(at)
    }

    fn fault(&mut self, op: Op) -> Option<Errno> {
        let at = self.faults.iter().position(|fault| match fault {
            Fault::Sync => op == Op::Sync,
            Fault::Read => matches!(op, Op::Read | Op::Open),
            Fault::Look => op == Op::Look,
            Fault::Make => matches!(op, Op::MakeDir | Op::Create | Op::Link | Op::Reserve),
            Fault::Full(_) => matches!(
                op,
                Op::MakeDir
                    | Op::Create
                    | Op::Rename
                    | Op::RenameAcross
                    | Op::Link
                    | Op::Write
                    | Op::Reserve
            ),
            Fault::Descriptors(_) => matches!(op, Op::Open | Op::Create),
            Fault::ShortWrite => op == Op::Write,
            Fault::OtherFilesystem => op == Op::RenameAcross,
            Fault::Denied => matches!(op, Op::Rename | Op::RenameAcross | Op::Unlink),
            Fault::Commit => op == Op::Commit,
        })?;
        let errno = match &mut self.faults[at] {
            Fault::Full(left) => {
                // A rest of the recorder is when space comes back, sooner or later.
                *left =
                    left.saturating_sub(1 + 3 * self.clock.rests.swap(0, Ordering::Relaxed) as u32);
                if *left > 0 {
                    return Some(if *left % 2 == 0 {
                        Errno::NOSPC
                    } else {
                        Errno::DQUOT
                    });
                }
                Errno::NOSPC
            }
            Fault::Descriptors(left) => {
                *left = left.saturating_sub(1);
                if *left > 0 {
                    return Some(Errno::MFILE);
                }
                Errno::MFILE
            }
            Fault::Sync
            | Fault::Read
            | Fault::Look
            | Fault::Make
            | Fault::ShortWrite
            | Fault::Commit => Errno::IO,
            Fault::OtherFilesystem => Errno::XDEV,
            Fault::Denied => Errno::PERM,
        };
        self.faults.remove(at);
        Some(errno)
    }

    /// The journal aborts.
    fn abort_journal(&mut self, fs: u8) {
        self.sync_failed = true;
        self.image.read_only.insert(fs);
    }
}

/// A clock that is set by hand. Resting makes no time pass but is noted.
#[derive(Debug, Default)]
pub struct SimClock {
    pub micros: AtomicI64,
    pub rests: AtomicU64,
}

impl Clock for SimClock {
    fn now_micros(&self) -> i64 {
        self.micros.load(Ordering::Relaxed)
    }

    fn rest(&self, _duration: Duration) {
        self.rests.fetch_add(1, Ordering::Relaxed);
    }
}

// ---- the recorder's view ----

#[derive(Clone)]
pub struct SimDisk(pub Rc<RefCell<State>>);

#[derive(Debug, Clone, Copy)]
pub struct SimFile {
    pub id: Id,
    lease: Option<u32>,
}

impl SimFile {
    pub fn unleased(id: Id) -> SimFile {
        SimFile { id, lease: None }
    }
}

impl SimDisk {
    /// Runs one event and, unless it fails, what it does.
    fn run<T>(
        &self,
        op: Op,
        what: impl FnOnce(&State) -> String,
        act: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> io::Result<T> {
        let mut state = self.0.borrow_mut();
        let state = &mut *state;
        let what = state.trace.then(|| what(state));
        if let Some(errno) = state.event(op, || what.unwrap_or_default()) {
            return Err(errno.into());
        }
        Ok(act(state)?)
    }

    /// Runs one event that makes the bytes of these files durable.
    fn sync(&self, what: &str, files: &[Id]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let state = &mut *state;
        if let Some(errno) = state.event(Op::Sync, || format!("{what} {files:?}")) {
            state.sync_failed = true;
            // They run side by side: the others may have got through.
            let failed = state.random.below(files.len().max(1) as u64) as usize;
            for (at, &id) in files.iter().enumerate() {
                if at == failed || state.random.percent(30) {
                    state.image.fail_data(id);
                } else if state.random.percent(50) {
                    state.image.sync_data(id);
                }
            }
            return Err(errno.into());
        }
        for &id in files {
            if state.image.read_only.contains(&state.image.inode(id).fs) {
                state.sync_failed = true;
                state.errors += 1;
                return Err(Errno::IO.into());
            }
            state.image.sync_data(id);
        }
        Ok(())
    }

    fn sync_names(&self, what: &str, dir: Id, all: bool) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let state = &mut *state;
        let fs = state.image.inode(dir).fs;
        let failed = state.event(Op::Sync, || format!("{what} {dir}"));
        if let Some(errno) = failed {
            if all {
                // Some bytes did not get there; which, nobody says.
                for id in state.image.files_of(fs) {
                    if state.random.percent(50) {
                        state.image.fail_data(id);
                    }
                }
            }
            state.abort_journal(fs);
            return Err(errno.into());
        }
        if state.image.read_only.contains(&fs) {
            state.sync_failed = true;
            state.errors += 1;
            return Err(Errno::IO.into());
        }
        match all {
            true => state.image.sync_filesystem(fs),
            false => state.image.sync_dir(dir),
        }
        Ok(())
    }
}

impl Disk for SimDisk {
    type Dir = Id;
    type File = SimFile;

    fn open_dir(&self, root: &Id, path: &Path) -> io::Result<Id> {
        self.run(
            Op::Look,
            |_| format!("open_dir {root} {}", path.display()),
            |state| {
                let mut dir = *root;
                for name in path.iter() {
                    dir = state.image.child(dir, name, false).ok_or(Errno::NOENT)?;
                    if state.image.entries(dir).is_none() {
                        return Err(Errno::NOTDIR);
                    }
                }
                Ok(dir)
            },
        )
    }

    fn make_dir(&self, parent: &Id, name: &OsStr) -> io::Result<()> {
        self.run(
            Op::MakeDir,
            |_| format!("make_dir {parent} {name:?}"),
            |state| {
                state.image.make_dir(*parent, name, Origin::Recorder)?;
                Ok(())
            },
        )
    }

    fn list(&self, dir: &Id) -> io::Result<Vec<OsString>> {
        self.run(
            Op::Look,
            |_| format!("list {dir}"),
            |state| {
                let entries = state.image.entries(*dir).ok_or(Errno::NOTDIR)?;
                Ok(entries.cache.keys().map(|name| (**name).into()).collect())
            },
        )
    }

    fn sync_dir(&self, dir: &Id) -> io::Result<()> {
        self.sync_names("sync_dir", *dir, false)
    }

    fn stat(&self, dir: &Id, name: &OsStr) -> io::Result<Option<FileStat>> {
        self.run(
            Op::Look,
            |state| {
                format!(
                    "stat {dir} {name:?} -> {:?}",
                    state.image.child(*dir, name, false)
                )
            },
            |state| {
                let found = state.image.child(*dir, name, false);
                Ok(found.map(|id| state.image.stat(id)))
            },
        )
    }

    fn rename(&self, from: &Id, old: &OsStr, to: &Id, new: &OsStr) -> io::Result<()> {
        let op = {
            let state = self.0.borrow();
            let across = state.image.inode(*from).role != state.image.inode(*to).role;
            if across { Op::RenameAcross } else { Op::Rename }
        };
        self.run(
            op,
            |_| format!("rename {from} {old:?} to {to} {new:?}"),
            |state| {
                let id = state.image.child(*from, old, false);
                state.image.rename(*from, old, *to, new)?;
                state.placed(id);
                Ok(())
            },
        )
    }

    fn link(&self, file: &SimFile, to: &Id, name: &OsStr) -> io::Result<()> {
        self.run(
            Op::Link,
            |_| format!("link {} to {to} {name:?}", file.id),
            |state| {
                state.image.link(file.id, *to, name)?;
                state.placed(Some(file.id));
                Ok(())
            },
        )
    }

    fn unlink(&self, dir: &Id, name: &OsStr) -> io::Result<()> {
        self.run(
            Op::Unlink,
            |_| format!("unlink {dir} {name:?}"),
            |state| state.image.unlink(*dir, name),
        )
    }

    fn open(&self, dir: &Id, name: &OsStr) -> io::Result<SimFile> {
        self.run(
            Op::Open,
            |_| format!("open {dir} {name:?}"),
            |state| {
                let id = state.image.child(*dir, name, false).ok_or(Errno::NOENT)?;
                let inode = state.image.inode(id);
                if state.image.unleased.contains(&inode.role) {
                    return Ok(SimFile::unleased(id));
                }
                if inode.busy {
                    return Err(Errno::AGAIN);
                }
                let lease = Some(inode.writers);
                Ok(SimFile { id, lease })
            },
        )
    }

    fn create(&self, dir: &Id, name: &OsStr) -> io::Result<SimFile> {
        self.run(
            Op::Create,
            |_| format!("create {dir} {name:?}"),
            |state| {
                let id = match state.image.child(*dir, name, false) {
                    Some(id) if state.image.entries(id).is_some() => return Err(Errno::ISDIR),
                    Some(id) => {
                        // It is opened for writing.
                        state.image.refuse_read_only(state.image.inode(id).fs)?;
                        id
                    }
                    None => state.image.make_file(*dir, name, Origin::Recorder)?,
                };
                Ok(SimFile::unleased(id))
            },
        )
    }

    fn stat_file(&self, file: &SimFile) -> io::Result<FileStat> {
        self.run(
            Op::Look,
            |_| format!("stat_file {}", file.id),
            |state| Ok(state.image.stat(file.id)),
        )
    }

    fn read_at(&self, file: &SimFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.run(
            Op::Read,
            |_| format!("read_at {} {offset}", file.id),
            |state| {
                if state.suspect && !state.believed.contains(&file.id) {
                    state.violate(format!("file {} is read from a suspect cache", file.id));
                }
                let bytes = &state.image.data(file.id).cache;
                let rest = bytes.get(offset as usize..).unwrap_or_default();
                let length = rest.len().min(buffer.len());
                buffer[..length].copy_from_slice(&rest[..length]);
                Ok(length)
            },
        )
    }

    fn write_at(&self, file: &SimFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let state = &mut *state;
        let what = || format!("write_at {} {offset} +{}", file.id, bytes.len());
        let failed = state.event(Op::Write, what);
        if let Some(errno) = failed {
            let part = state.random.below(bytes.len() as u64 + 1) as usize;
            state.image.write(file.id, offset as usize, &bytes[..part]);
            return Err(errno.into());
        }
        state
            .image
            .refuse_read_only(state.image.inode(file.id).fs)?;
        state.image.write(file.id, offset as usize, bytes);
        Ok(())
    }

    fn reserve(&self, file: &SimFile, offset: u64, length: u64) -> io::Result<()> {
        self.run(
            Op::Reserve,
            |_| format!("reserve {} {offset} +{length}", file.id),
            |state| state.image.refuse_read_only(state.image.inode(file.id).fs),
        )
    }

    fn sync_files(&self, _root: &Id, files: &[&SimFile]) -> io::Result<()> {
        let ids: Vec<Id> = files.iter().map(|file| file.id).collect();
        self.sync("sync_files", &ids)
    }

    fn sync_files_beside<T>(
        &self,
        files: &[SyncedBeneath<'_, SimDisk>],
        meanwhile: impl FnOnce() -> T,
    ) -> (Result<(), (usize, io::Error)>, T) {
        let sync = || self.sync_files_of_roots(files);
        let syncs_first = {
            let mut state = self.0.borrow_mut();
            let percent = state.syncs_first_percent;
            state.random.percent(percent)
        };
        // A crash may come between them.
        if syncs_first {
            let synced = sync();
            // Who is at it does not know yet that it failed.
            let failed = std::mem::take(&mut self.0.borrow_mut().sync_failed);
            let done = meanwhile();
            self.0.borrow_mut().sync_failed |= failed;
            (synced, done)
        } else {
            let done = meanwhile();
            (sync(), done)
        }
    }

    fn sync_filesystem(&self, root: &Id) -> io::Result<()> {
        self.sync_names("sync_filesystem", *root, true)
    }

    fn forget_cached(&self, file: &SimFile) -> io::Result<()> {
        self.sync("forget_cached", &[file.id])?;
        self.0.borrow_mut().forget(file.id);
        Ok(())
    }

    fn is_leased(&self, file: &SimFile) -> bool {
        file.lease.is_some()
    }

    fn unbroken(&self, file: &SimFile) -> bool {
        let mut state = self.0.borrow_mut();
        let inode = state.image.inode(file.id);
        let unbroken = file.lease.is_none_or(|lease| lease == inode.writers);
        if inode.role == Role::Warehouse && inode.origin == Origin::Uploader && !inode.sealed {
            state.image.edit(file.id).sealed = true;
        }
        unbroken
    }
}

impl State {
    fn placed(&mut self, id: Option<Id>) {
        if self.on_placed.is_empty() {
            return;
        }
        let Some(id) = id.filter(|&id| self.image.inode(id).role == Role::Warehouse) else {
            return;
        };
        if let Some(at) = self.on_placed.iter().position(|&placed| placed == id) {
            self.on_placed.remove(at);
            self.image.overwrite(id, b"changed after it was placed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringest::io::{RealDisk, open};

    /// What both answer, as far as they can be compared.
    fn told<T: std::fmt::Debug>(answer: io::Result<T>) -> String {
        match answer {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("{:?}", Errno::from_io_error(&error)),
        }
    }

    fn seen(stat: Option<FileStat>) -> Option<(FileType, u32, u64)> {
        let stat = stat?;
        // Of a directory, filesystems count links and size as they like.
        match stat.kind {
            FileType::Directory => Some((stat.kind, 0, 0)),
            kind => Some((kind, stat.links, stat.identity.size)),
        }
    }

    /// One random operation on either disk, the same for the same numbers.
    fn act<D: Disk>(
        disk: &D,
        dirs: &mut Vec<D::Dir>,
        files: &mut Vec<D::File>,
        random: &mut Random,
    ) -> String {
        let names = ["a", "b", "c", "d"].map(OsStr::new);
        let at = |random: &mut Random, length: usize| random.below(length as u64) as usize;
        let dir = dirs[at(random, dirs.len())].clone();
        let to = dirs[at(random, dirs.len())].clone();
        let (name, new) = (names[at(random, 4)], names[at(random, 4)]);
        let file = at(random, files.len().max(1));
        let (offset, length) = (random.below(60), random.below(40) as usize);
        let bytes = vec![b'0' + (offset % 10) as u8; length];
        match random.below(13) {
            0 => told(disk.make_dir(&dir, name)),
            1 => {
                let path = Path::new(name).join(new);
                told(
                    disk.open_dir(&dir, if length < 20 { &path } else { Path::new(name) })
                        .map(|dir| dirs.push(dir)),
                )
            }
            2 => {
                let mut names = disk.list(&dir).unwrap_or_default();
                names.sort();
                format!("{names:?}")
            }
            3 | 4 => told(disk.stat(&dir, name).map(seen)),
            5 | 6 => match disk.stat(&dir, name) {
                // ringest moves no directories.
                Ok(Some(stat)) if stat.kind == FileType::Directory => String::new(),
                _ => told(disk.rename(&dir, name, &to, new)),
            },
            7 => told(disk.unlink(&dir, name)),
            8 => told(disk.create(&dir, name).map(|file| files.push(file))),
            9 => match files.get(file) {
                Some(file) => told(disk.write_at(file, &bytes, offset)),
                None => String::new(),
            },
            10 => match files.get(file) {
                Some(file) => {
                    let mut buffer = vec![0; 64];
                    let read = disk.read_at(file, &mut buffer, offset);
                    format!("{} {buffer:?}", told(read))
                }
                None => String::new(),
            },
            11 => match files.get(file) {
                Some(file) => told(disk.stat_file(file).map(|stat| seen(Some(stat)))),
                None => String::new(),
            },
            _ => match files.get(file) {
                Some(file) => told(
                    disk.reserve(file, offset, 1 + offset)
                        .and_then(|()| disk.sync_files(&dir, &[file])),
                ),
                None => told(disk.sync_dir(&dir)),
            },
        }
    }

    #[test]
    fn the_simulated_disk_agrees_with_the_kernel_as_long_as_nothing_fails() {
        let root = tempfile::tempdir().unwrap();
        for seed in 0..150 {
            let path = root.path().join(seed.to_string());
            std::fs::create_dir(&path).unwrap();
            let real = RealDisk {
                durable: false,
                syncfs: false,
                lease_signal: None,
            };
            let mut state = State::new(seed);
            state.image.add_root(Role::Warehouse, 0);
            let warehouse = state.image.roots[&Role::Warehouse];
            let sim = SimDisk(Rc::new(RefCell::new(state)));
            let mut theirs = (vec![Arc::new(open::root_dir(&path).unwrap())], Vec::new());
            let mut ours = (vec![warehouse], Vec::new());
            let (mut one, mut other) = (Random::new(seed), Random::new(seed));
            for step in 0..200 {
                let real = act(&real, &mut theirs.0, &mut theirs.1, &mut one);
                let sim = act(&sim, &mut ours.0, &mut ours.1, &mut other);
                assert_eq!(sim, real, "seed {seed}, step {step}");
            }
        }
    }
}
