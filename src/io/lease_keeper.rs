//! Gives leases back as soon as a writer knocks, so that he does not wait for us.
//!
//! A writer that opens a leased file blocks, and this process gets a signal with the descriptor. The handler passes the
//! descriptor number to a thread through a pipe; the thread releases the lease. Whoever works with the file finds out
//! with [`lease::still_held`]. A number may have been reused by then: only leases that are being broken are released.
//!
//! # Safety
//! The handler makes one `write` to a descriptor that is never closed, and touches an atomic: async-signal-safe. It
//! reads `si_fd` at the offset that `siginfo_t` has on 64-bit Linux (`include/uapi/asm-generic/siginfo.h`:
//! three ints, padding, `long si_band`, `int si_fd`).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::pipe::PipeFlags;

use super::lease;

const SI_FD_OFFSET: usize = 24;
/// Sent through the pipe in place of a descriptor: look at all of them.
const SWEEP: RawFd = -1;

/// Starts the keeper. Returns the signal to ask for with each lease. It runs until the process ends.
pub fn start() -> io::Result<libc::c_int> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let reader: OwnedFd = reader;
    let writer: &'static OwnedFd = Box::leak(Box::new(writer));
    rustix::io::ioctl_fionbio(writer, true)?;
    let swamped = Arc::new(AtomicBool::new(false));

    let signal = libc::SIGRTMIN() + 4;
    let pass_on = move |fd: RawFd, swamped: &AtomicBool| {
        // A full pipe: the thread will have to look at every descriptor.
        if rustix::io::write(writer, &fd.to_ne_bytes()).is_err() {
            swamped.store(true, Ordering::Release);
        }
    };
    let by_signal = {
        let swamped = Arc::clone(&swamped);
        move |info: &libc::siginfo_t| {
            // SAFETY: this signal is only ever raised with the layout of SIGPOLL (see above), and siginfo_t is 128
            // bytes long whatever it holds.
            let fd = unsafe {
                std::ptr::from_ref(info)
                    .cast::<u8>()
                    .add(SI_FD_OFFSET)
                    .cast::<RawFd>()
                    .read()
            };
            pass_on(fd, &swamped);
        }
    };
    let by_overflow = {
        let swamped = Arc::clone(&swamped);
        // The kernel falls back to SIGIO, without a descriptor, when its signal queue is full.
        move |_: &libc::siginfo_t| pass_on(SWEEP, &swamped)
    };
    // SAFETY: both actions are async-signal-safe, see the head of this module.
    unsafe {
        signal_hook_registry::register_sigaction(signal, by_signal)?;
        signal_hook_registry::register_sigaction(libc::SIGIO, by_overflow)?;
    }
    std::thread::Builder::new()
        .name("leases".into())
        .spawn(move || keep(&reader, &swamped))?;
    Ok(signal)
}

fn keep(reader: &OwnedFd, swamped: &AtomicBool) {
    let mut bytes = [0; 512 * size_of::<RawFd>()];
    loop {
        let read = match rustix::io::read(reader, &mut bytes[..]) {
            Ok(0) => return,
            Ok(read) => read,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        let mut sweep = swamped.swap(false, Ordering::AcqRel);
        for fd in bytes[..read].as_chunks().0 {
            match RawFd::from_ne_bytes(*fd) {
                SWEEP => sweep = true,
                fd => release_if_broken(fd),
            }
        }
        if sweep {
            sweep_all();
        }
    }
}

/// Looks at every open descriptor.
fn sweep_all() {
    let Ok(list) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    for entry in list.flatten() {
        if let Some(fd) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            release_if_broken(fd);
        }
    }
}

fn release_if_broken(fd: RawFd) {
    if fd < 0 {
        return;
    }
    // SAFETY: the number may name another file by now, or none. Both calls below only ask for and give up a lease,
    // fail without effect on anything else, and a lease that is whole is left alone.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    if !lease::still_held(borrowed) {
        let _ = lease::release(borrowed);
    }
    debug_assert_eq!(borrowed.as_raw_fd(), fd);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    #[test]
    fn a_writer_does_not_wait_and_the_holder_learns_of_it() {
        let signal = start().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "before").unwrap();
        let held = std::fs::File::open(&path).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while lease::set_read_lease(held.as_fd(), signal).is_err() {
            assert!(Instant::now() < deadline, "no lease");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(lease::still_held(held.as_fd()));
        // Blocks until the lease is given back; the kernel's own limit is 45 seconds.
        let began = Instant::now();
        std::fs::write(&path, "after").unwrap();
        assert!(began.elapsed() < Duration::from_secs(20));
        assert!(!lease::still_held(held.as_fd()));
    }
}
