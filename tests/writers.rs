//! Writers that come back: files are rewritten, appended to, replaced and mapped while they are ingested.
//!
//! What must hold: every manifest line's digest is that of the placed bytes, and nothing that a writer finished
//! and then found gone is lost.
//!
//! What no program can promise without a lease: a writer that opened a file before it was moved and stores into
//! it afterwards changes the placed bytes. Each writer looks, after its last store, whether its name still leads
//! to the file it has open. Only where it does not, and only with `--lease off`, is a difference excused, and counted.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::{Random, RunArgs, Site, files_beneath, has_program, sha256, sha256_of_file, skip};

const WRITERS: usize = 3;
const NAMES_EACH: u64 = 8;
const CYCLES: usize = 400;

const CLOSED: RunArgs = &["--mode", "closed", "--stability-seconds", "0.1"];
const STABILITY: RunArgs = &["--stability-seconds", "0.1", "--rescan-seconds", "1"];

#[test]
fn writers_come_back_under_leases_in_closed_mode() {
    let site = Site::new().with(CLOSED);
    write_and_ingest(&site, Lease::Auto);
}

#[test]
fn writers_come_back_under_leases_in_stability_mode() {
    let site = Site::new().with(STABILITY);
    write_and_ingest(&site, Lease::Auto);
}

#[test]
fn writers_come_back_without_leases_in_closed_mode() {
    let site = Site::new().with(CLOSED);
    write_and_ingest(&site, Lease::Off);
}

#[test]
fn writers_come_back_without_leases_in_stability_mode() {
    let site = Site::new().with(STABILITY);
    write_and_ingest(&site, Lease::Off);
}

#[test]
fn writers_come_back_across_filesystems() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let site = site.with(CLOSED);
    write_and_ingest(&site, Lease::Auto);
}

#[test]
fn writers_come_back_across_filesystems_without_leases() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let site = site.with(CLOSED);
    write_and_ingest(&site, Lease::Off);
}

/// The kernel copies what it has in its cache, which a writer may still change: the digest is that of the copy.
#[test]
fn writers_come_back_while_the_kernel_copies_their_files() {
    for lease in [Lease::Auto, Lease::Off] {
        let Some(site) = Site::across_filesystems() else {
            return;
        };
        let site = site.with(CLOSED).with(&["--copy-method", "splice"]);
        write_and_ingest(&site, lease);
    }
}

#[test]
fn a_writer_that_never_lets_go_is_never_ingested_under_a_lease() {
    let site = Site::new().with(STABILITY);
    let mut held = File::create(site.staging.join("held.csv")).expect("create");
    let mut watching = site.start(&[]);
    for i in 0..100 {
        writeln!(held, "{i},more").expect("write");
        site.put(format!("{i}.csv"), format!("{i}"));
        if i % 20 == 0 {
            site.wait_for_line(&mut watching, &format!("{i}.csv"));
        }
    }
    site.wait_for_lines(&mut watching, 100);
    assert_eq!(site.lines_of("held.csv").len(), 0);
    drop(held);
    let line = site.wait_for_line(&mut watching, "held.csv");
    let whole: String = (0..100).map(|i| format!("{i},more\n")).collect();
    assert_eq!(line.sha256(), sha256(whole.as_bytes()));
    watching.terminate();
    site.assert_sound();
}

#[derive(Clone, Copy, PartialEq)]
enum Lease {
    Auto,
    Off,
}

/// What a writer knows at its end.
#[derive(Default)]
struct Written {
    /// Contents that it finished, and that it did not overwrite itself.
    must_exist: Vec<Finished>,
    /// (device, inode) of files that were moved away while it had them open.
    taken_while_open: BTreeSet<(u64, u64)>,
}

/// The content at the end of one cycle of open, write, close.
#[derive(Debug, Clone)]
struct Finished {
    name: String,
    cycle: usize,
    digest: String,
    taken_while_open: bool,
}

impl Written {
    fn add(&mut self, other: Written) {
        self.must_exist.extend(other.must_exist);
        self.taken_while_open.extend(other.taken_while_open);
    }
}

fn write_and_ingest(site: &Site, lease: Lease) {
    if !has_program("python3", "--version") {
        return skip("needs python3 for the writers that map files");
    }
    let lease_args: RunArgs = if lease == Lease::Off {
        &["--lease", "off"]
    } else {
        &[]
    };
    let mut random = Random::new();
    let mut watching = site.start(lease_args);
    watching.wait_for_event("started", "");

    let mut written = Written::default();
    std::thread::scope(|scope| {
        let mut writers = Vec::new();
        for number in 0..WRITERS {
            let mut random = random.fork();
            writers.push(scope.spawn(move || write(&site.staging, number, &mut random)));
        }
        let seed = random.next();
        writers.push(scope.spawn(move || write_through_maps(&site.staging, seed)));
        for writer in writers {
            written.add(writer.join().expect("a writer"));
        }
    });
    watching.terminate();
    site.run_once(lease_args);
    site.assert_staging_is_empty();

    let across = fs::metadata(&site.warehouse).expect("warehouse").dev()
        != fs::metadata(&site.staging).expect("staging").dev();
    let lines = site.manifest();
    assert!(
        lines.len() > 100,
        "only {} files were ingested: nothing was shown",
        lines.len()
    );
    let mut excused = 0;
    for line in &lines {
        let digest = sha256_of_file(&line.placed());
        if digest != line.sha256() {
            let inode = (line.number("device"), line.number("inode"));
            let may_differ =
                lease == Lease::Off && !across && written.taken_while_open.contains(&inode);
            assert!(
                may_differ,
                "the placed bytes hash to {digest}: {}",
                line.raw
            );
            excused += 1;
        }
    }
    assert!(
        excused * 20 <= lines.len(),
        "{excused} of {} lines differ from their bytes",
        lines.len()
    );
    if excused == 0 {
        site.assert_sound();
    }

    let everywhere: BTreeSet<String> = files_beneath(&site.warehouse)
        .iter()
        .map(|path| sha256_of_file(path))
        .collect();
    for finished in &written.must_exist {
        let may_be_gone = lease == Lease::Off && finished.taken_while_open;
        assert!(
            may_be_gone || everywhere.contains(&finished.digest),
            "lost: {}, which {} held after cycle {}",
            finished.digest,
            finished.name,
            finished.cycle
        );
    }
}

