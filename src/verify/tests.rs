use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::io::{Identity, Timestamp};
use crate::ledger::{
    Commit, Counts, Kept, Ledger, Owed, OwedKind, PendingLines, Placement, Position, Record,
    SourceId,
};
use crate::pipeline::record::hidden::Hidden;
use crate::pipeline::record::manifest as written;
use crate::settings::Durability;

const UUID: &str = "0123456789abcdef0123456789abcdef";
/// 2025-11-18T12:15:59Z, in microseconds.
const NOON: i64 = 1_763_468_159_000_000;
const HOUR: i64 = 3_600_000_000;

/// A small ledger with its warehouse and manifests, all in agreement:
/// 1 to 5 ingested at noon, 6 a duplicate of 2 set aside, 7 void, 8 quarantined, 9 and 10 ingested an hour later.
struct Site {
    dir: tempfile::TempDir,
    ledger: Lmdb,
    source: SourceId,
    totals: Totals,
    end: Option<crate::ledger::ManifestEnd>,
    next_seq: u64,
}

impl Site {
    fn new() -> Site {
        let mut site = Site::empty();
        for seq in 1..=5 {
            site.record(site.ingested(seq, NOON));
        }
        site.record(site.duplicate(6, 2));
        site.commit_void(7);
        site.record(site.quarantined(8));
        for seq in [9, 10] {
            site.record(site.ingested(seq, NOON + HOUR));
        }
        site
    }

