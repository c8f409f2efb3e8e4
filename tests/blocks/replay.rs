//! What the disks may hold after a power cut, and what must be true once ringest has started on that.
//!
//! A cut is a moment in the log. What a disk was asked before its last flush until then, it holds. Of each write after
//! that flush it may hold all, nothing or, sector by sector, a part; where two of them overlap, the later wins if it is
//! there. (A loop device takes no FUA writes: the kernel sends a write and a flush.) That covers every order in which
//! a disk may have carried out what lay between two flushes.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::log::{DiskId, Image, Op};
use crate::record::{Recorded, World};
use crate::support::{Finished, Random, files_beneath};

/// How many states that show something are left to be looked at.
const KEPT_MAX: usize = 3;

/// What came of the states of one recording.
#[derive(Default)]
pub struct Tally {
    pub states: usize,
    /// States in which the filesystem itself could not be mounted.
    pub unmountable: Vec<String>,
    pub violations: Vec<String>,
}

/// Brings forth `states` states of a recording, in the order of the log, and has ringest start on each. Those that show
/// something can be left to be looked at.
pub fn replay(
    world: &mut World,
    recorded: &Recorded,
    states: usize,
    leave: bool,
    random: &mut Random,
) -> Tally {
    let mut cuts: Vec<usize> = (0..states).map(|_| a_cut(recorded, random)).collect();
    cuts.sort_unstable();
    let mut tally = Tally::default();
    let mut durable = Durable::new(recorded);
    let kept = |world: &World, images: &[Image], cut| match leave {
        true => keep(world, images, cut),
        false => String::new(),
    };
    for cut in cuts {
        durable.advance(cut);
        let images = durable.with_some_of_the_rest(world, cut, random);
        tally.states += 1;
        for (disk, image) in world.disks.iter_mut().zip(&images) {
            disk.replace(image.clone());
        }
        let at = format!("cut {cut} of {}", recorded.entries.len());
        if let Err(error) = world.mount() {
            world.unmount();
            let kept = kept(world, &images, cut);
            tally.unmountable.push(format!("{at}: {error}; {kept}"));
            continue;
        }
        let checked = std::panic::catch_unwind(AssertUnwindSafe(|| check(world, recorded, cut)));
        world.unmount();
        if let Err(panic) = checked {
            let kept = kept(world, &images, cut);
            tally
                .violations
                .push(format!("{at}: {}; {kept}", said(&*panic)));
        }
    }
    tally
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
    text.unwrap_or_default()
}

/// Half of the cuts at any entry, half in any stretch between two flushes, however short.
fn a_cut(recorded: &Recorded, random: &mut Random) -> usize {
    let entries = &recorded.entries;
    if random.below(2) == 0 {
        return random.below(entries.len() as u64 + 1) as usize;
    }
    let flushes: Vec<usize> = (0..entries.len())
        .filter(|&i| matches!(entries[i].1, Op::Flush))
        .collect();
    let which = random.below(flushes.len() as u64) as usize;
    let from = match which {
        0 => 0,
        _ => flushes[which - 1] + 1,
    };
    from + random.below((flushes[which] - from + 1) as u64) as usize
}

/// What the disks hold for certain, as a place in the log goes forward.
struct Durable<'a> {
    recorded: &'a Recorded,
    images: Vec<Image>,
    /// For each disk, up to where its image holds everything: its last flush.
    upto: Vec<usize>,
}

