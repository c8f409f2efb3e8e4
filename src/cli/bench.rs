//! `ringest bench`: how fast files are ingested here.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::bench::{self, Bench, Progress};
use crate::failure::Failure;

/// The exit code of a bench that was interrupted, as a shell would give it.
const INTERRUPTED: u8 = 130;

/// Prints the figures on stdout.
pub fn run(bench: &Bench, json: bool) -> Result<ExitCode, Failure> {
    let mut progress = Progress::on_terminal();
    let report = bench::run(bench, &mut progress);
    progress.clear();
    let Some(report) = report? else {
        let _ = writeln!(io::stderr(), "ringest: interrupted, nothing was measured");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let text = match json {
        true => serde_json::to_string(&report).expect("plain numbers") + "\n",
        false => report.to_string(),
    };
    super::printed(io::stdout().lock().write_all(text.as_bytes()))?;
    Ok(ExitCode::SUCCESS)
}
