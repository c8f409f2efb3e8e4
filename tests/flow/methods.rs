//! All ways to read and to copy do the same, and say where they cannot be gone.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::support::{Random, Site, sha256, sha256_of_file};

const READ: [&str; 3] = ["auto", "buffered", "direct"];
const COPY: [&str; 5] = ["auto", "write", "reflink", "copy_file_range", "splice"];

/// Around blocks, reads and what counts as large.
const SIZES: [usize; 9] = [
    0,
    1,
    4095,
    4096,
    (256 << 10) - 1,
    (256 << 10) + 1,
    3_000_001,
    (8 << 20) + 77,
    (9 << 20) + 512,
];

/// Puts a file of each size and one with holes; returns names and digests.
fn fill(site: &Site, random: &mut Random) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for size in SIZES {
        let content = random.bytes(size);
        let name = format!("{size}.bin");
        site.put(&name, &content);
        files.push((name, sha256(&content)));
    }
    let path = site.staging.join("holes.bin");
    let file = File::create(&path).expect("create");
    // Data at the beginning, at blocks and beside them, and a hole at the end.
    for at in [0, 5 << 20, (11 << 20) + 100, 20 << 20] {
        let piece = random.bytes(70_000);
        file.write_all_at(&piece, at).expect("write");
    }
    file.set_len((30 << 20) + 5).expect("a hole at the end");
    drop(file);
    files.push(("holes.bin".into(), sha256_of_file(&path)));
    files
}

fn assert_all_arrived(site: &Site, files: &[(String, String)]) {
    for (name, digest) in files {
        let line = site.line(name);
        assert_eq!(line.sha256(), digest, "{name}");
    }
    let holes = fs::metadata(site.line("holes.bin").placed()).expect("placed");
    let allocated = holes.blocks() * 512;
    assert!(allocated < 4 << 20, "{allocated} bytes allocated");
    site.assert_staging_is_empty();
    site.assert_sound();
}

#[test]
fn every_way_to_read_sees_the_same_bytes() {
    let mut random = Random::new();
    for method in READ {
        for concurrency in ["1", "2"] {
            let site = Site::new().with(&["--stability-seconds", "0.2"]);
            let files = fill(&site, &mut random);
            site.run_once(&["--read-method", method, "--concurrency", concurrency]);
            assert_all_arrived(&site, &files);
        }
    }
}

#[test]
fn every_way_to_copy_to_another_filesystem_gives_the_same_bytes() {
    let mut random = Random::new();
    for copy in COPY {
        for read in ["auto", "direct"] {
            let Some(site) = Site::across_filesystems() else {
                return;
            };
            let site = site.with(&["--stability-seconds", "0.2"]);
            let files = fill(&site, &mut random);
            let ended = site.run_once(&["--copy-method", copy, "--read-method", read]);
            assert_all_arrived(&site, &files);
            let about_the_copy = ended
                .events("fallback", "")
                .into_iter()
                .filter(|event| event.to_string().contains("--copy-method"))
                .count();
            // Filesystems of two kinds share no blocks, and the kernel copies between them only by splice.
            let refused = matches!(copy, "reflink" | "copy_file_range");
            assert_eq!(about_the_copy, usize::from(refused), "{copy}: {ended}");
        }
    }
}
