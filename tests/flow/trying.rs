//! `check --file` and `run --dry-run`: what would become of a file, before anything does.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Finished, Site, is_root, sha256, tree};

/// A site whose files count as finished at once, with these settings.
fn site(settings: &str) -> Site {
    site_in(Site::new(), settings)
}

fn site_in(site: Site, settings: &str) -> Site {
    let config = site.root.join("ringest.toml");
    let settings = format!("mode = \"closed\"\nstability_seconds = 0.1\n{settings}");
    fs::write(&config, settings).expect("write the settings");
    site.with(&["--config", config.to_str().expect("UTF-8")])
}

/// Says nothing of staging directories: for settings with sources of their own.
fn bare_check(site: &Site, file: &Path, args: &[&str]) -> Finished {
    let mut command = site.command("check", &[]);
    command.arg("--config").arg(site.root.join("ringest.toml"));
    command.arg("--file").arg(file).args(args);
    Finished::of(command)
}

fn check(site: &Site, file: &Path, args: &[&str]) -> Finished {
    let staging = site.staging.to_str().expect("UTF-8");
    bare_check(site, file, &[&["--input", staging], args].concat())
}

/// The object that it prints, whose exit code is 1 exactly when the file would be set aside.
fn answer(site: &Site, file: &Path) -> Value {
    let said = check(site, file, &["--json"]);
    let answer: Value = serde_json::from_str(&said.stdout)
        .unwrap_or_else(|error| panic!("{}: {error}: {said}", file.display()));
    said.with_code(i32::from(answer["action"] == "quarantine"));
    answer
}

/// What the dry run says, by path.
fn plan(site: &Site) -> BTreeMap<String, Value> {
    let planned = Finished::of(site.run(&["--dry-run"])).ok();
    let actions = planned.stdout.lines().map(|line| {
        let action: Value = serde_json::from_str(line).expect("a JSON line");
        (action["path"].as_str().expect("a path").to_owned(), action)
    });
    actions.collect()
}

/// The last arrival that came from a path, as `find` has it.
fn found(site: &Site, file: &Path) -> Value {
    let mut find = site.command("find", &["--json"]);
    find.arg(file);
    let found = Finished::of(find).ok();
    let last = found.stdout.lines().last().expect("a line");
    serde_json::from_str(last).expect("JSON")
}

/// A path without the day.
fn undated(path: &Value) -> String {
    let path = path.as_str().unwrap_or_else(|| panic!("no path: {path}"));
    let Some((before, after)) = path.split_once("ingest_date=") else {
        return path.to_owned();
    };
    format!("{before}ingest_date={}", &after["2026-11-23".len()..])
}

const CSV: &str = r#"
    content = "csv"
    required_columns = ["name"]
    key_column = "id"
    extensions = [".csv"]
    min_file_size = 4
    recursive = true
"#;

