//! What is written down about the tests agrees with the tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust sources beneath a folder, as text.
fn sources(folder: &str) -> Vec<String> {
    let mut folders = vec![top().join(folder)];
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("list a folder") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                texts.push(fs::read_to_string(&path).expect("read a source"));
            }
        }
    }
    assert!(!texts.is_empty(), "no sources in {folder}");
    texts
}

/// What stands between `before` and the next `after`, everywhere.
fn between<'a>(text: &'a str, before: &str, after: char) -> impl Iterator<Item = &'a str> {
    let parts = text.split(before).skip(1);
    parts.filter_map(move |part| part.split_once(after).map(|(found, _)| found))
}

fn listed_mutants() -> Vec<(String, String, String)> {
    let list = fs::read_to_string(top().join("tests/mutants.tsv")).expect("the list of mutants");
    let rows = list
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|row| {
        let fields: Vec<&str> = row.split('\t').collect();
        assert_eq!(fields.len(), 4, "mutants.tsv: {row:?} has not four fields");
        (fields[0].into(), fields[1].into(), fields[2].into())
    })
    .collect()
}

#[test]
fn every_mutant_in_the_code_is_in_the_list_and_the_other_way_round() {
    let mut built = BTreeSet::new();
    for text in sources("src") {
        for call in ["mutants::on(\"", "mutants::forgiven(\""] {
            built.extend(between(&text, call, '"').map(String::from));
        }
    }
    let listed = listed_mutants();
    let names: BTreeSet<String> = listed.iter().map(|(name, ..)| name.clone()).collect();
    assert_eq!(names.len(), listed.len(), "a mutant is listed twice");
    let plain = names.iter().filter(|name| !name.contains(':')).cloned();
    assert_eq!(built, plain.collect());
}

#[test]
fn every_step_of_the_protocol_is_left_out_by_a_mutant() {
    let commit =
        fs::read_to_string(top().join("src/pipeline/record/commit.rs")).expect("commit.rs");
    let (_, steps) = commit.split_once("const STEPS").expect("the steps");
    let (steps, _) = steps.split_once("];").expect("their end");
    let skipped: BTreeSet<String> = between(steps, "Step::", ',')
        .map(|step| format!("skip:{step}"))
        .collect();
    assert!(skipped.len() >= 8, "{skipped:?}");
    let listed = listed_mutants();
    let names: BTreeSet<String> = listed.into_iter().map(|(name, ..)| name).collect();
    let left: Vec<_> = skipped.difference(&names).collect();
    assert!(left.is_empty(), "not in mutants.tsv: {left:?}");
}

#[test]
fn the_tests_that_the_recovery_page_names_are_there() {
    let page = fs::read_to_string(top().join("docs/RECOVERY.md")).expect("RECOVERY.md");
    let mut tests = BTreeSet::new();
    for text in sources("src").into_iter().chain(sources("tests")) {
        tests.extend(between(&text, "fn ", '(').map(String::from));
    }
    // Test names are sentences.
    let named: BTreeSet<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| word.rsplit("::").next())
        .filter(|word| word.matches('_').count() >= 3 && !word.contains(['.', '/', ' ', '=']))
        .collect();
    assert!(named.len() >= 10, "only {named:?} are named");
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !tests.contains(**name))
        .collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
}

#[test]
fn every_point_is_reached_somewhere_and_in_the_list() {
    let mut reached = BTreeSet::new();
    for text in sources("src") {
        reached.extend(between(&text, "points::reached(\"", '"').map(String::from));
    }
    let commit =
        fs::read_to_string(top().join("src/pipeline/record/commit.rs")).expect("commit.rs");
    let (_, of_steps) = commit
        .split_once("fn point(self)")
        .expect("points of steps");
    let (of_steps, _) = of_steps.split_once("\n}").expect("their end");
    reached.extend(between(of_steps, "=> \"", '"').map(String::from));
    use ringest::trial::points::{ALL, QUARANTINE};
    let listed: BTreeSet<String> = ALL
        .iter()
        .chain(QUARANTINE)
        .map(|point| point.to_string())
        .collect();
    assert_eq!(reached, listed);
}
