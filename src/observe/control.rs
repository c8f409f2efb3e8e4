//! The socket through which `status` asks a running instance: connect, read one line, done.

// It removes its own socket, and nothing else.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

/// How long a client that does not read can keep others waiting.
const WRITE_MAX: Duration = Duration::from_secs(1);

/// How long a question waits for its answer.
const ASK_MAX: Duration = Duration::from_secs(2);

/// Most bytes taken as an answer.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Size of `sun_path`, with its NUL (unix(7)).
const SUN_PATH_BYTES: usize = 108;

/// Answers every connection with one line, until dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: Arc<UnixListener>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlSocket {
    /// Listens at `path` and answers each connection with what `answer` returns, and a newline.
    /// A socket left at `path` is replaced: the caller holds the instance lock. Only its owner and
    /// root may connect.
    pub fn bind(path: &Path, answer: impl Fn() -> String + Send + 'static) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = socket()?;
        // On Linux the mode of an unbound socket is what bind(2) creates the file with.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
        let address = Address::of(path)?;
        rustix::net::bind(&socket, &address.name)?;
        rustix::net::listen(&socket, BACKLOG)?;

        let mut control = ControlSocket {
            path: path.to_owned(),
            listener: Arc::new(UnixListener::from(socket)),
            stop: Arc::default(),
            thread: None,
        };
        let listener = Arc::clone(&control.listener);
        let stop = Arc::clone(&control.stop);
        let thread = thread::Builder::new().name("control".into());
        control.thread = Some(thread.spawn(move || serve(&listener, &stop, answer))?);
        Ok(control)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes accept(2), which then returns EINVAL.
        let _ = rustix::net::shutdown(&*self.listener, Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Asks the instance that listens at `path`; `None` if nobody does. Waits 2 s at most.
pub fn ask(path: &Path) -> io::Result<Option<String>> {
    match connect(path) {
        Ok(stream) => {
            let mut answer = String::new();
            stream
                .take(ANSWER_BYTES_MAX)
                .read_to_string(&mut answer)
                .map_err(timed_out)?;
            answer.truncate(answer.trim_end().len());
            // It stopped between accepting and answering.
            Ok((!answer.is_empty()).then_some(answer))
        }
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(error) => Err(timed_out(error.into())),
    }
}

fn connect(path: &Path) -> rustix::io::Result<UnixStream> {
    let address = Address::of(path)?;
    let socket = socket()?;
    // The send timeout is also that of connect(2) when the backlog is full.
    set_socket_timeout(&socket, Timeout::Send, Some(ASK_MAX))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ASK_MAX))?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address.name))?;
    Ok(UnixStream::from(socket))
}

/// A socket's timeout comes as EAGAIN.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => {
            io::Error::new(ErrorKind::TimedOut, "no answer within two seconds")
        }
        _ => error,
    }
}

fn serve(listener: &UnixListener, stop: &AtomicBool, answer: impl Fn() -> String) {
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match accepted {
            Ok((stream, _)) => {
                let mut line = answer();
                line.push('\n');
                // A client that went away, or does not read, has no use for the error.
                let _ = send(stream, line.as_bytes());
            }
            // Out of descriptors or memory: the connection waits in the backlog.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Writes everything within [`WRITE_MAX`] in all: a socket's own timeout is for each write(2).
fn send(mut stream: UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + WRITE_MAX;
    while !bytes.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        stream.set_write_timeout(Some(left))?; // Refuses zero: the time is up.
        let written = stream.write(bytes)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "something that is not a socket is in the way",
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// The address of a path. One that `sun_path` cannot hold is reached through its directory's
/// descriptor, which stays open as long as the address is used.
struct Address {
    name: SocketAddrUnix,
    _directory: Option<OwnedFd>,
}

impl Address {
    fn of(path: &Path) -> rustix::io::Result<Address> {
        if path.as_os_str().len() < SUN_PATH_BYTES {
            return Ok(Address {
                name: SocketAddrUnix::new(path)?,
                _directory: None,
            });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::NAMETOOLONG);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, parent, flags, Mode::empty())?;
        let short = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name);
        Ok(Address {
            name: SocketAddrUnix::new(&short)?,
            _directory: Some(directory),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn here() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        (directory, path)
    }

    #[test]
    fn a_question_gets_the_answer_of_the_moment() {
        let (_directory, path) = here();
        let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counter = Arc::clone(&asked);
        let answer = move || {
            format!(
                r#"{{"asked":{}}}"#,
                counter.fetch_add(1, Ordering::Relaxed) + 1
            )
        };
        let control = ControlSocket::bind(&path, answer).expect("bind");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{mode:o}");
        assert_eq!(ask(&path).expect("ask").as_deref(), Some(r#"{"asked":1}"#));
        assert_eq!(ask(&path).expect("ask").as_deref(), Some(r#"{"asked":2}"#));
        drop(control);
        assert!(!path.exists(), "the socket is removed");
        assert_eq!(ask(&path).expect("ask"), None);
    }

    #[test]
    fn a_path_longer_than_sun_path_works_too() {
        let (directory, _) = here();
        let deep = directory.path().join("d".repeat(200)).join("e".repeat(200));
        fs::create_dir_all(&deep).expect("directories");
        let path = deep.join("control.sock");
        assert_eq!(ask(&path).expect("ask"), None);
        let control = ControlSocket::bind(&path, || "{}".into()).expect("bind");
        assert_eq!(ask(&path).expect("ask").as_deref(), Some("{}"));
        drop(control);
        assert!(!path.exists());
        assert_eq!(ask(&deep.join("gone/control.sock")).expect("ask"), None);
    }

    #[test]
    fn a_stale_socket_is_nobody_and_is_replaced() {
        let (_directory, path) = here();
        drop(UnixListener::bind(&path).expect("bind"));
        assert!(path.exists(), "left behind, as by a killed process");
        assert_eq!(ask(&path).expect("ask"), None);
        let _control = ControlSocket::bind(&path, || "{}".into()).expect("bind");
        assert_eq!(ask(&path).expect("ask").as_deref(), Some("{}"));
    }

    #[test]
    fn a_file_in_the_way_is_not_removed() {
        let (_directory, path) = here();
        fs::write(&path, "mine").expect("write");
        let error = ControlSocket::bind(&path, || "{}".into()).expect_err("in the way");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("read"), b"mine");
    }

    #[test]
    fn a_client_that_never_reads_does_not_block_others_for_long() {
        let (_directory, path) = here();
        let long = "x".repeat(1 << 20);
        let _control = ControlSocket::bind(&path, move || long.clone()).expect("bind");
        let _silent = UnixStream::connect(&path).expect("connect");
        let start = Instant::now();
        assert_eq!(
            ask(&path).expect("ask").map(|answer| answer.len()),
            Some(1 << 20)
        );
        assert!(start.elapsed() < ASK_MAX);
    }

    #[test]
    fn an_instance_that_does_not_answer_is_an_error_after_two_seconds() {
        let (_directory, path) = here();
        let _mute = UnixListener::bind(&path).expect("bind");
        let error = ask(&path).expect_err("no answer");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
