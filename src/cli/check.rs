//! `ringest check`: what `run` would work with, found out without making or leaving anything.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use serde_json::Value;

use crate::io::probe::{self, FsKind};
use crate::session;
use crate::settings::{
    IoChoice, LeasePolicy, Loaded, OnDuplicate, PlacedOwner, Setting, Settings, Source,
};

const UNUSABLE_DIRECTORY: u8 = 78;
const MISSING_FEATURE: u8 = 69;

/// Prints the report on stdout. 0: `run` could start; 78: a directory cannot be used; 69: the kernel
/// lacks something that is required.
pub fn run(loaded: &Loaded, json: bool) -> ExitCode {
    use std::io::Write;

    let report = Report::of(loaded);
    let mut stdout = io::stdout().lock();
    // A reader that went away, as `head` does, has seen what it wanted.
    let _ = match serde_json::to_string(&report) {
        Ok(line) if json => writeln!(stdout, "{line}"),
        _ => write!(stdout, "{report}"),
    };
    report.exit_code().into()
}

/// All that was found out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Effective values with their origins.
    pub settings: Vec<Setting>,
    /// The kernel, as far as ringest cares.
    pub kernel: Kernel,
    /// Limits of kernel and process.
    pub limits: Limits,
    /// Every directory: inputs, warehouse, manifests, state, logs.
    pub directories: Vec<Directory>,
    /// Every way from an input to the warehouse.
    pub pairs: Vec<Pair>,
    /// What looks like a mistake, or is slower or weaker than it could be.
    pub warnings: Vec<String>,
    /// Why `run` would not start.
    pub problems: Vec<Problem>,
}

/// The kernel, as far as ringest cares.
#[derive(Debug, Serialize)]
pub struct Kernel {
    /// As `uname -r`.
    pub release: String,
    /// Whether readers can have a ring.
    pub io_uring: Ability,
    /// Whether paths can be held beneath their input; required.
    pub openat2: Ability,
    /// Whether leases are granted on files of other users.
    pub lease_on_files_of_others: Ability,
}

/// Limits; `None` is no limit, or none that can be read.
#[derive(Debug, Serialize)]
pub struct Limits {
    /// Directories this user can watch.
    pub inotify_max_user_watches: Option<u64>,
    /// Watchers this user can have.
    pub inotify_max_user_instances: Option<u64>,
    /// Events that wait before some are dropped, which costs a rescan.
    pub inotify_max_queued_events: Option<u64>,
    /// Open files of this process, soft limit.
    pub open_files: Option<u64>,
    /// Bytes this process can lock in memory, soft limit.
    pub locked_bytes: Option<u64>,
}

/// One directory.
#[derive(Debug, Serialize)]
pub struct Directory {
    /// `input`, `warehouse`, `manifests`, `state` or `logs`.
    pub role: &'static str,
    /// The name of the source, for an input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Where it is.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Otherwise `run` makes it, and the rest is said of the nearest directory above it.
    pub exists: bool,
    /// What it lies on.
    pub filesystem: Option<FsKind>,
    /// Bytes this user can still write.
    pub free_bytes: Option<u64>,
    /// Files that can still be made; `None` where the filesystem does not count them.
    pub free_inodes: Option<u64>,
    /// Whether files can be made, or the directory itself.
    pub writable: Ability,
    /// Whether copies can stay unnamed until they are whole.
    pub unnamed_files: Ability,
    /// Whether a lease can prove that nobody is writing, for an input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leases: Option<Ability>,
}

/// One way from an input to the warehouse.
#[derive(Debug, Serialize)]
pub struct Pair {
    /// The name of the source.
    pub source: String,
    /// From here.
    #[serde(serialize_with = "lossy")]
    pub input: PathBuf,
    /// To here.
    #[serde(serialize_with = "lossy")]
    pub warehouse: PathBuf,
    /// How files get there.
    pub way: Way,
    /// Whether those of other users are renamed with a change of owner, where `placed_owner` asks for that; else they are copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_of_owner: Option<Ability>,
}

/// How files get from an input to the warehouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// By name alone.
    Rename,
    /// Byte by byte: the filesystems, mounts or quotas differ.
    Copy,
    /// A directory has to be made first, or cannot be used.
    Unknown,
}

