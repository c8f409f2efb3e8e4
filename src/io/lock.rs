//! Makes two instances on the same directories impossible, and lets nobody else keep one out.
//!
//! flock(2) needs no more than a descriptor, and a descriptor no more than the right to read. So state, warehouse and manifests are
//! locked by a file in them that nobody else can open ([`lock_own`]). A directory that others may read, and that has no such file, staging
//! above all, is locked itself, but its lock counts only if another instance holds it ([`lock_shared`]).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::trial::mutants;

/// A killed process can hold its locks for some milliseconds, while its ring is torn down.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time that an instance with the lock waits for one that began at the same moment to give up.
const PATIENCE_WITH_LOCK: Duration = Duration::from_secs(3);
const RETRY_REST: Duration = Duration::from_millis(10);

/// The lock of a state directory, beneath it.
pub const OF_STATE: &str = "lock";

/// Locks a directory of our own by the file `name` in it, for as long as what is returned is open. `Ok(None)`: somebody else has
/// it. The file is for its owner alone; [`make_own`] makes it.
///
/// # Errors
/// NotFound, and others of opening the file or of taking rights from others.
pub fn lock_own(dir: impl AsFd, name: &str) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let seen = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(seen.st_mode) != FileType::RegularFile {
        return Err(io::Error::other(format!("{name} is not a regular file")));
    }
    let own = Mode::RUSR | Mode::WUSR;
    if seen.st_mode & 0o077 != 0 && seen.st_uid == rustix::process::geteuid().as_raw() {
        rustix::fs::fchmod(&file, own)?;
    }
    Ok(lock(&file)?.then_some(file))
}

/// Makes an empty file for [`lock_own`], if it is not there.
///
/// # Errors
/// Of making it.
pub fn make_own(dir: impl AsFd, name: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let own = Mode::RUSR | Mode::WUSR;
    match rustix::fs::openat(&dir, name, flags | OFlags::CREATE | OFlags::EXCL, own) {
        Ok(made) => Ok(keep_to_owner(&made, dir)?),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives a file that was just made in a directory of our own rights for its owner alone. What root makes for another user's instance,
/// that one must be able to use: it becomes the directory's owner's.
///
/// # Errors
/// Of fchmod, fchown.
pub fn keep_to_owner(made: impl AsFd, dir: impl AsFd) -> io::Result<()> {
    let owner = rustix::fs::fstat(dir)?.st_uid;
    rustix::fs::fchmod(&made, Mode::RUSR | Mode::WUSR)?;
    if rustix::process::geteuid().is_root() && owner != 0 {
        rustix::fs::fchown(&made, Some(rustix::fs::Uid::from_raw(owner)), None)?;
    }
    Ok(())
}

/// Whether a directory is locked so. False where we may not look.
pub fn is_locked(dir: &Path, name: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // The lock goes with the descriptor, at once.
    rustix::fs::open(dir.join(name), flags, Mode::empty()).is_ok_and(|file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    })
}

/// Opens a directory that nobody else can open, and locks it, for as long as the descriptor is open. `Ok(None)`: somebody else has it.
///
/// # Errors
/// Of opening it.
pub fn lock_dir(path: &Path) -> io::Result<Option<OwnedFd>> {
    let dir = super::open::root_dir(path)?;
    Ok(lock(&dir)?.then_some(dir))
}

/// Locks what is open, for as long as it is. False: somebody else has it.
///
/// # Errors
/// Filesystems without locks.
pub fn lock(fd: impl AsFd) -> io::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match try_lock(&fd)? {
            true => return Ok(true),
            false if mutants::on("locks_ignored") => return Ok(true),
            false if Instant::now() < deadline => std::thread::sleep(RETRY_REST),
            false => return Ok(false),
        }
    }
}

