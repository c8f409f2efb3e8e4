//! The corpora of the fuzz targets, as plain tests.

use std::fs;
use std::path::Path;

#[path = "fuzz/targets.rs"]
mod targets;

#[test]
fn ledger_values_decode_to_what_encodes_to_the_same_bytes() {
    each_of("ledger", targets::ledger);
}

#[test]
fn a_manifest_line_is_refused_or_written_again_as_it_was() {
    each_of("manifest", targets::manifest);
}

#[test]
fn a_settings_file_is_resolved_or_refused() {
    each_of("settings", targets::settings);
}

#[test]
fn a_sidecar_claims_only_what_stands_in_it() {
    each_of("sidecar", targets::sidecar);
}

#[test]
fn csv_that_is_accepted_counts_as_csv_core_counts_it() {
    each_of("csv", targets::csv);
}

#[test]
fn json_that_is_accepted_is_json() {
    each_of("json", targets::json);
}

#[test]
fn text_in_an_encoding_is_what_encoding_rs_decodes() {
    each_of("encoding", targets::encoding);
}

fn each_of(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target);
    let mut names: Vec<_> = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    names.sort();
    assert!(names.len() >= 5, "{} is all but empty", corpus.display());
    for path in names {
        let bytes = fs::read(&path).expect("read an input");
        // Which one it was, if it panics.
        println!("{}", path.display());
        run(&bytes);
    }
}
