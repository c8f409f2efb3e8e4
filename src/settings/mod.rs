//! Settings: what the flow runs by, once flags, environment, file and defaults have been merged.
//!
//! Nothing downstream of this module sees a raw flag: [`Settings`] is complete, absolute and checked.
//!
//! A flag wins over its variable (`--state-path`, `RINGEST_STATE_PATH`; lists are separated by
//! colons), that over the file named by `--config` or `RINGEST_CONFIG`, that over the default. The
//! file is TOML, or JSON when it is named `.json` or begins with `{`. Its keys are the flags with
//! underscores; `[[source]]` blocks hold `name`, `input` and any key of a source, for which the keys
//! above them are the defaults. Relative paths, in the file too, start at the working directory.
//! What others than root and this user may write is not believed (`trust.rs`).

mod choices;
mod content;
mod encoding;
mod error;
mod keys;
mod layout;
mod overlap;
mod raw;
#[cfg(test)]
mod reference;
mod resolve;
mod rules;
mod schema;
mod size;
#[cfg(test)]
mod tests;
mod trust;

use std::path::PathBuf;
use std::time::Duration;

use globset::GlobSet;

pub use choices::{
    Concurrency, Content, CopyMethod, Dedupe, Disable, Durability, EmptyPolicy, IoChoice,
    IoPriority, LeasePolicy, LogFormat, LogLevel, Mode, NotAChoice, OnDuplicate, Order,
    PlacedOwner, ReadMethod,
};
pub use content::{CHECK_VARIABLES, CommandRule, ContentRules, CsvRules, MaskedFields};
pub use encoding::Encoding;
pub use error::SettingsError;
pub use keys::{
    BATCH_FILES_MAX, HASH_LANES_MAX, INTERVAL_SECONDS_MIN, KEYS, Key, Kind, LOG_FILES_MAX,
    READERS_MAX, SECONDS_MAX,
};
pub use layout::{Field, Layout, Piece, RESERVED_NAMES, Template, TemplateFor};
pub use raw::{CONFIG_VARIABLE, DISABLE_VARIABLE, RawSettings, TRUST_VARIABLE, Words};
pub use resolve::{Loaded, Origin, Purpose, Setting};
pub use rules::IgnoreReason;
pub use schema::Schema;
pub use size::ByteSize;

/// Everything a command needs to know, resolved. All paths are absolute.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The staging directories, in the order given. Never empty.
    pub sources: Vec<Source>,
    /// Root of the date-partitioned warehouse.
    pub warehouse: PathBuf,
    /// Root of the JSONL manifests.
    pub manifests: PathBuf,
    /// Directory of the ledger, the instance lock and the control socket.
    pub state_path: PathBuf,
    /// How many readers.
    pub concurrency: Concurrency,
    /// Bytes that all readers together read in a second at most; 0: no limit.
    pub max_bytes_per_second: u64,
    /// How readers compete with others for the disk.
    pub io_priority: IoPriority,
    /// End when everything present is ingested, set aside or unable to settle.
    pub once: bool,
    /// Print what would be done, touch nothing.
    pub dry_run: bool,
    /// Whether commits reach the disk before they are acknowledged.
    pub durability: Durability,
    /// Which interface the readers use.
    pub io: IoChoice,
    /// How bytes reach a warehouse on another filesystem.
    pub copy_method: CopyMethod,
    /// How readers read.
    pub read_method: ReadMethod,
    /// Time between two full scans of the staging directories.
    pub rescan: Duration,
    /// Time between two `summary` events.
    pub metrics_interval: Duration,
    /// Where the latencies of each interval are logged.
    pub hlog: Option<PathBuf>,
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// Shape of the log lines on stderr.
    pub log_format: LogFormat,
    /// Whether the log goes to stderr.
    pub log_to_console: bool,
    /// Where log files are.
    pub log_dir: Option<PathBuf>,
    /// Bytes of a log file before it is rotated; 0: it never is.
    pub log_file_bytes: u64,
    /// Log files of each kind, the one that is written among them.
    pub log_files: usize,
    /// Bytes that stay free on the filesystems of warehouse, manifests and state; 0: none.
    pub min_free_bytes: u64,
    /// Most files in one commit.
    pub batch_files: usize,
    /// Streams that a reader hashes in lockstep.
    pub hash_lanes: usize,
    /// Kernel features to do without (`RINGEST_DISABLE`), for tests and for the careful.
    pub disable: Disable,
}

impl Settings {
    /// Where the ledger is.
    pub fn ledger_dir(&self) -> PathBuf {
        self.state_path.join("ledger")
    }

    /// Directories that are none of the warehouse's, and may lie in it all the same.
    pub fn apart_dirs(&self) -> Vec<PathBuf> {
        let sources = self.sources.iter();
        let staging = sources.flat_map(|it| [Some(&it.input), it.claim_dir.as_ref()]);
        let others = [Some(&self.manifests), Some(&self.state_path)];
        staging.chain(others).flatten().cloned().collect()
    }

    /// Where a running instance answers `status`.
    pub fn control_socket(&self) -> PathBuf {
        self.state_path.join("control.sock")
    }
}

/// One staging directory and how files in it are taken.
#[derive(Debug, Clone)]
pub struct Source {
    /// Name in manifest, ledger and logs. Unique.
    pub name: String,
    /// The directory.
    pub input: PathBuf,
    /// How a file is recognised as finished.
    pub mode: Mode,
    /// How long identity must hold still in [`Mode::Stability`].
    pub stability: Duration,
    /// What is appended to a file's name to name its sidecar, with the dot: `.ok`.
    pub sidecar_suffix: String,
    /// Whether subdirectories are taken too.
    pub recursive: bool,
    /// Only relative paths that match are taken; `None` takes all.
    pub include: Option<GlobSet>,
    /// Relative paths that match are never taken.
    pub exclude: Option<GlobSet>,
    /// Names that end so are somebody's unfinished work.
    pub ignore_suffixes: Vec<String>,
    /// What to do with empty files.
    pub empty: EmptyPolicy,
    /// In which order files that settle at the same time are recorded.
    pub order: Order,
    /// Whether read leases are used where they work.
    pub lease: LeasePolicy,
    /// What makes two files the same.
    pub dedupe: Dedupe,
    /// What becomes of a duplicate.
    pub on_duplicate: OnDuplicate,
    /// What is expected of the content of its files.
    pub content: ContentRules,
    /// Where they are placed.
    pub layout: Layout,
    /// Where files lie from the moment they are settled until they are placed; `None`: in the input.
    pub claim_dir: Option<PathBuf>,
}

/// Suffixes ignored unless `ignore_suffixes` says otherwise.
pub const DEFAULT_IGNORE_SUFFIXES: &[&str] = &[
    ".tmp",
    ".part",
    ".partial",
    ".filepart",
    ".swp",
    ".crdownload",
    "~",
];
