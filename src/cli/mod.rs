//! The command line: one file per subcommand, each thin.

pub mod args;
pub mod check;
pub mod plan;
pub mod run;

pub use args::{Cli, Command, parse};
