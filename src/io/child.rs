//! A child process that ends with who started it, however that ends, and inherits nothing that it was not given: no limit that was
//! raised, no descriptor, no ambient capability.
//!
//! # Safety
//! Between fork and exec only what is async-signal-safe may be done (signal-safety(7)): prctl(2), getppid(2), prlimit(2),
//! close_range(2), fcntl(2), openat(2) and getdents64(2) are calls without memory of ours but for a buffer on the stack, and nothing
//! is allocated. A number that is taken for a descriptor may be none any more: then fcntl(2) says EBADF, and changes nothing.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, RawDir};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, Resource, Signal, setrlimit};
use rustix::thread::{CapabilitySet, configure_capability_in_ambient_set};

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

/// Leaves the child no descriptors but 0 to 2 and, under its own number, `handed`, which has to stay open until the child is started.
pub fn inherit_only(command: &mut Command, handed: Option<RawFd>) {
    // SAFETY: see the head of this file.
    unsafe {
        command.pre_exec(move || {
            // Not closed: through one of them std tells that there is no such program.
            close_all_on_exec().or_else(|_| close_each_on_exec())?;
            handed.map_or(Ok(()), |handed| set_flags(handed, FdFlags::empty()))
        })
    };
}

/// Takes from the child the ambient capabilities of this process, but CAP_DAC_READ_SEARCH: without it, it might not be able to open
/// what it is handed.
pub fn without_capabilities(command: &mut Command) {
    // SAFETY: see the head of this file.
    unsafe { command.pre_exec(lower_capabilities) };
}

/// Keeps from children what is open of these files: libraries open files, too.
///
/// # Errors
/// Of looking at `/proc/self/fd`.
pub fn close_on_exec(files: &[&Path]) -> io::Result<()> {
    let identity = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    let wanted: Vec<_> = files.iter().filter_map(|path| identity(path)).collect();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        if identity(&entry.path()).is_some_and(|found| wanted.contains(&found))
            && let Some(number) = entry.file_name().to_str().and_then(|it| it.parse().ok())
        {
            set_flags(number, FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: it takes numbers, and marks descriptors of this process.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Marks every descriptor close-on-exec where the kernel (before 5.11) or a filter of system calls has no close_range(2).
fn close_each_on_exec() -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let list = rustix::fs::openat(CWD, c"/proc/self/fd", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(list, &mut buffer);
    while let Some(entry) = entries.next() {
        let number = entry?
            .file_name()
            .to_str()
            .ok()
            .and_then(|it| it.parse().ok());
        if let Some(number) = number.filter(|number| *number > 2) {
            set_flags(number, FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

fn set_flags(number: RawFd, flags: FdFlags) -> io::Result<()> {
    // SAFETY: it is used for this one call, which does no harm if it is closed: see the head of this file.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    match rustix::io::fcntl_setfd(descriptor, flags) {
        Err(Errno::BADF) if flags.contains(FdFlags::CLOEXEC) => Ok(()),
        set => Ok(set?),
    }
}

fn lower_capabilities() -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if capability == CapabilitySet::DAC_READ_SEARCH {
            continue;
        }
        match configure_capability_in_ambient_set(capability, false) {
            Ok(()) => {}
            // There are no more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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

    /// Descriptors of a shell beside 0 to 2 and the one that `ls` opens itself, as numbers.
    fn open_in(command: &mut Command) -> Vec<String> {
        command.args(["-c", "ls /proc/self/fd"]);
        let said = command.output().expect("sh(1)").stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        let numbers = said.lines().filter(|it| !["0", "1", "2"].contains(it));
        // The last one lists the directory.
        let mut numbers: Vec<_> = numbers.map(String::from).collect();
        numbers.sort_by_key(|it| it.parse::<RawFd>().unwrap_or(0));
        numbers
    }

    #[test]
    fn a_child_has_no_descriptors_but_the_one_that_it_is_handed() {
        use std::os::fd::AsRawFd;
        let file = tempfile::NamedTempFile::new().expect("made");
        let leaking = || {
            let leaked = rustix::io::dup(file.as_file()).expect("dup");
            let flags = rustix::io::fcntl_getfd(&leaked).expect("fcntl");
            assert!(!flags.contains(FdFlags::CLOEXEC));
            leaked
        };
        let leaked = leaking();
        let is_in = |open: &[String], number: RawFd| open.contains(&number.to_string());
        let mut command = Command::new("/bin/sh");
        assert!(is_in(&open_in(&mut command), leaked.as_raw_fd()));

        let handed = file.as_file().as_raw_fd();
        let mut command = Command::new("/bin/sh");
        inherit_only(&mut command, Some(handed));
        let open = open_in(&mut command);
        assert!(is_in(&open, handed) && open.len() == 2, "{open:?}");
        // Where there is no close_range(2).
        let mut command = Command::new("/bin/sh");
        // SAFETY: see the head of this file.
        unsafe { command.pre_exec(close_each_on_exec) };
        assert_eq!(open_in(&mut command).len(), 1);
        // A program that is missing is told of all the same.
        let mut command = Command::new("/nowhere/at/all");
        inherit_only(&mut command, None);
        let error = command.spawn().expect_err("there is none");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);

        let mut command = Command::new("/bin/sh");
        close_on_exec(&[file.path()]).expect("marked");
        assert!(!is_in(&open_in(&mut command), leaked.as_raw_fd()));
    }

    #[test]
    fn a_child_has_no_ambient_capability_but_the_one_to_read() {
        if !rustix::process::geteuid().is_root() {
            return; // It has none to begin with.
        }
        let lease = CapabilitySet::LEASE;
        let read = CapabilitySet::DAC_READ_SEARCH;
        // Ambient capabilities are those of a thread.
        let said = std::thread::spawn(move || {
            let mut sets = rustix::thread::capabilities(None).expect("capget");
            sets.inheritable |= lease | read;
            rustix::thread::set_capabilities(None, sets).expect("capset");
            for capability in [lease, read] {
                configure_capability_in_ambient_set(capability, true).expect("prctl");
            }
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "grep CapAmb: /proc/self/status"]);
            without_capabilities(&mut command);
            command.output().expect("sh(1)").stdout
        });
        let said = said.join().expect("ended");
        let said = String::from_utf8_lossy(&said);
        let ambient = said.split_whitespace().last().unwrap_or_default();
        assert_eq!(u64::from_str_radix(ambient, 16), Ok(read.bits()), "{said}");
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
