//! What uploaders do. None of it is an event of ringest's, and none of it fails.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::disk::{Id, Image, Origin, Role};

/// The suffix of sidecars.
pub const SIDECAR: &str = ".ok";

/// Files in staging that ringest may take: all but hidden ones and sidecars.
pub fn visible(image: &Image) -> Vec<(Role, PathBuf)> {
    let sources = image.roots.keys().copied();
    sources
        .filter(|role| matches!(role, Role::Source(_)))
        .flat_map(|role| {
            let files = image.files(role, false).into_iter();
            files.map(move |(path, _)| (role, path))
        })
        .filter(|(_, path)| !is_hidden(path) && !is_sidecar(path))
        .collect()
}

pub fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

pub fn is_sidecar(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().ends_with(SIDECAR.as_bytes())
}

/// Writes a file and renames it to its name, over whatever is there. Nothing is synced. `None` on a read-only filesystem.
pub fn put(image: &mut Image, role: Role, path: &Path, bytes: &[u8]) -> Option<Id> {
    let mut dir = image.roots[&role];
    for name in path.parent().into_iter().flat_map(|parent| parent.iter()) {
        dir = match image.child(dir, name, false) {
            Some(dir) => dir,
            None => image.make_dir(dir, name, Origin::Uploader).ok()?,
        };
    }
    let name = path.file_name()?;
    if image.child(dir, name, false).is_none() {
        let id = image.make_file(dir, name, Origin::Uploader).ok()?;
        image.write(id, 0, bytes);
        return Some(id);
    }
    let temporary = OsStr::new(".uploading");
    let id = image.make_file(dir, temporary, Origin::Uploader).ok()?;
    image.write(id, 0, bytes);
    image.rename_over(dir, temporary, name).ok()?;
    Some(id)
}

/// Takes a file away.
pub fn remove(image: &mut Image, role: Role, path: &Path) {
    let dir = path.parent().unwrap_or(Path::new(""));
    let (Some(dir), Some(name)) = (image.find(role, dir, false), path.file_name()) else {
        return;
    };
    if let Some(id) = image.child(dir, name, false)
        && image.unlink(dir, name).is_ok()
    {
        let inode = image.edit(id);
        inode.withdrawn = inode.links == 0;
    }
}

/// After a power cut an uploader clears away what it had not finished.
pub fn tidy(image: &mut Image) {
    for role in image.roots.clone().into_keys() {
        for (path, _) in image.files(role, false) {
            if path.file_name() == Some(OsStr::new(".uploading")) {
                let dir = image.find(role, path.parent().unwrap_or(Path::new("")), false);
                let id = image.find(role, &path, false);
                if let (Some(dir), Some(id)) = (dir, id) {
                    let _ = image.unlink(dir, path.file_name().unwrap_or_default());
                    image.sync_dir(dir);
                    if image.inode(id).links == 0 {
                        image.edit(id).withdrawn = true;
                    }
                }
            }
        }
    }
}
