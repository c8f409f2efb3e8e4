//! Names that ringest makes in a staging directory, taken by somebody first or taken away.

use std::process::Command;

use crate::stage::{Stage, Warehouse, everywhere};
use crate::support::program::{Program, State};
use crate::support::through;

/// Directories, files and symlinks under the hidden names of the first arrivals, as far as they can be foreseen, here and there.
const SQUAT: &str = r#"
for where in ".", "hers":
    for number in range(1, 60):
        for end in "", ".sidecar":
            name = f"{where}/.ringest-{ledger()}-{number}{end}"
            kind = number % 4
            if kind == 0: os.symlink("/etc/passwd", name)
            elif kind == 1: os.mkdir(name)
            elif kind == 2: os.mkdir(name), open(name + "/full", "w").close()
            else: open(name, "w").close()
"#;

/// Takes them away again: what is in the way of nobody is not what these tests are about.
const LEAVE: &str = r#"
import shutil
for where in ".", "hers":
    for name in os.listdir(where):
        if name.startswith(".ringest-"):
            path = f"{where}/{name}"
            if os.path.isdir(path) and not os.path.islink(path): shutil.rmtree(path, ignore_errors=True)
            else: tries(os.unlink, path)
"#;

fn prepare(stage: &Stage) {
    stage.upload("first.csv", "first");
    stage.stranger("os.mkdir('hers'); put('hers/first.csv', 'hers, first')");
    stage.run_once(&[]);
    stage.stranger(SQUAT);
    stage.stranger("put('hers/a.csv', 'hers'); put('hers.csv', 'hers too')");
    stage.upload("a.csv", "honest");
    stage.upload("again.csv", "first");
}

#[test]
fn names_that_are_taken_where_files_are_to_be_hidden_stop_nobody() {
    for duplicates in ["delete", "move"] {
        for warehouse in [Warehouse::Across, Warehouse::Beside] {
            everywhere(warehouse, |stage| {
                prepare(stage);
                let args = ["--on-duplicate", duplicates];
                stage.run_once(&args);
                stage.upload("b.csv", "honest, later");
                stage.run_once(&args);
                stage.assert_arrived("staging/a.csv", "honest");
                stage.assert_arrived("staging/b.csv", "honest, later");
                stage.stranger(LEAVE);
                stage.assert_sound();
            });
        }
    }
}

#[test]
fn names_that_are_taken_after_a_kill_do_not_stop_recovery() {
    for point in [
        "intents_committed",
        "placed",
        "records_committed",
        "source_hidden",
    ] {
        everywhere(Warehouse::Across, |stage| {
            stage.upload("first.csv", "first");
            stage.stranger("os.mkdir('hers')");
            stage.run_once(&[]);
            stage.stranger("put('hers/a.csv', 'hers'); put('hers.csv', 'hers too')");
            stage.upload("a.csv", "honest");
            stage.stop_at(point, &[]).kill();
            stage.stranger(SQUAT);
            stage.run_once(&[]);
            stage.upload("b.csv", "honest, later");
            stage.run_once(&[]);
            stage.assert_arrived("staging/a.csv", "honest");
            stage.assert_arrived("staging/b.csv", "honest, later");
            stage.stranger(LEAVE);
            stage.assert_sound();
        });
    }
}

/// What she does to a hidden name between two steps of its removal.
const MEDDLING: [&str; 5] = [
    "os.unlink(name)",
    "os.rename(name, 'elsewhere.part')",
    "os.unlink(name); os.mkdir(name); open(name + '/full', 'w').close()",
    "os.unlink(name); os.symlink('/etc/passwd', name)",
    "os.unlink(name); open(name, 'w').write('another')",
];

