//! A directory that one run of a program works in: private, and gone afterwards whatever was left in it.
//!
//! A program unpacks what strangers sent, so its directory may hold trees of any depth, with any modes. Removal needs three
//! descriptors at a time and no recursion: what lies in a subdirectory moves up before that goes.

use std::ffi::{CStr, CString, OsStr};
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::open;

/// How long a removal may take: who is killed may live on for a while, and make more.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(300);
const PRIVATE: Mode = Mode::RWXU;

/// A directory of mode 0700 in the system's temporary directory. Dropped, it is removed as far as that can be done.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    removed: bool,
}

impl Scratch {
    /// Makes one.
    ///
    /// # Errors
    /// Whatever it is, it says nothing of room in the warehouse.
    pub fn new() -> io::Result<Scratch> {
        let made = tempfile::Builder::new()
            .prefix("ringest-check-")
            .permissions(Permissions::from_mode(PRIVATE.as_raw_mode()))
            .tempdir();
        // Not of its own kind: a full /tmp is no reason to pause intake.
        let failed = |error| format!("no working directory can be made (TMPDIR): {error}");
        let made = made.map_err(|error| io::Error::other(failed(error)))?;
        Ok(Scratch {
            // It would be removed by recursion.
            path: made.keep(),
            removed: false,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    ///
    /// # Errors
    /// Something in it cannot be removed, or new things came for too long.
    pub fn remove(mut self) -> io::Result<()> {
        self.removed = true;
        self.empty()?;
        std::fs::remove_dir(&self.path)
    }

    fn empty(&self) -> io::Result<()> {
        let root = open::root_dir(self.path())?;
        let deadline = Instant::now() + REMOVAL_TIMEOUT;
        let mut moved = 0u64;
        loop {
            let names = names(&root)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                if remove(&root, &name)? {
                    continue;
                }
                let dir = open_private(&root, &name)?;
                for inner in self::names(&dir)? {
                    if !remove(&dir, &inner)? {
                        make_private(&dir, &inner)?;
                        move_up(&dir, &inner, &root, &mut moved)?;
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.removed && self.empty().is_ok() {
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// Removes a name. False: it is a directory with something in it.
fn remove(dir: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        Err(error) if error != Errno::NOENT => return Err(error.into()),
        _ => return Ok(true),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Gives a directory to another, under a name that nothing of use has there.
fn move_up(from: &OwnedFd, name: &CStr, to: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        // What it may replace, an empty directory, would go, too.
        match rustix::fs::renameat(from, name, to, format!("moved-{moved}")) {
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            done => return Ok(done?),
        }
    }
}

/// Lets this user list and change a directory: through a descriptor, which is no link's.
fn make_private(dir: &OwnedFd, name: &CStr) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    Ok(rustix::fs::chmod(open::proc_path(&held), PRIVATE)?)
}

fn open_private(dir: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    make_private(dir, name)?;
    open::dir_beneath(dir, Path::new(OsStr::from_bytes(name.to_bytes())))
}

fn names(dir: impl AsFd) -> io::Result<Vec<CString>> {
    let entries = Dir::read_from(dir)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_owned()));
    let names: io::Result<Vec<_>> = names.collect();
    let is_own = |name: &CString| [c".", c".."].contains(&name.as_c_str());
    Ok(names?.into_iter().filter(|name| !is_own(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn it_is_private_and_goes_with_all_that_was_left_in_it() {
        let scratch = Scratch::new().expect("made");
        let path = scratch.path().to_owned();
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        let outside = tempfile::tempdir().expect("made");
        fs::write(outside.path().join("kept"), "").expect("write");
        symlink(outside.path(), path.join("link")).expect("link");
        for (number, mode) in [0o000, 0o500, 0o777].into_iter().enumerate() {
            let dir = path.join(number.to_string());
            fs::create_dir_all(dir.join("a/b")).expect("mkdir");
            fs::write(dir.join("a/file"), "").expect("write");
            // A name that the removal gives, too.
            fs::create_dir_all(dir.join("moved-1/c")).expect("mkdir");
            for closed in [dir.join("a/b"), dir.join("a"), dir] {
                fs::set_permissions(closed, Permissions::from_mode(mode)).expect("chmod");
            }
        }
        scratch.remove().expect("removed");
        assert!(!path.exists() && outside.path().join("kept").exists());
    }

    #[test]
    fn trees_that_are_deeper_than_a_process_has_descriptors_go_too() {
        const DEPTH: usize = 3000;
        let scratch = Scratch::new().expect("made");
        let path = scratch.path().to_owned();
        let mut dir = open::root_dir(&path).expect("open");
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&dir, "deeper", PRIVATE).expect("mkdir");
            dir = open::dir_beneath(&dir, Path::new("deeper")).expect("open");
        }
        drop(scratch);
        assert!(!path.exists());
    }
}
