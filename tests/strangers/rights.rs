//! Rights to a directory of her own that an uploader takes away and gives back, whatever ringest is doing there.

use crate::stage::{Warehouse, alternately, everywhere};

/// Points at which work is under way in her directory.
const POINTS: [&str; 9] = [
    "copy_written",
    "classified",
    "intents_committed",
    "placed_one",
    "placed",
    "checked",
    "records_committed",
    "batch_manifested",
    "source_hidden",
];

/// What becomes of her directory: closed, not to be written to, not to be searched, gone, or something else.
const CLOSED: [&str; 5] = [
    "os.chmod('hers', 0)",
    "os.chmod('hers', 0o555)",
    "os.chmod('hers', 0o666)",
    "os.rename('hers', '.away')",
    "os.rename('hers', '.away'); os.symlink('/etc', 'hers')",
];

/// Undoes it, so that her files can come too.
const OPEN: &str = r#"
if os.path.islink("hers"): os.unlink("hers")
if os.path.isdir(".away"): os.rename(".away", "hers")
os.chmod("hers", 0o777)
"#;

fn attack(kill: bool, warehouse: Warehouse) {
    let mut turns = 0..;
    for (number, point) in POINTS.into_iter().enumerate() {
        // Three of them at each point: all come at some, and other ones where files are moved.
        let shift = usize::from(warehouse == Warehouse::Beside) + 2 * usize::from(kill);
        for which in (0..3).map(|turn| (number + shift + 2 * turn) % CLOSED.len()) {
            let close = CLOSED[which];
            eprintln!("at {point}: {close}");
            alternately(turns.next().unwrap_or(0), warehouse, |stage| {
                // Her directory may be written to: her files are to be moved.
                stage.stranger(
                    "os.mkdir('hers'); os.chmod('hers', 0o777)\n\
                     for name in 'abc': put(f'hers/{name}.csv', name)",
                );
                stage.upload("a.csv", "honest");
                let run = stage.stop_at(point, &[]);
                stage.stranger(close);
                match kill {
                    true => run.kill(),
                    false => run.ends_well(),
                }
                stage.upload("b.csv", "honest, later");
                stage.run_once(&[]);
                stage.assert_arrived("staging/a.csv", "honest");
                stage.assert_arrived("staging/b.csv", "honest, later");
                stage.stranger(OPEN);
                stage.run_once(&[]);
                for name in ["a", "b", "c"] {
                    stage.assert_arrived(&format!("hers/{name}.csv"), name);
                }
                // What she carried off under its hidden name, she has back.
                stage.assert_sound_but_for("hers");
            });
        }
    }
}

#[test]
fn a_directory_that_is_closed_while_files_in_it_are_copied_stops_nobody() {
    attack(false, Warehouse::Across);
}

#[test]
fn a_directory_that_is_closed_while_files_in_it_are_moved_stops_nobody() {
    attack(false, Warehouse::Beside);
}

#[test]
fn a_directory_that_is_closed_after_a_kill_amid_copies_does_not_stop_recovery() {
    attack(true, Warehouse::Across);
}

#[test]
fn a_directory_that_is_closed_after_a_kill_amid_moves_does_not_stop_recovery() {
    attack(true, Warehouse::Beside);
}

#[test]
fn a_directory_that_opens_and_closes_all_the_time_stops_nobody() {
    everywhere(Warehouse::Across, |stage| {
        let churn = stage.beside(
            r#"
os.mkdir("hers")
print("at work", flush=True)
number = 0
while True:
    number += 1
    os.chmod("hers", (0o777, 0, 0o555, 0o666)[number % 4])
    tries(put, f"hers/{number % 9}.csv", f"{number}")
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
        stage.stranger("os.chmod('hers', 0o777)");
        stage.run_once(&[]);
        stage.assert_sound();
    });
}
