//! Content that is as bad as it can be, and as much of it: told with rule, message and place, in bounded memory, and
//! nothing else waits for it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::support::{Finished, Running, Site, counts, wait_until};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Readers of every run here.
const READERS: u64 = 2;
/// The program, its threads, and what it maps of the ledger.
const PROGRAM_BYTES: u64 = 48 * MIB;
/// What they read into: two pieces for each of eight files, six more for each of three that are read past the page cache.
const BUFFERS_BYTES: u64 = READERS * (8 * 2 + 3 * 6) * 256 * KIB;
/// A header of CSV...
const HEADER_BYTES: u64 = MIB;
/// ...and what each reader needs to compare the names in it, for a moment.
const NAMES_BYTES: u64 = READERS * 16 * MIB;
/// A JSON document or a line of JSON Lines; all that are read have as many bytes for each reader.
const DOCUMENT_BYTES: u64 = 64 * MIB;
/// The keys of the objects in one of those, of one at a time.
const KEYS_BYTES: u64 = 256 * MIB;

/// Most memory that was resident at once so far, in bytes.
fn memory_peak(running: &Running) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", running.id()));
    let status = status.expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.expect("its peak").trim_end_matches("kB").trim();
    peak.parse::<u64>().expect("a number") * KIB
}

#[track_caller]
fn assert_within(what: &str, peak: u64, bound: u64) {
    counts::say(&format!(
        "{what}: {} of {} MiB at most",
        peak / MIB,
        bound / MIB
    ));
    assert!(peak <= bound, "{what}: {peak} bytes, more than {bound}");
}

/// Settings of a run, and one source for each of `sources`: its name, which is that of its directory, and its rules.
fn configure(site: &Site, sources: &[(&str, &str)]) -> PathBuf {
    // What is durable is not the question here, and gigabytes would have to be written for it.
    let mut settings =
        format!("concurrency = {READERS}\nstability_seconds = 0.1\ndurability = \"none\"\n");
    for (name, rules) in sources {
        let input = site.root.join(name);
        fs::create_dir_all(&input).expect("make a directory");
        let input = input.display().to_string();
        settings += &format!("[[source]]\nname = {name:?}\ninput = {input:?}\n{rules}\n");
    }
    let config = site.root.join("ringest.toml");
    fs::write(&config, settings).expect("write the settings");
    config
}

fn on_this_site(site: &Site, mut command: Command) -> Command {
    for (flag, path) in [
        ("--warehouse", &site.warehouse),
        ("--manifests", &site.manifests),
        ("--state-path", &site.state),
    ] {
        command.arg(flag).arg(path);
    }
    command
}

fn start(site: &Site, config: &Path, args: &[&str]) -> Running {
    let mut command = on_this_site(site, site.bare_run());
    command.arg("--config").arg(config).args(args);
    Running::spawn(command)
}

/// Rule, message and position beside the quarantined file of that name.
fn reason(site: &Site, source: &str, name: &str) -> (String, String, Value) {
    let reasons = site.quarantined().into_iter().filter_map(|path| {
        let path = format!("{}.reason.json", path.display());
        let text = fs::read(path).expect("a reason beside it");
        let reason: Value = serde_json::from_slice(&text).expect("JSON");
        let from = reason["path"].as_str()?;
        let ends = format!("/{source}/{name}");
        from.ends_with(&ends).then_some(reason)
    });
    let all: Vec<Value> = reasons.collect();
    let [reason] = &all[..] else {
        panic!("{} reasons for {source}/{name}", all.len());
    };
    let text = |key: &str| reason[key].as_str().expect("text").to_owned();
    (
        text("rule"),
        text("message"),
        reason.get("position").cloned().unwrap_or(json!({})),
    )
}

/// What is to come of a file.
enum Outcome {
    /// Rule, a part of the message, position.
    SetAside(&'static str, &'static str, Value),
    /// The counts in its line.
    Taken(Value),
}

use Outcome::{SetAside, Taken};

#[track_caller]
fn assert_outcome(site: &Site, source: &str, name: &str, outcome: &Outcome) {
    match outcome {
        SetAside(rule, says, position) => {
            let (broken, message, place) = reason(site, source, name);
            let at = format!("{source}/{name}: {message}");
            assert_eq!(broken, *rule, "{at}");
            assert!(message.contains(says), "{at}: not {says:?}");
            assert_eq!(place, *position, "{at}");
        }
        Taken(counts) => {
            let lines = site.lines_of(&format!("{source}/{name}"));
            assert_eq!(lines.len(), 1, "{source}/{name}");
            for (field, count) in counts.as_object().expect("counts") {
                assert_eq!(&lines[0].fields[field], count, "{source}/{name}: {field}");
            }
        }
    }
}