#[test]
fn what_is_said_of_a_file_is_what_run_then_does_with_it() {
    let site = site(CSV);
    site.put("known.csv", "id,name\n0,known\n");
    site.run_once(&[]);
    fs::create_dir(site.staging.join("east")).expect("make a directory");
    let large = format!("id,name\n{}", "1,a\n".repeat(1_000_000));
    let unclosed = format!("{large}1,\"a\n");
    let files: [(&str, &[u8]); 11] = [
        ("good.csv", b"id,name\n1,a\n2,b\n"),
        ("east/good.csv", b"id,name\n3,c\n"),
        ("large.csv", large.as_bytes()),
        ("again.csv", b"id,name\n0,known\n"),
        ("width.csv", b"id,name\n1\n"),
        ("east/quote.csv", unclosed.as_bytes()),
        ("key.csv", b"id,name\n1,a\n,b\n"),
        ("column.csv", b"id,title\n1,a\n"),
        ("text.csv", b"id,name\n1,\xff\n"),
        ("good.txt", b"id,name\n4,d\n"),
        ("small.csv", b"a\n"),
    ];
    let paths = files.map(|(name, content)| site.put(name, content));
    let answers = paths.each_ref().map(|path| answer(&site, path));
    let plan = plan(&site);
    site.run_once(&[]);

    for (path, answer) in paths.iter().zip(&answers) {
        let found = found(&site, path);
        let state = match answer["action"].as_str() {
            Some("ingest") => "MANIFESTED",
            Some("duplicate") => "SKIPPED_DUPLICATE",
            Some("quarantine") => "QUARANTINED",
            _ => panic!("{answer}"),
        };
        assert_eq!(found["state"], state, "{answer}");
        for field in [
            "path",
            "sha256",
            "size",
            "rule",
            "message",
            "source",
            "duplicate_of",
        ] {
            assert_eq!(answer[field], found[field], "{field}: {answer}");
        }
        let placed = undated(&found["warehouse_path"]);
        assert_eq!(undated(&answer["warehouse_path"]), placed);

        let planned = &plan[path.to_str().expect("UTF-8")];
        for field in ["action", "rule", "message", "sha256", "position"] {
            assert_eq!(planned[field], answer[field], "{field}: {planned}");
        }
        assert_eq!(planned["bytes"], answer["size"]);
        assert_eq!(undated(&planned["warehouse_path"]), placed);

        if state == "MANIFESTED" {
            let lines = site.manifest();
            let line = lines.iter().find(|line| line.source_path() == *path);
            let line = line.expect("a line");
            assert_eq!(answer["records"], line.number("records"));
            assert_eq!(answer["columns"], line.number("columns"));
        }
        if state == "QUARANTINED" {
            let lies = found["warehouse_path"].as_str().expect("a path");
            let reason = fs::read(format!("{lies}.reason.json")).expect("a reason");
            let reason: Value = serde_json::from_slice(&reason).expect("JSON");
            assert_eq!(answer["position"], reason["position"], "{answer}");
        }
    }
    let rules: Vec<&str> = answers
        .iter()
        .filter_map(|it| it["rule"].as_str())
        .collect();
    assert_eq!(
        rules,
        [
            "csv_width",
            "csv_quote",
            "key_column",
            "required_columns",
            "utf8",
            "extensions",
            "min_file_size"
        ]
    );
    assert_eq!(answers[3]["duplicate_of"], 1);
    assert_eq!(
        answers[3]["duplicate_of_path"],
        site.line("known.csv").text("warehouse_path")
    );
    assert_eq!(answers[5]["position"]["line"], 1_000_002);
}

#[test]
fn names_that_are_taken_are_seen_and_so_is_a_copy_that_is_gone() {
    let site = site("content = \"json\"\n");
    for content in ["[1]", "[2]", "[1", "[2", "[3]"] {
        let path = site.put("a.json", content);
        let answer = answer(&site, &path);
        site.run_once(&[]);
        let found = found(&site, &path);
        assert_eq!(
            undated(&answer["warehouse_path"]),
            undated(&found["warehouse_path"]),
            "{content}"
        );
    }
    let twice = site.quarantined();
    assert_eq!(twice.len(), 2, "{twice:?}");

    let path = site.put("again.json", "[3]");
    assert_eq!(answer(&site, &path)["action"], "duplicate");
    let placed = site.lines_of("a.json").pop().expect("a line").placed();
    let moved = site.root.join("elsewhere");
    fs::rename(&placed, &moved).expect("take it away");
    assert_eq!(answer(&site, &path)["action"], "ingest");
    // Restored from a backup: another inode with that content; then with another.
    fs::copy(&moved, &placed).expect("copy");
    assert_eq!(answer(&site, &path)["action"], "duplicate");
    fs::write(&placed, "[4]").expect("write");
    assert_eq!(answer(&site, &path)["action"], "ingest");
    site.run_once(&[]);
    assert_eq!(found(&site, &path)["state"], "MANIFESTED");
}

