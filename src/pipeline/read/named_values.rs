//! `mask_fields`: what a command wrote about a file, without the values that the file has in certain fields.
//!
//! Nothing else that is told of a file quotes it, so the file is read again, but only then: when a command wrote something, and the source
//! names such fields. Memory: one document or line of JSON, as for its check, or one field of CSV no longer than the text.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::pipeline::Finding;
use crate::settings::{Content, ContentRules, CsvRules, Encoding};

use super::inspect::{DOCUMENT_BYTES_MAX, Decoding};

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 256 << 10;
/// A text that holds more different values is not told.
const VALUES_MAX: usize = 1000;
/// Characters of a long value that are left to be seen, and how long that is.
const SHOWN: usize = 4;
const LONG: usize = 12;

/// The text with the values of those fields masked. `None`: that cannot be done.
pub fn mask_named(rules: &ContentRules, file: BorrowedFd<'_>, text: &str) -> Option<String> {
    if rules.mask_fields.is_empty() || text.is_empty() {
        return Some(text.into());
    }
    let mut found = Found {
        text,
        values: BTreeSet::new(),
    };
    match rules.content {
        Content::Csv => find_in_csv(rules, file, &mut found).ok()?,
        Content::Json | Content::Jsonl => find_in_json(rules, file, &mut found).ok()?,
        Content::Any | Content::Text => {}
    }
    if found.values.len() > VALUES_MAX {
        return None;
    }
    let mut values: Vec<String> = found.values.into_iter().collect();
    // One may be a part of another.
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    let mut masked = text.to_owned();
    for value in values {
        masked = masked.replace(&value, &mask_of(&value));
    }
    Some(masked)
}

fn mask_of(value: &str) -> String {
    let characters = value.chars().count();
    let shown = if characters >= LONG { SHOWN } else { 0 };
    let end: String = value.chars().skip(characters - shown).collect();
    format!("****{end}")
}

/// Values that are in the text.
struct Found<'a> {
    text: &'a str,
    values: BTreeSet<String>,
}

impl Found<'_> {
    fn look_for(&mut self, value: &str) {
        // A text is one line: values of several are there in parts.
        for part in value.split(char::is_control).map(str::trim) {
            let quoted = serde_json::to_string(part).unwrap_or_default();
            let escaped = quoted.get(1..quoted.len() - 1).unwrap_or_default();
            for written in [
                part,
                &part.replace('"', "\"\""),
                escaped,
                &in_ascii(escaped, |unit| format!("\\u{unit:04x}")),
                &in_ascii(escaped, |unit| format!("\\u{unit:04X}")),
            ] {
                let new = !written.is_empty() && self.text.contains(written);
                if new && self.values.len() <= VALUES_MAX {
                    self.values.insert(written.into());
                }
            }
        }
    }
}

/// The text with other characters escaped.
fn in_ascii(text: &str, escape: fn(u16) -> String) -> String {
    let one = |character: char| match character.is_ascii() {
        true => character.to_string(),
        false => {
            let mut units = [0; 2];
            let units = character.encode_utf16(&mut units).iter();
            units.map(|&unit| escape(unit)).collect()
        }
    };
    text.chars().map(one).collect()
}