/// Whether something works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ability {
    /// Yes.
    Yes,
    /// No, and why.
    No(String),
    /// It cannot be tried without leaving traces.
    Unknown,
}

/// A reason for `run` not to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What the process would end with.
    pub exit_code: u8,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// The directory, if it is about one. The message names it too.
    #[serde(skip)]
    pub path: Option<PathBuf>,
}

impl Report {
    /// Probes everything the settings name.
    pub fn of(loaded: &Loaded) -> Self {
        let settings = &loaded.settings;
        let kernel = Kernel::of(settings);
        let directories = Directory::all(settings);
        let mut problems = Vec::new();
        let mut warnings = loaded.warnings.clone();

        if let Ability::No(why) = &kernel.openat2 {
            problems.push(Problem {
                exit_code: MISSING_FEATURE,
                message: format!("openat2 is required: {why}"),
                path: None,
            });
        }
        if let Ability::No(why) = &kernel.io_uring {
            match settings.io {
                IoChoice::Uring => problems.push(Problem {
                    exit_code: MISSING_FEATURE,
                    message: format!("--io uring needs io_uring: {why}; use --io auto or sync"),
                    path: None,
                }),
                IoChoice::Auto => {
                    warnings.push(format!("readers use plain system calls; io_uring: {why}"));
                }
                IoChoice::Sync => {}
            }
        }
        for (path, error) in session::misplaced(settings) {
            problems.push(Problem {
                exit_code: UNUSABLE_DIRECTORY,
                message: format!("{}: cannot place files in it: {error}", path.display()),
                path: Some(path),
            });
        }
        let (closed, _) = session::closed_sources(settings);
        for directory in &directories {
            let path = directory.path.display();
            let is_closed = |source: &&Source| source.input == directory.path;
            if let Ability::No(why) = &directory.writable
                && closed.iter().any(is_closed)
            {
                warnings.push(format!(
                    "{path}: the input directory is closed to this user ({why}): its files wait, those of other sources come in"
                ));
            } else if let Ability::No(why) = &directory.writable {
                let what = if directory.exists { "use" } else { "make" };
                problems.push(Problem {
                    exit_code: UNUSABLE_DIRECTORY,
                    message: format!(
                        "{path}: cannot {what} the {} directory: {why}; choose another, or let \
                         this user read, write and search it",
                        directory.role
                    ),
                    path: Some(directory.path.clone()),
                });
            }
            let least = settings.min_free_bytes;
            if !matches!(directory.role, "input" | "logs")
                && let Some(free) = directory.free_bytes.filter(|&free| free < least)
            {
                warnings.push(format!(
                    "{path}: {free} bytes are free, fewer than min_free_bytes ({least}): intake \
                     pauses until there are more"
                ));
            }
            if directory.role != "logs"
                && let Some(kind) = directory.filesystem.as_ref().filter(|kind| kind.network)
            {
                warnings.push(match directory.role {
                    "input" => format!(
                        "{path} is on {}: what others write there is found by rescans only",
                        kind.name
                    ),
                    role => format!(
                        "{path}: the {role} directory is on {}: what a sync promises there is up \
                         to its server",
                        kind.name
                    ),
                });
            }
        }
        let pairs = Pair::all(settings, &kernel, &directories, &mut problems);
        let settings = loaded.origins.clone();
        Self {
            settings,
            kernel,
            limits: Limits::read(),
            directories,
            pairs,
            warnings,
            problems,
        }
    }

    /// 0 when `run` could start, else the code of the first problem.
    pub fn exit_code(&self) -> u8 {
        self.problems.first().map_or(0, |problem| problem.exit_code)
    }
}

impl Kernel {
    fn of(settings: &Settings) -> Self {
        let disable = settings.disable;
        let lease_on_files_of_others = match probe::lease_on_files_of_others() {
            true => Ability::Yes,
            false => {
                Ability::No("files of other users get identity checks instead of leases".into())
            }
        };
        Self {
            release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            io_uring: Ability::unless(disable.uring, || probe::uring().into()),
            openat2: probe::openat2().into(),
            lease_on_files_of_others: Ability::unless(disable.lease, || lease_on_files_of_others),
        }
    }
}

