//! The copy of a file on the warehouse's filesystem, written from the very buffers that were hashed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::io::disk::{Handle, write_all_at};
use crate::io::{FileStat, stat};
use crate::pipeline::Copied;
use crate::pipeline::record::layout;
use crate::trial::points;

/// Zeros are left out in pieces of this many bytes, the block size of most filesystems.
const HOLE_BYTES: usize = 4096;

/// A copy that is being written.
#[derive(Debug)]
pub struct CopyTarget {
    fd: OwnedFd,
    temporary: Option<Temporary>,
    sparse: bool,
}

/// The name of a copy in `_tmp`. It goes when the copy is dropped; by then a placed copy has another name.
#[derive(Debug)]
pub struct Temporary {
    dir: OwnedFd,
    name: OsString,
}

impl Temporary {
    /// A name in `dir`.
    pub fn new(dir: OwnedFd, name: OsString) -> Temporary {
        Temporary { dir, name }
    }

    /// The name.
    pub fn name(&self) -> &OsStr {
        &self.name
    }
}

impl Drop for Temporary {
    #[allow(
        clippy::disallowed_methods,
        reason = "the recorder's disk is not there when a reader gives up"
    )]
    fn drop(&mut self) {
        // What stays is swept at the next start.
        let _ = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl CopyTarget {
    /// Opens an unnamed file on the filesystem of `warehouse`, or a temporary one in its `_tmp` where there are none.
    pub fn create(
        warehouse: impl AsFd,
        source: &FileStat,
        unnamed: bool,
    ) -> io::Result<CopyTarget> {
        let sparse = source.has_holes();
        // Private until it has its source's mode.
        let mode = Mode::from_raw_mode(0o600);
        if unnamed {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            match rustix::fs::openat(&warehouse, c".", flags, mode) {
                Ok(fd) => {
                    return Ok(CopyTarget {
                        fd,
                        temporary: None,
                        sparse,
                    });
                }
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        #[allow(clippy::disallowed_methods)] // Swept at every start, so it need not be durable.
        match rustix::fs::mkdirat(&warehouse, layout::TMP_DIR, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = OsString::from(format!("{}-{number}", std::process::id()));
        let dir = crate::io::open::dir_beneath(&warehouse, layout::TMP_DIR.as_ref())?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(CopyTarget {
            fd: rustix::fs::openat(&dir, &name, flags, mode)?,
            temporary: Some(Temporary::new(dir, name)),
            sparse,
        })
    }

    /// Writes a piece of the file. Where the source has holes, zeros become holes.
    pub fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !self.sparse {
            return write_all_at(&self.fd, bytes, offset);
        }
        let mut start = 0;
        let mut end = 0;
        for block in bytes.chunks(HOLE_BYTES) {
            if is_zero(block) {
                write_all_at(&self.fd, &bytes[start..end], offset + start as u64)?;
                start = end + block.len();
            }
            end += block.len();
        }
        write_all_at(&self.fd, &bytes[start..end], offset + start as u64)
    }

    /// Gives the copy what its source has beside its bytes: size, attributes, owner where allowed, mode and times.
    pub fn finish(self, source_fd: impl AsFd, source: &FileStat) -> io::Result<Copied<Handle>> {
        if self.sparse {
            rustix::fs::ftruncate(&self.fd, source.identity.size)?;
        }
        copy_attributes(&source_fd, &self.fd);
        // Only the superuser may give files away; a copy of our own is still a good copy.
        let own = stat::stat_fd(&self.fd)?;
        if own.uid != source.uid || own.gid != source.gid {
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(source.uid),
                rustix::fs::Gid::from_raw(source.gid),
            );
            if rustix::fs::fchown(&self.fd, Some(uid), Some(gid)).is_err() {
                let _ = rustix::fs::fchown(&self.fd, None, Some(gid));
            }
        }
        rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(source.mode & 0o777))?;
        let mtime = Timespec {
            tv_sec: source.identity.mtime.seconds,
            tv_nsec: source.identity.mtime.nanos.into(),
        };
        rustix::fs::futimens(
            &self.fd,
            &Timestamps {
                last_access: mtime,
                last_modification: mtime,
            },
        )?;
        points::reached("copy_written");
        Ok(Copied {
            identity: stat::stat_fd(&self.fd)?.identity,
            file: Handle::new(self.fd),
            temporary: self.temporary,
        })
    }
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|&byte| byte == 0)
}

/// Copies extended attributes as far as the destination takes them.
fn copy_attributes(from: impl AsFd, to: impl AsFd) {
    let mut names = vec![0u8; 64 << 10];
    let Ok(length) = rustix::fs::flistxattr(&from, &mut names[..]) else {
        return;
    };
    let mut value = Vec::new();
    for name in names[..length].split(|&byte| byte == 0) {
        // Labels and capabilities are the destination's own business.
        if name.is_empty() || name.starts_with(b"security.") {
            continue;
        }
        value.resize(64 << 10, 0);
        if let Ok(length) = rustix::fs::fgetxattr(&from, name, &mut value[..]) {
            let flags = rustix::fs::XattrFlags::empty();
            let _ = rustix::fs::fsetxattr(&to, name, &value[..length], flags);
        }
    }
}
