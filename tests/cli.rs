//! Wrong settings and damaged stores: the documented exit code, and a message that names the path.

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ringest::ledger::lmdb::Lmdb;
use ringest::ledger::{Commit, ContentKey, Ledger};
use ringest::settings::Durability;
use sha2::Digest as _;
use support::{Finished, Line, Site, files_beneath, sha256};

// ---- Settings

#[test]
fn an_unknown_flag_or_command_is_2() {
    let site = Site::new();
    site.try_once(&["--no-such-flag"])
        .with_code(2)
        .naming("--no-such-flag");
    Finished::of(site.command("no-such-command", &[])).with_code(2);
}

#[test]
fn a_number_below_zero_is_2_and_names_the_flag() {
    let site = Site::new();
    for flag in [
        "--stability-seconds",
        "--concurrency",
        "--rescan-seconds",
        "--metrics-interval",
        "--max-bytes-per-second",
    ] {
        site.try_once(&[&format!("{flag}=-1")])
            .with_code(2)
            .naming(flag);
    }
    assert!(
        !site.state.exists(),
        "made before the settings were checked"
    );
}

#[test]
fn a_word_that_is_no_choice_is_2_and_names_the_flag() {
    let site = Site::new();
    for flag in [
        "--mode",
        "--dedupe",
        "--on-duplicate",
        "--empty",
        "--lease",
        "--durability",
        "--io-priority",
        "--log-level",
    ] {
        site.try_once(&[&format!("{flag}=sideways")])
            .with_code(2)
            .naming(flag);
    }
}

#[test]
fn an_unknown_key_in_a_file_is_78_and_named() {
    let site = Site::new();
    let files = [
        ("settings.toml", "wherehouse = \"w\"\n"),
        ("settings.json", "{\"wherehouse\": \"w\"}"),
        (
            "source.toml",
            "[[source]]\nname = \"s\"\ninput = \"i\"\nwherehouse = \"w\"\n",
        ),
    ];
    for (name, text) in files {
        let file = site.root.join(name);
        fs::write(&file, text).expect("write");
        let said = site
            .try_once(&["--config", file.to_str().expect("UTF-8")])
            .with_code(78);
        said.naming("wherehouse").naming(&file);
    }
}

#[test]
fn a_settings_file_that_is_not_there_or_not_readable_as_toml_is_78_and_named() {
    let site = Site::new();
    let missing = site.root.join("missing.toml");
    site.try_once(&["--config", missing.to_str().expect("UTF-8")])
        .with_code(78)
        .naming(&missing);
    let broken = site.root.join("broken.toml");
    fs::write(&broken, "warehouse = [").expect("write");
    site.try_once(&["--config", broken.to_str().expect("UTF-8")])
        .with_code(78)
        .naming(&broken);
}

#[test]
fn a_settings_file_is_followed_and_flags_win() {
    let site = Site::new();
    let file = site.root.join("settings.toml");
    let other = site.root.join("another warehouse");
    let text = format!(
        "warehouse = {other:?}\n[[source]]\nname = \"uploads\"\ninput = {:?}\nstability_seconds = 0.2\nexclude = [\"*.txt\"]\n",
        site.staging
    );
    fs::write(&file, text).expect("write");
    site.put("a.csv", "a");
    site.put("a.txt", "a text");
    let mut run = site.bare_run();
    run.arg("--once").arg("--config").arg(&file);
    run.arg("--manifests")
        .arg(&site.manifests)
        .arg("--state-path")
        .arg(&site.state);
    run.arg("--warehouse").arg(&site.warehouse);
    Finished::of(run).ok();
    assert_eq!(site.line("a.csv").text("source"), "uploads");
    assert_eq!(site.manifest().len(), 1);
    assert!(!other.exists(), "the flag should have won");
    site.assert_agrees();
}

#[test]
fn the_environment_comes_between_flags_and_file() {
    let site = Site::new();
    let file = site.root.join("settings.toml");
    fs::write(&file, "warehouse = \"/nowhere/at/all\"\n").expect("write");
    site.put("a.csv", "a");
    let mut run = site.bare_run();
    run.args(["--once", "--stability-seconds", "0.2"])
        .arg("--input")
        .arg(&site.staging);
    run.env("RINGEST_CONFIG", &file);
    run.env("RINGEST_WAREHOUSE", &site.warehouse)
        .env("RINGEST_MANIFESTS", &site.manifests);
    run.env("RINGEST_STATE_PATH", &site.state);
    Finished::of(run).ok();
    assert_eq!(site.manifest().len(), 1);
    site.assert_sound();
}

