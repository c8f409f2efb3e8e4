//! The programs that people upload with, all at once, into one watching ringest: every file arrives whole.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use support::{Site, files_beneath, has_program, is_root, sha256, skip, wait_until};

/// Where the host's own OpenSSH server is.
const SSHD: &str = "/usr/sbin/sshd";

#[test]
fn what_every_uploader_sends_arrives_whole() {
    let Some(data) = test_data() else {
        return skip(
            "needs RINGEST_TEST_DATA, a directory of CSV and JSON files: tools/test fills one",
        );
    };
    if !is_root()
        || !Path::new(SSHD).exists()
        || !has_program("rsync", "--version")
        || !has_program("sftp", "-h")
    {
        return skip("needs root, rsync, and OpenSSH's server and client");
    }
    let site = Site::new().with(&["--stability-seconds", "3"]);
    let uploads = Uploads {
        data,
        outbox: site.root.join("outbox"),
        staging: site.staging.clone(),
    };
    let server = Server::start(&site.root.join("ssh"));
    let mut watching = site.start(&[]);
    watching.wait_for_event("started", "");

    let sent: BTreeMap<String, String> = std::thread::scope(|scope| {
        let (uploads, server) = (&uploads, &server);
        let uploaders = [
            scope.spawn(|| uploads.rsync(server)),
            scope.spawn(|| uploads.rsync_in_place(server)),
            scope.spawn(|| uploads.scp(server)),
            scope.spawn(|| uploads.scp_of_old(server)),
            scope.spawn(|| uploads.sftp(server)),
            scope.spawn(|| uploads.sftp_and_rename(server)),
            scope.spawn(|| uploads.sftp_and_rename_by_link(server)),
            scope.spawn(|| uploads.cp()),
            scope.spawn(|| uploads.mv()),
            scope.spawn(|| uploads.loop_that_appends()),
        ];
        uploaders
            .into_iter()
            .flat_map(|uploader| uploader.join().expect("an uploader"))
            .collect()
    });
    assert!(sent.len() > 100, "only {} files were sent", sent.len());

    site.wait_for_lines(&mut watching, sent.len());
    watching.terminate();
    let lines = site.manifest();
    assert_eq!(lines.len(), sent.len());
    for line in &lines {
        let name = line
            .source_path()
            .file_name()
            .expect("a name")
            .to_str()
            .expect("UTF-8")
            .to_owned();
        let digest = sent
            .get(&name)
            .unwrap_or_else(|| panic!("nobody sent {name}: {}", line.raw));
        assert_eq!(
            line.sha256(),
            digest,
            "{name} is not what was sent: {}",
            line.raw
        );
    }
    site.assert_sound();
}

/// The CSV and JSON files of `RINGEST_TEST_DATA`.
fn test_data() -> Option<Vec<PathBuf>> {
    let directory = std::env::var_os("RINGEST_TEST_DATA")?;
    let is_data = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "csv" || extension == "json")
    };
    let data: Vec<PathBuf> = files_beneath(Path::new(&directory))
        .into_iter()
        .filter(is_data)
        .collect();
    assert!(
        data.len() >= 10,
        "{} CSV and JSON files in {directory:?}",
        data.len()
    );
    Some(data)
}

/// Who sends what where. Every uploader sends all the data, under names of its own and with a last line of its own,
/// so that no two files are equal; it returns the digest of each name.
struct Uploads {
    data: Vec<PathBuf>,
    outbox: PathBuf,
    staging: PathBuf,
}