impl<'a> Durable<'a> {
    fn new(recorded: &'a Recorded) -> Durable<'a> {
        Durable {
            recorded,
            images: recorded.start.clone(),
            upto: vec![0; recorded.start.len()],
        }
    }

    fn of_disk(&self, disk: DiskId, cut: usize) -> impl Iterator<Item = (usize, &'a Op)> + use<'a> {
        let entries = self.recorded.entries[..cut].iter().enumerate();
        entries
            .skip(self.upto[disk])
            .filter(move |(_, (of, _))| *of == disk)
            .map(|(i, (_, op))| (i, op))
    }

    fn advance(&mut self, cut: usize) {
        for disk in 0..self.images.len() {
            let flushes = self
                .of_disk(disk, cut)
                .filter(|(_, op)| matches!(op, Op::Flush));
            let Some((flush, _)) = flushes.last() else {
                continue;
            };
            for (_, op) in self.of_disk(disk, flush) {
                if let Op::Write { offset, bytes } = op {
                    self.images[disk].write(*offset, bytes);
                }
            }
            self.upto[disk] = flush + 1;
        }
    }

    fn with_some_of_the_rest(&self, world: &World, cut: usize, random: &mut Random) -> Vec<Image> {
        let mut images = self.images.clone();
        for (disk, image) in images.iter_mut().enumerate() {
            // None, all, or some: then few, half or most, and how many of those are torn.
            let kept_of_8 = [0, 8, 1, 4, 7][random.below(5) as usize];
            let torn_of_8 = [0, 0, 1, 4][random.below(4) as usize];
            for (_, op) in self.of_disk(disk, cut) {
                let Op::Write { offset, bytes } = op else {
                    continue;
                };
                if kept_of_8 % 8 != 0 && random.below(8) < torn_of_8 {
                    let sector = world.disks[disk].kind.sector();
                    for (i, part) in bytes.chunks(sector).enumerate() {
                        if random.below(2) == 0 {
                            image.write(offset + (i * sector) as u64, part);
                        }
                    }
                } else if random.below(8) < kept_of_8 {
                    image.write(*offset, bytes);
                }
            }
        }
        images
    }
}

/// Starts ringest on what is mounted.
fn check(world: &World, recorded: &Recorded, cut: usize) {
    let site = &world.site;
    Finished::of(world.run_once()).ok();
    let lines = site.assert_agrees();
    let mut by_digest: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for line in &lines {
        by_digest.entry(line.sha256()).or_default().push(line);
    }

    let mut deleted: HashMap<&str, usize> = HashMap::new();
    for (_, event) in recorded.acknowledged.iter().filter(|(at, _)| *at <= cut) {
        let text = |field: &str| event[field].as_str().unwrap_or_default();
        let found = by_digest.get(text("sha256")).map_or(&[][..], Vec::as_slice);
        match text("event") {
            "file_ingested" => {
                let named = |line: &&&crate::support::Line| {
                    line.number("seq") == event["seq"].as_u64().unwrap_or_default()
                        && line.text("path") == text("path")
                        && line.text("warehouse_path") == text("warehouse_path")
                };
                let count = found.iter().filter(named).count();
                assert_eq!(count, 1, "acknowledged: {event}");
            }
            "file_duplicate" => {
                assert!(!found.is_empty(), "lost with its duplicate: {event}");
                if text("action") == "deleted" {
                    *deleted.entry(text("sha256")).or_default() += 1;
                }
            }
            _ => {}
        }
    }
    for (_, digest) in recorded.synced.iter().filter(|(at, _)| *at <= cut) {
        assert!(by_digest.contains_key(digest.as_str()), "lost: {digest}");
    }

    // What a file was cut down to before its writer synced it may be anything, but what was sent comes once.
    for (digest, lines) in &by_digest {
        let twice = lines.len() > 1 && recorded.sent.contains_key(*digest);
        assert!(!twice, "ingested twice: {lines:?}");
    }
    let mut copies: HashMap<String, usize> = HashMap::new();
    let aside = [site.duplicates(), site.quarantined()].concat();
    for path in by_digest.values().flatten().map(|line| line.placed()) {
        *copies
            .entry(crate::support::sha256_of_file(&path))
            .or_default() += 1;
    }
    for path in aside {
        *copies
            .entry(crate::support::sha256_of_file(&path))
            .or_default() += 1;
    }
    for (digest, sent) in &recorded.sent {
        let there = copies.get(digest).copied().unwrap_or(0);
        let deleted = deleted.get(digest.as_str()).copied().unwrap_or(0);
        assert!(
            there + deleted <= *sent,
            "{digest} was sent {sent} times, is there {there} times and was deleted {deleted} times"
        );
    }
    assert_nothing_waits(&site.staging);
}

/// Only a sidecar whose file is gone, or a file whose sidecar is, may wait in staging.
fn assert_nothing_waits(staging: &Path) {
    let left: Vec<PathBuf> = files_beneath(staging)
        .into_iter()
        .filter(|path| !path.starts_with(staging.join("announced")))
        .collect();
    assert!(left.is_empty(), "left in staging: {left:?}");
}

/// Leaves a state to be looked at, unless there are some already: `mount -o loop FILE` shows it. Says where.
fn keep(world: &World, images: &[Image], cut: usize) -> String {
    static KEPT: AtomicUsize = AtomicUsize::new(0);
    if KEPT.fetch_add(1, Ordering::Relaxed) >= KEPT_MAX {
        return "not kept".into();
    }
    let mut kept = format!("seen at {}:", world.disks[0].path().display());
    for (image, disk) in images.iter().zip(&world.disks) {
        let name = format!(
            "blocks-{}-{cut}-{}.img",
            std::process::id(),
            disk.kind.name()
        );
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let file = std::fs::File::create(&path).expect("make a file");
        file.set_len(disk.kind.size()).expect("make it as long");
        for (offset, block) in image.blocks() {
            file.write_all_at(block, offset).expect("write the image");
        }
        kept += &format!(" {}", path.display());
    }
    kept
}