    fn empty() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Lmdb::open(&dir.path().join("ledger"), Durability::None).unwrap();
        ledger.found(UUID).unwrap();
        ledger.secret_or_new().unwrap();
        for name in ["warehouse", "manifests", "in"] {
            let root = dir.path().join(name);
            fs::create_dir(&root).unwrap();
            if name != "in" {
                let marker = format!("{{\"format\":1,\"ledger\":\"{UUID}\"}}\n");
                fs::write(root.join(layout::MARKER), marker).unwrap();
            }
        }
        let source = ledger.source_id("in", &dir.path().join("in")).unwrap();
        Site {
            dir,
            ledger,
            source,
            totals: Totals::default(),
            end: None,
            next_seq: 1,
        }
    }

    /// What a file in staging is called.
    fn hidden(&self, kind: Hidden, seq: u64) -> OsString {
        let names = self.ledger.hidden_names().unwrap();
        names.name(kind, seq)
    }

    fn arrival(&self, seq: u64, of: u64, base: &Path, outcome: Outcome, time: i64) -> Arrival {
        let content = content(of);
        let mut stream = crate::pipeline::read::digest::Stream::default();
        crate::pipeline::read::digest::update(&mut [(&mut stream, &content)]);
        let digest = stream.finish();
        let name = format!("{seq}.csv");
        Arrival {
            seq,
            source: self.source,
            path: name.clone().into(),
            identity: Identity {
                size: content.len() as u64,
                mtime: Timestamp {
                    seconds: 4,
                    nanos: 5,
                },
                ..Identity::default()
            },
            sidecar: None,
            digest,
            key: (outcome == Outcome::Ingest).then(|| ContentKey::global(&digest)),
            outcome,
            placement: Placement::Rename,
            placed: base.join(layout::partition(time)).join(name),
            placed_inode: 1,
            time_micros: time,
            counts: Counts::default(),
            aside: None,
            placed_ctime: Default::default(),
            ctime_vouches: false,
        }
    }

    fn ingested(&self, seq: u64, time: i64) -> Arrival {
        self.arrival(seq, seq, Path::new(""), Outcome::Ingest, time)
    }

    fn duplicate(&self, seq: u64, of: u64) -> Arrival {
        let base = Path::new(layout::DUPLICATES_DIR);
        self.arrival(seq, of, base, Outcome::Duplicate { of }, NOON)
    }

    fn quarantined(&self, seq: u64) -> Arrival {
        let outcome = Outcome::Quarantine {
            rule: "rule".into(),
            message: "message".into(),
            position: Position::default(),
        };
        let base = Path::new(layout::QUARANTINE_DIR);
        self.arrival(seq, seq, base, outcome, NOON)
    }

    /// Puts the file where it belongs, its reason too.
    fn place(&self, arrival: &Arrival, of: u64) {
        let path = self.warehouse().join(&arrival.placed);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content(of)).unwrap();
        if arrival.outcome != Outcome::Ingest {
            fs::write(format!("{}.reason.json", path.display()), "{}").unwrap();
        }
    }

    /// Places and records one arrival and writes its line.
    fn record(&mut self, arrival: Arrival) {
        let of = match arrival.outcome {
            Outcome::Duplicate { of } => of,
            _ => arrival.seq,
        };
        self.place(&arrival, of);
        if let Some(lines) = self.commit(arrival) {
            self.write(&lines);
        }
    }

    fn write(&mut self, lines: &PendingLines) {
        let path = self.manifests().join(layout::manifest_path(lines.hour));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut bytes = fs::read(&path).unwrap_or_default();
        assert_eq!(bytes.len() as u64, lines.offset);
        bytes.extend(&lines.bytes);
        fs::write(&path, bytes).unwrap();
        let synced = Commit {
            synced: Some(lines.end()),
            ..self.housekeeping()
        };
        self.ledger.commit_records(&synced).unwrap();
    }

    fn housekeeping(&self) -> Commit {
        Commit {
            totals: self.totals,
            next_seq: self.next_seq,
            ..Commit::default()
        }
    }

    fn commit(&mut self, arrival: Arrival) -> Option<PendingLines> {
        let seq = arrival.seq;
        add_to(&mut self.totals, &arrival);
        self.next_seq = seq + 1;
        let mut commit = self.housekeeping();
        commit.content = arrival.key.map(|key| (key, seq)).into_iter().collect();
        let mut line = None;
        if arrival.outcome == Outcome::Ingest {
            let input = self.dir.path().join("in");
            let bytes = written::line(&arrival, "in", &input, &self.warehouse());
            let hour = layout::hour(arrival.time_micros);
            let offset = match self.end {
                Some(end) if end.hour == hour => end.offset,
                _ => 0,
            };
            line = Some(written::line_at(offset, &bytes));
            let lines = PendingLines {
                hour,
                offset,
                bytes,
            };
            self.end = Some(lines.end());
            commit.lines = Some(lines);
        }
        let state = RecordState::Done { arrival, line };
        commit.records.push(Record { seq, state });
        self.ledger.commit_records(&commit).unwrap();
        commit.lines
    }

    fn commit_void(&mut self, seq: u64) {
        self.next_seq = seq + 1;
        let state = RecordState::Void;
        let commit = Commit {
            records: vec![Record { seq, state }],
            ..self.housekeeping()
        };
        self.ledger.commit_records(&commit).unwrap();
    }

    fn set_clean(&mut self, clean: bool) {
        let commit = Commit {
            clean: Some(clean),
            ..self.housekeeping()
        };
        self.ledger.commit_records(&commit).unwrap();
    }

    fn warehouse(&self) -> PathBuf {
        self.dir.path().join("warehouse")
    }

    fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    fn placed(&self, seq: u64) -> PathBuf {
        match self.ledger.record_of(seq).unwrap().unwrap().state {
            RecordState::Done { arrival, .. } => self.warehouse().join(arrival.placed),
            RecordState::Void => panic!("void"),
        }
    }

    /// The manifest of noon, which has five lines.
    fn manifest(&self) -> PathBuf {
        self.manifests()
            .join(layout::manifest_path(layout::hour(NOON)))
    }

    fn edit(&self, edit: impl FnOnce(&mut Vec<String>)) {
        let text = fs::read_to_string(self.manifest()).unwrap();
        let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        edit(&mut lines);
        fs::write(self.manifest(), lines.concat()).unwrap();
    }

    fn verify_as(&self, deep: bool, running: bool) -> Report {
        let scope = Scope {
            warehouse: &self.warehouse(),
            manifests: &self.manifests(),
            apart: &[],
            deep,
            running,
        };
        verify(&self.ledger, scope).unwrap()
    }

    fn assert_sound(&self) {
        assert_eq!(self.verify_as(true, false).findings, []);
    }

    /// Requires this one finding, and no other.
    fn assert_finds(&self, kind: Kind, path: Option<&Path>, seq: Option<u64>, says: &str) {
        let found = self.verify_as(true, false);
        let [finding] = &found.findings[..] else {
            panic!("one finding: {:#?}", found.findings)
        };
        assert_eq!(found.mismatches, 1);
        assert_eq!(
            (finding.kind, finding.path.as_deref(), finding.seq),
            (kind, path, seq),
            "{finding}"
        );
        assert!(finding.message.contains(says), "{finding}");
    }
}

fn content(of: u64) -> Vec<u8> {
    format!("content {of}\n").into_bytes()
}

