//! A command has the last word on what comes in, whatever it does.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::{Finished, Running, Site, is_root, sha256, skip, through, wait_until};

/// Settings with a shell script as the command of all sources. It is run as `sh script FILE`: a script that was written a moment ago
/// may be busy.
fn site(script: &str, settings: &str) -> Site {
    site_in(Site::new(), script, settings)
}

fn site_in(site: Site, script: &str, settings: &str) -> Site {
    let path = site.root.join("check.sh");
    fs::write(&path, script).expect("write the script");
    let config = site.root.join("ringest.toml");
    let command = format!("check_command = [\"/bin/sh\", {path:?}]\n");
    fs::write(
        &config,
        format!("stability_seconds = 0.1\n{command}{settings}"),
    )
    .expect("write the settings");
    let config = config.to_str().expect("UTF-8").to_owned();
    site.with(&["--config", &config])
}

/// A run with the sources of the settings file.
fn of_sources(site: &Site) -> Command {
    let mut command = site.bare_run();
    command.arg("--config").arg(site.root.join("ringest.toml"));
    for (flag, path) in [
        ("--warehouse", &site.warehouse),
        ("--manifests", &site.manifests),
        ("--state-path", &site.state),
    ] {
        command.arg(flag).arg(path);
    }
    command
}

fn run_sources(site: &Site) -> Finished {
    let mut command = of_sources(site);
    command.arg("--once");
    Finished::of(command).ok()
}

/// Rule and message of a file that was set aside.
fn reason(site: &Site, name: &str) -> (String, String) {
    let quarantined = site.quarantined();
    let path = quarantined.iter().find(|path| path.ends_with(name));
    let path = path.unwrap_or_else(|| panic!("{name} is not among {quarantined:?}"));
    let reason = fs::read(format!("{}.reason.json", path.display())).expect("a reason");
    let reason: Value = serde_json::from_slice(&reason).expect("JSON");
    let text = |key: &str| reason[key].as_str().unwrap_or_default().to_owned();
    (text("rule"), text("message"))
}

fn lines_of(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(Into::into).collect()
}

/// Whether a process is there, and no zombie.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn its_exit_code_decides_and_what_it_writes_becomes_the_reason() {
    let site = site(
        r#"
        echo "$RINGEST_CHECK_PATH" >> "${0%/*}/asked"
        grep -q good "$1" && exit 0
        echo "no good:" >&2
        echo "line 1; card 4111 1111 1111 1111"
        exit 3
        "#,
        "content = \"text\"\n",
    );
    let good = site.put("a good one.csv", "good\n");
    let bad = site.put("-rf $(bad) one.csv", "bad\n");
    site.put("no text.csv", b"good\xff\n");
    let ended = site.run_once(&["--log-level", "trace"]);
    assert_eq!(site.line("a good one.csv").sha256(), sha256(b"good\n"));
    let (rule, message) = reason(&site, "-rf $(bad) one.csv");
    assert_eq!(rule, "check_command");
    assert_eq!(
        message,
        "check_command ended with code 3: no good: | line 1; card ****1111"
    );
    ended.event("file_quarantined", "-rf $(bad) one.csv");
    assert!(!ended.stderr.contains("4111 1111"), "{}", ended.stderr);
    // What breaks another rule is not asked about.
    assert_eq!(reason(&site, "no text.csv").0, "utf8");
    let mut asked = lines_of(&site.root.join("asked"));
    asked.sort();
    assert_eq!(
        asked,
        [bad, good].map(|path| path.to_str().unwrap().to_owned())
    );
    site.assert_staging_is_empty();
    site.assert_agrees();
}

