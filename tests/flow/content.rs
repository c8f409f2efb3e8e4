//! Content that is checked on the way, and set aside with a reason where it breaks a rule.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Site, files_beneath, sha256, skip};

fn site(content: &str) -> Site {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    let config = site.root.join("ringest.toml");
    fs::write(&config, content).expect("write the settings");
    site
}

fn run(site: &Site) -> crate::support::Finished {
    let config = site.root.join("ringest.toml");
    let config = config.to_str().expect("UTF-8");
    let mut command = site.run(&["--config", config]);
    command.arg("--once");
    crate::support::Finished::of(command).ok()
}

/// Rule and message beside a quarantined file of that name.
fn reason(site: &Site, name: &str) -> (String, String) {
    let quarantined = site.quarantined();
    let path = quarantined
        .iter()
        .find(|path| path.file_name().is_some_and(|it| it == name))
        .unwrap_or_else(|| panic!("{name} is not among {quarantined:?}"));
    let reason = fs::read(format!("{}.reason.json", path.display())).expect("a reason beside it");
    let reason: Value = serde_json::from_slice(&reason).expect("JSON");
    let text = |key: &str| reason[key].as_str().unwrap_or_default().to_owned();
    (text("rule"), text("message"))
}

#[test]
fn what_breaks_a_rule_is_set_aside_with_its_reason_and_the_rest_arrives() {
    let site = site(
        r#"
        content = "csv"
        csv_delimiter = ";"
        required_columns = ["name"]
        key_column = "id"
        min_records = 1
        extensions = [".csv"]
        min_file_size = 4
        max_file_size = "1MiB"
        "#,
    );
    let good = "id;name\n1;\"a;b\"\n2;c\n";
    site.put("good.csv", good);
    let large = format!("id;name\n{}", "1;a\n".repeat(300_000));
    let bad: [(&str, &[u8], &str, &str); 9] = [
        ("width.csv", b"id;name\n1\n", "csv_width", "line 2"),
        (
            "quote.csv",
            b"id;name\n1;\"a\n",
            "csv_quote",
            "line 2, column 3",
        ),
        ("key.csv", b"id;name\n1;a\n;b\n", "key_column", "line 3"),
        (
            "column.csv",
            b"id;title\n1;a\n",
            "required_columns",
            "\"name\"",
        ),
        ("few.csv", b"id;name\n", "min_records", "0 records"),
        ("text.csv", b"id;name\n1;\xff\n", "utf8", "byte 10"),
        ("good.txt", good.as_bytes(), "extensions", ".csv"),
        ("small.csv", b"a\n", "min_file_size", "2 bytes"),
        (
            "large.csv",
            large.as_bytes(),
            "max_file_size",
            "1200008 bytes",
        ),
    ];
    for (name, content, ..) in bad {
        site.put(name, content);
    }
    let ended = run(&site);
    assert_eq!(site.manifest().len(), 1);
    assert_eq!(site.line("good.csv").sha256(), sha256(good.as_bytes()));
    assert_eq!(site.quarantined().len(), bad.len());
    for (name, _, rule, says) in bad {
        let (broken, message) = reason(&site, name);
        assert_eq!(broken, rule, "{name}: {message}");
        assert!(message.contains(says), "{name}: {message}");
        ended.event("file_quarantined", name);
    }
    site.assert_staging_is_empty();
    site.assert_agrees();
}

#[test]
fn text_in_a_declared_encoding_is_checked_as_text_and_placed_as_it_came() {
    let utf16 =
        |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let site = site("content = \"csv\"\nencoding = \"utf-16\"\nrequired_columns = [\"größe\"]\n");
    let good = "\u{feff}größe,\"😀\n\"\r\n1,2\r\n".to_owned();
    let long = format!("größe,b\n{}", "1,ä\n".repeat(500_000));
    for (name, text) in [("good.csv", &good), ("long.csv", &long)] {
        site.put(name, utf16(text));
    }
    let bad: [(&str, Vec<u8>, &str, &str); 5] = [
        ("width.csv", utf16("größe,b\n1\n"), "csv_width", "line 2"),
        (
            "column.csv",
            utf16("grosse,b\n1,2\n"),
            "required_columns",
            "größe",
        ),
        (
            "half.csv",
            utf16("größe\n1")[..13].to_vec(),
            "encoding",
            "byte 12",
        ),
        (
            "mark.csv",
            "\u{feff}größe\n1".into(),
            "encoding",
            "byte order mark of UTF-8",
        ),
        ("nul.csv", utf16("größe\n\0"), "nul", "NUL"),
    ];
    for (name, content, ..) in &bad {
        site.put(name, content);
    }
    run(&site);
    for (name, text, records) in [("good.csv", &good, 1), ("long.csv", &long, 500_000)] {
        let line = site.line(name);
        assert_eq!(line.sha256(), sha256(&utf16(text)));
        assert_eq!(
            (line.number("records"), line.number("columns")),
            (records, 2)
        );
    }
    assert_eq!(site.quarantined().len(), bad.len());
    for (name, _, rule, says) in bad {
        let (broken, message) = reason(&site, name);
        assert_eq!(broken, rule, "{name}: {message}");
        assert!(message.contains(says), "{name}: {message}");
    }
    site.assert_agrees();
}

