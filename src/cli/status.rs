//! `ringest status`: how the running instance is doing, or how the last one ended.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::failure::{Exit, Failure};
use crate::io::open;
use crate::ledger::OwedKind;
use crate::ledger::lmdb::Lmdb;
use crate::observe::control;
use crate::observe::metrics::{Count, Metrics, State, Status};
use crate::settings::Loaded;

/// Prints the status on stdout: the running instance's own, or else what the ledger knows.
pub fn run(loaded: &Loaded, json: bool) -> Result<ExitCode, Failure> {
    let socket = loaded.settings.control_socket();
    let answer = control::ask(&socket)
        .map_err(|error| Failure::io("ask the running instance at", &socket, &error))?;
    let status = match answer {
        Some(answer) => serde_json::from_str(&answer).map_err(|error| {
            Failure::new(
                Exit::Io,
                "understand the answer of",
                &socket,
                error,
                "ask with the version of ringest that runs",
            )
        })?,
        None => stopped(&Lmdb::open_read_only(&loaded.settings.ledger_dir())?)?,
    };
    let text = match serde_json::to_string(&status) {
        Ok(line) if json => line + "\n",
        _ => status.to_text(),
    };
    super::printed(io::stdout().lock().write_all(text.as_bytes()))?;
    Ok(ExitCode::SUCCESS)
}

/// What the ledger says when nobody runs. What waits in staging is not counted, only what was being placed.
pub fn stopped(ledger: &Lmdb) -> Result<Status, Failure> {
    let snapshot = ledger.snapshot()?;
    let metrics = Metrics::new();
    metrics.restore(snapshot.totals);
    for intent in &snapshot.intents {
        metrics.pending.add(Count::file(intent.identity.size));
    }
    let sources = ledger.sources()?;
    for owed in ledger.owed()? {
        let source = sources.iter().find(|source| source.id == owed.source);
        if let (true, Some(source)) = (owed.kind != OwedKind::Reason, source) {
            metrics.owes_removal(&source.input.join(&owed.path));
        }
    }
    for kept in ledger.kept()? {
        let source = sources.iter().find(|source| source.id == kept.source);
        if let Some(source) = source
            && open::root_dir(&source.input).is_ok_and(|input| kept.is_owed_in(input))
        {
            metrics.owes_removal(&source.input.join(&kept.path));
        }
    }
    let counted = metrics.status(State::Stopped);
    let last: Option<Status> = ledger
        .numbers()?
        .and_then(|json| serde_json::from_str(&json).ok());
    Ok(match last {
        Some(last) => Status {
            latency_ms: last.latency_ms,
            errors: last.errors,
            log_dropped: last.log_dropped,
            version: last.version,
            ..counted
        },
        None => counted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Commit, Ledger};
    use crate::observe::metrics::{Stage, Totals};
    use crate::settings::Durability;

    #[test]
    fn without_an_instance_totals_are_the_ledgers_and_latencies_those_of_the_last_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Lmdb::open(&dir.path().join("ledger"), Durability::None).unwrap();
        assert_eq!(stopped(&ledger).unwrap().files.discovered, 0);

        let metrics = Metrics::new();
        metrics.record(Stage::Total, std::time::Duration::from_millis(5));
        let numbers = serde_json::to_string(&metrics.status(State::Running)).unwrap();
        let mut intent = crate::ledger::schema::tests::arrival();
        intent.seq = 1;
        ledger.commit_intents(&[intent], 2).unwrap();
        let totals = Totals {
            ingested: Count {
                files: 3,
                bytes: 30,
            },
            ..Totals::default()
        };
        let commit = Commit {
            totals,
            numbers: Some(numbers),
            next_seq: 2,
            ..Commit::default()
        };
        ledger.commit_records(&commit).unwrap();

        let status = stopped(&ledger).unwrap();
        assert_eq!((status.state, status.pid), (State::Stopped, None));
        assert_eq!(status.uptime_seconds, 0);
        assert_eq!((status.files.ingested, status.bytes.ingested), (3, 30));
        assert_eq!((status.files.pending, status.bytes.pending), (1, 3));
        assert_eq!(status.files.discovered, 4);
        assert_eq!(status.latency_ms[&Stage::Total].count, 1);
    }
}