#[test]
fn a_variable_that_means_nothing_is_warned_of_once() {
    let site = Site::new();
    let mut run = site.run(&["--once"]);
    run.env("RINGEST_STABILITY_SECOND", "3");
    let ended = Finished::of(run).ok();
    let warnings = ended.events("settings_doubtful", "");
    assert_eq!(warnings.len(), 1, "{ended}");
    assert_eq!(warnings[0]["level"], "warn");
    let message = warnings[0]["message"].as_str().expect("a message");
    assert!(message.contains("RINGEST_STABILITY_SECOND "), "{message}");
}

// ---- Directories

#[test]
fn a_warehouse_inside_the_input_is_78_and_named() {
    let mut site = Site::new();
    site.warehouse = site.staging.join("warehouse");
    site.try_once(&[]).with_code(78).naming(&site.warehouse);
    assert!(!site.warehouse.exists());
}

#[test]
fn an_input_inside_the_warehouse_is_78_and_named() {
    let mut site = Site::new();
    site.warehouse = site.root.join("warehouse");
    site.staging = site.warehouse.join("staging");
    fs::create_dir_all(&site.staging).expect("mkdir");
    site.try_once(&[]).with_code(78).naming(&site.staging);
}

#[test]
fn an_input_that_is_the_warehouse_is_78_and_named() {
    let mut site = Site::new();
    site.warehouse = site.staging.clone();
    site.try_once(&[]).with_code(78).naming(&site.staging);
    // Nor by another name.
    let other_name = site.root.join("other name");
    std::os::unix::fs::symlink(&site.staging, &other_name).expect("symlink");
    site.warehouse = other_name;
    site.try_once(&[]).with_code(78);
}

#[test]
fn manifests_or_state_inside_an_input_are_78_and_named() {
    let mut site = Site::new();
    site.manifests = site.staging.join("manifests");
    site.try_once(&[]).with_code(78).naming(&site.manifests);
    site.manifests = site.root.join("manifests");
    site.state = site.staging.join("state");
    site.try_once(&[]).with_code(78).naming(&site.state);
}

#[test]
fn two_inputs_that_overlap_are_78_and_named() {
    let site = Site::new();
    let below = site.staging.join("below");
    fs::create_dir(&below).expect("mkdir");
    let (above, below) = (
        site.staging.to_str().expect("UTF-8"),
        below.to_str().expect("UTF-8"),
    );
    site.try_once(&["--recursive", "--input", above, "--input", below])
        .with_code(78)
        .naming(below);
    site.try_once(&["--input", above, "--input", above])
        .with_code(78)
        .naming(above);
}

#[test]
fn a_file_in_place_of_a_directory_is_78_and_named() {
    for which in 0..4 {
        let site = Site::new();
        fs::remove_dir(&site.staging).expect("rmdir");
        let path = [&site.staging, &site.warehouse, &site.manifests, &site.state][which];
        fs::write(path, "a file").expect("write");
        let ended = site.try_once(&[]).with_code(78).naming(path);
        // Said once, and where a program looks for it.
        let lines: Vec<&str> = ended.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{ended}");
        ended.event("error", path.to_str().expect("UTF-8"));
        assert_eq!(ended.stdout, "");
    }
}

// ---- Two instances

#[test]
fn a_second_instance_is_75() {
    let site = Site::new();
    let mut first = site.start(&[]);
    first.wait_for_event("started", "");
    site.try_once(&[]).with_code(75);

    // Nor may another ledger share the input, the warehouse or the manifests.
    let mut other = Site::new();
    other.staging = site.staging.clone();
    other.try_once(&[]).with_code(75).naming(&site.staging);
    other = Site::new();
    other.warehouse = site.warehouse.clone();
    other.try_once(&[]).with_code(75).naming(&site.warehouse);
    other = Site::new();
    other.manifests = site.manifests.clone();
    other.try_once(&[]).with_code(75).naming(&site.manifests);

    first.terminate();
    site.run_once(&[]);
}

#[test]
fn once_beside_a_running_instance_says_so_in_one_info_line() {
    let site = Site::new();
    let mut first = site.start(&[]);
    first.wait_for_event("started", "");
    let mut overlap = site.run(&["--once"]);
    // What is wrong with the settings, the instance that runs has said.
    overlap.env("RINGEST_NONSENSE", "1");
    let overlap = Finished::of(overlap).with_code(75);
    let lines: Vec<&str> = overlap.stderr.lines().collect();
    assert_eq!(
        lines.len(),
        1,
        "a cron job sends mail for every line: {overlap}"
    );
    let event: serde_json::Value = serde_json::from_str(lines[0]).expect("JSON");
    assert_eq!(event["level"], "info", "{event}");
    assert_eq!(overlap.stdout, "");
    first.terminate();
}

