//! A payment card number, wherever ringest meets it, is in nothing that it tells.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Command;

use ringest::observe::mask::mask;
use serde_json::Value;

use crate::support::{Finished, Site, files_beneath, has_program, output, skip};

const CARD: &str = "4111111111111111";
const GROUPED: &str = "4111-1111-1111-1111";

/// No digits of a card number in a row, however they are grouped.
fn assert_masked(what: &str, text: &str) {
    for digits in [CARD, "4111 1111", "4111-1111", "378282246310005"] {
        assert!(!text.contains(digits), "{digits} in {what}:\n{text}");
    }
}

/// What a run tells: standard error, its log files, its interval log, the reasons and the status.
fn all_told(site: &Site, ended: &Finished) -> Vec<(String, String)> {
    let mut told = vec![("stderr".into(), ended.stderr.clone())];
    told.push(("stdout".into(), ended.stdout.clone()));
    let is_reason = |path: &Path| path.to_string_lossy().ends_with(".reason.json");
    let reasons = files_beneath(&site.warehouse);
    let reasons = reasons.into_iter().filter(|path| is_reason(path));
    let logs = files_beneath(&site.root.join("logs"));
    let latencies = site.root.join("latencies.hlog");
    for path in reasons.chain(logs).chain([latencies]) {
        let text = fs::read_to_string(&path).expect("read");
        told.push((path.display().to_string(), text));
    }
    for args in [&[][..], &["--json"]] {
        let status = Finished::of(site.command("status", args)).ok();
        told.push(("status".into(), status.stdout + &status.stderr));
    }
    told
}

fn site(settings: &str) -> Site {
    let site = Site::new();
    let config = site.root.join("ringest.toml");
    let logs = site.root.join("logs");
    let latencies = site.root.join("latencies.hlog");
    let shared = format!(
        "log_dir = {logs:?}\nhlog = {latencies:?}\nstability_seconds = 0.1\nrecursive = true\n{settings}"
    );
    fs::write(&config, shared).expect("write the settings");
    site.with(&[
        "--config",
        config.to_str().expect("UTF-8"),
        "--log-level",
        "trace",
    ])
}

/// Files whose content breaks a rule, with the number in the very place.
const BAD: [(&str, &[&str]); 3] = [
    (
        "content = \"csv\"\nkey_column = \"id\"\nrequired_columns = [\"id\"]",
        &[
            "id,@,@\n1,2,3\n",
            "@\n1\n",
            "id,a\n1\n@,@,@\n",
            "id,a\n1,\"@",
            "id,a\n\"@\"@,1\n",
            "id,a\n,@\n",
        ],
    ),
    (
        "content = \"json\"",
        &[
            "{\"@\":1,\"@\":2}",
            "{\"a\":\"@\"} \"@\"",
            "[@, \"@\", @@@@",
            "{\"a\": @e999}",
            "{\"a\": \"@\\q\"}",
        ],
    ),
    ("content = \"jsonl\"", &["{\"@\":1}\n@\"\n", "@ @\n"]),
];

#[test]
fn a_card_number_in_names_and_content_is_in_no_log_reason_metric_or_status() {
    for (settings, contents) in BAD {
        for format in ["json", "text"] {
            let site = site(settings);
            let directory = site.staging.join(format!("of {CARD}"));
            fs::create_dir(&directory).expect("make a directory");
            let mut names = 0;
            for (number, content) in contents.iter().enumerate() {
                for card in [CARD, GROUPED] {
                    let content = content.replace('@', card);
                    fs::write(directory.join(format!("{number} {card}.csv")), &content)
                        .expect("write");
                    // Between quotes in whatever the kernel or the program says of it.
                    fs::write(
                        directory.join(format!("{number}\n{card}\n.csv")),
                        content + " ",
                    )
                    .expect("write");
                    names += 2;
                }
            }
            site.put(format!("{CARD}.tmp"), "ignored");
            std::os::unix::fs::symlink(CARD, site.staging.join(format!("{GROUPED} link")))
                .expect("make a symlink");
            let hostile = OsString::from_vec([b"\xff", CARD.as_bytes(), b"\xff"].concat());
            site.put(hostile, "bad \"content\", 1\n");
            let ended = site.run_once(&["--log-format", format]);
            let quarantined = site.quarantined();
            assert!(quarantined.len() > names / 2, "{settings}: {quarantined:?}");
            assert!(ended.stderr.contains("****1111"), "{ended}");
            for (what, text) in all_told(&site, &ended) {
                assert_masked(&what, &text);
            }
            // Nothing on the disk has another name.
            let true_name = |path: &&std::path::PathBuf| path.to_string_lossy().contains(CARD);
            assert!(quarantined.iter().any(|path| true_name(&path)));
        }
    }
}

