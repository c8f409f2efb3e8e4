//! Every choice a setting can hold.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize, Serializer};

/// Why a word is not a choice: it says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAChoice(String);

/// Names each word once, for the command line, the environment, the file, the ledger and the logs.
macro_rules! choice {
    (
        $(#[$meta:meta])*
        $name:ident { $( $(#[$variant_meta:meta])* $variant:ident = $word:literal, )+ }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        #[derive(Serialize, Deserialize, ValueEnum)]
        #[serde(rename_all = "snake_case")]
        #[value(rename_all = "snake_case")]
        pub enum $name { $( $(#[$variant_meta])* $variant, )+ }

        impl $name {
            /// The word for it in flags, files and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = NotAChoice;

            fn from_str(word: &str) -> Result<Self, NotAChoice> {
                match word {
                    $( $word => Ok(Self::$variant), )+
                    _ => Err(NotAChoice(format!("it is one of {}", [$($word),+].join(", ")))),
                }
            }
        }
    };
}

choice! {
    /// How a file is recognised as finished.
    Mode {
        /// Size, mtime and ctime hold still for a while.
        #[default]
        Stability = "stability",
        /// A sidecar file appears beside it.
        Sidecar = "sidecar",
        /// Its writer closes it or renames it into place.
        Closed = "closed",
    }
}

choice! {
    /// What the content of files is expected to be.
    Content {
        /// Anything.
        #[default]
        Any = "any",
        /// UTF-8 without NUL.
        Text = "text",
        /// Comma-separated values, in UTF-8.
        Csv = "csv",
        /// One JSON document.
        Json = "json",
        /// A JSON value on each line.
        Jsonl = "jsonl",
    }
}

choice! {
    /// What to do with empty files.
    EmptyPolicy {
        /// Take them like any other.
        #[default]
        Ingest = "ingest",
        /// Wait until they hold something.
        Hold = "hold",
        /// Leave them where they are.
        Skip = "skip",
    }
}

choice! {
    /// In which order files that settle at the same time are recorded.
    Order {
        /// As they are read: whichever is done first.
        #[default]
        Arrival = "arrival",
        /// The oldest mtime first, then as `name`.
        Mtime = "mtime",
        /// By the bytes of the path beneath the input.
        Name = "name",
    }
}

choice! {
    /// Whether read leases prove that nobody is writing.
    LeasePolicy {
        /// Wherever the kernel grants them.
        #[default]
        Auto = "auto",
        /// Never; identity checks alone.
        Off = "off",
    }
}

choice! {
    /// What makes two files the same.
    Dedupe {
        /// Same content, wherever it came from.
        #[default]
        Global = "global",
        /// Same content in the same source.
        Source = "source",
        /// Same content under the same relative path.
        Name = "name",
        /// Nothing: every arrival is ingested.
        Off = "off",
    }
}

choice! {
    /// What becomes of a duplicate.
    OnDuplicate {
        /// It is set aside in `_duplicates`.
        #[default]
        Move = "move",
        /// It is removed once its stored copy has been checked.
        Delete = "delete",
        /// It stays in staging and is not read again.
        Keep = "keep",
    }
}

impl OnDuplicate {
    /// What was done, for logs.
    pub const fn done(self) -> &'static str {
        match self {
            Self::Move => "moved",
            Self::Delete => "deleted",
            Self::Keep => "kept",
        }
    }
}

choice! {
    /// Who owns a placed file.
    PlacedOwner {
        /// Who uploaded it, and so may go on changing it.
        #[default]
        Keep = "keep",
        /// The user that ringest runs as: by a change of owner where there is a lease and CAP_CHOWN, else by a copy. Nobody else can write to it.
        #[value(name = "self")]
        #[serde(rename = "self")]
        Own = "self",
    }
}

choice! {
    /// Whether commits reach the disk before they are acknowledged.
    Durability {
        /// Everything is synced before anything points at it.
        #[default]
        Full = "full",
        /// Nothing is synced: a crash of the process loses nothing, a power cut may.
        None = "none",
    }
}

choice! {
    /// Which interface the readers use.
    IoChoice {
        /// io_uring where the kernel allows it, else plain system calls.
        #[default]
        Auto = "auto",
        /// io_uring, or an error.
        Uring = "uring",
        /// Plain system calls.
        Sync = "sync",
    }
}

choice! {
    /// How readers compete with others for the disk.
    IoPriority {
        /// As the process was started.
        #[default]
        Normal = "normal",
        /// Behind other best-effort work.
        Low = "low",
        /// Only when nobody else wants the disk.
        Idle = "idle",
    }
}

choice! {
    /// How bytes reach a warehouse on another filesystem.
    CopyMethod {
        /// A clone where the filesystem makes one, else `write`.
        #[default]
        Auto = "auto",
        /// The buffers that were just hashed are written; from 1 MiB on past the page cache, unless `durability` is `none`.
        Write = "write",
        /// A clone that shares the blocks of its source (FICLONE; btrfs, xfs; within one filesystem).
        Reflink = "reflink",
        /// The kernel copies, or has the server copy (NFS 4.2); within one filesystem. What is hashed is read from the copy.
        CopyFileRange = "copy_file_range",
        /// The kernel moves pages through a pipe. What is hashed is read from the copy.
        Splice = "splice",
    }
}

choice! {
    /// How readers read.
    ReadMethod {
        /// Past the page cache (O_DIRECT) files above 8 MiB of which hardly anything is in it (`cachestat`, Linux 6.5), so that a backlog does not push out what others have there; else through it.
        #[default]
        Auto = "auto",
        /// Through the page cache.
        Buffered = "buffered",
        /// Past the page cache where the filesystem can.
        Direct = "direct",
    }
}

choice! {
    /// Least severe level that is logged.
    LogLevel {
        /// The process or a file is in trouble.
        Error = "error",
        /// Something needs a look, work goes on.
        Warn = "warn",
        /// What happened to each file.
        #[default]
        Info = "info",
        /// Why it happened.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choice! {
    /// Shape of the log lines.
    LogFormat {
        /// One JSON object a line.
        #[default]
        Json = "json",
        /// Lines for people.
        Text = "text",
    }
}

/// How many readers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Concurrency {
    /// As many as the machine has use for.
    #[default]
    Auto,
    /// Exactly so many.
    Fixed(NonZeroUsize),
}

impl fmt::Display for Concurrency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(readers) => readers.fmt(f),
        }
    }
}

impl FromStr for Concurrency {
    type Err = NotAChoice;

    fn from_str(word: &str) -> Result<Self, NotAChoice> {
        match word {
            "auto" => Ok(Self::Auto),
            _ => word
                .parse()
                .map(Self::Fixed)
                .map_err(|_| NotAChoice("it is a number from 1 on, or auto".into())),
        }
    }
}

/// A number, or the word `auto`.
impl Serialize for Concurrency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Fixed(readers) => serializer.serialize_u64(readers.get() as u64),
        }
    }
}

