//! The operations with which the recorder changes a disk, and nothing else: the seam at which a simulated disk
//! stands in for the kernel.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::io::stat::{self, FileStat};
use crate::io::{lease, open, probe};
use crate::trial::mutants;

/// What the recorder needs of a disk. Names are single path components; no operation replaces a file.
pub trait Disk: Clone {
    /// An open directory.
    type Dir: Clone;
    /// An open file.
    type File;

    /// Opens the directory `path` beneath `root`, without following links. `""` is `root`.
    fn open_dir(&self, root: &Self::Dir, path: &Path) -> io::Result<Self::Dir>;
    /// Makes a directory. AlreadyExists is an error.
    fn make_dir(&self, parent: &Self::Dir, name: &OsStr) -> io::Result<()>;
    /// Names in a directory.
    fn list(&self, dir: &Self::Dir) -> io::Result<Vec<OsString>>;
    /// Makes every name in the directory durable.
    fn sync_dir(&self, dir: &Self::Dir) -> io::Result<()>;

    /// Looks at a name; `None` when there is nothing.
    fn stat(&self, dir: &Self::Dir, name: &OsStr) -> io::Result<Option<FileStat>>;
    /// Moves a name. AlreadyExists when the new one is taken.
    fn rename(&self, from: &Self::Dir, old: &OsStr, to: &Self::Dir, new: &OsStr) -> io::Result<()>;
    /// Gives an unnamed file its name. AlreadyExists when it is taken.
    fn link(&self, file: &Self::File, to: &Self::Dir, name: &OsStr) -> io::Result<()>;
    /// Removes a name.
    fn unlink(&self, dir: &Self::Dir, name: &OsStr) -> io::Result<()>;