fn try_lock(fd: impl AsFd) -> io::Result<bool> {
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A directory that others may read, and that no other instance uses.
#[derive(Debug)]
pub struct SharedLock {
    /// The directory.
    pub dir: OwnedFd,
    /// A memory file, named after the directory's numbers, which other instances of the same user find beneath `/proc`.
    pub record: OwnedFd,
    /// Whether somebody else, who is no instance, holds its lock.
    pub locked_by_others: bool,
}

/// Opens a directory that others may read for this process alone, for as long as what is returned is open. `Ok(None)`: another instance uses
/// it. Anybody who may read the directory may lock it; a lock that no instance of the same user holds keeps nobody out.
///
/// # Errors
/// Of opening it.
pub fn lock_shared(path: &Path) -> io::Result<Option<SharedLock>> {
    let dir = super::open::root_dir(path)?;
    let seen = rustix::fs::fstat(&dir)?;
    let name = format!("ringest-lock-{}-{}", seen.st_dev, seen.st_ino);
    // Before the lock: who fails to get that has to find out why.
    let record = rustix::fs::memfd_create(&name, MemfdFlags::CLOEXEC)?;
    let began = Instant::now();
    loop {
        let locked = try_lock(&dir)? || mutants::on("locks_ignored");
        let taken = match others_with(&name) {
            Some(taken) => taken && !mutants::on("locks_ignored"),
            // Without /proc nobody can tell.
            None => !locked,
        };
        let patience = match locked {
            true => PATIENCE_WITH_LOCK,
            false => PATIENCE,
        };
        match (locked, taken) {
            (true, false) => {}
            _ if began.elapsed() < patience => {
                std::thread::sleep(RETRY_REST);
                continue;
            }
            (_, true) => return Ok(None),
            (false, false) if mutants::on("strangers_lock_counts") => return Ok(None),
            (false, false) => {}
        }
        return Ok(Some(SharedLock {
            dir,
            record,
            locked_by_others: !locked,
        }));
    }
}

/// Whether another process of this program and user has a memory file of that name, or this one has two. Whatever strangers run, setuid
/// programs included, is of another user or another program. `None`: `/proc` cannot be looked at.
fn others_with(name: &str) -> Option<bool> {
    let own_uid = rustix::process::geteuid().as_raw();
    let own_pid = std::process::id().to_string();
    let own_program = program_of(Path::new("/proc/self"))?;
    let link = format!("/memfd:{name} (deleted)");
    let records = |process: &Path| {
        let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten();
        let links = descriptors
            .flatten()
            .map(|it| std::fs::read_link(it.path()));
        links
            .filter(|it| it.as_ref().is_ok_and(|it| it == Path::new(&link)))
            .count()
    };
    if records(Path::new("/proc/self")) > 1 {
        return Some(true);
    }
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let others = processes.filter(|entry| {
        let name = entry.file_name();
        name.as_bytes().first().is_some_and(u8::is_ascii_digit) && *name != *own_pid
    });
    let mut ours = others.map(|entry| entry.path()).filter(|process| {
        std::fs::metadata(process).is_ok_and(|it| it.uid() == own_uid)
            && program_of(process).is_some_and(|program| program == own_program)
    });
    Some(ours.any(|process| records(&process) > 0))
}

/// The file name of the program that a process runs, whether or not it has been replaced since.
fn program_of(process: &Path) -> Option<PathBuf> {
    let program = std::fs::read_link(process.join("exe")).ok()?;
    let name = program.file_name()?.as_bytes();
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    Some(OsStr::from_bytes(name).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_is_locked_once_and_free_again_when_it_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_dir(dir.path()).unwrap();
        assert!(first.is_some());
        assert!(lock_dir(dir.path()).unwrap().is_none());
        drop(first);
        assert!(lock_dir(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_directory_of_our_own_is_locked_by_a_file_that_nobody_else_can_open() {
        let root = tempfile::tempdir().unwrap();
        let dir = super::super::open::root_dir(root.path()).unwrap();
        let missing = lock_own(&dir, OF_STATE).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        make_own(&dir, OF_STATE).unwrap();
        let path = root.path().join(OF_STATE);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        make_own(&dir, OF_STATE).unwrap();
        let first = lock_own(&dir, OF_STATE).unwrap();
        assert!(first.is_some());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(is_locked(root.path(), OF_STATE));
        // A lock on the directory itself is anybody's, and keeps nobody out.
        let strangers = lock_dir(root.path()).unwrap();
        assert!(strangers.is_some());
        assert!(lock_own(&dir, OF_STATE).unwrap().is_none());
        drop(first);
        assert!(!is_locked(root.path(), OF_STATE));
        assert!(lock_own(&dir, OF_STATE).unwrap().is_some());
    }

    #[test]
    fn a_lock_that_no_instance_holds_keeps_nobody_out_of_a_staging_directory() {
        let dir = tempfile::tempdir().unwrap();
        let lock = lock_shared(dir.path()).unwrap().expect("free");
        assert!(!lock.locked_by_others);
        assert!(lock_shared(dir.path()).unwrap().is_none());
        drop(lock);
        let strangers = super::super::open::root_dir(dir.path()).unwrap();
        rustix::fs::flock(&strangers, FlockOperation::NonBlockingLockExclusive).unwrap();
        let lock = lock_shared(dir.path())
            .unwrap()
            .expect("no instance has it");
        assert!(lock.locked_by_others);
    }
}
