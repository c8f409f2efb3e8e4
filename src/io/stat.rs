//! What the kernel says of a file.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};

/// File times have the granularity of a kernel tick: a change within this time after another may carry the same time stamp.
pub const TICK: Duration = Duration::from_millis(20);

/// A point in time as files carry it. Wider than 64-bit nanoseconds, since ext4 and xfs know years beyond 2262.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds within the second, 0 to 999,999,999.
    pub nanos: u32,
}

impl Timestamp {
    /// Nanoseconds since the epoch.
    pub fn as_nanos(self) -> i128 {
        i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanos)
    }
}

/// What tells one state of one file from another. Nothing but a cache key: content is the real identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// Device number; renumbered by reboots.
    pub device: u64,
    /// Inode number; reused by the filesystem.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of the content, as its writer may set it.
    pub mtime: Timestamp,
    /// Last change of anything, as the kernel sets it.
    pub ctime: Timestamp,
    /// When the inode was made; tells it from an earlier one with its number. Zero where the filesystem does not say.
    pub born: Timestamp,
}

impl Identity {
    /// Whether `self` is `other` but for its ctime, which a rename changes.
    pub fn same_but_ctime(&self, other: &Identity) -> bool {
        self.same_file(other) && self.size == other.size && self.mtime == other.mtime
    }

    /// Whether both are the same inode.
    pub fn same_file(&self, other: &Identity) -> bool {
        self.device == other.device && self.same_inode(other)
    }

    /// Whether both are the same inode of a filesystem whose device may have been renumbered since.
    pub fn same_inode(&self, other: &Identity) -> bool {
        let unknown = Timestamp::default();
        self.inode == other.inode
            && (self.born == other.born || self.born == unknown || other.born == unknown)
    }
}

/// One answer of `statx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// What the file is, and in which state.
    pub identity: Identity,
    /// Regular file, directory, …
    pub kind: FileType,
    /// Number of names.
    pub links: u32,
    /// Permission bits.
    pub mode: u32,
    /// Blocks of 512 bytes that are allocated.
    pub blocks: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl FileStat {
    /// Whether owner, group and permissions are the same.
    pub fn has_rights_of(&self, other: &FileStat) -> bool {
        (self.uid, self.gid, self.mode) == (other.uid, other.gid, other.mode)
    }

    /// Whether some of the file's bytes are not allocated.
    pub fn has_holes(&self) -> bool {
        self.blocks * 512 < self.identity.size
    }
}

const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Looks at `name` in `dir` without following a symbolic link. `None` when there is nothing.
pub fn stat_at(dir: impl AsFd, name: &OsStr) -> io::Result<Option<FileStat>> {
    match rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, WANTED) {
        Ok(statx) => Ok(Some(from_statx(&statx))),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Looks at an open file.
pub fn stat_fd(fd: impl AsFd) -> io::Result<FileStat> {
    Ok(from_statx(&rustix::fs::statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH,
        WANTED,
    )?))
}

fn from_statx(statx: &Statx) -> FileStat {
    let time = |t: rustix::fs::StatxTimestamp| Timestamp {
        seconds: t.tv_sec,
        nanos: t.tv_nsec,
    };
    FileStat {
        identity: Identity {
            device: rustix::fs::makedev(statx.stx_dev_major, statx.stx_dev_minor),
            inode: statx.stx_ino,
            size: statx.stx_size,
            mtime: time(statx.stx_mtime),
            ctime: time(statx.stx_ctime),
            // All zero where it is not known.
            born: time(statx.stx_btime),
        },
        kind: FileType::from_raw_mode(u32::from(statx.stx_mode)),
        links: statx.stx_nlink,
        mode: u32::from(statx.stx_mode) & 0o7777,
        blocks: statx.stx_blocks,
        uid: statx.stx_uid,
        gid: statx.stx_gid,
    }
}