#[test]
fn what_it_quotes_of_fields_that_are_not_to_be_told_is_masked() {
    let script = "cat \"$1\"; cat \"$1\" >&2; exit 1\n";
    for (settings, file, hidden, shown) in [
        (
            "content = \"csv\"\nmask_fields = [\"iban\", \"name\"]\n",
            "id,iban,name\n17,DE89370400440532013000,\"O\"\"Hara, E\"\n",
            &["DE8937", "Hara"][..],
            &["17", "****3000"][..],
        ),
        (
            "content = \"json\"\nmask_fields = [\"/payer/iban\", \"/rows/pin\"]\n",
            r#"{"payer": {"iban": "DE89370400440532013000", "name": "Eve"}, "rows": [{"pin": 7391}, {"pin": "s\u00e9cret"}]}"#,
            &["DE8937", "7391", "cret"],
            &["****3000", "Eve"],
        ),
        (
            "content = \"jsonl\"\nmask_fields = [\"/pin\"]\n",
            "{\"pin\": \"aaa-bbb\", \"id\": 1}\n\n{\"pin\": \"ccc-ddd\"}\n",
            &["aaa-bbb", "ccc-ddd"],
            &["id", "ended with code 1"],
        ),
    ] {
        let site = site(script, settings);
        site.put("a.file", file);
        let ended = site.run_once(&["--log-level", "trace"]);
        let reasons =
            fs::read_to_string(format!("{}.reason.json", site.quarantined()[0].display()));
        let reason = reasons.expect("read the reason");
        assert!(reason.contains("ended with code 1: "), "{reason}");
        for text in hidden {
            for told in [&reason, &ended.stderr] {
                assert!(!told.contains(text), "{text} in {told}");
            }
        }
        for text in shown {
            assert!(reason.contains(text), "{text} is not in {reason}");
        }
        site.assert_agrees();
    }
    let nameless = site(
        script,
        "content = \"csv\"\ncsv_header = false\nmask_fields = [\"a\"]\n",
    );
    nameless.try_once(&[]).with_code(78).naming("csv_header");
    let other = site(script, "mask_fields = [\"a\"]\n");
    other
        .try_once(&[])
        .with_code(78)
        .naming("content = \"csv\"");
}

/// One whose files the command looks at, and one without.
fn two_sources(site: &Site) -> [PathBuf; 2] {
    let sources = ["checked", "other"].map(|name| {
        let directory = site.root.join(name);
        fs::create_dir(&directory).expect("make a directory");
        directory
    });
    let [checked, other] = &sources;
    let config = site.root.join("ringest.toml");
    let mut settings = fs::read_to_string(&config).expect("read");
    settings += &format!(
        "[[source]]\ninput = {checked:?}\n[[source]]\ninput = {other:?}\ncheck_command = []\n"
    );
    fs::write(&config, settings).expect("write the settings");
    sources
}

#[test]
fn more_files_than_are_remembered_wait_for_one_that_hangs_and_others_arrive() {
    const FILES: usize = 110_000;
    const LEFT: usize = 500;
    let site = site(
        r#"until test -e "${0%/*}/go"; do sleep 0.05; done"#,
        "check_timeout_seconds = 900\nrescan_seconds = 1\n",
    );
    let [checked, other] = two_sources(&site);
    for number in 0..FILES {
        fs::write(checked.join(number.to_string()), number.to_string()).expect("write");
    }
    let running = Running::spawn(of_sources(&site));
    let pending = || {
        let answer = Finished::of(site.command("status", &["--json"]));
        let status: Option<Value> = serde_json::from_str(&answer.stdout).ok();
        status.and_then(|status| status["files"]["pending"].as_u64())
    };
    wait_until("as many wait as may", || {
        pending().is_some_and(|files| files >= 50_000)
    });
    for number in 0..100 {
        fs::write(other.join(number.to_string()), format!("o{number}")).expect("write");
    }
    wait_until("others arrive", || site.manifest_so_far().len() == 100);
    assert!(
        site.manifest_so_far()
            .iter()
            .all(|line| line.text("path").contains("/other/"))
    );
    // Those that wait are gone, but for some; of those that were left out, too.
    for number in (0..FILES).filter(|number| number % (FILES / LEFT) != 0) {
        fs::remove_file(checked.join(number.to_string())).expect("remove");
    }
    fs::write(site.root.join("go"), "").expect("write");
    wait_until("all others arrive, too", || {
        site.manifest_so_far().len() == 100 + LEFT
    });
    running.terminate();
    site.assert_sound();
}

