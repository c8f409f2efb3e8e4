//! Full disks: intake pauses, says what is full, leaves nothing half done, and goes on by itself.
//!
//! Each test has a 64 MiB ext4 image of its own on a loop device, or a tmpfs, which a ballast file fills. Needs root.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::program::{Program, State};
use support::{
    Finished, PATIENCE, Random, Running, Site, files_beneath, is_root, skip, wait_until,
};
use tempfile::TempDir;

const SETTLES_SOON: &[&str] = &["--stability-seconds", "0.2", "--rescan-seconds", "1"];

/// Files of one test.
const FILES: usize = 60;

/// A small filesystem.
struct Image {
    root: PathBuf,
    directory: Option<TempDir>,
}

impl Image {
    /// A fresh one, made with these arguments. `None`, and skipped, where that is impossible.
    fn new(arguments: &[&str]) -> Option<Image> {
        if !is_root() {
            skip("needs root to mount an image");
            return None;
        }
        if !support::has_program("mkfs.ext4", "-V") {
            skip("needs mkfs.ext4");
            return None;
        }
        let directory = tempfile::Builder::new()
            .prefix("ringest-full-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("make a directory");
        let file = directory.path().join("image");
        let root = directory.path().join("mounted");
        fs::create_dir(&root).expect("make the mount point");
        let made = File::create(&file).and_then(|image| image.set_len(64 << 20));
        made.expect("make the image");
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0"])
            .args(arguments)
            .arg(&file);
        run(&mut mkfs);
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&file).arg(&root);
        if !mount.status().expect("run mount").success() {
            skip("needs loop devices");
            return None;
        }
        Some(Image {
            root,
            directory: Some(directory),
        })
    }

    /// One in memory, of this size. `None`, and skipped, where that is impossible.
    fn in_memory(bytes: u64) -> Option<Image> {
        if !is_root() {
            skip("needs root to mount a tmpfs");
            return None;
        }
        let directory = tempfile::Builder::new()
            .prefix("ringest-full-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("make a directory");
        let root = directory.path().join("mounted");
        fs::create_dir(&root).expect("make the mount point");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"])
            .arg(&root);
        run(&mut mount);
        Some(Image {
            root,
            directory: Some(directory),
        })
    }

    /// Takes all space but about `left` bytes.
    fn fill(&self, left: u64) {
        let mut ballast = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.ballast())
            .expect("make the ballast");
        for piece in [1 << 20, 64 << 10, 4 << 10] {
            let piece = vec![0xb5; piece];
            while ballast.write_all(&piece).is_ok() {}
        }
        ballast.sync_all().expect("sync the ballast");
        let length = ballast.metadata().expect("look at the ballast").len();
        ballast
            .set_len(length.saturating_sub(left))
            .expect("shorten the ballast");
        ballast.sync_all().expect("sync the ballast");
        rustix::fs::syncfs(&ballast).expect("sync the image");
    }

    /// Takes all inodes.
    fn fill_inodes(&self) {
        fs::create_dir(self.ballast()).expect("make the ballast");
        let full =
            (0..).find_map(|number| File::create(self.ballast().join(format!("{number}"))).err());
        let kind = full.map(|error| error.kind());
        assert_eq!(kind, Some(std::io::ErrorKind::StorageFull));
    }

    fn empty(&self) {
        match self.ballast().is_dir() {
            true => fs::remove_dir_all(self.ballast()),
            false => fs::remove_file(self.ballast()),
        }
        .expect("remove the ballast");
    }

    fn ballast(&self) -> PathBuf {
        self.root.join("ballast")
    }

    fn free_bytes(&self) -> u64 {
        let seen = rustix::fs::statvfs(&self.root).expect("statvfs");
        seen.f_bavail * seen.f_frsize
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // The site was dropped before: nobody is in it any more. A killed ring may take a moment.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let unmounted = Command::new("umount").arg(&self.root).output();
            if unmounted.is_ok_and(|ended| ended.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("still mounted: {:?}", self.root);
        if let Some(directory) = self.directory.take() {
            let _ = directory.keep();
        }
    }
}

fn run(command: &mut Command) {
    let ended = command
        .output()
        .unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    assert!(ended.status.success(), "{command:?}: {ended:?}");
}

/// What of a site lies on the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnImage {
    /// Staging, too: files are renamed.
    WarehouseAndStaging,
    /// Files are copied.
    Warehouse,
    Manifests,
    State,
}