#[test]
fn what_agrees_has_no_findings_and_is_counted() {
    let report = Site::new().verify_as(true, false);
    assert_eq!(report.findings, []);
    assert_eq!(
        (report.records, report.manifest_lines, report.files),
        (10, 7, 9)
    );
    assert_eq!(report.bytes_hashed, 8 * 10 + 11);
}

#[test]
fn a_ledger_with_nothing_yet_is_sound_with_or_without_its_directories() {
    let site = Site::empty();
    site.assert_sound();
    fs::remove_dir_all(site.warehouse()).unwrap();
    fs::remove_dir_all(site.manifests()).unwrap();
    let report = site.verify_as(true, false);
    assert_eq!((report.findings.len(), report.records), (0, 0));
}

#[test]
fn a_removed_file_is_named() {
    for seq in [1, 3, 6, 8, 10] {
        let site = Site::new();
        let path = site.placed(seq);
        fs::remove_file(&path).unwrap();
        site.assert_finds(Kind::FileMissing, Some(&path), Some(seq), "missing");
    }
}

#[test]
fn a_file_of_another_size_or_kind_is_named() {
    let site = Site::new();
    let path = site.placed(2);
    fs::write(&path, "short").unwrap();
    site.assert_finds(Kind::FileChanged, Some(&path), Some(2), "it has 5 bytes");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("3.csv", &path).unwrap();
    site.assert_finds(
        Kind::FileChanged,
        Some(&path),
        Some(2),
        "not a regular file",
    );
}

#[test]
fn one_flipped_byte_is_named_by_a_deep_look() {
    for seq in [4, 6, 8] {
        let site = Site::new();
        let path = site.placed(seq);
        let mut bytes = fs::read(&path).unwrap();
        bytes[3] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(site.verify_as(false, false).findings, []);
        site.assert_finds(Kind::FileChanged, Some(&path), Some(seq), "SHA-256");
    }
}

#[test]
fn a_removed_reason_is_named_unless_it_is_owed() {
    let mut site = Site::new();
    let reason = format!("{}.reason.json", site.placed(8).display());
    fs::remove_file(&reason).unwrap();
    site.assert_finds(Kind::ReasonMissing, Some(reason.as_ref()), Some(8), "why");
    let owed = Owed {
        seq: 8,
        kind: OwedKind::Reason,
        source: site.source,
        path: PathBuf::new(),
        identity: Identity::default(),
    };
    let commit = Commit {
        owed: vec![owed],
        ..site.housekeeping()
    };
    site.ledger.commit_records(&commit).unwrap();
    site.assert_sound();
}

#[test]
fn a_removed_line_is_named_and_those_after_it_are_not() {
    for (at, seq) in [(0, 1), (2, 3), (4, 5)] {
        let site = Site::new();
        site.edit(|lines| {
            lines.remove(at);
        });
        let says = format!("the line of arrival {seq} is missing");
        site.assert_finds(Kind::LineMissing, Some(&site.manifest()), Some(seq), &says);
    }
}

#[test]
fn removed_lines_in_a_row_are_one_finding() {
    for (range, says) in [
        (0..2, "of arrivals 1 to 2"),
        (1..4, "of arrivals 2 to 4"),
        (2..5, "of arrivals 3 to 5"),
    ] {
        let site = Site::new();
        let first = range.start as u64 + 1;
        site.edit(|lines| {
            lines.drain(range);
        });
        site.assert_finds(Kind::LineMissing, Some(&site.manifest()), Some(first), says);
    }
}

#[test]
fn a_doubled_line_is_named_wherever_it_is() {
    for (from, to, says) in [
        (0, 0, "line 2: it repeats the line of arrival 1"),
        (2, 3, "line 4: it repeats the line of arrival 3"),
        (4, 5, "line 6: it repeats the line of arrival 5"),
        (0, 5, "line 6: it repeats the line of arrival 1"),
        (4, 0, "line 1: it repeats the line of arrival 5"),
        (4, 2, "line 3: it repeats the line of arrival 5"),
    ] {
        let site = Site::new();
        site.edit(|lines| lines.insert(to, lines[from].clone()));
        let seq = from as u64 + 1;
        site.assert_finds(Kind::LineForeign, Some(&site.manifest()), Some(seq), says);
    }
}

#[test]
fn a_foreign_line_is_named_wherever_it_is() {
    for at in [0, 2, 5] {
        for line in ["{\"seq\":4}\n", "hello\n", "\n"] {
            let site = Site::new();
            site.edit(|lines| lines.insert(at, line.into()));
            let says = format!("line {}: it belongs to no record", at + 1);
            site.assert_finds(Kind::LineForeign, Some(&site.manifest()), None, &says);
        }
    }
}