/// Kernel features to do without, each as if the kernel had refused it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Disable {
    /// io_uring: readers use plain system calls.
    pub uring: bool,
    /// Read leases: identity checks alone.
    pub lease: bool,
    /// inotify: rescans alone.
    pub inotify: bool,
    /// O_TMPFILE: copies go through `<warehouse>/_tmp`.
    pub tmpfile: bool,
    /// syncfs: each file is synced by itself.
    pub syncfs: bool,
    /// cachestat: hot and cold files are not told apart.
    pub cachestat: bool,
    /// STATX_DIOALIGN: direct reads use a safe alignment or none.
    pub dioalign: bool,
}

impl FromStr for Disable {
    type Err = NotAChoice;

    /// A list separated by commas; an empty one disables nothing.
    fn from_str(list: &str) -> Result<Self, NotAChoice> {
        let mut disable = Self::default();
        for word in list
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            let feature = match word {
                "uring" => &mut disable.uring,
                "lease" => &mut disable.lease,
                "inotify" => &mut disable.inotify,
                "tmpfile" => &mut disable.tmpfile,
                "syncfs" => &mut disable.syncfs,
                "cachestat" => &mut disable.cachestat,
                "dioalign" => &mut disable.dioalign,
                _ => {
                    return Err(NotAChoice(format!(
                        "{word:?} is none of uring, lease, inotify, tmpfile, syncfs, cachestat, \
                         dioalign"
                    )));
                }
            };
            *feature = true;
        }
        Ok(disable)
    }
}
