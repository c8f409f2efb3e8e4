//! Who may do what with what ringest makes and places, seen by somebody else: an uploader of its own user.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::iter;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::support::{Finished, RunArgs, Running, Site, has_program, is_root, skip, through, tree};

/// Who uploads, somebody whom an ACL lets in, and who runs ringest where that is not root.
const UPLOADER: u32 = 2001;
const FRIEND: u32 = 2003;
const NOBODY: u32 = 65534;

const ACL: &str = "system.posix_acl_access";
const CAPABILITY: &str = "security.capability";

/// As whom, and with which capabilities, ringest runs.
#[derive(Debug, Clone, Copy)]
struct Runner {
    user: u32,
    lease: bool,
    chown: bool,
}

const RUNNERS: [Runner; 6] = [
    runner(0, true, true),
    runner(0, true, false),
    runner(0, false, true),
    runner(NOBODY, true, true),
    runner(NOBODY, true, false),
    runner(NOBODY, false, false),
];

const fn runner(user: u32, lease: bool, chown: bool) -> Runner {
    Runner { user, lease, chown }
}

impl Runner {
    /// A site of this runner, in whose staging directory everybody may put files. `None`, and skipped,
    /// where users cannot be changed.
    fn site(self, across: bool) -> Option<Site> {
        if !is_root() || !has_program("setpriv", "--version") {
            skip("only root can play other users, with setpriv");
            return None;
        }
        // Not where the other tests run: cargo's directory may be out of others' reach.
        let mut site = Site::beneath(Path::new("/var/tmp"));
        if across {
            site = site.across()?;
        }
        let site = site.run_by(self.user).with(&["--stability-seconds", "0.2"]);
        fs::set_permissions(&site.staging, Permissions::from_mode(0o777)).expect("chmod");
        Some(site)
    }

    fn run(self, site: &Site, args: RunArgs) -> Finished {
        Finished::of(self.command(site, &[args, &["--once"]].concat())).ok()
    }

    fn command(self, site: &Site, args: RunArgs) -> Command {
        let mut capabilities = Vec::new();
        for (name, has) in [("lease", self.lease), ("chown", self.chown)] {
            match (self.user, has) {
                (0, false) => capabilities.push(format!("-{name}")),
                (NOBODY, true) => capabilities.push(format!("+{name}")),
                _ => {}
            }
        }
        let user = self.user.to_string();
        let list = capabilities.join(",");
        let mut words = vec!["setpriv"];
        if self.user != 0 {
            words.extend(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        }
        if !list.is_empty() {
            words.extend(["--inh-caps", &list]);
            words.extend(match self.user {
                0 => ["--bounding-set", &list],
                _ => ["--ambient-caps", &list],
            });
        }
        // Within the wrapper of all tests: its interpreter may be out of the user's reach.
        let run = site.run(args);
        let whole: Vec<&OsStr> = iter::once(run.get_program())
            .chain(run.get_args())
            .collect();
        let is_ringest = |word: &&OsStr| Path::new(word).ends_with("ringest");
        let at = whole.iter().position(is_ringest).expect("the program");
        let words = words.into_iter().map(OsStr::new);
        let mut words = whole[..at]
            .iter()
            .copied()
            .chain(words)
            .chain(whole[at..].iter().copied());
        let mut wrapped = Command::new(words.next().expect("a program"));
        wrapped.args(words).current_dir(&site.root);
        for (name, value) in run.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped
    }
}

/// Whether a shell of this user can do this. Its standard input is `fd`.
fn may(user: u32, fd: Option<&OwnedFd>, script: &str, path: &Path) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(path);
    shell.uid(user).gid(user).current_dir("/");
    let input = fd.map(|fd| fd.try_clone().expect("dup"));
    shell.stdin(input.map_or_else(Stdio::null, Stdio::from));
    shell.stdout(Stdio::null()).stderr(Stdio::null());
    shell.status().expect("run sh").success()
}

fn put_as(user: u32, site: &Site, name: &str, content: &str, mode: u32) -> PathBuf {
    let path = site.put(name, content);
    chown(&path, Some(user), Some(user)).expect("chown");
    fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
    path
}

/// An access list by which a friend may read and write.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 7, u32::MAX),
        (0x02, 6, FRIEND),
        (0x04, 5, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 5, u32::MAX),
    ];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// CAP_NET_RAW for whoever executes the file.
