//! `ringest find`: what became of a file, by path, name or SHA-256.
//!
//! There is no index on names: every form of query is one walk over the records.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::Failure;
use crate::ledger::lmdb::Lmdb;
use crate::ledger::{Arrival, Digest, Outcome, Placement, RecordState, SourceEntry, SourceId};
use crate::pipeline::record::{layout, manifest};
use crate::settings::Loaded;

/// Records looked at in one read transaction.
const CHUNK: usize = 4096;

/// Prints every match on stdout, in the order of arrival. 1: there is none.
pub fn run(loaded: &Loaded, query: &OsStr, json: bool) -> Result<ExitCode, Failure> {
    let ledger = Lmdb::open_read_only(&loaded.settings.ledger_dir())?;
    let mut stdout = BufWriter::new(io::stdout().lock());
    let (mut found, mut outcome) = (false, Ok(()));
    find(&ledger, &loaded.settings.warehouse, query, |hit| {
        found = true;
        outcome = match serde_json::to_string(&hit) {
            Ok(line) if json => writeln!(stdout, "{line}"),
            _ => write!(stdout, "{hit}"),
        };
        outcome.is_ok()
    })?;
    super::printed(outcome.and_then(|()| stdout.flush()))?;
    if found {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("nothing found: {} is in no record", query.display());
    Ok(ExitCode::FAILURE)
}

/// One match.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hit {
    /// Its sequence number.
    pub seq: u64,
    /// `MANIFESTED`, `SKIPPED_DUPLICATE`, `QUARANTINED`, or `HASHED` while it is being placed.
    pub state: &'static str,
    /// The staging directory's name.
    pub source: String,
    /// Where it came from.
    pub path: String,
    /// The same, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_b64: Option<String>,
    /// Its digest.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Where it is now; `None` if it was not moved into the warehouse.
    pub warehouse_path: Option<String>,
    /// The same, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warehouse_path_b64: Option<String>,
    /// The arrival that brought the same content before.
    pub duplicate_of: Option<u64>,
    /// The rule it broke.
    pub rule: Option<String>,
    /// What was wrong, for people.
    pub message: Option<String>,
    /// Why it is still in staging.
    pub kept: Option<String>,
    /// RFC 3339, UTC.
    pub ingested_at: String,
    /// Last change of its content, in nanoseconds since the epoch.
    pub mtime_ns: i128,
}

/// Hands every match to `tell`, in the order of arrival, until that says no.
pub fn find(
    ledger: &Lmdb,
    warehouse: &Path,
    query: &OsStr,
    mut tell: impl FnMut(Hit) -> bool,
) -> Result<(), Failure> {
    let sources: HashMap<SourceId, SourceEntry> = ledger
        .sources()?
        .into_iter()
        .map(|entry| (entry.id, entry))
        .collect();
    let kept: HashMap<u64, String> = ledger
        .kept()?
        .into_iter()
        .map(|kept| (kept.seq, kept.reason))
        .collect();
    // Before the records: an intent that becomes one meanwhile is met there.
    let intents = ledger.intents()?;
    let query = Query::new(query);
    let hit = |arrival: &Arrival, recorded| {
        let source = sources.get(&arrival.source);
        query.matches(arrival, source, warehouse).then(|| {
            let kept = kept.get(&arrival.seq).cloned();
            Hit::new(arrival, recorded, source, warehouse, kept)
        })
    };
    let mut next = 1;
    loop {
        let records = ledger.records_from(next, CHUNK)?;
        let Some(last) = records.last() else { break };
        next = last.seq + 1;
        for record in &records {
            let RecordState::Done { arrival, .. } = &record.state else {
                continue;
            };
            if hit(arrival, true).is_some_and(|hit| !tell(hit)) {
                return Ok(());
            }
        }
    }
    for intent in intents.iter().filter(|intent| intent.seq >= next) {
        if hit(intent, false).is_some_and(|hit| !tell(hit)) {
            return Ok(());
        }
    }
    Ok(())
}

/// What is asked for. A name may look like a digest, so both are tried.
struct Query<'a> {
    path: &'a Path,
    absolute: PathBuf,
    digest: Option<Digest>,
}