#[test]
fn an_edited_line_is_named_whatever_was_edited() {
    type Edit = fn(&str) -> String;
    let edits: [Edit; 4] = [
        |line| line.replace("\"size\":10", "\"size\":11"),
        |line| line.replace("\"seq\":", "\"seq\":4"),
        |line| line.replace('\n', ""),
        |_| "nothing at all\n".into(),
    ];
    for at in [0, 2, 4] {
        for (which, edit) in edits.iter().enumerate() {
            if which == 2 && at != 4 {
                continue; // It would join two lines.
            }
            let site = Site::new();
            site.edit(|lines| lines[at] = edit(&lines[at]));
            let says = format!("line {}: it is not what was written", at + 1);
            let seq = Some(at as u64 + 1);
            site.assert_finds(Kind::LineChanged, Some(&site.manifest()), seq, &says);
        }
    }
}

#[test]
fn a_removed_manifest_is_one_finding() {
    let site = Site::new();
    fs::remove_file(site.manifest()).unwrap();
    let says = "5 lines, of arrivals 1 to 5";
    site.assert_finds(Kind::ManifestMissing, Some(&site.manifest()), Some(1), says);
}

#[test]
fn a_manifest_that_no_record_points_to_is_named_unless_it_is_empty() {
    let site = Site::new();
    let path = site.manifests().join("2020/01/01/00/manifest.jsonl");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "").unwrap();
    site.assert_sound();
    fs::write(&path, "{}\n").unwrap();
    site.assert_finds(Kind::Orphan, Some(&path), None, "orphan");
}

#[test]
fn a_pending_line_may_be_missing_torn_or_there_but_nothing_may_follow_it() {
    let mut site = Site::new();
    let arrival = site.ingested(11, NOON + HOUR);
    site.place(&arrival, 11);
    let lines = site.commit(arrival).unwrap();
    site.assert_sound();
    let path = site.manifests().join(layout::manifest_path(lines.hour));
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], &lines.bytes[..7]].concat()).unwrap();
    site.assert_sound();
    fs::write(&path, [&whole[..], &lines.bytes].concat()).unwrap();
    site.assert_sound();
    fs::write(&path, [&whole[..], &lines.bytes, b"more"].concat()).unwrap();
    site.assert_finds(Kind::LineForeign, Some(&path), None, "no record");
    fs::write(
        &path,
        [&whole[..], &vec![0; lines.bytes.len() + 1]].concat(),
    )
    .unwrap();
    site.assert_finds(Kind::LineForeign, Some(&path), None, "gave out only");
}

#[test]
fn a_quarantined_file_may_leave_with_its_reason_and_another_may_take_its_place() {
    let mut site = Site::new();
    let held = site.quarantined(8);
    let path = site.warehouse().join(&held.placed);
    let reason = path.with_file_name("8.csv.reason.json");
    fs::remove_file(&path).unwrap();
    site.assert_finds(
        Kind::FileMissing,
        Some(&path),
        Some(8),
        "quarantine retry 8",
    );
    fs::remove_file(&reason).unwrap();
    site.assert_sound();
    // A later one with its name, and another content: as an intent, as a record that owes its reason, and done.
    let mut later = site.quarantined(11);
    later.placed = held.placed;
    site.ledger
        .commit_intents(std::slice::from_ref(&later), 12)
        .unwrap();
    site.place(&later, 11);
    fs::remove_file(&reason).unwrap();
    site.assert_sound();
    let owed = Owed {
        seq: 11,
        kind: OwedKind::Reason,
        source: later.source,
        path: later.placed.clone(),
        identity: later.identity,
    };
    site.totals.quarantined += Count::file(later.identity.size);
    site.next_seq = 12;
    let commit = Commit {
        records: vec![Record {
            seq: 11,
            state: RecordState::Done {
                arrival: later,
                line: None,
            },
        }],
        owed: vec![owed],
        totals: site.totals,
        next_seq: 12,
        ..Commit::default()
    };
    site.ledger.commit_records(&commit).unwrap();
    site.assert_sound();
    fs::write(&reason, "{\"seq\":11}").unwrap();
    site.assert_sound();
    // The later one is looked at as closely as ever.
    fs::write(&path, "x").unwrap();
    site.assert_finds(Kind::FileChanged, Some(&path), Some(11), "1 bytes");
}

