//! Names on disk: partitions, file names in the warehouse, manifests, markers. All pure functions.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::ledger::{Arrival, Digest, Outcome};
use crate::settings::{Field, Piece, Source, Template};

/// Temporary files of copies, on filesystems without unnamed files. Swept at every start.
pub const TMP_DIR: &str = "_tmp";
/// Where duplicates are set aside, beneath the warehouse. Hive and Spark skip names that begin with `_`.
pub const DUPLICATES_DIR: &str = "_duplicates";
/// Where bad files are set aside, beneath the warehouse.
pub const QUARANTINE_DIR: &str = "_quarantine";
/// File in warehouse and manifests that names the ledger they belong to.
pub const MARKER: &str = ".ringest-ledger";
/// A manifest's file name.
pub const MANIFEST: &str = "manifest.jsonl";

/// Longest file name that Linux filesystems take, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// A longer extension is taken for part of the stem, so that a stem can always be cut.
const EXTENSION_BYTES_MAX: usize = 64;
const REASON_SUFFIX: &str = ".reason.json";
/// What a directory is called besides whose own name a file has.
const DIR_SUFFIX: &str = ".dir";
const MICROS_PER_HOUR: i64 = 3_600_000_000;

/// Where new content of a source is placed, beneath the warehouse.
pub fn ingest_dir(source: &Source, time_micros: i64) -> PathBuf {
    let filled = Filling::new(&source.name, time_micros).fill(&source.layout.partition);
    filled.into()
}

/// Where its duplicates are set aside.
pub fn duplicates_dir(source: &Source, time_micros: i64) -> PathBuf {
    // Without its end, if there are no partitions.
    let dir = Path::new(DUPLICATES_DIR).join(ingest_dir(source, time_micros));
    dir.components().collect()
}

/// Where its bad files are set aside.
pub fn quarantine_dir(source: &Source, time_micros: i64) -> PathBuf {
    let partition = ingest_dir(source, time_micros);
    let filled = Filling {
        partition: partition.as_os_str().as_bytes(),
        ..Filling::new(&source.name, time_micros)
    };
    let filled = PathBuf::from(filled.fill(&source.layout.quarantine_dir));
    filled.components().collect()
}

/// Where a path beneath an input goes beneath `base`. In the warehouse's own directory names that begin with a `_` are
/// ringest's, and so are those of date partitions: they get another one.
pub fn beneath(base: &Path, path: &Path) -> PathBuf {
    let own = path.iter().next().is_some_and(is_own);
    if !base.as_os_str().is_empty() || !own {
        return base.join(path);
    }
    let mut cleared = OsString::from("_");
    cleared.push(path);
    cleared.into()
}

/// Whether a name in the warehouse's own directory is ringest's.
fn is_own(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"_") || is_partition(name)
}

/// The path beneath an input that [`beneath`] has given way with, if it has: the inverse.
pub fn not_cleared(cleared: &Path) -> Option<PathBuf> {
    let path = cleared.as_os_str().as_bytes().strip_prefix(b"_")?;
    let path = PathBuf::from(OsStr::from_bytes(path));
    path.iter().next().is_some_and(is_own).then_some(path)
}

/// The path of a directory in which a file has the name of the component at `depth`: that component gets another one.
pub fn dir_beside(dir: &Path, depth: usize) -> PathBuf {
    let renamed = dir.iter().enumerate().map(|(at, name)| match at == depth {
        true => with_suffix(name, DIR_SUFFIX),
        false => name.to_os_string(),
    });
    renamed.collect()
}

/// Whether a file that came from directory `came` may lie in directory `lies`, both beneath their roots: some components of that may be
/// those of [`dir_beside`].
pub fn is_dir_of(lies: &Path, came: &Path) -> bool {
    let is_of = |lies: &OsStr, came: &OsStr| {
        let mut name = came.to_os_string();
        while name.len() < lies.len() {
            name = with_suffix(&name, DIR_SUFFIX);
        }
        name == lies
    };
    lies.iter().count() == came.iter().count()
        && lies.iter().zip(came).all(|(lies, came)| is_of(lies, came))
}

