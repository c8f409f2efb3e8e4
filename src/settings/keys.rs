//! The registry of settings: one row gives the flag `--a-b`, the variable `RINGEST_A_B`, the key
//! `a_b` of the file, the default, the limits and the help.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde_json::Value;

use super::choices::{
    Content, CopyMethod, Dedupe, Durability, EmptyPolicy, IoChoice, IoPriority, LeasePolicy,
    LogFormat, LogLevel, Mode, OnDuplicate, Order, PlacedOwner, ReadMethod,
};
use super::layout::{self, TemplateFor};
use super::{content, rules};

/// Longest time any setting may hold, in seconds: a day. More is a typing error.
pub const SECONDS_MAX: f64 = 86_400.0;
/// Shortest time between two scans or summaries, in seconds: less would be a busy loop.
pub const INTERVAL_SECONDS_MIN: f64 = 0.1;
/// Most reader threads.
pub const READERS_MAX: usize = 1024;
/// Most files in one commit: what one ledger transaction holds in memory stays small.
pub const BATCH_FILES_MAX: usize = 65_536;

/// Shortest time for a command that checks a file, in seconds: less than starting it may take.
pub const CHECK_SECONDS_MIN: f64 = 0.1;
/// Most commands that check files of one source at a time.
pub const CHECKS_MAX: usize = 256;

/// Most log files of one kind.
pub const LOG_FILES_MAX: usize = 1000;

/// Most streams that are hashed in lockstep: more have nothing left to fill.
pub const HASH_LANES_MAX: usize = 4;

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// As in the file: `stability_seconds`.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether each source can have its own.
    pub per_source: bool,
    /// As it would be typed.
    pub default: &'static [&'static str],
    /// Stands for the value in the help.
    pub value_name: &'static str,
    /// Kept out of the help.
    pub hidden: bool,
    /// One line.
    pub help: &'static str,
}

/// What a setting holds.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A directory, made when it is missing.
    Directory,
    /// Several directories.
    Directories,
    /// A file or a directory that there need not be.
    File,
    /// True or false.
    Switch,
    /// A number of threads, or `auto`.
    Readers,
    /// A number of files, from 1.
    Files {
        /// The most.
        max: usize,
    },
    /// A number of streams, from 1.
    Lanes,
    /// A time in seconds; fractions are allowed.
    Seconds {
        /// The least.
        min: f64,
    },
    /// A number, from 0.
    Number,
    /// A number of bytes, with or without a unit.
    Bytes,
    /// An ASCII character; `tab` for a tab.
    Character,
    /// The same, or `none`.
    CharacterOrNone,
    /// A name: any text.
    Name,
    /// Names.
    Names,
    /// A command and its arguments.
    Words,
    /// Variables of the environment, with or without their values.
    Variables,
    /// A number of processes, from 1.
    Processes {
        /// The most.
        max: usize,
    },
    /// One of a few words.
    Choice(fn() -> Vec<PossibleValue>),
    /// The end of a sidecar's name.
    SidecarSuffix,
    /// Ends of names.
    Suffixes,
    /// Globs for relative paths.
    Globs,
    /// Text with placeholders.
    Template(TemplateFor),
    /// Permissions, in octal digits.
    FileMode,
    /// A group's name or number.
    Group,
    /// The name of an encoding.
    Encoding,
}

fn words<T: ValueEnum>() -> Vec<PossibleValue> {
    T::value_variants()
        .iter()
        .filter_map(ValueEnum::to_possible_value)
        .collect()
}

const fn of_flow(
    name: &'static str,
    kind: Kind,
    default: &'static [&'static str],
    value_name: &'static str,
    help: &'static str,
) -> Key {
    Key {
        name,
        kind,
        per_source: false,
        default,
        value_name,
        hidden: false,
        help,
    }
}

const fn of_source(
    name: &'static str,
    kind: Kind,
    default: &'static [&'static str],
    value_name: &'static str,
    help: &'static str,
) -> Key {
    Key {
        name,
        kind,
        per_source: true,
        default,
        value_name,
        hidden: false,
        help,
    }
}

const fn hidden(key: Key) -> Key {
    Key {
        hidden: true,
        ..key
    }
}