impl Limits {
    fn read() -> Self {
        let inotify = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?;
            text.trim().parse().ok()
        };
        Self {
            inotify_max_user_watches: inotify("max_user_watches"),
            inotify_max_user_instances: inotify("max_user_instances"),
            inotify_max_queued_events: inotify("max_queued_events"),
            open_files: getrlimit(Resource::Nofile).current,
            locked_bytes: getrlimit(Resource::Memlock).current,
        }
    }
}

impl Directory {
    fn all(settings: &Settings) -> Vec<Self> {
        let mut directories = Vec::new();
        for source in &settings.sources {
            let mut directory = Self::probe("input", &source.input, settings);
            directory.source = Some(source.name.clone());
            directory.leases = Some(Ability::unless(settings.disable.lease, || {
                match source.lease {
                    LeasePolicy::Off => Ability::No("--lease off".into()),
                    LeasePolicy::Auto if directory.exists => probe::lease(&source.input).into(),
                    LeasePolicy::Auto => Ability::Unknown,
                }
            }));
            directories.push(directory);
        }
        for (role, path) in [
            ("warehouse", &settings.warehouse),
            ("manifests", &settings.manifests),
            ("state", &settings.state_path),
        ] {
            directories.push(Self::probe(role, path, settings));
        }
        if let Some(path) = &settings.log_dir {
            directories.push(Self::probe("logs", path, settings));
        }
        directories
    }

    fn probe(role: &'static str, path: &Path, settings: &Settings) -> Self {
        let mut directory = Self {
            role,
            source: None,
            path: path.into(),
            exists: true,
            filesystem: None,
            free_bytes: None,
            free_inodes: None,
            writable: Ability::Unknown,
            unnamed_files: Ability::Unknown,
            leases: None,
        };
        let nearest = match nearest_existing(path) {
            Ok(nearest) => nearest,
            Err(error) => {
                directory.exists = false;
                directory.writable = Ability::No(error.to_string());
                return directory;
            }
        };
        directory.exists = nearest == path;
        directory.filesystem = probe::filesystem(nearest).ok();
        if let Ok(space) = rustix::fs::statvfs(nearest) {
            directory.free_bytes = Some(space.f_bavail.saturating_mul(space.f_frsize));
            directory.free_inodes = Some(space.f_favail).filter(|_| space.f_files > 0);
        }
        if directory.exists {
            directory.writable = match probe::writable(path) {
                // A full disk stops intake, not a start.
                Err(error) if crate::pipeline::is_no_room(&error) => Ability::Unknown,
                writable => writable.into(),
            };
            directory.unnamed_files = Ability::unless(settings.disable.tmpfile, || {
                probe::unnamed_file(path).into()
            });
        } else {
            directory.writable = match probe::may_make_directories(nearest) {
                Ok(()) => Ability::Yes,
                Err(error) => Ability::No(format!("{}: {error}", nearest.display())),
            };
        }
        directory
    }
}