#[test]
fn what_is_left_alone_is_said_with_the_reason() {
    let site = site("include = [\"*.csv\", \"*.ok\"]\nexclude = [\"x*\"]\nempty = \"skip\"\n");
    let sub = site.staging.join("sub");
    fs::create_dir(&sub).expect("make a directory");
    symlink(
        site.root.join("ringest.toml"),
        site.staging.join("link.csv"),
    )
    .expect("link");
    symlink(&sub, site.staging.join("sub.csv")).expect("link");
    let left = [
        (site.put(".a.csv", "a"), "hidden"),
        (site.put("a.csv.part", "a"), "suffix"),
        (site.put("x.csv", "a"), "excluded"),
        (site.put("a.txt", "a"), "not_included"),
        (site.put("empty.csv", ""), "it is empty"),
        (site.staging.join("link.csv"), "not a regular file"),
        (site.put("sub/a.csv", "a"), "not recursive"),
    ];
    for (path, why) in &left {
        let answer = answer(&site, path);
        let reason = answer["reason"].as_str().unwrap_or_default();
        assert_eq!(answer["action"], "ignore", "{answer}");
        assert!(reason.contains(why), "{why}: {answer}");
        assert!(answer["sha256"].is_null() && answer["warehouse_path"].is_null());
        check(&site, path, &[]).ok().naming("it would be ignored");
    }
    let plan = plan(&site);
    site.run_once(&[]);
    for (path, why) in left {
        assert!(path.symlink_metadata().is_ok(), "{path:?}");
        if let Some(planned) = plan.get(path.to_str().expect("UTF-8")) {
            assert_eq!(planned["action"], "ignore", "{planned}");
            let reason = planned["reason"].as_str().expect("a reason");
            assert!(reason.contains(why), "{planned}");
        }
    }
    assert_eq!(site.manifest().len(), 0);
}

#[test]
fn what_a_file_waits_for_is_said_beside_what_it_holds() {
    let site = site("content = \"json\"\n");
    let path = site.put("a.json", "[");
    fs::hard_link(&path, site.root.join("second name")).expect("link");
    let said = answer(&site, &path);
    assert_eq!(said["waits_for"], "it has a second name (hard link)");
    assert_eq!(said["rule"], "json");
    assert_eq!(plan(&site)[path.to_str().expect("UTF-8")]["action"], "wait");

    let site = self::site("empty = \"hold\"\n");
    let path = site.put("a.csv", "");
    let said = answer(&site, &path);
    assert_eq!(said["action"], "wait");
    assert_eq!(said["reason"], "it is empty");

    let site = self::site("");
    let path = site.put("a.csv", "a");
    let long = ["--mode", "stability", "--stability-seconds", "3600"];
    let said = check(&site, &path, &long).ok();
    let said = said.naming("it would be ingested");
    said.naming("waits for now:  it changed a moment ago");
}

#[test]
fn a_sidecar_is_compared_and_missed() {
    let site = Site::new().with(&["--mode", "sidecar", "--stability-seconds", "0.1"]);
    fs::write(site.root.join("ringest.toml"), "mode = \"sidecar\"\n").expect("write");
    let path = site.put("a.csv", "a");
    let said = answer(&site, &path);
    assert_eq!(said["action"], "ingest");
    assert_eq!(said["waits_for"], "its sidecar has not arrived");

    let sidecar = site.put("a.csv.ok", sha256(b"b"));
    assert_eq!(answer(&site, &sidecar)["reason"], "sidecar");
    let said = answer(&site, &path);
    assert_eq!(said["rule"], "sidecar_digest");
    assert!(said["waits_for"].is_null(), "{said}");
    assert_eq!(
        plan(&site)[path.to_str().expect("UTF-8")]["rule"],
        "sidecar_digest"
    );
    site.run_once(&[]);
    let found = found(&site, &path);
    assert_eq!(found["message"], said["message"]);

    let path = site.put("c.csv", "c");
    site.put("c.csv.ok", sha256(b"c"));
    let said = answer(&site, &path);
    assert_eq!(said["action"], "ingest", "{said}");
    assert!(said["waits_for"].is_null(), "{said}");
}

