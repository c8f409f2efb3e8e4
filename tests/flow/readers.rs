//! How many readers work, how fast they may read, and how they compete with others for the disk.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::support::{
    Finished, Random, Running, Site, has_program, sha256, skip, through, wait_until,
};

const ARGS: &[&str] = &["--stability-seconds", "0.1"];

fn status(site: &Site) -> Value {
    let answer = Finished::of(site.command("status", &["--json"])).ok();
    serde_json::from_str(&answer.stdout).expect("JSON")
}

/// Readers, and files in flight in each, as an event or a status says.
fn chosen(said: &Value) -> (u64, u64) {
    let number = |name: &str| said[name].as_u64().expect("a number");
    (number("readers"), number("files_in_flight"))
}

#[test]
fn a_number_of_readers_that_was_asked_for_is_logged_and_shown() {
    let site = Site::new();
    let mut running = site.start(&["--concurrency", "3"]);
    assert_eq!(running.wait_for_event("started", "")["readers"], 3);
    let said = running.wait_for_event("concurrency", "");
    assert_eq!(chosen(&said), (3, 8));
    assert_eq!(said["level"], "info");
    assert_eq!(said["reason"], "as set");
    assert_eq!(chosen(&status(&site)), (3, 8));
    Finished::of(site.command("status", &[]))
        .ok()
        .naming("readers         3, each with up to 8 files in flight");
    let ended = running.terminate();
    assert_eq!(ended.events("concurrency", "").len(), 1);
    assert_eq!(chosen(&status(&site)), (0, 0));
}

#[test]
fn auto_begins_with_one_reader_for_each_core_that_the_process_may_use() {
    if !has_program("taskset", "--version") {
        return skip("needs taskset");
    }
    let own = fs::read_to_string("/proc/self/status").expect("its status");
    let all = own
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .expect("its processors")
        .trim();
    let one = all.split([',', '-']).next().expect("a processor");
    let cores = std::thread::available_parallelism().expect("at least one");
    for (processors, readers) in [(one, 1), (all, cores.get().min(16) as u64)] {
        let site = Site::new().with(ARGS);
        for i in 0..100 {
            site.put(format!("{i}.csv"), format!("{i}"));
        }
        let mut command = site.run(&["--concurrency", "auto"]);
        command.arg("--once");
        // Some readers are parked from start to end, which must not keep it from ending.
        let wrapper = ["taskset", "--cpu-list", processors];
        let ended = Finished::of(through(&wrapper, &command)).ok();
        assert_eq!(ended.event("started", "")["readers"], readers);
        let said = ended.event("concurrency", "");
        assert_eq!(chosen(&said), (readers, 8));
        assert_eq!(said["reason"], "by the number of cores");
        assert_eq!(site.manifest().len(), 100);
        site.assert_sound();
    }
}

/// A cgroup with one processor's worth of time, of whichever version there is.
struct OneProcessor(PathBuf);

impl OneProcessor {
    fn new() -> Option<OneProcessor> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("ringest-test-{}", std::process::id());
        let (of, quota, text) = match root.join("cgroup.controllers").exists() {
            true => (root.to_path_buf(), "cpu.max", "100000 100000"),
            false => (root.join("cpu"), "cpu.cfs_quota_us", "100000"),
        };
        // Usually done by systemd.
        let _ = fs::write(of.join("cgroup.subtree_control"), "+cpu");
        let cgroup = OneProcessor(of.join(name));
        fs::create_dir(&cgroup.0).ok()?;
        fs::write(cgroup.0.join(quota), text).ok()?;
        Some(cgroup)
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn auto_stays_within_the_quota_of_its_cgroup() {
    let Some(cgroup) = OneProcessor::new() else {
        return skip("needs a cgroup with the CPU controller, and root");
    };
    let site = Site::new().with(ARGS);
    let processes = cgroup.0.join("cgroup.procs");
    let join = [
        "sh",
        "-c",
        "echo $$ >\"$0\" && exec \"$@\"",
        processes.to_str().expect("UTF-8"),
    ];
    let mut running = Running::spawn(through(&join, &site.run(&["--concurrency", "auto"])));
    let said = running.wait_for_event("concurrency", "");
    assert_eq!(chosen(&said), (1, 8));
    let tasks = fs::read_dir(format!("/proc/{}/task", running.id())).expect("its threads");
    let readers = tasks.filter(|task| {
        let name = fs::read_to_string(task.as_ref().expect("a thread").path().join("comm"));
        name.is_ok_and(|name| name.starts_with("reader"))
    });
    // On a machine with one processor it is no quota.
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
        assert_eq!(readers.count(), 1);
    }
    site.put("a.csv", "1");
    site.wait_for_line(&mut running, "a.csv");
    running.terminate().ok();
    site.assert_sound();
}

