//! Recovery on a real disk, from states that a crash leaves and that are hard to hit with a kill.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::Digest as _;

use crate::failure::{Exit, Failure};
use crate::io::clock::WallClock;
use crate::io::probe::Ctimes;
use crate::io::{Clock, RealDisk, open, stat};
use crate::ledger::lmdb::Lmdb;
use crate::ledger::{
    Arrival, Commit, ContentKey, Counts, Ledger, Outcome, Owed, OwedKind, Placement, Record,
    RecordState, SourceId,
};
use crate::observe::events::Recovered;
use crate::observe::metrics::Metrics;
use crate::settings::Durability;
use crate::verify::{Scope, verify};

use super::hidden::Hidden;
use super::{KeptSet, Place, Recorder, RecorderParts, layout};

struct Site {
    root: tempfile::TempDir,
    seq: u64,
    time_micros: i64,
    intents: Vec<Arrival>,
}

impl Site {
    fn new() -> Site {
        let root = tempfile::tempdir().unwrap();
        for name in ["staging", "warehouse", "manifests"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let site = Site {
            root,
            seq: 1,
            time_micros: WallClock.now_micros(),
            intents: Vec::new(),
        };
        let mut ledger = site.ledger();
        ledger.found("0123456789abcdef").unwrap();
        ledger.source_id("in", &site.path("staging")).unwrap();
        for name in ["warehouse", "manifests"] {
            let marker = r#"{"format":1,"ledger":"0123456789abcdef"}"#;
            fs::write(site.path(name).join(layout::MARKER), marker).unwrap();
        }
        fs::create_dir(site.partition()).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// What the source of an arrival is called on its way out.
    fn hidden(&self, seq: u64) -> OsString {
        let mut ledger = self.ledger();
        ledger.secret_or_new().unwrap();
        ledger.hidden_names().unwrap().name(Hidden::Leaving, seq)
    }

    fn partition(&self) -> PathBuf {
        let partition = layout::partition(self.time_micros);
        self.path("warehouse").join(partition)
    }

    fn staged(&self, name: &str) -> PathBuf {
        self.path("staging").join(name)
    }

    fn placed(&self, name: &str) -> PathBuf {
        self.partition().join(name)
    }

    fn ledger(&self) -> Lmdb {
        Lmdb::open(&self.path("ledger"), Durability::None).unwrap()
    }

    /// A file in staging, and the intent to place it.
    fn intent(&mut self, name: &str, content: &str) {
        fs::write(self.staged(name), content).unwrap();
        let file = fs::File::open(self.staged(name)).unwrap();
        let identity = stat::stat_fd(&file).unwrap().identity;
        let digest = sha2::Sha256::digest(content).into();
        self.intents.push(Arrival {
            seq: self.seq,
            source: SourceId(1),
            path: name.into(),
            identity,
            sidecar: None,
            digest,
            key: Some(ContentKey::global(&digest)),
            outcome: Outcome::Ingest,
            placement: Placement::Rename,
            placed: layout::partition(self.time_micros).join(name),
            placed_inode: identity.inode,
            time_micros: self.time_micros,
            counts: Counts::default(),
            aside: None,
            placed_ctime: Default::default(),
            ctime_vouches: false,
        });
        self.seq += 1;
    }

    /// Turns the last intent into one of a copy that lies in the warehouse already.
    fn copied(&mut self, content: &str) {
        let intent = self.intents.last_mut().unwrap();
        intent.placement = Placement::Copy;
        let placed = self.root.path().join("warehouse").join(&intent.placed);
        fs::write(&placed, content).unwrap();
        intent.placed_inode = fs::metadata(placed).unwrap().ino();
    }

    fn place(&self, name: &str) {
        fs::rename(self.staged(name), self.placed(name)).unwrap();
    }

    fn commit_intents(&self) {
        let mut ledger = self.ledger();
        ledger.commit_intents(&self.intents, self.seq).unwrap();
    }

    /// What a number owes for the file of the last intent.
    fn owed(&self, seq: u64, kind: OwedKind) -> Owed {
        let intent = self.intents.last().unwrap();
        Owed {
            seq,
            kind,
            source: intent.source,
            path: match kind {
                OwedKind::Reason => intent.placed.clone(),
                _ => intent.path.clone(),
            },
            identity: intent.identity,
        }
    }

    fn commit(&self, commit: Commit) {
        self.ledger().commit_records(&commit).unwrap();
    }

    /// One start: recovers, and ends the session.
    fn recover(&self) -> Recovered {
        self.try_recover().unwrap()
    }

    fn try_recover(&self) -> Result<Recovered, Failure> {
        let mut ledger = self.ledger();
        let opening = ledger.open_session().unwrap();
        let place = |name: &str| Place {
            dir: Arc::new(open::root_dir(&self.path(name)).unwrap()),
            path: self.path(name),
        };
        let sources = ledger.sources().unwrap();
        let parts = RecorderParts {
            disk: RealDisk {
                durable: false,
                syncfs: false,
                lease_signal: None,
            },
            ledger,
            clock: Arc::new(WallClock),
            warehouse: place("warehouse"),
            manifests: place("manifests"),
            inputs: HashMap::from([(SourceId(1), place("staging").dir)]),
            claimed_from: HashMap::new(),
            sources,
            kept: Arc::new(KeptSet::default()),
            metrics: Arc::new(Metrics::new()),
            batch_files: 100,
            suspect: false,
            stop: Arc::default(),
            pause_max: None,
            ctimes: Ctimes::Exact,
        };
        let mut recorder: Recorder<RealDisk, Lmdb> = Recorder::new(parts, &opening);
        let recovered = recorder.recover(&opening)?;
        recorder.close("{}".into())?;
        Ok(recovered)
    }

    /// Recovers, and once more, which must find nothing to do; then everything agrees.
    fn recover_for_good(&self) -> Recovered {
        let recovered = self.recover();
        assert_eq!(self.recover(), Recovered::default());
        let ledger = self.ledger();
        let report = verify(
            &ledger,
            Scope {
                warehouse: &self.path("warehouse"),
                manifests: &self.path("manifests"),
                apart: &[],
                deep: true,
                running: false,
            },
        )
        .unwrap();
        assert_eq!(report.mismatches, 0, "{:?}", report.findings);
        recovered
    }

    fn record(&self, seq: u64) -> Option<Arrival> {
        match self.ledger().record_of(seq).unwrap().unwrap().state {
            RecordState::Done { arrival, .. } => Some(arrival),
            RecordState::Void => None,
        }
    }

    fn outcome(&self, seq: u64) -> Option<Outcome> {
        self.record(seq).map(|arrival| arrival.outcome)
    }

    fn names(&self, name: &str) -> Vec<String> {
        let list = fs::read_dir(self.path(name)).unwrap();
        let mut names: Vec<String> = list
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_batch_that_was_placed_in_part_is_finished_in_part_and_the_rest_stays_in_staging() {
    let mut site = Site::new();
    site.intent("placed.csv", "1");
    site.intent("waiting.csv", "2");
    site.intent("gone.csv", "3");
    site.commit_intents();
    site.place("placed.csv");
    fs::remove_file(site.staged("gone.csv")).unwrap();
    let recovered = site.recover_for_good();
    let counts = (recovered.finished, recovered.dropped, recovered.withdrawn);
    assert_eq!(counts, (1, 1, 1));
    assert_eq!(site.names("staging"), ["waiting.csv"]);
    assert_eq!(site.outcome(1), Some(Outcome::Ingest));
    assert_eq!((site.outcome(2), site.outcome(3)), (None, None));
}

#[test]
fn a_file_that_was_moved_in_place_of_the_hashed_one_goes_back() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.commit_intents();
    fs::write(site.staged("new"), "newer").unwrap();
    fs::rename(site.staged("new"), site.staged("a.csv")).unwrap();
    site.place("a.csv");
    assert_eq!(site.recover_for_good().undone, 1);
    assert_eq!(read(&site.staged("a.csv")), "newer");
    assert_eq!(site.outcome(1), None);
}

#[test]
fn one_that_was_on_its_way_back_stays_in_staging_alone() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.commit_intents();
    fs::write(site.staged("new"), "newer").unwrap();
    fs::rename(site.staged("new"), site.staged("a.csv")).unwrap();
    fs::hard_link(site.staged("a.csv"), site.placed("a.csv")).unwrap();
    assert_eq!(site.recover_for_good().undone, 1);
    assert_eq!(read(&site.staged("a.csv")), "newer");
    assert!(!site.placed("a.csv").exists());
    assert!(!site.path("warehouse/_quarantine").exists());
    assert_eq!(site.outcome(1), None);
}

#[test]
fn it_is_set_aside_if_there_is_yet_another_by_then() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.commit_intents();
    fs::write(site.staged("new"), "newer").unwrap();
    fs::rename(site.staged("new"), site.placed("a.csv")).unwrap();
    fs::write(site.staged("newest"), "newest").unwrap();
    fs::rename(site.staged("newest"), site.staged("a.csv")).unwrap();
    assert_eq!(site.recover_for_good().undone, 1);
    assert_eq!(read(&site.staged("a.csv")), "newest");
    assert!(matches!(site.outcome(1), Some(Outcome::Quarantine { .. })));
}

#[test]
fn another_file_at_the_destination_is_set_aside_if_the_hashed_one_is_in_staging() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.commit_intents();
    fs::write(site.placed("a.csv"), "moved").unwrap();
    assert_eq!(site.recover_for_good().undone, 1);
    assert_eq!(read(&site.staged("a.csv")), "hashed");
    let aside = site.record(1).unwrap();
    assert!(matches!(aside.outcome, Outcome::Quarantine { .. }));
    let path = site.path("warehouse").join(&aside.placed);
    assert_eq!(read(&path), "moved");
    // The record is of what lies there; the other one is still to come.
    let inode = fs::metadata(&path).unwrap().ino();
    assert_eq!((aside.identity.inode, aside.placed_inode), (inode, inode));
}

