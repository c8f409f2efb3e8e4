//! Whose word settings are: a settings file, a schema, a command and its script have ringest do what they say, with its rights. So none of
//! them may be anybody's to write but root's and that of the user that ringest runs as, and neither may a directory or a symbolic link on
//! the way to it: who writes there puts another in its place.
//!
//! | on the way | trusted if it is root's or this user's, and |
//! |---|---|
//! | a file | neither its group nor others may write |
//! | a directory | the same, or it is sticky: then only its entries' owners may move them, and these are looked at |
//! | a symbolic link | (nothing: only a directory's writer can change one); then its target's way, too |
//! | a character device | (nothing: what is written to `/dev/null` or a terminal is not what is read there) |
//!
//! Modes tell of POSIX ACLs, too: where there is one, the group's bits are its mask, and so no entry grants more.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, PROC_SUPER_MAGIC};
use rustix::io::Errno;

use super::SettingsError;
use crate::io::stat::{self, FileStat};

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;
const ROOT: u32 = 0;

/// Why a file is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// What it is: "settings file".
    what: &'static str,
    /// Its path, as given.
    path: PathBuf,
    /// What on the way to it is doubtful, or it itself.
    at: PathBuf,
    why: Why,
}

/// What is wrong with one thing on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It is that user's.
    Owner(u32),
    /// Its group may write to it, or everybody.
    Writable { others: bool, mode: u32 },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, at) = (self.path.display(), self.at.display());
        let what = self.what;
        write!(f, "{path}: others may change this {what}: ")?;
        match self.why {
            Why::Owner(owner) => write!(
                f,
                "{at} belongs to user {owner}; chown it to root, or to the user that ringest runs as"
            )?,
            Why::Writable { others, mode } => {
                let who = if others { "everybody" } else { "its group" };
                write!(
                    f,
                    "{who} may write to {at} (mode {mode:04o}); chmod go-w it"
                )?;
            }
        }
        f.write_str(", or say --trust-config if they may")
    }
}

/// Whether files that others may write are used all the same.
#[derive(Debug)]
pub(super) struct Trust {
    given: bool,
    doubts: RefCell<Vec<String>>,
}

impl Trust {
    /// `given`: all are used.
    pub fn new(given: bool) -> Trust {
        let doubts = RefCell::default();
        Trust { given, doubts }
    }

    /// Asks whether the file of this absolute path may be used.
    ///
    /// # Errors
    /// It may not.
    pub fn ask(&self, what: &'static str, path: &Path) -> Result<(), SettingsError> {
        // Where the way cannot be gone, the file cannot be opened, and whoever opens it says why.
        let Ok(Some((at, why))) = doubt(path) else {
            return Ok(());
        };
        let path = path.to_owned();
        let doubt = Doubt {
            what,
            path,
            at,
            why,
        };
        match self.given {
            false => Err(SettingsError::Untrusted(doubt)),
            true => {
                self.doubts.borrow_mut().push(doubt.to_string());
                Ok(())
            }
        }
    }

    /// What was used although others may write it.
    pub fn doubts(self) -> Vec<String> {
        self.doubts.into_inner()
    }
}

/// The rule for one thing on the way, for a process of the user `own`.
fn judge(kind: FileType, owner: u32, mode: u32, own: u32) -> Option<Why> {
    const STICKY: u32 = 0o1000;
    const GROUP_WRITES: u32 = 0o020;
    const OTHERS_WRITE: u32 = 0o002;
    if owner != ROOT && owner != own {
        return Some(Why::Owner(owner));
    }
    let is_safe = match kind {
        FileType::Symlink | FileType::CharacterDevice => true,
        FileType::Directory => mode & STICKY != 0,
        _ => false,
    };
    let writers = mode & (GROUP_WRITES | OTHERS_WRITE);
    (writers != 0 && !is_safe).then_some(Why::Writable {
        others: writers & OTHERS_WRITE != 0,
        mode,
    })
}

/// The first thing on the way to a file, or it itself, that others than root and this user may change. What was passed nobody else
/// can change while the rest is looked at, and so the answer still holds when the file is opened by its path.
fn doubt(path: &Path) -> io::Result<Option<(PathBuf, Why)>> {
    let own = rustix::process::geteuid().as_raw();
    let judge = |seen: &FileStat| judge(seen.kind, seen.uid, seen.mode, own);
    let mut left = VecDeque::from(parts(path));
    let (mut at, mut dir) = (PathBuf::new(), None);
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        let above = dir.as_ref();
        let mut entry = held(above, &part, OFlags::NOFOLLOW)?;
        let mut seen = stat::stat_fd(&entry)?;
        let is_link = seen.kind == FileType::Symlink;
        let is_kernels = is_link && rustix::fs::fstatfs(&entry)?.f_type == PROC_SUPER_MAGIC;
        if is_kernels {
            // A descriptor that ringest was started with, by its link: it need not have a path.
            entry = held(above, &part, OFlags::empty())?;
            seen = stat::stat_fd(&entry)?;
        }
        if let Some(why) = judge(&seen) {
            return Ok(Some((at.join(&part), why)));
        }
        if is_link && !is_kernels {
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP.into());
            }
            let target = rustix::fs::readlinkat(&entry, c"", Vec::new())?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            for part in parts(&target).into_iter().rev() {
                left.push_front(part);
            }
            continue;
        }
        at.push(&part);
        dir = Some(entry);
    }
    Ok(None)
}

/// The steps of a path; `/` is one.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter(|it| *it != Component::CurDir);
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

