//! All of it at once and at random: `tools/storm`, by counts instead of by the clock.

use std::path::Path;
use std::process::Command;

use crate::support::{has_program, is_root, output, skip};

fn storm(user: &str, more: &[&str]) {
    if !is_root() || !has_program("python3", "--version") {
        skip("only root can play other users, in Python");
        return;
    }
    let seed = std::env::var("RINGEST_TEST_SEED").unwrap_or("20".into());
    let mut storm = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/storm"));
    storm
        .args([
            "--rounds",
            "300",
            "--files",
            "100",
            "--seed",
            &seed,
            "--kill-every",
            "3",
        ])
        .args(["--user", user, "--ringest", env!("CARGO_BIN_EXE_ringest")])
        .args(more);
    println!("{}", output(&mut storm));
}

#[test]
fn a_storm_beside_root_stops_nobody() {
    storm("0", &[]);
}

#[test]
fn a_storm_beside_nobody_stops_nobody() {
    storm("65534", &[]);
}

#[test]
fn a_storm_amid_copies_stops_nobody() {
    storm("0", &["--across"]);
    storm("65534", &["--across"]);
}