/// Every setting, in the order of the help.
pub static KEYS: &[Key] = &[
    of_flow(
        "input",
        Kind::Directories,
        &["./staging"],
        "DIR",
        "Staging directory to take files from; repeat it for several",
    ),
    of_flow(
        "warehouse",
        Kind::Directory,
        &["./warehouse"],
        "DIR",
        "Root of the warehouse, where files are placed by date",
    ),
    of_flow(
        "manifests",
        Kind::Directory,
        &["./manifests"],
        "DIR",
        "Root of the JSONL manifests",
    ),
    of_flow(
        "state_path",
        Kind::Directory,
        &["./state"],
        "DIR",
        "Directory of the ledger, the lock and the control socket",
    ),
    of_source(
        "mode",
        Kind::Choice(words::<Mode>),
        &["stability"],
        "MODE",
        "How a file is recognised as finished",
    ),
    of_source(
        "stability_seconds",
        Kind::Seconds { min: 0.0 },
        &["5"],
        "N",
        "How long size, mtime and ctime must hold still, in seconds; fractions are allowed",
    ),
    of_source(
        "sidecar_suffix",
        Kind::SidecarSuffix,
        &[".ok"],
        "SUFFIX",
        "What a file's name and this name its sidecar",
    ),
    of_source(
        "lease",
        Kind::Choice(words::<LeasePolicy>),
        &["auto"],
        "POLICY",
        "Whether read leases prove that nobody is writing",
    ),
    of_flow(
        "rescan_seconds",
        Kind::Seconds {
            min: INTERVAL_SECONDS_MIN,
        },
        &["60"],
        "N",
        "Time between two full scans of the staging directories, in seconds; up to ten times that where inotify watches all \
         of them and a scan takes long",
    ),
    of_source(
        "recursive",
        Kind::Switch,
        &["false"],
        "BOOL",
        "Take files of subdirectories too, keeping relative directories",
    ),
    of_source(
        "include",
        Kind::Globs,
        &[],
        "GLOB",
        "Take only files that match; without a '/' it matches names in any directory; repeatable \
         [default: all]",
    ),
    of_source(
        "exclude",
        Kind::Globs,
        &[],
        "GLOB",
        "Never take files that match; repeatable [default: none]",
    ),
    hidden(of_source(
        "ignore_suffixes",
        Kind::Suffixes,
        super::DEFAULT_IGNORE_SUFFIXES,
        "SUFFIX",
        "Ends of names that mark unfinished files, in place of the default ones; repeatable",
    )),
    of_source(
        "empty",
        Kind::Choice(words::<EmptyPolicy>),
        &["ingest"],
        "POLICY",
        "What to do with empty files",
    ),
    of_source(
        "order",
        Kind::Choice(words::<Order>),
        &["arrival"],
        "ORDER",
        "In which order files that are finished at the same time get their numbers and manifest lines",
    ),
    of_source(
        "dedupe",
        Kind::Choice(words::<Dedupe>),
        &["global"],
        "SCOPE",
        "What makes a file a duplicate of another",
    ),
    of_source(
        "on_duplicate",
        Kind::Choice(words::<OnDuplicate>),
        &["move"],
        "ACTION",
        "What becomes of a duplicate",
    ),
    of_source(
        "content",
        Kind::Choice(words::<Content>),
        &["any"],
        "FORMAT",
        "What files hold; what they do not hold well is set aside",
    ),
    of_source(
        "encoding",
        Kind::Encoding,
        &["utf-8"],
        "NAME",
        "How text is written",
    ),
    of_source(
        "extensions",
        Kind::Suffixes,
        &[],
        "SUFFIX",
        "Ends of names; a file with another one is set aside; repeatable [default: all]",
    ),
    of_source(
        "max_file_size",
        Kind::Bytes,
        &["0"],
        "SIZE",
        "Larger files are set aside: 500000, 20MB, 1GiB; 0 is no limit",
    ),
    of_source(
        "min_file_size",
        Kind::Bytes,
        &["0"],
        "SIZE",
        "Smaller files are set aside",
    ),
    of_source(
        "csv_delimiter",
        Kind::Character,
        &[","],
        "CHAR",
        "What is between two fields of CSV; tab for a tab",
    ),
    of_source(
        "csv_quote",
        Kind::CharacterOrNone,
        &["\""],
        "CHAR|none",
        "What is around fields of CSV that hold delimiters or ends of lines",
    ),
    of_source(
        "csv_header",
        Kind::Switch,
        &["true"],
        "BOOL",
        "Whether the first record of CSV names the columns; no two have the same name then",
    ),
    of_source(
        "required_columns",
        Kind::Names,
        &[],
        "NAME",
        "Columns that CSV has to have; repeatable [default: none]",
    ),
    of_source(
        "key_column",
        Kind::Name,
        &[],
        "NAME",
        "A column that CSV has to have, and that is empty in no record [default: none]",
    ),
    of_source(
        "min_records",
        Kind::Number,
        &["0"],
        "N",
        "Least records of CSV, without the header",
    ),
    of_source(
        "json_schema",
        Kind::File,
        &[],
        "FILE",
        "A JSON Schema (2020-12) that JSON documents and lines have to agree with [default: none]",
    ),
    of_source(
        "check_command",
        Kind::Words,
        &[],
        "WORD",
        "A program, by its path or its name in PATH, and its arguments; it is run without a shell for each file that keeps all \
         other rules, with the open file (/proc/self/fd/N) as last argument, and accepts it by exit code 0; repeatable \
         [default: none]",
    ),
    of_source(
        "check_environment",
        Kind::Variables,
        &[],
        "NAME[=VALUE]",
        "Variables for check_command beside PATH, LANG and RINGEST_CHECK_…; repeatable [default: none]",
    ),
    of_source(
        "mask_fields",
        Kind::Names,
        &[],
        "FIELD",
        "Columns of CSV, or JSON pointers, whose values are masked in what check_command writes, before it becomes a reason; \
         nothing else that is told of a file quotes it; repeatable [default: none]",
    ),
    of_source(
        "check_timeout_seconds",
        Kind::Seconds {
            min: CHECK_SECONDS_MIN,
        },
        &["60"],
        "N",
        "How long check_command may take for a file; then it is killed, and the file set aside",
    ),
    of_source(
        "check_concurrency",
        Kind::Processes { max: CHECKS_MAX },
        &["2"],
        "N",
        "How many processes of check_command each source has at a time",
    ),
    of_source(
        "partition",
        Kind::Template(TemplateFor::Partition),
        &[layout::PARTITION],
        "TEMPLATE",
        "Directory beneath the warehouse that files are placed in; {date}, {year}, {month}, {day}, {hour} (UTC), {source}; \
         empty for none",
    ),
    of_source(
        "placed_name",
        Kind::Template(TemplateFor::PlacedName),
        &[layout::PLACED_NAME],
        "TEMPLATE",
        "What files are called there: {name}, and {timestamp} (20261123T104501.123) or as for partition",
    ),
    of_source(
        "quarantine_dir",
        Kind::Template(TemplateFor::QuarantineDir),
        &[layout::QUARANTINE_DIR],
        "TEMPLATE",
        "Directory beneath the warehouse that files are set aside in which break a rule; also {partition}",
    ),
    of_source(
        "claim_dir",
        Kind::Directory,
        &[],
        "DIR",
        "Directory that a settled file is moved to before it is read, on the filesystem of the input [default: none]",
    ),
    of_source(
        "placed_mode",
        Kind::FileMode,
        &[],
        "MODE",
        "Permissions that files are placed with: 0640 [default: their own]",
    ),
    of_source(
        "placed_owner",
        Kind::Choice(words::<PlacedOwner>),
        &["keep"],
        "OWNER",
        "Owner of placed files",
    ),
    of_source(
        "placed_group",
        Kind::Group,
        &[],
        "GROUP",
        "Group that files are placed with, a name or a number [default: their own]",
    ),
    of_flow(
        "concurrency",
        Kind::Readers,
        &["auto"],
        "N|auto",
        "How many readers; auto finds out from what gets done",
    ),
    of_flow(
        "max_bytes_per_second",
        Kind::Bytes,
        &["0"],
        "SIZE",
        "Most that all readers together read in a second: 500000, 20MB, 1GiB; 0 is no limit",
    ),
    of_flow(
        "io_priority",
        Kind::Choice(words::<IoPriority>),
        &["normal"],
        "PRIORITY",
        "How readers compete with others for the disk, under I/O schedulers that care",
    ),
    of_flow(
        "durability",
        Kind::Choice(words::<Durability>),
        &["full"],
        "LEVEL",
        "Whether commits reach the disk before they are acknowledged",
    ),
    of_flow(
        "io",
        Kind::Choice(words::<IoChoice>),
        &["auto"],
        "INTERFACE",
        "Which interface of the kernel the readers use",
    ),
    of_flow(
        "copy_method",
        Kind::Choice(words::<CopyMethod>),
        &["auto"],
        "METHOD",
        "How bytes reach a warehouse on another filesystem",
    ),
    of_flow(
        "read_method",
        Kind::Choice(words::<ReadMethod>),
        &["auto"],
        "METHOD",
        "How readers read",
    ),
    of_flow(
        "min_free_bytes",
        Kind::Bytes,
        &["0"],
        "SIZE",
        "Pause while less than this is free for warehouse, manifests or state: 4096, 500MB, 1GiB",
    ),
    of_flow(
        "metrics_interval",
        Kind::Seconds {
            min: INTERVAL_SECONDS_MIN,
        },
        &["10"],
        "N",
        "Time between two summary events, in seconds",
    ),
    of_flow(
        "hlog",
        Kind::File,
        &[],
        "FILE",
        "Append the latencies of every metrics interval to FILE, in microseconds with a tag for \
         each stage, as an interval log that HdrHistogram's tools read [default: none]",
    ),
    of_flow(
        "log_level",
        Kind::Choice(words::<LogLevel>),
        &["info"],
        "LEVEL",
        "Least severe level that is logged",
    ),
    of_flow(
        "log_format",
        Kind::Choice(words::<LogFormat>),
        &["json"],
        "FORMAT",
        "Shape of the log lines on stderr",
    ),
    of_flow(
        "log_to_console",
        Kind::Switch,
        &["true"],
        "BOOL",
        "Whether the log goes to stderr; without it, it has to go to log_dir",
    ),
    of_flow(
        "log_dir",
        Kind::File,
        &[],
        "DIR",
        "Directory of log files: app.log at the log level, error.log, debug.log, as JSON lines; \
         reopened on SIGUSR1 [default: none]",
    ),
    of_flow(
        "log_file_bytes",
        Kind::Bytes,
        &["1MiB"],
        "SIZE",
        "A log file that would be larger is renamed to .1, that one to .2, …; 0: never",
    ),
    of_flow(
        "log_files",
        Kind::Files { max: LOG_FILES_MAX },
        &["5"],
        "N",
        "How many log files there are of each, with the one that is written; the oldest is replaced",
    ),
    hidden(of_flow(
        "batch_files",
        Kind::Files {
            max: BATCH_FILES_MAX,
        },
        &["4096"],
        "N",
        "Most files in one commit",
    )),
    hidden(of_flow(
        "hash_lanes",
        Kind::Lanes,
        &["3"],
        "N",
        "How many streams a reader hashes in lockstep, where the CPU can; for comparisons",
    )),
];