impl Query<'_> {
    fn new(query: &OsStr) -> Query<'_> {
        let path = Path::new(query);
        Query {
            path,
            absolute: std::path::absolute(path).unwrap_or_default(),
            digest: data_encoding::HEXLOWER_PERMISSIVE
                .decode(query.as_encoded_bytes())
                .ok()
                .and_then(|bytes| bytes.try_into().ok()),
        }
    }

    fn matches(&self, arrival: &Arrival, source: Option<&SourceEntry>, warehouse: &Path) -> bool {
        if self.digest == Some(arrival.digest) {
            return true;
        }
        let beneath = |root: &Path, path: &Path| {
            self.absolute
                .strip_prefix(root)
                .is_ok_and(|rest| rest == path)
        };
        let is = |path: &Path| self.path == path || path.file_name() == Some(self.path.as_os_str());
        is(&arrival.path)
            || source.is_some_and(|source| beneath(&source.input, &arrival.path))
            || arrival.placement != Placement::None
                && (is(&arrival.placed) || beneath(warehouse, &arrival.placed))
    }
}

impl Hit {
    fn new(
        arrival: &Arrival,
        recorded: bool,
        source: Option<&SourceEntry>,
        warehouse: &Path,
        kept: Option<String>,
    ) -> Hit {
        let path = match source {
            Some(source) => source.input.join(&arrival.path),
            None => arrival.path.clone(),
        };
        let placed =
            (arrival.placement != Placement::None).then(|| warehouse.join(&arrival.placed));
        let (state, duplicate_of, rule, message) = match &arrival.outcome {
            Outcome::Ingest => ("MANIFESTED", None, None, None),
            Outcome::Duplicate { of } => ("SKIPPED_DUPLICATE", Some(*of), None, None),
            Outcome::Quarantine { rule, message, .. } => (
                "QUARANTINED",
                None,
                Some(rule.clone()),
                Some(message.clone()),
            ),
        };
        Hit {
            seq: arrival.seq,
            state: if recorded { state } else { "HASHED" },
            source: source.map_or_else(String::new, |source| source.name.clone()),
            path: path.to_string_lossy().into_owned(),
            path_b64: manifest::exact(&path),
            sha256: data_encoding::HEXLOWER.encode(&arrival.digest),
            size: arrival.identity.size,
            warehouse_path: placed
                .as_ref()
                .map(|placed| placed.to_string_lossy().into_owned()),
            warehouse_path_b64: placed.as_deref().and_then(manifest::exact),
            duplicate_of,
            rule,
            message,
            kept,
            ingested_at: layout::rfc3339(arrival.time_micros),
            mtime_ns: arrival.identity.mtime.as_nanos(),
        }
    }
}

