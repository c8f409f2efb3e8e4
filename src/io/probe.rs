//! What this kernel and these filesystems can do, found out by doing it. Every probe leaves the
//! directory as it was; its file begins with a dot, so that nobody ingests it.

use std::borrow::Cow;
use std::ffi::{CStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process;

use io_uring::IoUring;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{
    Access, AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, StatFs,
};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::Serialize;

use super::lease as leases;

/// A filesystem by its type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FsKind {
    /// As `mount` would call it, or its magic in hex.
    pub name: Cow<'static, str>,
    /// `f_type` of statfs.
    pub magic: u64,
    /// Files can change without this kernel seeing it: no inotify, no leases to rely on. FUSE counts,
    /// since nobody knows what is behind it.
    pub network: bool,
    /// overlayfs: syncfs can hide an error.
    pub overlay: bool,
    /// FUSE, virtiofs included: syncfs can hide an error.
    pub fuse: bool,
}

/// Reliability of a filesystem's ctimes as evidence that a file is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ctimes {
    /// A change after a look always makes another ctime (multigrain timestamps).
    Exact,
    /// A change within the same kernel tick may not.
    Coarse,
    /// Not every change does: a store through a mapping may leave them as they are.
    #[default]
    Silent,
}

impl FsKind {
    /// Reliability of ctimes here. ext4, xfs and btrfs change them when a page that was written back is stored to again; tmpfs does not,
    /// and nobody knows about the others. Multigrain timestamps came with Linux 6.13, for those three.
    pub fn ctimes(&self) -> Ctimes {
        const TELLING: [u64; 3] = [0xef53, 0x5846_5342, BTRFS];
        if !TELLING.contains(&self.magic) {
            return Ctimes::Silent;
        }
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        let mut numbers = release.split('.').map(|part| {
            let digits = part
                .find(|it: char| !it.is_ascii_digit())
                .unwrap_or(part.len());
            part[..digits].parse::<u32>().unwrap_or(0)
        });
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        match version >= (6, 13) {
            true => Ctimes::Exact,
            false => Ctimes::Coarse,
        }
    }

    /// Whether a syncfs that says OK has synced everything.
    pub fn trusts_syncfs(&self) -> bool {
        !self.overlay && !self.fuse
    }
}

/// `f_type` of btrfs.
pub const BTRFS: u64 = 0x9123_683e;
/// `f_type` of overlayfs.
pub const OVERLAY: u64 = 0x794c_7630;
const FUSE: u64 = 0x6573_5546;

/// From `include/uapi/linux/magic.h` and statfs(2): the magic, the name, whether it is a network.
/// ext2 and ext3 share the magic of ext4 and are driven by it.
const MAGICS: &[(u64, &str, bool)] = &[
    (0xef53, "ext4", false),
    (0x5846_5342, "xfs", false),
    (BTRFS, "btrfs", false),
    (0x0102_1994, "tmpfs", false),
    (OVERLAY, "overlay", false),
    (0x2fc1_2fc1, "zfs", false),
    (0xf2f5_2010, "f2fs", false),
    (0xca45_1a4e, "bcachefs", false),
    (0x8584_58f6, "ramfs", false),
    (0x4d44, "vfat", false),
    (0x2011_bab0, "exfat", false),
    (0x7366_746e, "ntfs3", false),
    (0x3153_464a, "jfs", false),
    (0x3434, "nilfs2", false),
    (0x7371_7368, "squashfs", false),
    (0xf15f, "ecryptfs", false),
    (FUSE, "fuse", true),
    (0x6969, "nfs", true),
    (0xff53_4d42, "cifs", true),
    (0xfe53_4d42, "smb2", true),
    (0x517b, "smb", true),
    (0x0102_1997, "9p", true),
    (0x00c3_6400, "ceph", true),
    (0x5346_414f, "afs", true),
    (0x0116_1970, "gfs2", true),
    (0x7461_636f, "ocfs2", true),
    (0x0bd0_0bd0, "lustre", true),
    (0x4750_4653, "gpfs", true),
    (0x1983_0326, "beegfs", true),
    (0x786f_4256, "vboxsf", true),
];