#[test]
fn one_that_hangs_delays_nothing_else() {
    // It ends when the last file of the other source is in the manifest.
    let site = site(
        r#"
        until grep -rqs '/other/99"' "${0%/*}/manifests"; do sleep 0.02; done
        "#,
        "check_timeout_seconds = 600\nconcurrency = 2\n",
    );
    let [checked, other] = two_sources(&site);
    for number in 0..300 {
        fs::write(checked.join(format!("{number}")), format!("c{number}")).expect("write");
    }
    for number in 0..100 {
        fs::write(other.join(format!("{number}")), format!("o{number}")).expect("write");
    }
    run_sources(&site);
    assert_eq!(site.manifest().len(), 400);
    site.assert_sound();
}

#[test]
fn one_that_hangs_forks_or_floods_is_killed_and_says_so() {
    let site = site(
        r#"
        case "$RINGEST_CHECK_PATH" in
        */hangs) trap '' TERM; sleep 1000 & echo $! >> "${0%/*}/pids"; wait; sleep 1000 ;;
        */floods) yes ;;
        */forks) for i in 1 2 3 4 5 6 7 8; do sleep 1000 & echo $! >> "${0%/*}/pids"; done; exit 1 ;;
        */leaves) sleep 1000 & echo $! >> "${0%/*}/pids"; exit 0 ;;
        */dies) kill -KILL $$ ;;
        esac
        "#,
        "check_timeout_seconds = 1.5\ncheck_concurrency = 3\n",
    );
    for name in ["hangs", "floods", "forks", "leaves", "dies", "well"] {
        site.put(name, name);
    }
    site.run_once(&[]);
    for (name, says) in [
        (
            "hangs",
            "check_command was still running after 1.5 s, and was killed",
        ),
        (
            "floods",
            "check_command wrote more than 1048576 bytes, and was killed: y | y",
        ),
        ("forks", "check_command ended with code 1"),
        ("dies", "check_command was killed by signal 9"),
    ] {
        let (rule, message) = reason(&site, name);
        assert_eq!(rule, "check_command");
        assert!(message.starts_with(says), "{name}: {message}");
        assert!(message.len() < 8192, "{name}: {message}");
    }
    assert_eq!(site.manifest().len(), 2);
    let pids = lines_of(&site.root.join("pids"));
    assert_eq!(pids.len(), 10);
    for pid in pids {
        wait_until("what a command started ends", || !lives(&pid));
    }
    site.assert_staging_is_empty();
    site.assert_agrees();
}

#[test]
fn who_is_asked_to_stop_does_not_wait_for_commands_and_leaves_their_files() {
    let site = site(
        r#"
        echo "$RINGEST_CHECK_PATH" >> "${0%/*}/asked"
        test -e "${0%/*}/quick" || sleep 1000
        "#,
        "check_timeout_seconds = 900\n",
    );
    for number in 0..40 {
        site.put(format!("{number}"), format!("{number}"));
    }
    let asked = site.root.join("asked");
    let running = site.start(&[]);
    wait_until("a command runs", || !lines_of(&asked).is_empty());
    let began = Instant::now();
    running.terminate().ok();
    assert!(began.elapsed() < Duration::from_secs(300), "it waited");
    assert!(site.manifest().is_empty());
    fs::write(site.root.join("quick"), "").expect("write");
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 40);
    site.assert_sound();
}

