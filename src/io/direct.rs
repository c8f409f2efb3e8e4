//! Reads and writes past the page cache: how much of a file is there, and what they have to be aligned to.
//!
//! # Safety
//! rustix has no cachestat, so the system call is made by hand, with two structures of integers that live on the stack for
//! its length, laid out as `include/uapi/linux/mman.h` has them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use super::buffer;

/// The same number on every architecture (`include/uapi/asm-generic/unistd.h`); Linux 6.5 has it.
const SYS_CACHESTAT: libc::c_long = 451;

/// The largest block of a device that direct reads are made of, in bytes: what is read at once is a multiple of it.
const UNIT_MAX: usize = 64 << 10;

/// How much of a file the page cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cached {
    /// Pages in the cache.
    pub pages: u64,
    /// Those of them that the disk does not hold yet.
    pub unwritten_pages: u64,
}

#[repr(C)]
struct Range {
    offset: u64,
    /// 0: to the end of the file.
    length: u64,
}

#[repr(C)]
#[derive(Default)]
struct Answer {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Asks the page cache about a file.
///
/// # Errors
/// ENOSYS before Linux 6.5, EPERM on files of others since 6.14 and in some containers.
pub fn cached(fd: BorrowedFd<'_>) -> io::Result<Cached> {
    let range = Range {
        offset: 0,
        length: 0,
    };
    let mut answer = Answer::default();
    // SAFETY: both structures are alive and as large as the kernel takes them for; it writes to the second alone, and keeps
    // neither.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            fd.as_raw_fd(),
            &raw const range,
            &raw mut answer,
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Cached {
        pages: answer.cached,
        unwritten_pages: answer.dirty + answer.writeback,
    })
}

/// What offset and length of direct reads and writes of this file have to be multiples of, in bytes. `None`: it has none. Without `ask`, and where the kernel does not tell (before 6.1), a multiple that suits every device.
pub fn alignment(file: impl AsFd, ask: bool) -> Option<usize> {
    let safe = buffer::ALIGNMENT;
    if !ask {
        return Some(safe);
    }
    let seen = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if seen.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Some(safe);
    }
    let memory = seen.stx_dio_mem_align as usize;
    let offset = seen.stx_dio_offset_align as usize;
    // 0: this file has no direct reads.
    let suits = (1..=safe).contains(&memory) && offset.is_power_of_two() && offset <= UNIT_MAX;
    suits.then_some(offset)
}

/// Sends later reads and writes of an open file past the page cache, or through it again.
///
/// # Errors
/// EINVAL: the filesystem has none that are direct.
pub fn set(file: impl AsFd, direct: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(&file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(rustix::fs::fcntl_setfl(&file, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffer::Buffer;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// A file of 1 MiB that the disk holds, on the filesystem of the build, since /tmp may have no disk.
    fn synced(directory: &tempfile::TempDir) -> File {
        let path = directory.path().join("a");
        let content: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, content).unwrap();
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        file
    }

    fn beside_the_build() -> tempfile::TempDir {
        let folder = std::env::current_exe().unwrap();
        tempfile::tempdir_in(folder.parent().unwrap()).unwrap()
    }

    #[test]
    fn the_cache_tells_hot_files_from_cold_ones() {
        let directory = beside_the_build();
        let file = synced(&directory);
        let page = rustix::param::page_size() as u64;
        let hot = match cached(file.as_fd()) {
            Ok(hot) => hot,
            // An older kernel, or one that forbids it: the fallback has tests of its own.
            Err(error) => {
                let code = error.raw_os_error();
                assert!(matches!(code, Some(libc::ENOSYS | libc::EPERM)), "{error}");
                return;
            }
        };
        let all = Cached {
            pages: (1 << 20) / page,
            unwritten_pages: 0,
        };
        assert_eq!(hot, all);
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert!(cached(file.as_fd()).unwrap().pages < all.pages);
    }

    #[test]
    fn direct_reads_see_the_same_bytes_to_the_end_of_the_file() {
        let directory = beside_the_build();
        let file = synced(&directory);
        for ask in [true, false] {
            let Some(unit) = alignment(&file, ask) else {
                assert!(ask, "without asking there is always a guess");
                continue;
            };
            assert!(unit.is_power_of_two() && unit <= 64 << 10, "{unit}");
            if set(&file, true).is_err() {
                continue;
            }
            let mut buffer = Buffer::new(256 << 10);
            let offset = (1 << 20) - (128 << 10);
            let read = file.read_at(&mut buffer, offset).unwrap();
            assert_eq!(read, 128 << 10);
            set(&file, false).unwrap();
            let mut through_the_cache = vec![0; 128 << 10];
            file.read_exact_at(&mut through_the_cache, offset).unwrap();
            assert!(buffer[..read] == through_the_cache);
        }
    }
}
