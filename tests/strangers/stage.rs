//! Where the attacks are played: a site of one user, into which two others upload.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::program::{Log, Program, State};
use crate::support::{Finished, RunArgs, Site, has_program, is_root, sha256, sha256_of_file, skip};

/// The user who attacks.
pub const STRANGER: u32 = 2001;
/// The user who uploads beside.
pub const HONEST: u32 = 3001;
/// The group of both.
const UPLOADERS: u32 = 2500;
const ROOT: u32 = 0;
const NOBODY: u32 = 65534;

/// Who may do what in a staging directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Anybody may make names, and remove their own.
    Sticky,
    /// Uploaders may make and remove names, those of others too.
    Group,
    /// Anybody may.
    World,
}

/// Where the warehouse is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warehouse {
    /// On the filesystem of the staging directory: files are renamed.
    Beside,
    /// On another one: files are copied, and their sources are owed their removal.
    Across,
}

pub struct Stage {
    pub site: Site,
    pub user: u32,
    _across: Option<TempDir>,
}

const KINDS: [Kind; 3] = [Kind::Sticky, Kind::Group, Kind::World];

/// Plays `attack` with ringest as root and as nobody, in staging directories of each kind.
pub fn everywhere(warehouse: Warehouse, attack: impl Fn(&Stage)) {
    for turn in 0..KINDS.len() {
        in_turn(turn, warehouse, &attack);
    }
}

/// The same in one kind of staging directory, for attacks of which there are many: each turn has another kind.
pub fn in_turn(turn: usize, warehouse: Warehouse, attack: impl Fn(&Stage)) {
    for user in [ROOT, NOBODY] {
        play(user, turn, warehouse, &attack);
    }
}

/// The same as one of the two users, for attacks of which there are hundreds: six turns are all pairs of a user and a kind.
pub fn alternately(turn: usize, warehouse: Warehouse, attack: impl Fn(&Stage)) {
    let user = [ROOT, NOBODY][turn / KINDS.len() % 2];
    play(user, turn, warehouse, &attack);
}

fn play(user: u32, turn: usize, warehouse: Warehouse, attack: &impl Fn(&Stage)) {
    let kind = KINDS[turn % KINDS.len()];
    let Some(stage) = Stage::new(user, kind, warehouse) else {
        return;
    };
    eprintln!("as uid {user}, {kind:?}, {warehouse:?}");
    attack(&stage);
}

const ARGS: RunArgs = &["--stability-seconds", "0.05", "--recursive"];

impl Stage {
    /// `None`, and skipped, where it cannot be had.
    fn new(user: u32, kind: Kind, warehouse: Warehouse) -> Option<Stage> {
        if !is_root() || !has_program("python3", "--version") {
            skip("only root can play other users, in Python");
            return None;
        }
        // Cargo's directory may be out of the reach of others.
        let mut site = Site::beneath(Path::new("/var/tmp/ringest-strangers"))
            .run_by(user)
            .with(ARGS);
        let across = (warehouse == Warehouse::Across).then(|| {
            let directory = tempfile::Builder::new()
                .prefix("ringest-test-")
                .permissions(Permissions::from_mode(0o755))
                .tempdir_in("/dev/shm");
            let directory = directory.expect("make a directory in /dev/shm");
            chown(directory.path(), Some(user), Some(user)).expect("give it away");
            site.warehouse = directory.path().join("warehouse");
            directory
        });
        let (mode, owner, group) = match kind {
            // Like /tmp: the owner of a sticky directory could remove the names of all.
            Kind::Sticky => (0o1777, ROOT, ROOT),
            Kind::Group => (0o2775, user, UPLOADERS),
            Kind::World => (0o777, user, user),
        };
        chown(&site.staging, Some(owner), Some(group)).expect("give the staging directory away");
        fs::set_permissions(&site.staging, Permissions::from_mode(mode)).expect("chmod");
        Some(Stage {
            site,
            user,
            _across: across,
        })
    }

    /// `run --once`, which must end with 0.
    pub fn run_once(&self, args: RunArgs) -> Finished {
        self.site.run_once(args)
    }

    fn python(&self, uid: u32, script: &str) -> Command {
        let mut python = Command::new("python3");
        python
            .args(["-c", &format!("{PRELUDE}{script}")])
            .current_dir(&self.site.staging)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("WAREHOUSE", &self.site.warehouse)
            .env("LEDGER", self.ledger())
            .env("MANIFESTS", &self.site.manifests)
            .env("STATE", &self.site.state)
            .env("ROOT", &self.site.root)
            // This also takes all further groups away.
            .gid(UPLOADERS)
            .uid(uid);
        python
    }

    /// Runs a script as the stranger, in the staging directory. Returns what it prints.
    pub fn stranger(&self, script: &str) -> String {
        said(self.python(STRANGER, script))
    }

    /// Runs a script as the honest uploader, in the staging directory.
    pub fn honest(&self, script: &str) -> String {
        said(self.python(HONEST, script))
    }

    /// Starts a script of the stranger, which must print a line once it is at work; it goes on until its standard input ends.
    pub fn beside(&self, script: &str) -> Beside {
        let mut python = self.python(STRANGER, script);
        let mut child = python
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start python3");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("read from python3");
        assert!(!line.is_empty(), "the script ended at once:\n{script}");
        Beside(child)
    }

    /// The ledger's name, if it has one: suppose that she has seen it in a name.
    fn ledger(&self) -> String {
        let marker = fs::read(self.site.warehouse.join(".ringest-ledger")).unwrap_or_default();
        let marker = serde_json::from_slice::<serde_json::Value>(&marker).unwrap_or_default();
        marker["ledger"].as_str().unwrap_or_default().to_owned()
    }