/// One writer's cycles over names of its own.
fn write(staging: &Path, number: usize, random: &mut Random) -> Written {
    let mut written = Written::default();
    // What each name held when it was last closed.
    let mut last: Vec<Option<Finished>> = vec![None; NAMES_EACH as usize];
    for cycle in 0..CYCLES {
        let which = random.below(NAMES_EACH) as usize;
        let name = format!("{number}-{which}.csv");
        let path = staging.join(&name);
        let len = 16 + random.below(60_000) as usize;
        let content = random.bytes(len);

        let mut options = OpenOptions::new();
        match random.below(4) {
            0 => options.read(true).write(true).truncate(true),
            1 => options.read(true).append(true),
            2 => options.read(true).write(true),
            _ => {
                let unfinished = staging.join(format!("{name}.tmp"));
                fs::write(&unfinished, &content).expect("write");
                fs::rename(&unfinished, &path).expect("rename");
                // Whether there was something to replace at that moment, nobody knows: no claim for what was there.
                last[which] = Some(Finished {
                    name,
                    cycle,
                    digest: sha256(&content),
                    taken_while_open: false,
                });
                continue;
            }
        };
        let (mut file, new) = open_or_create(&options, &path);
        if new {
            // What it held before was taken: it must be somewhere.
            written.must_exist.extend(last[which].take());
        }
        for part in content.chunks(content.len().div_ceil(3)) {
            file.write_all(part).expect("write");
        }
        if random.below(4) == 0 {
            file.write_all_at(&random.bytes(8), 0).expect("write again");
        }
        let mut all = Vec::new();
        file.seek(SeekFrom::Start(0)).expect("seek");
        file.read_to_end(&mut all).expect("read back");
        let taken_while_open = was_taken(&file, &path, &mut written);
        last[which] = Some(Finished {
            name,
            cycle,
            digest: sha256(&all),
            taken_while_open,
        });
        drop(file);
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
    }
    written.must_exist.extend(last.into_iter().flatten());
    written
}

/// The open file, and whether it is new. ringest may take it, or put it back, between any two calls.
fn open_or_create(existing: &OpenOptions, path: &Path) -> (File, bool) {
    loop {
        match existing.open(path) {
            Ok(file) => return (file, false),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => panic!("open {path:?}: {e}"),
        }
        match File::create_new(path) {
            Ok(file) => return (file, true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => panic!("create {path:?}: {e}"),
        }
    }
}

/// Whether `path` leads no longer to the open `file`.
fn was_taken(file: &File, path: &Path, written: &mut Written) -> bool {
    let open = file.metadata().expect("look at the open file");
    let inode = (open.dev(), open.ino());
    let here = fs::symlink_metadata(path)
        .map(|there| (there.dev(), there.ino()))
        .ok();
    let taken = here != Some(inode);
    if taken {
        written.taken_while_open.insert(inode);
    }
    taken
}

/// The same through shared mappings, in a process of its own.
fn write_through_maps(staging: &Path, seed: u64) -> Written {
    let mut command = Command::new("python3");
    command.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/support/mmap-writer.py"
    ));
    command
        .arg(staging)
        .arg(seed.to_string())
        .arg(CYCLES.to_string());
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .expect("start python3");
    assert!(output.status.success(), "mmap-writer.py: {}", output.status);
    let mut written = Written::default();
    for line in String::from_utf8(output.stdout).expect("UTF-8").lines() {
        let said: Value = serde_json::from_str(line).expect("JSON");
        let number = |field: &str| {
            said[field]
                .as_u64()
                .unwrap_or_else(|| panic!("no number {field}: {said}"))
        };
        let taken_while_open = said["taken_while_open"].as_bool().expect("a truth");
        if taken_while_open {
            written
                .taken_while_open
                .insert((number("device"), number("inode")));
        }
        if said["must_exist"].as_bool().expect("a truth") {
            written.must_exist.push(Finished {
                name: said["name"].as_str().expect("a name").to_owned(),
                cycle: number("cycle") as usize,
                digest: said["digest"].as_str().expect("a digest").to_owned(),
                taken_while_open,
            });
        }
    }
    written
}