impl Uploads {
    /// Makes an uploader's files in a directory of its own.
    fn prepare(&self, uploader: &str) -> (Vec<PathBuf>, Vec<(String, String)>) {
        let directory = self.outbox.join(uploader);
        fs::create_dir_all(&directory).expect("make the outbox");
        let mut files = Vec::new();
        let mut digests = Vec::new();
        for (i, source) in self.data.iter().enumerate() {
            let name = format!(
                "{uploader}-{i}-{}",
                source.file_name().expect("a name").to_str().expect("UTF-8")
            );
            let mut content = fs::read(source).expect("read the data");
            content.extend_from_slice(format!("\nsent by {uploader}, number {i}\n").as_bytes());
            let path = directory.join(&name);
            fs::write(&path, &content).expect("fill the outbox");
            digests.push((name, sha256(&content)));
            files.push(path);
        }
        (files, digests)
    }

    fn rsync(&self, server: &Server) -> Vec<(String, String)> {
        let (files, digests) = self.prepare("rsync");
        let mut rsync = Command::new("rsync");
        rsync.arg("--archive").arg("-e").arg(server.ssh());
        must_succeed(rsync.args(files).arg(server.remote(&self.staging)));
        digests
    }

    fn rsync_in_place(&self, server: &Server) -> Vec<(String, String)> {
        let (files, digests) = self.prepare("rsync-in-place");
        let mut rsync = Command::new("rsync");
        rsync
            .args(["--archive", "--inplace", "--bwlimit=2000", "-e"])
            .arg(server.ssh());
        must_succeed(rsync.args(files).arg(server.remote(&self.staging)));
        digests
    }

    fn scp(&self, server: &Server) -> Vec<(String, String)> {
        let (files, digests) = self.prepare("scp");
        let mut scp = Command::new("scp");
        must_succeed(
            scp.args(server.options("-P"))
                .args(files)
                .arg(server.remote(&self.staging)),
        );
        digests
    }

    /// By the protocol of old, slowly: it writes in place.
    fn scp_of_old(&self, server: &Server) -> Vec<(String, String)> {
        let (files, digests) = self.prepare("scp-of-old");
        let mut scp = Command::new("scp");
        scp.args(["-O", "-p", "-l", "16000"])
            .args(server.options("-P"));
        must_succeed(scp.args(files).arg(server.remote(&self.staging)));
        digests
    }

    fn sftp(&self, server: &Server) -> Vec<(String, String)> {
        let (files, digests) = self.prepare("sftp");
        let staging = self.staging.display();
        server.sftp(
            files
                .iter()
                .map(|file| format!("put {} {staging}/\n", file.display())),
        );
        digests
    }

    fn sftp_and_rename(&self, server: &Server) -> Vec<(String, String)> {
        let (files, digests) = self.prepare("sftp-rename");
        server.sftp(files.iter().map(|file| self.put_and_rename(file, "rename")));
        digests
    }

    /// The server carries out a rename of the old kind as link and unlink.
    fn sftp_and_rename_by_link(&self, server: &Server) -> Vec<(String, String)> {
        let (files, digests) = self.prepare("sftp-link");
        server.sftp(
            files
                .iter()
                .map(|file| self.put_and_rename(file, "rename -l")),
        );
        digests
    }

    fn put_and_rename(&self, file: &Path, rename: &str) -> String {
        let remote = self.staging.join(file.file_name().expect("a name"));
        let (file, remote) = (file.display(), remote.display());
        format!("put {file} {remote}.part\n{rename} {remote}.part {remote}\n")
    }

    fn cp(&self) -> Vec<(String, String)> {
        let (files, digests) = self.prepare("cp");
        must_succeed(Command::new("cp").args(files).arg(&self.staging));
        digests
    }

    fn mv(&self) -> Vec<(String, String)> {
        let (files, digests) = self.prepare("mv");
        for file in files {
            let arrives = self.staging.join(file.file_name().expect("a name"));
            let unfinished = format!("{}.tmp", arrives.display());
            must_succeed(Command::new("cp").arg(&file).arg(&unfinished));
            must_succeed(Command::new("mv").arg(&unfinished).arg(&arrives));
        }
        digests
    }

