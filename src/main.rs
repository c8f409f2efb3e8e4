//! Arguments → settings → one command → exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use ringest::cli::{self, Command};
use ringest::failure::Failure;
use ringest::io::descriptors;
use ringest::io::memory::Allocator;
use ringest::observe::log;
use ringest::observe::mask::mask;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    log::tell_panics();
    descriptors::forbid_core_dumps();
    let command = match cli::parse() {
        Ok(command) => command,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(error.exit_code());
        }
    };
    match command {
        // `run` has said it in its log, wherever that is.
        Command::Run(loaded) if !loaded.settings.dry_run => match cli::run::run(&loaded) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                if !loaded.settings.log_to_console {
                    complain(&failure.to_string());
                }
                ExitCode::from(failure.exit as u8)
            }
        },
        Command::Run(loaded) => report(cli::run::run(&loaded).map(|()| ExitCode::SUCCESS)),
        Command::Check { loaded, json } => cli::check::run(&loaded, json),
        Command::CheckFile {
            loaded,
            file,
            source,
            json,
        } => report(cli::check_file::run(
            &loaded,
            &file,
            source.as_deref(),
            json,
        )),
        Command::Status { loaded, json } => report(cli::status::run(&loaded, json)),
        Command::Find {
            loaded,
            query,
            json,
        } => report(cli::find::run(&loaded, &query, json)),
        Command::Quarantine { loaded, action } => report(cli::quarantine::run(&loaded, action)),
        Command::Rebuild { loaded, deep, json } => report(cli::rebuild::run(&loaded, deep, json)),
        Command::Backup { loaded, to, json } => report(cli::backup::run(&loaded, &to, json)),
        Command::Bench { bench, json } => report(cli::bench::run(&bench, json)),
        Command::Verify { loaded, deep, json } => report(cli::verify::run(&loaded, deep, json)),
    }
}

/// Shows a failure to the person at the console.
fn report(ended: Result<ExitCode, Failure>) -> ExitCode {
    ended.unwrap_or_else(|failure| {
        complain(&failure.to_string());
        ExitCode::from(failure.exit as u8)
    })
}

fn complain(what: &str) {
    // Nobody may be at the terminal any more.
    let _ = writeln!(io::stderr(), "ringest: {}", mask(what));
}
