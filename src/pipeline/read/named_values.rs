//! `mask_fields`: what a command wrote about a file, without the values that the file has in certain fields.
//!
//! Nothing else that is told of a file quotes it, so the file is read again, but only then: when a command wrote something, and the source
//! names such fields. Memory: one document or line of JSON, a large one for one file at a time, or one field of CSV no longer than the
//! text.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::io::direct;
use crate::pipeline::Finding;
use crate::settings::{Content, ContentRules, CsvRules, Encoding};

use super::inspect::{DOCUMENT_BYTES_MAX, Decoding, gathered_bytes};

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 256 << 10;
/// A text that holds more different values is not told.
const VALUES_MAX: usize = 1000;
/// Characters of a long value that are left to be seen, and how long that is.
const SHOWN: usize = 4;
const LONG: usize = 12;
/// Documents of so many bytes are gathered one at a time.
const ALONE_BYTES: u64 = 8 << 20;

/// The text with the values of those fields masked. `None`: that cannot be done, as where a file has none of the columns.
/// `give_up`: nobody wants to know any more.
pub fn mask_named(
    rules: &ContentRules,
    file: BorrowedFd<'_>,
    text: &str,
    give_up: &AtomicBool,
) -> Option<String> {
    if rules.mask_fields.is_empty() || text.is_empty() {
        return Some(text.into());
    }
    // It may have been read past the page cache.
    direct::set(file, false).ok()?;
    let mut found = Found {
        text,
        rules,
        give_up,
        values: BTreeMap::new(),
    };
    match rules.content {
        Content::Csv => {
            let has_any = find_in_csv(rules, file, &mut found).ok()?;
            has_any.then_some(())?;
        }
        Content::Json | Content::Jsonl if !rules.mask_fields.pointers.is_empty() => {
            find_in_json(rules, file, &mut found).ok()?;
        }
        _ => return None,
    }
    if found.values.len() > VALUES_MAX {
        return None;
    }
    let mut values: Vec<(String, String)> = found.values.into_iter().collect();
    // One may be a part of another.
    values.sort_by_key(|(written, _)| std::cmp::Reverse(written.len()));
    let mut masked = text.to_owned();
    for (written, mask) in values {
        masked = masked.replace(&written, &mask);
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
    rules: &'a ContentRules,
    give_up: &'a AtomicBool,
    /// As they are written there, and what is put in their place.
    values: BTreeMap<String, String>,
}

impl Found<'_> {
    /// A value of CSV, or a text of JSON.
    fn look_for(&mut self, value: &str) {
        // A text is one line: values of several are there in parts.
        for part in value.split(char::is_control).map(str::trim) {
            let mask = mask_of(part);
            let quoted = serde_json::to_string(part).unwrap_or_default();
            let escaped = quoted.get(1..quoted.len() - 1).unwrap_or_default();
            for written in [part, escaped, &part.replace('"', "\"\"")] {
                self.look_for_written(written, &mask);
            }
            if let Some(quote) = self.rules.csv.quote {
                let quote = char::from(quote).to_string();
                self.look_for_written(&part.replace(&quote, &quote.repeat(2)), &mask);
            }
            if !part.is_ascii() {
                for escape in [
                    |unit| format!("\\u{unit:04x}"),
                    |unit| format!("\\u{unit:04X}"),
                ] {
                    self.look_for_written(&in_ascii(escaped, escape), &mask);
                }
                // Bytes as they are in the file are no UTF-8, and become this.
                if let Encoding::Other(encoding) = self.rules.encoding {
                    let bytes = encoding.encode(part).0;
                    self.look_for_written(&String::from_utf8_lossy(&bytes), &mask);
                }
            }
        }
    }

    /// A text or a number of JSON, as it is in the file.
    fn look_for_json(&mut self, token: &str) {
        let text = token.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
        if let Some(written) = text {
            let value: String = serde_json::from_str(token).unwrap_or_default();
            self.look_for_written(written, &mask_of(&value));
            self.look_for(&value);
        } else {
            self.look_for(token);
            if let Ok(number) = serde_json::from_str::<serde_json::Number>(token) {
                self.look_for(&number.to_string());
            }
        }
    }

    fn look_for_written(&mut self, written: &str, mask: &str) {
        let new = !written.is_empty() && self.text.contains(written);
        if new && self.values.len() <= VALUES_MAX {
            self.values.insert(written.into(), mask.into());
        }
    }
}

