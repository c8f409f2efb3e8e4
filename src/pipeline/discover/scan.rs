//! A walk over one input that can be paused at any entry, so that the first file is ingested while the last is still
//! being listed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, FileType};

use crate::io::open;

/// Directories that a listing may leave for later however much waits already.
const ENTERED_LEAST: usize = 64;
/// What a directory that waits takes besides its name.
const PLACE_BYTES: usize = std::mem::size_of::<Place>();

/// A walk in progress. Of what it has still to look at it remembers no more than so much: a listing that meets more directories
/// pauses until those are done, and goes on where it was.
pub struct Scan {
    root: Arc<OwnedFd>,
    /// The next one is last. Those of a directory share its path; so there are as many paths as directories are open one in another.
    waiting: Vec<Place>,
    /// What those take.
    bytes: usize,
    most_bytes: usize,
    current: Option<Listing>,
}

/// A directory, or the rest of one.
struct Place {
    parent: Arc<Path>,
    /// Empty for the parent itself.
    name: OsString,
    /// Where its listing goes on, if it has begun.
    from: Option<i64>,
}

struct Listing {
    dir: Dir,
    fd: Arc<OwnedFd>,
    path: Arc<Path>,
    /// Where it goes on.
    from: i64,
    /// What waits from there on was met in it.
    base: usize,
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
    /// A walk over the directory `path` beneath an input, which remembers about `most_bytes` of what is still to be done.
    pub fn new(root: Arc<OwnedFd>, path: PathBuf, most_bytes: usize) -> Scan {
        let name = path.into_os_string();
        Scan {
            root,
            bytes: PLACE_BYTES + name.len(),
            waiting: vec![Place {
                parent: Path::new("").into(),
                name,
                from: None,
            }],
            most_bytes,
            current: None,
        }
    }

    /// Walks later into a directory that it has just come across.
    pub fn enter(&mut self, path: &Path) {
        let (Some(listing), Some(name)) = (&self.current, path.file_name()) else {
            return;
        };
        let entered = self.waiting.len() - listing.base;
        self.bytes += PLACE_BYTES + name.len();
        self.waiting.push(Place {
            parent: Arc::clone(&listing.path),
            name: name.into(),
            from: None,
        });
        if self.bytes > self.most_bytes && entered + 1 >= ENTERED_LEAST {
            self.pause();
        }
    }

    /// Closes the directory that is being listed; what was met in it comes first then.
    pub fn pause(&mut self) {
        if let Some(listing) = self.current.take() {
            self.bytes += PLACE_BYTES;
            let rest = Place {
                parent: listing.path,
                name: OsString::new(),
                from: Some(listing.from),
            };
            self.waiting.insert(listing.base, rest);
        }
    }

    /// Opens a directory. What has been listed in part is no news.
    fn begin(&mut self, place: Place) -> Option<Entry> {
        self.bytes -= PLACE_BYTES + place.name.len();
        let path: Arc<Path> = match place.name.is_empty() {
            true => place.parent,
            false => place.parent.join(&place.name).into(),
        };
        let open = |path: &Path| -> io::Result<(Dir, Arc<OwnedFd>)> {
            let fd = Arc::new(open::dir_beneath(&*self.root, path)?);
            let mut dir = Dir::read_from(&*fd)?;
            if let Some(from) = place.from {
                dir.seek(from)?;
            }
            Ok((dir, fd))
        };
        match open(&path) {
            Ok((dir, fd)) => {
                let news = place.from.is_none().then(|| Entry::Directory {
                    path: path.to_path_buf(),
                    fd: Arc::clone(&fd),
                });
                self.current = Some(Listing {
                    dir,
                    fd,
                    path,
                    from: place.from.unwrap_or(0),
                    base: self.waiting.len(),
                });
                news
            }
            Err(error) => Some(Entry::Failed {
                path: path.to_path_buf(),
                error,
            }),
        }
    }
}

impl Iterator for Scan {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            let Some(listing) = &mut self.current else {
                let place = self.waiting.pop()?;
                match self.begin(place) {
                    None => continue,
                    news => return news,
                }
            };
            match listing.dir.read() {
                None => self.current = None,
                Some(Err(error)) => {
                    let path = listing.path.to_path_buf();
                    self.current = None;
                    let error = error.into();
                    return Some(Entry::Failed { path, error });
                }
                Some(Ok(entry)) => {
                    listing.from = entry.offset();
                    let name = entry.file_name().to_bytes();
                    if name == b"." || name == b".." {
                        continue;
                    }
                    return Some(Entry::Name {
                        path: listing.path.join(OsStr::from_bytes(name)),
                        dir: Arc::clone(&listing.fd),
                        kind: entry.file_type(),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Whatever a walk comes across, and the most that it remembered.
    fn walk(root: &Path, most_bytes: usize, pauses: bool) -> (BTreeSet<PathBuf>, usize) {
        let root = Arc::new(open::root_dir(root).unwrap());
        let mut scan = Scan::new(root, PathBuf::new(), most_bytes);
        let (mut seen, mut most) = (BTreeSet::new(), 0);
        while let Some(entry) = scan.next() {
            match entry {
                Entry::Directory { .. } => {}
                Entry::Name { path, kind, .. } => {
                    if kind.is_dir() {
                        scan.enter(&path);
                    }
                    assert!(seen.insert(path.clone()), "{path:?} comes twice");
                }
                Entry::Failed { path, error } => panic!("{path:?}: {error}"),
            }
            if pauses && seen.len() % 3 == 0 {
                scan.pause();
            }
            most = most.max(scan.waiting.len());
        }
        assert_eq!(scan.bytes, 0);
        (seen, most)
    }

    #[test]
    fn a_walk_that_may_remember_little_comes_across_everything_once() {
        let root = tempfile::tempdir().unwrap();
        let mut all = BTreeSet::new();
        for outer in 0..3 {
            let dir = PathBuf::from(format!("d{outer}"));
            for inner in 0..300 {
                let dir = dir.join(format!("s{inner}"));
                std::fs::create_dir_all(root.path().join(&dir)).unwrap();
                let file = dir.join("file");
                std::fs::write(root.path().join(&file), "x").unwrap();
                all.extend([file, dir]);
            }
            all.insert(dir);
        }
        let (seen, most) = walk(root.path(), usize::MAX, false);
        assert_eq!(seen, all);
        assert!(most > 300);
        let (seen, most) = walk(root.path(), 0, false);
        assert_eq!(seen, all);
        assert!(most <= 2 * ENTERED_LEAST + 3, "{most}");
        assert_eq!(walk(root.path(), usize::MAX, true).0, all);
    }
}
