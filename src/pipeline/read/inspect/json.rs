//! JSON (RFC 8259) and JSON Lines: well formed, no deeper than 128, no key twice in one object.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::ledger::Position;
use crate::pipeline::Finding;
use crate::settings::Schema;

use super::{Counts, DOCUMENT_BYTES_MAX, at_line, finding, finding_at};

const RULE: &str = "json";
const TOO_LONG: &str = "json_size";

/// A check of one JSON document. It is gathered and parsed at its end.
#[derive(Debug, Default)]
pub struct Document {
    bytes: Vec<u8>,
    schema: Option<Schema>,
}

impl Document {
    /// A check that it agrees with a schema, too.
    pub fn new(schema: Option<Schema>) -> Document {
        Document {
            schema,
            ..Document::default()
        }
    }

    /// Takes in the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Finding> {
        gather(&mut self.bytes, bytes, || "it".into())
    }

    /// The end of the file.
    pub fn finish(self) -> Result<Counts, Finding> {
        let Value(records) = parse(&self.bytes).map_err(|error| {
            let (line, column) = (error.line() as u64, error.column() as u64);
            let what = cause(&error);
            finding_at(
                RULE,
                at_line(line, Some(column)),
                format!("line {line}, column {column}: {what}"),
            )
        })?;
        if let Some(schema) = &self.schema {
            agrees(schema, &self.bytes, None)?;
        }
        Ok(Counts {
            records: Some(records),
            columns: None,
        })
    }
}

/// Documents of more bytes than this are made a tree of one at a time: it takes up to some twenty times as much memory.
const LARGE_TREE_BYTES: usize = 1 << 20;

static LARGE_TREE: Mutex<()> = Mutex::new(());

/// Whether a document, well formed, agrees with a schema. `line`: which one it is of JSON Lines.
fn agrees(schema: &Schema, bytes: &[u8], line: Option<u64>) -> Result<(), Finding> {
    let _alone = (bytes.len() > LARGE_TREE_BYTES)
        .then(|| LARGE_TREE.lock().unwrap_or_else(PoisonError::into_inner));
    let Ok(tree) = serde_json::from_slice(bytes) else {
        return Err(finding(RULE, "it cannot be read as a tree of values"));
    };
    let Some((pointer, rule)) = schema.broken_by(&tree) else {
        return Ok(());
    };
    let place = match line {
        Some(line) => format!("line {line}: "),
        None => String::new(),
    };
    let shown = match pointer.as_str() {
        "" => "the document".into(),
        pointer => format!("the value at {pointer:?}"),
    };
    let position = Position {
        line,
        pointer: Some(pointer),
        ..Position::default()
    };
    let message = format!("{place}{shown} breaks {rule:?} of the schema");
    Err(finding_at("json_schema", position, message))
}

/// A check of JSON Lines: a value on each line. Blank lines are none.
#[derive(Debug, Default)]
pub struct Lines {
    /// The line that goes on, as far as it is known.
    begun: Vec<u8>,
    /// Lines that have ended.
    lines: u64,
    records: u64,
    schema: Option<Schema>,
}

impl Lines {
    /// A check that each agrees with a schema, too.
    pub fn new(schema: Option<Schema>) -> Lines {
        Lines {
            schema,
            ..Lines::default()
        }
    }

    /// Takes in the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Finding> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.begun.is_empty() {
                self.end_line(line)?;
            } else {
                self.gather(line)?;
                let mut line = std::mem::take(&mut self.begun);
                self.end_line(&line)?;
                line.clear();
                self.begun = line;
            }
            bytes = rest;
        }
        self.gather(bytes)
    }

    /// The end of the file.
    pub fn finish(mut self) -> Result<Counts, Finding> {
        let line = std::mem::take(&mut self.begun);
        self.end_line(&line)?;
        Ok(Counts {
            records: Some(self.records),
            columns: None,
        })
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<(), Finding> {
        let number = self.lines + 1;
        gather(&mut self.begun, bytes, || format!("line {number}"))
    }

    fn end_line(&mut self, line: &[u8]) -> Result<(), Finding> {
        self.lines += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        self.records += 1;
        let number = self.lines;
        parse(line).map_err(|error| {
            let (column, what) = (error.column() as u64, cause(&error));
            let at = at_line(number, Some(column));
            finding_at(RULE, at, format!("line {number}, column {column}: {what}"))
        })?;
        match &self.schema {
            Some(schema) => agrees(schema, line, Some(number)),
            None => Ok(()),
        }
    }
}

fn gather(begun: &mut Vec<u8>, bytes: &[u8], what: impl Fn() -> String) -> Result<(), Finding> {
    if begun.len() + bytes.len() > DOCUMENT_BYTES_MAX {
        let message = format!("{} has more than {DOCUMENT_BYTES_MAX} bytes", what());
        return Err(finding(TOO_LONG, message));
    }
    begun.extend(bytes);
    Ok(())
}

/// The parser's words without its place, which is that in the line.
fn cause(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let value = Value::deserialize(&mut parser)?;
    parser.end()?;
    Ok(value)
}

/// Any value; nothing of it is kept but how many items it has, if it is an array: others are one.
struct Value(u64);

