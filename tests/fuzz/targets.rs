//! What must hold of any bytes whatever, in the places where ringest reads what others may have written. The fuzz
//! targets and the plain test over their corpora run the same functions.
#![allow(dead_code, reason = "each fuzz target uses one")]

use std::ffi::OsStr;
use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ringest::io::{Identity, Timestamp};
use ringest::ledger::schema::{VALUE_VERSION, Value};
use ringest::ledger::{
    Arrival, Counts, Kept, ManifestEnd, Outcome, Owed, PendingLines, Placement, Record,
    SourceEntry, SourceId,
};
use ringest::pipeline::Finding;
use ringest::pipeline::read::inspect::Inspection;
use ringest::pipeline::read::sidecar::claimed_digest;
use ringest::pipeline::record::manifest;
use ringest::settings::{Content, ContentRules, CsvRules, Purpose, RawSettings};
use xxhash_rust::xxh3::xxh3_64;

/// The bytes of a ledger value: whatever decodes, encodes to the very bytes it came from.
///
/// The first byte chooses the type; the rest are fields, to which version and checksum are added, since no fuzzer
/// guesses a checksum. As they are, they must be refused or decode too.
pub fn ledger(bytes: &[u8]) {
    let Some((kind, fields)) = bytes.split_first() else {
        return;
    };
    let mut value = vec![VALUE_VERSION];
    value.extend(fields);
    value.extend(xxh3_64(&value).to_le_bytes());
    for bytes in [&value[..], fields] {
        match kind % 9 {
            0 => same_bytes::<Arrival>(bytes),
            1 => same_bytes::<Record>(bytes),
            2 => same_bytes::<Owed>(bytes),
            3 => same_bytes::<Kept>(bytes),
            4 => same_bytes::<PendingLines>(bytes),
            5 => same_bytes::<ManifestEnd>(bytes),
            6 => same_bytes::<SourceEntry>(bytes),
            7 => same_bytes::<u64>(bytes),
            _ => same_bytes::<String>(bytes),
        }
    }
}

fn same_bytes<V: Value + Debug>(bytes: &[u8]) {
    if let Ok(value) = V::decode(bytes) {
        assert_eq!(value.encode(), bytes, "{value:?}");
    }
}

/// A manifest line: refused, or what it states, written again, states the same.
pub fn manifest(bytes: &[u8]) {
    let Ok(stated) = manifest::parse(bytes) else {
        return;
    };
    let root = Path::new("/");
    let beneath = |path: &Path| path.strip_prefix(root).expect("absolute").to_path_buf();
    let arrival = Arrival {
        seq: stated.seq,
        source: SourceId(1),
        path: beneath(&stated.path),
        identity: Identity {
            device: stated.device,
            inode: stated.inode,
            size: stated.size,
            mtime: stated.mtime,
            ctime: Timestamp::default(),
            born: Timestamp::default(),
        },
        sidecar: None,
        digest: stated.digest,
        key: None,
        outcome: Outcome::Ingest,
        placement: Placement::Rename,
        placed: beneath(&stated.placed),
        placed_inode: stated.inode,
        time_micros: stated.time_micros,
        counts: stated.counts,
        aside: None,
        placed_ctime: Default::default(),
        ctime_vouches: false,
    };
    let line = manifest::line(&arrival, &stated.source, root, root);
    assert_eq!(manifest::parse(&line), Ok(stated));
}

