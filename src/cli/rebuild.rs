//! `ringest rebuild`: a new ledger after the state was lost.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::Failure;
use crate::pipeline::record::manifest;
use crate::rebuild::{Finding, Kind, Report, rebuild};
use crate::settings::Loaded;

/// Says on stdout what was out of the ordinary, and what the ledger holds. 1: files are missing or have other bytes; the
/// ledger is made all the same.
pub fn run(loaded: &Loaded, deep: bool, json: bool) -> Result<ExitCode, Failure> {
    // Not buffered: what was done is said even if the next step fails. A reader that went away changes nothing.
    let mut tell = |finding: Finding| {
        let _ = print(&finding, json);
    };
    let report = rebuild(&loaded.settings, deep, &mut tell)?;
    let summary = match json {
        true => serde_json::to_string(&report).expect("plain numbers"),
        false => in_words(&report),
    };
    let _ = writeln!(io::stdout(), "{summary}");
    Ok(match report.damaged {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn print(finding: &Finding, json: bool) -> io::Result<()> {
    #[derive(Serialize)]
    struct Shown<'a> {
        kind: Kind,
        path: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        path_b64: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
        message: &'a str,
    }
    let path = finding.path.to_string_lossy();
    let shown = match json {
        true => serde_json::to_string(&Shown {
            kind: finding.kind,
            path: &path,
            path_b64: manifest::exact(&finding.path),
            seq: finding.seq,
            message: &finding.message,
        })?,
        false => super::one_line(&format!("{path}: {}", finding.message)),
    };
    writeln!(io::stdout(), "{shown}")
}

fn in_words(report: &Report) -> String {
    let Report {
        lines,
        duplicates,
        quarantined,
        void,
        adopted,
        damaged,
        next_seq,
    } = report;
    let mut words = format!(
        "rebuilt: {lines} manifest lines, {duplicates} duplicates, {quarantined} quarantined, {void} void numbers, \
         {adopted} files that nothing had recorded; the next arrival is {next_seq}"
    );
    if *adopted > 0 {
        words.push_str("; `ringest run` writes what they lack");
    }
    if *damaged > 0 {
        words.push_str(&format!(
            "; {damaged} files are missing or changed: see above"
        ));
    }
    words
}