#[test]
fn another_file_at_the_destination_of_a_copy_stays_and_so_does_the_source() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.copied("hashed");
    site.commit_intents();
    fs::write(site.staged("new"), "theirs").unwrap();
    fs::rename(site.staged("new"), site.placed("a.csv")).unwrap();
    assert_eq!(site.recover().dropped, 1);
    assert_eq!(read(&site.placed("a.csv")), "theirs");
    assert_eq!(read(&site.staged("a.csv")), "hashed");
    assert_eq!(site.outcome(1), None);
}

#[test]
fn a_placed_file_that_was_written_to_goes_back_or_is_set_aside_if_its_name_is_taken() {
    let mut site = Site::new();
    site.intent("back.csv", "hashed");
    site.intent("taken.csv", "hashed too");
    site.commit_intents();
    for name in ["back.csv", "taken.csv"] {
        site.place(name);
        fs::write(site.placed(name), "changed").unwrap();
    }
    fs::write(site.staged("taken.csv"), "another").unwrap();
    assert_eq!(site.recover_for_good().undone, 2);
    assert_eq!(read(&site.staged("back.csv")), "changed");
    assert_eq!(read(&site.staged("taken.csv")), "another");
    assert_eq!(site.outcome(1), None);
    let aside = site.record(2).unwrap();
    let Outcome::Quarantine { rule, .. } = aside.outcome else {
        panic!("not quarantined");
    };
    assert_eq!(rule, "changed_after_placement");
    assert_eq!(aside.key, None, "nobody has seen the bytes of that digest");
    let day = layout::partition(site.time_micros);
    let aside = site.path("warehouse/_quarantine").join(day);
    assert_eq!(read(&aside.join("taken.csv.2")), "changed");
}

