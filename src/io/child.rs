//! A child process that ends with who started it, however that ends, and inherits no limit that was raised.
//!
//! # Safety
//! Between fork and exec only what is async-signal-safe may be done (signal-safety(7)): prctl(2), getppid(2) and prlimit(2) are
//! calls without memory of ours, and nothing is allocated.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Signal, setrlimit};

use super::descriptors;

/// Has the child get that signal when the calling thread, which must be the one to start it, ends or is killed.
pub fn end_with_this_thread(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    // SAFETY: see the head of this file.
    unsafe { command.pre_exec(move || end_with(parent, signal)) };
}

/// Gives the child the limit on descriptors that there was before it was raised: some programs close all that there may be.
pub fn with_former_limit(command: &mut Command) {
    let Some(limit) = descriptors::former_limit() else {
        return;
    };
    // SAFETY: see the head of this file.
    unsafe { command.pre_exec(move || Ok(setrlimit(Resource::Nofile, limit)?)) };
}

fn end_with(parent: Pid, signal: Signal) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(signal))?;
    match rustix::process::getppid() == Some(parent) {
        true => Ok(()),
        // It was killed already.
        false => Err(Errno::SRCH.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_child_has_the_limit_that_there_was() {
        let limit = || rustix::process::getrlimit(Resource::Nofile);
        assert_eq!(
            descriptors::raise_limit(),
            limit().maximum.unwrap_or(u64::from(u32::MAX))
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -Sn"]);
        with_former_limit(&mut command);
        let said = command.output().expect("sh(1)").stdout;
        let said = String::from_utf8_lossy(&said).trim().parse().ok();
        assert_eq!(said, descriptors::former_limit().expect("raised").current);
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let starter = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("1000");
            end_with_this_thread(&mut command, Signal::TERM);
            command.spawn().expect("sleep(1)")
        });
        let mut child = starter.join().expect("started");
        let ended = child.wait().expect("waited for");
        assert_eq!(ended.signal(), Some(Signal::TERM.as_raw()));
    }
}