use OnImage as On;

impl OnImage {
    fn site(self, image: &Image) -> Site {
        let mut site = Site::new().with(SETTLES_SOON);
        let there = |name: &str| image.root.join(name);
        match self {
            On::WarehouseAndStaging => {
                site.staging = there("staging");
                site.warehouse = there("warehouse");
                fs::create_dir(&site.staging).expect("make the staging directory");
            }
            On::Warehouse => site.warehouse = there("warehouse"),
            On::Manifests => site.manifests = there("manifests"),
            On::State => site.state = there("state"),
        }
        site
    }

    /// What a reason to pause names.
    fn word(self) -> &'static str {
        match self {
            On::WarehouseAndStaging | On::Warehouse => "warehouse",
            On::Manifests => "manifest",
            On::State => "ledger",
        }
    }

    fn path(self, site: &Site) -> &Path {
        match self {
            On::WarehouseAndStaging | On::Warehouse => &site.warehouse,
            On::Manifests => &site.manifests,
            On::State => &site.state,
        }
    }
}

/// A site that has begun to work, with files that wait, none of which is a duplicate.
fn waiting_site(on: OnImage, image: &Image, bytes: usize) -> Site {
    let site = on.site(image);
    site.run_once(&[]);
    let mut random = Random::new();
    for number in 0..FILES {
        let mut content = random.bytes(bytes);
        content.extend(number.to_le_bytes());
        site.put(format!("file {number}"), content);
    }
    site
}

/// Waits for the pause, and sees that everyone says why.
fn pauses(site: &Site, running: &mut Running, word: &str) {
    let event = running.wait_for_event("intake_paused", "");
    let reason = event["reason"].as_str().expect("a reason");
    assert!(reason.contains(word), "{reason:?} does not name {word}");
    let mut last = Value::Null;
    wait_until("status says paused", || {
        last = status(site);
        last["state"] == "paused"
    });
    let reason = last["pause_reason"].as_str().expect("a reason");
    assert!(reason.contains(word), "{reason:?} does not name {word}");
}

fn status(site: &Site) -> Value {
    let shown = Finished::of(site.command("status", &["--json"])).ok();
    serde_json::from_str(&shown.stdout).expect("status prints JSON")
}

/// Every file is either whole in staging or recorded.
fn assert_nothing_half_done(site: &Site) {
    site.verify(&[]).ok();
    // One file finds out about room now and then; a look between its two names would see neither.
    wait_until("every file is in staging or placed", || {
        let staged = files_beneath(&site.staging).len();
        let placed = site.placed_files().len();
        staged + placed == FILES && placed == site.manifest_so_far().len()
    });
    site.assert_no_temporary_files();
}

/// Everything arrives, once, and the run ends as it should.
fn arrives(site: &Site, mut running: Running) {
    running.wait_for_event("intake_resumed", "");
    site.wait_for_lines(&mut running, FILES);
    running.terminate();
    assert_eq!(site.manifest().len(), FILES);
    site.assert_sound();
    site.assert_staging_is_empty();
}

/// Pauses, is killed, pauses again, is asked to stop, pauses again, goes on.
fn pauses_and_goes_on(on: OnImage, image: &Image, site: &Site) {
    let mut running = site.start(&[]);
    pauses(site, &mut running, on.word());
    assert_nothing_half_done(site);
    running.kill();

    let mut running = site.start(&[]);
    pauses(site, &mut running, on.word());
    assert_nothing_half_done(site);
    let asked = Instant::now();
    running.terminate();
    assert!(asked.elapsed() < Duration::from_secs(30));

    let mut running = site.start(&[]);
    pauses(site, &mut running, on.word());
    image.empty();
    arrives(site, running);
}

#[test]
fn a_full_warehouse_pauses_intake_and_room_in_it_resumes_it() {
    let Some(image) = Image::new(&[]) else { return };
    let site = waiting_site(On::WarehouseAndStaging, &image, 4096);
    image.fill(0);
    pauses_and_goes_on(On::WarehouseAndStaging, &image, &site);
    drop(site);
}

