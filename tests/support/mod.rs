//! What the black-box tests share: a place to run ringest in, the running program and its manifest.
//!
//! Environment, for all test binaries:
//!
//! | variable | meaning |
//! |---|---|
//! | `RINGEST_TEST_DIR` | where the sites are made (default: cargo's directory for test files) |
//! | `RINGEST_TEST_RUN_ARGS` | arguments added to every `ringest run`, such as `--io sync` |
//! | `RINGEST_TEST_WRAPPER` | a program, with its arguments, that every `ringest run` is started through |
//! | `RINGEST_TEST_SEED` | the seed of everything pseudo-random, to replay a failure |
//! | `RINGEST_TEST_DATA` | a directory with CSV and JSON files to upload |
//! | `RINGEST_TEST_HDRHISTOGRAM` | a directory with PyPI's `hdrhistogram`, if Python does not find it by itself |
//! | `RINGEST_TEST_REQUIRE_ALL` | `1`: a test that cannot run here fails instead of being skipped |

// Each test binary compiles this module for itself and uses a part of it.
#![allow(dead_code, unused_imports)]

mod content;
pub mod counts;
pub mod image;
mod manifest;
mod process;
pub mod program;
mod site;

pub use content::{Random, sha256, sha256_of_file};
pub use manifest::Line;
pub use process::{Finished, Running};
pub use site::{RunArgs, Site, files_beneath, tree};

use std::io::Write;
use std::time::{Duration, Instant};

/// How long a test waits for something that should happen soon. Generous: a busy machine is no bug.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Reports that the calling test cannot run here. The line goes past the capture of the test harness, so that
/// whoever runs the tests can count it.
///
/// # Panics
/// If `RINGEST_TEST_REQUIRE_ALL=1`: then nothing may be skipped.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    assert!(
        std::env::var("RINGEST_TEST_REQUIRE_ALL").as_deref() != Ok("1"),
        "cannot run here, and RINGEST_TEST_REQUIRE_ALL is set: {why}"
    );
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

/// Looks at `condition` until it holds.
///
/// # Panics
/// If it does not hold within [`PATIENCE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "in vain waited until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a program that must end well.
pub fn output(command: &mut std::process::Command) -> String {
    let done = command
        .output()
        .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// `command`, started through a program with arguments.
pub fn through(wrapper: &[&str], command: &std::process::Command) -> std::process::Command {
    let mut wrapped = std::process::Command::new(wrapper[0]);
    wrapped.args(&wrapper[1..]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// Makes a filesystem. mkfs.btrfs looks at every loop device there is, and fails if another test lets go of one just then.
pub fn make_filesystem(mkfs: &mut std::process::Command) {
    let start = Instant::now();
    loop {
        let done = mkfs
            .output()
            .unwrap_or_else(|e| panic!("start {mkfs:?}: {e}"));
        if done.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(start.elapsed() < PATIENCE, "{mkfs:?}: {said}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether this process may do what only root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether `program` answers when it is called with `arg`.
pub fn has_program(program: &str, arg: &str) -> bool {
    std::process::Command::new(program)
        .arg(arg)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok()
}
