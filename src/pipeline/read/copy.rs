//! The copy of a file on the warehouse's filesystem.
//!
//! Either the very buffers that were hashed are written, or the kernel makes the copy (a clone that shares the blocks,
//! copy_file_range, splice) and what is hashed is read from the copy. So the digest is always that of the bytes that are placed,
//! whatever happens to the source meanwhile.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::io::disk::{Handle, write_all_at};
use crate::io::read_engine::End;
use crate::io::{FileStat, direct, stat};
use crate::pipeline::Copied;
use crate::pipeline::record::layout;
use crate::settings::{CopyMethod, Layout};
use crate::trial::points;

use super::access;
use super::method::Methods;

/// Zeros are left out in pieces of this many bytes, the block size of most filesystems.
const HOLE_BYTES: usize = 4096;
/// What the kernel copies at once, and how far it is ahead of the hash at most: it is still in the cache then.
const AHEAD_BYTES: usize = 1 << 20;

/// A copy that is being made.
#[derive(Debug)]
pub struct CopyTarget {
    fd: OwnedFd,
    temporary: Option<Temporary>,
    sparse: bool,
    size: u64,
    way: Way,
    /// What direct writes of it have to be multiples of, in bytes. `None`: it is written through the page cache.
    direct: Option<usize>,
}

/// How the bytes get there.
#[derive(Debug)]
enum Way {
    /// Its reader writes what it hashed.
    Written,
    /// They are there: it shares the blocks of its source.
    Cloned,
    /// By copy_file_range, ahead of the hash.
    Ranges(Ahead),
    /// Through a pipe, ahead of the hash.
    Spliced(Ahead, Pipe),
}

/// How far the kernel has come with a copy.
#[derive(Debug)]
struct Ahead {
    /// All bytes before this one are there.
    ready: u64,
    /// Where the piece of the source that has data ends.
    data_end: u64,
    /// Whether anything was copied: before that it may still turn out that it cannot be done.
    begun: bool,
}

/// A pipe between source and copy.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    capacity: usize,
    /// Bytes in it.
    filled: usize,
    /// Whether a splice is in flight.
    busy: bool,
}