/// Reads a file from its beginning, as UTF-8.
fn read(
    rules: &ContentRules,
    file: BorrowedFd<'_>,
    mut sink: impl FnMut(&[u8]) -> Result<(), Finding>,
) -> io::Result<()> {
    let mut decoding = match rules.encoding {
        Encoding::Utf8 => None,
        other => Some(Decoding::new(other)),
    };
    let refused = |found: Finding| io::Error::other(found.message);
    let mut buffer = vec![0; PIECE_BYTES];
    let mut offset = 0;
    loop {
        let bytes = match rustix::io::pread(file, &mut buffer, offset) {
            Ok(0) => break,
            Ok(bytes) => bytes,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        offset += bytes as u64;
        let piece = &buffer[..bytes];
        let taken = match &mut decoding {
            Some(decoding) => decoding.feed(piece, &mut sink),
            None => sink(piece),
        };
        taken.map_err(refused)?;
    }
    match &mut decoding {
        Some(decoding) => decoding.finish(sink).map_err(refused),
        None => Ok(()),
    }
}

fn find_in_csv(
    rules: &ContentRules,
    file: BorrowedFd<'_>,
    found: &mut Found<'_>,
) -> io::Result<()> {
    let mut fields = Fields::new(&rules.csv, found.text.len());
    let mut masked: Vec<bool> = Vec::new();
    let mut take = |record: u64, column: usize, value: Option<&[u8]>| {
        let Some(value) = value.and_then(|value| std::str::from_utf8(value).ok()) else {
            return;
        };
        match record {
            0 => {
                let value = value.strip_prefix('\u{feff}').unwrap_or(value);
                masked.push(rules.mask_fields.columns.iter().any(|it| it == value));
            }
            _ if masked.get(column) == Some(&true) => found.look_for(value),
            _ => {}
        }
    };
    read(rules, file, |piece| {
        fields.feed(piece, &mut take);
        Ok(())
    })?;
    fields.finish(&mut take);
    Ok(())
}

/// CSV, field by field.
struct Fields {
    reader: csv_core::Reader,
    field: Vec<u8>,
    /// Bytes of a field of which the rest is of no interest, but for the header.
    most: usize,
    too_long: bool,
    record: u64,
    column: usize,
}

impl Fields {
    fn new(rules: &CsvRules, most: usize) -> Fields {
        let mut builder = csv_core::ReaderBuilder::new();
        builder.delimiter(rules.delimiter);
        match rules.quote {
            Some(quote) => builder.quote(quote),
            None => builder.quoting(false),
        };
        Fields {
            reader: builder.build(),
            field: Vec::new(),
            most,
            too_long: false,
            record: 0,
            column: 0,
        }
    }

    fn feed(&mut self, mut piece: &[u8], take: &mut impl FnMut(u64, usize, Option<&[u8]>)) {
        while !piece.is_empty() {
            piece = self.step(piece, take).0;
        }
    }

    fn finish(&mut self, take: &mut impl FnMut(u64, usize, Option<&[u8]>)) {
        while !self.step(&[], take).1 {}
    }

    /// Takes in some of a piece. Returns the rest of it, and whether that was all there is.
    fn step<'p>(
        &mut self,
        piece: &'p [u8],
        take: &mut impl FnMut(u64, usize, Option<&[u8]>),
    ) -> (&'p [u8], bool) {
        use csv_core::ReadFieldResult::{End, Field, InputEmpty, OutputFull};
        let mut output = [0; 1024];
        let (result, read, written) = self.reader.read_field(piece, &mut output);
        let most = if self.record == 0 {
            usize::MAX
        } else {
            self.most
        };
        match self.field.len() + written > most {
            true => self.too_long = true,
            false => self.field.extend(&output[..written]),
        }
        if let Field { record_end } = result {
            let value = (!self.too_long).then_some(&self.field[..]);
            take(self.record, self.column, value);
            self.field.clear();
            self.too_long = false;
            self.column += 1;
            if record_end {
                (self.record, self.column) = (self.record + 1, 0);
            }
        }
        match result {
            End => (&[], true),
            InputEmpty | OutputFull | Field { .. } => (&piece[read..], false),
        }
    }
}

fn find_in_json(
    rules: &ContentRules,
    file: BorrowedFd<'_>,
    found: &mut Found<'_>,
) -> io::Result<()> {
    let mut begun: Vec<u8> = Vec::new();
    let pointers: Vec<&[String]> = rules
        .mask_fields
        .pointers
        .iter()
        .map(|it| &it[..])
        .collect();
    let mut take = |document: &[u8]| {
        let mut parser = serde_json::Deserializer::from_slice(document);
        let walk = Walk {
            pointers: pointers.clone(),
            found,
        };
        // It was well-formed when it was checked. A blank line is none.
        let _ = walk.deserialize(&mut parser);
    };
    read(rules, file, |mut piece| {
        if rules.content == Content::Jsonl {
            while let Some(end) = memchr::memchr(b'\n', piece) {
                begun.extend(&piece[..end]);
                take(&begun);
                begun.clear();
                piece = &piece[end + 1..];
            }
        }
        // Not what was checked.
        if begun.len() + piece.len() > DOCUMENT_BYTES_MAX {
            begun.clear();
        }
        begun.extend(piece);
        Ok(())
    })?;
    take(&begun);
    Ok(())
}

/// Goes through a value to what is named beneath it.
struct Walk<'w, 'p, 't> {
    /// What is left of each pointer.
    pointers: Vec<&'p [String]>,
    found: &'w mut Found<'t>,
}

impl<'p> Walk<'_, 'p, '_> {
    fn scalar(self, value: &str) {
        if self.pointers.iter().any(|pointer| pointer.is_empty()) {
            self.found.look_for(value);
        }
    }