/// The type of the filesystem that an open file lies on, as in [`FsKind::magic`].
///
/// # Errors
/// Of fstatfs.
pub fn magic_of(fd: impl AsFd) -> io::Result<u64> {
    Ok(magic(&rustix::fs::fstatfs(fd)?))
}

fn magic(statfs: &StatFs) -> u64 {
    // The upper half is a sign extension where there is one.
    statfs.f_type as u64 & 0xffff_ffff
}

/// The filesystem a path lies on.
///
/// # Errors
/// Of statfs: the path is not there or cannot be reached.
pub fn filesystem(path: &Path) -> io::Result<FsKind> {
    let magic = magic(&rustix::fs::statfs(path)?);
    let (name, network) = match MAGICS.iter().find(|known| known.0 == magic) {
        Some(&(_, name, network)) => (name.into(), network),
        None => (format!("{magic:#x}").into(), false),
    };
    Ok(FsKind {
        name,
        magic,
        network,
        overlay: magic == OVERLAY,
        fuse: magic == FUSE,
    })
}

/// Whether files of an input can be renamed into the warehouse, without replacing. Really renames
/// one: EXDEV also comes between bind mounts, subvolumes and quotas of one filesystem.
///
/// # Errors
/// A directory that is missing or cannot be written.
pub fn rename_works(input: &Path, warehouse: &Path) -> io::Result<bool> {
    for _ in 0..RENAME_TRIES {
        let here = match ProbeFile::new(input) {
            Ok((here, _)) => here,
            // Nobody can try on a full disk.
            Err(error) if crate::pipeline::is_no_room(&error) => break,
            Err(error) => return Err(error),
        };
        let there = ProbeFile::of(warehouse)?;
        match rustix::fs::renameat_with(CWD, &here.0, CWD, &there.0, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(true),
            // Some filesystems rename, but not without replacing.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => return Ok(false),
            // One filesystem, or it would have said so first.
            Err(Errno::NOSPC | Errno::DQUOT) => return Ok(true),
            // Somebody who may write there took it away.
            Err(Errno::NOENT) if input.is_dir() && warehouse.is_dir() => {}
            Err(error) => return Err(error.into()),
        }
    }
    // A rename that does not work after all sends each file back to be copied.
    let device = |path| rustix::fs::stat(path).map(|seen| seen.st_dev);
    Ok(device(input)? == device(warehouse)?)
}

/// Whether readers can have a ring.
///
/// # Errors
/// Why not, and who decides that.
pub fn uring() -> Result<(), String> {
    let Err(error) = IoUring::new(8) else {
        return Ok(());
    };
    let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    Err(match (error.raw_os_error(), setting.trim()) {
        (Some(libc::EPERM), "2") => "forbidden by sysctl kernel.io_uring_disabled=2".into(),
        (Some(libc::EPERM), "1") => {
            "forbidden by sysctl kernel.io_uring_disabled=1 to processes outside of \
             kernel.io_uring_group without CAP_SYS_ADMIN"
                .into()
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            format!("forbidden by a seccomp filter or a security module, as in containers: {error}")
        }
        (Some(libc::ENOSYS), _) => {
            "not in this kernel, or hidden by a seccomp filter, as in containers".into()
        }
        (Some(libc::ENOMEM), _) => format!("too little memory may be locked (ulimit -l): {error}"),
        _ => error.to_string(),
    })
}