#[test]
fn what_an_interrupted_retry_left_in_staging_is_a_leftover_unless_an_instance_runs() {
    let site = Site::new();
    let path = site
        .dir
        .path()
        .join("in")
        .join(site.hidden(Hidden::Returning, 8));
    fs::write(&path, "x").unwrap();
    site.assert_finds(Kind::Leftover, Some(&path), Some(8), "quarantine retry 8");
    assert_eq!(site.verify_as(true, true).findings, []);
    // Anybody can make names that look like it.
    let forged = path.with_file_name(format!(".ringest-retry-{UUID}-8"));
    fs::rename(&path, &forged).unwrap();
    site.assert_sound();
}

#[test]
fn an_orphan_is_named_wherever_it_is() {
    for name in [
        "ingest_date=2025-11-18/orphan.csv",
        "_duplicates/orphan.csv",
        "_quarantine/ingest_date=2025-11-18/1.csv.reason.json",
        "orphan",
        "new/.hidden",
    ] {
        let site = Site::new();
        let path = site.warehouse().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "x").unwrap();
        site.assert_finds(Kind::Orphan, Some(&path), None, "orphan");
    }
}

#[test]
fn a_temporary_is_a_leftover_unless_an_instance_runs() {
    let site = Site::new();
    let path = site.warehouse().join("_tmp/1");
    fs::create_dir(path.parent().unwrap()).unwrap();
    site.assert_sound();
    fs::write(&path, "x").unwrap();
    site.assert_finds(Kind::Leftover, Some(&path), None, "unfinished copy");
    assert_eq!(site.verify_as(true, true).findings, []);
}

#[test]
fn a_name_on_its_way_out_is_a_leftover_unless_it_is_owed() {
    let mut site = Site::new();
    let hidden = site.hidden(Hidden::Leaving, 9);
    let path = site.dir.path().join("in/deep").join(hidden);
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write(&path, "x").unwrap();
    fs::write(path.with_file_name(".ringest-other-9"), "x").unwrap();
    fs::write(path.with_file_name(format!(".ringest-{UUID}-9")), "x").unwrap();
    assert_eq!(site.verify_as(true, true).findings, []);
    site.assert_finds(Kind::Leftover, Some(&path), Some(9), "on its way out");
    let owed = Owed {
        seq: 9,
        kind: OwedKind::Source,
        source: site.source,
        path: "deep/9.csv".into(),
        identity: Identity::default(),
    };
    let commit = Commit {
        owed: vec![owed],
        ..site.housekeeping()
    };
    site.ledger.commit_records(&commit).unwrap();
    site.assert_sound();
}

#[test]
fn a_hole_in_the_sequence_is_named() {
    let mut site = Site::new();
    site.record(site.ingested(13, NOON + HOUR));
    site.assert_finds(Kind::Sequence, None, Some(11), "arrivals 11 to 12");
}

#[test]
fn numbers_at_the_end_may_be_unused_after_a_crash_but_not_after_a_clean_end() {
    let mut site = Site::new();
    site.next_seq = 12;
    site.set_clean(false);
    site.assert_sound();
    site.set_clean(true);
    site.assert_finds(Kind::Sequence, None, Some(11), "arrival 11:");
}

#[test]
fn an_intent_is_pending_whether_its_file_is_placed_or_not() {
    let mut site = Site::new();
    let intent = site.ingested(11, NOON + HOUR);
    site.ledger
        .commit_intents(std::slice::from_ref(&intent), 12)
        .unwrap();
    site.assert_sound();
    site.place(&intent, 11);
    site.assert_sound();
    // An undo sets it aside.
    let aside = site.warehouse().join(layout::changed_path(&intent));
    fs::create_dir_all(aside.parent().unwrap()).unwrap();
    fs::rename(site.warehouse().join(&intent.placed), aside).unwrap();
    site.assert_sound();
}

#[test]
fn a_missing_marker_is_one_finding() {
    for root in ["warehouse", "manifests"] {
        let site = Site::new();
        let root = site.dir.path().join(root);
        fs::remove_file(root.join(layout::MARKER)).unwrap();
        site.assert_finds(Kind::Marker, Some(&root), None, UUID);
    }
}

#[test]
fn a_directory_that_is_gone_empty_or_anothers_is_one_finding() {
    for root in ["warehouse", "manifests"] {
        let site = Site::new();
        let root = site.dir.path().join(root);
        let marker = "{\"format\":1,\"ledger\":\"other\"}\n";
        fs::write(root.join(layout::MARKER), marker).unwrap();
        site.assert_finds(Kind::Marker, Some(&root), None, "belongs to ledger other");
        fs::remove_dir_all(&root).unwrap();
        site.assert_finds(Kind::Marker, Some(&root), None, "mount");
        fs::create_dir(&root).unwrap();
        site.assert_finds(Kind::Marker, Some(&root), None, "empty");
    }
}