#[test]
fn an_instance_can_start_right_after_one_was_killed() {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for i in 0..5 {
        let mut running = site.start(&[]);
        running.wait_for_event("started", "");
        site.put(format!("{i}.csv"), format!("{i}"));
        running.kill();
    }
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 5);
    site.assert_sound();
}

#[test]
fn what_a_killed_start_left_is_gone_after_the_next_one() {
    let site = Site::new();
    site.run_once(&[]);
    let mut dead = std::process::Command::new("true").spawn().expect("true");
    dead.wait().expect("wait");
    let probe = format!(".ringest-probe-{}-0", dead.id());
    let roots = [&site.staging, &site.warehouse, &site.manifests, &site.state];
    let mut left = roots.map(|root| root.join(&probe)).to_vec();
    left.push(site.warehouse.join(".ringest-ledger.new"));
    left.push(site.manifests.join(".ringest-ledger.new"));
    for path in &left {
        fs::write(path, "").expect("write");
    }
    site.verify(&[]).ok();
    site.run_once(&[]);
    left.retain(|path| path.exists());
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    site.assert_sound();
}

// ---- Foreign, lost and damaged stores

/// A site with ten files ingested.
fn full_site() -> Site {
    let site = Site::new().with(&["--stability-seconds", "0.2"]);
    for i in 0..10 {
        site.put(
            format!("file-{i}.csv"),
            format!("the content of file {i}\n"),
        );
    }
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 10);
    site
}

fn empty_directory(directory: &Path) {
    fs::remove_dir_all(directory).expect("remove");
    fs::create_dir(directory).expect("mkdir");
}

#[test]
fn another_ledgers_warehouse_is_78_and_named() {
    let first = full_site();
    let mut second = full_site();
    let before = first.assert_agrees().len();
    let own = std::mem::replace(&mut second.warehouse, first.warehouse.clone());
    second.try_once(&[]).with_code(78).naming(&first.warehouse);
    second.warehouse = own;
    let own = std::mem::replace(&mut second.manifests, first.manifests.clone());
    second.try_once(&[]).with_code(78).naming(&first.manifests);
    second.manifests = own;
    // A ledger that is still empty has no better claim.
    let mut third = Site::new();
    third.warehouse = first.warehouse.clone();
    third.try_once(&[]).with_code(78).naming(&first.warehouse);
    assert_eq!(first.assert_agrees().len(), before);
    second.run_once(&[]);
    second.assert_sound();
}

#[test]
fn an_emptied_warehouse_under_a_full_ledger_is_78_and_named() {
    // What an unmounted disk looks like.
    let site = full_site();
    empty_directory(&site.warehouse);
    let waiting = site.put("waiting.csv", "waiting");
    site.try_once(&[]).with_code(78).naming(&site.warehouse);
    assert!(waiting.exists());
    assert_eq!(files_beneath(&site.warehouse), Vec::<PathBuf>::new());
}

#[test]
fn emptied_manifests_under_a_full_ledger_are_78_and_named() {
    let site = full_site();
    empty_directory(&site.manifests);
    site.put("waiting.csv", "waiting");
    site.try_once(&[]).with_code(78).naming(&site.manifests);
    assert_eq!(files_beneath(&site.manifests), Vec::<PathBuf>::new());
}

#[test]
fn a_lost_ledger_beside_a_full_warehouse_is_78_and_named() {
    let site = full_site();
    empty_directory(&site.state);
    site.put("waiting.csv", "waiting");
    site.try_once(&[]).with_code(78).naming(&site.warehouse);
}

#[test]
fn a_truncated_ledger_is_74_and_named() {
    for kept in ["half", "100 bytes", "nothing"] {
        let site = full_site();
        let data = files_beneath(&site.state)
            .into_iter()
            .find(|file| file.ends_with("data.mdb"));
        let data = data.expect("the ledger's data.mdb");
        let len = fs::metadata(&data).expect("look").len();
        let kept_len = match kept {
            "half" => len / 2,
            "100 bytes" => 100,
            _ => 0,
        };
        File::options()
            .write(true)
            .open(&data)
            .and_then(|file| file.set_len(kept_len))
            .expect("truncate");
        let waiting = site.put("waiting.csv", "waiting");
        let ended = site.try_once(&[]);
        assert_eq!(
            ended.status.code(),
            Some(74),
            "a ledger cut to {kept}: {ended}"
        );
        ended.naming(data.parent().expect("its directory"));
        assert!(waiting.exists());
        let asked = site.verify(&[]);
        assert_eq!(
            asked.status.code(),
            Some(74),
            "verify, a ledger cut to {kept}: {asked}"
        );
    }
}

// ---- verify has teeth

