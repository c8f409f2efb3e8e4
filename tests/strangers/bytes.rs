//! Stored files whose bytes an uploader changes, and what is believed of them.

use crate::stage::{Stage, Warehouse, everywhere, in_turn};

const TRUE: &str = "the true content";

/// Overwrites her stored file in place, with as many bytes and its old times. Prints whether she could.
fn rewrite(stage: &Stage) -> bool {
    let said = stage.stranger(
        r#"
def rewrite(name):
    was = os.stat(name)
    with open(name, "r+b") as file:
        file.write(b"X" * was.st_size)
    os.utime(name, ns=(was.st_atime_ns, was.st_mtime_ns))
print(any(tries(rewrite, name) for name in placed("hers.csv")))
"#,
    );
    said.trim() == "True"
}

#[test]
fn what_a_rewritten_file_held_is_taken_again_when_somebody_else_sends_it() {
    for duplicates in ["delete", "move", "keep"] {
        everywhere(Warehouse::Beside, |stage| {
            let args = ["--on-duplicate", duplicates];
            stage.stranger(&format!("put('hers.csv', '{TRUE}')"));
            stage.run_once(&args);
            rewrite(stage);
            stage.upload("honest.csv", TRUE);
            stage.run_once(&args);
            if duplicates != "keep" {
                stage.assert_stored(TRUE);
            }
            // And over: the next sender's is no worse off.
            rewrite(stage);
            stage.upload("honest too.csv", TRUE);
            stage.run_once(&args);
            if duplicates != "keep" {
                stage.assert_stored(TRUE);
            }
        });
    }
}

/// From when the duplicate is known to be one until its removal, live and over a restart.
#[test]
fn what_is_rewritten_before_its_duplicate_is_removed_is_not_lost() {
    for kill in [false, true] {
        let points = [
            "classified",
            "intents_committed",
            "records_committed",
            "batch_manifested",
            "source_hidden",
        ];
        for (turn, point) in points.into_iter().enumerate() {
            in_turn(turn + usize::from(kill), Warehouse::Beside, |stage| {
                let args = ["--on-duplicate", "delete"];
                stage.stranger(&format!("put('hers.csv', '{TRUE}')"));
                stage.run_once(&args);
                stage.upload("honest.csv", TRUE);
                let run = stage.stop_at(point, &args);
                rewrite(stage);
                match (run.ended, kill) {
                    (true, _) => {}
                    (false, true) => run.kill(),
                    (false, false) => run.ends_well(),
                }
                stage.run_once(&args);
                let staged = stage.site.staging.join("honest.csv");
                if std::fs::read(staged).ok().as_deref() != Some(TRUE.as_bytes()) {
                    stage.assert_stored(TRUE);
                }
            });
        }
    }
}

#[test]
fn verify_names_a_rewritten_file_without_reading_it() {
    everywhere(Warehouse::Beside, |stage| {
        stage.stranger(&format!("put('hers.csv', '{TRUE}')"));
        stage.upload("honest.csv", "honest");
        stage.run_once(&[]);
        if !rewrite(stage) {
            stage.assert_sound();
            return;
        }
        for args in [&[][..], &["--deep"]] {
            let said = stage.site.verify(args).with_code(1).naming("hers.csv");
            assert!(!said.stdout.contains("honest.csv"), "{said}");
        }
    });
}

/// Owner, mode and extended attributes are the uploader's to change while it owns the file: the bytes are what counts.
#[test]
fn a_stored_file_whose_mode_is_changed_is_still_the_first_of_its_duplicates() {
    everywhere(Warehouse::Beside, |stage| {
        let args = ["--on-duplicate", "delete"];
        stage.stranger(&format!("put('hers.csv', '{TRUE}')"));
        stage.run_once(&args);
        stage.stranger("for name in placed('hers.csv'): tries(os.chmod, name, 0)");
        stage.upload("honest.csv", TRUE);
        stage.run_once(&args);
        stage.assert_stored(TRUE);
    });
}