/// Writes `count` times the same bytes.
fn write_repeated(file: &mut File, piece: &[u8], count: u64) {
    for _ in 0..count {
        file.write_all(piece).expect("write");
    }
}

/// A step in the life of a large file.
struct Step {
    /// What is written to it, and where.
    patch: &'static [(u64, &'static [u8])],
    /// How long it is then.
    bytes: u64,
    rules: &'static str,
    outcome: Outcome,
    /// Most that its check may keep, in bytes.
    kept: u64,
}

/// One file that is set aside, mended or broken anew, given back under other rules, and so on.
fn walk(what: &str, piece: &[u8], steps: &[Step]) {
    const NAME: &str = "large";
    let site = Site::new();
    let path = site.root.join("in").join(NAME);
    for (number, step) in steps.iter().enumerate() {
        let config = configure(&site, &[("in", step.rules)]);
        let mut file = match number {
            0 => {
                let mut file = File::create(&path).expect("make it");
                write_repeated(&mut file, piece, GIB / piece.len() as u64);
                file
            }
            _ => {
                let mut retry = site.ringest(false);
                retry.args(["quarantine", "retry", "--all"]);
                Finished::of(on_this_site(&site, retry)).ok();
                let file = OpenOptions::new().append(false).write(true).open(&path);
                file.expect("it was given back")
            }
        };
        for (at, bytes) in step.patch {
            file.write_all_at(bytes, *at).expect("write");
        }
        file.set_len(step.bytes).expect("cut it");
        file.flush().expect("write");
        drop(file);

        let mut running = start(&site, &config, &[]);
        match &step.outcome {
            SetAside(..) => running.wait_for_event("file_quarantined", NAME),
            Taken(_) => running.wait_for_event("file_ingested", NAME),
        };
        let peak = memory_peak(&running);
        running.terminate();
        assert_outcome(&site, "in", NAME, &step.outcome);
        let step = format!("{what}, step {}", number + 1);
        assert_within(
            &step,
            peak,
            PROGRAM_BYTES + BUFFERS_BYTES + steps[number].kept,
        );
    }
    site.verify(&[]).ok();
}

#[test]
fn what_is_wrong_anywhere_in_a_gibibyte_of_csv_is_told_with_its_place() {
    const LINE: &[u8; 16] = b"1234567,9012345\n";
    const LINES: u64 = GIB / LINE.len() as u64;
    const FAR: u64 = 700 * MIB;
    let csv = "content = \"csv\"";
    let kept = HEADER_BYTES;
    walk(
        "1 GiB of CSV",
        &LINE.repeat(1 << 16),
        &[
            Step {
                patch: &[(GIB, b"\"")],
                bytes: GIB + 1,
                rules: csv,
                outcome: SetAside(
                    "csv_quote",
                    "the quote at line 67108865, column 1 is never closed",
                    json!({"line": LINES + 1, "column": 1}),
                ),
                kept,
            },
            // Two bytes of three.
            Step {
                patch: &[(GIB, b"\xe2\x82")],
                bytes: GIB + 2,
                rules: csv,
                outcome: SetAside(
                    "utf8",
                    "it ends within the character that begins at byte 1073741824",
                    json!({"byte": GIB}),
                ),
                kept,
            },
            Step {
                patch: &[(FAR, b"\0")],
                bytes: GIB,
                rules: csv,
                outcome: SetAside("nul", "byte 734003200 is NUL", json!({"byte": FAR})),
                kept,
            },
            Step {
                patch: &[(FAR, b"1"), (GIB - 1, b",")],
                bytes: GIB,
                rules: csv,
                outcome: SetAside(
                    "csv_width",
                    "line 67108864: it has 3 columns, the first record has 2",
                    json!({"line": LINES}),
                ),
                kept,
            },
            Step {
                patch: &[(GIB - 1, b"\n")],
                bytes: GIB,
                rules: csv,
                outcome: Taken(json!({"records": LINES - 1, "columns": 2})),
                kept,
            },
        ],
    );
}