/// Whether paths can be opened beneath a directory without leaving it (openat2, kernel 5.6).
///
/// # Errors
/// Why not.
pub fn openat2() -> Result<(), String> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat2(CWD, ".", flags, Mode::empty(), resolve) {
        Ok(_) => Ok(()),
        Err(Errno::NOSYS) => {
            Err("not in this kernel (5.6 has it), or hidden by a seccomp filter".into())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Whether the filesystem of a directory grants read leases on files of our own.
///
/// # Errors
/// Why not.
pub fn lease(directory: &Path) -> Result<(), String> {
    let try_lease = || {
        // A file made for reading only: our own writing would be in the way of the lease.
        let (_probe, file) = ProbeFile::new(directory)?;
        leases::set_read_lease(file.as_fd(), 0)?;
        leases::release(file.as_fd())
    };
    try_lease().map_err(|error: io::Error| match error.raw_os_error() {
        Some(libc::EINVAL) => "this filesystem has no leases".into(),
        _ => error.to_string(),
    })
}

/// Whether leases are granted on files of other users too: CAP_LEASE is in effect.
pub fn lease_on_files_of_others() -> bool {
    const CAP_LEASE: u32 = 28;
    has_capability(CAP_LEASE)
}

/// Whether files can be given away and taken: CAP_CHOWN is in effect.
pub fn change_of_owner() -> bool {
    const CAP_CHOWN: u32 = 0;
    has_capability(CAP_CHOWN)
}

/// Whether files of other users can be treated as our own: CAP_FOWNER is in effect.
pub fn owner_of_all() -> bool {
    const CAP_FOWNER: u32 = 3;
    has_capability(CAP_FOWNER)
}

fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> number & 1 == 1)
}

/// Whether files can be made in a directory that get their name only when they are whole.
///
/// # Errors
/// EOPNOTSUPP or EISDIR where there is no O_TMPFILE; else as for any new file.
pub fn unnamed_file(directory: &Path) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR).map(drop)?)
}

/// Makes a file in a directory and removes it: read-only mounts, quotas and access lists say no in
/// ways that permission bits do not show.
///
/// # Errors
/// Of the first operation that failed.
pub fn writable(directory: &Path) -> io::Result<()> {
    fs::read_dir(directory)?;
    ProbeFile::new(directory).map(drop)
}

/// Whether the kernel would let us make a directory in this one; touches nothing.
///
/// # Errors
/// EACCES, EROFS and the like.
pub fn may_make_directories(directory: &Path) -> io::Result<()> {
    Ok(rustix::fs::accessat(
        CWD,
        directory,
        Access::WRITE_OK | Access::EXEC_OK,
        AtFlags::EACCESS,
    )?)
}

/// Removes probes that a killed process left in a directory: without it they would lie there for good. To be called
/// before the caller's own probes. Best effort: what stays is tried again at the next start and is ingested by nobody.
pub fn sweep(directory: impl AsFd) {
    let directory = directory.as_fd();
    let Ok(entries) = Dir::read_from(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if is_left_over(name) && is_empty_file(directory, name) {
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
        }
    }
}

/// Whether a name is that of a probe whose process is gone, or was another one with our own id. Of probes without a tag, too, as
/// they were once called.
fn is_left_over(name: &CStr) -> bool {
    let Some((pid, tag)) = name
        .to_str()
        .ok()
        .and_then(|name| name.strip_prefix(PREFIX))
        .and_then(|rest| rest.split_once('-'))
    else {
        return false;
    };
    let is_tag = u64::from_str_radix(tag, 16).is_ok();
    let (Ok(pid), true) = (pid.parse::<i32>(), is_tag) else {
        return false;
    };
    // Not by way of /proc, which may hide the processes of others: a `check` of theirs is not to be disturbed.
    Pid::from_raw(pid).is_some_and(|id| {
        id == rustix::process::getpid() || test_kill_process(id) == Err(Errno::SRCH)
    })
}

/// Probes hold nothing; what does is somebody's, whatever its name.
fn is_empty_file(directory: impl AsFd, name: &CStr) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0
    })
}

/// What the names of probes begin with; the process id follows, and a tag of 16 random hex digits: whoever may write to the directory
/// cannot foresee it.
const PREFIX: &str = ".ringest-probe-";
/// How often a rename is tried whose file somebody takes away.
const RENAME_TRIES: usize = 8;

/// A hidden file, gone at the end of its scope.
struct ProbeFile(PathBuf);