#[test]
fn a_hidden_name_that_vanishes_or_changes_ends_nothing() {
    for meddling in MEDDLING {
        everywhere(Warehouse::Across, |stage| {
            stage.stranger("os.mkdir('hers'); put('hers/a.csv', 'hers')");
            stage.upload("a.csv", "honest");
            let run = stage.stop_at("source_hidden", &[]);
            stage.stranger(&format!(
                "for where in '.', 'hers':\n    for name in os.listdir(where):\n        name = where + '/' + name\n        \
                 if name.split('/')[-1].startswith('.ringest-'):\n            try:\n                {meddling}\n            \
                 except OSError: pass"
            ));
            run.ends_well();
            stage.upload("b.csv", "honest, later");
            stage.run_once(&[]);
            stage.assert_arrived("staging/b.csv", "honest, later");
            stage.stranger(LEAVE);
            stage.assert_sound();
        });
    }
}

#[test]
fn hidden_names_that_come_and_go_all_the_time_end_nothing() {
    everywhere(Warehouse::Across, |stage| {
        stage.upload("first.csv", "first");
        stage.run_once(&[]);
        let churn = stage.beside(
            r#"
os.mkdir("hers")
print("at work", flush=True)
number = 0
while True:
    number += 1
    name = f".ringest-{ledger()}-{number % 40}"
    for where in ".", "hers":
        tries(os.mkdir, f"{where}/{name}")
        tries(put, f"{where}/{number % 7}.csv", f"{number}")
        for hidden in os.listdir(where):
            if hidden.startswith(".ringest-"):
                tries(os.rename, f"{where}/{hidden}", f"{where}/{hidden}x")
                tries(os.unlink, f"{where}/{hidden}x")
                tries(os.rmdir, f"{where}/{hidden}x")
"#,
        );
        let mut run = stage.site.start(&["--rescan-seconds", "1"]);
        run.wait_for_event("started", "");
        for number in 0..30 {
            let name = format!("honest-{number}.csv");
            stage.upload(&name, &name);
            stage.site.wait_for_line(&mut run, &name);
        }
        churn.end();
        run.terminate();
        for number in 0..30 {
            let name = format!("honest-{number}.csv");
            stage.assert_arrived(&name, &name);
        }
        stage.stranger(LEAVE);
        stage.assert_sound();
    });
}

/// A run whose process id is known before the program begins.
fn foreseen(stage: &Stage) -> (Program, u32) {
    let mut run = stage.site.run(&["--once"]);
    run.env("RINGEST_STOP_AT", "none");
    let wrapped = through(&["sh", "-c", "kill -STOP $$; exec \"$@\"", "sh"], &run);
    let mut command: Command = wrapped;
    if stage.user != 0 {
        use std::os::unix::process::CommandExt;
        command.uid(stage.user).gid(stage.user);
    }
    command.current_dir(&stage.site.root);
    let mut program = Program::start(command, &stage.site.root.join("probes.log"));
    assert_eq!(program.wait(), State::Stopped);
    let id = program.id();
    (program, id)
}

#[test]
fn names_that_are_taken_where_a_start_probes_do_not_keep_it_from_starting() {
    for make in ["os.symlink('/etc/passwd', name)", "os.mkdir(name)"] {
        everywhere(Warehouse::Beside, |stage| {
            stage.upload("a.csv", "honest");
            let (mut program, id) = foreseen(stage);
            stage.stranger(&format!(
                "for number in range(100):\n    name = f'.ringest-probe-{id}-{{number}}'\n    {make}"
            ));
            program.go_on();
            match program.wait() {
                State::Ended(status) => assert_eq!(status.code(), Some(0)),
                State::Stopped => panic!("it stopped again"),
            }
            stage.assert_arrived("a.csv", "honest");
            stage.assert_sound();
        });
    }
}

#[test]
fn probes_that_vanish_or_change_as_they_appear_do_not_keep_it_from_starting() {
    everywhere(Warehouse::Beside, |stage| {
        let _vanish = stage.beside(
            r#"
print("at work", flush=True)
number = 0
while True:
    number += 1
    for name in os.listdir("."):
        if name.startswith(".ringest-"):
            tries(os.unlink, name)
            if number % 2: tries(os.symlink, "/etc/passwd", name)
            if number % 3: tries(os.rename, name, name + "x")
"#,
        );
        for number in 0..8 {
            let name = format!("honest-{number}.csv");
            stage.upload(&name, &name);
            stage.run_once(&[]);
            stage.assert_arrived(&name, &name);
        }
        stage.assert_sound();
    });
}