    /// Thirty lines in thirty seconds, the file closed after each.
    fn loop_that_appends(&self) -> Vec<(String, String)> {
        let name = "appended.csv".to_owned();
        let script =
            r#"for i in $(seq 30); do echo "$i,a line of the loop" >> "$1"; sleep 1; done"#;
        must_succeed(
            Command::new("sh")
                .args(["-c", script, "sh"])
                .arg(self.staging.join(&name)),
        );
        let whole: String = (1..=30)
            .map(|i| format!("{i},a line of the loop\n"))
            .collect();
        vec![(name, sha256(whole.as_bytes()))]
    }
}

/// An OpenSSH server of our own on a port of 127.0.0.1, with a key of its own for one user.
struct Server {
    process: Child,
    directory: PathBuf,
    port: u16,
    user: String,
}

impl Server {
    fn start(directory: &Path) -> Server {
        fs::create_dir_all(directory).expect("mkdir");
        fs::set_permissions(directory, Permissions::from_mode(0o700)).expect("chmod");
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            must_succeed(
                keygen
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(directory.join(key)),
            );
        }
        fs::copy(
            directory.join("user.pub"),
            directory.join("authorized_keys"),
        )
        .expect("copy the key");
        // It refuses to start without the directory that its unit would make.
        fs::create_dir_all("/run/sshd").expect("make sshd's directory");

        let at = directory.display();
        // A port that was free a moment ago may be taken: another try takes another.
        for _ in 0..10 {
            let port = free_port();
            let config = format!(
                "ListenAddress 127.0.0.1:{port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized_keys\n\
                 PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n\
                 PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n\
                 Subsystem sftp internal-sftp\n"
            );
            fs::write(directory.join("config"), config).expect("write the configuration");
            let log = fs::File::create(directory.join("log")).expect("make the log");
            let mut sshd = Command::new(SSHD);
            sshd.args(["-D", "-e", "-f"]).arg(directory.join("config"));
            let mut process = sshd
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("start sshd");
            let mut ended = false;
            wait_until("sshd answers or gives up", || {
                ended = process.try_wait().expect("wait for sshd").is_some();
                ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !ended {
                let user = "root".to_owned();
                return Server {
                    process,
                    directory: directory.to_owned(),
                    port,
                    user,
                };
            }
        }
        let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
        panic!("sshd does not start: {log}");
    }

    /// Options of the client programs; each names its port by another flag.
    fn options(&self, port_flag: &str) -> Vec<String> {
        let at = self.directory.display();
        let port = self.port.to_string();
        let identity = format!("{at}/user");
        let mut options = vec![
            port_flag.to_owned(),
            port,
            "-i".to_owned(),
            identity,
            "-q".to_owned(),
        ];
        for option in [
            format!("UserKnownHostsFile={at}/known_hosts"),
            "StrictHostKeyChecking=no".to_owned(),
            "BatchMode=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
        ] {
            options.extend(["-o".to_owned(), option]);
        }
        options.insert(0, "-F".to_owned());
        options.insert(1, "/dev/null".to_owned());
        options
    }

    /// The command that rsync reaches the server by.
    fn ssh(&self) -> String {
        format!("ssh {}", self.options("-p").join(" "))
    }

    fn remote(&self, path: &Path) -> String {
        format!("{}@127.0.0.1:{}/", self.user, path.display())
    }

    /// Runs a batch of sftp commands.
    fn sftp(&self, commands: impl Iterator<Item = String>) {
        let mut sftp = Command::new("sftp");
        sftp.args(self.options("-P"))
            .args(["-b", "-"])
            .arg(format!("{}@127.0.0.1", self.user));
        let mut sftp = sftp
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("start sftp");
        let mut stdin = sftp.stdin.take().expect("stdin is piped");
        for command in commands {
            stdin.write_all(command.as_bytes()).expect("tell sftp");
        }
        drop(stdin);
        let status = sftp.wait().expect("wait for sftp");
        assert!(status.success(), "sftp: {status}: {}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("sshd's log:\n{}", self.log());
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    listener.local_addr().expect("an address").port()
}

fn must_succeed(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}
