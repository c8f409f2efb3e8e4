//! What a source expects of the content of its files.

use std::collections::BTreeMap;
use std::ffi::OsString;
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
    /// What it is given before the file.
    pub arguments: Vec<String>,
    /// Its environment, but for what is different for each file.
    pub environment: Vec<(OsString, OsString)>,
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

/// The variables that tell a command of its file: the path that people know it by, its name, its source, its SHA-256.
pub const CHECK_VARIABLES: [&str; 4] = [
    "RINGEST_CHECK_PATH",
    "RINGEST_CHECK_NAME",
    "RINGEST_CHECK_SOURCE",
    "RINGEST_CHECK_SHA256",
];

/// What a command has in its environment whatever is said, if the service has none of it.
const ENVIRONMENT: [(&str, &str); 2] = [
    ("PATH", "/usr/local/bin:/usr/bin:/bin"),
    ("LANG", "C.UTF-8"),
];

/// The environment of a command, out of that of the service: [`ENVIRONMENT`], and what is said: `NAME`, or `NAME=VALUE`.
pub(super) fn environment<'a>(
    words: impl Iterator<Item = &'a str>,
    service: &[(OsString, OsString)],
) -> Vec<(OsString, OsString)> {
    let of_service = |name: &str| {
        let found = service.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    };
    let mut environment = BTreeMap::new();
    for (name, otherwise) in ENVIRONMENT {
        let value = of_service(name).filter(|value| !value.is_empty());
        environment.insert(name.into(), value.unwrap_or_else(|| otherwise.into()));
    }
    for word in words {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.into())),
            None => (word, of_service(word)),
        };
        if let Some(value) = value {
            environment.insert(OsString::from(name), value);
        }
    }
    environment.into_iter().collect()
}

/// Whether a word names a variable for a command, with or without its value.
///
/// # Errors
/// What it should be instead.
pub(super) fn variable(word: &str) -> Result<(), String> {
    let name = word.split('=').next().unwrap_or_default();
    if name.is_empty() || word.contains('\0') {
        return Err("it is NAME, for the value that ringest has, or NAME=VALUE".into());
    }
    match name.starts_with("RINGEST_CHECK_") {
        true => Err("variables that begin with RINGEST_CHECK_ are ringest's own".into()),
        false => Ok(()),
    }
}

/// An argument of a command. As in the word of a program, a slash makes it a path; a relative one begins at the working directory of
/// the service, where the command does not run.
pub(super) fn argument(word: &str) -> String {
    let path = Path::new(word);
    if path.is_relative() && word.contains('/') && path.exists() {
        // A name of the working directory that is not UTF-8 cannot be told from here: the word stays.
        if let Some(path) = absolute(path).to_str() {
            return path.into();
        }
    }
    word.into()
}

/// Whether an argument is no path, by the rule of [`argument`], and yet the name of a file where the service runs.
pub(super) fn may_be_lost(word: &str) -> bool {
    !word.contains('/') && Path::new(word).is_file()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_of_the_environment_what_is_named_alone() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(OsString, OsString)> {
            let owned = |(name, value): &(&str, &str)| (name.into(), value.into());
            pairs.iter().map(owned).collect()
        };
        let service = pairs(&[
            ("PATH", "/opt"),
            ("SECRET", "s"),
            ("ZONE", "here"),
            ("B", "2"),
        ]);
        let of = |words: &[&str], service: &[_]| environment(words.iter().copied(), service);
        assert_eq!(
            of(&[], &service),
            pairs(&[("LANG", "C.UTF-8"), ("PATH", "/opt")])
        );
        assert_eq!(
            of(&["ZONE", "MISSING", "A=1", "B=", "PATH=/x=y"], &service),
            pairs(&[
                ("A", "1"),
                ("B", ""),
                ("LANG", "C.UTF-8"),
                ("PATH", "/x=y"),
                ("ZONE", "here"),
            ])
        );
        assert_eq!(
            of(&[], &pairs(&[("PATH", ""), ("LANG", "de_CH.UTF-8")])),
            pairs(&[
                ("LANG", "de_CH.UTF-8"),
                ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ])
        );
        for word in ["A", "A=1", "A=", "a.b=c=d"] {
            assert_eq!(variable(word), Ok(()), "{word}");
        }
        for word in ["", "=1", "A\0", "RINGEST_CHECK_ID=1", "RINGEST_CHECK_PATH"] {
            assert!(variable(word).is_err(), "{word}");
        }
    }

    #[test]
    fn an_argument_that_is_a_path_from_here_becomes_one_from_anywhere() {
        // Tests run in the directory of the crate.
        let here = std::env::current_dir().expect("a working directory");
        let moved = here.join("src/lib.rs");
        for word in ["src/lib.rs", "./src/lib.rs"] {
            assert_eq!(argument(word), moved.to_str().expect("UTF-8"));
        }
        for word in [
            "src",
            "--strict",
            "s/a/b/",
            "src/none.rs",
            "/etc/passwd",
            "",
        ] {
            assert_eq!(argument(word), word);
        }
        assert!(may_be_lost("Cargo.toml") && !may_be_lost("src") && !may_be_lost("src/lib.rs"));
    }
}
