//! Every sync that a run makes fails once, in a run of its own: with exit code 74, by name, with nothing acknowledged
//! that is not durable, and the next start takes it from there. (What a real disk does to the cache then is shown by
//! `blocks`.) `strace` makes a call fail; it counts the calls of each thread for itself, so the second call of the
//! recorder is the one that fails unless another thread has come to its second before.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::{Finished, Random, Site, has_program, sha256, skip};
use crate::through;

const CALLS: &[&str] = &["fsync", "fdatasync", "syncfs", "msync"];
const ARGS: &[&str] = &["--stability-seconds", "0.02"];
/// No run makes so many syncs of one kind.
const SYNCS_MAX: usize = 300;

struct Scenario {
    /// Whether a run was there before, so that a ledger and markers are.
    before: bool,
    files: usize,
    across: bool,
    sidecars: bool,
    on_duplicate: &'static str,
    error: &'static str,
}

#[test]
fn a_sync_that_fails_during_a_first_start_is_final() {
    each_sync_fails(&Scenario {
        before: false,
        files: 40,
        across: false,
        sidecars: false,
        on_duplicate: "move",
        error: "EIO",
    });
}

#[test]
fn a_sync_that_fails_for_want_of_space_is_final() {
    each_sync_fails(&Scenario {
        before: true,
        files: 4,
        across: false,
        sidecars: true,
        on_duplicate: "move",
        error: "ENOSPC",
    });
}

#[test]
fn a_sync_that_fails_among_copies_sidecars_and_deleted_duplicates_is_final() {
    each_sync_fails(&Scenario {
        before: true,
        files: 6,
        across: true,
        sidecars: true,
        on_duplicate: "delete",
        error: "EIO",
    });
}

/// Nothing else in these directories need ever be synced: an arrival that is set aside makes no manifest.
#[test]
fn a_first_start_makes_its_markers_durable_and_their_names() {
    if !has_program("strace", "-V") {
        return skip("needs strace");
    }
    let site = Site::new();
    let trace = site.root.join("trace");
    let words = ["strace", "-f", "-y", "-e", "trace=fsync,renameat2", "-o"];
    let wrapper = [&words[..], &[trace.to_str().expect("UTF-8")]].concat();
    let mut command = site.run(ARGS);
    command.arg("--once");
    Finished::of(through(&wrapper, &command)).ok();
    let traced = fs::read_to_string(&trace).expect("read what strace saw");
    for directory in [&site.warehouse, &site.manifests] {
        let directory = directory.display();
        let calls = [
            format!("<{directory}/.ringest-ledger.new>"),
            format!("<{directory}>, \".ringest-ledger\""),
        ];
        let mut rest = &traced[..];
        for call in &calls {
            let at = rest
                .find(call)
                .unwrap_or_else(|| panic!("no {call} in {traced}"));
            rest = &rest[at + call.len()..];
        }
        let synced = rest
            .lines()
            .any(|line| line.contains("fsync(") && line.contains(&format!("<{directory}>)")));
        assert!(synced, "{directory} is not synced in {traced}");
    }
}

/// Before it is placed: else a power cut could bring back a name where recovery does not look for it.
#[test]
fn a_claimed_file_is_durable_where_it_was_claimed_before_it_is_placed() {
    if !has_program("strace", "-V") {
        return skip("needs strace");
    }
    let site = Site::new();
    let claims = site.root.join("claims");
    fs::create_dir(&claims).expect("make a directory");
    site.put("a.csv", "a");
    let trace = site.root.join("trace");
    let words = ["strace", "-f", "-y", "-e", "trace=fsync,renameat2", "-o"];
    let wrapper = [&words[..], &[trace.to_str().expect("UTF-8")]].concat();
    let mut command = site.run(ARGS);
    command.arg("--once").arg("--claim-dir").arg(&claims);
    Finished::of(through(&wrapper, &command)).ok();
    let traced = fs::read_to_string(&trace).expect("read what strace saw");
    // Which calls of that name have this directory as their first.
    let calls = |name: &str, directory: &Path| -> Vec<(usize, &str)> {
        let path = format!("<{}>", directory.display());
        let of = |line: &&str| {
            let arguments = line.split_once(&format!("{name}(")).map(|(_, rest)| rest);
            let first = arguments.and_then(|rest| rest.find('<').map(|at| &rest[at..]));
            first.is_some_and(|first| first.starts_with(&path))
        };
        let lines = traced.lines().enumerate();
        lines.filter(|(_, line)| of(line)).collect()
    };
    let renamed = |from: &Path| {
        let mut renames = calls("renameat2", from).into_iter();
        let found = renames.find(|(_, line)| line.contains("\"a.csv\""));
        found
            .unwrap_or_else(|| panic!("none from {from:?} in {traced}"))
            .0
    };
    let (claimed, placed) = (renamed(&site.staging), renamed(&claims));
    for directory in [&claims, &site.staging] {
        let synced = calls("fsync", directory);
        assert!(
            synced.iter().any(|(at, _)| (claimed..placed).contains(at)),
            "{directory:?} is not synced between in {traced}"
        );
    }
}

