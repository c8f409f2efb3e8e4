//! An event as a line: one JSON object, or one line of text.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{Debug, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;
use tracing::Level;
use tracing::field::{Field, Visit};

use crate::observe::mask::mask;

/// The shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Text,
}

/// A line in the making; fields are visited straight into it.
pub(super) struct Line {
    format: Format,
    bytes: Vec<u8>,
    named: bool,
}

impl Line {
    pub(super) fn begin(format: Format, level: Level) -> Line {
        let mut bytes = Vec::with_capacity(512);
        let timestamp = timestamp(SystemTime::now());
        match format {
            Format::Json => {
                bytes.extend_from_slice(b"{\"ts\":\"");
                bytes.extend_from_slice(&timestamp);
                bytes.extend_from_slice(b"\",\"level\":\"");
                bytes.extend_from_slice(level_name(level).as_bytes());
                bytes.push(b'"');
            }
            Format::Text => {
                bytes.extend_from_slice(&timestamp);
                bytes.push(b' ');
                bytes.extend_from_slice(level.as_str().as_bytes());
            }
        }
        Line {
            format,
            bytes,
            named: false,
        }
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        if self.format == Format::Json {
            self.bytes.push(b'}');
        }
        self.bytes.push(b'\n');
        self.bytes
    }

    /// Every line has an event; one of a library that names none is a `message`.
    fn name(&mut self, name: &str) {
        if !self.named {
            self.named = true;
            if name != "event" {
                self.string("event", "message");
            }
        }
        match self.format {
            Format::Json => {
                self.bytes.extend_from_slice(b",\"");
                self.bytes.extend_from_slice(name.as_bytes());
                self.bytes.extend_from_slice(b"\":");
            }
            Format::Text => {
                self.bytes.push(b' ');
                if name != "event" {
                    self.bytes.extend_from_slice(name.as_bytes());
                    self.bytes.push(b'=');
                }
            }
        }
    }

    pub(super) fn string(&mut self, name: &str, value: &str) {
        let value = &*mask(value);
        self.name(name);
        match self.format {
            Format::Json => self.json(value),
            Format::Text if is_plain(value) => self.bytes.extend_from_slice(value.as_bytes()),
            // Also escapes what a terminal would obey.
            Format::Text => self
                .bytes
                .extend_from_slice(format!("{value:?}").as_bytes()),
        }
    }

    pub(super) fn value(&mut self, name: &str, value: &impl Serialize) {
        self.name(name);
        self.json(value);
    }

    /// Inlines JSON. Between tokens a newline is only space; within a string it cannot be.
    fn raw(&mut self, name: &str, json: &str) {
        self.name(name);
        let masked = mask_strings(json);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(masked.as_bytes());
        for byte in &mut self.bytes[start..] {
            if *byte == b'\n' {
                *byte = b' ';
            }
        }
    }

    fn json(&mut self, value: &(impl Serialize + ?Sized)) {
        let start = self.bytes.len();
        if serde_json::to_writer(&mut self.bytes, value).is_err() {
            self.bytes.truncate(start);
            self.bytes.extend_from_slice(b"null");
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name().strip_prefix("json.") {
            Some(name) => self.raw(name, value),
            None => self.string(field.name(), value),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.value(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.value(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.value(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.value(field.name(), &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// JSON with its strings masked; a number is what it was.
fn mask_strings(json: &str) -> Cow<'_, str> {
    // Escapes say of a string what is in it only once it is parsed.
    if !json.contains('\\')
        && let Cow::Borrowed(same) = mask(json)
    {
        return Cow::Borrowed(same);
    }
    match serde_json::from_str(json) {
        Ok(value) => masked(value).to_string().into(),
        // It is no JSON, and so not a number either.
        Err(_) => mask(json),
    }
}

fn masked(value: Value) -> Value {
    match value {
        Value::String(text) => mask(&text).into(),
        Value::Array(values) => values.into_iter().map(masked).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (mask(&name).into_owned(), masked(value)))
            .collect(),
        other => other,
    }
}

/// Whether a value reads well without quotes in a line of text.
fn is_plain(value: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '"';
    !value.is_empty() && value.chars().all(plain)
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// RFC 3339 in UTC with microseconds. The calendar is worked out once a second for each thread.
pub(super) fn timestamp(now: SystemTime) -> [u8; 27] {
    thread_local! {
        static SECOND: Cell<(u64, [u8; 27])> = const { Cell::new((u64::MAX, [b'0'; 27])) };
    }
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut text) = SECOND.get();
    if second != since_epoch.as_secs() {
        second = since_epoch.as_secs();
        text = calendar(second);
        SECOND.set((second, text));
    }
    let mut micros = since_epoch.subsec_micros();
    for digit in text[20..26].iter_mut().rev() {
        *digit = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    text
}

/// `YYYY-MM-DDThh:mm:ss.000000Z`; a clock beyond the year 9999 stays at the epoch.
fn calendar(second: u64) -> [u8; 27] {
    let time = i64::try_from(second)
        .ok()
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .unwrap_or_default();
    let mut text = String::with_capacity(27);
    let _ = write!(text, "{time:.6}");
    let mut bytes = *b"1970-01-01T00:00:00.000000Z";
    if text.len() == bytes.len() {
        bytes.copy_from_slice(text.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn card_numbers_in_strings_are_masked_and_numbers_are_not() {
        for format in [Format::Json, Format::Text] {
            let mut line = Line::begin(format, Level::INFO);
            line.string("event", "e");
            line.string("path", "/in/4111111111111111.csv");
            line.value("bytes", &4_111_111_111_111_111_u64);
            line.raw(
                "list",
                r#"[{"b":"4111-1111-1111-1111","a":4111111111111111}]"#,
            );
            let text = String::from_utf8(line.end()).expect("UTF-8");
            assert!(text.contains("/in/****1111.csv"), "{text}");
            assert!(
                text.contains(r#"[{"a":4111111111111111,"b":"****1111"}]"#),
                "{text}"
            );
            assert_eq!(text.matches("4111111111111111").count(), 2, "{text}");
        }
    }

    #[test]
    fn timestamps_are_rfc_3339_in_utc_with_microseconds() {
        let at = |us| timestamp(UNIX_EPOCH + Duration::from_micros(us));
        assert_eq!(&at(0), b"1970-01-01T00:00:00.000000Z");
        assert_eq!(&at(1_767_323_045_678_901), b"2026-01-02T03:04:05.678901Z");
        assert_eq!(&at(1_767_323_045_009_000), b"2026-01-02T03:04:05.009000Z");
    }
}
