//! The command line: one file per subcommand, each thin.

pub mod args;
pub mod check;

pub use args::{Cli, Command, parse};
