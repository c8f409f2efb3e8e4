//! Arguments → [`Command`]. The flags of settings are not written here: they come from
//! [`KEYS`].

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, value_parser};

use crate::bench::{self, Bench, DataSet, FILE_BYTES_MIN, FILES_MAX, Pace};
use crate::observe::mask::mask;
use crate::pipeline::record::layout;
use crate::quarantine::Filter;
use crate::settings::{
    ByteSize, KEYS, Key, Kind, Loaded, Mode, Origin, Purpose, RawSettings, SECONDS_MAX, Setting,
    SettingsError, Words,
};

/// What to do, with everything needed to do it.
#[derive(Debug)]
pub enum Command {
    /// Take files until stopped.
    Run(Loaded),
    /// Say what `run` would work with.
    Check {
        /// Its settings.
        loaded: Loaded,
        /// One JSON object instead of text.
        json: bool,
    },
    /// Say what `run` would do with a file.
    CheckFile {
        /// Its settings.
        loaded: Loaded,
        /// The file, wherever it lies.
        file: PathBuf,
        /// The source whose file it is or would be; `None`: that in whose input it lies, or the only one.
        source: Option<String>,
        /// One JSON object instead of text.
        json: bool,
    },
    /// Say how a run is doing, or how the last one ended.
    Status {
        /// Where the state is.
        loaded: Loaded,
        /// One JSON object instead of text.
        json: bool,
    },
    /// Look a file up.
    Find {
        /// Where the ledger is.
        loaded: Loaded,
        /// A path, a name or a SHA-256.
        query: OsString,
        /// One JSON object per match instead of text.
        json: bool,
    },
    /// Compare ledger, manifest and warehouse.
    Verify {
        /// Where they are.
        loaded: Loaded,
        /// Read every file again.
        deep: bool,
        /// One JSON object instead of text.
        json: bool,
    },
    /// Look at what was set aside, give it back, or remove it.
    Quarantine {
        /// Where it is.
        loaded: Loaded,
        /// What to do.
        action: QuarantineAction,
    },
    /// Make a new ledger from manifests and warehouse.
    Rebuild {
        /// Its settings, as for `run`.
        loaded: Loaded,
        /// Read every file again.
        deep: bool,
        /// JSON objects instead of text.
        json: bool,
    },
    /// Copy the ledger.
    Backup {
        /// Where it is.
        loaded: Loaded,
        /// The directory to make.
        to: PathBuf,
        /// One JSON object instead of text.
        json: bool,
    },
    /// Measure.
    Bench {
        /// What.
        bench: Box<Bench>,
        /// One JSON object instead of text.
        json: bool,
    },
}

/// What to do with what was set aside.
#[derive(Debug, PartialEq)]
pub enum QuarantineAction {
    /// Say what lies there.
    List {
        /// Which files.
        filter: Filter,
        /// One JSON object for each instead of a line.
        json: bool,
    },
    /// Say all that is known of one.
    Show {
        /// Which.
        which: Which,
        /// One JSON object for each instead of text.
        json: bool,
    },
    /// Give files back to staging.
    Retry(Chosen),
    /// Remove files for good.
    Drop {
        /// Which.
        chosen: Chosen,
        /// Without asking.
        yes: bool,
    },
}

/// One file that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By its sequence number.
    Seq(u64),
    /// By where it lies, or whence it came.
    Path(PathBuf),
}

/// Some files that were set aside.
#[derive(Debug, PartialEq)]
pub enum Chosen {
    /// These.
    These(Vec<Which>),
    /// All of a kind.
    All(Filter),
}

