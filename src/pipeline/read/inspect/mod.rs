//! Checks of content, in the pass that hashes it: each buffer is seen once, in the order of the file, wherever it was cut.
//!
//! What a message says of a file is where it is wrong and why. It quotes names from the settings, never what the file holds.

mod csv;
mod encoding;
mod json;
mod keys;
mod utf8;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::ledger::{Counts, Position};
use crate::pipeline::Finding;
use crate::settings::{Content, ContentRules, Encoding};

pub use csv::Csv;
pub use encoding::Decoding;
pub use json::{Document, Lines};
pub use utf8::Utf8;

/// Longest JSON document, and longest line of JSON Lines, in bytes: it is parsed as a whole.
pub const DOCUMENT_BYTES_MAX: usize = 64 << 20;

/// Bytes that are gathered of a file of that size at most: of it, or of its longest line. Text of another encoding may take three
/// times as many as UTF-8.
pub fn gathered_bytes(rules: &ContentRules, bytes: u64) -> u64 {
    let text = match rules.encoding {
        Encoding::Utf8 => bytes,
        _ => bytes.saturating_mul(3),
    };
    match rules.gathers() && !is_too_long(rules, bytes) {
        true => text.min(DOCUMENT_BYTES_MAX as u64),
        false => 0,
    }
}

/// Whether it is one document above the limit, whatever is in it. Text of another encoding may take fewer bytes as UTF-8.
fn is_too_long(rules: &ContentRules, bytes: u64) -> bool {
    let gathered_as_it_is = rules.content == Content::Json && rules.encoding == Encoding::Utf8;
    gathered_as_it_is && bytes > DOCUMENT_BYTES_MAX as u64
}

/// The checks of one file.
#[derive(Debug)]
pub struct Inspection {
    text: Text,
    format: Format,
    /// The first rule that was broken. What comes after it is not looked at.
    broken: Option<Finding>,
}

/// How the bytes become text.
#[derive(Debug)]
enum Text {
    Utf8(Utf8),
    Other(Decoding),
}

/// What is checked in the text.
#[derive(Debug)]
enum Format {
    /// Neither text nor anything else.
    Any,
    Text,
    Csv(Box<Csv>),
    Json(Document),
    JsonLines(Lines),
}

impl Inspection {
    /// The checks of a file with that path and so many bytes. `None`: there are none.
    pub fn begin(rules: &ContentRules, path: &Path, bytes: u64) -> Option<Inspection> {
        if rules.are_none() {
            return None;
        }
        let gathered = gathered_bytes(rules, bytes) as usize;
        let format = match rules.content {
            Content::Any => Format::Any,
            Content::Text => Format::Text,
            Content::Csv => Format::Csv(Box::new(Csv::new(&rules.csv))),
            Content::Json => Format::Json(Document::new(rules.json_schema.clone(), gathered)),
            Content::Jsonl => Format::JsonLines(Lines::new(rules.json_schema.clone(), gathered)),
        };
        let text = match rules.encoding {
            Encoding::Utf8 => Text::Utf8(Utf8::default()),
            other => Text::Other(Decoding::new(other)),
        };
        Some(Inspection {
            text,
            format,
            broken: outside_limits(rules, path, bytes),
        })
    }

    /// Takes in the next bytes of the file.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        let Inspection { text, format, .. } = self;
        let seen = match (&mut *format, text) {
            (Format::Any, _) => Ok(()),
            (format, Text::Utf8(utf8)) => utf8.feed(bytes, |text| format.feed(text)),
            (format, Text::Other(other)) => other.feed(bytes, |text| format.feed(text)),
        };
        if let Err(finding) = seen {
            self.broken = Some(finding);
            // What it had gathered is of no use any more.
            self.format = Format::Any;
        }
    }

    /// The end of the file.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn finish(self) -> Result<Counts, Finding> {
        let Inspection {
            text,
            mut format,
            broken,
        } = self;
        if let Some(finding) = broken {
            return Err(finding);
        }
        match (&mut format, text) {
            (Format::Any, _) => {}
            (_, Text::Utf8(utf8)) => utf8.finish()?,
            (format, Text::Other(mut other)) => other.finish(|text| format.feed(text))?,
        }
        format.finish()
    }
}

impl Format {
    /// Takes in the next bytes of the text, as UTF-8.
    fn feed(&mut self, text: &[u8]) -> Result<(), Finding> {
        match self {
            Format::Any | Format::Text => Ok(()),
            Format::Csv(csv) => csv.feed(text),
            Format::Json(document) => document.feed(text),
            Format::JsonLines(lines) => lines.feed(text),
        }
    }

    /// The end of the text.
    fn finish(self) -> Result<Counts, Finding> {
        match self {
            Format::Any | Format::Text => Ok(Counts::default()),
            Format::Csv(csv) => csv.finish(),
            Format::Json(document) => document.finish(),
            Format::JsonLines(lines) => lines.finish(),
        }
    }
}

