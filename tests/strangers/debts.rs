//! What stays owed because an uploader is in the way.

use serde_json::Value;

use crate::stage::{Stage, Warehouse, everywhere};
use crate::support::Finished;

/// How many names status says are still to be removed.
fn owed(stage: &Stage) -> u64 {
    let said = Finished::of(stage.site.command("status", &["--json"])).ok();
    let line = said.stdout.lines().next().expect("a line");
    let status: Value = serde_json::from_str(line).expect("JSON");
    status["owed"]["files"].as_u64().unwrap_or(0)
}

/// How she keeps a sidecar of hers from being removed, if that is possible to her.
const BLOCKS: [&str; 2] = [UNREACHABLE, "os.chmod('hers', 0o555)"];
const UNREACHABLE: &str = "os.chmod('hers', 0)";

#[test]
fn a_sidecar_that_cannot_be_removed_is_warned_of_once_and_seen_in_status() {
    for block in BLOCKS {
        everywhere(Warehouse::Beside, |stage| {
            let args = ["--mode", "sidecar"];
            stage.stranger(
                "os.mkdir('hers'); os.chmod('hers', 0o777)\n\
                 put('hers/a.csv', 'hers'); put('hers/a.csv.ok', '')",
            );
            stage.stopped_at("records_committed", &args).kill();
            stage.stranger(block);
            let mut warnings = 0;
            for _ in 0..3 {
                let ended = stage.run_once(&args);
                let told = ended.events_about("/hers/a.csv.ok");
                warnings += told.iter().filter(|it| it["level"] == "warn").count();
            }
            let counted = owed(stage);
            stage.stranger("os.chmod('hers', 0o777)");
            // Root may remove it all the same.
            let stays = stage.site.staging.join("hers/a.csv.ok").exists();
            assert_eq!(warnings, usize::from(stays));
            assert_eq!(counted, u64::from(stays));
            for _ in 0..2 {
                stage.run_once(&args);
            }
            // What was reached and could not be removed is kept: nobody tries again.
            let kept = stays && block != UNREACHABLE;
            assert_eq!(owed(stage), u64::from(kept));
            stage.assert_sound();
        });
    }
}
