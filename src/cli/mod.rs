//! The command line: one file per subcommand, each thin.

pub mod args;
pub mod backup;
pub mod bench;
pub mod check;
pub mod find;
pub mod plan;
pub mod rebuild;
pub mod run;
pub mod status;
pub mod verify;

pub use args::{Cli, Command, parse};

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
