//! Processes that have left their process group, and their parent with it (setsid(2), setpgid(2)): found by what the program that
//! started them had in its environment, which all inherit.
//!
//! One that clears its environment, or may not be looked at (another user's), is not found.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, PidfdFlags, Signal};

/// The variable by which they are found.
pub const VARIABLE: &str = "RINGEST_CHECK_ID";
/// So often it is looked in a row whether one that has no environment gets one.
const LOOKS_MAX: u32 = 3;
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

    /// Kills all that were started since a process that is still there, even if it has ended. Where `/proc` cannot be looked at, none.
    pub fn kill_strays(&self, since: Pid) {
        let began = Instant::now();
        let mut looks = LOOKS_MAX;
        // What one of them has started meanwhile has its mark, too.
        while began.elapsed() < KILL_TIMEOUT && looks > 0 {
            match self.kill_once(since) {
                Found::None => return,
                Found::Some => looks = LOOKS_MAX,
                Found::Unknown => looks -= 1,
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn kill_once(&self, since: Pid) -> Found {
        let mut found = Found::None;
        for pid in pids_since(since) {
            // They are killed by a descriptor: their number may be another's by then.
            let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            let is_one = self.is_on(pid);
            if is_one == Found::Some {
                let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
            }
            found = found.max(is_one);
        }
        found
    }

    /// Whether a process has it.
    fn is_on(&self, pid: Pid) -> Found {
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
            return Found::None;
        };
        let mut variables = environment.split(|byte| *byte == 0);
        match variables.any(|variable| variable == self.0.as_bytes()) {
            true => Found::Some,
            // Also of one that has ended, and of a thread of the kernel.
            false if environment.is_empty() => Found::Unknown,
            false => Found::None,
        }
    }
}

/// What a look at processes has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    None,
    /// One that may have been about to become another program: it has no environment for a moment.
    Unknown,
    /// One with the mark.
    Some,
}

/// The processes that may have been started after that one: numbers are given out upwards, until they begin again.
fn pids_since(since: Pid) -> Vec<Pid> {
    let since = since.as_raw_pid();
    let newest = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let newest = newest.split_ascii_whitespace().next_back();
    let newest = newest.and_then(|newest| newest.parse().ok()).unwrap_or(0);
    let listed = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = listed.filter_map(|entry| pid_of(&entry.file_name()));
    pids.filter(|pid| newest < since || pid.as_raw_pid() > since)
        .collect()
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
        for (child, found) in [(&marked, Found::Some), (&other, Found::None)] {
            // A program that has just begun may have no environment yet.
            let pid = Pid::from_child(child);
            while brand.is_on(pid) == Found::Unknown {
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(brand.is_on(pid), found);
        }
        brand.kill_strays(since);
        assert_eq!(marked.wait().unwrap().code(), None);
        assert_eq!(other.try_wait().unwrap(), None, "it lives on");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
