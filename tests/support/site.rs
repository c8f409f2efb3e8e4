//! A place to run ringest in: its four directories, and what must hold of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;

use super::manifest::{self, Line};
use super::process::{Finished, Running};
use super::{PATIENCE, sha256_of_file, skip};

/// Arguments of a run, as they are written in the tests.
pub type RunArgs<'a> = &'a [&'a str];

/// Where the tests run when the warehouse shall be on another filesystem than the staging directory.
const TMPFS: &str = "/dev/shm";

/// Variables that go on to the program: fallbacks to force, and the fault of a build that has some.
const KEPT: [&str; 2] = ["RINGEST_DISABLE", "RINGEST_MUTANT"];

/// Directories of one test. Removed at its end, unless the test failed: then they are left to be looked at.
pub struct Site {
    pub root: PathBuf,
    pub staging: PathBuf,
    pub warehouse: PathBuf,
    pub manifests: PathBuf,
    pub state: PathBuf,
    /// Given to every run, before the arguments of the run itself.
    args: Vec<String>,
    /// The program, and who runs it.
    binary: PathBuf,
    user: Option<u32>,
    directories: Vec<TempDir>,
}

impl Site {
    /// Everything on one filesystem.
    pub fn new() -> Site {
        let base =
            std::env::var_os("RINGEST_TEST_DIR").unwrap_or(env!("CARGO_TARGET_TMPDIR").into());
        Site::beneath(Path::new(&base))
    }

    /// Everything on one filesystem, beneath `base`.
    pub fn beneath(base: &Path) -> Site {
        fs::create_dir_all(base).unwrap_or_else(|e| panic!("make {base:?}: {e}"));
        let base = fs::canonicalize(base).expect("the base directory has a path");
        let directory = new_directory(&base);
        let root = directory.path().to_owned();
        let site = Site {
            staging: root.join("staging"),
            warehouse: root.join("warehouse"),
            manifests: root.join("manifests"),
            state: root.join("state"),
            root,
            args: Vec::new(),
            binary: env!("CARGO_BIN_EXE_ringest").into(),
            user: None,
            directories: vec![directory],
        };
        fs::create_dir(&site.staging).expect("make the staging directory");
        site
    }

    /// In directories that are somebody else's to make and to remove.
    pub fn at(root: &Path, [staging, warehouse, manifests, state]: [PathBuf; 4]) -> Site {
        Site {
            root: root.to_owned(),
            staging,
            warehouse,
            manifests,
            state,
            args: Vec::new(),
            binary: env!("CARGO_BIN_EXE_ringest").into(),
            user: None,
            directories: Vec::new(),
        }
    }

    /// The warehouse on tmpfs, the rest where [`Site::new`] puts it. `None`, and skipped, if that is one filesystem.
    pub fn across_filesystems() -> Option<Site> {
        Site::new().across()
    }

    /// The same with the warehouse on tmpfs. `None`, and skipped, if that is one filesystem.
    pub fn across(self) -> Option<Site> {
        let mut site = self;
        let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
        let there = device(Path::new(TMPFS));
        if there.is_none() || there == device(&site.root) {
            skip("needs a second filesystem in /dev/shm");
            return None;
        }
        let directory = new_directory(Path::new(TMPFS));
        site.warehouse = directory.path().join("warehouse");
        site.directories.push(directory);
        Some(site)
    }

    /// Gives `args` to every run.
    pub fn with(mut self, args: RunArgs) -> Site {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Runs everything as this user, without any further group, with a copy of the program that this user can reach.
    pub fn run_by(mut self, user: u32) -> Site {
        let binary = self.root.join("ringest");
        // By another process: a descriptor open for writing here could slip into a child of another test, and the
        // program would then be busy (ETXTBSY).
        let copied = Command::new("cp").arg(&self.binary).arg(&binary).status();
        assert!(copied.expect("run cp").success(), "copy the program");
        fs::set_permissions(&binary, Permissions::from_mode(0o755))
            .expect("let others run the program");
        for directory in &self.directories {
            let directory = directory.path();
            std::os::unix::fs::chown(directory, Some(user), Some(user))
                .expect("give the site away");
            fs::set_permissions(directory, Permissions::from_mode(0o755))
                .expect("let others see the site");
        }
        self.binary = binary;
        self.user = Some(user);
        self
    }

    /// `ringest`, as this site's user, without the environment that would change its settings.
    pub fn ringest(&self, wrapped: bool) -> Command {
        let wrapper = std::env::var("RINGEST_TEST_WRAPPER").unwrap_or_default();
        let mut words = wrapper.split_whitespace().filter(|_| wrapped);
        let mut command = match words.next() {
            Some(program) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("RINGEST_") && !KEPT.contains(&name.as_str()) {
                command.env_remove(name);
            }
        }
        if let Some(user) = self.user {
            // Setting the user as root also clears the supplementary groups.
            command.uid(user).gid(user);
            command.current_dir(&self.root);
        }
        command
    }

    /// `ringest run` with nothing but what the environment adds: for a user who gives no flags.
    pub fn bare_run(&self) -> Command {
        let mut command = self.ringest(true);
        command.arg("run");
        if let Ok(more) = std::env::var("RINGEST_TEST_RUN_ARGS") {
            command.args(more.split_whitespace());
        }
        command
    }

    /// `ringest run` on this site's directories. An `--input` in `args` replaces the staging directory.
    pub fn run(&self, args: RunArgs) -> Command {
        let mut command = self.bare_run();
        if !args.contains(&"--input") {
            command.arg("--input").arg(&self.staging);
        }
        command.args(self.roots()).args(&self.args).args(args);
        command
    }

    /// `ringest <name>` on this site's directories, for the commands that look at a warehouse.
    pub fn command(&self, name: &str, args: RunArgs) -> Command {
        let mut command = self.ringest(false);
        command.arg(name).args(self.roots()).args(args);
        command
    }

    fn roots(&self) -> [OsString; 6] {
        [
            "--warehouse".into(),
            self.warehouse.clone().into(),
            "--manifests".into(),
            self.manifests.clone().into(),
            "--state-path".into(),
            self.state.clone().into(),
        ]
    }

    /// `run --once`, whatever its end.
    pub fn try_once(&self, args: RunArgs) -> Finished {
        let mut command = self.run(args);
        command.arg("--once");
        Finished::of(command)
    }

    /// `run --once`, which must end with 0.
    pub fn run_once(&self, args: RunArgs) -> Finished {
        self.try_once(args).ok()
    }

    /// A watching `run`.
    pub fn start(&self, args: RunArgs) -> Running {
        Running::spawn(self.run(args))
    }

    /// Writes a file into the staging directory, in place.
    pub fn put(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.staging.join(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("write {path:?}: {e}"));
        path
    }

    /// The manifest after a clean end.
    pub fn manifest(&self) -> Vec<Line> {
        manifest::read(&self.manifests, true)
    }

    /// The whole lines of the manifest while ringest writes it.
    pub fn manifest_so_far(&self) -> Vec<Line> {
        manifest::read(&self.manifests, false)
    }

    /// The only line whose source path ends with this name.
    pub fn line(&self, name: &str) -> Line {
        let mut lines = self.lines_of(name);
        assert!(
            lines.len() == 1,
            "{} manifest lines for {name:?}: {lines:?}",
            lines.len()
        );
        lines.remove(0)
    }

    /// The lines whose source path ends with this name.
    pub fn lines_of(&self, name: &str) -> Vec<Line> {
        let lines = self.manifest_so_far();
        lines
            .into_iter()
            .filter(|line| line.source_path().ends_with(name))
            .collect()
    }

    /// Waits until the manifest of a running ringest has `count` lines or more.
    pub fn wait_for_lines(&self, running: &mut Running, count: usize) -> Vec<Line> {
        let start = Instant::now();
        loop {
            let ended = running.has_ended();
            let lines = self.manifest_so_far();
            if lines.len() >= count {
                return lines;
            }
            assert!(
                !ended,
                "ringest ended with {} of {count} lines",
                lines.len()
            );
            assert!(
                start.elapsed() < PATIENCE,
                "in vain waited for line {count}: {} are there",
                lines.len()
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Waits until a running ringest has ingested the file of this name.
    pub fn wait_for_line(&self, running: &mut Running, name: &str) -> Line {
        let start = Instant::now();
        loop {
            let ended = running.has_ended();
            if let Some(line) = self.lines_of(name).into_iter().next() {
                return line;
            }
            assert!(!ended, "ringest ended without ingesting {name:?}");
            assert!(
                start.elapsed() < PATIENCE,
                "in vain waited for {name:?} in the manifest"
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// What duplicates were moved to, without their reasons.
    pub fn duplicates(&self) -> Vec<PathBuf> {
        without_reasons(&self.warehouse.join("_duplicates"))
    }

    /// What was quarantined, without the reasons.
    pub fn quarantined(&self) -> Vec<PathBuf> {
        without_reasons(&self.warehouse.join("_quarantine"))
    }

    /// Everything was ingested, set aside or removed, once, and [`Site::assert_agrees`].
    pub fn assert_sound(&self) {
        self.assert_staging_is_empty();
        let mut contents = BTreeSet::new();
        for line in self.assert_agrees() {
            // Empty files are told apart by name, not by content.
            let new = contents.insert(line.sha256().to_owned()) || line.number("size") == 0;
            assert!(new, "ingested twice: {}", line.raw);
        }
    }

    /// No file of any kind is left in the staging directory, hidden or not.
    pub fn assert_staging_is_empty(&self) {
        let left = files_beneath(&self.staging);
        assert!(left.is_empty(), "left in the staging directory: {left:?}");
    }

    /// `verify --deep` finds nothing; manifest and warehouse agree one to one, by content too; no temporary file is
    /// left anywhere. Returns the manifest.
    pub fn assert_agrees(&self) -> Vec<Line> {
        self.verify(&["--deep"]).ok();
        let lines = self.manifest();
        let mut claimed = BTreeMap::new();
        for line in &lines {
            let placed = line.placed();
            assert!(
                placed.starts_with(&self.warehouse),
                "not in the warehouse: {}",
                line.raw
            );
            assert!(placed.is_file(), "not there: {placed:?}: {}", line.raw);
            assert_eq!(
                sha256_of_file(&placed),
                line.sha256(),
                "the digest of {placed:?}: {}",
                line.raw
            );
            let twice = claimed.insert(placed, line.raw.clone());
            assert!(
                twice.is_none(),
                "two lines for one file: {} and {}",
                twice.unwrap_or_default(),
                line.raw
            );
        }
        for file in self.placed_files() {
            assert!(claimed.contains_key(&file), "no manifest line for {file:?}");
        }
        self.assert_no_temporary_files();
        lines
    }

    /// Nothing half-made is left: not in the staging directory, the warehouse, the manifests or the state.
    pub fn assert_no_temporary_files(&self) {
        let unfinished = files_beneath(&self.warehouse.join("_tmp"));
        assert!(unfinished.is_empty(), "left in _tmp: {unfinished:?}");
        let owed = files_beneath(&self.staging).into_iter().filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(".ringest-"))
        });
        assert_eq!(
            owed.collect::<Vec<_>>(),
            Vec::<PathBuf>::new(),
            "left in the staging directory"
        );
        for directory in [&self.manifests, &self.state] {
            let temporary = files_beneath(directory)
                .into_iter()
                .filter(|path| path.extension() == Some("tmp".as_ref()));
            assert_eq!(
                temporary.collect::<Vec<_>>(),
                Vec::<PathBuf>::new(),
                "left in {directory:?}"
            );
        }
    }

    /// Every file in the warehouse's partitions.
    pub fn placed_files(&self) -> Vec<PathBuf> {
        let in_partition = |path: &PathBuf| {
            let beneath = path
                .strip_prefix(&self.warehouse)
                .expect("found in the warehouse");
            beneath.to_string_lossy().starts_with("ingest_date=")
        };
        files_beneath(&self.warehouse)
            .into_iter()
            .filter(in_partition)
            .collect()
    }

    pub fn verify(&self, args: RunArgs) -> Finished {
        Finished::of(self.command("verify", args))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for directory in self.directories.drain(..) {
                eprintln!("left to be looked at: {:?}", directory.keep());
            }
        }
    }
}

fn new_directory(base: &Path) -> TempDir {
    let directory = tempfile::Builder::new()
        .prefix("ringest-test-")
        .tempdir_in(base);
    directory.unwrap_or_else(|e| panic!("make a directory in {base:?}: {e}"))
}

fn without_reasons(directory: &Path) -> Vec<PathBuf> {
    let is_reason = |path: &PathBuf| path.to_string_lossy().ends_with(".reason.json");
    files_beneath(directory)
        .into_iter()
        .filter(|path| !is_reason(path))
        .collect()
}

/// Everything but directories beneath `directory`, sorted; nothing if there is no such directory.
pub fn files_beneath(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let entry = entry.unwrap_or_else(|e| panic!("list {directory:?}: {e}"));
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => panic!("look at {:?}: {e}", entry.path()),
            }
        }
    }
    found.sort();
    found
}

/// Everything beneath `directory`, directories too, with all that a change would show in. Without LMDB's table of
/// readers, which readers write too.
pub fn tree(directory: &Path) -> BTreeMap<PathBuf, [i64; 7]> {
    let mut seen = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let metadata =
            fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("look at {path:?}: {e}"));
        if metadata.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .expect("list")
                    .map(|entry| entry.expect("list").path()),
            );
        }
        let facts = [
            metadata.ino() as i64,
            metadata.size() as i64,
            i64::from(metadata.mode()),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ];
        if !path.ends_with("lock.mdb") {
            seen.insert(path, facts);
        }
    }
    seen
}