#[test]
fn an_undo_that_had_set_the_file_aside_is_recorded_as_that() {
    for taken in [true, false] {
        let mut site = Site::new();
        site.intent("a.csv", "hashed");
        site.commit_intents();
        let day = layout::partition(site.time_micros);
        let aside = site.path("warehouse/_quarantine").join(day);
        fs::create_dir_all(&aside).unwrap();
        fs::rename(site.staged("a.csv"), aside.join("a.csv.1")).unwrap();
        fs::write(aside.join("a.csv.1"), "changed").unwrap();
        if taken {
            fs::write(site.staged("a.csv"), "another").unwrap();
        }
        assert_eq!(site.recover_for_good().undone, 1, "taken: {taken}");
        assert!(matches!(site.outcome(1), Some(Outcome::Quarantine { .. })));
    }
}

#[test]
fn a_file_that_a_power_cut_left_at_its_destination_and_aside_is_recorded_as_set_aside() {
    for (content, newer) in [("hashed", true), ("hashed", false), ("changed", true)] {
        let mut site = Site::new();
        site.intent("a.csv", "hashed");
        site.commit_intents();
        site.place("a.csv");
        fs::write(site.placed("a.csv"), content).unwrap();
        let day = layout::partition(site.time_micros);
        let aside = site.path("warehouse/_quarantine").join(day);
        fs::create_dir_all(&aside).unwrap();
        fs::hard_link(site.placed("a.csv"), aside.join("a.csv.1")).unwrap();
        if newer {
            fs::write(site.staged("a.csv"), "newer").unwrap();
        }
        let told = format!("{content}, newer: {newer}");
        assert_eq!(site.recover_for_good().undone, 1, "{told}");
        assert!(!site.placed("a.csv").exists(), "{told}");
        assert_eq!(read(&aside.join("a.csv.1")), content);
        assert_eq!(site.names("staging").len(), usize::from(newer), "{told}");
        assert!(matches!(site.outcome(1), Some(Outcome::Quarantine { .. })));
    }
}

