//! Directories of one batch: each opened once, made durable where it is made, synced once.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use crate::io::Disk;
use crate::io::open::SyncFailed;
use crate::trial::{mutants, points};

/// Opens the directory `path` beneath `root`, making what is missing. Every directory on the way that is made is
/// durable in its parent before this returns.
pub fn ensure_dir<D: Disk>(disk: &D, root: &D::Dir, path: &Path) -> io::Result<D::Dir> {
    match disk.open_dir(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let parent = ensure_dir(disk, root, path.parent().unwrap_or(Path::new("")))?;
    let name = path.file_name().unwrap_or(OsStr::new("."));
    match disk.make_dir(&parent, name) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    points::reached("directory_made");
    if !mutants::on("new_directory_unsynced") {
        disk.sync_dir(&parent).map_err(SyncFailed::mark)?;
    }
    points::reached("directory_synced");
    disk.open_dir(&parent, Path::new(name))
}

/// Directories in use, by root and path.
pub struct Dirs<K: Ord, D: Disk> {
    open: BTreeMap<K, BTreeMap<PathBuf, D::Dir>>,
}

impl<K: Ord + Copy, D: Disk> Default for Dirs<K, D> {
    fn default() -> Self {
        Dirs {
            open: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Copy, D: Disk> Dirs<K, D> {
    /// The directory `path` beneath `root`, which is known as `key`. With `make`, what is missing is made.
    pub fn get(
        &mut self,
        disk: &D,
        key: K,
        root: &D::Dir,
        path: &Path,
        make: bool,
    ) -> io::Result<D::Dir> {
        let open = self.open.entry(key).or_default();
        if let Some(dir) = open.get(path) {
            return Ok(dir.clone());
        }
        let dir = match make {
            true => ensure_dir(disk, root, path)?,
            false => disk.open_dir(root, path)?,
        };
        open.insert(path.to_path_buf(), dir.clone());
        Ok(dir)
    }
}
