//! A run whose every block write is noted, and what it acknowledged when.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use serde_json::Value;

use crate::log::{DiskId, Image, Log, Op};
use crate::server::{Disk, Kind};
use crate::support::{Random, RunArgs, Site, sha256};

/// Files in one commit: few, so that there are several.
const BATCH_FILES: usize = 8;

/// A site on one disk or two: the first holds staging, the last everything else.
pub struct World {
    pub disks: Vec<Disk>,
    pub site: Site,
    config: PathBuf,
}

impl World {
    pub fn new(kinds: &[Kind]) -> World {
        let mut disks: Vec<Disk> = kinds.iter().map(|&kind| Disk::new(kind)).collect();
        for disk in &mut disks {
            disk.mount().expect("mount a new filesystem");
        }
        let mut site = Site::beneath(disks[0].path());
        let other = disks.last().expect("a disk").path();
        if disks.len() > 1 {
            site.warehouse = other.join("warehouse");
            site.manifests = other.join("manifests");
            site.state = other.join("state");
        }
        let config = disks[0].path().with_extension("toml");
        let world = World {
            disks,
            site,
            config,
        };
        world.write_config();
        world
    }

    fn write_config(&self) {
        let staging = self.site.staging.display();
        let common = format!("stability_seconds = 0.05\nbatch_files = {BATCH_FILES}\n");
        let source = |name: &str, more: &str| {
            fs::create_dir_all(self.input(name)).expect("make an input");
            format!("[[source]]\nname = '{name}'\ninput = '{staging}/{name}'\n{more}\n")
        };
        let text = [
            common,
            source("moving", "recursive = true\non_duplicate = 'move'"),
            source("deleting", "on_duplicate = 'delete'"),
            source("announced", "mode = 'sidecar'"),
        ];
        fs::write(&self.config, text.concat()).expect("write the settings");
    }

    pub fn input(&self, source: &str) -> PathBuf {
        self.site.staging.join(source)
    }

    pub fn sync(&self) {
        for disk in &self.disks {
            let root = fs::File::open(disk.path()).expect("open the filesystem");
            rustix::fs::syncfs(root).expect("sync the filesystem");
        }
    }

    /// `ringest run --once` with the three sources.
    pub fn run_once(&self) -> std::process::Command {
        let mut command = self.site.bare_run();
        command.arg("--once").arg("--config").arg(&self.config);
        for (flag, path) in [
            ("--warehouse", &self.site.warehouse),
            ("--manifests", &self.site.manifests),
            ("--state-path", &self.site.state),
        ] {
            command.arg(flag).arg(path);
        }
        command
    }

    pub fn mount(&mut self) -> std::io::Result<()> {
        self.disks.iter_mut().try_for_each(Disk::mount)
    }

    pub fn unmount(&mut self) {
        self.disks.iter_mut().for_each(Disk::unmount);
    }
}

/// What happened, and when: as places in the log.
pub struct Recorded {
    /// What the disks held before.
    pub start: Vec<Image>,
    pub entries: Vec<(DiskId, Op)>,
    /// What was printed before the log was so long.
    pub acknowledged: Vec<(usize, Value)>,
    /// Contents that their writers had synced when the log was so long.
    pub synced: Vec<(usize, String)>,
    /// How often each content was sent, by digest.
    pub sent: HashMap<String, usize>,
}

struct Sender<'a> {
    world: &'a World,
    random: &'a mut Random,
    sent: HashMap<String, usize>,
    contents: Vec<Vec<u8>>,
    /// Sent and not yet synced.
    unsynced: Vec<String>,
}

impl Sender<'_> {
    fn send(&mut self, source: &str, name: impl AsRef<Path>, content: &[u8]) {
        let path = self.world.input(source).join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
        fs::write(&path, content).unwrap_or_else(|e| panic!("write {path:?}: {e}"));
        let digest = sha256(content);
        *self.sent.entry(digest.clone()).or_default() += 1;
        self.unsynced.push(digest);
    }

    fn send_new(&mut self, source: &str, name: impl AsRef<Path>) {
        let largest = if self.random.below(10) == 0 {
            150_000
        } else {
            9_000
        };
        let length = 8 + self.random.below(largest) as usize;
        let content = self.random.bytes(length);
        self.send(source, name, &content);
        self.contents.push(content);
    }

    fn send_again(&mut self, source: &str, name: impl AsRef<Path>) {
        let which = self.random.below(self.contents.len() as u64) as usize;
        let content = self.contents[which].clone();
        self.send(source, name, &content);
    }

    fn announce(&mut self, name: &str) {
        self.send_new("announced", name);
        let sidecar = format!("{name}.ok");
        fs::write(self.world.input("announced").join(sidecar), "").expect("write a sidecar");
    }

    fn sync(&mut self, synced: &mut Vec<(usize, String)>, now: impl Fn() -> usize) {
        self.world.sync();
        let at = now();
        synced.extend(self.unsynced.drain(..).map(|digest| (at, digest)));
    }
}

/// Two runs over new files, known content, names that come again and names that several sources use. Half of the
/// files were never synced by their writers. `args` are given to both. The disks are unmounted afterwards.
pub fn record(world: &mut World, args: RunArgs, random: &mut Random) -> Recorded {
    let log = Arc::<Log>::default();
    let mut synced = Vec::new();
    let mut acknowledged = Vec::new();
    let mut sender = Sender {
        world,
        random,
        sent: HashMap::new(),
        contents: Vec::new(),
        unsynced: Vec::new(),
    };
    for i in 0..6 {
        sender.send_new("moving", format!("{i}.csv"));
        sender.send_new("deleting", format!("{i}.csv"));
        sender.announce(&format!("{i}.csv"));
    }
    sender.sync(&mut synced, || 0);
    let disks = sender.world.disks.iter().enumerate();
    let start = disks.map(|(id, disk)| disk.log_to(&log, id)).collect();

    for i in 6..14 {
        sender.send_new("moving", format!("sub/{i}.csv"));
        sender.send_new("deleting", format!("{i}.csv"));
        sender.send_again("moving", format!("again-{i}.csv"));
        sender.send_again("deleting", format!("again-{i}.csv"));
    }
    run_once(sender.world, args, &log, &mut acknowledged);

    for i in 0..4 {
        sender.announce(&format!("{i}.csv"));
        sender.send_again("deleting", format!("again-{i}.csv"));
    }
    sender.sync(&mut synced, || log.now());
    for i in 0..6 {
        sender.send_new("moving", format!("{i}.csv"));
        sender.send_again("moving", format!("again-{i}.csv"));
        sender.send_new("deleting", format!("{i}.csv"));
    }
    run_once(sender.world, args, &log, &mut acknowledged);
    let sent = sender.sent;

    world.disks.iter().for_each(Disk::stop_logging);
    world.unmount();
    Recorded {
        start,
        entries: log.take(),
        acknowledged,
        synced,
        sent,
    }
}

/// Notes for each line of the log what was asked of the disks by the time it could be read.
fn run_once(world: &World, args: RunArgs, log: &Log, acknowledged: &mut Vec<(usize, Value)>) {
    let mut command = world.run_once();
    command.args(args);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start ringest");
    let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
    let mut text = String::new();
    for line in lines {
        let line = line.expect("read the log");
        let now = log.now();
        text += &line;
        text.push('\n');
        if let Ok(event) = serde_json::from_str::<Value>(&line) {
            acknowledged.push((now, event));
        }
    }
    let ended = child.wait().expect("wait for ringest");
    assert!(ended.success(), "{ended}: {text}");
}