#[test]
fn what_becomes_of_a_duplicate_is_a_setting_and_a_kept_one_is_known() {
    let site = site("");
    site.put("a.csv", "a");
    site.run_once(&[]);
    let path = site.put("again.csv", "a");
    for (choice, says) in [
        ("move", "moved to the duplicates"),
        ("delete", "deleted"),
        ("keep", "kept where it is"),
    ] {
        let args = ["--on-duplicate", choice];
        check(&site, &path, &args).ok().naming(says);
        let said = check(&site, &path, &[&args[..], &["--json"]].concat()).ok();
        let said: Value = serde_json::from_str(&said.stdout).expect("JSON");
        assert_eq!(said["on_duplicate"], choice);
        assert_eq!(said["warehouse_path"].is_null(), choice != "move");
    }
    for dedupe in ["off", "name"] {
        let said = check(&site, &path, &["--dedupe", dedupe]).ok();
        said.naming("it would be ingested");
    }
    site.run_once(&["--on-duplicate", "keep"]);
    let said = answer(&site, &path);
    assert_eq!(said["reason"], "kept: it was taken before", "{said}");
    assert_eq!(
        plan(&site)[path.to_str().expect("UTF-8")]["reason"],
        said["reason"]
    );
}

#[test]
fn a_file_that_lies_elsewhere_is_tried_without_a_ledger_and_nothing_is_made() {
    let site = site(CSV);
    let outside = site.root.join("outside");
    fs::create_dir(&outside).expect("make a directory");
    let path = outside.join("tried.csv");
    fs::write(&path, "id,name\n1,a\n\n2\n").expect("write");
    let before = tree(&site.root);
    let said = answer(&site, &path);
    assert_eq!(said["action"], "quarantine");
    assert_eq!(said["in_staging"], false);
    assert_eq!(said["duplicates_known"], false);
    assert_eq!(said["relative_path"], "tried.csv");
    assert_eq!(said["position"], serde_json::json!({"line": 4}));
    let aside = undated(&said["warehouse_path"]);
    assert!(
        aside.ends_with("_quarantine/ingest_date=/tried.csv"),
        "{said}"
    );
    for field in ["reason", "waits_for", "duplicate_of", "records", "columns"] {
        assert_eq!(said.get(field), Some(&Value::Null), "{field}: {said}");
    }
    let text = check(&site, &path, &[]).with_code(1);
    for line in [
        "it would be set aside\n",
        "\n  rule:           csv_width\n",
        "\n  line:           4\n",
        "\n  relative path:  tried.csv\n",
        "\n  size:           15 bytes\n",
        "\n  note:           it does not lie in the staging directory",
    ] {
        assert!(text.stdout.contains(line), "{line:?}: {text}");
    }

    fs::write(&path, "id,name\n1,a\n").expect("write");
    let text = check(&site, &path, &[]).ok();
    let text = text.naming("it would be ingested");
    text.naming("there is no ledger");

    // By a path from the working directory, and through others that lead to staging.
    let mut command = site.command("check", &["--file", "tried.csv", "--json"]);
    command
        .current_dir(&outside)
        .arg("--input")
        .arg(&site.staging);
    let said = Finished::of(command).ok();
    let said: Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!(said["path"], path.to_str().expect("UTF-8"));
    fs::write(&path, "id,name\n1,a\n\n2\n").expect("write");
    let link = site.root.join("link");
    symlink(&site.staging, &link).expect("link");
    site.put("here.csv", "id,name\n1,a\n");
    assert_eq!(answer(&site, &link.join("here.csv"))["in_staging"], true);
    assert_eq!(
        answer(&site, &outside.join("../staging/here.csv"))["in_staging"],
        true
    );
    fs::remove_file(site.staging.join("here.csv")).expect("remove");
    fs::remove_file(link).expect("remove");
    let after = tree(&site.root);
    let names = |tree: &BTreeMap<PathBuf, [i64; 7]>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
}