/// Where new content of a source that came as `path` goes, if that name is free.
pub fn new_path(source: &Source, path: &Path, time_micros: i64) -> PathBuf {
    let name = path.file_name().unwrap_or(OsStr::new("_"));
    let path = path.with_file_name(placed_name(source, name, time_micros));
    beneath(&ingest_dir(source, time_micros), &path)
}

/// Where an arrival that came as `path` goes, if that name is free.
pub fn path_of(outcome: &Outcome, source: &Source, path: &Path, time_micros: i64) -> PathBuf {
    match outcome {
        Outcome::Ingest => new_path(source, path, time_micros),
        Outcome::Duplicate { .. } => duplicates_dir(source, time_micros).join(path),
        Outcome::Quarantine { .. } => quarantine_dir(source, time_micros).join(path),
    }
}

/// What new content that came as `name` is called in the warehouse.
pub fn placed_name(source: &Source, name: &OsStr, time_micros: i64) -> OsString {
    let template = &source.layout.placed_name;
    if template.pieces() == [Piece::Field(Field::Name)] {
        return name.to_os_string();
    }
    let filled = |name: &[u8]| {
        let filling = Filling {
            name,
            ..Filling::new(&source.name, time_micros)
        };
        filling.fill(template)
    };
    let name = name.as_bytes();
    let whole = filled(name);
    let over = whole.len().saturating_sub(NAME_BYTES_MAX);
    match over {
        0 => whole,
        _ => filled(cut(name, name.len().saturating_sub(over).max(1))),
    }
}

/// What placeholders stand for.
struct Filling<'a> {
    source: &'a str,
    time: jiff::Zoned,
    name: &'a [u8],
    partition: &'a [u8],
}