impl ProbeFile {
    /// The name only.
    fn of(directory: &Path) -> io::Result<Self> {
        let mut tag = [0; 8];
        let no_random = |_| io::Error::other("the kernel gives no random bytes");
        SystemRandom::new().fill(&mut tag).map_err(no_random)?;
        let tag = data_encoding::HEXLOWER.encode(&tag);
        let name = format!("{PREFIX}{}-{tag}", process::id());
        Ok(Self(directory.join(OsString::from(name))))
    }

    /// Makes the file, which must not exist, and opens it for reading.
    fn new(directory: &Path) -> io::Result<(Self, File)> {
        let probe = Self::of(directory)?;
        let flags =
            OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&probe.0, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok((probe, file.into())),
            Err(error) => {
                // Not ours to remove.
                std::mem::forget(probe);
                Err(error.into())
            }
        }
    }
}

impl Drop for ProbeFile {
    fn drop(&mut self) {
        // It was renamed away, or never arrived; a directory that cannot be written has said so.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn is_empty(directory: &Path) -> bool {
        fs::read_dir(directory).unwrap().next().is_none()
    }

    #[test]
    fn probes_leave_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        assert!(rename_works(&a, &b).unwrap());
        lease(&a).unwrap();
        writable(&a).unwrap();
        may_make_directories(&a).unwrap();
        let _ = unnamed_file(&a);
        assert!(is_empty(&a) && is_empty(&b));
    }

    #[test]
    fn a_rename_between_filesystems_does_not_work_and_leaves_nothing_behind() {
        let here = tempfile::tempdir().unwrap();
        let Ok(there) = tempfile::tempdir_in("/dev/shm") else {
            return;
        };
        let device = |path: &Path| fs::metadata(path).unwrap().dev();
        if device(here.path()) == device(there.path()) {
            return;
        }
        assert!(!rename_works(here.path(), there.path()).unwrap());
        assert!(is_empty(here.path()) && is_empty(there.path()));
        assert_eq!(filesystem(there.path()).unwrap().name, "tmpfs");
    }

    #[test]
    fn a_sweep_takes_probes_of_the_dead_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let mut child = process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let (dead, own) = (child.id(), process::id());
        // Process 1 lives as long as the test does.
        let left = [
            format!(".ringest-probe-{dead}-0"),
            format!(".ringest-probe-{own}-7000"),
            format!(".ringest-probe-{dead}-0123456789abcdef"),
        ];
        let stay = [
            ".ringest-probe-1-0".to_string(),
            format!(".ringest-probe-{dead}-0.csv"),
            format!(".ringest-probe-{dead}"),
            format!(".ringest-probe--{dead}-0"),
            ".ringest-probe-0-0".to_string(),
            ".ringest-probe-x-0".to_string(),
            format!("ringest-probe-{dead}-0"),
            "a.csv".to_string(),
        ];
        for name in left.iter().chain(&stay) {
            fs::write(root.path().join(name), "").unwrap();
        }
        let full = root.path().join(format!(".ringest-probe-{dead}-1"));
        fs::write(&full, "somebody's").unwrap();
        let directory = root.path().join(format!(".ringest-probe-{dead}-2"));
        fs::create_dir(&directory).unwrap();

        sweep(File::open(root.path()).unwrap());
        for name in &left {
            assert!(!root.path().join(name).exists(), "{name}");
        }
        for name in &stay {
            assert!(root.path().join(name).exists(), "{name}");
        }
        assert!(full.exists() && directory.exists());
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let missing = root.path().join("missing");
        assert!(rename_works(root.path(), &missing).is_err());
        assert!(rename_works(&missing, root.path()).is_err());
        assert!(writable(&missing).is_err() && lease(&missing).is_err());
        assert!(is_empty(root.path()));
    }

    #[test]
    fn filesystems_are_known_by_name() {
        let kind = filesystem(Path::new("/proc")).unwrap();
        assert_eq!((&*kind.name, kind.magic), ("0x9fa0", 0x9fa0));
        assert!(!kind.network && !kind.overlay && !kind.fuse);
    }
}