#[test]
fn nothing_is_changed_where_there_is_a_ledger() {
    let site = site(CSV);
    site.put("a.csv", "id,name\n1,a\n");
    site.run_once(&[]);
    let again = site.put("again.csv", "id,name\n1,a\n");
    let bad = site.put("bad.csv", "id,name\n1\n");
    let before = tree(&site.root);
    answer(&site, &again);
    answer(&site, &bad);
    plan(&site);
    assert_eq!(tree(&site.root), before);
}

#[test]
fn the_source_is_named_or_the_one_in_whose_input_the_file_lies() {
    let site = Site::new();
    let [outer, inner] = ["outer", "outer/inner"].map(|name| site.root.join(name));
    fs::create_dir_all(&inner).expect("make directories");
    let block = |name: &str, input: &Path, content: &str| {
        format!("[[source]]\nname = {name:?}\ninput = {input:?}\ncontent = {content:?}\n")
    };
    let settings = block("texts", &outer, "text") + &block("documents", &inner, "json");
    fs::write(site.root.join("ringest.toml"), settings).expect("write the settings");
    let files = [&outer, &inner, &site.root].map(|directory| {
        let path = directory.join("a.json");
        fs::write(&path, "{").expect("write");
        path
    });
    let source = |path: &Path, args: &[&str], code| {
        let said = bare_check(&site, path, &[&["--json"], args].concat()).with_code(code);
        let said: Value = serde_json::from_str(&said.stdout).expect("JSON");
        (said["source"].clone(), said["relative_path"].clone())
    };
    let is = |source: &str| (Value::from(source), Value::from("a.json"));
    assert_eq!(source(&files[0], &[], 0), is("texts"));
    assert_eq!(source(&files[1], &[], 1), is("documents"));
    assert_eq!(
        source(&files[0], &["--source", "documents"], 1),
        is("documents")
    );
    assert_eq!(source(&files[2], &["--source", "texts"], 0), is("texts"));
    let unsaid = bare_check(&site, &files[2], &[]).with_code(2);
    assert!(unsaid.stderr.contains("texts, documents"), "{unsaid}");
    let unknown = bare_check(&site, &files[0], &["--source", "pictures"]).with_code(78);
    assert!(unknown.stderr.contains("texts, documents"), "{unknown}");
}

#[test]
fn a_dry_run_counts_what_its_own_files_would_bring() {
    let site = Site::new();
    let mut settings = String::new();
    for (name, content) in [("north", "[1]"), ("south", "[1]"), ("west", "[2]")] {
        let input = site.root.join(name);
        fs::create_dir(&input).expect("make a directory");
        fs::write(input.join("a.json"), content).expect("write");
        fs::write(input.join("bad.json"), format!("[{content}")).expect("write");
        settings +=
            &format!("[[source]]\ninput = {input:?}\ncontent = \"json\"\nmode = \"closed\"\n");
    }
    let config = site.root.join("ringest.toml");
    fs::write(&config, settings).expect("write the settings");
    let mut command = site.command("run", &["--dry-run", "--config"]);
    command.arg(&config);
    let planned = Finished::of(command).ok();
    let actions: Vec<Value> = planned
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect();
    let count = |action: &str| actions.iter().filter(|it| it["action"] == action).count();
    let counts = ["ingest", "duplicate", "quarantine"].map(count);
    assert_eq!(counts, [2, 1, 3], "{planned}");
    let mut places: Vec<String> = actions
        .iter()
        .map(|it| undated(&it["warehouse_path"]))
        .collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), 6, "one place for each: {places:?}");
}

#[test]
fn a_name_that_is_no_utf8_is_told_in_base64_too() {
    let site = site("");
    let path = site.put(OsStr::from_bytes(b"\xff\n.csv"), "a");
    let said = answer(&site, &path);
    for field in ["path_b64", "relative_path_b64", "warehouse_path_b64"] {
        let exact = said[field]
            .as_str()
            .unwrap_or_else(|| panic!("{field}: {said}"));
        let exact = data_encoding::BASE64
            .decode(exact.as_bytes())
            .expect("base64");
        assert!(exact.ends_with(b"\xff\n.csv"), "{field}: {said}");
    }
    let text = check(&site, &path, &[]).ok();
    assert!(text.stdout.contains("\u{fffd}\\n.csv\n"), "{text}");
}

