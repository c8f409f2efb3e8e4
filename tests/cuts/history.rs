//! What was sent to a site, and what must be true of it after a crash and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::place::Crash;
use crate::support::program::Log;
use crate::support::{Site, files_beneath, sha256, sha256_of_file};

/// Suffix of a file that says that another one is finished.
const SIDECAR: &str = ".ok";

/// What is known of one content.
#[derive(Debug, Default, Clone)]
struct Sent {
    /// How many files with this content were sent.
    arrivals: usize,
    /// Whether one of them must have reached the disk by now.
    durable: bool,
    /// Whether it may be gone, since somebody overwrote it.
    overwritten: bool,
}

/// How the files of a site are sent and treated.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Each file has a sidecar.
    pub sidecars: bool,
    /// Duplicates are deleted, not moved.
    pub delete: bool,
    /// Files are moved to a claim directory before they are read.
    pub claims: bool,
    /// How files are read, and how they get to another filesystem.
    pub methods: Methods,
}

/// `--read-method` and `--copy-method`.
#[derive(Debug, Clone, Copy)]
pub struct Methods {
    pub read: &'static str,
    pub copy: &'static str,
}

impl Methods {
    pub const DEFAULT: Methods = Methods {
        read: "auto",
        copy: "auto",
    };

    /// One of all there are.
    pub fn number(number: usize) -> Methods {
        const COPIES: [&str; 4] = ["auto", "write", "copy_file_range", "splice"];
        Methods {
            read: ["auto", "direct"][number / COPIES.len() % 2],
            copy: COPIES[number % COPIES.len()],
        }
    }
}

pub struct History {
    manner: Manner,
    /// Digest → what is known.
    sent: BTreeMap<String, Sent>,
    /// Path in staging → content, to send again what a power cut took from a writer.
    paths: BTreeMap<PathBuf, Vec<u8>>,
    /// Sidecars that were sent again: their file may have been recorded with the one that is gone.
    sent_again: BTreeSet<PathBuf>,
    /// Whether a power cut took something: then less may arrive than was sent.
    cut: bool,
}

/// Which contents are where.
struct Inventory {
    staging: BTreeMap<PathBuf, String>,
    warehouse: BTreeMap<PathBuf, String>,
}

impl Inventory {
    fn of(site: &Site) -> Inventory {
        let digests = |root: &Path| -> BTreeMap<PathBuf, String> {
            let files = files_beneath(root).into_iter();
            files
                .map(|path| (path.clone(), sha256_of_file(&path)))
                .collect()
        };
        let mut inventory = Inventory {
            staging: digests(&site.staging)
                .into_iter()
                .map(|(path, digest)| (unclaimed(site, path), digest))
                .collect(),
            warehouse: digests(&site.warehouse),
        };
        inventory.staging.retain(|path, _| !is_sidecar(path));
        inventory
    }

    fn contents(&self) -> BTreeSet<&String> {
        self.staging
            .values()
            .chain(self.warehouse.values())
            .collect()
    }
}

/// Claim directories lie beside the inputs.
pub const CLAIMS: &str = "claims";

/// Where a claimed file comes from.
fn unclaimed(site: &Site, path: PathBuf) -> PathBuf {
    match path.strip_prefix(site.staging.join(CLAIMS)) {
        Ok(beneath) => site.staging.join(beneath),
        Err(_) => path,
    }
}

fn is_sidecar(path: &Path) -> bool {
    let path = path.to_string_lossy();
    path.ends_with(SIDECAR) || path.ends_with(".sidecar")
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with('.')
}

fn sidecar_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SIDECAR);
    name.into()
}

fn write_durably(path: &Path, content: &[u8]) {
    let written = || {
        let mut file = fs::File::create(path)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::File::open(path.parent().expect("a file in a directory"))?.sync_all()
    };
    written().expect("send again");
}

impl History {
    pub fn new(manner: Manner) -> History {
        History {
            manner,
            sent: BTreeMap::new(),
            paths: BTreeMap::new(),
            sent_again: BTreeSet::new(),
            cut: false,
        }
    }

    pub fn manner(&self) -> Manner {
        self.manner
    }

    /// A content that was sent, is not empty and was not lost.
    pub fn any_content(&self) -> Option<Vec<u8>> {
        let mut contents = self.paths.values();
        let found = contents.find(|content| {
            let sent = self.sent.get(&sha256(content));
            !content.is_empty() && sent.is_some_and(|sent| !sent.overwritten)
        });
        found.cloned()
    }

