//! The manifest and the events, to the letter.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::support::{Site, sha256};

#[test]
fn a_manifest_line_has_its_fields_in_order() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let path = site.put("a.csv", "some text");
    let source = fs::metadata(&path).expect("written");
    site.run_once(&[]);
    let line = site.line("a.csv");

    let order = [
        "path",
        "sha256",
        "device",
        "inode",
        "size",
        "mtime",
        "warehouse_path",
        "seq",
        "source",
        "mtime_ns",
        "ingested_at",
    ];
    let places: Vec<usize> = order
        .iter()
        .map(|field| {
            line.raw
                .find(&format!("\"{field}\":"))
                .unwrap_or_else(|| panic!("no {field}: {}", line.raw))
        })
        .collect();
    assert!(places.is_sorted(), "{places:?}: {}", line.raw);

    assert_eq!(line.text("path"), path.to_str().expect("UTF-8"));
    assert_eq!(line.sha256(), sha256(b"some text"));
    assert_eq!(line.number("device"), source.dev());
    assert_eq!(line.number("inode"), source.ino());
    assert_eq!(line.number("size"), 9);
    assert_eq!(line.number("mtime") as i64, source.mtime(), "whole seconds");
    assert_eq!(
        line.text("warehouse_path"),
        line.placed().to_str().expect("UTF-8")
    );
    assert!(line.placed().is_absolute());
    assert!(!line.fields.contains_key("path_b64"), "{}", line.raw);

    // RFC 3339 in UTC, and the manifest is that of the hour.
    let time = line.text("ingested_at");
    assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    let hour = format!(
        "{}/{}/{}/{}",
        &time[..4],
        &time[5..7],
        &time[8..10],
        &time[11..13]
    );
    assert_eq!(
        line.manifest,
        site.manifests.join(hour).join("manifest.jsonl")
    );
}

#[test]
fn a_time_before_1970_or_with_nanoseconds_is_written_in_whole_seconds() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for (name, seconds, nanoseconds) in [
        ("late.csv", 4_000_000_000_i64, 999_999_999_u32),
        ("early.csv", -1000, 0),
    ] {
        let path = site.put(name, name);
        let time = rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty())
            .expect("touch");
    }
    site.run_once(&[]);
    assert_eq!(
        site.line("late.csv").fields["mtime"].as_i64(),
        Some(4_000_000_000)
    );
    assert_eq!(site.line("early.csv").fields["mtime"].as_i64(), Some(-1000));
    site.assert_sound();
}

#[test]
fn sequence_numbers_order_the_lines_across_runs() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for run in 0..3 {
        for i in 0..20 {
            site.put(format!("{run}-{i}.csv"), format!("{run} {i}"));
        }
        site.run_once(&[]);
    }
    // Reading the manifest checks that its sequence numbers rise.
    assert_eq!(site.manifest().len(), 60);
}

#[test]
fn the_log_is_one_json_object_a_line() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    site.put("a.csv", "some text");
    let ended = site.run_once(&[]);
    for line in ended.stderr.lines() {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("not JSON ({e}): {line}"));
        assert!(
            event["level"].is_string() && event["event"].is_string(),
            "{line}"
        );
    }
    let ingested = ended.event("file_ingested", "a.csv");
    let line = site.line("a.csv");
    assert_eq!(ingested["level"], "info");
    assert_eq!(ingested["path"], line.text("path"));
    assert_eq!(ingested["warehouse_path"], line.text("warehouse_path"));
    assert_eq!(ingested["sha256"], line.sha256());
    assert_eq!(ingested["bytes"], 9);
    for event in ["started", "summary", "stopped"] {
        assert_eq!(ended.events(event, "").len(), 1, "{event}: {ended}");
    }
    let summary = ended.event("summary", "");
    for field in [
        "files_processed",
        "bytes_processed",
        "queue_depth",
        "files_per_second",
        "bytes_per_second",
    ] {
        assert!(summary[field].is_number(), "{field}: {summary}");
    }
}

#[test]
fn the_log_can_be_text() {
    let site = Site::new().with(&["--stability-seconds", "0.2", "--log-format", "text"]);
    site.put("a.csv", "some text");
    let ended = site.run_once(&[]);
    let about: Vec<&str> = ended
        .stderr
        .lines()
        .filter(|line| line.contains("a.csv"))
        .collect();
    assert!(!about.is_empty(), "{ended}");
    for line in about {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_err(),
            "still JSON: {line}"
        );
    }
}

#[test]
fn the_summary_has_the_latency_of_each_stage() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for i in 0..10 {
        site.put(format!("{i}.csv"), format!("{i}"));
    }
    let ended = site.run_once(&[]);
    let summary = ended.event("summary", "").to_string();
    for stage in ["settle", "queue", "read", "place", "commit", "total"] {
        assert!(
            summary.contains(&format!("\"{stage}\"")),
            "no latency of {stage}: {summary}"
        );
    }
}