/// Takes any value.
struct Any;

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

impl<'de> Visitor<'de> for Any {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value(1))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value(1))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value(1))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value(1))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value(1))
    }

    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value(1))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut count = 0;
        while items.next_element::<Value>()?.is_some() {
            count += 1;
        }
        Ok(Value(count))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut keys = Keys::default();
        while let Some(Key(key)) = entries.next_key()? {
            if !keys.insert(key) {
                return Err(A::Error::custom("an object has the same key twice"));
            }
            entries.next_value::<Value>()?;
        }
        Ok(Value(1))
    }
}

/// The keys of one object.
#[derive(Default)]
struct Keys<'de> {
    few: Vec<Cow<'de, str>>,
    more: HashSet<Cow<'de, str>>,
}

/// Up to so many keys, comparing with all of them is faster than hashing.
const FEW: usize = 16;

impl<'de> Keys<'de> {
    /// False if it is there already.
    fn insert(&mut self, key: Cow<'de, str>) -> bool {
        if self.few.contains(&key) {
            return false;
        }
        if self.few.len() < FEW {
            self.few.push(key);
            return true;
        }
        self.more.insert(key)
    }
}

/// A key of an object, borrowed where it holds no escape.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key<'de>, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Borrowed(key)))
    }

    fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Owned(key.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &[u8]) -> Result<Counts, Finding> {
        let mut document = Document::default();
        for piece in text.chunks(3) {
            document.feed(piece)?;
        }
        document.finish()
    }

    #[track_caller]
    fn lines(text: &[u8]) -> Result<Counts, Finding> {
        let in_pieces = |bytes: usize| {
            let mut lines = Lines::default();
            for piece in text.chunks(bytes) {
                lines.feed(piece)?;
            }
            lines.finish()
        };
        let whole = in_pieces(text.len().max(1));
        for bytes in 1..text.len() {
            assert_eq!(in_pieces(bytes), whole, "pieces of {bytes}");
        }
        whole
    }

    #[track_caller]
    fn refused(ended: Result<Counts, Finding>, message: &str) {
        let found = ended.expect_err("it was accepted");
        assert_eq!((&*found.rule, &*found.message), (RULE, message));
    }

    #[test]
    fn documents_are_whole_values() {
        for (text, records) in [
            (
                r#"{"a": [1, -2.5e3, "x\n", true, false, null, {}], "b": {"a": 1}}"#,
                1,
            ),
            (" 12 ", 1),
            ("\"\u{e4}\"", 1),
            ("[]", 0),
            ("[[1, 2], {}, 3]", 3),
        ] {
            let counts = Counts {
                records: Some(records),
                columns: None,
            };
            assert_eq!(document(text.as_bytes()), Ok(counts), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        refused(document(b""), "line 1, column 0: EOF while parsing a value");
        refused(
            document(b"[1,\n2"),
            "line 2, column 1: EOF while parsing a list",
        );
        refused(document(b"{} {}"), "line 1, column 4: trailing characters");
        let twice = "line 1, column 13: an object has the same key twice";
        refused(
            document(br#"{"a":1, "\u0061":2}"#),
            &twice.replace("13", "16"),
        );
        refused(document(br#"{"a":1, "a":2}"#), &twice.replace("13", "11"));
        refused(lines(b"{}\n\n{\"a\"}\n"), "line 3, column 5: expected `:`");
        refused(lines(b"1\n2 3\n"), "line 2, column 3: trailing characters");
    }

    #[test]
    fn each_key_is_compared_with_all_others() {
        for first in [0, 15, 16, 40] {
            let mut keys: Vec<String> = (0..50).map(|key| format!("\"{key}\":0")).collect();
            let text = |keys: &[String]| format!("{{{}}}", keys.join(","));
            assert!(document(text(&keys).as_bytes()).is_ok());
            keys.push(keys[first].clone());
            let found = document(text(&keys).as_bytes()).unwrap_err();
            assert!(found.message.contains("the same key twice"), "{found:?}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(document(&deep(127)).is_ok());
        let found = document(&deep(100_000)).unwrap_err();
        assert!(
            found.message.contains("recursion limit exceeded"),
            "{found:?}"
        );
    }

    #[test]
    fn lines_are_counted_and_blank_ones_are_none() {
        for (text, records) in [
            ("", 0),
            ("\n \n", 0),
            ("1\n2\n", 2),
            ("{\"a\":1}\r\n\n[]", 2),
        ] {
            let ended = lines(text.as_bytes());
            assert_eq!(
                ended.map(|counts| counts.records),
                Ok(Some(records)),
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_is_too_long_to_be_gathered_is_given_up() {
        let piece = vec![b' '; 1 << 20];
        let mut document = Document::default();
        let mut lines = Lines::default();
        for _ in 0..64 {
            document.feed(&piece).unwrap();
            lines.feed(&piece).unwrap();
        }
        let found = document.feed(&piece).unwrap_err();
        assert_eq!(
            (&*found.rule, &*found.message),
            (TOO_LONG, "it has more than 67108864 bytes")
        );
        let found = lines.feed(&piece).unwrap_err();
        assert_eq!(found.message, "line 1 has more than 67108864 bytes");
    }
}