fn capability() -> Vec<u8> {
    let words: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|e| panic!("{name} of {path:?}: {e}"));
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    match rustix::fs::getxattr(path, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Some(value)
        }
        Err(Errno::NODATA) => None,
        Err(error) => panic!("{name} of {path:?}: {error}"),
    }
}

/// A file of the uploader with every right that a file can grant.
fn put_with_all_rights(site: &Site, name: &str, content: &str) {
    let path = put_as(UPLOADER, site, name, content, 0o755);
    set_attribute(&path, ACL, &acl());
    set_attribute(&path, CAPABILITY, &capability());
    fs::set_permissions(&path, Permissions::from_mode(0o7775)).expect("chmod");
    assert_eq!(fs::metadata(&path).expect("look").mode() & 0o7777, 0o7775);
}

#[test]
fn what_grants_rights_does_not_survive_placing() {
    for across in [false, true] {
        for runner in [RUNNERS[0], RUNNERS[3], RUNNERS[5]] {
            for args in [
                &[][..],
                &["--placed-mode", "0640"],
                &["--placed-owner", "self"],
            ] {
                let Some(site) = runner.site(across) else {
                    return;
                };
                for (name, content) in [("a.csv", "a"), ("the same.csv", "a"), ("bad.txt", "b")] {
                    put_with_all_rights(&site, name, content);
                }
                // Of so many names that no list of a kilobyte holds them.
                put_with_all_rights(&site, "c.csv", "c");
                for number in 0..8 {
                    let name = format!("user.{number}{}", "x".repeat(200));
                    set_attribute(&site.staging.join("c.csv"), &name, b"");
                }
                runner.run(&site, &[args, &["--extensions", "csv"]].concat());
                let (placed, twins, bad) =
                    (site.placed_files(), site.duplicates(), site.quarantined());
                assert_eq!((placed.len(), twins.len(), bad.len()), (2, 1, 1));
                for path in [placed, twins, bad].concat() {
                    let about = format!("{path:?} by {runner:?} with {args:?}");
                    let seen = fs::metadata(&path).expect("look");
                    let (mode, list) = match args {
                        [] => (0o775, Some(acl())),
                        ["--placed-mode", _] => (0o640, None),
                        _ => (0o755, None),
                    };
                    assert_eq!(seen.mode() & 0o7777, mode, "{about}");
                    assert_eq!(attribute(&path, CAPABILITY), None, "{about}");
                    assert_eq!(attribute(&path, ACL), list, "{about}");
                    let friend = may(FRIEND, None, "echo >> \"$1\"", &path);
                    assert_eq!(friend, list.is_some(), "{about}");
                    let owner = match args {
                        ["--placed-owner", _] => runner.user,
                        // Nobody may not take the capability away, and so makes a copy, nor give that away.
                        _ if runner.user == NOBODY => NOBODY,
                        _ => UPLOADER,
                    };
                    assert_eq!(seen.uid(), owner, "{about}");
                }
                site.assert_staging_is_empty();
            }
        }
    }
}

#[test]
fn a_copy_has_the_access_list_of_its_source_and_not_that_of_the_warehouse() {
    let Some(site) = RUNNERS[0].site(true) else {
        return;
    };
    fs::create_dir(&site.warehouse).expect("mkdir");
    set_attribute(&site.warehouse, "system.posix_acl_default", &acl());
    put_as(UPLOADER, &site, "a.csv", "a", 0o664);
    RUNNERS[0].run(&site, &[]);
    let placed = site.line("a.csv").placed();
    assert_eq!(attribute(&placed, ACL), None);
    assert_eq!(fs::metadata(&placed).expect("look").mode() & 0o7777, 0o664);
    assert!(!may(FRIEND, None, "echo >> \"$1\"", &placed));
}

