//! The command line: one file per subcommand, each thin.

pub mod args;
pub mod backup;
pub mod bench;
pub mod check;
pub mod check_file;
pub mod find;
pub mod plan;
pub mod quarantine;
pub mod rebuild;
pub mod run;
pub mod status;
pub mod verify;

pub use args::{Cli, Command, parse};

use std::io;
use std::path::Path;

use crate::failure::{Exit, Failure};

/// What came of printing: a reader that went away, as `head` does, has seen what it wanted; anything else is a failure.
fn printed(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            Exit::Io,
            "print to",
            Path::new("stdout"),
            error,
            "look at where stdout goes",
        )),
        _ => Ok(()),
    }
}

/// Text without control characters, which could break a line or drive a terminal.
fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}