/// Takes files from staging directories into a date-partitioned warehouse, each exactly once.
///
/// Flags win over RINGEST_… variables (--state-path: RINGEST_STATE_PATH; lists separated by ':'),
/// those over the settings file, that over the defaults.
#[derive(Debug, Parser)]
#[command(name = "ringest", version, arg_required_else_help = true)]
pub struct Cli {
    /// Settings file, TOML or JSON [env: RINGEST_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Use settings, schemas and commands that others than root and this user may write [env: RINGEST_TRUST_CONFIG]
    #[arg(long, global = true)]
    trust_config: bool,

    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Ingest files as they arrive, until stopped
    Run(RunArgs),
    /// Show effective settings, and what kernel, filesystems and permissions allow; or what would happen to one file
    Check {
        #[command(flatten)]
        run: RunArgs,
        /// Say what would happen to this file, and why; exit 1 if it would be set aside
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Try --file as one of the source of this name [default: the one in whose input it lies, or the only one]
        #[arg(long, value_name = "NAME", requires = "file")]
        source: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show how the running ingestor is doing, or how the last one ended
    Status {
        #[command(flatten)]
        flags: StoreFlags,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Find ingested files by path, name or SHA-256
    Find {
        #[command(flatten)]
        flags: StoreFlags,
        /// A path, a file name or a SHA-256
        query: OsString,
        /// Print one JSON object for each match
        #[arg(long)]
        json: bool,
    },
    /// Compare ledger, manifest and warehouse; exit 1 when they differ
    Verify {
        #[command(flatten)]
        flags: StoreFlags,
        /// Read and hash every file again
        #[arg(long)]
        deep: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Look at files that were set aside, give them back to staging, or remove them
    #[command(subcommand)]
    Quarantine(QuarantineArgs),
    /// Make a new ledger from manifests and warehouse, after the state was lost
    Rebuild {
        #[command(flatten)]
        flags: FlowFlags,
        /// Read and hash every file again
        #[arg(long)]
        deep: bool,
        /// Print JSON objects
        #[arg(long)]
        json: bool,
    },
    /// Copy the ledger, also while it is in use, to a directory that can serve as --state-path
    Backup {
        #[command(flatten)]
        flags: StoreFlags,
        /// The directory to make
        #[arg(value_name = "DIR")]
        to: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Measure how fast files are ingested here
    #[command(after_long_help = BENCH_HELP)]
    #[command(mut_arg("mode", |mode| mode.default_value(Mode::Closed.as_str())))]
    Bench(Box<BenchArgs>),
}

#[derive(Debug, Subcommand)]
enum QuarantineArgs {
    /// List what lies in quarantine
    List {
        #[command(flatten)]
        flags: StoreFlags,
        #[command(flatten)]
        kind: KindArgs,
        /// Only files that were set aside since: 2026-11-23, or a time as in RFC 3339
        #[arg(long, value_name = "DATE", value_parser = since)]
        since: Option<i64>,
        /// Print one JSON object for each file
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of a file
    Show {
        #[command(flatten)]
        flags: StoreFlags,
        /// Its sequence number, where it lies, or whence it came
        #[arg(value_name = "SEQ|PATH", value_parser = OsStringValueParser::new().map(which))]
        which: Which,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Give files back to the staging directories whence they came, so that `run` sees them again
    Retry {
        #[command(flatten)]
        flags: StoreFlags,
        #[command(flatten)]
        chosen: ChosenArgs,
    },
    /// Remove files for good
    Drop {
        #[command(flatten)]
        flags: StoreFlags,
        #[command(flatten)]
        chosen: ChosenArgs,
        /// Do not ask; without a terminal this is needed
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct KindArgs {
    /// Only files from the source of this name
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only files that broke this rule
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
}

#[derive(Debug, Args)]
struct ChosenArgs {
    /// Sequence numbers, or paths where files lie or whence they came
    #[arg(value_name = "SEQ|PATH", value_parser = OsStringValueParser::new().map(which))]
    #[arg(required_unless_present = "all", conflicts_with_all = ["all", "source", "rule"])]
    these: Vec<Which>,
    /// Everything that lies there, or all of it from one source or that broke one rule
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    kind: KindArgs,
}

impl ChosenArgs {
    fn load(self) -> Chosen {
        match self.all {
            true => Chosen::All(self.kind.filter(None)),
            false => Chosen::These(self.these),
        }
    }
}

impl KindArgs {
    fn filter(self, since_micros: Option<i64>) -> Filter {
        Filter {
            source: self.source,
            rule: self.rule,
            since_micros,
        }
    }
}

impl QuarantineArgs {
    fn load(self, raw: RawSettings) -> Result<Command, SettingsError> {
        let (flags, action) = match self {
            QuarantineArgs::List {
                flags,
                kind,
                since,
                json,
            } => {
                let filter = kind.filter(since);
                (flags, QuarantineAction::List { filter, json })
            }
            QuarantineArgs::Show { flags, which, json } => {
                (flags, QuarantineAction::Show { which, json })
            }
            QuarantineArgs::Retry { flags, chosen } => {
                (flags, QuarantineAction::Retry(chosen.load()))
            }
            QuarantineArgs::Drop { flags, chosen, yes } => {
                let chosen = chosen.load();
                (flags, QuarantineAction::Drop { chosen, yes })
            }
        };
        let loaded = store(raw, flags)?;
        Ok(Command::Quarantine { loaded, action })
    }
}

/// What is all digits is a number; a file of such a name is `./123`.
fn which(word: OsString) -> Which {
    let seq = word.to_str().and_then(|text| text.parse().ok());
    seq.map_or_else(|| Which::Path(word.into()), Which::Seq)
}

fn since(text: &str) -> Result<i64, String> {
    let midnight = || layout::time_micros(&format!("{text}T00:00:00Z"));
    layout::time_micros(text)
        .or_else(midnight)
        .ok_or_else(|| "it is a date (2026-11-23, in UTC) or a time as in RFC 3339".into())
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// How many files to make [default: 10000; with --rate as many as come in --seconds]
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    #[arg(value_parser = value_parser!(u64).range(1..=FILES_MAX))]
    files: Option<u64>,
    /// Bytes of each, 8 at least: 4096, 64KiB, 1GiB
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = file_bytes)]
    size: u64,
    /// How many of a hundred files have the content of an earlier one
    #[arg(long, value_name = "PCT", default_value_t = 0)]
    #[arg(value_parser = value_parser!(u64).range(0..100))]
    duplicates: u64,
    /// Leave the files unsynced, as most writers do [default: synced before ingestion starts]
    #[arg(long)]
    dirty: bool,
    /// Their content is in the page cache; the default
    #[arg(long, conflicts_with = "cold")]
    warm: bool,
    /// Drop their content from the page cache before ingestion starts
    #[arg(long, conflicts_with = "dirty")]
    cold: bool,
    /// The warehouse is on the filesystem of the files, which are renamed; the default
    #[arg(long, conflicts_with = "cross_fs")]
    same_fs: bool,
    /// The warehouse is beneath DIR, on another filesystem: files are copied [default DIR: the first of $TMPDIR, /var/tmp
    /// and /dev/shm that is on another one]
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    cross_fs: Option<Option<PathBuf>>,
    /// Deliver files one by one on a schedule, N a second, and measure from the time at which each should have come
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// For how long files are delivered, with --rate [default: 10, or until all --files have come]
    #[arg(long, value_name = "N", requires = "rate", value_parser = seconds)]
    seconds: Option<f64>,
    /// Where the directory for everything is made, and removed afterwards
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Remove nothing afterwards
    #[arg(long)]
    keep: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten, next_help_heading = "Settings of the ingestion, as for run")]
    flags: IngestFlags,
}

/// What the figures mean, at the end of the long help.
const BENCH_HELP: &str = "\
Files are made in a directory of their own, then taken by `ringest run --once` in a process of its own with the settings
given here; only --mode has another default. With --rate a watching `ringest run` takes them: each is
renamed into place when its time comes, or with --dirty written there and closed.

What is printed:
  rate         files and 10^6 bytes a second, from the start of the process to its end (with --rate: from one interval
               before the time of the first file until the last one was durable)
  processor    seconds in user mode and in the kernel, of that process alone
  memory       most that was resident at once, mapped pages of the ledger included; and most of its own (RssAnon, looked at
               every 50 ms)
  share        how the time of all files from first sight to durable manifest line is divided among the stages; waiting
               is between read and place, until the recorder takes the batch
  latency, ms  settle: from first sight until finished; queue: until a reader takes it; read: reading, hashing, copying;
               place: from the start of its batch until it has its name in the warehouse, with the syncs; commit: until its manifest line is durable;
               total: from finished until then; scheduled: from the time of a file in the schedule until then

--json has the same under names that say their units, in milliseconds, seconds and bytes.";

/// How many files a bench makes if nothing is said.
const FILES_DEFAULT: u64 = 10_000;
/// For how long it delivers them on a schedule.
const SECONDS_DEFAULT: f64 = 10.0;

/// The first of the usual places that is not on the filesystem of `dir`; `dir` if there is none, which is refused then.
fn another_filesystem(dir: &Path) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    let here = device(dir);
    let usual = [std::env::temp_dir(), "/var/tmp".into(), "/dev/shm".into()];
    let is_elsewhere = |path: &PathBuf| device(path).is_some_and(|there| Some(there) != here);
    usual.into_iter().find(is_elsewhere).unwrap_or(dir.into())
}

fn file_bytes(text: &str) -> Result<u64, String> {
    match text.parse()? {
        ByteSize(bytes) if bytes < FILE_BYTES_MIN => Err(format!(
            "a file has {FILE_BYTES_MIN} bytes at least: it begins with its number"
        )),
        ByteSize(bytes) if bytes > i64::MAX as u64 => {
            Err("no filesystem has files of 2^63 bytes".into())
        }
        ByteSize(bytes) => Ok(bytes),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    within(text, 0.001, 1e6)
}

fn seconds(text: &str) -> Result<f64, String> {
    within(text, 0.1, SECONDS_MAX)
}

fn within(text: &str, min: f64, max: f64) -> Result<f64, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("it is a number from {min} to {max}"))
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    flags: FlowFlags,
    /// End when everything present is ingested, set aside or unable to settle
    #[arg(long)]
    once: bool,
    /// Scan once and print what would be done, as JSON lines; touch nothing
    #[arg(long)]
    dry_run: bool,
}

/// Reads the command line and the environment of the process. A command line that makes no sense
/// ends the process here with code 2, `--help` and `--version` with 0.
///
/// # Errors
/// Settings that cannot be used.
pub fn parse() -> Result<Command, SettingsError> {
    let cli = Cli::try_parse().unwrap_or_else(|error| tell(&error));
    cli.load(std::env::vars_os().collect())
}

/// Says what is wrong with a command line, which it quotes, or gives the help that was asked for.
fn tell(error: &clap::Error) -> ! {
    if !error.use_stderr() {
        error.exit();
    }
    let text = error.render();
    let text = match io::stderr().is_terminal() {
        true => text.ansi().to_string(),
        false => text.to_string(),
    };
    // Nobody may be at the terminal any more.
    let _ = io::stderr().write_all(mask(&text).as_bytes());
    std::process::exit(error.exit_code());
}

impl Cli {
    /// Resolves the settings of the command, with these variables as the environment.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn load(self, environment: Vec<(OsString, OsString)>) -> Result<Command, SettingsError> {
        let raw = RawSettings {
            config: self.config,
            trust_config: self.trust_config,
            environment,
            ..RawSettings::default()
        };
        match self.command {
            Subcommands::Run(run) => Ok(Command::Run(flow(raw, run)?)),
            Subcommands::Check {
                run,
                file,
                source,
                json,
            } => {
                let loaded = flow(raw, run)?;
                Ok(match file {
                    None => Command::Check { loaded, json },
                    Some(file) => Command::CheckFile {
                        loaded,
                        file,
                        source,
                        json,
                    },
                })
            }
            Subcommands::Status { flags, json } => Ok(Command::Status {
                loaded: store(raw, flags)?,
                json,
            }),
            Subcommands::Find { flags, query, json } => Ok(Command::Find {
                loaded: store(raw, flags)?,
                query,
                json,
            }),
            Subcommands::Verify { flags, deep, json } => Ok(Command::Verify {
                loaded: store(raw, flags)?,
                deep,
                json,
            }),
            Subcommands::Rebuild { flags, deep, json } => {
                let run = RunArgs {
                    flags,
                    once: false,
                    dry_run: false,
                };
                let loaded = flow(raw, run)?;
                Ok(Command::Rebuild { loaded, deep, json })
            }
            Subcommands::Quarantine(args) => args.load(raw),
            Subcommands::Bench(args) => args.load(raw),
            Subcommands::Backup { flags, to, json } => Ok(Command::Backup {
                loaded: store(raw, flags)?,
                to,
                json,
            }),
        }
    }
}

fn flow(raw: RawSettings, run: RunArgs) -> Result<Loaded, SettingsError> {
    let RunArgs {
        flags: FlowFlags(flags),
        once,
        dry_run,
    } = run;
    RawSettings {
        flags,
        once,
        dry_run,
        ..raw
    }
    .resolve(Purpose::Flow)
}

fn store(raw: RawSettings, StoreFlags(flags): StoreFlags) -> Result<Loaded, SettingsError> {
    RawSettings { flags, ..raw }.resolve(Purpose::Store)
}

impl BenchArgs {
    fn load(self, raw: RawSettings) -> Result<Command, SettingsError> {
        // Its own directories take the place of those that a file or the environment may name.
        // Process IDs alone come again, in a container with each start.
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = since.unwrap_or_default().as_secs();
        let name = format!("ringest-bench-{seconds}-{}", std::process::id());
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let root = absolute(&self.dir).join(&name);
        let elsewhere = self
            .cross_fs
            .as_ref()
            .map(|dir| match dir {
                Some(dir) => absolute(dir),
                None => another_filesystem(&absolute(&self.dir)),
            })
            .map(|dir| dir.join(format!("{name}-warehouse")));
        let IngestFlags(mut flags) = self.flags;
        let directories = [
            ("input", root.join("staging")),
            (
                "warehouse",
                elsewhere.as_ref().unwrap_or(&root).join("warehouse"),
            ),
            ("manifests", root.join("manifests")),
            ("state_path", root.join("state")),
        ];
        flags.extend(directories.map(|(key, path)| (key, vec![path.into()])));
        for (key, word) in [
            ("log_level", "info"),
            ("log_format", "json"),
            ("log_to_console", "true"),
        ] {
            flags.insert(key, vec![word.into()]);
        }
        let loaded = |flags: &Words| {
            let (config, environment) = (raw.config.clone(), raw.environment.clone());
            RawSettings {
                flags: flags.clone(),
                config,
                environment,
                trust_config: raw.trust_config,
                ..RawSettings::default()
            }
            .resolve(Purpose::Flow)
        };
        let mut settled = loaded(&flags)?;
        if settled.settings.log_dir.is_some() {
            // Those of a settings file are the service's.
            flags.insert("log_dir", vec![root.join("logs").into()]);
            settled = loaded(&flags)?;
        }
        let unsaid = |setting: &Setting| setting.key == "mode" && setting.origin == Origin::Default;
        if settled.origins.iter().any(unsaid) {
            // The files are finished when ingestion starts; holding still for seconds would be all that is measured.
            flags.insert("mode", vec![Mode::Closed.as_str().into()]);
            settled = loaded(&flags)?;
        }

        let pace = self.rate.map(|rate| Pace {
            rate,
            seconds: match self.files {
                Some(files) => files as f64 / rate,
                None => self.seconds.unwrap_or(SECONDS_DEFAULT),
            },
        });
        let of_key = |key: &'static str, words: Vec<OsString>| {
            let name = key.replace('_', "-");
            words.into_iter().map(move |word| bench::flag(&name, word))
        };
        // That of a settings file is the service's.
        let hlog = flags.remove("hlog").and(settled.settings.hlog.clone());
        let config = raw.config.iter().map(|path| bench::flag("config", path));
        let trust = raw.trust_config.then(|| "--trust-config".into());
        let words = flags
            .into_iter()
            .flat_map(|(key, words)| of_key(key, words));
        let bench = Bench {
            data: DataSet {
                files: match pace {
                    Some(pace) => pace.files(),
                    None => self.files.unwrap_or(FILES_DEFAULT),
                },
                file_bytes: self.size,
                duplicates_percent: self.duplicates,
                dirty: self.dirty,
                cold: self.cold,
            },
            pace,
            root,
            elsewhere,
            keep: self.keep,
            hlog,
            arguments: config.chain(trust).chain(words).collect(),
            settings: settled.settings,
        };
        Ok(Command::Bench {
            bench: Box::new(bench),
            json: self.json,
        })
    }
}

