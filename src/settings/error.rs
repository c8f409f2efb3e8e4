//! What can be wrong with settings.

use std::io;
use std::path::PathBuf;

use super::trust::Doubt;
use super::{Key, Origin};

/// Why settings cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// One value is not what its setting holds.
    #[error("{}: {value:?} cannot be used: {cause}", .origin.of(key))]
    Value {
        /// The setting, as in the file.
        key: &'static str,
        /// Who gave it.
        origin: Origin,
        /// As given.
        value: String,
        /// What it should be.
        cause: String,
    },
    /// The file holds a key that means nothing.
    #[error("{}: {place}unknown key {key:?}; {hint}", .file.display())]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// Empty, or the block with a colon.
        place: String,
        /// The key.
        key: String,
        /// The nearest known key, or where this one belongs.
        hint: String,
    },
    /// The file cannot be read.
    #[error("{}: cannot read the settings file: {cause}; name another with --config", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// From the kernel.
        cause: io::Error,
    },
    /// The file is neither TOML nor JSON, or a block of it is wrong.
    #[error("{}: {cause}", .file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong where.
        cause: String,
    },
    /// A file that what runs is made of may be written by others.
    #[error("{0}")]
    Untrusted(Doubt),
    /// Two directories are the same, or one is inside the other.
    #[error("{0}")]
    Overlap(String),
    /// Two sources have one name.
    #[error("two sources are named {name:?}: {} and {}; give each [[source]] a name of its own", .first.display(), .second.display())]
    SameName {
        /// The name.
        name: String,
        /// One input.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

impl SettingsError {
    /// 2 for a flag, as for any other mistake on the command line; 78 for the rest.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Value {
                origin: Origin::Flag,
                ..
            } => 2,
            _ => 78,
        }
    }
}

impl Origin {
    /// What to change, named as the user knows it.
    fn of(&self, key: &str) -> String {
        match self {
            Self::Flag => match Key::named(key) {
                Some(key) => format!("--{}", key.flag()),
                None => format!("--{key}"),
            },
            Self::Environment(name) => name.clone(),
            Self::File(path) => format!("{}: {key}", path.display()),
            Self::Default => format!("{key} (default)"),
        }
    }
}