/// A settings file: resolved, or refused with a message that names it.
pub fn settings(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory for the settings");
    let path = dir.path().join("ringest.toml");
    std::fs::write(&path, bytes).expect("write the settings");
    let raw = RawSettings {
        config: Some(path.clone()),
        ..RawSettings::default()
    };
    match raw.resolve(Purpose::Flow) {
        Ok(loaded) => {
            let settings = &loaded.settings;
            assert!(!settings.sources.is_empty());
            let roots = [
                &settings.warehouse,
                &settings.manifests,
                &settings.state_path,
            ];
            let inputs = settings.sources.iter().map(|source| &source.input);
            for path in inputs.chain(roots) {
                assert!(path.is_absolute(), "{}", path.display());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A sidecar: a line that holds a digest for this name is found, and what is found stands in the text.
pub fn sidecar(bytes: &[u8]) {
    let (name, content) = match bytes.iter().position(|&byte| byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (&b"data.csv"[..], bytes),
    };
    let claimed = claimed_digest(content, OsStr::from_bytes(name));
    if let Some(digest) = claimed {
        let hex = hex_of(&digest);
        let text = content.to_ascii_lowercase();
        assert!(text.windows(64).any(|window| window == hex.as_bytes()));
    }
    // A bare digest is believed, and one that names the file before all others.
    let own = "07".repeat(32);
    let bare = claimed_digest(own.as_bytes(), OsStr::from_bytes(name));
    assert_eq!(bare, Some([7; 32]));
}

fn hex_of(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// CSV: the same verdict wherever it is cut, and what is accepted counts as `csv-core` counts it.
pub fn csv(bytes: &[u8]) {
    let Some((piece, text)) = bytes.split_first() else {
        return;
    };
    let rules = ContentRules {
        content: Content::Csv,
        csv: CsvRules {
            header: piece.is_multiple_of(2),
            ..CsvRules::default()
        },
        ..ContentRules::default()
    };
    let ended = inspected_in_pieces(&rules, usize::from(*piece), text);
    let Ok(counts) = ended else { return };
    let mut reader = csv_core::Reader::new();
    let (mut fields, mut ends) = (vec![0; text.len() + 1], vec![0; text.len() + 1]);
    let (mut rest, mut width, mut records) = (text, 0, 0);
    loop {
        let (ended, read, _, more) = reader.read_record(rest, &mut fields, &mut ends);
        rest = &rest[read..];
        width += more as u64;
        match ended {
            csv_core::ReadRecordResult::Record => {
                assert_eq!(counts.columns, Some(width));
                (width, records) = (0, records + 1);
            }
            csv_core::ReadRecordResult::End => break,
            _ => {}
        }
    }
    let header = u64::from(rules.csv.header);
    assert_eq!(counts.records, Some(records - header));
}

/// JSON: the same verdict wherever it is cut; what is accepted is JSON for `serde_json`, too, and each line of it one value.
pub fn json(bytes: &[u8]) {
    let Some((piece, text)) = bytes.split_first() else {
        return;
    };
    let rules = |content| ContentRules {
        content,
        ..ContentRules::default()
    };
    let piece = usize::from(*piece);
    if inspected_in_pieces(&rules(Content::Json), piece, text).is_ok() {
        let value: Result<serde_json::Value, _> = serde_json::from_slice(text);
        assert!(value.is_ok(), "{value:?}");
    }
    if let Ok(counts) = inspected_in_pieces(&rules(Content::Jsonl), piece, text) {
        let mut records = 0;
        for line in text.split(|byte| *byte == b'\n') {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let value: Result<serde_json::Value, _> = serde_json::from_slice(line);
            assert!(value.is_ok(), "{value:?}");
            records += 1;
        }
        assert_eq!(counts.records, Some(records));
    }
}

/// Text in some encoding: the same verdict wherever it is cut, and that of `encoding_rs` on the whole.
pub fn encoding(bytes: &[u8]) {
    const LABELS: [&str; 8] = [
        "utf-16",
        "utf-16be",
        "shift_jis",
        "gb18030",
        "euc-kr",
        "big5",
        "iso-2022-jp",
        "koi8-r",
    ];
    let [which, piece, text @ ..] = bytes else {
        return;
    };
    let label = LABELS[usize::from(*which) % LABELS.len()];
    let rules = ContentRules {
        content: Content::Text,
        encoding: label.parse().expect("a label"),
        ..ContentRules::default()
    };
    let ended = inspected_in_pieces(&rules, usize::from(*piece), text);
    let declared = encoding_rs::Encoding::for_label(label.as_bytes()).expect("a label");
    let decoded = match encoding_rs::Encoding::for_bom(text) {
        None => declared.decode_without_bom_handling_and_without_replacement(text),
        Some((marked, mark)) => {
            let other = label == "utf-16" && marked != encoding_rs::UTF_8;
            (marked == declared || other)
                .then(|| marked.decode_without_bom_handling_and_without_replacement(&text[mark..]))
                .flatten()
        }
    };
    let is_text = decoded.is_some_and(|text| !text.contains('\0'));
    assert_eq!(ended.is_ok(), is_text, "{label}: {ended:?}");
}

fn inspected_in_pieces(rules: &ContentRules, piece: usize, text: &[u8]) -> Result<Counts, Finding> {
    let inspected = |piece: usize| {
        let mut inspection = Inspection::begin(rules, Path::new("file"), 0).expect("rules");
        for piece in text.chunks(piece.max(1)) {
            inspection.feed(piece);
        }
        inspection.finish()
    };
    let whole = inspected(text.len());
    assert_eq!(inspected(piece), whole, "in pieces of {piece}");
    whole
}
