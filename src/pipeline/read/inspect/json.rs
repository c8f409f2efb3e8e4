//! JSON (RFC 8259) and JSON Lines: well formed, no deeper than 127, no key twice in one object, and as a schema has it.
//!
//! Only a schema needs the values themselves. They take many times the bytes of their text, so what they will take is added up while
//! the text is parsed, and large ones are made one at a time.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::pipeline::Finding;
use crate::settings::Schema;

use super::keys::{ALONE_BYTES, Keys, Names, alone};
use super::{Counts, DOCUMENT_BYTES_MAX, finding};

const RULE: &str = "json";
const TOO_LONG: &str = "json_size";
const SCHEMA_RULE: &str = "json_schema";

/// Most memory that the values of one document may take to be checked with a schema, in bytes.
const VALUES_BYTES_MAX: u64 = 1 << 30;
/// From so many bytes on, what is gathered gets all the room at once that it can need: to grow it would have to be there twice.
const GROWN_BYTES: usize = 1 << 20;

/// A check of one JSON document. It is gathered and parsed at its end.
#[derive(Debug, Default)]
pub struct Document {
    begun: Begun,
    schema: Option<Schema>,
}

impl Document {
    /// A check of a document that has not been looked at, and has so many bytes at most.
    pub fn new(schema: Option<Schema>, bytes: usize) -> Document {
        Document {
            begun: Begun::new(bytes),
            schema,
        }
    }

    /// Takes in the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Finding> {
        self.begun.gather(bytes, || "it".into())
    }

    /// The end of the file.
    pub fn finish(self) -> Result<Counts, Finding> {
        let text = &self.begun.bytes;
        let value = parse(text).map_err(|error| malformed(error.line() as u64, &error))?;
        if let Some(schema) = &self.schema {
            keeps(schema, text, value.taken, None)?;
        }
        Ok(Counts {
            records: Some(value.items),
            columns: None,
        })
    }
}

/// A check of JSON Lines: a value on each line. Blank lines are none.
#[derive(Debug, Default)]
pub struct Lines {
    /// The line that goes on, as far as it is known.
    begun: Begun,
    /// Lines that have ended.
    lines: u64,
    records: u64,
    schema: Option<Schema>,
}

impl Lines {
    /// A check of lines that have not been looked at, and have so many bytes at most.
    pub fn new(schema: Option<Schema>, bytes: usize) -> Lines {
        Lines {
            begun: Begun::new(bytes),
            schema,
            ..Lines::default()
        }
    }

    /// Takes in the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Finding> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.begun.bytes.is_empty() {
                self.end_line(line)?;
            } else {
                self.gather(line)?;
                let mut line = std::mem::take(&mut self.begun.bytes);
                self.end_line(&line)?;
                line.clear();
                self.begun.bytes = line;
            }
            bytes = rest;
        }
        self.gather(bytes)
    }

    /// The end of the file.
    pub fn finish(mut self) -> Result<Counts, Finding> {
        let line = std::mem::take(&mut self.begun.bytes);
        self.end_line(&line)?;
        Ok(Counts {
            records: Some(self.records),
            columns: None,
        })
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<(), Finding> {
        let number = self.lines + 1;
        let gathered = self.begun.gather(bytes, || format!("line {number}"));
        gathered.map_err(|found| found.in_line(number))
    }

    fn end_line(&mut self, line: &[u8]) -> Result<(), Finding> {
        self.lines += 1;
        if line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')) {
            return Ok(());
        }
        self.records += 1;
        let value = parse(line).map_err(|error| malformed(self.lines, &error))?;
        match &self.schema {
            Some(schema) => keeps(schema, line, value.taken, Some(self.lines)),
            None => Ok(()),
        }
    }
}

/// What is gathered of a document or of a line.
#[derive(Debug, Default)]
struct Begun {
    bytes: Vec<u8>,
    /// Bytes that it can come to.
    bytes_max: usize,
}

impl Begun {
    /// Of what has so many bytes at most.
    fn new(bytes: usize) -> Begun {
        Begun {
            bytes: Vec::new(),
            bytes_max: bytes.min(DOCUMENT_BYTES_MAX),
        }
    }

    fn gather(&mut self, bytes: &[u8], what: impl Fn() -> String) -> Result<(), Finding> {
        let gathered = self.bytes.len() + bytes.len();
        if gathered > DOCUMENT_BYTES_MAX {
            return Err(too_long(&what()));
        }
        if gathered > self.bytes.capacity() && gathered > GROWN_BYTES {
            let most = self.bytes_max.max(gathered);
            self.bytes.reserve_exact(most - self.bytes.len());
        }
        self.bytes.extend(bytes);
        Ok(())
    }
}

/// What is wrong with a document or a line above the limit.
pub fn too_long(what: &str) -> Finding {
    finding(
        TOO_LONG,
        format!("{what} has more than {DOCUMENT_BYTES_MAX} bytes"),
    )
}

