//! The simulated ledger: the tables of `src/ledger/lmdb.rs` with the bytes of `src/ledger/schema.rs`, in memory.
//!
//! A commit is atomic and, once it returns, durable; that is what LMDB promises and what is not tested here. A crash
//! during a commit comes before it or after it. A commit that fails is in the ledger or not, and nothing may
//! be acknowledged after it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use ringest::failure::{Exit, Failure};
use ringest::ledger::schema::{Value, lines_key, owed_key};
use ringest::ledger::{
    Arrival, Commit, ContentKey, Kept, Ledger, ManifestEnd, Opening, Owed, PendingLines, Record,
    RecordState, Secret, SourceEntry, SourceId,
};
use ringest::observe::metrics::Totals;

use crate::disk::{Op, State};

/// Of all simulated ledgers.
const SECRET: Secret = Secret {
    bytes: [7; 32],
    since: 1,
};

type Bytes = Rc<[u8]>;
type Table = Rc<BTreeMap<Vec<u8>, Bytes>>;

/// Everything in the ledger. A clone shares what does not change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tables {
    meta: Rc<BTreeMap<&'static str, Bytes>>,
    sources: Table,
    intents: Table,
    records: Table,
    content: Table,
    owed: Table,
    lines: Table,
    kept: Table,
}

/// APPEND: LMDB refuses a key that does not come last.
struct NotLast;

fn put(table: &mut Table, key: &[u8], value: Vec<u8>) {
    Rc::make_mut(table).insert(key.to_vec(), value.into());
}

fn append(table: &mut Table, key: &[u8], value: Vec<u8>) -> Result<(), NotLast> {
    match table.last_key_value() {
        Some((last, _)) if last.as_slice() >= key => Err(NotLast),
        _ => {
            put(table, key, value);
            Ok(())
        }
    }
}

fn all<V: Value>(table: &Table) -> Vec<V> {
    let values = table.values();
    values
        .map(|bytes| V::decode(bytes).expect("a value of this table"))
        .collect()
}

impl Tables {
    fn put_meta(&mut self, name: &'static str, value: &impl Value) {
        Rc::make_mut(&mut self.meta).insert(name, value.encode().into());
    }

    fn meta<V: Value>(&self, name: &str) -> Option<V> {
        let bytes = self.meta.get(name)?;
        Some(V::decode(bytes).expect("a value of meta"))
    }

    pub fn records(&self) -> Vec<Record> {
        all(&self.records)
    }

    pub fn record(&self, seq: u64) -> Option<Record> {
        let bytes = self.records.get(seq.to_be_bytes().as_slice())?;
        Some(Record::decode(bytes).expect("a record"))
    }

    pub fn intents(&self) -> Vec<Arrival> {
        all(&self.intents)
    }

    pub fn owed(&self) -> Vec<Owed> {
        all(&self.owed)
    }

    pub fn kept(&self) -> Vec<Kept> {
        all(&self.kept)
    }

    pub fn pending_lines(&self) -> Vec<PendingLines> {
        all(&self.lines)
    }

    pub fn sources(&self) -> Vec<SourceEntry> {
        all(&self.sources)
    }

    /// Content keys and the arrivals that brought them.
    pub fn content(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.content
            .iter()
            .map(|(key, bytes)| (key.as_slice(), number(bytes)))
    }

    pub fn next_seq(&self) -> u64 {
        self.meta("next_seq").unwrap_or(1)
    }

    pub fn assigned(&self) -> Option<ManifestEnd> {
        self.meta("manifest_assigned")
    }

    pub fn clean(&self) -> bool {
        self.meta::<u64>("clean").unwrap_or(1) == 1
    }

    pub fn totals(&self) -> Totals {
        let json = self.meta::<String>("totals");
        json.and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default()
    }

    pub fn opening(&self) -> Opening {
        Opening {
            uuid: self.meta("uuid").unwrap_or_default(),
            next_seq: self.next_seq(),
            recorded_to: self
                .records
                .last_key_value()
                .map_or(0, |(key, _)| number(key)),
            last_time_micros: self.meta::<u64>("last_time_micros").unwrap_or(0) as i64,
            clean: self.clean(),
            manifest: self.assigned(),
            totals: self.totals(),
            intents: self.intents(),
            owed: self.owed(),
            pending_lines: self.pending_lines(),
            sources: self.sources(),
            secret: SECRET,
            owed_told: self.meta("owed_told").unwrap_or(0),
        }
    }

