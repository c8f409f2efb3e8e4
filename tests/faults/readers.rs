//! Those who read the ledger beside a run, and are killed.

use std::time::Duration;

use crate::support::{Random, Running, Site};

/// So many are killed before one of them was in the middle of a transaction.
const KILLED_MAX: usize = 3000;

/// LMDB takes those of the kernel.
const PAGE_BYTES: usize = 4096;

/// No page that a reader can still see is used again. If a dead one stayed in LMDB's table, the ledger would grow with
/// every commit from then on.
#[test]
fn a_reader_that_was_killed_does_not_make_the_ledger_grow() {
    let site = Site::new().with(&["--stability-seconds", "0.05"]);
    let mut random = Random::new();
    for i in 0..2000 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    let mut running = site.start(&[]);
    site.wait_for_lines(&mut running, 2000);
    let mut killed = Vec::new();
    while !killed.iter().any(|&reader| holds_pages(&site, reader)) {
        assert!(
            killed.len() < KILLED_MAX,
            "none was killed in a transaction"
        );
        let reader = Running::spawn(site.command("verify", &[]));
        killed.push(reader.id());
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        // Killed.
        drop(reader);
    }
    running.terminate();

    let before = pages(&site);
    for i in 0..200 {
        site.put(format!("later-{i}.csv"), format!("later {i}"));
    }
    // Some 3,000 pages, if none were used again.
    site.run_once(&["--batch-files", "1"]);
    let grown = pages(&site) - before;
    assert!(grown < 500, "the ledger grew by {grown} pages");
    assert_eq!(site.manifest().len(), 2200);
    site.assert_sound();
}

/// Whether LMDB's table of readers says that this process is in a transaction. A row is 64 bytes, the head of the table
/// two of them: the transaction, or all ones, then the process.
fn holds_pages(site: &Site, process: u32) -> bool {
    let table = std::fs::read(site.state.join("ledger/lock.mdb")).expect("read the table");
    let rows = table.chunks_exact(64).skip(2);
    rows.into_iter()
        .any(|row| number(&row[8..12]) == u64::from(process) && number(&row[..8]) != u64::MAX)
}

/// The number of the last page in use. The two pages at the start of the file say it in turn: at byte 136, and after
/// that of which transaction.
fn pages(site: &Site) -> u64 {
    let data = std::fs::read(site.state.join("ledger/data.mdb")).expect("read the ledger");
    let heads = data.chunks_exact(PAGE_BYTES).take(2);
    let newest = heads.max_by_key(|head| number(&head[144..152]));
    number(&newest.expect("two pages")[136..144])
}

fn number(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter().rev();
    bytes.fold(0, |number, &byte| (number << 8) | u64::from(byte))
}
