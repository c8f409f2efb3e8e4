//! Processes that have left their process group, and their parent with it (setsid(2), setpgid(2)): found by what the program that
//! started them had in its environment, which all inherit.
//!
//! One that clears its environment, or may not be looked at (another user's), is not found.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, PidfdFlags, Signal};

/// The variable by which they are found.
const VARIABLE: &str = "RINGEST_CHECK_ID";
/// Those that start others faster than they are killed are given up after so long.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// What marks one program and all that it starts.
#[derive(Debug)]
pub struct Brand(String);

impl Brand {
    /// Marks a program that has not been started.
    pub fn mark(command: &mut Command) -> Brand {
        static MARKED: AtomicU64 = AtomicU64::new(0);
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let number = MARKED.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{}-{number}", std::process::id(), since.as_nanos());
        command.env(VARIABLE, &id);
        Brand(format!("{VARIABLE}={id}"))
    }

    /// Kills all that were started since a process that is still there, even if it has ended.
    pub fn kill_strays(&self, since: Pid) -> io::Result<()> {
        let began = Instant::now();
        // What one of them has started meanwhile has its mark, too.
        while self.kill_once(since)? && began.elapsed() < KILL_TIMEOUT {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Kills those that are there. Whether there were any.
    fn kill_once(&self, since: Pid) -> io::Result<bool> {
        let mut found = false;
        for pid in pids_since(since)? {
            // They are killed by a descriptor: their number may be another's by then.
            let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            if self.is_on(pid) {
                found |= rustix::process::pidfd_send_signal(process, Signal::KILL).is_ok();
            }
        }
        Ok(found)
    }

    /// Whether a process has it. One that has ended has nothing any more.
    fn is_on(&self, pid: Pid) -> bool {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        variables.any(|variable| variable == self.0.as_bytes())
    }
}

/// The processes that may have been started after that one: numbers are given out upwards, until they begin again.
fn pids_since(since: Pid) -> io::Result<Vec<Pid>> {
    let since = since.as_raw_pid();
    let newest = fs::read_to_string("/proc/loadavg")?;
    let newest = newest.split_ascii_whitespace().next_back();
    let newest = newest.and_then(|newest| newest.parse().ok()).unwrap_or(0);
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = pid_of(&entry?.file_name());
        pids.extend(pid.filter(|pid| newest < since || pid.as_raw_pid() > since));
    }
    Ok(pids)
}

fn pid_of(name: &OsStr) -> Option<Pid> {
    let digits = str::from_utf8(name.as_bytes()).ok()?;
    Pid::from_raw(digits.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_the_mark_is_killed() {
        let sleep = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            command
        };
        let (mut marked, mut other) = (sleep(), sleep());
        let brand = Brand::mark(&mut marked);
        Brand::mark(&mut other);
        let since = rustix::process::getpid();
        let (mut marked, mut other) = (marked.spawn().unwrap(), other.spawn().unwrap());
        assert!(brand.is_on(Pid::from_child(&marked)) && !brand.is_on(Pid::from_child(&other)));
        brand.kill_strays(since).unwrap();
        assert_eq!(marked.wait().unwrap().code(), None);
        assert_eq!(other.try_wait().unwrap(), None, "it lives on");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