#[test]
fn a_line_of_a_gibibyte_is_a_record_of_csv_and_too_much_for_anything_that_keeps_it() {
    // One document of JSON, one line of it, and a field that does not begin with its quote.
    let patch: &[(u64, &[u8])] = &[(0, b"[\""), (GIB - 2, b"\"]")];
    let step = |rules: &'static str, outcome: Outcome, kept: u64| Step {
        patch,
        bytes: GIB,
        rules,
        outcome,
        kept,
    };
    walk(
        "one line of 1 GiB",
        &[b'x'; MIB as usize],
        &[
            step(
                "content = \"json\"",
                SetAside("json_size", "it has more than 67108864 bytes", json!({})),
                0,
            ),
            step(
                "content = \"jsonl\"",
                SetAside(
                    "json_size",
                    "line 1 has more than 67108864 bytes",
                    json!({"line": 1}),
                ),
                DOCUMENT_BYTES,
            ),
            step(
                "content = \"csv\"",
                SetAside(
                    "csv_header",
                    "its first record has more than 1048576 bytes",
                    json!({"line": 1}),
                ),
                HEADER_BYTES,
            ),
            step(
                "content = \"csv\"\ncsv_header = false",
                Taken(json!({"records": 1, "columns": 1})),
                0,
            ),
        ],
    );
}

/// Names of four characters, each but once, that need no escape and no quotes.
fn names() -> impl Iterator<Item = [u8; 4]> {
    let characters: Vec<u8> = (b'-'..b'[').chain(b']'..b'\x7f').collect();
    (0..).map(move |number: usize| {
        let digit =
            |place: u32| characters[number / characters.len().pow(place) % characters.len()];
        [digit(0), digit(1), digit(2), digit(3)]
    })
}

/// A header of as many names as there is room for, none of them twice.
fn header_of_many_names() -> Vec<u8> {
    let count = (HEADER_BYTES / 5) as usize;
    let mut text: Vec<u8> = names()
        .take(count)
        .flat_map(|[a, b, c, d]| [a, b, c, d, b','])
        .collect();
    *text.last_mut().expect("a name") = b'\n';
    text
}

/// An object of as many keys as a document has room for, none of them twice.
fn object_of_many_keys() -> Vec<u8> {
    let mut text = Vec::with_capacity(DOCUMENT_BYTES as usize);
    text.push(b'{');
    for [a, b, c, d] in names() {
        let entry = [b'"', a, b, c, d, b'"', b':', b'0', b','];
        if text.len() + entry.len() > DOCUMENT_BYTES as usize {
            break;
        }
        text.extend(entry);
    }
    *text.last_mut().expect("an entry") = b'}';
    text
}