impl Key {
    /// The row of that name, as written in the file.
    pub fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// `stability-seconds`, without the dashes in front.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// `RINGEST_STABILITY_SECONDS`.
    pub fn variable(&self) -> String {
        format!("RINGEST_{}", self.name.to_uppercase())
    }
}

impl Kind {
    /// Whether it can be given more than once.
    pub fn is_list(self) -> bool {
        matches!(
            self,
            Self::Directories
                | Self::Suffixes
                | Self::Globs
                | Self::Names
                | Self::Words
                | Self::Variables
        )
    }

    /// Whether one value is well formed and within its limits.
    ///
    /// # Errors
    /// What it should be instead.
    pub fn check(self, word: &OsStr) -> Result<(), String> {
        if let Self::Directory | Self::Directories | Self::File = self {
            return match word.as_bytes() {
                [] => Err("a path cannot be empty; '.' is the working directory".into()),
                bytes if bytes.contains(&0) => Err("a path cannot hold a NUL".into()),
                _ => Ok(()),
            };
        }
        let text = word.to_str().ok_or("it is not valid UTF-8")?;
        match self {
            Self::Directory | Self::Directories | Self::File => Ok(()),
            Self::Switch => match text {
                "true" | "false" => Ok(()),
                _ => Err("it is true or false".into()),
            },
            Self::Readers => match text.parse() {
                Ok(1..=READERS_MAX) => Ok(()),
                _ if text == "auto" => Ok(()),
                _ => Err(format!("it is a number from 1 to {READERS_MAX}, or auto")),
            },
            Self::Files { max } => match text.parse::<usize>() {
                Ok(files) if (1..=max).contains(&files) => Ok(()),
                _ => Err(format!("it is a number of files from 1 to {max}")),
            },
            Self::Processes { max } => match text.parse::<usize>() {
                Ok(processes) if (1..=max).contains(&processes) => Ok(()),
                _ => Err(format!("it is a number of processes from 1 to {max}")),
            },
            Self::Lanes => match text.parse() {
                Ok(1..=HASH_LANES_MAX) => Ok(()),
                _ => Err(format!("it is a number from 1 to {HASH_LANES_MAX}")),
            },
            Self::Seconds { min } => match text.parse::<f64>() {
                // Not a number is in no range either.
                Ok(seconds) if (min..=SECONDS_MAX).contains(&seconds) => Ok(()),
                _ => Err(format!(
                    "it is a number of seconds from {min} to {SECONDS_MAX} (a day)"
                )),
            },
            Self::Number => match text.parse::<u64>() {
                Ok(_) => Ok(()),
                Err(_) => Err("it is a whole number, from 0".into()),
            },
            Self::CharacterOrNone if text == "none" => Ok(()),
            Self::Character | Self::CharacterOrNone => match content::character(text) {
                Some(_) => Ok(()),
                None => Err("it is one ASCII character that ends no line, or the word tab".into()),
            },
            Self::Name | Self::Names if text.is_empty() => Err("a name cannot be empty".into()),
            Self::Name | Self::Names => Ok(()),
            Self::Words if text.contains('\0') => Err("a word cannot hold a NUL".into()),
            Self::Words => Ok(()),
            Self::Variables => content::variable(text),
            Self::Bytes => text
                .parse::<super::size::ByteSize>()
                .map(drop)
                .map_err(String::from),
            Self::Choice(values) => {
                let values = values();
                if values.iter().any(|value| value.matches(text, false)) {
                    return Ok(());
                }
                let names: Vec<_> = values.iter().map(PossibleValue::get_name).collect();
                Err(format!("it is one of {}", names.join(", ")))
            }
            Self::SidecarSuffix => match text.strip_prefix('.') {
                Some(rest) if !rest.is_empty() && !text.contains(['/', '\0']) => Ok(()),
                _ => Err("it begins with a '.', goes on, and holds no '/': .ok".into()),
            },
            Self::Suffixes if text.is_empty() || text.contains('/') => {
                Err("it is the end of a name: not empty, no '/'".into())
            }
            Self::Suffixes => Ok(()),
            Self::Globs => rules::glob(text).map(drop),
            Self::Template(what) => what.check(text),
            Self::FileMode => layout::mode(text).map(drop),
            Self::Group => layout::group(text).map(drop),
            Self::Encoding => text.parse::<super::Encoding>().map(drop),
        }
    }

