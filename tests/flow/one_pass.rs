//! Every byte is read once, whatever is checked.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::support::{Random, Site};

/// Bytes that a process has got from `read` and its like, as the kernel counts them. Reads of a ring are not among them.
fn bytes_by_the_kernel(process: u32) -> u64 {
    let counts = fs::read_to_string(format!("/proc/{process}/io")).expect("its counts");
    let count = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
    count.expect("rchar").parse().expect("a number")
}

/// Files of each format, each with rules that look at all of it.
fn formats(random: &mut Random) -> [(&'static str, &'static str, String); 4] {
    let mut csv = String::from("id,name\n");
    let mut lines = String::new();
    let mut text = String::new();
    for number in 0..200_000 {
        let word = random.next();
        writeln!(csv, "{number},\"a, {word:x}\"").expect("write");
        writeln!(lines, "{{\"id\":{number},\"name\":\"{word:x}\"}}").expect("write");
        writeln!(text, "{number} \u{e9}\u{20ac} {word:x}").expect("write");
    }
    let json = format!("[{}]", lines.trim_end().replace('\n', ","));
    let csv_rules = "content = \"csv\"\nrequired_columns = [\"name\"]\nkey_column = \"id\"\nmin_records = 2\n\
                     min_file_size = 1\nmax_file_size = \"1GiB\"\nextensions = [\".csv\"]";
    [
        ("csv", csv_rules, csv),
        ("json", "content = \"json\"", json),
        ("jsonl", "content = \"jsonl\"", lines),
        ("text", "content = \"text\"", text),
    ]
}

#[test]
fn as_many_bytes_are_read_as_the_files_have_with_every_check_on() {
    let site = Site::new();
    let formats = formats(&mut Random::new());
    let mut settings = String::from("io = \"sync\"\nstability_seconds = 0.1\n");
    for (name, rules, _) in &formats {
        let input = site.root.join(name);
        fs::create_dir(&input).expect("make a directory");
        let input = input.display();
        write!(settings, "[[source]]\ninput = {input:?}\n{rules}\n").expect("write");
    }
    let config = site.root.join("ringest.toml");
    fs::write(&config, settings).expect("write the settings");
    let mut command = site.bare_run();
    command.arg("--config").arg(&config);
    for (flag, path) in [
        ("--warehouse", &site.warehouse),
        ("--manifests", &site.manifests),
        ("--state-path", &site.state),
    ] {
        command.arg(flag).arg(path);
    }
    let mut running = super::support::Running::spawn(command);
    let started = running.wait_for_event("started", "");
    let before = bytes_by_the_kernel(running.id());

    let mut bytes = 0;
    let put = |name: &str, file: &str, content: &str| {
        let path = Path::new(&site.root)
            .join(name)
            .join(format!("{file}.{name}"));
        fs::write(path, content).expect("write a file");
    };
    for (name, _, content) in &formats {
        // One is good to its end, the other is bad at its end.
        let bad = format!("{content}\0");
        put(name, "good", content);
        put(name, "bad", &bad);
        bytes += (content.len() + bad.len()) as u64;
    }
    site.wait_for_lines(&mut running, formats.len());
    for (name, ..) in &formats {
        running.wait_for_event("file_quarantined", &format!("bad.{name}"));
    }
    let by_the_kernel = bytes_by_the_kernel(running.id()) - before;
    let ended = running.terminate().ok();
    let summaries = ended.events("summary", "");
    let last = summaries.last().expect("a summary");
    assert_eq!(last["files_processed"], 8);
    assert_eq!(last["bytes_processed"], bytes);
    assert_eq!(last["bytes_read"], bytes);
    // Some are of events and of what tells one thread of another; a second look at the smallest file would be more.
    let smallest = formats.iter().map(|(.., content)| content.len()).min();
    let smallest = smallest.expect("a size") as u64;
    if started["io"] == "sync" {
        let others = by_the_kernel.checked_sub(bytes).expect("all were read");
        assert!(others < smallest / 4, "{others} bytes more than {bytes}");
    }
}
