//! `claim_dir`: a settled file is moved there before it is read, so that its input shows what still waits, and the other
//! directory what is in work.
//!
//! | a crash after | leaves the file | and the next start |
//! |---|---|---|
//! | the move to the claim directory, durable or not | there, or in its input | finishes what the recorder had begun, then gives back what is left |
//! | the same, on btrfs | under both names | removes the one in the claim directory |
//! | a move back, durable or not | in its input, or there | the same |
//!
//! Nothing of a file that was claimed is placed before both directories are durable (`record/place.rs`).

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;

use crate::failure::Failure;
use crate::io::disk::DirHandle;
use crate::io::{Disk, Identity, RealDisk};
use crate::observe::events;
use crate::trial::{mutants, points};

use super::record::dirs::ensure_dir;
use super::record::layout;

/// How many names are tried for a file whose own name is taken in its input.
const NAMES_MAX: u64 = 10_000;

/// A claim directory and the input that it belongs to.
#[derive(Debug)]
pub struct ClaimDir {
    /// How names are moved.
    pub disk: RealDisk,
    /// The input.
    pub input: DirHandle,
    /// Its path, for people.
    pub input_path: PathBuf,
    /// The claim directory.
    pub dir: DirHandle,
    /// Its path, for people.
    pub path: PathBuf,
}

/// A file that was moved to a claim directory.
#[derive(Debug)]
pub struct Claim {
    place: Arc<ClaimDir>,
    path: Arc<Path>,
}

impl ClaimDir {
    /// Moves a file there. AlreadyExists: something of that name is there. A failed sync is marked as such.
    pub fn take(self: &Arc<ClaimDir>, path: &Arc<Path>) -> io::Result<Claim> {
        let from = self.disk.open_dir(&self.input, parent(path))?;
        let to = ensure_dir(&self.disk, &self.dir, parent(path))?;
        let name = name_of(path);
        match self.disk.rename(&from, name, &to, name) {
            // A directory of that name that nothing is in any more; others may have files there.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove_empty_dir(&to, name)?;
                self.disk.rename(&from, name, &to, name)?;
            }
            renamed => renamed?,
        }
        points::reached("claimed");
        Ok(Claim {
            place: Arc::clone(self),
            path: Arc::clone(path),
        })
    }

    /// Gives a file back to its input, under another name if its own is taken. False: it is not there.
    fn give_back(&self, path: &Path) -> io::Result<bool> {
        let name = name_of(path);
        let from = match self.disk.open_dir(&self.dir, parent(path)) {
            Ok(from) => from,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let to = self.disk.open_dir(&self.input, parent(path))?;
        if mutants::on("returned_claim_replaces") {
            self.disk.unlink(&to, name).ok();
        }
        for number in 0..NAMES_MAX {
            let back = match number {
                0 => name.to_os_string(),
                _ => layout::with_infix(name, &format!("returned{number}")),
            };
            match self.disk.rename(&from, name, &to, &back) {
                // A power cut brought its name in the input back beside the one here (btrfs).
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number == 0 => {
                    if self.is_same(&from, &to, name)? && !mutants::on("claimed_twin_returned") {
                        self.disk.unlink(&from, name)?;
                        points::reached("claim_given_back");
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                moved => {
                    points::reached("claim_given_back");
                    return moved.map(|()| true);
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Whether a name is that of one file in two directories.
    fn is_same(&self, one: &DirHandle, other: &DirHandle, name: &OsStr) -> io::Result<bool> {
        let (one, other) = (self.disk.stat(one, name)?, self.disk.stat(other, name)?);
        Ok(one
            .zip(other)
            .is_some_and(|(one, other)| one.identity.same_file(&other.identity)))
    }

    /// Gives all that is in it back to its input, but for what `stays`: what is done with, and could not be removed yet, or at
    /// all. Returns how many.
    ///
    /// # Errors
    /// Directories that cannot be read. A file that cannot be moved stays, and that is told.
    pub fn give_all_back(&self, stays: impl Fn(&Path, &Identity) -> bool) -> Result<u64, Failure> {
        let stays = |path: &Path, identity: &Identity| {
            stays(path, identity) && !mutants::on("owed_claim_returned")
        };
        let mut waiting = vec![PathBuf::new()];
        let mut returned = 0;
        while let Some(directory) = waiting.pop() {
            let failed =
                |error: io::Error| Failure::io("look into", &self.path.join(&directory), &error);
            let open = self.disk.open_dir(&self.dir, &directory).map_err(failed)?;
            for name in self.disk.list(&open).map_err(failed)? {
                let path = directory.join(&name);
                let Some(seen) = self.disk.stat(&open, &name).map_err(failed)? else {
                    continue;
                };
                match seen.kind {
                    FileType::Directory => waiting.push(path),
                    FileType::RegularFile if !is_hidden(&name) && !stays(&path, &seen.identity) => {
                        match self.give_back(&path) {
                            Ok(given) => returned += u64::from(given),
                            Err(error) => self.say_it_stays(&path, &error),
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(returned)
    }

    fn say_it_stays(&self, path: &Path, error: &io::Error) {
        let remedy = "it stays there until the next start, or move it back by hand";
        let path = self.path.join(path);
        events::file_failed(&path, "give back to its input", &error.to_string(), remedy);
    }
}

impl Claim {
    /// The file is not taken after all. Whether it was still there.
    pub fn give_back(self) -> bool {
        if mutants::on("claim_not_returned") {
            return true;
        }
        match self.place.give_back(&self.path) {
            Ok(given) => given,
            Err(error) => {
                self.place.say_it_stays(&self.path, &error);
                false
            }
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "an empty directory holds nothing of anybody's"
)]
fn remove_empty_dir(parent: &DirHandle, name: &OsStr) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(
        parent,
        name,
        rustix::fs::AtFlags::REMOVEDIR,
    )?)
}

/// Names on their way out are hidden.
fn is_hidden(name: &OsString) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(OsStr::new("."))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::io::open;

    use super::*;

    #[test]
    fn all_is_given_back_but_for_what_is_owed_and_nothing_is_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let [input_path, path] = ["input", "claims"].map(|name| root.path().join(name));
        let open = |path: &Path| {
            fs::create_dir_all(path.join("sub")).unwrap();
            Arc::new(open::root_dir(path).unwrap())
        };
        let claims = ClaimDir {
            disk: RealDisk {
                durable: true,
                syncfs: true,
                lease_signal: None,
            },
            input: open(&input_path),
            dir: open(&path),
            input_path,
            path,
        };
        for name in ["a", "sub/a", "sub/owed", "taken", ".leaving"] {
            fs::write(claims.path.join(name), name).unwrap();
        }
        fs::write(claims.input_path.join("taken"), "newer").unwrap();
        let owed = |path: &Path, _: &Identity| path == Path::new("sub/owed");
        assert_eq!(claims.give_all_back(owed).unwrap(), 3);
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        for (name, content) in [
            ("a", "a"),
            ("sub/a", "sub/a"),
            ("taken", "newer"),
            ("taken.returned1", "taken"),
        ] {
            assert_eq!(read(&claims.input_path.join(name)), content, "{name}");
        }
        for name in ["sub/owed", ".leaving"] {
            assert_eq!(read(&claims.path.join(name)), name);
        }
        assert_eq!(claims.give_all_back(owed).unwrap(), 0);
    }
}