    /// Checked values as JSON, paths absolute.
    pub(super) fn show(self, words: &[OsString]) -> Value {
        let one = |word: &OsString| {
            let text = word.to_string_lossy();
            match self {
                Self::Directory | Self::Directories | Self::File => {
                    absolute(Path::new(word)).to_string_lossy().into()
                }
                Self::Switch => Value::Bool(text == "true"),
                // A value may be a secret.
                Self::Variables => match text.split_once('=') {
                    Some((name, _)) => format!("{name}=…").into(),
                    None => text.into(),
                },
                Self::Bytes => text
                    .parse()
                    .map_or_else(|_| text.into(), |size: super::size::ByteSize| size.0.into()),
                Self::Readers
                | Self::Files { .. }
                | Self::Processes { .. }
                | Self::Lanes
                | Self::Number
                | Self::Seconds { .. } => text
                    .parse::<u64>()
                    .map(Value::from)
                    .or_else(|_| text.parse::<f64>().map(Value::from))
                    .unwrap_or_else(|_| text.into()),
                _ => text.into(),
            }
        };
        match words {
            [word] if !self.is_list() => one(word),
            [] if !self.is_list() => Value::Null,
            words => words.iter().map(one).collect(),
        }
    }
}

/// Absolute, without `.` and trailing slashes. Symlinks and `..` stay: the user's own names appear
/// in the manifest.
pub(super) fn absolute(path: &Path) -> PathBuf {
    // It fails on an empty path, which `check` refuses, and without a working directory; then the
    // relative path is what can be shown, and opening it says the rest.
    std::path::absolute(path)
        .unwrap_or_else(|_| path.into())
        .components()
        .collect()
}
