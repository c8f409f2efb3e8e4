//! What a source expects of the content of its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Access;

use super::choices::Content;
use super::keys::absolute;
use super::{Encoding, Schema};

/// The rules that a file's content has to keep. One that breaks a rule is set aside.
#[derive(Debug, Clone, Default)]
pub struct ContentRules {
    /// What it is.
    pub content: Content,
    /// How its text is written.
    pub encoding: Encoding,
    /// Most bytes; 0: no limit.
    pub max_file_size: u64,
    /// Least bytes.
    pub min_file_size: u64,
    /// Ends of names, of which one is needed; none: any will do.
    pub extensions: Vec<String>,
    /// For [`Content::Csv`].
    pub csv: CsvRules,
    /// For [`Content::Json`] and each line of [`Content::Jsonl`].
    pub json_schema: Option<Schema>,
    /// Has the last word.
    pub command: Option<CommandRule>,
    /// Whose values are masked in what it writes.
    pub mask_fields: MaskedFields,
}

/// Fields whose values are not to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MaskedFields {
    /// Columns of CSV, by their names in the header.
    pub columns: Vec<String>,
    /// JSON pointers (RFC 6901), as the names on their ways.
    pub pointers: Vec<Vec<String>>,
}

impl MaskedFields {
    /// Whether everything may be told.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty() && self.pointers.is_empty()
    }
}

impl FromIterator<String> for MaskedFields {
    /// What begins with a slash, or is empty, is a pointer; it may be a column, too.
    fn from_iter<I: IntoIterator<Item = String>>(fields: I) -> MaskedFields {
        let mut masked = MaskedFields::default();
        for field in fields {
            if field.is_empty() || field.starts_with('/') {
                let names = field.split('/').skip(1);
                let unescaped = names.map(|name| name.replace("~1", "/").replace("~0", "~"));
                masked.pointers.push(unescaped.collect());
            }
            masked.columns.push(field);
        }
        masked
    }
}

/// A program that says whether it accepts a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRule {
    /// Its file.
    pub program: PathBuf,
    /// What it is given before the path of the file.
    pub arguments: Vec<String>,
    /// Longest time that it may run.
    pub timeout: Duration,
    /// How many may run at a time, from 1.
    pub concurrency: usize,
}

impl ContentRules {
    /// Whether documents or lines are gathered to be parsed.
    pub fn gathers(&self) -> bool {
        matches!(self.content, Content::Json | Content::Jsonl)
    }

    /// Whether any content will do.
    pub fn are_none(&self) -> bool {
        let limits =
            self.max_file_size > 0 || self.min_file_size > 0 || !self.extensions.is_empty();
        self.content == Content::Any && !limits
    }
}

/// What CSV looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvRules {
    /// Between two fields. ASCII.
    pub delimiter: u8,
    /// Around a field that holds delimiters or ends of lines; `None`: fields cannot be quoted. ASCII.
    pub quote: Option<u8>,
    /// Whether the first record names the columns.
    pub header: bool,
    /// Columns that have to be there.
    pub required_columns: Vec<String>,
    /// A column that has to be there and is never empty.
    pub key_column: Option<String>,
    /// Least records, without the header.
    pub min_records: u64,
}

impl Default for CsvRules {
    fn default() -> CsvRules {
        CsvRules {
            delimiter: b',',
            quote: Some(b'"'),
            header: true,
            required_columns: Vec::new(),
            key_column: None,
            min_records: 0,
        }
    }
}

/// The character of a word: itself, or named.
pub(super) fn character(word: &str) -> Option<u8> {
    match word.as_bytes() {
        b"tab" | b"\\t" => Some(b'\t'),
        [b'\n' | b'\r' | 0] => None,
        [byte] if byte.is_ascii() => Some(*byte),
        _ => None,
    }
}

/// The file of a program: of that path or, of a name without a slash, the first in `PATH`.
///
/// # Errors
/// There is none that could be run.
pub(super) fn program(word: &str) -> Result<PathBuf, String> {
    let runs = |path: &Path| -> io::Result<()> {
        if fs::metadata(path)?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(rustix::fs::access(path, Access::EXEC_OK)?)
    };
    if word.contains('/') {
        let path = absolute(Path::new(word));
        return match runs(&path) {
            Ok(()) => Ok(path),
            Err(error) => Err(format!("{} cannot be run: {error}", path.display())),
        };
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&directories)
        .map(|directory| absolute(&directory.join(word)))
        .find(|path| runs(path).is_ok())
        .ok_or_else(|| format!("there is no program {word:?} in PATH; say where it is"))
}