#[test]
fn each_source_has_rules_of_its_own() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    let [texts, lines, any] = ["texts", "lines", "any"].map(|name| {
        let directory = site.root.join(name);
        fs::create_dir(&directory).expect("make a directory");
        directory
    });
    let config = site.root.join("ringest.toml");
    let block =
        |input: &Path, rules: &str| format!("[[source]]\ninput = {:?}\n{rules}\n", input.display());
    let blocks = [
        block(&texts, "content = \"json\""),
        block(&lines, "content = \"jsonl\""),
        block(&any, ""),
    ];
    fs::write(&config, blocks.concat()).expect("write the settings");
    for directory in [&texts, &lines, &any] {
        fs::write(directory.join("a.json"), "{\"a\":\n1}").expect("write");
    }
    fs::write(texts.join("deep.json"), "[".repeat(100_000)).expect("write");
    fs::write(texts.join("twice.json"), "{\"a\":1,\"a\":2}").expect("write");
    fs::write(lines.join("b.jsonl"), "{\"a\":1}\n[]\n").expect("write");

    let mut command = site.bare_run();
    command.arg("--config").arg(&config).arg("--once");
    for (flag, path) in [
        ("--warehouse", &site.warehouse),
        ("--manifests", &site.manifests),
        ("--state-path", &site.state),
    ] {
        command.arg(flag).arg(path);
    }
    command.args(["--stability-seconds", "0.1", "--dedupe", "off"]);
    crate::support::Finished::of(command).ok();
    assert_eq!(site.manifest().len(), 3);
    assert_eq!(site.quarantined().len(), 3);
    assert_eq!(
        reason(&site, "a.json"),
        (
            "json".into(),
            "line 1, column 5: EOF while parsing a value".into()
        )
    );
    assert_eq!(
        reason(&site, "twice.json").1,
        "line 1, column 10: an object has the same key twice"
    );
    let (rule, message) = reason(&site, "deep.json");
    assert_eq!(rule, "json");
    assert!(message.contains("recursion limit exceeded"), "{message}");
}

/// What Python's own modules count: records and columns of CSV, items of a JSON document that is an array.
const COUNT: &str = "
import csv, json, sys
for path in sys.argv[1:]:
    if path.endswith('.json'):
        with open(path, encoding='utf-8') as file:
            document = json.load(file)
        print(len(document) if isinstance(document, list) else 1)
        continue
    with open(path, encoding='utf-8-sig', newline='') as file:
        rows = [row for row in csv.reader(file) if row]
        print(len(rows) - 1, len(rows[0]))
";