/// The flags of `run`: one for each setting.
#[derive(Debug)]
struct FlowFlags(Words);

/// The flags of `run` that a bench passes on.
#[derive(Debug)]
struct IngestFlags(Words);

/// The flags that say where things are stored.
#[derive(Debug)]
struct StoreFlags(Words);

fn flow_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter()
}

/// It has directories of its own, and reads the log.
fn ingest_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| {
        !matches!(key.kind, Kind::Directory | Kind::Directories) && !key.name.starts_with("log_")
    })
}

fn store_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter()
        .filter(|key| matches!(key.kind, Kind::Directory) && !key.per_source)
}

macro_rules! flags_from_registry {
    ($flags:ident, $keys:ident) => {
        impl Args for $flags {
            fn augment_args(command: clap::Command) -> clap::Command {
                command.args($keys().map(flag))
            }

            fn augment_args_for_update(command: clap::Command) -> clap::Command {
                Self::augment_args(command)
            }
        }

        impl FromArgMatches for $flags {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(given(matches, $keys())))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0.extend(given(matches, $keys()));
                Ok(())
            }
        }
    };
}

flags_from_registry!(FlowFlags, flow_keys);
flags_from_registry!(IngestFlags, ingest_keys);
flags_from_registry!(StoreFlags, store_keys);

