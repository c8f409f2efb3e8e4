//! Ways to read and to copy, on filesystems of which it is known what they can do.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use ringest::io::direct;
use support::image::{self, Apart, Disk, Fs};
use support::{Random, Site, sha256, sha256_of_file, skip};

const BYTES: usize = 16 << 20;

fn directory_for_images() -> tempfile::TempDir {
    let directory = tempfile::Builder::new()
        .prefix("ringest-methods-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    directory.expect("make a directory for images")
}

fn free_bytes(root: &Path) -> u64 {
    let directory = File::open(root).expect("open the root");
    rustix::fs::syncfs(&directory).expect("sync");
    let seen = rustix::fs::fstatvfs(&directory).expect("statvfs");
    seen.f_bavail * seen.f_frsize
}

fn site_at(root: &Path) -> Site {
    fs::create_dir_all(root.join("staging")).expect("make a directory");
    let places = ["staging", "warehouse", "manifests", "state"].map(|name| root.join(name));
    Site::at(root, places).with(&["--stability-seconds", "0.2"])
}

#[test]
fn a_copy_within_a_filesystem_that_clones_takes_no_room() {
    if !image::possible() {
        return;
    }
    let directory = directory_for_images();
    let mut random = Random::new();
    for (fs, method, shares) in [
        (Fs::Btrfs, "auto", true),
        (Fs::Btrfs, "reflink", true),
        (Fs::Btrfs, "write", false),
        (Fs::Xfs, "auto", true),
        (Fs::Xfs, "copy_file_range", true),
        (Fs::Xfs, "splice", false),
    ] {
        let disk = Disk::new(fs, directory.path(), &format!("{fs:?}-{method}"));
        let _apart = Apart::new(fs, &disk.root.join("warehouse"));
        let site = site_at(&disk.root);
        let content = random.bytes(BYTES);
        let path = site.put("large.bin", &content);
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, "user.origin", b"a test", flags).expect("set an attribute");
        // It shares the blocks of the source, which so are not free again when that goes.
        let clone = disk.root.join("clone");
        let words = [OsStr::new("--reflink=always"), path.as_os_str()];
        image::run("cp", words.into_iter().chain([clone.as_os_str()]));
        // What the state takes is taken before.
        site.run_once(&["--exclude", "*"]);
        let before = free_bytes(&disk.root);
        let ended = site.run_once(&["--copy-method", method]);
        let used = before.saturating_sub(free_bytes(&disk.root)) as usize;
        let line = site.line("large.bin");
        assert_eq!(line.sha256(), sha256(&content));
        let mut origin = [0; 64];
        let length = rustix::fs::getxattr(line.placed(), "user.origin", &mut origin[..]);
        assert_eq!(&origin[..length.expect("get an attribute")], b"a test");
        assert_eq!(used < BYTES / 2, shares, "{fs:?}, {method}: {used} bytes");
        assert_eq!(ended.events("fallback", "").len(), 0, "{ended}");
        site.assert_staging_is_empty();
        site.assert_sound();
    }
}

#[test]
fn a_filesystem_that_does_not_clone_is_written_to_and_said_so_if_a_clone_was_asked_for() {
    if !image::possible() {
        return;
    }
    let directory = directory_for_images();
    for (method, told) in [("auto", 0), ("reflink", 1), ("copy_file_range", 0)] {
        let disk = Disk::new(Fs::Ext4, directory.path(), method);
        let _apart = Apart::new(disk.fs, &disk.root.join("warehouse"));
        let site = site_at(&disk.root);
        for (name, content) in [("a.csv", "a"), ("b.csv", "b")] {
            site.put(name, content);
        }
        let ended = site.run_once(&["--copy-method", method]);
        assert_eq!(ended.events("fallback", "").len(), told, "{ended}");
        assert_eq!(site.manifest().len(), 2);
        site.assert_staging_is_empty();
        site.assert_sound();
    }
}

#[test]
fn holes_stay_holes_however_a_file_is_copied() {
    if !image::possible() {
        return;
    }
    let directory = directory_for_images();
    let mut random = Random::new();
    let piece = random.bytes(8 << 20);
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        let disk = Disk::new(fs, directory.path(), &format!("{fs:?}"));
        let _apart = Apart::new(fs, &disk.root.join("warehouse"));
        let site = site_at(&disk.root);
        for method in ["write", "copy_file_range", "splice", "reflink"] {
            let name = format!("{method}.bin");
            let path = site.put(&name, method);
            let file = File::options().write(true).open(&path).expect("open");
            for at in [8, 24, 40] {
                file.write_all_at(&piece, at << 20).expect("write");
            }
            file.set_len(64 << 20).expect("a hole at the end");
            file.sync_all().expect("sync");
            let allocated = |path: &Path| fs::metadata(path).expect("there").blocks() * 512;
            let (before, digest) = (allocated(&path), sha256_of_file(&path));
            drop(file);
            site.run_once(&["--copy-method", method]);
            let line = site.line(&name);
            assert_eq!(line.sha256(), digest, "{fs:?}, {method}");
            let copy = File::open(line.placed()).expect("open");
            copy.sync_all().expect("sync");
            let after = allocated(&line.placed());
            assert!(
                after <= before + (64 << 10),
                "{fs:?}, {method}: {after} bytes allocated, {before} in the source"
            );
            fs::remove_file(line.placed()).expect("make room");
        }
    }
}

