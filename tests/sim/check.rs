//! What must hold whatever happened: the invariants I1 to I5 and I7 of the design, by code that shares nothing with
//! `verify` and looks at both views of the simulated disk.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ringest::io::Timestamp;
use ringest::ledger::{Arrival, Outcome, Placement, RecordState};
use ringest::observe::metrics::Count;
use ringest::pipeline::record::{CHANGED_RULE, layout};
use sha2::Digest as _;

use crate::disk::{Id, Image, Origin, Role, State};
use crate::ledger::Tables;
use crate::upload;

pub type Checked = Result<(), String>;

macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}

/// What was seen at earlier looks.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Bytes of each hour's manifest that were durable and right.
    manifests: BTreeMap<i64, Vec<u8>>,
    /// Arrivals whose file somebody took out of the warehouse, and the next number at that time.
    pub deleted: BTreeMap<u64, u64>,
}

/// A file that an uploader brought, as it was when it was last seen.
#[derive(Debug, Clone)]
pub struct Brought {
    id: Id,
    number: u64,
    content: Vec<u8>,
    /// Its mtime, if a power cut tore it: then the record of what it was is enough.
    torn: Option<Timestamp>,
}

fn torn(image: &Image, id: Id) -> Option<Timestamp> {
    let identity = image.stat(id).identity;
    let state = (identity.inode, identity.mtime);
    let torn = image.torn.contains(&state) || image.touched.contains(&state);
    torn.then_some(identity.mtime)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    sha2::Sha256::digest(bytes).into()
}

/// Everything that uploaders brought and did not take away again.
pub fn brought(image: &Image) -> Vec<Brought> {
    let all = image.uploaded(false).into_iter();
    all.filter(|&id| !image.inode(id).withdrawn)
        .map(|id| Brought {
            id,
            number: image.inode(id).number,
            content: image.data(id).cache.clone(),
            torn: torn(image, id),
        })
        .collect()
}

fn is_recorded(brought: &Brought, done: &[Arrival]) -> bool {
    let digest = sha256(&brought.content);
    done.iter().any(|arrival| {
        let same = arrival.digest == digest || brought.torn == Some(arrival.identity.mtime);
        let itself = arrival.identity.inode == brought.number && same;
        let sidecar = &arrival.sidecar;
        itself
            || sidecar
                .as_ref()
                .is_some_and(|(_, identity)| identity.inode == brought.number)
    })
}

fn done(tables: &Tables) -> Vec<Arrival> {
    let records = tables.records().into_iter();
    records
        .filter_map(|record| match record.state {
            RecordState::Done { arrival, .. } => Some(arrival),
            RecordState::Void => None,
        })
        .collect()
}

/// I1: what was there is there, with the same bytes, or was recorded with them.
pub fn nothing_lost(before: &[Brought], image: &Image, tables: &Tables) -> Checked {
    let there = image.uploaded(false);
    let mut records = None;
    for brought in before {
        let inode = image.inodes.get(&brought.id);
        if inode.is_some_and(|inode| inode.withdrawn) {
            continue;
        }
        if there.contains(&brought.id) {
            // Bytes that are other than they were are its writer's; the recorder has no way to change them.
            continue;
        }
        // Written in place after it was last seen, or never more than a promise of the cache.
        let (content, lied) = match inode {
            Some(_) => (
                image.data(brought.id).cache.clone(),
                image.data(brought.id).lied,
            ),
            None => (brought.content.clone(), false),
        };
        let now = Brought {
            content,
            ..brought.clone()
        };
        let records = records.get_or_insert_with(|| done(tables));
        ensure!(
            lied || is_recorded(&now, records),
            "I1: inode {} ({:?}) is neither there nor recorded",
            brought.number,
            String::from_utf8_lossy(&now.content)
        );
    }
    Ok(())
}