fn flag(key: &'static Key) -> Arg {
    let kind = key.kind;
    let arg = Arg::new(key.name)
        .long(key.flag())
        .value_name(key.value_name)
        .help(key.help)
        .hide(key.hidden)
        .default_values(key.default)
        // A negative number is then told to be out of range, not to be an unknown flag.
        .allow_negative_numbers(true)
        .action(if kind.is_list() {
            ArgAction::Append
        } else {
            ArgAction::Set
        });
    match kind {
        Kind::Choice(values) => arg.value_parser(PossibleValuesParser::new(values())),
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(["true", "false"])
            .hide_possible_values(true),
        _ => arg.value_parser(
            OsStringValueParser::new().try_map(move |word| kind.check(&word).map(|()| word)),
        ),
    }
}

/// What was typed, without what clap filled in: whose default it is stays for the settings to say.
fn given(matches: &ArgMatches, keys: impl Iterator<Item = &'static Key>) -> Words {
    keys.filter(|key| matches.value_source(key.name) == Some(ValueSource::CommandLine))
        .filter_map(|key| {
            let words = matches.get_raw(key.name)?.map(Into::into).collect();
            Some((key.name, words))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn load(line: &str) -> Result<Command, SettingsError> {
        Cli::try_parse_from(line.split(' '))
            .unwrap()
            .load(Vec::new())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_of_run_and_the_stores_are_flags_of_all() {
        let mut command = Cli::command();
        command.build();
        let flags = |name: &str| -> Vec<String> {
            let found = command.find_subcommand(name).unwrap().get_arguments();
            found
                .filter_map(|arg| arg.get_long().map(Into::into))
                .collect()
        };
        for key in KEYS {
            assert!(flags("run").contains(&key.flag()), "{}", key.name);
            assert!(flags("check").contains(&key.flag()), "{}", key.name);
            assert!(flags("rebuild").contains(&key.flag()), "{}", key.name);
        }
        for name in ["status", "find", "verify", "backup"] {
            let mut own = flags(name);
            own.retain(|flag| !["deep", "help"].contains(&&flag[..]));
            own.sort();
            assert_eq!(
                own,
                [
                    "config",
                    "json",
                    "manifests",
                    "state-path",
                    "trust-config",
                    "warehouse"
                ],
                "{name}"
            );
        }
    }

    #[test]
    fn flags_become_settings() {
        let line =
            "ringest run --input /in --input /in2 --recursive --once --stability-seconds 0.5";
        let Command::Run(Loaded { settings, .. }) = load(line).unwrap() else {
            panic!("run")
        };
        assert_eq!(settings.sources.len(), 2);
        assert!(settings.sources[1].recursive && settings.once && !settings.dry_run);
        assert_eq!(settings.sources[0].stability.as_millis(), 500);
        let line = "ringest check --recursive=false --json";
        let Command::Check { loaded, json: true } = load(line).unwrap() else {
            panic!("check")
        };
        assert!(!loaded.settings.sources[0].recursive);
        let line = "ringest check --file a.csv --source x --input /in --json";
        let Command::CheckFile { file, source, .. } = load(line).unwrap() else {
            panic!("check --file")
        };
        assert_eq!((file, source), ("a.csv".into(), Some("x".into())));
        let line = "ringest find --warehouse /w a.csv";
        let Command::Find { loaded, query, .. } = load(line).unwrap() else {
            panic!("find")
        };
        assert_eq!(loaded.settings.warehouse, PathBuf::from("/w"));
        assert_eq!(query, "a.csv");
    }

    #[test]
    fn files_in_quarantine_are_named_by_number_by_path_or_by_kind() {
        let action = |line: &str| match load(line).unwrap() {
            Command::Quarantine { action, .. } => action,
            other => panic!("{other:?}"),
        };
        let filter = Filter {
            source: Some("a".into()),
            rule: Some("utf8".into()),
            since_micros: Some(1_795_392_000_000_000),
        };
        let line = "ringest quarantine list --source a --rule utf8 --since 2026-11-23 --json";
        assert_eq!(action(line), QuarantineAction::List { filter, json: true });
        let these = ["7", "./7", "-1"].map(|word| which(word.into()));
        let paths = ["./7", "-1"].map(|path| Which::Path(path.into()));
        assert_eq!(these, [[Which::Seq(7)].as_slice(), &paths].concat()[..]);
        let all = |line: &str| match action(line) {
            QuarantineAction::Drop { chosen, yes: true } => chosen,
            other => panic!("{other:?}"),
        };
        let filter = Filter {
            rule: Some("utf8".into()),
            ..Filter::default()
        };
        assert_eq!(
            all("ringest quarantine drop --all --rule utf8 --yes"),
            Chosen::All(filter)
        );
        let flagged = "ringest quarantine retry --warehouse /w 1 a.csv";
        let Command::Quarantine { loaded, action } = load(flagged).unwrap() else {
            panic!("quarantine")
        };
        assert_eq!(loaded.settings.warehouse, PathBuf::from("/w"));
        let these = vec![Which::Seq(1), Which::Path("a.csv".into())];
        assert_eq!(action, QuarantineAction::Retry(Chosen::These(these)));
    }

    #[test]
    fn a_bench_passes_settings_on_and_has_directories_of_its_own() {
        let load = |line: &str| match load(line).unwrap() {
            Command::Bench { bench, .. } => bench,
            other => panic!("{other:?}"),
        };
        let bench =
            load("ringest bench --dir /d --concurrency 2 --include *.dat --include x --hlog /h");
        assert!(bench.root.starts_with("/d") && bench.root != Path::new("/d"));
        for flag in [
            "--concurrency=2",
            "--include=*.dat",
            "--include=x",
            "--mode=closed",
        ] {
            assert!(bench.arguments.contains(&flag.into()), "{flag}");
        }
        let source = &bench.settings.sources[0];
        assert_eq!(source.input, bench.root.join("staging"));
        assert_eq!(source.mode, Mode::Closed);
        assert_eq!(bench.settings.warehouse, bench.root.join("warehouse"));
        // The bench's own log of latencies is another file.
        assert_eq!(bench.hlog, Some("/h".into()));
        assert!(
            !bench
                .arguments
                .iter()
                .any(|it| it.to_string_lossy().contains("hlog"))
        );

        let bench = load("ringest bench --mode stability --cross-fs /e --rate 100 --seconds 3");
        assert_eq!(bench.settings.sources[0].mode, Mode::Stability);
        assert!(bench.settings.warehouse.starts_with("/e"));
        assert_eq!(bench.data.files, 300);
    }

    #[test]
    fn what_makes_no_sense_ends_with_code_2() {
        for line in [
            "ringest",
            "ringest fly",
            "ringest run --concurrency -1",
            "ringest run --concurrency 0",
            "ringest run --stability-seconds -3",
            "ringest run --stability-seconds soon",
            "ringest run --batch-files 70000",
            "ringest run --mode close",
            "ringest run --include a[",
            "ringest run --recursive=perhaps",
            "ringest run --warehouse=",
            "ringest check --source a",
            "ringest check --file",
            "ringest run --file a.csv",
            "ringest status --input /in",
            "ringest find",
            "ringest backup",
            "ringest rebuild --once",
            "ringest quarantine",
            "ringest quarantine list --since yesterday",
            "ringest quarantine show",
            "ringest quarantine retry",
            "ringest quarantine retry 1 --all",
            "ringest quarantine retry 1 --rule utf8",
            "ringest quarantine drop --rule utf8",
            "ringest quarantine drop --yes",
            "ringest bench --files 0",
            "ringest bench --size 7",
            "ringest bench --size huge",
            "ringest bench --duplicates 100",
            "ringest bench --rate 0",
            "ringest bench --rate NaN",
            "ringest bench --seconds 3",
            "ringest bench --rate 5 --seconds 5 --files 5",
            "ringest bench --warm --cold",
            "ringest bench --dirty --cold",
            "ringest bench --same-fs --cross-fs /tmp",
            "ringest bench --warehouse /w",
            "ringest bench --log-level off",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn directories_in_one_another_end_with_code_78() {
        let error = load("ringest run --input /in --warehouse /in/w").unwrap_err();
        assert_eq!(error.exit_code(), 78);
    }
}