    /// How many files were sent.
    pub fn files(&self) -> usize {
        self.paths.len()
    }

    /// Writes a file into staging, which nobody syncs.
    pub fn send(&mut self, path: PathBuf, content: Vec<u8>) {
        self.try_send(path, content).expect("write into staging");
    }

    /// The same, on a disk whose power may be cut.
    pub fn try_send(&mut self, path: PathBuf, content: Vec<u8>) -> std::io::Result<()> {
        fs::create_dir_all(path.parent().expect("a file in a directory"))?;
        let digest = sha256(&content);
        self.sent.entry(digest.clone()).or_default().arrivals += 1;
        fs::File::create_new(&path)?.write_all(&content)?;
        if self.manner.sidecars {
            let text = match content.len() % 2 {
                0 => String::new(),
                _ => format!("{digest}\n"),
            };
            fs::write(sidecar_of(&path), text)?;
        }
        self.paths.insert(path, content);
        Ok(())
    }

    /// A file with this content has been synced, with its directory.
    pub fn is_durable(&mut self, content: &[u8]) {
        self.sent.entry(sha256(content)).or_default().durable = true;
    }

    /// Everything sent so far has been synced.
    pub fn all_is_durable(&mut self) {
        self.sent.values_mut().for_each(|sent| sent.durable = true);
    }

    /// Somebody overwrote a file that held `old`.
    pub fn overwritten(&mut self, old: &[u8], new: &[u8]) {
        for (content, arrivals) in [(old, 0), (new, 1)] {
            let sent = self.sent.entry(sha256(content)).or_default();
            sent.arrivals += arrivals;
            sent.overwritten = true;
        }
    }

    /// After a crash, with the disks mounted again and nothing started yet: what had to survive has survived.
    pub fn check_survivors(&mut self, site: &Site, log: &Log, crash: Crash) -> usize {
        let found = Inventory::of(site);
        let acknowledged = self.check_acknowledged(site, log, &found);
        let contents = found.contents();
        for (digest, sent) in &self.sent {
            let must_be_there = (crash != Crash::Cut || sent.durable) && !sent.overwritten;
            assert!(
                !must_be_there || contents.contains(digest),
                "lost: {digest} {sent:?} {:?}",
                self.path_of(digest)
            );
        }
        let partition = |path: &&PathBuf| path.to_string_lossy().contains("/ingest_date=");
        for path in found.warehouse.keys().filter(partition) {
            let known = path.to_string_lossy().ends_with(".reason.json")
                || self.sent.contains_key(&found.warehouse[path]);
            assert!(known, "torn in the warehouse: {path:?}");
        }
        if crash != Crash::Cut {
            let unknown = found
                .staging
                .iter()
                .find(|(_, digest)| !self.sent.contains_key(*digest));
            assert!(unknown.is_none(), "torn in staging: {unknown:?}");
            return acknowledged;
        }
        self.cut = true;
        let contents: BTreeSet<String> = contents.into_iter().cloned().collect();
        // What the cut took from a writer that had not synced it is nobody's fault.
        self.sent.retain(|digest, _| contents.contains(digest));
        if self.manner.sidecars {
            self.send_again(&found);
        }
        let staged = Inventory::of(site).staging;
        let torn = staged.into_iter().filter(|(path, _)| !is_hidden(path));
        for (path, digest) in torn {
            let as_sent = self.paths.get(&path).map(|content| sha256(content));
            let is_torn = as_sent.as_ref() != Some(&digest);
            let sent = self.sent.entry(digest).or_default();
            // If what it was is stored, it may be the source of a copy, and owe its removal.
            sent.overwritten |= is_torn
                && found
                    .warehouse
                    .values()
                    .any(|it| as_sent.as_ref() == Some(it));
            // What the cut tore is a file like any other, and two may have been torn alike.
            if sent.arrivals == 0 || sent.overwritten || is_torn {
                sent.arrivals += 1;
            }
        }
        self.all_is_durable();
        acknowledged
    }

    fn path_of(&self, digest: &str) -> Option<&PathBuf> {
        let mut paths = self.paths.iter();
        paths
            .find(|(_, content)| sha256(content) == digest)
            .map(|(path, _)| path)
    }