fn each_sync_fails(scenario: &Scenario) {
    if !has_program("strace", "-V") {
        return skip("needs strace");
    }
    let mut random = Random::new();
    let mut failed = BTreeSet::new();
    for call in CALLS {
        for number in 1.. {
            assert!(number < SYNCS_MAX, "there is always another {call}");
            match fail_one(scenario, call, number, &mut random) {
                Ok(Some(path)) => failed.insert(format!("{call} {path}")),
                Ok(None) => break,
                Err(()) => return,
            };
        }
    }
    // At the least: the file, the ledger, both directories, the manifest.
    assert!(failed.len() >= 5, "only these failed: {failed:#?}");
}

/// What the call was to sync that strace made fail. Where another thread came between, the end of a call has a line of
/// its own, which does not say.
fn injected_path(traced: &str) -> Option<String> {
    let upto = traced.find("(INJECTED)")?;
    let lines: Vec<&str> = traced[..upto].lines().collect();
    let thread = lines.last()?.split_whitespace().next();
    let calls = lines.iter().rev();
    let mut calls = calls.filter(|line| line.split_whitespace().next() == thread);
    let call = calls
        .find(|line| line.contains("</"))
        .expect("a descriptor with its path");
    let (_, path) = call.split_once('<').expect("a path");
    Some(path.split_once('>').expect("its end").0.to_owned())
}

/// One run whose sync of this number fails. The path of what was to be synced, beneath the site; none if there is no
/// such sync; an error if there cannot be such a site.
fn fail_one(
    scenario: &Scenario,
    call: &str,
    number: usize,
    random: &mut Random,
) -> Result<Option<String>, ()> {
    let site = match scenario.across {
        true => Site::across_filesystems().ok_or(())?,
        false => Site::new(),
    };
    let mode = if scenario.sidecars {
        "sidecar"
    } else {
        "stability"
    };
    let site = site.with(&["--mode", mode, "--on-duplicate", scenario.on_duplicate]);
    if scenario.before {
        site.run_once(ARGS);
    }
    let mut sent = BTreeSet::new();
    let mut put = |name: &str, content: &[u8]| {
        sent.insert(sha256(content));
        site.put(name, content);
        if scenario.sidecars {
            site.put(format!("{name}.ok"), "");
        }
    };
    for i in 0..scenario.files {
        let content = random.bytes(1000);
        put(&format!("{i}.csv"), &content);
        if i == 0 {
            put("again.csv", &content);
        }
    }

    let trace = site.root.join("trace");
    let inject = format!("inject={call}:error={}:when={number}", scenario.error);
    let trace_calls = format!("trace={call}");
    let words = [
        "strace",
        "-f",
        "-y",
        "--seccomp-bpf",
        "-e",
        &trace_calls,
        "-e",
        &inject,
        "-o",
    ];
    let mut wrapper = words.to_vec();
    wrapper.push(trace.to_str().expect("UTF-8"));
    let mut command = site.run(ARGS);
    command.arg("--once");
    let run = Finished::of(through(&wrapper, &command));
    let traced = fs::read_to_string(&trace).expect("read what strace saw");
    let Some(path) = injected_path(&traced) else {
        run.ok();
        return Ok(None);
    };

    let run = run.with_code(74);
    let told = run.event("error", "");
    let named = told["path"].as_str().unwrap_or_default();
    assert!(
        path.starts_with(named) || named.starts_with(&path),
        "{call} {number} of {path} failed, and the error names {named:?}: {run}"
    );
    if scenario.before {
        assert!(
            site.state.join("suspect").is_file(),
            "{call} {number} of {path} failed and left no suspicion: {run}"
        );
    }
    let acknowledged = run.events("file_ingested", "");

    site.run_once(ARGS);
    site.assert_sound();
    let lines = site.manifest();
    let there: BTreeSet<String> = lines.iter().map(|line| line.sha256().to_owned()).collect();
    assert_eq!(there, sent, "{call} {number} of {path} failed");
    for event in acknowledged {
        let same = |line: &&crate::support::Line| line.text("path") == event["path"];
        let count = lines.iter().filter(same).count();
        assert_eq!(count, 1, "acknowledged: {event}");
    }
    let moved = usize::from(scenario.on_duplicate == "move");
    assert_eq!(
        site.duplicates().len(),
        moved,
        "{call} {number} of {path} failed"
    );
    let path = Path::new(&path);
    let beneath = path.strip_prefix(&site.root).unwrap_or(path);
    Ok(Some(beneath.display().to_string()))
}
