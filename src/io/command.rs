//! Runs a program that may hang, start others or write without end: for a limited time, and keeping a limited part of what it writes.
//!
//! The program starts with nothing of this process but what it is given: a descriptor, and what the caller says of environment and working
//! directory.
//!
//! The program leads a process group of its own. When it has ended, or has to, all that is in the group is killed, and what has left
//! it ([`strays`](super::strays)); the program itself is killed, too, when the thread that started it ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::child;
use super::strays::Brand;

/// Bytes of what it writes that are kept: the first.
pub const KEPT_BYTES: usize = 2304;
/// A program that writes more bytes than this is killed.
pub const WRITTEN_BYTES_MAX: u64 = 1 << 20;
/// How long a program that was killed may take to end. Who may not be killed, or hangs in the kernel, is left to itself.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Who ends a service may have told its programs first: what such a one says is not believed before so much time.
const TOLD_TO_END_REST: Duration = Duration::from_millis(300);
/// How often it is looked whether the run is to be given up.
const GIVE_UP_POLL: Duration = Duration::from_millis(100);

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with that exit code.
    Code(i32),
    /// By that signal, which was not ours.
    Signal(i32),
    /// It took too long, and was killed.
    TimedOut,
    /// It wrote more than [`WRITTEN_BYTES_MAX`], and was killed.
    Flooded,
    /// Whoever wanted to know does not any more, and it was killed.
    GivenUp,
}

/// A run that ended.
#[derive(Debug)]
pub struct Ran {
    /// How.
    pub end: End,
    /// The first [`KEPT_BYTES`] of what it wrote, to stdout or stderr.
    pub written: Vec<u8>,
}

/// Runs a command with nothing on its stdin and `handed` as its only further descriptor, under the number that it has here, until it
/// ends, `timeout` is over or `give_up` is set.
///
/// # Errors
/// It could not be started or watched. What was started is killed.
pub fn run(
    mut command: Command,
    handed: BorrowedFd<'_>,
    timeout: Duration,
    give_up: &AtomicBool,
) -> io::Result<Ran> {
    let deadline = Instant::now() + timeout;
    let (output, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&output, true)?;
    command
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input)
        .process_group(0);
    child::end_with_this_thread(&mut command, Signal::KILL);
    child::with_former_limit(&mut command);
    child::inherit_only(&mut command, Some(handed.as_raw_fd()));
    child::without_capabilities(&mut command);
    let brand = Brand::mark(&mut command);
    let leader = command.spawn()?;
    let pid = Pid::from_child(&leader);
    let group = Group {
        leader: Some(leader),
        brand,
    };
    // The writing ends are the child's alone from now on.
    drop(command);
    let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut written = Written::default();
    let mut open = true;
    let end = loop {
        let now = Instant::now();
        if give_up.load(Ordering::Relaxed) {
            break Some(End::GivenUp);
        }
        if now >= deadline {
            break Some(End::TimedOut);
        }
        let has_ended = wait(
            &ended,
            open.then_some(&output),
            GIVE_UP_POLL.min(deadline - now),
        )?;
        open = open && written.take(&output)?;
        if written.bytes > WRITTEN_BYTES_MAX {
            break Some(End::Flooded);
        }
        if has_ended {
            break None;
        }
    };
    let status = group.end(&ended)?;
    let end = end.or(status.map(ended_by)).unwrap_or(End::TimedOut);
    if was_told_to_end(end) {
        let until = Instant::now() + TOLD_TO_END_REST;
        while !give_up.load(Ordering::Relaxed) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // What it said last may be because it was ended, too.
    let end = match give_up.load(Ordering::Relaxed) {
        true => End::GivenUp,
        false => end,
    };
    Ok(Ran {
        end,
        written: written.first,
    })
}

/// Whether it may have been ended by somebody else than us; shells say 128 and the number of the signal.
fn was_told_to_end(end: End) -> bool {
    let signals = [Signal::HUP, Signal::INT, Signal::TERM].map(Signal::as_raw);
    match end {
        End::Signal(signal) => signals.contains(&signal),
        End::Code(code) => signals.contains(&(code - 128)),
        _ => false,
    }
}

fn ended_by(status: ExitStatus) -> End {
    match status.code() {
        Some(code) => End::Code(code),
        None => End::Signal(status.signal().unwrap_or_default()),
    }
}