#[test]
fn millions_of_columns_and_of_keys_and_a_hundred_thousand_levels_are_told_side_by_side() {
    const COLUMNS: usize = 10_000_000;
    const LEVELS: usize = 100_000;
    let columns = ",".repeat(COLUMNS - 1);
    let lists = ["[".repeat(LEVELS), "]".repeat(LEVELS)].concat();
    let objects = ["{\"a\":".repeat(LEVELS), "0".into(), "}".repeat(LEVELS)].concat();
    let keys = object_of_many_keys();
    let twice = [&keys[..keys.len() - 10], b",\"----\":0}"].concat();
    let line = |number: u64| json!({"line": number});
    let place = |line: u64, column: u64| json!({"line": line, "column": column});
    let deep = |column: u64| SetAside("json", "recursion limit exceeded", place(1, column));
    let files: Vec<(&str, &str, Vec<u8>, Outcome)> = vec![
        (
            "csv",
            "header",
            format!("{columns}\n").into(),
            SetAside("csv_header", "more than 1048576 bytes", line(1)),
        ),
        (
            "csv",
            "record",
            format!("a,b\n1,2\n{columns}\n").into(),
            SetAside(
                "csv_width",
                "line 3: it has 10000000 columns, the first record has 2",
                line(3),
            ),
        ),
        (
            "csv",
            "names",
            "a,b,\"a\"\n1,2,3\n".into(),
            SetAside("csv_header", "columns 1 and 3 have the same name", line(1)),
        ),
        (
            "csv",
            "many_names",
            header_of_many_names(),
            Taken(json!({"records": 0, "columns": HEADER_BYTES / 5})),
        ),
        (
            "csv",
            "no_names",
            ",".repeat(HEADER_BYTES as usize).into(),
            SetAside("csv_header", "columns 1 and 2 have the same name", line(1)),
        ),
        (
            "bare",
            "even",
            format!("{columns}\n{columns}").into(),
            Taken(json!({"records": 2, "columns": COLUMNS})),
        ),
        (
            "bare",
            "uneven",
            format!("{columns}\n1\n").into(),
            SetAside(
                "csv_width",
                "line 2: it has 1 columns, the first record has 10000000",
                line(2),
            ),
        ),
        ("json", "lists", lists.clone().into(), deep(128)),
        ("json", "objects", objects.into(), deep(5 * 127 + 1)),
        (
            "json",
            "twice",
            "{\"a\": 1,\n\"\\u0061\": 2}".into(),
            SetAside("json", "an object has the same key twice", place(2, 8)),
        ),
        ("json", "keys", keys, Taken(json!({"records": 1}))),
        (
            "json",
            "keys_twice",
            twice.clone(),
            SetAside(
                "json",
                "an object has the same key twice",
                place(1, twice.len() as u64 - 3),
            ),
        ),
        (
            "jsonl",
            "lists",
            format!("{{}}\n\n{lists}\n").into(),
            SetAside("json", "recursion limit exceeded", place(3, 128)),
        ),
        (
            "jsonl",
            "twice",
            "[]\n{\"a\":{\"b\":1,\"b\":2}}\n".into(),
            SetAside("json", "an object has the same key twice", place(2, 15)),
        ),
        (
            "text",
            "nul",
            "a\0b".into(),
            SetAside("nul", "byte 1 is NUL", json!({"byte": 1})),
        ),
        (
            "text",
            "cut",
            "a\u{1f4a5}".as_bytes()[..4].into(),
            SetAside("utf8", "begins at byte 1", json!({"byte": 1})),
        ),
    ];
    let site = Site::new();
    let config = configure(
        &site,
        &[
            ("csv", "content = \"csv\""),
            ("bare", "content = \"csv\"\ncsv_header = false"),
            ("json", "content = \"json\""),
            ("jsonl", "content = \"jsonl\""),
            ("text", "content = \"text\""),
        ],
    );
    for (source, name, content, _) in &files {
        let path = site.root.join(source).join(name);
        fs::write(path, content).expect("write");
    }
    let mut running = start(&site, &config, &[]);
    for (source, name, _, outcome) in &files {
        let event = match outcome {
            SetAside(..) => "file_quarantined",
            Taken(_) => "file_ingested",
        };
        running.wait_for_event(event, &format!("{source}/{name}"));
    }
    let peak = memory_peak(&running);
    running.terminate();
    for (source, name, _, outcome) in &files {
        assert_outcome(&site, source, name, outcome);
    }
    let documents = READERS * DOCUMENT_BYTES;
    let kept = documents + KEYS_BYTES + HEADER_BYTES + NAMES_BYTES;
    assert_within(
        "columns, keys, levels",
        peak,
        PROGRAM_BYTES + BUFFERS_BYTES + kept,
    );
    site.verify(&[]).ok();
}

#[test]
fn small_files_of_another_source_arrive_while_large_bad_ones_are_read() {
    /// More than all readers together take at a time.
    const LARGE: usize = 7;
    const SMALL: usize = 200;
    let site = Site::new();
    let sources = [("bad", "content = \"text\""), ("good", "content = \"csv\"")];
    let config = configure(&site, &sources);
    for number in 0..LARGE {
        // Its hole is bad from the beginning, and all of it has to be read for its digest.
        let file = File::create(site.root.join(format!("bad/{number}"))).expect("make it");
        let mut number = number.to_string().into_bytes();
        number.resize(MIB as usize, b'x');
        file.write_all_at(&number, 0).expect("write");
        file.set_len(GIB).expect("make it large");
    }
    // No large file can be read to its end before the test has lost its patience.
    let mut running = start(&site, &config, &["--max-bytes-per-second", "4MiB"]);
    let bad = fs::canonicalize(site.root.join("bad")).expect("its path");
    let descriptors = format!("/proc/{}/fd", running.id());
    wait_until("large files are being read", || {
        let entries = fs::read_dir(&descriptors).expect("its descriptors");
        let mut links = entries
            .flatten()
            .flat_map(|entry| fs::read_link(entry.path()));
        links.any(|link| link.parent() == Some(&bad) && link != bad)
    });
    for number in 0..SMALL {
        let path = site.root.join(format!("good/{number}"));
        fs::write(path, format!("a,b\n{number},2\n")).expect("write");
    }
    site.wait_for_lines(&mut running, SMALL);
    assert_eq!(site.quarantined(), Vec::<PathBuf>::new());
    let stopped = running.terminate();
    assert_eq!(stopped.events("file_quarantined", "").len(), 0);

    let mut again = on_this_site(&site, site.bare_run());
    again.arg("--config").arg(&config).arg("--once");
    Finished::of(again).ok();
    for number in 0..LARGE {
        let outcome = SetAside("nul", "byte 1048576 is NUL", json!({"byte": MIB}));
        assert_outcome(&site, "bad", &number.to_string(), &outcome);
    }
    assert_eq!(site.manifest().len(), SMALL);
    site.verify(&[]).ok();
}
