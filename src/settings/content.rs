//! What a source expects of the content of its files.

use super::choices::Content;
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
}

impl ContentRules {
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
