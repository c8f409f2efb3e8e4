//! Filesystems in images, whose power can be cut.
//!
//! ext4 and xfs are shut down by `FS_IOC_SHUTDOWN` without a flush of their log (`xfs_io -x -c shutdown`): from then on nothing
//! reaches the image. btrfs knows no such thing: there the image is copied as it is at that moment, and the copy is what
//! is mounted next.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{PATIENCE, has_program, is_root, make_filesystem, skip};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fs {
    Ext4,
    Xfs,
    Btrfs,
}

impl Fs {
    fn name(self) -> &'static str {
        match self {
            Fs::Ext4 => "ext4",
            Fs::Xfs => "xfs",
            Fs::Btrfs => "btrfs",
        }
    }

    /// The smallest images that their `mkfs` makes without complaint, roughly.
    fn image_bytes(self) -> u64 {
        match self {
            Fs::Ext4 => 96 << 20,
            Fs::Xfs => 300 << 20,
            Fs::Btrfs => 160 << 20,
        }
    }
}

/// Whether images can be made, mounted and cut here; says why not.
pub fn possible() -> bool {
    if !is_root() {
        skip("needs root to mount images");
        return false;
    }
    for program in ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "xfs_io", "btrfs"] {
        if !has_program(program, "-V") {
            skip(&format!("needs {program}"));
            return false;
        }
    }
    if !Path::new("/dev/loop-control").exists() {
        skip("needs loop devices");
        return false;
    }
    true
}

/// A mounted image.
pub struct Disk {
    pub fs: Fs,
    /// Where it is mounted.
    pub root: PathBuf,
    image: PathBuf,
    /// What a btrfs held when its power was cut.
    held: Option<PathBuf>,
}

impl Disk {
    /// Makes a filesystem in a new image in `directory`.
    pub fn new(fs: Fs, directory: &Path, name: &str) -> Disk {
        let disk = Disk {
            fs,
            root: directory.join(name),
            image: directory.join(format!("{name}.{}", fs.name())),
            held: None,
        };
        fs::create_dir(&disk.root).expect("make a mount point");
        let image = fs::File::create(&disk.image).expect("make an image");
        image.set_len(fs.image_bytes()).expect("make an image");
        let mkfs = format!("mkfs.{}", fs.name());
        let words = [OsStr::new("-q"), disk.image.as_os_str()];
        make_filesystem(&mut command(&mkfs, words));
        disk.mount();
        disk
    }

    /// From now on nothing more reaches the disk.
    pub fn cut(&mut self) {
        match self.fs {
            Fs::Ext4 | Fs::Xfs => {
                let words = ["-x", "-c", "shutdown"].map(OsStr::new);
                run("xfs_io", words.into_iter().chain([self.root.as_os_str()]));
            }
            Fs::Btrfs => {
                let held = self.image.with_extension("held");
                let words = [OsStr::new("--sparse=always"), self.image.as_os_str()];
                run("cp", words.into_iter().chain([held.as_os_str()]));
                self.held = Some(held);
            }
        }
    }

    /// Unmounts and mounts again: everything that was not on the disk when its power was cut is gone.
    pub fn restart(&mut self) {
        self.unmount();
        if let Some(held) = self.held.take() {
            fs::rename(held, &self.image).expect("go back to what the disk held");
            // The kernel remembers a later generation of the same filesystem.
            run("btrfs", ["device", "scan", "--forget"].map(OsStr::new));
        }
        self.mount();
    }

    fn mount(&self) {
        let words = ["-t", self.fs.name(), "-o", "loop"].map(OsStr::new);
        let paths = [self.image.as_os_str(), self.root.as_os_str()];
        run("mount", words.into_iter().chain(paths));
    }

    fn unmount(&self) {
        unmount(&self.root);
    }
}

fn unmount(path: &Path) {
    let start = Instant::now();
    // The ring of a killed process can hold a file for a moment.
    while !succeeds("umount", [path.as_os_str()]) {
        let waited = start.elapsed();
        assert!(waited < PATIENCE, "{path:?} cannot be unmounted");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Its loop device goes with it.
        succeeds("umount", [OsStr::new("--lazy"), self.root.as_os_str()]);
    }
}

/// A directory to which no other file of its filesystem can be renamed: a subvolume on btrfs, elsewhere a mount of its own.
pub struct Apart {
    path: PathBuf,
    /// What is mounted there.
    elsewhere: Option<PathBuf>,
}

impl Apart {
    /// Makes it.
    pub fn new(fs: Fs, path: &Path) -> Apart {
        fs::create_dir_all(path.parent().expect("it is not the root")).expect("make a directory");
        let elsewhere = path.with_extension("elsewhere");
        if fs == Fs::Btrfs {
            let words = ["subvolume", "create"].map(OsStr::new);
            run("btrfs", words.into_iter().chain([path.as_os_str()]));
        } else {
            for directory in [&elsewhere, path] {
                fs::create_dir(directory).expect("make a directory");
            }
        }
        let apart = Apart {
            path: path.to_owned(),
            elsewhere: (fs != Fs::Btrfs).then_some(elsewhere),
        };
        apart.mount();
        apart
    }

    /// Before its filesystem is unmounted.
    pub fn unmount(&self) {
        if self.elsewhere.is_some() {
            unmount(&self.path);
        }
    }

    /// After its filesystem was mounted again.
    pub fn mount(&self) {
        if let Some(elsewhere) = &self.elsewhere {
            let paths = [elsewhere.as_os_str(), self.path.as_os_str()];
            run("mount", [OsStr::new("--bind")].into_iter().chain(paths));
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if self.elsewhere.is_some() {
            succeeds("umount", [OsStr::new("--lazy"), self.path.as_os_str()]);
        }
    }
}

fn command<'a>(program: &str, words: impl IntoIterator<Item = &'a OsStr>) -> Command {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    command
}

fn succeeds<'a>(program: &str, words: impl IntoIterator<Item = &'a OsStr>) -> bool {
    let output = command(program, words).output();
    output.is_ok_and(|output| output.status.success())
}

pub fn run<'a>(program: &str, words: impl IntoIterator<Item = &'a OsStr>) {
    let mut command = command(program, words);
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