#[test]
fn totals_that_do_not_add_up_are_named() {
    let mut site = Site::new();
    site.totals.duplicate.files += 1;
    site.set_clean(true);
    site.assert_finds(Kind::Totals, None, None, "duplicate is 2 files");
}

#[test]
fn content_that_is_assigned_to_an_arrival_that_did_not_bring_it_is_named() {
    let mut site = Site::new();
    let key = site.ingested(3, NOON).key.unwrap();
    let commit = Commit {
        content: vec![(key, 4)],
        ..site.housekeeping()
    };
    site.ledger.commit_records(&commit).unwrap();
    site.assert_finds(Kind::Content, None, Some(3), "assigned to arrival 4");
    let commit = Commit {
        content: vec![(key, 3), (ContentKey::global(&[9; 32]), 3)],
        ..site.housekeeping()
    };
    site.ledger.commit_records(&commit).unwrap();
    site.assert_finds(Kind::Content, None, None, "has 8 keys, 7 of them");
}

#[test]
fn content_whose_file_was_lost_may_belong_to_a_later_arrival() {
    let mut site = Site::new();
    let lost = site.placed(3);
    fs::remove_file(&lost).unwrap();
    let outcome = Outcome::Ingest;
    let again = site.arrival(11, 3, Path::new(""), outcome, NOON + HOUR);
    site.place(&again, 3);
    let lines = site.commit(again).unwrap();
    site.write(&lines);
    site.assert_finds(Kind::FileMissing, Some(&lost), Some(3), "missing");
}

#[test]
fn a_duplicate_that_stays_in_staging_needs_no_file() {
    let mut site = Site::new();
    let mut kept = site.duplicate(11, 2);
    kept.placement = Placement::None;
    kept.placed = PathBuf::new();
    let entry = Kept {
        source: site.source,
        path: kept.path.clone(),
        identity: kept.identity,
        seq: 11,
        reason: "duplicate".into(),
    };
    site.commit(kept);
    let commit = Commit {
        kept: vec![entry],
        ..site.housekeeping()
    };
    site.ledger.commit_records(&commit).unwrap();
    site.assert_sound();
}

#[test]
fn only_the_first_thousand_findings_are_kept_and_all_are_counted() {
    let site = Site::new();
    let dir = site.warehouse().join("orphans");
    fs::create_dir(&dir).unwrap();
    for n in 0..5_000 {
        fs::write(dir.join(n.to_string()), "").unwrap();
    }
    let report = site.verify_as(false, false);
    assert_eq!((report.findings.len(), report.mismatches), (1_000, 5_000));
}

/// What a running instance does between the snapshot and the look at the disk.
#[test]
fn a_ledger_that_went_on_since_the_snapshot_is_sound() {
    let mut site = Site::new();
    site.set_clean(false);
    let leaving = site.ingested(11, NOON + HOUR);
    site.ledger
        .commit_intents(std::slice::from_ref(&leaving), 12)
        .unwrap();
    let snapshot = site.ledger.snapshot().unwrap();

    site.record(leaving); // An intent that becomes a record,
    site.record(site.duplicate(12, 11));
    site.record(site.ingested(13, NOON + 2 * HOUR)); // a manifest that begins,
    let again = site.arrival(14, 3, Path::new(""), Outcome::Ingest, NOON + 2 * HOUR);
    site.place(&again, 3);
    let lines = site.commit(again).unwrap(); // content that is brought again,
    site.write(&lines);
    let intent = site.ingested(15, NOON + 2 * HOUR);
    site.place(&intent, 15);
    site.ledger.commit_intents(&[intent], 16).unwrap(); // and a file in the middle of it.

    let scope = Scope {
        warehouse: &site.warehouse(),
        manifests: &site.manifests(),
        apart: &[],
        deep: true,
        running: true,
    };
    let report = verify_at(&site.ledger, scope, &snapshot).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(report.records, 10);
    assert_eq!(report.manifest_lines, 8, "the newer line of that hour too");

    let orphan = site.warehouse().join("orphan");
    fs::write(&orphan, "x").unwrap();
    let report = verify_at(&site.ledger, scope, &snapshot).unwrap();
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    assert_eq!(report.findings[0].path, Some(orphan));
}