/// What is wrong with a file whatever it holds.
fn outside_limits(rules: &ContentRules, path: &Path, bytes: u64) -> Option<Finding> {
    let (least, most) = (rules.min_file_size, rules.max_file_size);
    let name = path.as_os_str().as_bytes();
    let has = |extension: &String| name.ends_with(extension.as_bytes());
    if !rules.extensions.is_empty() && !rules.extensions.iter().any(has) {
        let list = rules.extensions.join(", ");
        return Some(finding(
            "extensions",
            format!("its name ends in none of {list}"),
        ));
    }
    if bytes < least {
        let message = format!("it has {bytes} bytes, fewer than min_file_size = {least}");
        return Some(finding("min_file_size", message));
    }
    if most > 0 && bytes > most {
        let message = format!("it has {bytes} bytes, more than max_file_size = {most}");
        return Some(finding("max_file_size", message));
    }
    is_too_long(rules, bytes).then(|| json::too_long("it"))
}

fn finding(rule: &str, message: impl Into<String>) -> Finding {
    Finding {
        rule: rule.into(),
        message: message.into(),
        position: Position::default(),
    }
}

impl Finding {
    /// It is behind so many bytes.
    fn at_byte(mut self, byte: u64) -> Finding {
        self.position.byte = Some(byte);
        self
    }

    /// It is in that line, from 1.
    fn in_line(mut self, line: u64) -> Finding {
        self.position.line = Some(line);
        self
    }

    /// It is at that byte of that line, both from 1. A column of 0 is where nothing is yet.
    fn at(mut self, line: u64, column: u64) -> Finding {
        self.position.column = (column > 0).then_some(column);
        self.in_line(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(content: Content) -> ContentRules {
        ContentRules {
            content,
            ..ContentRules::default()
        }
    }

    /// What comes of a content, cut into pieces of that many bytes.
    fn inspected(rules: &ContentRules, content: &[u8], piece: usize) -> Result<Counts, Finding> {
        let bytes = content.len() as u64;
        let mut inspection = Inspection::begin(rules, Path::new("dir/a.csv"), bytes).unwrap();
        for piece in content.chunks(piece) {
            inspection.feed(piece);
        }
        inspection.finish()
    }

    #[test]
    fn without_rules_there_is_nothing_to_do() {
        let none = Inspection::begin(&ContentRules::default(), Path::new("a"), 1);
        assert!(none.is_none());
    }

    #[test]
    fn sizes_and_extensions_are_limits_of_any_content() {
        let limited = ContentRules {
            min_file_size: 2,
            max_file_size: 4,
            extensions: vec![".csv".into(), ".json".into()],
            ..ContentRules::default()
        };
        for (bytes, rule) in [
            (1, Some("min_file_size")),
            (2, None),
            (4, None),
            (5, Some("max_file_size")),
        ] {
            let ended = inspected(&limited, &vec![0xff; bytes], 2);
            assert_eq!(ended.err().map(|it| it.rule).as_deref(), rule, "{bytes}");
        }
        let mut inspection = Inspection::begin(&limited, Path::new("a.csv.gz"), 3).unwrap();
        inspection.feed(b"abc");
        assert_eq!(inspection.finish().unwrap_err().rule, "extensions");
    }

    #[test]
    fn every_format_refuses_what_is_no_text() {
        for content in [Content::Text, Content::Csv, Content::Json, Content::Jsonl] {
            for (bytes, rule) in [(&b"\"a\xffb\"\n"[..], "utf8"), (b"\"a\0b\"\n", "nul")] {
                for piece in 1..=bytes.len() {
                    let ended = inspected(&rules(content), bytes, piece);
                    assert_eq!(ended.unwrap_err().rule, rule, "{content:?}, {piece}");
                }
            }
        }
    }

    #[test]
    fn the_first_of_two_faults_is_told_wherever_the_file_was_cut() {
        let utf16 = ContentRules {
            encoding: "utf-16le".parse().unwrap(),
            ..rules(Content::Csv)
        };
        let wide: Vec<u8> = b"a,b\n1\n\0".iter().flat_map(|it| [*it, 0]).collect();
        for (rules, bytes, rule) in [
            (rules(Content::Csv), &b"a,b\n1\n\xac,2\n"[..], "csv_width"),
            (rules(Content::Csv), b"a,b\n\xe2\x82,2\n1\n", "utf8"),
            (rules(Content::Csv), b"a,b\n1\n\0,2\n", "csv_width"),
            (rules(Content::Csv), b"a,b\n\xe2\0,2\n", "utf8"),
            (rules(Content::Json), b"[1, \xe2\x82]", "utf8"),
            (rules(Content::Json), b"[1, \xe2\0]", "utf8"),
            (rules(Content::Jsonl), b"1\n[2\n\xff\n", "json"),
            (rules(Content::Jsonl), b"1\n[\xff\n\n[2\n", "utf8"),
            (utf16, &wide[..], "csv_width"),
        ] {
            let whole = inspected(&rules, bytes, bytes.len());
            assert_eq!(whole.as_ref().unwrap_err().rule, rule, "{bytes:?}");
            for piece in 1..bytes.len() {
                assert_eq!(inspected(&rules, bytes, piece), whole, "{bytes:?}, {piece}");
            }
        }
    }

    #[test]
    fn a_character_that_the_file_ends_in_is_no_text() {
        for content in [Content::Text, Content::Csv, Content::Json, Content::Jsonl] {
            let ended = inspected(
                &rules(content),
                "\"ä\"\nä".as_bytes().split_last().unwrap().1,
                3,
            );
            assert_eq!(ended.unwrap_err().rule, "utf8", "{content:?}");
        }
    }
}