/// Whatever has a name, open for nothing but to look at it.
fn held(dir: Option<&OwnedFd>, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
    let dir = dir.map_or(rustix::fs::CWD, AsFd::as_fd);
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::open;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    #[test]
    fn only_what_is_ours_or_roots_and_nobody_elses_to_write_is_trusted() {
        const OWN: u32 = 1000;
        const OTHER: u32 = 1001;
        let kinds = [
            FileType::RegularFile,
            FileType::Fifo,
            FileType::Directory,
            FileType::Symlink,
            FileType::CharacterDevice,
        ];
        for kind in kinds {
            for owner in [ROOT, OWN, OTHER] {
                for mode in 0..=0o7777 {
                    let why = judge(kind, owner, mode, OWN);
                    let told = format!("{kind:?} of {owner}, {mode:04o}: {why:?}");
                    if owner == OTHER {
                        assert_eq!(why, Some(Why::Owner(OTHER)), "{told}");
                        continue;
                    }
                    let writable = match kind {
                        FileType::Symlink | FileType::CharacterDevice => false,
                        FileType::Directory if mode & 0o1000 != 0 => false,
                        _ => mode & 0o022 != 0,
                    };
                    assert_eq!(why.is_some(), writable, "{told}");
                }
            }
        }
        // Root trusts root alone.
        assert!(judge(FileType::RegularFile, OWN, 0o600, ROOT).is_some());
    }

    /// A directory of ours with a file in a subdirectory, on a way that is trusted.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("dir");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(dir.join("file"), Permissions::from_mode(0o644)).unwrap();
        (place, dir)
    }

    fn doubted(path: &Path) -> Option<PathBuf> {
        doubt(path).unwrap().map(|(at, _)| at)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_and_all_directories_on_its_way_are_looked_at() {
        let (place, dir) = place();
        let file = dir.join("file");
        assert_eq!(doubted(&file), None);
        for (path, mode, is_doubted) in [
            (&file, 0o664, true),
            (&file, 0o602, true),
            (&file, 0o4755, false),
            (&dir, 0o775, true),
            (&dir, 0o757, true),
            (&dir, 0o1777, false),
            (&place.path().to_owned(), 0o770, true),
        ] {
            let before = fs::metadata(path).unwrap().mode();
            chmod(path, mode);
            assert_eq!(doubted(&file).as_ref(), is_doubted.then_some(path));
            chmod(path, before);
        }
        assert!(doubt(&dir.join("none")).is_err());
        assert!(doubt(&file.join("none")).is_err());
    }

    #[test]
    fn links_are_followed_step_by_step() {
        let (place, dir) = place();
        let link = |name: &str, target: &Path| {
            let link = place.path().join(name);
            symlink(target, &link).unwrap();
            link
        };
        let absolute = link("absolute", &dir.join("file"));
        let relative = link("relative", Path::new("dir/../dir/./file"));
        let of_dir = link("of dir", &dir).join("file");
        let of_link = link("of link", Path::new("relative"));
        for path in [&absolute, &relative, &of_dir, &of_link] {
            assert_eq!(doubted(path), None, "{path:?}");
        }
        chmod(&dir, 0o777);
        for path in [&absolute, &relative, &of_dir, &of_link] {
            assert_eq!(doubted(path), Some(dir.clone()), "{path:?}");
        }
        let round = link("round", Path::new("round"));
        let error = doubt(&round).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    }

    #[test]
    fn what_belongs_to_somebody_else_is_doubted_in_a_sticky_directory_too() {
        if !rustix::process::geteuid().is_root() {
            return; // Nobody else gives anything away.
        }
        let (_place, dir) = place();
        let file = dir.join("file");
        chmod(&dir, 0o1777);
        chown(&file, Some(2001), None).unwrap();
        assert_eq!(
            doubt(&file).unwrap(),
            Some((file.clone(), Why::Owner(2001)))
        );
        let link = dir.join("link");
        symlink("/etc/passwd", &link).unwrap();
        assert_eq!(doubted(&link), None);
        std::os::unix::fs::lchown(&link, Some(2001), None).unwrap();
        assert_eq!(doubted(&link), Some(link));
        chown(&dir, Some(2001), None).unwrap();
        assert_eq!(doubted(&file), Some(dir));
    }

    #[test]
    fn devices_and_descriptors_that_we_were_given_are_trusted() {
        for path in ["/dev/null", "/proc/self/stat"] {
            assert_eq!(doubted(Path::new(path)), None, "{path}");
        }
        let (reading, _writing) = rustix::pipe::pipe().unwrap();
        let pipe = PathBuf::from(open::proc_path(&reading));
        assert_eq!(doubted(&pipe), None);
        let unnamed = tempfile::tempfile().unwrap();
        chmod(Path::new(&open::proc_path(&unnamed)), 0o666);
        let path = PathBuf::from(open::proc_path(&unnamed));
        assert!(doubted(&path).is_some());
    }

    #[test]
    fn a_doubt_says_who_may_write_where_and_what_to_do() {
        let doubt = |why| Doubt {
            what: "settings file",
            path: "/etc/r.toml".into(),
            at: "/etc".into(),
            why,
        };
        let mode = 0o775;
        assert_eq!(
            doubt(Why::Writable {
                others: false,
                mode
            })
            .to_string(),
            "/etc/r.toml: others may change this settings file: its group may write to /etc (mode 0775); chmod go-w it, or say \
             --trust-config if they may"
        );
        assert_eq!(
            doubt(Why::Owner(2001)).to_string(),
            "/etc/r.toml: others may change this settings file: /etc belongs to user 2001; chown it to root, or to the user that \
             ringest runs as, or say --trust-config if they may"
        );
    }
}