    /// Opens a file for reading, under a lease where one is to be had. WouldBlock: somebody has it open for writing.
    fn open(&self, dir: &Self::Dir, name: &OsStr) -> io::Result<Self::File>;
    /// Opens a file for reading and writing, and makes it if it is not there. Its content stays.
    fn create(&self, dir: &Self::Dir, name: &OsStr) -> io::Result<Self::File>;
    /// Looks at an open file.
    fn stat_file(&self, file: &Self::File) -> io::Result<FileStat>;
    /// Reads at an offset; fewer bytes than asked for only at the end of the file.
    fn read_at(&self, file: &Self::File, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at an offset.
    fn write_at(&self, file: &Self::File, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reserves space without changing the size, where the filesystem can.
    fn reserve(&self, file: &Self::File, offset: u64, length: u64) -> io::Result<()>;
    /// Makes the bytes of many files durable, all of which lie on the filesystem of `root`.
    fn sync_files(&self, root: &Self::Dir, files: &[&Self::File]) -> io::Result<()>;
    /// The same for several roots. An error comes with the place of its root among them.
    fn sync_files_of_roots(
        &self,
        files: &[SyncedBeneath<'_, Self>],
    ) -> Result<(), (usize, io::Error)> {
        let mut files = files.iter().enumerate();
        files.try_for_each(|(at, (root, files))| {
            self.sync_files(root, files).map_err(|error| (at, error))
        })
    }
    /// The same, while `meanwhile` is done.
    fn sync_files_beside<T>(
        &self,
        files: &[SyncedBeneath<'_, Self>],
        meanwhile: impl FnOnce() -> T,
    ) -> (Result<(), (usize, io::Error)>, T);
    /// Makes everything on the filesystem of `root` durable.
    fn sync_filesystem(&self, root: &Self::Dir) -> io::Result<()>;
    /// Drops what the cache holds of a file, so that the next read shows what the disk holds.
    fn forget_cached(&self, file: &Self::File) -> io::Result<()>;
    /// Whether it was opened under a lease.
    fn is_leased(&self, file: &Self::File) -> bool;
    /// Whether no writer has come near the file since its lease was granted. True for a file without a lease.
    fn unbroken(&self, file: &Self::File) -> bool;
}

/// Files beneath a root.
pub type SyncedBeneath<'a, D> = (<D as Disk>::Dir, Vec<&'a <D as Disk>::File>);

/// A file on a real disk, and whether it was opened under a read lease.
#[derive(Debug)]
pub struct Handle {
    fd: OwnedFd,
    leased: bool,
}

impl Handle {
    /// A file without a lease.
    pub fn new(fd: OwnedFd) -> Handle {
        Handle { fd, leased: false }
    }

    /// A file on which a read lease was granted.
    pub fn leased(fd: OwnedFd) -> Handle {
        Handle { fd, leased: true }
    }

    /// Whether a lease was granted when the file was opened.
    pub fn has_lease(&self) -> bool {
        self.leased
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Writes all of `bytes` at an offset.
pub fn write_all_at(fd: impl AsFd, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&fd, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Allocates blocks without changing the size. Filesystems that cannot do that say so, and the write itself will find
/// out.
pub fn allocate(fd: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(&fd, FallocateFlags::KEEP_SIZE, offset, length) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
            allocated => return Ok(allocated?),
        }
    }
}

/// An open directory on a real disk.
pub type DirHandle = Arc<OwnedFd>;

/// The kernel.
#[derive(Debug, Clone, Copy)]
pub struct RealDisk {
    /// Whether syncs are carried out (`--durability full`).
    pub durable: bool,
    /// Whether one `syncfs` may stand for many `fsync`s. Not on overlayfs and FUSE, where it can hide an error.
    pub syncfs: bool,
    /// The signal that a broken lease raises; `None` takes no leases.
    pub lease_signal: Option<i32>,
}

/// From this many files on, one `syncfs` is cheaper than a sync for each: 16 of 4 KiB take 0.5 ms by one `syncfs`, 1.2 ms by `fsync` in
/// eight threads, 3.4 ms one after the other (ext4, kernel 6.18). Fewer do not wait for what others have written there.
const SYNCFS_FILES_MIN: usize = 8;
/// Syncs in flight at once; their journal commits merge.
const SYNC_THREADS_MAX: usize = 8;

impl Disk for RealDisk {
    type Dir = DirHandle;
    type File = Handle;

    fn open_dir(&self, root: &DirHandle, path: &Path) -> io::Result<DirHandle> {
        Ok(Arc::new(open::dir_beneath(root, path)?))
    }

    fn make_dir(&self, parent: &DirHandle, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(
            parent,
            name,
            Mode::from_raw_mode(0o777),
        )?)
    }

    fn list(&self, dir: &DirHandle) -> io::Result<Vec<OsString>> {
        use std::os::unix::ffi::OsStringExt;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    fn sync_dir(&self, dir: &DirHandle) -> io::Result<()> {
        // On btrfs, where somebody else syncs the directory while names are moved out of it (its uploader, who should),
        // a moved name can come back beside its new one although both directories were synced since. Seen after one
        // power cut in twenty (kernel 6.18); never after a commit of the whole filesystem.
        if self.durable && probe::magic_of(dir)? == probe::BTRFS {
            return self.sync_filesystem(dir);
        }
        self.fsync(dir.as_fd())
    }

    fn stat(&self, dir: &DirHandle, name: &OsStr) -> io::Result<Option<FileStat>> {
        stat::stat_at(dir, name)
    }

    fn rename(&self, from: &DirHandle, old: &OsStr, to: &DirHandle, new: &OsStr) -> io::Result<()> {
        let flags = match mutants::on("rename_replaces") {
            true => RenameFlags::empty(),
            false => RenameFlags::NOREPLACE,
        };
        Ok(rustix::fs::renameat_with(from, old, to, new, flags)?)
    }

    fn link(&self, file: &Handle, to: &DirHandle, name: &OsStr) -> io::Result<()> {
        // Linking a descriptor itself needs a capability (or, since 6.10, the credentials that opened it); its
        // name under /proc does not.
        match rustix::fs::linkat(file, c"", to, name, AtFlags::EMPTY_PATH) {
            Err(Errno::NOENT | Errno::PERM) => Ok(rustix::fs::linkat(
                CWD,
                open::proc_path(file),
                to,
                name,
                AtFlags::SYMLINK_FOLLOW,
            )?),
            linked => Ok(linked?),
        }
    }

    fn unlink(&self, dir: &DirHandle, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn open(&self, dir: &DirHandle, name: &OsStr) -> io::Result<Handle> {
        let fd = open::file_beneath(dir, name)?;
        match self
            .lease_signal
            .map(|signal| lease::set_read_lease(fd.as_fd(), signal))
        {
            Some(Ok(())) => Ok(Handle::leased(fd)),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(Handle::new(fd)),
        }
    }

    fn create(&self, dir: &DirHandle, name: &OsStr) -> io::Result<Handle> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Handle::new(rustix::fs::openat(
            dir,
            name,
            flags,
            Mode::from_raw_mode(0o666),
        )?))
    }

    fn stat_file(&self, file: &Handle) -> io::Result<FileStat> {
        stat::stat_fd(file)
    }

    fn read_at(&self, file: &Handle, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match rustix::io::pread(file, &mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(bytes) => read += bytes,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(read)
    }

    fn write_at(&self, file: &Handle, bytes: &[u8], offset: u64) -> io::Result<()> {
        write_all_at(file, bytes, offset)
    }

    fn reserve(&self, file: &Handle, offset: u64, length: u64) -> io::Result<()> {
        allocate(file, offset, length)
    }

    fn sync_files(&self, root: &DirHandle, files: &[&Handle]) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        if self.syncfs && files.len() >= SYNCFS_FILES_MIN {
            return self.sync_filesystem(root);
        }
        let threads = files.len().min(SYNC_THREADS_MAX);
        if threads <= 1 {
            return files.iter().try_for_each(|file| self.fsync(file.as_fd()));
        }
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                            self.fsync(file.as_fd())?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| match worker.join() {
                    Ok(synced) => synced,
                    Err(_) => Err(io::Error::other("a sync thread panicked")),
                })
        })
    }