    pub fn found(&mut self, uuid: &str) {
        self.put_meta("format", &1);
        self.put_meta("uuid", &uuid.to_string());
    }

    pub fn source_id(&mut self, name: &str, input: &Path) -> SourceId {
        let known = self.sources();
        let same = |entry: &&SourceEntry| entry.name == name && entry.input == input;
        if let Some(entry) = known.iter().find(same) {
            return entry.id;
        }
        let id = SourceId(known.iter().map(|entry| entry.id.0).max().unwrap_or(0) + 1);
        let entry = SourceEntry {
            id,
            name: name.to_string(),
            input: input.to_path_buf(),
        };
        put(&mut self.sources, &id.0.to_be_bytes(), entry.encode());
        id
    }

    fn lookup(&self, key: &ContentKey) -> Option<u64> {
        self.content.get(key.as_bytes()).map(|bytes| number(bytes))
    }

    fn commit_intents(&mut self, intents: &[Arrival], next_seq: u64) -> Result<(), NotLast> {
        for intent in intents {
            append(
                &mut self.intents,
                &intent.seq.to_be_bytes(),
                intent.encode(),
            )?;
        }
        if let Some(time) = intents.iter().map(|intent| intent.time_micros).max() {
            self.put_meta("last_time_micros", &(time as u64));
        }
        self.put_meta("next_seq", &next_seq);
        Ok(())
    }