#[test]
fn a_file_under_both_names_is_finished_also_if_its_source_was_on_its_way_out() {
    for hidden in [false, true] {
        let mut site = Site::new();
        site.intent("a.csv", "hashed");
        site.commit_intents();
        fs::hard_link(site.staged("a.csv"), site.placed("a.csv")).unwrap();
        if hidden {
            let hidden = site.hidden(1);
            let hidden = site.path("staging").join(hidden);
            fs::rename(site.staged("a.csv"), hidden).unwrap();
        }
        assert_eq!(site.recover_for_good().finished, 1, "hidden: {hidden}");
        assert_eq!(site.names("staging"), [""; 0]);
        assert_eq!(site.outcome(1), Some(Outcome::Ingest));
    }
}

#[test]
fn a_file_under_both_names_that_was_written_to_stays_in_staging_alone() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.commit_intents();
    fs::hard_link(site.staged("a.csv"), site.placed("a.csv")).unwrap();
    fs::write(site.staged("a.csv"), "changed").unwrap();
    assert_eq!(site.recover_for_good().undone, 1);
    assert_eq!(read(&site.staged("a.csv")), "changed");
    assert!(!site.placed("a.csv").exists());
}

#[test]
fn a_whole_copy_is_finished_and_its_source_goes_last() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.copied("hashed");
    site.commit_intents();
    assert_eq!(site.recover_for_good().finished, 1);
    assert_eq!(site.names("staging"), [""; 0]);
    assert_eq!(read(&site.placed("a.csv")), "hashed");
}

#[test]
fn a_torn_copy_of_the_right_size_goes_and_its_source_stays() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.copied("has\0\0\0");
    site.commit_intents();
    assert_eq!(site.recover_for_good().undone, 1);
    assert_eq!(read(&site.staged("a.csv")), "hashed");
    assert!(!site.placed("a.csv").exists());
    assert_eq!(site.outcome(1), None);
}

#[test]
fn temporary_copies_go() {
    let site = Site::new();
    fs::create_dir(site.path("warehouse/_tmp")).unwrap();
    fs::write(site.path("warehouse/_tmp/1"), "half a co").unwrap();
    site.recover();
    assert_eq!(site.names("warehouse/_tmp"), [""; 0]);
}

#[test]
fn a_manifest_that_is_longer_or_shorter_than_the_ledger_says_stops_the_start() {
    for length in [-1, 1] {
        let mut site = Site::new();
        site.intent("a.csv", "hashed");
        site.commit_intents();
        site.place("a.csv");
        site.recover_for_good();
        let hour = layout::hour(site.time_micros);
        let path = site.path("manifests").join(layout::manifest_path(hour));
        let manifest = fs::File::options().write(true).open(&path).unwrap();
        let had = manifest.metadata().unwrap().len();
        manifest
            .set_len(had.checked_add_signed(length).unwrap())
            .unwrap();
        let failure = site.try_recover().unwrap_err();
        assert_eq!(failure.exit, Exit::Io, "{length}: {failure}");
        assert!(failure.to_string().contains("manifest.jsonl"), "{failure}");
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let failure = site.try_recover().unwrap_err().to_string();
        assert!(failure.contains("it holds 0 bytes"), "{failure}");
    }
}

#[test]
fn directories_of_later_hours_without_a_manifest_do_not_stop_a_start() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.commit_intents();
    site.place("a.csv");
    for path in ["9999/12/31/24", "9999/12/31/23", "9999/12/30"] {
        fs::create_dir_all(site.path("manifests").join(path)).unwrap();
    }
    assert_eq!(site.recover().finished, 1);
    assert_eq!(site.recover(), Recovered::default());
}