    /// Uploads a file of the honest uploader's.
    pub fn upload(&self, name: &str, content: &str) {
        self.honest(&format!("put({name:?}, {content:?})"));
    }

    /// Runs until it stops at a point, from which it can go on.
    pub fn stopped_at(&self, point: &str, args: RunArgs) -> Stopped {
        let stopped = self.stop_at(point, args);
        assert!(
            !stopped.ended,
            "{point} is not reached: {}",
            stopped.log.tail()
        );
        stopped
    }

    /// The same, if it gets there.
    pub fn stop_at(&self, point: &str, args: RunArgs) -> Stopped {
        let log = Log(self.site.root.join(format!("stopped-at-{point}.log")));
        let _ = fs::remove_file(&log.0);
        let mut command = self.site.run(args);
        command
            .arg("--once")
            .env("RINGEST_STOP_AT", format!("{point},none"));
        let mut program = Program::start(command, &log.0);
        let ended = program.wait() != State::Stopped;
        Stopped {
            program,
            log,
            ended,
        }
    }

    /// The content is in the warehouse, wherever.
    pub fn assert_stored(&self, content: &str) {
        let files = crate::support::files_beneath(&self.site.warehouse);
        let digest = sha256(content.as_bytes());
        assert!(
            files.iter().any(|file| sha256_of_file(file) == digest),
            "{content:?} is lost: {files:?}"
        );
    }

    /// The honest uploader's file was ingested, once, as it was sent, and everything agrees.
    pub fn assert_arrived(&self, name: &str, content: &str) {
        let line = self.site.line(name);
        assert_eq!(line.sha256(), sha256(content.as_bytes()), "{name}");
        let stored = fs::read(line.placed()).expect("read a placed file");
        assert_eq!(stored, content.as_bytes(), "{name}");
    }

    /// `verify --deep` has nothing to say.
    pub fn assert_sound(&self) {
        self.site.verify(&["--deep"]).ok();
    }

    /// `verify --deep` names nothing but what lies in a directory of hers, or did.
    pub fn assert_sound_but_for(&self, directory: &str) {
        let verified = self.site.verify(&["--deep", "--json"]);
        assert!(matches!(verified.status.code(), Some(0 | 1)), "{verified}");
        let findings = verified.stdout.lines().rev().skip(1);
        let foreign: Vec<&str> = findings
            .filter(|line| !line.contains(&format!("/{directory}/")))
            .collect();
        assert!(foreign.is_empty(), "{verified}");
    }

    /// Where something is that no uploader may read: of the user who runs ringest, and for it alone.
    pub fn secret(&self, content: &str) -> PathBuf {
        let path = self.site.root.join("secret");
        fs::write(&path, content).expect("write");
        chown(&path, Some(self.user), Some(self.user)).expect("give it away");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
        path
    }

    /// Nothing that anybody may read has these bytes.
    pub fn assert_untold(&self, secret: &str) {
        let roots = [
            &self.site.warehouse,
            &self.site.manifests,
            &self.site.staging,
        ];
        for file in roots
            .into_iter()
            .flat_map(|root| crate::support::files_beneath(root))
        {
            let Ok(metadata) = fs::symlink_metadata(&file) else {
                continue;
            };
            if metadata.is_file() {
                let content = fs::read(&file).expect("read");
                let content = String::from_utf8_lossy(&content);
                assert!(!content.contains(secret), "{file:?} tells {secret:?}");
            }
        }
    }
}

/// What every script has at hand.
const PRELUDE: &str = r#"
import ctypes, fcntl, os, socket, stat, sys
os.umask(0o022)
WAREHOUSE, MANIFESTS, STATE, ROOT = (os.environ[name] for name in ("WAREHOUSE", "MANIFESTS", "STATE", "ROOT"))

def put(name, content):
    # Under another name first, as uploaders do.
    with open(name + ".part", "w") as file:
        file.write(content)
    os.rename(name + ".part", name)

def exchange(one, other):
    # renameat2(…, RENAME_EXCHANGE)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) != 0:
        raise OSError(ctypes.get_errno(), "exchange", one)

def ledger():
    return os.environ["LEDGER"]

def tries(call, *args):
    # Whether she may.
    try:
        call(*args)
        return True
    except OSError:
        return False

def placed(suffix):
    return [os.path.join(where, name) for where, _, names in os.walk(WAREHOUSE) for name in names if name.endswith(suffix)]
"#;

fn said(mut command: Command) -> String {
    let done = command.output().expect("start python3");
    let script = command
        .get_args()
        .last()
        .map(|script| script.to_string_lossy().into_owned());
    let script = script.unwrap_or_default().replace(PRELUDE, "");
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script}\n{stderr}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// A script that goes on beside; ended with the test.
pub struct Beside(Child);

impl Beside {
    /// Ends it, and waits for that.
    pub fn end(self) {}
}

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.0.stdin.take().map(|mut stdin| stdin.flush()));
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A run that stopped at a point, or ended before.
pub struct Stopped {
    program: Program,
    pub log: Log,
    pub ended: bool,
}

impl Stopped {
    /// Goes on, and must end with 0.
    pub fn ends_well(mut self) {
        self.program.go_on();
        match self.program.wait() {
            State::Ended(status) => assert_eq!(status.code(), Some(0), "{}", self.log.tail()),
            State::Stopped => panic!("it stopped again"),
        }
    }

    pub fn kill(mut self) {
        self.program.kill(false);
    }
}