/// The data sets of Vega, as their makers wrote them.
#[test]
fn real_files_are_accepted_and_counted_as_python_does() {
    let Some(data) = std::env::var_os("RINGEST_TEST_DATA") else {
        return skip("needs RINGEST_TEST_DATA, a directory of CSV and JSON files");
    };
    for (content, extension) in [("csv", "csv"), ("json", "json"), ("text", "csv")] {
        let site = site(&format!("content = {content:?}\n"));
        let mut files = 0;
        for path in files_beneath(Path::new(&data)) {
            if path.extension().is_some_and(|it| it == extension) {
                let content = fs::read(&path).expect("read");
                site.put(
                    format!("{files} {}", path.file_name().unwrap().display()),
                    content,
                );
                files += 1;
            }
        }
        assert!(files > 0);
        run(&site);
        let quarantined = site.quarantined();
        assert!(quarantined.is_empty(), "{content}: {quarantined:?}");
        if content != "text" {
            let lines = site.manifest();
            let placed = lines.iter().map(|line| line.placed());
            let counted = std::process::Command::new("python3")
                .args(["-c", COUNT])
                .args(placed)
                .output()
                .expect("python3");
            assert!(counted.status.success(), "{counted:?}");
            let counted = String::from_utf8(counted.stdout).expect("UTF-8");
            let counts = lines.iter().map(|line| match content {
                "csv" => format!("{} {}", line.number("records"), line.number("columns")),
                _ => line.number("records").to_string(),
            });
            assert_eq!(
                counted.lines().collect::<Vec<_>>(),
                counts.collect::<Vec<_>>()
            );
        }
        site.assert_staging_is_empty();
        site.assert_sound();
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    for (content, says) in [
        ("required_columns = [\"a\"]", "content = \"csv\""),
        (
            "content = \"csv\"\ncsv_header = false\nkey_column = \"a\"",
            "csv_header",
        ),
        (
            "content = \"csv\"\ncsv_delimiter = \"'\"\ncsv_quote = \"'\"",
            "delimiter",
        ),
        ("content = \"csv\"\ncsv_delimiter = \"ab\"", "ASCII"),
        ("content = \"xml\"", "jsonl"),
        ("encoding = \"latin1\"", "content = \"text\""),
        ("content = \"text\"\nencoding = \"utf-7\"", "windows-1252"),
    ] {
        let site = site(content);
        let config = site.root.join("ringest.toml");
        let config = config.to_str().expect("UTF-8");
        site.try_once(&["--config", config])
            .with_code(78)
            .naming(says);
    }
}

#[test]
fn documents_agree_with_a_schema_or_are_set_aside_and_no_value_is_told() {
    let site = site("");
    let schema = site.root.join("schema.json");
    let rules = r#"{
        "type": "object",
        "required": ["id"],
        "properties": {
            "id": {"type": "integer"},
            "others": {"additionalProperties": {"type": "integer"}},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^(a+)+$"}}
        }
    }"#;
    fs::write(&schema, rules).expect("write the schema");
    let settings = |content: &str| format!("content = {content:?}\njson_schema = {schema:?}\n");
    let config = site.root.join("ringest.toml");
    fs::write(&config, settings("json")).expect("write the settings");
    site.put("good.json", r#"{"id": 1, "tags": ["aaa"]}"#);
    site.put("secret.json", r#"{"id": "4111111111111111"}"#);
    // A pattern that would take a backtracking engine for ever.
    let hard = format!(
        "{{\"id\": 1, \"tags\": [\"a\", \"{}!\"]}}",
        "a".repeat(5000)
    );
    site.put("hard.json", hard);
    site.put("none.json", "[]");
    // A name that the schema does not know is content.
    site.put(
        "other.json",
        r#"{"id": 1, "others": {"4111111111111111": "x"}}"#,
    );
    let ended = run(&site);
    assert_eq!(site.manifest().len(), 1);
    for (name, pointer, keyword) in [
        ("secret.json", "/id", "type"),
        ("hard.json", "/tags/1", "pattern"),
        ("other.json", "/others", "type"),
        ("none.json", "", "type"),
    ] {
        let (rule, message) = reason(&site, name);
        assert_eq!(rule, "json_schema", "{message}");
        assert!(
            message.contains(pointer) && message.contains(keyword),
            "{message}"
        );
        let path = site
            .quarantined()
            .into_iter()
            .find(|path| path.ends_with(name));
        let text = fs::read_to_string(format!("{}.reason.json", path.expect("there").display()));
        let text = text.expect("a reason");
        let reason: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(reason["position"]["pointer"], pointer);
        assert!(!text.contains("4111"), "{text}");
    }
    assert!(!format!("{ended}").contains("411111"), "{ended}");

    fs::write(&config, settings("jsonl")).expect("write the settings");
    site.put("lines.jsonl", "{\"id\": 1}\n{\"id\": 2}\n{}\n");
    run(&site);
    let (_, message) = reason(&site, "lines.jsonl");
    assert!(
        message.contains("line 3") && message.contains("required"),
        "{message}"
    );
    site.assert_staging_is_empty();
    site.assert_agrees();
}

#[test]
fn schemas_that_cannot_be_used_are_settings_errors() {
    for (text, says) in [
        ("{", "not JSON"),
        (r#"{"type": "nothing"}"#, "no JSON Schema"),
        (
            r#"{"$ref": "http://example.com/schema.json"}"#,
            "has to be in it",
        ),
        (
            r#"{"$schema": "http://json-schema.org/draft-07/schema#"}"#,
            "$schema",
        ),
        (r#"{"pattern": "("}"#, "no JSON Schema"),
    ] {
        let site = site("");
        let schema = site.root.join("schema.json");
        fs::write(&schema, text).expect("write the schema");
        let config = site.root.join("ringest.toml");
        let settings = format!("content = \"json\"\njson_schema = {schema:?}\n");
        fs::write(&config, settings).expect("write the settings");
        let config = config.to_str().expect("UTF-8");
        site.try_once(&["--config", config])
            .with_code(78)
            .naming(says);
        fs::remove_file(&schema).expect("remove the schema");
        site.try_once(&["--config", config])
            .with_code(78)
            .naming("cannot be read");
    }
}