impl<'a> Filling<'a> {
    fn new(source: &'a str, time_micros: i64) -> Filling<'a> {
        Filling {
            source,
            time: timestamp(time_micros).to_zoned(TimeZone::UTC),
            name: b"",
            partition: b"",
        }
    }

    fn fill(&self, template: &Template) -> OsString {
        use std::io::Write;
        let mut filled = Vec::new();
        let time = &self.time;
        for piece in template.pieces() {
            let written = match piece {
                Piece::Text(text) => filled.write_all(text.as_bytes()),
                Piece::Field(Field::Date) => {
                    let (year, month, day) = (time.year(), time.month(), time.day());
                    write!(filled, "{year:04}-{month:02}-{day:02}")
                }
                Piece::Field(Field::Year) => write!(filled, "{:04}", time.year()),
                Piece::Field(Field::Month) => write!(filled, "{:02}", time.month()),
                Piece::Field(Field::Day) => write!(filled, "{:02}", time.day()),
                Piece::Field(Field::Hour) => write!(filled, "{:02}", time.hour()),
                Piece::Field(Field::Timestamp) => {
                    let seconds = time.strftime("%Y%m%dT%H%M%S");
                    write!(filled, "{seconds}.{:03}", time.millisecond())
                }
                Piece::Field(Field::Source) => {
                    filled.write_all(source_component(self.source).as_bytes())
                }
                Piece::Field(Field::Name) => filled.write_all(self.name),
                Piece::Field(Field::Partition) => filled.write_all(self.partition),
            };
            written.expect("memory takes what is written to it");
        }
        OsString::from_vec(filled)
    }
}

/// A source's name as a directory: those that may be paths, or ringest's own, are none.
pub fn source_component(name: &str) -> String {
    let name = name.replace('/', "_");
    match name.starts_with(['.', '_']) {
        true => format!("source{name}"),
        false => name,
    }
}

/// The date partition of a time, of the default layout.
pub fn partition(time_micros: i64) -> PathBuf {
    let date = timestamp(time_micros).to_zoned(TimeZone::UTC).date();
    format!(
        "ingest_date={:04}-{:02}-{:02}",
        date.year(),
        date.month(),
        date.day()
    )
    .into()
}

/// The hour of a time, in hours since the epoch.
pub fn hour(time_micros: i64) -> i64 {
    time_micros.div_euclid(MICROS_PER_HOUR)
}

/// Whether a name is that of a date partition.
pub fn is_partition(name: &OsStr) -> bool {
    let date = name
        .to_str()
        .and_then(|name| name.strip_prefix("ingest_date="));
    date.is_some_and(|date| date.len() == 10 && date.parse::<jiff::civil::Date>().is_ok())
}

/// The hour whose manifest has this path: the inverse of [`manifest_path`].
pub fn hour_of(manifest: &Path) -> Option<i64> {
    let mut parts = manifest.to_str()?.split('/');
    let mut number = || parts.next()?.parse::<i16>().ok();
    let (year, month, day, hours) = (number()?, number()?, number()?, number()?);
    let small = |number: i16| i8::try_from(number).ok();
    let time = jiff::civil::DateTime::new(year, small(month)?, small(day)?, small(hours)?, 0, 0, 0);
    let time = time.ok()?.to_zoned(TimeZone::UTC).ok()?;
    let found = hour(time.timestamp().as_microsecond());
    (manifest_path(found) == manifest).then_some(found)
}

/// The path of an hour's manifest beneath the manifests directory.
pub fn manifest_path(hour: i64) -> PathBuf {
    let time = timestamp(hour * MICROS_PER_HOUR).to_zoned(TimeZone::UTC);
    format!(
        "{:04}/{:02}/{:02}/{:02}/{MANIFEST}",
        time.year(),
        time.month(),
        time.day(),
        time.hour()
    )
    .into()
}

/// RFC 3339 in UTC, with microseconds.
pub fn rfc3339(time_micros: i64) -> String {
    format!("{:.6}", timestamp(time_micros))
}

/// The time that [`rfc3339`] writes so.
pub fn time_micros(text: &str) -> Option<i64> {
    let time: Timestamp = text.parse().ok()?;
    Some(time.as_microsecond())
}

fn timestamp(time_micros: i64) -> Timestamp {
    Timestamp::from_microsecond(time_micros).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The names under which new content may enter its partition, in the order in which they are tried: its own, then with
/// 8, 16 and 64 digits of its digest. The last one, which only repeated arrivals of the same bytes reach
/// (`--dedupe off`), adds the sequence number.
pub fn candidate_names(name: &OsStr, digest: &Digest, seq: u64) -> impl Iterator<Item = OsString> {
    let hex = data_encoding::HEXLOWER.encode(digest);
    let name = name.to_os_string();
    (0..5).map(move |attempt| match attempt {
        0 => name.clone(),
        1 => with_infix(&name, &hex[..8]),
        2 => with_infix(&name, &hex[..16]),
        3 => with_infix(&name, &hex),
        _ => with_infix(&name, &format!("{hex}.{seq}")),
    })
}

/// The name with which new content came that entered its partition as `placed`, as far as that can be told.
pub fn original_name(placed: &OsStr, digest: &Digest) -> OsString {
    let hex = data_encoding::HEXLOWER.encode(digest);
    for infix in [&hex[..], &hex[..16], &hex[..8]] {
        let infix = format!(".{infix}");
        let bytes = placed.as_bytes();
        let at = bytes
            .windows(infix.len())
            .rposition(|window| window == infix.as_bytes());
        let Some(at) = at.filter(|&at| at > 0) else {
            continue;
        };
        let name = [&bytes[..at], &bytes[at + infix.len()..]].concat();
        let name = OsString::from_vec(name);
        // Only if it is what the clash would have made of it.
        if candidate_names(&name, digest, 0).any(|candidate| candidate == placed) {
            return name;
        }
    }
    placed.to_os_string()
}

/// The names under which a file may be set aside: its own, then with its sequence number.
pub fn aside_names(name: &OsStr, seq: u64) -> impl Iterator<Item = OsString> {
    let name = name.to_os_string();
    (0..2).map(move |attempt| match attempt {
        0 => name.clone(),
        _ => numbered(&name, seq),
    })
}

/// The first name that is free for an arrival that would be called `name`, and for what is set aside that of its reason,
/// which has to be free too. `None`: all are taken.
///
/// # Errors
/// Those of `free`.
pub fn first_free(
    outcome: &Outcome,
    name: &OsStr,
    digest: &Digest,
    seq: u64,
    free: impl Fn(&OsStr) -> io::Result<bool>,
) -> io::Result<Option<(OsString, Option<OsString>)>> {
    let is_new = *outcome == Outcome::Ingest;
    let new = is_new.then(|| candidate_names(name, digest, seq).map(|name| (name, None)));
    let aside = (!is_new).then(|| aside_names(name, seq).map(|name| (reason_name(&name), name)));
    let aside = aside.into_iter().flatten();
    let aside = aside.map(|(reason, name)| (name, Some(reason)));
    for (name, reason) in new.into_iter().flatten().chain(aside) {
        if free(&name)? && reason.as_deref().map_or(Ok(true), &free)? {
            return Ok(Some((name, reason)));
        }
    }
    Ok(None)
}

/// `<name>.<seq>`, cut so that the name of its reason fits too.
pub fn numbered(name: &OsStr, seq: u64) -> OsString {
    let number = format!(".{seq}");
    let room = NAME_BYTES_MAX - number.len() - REASON_SUFFIX.len();
    let mut new = cut(name.as_bytes(), room).to_vec();
    new.extend(number.as_bytes());
    OsString::from_vec(new)
}

/// The name of the file that says why `name` was set aside.
pub fn reason_name(name: &OsStr) -> OsString {
    with_suffix(name, REASON_SUFFIX)
}

/// Where bad files are set aside by the default layout.
pub fn default_quarantine_dir(time_micros: i64) -> PathBuf {
    Path::new(QUARANTINE_DIR).join(partition(time_micros))
}

/// Where a file goes that changed after it was placed and whose own name is taken again. A pure function of the
/// arrival, so that recovery knows where to look.
pub fn changed_path(arrival: &Arrival) -> PathBuf {
    let path = &arrival.path;
    let name = numbered(path.file_name().unwrap_or_default(), arrival.seq);
    let base = match &arrival.aside {
        Some(aside) => aside.clone(),
        None => default_quarantine_dir(arrival.time_micros),
    };
    base.join(path.parent().unwrap_or(Path::new(""))).join(name)
}

/// `<stem>.<infix>.<extension>`. A `{timestamp}` at the end counts as one: it stays whole.
pub fn with_infix(name: &OsStr, infix: &str) -> OsString {
    let bytes = name.as_bytes();
    let last = bytes.iter().rposition(|&byte| byte == b'.');
    let dot = time_at_end(bytes)
        .or(last)
        .filter(|&dot| dot > 0 && bytes.len() - dot <= EXTENSION_BYTES_MAX);
    let (stem, extension) = bytes.split_at(dot.unwrap_or(bytes.len()));
    let room = NAME_BYTES_MAX.saturating_sub(1 + infix.len() + extension.len());
    let mut new = cut(stem, room).to_vec();
    new.push(b'.');
    new.extend(infix.as_bytes());
    new.extend(extension);
    OsString::from_vec(new)
}

/// Where a dot and what `{timestamp}` becomes begin, if a name ends in them.
fn time_at_end(name: &[u8]) -> Option<usize> {
    const SHAPE: &[u8] = b".00000000T000000.000";
    let begin = name.len().checked_sub(SHAPE.len())?;
    let mut pairs = name[begin..].iter().zip(SHAPE);
    let fits = pairs.all(|(byte, shape)| match shape {
        b'0' => byte.is_ascii_digit(),
        other => byte == other,
    });
    fits.then_some(begin)
}

fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    let mut new = cut(name.as_bytes(), NAME_BYTES_MAX - suffix.len()).to_vec();
    new.extend(suffix.as_bytes());
    OsString::from_vec(new)
}

/// The first `room` bytes, fewer where a UTF-8 character would be split.
fn cut(bytes: &[u8], room: usize) -> &[u8] {
    if bytes.len() <= room {
        return bytes;
    }
    let is_continuation = |at: usize| bytes[at] & 0xc0 == 0x80;
    let mut end = room;
    while end > 0 && room - end < 4 && is_continuation(end) {
        end -= 1;
    }
    if is_continuation(end) {
        end = room;
    }
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(name: &str) -> Vec<String> {
        candidate_names(OsStr::new(name), &[0xab; 32], 7)
            .map(|name| name.into_string().unwrap())
            .collect()
    }

    #[test]
    fn names_grow_by_digits_of_the_digest() {
        let hex = "ab".repeat(32);
        assert_eq!(
            names("a.tar.gz"),
            [
                "a.tar.gz".to_string(),
                "a.tar.abababab.gz".into(),
                "a.tar.abababababababab.gz".into(),
                format!("a.tar.{hex}.gz"),
                format!("a.tar.{hex}.7.gz"),
            ]
        );
        assert_eq!(names("plain")[1], "plain.abababab");
        assert_eq!(
            names("a.csv.20250629T103045.123")[1],
            "a.csv.abababab.20250629T103045.123"
        );
        assert_eq!(
            names("20250629T103045.123")[1],
            "20250629T103045.abababab.123"
        );
    }

    #[test]
    fn a_name_is_cut_between_two_characters_or_anywhere_if_it_has_none() {
        let left = |name: &[u8]| cut(name, 10).len();
        assert_eq!(left(b"0123456789"), 10);
        assert_eq!(left(b"0123456789a"), 10);
        assert_eq!(left("012345678€".as_bytes()), 9);
        assert_eq!(left("0123456😀".as_bytes()), 7);
        // Bytes that go on with a character that never began.
        assert_eq!(left(&[0x80; 11]), 10);
    }

    #[test]
    fn a_name_that_grew_is_told_from_one_that_came_so() {
        let digest = [0xab; 32];
        for name in [
            "a.tar.gz",
            "plain",
            ".hidden",
            "x.abababab",
            "a.20250629T103045.123",
        ] {
            for placed in candidate_names(OsStr::new(name), &digest, 7).take(4) {
                let original = original_name(&placed, &digest);
                let grown_by_chance = name == "x.abababab" && placed == name;
                assert!(
                    original == name || grown_by_chance,
                    "{placed:?}: {original:?}"
                );
            }
        }
        assert_eq!(
            original_name(OsStr::new("a.cdcdcdcd.gz"), &digest),
            "a.cdcdcdcd.gz"
        );
    }

    #[test]
    fn paths_become_hours_again_and_nothing_else_does() {
        let time = 1_763_468_159_123_456;
        assert_eq!(hour_of(&manifest_path(hour(time))), Some(hour(time)));
        assert_eq!(time_micros(&rfc3339(time)), Some(time));
        for other in [
            "2025/11/18/12",
            "2025/11/18/24/manifest.jsonl",
            "2025/11/18/12/x",
            "2025/11/18/1/manifest.jsonl",
        ] {
            assert_eq!(hour_of(Path::new(other)), None, "{other}");
        }
        assert!(is_partition(OsStr::new("ingest_date=2025-11-18")));
        assert!(!is_partition(OsStr::new("ingest_date=2025-11-31")));
        assert!(!is_partition(OsStr::new("_duplicates")));
    }

    #[test]
    fn times_become_paths_in_utc() {
        let time = 1_763_468_159_123_456;
        assert_eq!(partition(time), Path::new("ingest_date=2025-11-18"));
        let manifest = manifest_path(hour(time));
        assert_eq!(manifest, Path::new("2025/11/18/12/manifest.jsonl"));
        assert_eq!(rfc3339(time), "2025-11-18T12:15:59.123456Z");
    }

    proptest! {
        #[test]
        fn every_name_fits_and_is_one_component(
            bytes in proptest::collection::vec(1u8.., 1..=255),
            seq: u64,
        ) {
            let bytes: Vec<u8> = bytes.into_iter().map(|byte| if byte == b'/' { b'_' } else { byte }).collect();
            let name = OsString::from_vec(bytes);
            let tried: Vec<OsString> = candidate_names(&name, &[7; 32], seq).collect();
            let aside = aside_names(&name, seq).flat_map(|name| [reason_name(&name), name]);
            for tried in tried.iter().cloned().chain(aside) {
                prop_assert!(tried.len() <= NAME_BYTES_MAX);
                prop_assert!(!tried.is_empty() && !tried.as_bytes().contains(&b'/'));
            }
            let distinct: std::collections::HashSet<_> = tried.iter().collect();
            prop_assert!(distinct.len() >= 4, "{tried:?}");
            let reasons: std::collections::HashSet<_> =
                aside_names(&name, seq).map(|name| reason_name(&name)).collect();
            prop_assert_eq!(reasons.len(), 2);
        }
    }
}
