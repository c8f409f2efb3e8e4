//! Things that change under their name: directories, files, nodes, links.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::stage::{Warehouse, everywhere, in_turn};
use crate::support::{Finished, files_beneath};

const SECRET: &str = "nobody may read this";

#[test]
fn a_directory_that_is_exchanged_for_one_with_links_gets_nobody_a_secret() {
    let points = [
        "copy_written",
        "classified",
        "intents_committed",
        "placed_one",
        "records_committed",
        "source_hidden",
    ];
    for (turn, point) in points.into_iter().enumerate() {
        for warehouse in [Warehouse::Beside, Warehouse::Across] {
            in_turn(turn, warehouse, |stage| {
                let secret = stage.secret(SECRET);
                stage.stranger(&format!(
                    "for name in 'hers', 'next.part': os.mkdir(name); os.chmod(name, 0o777)\n\
                     put('hers/a.csv', 'hers'); put('hers/b.txt', 'bad')\n\
                     for name in 'a.csv', 'b.txt': os.symlink({secret:?}, 'next.part/' + name)"
                ));
                stage.upload("a.csv", "honest");
                let args = ["--extensions", ".csv"];
                let run = stage.stop_at(point, &args);
                stage.stranger("exchange('hers', 'next.part')");
                run.ends_well();
                stage.run_once(&args);
                stage.stranger("exchange('hers', 'next.part')");
                stage.run_once(&args);
                stage.assert_arrived("staging/a.csv", "honest");
                assert_eq!(fs::read_to_string(&secret).expect("read"), SECRET);
                stage.assert_untold(SECRET);
                stage.assert_sound();
            });
        }
    }
}

#[test]
fn files_that_turn_into_nodes_and_links_and_back_stop_nobody() {
    everywhere(Warehouse::Beside, |stage| {
        let secret = stage.secret(SECRET);
        let churn = stage.beside(&format!(
            r#"
os.mkdir("hers")
print("at work", flush=True)
number = 0
while True:
    number += 1
    for name in "hers/a.csv", "hers.csv":
        kind = number % 5
        new = name + ".new.part"
        tries(os.unlink, new)
        if kind == 0: os.mkfifo(new)
        elif kind == 1: os.symlink({secret:?}, new)
        elif kind == 2:
            end = socket.socket(socket.AF_UNIX); end.bind(new); end.close()
        elif kind == 3: open(new, "w").write(str(number))
        else: tries(os.link, "/etc/passwd", new)
        tries(os.rename, new, name)
"#
        ));
        let mut run = stage
            .site
            .start(&["--mode", "closed", "--rescan-seconds", "1"]);
        run.wait_for_event("started", "");
        for number in 0..30 {
            let name = format!("honest-{number}.csv");
            stage.upload(&name, &name);
            stage.site.wait_for_line(&mut run, &name);
        }
        churn.end();
        run.terminate();
        stage.assert_untold(SECRET);
        stage.assert_sound();
    });
}

#[test]
fn a_second_name_of_somebody_elses_file_is_left_alone() {
    everywhere(Warehouse::Beside, |stage| {
        let secret = stage.secret(SECRET);
        // As where fs.protected_hardlinks is off.
        fs::hard_link(&secret, stage.site.staging.join("link.csv")).expect("link");
        stage.upload("a.csv", "honest");
        stage.run_once(&[]);
        stage.assert_arrived("a.csv", "honest");
        assert_eq!(stage.site.manifest().len(), 1);
        assert_eq!(fs::read_to_string(&secret).expect("read"), SECRET);
        fs::remove_file(stage.site.staging.join("link.csv")).expect("remove");
        stage.assert_untold(SECRET);
        stage.assert_sound();
    });
}