/// The path itself or the directory above it in which the rest would be made.
fn nearest_existing(path: &Path) -> io::Result<&Path> {
    for nearest in path.ancestors() {
        match fs::metadata(nearest) {
            Ok(found) if found.is_dir() => return Ok(nearest),
            Ok(_) => {
                let message = format!("{} is not a directory", nearest.display());
                return Err(io::Error::new(io::ErrorKind::NotADirectory, message));
            }
            // A symlink to nowhere is in the way of a new directory. Anything else was made a moment ago.
            Err(error) if fs::symlink_metadata(nearest).is_ok_and(|found| found.is_symlink()) => {
                let message = format!("{}: {error}", nearest.display());
                return Err(io::Error::new(error.kind(), message));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => {
                let message = format!("{}: {error}", nearest.display());
                return Err(io::Error::new(error.kind(), message));
            }
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

impl Pair {
    fn all(
        settings: &Settings,
        kernel: &Kernel,
        directories: &[Directory],
        problems: &mut Vec<Problem>,
    ) -> Vec<Self> {
        let is_usable = |path: &Path| {
            let found = directories.iter().find(|directory| directory.path == path);
            found.is_some_and(|directory| directory.writable == Ability::Yes)
        };
        let mut pairs = Vec::new();
        for source in &settings.sources {
            let (input, warehouse) = (source.input.clone(), settings.warehouse.clone());
            let way = if is_usable(&input) && is_usable(&warehouse) {
                way(&input, &warehouse)
            } else {
                Ok(Way::Unknown)
            };
            let way = way.unwrap_or_else(|error| {
                problems.push(Problem {
                    exit_code: UNUSABLE_DIRECTORY,
                    message: format!(
                        "{}: cannot rename a file to {}: {error}; choose other directories",
                        input.display(),
                        warehouse.display()
                    ),
                    path: Some(input.clone()),
                });
                Way::Unknown
            });
            let directory = directories.iter().find(|it| it.path == input);
            let change_of_owner = directory
                .filter(|_| way != Way::Copy && source.layout.placed_owner == PlacedOwner::Own)
                .map(|directory| change_of_owner(source, directory, kernel));
            pairs.push(Self {
                source: source.name.clone(),
                input,
                warehouse,
                way,
                change_of_owner,
            });
        }
        pairs
    }
}

/// Whether a file of another user can become our own without a copy.
fn change_of_owner(source: &Source, directory: &Directory, kernel: &Kernel) -> Ability {
    let no = |why: &str| Ability::No(why.into());
    if source.on_duplicate == OnDuplicate::Keep {
        return no("on_duplicate = keep: what stays in staging stays its uploader's");
    }
    let kind = directory.filesystem.as_ref();
    if kind.is_some_and(|kind| kind.network || kind.overlay) {
        return no("leases on this filesystem prove nothing");
    }
    match &directory.leases {
        Some(Ability::Yes) => {}
        Some(Ability::No(why)) => return Ability::No(format!("no leases: {why}")),
        _ => return Ability::Unknown,
    }
    match (&kernel.lease_on_files_of_others, probe::change_of_owner()) {
        (Ability::Yes, true) => Ability::Yes,
        (Ability::Yes, false) => no("CAP_CHOWN is missing"),
        _ => no("CAP_LEASE is missing"),
    }
}

/// What is missing will be made in the nearest directory above it, so that one is asked.
fn way(input: &Path, warehouse: &Path) -> io::Result<Way> {
    let (from, to) = (nearest_existing(input)?, nearest_existing(warehouse)?);
    match probe::rename_works(from, to) {
        Ok(true) => Ok(Way::Rename),
        Ok(false) => Ok(Way::Copy),
        Err(_) if (from, to) != (input, warehouse) => Ok(Way::Unknown),
        Err(error) => Err(error),
    }
}

impl Ability {
    fn unless(disabled: bool, ability: impl FnOnce() -> Self) -> Self {
        if disabled {
            Self::No("RINGEST_DISABLE".into())
        } else {
            ability()
        }
    }
}

impl<E: fmt::Display> From<Result<(), E>> for Ability {
    fn from(result: Result<(), E>) -> Self {
        result.map_or_else(|why| Self::No(why.to_string()), |()| Self::Yes)
    }
}

/// `{"works": true}`, `{"works": false, "why": "…"}` or `{"works": null}`.
impl Serialize for Ability {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;

        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Yes => map.serialize_entry("works", &true)?,
            Self::No(why) => {
                map.serialize_entry("works", &false)?;
                map.serialize_entry("why", why)?;
            }
            Self::Unknown => map.serialize_entry("works", &None::<bool>)?,
        }
        map.end()
    }
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No(why) => write!(f, "no: {why}"),
            Self::Unknown => f.write_str("unknown until made"),
        }
    }
}

fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut heading = None;
        for Setting {
            source,
            key,
            value,
            origin,
        } in &self.settings
        {
            if heading.as_ref() != Some(&source) {
                match source {
                    Some(name) => writeln!(f, "\nsource {name}")?,
                    None => writeln!(f, "settings")?,
                }
                heading = Some(source);
            }
            writeln!(f, "  {key:18} {:32} {origin}", Shown(value).to_string())?;
        }

        let Kernel {
            release,
            io_uring,
            openat2,
            lease_on_files_of_others,
        } = &self.kernel;
        writeln!(f, "\nkernel")?;
        writeln!(f, "  release            {release}")?;
        writeln!(f, "  io_uring           {io_uring}")?;
        writeln!(f, "  openat2            {openat2}")?;
        writeln!(f, "  CAP_LEASE          {lease_on_files_of_others}")?;

        writeln!(f, "\nlimits")?;
        for (name, limit) in [
            ("inotify watches", self.limits.inotify_max_user_watches),
            ("inotify instances", self.limits.inotify_max_user_instances),
            ("inotify events", self.limits.inotify_max_queued_events),
            ("open files", self.limits.open_files),
            ("locked bytes", self.limits.locked_bytes),
        ] {
            match limit {
                Some(limit) => writeln!(f, "  {name:18} {limit}")?,
                None => writeln!(f, "  {name:18} none known")?,
            }
        }

        for directory in &self.directories {
            writeln!(f, "\n{} {}", directory.role, directory.path.display())?;
            let made = if directory.exists {
                "yes"
            } else {
                "no, run makes it"
            };
            writeln!(f, "  exists             {made}")?;
            if let Some(kind) = &directory.filesystem {
                writeln!(f, "  filesystem         {}", kind.name)?;
            }
            if let Some(bytes) = directory.free_bytes {
                writeln!(f, "  free MiB           {}", bytes >> 20)?;
            }
            if let Some(inodes) = directory.free_inodes {
                writeln!(f, "  free inodes        {inodes}")?;
            }
            let write = if directory.exists {
                "writable"
            } else {
                "can be made"
            };
            writeln!(f, "  {write:18} {}", directory.writable)?;
            if directory.role == "warehouse" {
                writeln!(f, "  unnamed files      {}", directory.unnamed_files)?;
            }
            if let Some(leases) = &directory.leases {
                writeln!(f, "  leases             {leases}")?;
            }
        }

        writeln!(f, "\nto the warehouse")?;
        for pair in &self.pairs {
            let way = match (pair.way, &pair.change_of_owner) {
                (Way::Rename, None) => "rename",
                (Way::Rename, Some(Ability::Yes)) => "rename, with a change of owner",
                (Way::Rename, Some(Ability::No(why))) => {
                    &format!("copy, for placed_owner = self: {why}")
                }
                (Way::Copy, _) => "copy: another filesystem, mount or quota",
                (Way::Unknown, _) | (_, Some(Ability::Unknown)) => "unknown until made",
            };
            writeln!(f, "  {:18} {way}", pair.source)?;
        }

        for warning in &self.warnings {
            writeln!(f, "\nwarning: {warning}")?;
        }
        for problem in &self.problems {
            writeln!(f, "\nproblem: {}", problem.message)?;
        }
        match self.problems.is_empty() {
            true => writeln!(f, "\nrun can start"),
            false => writeln!(f, "\nrun would end with code {}", self.exit_code()),
        }
    }
}