/// Waits until the process has ended, which is told, or has written something.
fn wait(ended: &OwnedFd, output: Option<&OwnedFd>, most: Duration) -> io::Result<bool> {
    let ended = ended.as_fd();
    let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
    if let Some(output) = output {
        fds.push(PollFd::new(output, PollFlags::IN));
    }
    let most = Timespec {
        tv_sec: most.as_secs() as i64,
        tv_nsec: most.subsec_nanos().into(),
    };
    match rustix::event::poll(&mut fds, Some(&most)) {
        Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What was written so far.
#[derive(Default)]
struct Written {
    first: Vec<u8>,
    bytes: u64,
}

impl Written {
    /// Takes what is there. False: nobody can write any more.
    fn take(&mut self, output: &OwnedFd) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        while self.bytes <= WRITTEN_BYTES_MAX {
            match rustix::io::read(output, &mut buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    self.bytes += read as u64;
                    let room = KEPT_BYTES - self.first.len();
                    self.first.extend(&buffer[..read.min(room)]);
                }
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// A process and all that it started. Killed when it is dropped.
struct Group {
    /// Until it has been waited for: then its number may be another's.
    leader: Option<Child>,
    brand: Brand,
}

impl Group {
    /// Kills all of it, and waits for its leader: until then its number is nobody else's. `None`: it does not end.
    fn end(mut self, ended: &OwnedFd) -> io::Result<Option<ExitStatus>> {
        self.kill();
        let deadline = Instant::now() + KILL_TIMEOUT;
        while !wait(
            ended,
            None,
            deadline.saturating_duration_since(Instant::now()),
        )? {
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
        let mut leader = self.leader.take();
        leader.as_mut().map(Child::wait).transpose()
    }

    fn kill(&self) {
        if let Some(leader) = &self.leader {
            let leader = Pid::from_child(leader);
            // An error: only the leader is left, and it has ended; or what is left is another user's.
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
            self.brand.kill_strays(leader);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        if let Some(mut leader) = self.leader.take()
            && !matches!(leader.try_wait(), Ok(Some(_)))
        {
            // Nobody else takes note of its end.
            std::thread::spawn(move || leader.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> Ran {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        start(command, timeout, &AtomicBool::new(false)).expect("it runs")
    }

    fn start(command: Command, timeout: Duration, give_up: &AtomicBool) -> io::Result<Ran> {
        let file = tempfile::tempfile()?;
        run(command, file.as_fd(), timeout, give_up)
    }

    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(200);

    /// Whether a process is there, and no zombie.
    fn lives(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    fn is_gone(pid: &str) {
        // It is killed at once, but takes a moment to end.
        let began = Instant::now();
        while lives(pid) {
            assert!(began.elapsed() < Duration::from_secs(60), "{pid} lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn its_code_and_the_beginning_of_what_it_writes_are_told() {
        let ran = shell("echo one; echo two >&2; exit 3", LONG);
        assert_eq!(
            (ran.end, &ran.written[..]),
            (End::Code(3), &b"one\ntwo\n"[..])
        );
        let ran = shell("kill -SEGV $$", LONG);
        assert_eq!(ran.end, End::Signal(Signal::SEGV.as_raw()));
        let ran = shell("head -c 100000 /dev/zero | tr '\\0' x", LONG);
        assert_eq!(
            (ran.end, ran.written),
            (End::Code(0), vec![b'x'; KEPT_BYTES])
        );
        let ran = shell("cat", LONG);
        assert_eq!((ran.end, ran.written.len()), (End::Code(0), 0));
    }

    #[test]
    fn one_that_hangs_is_killed_with_all_that_it_started() {
        let ran = shell(
            "sleep 1000 & echo $!; trap '' TERM INT; wait; sleep 1000",
            SHORT,
        );
        assert_eq!(ran.end, End::TimedOut);
        is_gone(&String::from_utf8_lossy(&ran.written));
        // Nobody else has to hang.
        let ran = shell("exec >/dev/null 2>&1; while :; do :; done", SHORT);
        assert_eq!(ran.end, End::TimedOut);
    }

    #[test]
    fn what_it_leaves_behind_is_killed_and_not_waited_for() {
        let ran = shell("sleep 1000 & echo $!; exit 0", LONG);
        assert_eq!(ran.end, End::Code(0));
        is_gone(&String::from_utf8_lossy(&ran.written));
    }

    #[test]
    fn one_that_writes_without_end_is_killed() {
        let ran = shell("yes", LONG);
        assert_eq!((ran.end, ran.written.len()), (End::Flooded, KEPT_BYTES));
    }

    #[test]
    fn what_has_left_the_group_is_killed_and_not_waited_for() {
        let leave = "pid=$(setsid sh -c 'echo $$; exec sleep 1000 >/dev/null' &); echo $pid";
        for (then, end) in [("exit 0", End::Code(0)), ("exec yes", End::Flooded)] {
            let ran = shell(&format!("{leave}; {then}"), LONG);
            assert_eq!(ran.end, end);
            let written = String::from_utf8_lossy(&ran.written);
            is_gone(written.lines().next().unwrap());
        }
        // In a group of its own, and nobody's child any more.
        let ran = shell("set -m; (sleep 1000 & echo $!); exit 3", LONG);
        assert_eq!(ran.end, End::Code(3));
        is_gone(&String::from_utf8_lossy(&ran.written));
    }

    #[test]
    fn a_run_is_given_up() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let ran = start(command, LONG, &AtomicBool::new(true)).unwrap();
        assert_eq!(ran.end, End::GivenUp);
    }

    #[test]
    fn who_is_told_to_end_with_the_service_has_said_nothing() {
        for script in ["kill -TERM $$", "exit 143", "kill -INT $$"] {
            let give_up = std::sync::Arc::new(AtomicBool::new(false));
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            let stop = std::sync::Arc::clone(&give_up);
            // Whoever stops the service has told the program first.
            let stopper = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                stop.store(true, Ordering::Relaxed);
            });
            let ran = start(command, LONG, &give_up).unwrap();
            stopper.join().unwrap();
            assert_eq!(ran.end, End::GivenUp, "{script}");
        }
        assert_eq!(shell("exit 143", LONG).end, End::Code(143));
    }

    #[test]
    fn what_cannot_be_started_is_an_error() {
        let missing = start(
            Command::new("/nowhere/at/all"),
            LONG,
            &AtomicBool::new(false),
        );
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