/// Whether a well-formed document, or that line, whose values take so many bytes, is as the schema has it.
fn keeps(schema: &Schema, text: &[u8], values: u64, line: Option<u64>) -> Result<(), Finding> {
    let place = line.map_or(String::new(), |line| format!("line {line}, "));
    let in_line = |found: Finding| match line {
        Some(line) => found.in_line(line),
        None => found,
    };
    if values > VALUES_BYTES_MAX {
        let message = format!(
            "{place}its values take more than {VALUES_BYTES_MAX} bytes of memory, too many for a schema"
        );
        return Err(in_line(finding(TOO_LONG, message)));
    }
    let _alone = (values >= ALONE_BYTES as u64).then(alone);
    let document: serde_json::Value = serde_json::from_slice(text)
        .map_err(|error| malformed(line.unwrap_or(error.line() as u64), &error))?;
    let Some(broken) = schema.broken_by(&document) else {
        return Ok(());
    };
    let beneath = if broken.beneath {
        "a value beneath "
    } else {
        ""
    };
    let message = match &broken.keyword {
        Some(keyword) => format!(
            "{place}{beneath}{:?} does not keep {keyword:?} of the schema",
            broken.pointer
        ),
        None => format!("{place}it does not keep the schema"),
    };
    let mut found = finding(SCHEMA_RULE, message);
    found.position.pointer = broken.keyword.map(|_| broken.pointer);
    Err(in_line(found))
}

fn malformed(line: u64, error: &serde_json::Error) -> Finding {
    let column = error.column() as u64;
    let message = format!("line {line}, column {column}: {}", cause(error));
    finding(RULE, message).at(line, column)
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
    fn whole<'t>(
        mut parser: serde_json::Deserializer<impl serde_json::de::Read<'t>>,
        names: &Names<'_>,
    ) -> Result<Value, serde_json::Error> {
        let value = Any(names).deserialize(&mut parser)?;
        parser.end()?;
        Ok(value)
    }
    let names = Names::new(bytes);
    // All of it at once is faster than one string after the other, even where it has been looked at before.
    match simdutf8::basic::from_utf8(bytes) {
        Ok(text) => whole(serde_json::Deserializer::from_str(text), &names),
        Err(_) => whole(serde_json::Deserializer::from_slice(bytes), &names),
    }
}

/// What is known of any value.
struct Value {
    /// Bytes of memory that it would take as a [`serde_json::Value`], about.
    taken: u64,
    /// Items of an array; others are one.
    items: u64,
}

impl Value {
    fn one(taken: u64) -> Value {
        Value { taken, items: 1 }
    }
}

/// Takes any value.
#[derive(Clone, Copy)]
struct Any<'n, 't>(&'n Names<'t>);

/// A value itself.
const ONE: u64 = size_of::<serde_json::Value>() as u64;
/// A node of a map, which has room for eleven entries; at least five are in it, if there are so many.
const NODE: u64 = 11 * (ONE + size_of::<String>() as u64) + 16;
const ENTRY: u64 = NODE / 5;

impl<'de> DeserializeSeed<'de> for Any<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::one(ONE))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::one(ONE))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::one(ONE))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::one(ONE))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::one(ONE))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::one(ONE + text.len() as u64))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let (mut taken, mut count) = (ONE, 0);
        while let Some(item) = items.next_element_seed(self)? {
            taken += item.taken.saturating_sub(ONE);
            count += 1;
        }
        // A list has room for four from the first one on, and when it grows, for as many again.
        let room = if count == 0 { 0 } else { (2 * count).max(4) };
        Ok(Value {
            taken: taken + room * ONE,
            items: count,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut keys = Keys::new(self.0);
        let (mut taken, mut entries_taken) = (ONE, 0);
        while let Some(key) = entries.next_key_seed(self.0)? {
            taken += u64::from(key.bytes);
            if !keys.insert(key) {
                return Err(A::Error::custom("an object has the same key twice"));
            }
            let value = entries.next_value_seed(self)?;
            taken += value.taken.saturating_sub(ONE);
            entries_taken = (entries_taken + ENTRY).max(NODE);
        }
        Ok(Value::one(taken + entries_taken))
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
    fn the_place_is_told_to_programs_too() {
        let place = |ended: Result<Counts, Finding>| {
            let position = ended.unwrap_err().position;
            (position.line, position.column)
        };
        assert_eq!(place(document(b"[1,\n2")), (Some(2), Some(1)));
        assert_eq!(place(document(b"")), (Some(1), None));
        assert_eq!(place(lines(b"{}\n\n{\"a\"}\n")), (Some(3), Some(5)));
    }

    #[test]
    fn what_values_take_is_known_before_they_are_made() {
        let taken = |text: &str| parse(text.as_bytes()).unwrap().taken;
        assert_eq!(taken("1"), ONE);
        assert_eq!(taken("\"abc\""), ONE + 3);
        assert_eq!(taken("[1, [], 2]"), ONE + 3 * 2 * ONE);
        assert_eq!(taken("{\"abc\": \"de\"}"), ONE + NODE + 3 + 2);
        let entries: Vec<String> = (10..60).map(|key| format!("\"{key}\":0")).collect();
        let many = format!("{{{}}}", entries.join(","));
        assert!(taken(&many) > 50 * ENTRY && taken(&many) < 70 * ENTRY);
    }

    #[test]
    fn a_small_text_of_too_many_values_is_not_made_for_a_schema() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("schema.json");
        std::fs::write(&path, "true").unwrap();
        let schema = Schema::load(&path).unwrap();
        let few = b"[{\"a\":0}]";
        let many = format!("[{}0]", "{\"a\":0},".repeat(2 << 20));
        for (text, rule) in [(&few[..], None), (many.as_bytes(), Some(TOO_LONG))] {
            let mut document = Document::new(Some(schema.clone()), text.len());
            document.feed(text).unwrap();
            let ended = document.finish().err();
            assert_eq!(ended.map(|found| found.rule).as_deref(), rule);
        }
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
        assert_eq!(found.position.line, Some(1));
    }
}