/// A value as one would type it.
struct Shown<'a>(&'a Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::String(text) => f.write_str(text),
            Value::Array(items) if items.is_empty() => f.write_str("-"),
            Value::Array(items) => {
                let items: Vec<_> = items.iter().map(|item| Shown(item).to_string()).collect();
                f.write_str(&items.join(" "))
            }
            other => other.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Purpose, RawSettings};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn load(root: &Path, extra: &[(&str, &str)]) -> Loaded {
        let mut environment = Vec::new();
        for (name, path) in [
            ("RINGEST_INPUT", "staging"),
            ("RINGEST_WAREHOUSE", "warehouse"),
            ("RINGEST_MANIFESTS", "manifests"),
            ("RINGEST_STATE_PATH", "state"),
        ] {
            environment.push((name.into(), root.join(path).into_os_string()));
        }
        environment.extend(
            extra
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        RawSettings {
            environment,
            ..RawSettings::default()
        }
        .resolve(Purpose::Flow)
        .unwrap()
    }

    fn names(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn an_empty_place_is_usable_and_stays_empty() {
        let root = tempfile::tempdir().unwrap();
        let report = Report::of(&load(root.path(), &[]));
        assert_eq!(
            (report.exit_code(), report.problems.len()),
            (0, 0),
            "{report}"
        );
        assert!(report.directories.iter().all(|directory| !directory.exists));
        assert_eq!(report.pairs[0].way, Way::Rename);
        assert_eq!(names(root.path()), [""; 0]);
        assert!(report.to_string().contains("run can start"));
    }

    #[test]
    fn directories_that_exist_are_probed_and_left_as_they_were() {
        let root = tempfile::tempdir().unwrap();
        for name in ["staging", "warehouse"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let report = Report::of(&load(root.path(), &[]));
        assert_eq!(report.exit_code(), 0, "{report}");
        assert_eq!(report.pairs[0].way, Way::Rename);
        assert_eq!(report.directories[0].leases, Some(Ability::Yes));
        for name in ["staging", "warehouse"] {
            assert_eq!(names(&root.path().join(name)), [""; 0]);
        }
        assert_eq!(names(root.path()).len(), 2);
    }

    #[test]
    fn a_missing_directory_is_asked_for_where_it_will_be_made_and_nothing_stays_there() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("staging")).unwrap();
        let report = Report::of(&load(root.path(), &[]));
        assert_eq!((report.exit_code(), report.pairs[0].way), (0, Way::Rename));
        assert_eq!(names(root.path()), ["staging"]);
    }

    #[test]
    fn what_cannot_be_a_directory_is_named_with_code_78() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("staging"), "").unwrap();
        symlink("nowhere", root.path().join("warehouse")).unwrap();
        let report = Report::of(&load(root.path(), &[]));
        assert_eq!(report.exit_code(), 78);
        let [input, warehouse] = &report.problems[..] else {
            panic!("{report}")
        };
        assert!(
            input.message.contains("staging is not a directory"),
            "{report}"
        );
        assert!(
            warehouse.message.contains("warehouse: cannot make"),
            "{report}"
        );
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named_with_code_78() {
        let root = tempfile::tempdir().unwrap();
        let input = root.path().join("staging");
        fs::create_dir(&input).unwrap();
        fs::set_permissions(&input, fs::Permissions::from_mode(0o555)).unwrap();
        if probe::writable(&input).is_ok() {
            return; // Permission bits mean nothing to root; /proc below does.
        }
        assert_eq!(Report::of(&load(root.path(), &[])).exit_code(), 78);
    }

    #[test]
    fn a_filesystem_that_takes_no_files_is_named_with_code_78() {
        let root = tempfile::tempdir().unwrap();
        let report = Report::of(&load(root.path(), &[("RINGEST_INPUT", "/proc/self")]));
        assert_eq!(report.exit_code(), 78, "{report}");
        assert!(
            report.problems[0]
                .message
                .starts_with("/proc/self: cannot use"),
            "{report}"
        );
    }

    #[test]
    fn a_ring_that_must_be_and_cannot_ends_with_code_69() {
        let root = tempfile::tempdir().unwrap();
        let disabled = ("RINGEST_DISABLE", "uring,lease,tmpfile");
        let report = Report::of(&load(root.path(), &[disabled, ("RINGEST_IO", "uring")]));
        assert_eq!(report.exit_code(), 69);
        assert!(
            report.problems[0].message.contains("RINGEST_DISABLE"),
            "{report}"
        );
        let report = Report::of(&load(root.path(), &[disabled]));
        assert_eq!(report.exit_code(), 0);
        assert!(
            report.warnings[0].contains("plain system calls"),
            "{report}"
        );
    }

    #[test]
    fn the_report_is_one_json_object() {
        let root = tempfile::tempdir().unwrap();
        let report = serde_json::to_value(Report::of(&load(root.path(), &[]))).unwrap();
        assert_eq!(
            report["kernel"]["openat2"],
            serde_json::json!({"works": true})
        );
        assert_eq!(report["pairs"][0]["way"], "rename");
        assert_eq!(report["settings"][0]["key"], "warehouse");
        assert_eq!(report["directories"][0]["source"], "staging");
    }
}
