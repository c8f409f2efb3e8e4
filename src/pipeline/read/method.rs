//! Which of the ways to read and to copy suits a file, and what turned out not to work here.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use crate::io::{direct, probe};
use crate::ledger::SourceId;
use crate::observe::events;
use crate::settings::{CopyMethod, ReadMethod, Settings};

use super::reader::LARGE_BYTES;

/// A file is cold while at most one page in so many is in the cache.
const COLD_ONE_IN: u64 = 8;

/// From this many bytes on a copy that is to be synced is written directly. Measured (perf/README.md): of files of 64 KiB half
/// as many come through as by the page cache, of 512 KiB as many, of 1 MiB 1.3 times, of 1 GiB 2.3 times.
const DIRECT_WRITE_BYTES_MIN: u64 = 1 << 20;

/// The ways that were asked for, and what is known of them.
#[derive(Debug)]
pub struct Methods {
    read: ReadMethod,
    copy: CopyMethod,
    /// Whether the kernel may be asked what the cache holds.
    cachestat: bool,
    /// Whether the kernel may be asked how direct reads have to be aligned.
    dioalign: bool,
    refused: Mutex<HashSet<Refused>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Refused {
    Cachestat,
    DirectReads,
    DirectWrites,
    Copy(SourceId, CopyMethod),
}

impl Methods {
    /// As the settings have it.
    pub fn new(settings: &Settings) -> Methods {
        Methods {
            read: settings.read_method,
            copy: settings.copy_method,
            cachestat: !settings.disable.cachestat,
            dioalign: !settings.disable.dioalign,
            refused: Mutex::default(),
        }
    }

    /// Files are copied that way, if it works.
    #[cfg(test)]
    pub fn of(copy: CopyMethod) -> Methods {
        Methods {
            read: ReadMethod::Buffered,
            copy,
            cachestat: false,
            dioalign: false,
            refused: Mutex::default(),
        }
    }

    /// Has a file read past the page cache, if that suits it. What is returned is what offset and length of reads have to be
    /// multiples of, in bytes.
    pub fn begin_direct(&self, file: impl AsFd, size: u64) -> Option<usize> {
        let direct = match self.read {
            ReadMethod::Buffered => false,
            ReadMethod::Direct => size > 0,
            ReadMethod::Auto => size > LARGE_BYTES && self.is_cold(&file, size),
        };
        if !direct {
            return None;
        }
        let begun = match direct::alignment(&file, self.dioalign) {
            Some(unit) => direct::set(&file, true).map(|()| unit),
            None => Err(io::Error::other("the filesystem has no direct reads")),
        };
        match begun {
            Ok(unit) => Some(unit),
            Err(error) => {
                self.direct_refused(&error);
                None
            }
        }
    }

    /// Has a copy written past the page cache, if it is large: what is to be on the disk in a moment only costs time there. What
    /// is returned is what offset and length of writes have to be multiples of, in bytes.
    pub fn begin_direct_write(&self, copy: impl AsFd, size: u64) -> Option<usize> {
        if size < DIRECT_WRITE_BYTES_MIN || self.is_known(&Refused::DirectWrites) {
            return None;
        }
        let unit = direct::alignment(&copy, self.dioalign)?;
        match direct::set(&copy, true) {
            Ok(()) => Some(unit),
            Err(_) => {
                self.direct_writes_refused();
                None
            }
        }
    }

    /// Copies cannot be written past the page cache.
    pub fn direct_writes_refused(&self) {
        self.is_news(Refused::DirectWrites);
    }

    /// A file cannot be read past the page cache.
    pub fn direct_refused(&self, error: &io::Error) {
        let asked = self.read == ReadMethod::Direct;
        if self.is_news(Refused::DirectReads) && asked {
            let instead = "reads go through the page cache";
            events::fallback("direct reads", &error.to_string(), instead);
        }
    }

    fn is_cold(&self, file: impl AsFd, size: u64) -> bool {
        // The pages of a file on overlayfs are those of another inode.
        if !self.cachestat || probe::magic_of(&file).is_ok_and(|magic| magic == probe::OVERLAY) {
            return false;
        }
        match direct::cached(file.as_fd()) {
            // What the disk does not hold yet was written a moment ago.
            Ok(cached) if cached.unwritten_pages > 0 => false,
            Ok(cached) => cached.pages * COLD_ONE_IN <= size / rustix::param::page_size() as u64,
            Err(error) => {
                if self.is_news(Refused::Cachestat) {
                    let instead = "all reads go through the page cache";
                    events::fallback("cachestat", &error.to_string(), instead);
                }
                false
            }
        }
    }

    /// How files of that source are copied.
    pub fn copy(&self, source: SourceId) -> CopyMethod {
        let wanted = match self.copy {
            CopyMethod::Auto => CopyMethod::Reflink,
            wanted => wanted,
        };
        match self.is_known(&Refused::Copy(source, wanted)) {
            true => CopyMethod::Write,
            false => wanted,
        }
    }

    /// A file of that source cannot be copied that way, and perhaps none of them can.
    pub fn copy_refused(&self, source: SourceId, method: CopyMethod, error: &io::Error) {
        // btrfs says so of single files, such as those that are not checksummed.
        let of_this_file = matches!(
            Errno::from_io_error(error),
            Some(Errno::INVAL | Errno::PERM)
        );
        if method == CopyMethod::Reflink && of_this_file {
            return;
        }
        let asked = self.copy == method;
        if self.is_news(Refused::Copy(source, method)) && asked {
            let feature = format!("--copy-method {method}");
            let instead = "what was hashed is written";
            events::fallback(&feature, &error.to_string(), instead);
        }
    }

    fn is_known(&self, refused: &Refused) -> bool {
        let known = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(refused)
    }

    fn is_news(&self, refused: Refused) -> bool {
        let mut known = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(refused)
    }
}
