//! Settings, schemas and commands that others may write are nobody's orders.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::{Finished, Site, is_root, output, skip};

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
}

/// A site whose settings file, in a directory of its own, names a schema, a command and its script; and these five.
fn site() -> (Site, [PathBuf; 5]) {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    let dir = site.root.join("etc");
    let [config, schema, program, script] =
        ["ringest.toml", "schema.json", "check", "check.sh"].map(|name| dir.join(name));
    fs::create_dir(&dir).expect("make a directory");
    fs::write(&schema, "{}").expect("write");
    fs::write(&script, "exit 0\n").expect("write");
    output(Command::new("cp").arg("/bin/sh").arg(&program));
    let settings = format!(
        "content = \"json\"\njson_schema = {schema:?}\ncheck_command = [{program:?}, {script:?}]\n"
    );
    fs::write(&config, settings).expect("write");
    for path in [&config, &schema, &script] {
        chmod(path, 0o644);
    }
    for path in [&dir, &program] {
        chmod(path, 0o755);
    }
    let config = config.to_str().expect("UTF-8").to_owned();
    let paths = [dir, config.clone().into(), schema, program, script];
    (site.with(&["--config", &config]), paths)
}

#[test]
fn what_others_may_write_is_refused_and_used_only_if_that_is_said() {
    let (site, paths) = site();
    for path in &paths {
        let before = fs::metadata(path).expect("there").permissions().mode();
        for more in [0o020, 0o002] {
            chmod(path, before | more);
            site.put("a.json", "[1]");
            let refused = site.try_once(&[]).with_code(78).naming(path);
            assert!(refused.stderr.contains("chmod go-w"), "{refused}");
            assert!(refused.stderr.contains("--trust-config"), "{refused}");
            assert!(site.staging.join("a.json").exists() && !site.warehouse.exists());
        }
        chmod(path, before);
    }
    for path in &paths {
        chmod(path, 0o777);
    }
    site.run_once(&["--trust-config"]);
    let mut variable = site.run(&["--once"]);
    variable.env("RINGEST_TRUST_CONFIG", "true");
    site.put("b.json", "[2]");
    Finished::of(variable).ok();
    for path in &paths[..3] {
        chmod(path, 0o755);
    }
    assert_eq!(site.manifest().len(), 2);
    site.assert_sound();
}

#[test]
fn every_command_refuses_a_settings_file_of_others_and_check_shows_what_is_used_all_the_same() {
    let (site, [_, config, ..]) = site();
    chmod(&config, 0o664);
    for name in ["run", "check", "status", "verify", "rebuild", "find"] {
        let mut command = site.command(name, &["--config"]);
        command.arg(&config);
        if name == "find" {
            command.arg("a.json");
        }
        Finished::of(command).with_code(78).naming(&config);
    }
    let mut check = site.command("check", &["--trust-config", "--config"]);
    check.arg(&config).arg("--input").arg(&site.staging);
    let shown = Finished::of(check).ok();
    let warning = format!("warning: {}: others may change", config.display());
    assert!(shown.stdout.contains(&warning), "{shown}");
}

#[test]
fn a_file_cannot_vouch_for_itself() {
    let (site, [_, config, ..]) = site();
    fs::write(&config, "trust_config = true\n").expect("write");
    site.try_once(&[]).with_code(78).naming("--trust-config");
    let (site, _) = self::site();
    let mut run = site.run(&["--once"]);
    run.env("RINGEST_TRUST_CONFIG", "perhaps");
    Finished::of(run).with_code(78).naming("true or false");
}

#[test]
fn what_belongs_to_a_stranger_is_refused_whoever_runs() {
    const STRANGER: u32 = 2001;
    const SERVICE: u32 = 65534;
    if !is_root() {
        return skip("only root can play the others");
    }
    for as_service in [false, true] {
        // Not where the other tests run: cargo's directory may be out of reach.
        let mut site = Site::beneath(Path::new("/var/tmp"));
        chmod(&site.root, 0o755);
        if as_service {
            site = site.run_by(SERVICE);
            chmod(&site.staging, 0o777);
        }
        let config = site.root.join("ringest.toml");
        fs::write(&config, "stability_seconds = 0.1\n").expect("write");
        chmod(&config, 0o644);
        let owners = [(0, true), (SERVICE, as_service), (STRANGER, false)];
        for (owner, is_trusted) in owners {
            chown(&config, Some(owner), None).expect("chown");
            let ended = site.try_once(&["--config", config.to_str().expect("UTF-8")]);
            match is_trusted {
                true => ended.ok(),
                false => {
                    let ended = ended.with_code(78).naming(&config);
                    let whose = format!("belongs to user {owner}");
                    assert!(ended.stderr.contains(&whose), "{ended}");
                    ended
                }
            };
        }
    }
}