#[test]
fn an_uploader_cannot_change_what_was_placed_as_ringests_own() {
    for across in [false, true] {
        for runner in RUNNERS {
            let Some(site) = runner.site(across) else {
                return;
            };
            let (mut held, mut sources) = (Vec::new(), Vec::new());
            for name in ["a.csv", "the same.csv", "bad.txt"] {
                let content = &name[name.len() - 3..];
                let path = put_as(UPLOADER, &site, name, content, 0o666);
                sources.push(fs::metadata(&path).expect("look").ino());
                for flags in [OFlags::RDONLY, OFlags::PATH] {
                    let flags = flags | OFlags::CLOEXEC;
                    held.push(rustix::fs::open(&path, flags, Mode::empty()).expect("open"));
                }
            }
            runner.run(&site, &["--placed-owner", "self", "--extensions", "csv"]);
            let (placed, twins, bad) = (site.placed_files(), site.duplicates(), site.quarantined());
            assert_eq!((placed.len(), twins.len(), bad.len()), (1, 1, 1));
            let inode = fs::metadata(&placed[0]).expect("look").ino();
            let renamed = sources.contains(&inode);
            let expected = runner.lease && runner.chown && !across;
            assert_eq!(renamed, expected, "{runner:?}");
            for path in [placed, twins, bad].concat() {
                let before = fs::read(&path).expect("read");
                for script in [
                    "echo more >> \"$1\"",
                    "chmod 0666 \"$1\"",
                    "touch -d @0 \"$1\"",
                    "truncate -s 0 \"$1\"",
                ] {
                    assert!(
                        !may(UPLOADER, None, script, &path),
                        "{script} by {runner:?}"
                    );
                }
                for fd in &held {
                    let reopened = may(UPLOADER, Some(fd), "echo more >> /proc/self/fd/0", &path);
                    // What was copied is gone from staging, and may be written to for all that anybody cares.
                    assert!(!reopened || !renamed, "{runner:?}");
                }
                let seen = fs::metadata(&path).expect("look");
                assert_eq!((seen.uid(), seen.mode() & 0o7777), (runner.user, 0o644));
                assert_eq!(fs::read(&path).expect("read"), before, "{runner:?}");
            }
            site.assert_sound();
        }
    }
}

#[test]
fn an_uploader_that_never_leaves_its_files_alone_cannot_change_what_is_placed_as_ringests_own() {
    for runner in [RUNNERS[0], RUNNERS[2], RUNNERS[3]] {
        let Some(site) = runner.site(false) else {
            return;
        };
        let args = ["--placed-owner", "self", "--mode", "closed"];
        let mut running = Running::spawn(runner.command(&site, &args));
        running.wait_for_event("started", "");
        // What is gone from staging it makes anew.
        let script = "for round in $(seq 15); do for number in $(seq 20); do
            file=$1/$number.csv; echo $round $number >> $file; chmod 4777 $file; exec 3< $file
            echo more >> /proc/self/fd/3; chmod 0666 $file; done; done";
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(&site.staging);
        shell.uid(UPLOADER).gid(UPLOADER).current_dir("/");
        shell.stdout(Stdio::null()).stderr(Stdio::null());
        shell.status().expect("run sh");
        running.terminate();
        runner.run(&site, &args);
        site.assert_sound();
        for path in [site.placed_files(), site.duplicates(), site.quarantined()].concat() {
            let seen = fs::metadata(&path).expect("look");
            assert_eq!(
                (seen.uid(), seen.mode() & 0o7022),
                (runner.user, 0),
                "{path:?}"
            );
        }
    }
}

#[test]
fn what_an_uploader_does_to_its_own_placed_file_is_named() {
    let Some(site) = RUNNERS[0].site(false) else {
        return;
    };
    let path = put_as(UPLOADER, &site, "a.csv", "content", 0o644);
    let held: OwnedFd = File::open(&path).expect("open").into();
    RUNNERS[0].run(&site, &[]);
    let placed = site.line("a.csv").placed();
    let rewrite = "printf CONTENT > /proc/self/fd/0";
    assert!(
        may(UPLOADER, Some(&held), rewrite, &placed),
        "it is its own"
    );
    site.verify(&["--deep"]).with_code(1).naming(&placed);
}

#[test]
fn what_stays_in_staging_stays_its_uploaders() {
    let Some(site) = RUNNERS[0].site(false) else {
        return;
    };
    put_as(UPLOADER, &site, "a.csv", "a", 0o664);
    let args = &["--placed-owner", "self", "--on-duplicate", "keep"];
    RUNNERS[0].run(&site, args);
    assert_eq!(
        fs::metadata(site.line("a.csv").placed())
            .expect("look")
            .uid(),
        0
    );
    let twin = put_as(UPLOADER, &site, "the same.csv", "a", 0o664);
    RUNNERS[0].run(&site, args);
    let seen = fs::metadata(&twin).expect("it stays");
    assert_eq!((seen.uid(), seen.mode() & 0o7777), (UPLOADER, 0o664));
    site.assert_agrees();
}