#[test]
fn no_more_bytes_a_second_are_read_than_allowed() {
    let site = Site::new().with(ARGS);
    let mut random = Random::new();
    for i in 0..3 {
        site.put(format!("{i}.bin"), random.bytes(1 << 20));
    }
    let ended = site.run_once(&["--max-bytes-per-second", "1MiB"]);
    let seconds = |event: &Value| {
        let time: Option<jiff::Timestamp> = event["ts"].as_str().and_then(|ts| ts.parse().ok());
        time.expect("a time").as_microsecond() as f64 / 1e6
    };
    let began = seconds(&ended.event("started", ""));
    let ingested = ended.events("file_ingested", ".bin");
    assert_eq!(ingested.len(), 3);
    let last = ingested.iter().map(seconds).fold(began, f64::max);
    // 2.65: all but the last 256 KiB are paid for, and a tenth of a second is given.
    assert!(last - began > 2.0, "3 MiB took {} s", last - began);
    site.assert_sound();
}

/// Starts a run that reads the first piece of `file`, and would read the next one minutes later.
fn start_slowly(site: &Site, file: &Path) -> Running {
    let running = site.start(&["--max-bytes-per-second", "1KiB"]);
    let file = fs::canonicalize(file).expect("its path");
    let descriptors = format!("/proc/{}/fd", running.id());
    wait_until("the file is being read", || {
        let entries = fs::read_dir(&descriptors).expect("its descriptors");
        let mut links = entries
            .flatten()
            .flat_map(|entry| fs::read_link(entry.path()));
        links.any(|link| link == file)
    });
    running
}

#[test]
fn a_reader_that_waits_for_its_turn_stops_when_it_is_asked_to() {
    let site = Site::new().with(ARGS);
    let file = site.put("slow.bin", Random::new().bytes(4 << 20));
    start_slowly(&site, &file).terminate();
    assert!(file.is_file(), "it should stay in staging");
    assert_eq!(site.manifest().len(), 0);
    // It ended in order, not because somebody's patience did.
    let next = site.run_once(&[]);
    assert_eq!(next.events("recovery_summary", "").len(), 0, "{next}");
    assert_eq!(site.manifest().len(), 1);
    site.assert_sound();
}

#[test]
fn a_file_that_is_written_to_while_its_reader_waits_is_ingested_as_it_is_then() {
    let site = Site::new().with(ARGS);
    let mut content = Random::new().bytes(1 << 20);
    let file = site.put("slow.bin", &content);
    let running = start_slowly(&site, &file);
    // It has to be given its lease.
    let opened = fs::OpenOptions::new().append(true).open(&file);
    let mut writer = opened.expect("open it for writing");
    writer.write_all(b" and more").expect("write");
    drop(writer);
    content.extend_from_slice(b" and more");
    running.terminate();
    assert_eq!(site.manifest().len(), 0);
    site.run_once(&[]);
    assert_eq!(site.line("slow.bin").sha256(), sha256(&content));
    site.assert_sound();
}

/// The number of a thread of that name, once there is one.
fn thread_named(running: &Running, name: &str) -> u32 {
    let mut number = None;
    wait_until(&format!("there is a thread {name:?}"), || {
        let tasks = fs::read_dir(format!("/proc/{}/task", running.id())).expect("its threads");
        // Others may end meanwhile.
        let mut paths = tasks.flatten().map(|task| task.path());
        let found = paths.find(|path| {
            fs::read_to_string(path.join("comm")).is_ok_and(|found| found.trim_end() == name)
        });
        number = found.map(|path| path.file_name().expect("a number").to_owned());
        number.is_some()
    });
    let number = number.expect("found").into_string().expect("digits");
    number.parse().expect("a number")
}

#[test]
fn readers_and_no_other_threads_have_the_io_priority_that_was_asked_for() {
    if !has_program("ionice", "--version") {
        return skip("needs ionice");
    }
    let priority_of = |thread: u32| {
        let thread = thread.to_string();
        let asked = Command::new("ionice").args(["-p", &thread]).output();
        let asked = asked.expect("run ionice");
        assert!(asked.status.success(), "ionice -p {thread}: {asked:?}");
        let said = String::from_utf8_lossy(&asked.stdout);
        said.trim_end().to_owned()
    };
    let own = priority_of(std::process::id());
    for (priority, expected) in [
        ("normal", own.as_str()),
        ("low", "best-effort: prio 7"),
        ("idle", "idle"),
    ] {
        let site = Site::new().with(ARGS);
        let mut running = site.start(&["--io-priority", priority, "--concurrency", "2"]);
        running.wait_for_event("started", "");
        for reader in ["reader 0", "reader 1"] {
            assert_eq!(priority_of(thread_named(&running, reader)), expected);
        }
        for other in ["record", "discover"] {
            assert_eq!(priority_of(thread_named(&running, other)), own, "{other}");
        }
        site.put("a.csv", "a");
        site.wait_for_line(&mut running, "a.csv");
        running.terminate();
        site.assert_sound();
    }
}
