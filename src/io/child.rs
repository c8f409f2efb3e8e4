//! A child process that ends with who started it, however that ends.
//!
//! # Safety
//! Between fork and exec only what is async-signal-safe may be done (signal-safety(7)): prctl(2) and getppid(2) are calls
//! without memory of ours, and nothing is allocated.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

/// Has the child get that signal when the calling thread, which must be the one to start it, ends or is killed.
pub fn end_with_this_thread(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    // SAFETY: see the head of this file.
    unsafe { command.pre_exec(move || end_with(parent, signal)) };
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