/// Pages of a file that the cache holds; `None` where the kernel does not say.
fn cached_pages(path: &Path) -> Option<u64> {
    let file = File::open(path).expect("open");
    let seen = direct::cached(file.as_fd());
    seen.ok().map(|seen| seen.pages)
}

#[test]
fn large_files_that_are_cold_stay_cold_and_hot_ones_stay_hot() {
    if !image::possible() {
        return;
    }
    let directory = directory_for_images();
    let pages = BYTES as u64 / rustix::param::page_size() as u64;
    let mut random = Random::new();
    for fs in [Fs::Ext4, Fs::Xfs] {
        let disk = Disk::new(fs, directory.path(), &format!("{fs:?}"));
        for (number, (method, is_hot, ends_hot, disabled)) in [
            ("auto", false, false, ""),
            ("auto", true, true, ""),
            ("buffered", false, true, ""),
            ("direct", false, false, ""),
            ("auto", false, true, "cachestat"),
            ("auto", false, false, "dioalign"),
        ]
        .into_iter()
        .enumerate()
        {
            let site = site_at(&disk.root);
            let content = random.bytes(BYTES);
            let name = format!("{number}.bin");
            let path = site.put(&name, &content);
            let file = File::open(&path).expect("open");
            file.sync_all().expect("sync");
            if cached_pages(&path).is_none() {
                return skip("needs cachestat (Linux 6.5)");
            }
            if !is_hot {
                let advice = rustix::fs::Advice::DontNeed;
                rustix::fs::fadvise(&file, 0, None, advice).expect("drop the cache");
                assert_eq!(cached_pages(&path), Some(0));
            }
            drop(file);
            let mut run = site.run(&["--once", "--read-method", method]);
            run.env("RINGEST_DISABLE", disabled);
            support::Finished::of(run).ok();
            let line = site.line(&name);
            let cached = cached_pages(&line.placed()).expect("as before");
            match ends_hot {
                true => assert!(cached > pages / 2, "{method}: {cached} of {pages} pages"),
                false => assert!(cached < pages / 8, "{method}: {cached} of {pages} pages"),
            }
            assert_eq!(line.sha256(), sha256(&content));
            for directory in [&site.warehouse, &site.manifests, &site.state] {
                fs::remove_dir_all(directory).expect("make room for the next");
            }
        }
    }
}

#[test]
fn large_copies_that_are_synced_are_written_past_the_page_cache() {
    if !image::possible() {
        return;
    }
    let directory = directory_for_images();
    let page = rustix::param::page_size();
    let mut random = Random::new();
    for (fs, io, durability, cold) in [
        (Fs::Ext4, "auto", "full", true),
        (Fs::Ext4, "sync", "full", true),
        (Fs::Ext4, "auto", "none", false),
        (Fs::Xfs, "auto", "full", true),
        // With checksums it writes directly only as far as the kernel finds that safe.
        (Fs::Btrfs, "auto", "full", false),
    ] {
        let disk = Disk::new(fs, directory.path(), &format!("{fs:?}-{io}-{durability}"));
        let apart = Apart::new(fs, &disk.root.join("warehouse"));
        let site = site_at(&disk.root);
        let sizes = [
            (1 << 20) - 1,
            1 << 20,
            (3 << 20) + 4095,
            (6 << 20) + 512,
            BYTES + 1,
        ];
        let contents = sizes.map(|size| random.bytes(size));
        for (size, content) in sizes.iter().zip(&contents) {
            site.put(format!("{size}.bin"), content);
        }
        let flags = [
            ("--io", io),
            ("--durability", durability),
            ("--copy-method", "write"),
        ];
        let flags = flags.map(|(flag, word)| [flag, word]).concat();
        site.run_once(&flags);
        for (size, content) in sizes.iter().zip(&contents) {
            let line = site.line(&format!("{size}.bin"));
            assert_eq!(line.sha256(), sha256(content));
            let pages = size.div_ceil(page) as u64;
            if let Some(cached) = cached_pages(&line.placed()) {
                let past = cached <= 2;
                let what = format!("{fs:?}, {io}, {durability}: {cached} of {pages} pages");
                assert!(past || !cold || *size < 1 << 20, "{what}");
                assert!(!past || cold || fs == Fs::Btrfs, "{what}");
            }
            // From the disk, and with a length that is not that of its last block.
            let advice = rustix::fs::Advice::DontNeed;
            let copy = File::open(line.placed()).expect("open");
            rustix::fs::fadvise(&copy, 0, None, advice).expect("drop the cache");
            assert_eq!(sha256_of_file(&line.placed()), sha256(content));
            let allocated = fs::metadata(line.placed()).expect("there").blocks() * 512;
            assert!(allocated <= *size as u64 + (64 << 10), "{allocated} bytes");
        }
        site.assert_staging_is_empty();
        site.assert_sound();
        drop(apart);
    }
}