    /// What was said to be ingested is in the manifest and in the warehouse. Returns how many that is.
    fn check_acknowledged(&self, site: &Site, log: &Log, found: &Inventory) -> usize {
        let mut lines = BTreeMap::new();
        for manifest in files_beneath(&site.manifests) {
            let bytes = fs::read(&manifest).expect("read the manifest");
            // What follows the last synced line may be torn.
            for line in bytes.split(|&byte| byte == b'\n') {
                let Ok(line) = serde_json::from_slice::<Value>(line) else {
                    continue;
                };
                let Some(seq) = line["seq"].as_u64() else {
                    continue;
                };
                let twice = lines.insert(seq, line);
                assert!(twice.is_none(), "two lines have number {seq}: {twice:?}");
            }
        }
        let events = log.events("file_ingested");
        for event in &events {
            let seq = event["seq"].as_u64().expect("a number");
            let line = lines
                .get(&seq)
                .unwrap_or_else(|| panic!("acknowledged, and not in the manifest: {event}"));
            for field in ["sha256", "warehouse_path"] {
                assert_eq!(line[field], event[field], "{event}: {line}");
            }
            let path = PathBuf::from(event["warehouse_path"].as_str().expect("a path"));
            assert_eq!(
                found.warehouse.get(&path).map(String::as_str),
                event["sha256"].as_str(),
                "acknowledged, and not in the warehouse: {event}"
            );
        }
        events.len()
    }

    /// Writers send again what a power cut tore, so that each file has its sidecar and each sidecar its file.
    fn send_again(&mut self, found: &Inventory) {
        let stored: BTreeSet<&String> = found.warehouse.values().collect();
        for (path, content) in &self.paths {
            let sidecar = sidecar_of(path);
            if let Some(digest) = found.staging.get(path) {
                let right = sha256(content);
                if *digest != right {
                    write_durably(path, content);
                    self.sent.remove(digest);
                    self.sent.entry(right.clone()).or_default().arrivals += 1;
                }
                // What is as it was sent must stay untouched: ringest may owe its removal.
                let whole = [Ok(String::new()), Ok(format!("{right}\n"))];
                let there = fs::read_to_string(&sidecar).map_err(|error| error.kind());
                if *digest != right || !whole.contains(&there) {
                    let _ = fs::remove_file(&sidecar);
                    write_durably(&sidecar, b"");
                    self.sent_again.insert(sidecar);
                }
            } else if !stored.contains(&sha256(content)) {
                let _ = fs::remove_file(&sidecar);
            }
        }
    }

    /// After a run that ended by itself: everything was taken, once, and everything agrees.
    pub fn check_end(&mut self, site: &Site, log: &Log) {
        let lines = site.assert_agrees();
        self.check_acknowledged(site, log, &Inventory::of(site));
        for sidecar in &self.sent_again {
            let _ = fs::remove_file(sidecar);
        }
        site.assert_staging_is_empty();
        assert_eq!(site.quarantined(), [] as [PathBuf; 0]);
        let mut stored: BTreeMap<&str, usize> = BTreeMap::new();
        for line in &lines {
            let count = stored.entry(line.sha256()).or_default();
            *count += 1;
            let empty = line.number("size") == 0;
            assert!(*count == 1 || empty, "ingested twice: {}", line.raw);
        }
        let duplicates: Vec<String> = site
            .duplicates()
            .iter()
            .map(|path| sha256_of_file(path))
            .collect();
        assert!(!self.manner.delete || duplicates.is_empty());
        for digest in &duplicates {
            assert!(
                stored.contains_key(digest.as_str()),
                "a duplicate of nothing"
            );
            *stored.entry(digest).or_default() += 1;
        }
        let empty = sha256(b"");
        for (digest, sent) in &self.sent {
            let count = stored.remove(digest.as_str()).unwrap_or_default();
            if *digest == empty || sent.overwritten {
                continue;
            }
            let expected = match self.manner.delete {
                true => 1,
                false => sent.arrivals,
            };
            let right = match self.cut {
                true => (1..=expected).contains(&count),
                false => count == expected,
            };
            assert!(right, "{digest} is there {count} times: {sent:?}");
        }
        stored.remove(empty.as_str());
        assert!(stored.is_empty(), "never sent: {stored:?}");
    }
}
