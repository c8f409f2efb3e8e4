//! In which order files are recorded.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::support::{Random, Site};

/// Several readers; and batches so small that the order spans many of them.
const ARGS: &[&str] = &[
    "--mode",
    "closed",
    "--concurrency",
    "4",
    "--batch-files",
    "16",
];

/// Names of the ingested files, by number.
fn recorded(site: &Site) -> Vec<String> {
    let mut lines = site.manifest();
    lines.sort_by_key(|line| line.number("seq"));
    let beneath = |path: PathBuf| {
        let path = path.strip_prefix(&site.staging).expect("in staging");
        path.to_str().expect("UTF-8").to_owned()
    };
    lines
        .iter()
        .map(|line| beneath(line.source_path()))
        .collect()
}

/// Puts files of very different sizes into the staging directory, the last by name first. Returns their names in order.
fn put_many(site: &Site, random: &mut Random, files: usize) -> Vec<String> {
    let names: Vec<String> = (0..files)
        .map(|number| format!("{}/{number:04}.csv", ["A", "a", "b"][number * 3 / files]))
        .collect();
    for name in names.iter().rev() {
        let large = random.below(40) == 0;
        let size = match large {
            true => 1 << (18 + random.below(7)),
            false => 1 + random.below(2000),
        };
        site.put(name, random.bytes(size as usize));
    }
    names
}

fn site_of(order: &str) -> Site {
    let site = Site::new()
        .with(ARGS)
        .with(&["--recursive", "--order", order]);
    for directory in ["A", "a", "b"] {
        fs::create_dir(site.staging.join(directory)).expect("make a directory");
    }
    site
}

#[test]
fn files_that_are_there_are_recorded_in_the_order_of_their_names() {
    let site = site_of("name");
    let names = put_many(&site, &mut Random::new(), 600);
    site.run_once(&[]);
    assert_eq!(recorded(&site), names);
    site.assert_sound();
}

#[test]
fn files_that_are_there_are_recorded_in_the_order_of_their_times_and_then_of_their_names() {
    let site = site_of("mtime");
    let mut random = Random::new();
    let names = put_many(&site, &mut random, 300);
    let mut expected = Vec::new();
    for name in names {
        // Many have the same.
        let days = random.below(20);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400);
        let file = File::options().write(true).open(site.staging.join(&name));
        let file = file.expect("open it");
        file.set_modified(time).expect("set its time");
        expected.push((days, name));
    }
    expected.sort();
    site.run_once(&[]);
    let expected: Vec<String> = expected.into_iter().map(|(_, name)| name).collect();
    assert_eq!(recorded(&site), expected);
    site.assert_sound();
}

#[test]
fn a_file_that_leaves_the_order_holds_up_none_of_the_others() {
    let site = site_of("name").with(&["--extensions", ".csv", "--min-file-size", "1"]);
    let mut random = Random::new();
    let mut names = put_many(&site, &mut random, 300);
    let mut expected: BTreeSet<String> = names.iter().cloned().collect();
    // Set aside, and duplicates: of two with the same content, the first by name is ingested.
    for name in ["A/0003.txt", "a/0123.txt", "b/0299.txt"] {
        site.put(name, random.bytes(20_000));
    }
    for (first, copy) in [("A/0001.csv", "b/0250x.csv"), ("a/0150.csv", "a/0151x.csv")] {
        let content = fs::read(site.staging.join(first)).expect("read");
        site.put(copy, content);
    }
    // Its reader finds it held open, when its place is taken already.
    let held = names.remove(120);
    expected.remove(&held);
    let writer = File::options().append(true).open(site.staging.join(&held));
    let writer = writer.expect("open it for writing");

    let mut running = site.start(&[]);
    site.wait_for_lines(&mut running, names.len());
    assert_eq!(recorded(&site), Vec::from_iter(expected));
    drop(writer);
    site.wait_for_line(&mut running, &held);
    running.terminate().ok();
    assert_eq!(recorded(&site).last(), Some(&held));
    assert_eq!(site.duplicates().len(), 2);
    assert_eq!(site.quarantined().len(), 3);
    site.assert_sound();
}

#[test]
fn an_order_of_one_source_is_none_of_another() {
    let site = Site::new().with(ARGS);
    let [sorted, other] = ["sorted", "other"].map(|name| {
        let directory = site.root.join(name);
        fs::create_dir(&directory).expect("make a directory");
        for number in (0..200).rev() {
            let path = directory.join(format!("{number:03}"));
            fs::write(path, format!("{name} {number}")).expect("write a file");
        }
        directory
    });
    let config = site.root.join("ringest.toml");
    let text = format!(
        "[[source]]\ninput = {:?}\norder = \"name\"\n[[source]]\ninput = {:?}\n",
        sorted.display(),
        other.display()
    );
    fs::write(&config, text).expect("write the settings");
    let mut command = site.bare_run();
    command
        .arg("--config")
        .arg(&config)
        .args(ARGS)
        .arg("--once");
    for (flag, path) in [
        ("--warehouse", &site.warehouse),
        ("--manifests", &site.manifests),
        ("--state-path", &site.state),
    ] {
        command.arg(flag).arg(path);
    }
    super::support::Finished::of(command).ok();
    let lines = site.manifest();
    assert_eq!(lines.len(), 400);
    let of_sorted = lines.iter().map(|line| line.source_path());
    let of_sorted: Vec<PathBuf> = of_sorted.filter(|path| path.starts_with(&sorted)).collect();
    assert_eq!(of_sorted.len(), 200);
    assert!(of_sorted.is_sorted(), "{of_sorted:?}");
}