/// Checks that `verify` finds nothing, lets `damage` do its work on the fifth line, and returns what `verify` says then.
fn verify_after(args: &[&str], damage: impl FnOnce(&Site, &Line)) -> (Site, Line, Finished) {
    let site = full_site();
    site.verify(args).ok();
    let line = site.manifest().remove(4);
    damage(&site, &line);
    let said = site.verify(args).with_code(1);
    (site, line, said)
}

/// Rewrites the manifest file that holds `line`; `edit` gets its lines, and which of them that is.
fn edit_lines(line: &Line, edit: impl FnOnce(&mut Vec<String>, usize)) {
    let text = fs::read_to_string(&line.manifest).expect("read");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let at = lines
        .iter()
        .position(|text| *text == line.raw)
        .expect("the line is in its manifest");
    edit(&mut lines, at);
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&line.manifest, text).expect("write");
}

#[test]
fn verify_names_a_file_that_is_gone_from_the_warehouse() {
    let (_site, line, said) = verify_after(&[], |_, line| {
        fs::remove_file(line.placed()).expect("remove")
    });
    said.naming(line.text("warehouse_path"));
}

#[test]
fn verify_names_a_file_that_was_cut() {
    let (_site, line, said) = verify_after(&[], |_, line| {
        File::options()
            .write(true)
            .open(line.placed())
            .and_then(|file| file.set_len(3))
            .expect("truncate");
    });
    said.naming(line.text("warehouse_path"));
}

#[test]
fn deep_verify_names_a_file_with_one_flipped_byte() {
    let (_site, line, said) = verify_after(&["--deep"], |_, line| {
        let mut bytes = fs::read(line.placed()).expect("read");
        bytes[10] ^= 1;
        fs::write(line.placed(), bytes).expect("write");
    });
    said.naming(line.text("warehouse_path"));
}

#[test]
fn verify_names_an_orphan_in_the_warehouse() {
    let mut orphan = PathBuf::new();
    let (_site, _line, said) = verify_after(&[], |_, line| {
        orphan = line.placed().with_file_name("orphan.csv");
        fs::write(&orphan, "from nowhere").expect("write");
    });
    said.naming(&orphan);
}

#[test]
fn verify_names_a_removed_manifest_line() {
    let (_site, line, said) = verify_after(&[], |_, line| {
        edit_lines(line, |lines, at| {
            lines.remove(at);
        });
    });
    said.naming(&line.manifest);
}

#[test]
fn verify_names_a_removed_last_manifest_line() {
    let (_site, line, said) = verify_after(&[], |_, line| {
        edit_lines(line, |lines, _| {
            lines.pop();
        });
    });
    said.naming(&line.manifest);
}

#[test]
fn verify_names_a_doubled_manifest_line() {
    let (_site, line, said) = verify_after(&[], |_, line| {
        edit_lines(line, |lines, at| lines.insert(at, lines[at].clone()))
    });
    said.naming(&line.manifest);
    let (_site, line, said) = verify_after(&[], |_, line| {
        edit_lines(line, |lines, at| lines.push(lines[at].clone()))
    });
    said.naming(&line.manifest);
}

#[test]
fn verify_names_an_edited_manifest_line() {
    let (_site, line, said) = verify_after(&[], |_, line| {
        edit_lines(line, |lines, at| {
            let other = sha256(b"something else");
            lines[at] = lines[at].replace(line.sha256(), &other);
        });
    });
    said.naming(&line.manifest);
}

#[test]
fn verify_names_a_manifest_that_is_gone() {
    let (_site, line, said) = verify_after(&[], |_, line| {
        fs::remove_file(&line.manifest).expect("remove")
    });
    said.naming(&line.manifest);
}

#[test]
fn verify_changes_nothing() {
    let site = full_site();
    fs::remove_file(site.manifest()[3].placed()).expect("remove");
    let before = support::tree(&site.root);
    site.verify(&["--deep"]).with_code(1);
    assert_eq!(support::tree(&site.root), before);
}

#[test]
fn a_ledger_that_contradicts_itself_is_74_and_nothing_is_taken() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    site.put("a.csv", "a");
    site.run_once(&[]);
    let mut ledger = Lmdb::open(&site.state.join("ledger"), Durability::Full).expect("a ledger");
    let digest = sha2::Sha256::digest("b").into();
    let commit = Commit {
        content: vec![(ContentKey::global(&digest), 99)],
        totals: ledger.totals().expect("totals"),
        next_seq: ledger.next_seq().expect("a number"),
        ..Commit::default()
    };
    ledger.commit_records(&commit).expect("a commit");
    drop(ledger);
    let path = site.put("b.csv", "b");
    site.try_once(&[])
        .with_code(74)
        .naming("arrival 99, which is not recorded")
        .naming("ringest verify");
    assert!(path.exists());
}
