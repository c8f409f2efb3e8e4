//! The manifest, read without any of ringest's own code.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::site::files_beneath;

/// One line: exactly one JSON object.
#[derive(Debug, Clone)]
pub struct Line {
    /// The line as written, without its `\n`.
    pub raw: String,
    pub fields: Map<String, Value>,
    /// The `manifest.jsonl` that holds it.
    pub manifest: PathBuf,
}

impl Line {
    pub fn text(&self, field: &str) -> &str {
        self.fields
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no text {field:?} in {}", self.raw))
    }

    pub fn number(&self, field: &str) -> u64 {
        self.fields
            .get(field)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no number {field:?} in {}", self.raw))
    }

    pub fn sha256(&self) -> &str {
        self.text("sha256")
    }

    /// Where the file came from: `path_b64` where the name is not UTF-8, else `path`.
    pub fn source_path(&self) -> PathBuf {
        match self.fields.get("path_b64").and_then(Value::as_str) {
            Some(text) => {
                let bytes = data_encoding::BASE64
                    .decode(text.as_bytes())
                    .expect("path_b64 is base64");
                PathBuf::from(OsString::from_vec(bytes))
            }
            None => PathBuf::from(self.text("path")),
        }
    }

    /// The file in the warehouse. A name that is not UTF-8 is found by its lossy form.
    pub fn placed(&self) -> PathBuf {
        let text = self.text("warehouse_path");
        let path = PathBuf::from(text);
        if path.symlink_metadata().is_ok() || !text.contains('\u{fffd}') {
            return path;
        }
        let directory = path.parent().expect("a warehouse path has a parent");
        let found = files_beneath(directory)
            .into_iter()
            .find(|file| file.to_string_lossy() == text);
        found.unwrap_or_else(|| panic!("nothing in the warehouse looks like {text:?}"))
    }
}

/// All lines, hour by hour, in the order written. With `whole`, as after a clean end: no line may be torn.
pub fn read(root: &Path, whole: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    for manifest in files_beneath(root) {
        if manifest
            .file_name()
            .is_none_or(|name| name != "manifest.jsonl")
        {
            continue;
        }
        let mut bytes = fs::read(&manifest).unwrap_or_else(|e| panic!("read {manifest:?}: {e}"));
        let end = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |newline| newline + 1);
        assert!(
            !whole || end == bytes.len(),
            "{manifest:?} ends with a torn line"
        );
        bytes.truncate(end);
        let text =
            String::from_utf8(bytes).unwrap_or_else(|e| panic!("{manifest:?} is not UTF-8: {e}"));
        for raw in text.split_terminator('\n') {
            let fields = serde_json::from_str(raw)
                .unwrap_or_else(|e| panic!("{manifest:?}: not one JSON object ({e}): {raw:?}"));
            lines.push(Line {
                raw: raw.to_owned(),
                fields,
                manifest: manifest.clone(),
            });
        }
    }
    let mut last = None;
    for line in &lines {
        let seq = line.number("seq");
        assert!(
            last < Some(seq),
            "sequence number {seq} follows {last:?}: {}",
            line.raw
        );
        last = Some(seq);
    }
    lines
}
