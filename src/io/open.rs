//! Opening what lies in a directory that others write to: always beneath a descriptor, never through a symbolic
//! link or a mount point, never blocking on a FIFO.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::stat::{self, FileStat};

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens a file for reading. ELOOP: a symbolic link is on the way; EXDEV: a mount point is, or the path escapes.
pub fn file_beneath(root: impl AsFd, path: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // Reading need not dirty the inode, but only its owner may ask for that.
    match open(root.as_fd(), path, flags | OFlags::NOATIME) {
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
            open(root, path, flags)
        }
        opened => opened,
    }
}

/// Opens a directory beneath `root`; `""` is `root` itself.
pub fn dir_beneath(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        OsStr::new(".")
    } else {
        path.as_os_str()
    };
    open(
        root,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
    )
}

/// Looks at a path beneath `root`. What a symbolic link or a mount point leads to is not there.
pub fn stat_beneath(root: impl AsFd, path: &Path) -> io::Result<Option<FileStat>> {
    let name = path.file_name().unwrap_or(OsStr::new("."));
    let parent = path.parent().unwrap_or(Path::new(""));
    if parent.as_os_str().is_empty() {
        return stat::stat_at(root, name);
    }
    match dir_beneath(root, parent) {
        Ok(dir) => stat::stat_at(&dir, name),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Opens a root directory by its path, which may lead through symbolic links: the operator chose it.
pub fn root_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens a file once more, for reading alone: offset and flags are the new descriptor's own, and it holds no lease.
///
/// # Errors
/// This user may not read it (any more), or there is no `/proc`.
pub fn again(file: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        proc_path(file),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Makes a directory and what is missing above it, each durable in its parent.
pub fn make_dirs(path: &Path) -> io::Result<()> {
    make(path, Mode::from_raw_mode(0o777)).map(drop)
}

/// The same, but for the last directory: if it is made here, it is 0700, whatever the umask.
pub fn make_private_dirs(path: &Path) -> io::Result<()> {
    match make(path, PRIVATE_DIR)? {
        true => Ok(rustix::fs::chmod(path, PRIVATE_DIR)?),
        false => Ok(()),
    }
}

/// Whether the directory was missing.
fn make(path: &Path, mode: Mode) -> io::Result<bool> {
    match rustix::fs::mkdir(path, mode) {
        Ok(()) => {}
        Err(error @ Errno::NOENT) => {
            make_dirs(path.parent().ok_or(error)?)?;
            rustix::fs::mkdir(path, mode)?;
        }
        Err(Errno::EXIST) if path.is_dir() => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    sync_dir(parent.unwrap_or(Path::new(".")))?;
    Ok(true)
}

/// The mode of files that nobody but ringest's user reads or writes, in octal: 0600.
pub const PRIVATE_FILE: Mode = Mode::from_raw_mode(0o600);
const PRIVATE_DIR: Mode = Mode::from_raw_mode(0o700);

/// Makes a file 0600, or a directory 0700: an earlier run, an umask or somebody's hand may have given it another mode. False,
/// and nothing is done, if it belongs to another user. A filesystem that has no modes keeps its own.
pub fn make_private(fd: impl AsFd) -> io::Result<bool> {
    let seen = rustix::fs::fstat(&fd)?;
    if seen.st_uid != rustix::process::geteuid().as_raw() {
        return Ok(false);
    }
    let wanted = match FileType::from_raw_mode(seen.st_mode) {
        FileType::Directory => PRIVATE_DIR,
        _ => PRIVATE_FILE,
    };
    if Mode::from_raw_mode(seen.st_mode) == wanted {
        return Ok(true);
    }
    match rustix::fs::fchmod(&fd, wanted) {
        Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ROFS) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = root_dir(path)?;
    rustix::fs::fsync(dir).map_err(|error| SyncFailed::mark(error.into()))
}

/// Marks an error as that of a sync, which is final.
#[derive(Debug, thiserror::Error)]
#[error("sync: {0}")]
pub struct SyncFailed(io::Error);

impl SyncFailed {
    /// The error of a sync, marked.
    pub fn mark(error: io::Error) -> io::Error {
        io::Error::other(SyncFailed(error))
    }

    /// Whether an error is marked.
    pub fn is(error: &io::Error) -> bool {
        error
            .get_ref()
            .is_some_and(|inner| inner.is::<SyncFailed>())
    }
}

fn open(root: impl AsFd, path: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    // EAGAIN: a rename elsewhere made the kernel unsure whether we stayed beneath (or, for long, somebody's lease).
    for _ in 0..16 {
        match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), BENEATH) {
            Err(Errno::INTR | Errno::AGAIN) => continue,
            opened => return Ok(opened?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// The path of a descriptor: where an inode can be linked from, or opened again, whatever its names are.
pub fn proc_path(fd: impl AsFd) -> OsString {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into()
}