#[test]
fn a_check_says_how_files_become_ringests_own() {
    let site = Site::new();
    for (args, says) in [
        (&[][..], "rename\n"),
        (
            &["--placed-owner", "self", "--lease", "off"],
            "copy, for placed_owner = self: no leases: --lease off",
        ),
        (
            &["--placed-owner", "self", "--on-duplicate", "keep"],
            "copy, for placed_owner = self: on_duplicate = keep",
        ),
    ] {
        let input = site.staging.to_str().expect("UTF-8");
        let told = Finished::of(site.command("check", &[&["--input", input], args].concat()));
        told.ok().naming(says);
    }
}

// ---- what ringest keeps for itself ----

/// The modes of everything beneath a directory, without the ledger's own.
fn assert_private(root: &Path) {
    for (path, facts) in tree(root) {
        let mode = facts[2] as u32;
        let wanted = match mode & 0o170000 {
            0o040000 => 0o700,
            _ => 0o600,
        };
        assert_eq!(mode & 0o7777, wanted, "{path:?}");
    }
}

fn with_umask(umask: &str, command: &Command) -> Command {
    let script = format!("umask {umask}; exec \"$@\"");
    through(&["sh", "-c", &script, "sh"], command)
}

#[test]
fn state_backups_and_logs_are_private_whatever_the_umask() {
    for umask in ["0", "0077"] {
        let site = Site::new().with(&["--stability-seconds", "0.1"]);
        site.put("a.csv", "a");
        let (logs, backup) = (site.root.join("logs"), site.root.join("backup"));
        let hlog = site.root.join("run.hlog");
        let places = [
            "--log-dir",
            logs.to_str().expect("UTF-8"),
            "--hlog",
            hlog.to_str().expect("UTF-8"),
            "--log-file-bytes",
            "300",
        ];
        let mut running = Running::spawn(with_umask(umask, &site.run(&places)));
        site.wait_for_line(&mut running, "a.csv");
        assert!(site.state.join("control.sock").exists());
        assert_private(&site.state);
        // What a start says of the end of the one before.
        running.kill();
        let mut run = site.run(&places);
        run.arg("--once");
        Finished::of(with_umask(umask, &run)).ok();
        assert!(site.state.join("suspect").exists());
        assert!(logs.join("app.log.1").exists());
        let to = backup.to_str().expect("UTF-8");
        Finished::of(with_umask(umask, &site.command("backup", &[to]))).ok();
        for place in [&site.state, &logs, &hlog, &backup] {
            assert_private(place);
        }
    }
}

#[test]
fn what_an_earlier_run_left_open_to_others_is_closed() {
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    let (logs, hlog) = (site.root.join("logs"), site.root.join("run.hlog"));
    let places = [
        "--log-dir",
        logs.to_str().expect("UTF-8"),
        "--hlog",
        hlog.to_str().expect("UTF-8"),
    ];
    site.put("a.csv", "a");
    site.run_once(&places);
    fs::write(logs.join("app.log.1"), "older\n").expect("write");
    let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
    for place in [&site.state, &logs, &hlog] {
        for (path, facts) in tree(place) {
            let is_directory = facts[2] as u32 & 0o170000 == 0o040000;
            open(&path, if is_directory { 0o755 } else { 0o666 }).expect("chmod");
        }
    }
    open(&site.state.join("ledger/lock.mdb"), 0o666).expect("chmod");
    site.put("b.csv", "b");
    site.run_once(&places);
    // Directories that an operator may have made, for others to look into, stay as they are.
    for place in [&site.state, &logs] {
        let mode = fs::metadata(place).expect("look").mode();
        assert_eq!(mode & 0o7777, 0o755, "{place:?}");
        open(place, 0o700).expect("chmod");
    }
    for place in [&site.state, &logs, &hlog] {
        assert_private(place);
    }
    let lock = fs::metadata(site.state.join("ledger/lock.mdb")).expect("look");
    assert_eq!(lock.mode() & 0o7777, 0o600);
    site.assert_sound();
}

#[test]
fn a_backup_is_not_written_into_a_directory_of_somebody_else() {
    if !is_root() {
        return skip("only root can play other users");
    }
    let site = Site::new().with(&["--stability-seconds", "0.1"]);
    site.run_once(&[]);
    let making = site.root.join("backup.ringest-backup");
    fs::create_dir(&making).expect("mkdir");
    chown(&making, Some(UPLOADER), None).expect("chown");
    let backup = site.root.join("backup");
    let to = backup.to_str().expect("UTF-8");
    let refused = Finished::of(site.command("backup", &[to]));
    refused.with_code(78).naming("belongs to another user");
    assert!(fs::read_dir(&making).expect("list").next().is_none());
}