#[test]
fn a_kill_while_a_command_runs_kills_the_command_and_loses_nothing() {
    let site = site(
        r#"
        test -e "${0%/*}/quick" && exit 0
        echo $$ >> "${0%/*}/pids"
        exec sleep 1000
        "#,
        "check_timeout_seconds = 900\n",
    );
    for number in 0..20 {
        site.put(format!("{number}"), format!("{number}"));
    }
    let pids = site.root.join("pids");
    for round in 1..=3 {
        let running = site.start(&[]);
        wait_until("commands run", || lines_of(&pids).len() == 2 * round);
        running.kill();
        for pid in lines_of(&pids) {
            wait_until("the commands end", || !lives(&pid));
        }
    }
    fs::write(site.root.join("quick"), "").expect("write");
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 20);
    site.assert_sound();
}

#[test]
fn a_file_that_changes_while_it_is_checked_is_read_and_checked_again() {
    // By the command itself, or by another file of its name.
    for change in [
        "echo more >> \"$1\"",
        "p=$RINGEST_CHECK_PATH; echo other > \"$p.tmp\"; mv \"$p.tmp\" \"$p\"",
    ] {
        let script = format!(
            "echo . >> \"${{0%/*}}/asked\"\n\
             if ! test -e \"${{0%/*}}/once\"; then touch \"${{0%/*}}/once\"; {change}; fi\n"
        );
        let site = site(&script, "");
        site.put("a.csv", "first\n");
        site.run_once(&[]);
        let placed: PathBuf = site.line("a.csv").placed();
        let content = fs::read_to_string(placed).expect("read");
        assert!(
            ["first\nmore\n", "other\n"].contains(&&*content),
            "{content}"
        );
        assert_eq!(lines_of(&site.root.join("asked")).len(), 2);
        site.assert_sound();
    }
}

#[test]
fn files_of_a_source_with_an_order_keep_it_however_long_each_check_takes() {
    let site = site(
        "sleep 0.0$(( $(cksum < \"$1\" | cut -d' ' -f1) % 6 ))\n",
        "order = \"name\"\ncheck_concurrency = 4\nbatch_files = 8\n",
    );
    for number in (10..70).rev() {
        site.put(format!("{number}"), format!("{number}"));
    }
    site.run_once(&[]);
    let mut lines = site.manifest();
    lines.sort_by_key(|line| line.number("seq"));
    let names: Vec<_> = lines.iter().map(|line| line.source_path()).collect();
    assert_eq!(names.len(), 60);
    assert!(names.is_sorted(), "{names:?}");
    site.assert_sound();
}

#[test]
fn it_is_told_of_the_file_as_people_know_it_in_a_claim_directory_too() {
    let site = site(
        r#"
        cat "$1" > "${0%/*}/seen"
        echo "$RINGEST_CHECK_PATH" "$RINGEST_CHECK_NAME" "$RINGEST_CHECK_SOURCE" "$RINGEST_CHECK_SHA256" > "${0%/*}/told"
        "#,
        "",
    );
    let claims = site.root.join("work");
    let site = site.with(&["--claim-dir", claims.to_str().expect("UTF-8")]);
    let path = site.put("a.csv", "content\n");
    site.run_once(&[]);
    assert_eq!(lines_of(&site.root.join("seen")), ["content"]);
    let told = format!("{} a.csv staging {}", path.display(), sha256(b"content\n"));
    assert_eq!(lines_of(&site.root.join("told")), [told]);
    site.assert_sound();
}

