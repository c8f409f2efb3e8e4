//! A walk over one input that can be paused at any entry, so that the first file is ingested while the last is still
//! being listed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, FileType};

use crate::io::open;

/// A walk in progress.
pub struct Scan {
    root: Arc<OwnedFd>,
    waiting: Vec<PathBuf>,
    current: Option<(Dir, Arc<OwnedFd>, PathBuf)>,
}

/// What a walk comes across.
pub enum Entry {
    /// A directory that the walk has just opened; it must be watched before its entries are listed.
    Directory {
        /// Path beneath the input.
        path: PathBuf,
        /// The directory.
        fd: Arc<OwnedFd>,
    },
    /// Anything in a directory.
    Name {
        /// Path beneath the input.
        path: PathBuf,
        /// The directory it is in.
        dir: Arc<OwnedFd>,
        /// What the directory says it is; may be unknown.
        kind: FileType,
    },
    /// A directory that cannot be listed.
    Failed {
        /// Path beneath the input.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Scan {
    /// A walk over the directory `path` beneath an input.
    pub fn new(root: Arc<OwnedFd>, path: PathBuf) -> Scan {
        Scan {
            root,
            waiting: vec![path],
            current: None,
        }
    }

    /// Walks into a directory later.
    pub fn enter(&mut self, path: PathBuf) {
        self.waiting.push(path);
    }

    fn begin(&mut self, path: PathBuf) -> Entry {
        let open = |path: &Path| -> io::Result<(Dir, Arc<OwnedFd>)> {
            let fd = Arc::new(open::dir_beneath(&*self.root, path)?);
            Ok((Dir::read_from(&*fd)?, fd))
        };
        match open(&path) {
            Ok((dir, fd)) => {
                self.current = Some((dir, Arc::clone(&fd), path.clone()));
                Entry::Directory { path, fd }
            }
            Err(error) => Entry::Failed { path, error },
        }
    }
}

impl Iterator for Scan {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            let Some((dir, fd, parent)) = &mut self.current else {
                let path = self.waiting.pop()?;
                return Some(self.begin(path));
            };
            match dir.read() {
                None => self.current = None,
                Some(Err(error)) => {
                    let path = parent.clone();
                    self.current = None;
                    let error = error.into();
                    return Some(Entry::Failed { path, error });
                }
                Some(Ok(entry)) => {
                    let name = entry.file_name().to_bytes();
                    if name == b"." || name == b".." {
                        continue;
                    }
                    return Some(Entry::Name {
                        path: parent.join(OsStr::from_bytes(name)),
                        dir: Arc::clone(fd),
                        kind: entry.file_type(),
                    });
                }
            }
        }
    }
}