#[test]
fn a_full_warehouse_on_another_filesystem_pauses_intake_and_keeps_no_copies() {
    // The others are refused between two filesystems.
    for method in ["write", "splice"] {
        let Some(image) = Image::new(&[]) else { return };
        let site = waiting_site(On::Warehouse, &image, 300_000).with(&["--copy-method", method]);
        image.fill(2 << 20);
        let mut running = site.start(&[]);
        pauses(&site, &mut running, "warehouse");
        assert_nothing_half_done(&site);
        // Those that fitted were placed; those that were begun are gone, but for the one that finds out about room.
        // What was in flight when intake paused may still be placed.
        wait_until("no copy takes space", || {
            let placed = 300_000 * site.placed_files().len() as u64;
            placed + image.free_bytes() + 300_000 + (128 << 10) >= 2 << 20
        });
        running.kill();
        pauses_and_goes_on(On::Warehouse, &image, &site);
        drop(site);
    }
}

#[test]
fn a_full_disk_of_the_manifests_pauses_intake_and_room_resumes_it() {
    let Some(image) = Image::new(&[]) else { return };
    let site = waiting_site(On::Manifests, &image, 4096);
    image.fill(0);
    pauses_and_goes_on(On::Manifests, &image, &site);
    drop(site);
}

/// More than the queue holds: what waited there settled before the pause.
#[test]
fn a_long_backlog_goes_on_at_once_when_there_is_room() {
    const BACKLOG: usize = 9000;
    let Some(image) = Image::new(&[]) else { return };
    let site = On::Manifests.site(&image);
    site.run_once(&[]);
    for number in 0..BACKLOG {
        site.put(format!("{number}.csv"), number.to_le_bytes());
    }
    image.fill(0);
    let mut running = site.start(&[]);
    pauses(&site, &mut running, On::Manifests.word());
    image.empty();
    running.wait_for_event("intake_resumed", "");
    site.wait_for_lines(&mut running, BACKLOG);
    running.terminate();
    assert_eq!(site.manifest().len(), BACKLOG);
    site.assert_staging_is_empty();
    drop(site);
}

#[test]
fn a_full_disk_of_the_state_pauses_intake_and_room_resumes_it() {
    let Some(image) = Image::new(&[]) else { return };
    let site = waiting_site(On::State, &image, 4096);
    image.fill(0);
    pauses_and_goes_on(On::State, &image, &site);
    drop(site);
}

#[test]
fn a_warehouse_without_inodes_pauses_intake() {
    for on in [On::WarehouseAndStaging, On::Warehouse] {
        let Some(image) = Image::new(&["-N", "256"]) else {
            return;
        };
        let site = waiting_site(on, &image, 4096);
        image.fill_inodes();
        pauses_and_goes_on(on, &image, &site);
        drop(site);
    }
}

#[test]
fn a_reserve_is_kept_on_each_of_the_three() {
    for on in [On::Warehouse, On::Manifests, On::State] {
        let Some(image) = Image::new(&[]) else { return };
        let site = waiting_site(on, &image, 4096).with(&["--min-free-bytes", "8MiB"]);
        image.fill(4 << 20);
        let checked = Finished::of({
            let mut check = site.command("check", &["--min-free-bytes", "8MiB", "--json"]);
            check.arg("--input").arg(&site.staging);
            check
        });
        let report: Value = serde_json::from_str(&checked.ok().stdout).expect("check prints JSON");
        let warned = report["warnings"].to_string();
        assert!(warned.contains("min_free_bytes"), "{warned}");

        let mut running = site.start(&[]);
        let path = on.path(&site).to_str().expect("UTF-8").to_owned();
        pauses(&site, &mut running, &path);
        pauses(&site, &mut running, "min_free_bytes");
        assert_eq!(site.manifest_so_far().len(), 0);
        assert_nothing_half_done(&site);
        assert!(image.free_bytes() > 2 << 20);
        running.kill();

        let mut running = site.start(&[]);
        pauses(&site, &mut running, &path);
        image.empty();
        arrives(&site, running);
        drop(site);
    }
}