    fn commit_records(&mut self, commit: &Commit) -> Result<(), NotLast> {
        let first = commit.records.first().map(|record| record.seq);
        let last = self.records.last_key_value().map(|(key, _)| number(key));
        let anywhere = matches!((last, first), (Some(last), Some(first)) if last >= first);
        for record in &commit.records {
            let key = record.seq.to_be_bytes();
            match anywhere {
                true => put(&mut self.records, &key, record.encode()),
                false => append(&mut self.records, &key, record.encode())?,
            }
            Rc::make_mut(&mut self.intents).remove(key.as_slice());
        }
        let mut content: Vec<&(ContentKey, u64)> = commit.content.iter().collect();
        content.sort_unstable();
        for (key, seq) in content {
            put(
                &mut self.content,
                key.as_bytes(),
                seq.to_be_bytes().to_vec(),
            );
        }
        if let Some(lines) = &commit.lines {
            let key = lines_key(lines.hour, lines.offset);
            put(&mut self.lines, &key, lines.encode());
            self.put_meta("manifest_assigned", &lines.end());
        }
        for owed in &commit.owed {
            put(
                &mut self.owed,
                &owed_key(owed.seq, owed.kind),
                owed.encode(),
            );
        }
        for (seq, kind) in &commit.paid {
            Rc::make_mut(&mut self.owed).remove(owed_key(*seq, *kind).as_slice());
        }
        for kept in &commit.kept {
            let key = Kept::fingerprint(kept.source, &kept.path, &kept.identity);
            put(&mut self.kept, &key.to_be_bytes(), kept.encode());
        }
        if let Some(synced) = &commit.synced {
            self.put_meta("manifest_synced", synced);
            let end = lines_key(synced.hour, synced.offset);
            Rc::make_mut(&mut self.lines).retain(|key, _| key.as_slice() >= end.as_slice());
        }
        if let Some(numbers) = &commit.numbers {
            self.put_meta("numbers", numbers);
        }
        if let Some(clean) = commit.clean {
            self.put_meta("clean", &u64::from(clean));
        }
        if let Some(told) = commit.owed_told {
            self.put_meta("owed_told", &told);
        }
        let times = commit
            .records
            .iter()
            .filter_map(|record| match &record.state {
                RecordState::Done { arrival, .. } => Some(arrival.time_micros),
                RecordState::Void => None,
            });
        if let Some(time) = times.max() {
            let known = self.meta::<u64>("last_time_micros").unwrap_or(0);
            self.put_meta("last_time_micros", &known.max(time as u64));
        }
        let totals = serde_json::to_string(&commit.totals).expect("plain numbers");
        self.put_meta("totals", &totals);
        self.put_meta("next_seq", &commit.next_seq);
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

/// The recorder's view.
#[derive(Clone)]
pub struct SimLedger(pub Rc<RefCell<State>>);

impl SimLedger {
    fn commit(
        &self,
        what: &str,
        change: impl FnOnce(&mut Tables) -> Result<(), NotLast>,
    ) -> Result<(), Failure> {
        let mut state = self.0.borrow_mut();
        let state = &mut *state;
        if state.sync_failed {
            state.violate(format!("{what} after a sync had failed"));
        }
        let mut tables = state.ledger.clone();
        let changed = change(&mut tables);
        // A crash in the middle of it comes before or after it: after it is before the next event.
        let failed = state.event(Op::Commit, || what.to_string());
        let failure = |cause: &str| Failure {
            suspect: true,
            ..Failure::new(Exit::Io, what, Path::new("ledger"), cause, "start again")
        };
        if changed.is_err() {
            return Err(failure("KEYEXIST"));
        }
        if failed.is_some() {
            state.sync_failed = true;
            if state.random.percent(50) {
                state.ledger = tables;
                state.commits += 1;
            }
            return Err(failure("EIO"));
        }
        state.ledger = tables;
        state.commits += 1;
        Ok(())
    }
}

impl Ledger for SimLedger {
    fn open_session(&mut self) -> Result<Opening, Failure> {
        Ok(self.0.borrow().ledger.opening())
    }

    fn found(&mut self, uuid: &str) -> Result<(), Failure> {
        self.commit("found", |tables| {
            tables.found(uuid);
            Ok(())
        })
    }

    fn source_id(&mut self, name: &str, input: &Path) -> Result<SourceId, Failure> {
        let mut id = SourceId(0);
        self.commit("source_id", |tables| {
            id = tables.source_id(name, input);
            Ok(())
        })?;
        Ok(id)
    }

    fn lookup(&self, keys: &[ContentKey]) -> Result<Vec<Option<u64>>, Failure> {
        let state = self.0.borrow();
        Ok(keys.iter().map(|key| state.ledger.lookup(key)).collect())
    }

    fn record(&self, seq: u64) -> Result<Option<Record>, Failure> {
        Ok(self.0.borrow().ledger.record(seq))
    }

    fn reserve(
        &mut self,
        arrivals: usize,
        _names: u64,
        _lines: u64,
    ) -> Result<std::io::Result<()>, Failure> {
        let what = || format!("reserve for {arrivals} in the ledger");
        let failed = self.0.borrow_mut().event(Op::Reserve, what);
        Ok(match failed {
            Some(errno) => Err(errno.into()),
            None => Ok(()),
        })
    }

    fn commit_intents(&mut self, intents: &[Arrival], next_seq: u64) -> Result<(), Failure> {
        self.commit("commit A", |tables| {
            tables.commit_intents(intents, next_seq)
        })?;
        let mut state = self.0.borrow_mut();
        for (role, path) in std::mem::take(&mut state.withdraw_on_intents) {
            crate::upload::remove(&mut state.image, role, &path);
        }
        Ok(())
    }

    fn commit_records(&mut self, commit: &Commit) -> Result<(), Failure> {
        let what = if commit.records.is_empty() {
            "commit"
        } else {
            "commit B"
        };
        self.commit(what, |tables| tables.commit_records(commit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use ringest::io::{Identity, Timestamp};
    use ringest::ledger::lmdb::Lmdb;
    use ringest::ledger::{Counts, Line, Outcome, OwedKind, Placement};
    use ringest::observe::metrics::Count;
    use ringest::settings::Durability;

    fn arrival(random: &mut Random, seq: u64) -> Arrival {
        let number = random.below(4);
        let digest = [number as u8; 32];
        let path = format!("{number}.csv");
        Arrival {
            seq,
            source: SourceId(1 + random.below(2) as u16),
            path: path.clone().into(),
            identity: Identity {
                inode: number,
                mtime: Timestamp {
                    seconds: number as i64,
                    nanos: 1,
                },
                ..Identity::default()
            },
            sidecar: None,
            digest,
            key: Some(ContentKey::global(&digest)),
            outcome: Outcome::Ingest,
            placement: Placement::Rename,
            placed: path.into(),
            placed_inode: number,
            time_micros: random.below(1 << 40) as i64,
            counts: Counts::default(),
            aside: None,
            placed_ctime: Default::default(),
            ctime_vouches: false,
        }
    }

    /// Any commit at all, sensible or not.
    fn commit(random: &mut Random) -> Commit {
        let mut commit = Commit {
            next_seq: random.below(40),
            ..Commit::default()
        };
        let mut seq = random.below(20);
        for _ in 0..random.below(4) {
            seq += 1 + random.below(3);
            let state = match random.percent(70) {
                true => {
                    let line = random.percent(50).then_some(Line {
                        offset: seq,
                        length: 1,
                        checksum: 2,
                    });
                    let arrival = arrival(random, seq);
                    commit.content.extend(arrival.key.map(|key| (key, seq)));
                    RecordState::Done { arrival, line }
                }
                false => RecordState::Void,
            };
            commit.records.push(Record { seq, state });
        }
        let kinds = [
            OwedKind::Source,
            OwedKind::Duplicate,
            OwedKind::Sidecar,
            OwedKind::Reason,
        ];
        let end = |random: &mut Random| ManifestEnd {
            hour: random.below(3) as i64,
            offset: random.below(50),
        };
        if random.percent(40) {
            let ManifestEnd { hour, offset } = end(random);
            let bytes = vec![b'x'; 1 + random.below(20) as usize];
            commit.lines = Some(PendingLines {
                hour,
                offset,
                bytes,
            });
        }
        if random.percent(40) {
            commit.synced = Some(end(random));
        }
        if random.percent(30) {
            let of = arrival(random, 1);
            let kind = *random.pick(&kinds);
            let (source, path, identity) = (of.source, of.path, of.identity);
            let seq = random.below(5);
            commit.kept.push(Kept {
                source,
                path: path.clone(),
                identity,
                seq,
                reason: "r".into(),
            });
            commit.owed.push(Owed {
                seq,
                kind,
                source,
                path,
                identity,
            });
        }
        if random.percent(30) {
            commit.paid.push((random.below(5), *random.pick(&kinds)));
        }
        commit.totals.ingested = Count::file(random.below(9));
        commit.clean = random.percent(30).then(|| random.percent(50));
        commit
    }

    #[test]
    fn the_simulated_ledger_agrees_with_lmdb_whatever_is_committed() {
        let root = tempfile::tempdir().unwrap();
        let mut refused = 0;
        for seed in 0..40 {
            let mut random = Random::new(seed);
            let dir = root.path().join(format!("ledger{seed}"));
            let mut lmdb = Lmdb::open(&dir, Durability::None).unwrap();
            let mut sim = SimLedger(Rc::new(RefCell::new(State::new(seed))));
            lmdb.found("u").unwrap();
            sim.found("u").unwrap();
            for _ in 0..60 {
                let (ours, theirs) = match random.below(10) {
                    0 => {
                        let name = format!("in{}", random.below(3));
                        let path = format!("/{}", random.below(2));
                        let ours = sim
                            .source_id(&name, Path::new(&path))
                            .map(|id| assert!(id.0 > 0));
                        (ours, lmdb.source_id(&name, Path::new(&path)).map(|_| ()))
                    }
                    1..4 => {
                        let mut seq = random.below(30);
                        let intents: Vec<Arrival> = (0..random.below(4))
                            .map(|_| {
                                seq += 1 + random.below(2);
                                arrival(&mut random, seq)
                            })
                            .collect();
                        let ours = sim.commit_intents(&intents, seq);
                        (ours, lmdb.commit_intents(&intents, seq))
                    }
                    _ => {
                        let commit = commit(&mut random);
                        (sim.commit_records(&commit), lmdb.commit_records(&commit))
                    }
                };
                assert_eq!(
                    ours.is_err(),
                    theirs.is_err(),
                    "seed {seed}: {ours:?} {theirs:?}"
                );
                refused += u32::from(ours.is_err());
                let (ours, theirs) = (sim.open_session().unwrap(), lmdb.open_session().unwrap());
                // Each has a secret of its own.
                let opening = |opening: Opening| {
                    let secret = Secret::default();
                    format!("{:?}", Opening { secret, ..opening })
                };
                assert_eq!(opening(ours), opening(theirs), "seed {seed}");
                for seq in 0..30 {
                    assert_eq!(sim.record(seq).unwrap(), lmdb.record(seq).unwrap());
                }
                let keys: Vec<_> = (0..4)
                    .map(|number| ContentKey::global(&[number; 32]))
                    .collect();
                assert_eq!(sim.lookup(&keys).unwrap(), lmdb.lookup(&keys).unwrap());
                assert_eq!(sim.0.borrow().ledger.kept(), lmdb.kept().unwrap());
            }
        }
        assert!(refused > 50, "APPEND was hardly tried: {refused}");
    }
}