#[test]
fn names_of_any_bytes_and_deep_trees_stop_nobody() {
    everywhere(Warehouse::Beside, |stage| {
        stage.stranger(
            r#"
os.mkdir("hers"); os.chdir("hers")
names = [b"new\nline.csv", b"esc\x1b]0;title\x07.csv", b"\xff\xfe.csv", b"x" * 255, b"\xf0" * 255, b"-rf", b"{}", b"name.reason.json",
    b".ringest-ledger", b".ringest-probe-1-1", "\u202e.csv".encode(), b"\\u0000.csv", b'"}\n{"event":"stopped"}.csv', b"%s%n.csv"]
for number, name in enumerate(names):
    with open(name, "w") as file: file.write(f"{number}")
for depth in range(300):
    os.mkdir("d" * 60); os.chmod("d" * 60, 0o777); os.chdir("d" * 60)
    if depth % 50 == 0:
        with open("deep.csv", "w") as file: file.write(f"{depth}")
"#,
        );
        stage.upload("a.csv", "honest");
        let ended = stage.run_once(&[]);
        stage.assert_arrived("staging/a.csv", "honest");
        let events = ended.stderr.lines();
        let not_json =
            events.filter(|line| serde_json::from_str::<serde_json::Value>(line).is_err());
        assert_eq!(not_json.count(), 0, "{ended}");
        assert_eq!(ended.events("stopped", "").len(), 1, "{ended}");
        stage.assert_sound();
    });
}

#[test]
fn markers_and_reasons_that_somebody_forges_in_staging_are_not_believed() {
    everywhere(Warehouse::Across, |stage| {
        stage.upload("first.csv", "first");
        stage.run_once(&[]);
        stage.stranger(
            r#"
os.mkdir("hers")
for where in ".", "hers":
    with open(where + "/.ringest-ledger", "w") as file: file.write('{"format":1,"ledger":"' + "0" * 32 + '"}')
    with open(where + "/a.csv.reason.json", "w") as file: file.write('{"rule":"duplicate","seq":1,"path":"/etc/passwd"}')
    with open(where + "/manifest.jsonl", "w") as file: file.write('{"path":"/etc/passwd","seq":1}\n')
"#,
        );
        stage.upload("a.csv", "honest");
        stage.run_once(&[]);
        stage.assert_arrived("staging/a.csv", "honest");
        stage.assert_sound();
    });
}

#[test]
fn a_quarantined_file_is_not_given_back_through_a_link() {
    everywhere(Warehouse::Beside, |stage| {
        let outside = stage.secret(SECRET).with_file_name("outside");
        fs::create_dir(&outside).expect("make a directory");
        std::os::unix::fs::chown(&outside, Some(stage.user), Some(stage.user)).expect("chown");
        let args = ["--extensions", ".csv"];
        stage.stranger("os.mkdir('hers'); os.chmod('hers', 0o777); put('hers/bad.txt', 'bad'); put('bad\\n.txt', 'bad too')");
        stage.upload("a.csv", "honest");
        stage.run_once(&args);
        assert_eq!(stage.site.quarantined().len(), 2);
        stage.stranger(&format!(
            "tries(os.rmdir, 'hers') or os.rename('hers', '.away')\nos.symlink({outside:?}, 'hers')\n\
             tries(os.unlink, 'bad\\n.txt'); os.symlink({:?}, 'bad\\n.txt')",
            outside.with_file_name("secret"),
        ));
        // It may refuse; it may not follow.
        let mut retry = stage.site.command("quarantine", &["retry", "--all"]);
        let input = stage.site.staging.clone();
        retry.arg("--input").arg(input);
        Finished::of(retry);
        assert!(
            files_beneath(&outside).is_empty(),
            "{:?}",
            files_beneath(&outside)
        );
        assert_eq!(
            fs::read_to_string(outside.with_file_name("secret")).expect("read"),
            SECRET
        );
        let link = stage.site.staging.join(OsStr::from_bytes(b"bad\n.txt"));
        assert!(link.symlink_metadata().is_ok_and(|it| it.is_symlink()));
        stage.assert_untold(SECRET);
        stage.upload("b.csv", "honest, later");
        stage.run_once(&args);
        stage.assert_arrived("staging/b.csv", "honest, later");
        stage.assert_sound();
    });
}