/// I1 across a power cut: what uploaders had synced, with its name, survives it.
pub fn promises_kept(before: &Image, after: &Image, tables: &Tables) -> Checked {
    let there = after.uploaded(false);
    let mut records = None;
    for id in before.uploaded(false) {
        let inode = before.inode(id);
        if !inode.promised || inode.withdrawn {
            continue;
        }
        let content = &before.data(id).cache;
        if there.contains(&id) && after.data(id).cache == *content {
            continue;
        }
        let brought = Brought {
            id,
            number: inode.number,
            content: content.clone(),
            torn: torn(before, id),
        };
        let records = records.get_or_insert_with(|| done(tables));
        ensure!(
            is_recorded(&brought, records),
            "I1: inode {} ({:?}) was synced by its uploader and is gone after a power cut",
            brought.number,
            String::from_utf8_lossy(content)
        );
    }
    Ok(())
}

/// I3, of files: every record's file is there, durable, and holds what was hashed. True at every moment.
pub fn acknowledged(state: &State, memory: &Memory) -> Checked {
    for arrival in done(&state.ledger) {
        if arrival.placement == Placement::None || memory.deleted.contains_key(&arrival.seq) {
            continue;
        }
        let (seq, placed) = (arrival.seq, arrival.placed.display());
        for durable in [true, false] {
            let view = if durable {
                "on the disk"
            } else {
                "in the cache"
            };
            let Some(id) = state.image.find(Role::Warehouse, &arrival.placed, durable) else {
                return Err(format!("I3: {placed} of arrival {seq} is not there {view}"));
            };
            let inode = state.image.inode(id);
            ensure!(
                inode.number == arrival.placed_inode,
                "I3: {placed} of arrival {seq} is another inode {view}"
            );
            let data = state.image.data(id);
            let bytes = if durable { &data.disk } else { &data.cache };
            let changed = matches!(&arrival.outcome, Outcome::Quarantine { rule, .. } if rule == CHANGED_RULE);
            ensure!(
                changed || sha256(bytes) == arrival.digest,
                "I3: {placed} of arrival {seq} holds {:?} {view}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
    Ok(())
}

/// Everything, at a moment when nothing is in flight.
pub fn settled(state: &State, memory: &mut Memory) -> Checked {
    acknowledged(state, memory)?;
    let tables = &state.ledger;
    let image = &state.image;
    let records = tables.records();
    let next_seq = tables.next_seq();
    ensure!(
        records.iter().map(|record| record.seq).eq(1..next_seq),
        "I2: numbers without a record below {next_seq}: {:?}",
        records.iter().map(|record| record.seq).collect::<Vec<_>>()
    );
    ensure!(
        tables.intents().is_empty(),
        "intents are left: {:?}",
        tables.intents()
    );

    let mut ends: BTreeMap<i64, u64> = BTreeMap::new();
    let mut arrived: BTreeMap<(u64, Timestamp), u64> = BTreeMap::new();
    let mut keys: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut names: BTreeSet<PathBuf> = BTreeSet::new();
    let mut ingested = BTreeMap::new();
    let (mut new, mut duplicate, mut quarantined) =
        (Count::default(), Count::default(), Count::default());
    for record in &records {
        let seq = record.seq;
        let RecordState::Done { arrival, line } = &record.state else {
            continue;
        };
        ensure!(
            arrival.seq == seq,
            "record {seq} says it is {}",
            arrival.seq
        );
        let count = Count::file(arrival.identity.size);
        let identity = (arrival.identity.inode, arrival.identity.mtime);
        let is_placed = arrival.placement != Placement::None;
        if is_placed && !image.touched.contains(&identity) {
            let earlier = arrived.insert(identity, seq);
            ensure!(
                earlier.is_none(),
                "I2: inode {} landed twice, as {earlier:?} and {seq}",
                identity.0
            );
        }
        if is_placed {
            let fresh = names.insert(arrival.placed.clone()) || !memory.deleted.is_empty();
            ensure!(
                fresh,
                "I3: two arrivals are at {}",
                arrival.placed.display()
            );
        }
        match &arrival.outcome {
            Outcome::Ingest => {
                new += count;
                let Some(line) = line else {
                    return Err(format!("I2: arrival {seq} has no line"));
                };
                let hour = layout::hour(arrival.time_micros);
                let end = ends.entry(hour).or_default();
                ensure!(
                    line.offset == *end,
                    "I2: the line of {seq} is at {}, not {end}",
                    line.offset
                );
                *end += u64::from(line.length);
                check_line(
                    state,
                    memory,
                    arrival,
                    hour,
                    line.offset,
                    line.length.into(),
                )?;
                ingested.insert(seq, arrival.digest);
                if let Some(key) = arrival.key
                    && let Some(earlier) = keys.insert(key.as_bytes().to_vec(), seq)
                {
                    ensure!(
                        memory.deleted.contains_key(&earlier),
                        "I2: {seq} brought the content that {earlier} had brought"
                    );
                }
            }
            Outcome::Duplicate { of } => {
                duplicate += count;
                ensure!(
                    ingested.get(of) == Some(&arrival.digest),
                    "I3: {seq} is called a duplicate of {of}, which is another content"
                );
                // Another arrival may have brought the same bytes to the very place that was empty.
                let place = |arrival: &Arrival| (arrival.placed.clone(), arrival.digest);
                let refilled = || {
                    let mut others = done(tables).into_iter().filter(|other| other.seq < seq);
                    let first = tables.record(*of).map(|record| record.state);
                    matches!(first, Some(RecordState::Done { arrival: first, .. })
                        if others.any(|other| other.seq > *of && place(&other) == place(&first)))
                };
                ensure!(
                    memory.deleted.get(of).is_none_or(|&deleted| seq < deleted) || refilled(),
                    "I1: {seq} is called a duplicate of {of}, which was gone by then"
                );
            }
            Outcome::Quarantine { .. } => quarantined += count,
        }
        if line.is_some() {
            ensure!(
                arrival.outcome == Outcome::Ingest,
                "I2: arrival {seq} has a line"
            );
        } else if is_placed {
            let mut reason = OsString::from(arrival.placed.file_name().unwrap_or_default());
            reason.push(".reason.json");
            names.insert(arrival.placed.with_file_name(reason));
        }
    }
    let totals = tables.totals();
    ensure!(
        (totals.ingested, totals.duplicate, totals.quarantined) == (new, duplicate, quarantined),
        "I7: totals say {totals:?}, records {new:?}, {duplicate:?}, {quarantined:?}"
    );
    ensure!(
        tables
            .content()
            .map(|(key, seq)| (key.to_vec(), seq))
            .eq(keys),
        "I3: the content table is not that of the records"
    );
    check_manifests(state, memory, &ends)?;
    for durable in [false, true] {
        for (path, _) in image.files(Role::Warehouse, durable) {
            let temporary = path.starts_with(layout::TMP_DIR);
            ensure!(
                temporary || names.contains(&path),
                "I3: {} is in the warehouse and in no record",
                path.display()
            );
        }
    }
    Ok(())
}

fn check_line(
    state: &State,
    memory: &Memory,
    arrival: &Arrival,
    hour: i64,
    offset: u64,
    length: u64,
) -> Checked {
    let seq = arrival.seq;
    let known = memory
        .manifests
        .get(&hour)
        .map_or(0, |bytes| bytes.len() as u64);
    if offset + length <= known {
        // It was right when it was first seen, and its bytes do not change.
        return Ok(());
    }
    let path = layout::manifest_path(hour);
    let bytes = state.image.find(Role::Manifests, &path, true);
    let bytes = bytes.map(|id| &state.image.data(id).disk);
    let line = bytes.and_then(|bytes| bytes.get(offset as usize..(offset + length) as usize));
    let Some(line) = line else {
        return Err(format!("I2: the line of {seq} is not on the disk"));
    };
    ensure!(
        line.iter().position(|&byte| byte == b'\n') == Some(line.len() - 1),
        "I2: the line of {seq} is not one line: {:?}",
        String::from_utf8_lossy(line)
    );
    let entry: serde_json::Value =
        serde_json::from_slice(line).map_err(|error| format!("I2: the line of {seq}: {error}"))?;
    let sources = state.ledger.sources();
    let source = sources.iter().find(|source| source.id == arrival.source);
    let input = source.map(|source| source.input.join(&arrival.path));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let agrees = entry["seq"] == seq
        && entry["sha256"] == data_encoding::HEXLOWER.encode(&arrival.digest)
        && entry["size"] == arrival.identity.size
        && entry["inode"] == arrival.identity.inode
        && entry["path"] == input.as_deref().map(text).unwrap_or_default()
        && entry["warehouse_path"] == text(&Path::new("/warehouse").join(&arrival.placed));
    ensure!(agrees, "I3: the line of {seq} says {entry}");
    Ok(())
}

fn check_manifests(state: &State, memory: &mut Memory, ends: &BTreeMap<i64, u64>) -> Checked {
    let image = &state.image;
    for (&hour, &end) in ends {
        let path = layout::manifest_path(hour);
        let Some(id) = image.find(Role::Manifests, &path, true) else {
            return Err(format!(
                "I2: the manifest {} is not on the disk",
                path.display()
            ));
        };
        let data = image.data(id);
        ensure!(
            data.disk == data.cache && data.disk.len() as u64 == end,
            "I2: {} holds {} bytes on the disk and {} in the cache, not {end}",
            path.display(),
            data.disk.len(),
            data.cache.len()
        );
        let known = memory.manifests.entry(hour).or_default();
        ensure!(
            data.disk.starts_with(known),
            "I4: bytes of {} changed that had been synced",
            path.display()
        );
        known.extend_from_slice(&data.disk[known.len()..]);
    }
    for (path, id) in image.files(Role::Manifests, false) {
        let ours = ends.keys().any(|&hour| layout::manifest_path(hour) == path);
        let empty = image.data(id).cache.is_empty();
        ensure!(ours || empty, "I2: {} belongs to no record", path.display());
    }
    Ok(())
}

/// At a clean end of a session in which nothing went wrong: nothing is owed, nothing is left half done.
pub fn drained(state: &State, kept: impl Fn(Role, &Path, Id) -> bool) -> Checked {
    let owed = state.ledger.owed();
    ensure!(owed.is_empty(), "work is still owed: {owed:?}");
    let pending = state.ledger.pending_lines();
    ensure!(pending.is_empty(), "lines are still pending: {pending:?}");
    let image = &state.image;
    for &role in image.roots.keys() {
        for (path, id) in image.files(role, false) {
            let name = path.display();
            match role {
                Role::Warehouse => {
                    ensure!(
                        !path.starts_with(layout::TMP_DIR),
                        "{name} is left in the warehouse"
                    )
                }
                Role::Manifests => {}
                Role::Source(_) => ensure!(
                    image.inode(id).origin == Origin::Uploader
                        && !upload::is_hidden(&path)
                        && (upload::is_sidecar(&path) || kept(role, &path, id)),
                    "{role:?}/{name} is left in staging: {:#?}",
                    image.tree()
                ),
            }
        }
    }
    for arrival in done(&state.ledger) {
        if arrival.outcome != Outcome::Ingest && arrival.placement != Placement::None {
            let name = layout::reason_name(arrival.placed.file_name().unwrap_or_default());
            let path = arrival.placed.with_file_name(name);
            let reason = image.find(Role::Warehouse, &path, true);
            let bytes = reason
                .map(|id| image.data(id).disk.as_slice())
                .unwrap_or_default();
            let reason: Result<serde_json::Value, _> = serde_json::from_slice(bytes);
            ensure!(
                reason.is_ok_and(|reason| reason["seq"] == arrival.seq),
                "the reason of {} is not on the disk",
                arrival.seq
            );
        }
    }
    Ok(())
}