#[test]
fn what_is_looked_up_has_its_true_name_also_after_a_rebuild() {
    let site = site("extensions = [\".csv\"]\n");
    let good = site.put(format!("{CARD}.csv"), "good");
    site.run_once(&[]);
    site.put(format!("{GROUPED}.csv"), "good");
    let bad = site.put(format!("{CARD}.txt"), "bad");
    let ended = site.run_once(&[]);
    for (what, text) in all_told(&site, &ended) {
        assert_masked(&what, &text);
    }
    let found = |path: &Path| {
        let mut command = site.command("find", &["--json"]);
        command.arg(path);
        let found = Finished::of(command).ok().stdout;
        serde_json::from_str::<Value>(found.lines().next().expect("a line")).expect("JSON")
    };
    assert_eq!(site.line(&format!("{CARD}.csv")).source_path(), good);
    let before = [&good, &bad].map(|path| found(path));
    for (found, path) in before.iter().zip([&good, &bad]) {
        assert_eq!(found["path"], path.to_str().expect("UTF-8"));
    }

    fs::rename(&site.state, site.root.join("lost")).expect("lose the state");
    let mut command = site.command("rebuild", &[]);
    command.arg("--config").arg(site.root.join("ringest.toml"));
    command.arg("--input").arg(&site.staging);
    Finished::of(command).ok();
    assert_eq!(found(&bad)["path"], before[1]["path"]);
    assert_eq!(found(&bad)["seq"], before[1]["seq"]);
    site.verify(&["--deep"]).ok();
}

#[test]
fn sidecars_errors_and_panics_are_masked_too() {
    let site = site("mode = \"sidecar\"\n");
    let wrong = "0".repeat(64);
    site.put(format!("{CARD}.csv"), "a");
    site.put(format!("{CARD}.csv.ok"), format!("{wrong}  {CARD}\n"));
    site.put("b.csv", "b");
    site.put("b.csv.ok", format!("{CARD} {GROUPED}\n"));
    site.put(format!("{GROUPED}.ok"), "a sidecar without its file");
    let ended = site.run_once(&[]);
    assert_eq!(site.quarantined().len(), 1);
    for (what, text) in all_told(&site, &ended) {
        assert_masked(&what, &text);
    }

    site.put("c.csv", "c");
    site.put("c.csv.ok", "");
    let mut command = site.run(&["--once"]);
    command.env(
        "RINGEST_PANIC_AT",
        format!("classified at \"{CARD}\", {GROUPED}"),
    );
    let ended = Finished::of(command);
    let told = ended.event("panic", "");
    assert_eq!(told["message"], "at \"****1111\", ****1111");
    for (what, text) in all_told(&site, &ended) {
        assert_masked(&what, &text);
    }

    // Without a log: other commands, and settings that cannot be used.
    let state = site.root.join("new");
    let rebuild = |point: &str| {
        let mut command = site.ringest(false);
        command.arg("rebuild").arg("--input").arg(&site.staging);
        command.arg("--warehouse").arg(&site.warehouse);
        command.arg("--manifests").arg(&site.manifests);
        command
            .arg("--state-path")
            .arg(state.join(CARD).join(point));
        command.env("RINGEST_PANIC_AT", format!("{point} {CARD}"));
        Finished::of(command)
    };
    let panicked = rebuild("ledger_made");
    assert!(panicked.stderr.contains("panicked at"), "{panicked}");
    assert_masked("a panic", &panicked.stderr);
    let mut missing = site.ringest(false);
    missing
        .args(["status", "--state-path"])
        .arg(site.root.join(CARD));
    let missing = Finished::of(missing).with_code(78);
    assert!(missing.stderr.contains("****1111"), "{missing}");
    assert_masked("an error", &missing.stderr);
    let nested = site.warehouse.join(CARD);
    let refused = site
        .try_once(&["--input", nested.to_str().expect("UTF-8")])
        .with_code(78);
    assert!(refused.stderr.contains("****1111"), "{refused}");
    assert_masked("an error of settings", &refused.stderr);
    for args in [
        &[CARD][..],
        &["run", "--stability-seconds", GROUPED],
        &["run", "--mode", CARD],
        &["find", "a.csv", GROUPED],
    ] {
        let mut typed = site.ringest(false);
        typed.args(args);
        let refused = Finished::of(typed).with_code(2);
        assert!(refused.stderr.contains("****1111"), "{refused}");
        assert_masked("an error of the command line", &refused.stderr);
    }
}

/// Every code point that Python knows, in the place of a digit and between two. What is newer than Python's Unicode is not looked at.
#[test]
fn every_decimal_digit_of_unicode_is_one_and_every_other_sign_may_be_between_two() {
    if !has_program("python3", "--version") {
        skip("needs python3 for a second opinion on Unicode");
        return;
    }
    let script = "import sys, unicodedata\n\
        for c in range(sys.maxunicode + 1): print(unicodedata.category(chr(c)), unicodedata.decimal(chr(c), -1))";
    let said = output(Command::new("python3").args(["-c", script]));
    let mut digits = 0;
    for (code, line) in (0..).zip(said.lines()) {
        let (category, value) = line.split_once(' ').expect("two words");
        let value: i32 = value.parse().expect("a number");
        let Some(c) = char::from_u32(code).filter(|_| category != "Cn") else {
            continue;
        };
        digits += i32::from(category == "Nd");
        assert_eq!(category == "Nd", value >= 0, "{c:?}");
        // With the check digit that is right for this value.
        let card = format!("4111111111111{c}1{}", (12 - value.max(0)) % 10);
        assert_eq!(mask(&card) != card, value >= 0, "{c:?} as a digit");
        let is_sign = !category.starts_with(['L', 'N', 'M']) && !c.is_alphabetic();
        let grouped = ["4111", "1111", "1111", "1111"].join(&c.to_string());
        assert!(
            !is_sign || mask(&grouped) == "****1111",
            "{c:?} between digits"
        );
        let is_letter = category.starts_with('L');
        assert!(
            !is_letter || mask(&grouped) == grouped,
            "{c:?} between digits"
        );
    }
    assert!(digits >= 660, "{digits}");
}
