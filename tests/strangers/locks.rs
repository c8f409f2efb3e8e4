//! Locks that anybody may take who may read a directory.

use std::path::Path;

use crate::stage::{Beside, Stage, Warehouse, everywhere};
use crate::support::Finished;

/// Locks whatever she may open: the inputs, warehouse, manifests, their markers, logs, state, and what is in them.
fn locked(stage: &Stage, operation: &str) -> Beside {
    stage.beside(&format!(
        r#"
held = []
for top in ".", WAREHOUSE, MANIFESTS, STATE, ROOT, ROOT + "/logs":
    for where, _, names in os.walk(top):
        for name in [where] + [os.path.join(where, name) for name in names]:
            try:
                held.append(os.open(name, os.O_RDONLY | os.O_NONBLOCK))
                fcntl.flock(held[-1], fcntl.{operation} | fcntl.LOCK_NB)
            except OSError:
                pass
print("at work", flush=True)
sys.stdin.read()
"#
    ))
}

fn logs(stage: &Stage) -> [String; 2] {
    let logs = stage.site.root.join("logs");
    ["--log-dir".into(), logs.to_str().expect("UTF-8").into()]
}

#[test]
fn locks_of_a_stranger_do_not_keep_it_from_starting() {
    for operation in ["LOCK_EX", "LOCK_SH"] {
        everywhere(Warehouse::Beside, |stage| {
            let logs = logs(stage);
            let args = [&*logs[0], &*logs[1]];
            stage.upload("a.csv", "honest");
            let before = locked(stage, operation);
            stage.run_once(&args);
            before.end();
            let _after = locked(stage, operation);
            stage.upload("b.csv", "honest, later");
            stage.run_once(&args);
            stage.assert_arrived("a.csv", "honest");
            stage.assert_arrived("b.csv", "honest, later");
            stage.assert_sound();
        });
    }
}

#[test]
fn a_second_instance_is_refused_whatever_a_stranger_has_locked() {
    for operation in [None, Some("LOCK_EX"), Some("LOCK_SH")] {
        everywhere(Warehouse::Beside, |stage| {
            stage.run_once(&[]);
            let before = operation.map(|operation| locked(stage, operation));
            let mut first = stage.site.start(&[]);
            first.wait_for_event("started", "");
            let after = operation.map(|operation| locked(stage, operation));
            let site = &stage.site;
            let other = |name: &str| site.root.join(format!("other-{name}"));
            let second = |input: &Path, warehouse: &Path, manifests: &Path, state: &Path| {
                let mut command = site.ringest(false);
                command.args(["run", "--once"]);
                command.arg("--input").arg(input);
                command.arg("--warehouse").arg(warehouse);
                command.arg("--manifests").arg(manifests);
                command.arg("--state-path").arg(state);
                Finished::of(command)
            };
            let (input, warehouse) = (&*site.staging, &*site.warehouse);
            let (manifests, state) = (&*site.manifests, &*site.state);
            second(input, warehouse, manifests, state).with_code(75);
            second(&other("i1"), &other("w1"), &other("m1"), state).with_code(75);
            second(&other("i2"), warehouse, &other("m2"), &other("s2")).with_code(75);
            second(&other("i3"), &other("w3"), manifests, &other("s3")).with_code(75);
            second(input, &other("w4"), &other("m4"), &other("s4")).with_code(75);
            // What nobody uses can be used beside it.
            second(&other("i5"), &other("w5"), &other("m5"), &other("s5")).ok();
            stage.upload("a.csv", "honest");
            site.wait_for_line(&mut first, "a.csv");
            first.terminate();
            drop((before, after));
            stage.assert_sound();
        });
    }
}