    /// The pointers that go on beneath a member of that name. A pointer to a value is one to all that is beneath it.
    fn beneath(&self, key: &str) -> Vec<&'p [String]> {
        let step = |pointer: &&'p [String]| match *pointer {
            [] => Some(*pointer),
            [first, rest @ ..] => (first == key).then_some(rest),
        };
        self.pointers.iter().filter_map(step).collect()
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.pointers.is_empty() {
            true => deserializer.deserialize_ignored_any(IgnoredAny).map(drop),
            false => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.scalar(&value.to_string());
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.scalar(&value.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.scalar(&value.to_string());
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.scalar(value);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut index = 0u64;
        loop {
            // A pointer names its field in each item, too: arrays are many of the same.
            let mut pointers = self.beneath(&index.to_string());
            pointers.extend(self.pointers.iter().filter(|pointer| !pointer.is_empty()));
            let walk = Walk {
                pointers,
                found: &mut *self.found,
            };
            if items.next_element_seed(walk)?.is_none() {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(key) = members.next_key::<String>()? {
            let walk = Walk {
                pointers: self.beneath(&key),
                found: &mut *self.found,
            };
            members.next_value_seed(walk)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    fn masked(content: Content, fields: &[&str], file: &[u8], text: &str) -> Option<String> {
        let mut on_disk = tempfile::tempfile().unwrap();
        on_disk.write_all(file).unwrap();
        let rules = ContentRules {
            content,
            mask_fields: fields.iter().map(|it| it.to_string()).collect(),
            ..ContentRules::default()
        };
        mask_named(&rules, on_disk.as_fd(), text)
    }

    #[test]
    fn values_of_named_columns_are_masked_wherever_they_are_in_the_text() {
        let file =
            "\u{feff}id,iban,\"the, name\"\n1,DE89370400440532013000,\"O\"\"Hara\n jr\"\n22,,x\n";
        for (fields, text, becomes) in [
            (
                &["iban"][..],
                "row 1: DE89370400440532013000!",
                "row 1: ****3000!",
            ),
            (
                &["the, name"],
                "O\"Hara | jr, O\"\"Hara",
                "**** | ****, ****",
            ),
            (&["id"], "22 and 1", "**** and ****"),
            (&["none"], "22 and 1", "22 and 1"),
            (&[], "22 and 1", "22 and 1"),
        ] {
            let masked = masked(Content::Csv, fields, file.as_bytes(), text);
            assert_eq!(masked.as_deref(), Some(becomes));
        }
    }

    #[test]
    fn values_that_pointers_name_are_masked_in_each_item_and_all_beneath_them() {
        let file = r#"{"a": {"b/c": "secret one", "d": [{"e": 4711}, {"e": "zürich\t"}]}, "n": [["x1"], {"y": "y1"}]}"#;
        for (pointers, text, becomes) in [
            (&["/a/b~1c"][..], "it says secret one", "it says ****"),
            (&["/a/d/e"], "4711, zürich", "****, ****"),
            (
                &["/a/d/1/e"],
                "4711, zürich z\\u00fcrich",
                "4711, **** ****",
            ),
            (&["/n"], "x1 y1 4711", "**** **** 4711"),
            (&[""], "x1 y1 4711 secret one", "**** **** **** ****"),
            (&["/a/none", "b/c"], "secret one", "secret one"),
        ] {
            let document = masked(Content::Json, pointers, file.as_bytes(), text);
            assert_eq!(document.as_deref(), Some(becomes), "{pointers:?}");
            let lines = format!("\n{{}}\n{file}\n1\n");
            let lines = masked(Content::Jsonl, pointers, lines.as_bytes(), text);
            if pointers != [""] {
                assert_eq!(lines.as_deref(), Some(becomes), "{pointers:?}");
            }
        }
    }

    #[test]
    fn long_values_and_many_of_them_cost_little() {
        let long = "x".repeat(3 << 20);
        let file = format!("a,b\n{long},secret\n{long},\n");
        let text = masked(Content::Csv, &["a", "b"], file.as_bytes(), "xx secret");
        assert_eq!(text.as_deref(), Some("xx ****"));
        let many: String = (0..3000).map(|number| format!("{number}\n")).collect();
        let text: String = (0..3000).map(|number| format!("{number} ")).collect();
        let file = format!("a\n{many}");
        assert_eq!(masked(Content::Csv, &["a"], file.as_bytes(), &text), None);
    }
}