#[test]
fn a_torn_copy_goes_and_its_source_stays_unless_it_is_all_that_is_left() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.copied("ha");
    site.intent("b.csv", "hashed too");
    site.copied("hash");
    site.commit_intents();
    fs::remove_dir_all(site.path("staging")).unwrap();
    fs::create_dir(site.path("staging")).unwrap();
    fs::write(site.staged("a.csv"), "hashed").unwrap();
    assert_eq!(site.recover_for_good().undone, 2);
    assert_eq!(site.names("staging"), ["a.csv", "b.csv"]);
    assert!(!site.placed("a.csv").exists());
    assert_eq!(read(&site.staged("b.csv")), "hash");
}

#[test]
fn numbers_that_were_given_out_without_an_intent_become_void() {
    for order in [[1, 2, 3], [2, 1, 3], [2, 3, 1]] {
        let mut site = Site::new();
        for _ in order {
            site.intent(&format!("{}.csv", site.seq), &site.seq.to_string());
        }
        // Only one of three is a placement: the others were duplicates to be deleted.
        site.intents.retain(|intent| intent.seq == order[0]);
        site.commit_intents();
        site.place(&format!("{}.csv", order[0]));
        assert_eq!(site.recover_for_good().finished, 1);
        assert_eq!(site.outcome(order[0]), Some(Outcome::Ingest));
        assert_eq!(
            (site.outcome(order[1]), site.outcome(order[2])),
            (None, None)
        );
    }
}

#[test]
fn a_hidden_source_gets_the_next_name_if_it_is_all_that_is_left_and_its_own_is_taken() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.commit_intents();
    let hidden = site.hidden(1);
    let hidden = site.path("staging").join(hidden);
    fs::rename(site.staged("a.csv"), hidden).unwrap();
    fs::write(site.staged("a.csv"), "newer").unwrap();
    assert_eq!(site.recover_for_good().dropped, 1);
    assert_eq!(site.names("staging"), ["a.csv", "a.csv.1"]);
    assert_eq!(read(&site.staged("a.csv.1")), "hashed");
}

#[test]
fn a_hidden_file_that_is_not_what_was_recorded_waits_until_a_name_is_free() {
    let mut site = Site::new();
    site.intent("a.csv", "newer");
    let hidden = site.hidden(1);
    fs::write(site.path("staging").join(&hidden), "another").unwrap();
    fs::write(site.staged("a.csv.1"), "newest").unwrap();
    site.commit(Commit {
        owed: vec![site.owed(1, OwedKind::Source)],
        next_seq: 1,
        ..Commit::default()
    });
    site.recover();
    let hidden = hidden.to_str().unwrap();
    assert_eq!(site.names("staging"), [hidden, "a.csv", "a.csv.1"]);
    fs::remove_file(site.staged("a.csv.1")).unwrap();
    site.recover();
    assert_eq!(site.names("staging"), ["a.csv", "a.csv.1"]);
    assert_eq!(read(&site.staged("a.csv.1")), "another");
    assert_eq!(site.ledger().owed().unwrap(), []);
}

#[test]
fn debts_of_arrivals_that_are_not_recorded_remove_nothing_and_write_nothing() {
    let mut site = Site::new();
    site.intent("a.csv", "content");
    let duplicate = site.owed(9, OwedKind::Duplicate);
    let reason = site.owed(9, OwedKind::Reason);
    // Its bytes would have to be compared.
    let mut touched = site.owed(9, OwedKind::Source);
    touched.identity.ctime.seconds -= 1;
    site.commit(Commit {
        owed: vec![duplicate, reason, touched],
        next_seq: 1,
        ..Commit::default()
    });
    assert_eq!(site.recover().owed, 3);
    assert_eq!(read(&site.staged("a.csv")), "content");
    assert_eq!(fs::read_dir(site.partition()).unwrap().count(), 0);
    assert_eq!(site.ledger().owed().unwrap(), []);
}

