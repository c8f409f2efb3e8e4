//! A warehouse whose filesystem will not take what comes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use crate::output;
use crate::support::{Site, has_program, is_root, skip, wait_until};

const ARGS: &[&str] = &["--stability-seconds", "0.1", "--rescan-seconds", "0.5"];

/// A small ext4 filesystem, mounted.
struct Small {
    path: PathBuf,
    _directory: TempDir,
}

impl Small {
    /// `None`, and skipped, if there cannot be one here.
    fn new(mkfs: &[&str]) -> Option<Small> {
        if !is_root() || !has_program("mkfs.ext4", "-V") {
            skip("needs root and mkfs.ext4");
            return None;
        }
        let directory = tempfile::Builder::new()
            .prefix("ringest-faults-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("make a directory");
        let (image, path) = (directory.path().join("image"), directory.path().join("fs"));
        fs::create_dir(&path).expect("make a mount point");
        let file = fs::File::create(&image).expect("make an image");
        file.set_len(64 << 20).expect("make it as long");
        output(Command::new("mkfs.ext4").arg("-qF").args(mkfs).arg(&image));
        output(
            Command::new("mount")
                .arg("-o")
                .arg("loop")
                .arg(&image)
                .arg(&path),
        );
        Some(Small {
            path,
            _directory: directory,
        })
    }

    fn remount(&self, flags: MountFlags) -> bool {
        rustix::mount::mount_remount(&self.path, flags, c"").is_ok()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // The loop device goes with the mount.
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
    }
}

#[test]
fn intake_waits_while_the_warehouse_is_read_only() {
    let Some(small) = Small::new(&[]) else { return };
    let mut site = Site::new().with(ARGS);
    site.warehouse = small.path.join("warehouse");
    let mut running = site.start(&[]);
    running.wait_for_event("started", "");
    site.put("before.csv", "before");
    site.wait_for_line(&mut running, "before.csv");
    wait_until("nothing is open for writing there", || {
        small.remount(MountFlags::RDONLY)
    });
    for i in 0..20 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    running.wait_for_event("intake_paused", "");
    assert_eq!(site.manifest_so_far().len(), 1);
    assert!(small.remount(MountFlags::empty()));
    running.wait_for_event("intake_resumed", "");
    site.wait_for_lines(&mut running, 21);
    running.terminate();
    assert_eq!(site.manifest().len(), 21);
    site.assert_sound();
}

#[test]
fn intake_waits_while_the_warehouse_has_no_inode() {
    let Some(small) = Small::new(&["-N", "128"]) else {
        return;
    };
    let mut site = Site::new().with(ARGS);
    site.warehouse = small.path.join("warehouse");
    let mut running = site.start(&[]);
    running.wait_for_event("started", "");
    site.put("before.csv", "before");
    site.wait_for_line(&mut running, "before.csv");
    let filler = small.path.join("filler");
    fs::create_dir(&filler).expect("make a directory");
    let fill = |i: usize| fs::write(filler.join(i.to_string()), "");
    let full = (0..1000).find_map(|i| fill(i).err());
    let full = full.expect("no inode is left").kind();
    assert_eq!(full, std::io::ErrorKind::StorageFull);

    for i in 0..20 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    running.wait_for_event("intake_paused", "");
    assert_eq!(site.manifest_so_far().len(), 1);
    fs::remove_dir_all(&filler).expect("make room");
    running.wait_for_event("intake_resumed", "");
    site.wait_for_lines(&mut running, 21);
    running.terminate();
    assert_eq!(site.manifest().len(), 21);
    site.assert_sound();
}
