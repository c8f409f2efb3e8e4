//! Names and things that nobody should put into a staging directory, and somebody does.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode};

use super::support::{Random, Site, is_root, sha256, skip, wait_until};

#[test]
fn hostile_names_are_ingested_like_any_other() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let longest = format!("{}.csv", "x".repeat(251));
    let names: [&[u8]; 14] = [
        b"new\nline.csv",
        b"quote\"s and 'quotes'.csv",
        b"back\\slash.csv",
        b"-rf",
        b"--help",
        b" leading and trailing space ",
        b"tab\tcarriage\rbell\x07escape\x1b[31m.csv",
        b"invalid \xff\xfe UTF-8 \xc3.csv",
        b"%s%n%x.csv",
        "\u{202e}vsc.right to left \u{1f4a5}.csv".as_bytes(),
        b"{\"path\":\"fake\"}.csv",
        b"$(reboot);`reboot`.csv",
        b"many.dots..csv..",
        longest.as_bytes(),
    ];
    for name in names {
        site.put(OsStr::from_bytes(name), [b"the content of ", name].concat());
    }
    site.run_once(&[]);
    let lines = site.manifest();
    assert_eq!(lines.len(), names.len());
    for name in names {
        let path = site.staging.join(OsStr::from_bytes(name));
        let line = lines.iter().find(|line| line.source_path() == path);
        let line = line.unwrap_or_else(|| panic!("no line for {path:?}: {lines:#?}"));
        assert_eq!(line.sha256(), sha256(&[b"the content of ", name].concat()));
        assert_eq!(line.placed().file_name(), Some(OsStr::from_bytes(name)));
        let is_text = std::str::from_utf8(name).is_ok();
        assert_eq!(
            line.fields.contains_key("path_b64"),
            !is_text,
            "{}",
            line.raw
        );
    }
    site.assert_sound();
}

#[test]
fn names_of_255_bytes_that_clash_are_cut_to_fit() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let names = [
        format!("{}.csv", "x".repeat(251)),
        "y".repeat(255),
        format!("{}.csv", "ü".repeat(125)),
    ];
    for content in ["first", "second"] {
        for name in &names {
            site.put(name, format!("{content} {}", &name[..2]));
        }
        site.run_once(&[]);
    }
    assert_eq!(site.manifest().len(), 6);
    site.assert_sound();
}

#[test]
fn things_that_are_not_files_are_named_and_left_alone() {
    let site = Site::new().with(&["--stability-seconds", "0.2", "--recursive"]);
    let outside = site.root.join("outside.csv");
    fs::write(&outside, "outside").expect("write");
    let at = |name: &str| site.staging.join(name);

    rustix::fs::mknodat(CWD, at("fifo.csv"), FileType::Fifo, Mode::from(0o644), 0).expect("mkfifo");
    let socket = UnixListener::bind(at("socket.csv")).expect("bind a socket");
    symlink(&outside, at("symlink.csv")).expect("symlink");
    symlink(at("loop.csv"), at("loop.csv")).expect("symlink to itself");
    symlink(site.root.join("nowhere"), at("dangling.csv")).expect("symlink to nothing");
    symlink(&site.root, at("directory-symlink")).expect("symlink to a directory");
    fs::create_dir(at("directory.csv")).expect("mkdir");
    let mut things = vec![
        "fifo.csv",
        "socket.csv",
        "symlink.csv",
        "loop.csv",
        "dangling.csv",
        "directory-symlink",
    ];
    if is_root() {
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(
            CWD,
            at("device.csv"),
            FileType::CharacterDevice,
            Mode::from(0o644),
            null,
        )
        .expect("mknod");
        things.push("device.csv");
    } else {
        skip("only root may make a device");
    }
    site.put("ordinary.csv", "ordinary");

    let ended = site.run_once(&[]);
    assert_eq!(site.manifest().len(), 1, "{ended}");
    assert_eq!(site.line("ordinary.csv").sha256(), sha256(b"ordinary"));
    for thing in things {
        let events = ended.events("file_ignored", &format!("/{thing}"));
        assert_eq!(events.len(), 1, "events about {thing}: {ended}");
        assert!(at(thing).symlink_metadata().is_ok(), "{thing} is gone");
    }
    assert!(at("directory.csv").is_dir());
    assert_eq!(fs::read(&outside).expect("read"), b"outside");
    drop(socket);
    site.assert_agrees();
}

#[test]
fn a_directory_named_like_a_file_does_no_harm() {
    for recursive in [false, true] {
        let site = Site::new().with(&["--stability-seconds", "0.2"]);
        fs::create_dir(site.staging.join("x.csv")).expect("mkdir");
        site.put("x.csv/y.csv", "below");
        site.put("z.csv", "above");
        site.run_once(if recursive { &["--recursive"] } else { &[] });
        assert_eq!(site.manifest().len(), if recursive { 2 } else { 1 });
        assert!(site.staging.join("x.csv").is_dir());
        site.assert_agrees();
    }
}

#[test]
fn once_leaves_a_file_with_a_second_link_and_says_so() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let path = site.put("linked.csv", "linked");
    fs::hard_link(&path, site.staging.join("linked too.csv")).expect("link");
    site.put("ordinary.csv", "ordinary");
    let ended = site.run_once(&[]);
    assert_eq!(site.manifest().len(), 1, "{ended}");
    for name in ["linked.csv", "linked too.csv"] {
        assert!(
            !ended.events_about(&format!("/{name}")).is_empty(),
            "nothing about {name}: {ended}"
        );
        assert!(site.staging.join(name).exists());
    }
    site.assert_agrees();
}

