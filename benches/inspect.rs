//! Checks of content beside the hash that shares their pass: UTF-8, CSV (ours, and `csv-core`, which would be its replacement), JSON
//! Lines, SHA-256 of one stream, and SHA-256 with CSV.
//!
//! `cargo bench --bench inspect`; with `-- --test` each is run once.

use std::path::Path;

use divan::Bencher;
use divan::counter::BytesCount;
use ringest::pipeline::read::digest::{self, Stream};
use ringest::pipeline::read::inspect::Inspection;
use ringest::settings::{Content, ContentRules};

/// As a reader's.
const PIECE_BYTES: usize = 256 << 10;
const PIECES: usize = 8;

fn main() {
    divan::main();
}

/// Rows of seven columns, of about six bytes each, one of them quoted.
fn csv() -> Vec<u8> {
    let mut text = String::from("id,time,sensor,value,unit,quality,place\n");
    let mut id = 0u64;
    while text.len() < PIECES * PIECE_BYTES {
        id += 1;
        let value = id.wrapping_mul(2_654_435_761) % 100_000;
        text += &format!(
            "{id},1763890{:03},s{},{value}.5,kWh,{},\"hall {}\"\n",
            id % 1000,
            id % 97,
            id % 3,
            id % 11
        );
    }
    text.into_bytes()
}

fn json_lines() -> Vec<u8> {
    let mut text = String::new();
    let mut id = 0u64;
    while text.len() < PIECES * PIECE_BYTES {
        id += 1;
        text += &format!(
            "{{\"id\":{id},\"sensor\":\"s{}\",\"value\":{}.5,\"tags\":[\"a\",\"b\"]}}\n",
            id % 97,
            id % 1000
        );
    }
    text.into_bytes()
}

fn inspect(bencher: Bencher, content: Content, text: &[u8]) {
    let rules = ContentRules {
        content,
        ..ContentRules::default()
    };
    bencher.counter(BytesCount::new(text.len())).bench(|| {
        let path = Path::new("file");
        let mut inspection = Inspection::begin(&rules, path, 0).expect("there are rules");
        for piece in divan::black_box(text).chunks(PIECE_BYTES) {
            inspection.feed(piece);
        }
        inspection.finish().expect("it keeps them")
    });
}

#[divan::bench]
fn utf8(bencher: Bencher) {
    inspect(bencher, Content::Text, &csv());
}

#[divan::bench]
fn csv_with_utf8(bencher: Bencher) {
    inspect(bencher, Content::Csv, &csv());
}

#[divan::bench]
fn json_lines_with_utf8(bencher: Bencher) {
    inspect(bencher, Content::Jsonl, &json_lines());
}

#[divan::bench]
fn csv_core(bencher: Bencher) {
    let text = csv();
    let mut fields = vec![0; PIECE_BYTES];
    let mut ends = vec![0; 64];
    bencher
        .counter(BytesCount::new(text.len()))
        .bench_local(|| {
            let mut reader = csv_core::Reader::new();
            let (mut rest, mut records) = (&text[..], 0);
            loop {
                let (ended, read, ..) = reader.read_record(rest, &mut fields, &mut ends);
                rest = &rest[read..];
                match ended {
                    csv_core::ReadRecordResult::Record => records += 1,
                    csv_core::ReadRecordResult::End => return records,
                    _ => {}
                }
            }
        });
}

#[divan::bench]
fn sha256(bencher: Bencher) {
    let text = csv();
    bencher.counter(BytesCount::new(text.len())).bench(|| {
        let mut stream = Stream::default();
        for piece in text.chunks(PIECE_BYTES) {
            digest::update_in(1, &mut [(&mut stream, piece)]);
        }
        stream.finish()
    });
}

#[divan::bench]
fn sha256_and_csv(bencher: Bencher) {
    let text = csv();
    let rules = ContentRules {
        content: Content::Csv,
        ..ContentRules::default()
    };
    bencher.counter(BytesCount::new(text.len())).bench(|| {
        let mut stream = Stream::default();
        let path = Path::new("file");
        let mut inspection = Inspection::begin(&rules, path, 0).expect("there are rules");
        for piece in text.chunks(PIECE_BYTES) {
            digest::update_in(1, &mut [(&mut stream, piece)]);
            inspection.feed(piece);
        }
        (stream.finish(), inspection.finish().expect("it keeps them"))
    });
}