#[test]
fn a_command_has_the_last_word_here_too() {
    let script = "case $RINGEST_CHECK_NAME in *.csv) grep -q good \"$1\" || { echo not good; exit 3; };; esac";
    let command = format!("check_command = [\"/bin/sh\", \"-c\", {script:?}, \"sh\"]\n");
    let site = site(&format!(
        "content = \"csv\"\nencoding = \"utf-16\"\n{command}"
    ));
    let wide = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let files = [
        (site.put("good.csv", wide("a,b\n1,2\n")), "check_command"),
        (site.put("width.csv", wide("a,b\n1\n")), "csv_width"),
        (site.put("odd.csv", "a"), "encoding"),
        (site.put("other.txt", wide("a,b\n1,2\n")), ""),
    ];
    let answers = files.each_ref().map(|(path, _)| answer(&site, path));
    let plan = plan(&site);
    site.run_once(&[]);
    for ((path, rule), answer) in files.iter().zip(&answers) {
        assert_eq!(
            answer["rule"].as_str().unwrap_or_default(),
            *rule,
            "{answer}"
        );
        let found = found(&site, path);
        let planned = &plan[path.to_str().expect("UTF-8")];
        for field in ["rule", "message", "sha256"] {
            assert_eq!(answer[field], found[field], "{field}: {answer}");
            assert_eq!(planned[field], answer[field], "{field}: {planned}");
        }
    }
    let message = answers[0]["message"].as_str().expect("a message");
    assert!(message.ends_with("code 3: not good"), "{message}");
    let records = answers.each_ref().map(|answer| answer["records"].as_u64());
    assert_eq!(records, [Some(1), None, None, Some(1)]);
}

#[test]
fn it_answers_beside_a_running_instance() {
    let site = site(CSV);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    site.put("a.csv", "id,name\n1,a\n");
    site.wait_for_line(&mut watching, "a.csv");
    let outside = site.root.join("a.csv");
    fs::write(&outside, "id,name\n1,a\n").expect("write");
    let said = answer(&site, &outside);
    assert_eq!(said["action"], "duplicate");
    assert_eq!(said["duplicate_of"], 1);
    fs::write(&outside, "id,name\n1\n").expect("write");
    assert_eq!(answer(&site, &outside)["rule"], "csv_width");
    assert!(!watching.has_ended());
    watching.terminate();
    site.assert_sound();
}

#[test]
fn files_that_cannot_be_read_end_with_an_error() {
    // Not where the other tests run: cargo's directory may be out of another user's reach.
    let mut site = site_in(Site::beneath(Path::new("/var/tmp")), "");
    check(&site, &site.staging.join("none.csv"), &[])
        .with_code(74)
        .naming("none.csv");
    check(&site, &site.root.join("none/none.csv"), &[]).with_code(74);
    let path = site.put("closed.csv", "a");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).expect("close it");
    if is_root() {
        site = site.run_by(65534);
    }
    check(&site, &path, &[]).with_code(74).naming("closed.csv");

    let mut alone = site.command("check", &["--source", "staging"]);
    alone.arg("--input").arg(&site.staging);
    Finished::of(alone).with_code(2).naming("--file");
}

#[test]
fn names_are_shown_as_they_are_and_reasons_as_they_would_be_written() {
    let site = site("content = \"json\"\n");
    let path = site.put("4111111111111111.json", "[");
    let said = answer(&site, &path);
    assert_eq!(said["relative_path"], "4111111111111111.json");
    let aside = said["warehouse_path"].as_str().expect("a path");
    assert!(aside.ends_with("/4111111111111111.json"), "{said}");
    let text = check(&site, &path, &[]).with_code(1);
    text.naming("4111111111111111.json");
}
