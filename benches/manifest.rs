//! The manifest: a record becomes a line of JSON, and a line a record again (`verify`, `rebuild`).
//!
//! `cargo bench --bench manifest`; with `-- --test` each is run once.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use divan::Bencher;
use divan::counter::BytesCount;
use ringest::io::{Identity, Timestamp};
use ringest::ledger::{Arrival, ContentKey, Counts, Outcome, Placement, SourceId};
use ringest::pipeline::record::{layout, manifest};

fn main() {
    divan::main();
}

#[divan::bench]
fn line(bencher: Bencher) {
    bench_line(bencher, arrival("station-17.20260101T000000.csv".into()));
}

/// Its paths are written twice: as far as they are text, and exactly.
#[divan::bench]
fn line_of_a_name_that_is_not_utf8(bencher: Bencher) {
    let name = OsString::from_vec(b"station-17.\xe9t\xe9.csv".to_vec());
    bench_line(bencher, arrival(name.into()));
}

#[divan::bench]
fn parse(bencher: Bencher) {
    let line = line_of(&arrival("station-17.20260101T000000.csv".into()));
    bencher
        .counter(BytesCount::new(line.len()))
        .bench(|| manifest::parse(divan::black_box(&line)).expect("a line"));
}

fn bench_line(bencher: Bencher, arrival: Arrival) {
    bencher
        .counter(BytesCount::new(line_of(&arrival).len()))
        .bench(|| line_of(divan::black_box(&arrival)));
}

fn line_of(arrival: &Arrival) -> Vec<u8> {
    let (input, warehouse) = ("/data/staging/incoming", "/data/warehouse");
    manifest::line(arrival, "incoming", Path::new(input), Path::new(warehouse))
}

fn arrival(path: PathBuf) -> Arrival {
    let digest = *b"thirty-two bytes, as of SHA-256.";
    let time_micros = 1_767_225_600_123_456;
    let time = Timestamp {
        seconds: 1_767_225_600,
        nanos: 123_456_789,
    };
    Arrival {
        seq: 12_345_678,
        source: SourceId(1),
        identity: Identity {
            device: 65_024,
            inode: 23_456_789,
            size: 4096,
            mtime: time,
            ctime: time,
            born: time,
        },
        sidecar: None,
        digest,
        key: Some(ContentKey::global(&digest)),
        outcome: Outcome::Ingest,
        placement: Placement::Rename,
        placed: layout::partition(time_micros).join(&path),
        placed_inode: 23_456_789,
        time_micros,
        counts: Counts::default(),
        aside: None,
        placed_ctime: Default::default(),
        ctime_vouches: false,
        path,
    }
}