#[test]
fn a_large_copy_that_would_take_the_reserve_is_not_begun() {
    let Some(image) = Image::new(&[]) else { return };
    let site = On::Warehouse
        .site(&image)
        .with(&["--min-free-bytes", "8MiB"]);
    site.run_once(&[]);
    image.fill(16 << 20);
    site.put("large", Random::new().bytes(12 << 20));
    let mut running = site.start(&[]);
    pauses(&site, &mut running, "min_free_bytes");
    assert!(image.free_bytes() >= 15 << 20);
    image.empty();
    running.wait_for_event("file_ingested", "large");
    running.terminate();
    site.assert_sound();
    drop(site);
}

#[test]
fn a_file_that_is_too_large_does_not_hold_up_the_others() {
    let Some(image) = Image::new(&[]) else { return };
    let site = On::Warehouse.site(&image);
    site.run_once(&[]);
    site.put("large", Random::new().bytes(80 << 20));
    let mut running = site.start(&[]);
    pauses(&site, &mut running, "warehouse");
    for number in 0..20 {
        site.put(format!("small {number}"), format!("{number}"));
        site.wait_for_lines(&mut running, number + 1);
    }
    running.wait_for_event("file_waiting", "large");
    let ended = running.terminate();
    // It is tried every second or so; were each try a pause, there would be about ten.
    let paused = ended.events("intake_paused", "").len();
    assert!(paused <= 5, "{paused} pauses");
    assert_eq!(site.manifest().len(), 20);
    assert!(site.staging.join("large").exists());
    site.assert_agrees();
    drop(site);
}

/// What found no room comes back together when there is some, and it is told that it is not enough.
#[test]
fn too_little_room_pauses_intake_again() {
    let Some(image) = Image::new(&[]) else { return };
    let site = waiting_site(On::Warehouse, &image, 300_000);
    image.fill(0);
    let mut running = site.start(&[]);
    pauses(&site, &mut running, "warehouse");
    image.fill(2 << 20);
    running.wait_for_event("intake_resumed", "");
    pauses(&site, &mut running, "warehouse");
    assert_nothing_half_done(&site);
    image.empty();
    arrives(&site, running);
    drop(site);
}

#[test]
fn while_intake_is_paused_no_writer_waits_for_a_lease() {
    let Some(image) = Image::new(&[]) else { return };
    let site = waiting_site(On::State, &image, 4096);
    image.fill(0);
    let mut running = site.start(&[]);
    pauses(&site, &mut running, "ledger");
    let begun = Instant::now();
    for number in 0..FILES {
        let path = site.staging.join(format!("file {number}"));
        let mut file = OpenOptions::new().append(true).open(path).expect("open");
        file.write_all(b"more").expect("write");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "a writer waited");
    image.empty();
    arrives(&site, running);
    drop(site);
}

#[test]
fn a_start_that_waits_for_room_for_what_is_placed_ends_when_asked() {
    let Some(image) = Image::new(&[]) else { return };
    let site = waiting_site(On::Manifests, &image, 4096);
    let mut command = site.run(&[]);
    command.env("RINGEST_STOP_AT", "placed");
    let mut stopped = Program::start(command, &site.root.join("stopped.log"));
    assert_eq!(stopped.wait(), State::Stopped);
    stopped.kill(false);
    // What was reserved for these lines is given away: the file is as long as what was written to it.
    for file in files_beneath(&site.manifests) {
        if file.ends_with("manifest.jsonl") {
            let file = OpenOptions::new().write(true).open(file).expect("open");
            let length = file.metadata().expect("look").len();
            file.set_len(length).expect("truncate");
        }
    }
    image.fill(0);

    let mut running = site.start(&[]);
    running.wait_for_event("intake_paused", "");
    site.verify(&[]).ok();
    let asked = Instant::now();
    running.send(Signal::TERM);
    running.finish().ok();
    assert!(asked.elapsed() < Duration::from_secs(30));

    let mut running = site.start(&[]);
    running.wait_for_event("intake_paused", "");
    image.empty();
    arrives(&site, running);
    drop(site);
}