/// A splice that is to be made for a copy.
#[derive(Debug)]
pub struct SpliceStep<'a> {
    /// Where from.
    pub from: End<'a>,
    /// Where to.
    pub to: End<'a>,
    /// Bytes at most.
    pub length: usize,
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
                        size: source.identity.size,
                        way: Way::Written,
                        direct: None,
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
            size: source.identity.size,
            way: Way::Written,
            direct: None,
        })
    }

    /// Makes a file of this name in an open directory, where it must be free. It stays when the copy is dropped.
    pub fn named(dir: impl AsFd, name: &OsStr, source: &FileStat) -> io::Result<CopyTarget> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(CopyTarget {
            // Private until it has its source's mode.
            fd: rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?,
            temporary: None,
            sparse: source.has_holes(),
            size: source.identity.size,
            way: Way::Written,
            direct: None,
        })
    }

    /// Leaves the copy to the kernel. With [`CopyMethod::Write`] and `auto` nothing changes.
    ///
    /// # Errors
    /// Those that [`is_refusal`] knows: these filesystems cannot do it, and the copy is still to be written. Others as for a
    /// write.
    pub fn leave_to_kernel(&mut self, method: CopyMethod, source: impl AsFd) -> io::Result<()> {
        self.way = match method {
            CopyMethod::Auto | CopyMethod::Write => return Ok(()),
            CopyMethod::Reflink => {
                rustix::fs::ioctl_ficlone(&self.fd, &source)?;
                Way::Cloned
            }
            CopyMethod::CopyFileRange => Way::Ranges(self.ahead()?),
            CopyMethod::Splice => Way::Spliced(self.ahead()?, Pipe::new()?),
        };
        Ok(())
    }

    fn ahead(&self) -> io::Result<Ahead> {
        // What is left out is a hole then.
        rustix::fs::ftruncate(&self.fd, self.size)?;
        Ok(Ahead {
            ready: 0,
            data_end: if self.sparse { 0 } else { self.size },
            begun: false,
        })
    }

    /// Goes back to writing the copy, from its beginning. Returns how it was to be made.
    ///
    /// # Errors
    /// Of ftruncate.
    pub fn write_after_all(&mut self) -> io::Result<CopyMethod> {
        // A zero that is left out must not be what the kernel left there.
        rustix::fs::ftruncate(&self.fd, 0)?;
        let before = self.by_kernel().unwrap_or(CopyMethod::Write);
        self.way = Way::Written;
        Ok(before)
    }

    /// Has the copy written past the page cache, if it is large and without holes.
    ///
    /// # Errors
    /// No room for it.
    pub fn write_direct(&mut self, methods: &Methods) -> io::Result<()> {
        if self.sparse || !self.is_written() {
            return Ok(());
        }
        self.direct = methods.begin_direct_write(&self.fd, self.size);
        let Some(unit) = self.direct else {
            return Ok(());
        };
        // Writes that make a file longer are made one after the other. The last one ends with a block.
        let length = self.size.next_multiple_of(unit as u64);
        match rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(rustix::fs::ftruncate(&self.fd, length)?),
            Err(error) => Err(error.into()),
        }
    }

    /// How many bytes to write directly for a piece of so many at `offset`; `None`: it goes through [`CopyTarget::write`]. The
    /// last piece is written up to the end of a block.
    pub fn direct_length(&self, offset: u64, bytes: usize) -> Option<usize> {
        let unit = self.direct?;
        let is_last = offset + bytes as u64 == self.size;
        let whole = bytes.is_multiple_of(unit) || is_last;
        (whole && offset.is_multiple_of(unit as u64)).then(|| bytes.next_multiple_of(unit))
    }

    /// Has the rest written through the page cache. What is in flight stays so.
    ///
    /// # Errors
    /// Of fcntl.
    pub fn give_up_direct(&mut self) -> io::Result<()> {
        match self.direct.take() {
            Some(_) => direct::set(&self.fd, false),
            None => Ok(()),
        }
    }

    /// Whether it is written past the page cache.
    #[cfg(test)]
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Where it is written.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// How the kernel makes the copy, if it does.
    pub fn by_kernel(&self) -> Option<CopyMethod> {
        match self.way {
            Way::Written => None,
            Way::Cloned => Some(CopyMethod::Reflink),
            Way::Ranges(_) => Some(CopyMethod::CopyFileRange),
            Way::Spliced(..) => Some(CopyMethod::Splice),
        }
    }

    /// The copy, if it is what has to be read and hashed.
    pub fn read_from(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_written()).then(|| self.fd.as_fd())
    }

    /// Whether its reader has to write it.
    pub fn is_written(&self) -> bool {
        matches!(self.way, Way::Written)
    }

    /// Whether all of it is there at once, on the disk: it may be read directly.
    pub fn is_cloned(&self) -> bool {
        matches!(self.way, Way::Cloned)
    }

    /// How far it can be read.
    pub fn readable(&self) -> u64 {
        match &self.way {
            Way::Written | Way::Cloned => self.size,
            Way::Ranges(ahead) | Way::Spliced(ahead, _)
                if !ahead.begun && ahead.ready < self.size =>
            {
                0
            }
            Way::Ranges(ahead) | Way::Spliced(ahead, _) => ahead.ready,
        }
    }

    /// Whether a splice is in flight.
    pub fn is_busy(&self) -> bool {
        matches!(&self.way, Way::Spliced(_, pipe) if pipe.busy)
    }

    /// Goes on with a copy that the kernel makes, if it is not far enough ahead of `next`, the byte that is read next. What is
    /// returned is to be started, and then [`CopyTarget::spliced`] told of its end.
    ///
    /// # Errors
    /// As for a read and a write; UnexpectedEof where the source is shorter than it was.
    pub fn copy_ahead<'a>(
        &'a mut self,
        source: BorrowedFd<'a>,
        next: u64,
    ) -> io::Result<Option<SpliceStep<'a>>> {
        let size = self.size;
        let wanted = size.min(next + AHEAD_BYTES as u64);
        match &mut self.way {
            Way::Written | Way::Cloned => Ok(None),
            Way::Ranges(ahead) => {
                while ahead.ready < wanted {
                    let Some(length) = ahead.piece(source, size, AHEAD_BYTES)? else {
                        break;
                    };
                    let (mut here, mut there) = (ahead.ready, ahead.ready);
                    let (here, there) = (Some(&mut here), Some(&mut there));
                    match rustix::fs::copy_file_range(source, here, &self.fd, there, length) {
                        // Some filesystems copy nothing, and call that a success.
                        Ok(0) if stat::stat_fd(source)?.identity.size >= size => {
                            return Err(Errno::OPNOTSUPP.into());
                        }
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(copied) => {
                            ahead.ready += copied as u64;
                            ahead.begun = true;
                        }
                        Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(None)
            }
            Way::Spliced(_, pipe) if pipe.busy => Ok(None),
            Way::Spliced(ahead, pipe) => {
                let (from, to, length) = if pipe.filled > 0 {
                    let to = End::File(self.fd.as_fd(), ahead.ready);
                    (End::Pipe(pipe.out.as_fd()), to, pipe.filled)
                } else {
                    if ahead.ready >= wanted {
                        return Ok(None);
                    }
                    let Some(length) = ahead.piece(source, size, pipe.capacity)? else {
                        return Ok(None);
                    };
                    let from = End::File(source, ahead.ready);
                    (from, End::Pipe(pipe.into.as_fd()), length)
                };
                pipe.busy = true;
                Ok(Some(SpliceStep { from, to, length }))
            }
        }
    }

    /// Takes in how a splice ended, or that it could not be started.
    ///
    /// # Errors
    /// Those of the splice; UnexpectedEof where the source is shorter than it was.
    pub fn spliced(&mut self, moved: io::Result<usize>) -> io::Result<()> {
        let Way::Spliced(ahead, pipe) = &mut self.way else {
            return moved.map(drop);
        };
        pipe.busy = false;
        match moved {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) if pipe.filled == 0 => {
                pipe.filled = moved;
                Ok(())
            }
            Ok(moved) => {
                pipe.filled -= moved;
                ahead.ready += moved as u64;
                ahead.begun = true;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
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

    /// Gives the copy what its source has beside its bytes: size, times, attributes, permissions and owner, and what `layout`
    /// says instead.
    pub fn finish(
        mut self,
        source_fd: impl AsFd,
        source: &FileStat,
        layout: &Layout,
    ) -> io::Result<Copied<Handle>> {
        self.give_up_direct()?;
        // Without the last hole, or with the rest of the last block.
        if stat::stat_fd(&self.fd)?.identity.size != self.size {
            rustix::fs::ftruncate(&self.fd, self.size)?;
        }
        access::set_on_copy(&self.fd, source_fd, source, layout)?;
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
        access::give_away(&self.fd, source, layout)?;
        points::reached("copy_written");
        Ok(Copied {
            stat: stat::stat_fd(&self.fd)?,
            file: Handle::new(self.fd),
            temporary: self.temporary,
        })
    }
}

impl Ahead {
    /// How many bytes are to be copied next, `most` at most; holes before them are passed. `None`: there are no more.
    fn piece(
        &mut self,
        source: BorrowedFd<'_>,
        size: u64,
        most: usize,
    ) -> io::Result<Option<usize>> {
        if self.ready == self.data_end && self.ready < size {
            match rustix::fs::seek(source, SeekFrom::Data(self.ready)) {
                Ok(data) => {
                    self.ready = data.min(size);
                    self.data_end = rustix::fs::seek(source, SeekFrom::Hole(data))?.min(size);
                }
                Err(Errno::NXIO) => (self.ready, self.data_end) = (size, size),
                Err(error) => return Err(error.into()),
            }
        }
        let left = self.data_end - self.ready;
        Ok((left > 0).then(|| left.min(most as u64) as usize))
    }
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // Many large pipes of one user may be forbidden; a small one does it, too.
        let _ = rustix::pipe::fcntl_setpipe_size(&into, AHEAD_BYTES);
        Ok(Pipe {
            capacity: rustix::pipe::fcntl_getpipe_size(&into)?,
            out,
            into,
            filled: 0,
            busy: false,
        })
    }
}

/// Whether an error says that two filesystems, or this kernel, do not know a way to copy.
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::XDEV
                | Errno::OPNOTSUPP
                | Errno::INVAL
                | Errno::NOTTY
                | Errno::NOSYS
                | Errno::PERM
        )
    )
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::read_engine::ReadEngine;
    use crate::settings::IoChoice;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    /// Lets the kernel copy all of `source`, which is said to be `size` bytes long.
    fn copy(method: CopyMethod, source: &File, size: u64) -> io::Result<File> {
        let directory = tempfile::tempdir()?;
        let mut seen = stat::stat_fd(source)?;
        if seen.identity.size < size {
            // Blocks for all of it, so that nobody looks for holes.
            (seen.identity.size, seen.blocks) = (size, size.div_ceil(512));
        }
        let root = crate::io::open::root_dir(directory.path())?;
        let mut target = CopyTarget::create(&root, &seen, true)?;
        target.leave_to_kernel(method, source)?;
        let (mut engine, _) = ReadEngine::open(IoChoice::Auto, 2)?;
        let mut done = Vec::new();
        let mut last = None;
        while target.readable() < size {
            if let Some(step) = target.copy_ahead(source.as_fd(), target.readable())? {
                engine.splice(1, step.from, step.to, step.length)?;
                assert!(target.is_busy());
                while done.is_empty() {
                    engine.wait(&mut done)?;
                }
                target.spliced(done.pop().expect("one").bytes)?;
            } else {
                assert_ne!(last, Some(target.readable()), "it does not go on");
                last = Some(target.readable());
            }
        }
        let copy = File::from(target.fd);
        Ok(copy)
    }

    const BY_KERNEL: [CopyMethod; 2] = [CopyMethod::CopyFileRange, CopyMethod::Splice];

    #[test]
    fn the_kernel_copies_data_and_leaves_out_holes() {
        let source = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..700_000u32).map(|i| (i % 251) as u8).collect();
        for at in [100, 3 << 20, (9 << 20) + 5] {
            source.write_all_at(&data, at).unwrap();
        }
        let size = (12 << 20) + 3;
        source.set_len(size).unwrap();
        for method in BY_KERNEL {
            let copy = copy(method, &source, size).unwrap();
            let (mut here, mut there) = (vec![0; size as usize], vec![0; size as usize]);
            source.read_exact_at(&mut here, 0).unwrap();
            copy.read_exact_at(&mut there, 0).unwrap();
            assert!(here == there, "{method}");
            let metadata = copy.metadata().unwrap();
            assert_eq!(metadata.len(), size);
            assert!(metadata.blocks() * 512 < 5 << 20, "{method}");
        }
    }

    #[test]
    fn a_source_that_got_shorter_is_the_unexpected_end_of_a_file() {
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[7; 2 << 20], 0).unwrap();
        for method in BY_KERNEL {
            let error = copy(method, &source, (2 << 20) + 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{method}");
        }
    }

    #[test]
    fn a_copy_that_is_refused_behind_a_leading_hole_is_written_from_its_beginning() {
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[7; 5000], 3 << 20).unwrap();
        let seen = stat::stat_fd(&source).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let root = crate::io::open::root_dir(directory.path()).unwrap();
        let mut target = CopyTarget::create(&root, &seen, true).unwrap();
        target.leave_to_kernel(CopyMethod::Splice, &source).unwrap();
        let step = target.copy_ahead(source.as_fd(), 0).unwrap();
        assert!(step.is_some(), "data follow within what it is ahead");
        // Nothing of the hole may be read before the first data are there: it could not begin again.
        assert_eq!(target.readable(), 0);
        let error = target.spliced(Err(Errno::INVAL.into())).unwrap_err();
        assert!(is_refusal(&error));
        assert_eq!(target.write_after_all().unwrap(), CopyMethod::Splice);
        assert!(target.is_written());
        assert_eq!(target.readable(), seen.identity.size);
        let mut content = vec![0; seen.identity.size as usize];
        source.read_exact_at(&mut content, 0).unwrap();
        target.write(&content, 0).unwrap();
        let copy = target.finish(&source, &seen, &Layout::default()).unwrap();
        assert_eq!(copy.stat.identity.size, seen.identity.size);
        let mut copied = vec![1; content.len()];
        assert_eq!(
            rustix::io::pread(&copy.file, &mut copied, 0).unwrap(),
            content.len()
        );
        assert!(copied == content);
    }
}