    fn sync_files_beside<T>(
        &self,
        files: &[SyncedBeneath<'_, RealDisk>],
        meanwhile: impl FnOnce() -> T,
    ) -> (Result<(), (usize, io::Error)>, T) {
        let sync = || self.sync_files_of_roots(files);
        if files.is_empty() || !self.durable {
            return (Ok(()), meanwhile());
        }
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("sync".into());
            match builder.spawn_scoped(scope, sync) {
                Ok(syncing) => {
                    let done = meanwhile();
                    let synced = syncing.join();
                    let panicked = |_| Err((0, io::Error::other("a sync thread panicked")));
                    (synced.unwrap_or_else(panicked), done)
                }
                // No more threads: one after the other.
                Err(_) => (sync(), meanwhile()),
            }
        })
    }

    fn sync_filesystem(&self, root: &DirHandle) -> io::Result<()> {
        match self.durable {
            true => Ok(rustix::fs::syncfs(root)?),
            false => Ok(()),
        }
    }

    fn forget_cached(&self, file: &Handle) -> io::Result<()> {
        // Only clean pages can be dropped.
        self.fsync(file.as_fd())?;
        Ok(rustix::fs::fadvise(
            file,
            0,
            None,
            rustix::fs::Advice::DontNeed,
        )?)
    }

    fn is_leased(&self, file: &Handle) -> bool {
        file.leased
    }

    fn unbroken(&self, file: &Handle) -> bool {
        !file.leased || lease::still_held(file.as_fd())
    }
}

impl RealDisk {
    /// Cuts a file off, durably. Nothing that runs does this: it is for what a crash tore.
    pub fn cut(&self, file: &Handle, length: u64) -> io::Result<()> {
        rustix::fs::ftruncate(file, length)?;
        self.fsync(file.as_fd())
    }

    fn fsync(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        loop {
            match rustix::fs::fsync(fd) {
                Err(Errno::INTR) => {}
                synced => return Ok(synced?),
            }
        }
    }
}