/// One block for each match, its fields in aligned lines.
impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hit { seq, state, .. } = self;
        writeln!(f, "{state} as arrival {seq}")?;
        let mut line = |name: &str, value: &str| {
            writeln!(f, "  {:<16}{}", format!("{name}:"), super::one_line(value))
        };
        line("path", &self.path)?;
        if let Some(placed) = &self.warehouse_path {
            line("warehouse path", placed)?;
        }
        line("source", &self.source)?;
        line("sha256", &self.sha256)?;
        line("size", &format!("{} bytes", self.size))?;
        line("ingested at", &self.ingested_at)?;
        if let Some(of) = self.duplicate_of {
            line("duplicate of", &format!("arrival {of}"))?;
        }
        if let (Some(rule), Some(message)) = (&self.rule, &self.message) {
            line("rule", rule)?;
            line("message", message)?;
        }
        if let Some(reason) = &self.kept {
            line("kept", reason)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::schema::tests::arrival;
    use crate::ledger::{Commit, Kept, Ledger, Record};
    use crate::settings::Durability;
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    /// One of each state: 1 ingested, 2 its duplicate (kept), 3 quarantined under a strange name, 4 an intent.
    fn ledger(dir: &Path) -> Lmdb {
        let mut ledger = Lmdb::open(&dir.join("ledger"), Durability::None).unwrap();
        let source = ledger.source_id("in", Path::new("/in")).unwrap();
        let base = Arrival {
            source,
            ..arrival()
        };
        let first = Arrival {
            seq: 1,
            outcome: Outcome::Ingest,
            placed: "ingest_date=2026-01-01/b.abababab.csv".into(),
            ..base.clone()
        };
        let second = Arrival {
            seq: 2,
            path: "again.csv".into(),
            outcome: Outcome::Duplicate { of: 1 },
            placement: Placement::None,
            placed: PathBuf::new(),
            ..base.clone()
        };
        let third = Arrival {
            seq: 3,
            path: OsString::from_vec(b"\xff\n.csv".to_vec()).into(),
            digest: [1; 32],
            ..base.clone()
        };
        let fourth = Arrival {
            seq: 4,
            path: "late.csv".into(),
            digest: [2; 32],
            ..base
        };
        let kept = Kept {
            source,
            path: second.path.clone(),
            identity: second.identity,
            seq: 2,
            reason: "duplicate".into(),
        };
        ledger.commit_intents(&[fourth], 5).unwrap();
        let records = [first, second, third].map(|arrival| Record {
            seq: arrival.seq,
            state: RecordState::Done {
                arrival,
                line: None,
            },
        });
        let commit = Commit {
            records: records.into(),
            kept: vec![kept],
            next_seq: 5,
            ..Commit::default()
        };
        ledger.commit_records(&commit).unwrap();
        ledger
    }

    fn hits(query: impl AsRef<OsStr>) -> Vec<Hit> {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        let mut hits = Vec::new();
        find(&ledger, Path::new("/wh"), query.as_ref(), |hit| {
            hits.push(hit);
            true
        })
        .unwrap();
        hits
    }

    fn seqs(query: impl AsRef<OsStr>) -> Vec<u64> {
        hits(query).iter().map(|hit| hit.seq).collect()
    }

    #[test]
    fn a_file_is_found_by_every_path_and_name_it_has() {
        for query in ["/in/again.csv", "/in/./again.csv", "again.csv"] {
            assert_eq!(seqs(query), [2], "{query}");
        }
        assert_eq!(seqs("/in/a/b.csv"), [1]);
        assert_eq!(seqs("b.abababab.csv"), [1]);
        assert_eq!(seqs("ingest_date=2026-01-01/b.abababab.csv"), [1]);
        assert_eq!(seqs("/wh/ingest_date=2026-01-01/b.abababab.csv"), [1]);
        assert_eq!(seqs("/wh/"), [0; 0]);
        assert_eq!(seqs(""), [0; 0]);
        assert_eq!(seqs("/nowhere/again.csv"), [0; 0]);
    }

    #[test]
    fn a_digest_in_any_case_finds_all_with_that_content() {
        assert_eq!(seqs("ab".repeat(32)), [1, 2]);
        assert_eq!(seqs("Ab".repeat(32)), [1, 2]);
        assert_eq!(seqs("ab".repeat(31)), [0; 0]);
    }

    #[test]
    fn a_name_that_is_not_utf8_is_found_by_its_bytes_and_shown_on_one_line() {
        let found = hits(OsStr::from_bytes(b"\xff\n.csv"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].state, "QUARANTINED");
        assert_eq!(found[0].path_b64.as_deref(), Some("L2luL/8KLmNzdg=="));
        let shown = found[0].to_string();
        assert!(shown.contains("/in/\u{fffd}\\n.csv\n"), "{shown}");
    }

    #[test]
    fn what_is_being_placed_is_hashed_and_what_is_kept_says_why() {
        assert_eq!(hits("late.csv")[0].state, "HASHED");
        let duplicate = &hits("again.csv")[0];
        assert_eq!(duplicate.state, "SKIPPED_DUPLICATE");
        assert_eq!(duplicate.duplicate_of, Some(1));
        assert_eq!(duplicate.warehouse_path, None);
        assert!(duplicate.to_string().contains("kept:"), "{duplicate}");
        let json = serde_json::to_value(duplicate).unwrap();
        assert_eq!(json["warehouse_path"], serde_json::Value::Null);
    }
}