#[test]
fn once_gives_up_after_a_minute_of_pause_and_loses_nothing() {
    let Some(image) = Image::new(&[]) else { return };
    let site = waiting_site(On::State, &image, 4096);
    image.fill(0);
    let begun = Instant::now();
    site.try_once(&[]).with_code(74).naming("ledger");
    assert!(begun.elapsed() >= Duration::from_secs(55) && begun.elapsed() < PATIENCE);
    assert_nothing_half_done(&site);
    image.empty();
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), FILES);
    site.assert_sound();
    drop(site);
}

#[test]
fn a_ledger_that_was_copied_back_without_its_room_is_refused_as_long_as_the_disk_is_full() {
    let Some(image) = Image::new(&[]) else { return };
    let site = waiting_site(On::State, &image, 4096);
    // What was allocated ahead is a hole in the copy.
    let ledger = site.state.join("ledger/data.mdb");
    let copy = site.state.join("copy");
    run(Command::new("cp")
        .arg("--sparse=always")
        .arg(&ledger)
        .arg(&copy));
    fs::rename(&copy, &ledger).expect("replace the ledger");
    image.fill(0);
    site.try_once(&[])
        .with_code(74)
        .naming("make room for the next commits of the ledger")
        .naming("free space");
    assert_eq!(files_beneath(&site.staging).len(), FILES);
    image.empty();
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), FILES);
    site.assert_sound();
    drop(site);
}

/// Lines that are missing in a log file are told of there, and ingestion never notices.
#[test]
fn a_full_disk_of_the_log_files_stops_nothing_and_what_is_missing_is_counted() {
    let kinds: [fn() -> Option<Image>; 2] = [|| Image::in_memory(1 << 20), || Image::new(&[])];
    for kind in kinds {
        let Some(image) = kind() else { return };
        let logs = image.root.join("logs");
        let site = Site::new().with(SETTLES_SOON).with(&[
            "--log-dir",
            logs.to_str().expect("UTF-8"),
            "--log-level",
            "debug",
        ]);
        let mut running = site.start(&[]);
        running.wait_for_event("started", "");
        image.fill(16 << 10);
        for number in 0..4 * FILES {
            site.put(format!("file {number}"), format!("content {number}"));
        }
        site.wait_for_lines(&mut running, 4 * FILES);
        let failed = running.wait_for_event("log_file_failed", "");
        assert!(
            failed["path"]
                .as_str()
                .expect("a path")
                .starts_with(logs.to_str().unwrap())
        );
        wait_until("status counts lines", || {
            status(&site)["log_dropped"].as_u64().expect("a number") > 0
        });
        assert_eq!(status(&site)["state"], "running");

        image.empty();
        site.put("last", "last");
        site.wait_for_line(&mut running, "last");
        let ended = running.terminate();
        for name in ["app.log", "debug.log"] {
            let text = fs::read_to_string(logs.join(name)).expect("read");
            let (mut there, mut missing) = (0, 0);
            for line in text.lines() {
                let event: Value = serde_json::from_str(line).expect(line);
                match event["event"].as_str() {
                    Some("log_dropped") => missing += event["lines"].as_u64().expect("a number"),
                    _ => there += 1,
                }
            }
            assert!(missing > 0 && there > 0, "{name}");
            assert_eq!(
                there + missing,
                ended.stderr.lines().count() as u64,
                "{name}"
            );
        }
        site.assert_sound();
        drop(site);
    }
}

/// The files that cannot be made at the start are made once there is room.
#[test]
fn a_disk_that_is_full_at_the_start_gets_its_log_files_later() {
    let Some(image) = Image::new(&["-N", "16"]) else {
        return;
    };
    let logs = image.root.join("logs");
    fs::create_dir(&logs).expect("make the directory for log files");
    image.fill_inodes();
    let log_dir = ["--log-dir", logs.to_str().expect("UTF-8")];
    let site = Site::new().with(SETTLES_SOON).with(&log_dir);
    let mut running = site.start(&[]);
    running.wait_for_event("started", "");
    running.wait_for_event("log_file_failed", "app.log");
    assert!(!logs.join("app.log").exists());
    image.empty();
    site.put("a", "a");
    running.wait_for_event("file_ingested", "a");
    running.terminate();
    let text = fs::read_to_string(logs.join("app.log")).expect("it is there");
    assert!(text.contains("log_dropped") && text.contains("file_ingested"));
}
