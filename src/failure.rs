//! A failure that ends the program: what was done, to what, why it failed, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::trial::mutants;

/// Why the program ends before its work is done. The numbers are those of `sysexits.h` where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to.
    Done = 0,
    /// Something is wrong with the data asked about.
    Data = 1,
    /// A required kernel feature or service is missing.
    Unavailable = 69,
    /// An I/O error, or state on the disk that cannot be trusted.
    Io = 74,
    /// Another instance holds one of the directories.
    Busy = 75,
    /// The configuration cannot work.
    Config = 78,
}

/// An error for the person at the console.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The exit code it ends with.
    pub exit: Exit,
    /// What was being done: "open the ledger".
    pub operation: String,
    /// To what.
    pub path: Option<PathBuf>,
    /// What went wrong.
    pub cause: String,
    /// What the reader can do about it.
    pub remedy: String,
    /// Whether a sync failed, so that the page cache no longer shows what the disk holds.
    pub suspect: bool,
}

impl Failure {
    /// A failure of `operation` on `path`.
    pub fn new(
        exit: Exit,
        operation: impl Into<String>,
        path: &Path,
        cause: impl fmt::Display,
        remedy: impl Into<String>,
    ) -> Failure {
        Failure {
            exit,
            operation: operation.into(),
            path: Some(path.to_path_buf()),
            cause: cause.to_string(),
            remedy: remedy.into(),
            suspect: false,
        }
    }

    /// An I/O error of `operation` on `path`, with the remedy that fits its kind.
    pub fn io(operation: impl Into<String>, path: &Path, error: &io::Error) -> Failure {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "give the user ringest runs as access to this path, or run it as its owner"
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space on this filesystem; nothing was lost, start again afterwards"
            }
            io::ErrorKind::NotFound => "check that the path exists and its filesystem is mounted",
            _ => {
                "check the device (dmesg) and the mount, then start again: recovery takes it from here"
            }
        };
        Failure::new(Exit::Io, operation, path, whole(error), remedy)
    }

    /// An end that was asked for while something waited for room. The next start goes on with that.
    pub fn stopped() -> Failure {
        Failure {
            exit: Exit::Done,
            operation: "wait for room".into(),
            path: None,
            cause: "asked to stop".into(),
            remedy: "free space and start again".into(),
            suspect: false,
        }
    }

    /// The process may not handle signals.
    pub fn signals(error: io::Error) -> Failure {
        Failure {
            exit: Exit::Unavailable,
            operation: "handle signals".into(),
            path: None,
            cause: error.to_string(),
            remedy: "let the process install signal handlers".into(),
            suspect: false,
        }
    }

    /// A failed sync: final, because a second one would say OK although the disk holds something else.
    pub fn sync(operation: impl Into<String>, path: &Path, error: &io::Error) -> Failure {
        Failure {
            suspect: !mutants::on("failed_sync_unsuspected"),
            remedy: "check the device (dmesg); nothing was acknowledged, and the next start reads past the cache"
                .into(),
            ..Failure::io(operation, path, error)
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.operation)?;
        if let Some(path) = &self.path {
            write!(f, " {}", path.display())?;
        }
        write!(f, ": {}; {}", self.cause, self.remedy)
    }
}

impl std::error::Error for Failure {}

/// An error with everything that led to it, unless it says that itself.
pub fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);

    #[test]
    fn an_error_is_told_with_what_led_to_it_once() {
        let inner = Said("the disk is gone", None);
        let middle = Said("cannot look: the disk is gone", Some(Box::new(inner)));
        let outer = io::Error::other(Said("cannot open", Some(Box::new(middle))));
        let failure = Failure::io("open", Path::new("/x"), &outer);
        assert_eq!(failure.cause, "cannot open: cannot look: the disk is gone");
    }
}