#[test]
fn five_gibibytes_of_hole_are_hashed_and_renamed() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    let path = site.staging.join("sparse.bin");
    File::create(&path)
        .and_then(|file| file.set_len(5 << 30))
        .expect("make a hole");
    site.put("small.csv", "small");
    site.run_once(&[]);
    let line = site.line("sparse.bin");
    assert_eq!(line.number("size"), 5 << 30);
    // `truncate -s 5G hole; sha256sum hole`
    assert_eq!(
        line.sha256(),
        "7f06c62352aebd8125b2a1841e2b9e1ffcbed602f381c3dcb3200200e383d1d5"
    );
    assert!(line.placed().is_file());
    site.verify(&[]).ok();
    site.assert_staging_is_empty();
}

#[test]
fn files_that_vanish_or_are_replaced_stop_nothing() {
    let site = Site::new().with(&[
        "--mode",
        "closed",
        "--stability-seconds",
        "0.2",
        "--rescan-seconds",
        "1",
    ]);
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");
    let mut random = Random::new();
    for i in 0..300 {
        let name = format!("{i}.csv");
        let path = site.put(&name, format!("{i}, to be gone"));
        match random.below(3) {
            0 => {
                // Whoever is first: ingested, or gone.
                let _ = fs::remove_file(&path);
            }
            1 => {
                let other = site.put(format!("{name}.tmp"), format!("{i}, replaced"));
                fs::rename(other, &path).expect("rename");
            }
            _ => {
                let _ = fs::remove_file(&path);
                let _ =
                    fs::create_dir(&path).or_else(|_| fs::write(&path, "in place of a directory"));
                let _ = fs::remove_dir(&path);
            }
        }
    }
    site.put("the last.csv", "the last");
    site.wait_for_line(&mut watching, "the last.csv");
    watching.terminate();
    site.run_once(&[]);
    for line in site.manifest() {
        let content = fs::read_to_string(line.placed()).expect("text");
        let whole = [
            "to be gone",
            "replaced",
            "in place of a directory",
            "the last",
        ]
        .iter()
        .any(|end| content.ends_with(end));
        assert!(whole, "half a file: {content:?}: {}", line.raw);
    }
    site.assert_sound();
}

#[test]
fn a_directory_swapped_for_a_symlink_leads_nowhere() {
    let site = Site::new().with(&[
        "--mode",
        "closed",
        "--stability-seconds",
        "0.05",
        "--recursive",
    ]);
    let outside = site.root.join("outside");
    fs::create_dir(&outside).expect("mkdir");
    let secrets: Vec<PathBuf> = (0..20).map(|i| outside.join(format!("{i}.csv"))).collect();
    for secret in &secrets {
        fs::write(secret, format!("secret {}", secret.display())).expect("write");
    }

    let mut watching = site.start(&["--rescan-seconds", "1"]);
    watching.wait_for_event("started", "");
    let swapping = AtomicBool::new(true);
    let (directory, aside) = (site.staging.join("d"), site.root.join("aside"));
    let ingested = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..200 {
                fs::create_dir(&directory).expect("mkdir");
                for i in 0..20 {
                    fs::write(directory.join(format!("{i}.csv")), format!("{round} {i}"))
                        .expect("write");
                }
                fs::rename(&directory, &aside).expect("move the directory out");
                symlink(&outside, &directory).expect("a symlink in its place");
                std::thread::yield_now();
                fs::remove_file(&directory).expect("remove the symlink");
                // Again, should ringest have put a file back into it meanwhile.
                wait_until("the directory is removed", || {
                    fs::remove_dir_all(&aside).is_ok() || !aside.exists()
                });
            }
            swapping.store(false, Ordering::Release);
        });
        while swapping.load(Ordering::Acquire) {
            assert!(!watching.has_ended(), "ringest ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        site.put("the last.csv", "the last");
        site.wait_for_line(&mut watching, "the last.csv");
        site.manifest_so_far()
    });
    watching.terminate();
    assert!(!ingested.is_empty());
    for line in site.manifest() {
        let content = fs::read_to_string(line.placed()).expect("text");
        assert!(
            !content.starts_with("secret"),
            "taken through the symlink: {}",
            line.raw
        );
    }
    for secret in &secrets {
        assert!(
            Path::new(secret).exists(),
            "taken away through the symlink: {secret:?}"
        );
    }
}

#[test]
fn a_flood_of_odd_files_takes_a_hundred_lines_and_the_rest_is_counted() {
    let site = Site::new();
    for name in 0..150 {
        symlink("nowhere", site.staging.join(format!("{name}.csv"))).expect("symlink");
    }
    site.put("ordinary.csv", "ordinary");
    let ended = site.run_once(&[]);
    assert_eq!(site.manifest().len(), 1, "{ended}");
    assert_eq!(ended.events("file_ignored", ".csv").len(), 100, "{ended}");
    let told = ended
        .stderr
        .lines()
        .filter(|line| line.contains("events_suppressed"));
    let told: Vec<&str> = told.collect();
    assert_eq!(told.len(), 1, "{ended}");
    assert!(told[0].contains(r#""of":"file_ignored""#), "{}", told[0]);
    // At each walk, if there was more than one.
    let counts = [r#""suppressed":50"#, r#""suppressed":100"#];
    assert!(
        counts.iter().any(|count| told[0].contains(count)),
        "{}",
        told[0]
    );
}
