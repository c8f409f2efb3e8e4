//! Directories, one after another. Uploaders write to some of them: no link is followed, no mount point crossed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::io::Disk;
use crate::verify::warehouse::is_absent;

/// Shows the names of every directory beneath `root`, sorted: the path beneath it, the open directory and the names of
/// everything in it that is not a directory. `within` says which directories are looked into, `failed` what an error means of
/// looking into one, or at what lies in it.
pub fn walk<D: Disk>(
    disk: &D,
    root: &D::Dir,
    shown: &Path,
    within: impl Fn(&Path) -> bool,
    failed: impl Fn(Failure) -> Result<(), Failure>,
    mut visit: impl FnMut(&Path, &D::Dir, Vec<OsString>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let failed = |error| failed(Failure::io("look into", &shown.join(&path), &error));
        let dir = match disk.open_dir(root, &path) {
            Ok(dir) => dir,
            // Gone meanwhile, or not ours to enter.
            Err(error) if is_absent(&error) || is_elsewhere(&error) => continue,
            Err(error) => {
                failed(error)?;
                continue;
            }
        };
        let mut names = disk
            .list(&dir)
            .or_else(|error| failed(error).map(|()| Vec::new()))?;
        names.sort_unstable();
        let mut files = Vec::new();
        let mut directories = Vec::new();
        for name in names {
            let beneath = path.join(&name);
            let seen = disk.stat(&dir, &name);
            let Some(seen) = seen.or_else(|error| failed(error).map(|()| None))? else {
                continue;
            };
            if seen.kind != rustix::fs::FileType::Directory {
                files.push(name);
            } else if within(&beneath) {
                directories.push(beneath);
            }
        }
        // The first on top.
        waiting.extend(directories.into_iter().rev());
        visit(&path, &dir, files)?;
    }
    Ok(())
}

fn is_elsewhere(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::LOOP | Errno::XDEV))
}