#[test]
fn it_inherits_nothing_but_the_file() {
    let script = r#"
        exec > "${0%/*}/told"
        pwd
        echo $(cd /proc/self/fd; echo *)
        echo "${1##*/}"
        for open in /proc/self/fd/*; do readlink "$open"; done
        echo --
        tr '\0' '\n' < /proc/self/environ
        mkdir -p left/behind; chmod 0 left
        "#;
    let site = site(
        script,
        "check_environment = [\"KNOWN\", \"SAID=so\", \"NOT_THERE\"]\n",
    );
    site.put("a.csv", "content\n");
    let mut run = site.run(&["--once"]);
    run.env("SECRET", "of the service").env("KNOWN", "yes");
    run.env_remove("LANG");
    Finished::of(run).ok();
    let told = lines_of(&site.root.join("told"));
    let [made_in, open, handed, rest @ ..] = &told[..] else {
        panic!("{told:?}");
    };
    assert!(!Path::new(made_in).exists(), "{told:?}");
    // The shell opens the directory that it lists.
    let known = ["0", "1", "2", handed];
    let unknown = open.split(' ').filter(|it| !known.contains(it)).count();
    assert!(unknown <= 1, "{told:?}");
    let (files, variables) = rest.split_at(rest.iter().position(|it| it == "--").expect("--"));
    for directory in [&site.state, &site.warehouse, &site.manifests] {
        let beneath = |file: &&String| Path::new(file).starts_with(directory);
        assert_eq!(files.iter().find(beneath), None, "{told:?}");
    }
    let mut names: Vec<_> = variables[1..]
        .iter()
        .filter_map(|it| it.split('=').next())
        .collect();
    names.sort_unstable();
    let expected = [
        "KNOWN",
        "LANG",
        "PATH",
        "RINGEST_CHECK_ID",
        "RINGEST_CHECK_NAME",
        "RINGEST_CHECK_PATH",
        "RINGEST_CHECK_SHA256",
        "RINGEST_CHECK_SOURCE",
        "SAID",
    ];
    assert_eq!(names, expected, "{told:?}");
    for said in ["KNOWN=yes", "SAID=so", "LANG=C.UTF-8"] {
        assert!(variables.iter().any(|it| it == said), "{told:?}");
    }
    site.assert_sound();
}

#[test]
fn all_that_is_open_closes_when_a_program_is_started() {
    let site = site("until test -e \"${0%/*}/go\"; do sleep 0.02; done\n", "");
    let claims = site.root.join("work");
    let site = site.with(&["--claim-dir", claims.to_str().expect("UTF-8")]);
    site.put("a.csv", "content\n");
    // Started with nothing open, too.
    let bare = "import os, sys; os.closerange(3, 65536); os.execvp(sys.argv[1], sys.argv[1:])";
    let mut running = Running::spawn(through(&["python3", "-c", bare], &site.run(&[])));
    running.wait_for_event("started", "");
    let open = format!("/proc/{}/fdinfo", running.id());
    let mut seen = 0;
    for entry in fs::read_dir(&open).expect("list") {
        let number = entry.expect("list").file_name();
        let Ok(text) = fs::read_to_string(Path::new(&open).join(&number)) else {
            continue; // It is closed by now.
        };
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        let number = number.to_string_lossy().into_owned();
        if !["0", "1", "2"].contains(&&*number) {
            seen += 1;
            let link = fs::read_link(format!("/proc/{}/fd/{number}", running.id()));
            let flags = flags.expect("flags");
            assert!(flags & 0o2_000_000 != 0, "{number} {link:?} stays open");
        }
    }
    assert!(seen > 5, "{seen}");
    fs::write(site.root.join("go"), "").expect("write");
    site.wait_for_line(&mut running, "a.csv");
    running.terminate().ok();
    site.assert_sound();
}

/// Does something as the uploader: a user who owns nothing but what lies in staging.
fn as_uploader(script: &str, arguments: &[&Path]) {
    const UPLOADER: u32 = 2001;
    let mut python = Command::new("python3");
    python.arg("-c").arg(script).args(arguments);
    let done = python
        .uid(UPLOADER)
        .gid(UPLOADER)
        .output()
        .expect("python3");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
}

/// renameat2(2) with RENAME_EXCHANGE of the two arguments.
const EXCHANGE: &str = r#"
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
one, other = (path.encode() for path in sys.argv[1:3])
if libc.renameat2(-100, one, -100, other, 2):
    raise OSError(ctypes.get_errno(), "renameat2")
"#;

/// Whom the uploader attacks: root, and a user of its own.
const SERVICES: [u32; 2] = [0, 65534];

/// A site of that user, in which the uploader may write to staging.
fn site_of(service: u32, script: &str, settings: &str) -> Site {
    // Not where the other tests run: cargo's directory may be out of the uploader's reach.
    let site = Site::beneath(Path::new("/var/tmp"));
    let site = match service {
        0 => site,
        user => site.run_by(user),
    };
    let settings = format!("recursive = true\ncheck_timeout_seconds = 600\n{settings}");
    let site = site_in(site, script, &settings);
    for (path, mode) in [(&site.root, 0o755), (&site.staging, 0o777)] {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
    }
    site
}

/// A file in a directory of the uploader's, for which another is put in its place while the command runs, and taken away again. `twin`
/// is what the command would read there by the path.
fn exchanged(service: u32, twin: &str, content: &str) -> (Site, Finished) {
    let script = r#"
        echo "$RINGEST_CHECK_PATH" > "${0%/*}/asked"
        until test -e "${0%/*}/exchanged"; do sleep 0.02; done
        cat "$1"
        : > "${0%/*}/read"
        until test -e "${0%/*}/back"; do sleep 0.02; done
        ! grep -q bad "$1"
        "#;
    let site = site_of(service, script, "");
    let secret = site.root.join("secret");
    fs::write(&secret, "of the service alone").expect("write");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("chmod");
    chown(&secret, Some(service), None).expect("chown");
    let (day, trap) = (site.staging.join("day"), site.staging.join(".trap"));
    let make = format!(
        "import os, sys\n\
         for path in sys.argv[1:]: os.mkdir(path)\n\
         open(sys.argv[1] + '/a.csv', 'w').write({content:?})\n\
         {twin}\n"
    );
    as_uploader(&make, &[&day, &trap]);
    let running = site.start(&["--once"]);
    wait_until("the command runs", || site.root.join("asked").exists());
    as_uploader(EXCHANGE, &[&day, &trap]);
    fs::write(site.root.join("exchanged"), "").expect("write");
    wait_until("the command has read", || site.root.join("read").exists());
    as_uploader(EXCHANGE, &[&day, &trap]);
    fs::write(site.root.join("back"), "").expect("write");
    let ended = running.finish().ok();
    (site, ended)
}

#[test]
fn a_directory_that_is_exchanged_shows_it_no_file_of_anybody_else() {
    if !is_root() {
        return skip("only root can play the uploader");
    }
    for service in SERVICES {
        let link = "os.symlink(sys.argv[1] + '/../../secret', sys.argv[2] + '/a.csv')";
        let (site, ended) = exchanged(service, link, "bad\n");
        let (_, message) = reason(&site, "a.csv");
        assert_eq!(message, "check_command ended with code 1: bad");
        let told = format!("{message}{}{}", ended.stderr, ended.stdout);
        assert!(!told.contains("alone"), "{told}");
        site.assert_agrees();
    }
}

#[test]
fn a_directory_that_is_exchanged_has_no_bad_file_accepted_for_a_good_one() {
    if !is_root() {
        return skip("only root can play the uploader");
    }
    for service in SERVICES {
        let good = "open(sys.argv[2] + '/a.csv', 'w').write('good\\n')";
        let (site, _) = exchanged(service, good, "bad\n");
        let (_, message) = reason(&site, "a.csv");
        assert_eq!(message, "check_command ended with code 1: bad");
        assert!(site.manifest().is_empty());
        site.assert_agrees();
    }
}

#[test]
fn a_directory_that_stays_exchanged_leaves_nothing_judged_by_its_twin() {
    if !is_root() {
        return skip("only root can play the uploader");
    }
    // The way to the file leads through a link, or to another file, when the command has ended.
    for replace in [
        "os.rename(day, day + '.gone'); os.symlink(day + '.gone', day)",
        "os.rename(day, day + '.gone'); os.mkdir(day); open(day + '/a.csv', 'w').write('good twin\\n')",
    ] {
        let script = r#"
            echo . >> "${0%/*}/asked"
            until test -e "${0%/*}/replaced"; do sleep 0.02; done
            "#;
        let site = site_of(0, script, "exclude = [\"day.gone/**\"]\n");
        let day = site.staging.join("day");
        let make = "import os, sys; day = sys.argv[1]; ";
        as_uploader(
            &format!("{make} os.mkdir(day); open(day + '/a.csv', 'w').write('first\\n')"),
            &[&day],
        );
        let running = site.start(&["--once"]);
        wait_until("the command runs", || site.root.join("asked").exists());
        as_uploader(&format!("{make} {replace}"), &[&day]);
        fs::write(site.root.join("replaced"), "").expect("write");
        running.finish().ok();
        for line in site.assert_agrees() {
            assert_eq!(line.sha256(), sha256(b"good twin\n"), "{}", line.raw);
        }
        assert!(site.staging.join("day.gone/a.csv").exists());
    }
}

#[test]
fn across_filesystems_what_is_placed_is_what_was_checked() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let script = site.root.join("check.sh");
    fs::write(&script, "grep -q good \"$1\"\n").expect("write");
    let script = script.to_str().expect("UTF-8").to_owned();
    let site = site.with(&[
        "--stability-seconds",
        "0.1",
        "--check-command",
        "sh",
        "--check-command",
        &script,
    ]);
    site.put("good.csv", "good\n".repeat(500_000));
    site.put("bad.csv", "bad\n");
    site.run_once(&[]);
    assert_eq!(site.manifest().len(), 1);
    assert_eq!(
        reason(&site, "bad.csv").1,
        "check_command ended with code 1"
    );
    site.assert_staging_is_empty();
    site.assert_agrees();
}

#[test]
fn a_copy_that_the_command_writes_to_is_made_again() {
    let Some(site) = Site::across_filesystems() else {
        return;
    };
    let script = r#"
        echo . >> "${0%/*}/asked"
        test -e "${0%/*}/once" || echo more >> "$1"
        : > "${0%/*}/once"
        "#;
    let site = site_in(site, script, "");
    site.put("a.csv", "first\n");
    site.run_once(&[]);
    assert_eq!(site.line("a.csv").sha256(), sha256(b"first\n"));
    assert_eq!(lines_of(&site.root.join("asked")).len(), 2);
    site.assert_sound();
}

#[test]
fn one_that_cannot_be_run_is_a_mistake_in_the_settings_and_later_leaves_files_where_they_are() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    for (words, says) in [
        (&["--check-command", "/nowhere/check"][..], "No such file"),
        (&["--check-command", "no-such-program-at-all"], "PATH"),
        (&["--check-command", "/etc/passwd"], "Permission denied"),
        (&["--check-command", "/"], "directory"),
        (
            &["--check-command", "sh", "--check-concurrency", "0"],
            "from 1 to 256",
        ),
    ] {
        site.try_once(words).with_code(2).naming(says);
    }
    // It went away after the start.
    let program = site.root.join("check");
    let made = std::process::Command::new("cp")
        .arg("/bin/true")
        .arg(&program)
        .status();
    assert!(made.expect("run cp").success());
    let mut running = site.start(&["--check-command", program.to_str().expect("UTF-8")]);
    site.put("a.csv", "1");
    site.wait_for_line(&mut running, "a.csv");
    fs::remove_file(&program).expect("remove the program");
    site.put("b.csv", "2");
    running.wait_for_event("file_failed", "b.csv");
    running.terminate().ok();
    assert!(site.staging.join("b.csv").exists() && site.quarantined().is_empty());
    site.run_once(&[]);
    site.assert_sound();
}