#[test]
fn a_reason_is_written_of_what_was_set_aside_and_of_nothing_else() {
    let mut site = Site::new();
    site.intent("a.csv", "content");
    site.commit_intents();
    site.place("a.csv");
    site.recover();
    let ingested = site.record(1).unwrap();
    let of_ingested = site.owed(1, OwedKind::Reason);
    site.intent("b.csv", "content");
    // Of an arrival that is not recorded.
    let duplicate = Arrival {
        seq: 2,
        outcome: Outcome::Duplicate { of: 9 },
        placed: ingested.placed.with_file_name("b.csv"),
        ..ingested
    };
    site.commit(Commit {
        records: vec![Record {
            seq: 2,
            state: RecordState::Done {
                arrival: duplicate,
                line: None,
            },
        }],
        owed: vec![of_ingested, site.owed(2, OwedKind::Reason)],
        next_seq: 3,
        ..Commit::default()
    });
    site.recover();
    assert!(!site.placed("a.csv.reason.json").exists());
    let reason = read(&site.placed("b.csv.reason.json"));
    assert!(reason.contains("same content as arrival 9"), "{reason}");
    assert_eq!(site.ledger().owed().unwrap(), []);
}

#[test]
fn an_intent_of_a_source_that_the_ledger_does_not_know_stops_the_start() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.intents[0].source = SourceId(9);
    site.commit_intents();
    let failure = site.try_recover().unwrap_err();
    assert_eq!(failure.exit, Exit::Config, "{failure}");
    assert_eq!(site.names("staging"), ["a.csv"]);
}

#[test]
fn a_hidden_name_that_an_earlier_version_gave_is_found() {
    let mut site = Site::new();
    site.intent("a.csv", "content");
    site.commit(Commit {
        owed: vec![site.owed(1, OwedKind::Sidecar)],
        next_seq: 2,
        ..Commit::default()
    });
    // The ledger gets its secret at the next start.
    let untagged = ".ringest-0123456789abcdef-1.sidecar";
    fs::rename(site.staged("a.csv"), site.path("staging").join(untagged)).unwrap();
    assert_eq!(site.recover().owed, 1);
    assert_eq!(site.names("staging"), [""; 0]);
    assert_eq!(site.ledger().owed().unwrap(), []);
    // From then on such a name is anybody's.
    site.intent("b.csv", "content");
    site.commit(Commit {
        owed: vec![site.owed(2, OwedKind::Sidecar)],
        next_seq: 3,
        ..Commit::default()
    });
    let squatted = ".ringest-0123456789abcdef-2.sidecar";
    fs::create_dir(site.path("staging").join(squatted)).unwrap();
    site.recover();
    assert_eq!(site.names("staging"), [squatted]);
    assert_eq!(site.ledger().owed().unwrap(), []);
}

#[test]
fn a_source_that_nobody_can_look_at_is_not_given_up() {
    let mut site = Site::new();
    site.intent("a.csv", "hashed");
    site.intent("b.csv", "hashed too");
    site.copied("torn");
    // Whoever closes a directory does not keep root out. A name that is too long does.
    for intent in &mut site.intents {
        intent.path = format!("{}/a.csv", "x".repeat(300)).into();
    }
    site.commit_intents();
    let recovered = site.recover();
    assert_eq!((recovered.dropped, recovered.withdrawn), (1, 0));
    // What may be the last copy is set aside, torn as it is, and its source is not to go.
    assert!(matches!(site.outcome(2), Some(Outcome::Quarantine { .. })));
    assert_eq!(site.recover(), Recovered::default());
}

#[test]
fn a_reason_is_not_written_over_what_was_set_aside_under_its_name() {
    let mut site = Site::new();
    site.intent("a.csv", "content");
    site.commit_intents();
    site.place("a.csv");
    site.recover();
    let first = site.record(1).unwrap();
    let duplicate = Arrival {
        seq: 2,
        outcome: Outcome::Duplicate { of: 1 },
        placed: first.placed.with_file_name("b.csv"),
        ..first
    };
    site.intent("b.csv", "content");
    site.commit(Commit {
        records: vec![Record {
            seq: 2,
            state: RecordState::Done {
                arrival: duplicate,
                line: None,
            },
        }],
        owed: vec![site.owed(2, OwedKind::Reason)],
        next_seq: 3,
        ..Commit::default()
    });
    let reason = site.placed("b.csv.reason.json");
    fs::write(&reason, "somebody's").unwrap();
    site.recover();
    assert_eq!(read(&reason), "somebody's");
    fs::remove_file(&reason).unwrap();
    fs::create_dir(&reason).unwrap();
    site.recover();
    fs::remove_dir(&reason).unwrap();
    // What a crash has left of it is ended.
    fs::write(&reason, "{\n  \"rule\": \"dup\0\0\0").unwrap();
    site.recover();
    assert!(read(&reason).contains("same content as arrival 1"));
    assert_eq!(site.ledger().owed().unwrap(), []);
}