/// The texts and numbers in a value of JSON, but for the names of members.
fn each_scalar(json: &str, mut take: impl FnMut(&str)) {
    let bytes = json.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let begin = at;
        match bytes[at] {
            b'"' => {
                at += 1;
                while bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
                let behind = json[at..].trim_start().bytes().next();
                if behind != Some(b':') {
                    take(&json[begin..at]);
                }
            }
            b'-' | b'0'..=b'9' => {
                let of_number =
                    |byte: &&u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                at += bytes[at..].iter().take_while(of_number).count();
                take(&json[begin..at]);
            }
            _ => at += 1,
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
    give_up: &AtomicBool,
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
            Ok(_) if give_up.load(Ordering::Relaxed) => return Err(Errno::CANCELED.into()),
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

/// Whether the file has any of the columns.
fn find_in_csv(
    rules: &ContentRules,
    file: BorrowedFd<'_>,
    found: &mut Found<'_>,
) -> io::Result<bool> {
    let mut fields = Fields::new(&rules.csv, found.text.len());
    let give_up = found.give_up;
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
    read(rules, file, give_up, |piece| {
        fields.feed(piece, &mut take);
        Ok(())
    })?;
    fields.finish(&mut take);
    Ok(masked.contains(&true))
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
    static ALONE: Mutex<()> = Mutex::new(());
    let bytes = gathered_bytes(rules, rustix::fs::fstat(file)?.st_size as u64);
    let _alone =
        (bytes >= ALONE_BYTES).then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
    // At once: to grow it would have to be there twice.
    let mut begun: Vec<u8> = Vec::with_capacity(bytes as usize);
    let pointers: Vec<&[String]> = rules
        .mask_fields
        .pointers
        .iter()
        .map(|it| &it[..])
        .collect();
    let give_up = found.give_up;
    let mut take = |document: &[u8]| {
        let mut parser = serde_json::Deserializer::from_slice(document);
        let walk = Walk {
            pointers: pointers.clone(),
            found,
        };
        // It was well-formed when it was checked. A blank line is none.
        let _ = walk.deserialize(&mut parser);
    };
    read(rules, file, give_up, |mut piece| {
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
        if self.pointers.is_empty() {
            deserializer.deserialize_ignored_any(IgnoredAny).map(drop)
        } else if self.pointers.iter().any(|pointer| pointer.is_empty()) {
            let value = <&RawValue>::deserialize(deserializer)?;
            each_scalar(value.get(), |token| self.found.look_for_json(token));
            Ok(())
        } else {
            deserializer.deserialize_any(self)
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

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut index = 0u64;
        loop {
            // A pointer names its field in each item, too: arrays are many of the same.
            let mut pointers = self.beneath(&index.to_string());
            pointers.extend(&self.pointers);
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
        mask_named(&rules, on_disk.as_fd(), text, &AtomicBool::new(false))
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
            (&[], "22 and 1", "22 and 1"),
        ] {
            let masked = masked(Content::Csv, fields, file.as_bytes(), text);
            assert_eq!(masked.as_deref(), Some(becomes));
        }
        let none = masked(Content::Csv, &["none"], file.as_bytes(), "22 and 1");
        assert_eq!(none, None, "what it would have to mask is not known");
        for (content, fields) in [(Content::Json, &["a"][..]), (Content::Text, &["a", "/a"])] {
            assert_eq!(masked(content, fields, br#"{"a": 1}"#, "1"), None);
        }
    }

    #[test]
    fn values_are_masked_as_they_are_in_the_file() {
        let file = r#"{"a": [123456789012345678901234, 1E5, 12.50, "01\/02\/1990", "M\u00FCllers", "\u0041lice\n\"B\""], "b": {"\u0041lice": 7}}"#;
        for (text, becomes) in [
            ("123456789012345678901234", "****1234"),
            (
                "1E5 or 100000.0, 12.50 or 12.5",
                "**** or ****, **** or ****",
            ),
            (r"01\/02\/1990, 01/02/1990", "****, ****"),
            (r"M\u00FCllers M\u00fcllers Müllers", "**** **** ****"),
            (r#"\u0041lice\n\"B\" Alice | "B""#, "**** **** | ****"),
        ] {
            let masked = masked(Content::Json, &["/a"], file.as_bytes(), text);
            assert_eq!(masked.as_deref(), Some(becomes), "{text}");
        }
        let mut on_disk = tempfile::tempfile().unwrap();
        on_disk.write_all(b"a,b\n'O''Hara',M\xfcller\n").unwrap();
        let mut rules = ContentRules {
            content: Content::Csv,
            encoding: "windows-1252".parse().unwrap(),
            mask_fields: ["a", "b"].into_iter().map(String::from).collect(),
            ..ContentRules::default()
        };
        rules.csv.quote = Some(b'\'');
        let text = String::from_utf8_lossy(b"'O''Hara',M\xfcller O'Hara M\xc3\xbcller");
        let masked = mask_named(&rules, on_disk.as_fd(), &text, &AtomicBool::new(false));
        assert_eq!(masked.as_deref(), Some("'****',**** **** ****"));
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
            (&["/a"], "b/c and e", "b/c and e"),
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
