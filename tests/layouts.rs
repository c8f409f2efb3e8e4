//! The examples of folder layouts, as they are shipped, with kills in between.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{Finished, Random, files_beneath};

/// How often it is killed.
const KILLS: usize = 25;
/// Files that come before each kill.
const FILES: usize = 40;
/// Where the examples have everything.
const ROOT: &str = "/srv/flow";

/// An example in a directory of its own.
struct Flow {
    root: tempfile::TempDir,
    settings: PathBuf,
}

impl Flow {
    fn of(example: &str) -> Flow {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("packaging/examples")
            .join(example);
        let text = fs::read_to_string(shipped).expect("read the example");
        assert!(text.contains(ROOT));
        let path = root.path().join("flow");
        let text = text.replace(ROOT, path.to_str().expect("UTF-8"));
        let settings = root.path().join("settings.toml");
        fs::write(&settings, text).expect("write the settings");
        Flow { root, settings }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join("flow").join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringest"));
        command.args(words).arg("--config").arg(&self.settings);
        command
    }

    fn run(&self) -> Command {
        self.command(&["run", "--stability-seconds", "0.05"])
    }

    /// Content → where it lies, of all files in this directory that are none of ringest's own.
    fn contents(&self, name: &str) -> BTreeMap<String, Vec<String>> {
        let directory = self.at(name);
        let mut contents: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in files_beneath(&directory) {
            let shown = path.strip_prefix(&directory).expect("beneath it");
            let shown = shown.display().to_string();
            if !shown.ends_with(".reason.json") && !shown.contains(".ringest") {
                let content = fs::read_to_string(&path).expect("read");
                contents.entry(content).or_default().push(shown);
            }
        }
        contents
    }

    /// Sends files, starts it and kills it, again and again; then lets it come to its end.
    fn through_kills(&self, input: &str, mut send: impl FnMut(&Path, usize)) {
        let input = self.at(input);
        fs::create_dir_all(&input).expect("make the input");
        let mut random = Random::new();
        let mut number = 0;
        for _ in 0..KILLS {
            for _ in 0..FILES {
                send(&input, number);
                number += 1;
            }
            let mut run = self.run();
            run.stdout(Stdio::null()).stderr(Stdio::null());
            let mut run = run.spawn().expect("start it");
            std::thread::sleep(Duration::from_micros(20_000 + random.below(150_000)));
            run.kill().expect("kill it");
            run.wait().expect("it ends");
        }
        let mut last = self.run();
        last.arg("--once");
        Finished::of(last).ok();
        Finished::of(self.command(&["verify", "--deep"])).ok();
    }
}

/// A file that its writer renames into place.
fn put(directory: &Path, name: &str, content: &str) {
    let hidden = directory.join(format!(".{name}.part"));
    fs::write(&hidden, content).expect("write");
    fs::rename(hidden, directory.join(name)).expect("rename");
}

#[test]
fn documents_are_validated_or_returned() {
    let flow = Flow::of("validated-returns.toml");
    flow.through_kills("data", |data, number| {
        let content = match number % 4 {
            0 => format!("{{\"number\": {number}"),
            _ => format!("{{\"number\": {number}}}"),
        };
        put(data, &format!("{number}.json"), &content);
    });
    let (good, bad) = (flow.contents("validated"), flow.contents("returns"));
    assert_eq!(good.len(), KILLS * FILES * 3 / 4);
    assert_eq!(bad.len(), KILLS * FILES / 4);
    for (content, places) in good.iter().chain(&bad) {
        assert_eq!(places.len(), 1, "{content}: {places:?}");
    }
    for places in bad.values() {
        let reason = flow
            .at("returns")
            .join(format!("{}.reason.json", places[0]));
        assert!(reason.is_file(), "{reason:?}");
    }
    assert!(flow.contents("data").is_empty());
    assert!(flow.contents("processing").is_empty());
}

#[test]
fn files_are_processed_with_their_subdirectories() {
    let flow = Flow::of("processed.toml");
    flow.through_kills("unprocessed", |input, number| {
        let directory = input.join(format!("{}/deep", number % 3));
        fs::create_dir_all(&directory).expect("make a directory");
        put(&directory, &format!("{number}.dat"), &number.to_string());
    });
    let done = flow.contents("processed");
    assert_eq!(done.len(), KILLS * FILES);
    for (content, places) in &done {
        let number: usize = content.parse().expect("a number");
        assert_eq!(places, &[format!("{}/deep/{number}.dat", number % 3)]);
    }
    assert!(flow.contents("unprocessed").is_empty());
    assert!(flow.contents("underprocess").is_empty());
}

#[test]
fn an_archive_keeps_each_arrival_with_its_time() {
    let flow = Flow::of("archive.toml");
    // Three names that come again and again, each time when the one before is gone.
    let mut sent = 0;
    flow.through_kills("inbox", |inbox, number| {
        let name = format!("file{}.csv", number % 3);
        let bad = number % 10 == 9;
        if inbox.join(&name).exists() {
            return;
        }
        let content = match bad {
            true => format!("name\n{number}\n"),
            false => format!("id,name\n{number},x\n"),
        };
        put(inbox, &name, &content);
        sent += 1;
    });
    let all = flow.contents("archive");
    assert_eq!(all.len(), sent);
    for (content, places) in &all {
        assert_eq!(places.len(), 1, "{content}: {places:?}");
        let rejected = places[0].starts_with("_rejected/");
        assert_eq!(rejected, !content.starts_with("id,"), "{places:?}");
        if !rejected {
            let (name, time) = places[0].split_once(".csv.").expect("a time");
            assert!(name.starts_with("file"), "{name}");
            assert_eq!(time.split('.').next().map(str::len), Some(15), "{time}");
        }
    }
    assert!(flow.contents("inbox").is_empty());
}
