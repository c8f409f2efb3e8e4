//! Limits of the process.

use crate::support::{Finished, Running, Site, has_program, skip};
use crate::{output, through};

const ARGS: &[&str] = &["--stability-seconds", "0.1"];

#[test]
fn many_files_go_through_few_descriptors() {
    if !has_program("prlimit", "-V") {
        return skip("needs prlimit");
    }
    let site = Site::new().with(ARGS);
    for i in 0..600 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    let mut command = site.run(&[]);
    command.arg("--once");
    let ended = Finished::of(through(&["prlimit", "--nofile=64"], &command)).ok();
    let doubt = ended.event("settings_doubtful", "");
    let told = doubt["message"].as_str().expect("a message");
    assert!(told.contains("limit on open files (64)"), "{told}");
    assert_eq!(site.manifest().len(), 600);
    site.assert_sound();
}

#[test]
fn intake_waits_while_there_are_no_descriptors() {
    if !has_program("prlimit", "-V") {
        return skip("needs prlimit");
    }
    let site = Site::new().with(ARGS).with(&["--rescan-seconds", "0.5"]);
    let mut running = site.start(&[]);
    running.wait_for_event("started", "");
    let pid = running.id().to_string();
    let limit = |limit: &str| {
        let nofile = format!("--nofile={limit}:");
        output(std::process::Command::new("prlimit").args(["--pid", &pid, &nofile]));
    };
    limit("8");
    for i in 0..20 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    running.wait_for_event("intake_paused", "");
    limit("1024");
    running.wait_for_event("intake_resumed", "");
    site.wait_for_lines(&mut running, 20);
    running.terminate();
    assert_eq!(site.manifest().len(), 20);
    site.assert_sound();
}

#[test]
fn a_file_too_large_to_be_copied_stays_and_others_go_on() {
    if !has_program("prlimit", "-V") {
        return skip("needs prlimit");
    }
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let site = site.with(ARGS);
    // Room for the ledger, which is longer than it is large.
    let (limit, larger) = (150_000_000, 150_000_001);
    let large = site.put("large.bin", "a hole, and");
    let file = std::fs::OpenOptions::new().write(true).open(&large);
    let file = file.expect("open the file");
    std::os::unix::fs::FileExt::write_all_at(&file, b"its end", larger).expect("write its end");
    drop(file);
    site.put("small.csv", "small");
    let limited = format!("--fsize={limit}");
    let mut running = Running::spawn(through(&["prlimit", &limited], &site.run(&[])));
    running.wait_for_event("file_failed", "large.bin");
    running.wait_for_event("file_ingested", "small.csv");
    assert!(large.is_file());
    running.terminate();
    assert_eq!(site.manifest().len(), 1);
    site.assert_agrees();
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 2);
    site.assert_sound();
}

#[test]
fn a_limit_on_address_space_makes_the_map_of_the_ledger_smaller() {
    if !has_program("prlimit", "-V") {
        return skip("needs prlimit");
    }
    let limit: u64 = 4 << 30;
    let limited = format!("--as={limit}");
    let site = Site::new().with(ARGS);
    let mut running = Running::spawn(through(&["prlimit", &limited], &site.run(&[])));
    running.wait_for_event("started", "");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", running.id()));
    let maps = maps.expect("its maps");
    let map = maps.lines().find(|line| line.ends_with("/data.mdb"));
    let range = map.and_then(|line| line.split(' ').next()?.split_once('-'));
    let (from, to) = range.expect("the ledger is mapped");
    let address = |hex: &str| u64::from_str_radix(hex, 16).expect("an address");
    assert!(address(to) - address(from) < limit, "{map:?}");
    site.put("a.csv", "a");
    site.wait_for_line(&mut running, "a.csv");
    running.terminate();
    site.assert_sound();
}
