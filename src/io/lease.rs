//! Read leases: while one is held, no process has the file open for writing, and one that tries waits
//! until the lease is given back or `/proc/sys/fs/lease-break-time` seconds are over.
//!
//! # Safety
//! rustix has no leases, so `fcntl` is called by hand. Descriptors are borrowed for the call, and
//! every argument is an integer: no memory is handed to the kernel.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// From `include/uapi/asm-generic/fcntl.h`; the libc crate lacks it.
const F_SETSIG: libc::c_int = 10;

/// Takes a read lease through a descriptor that is open for reading only. A writer that comes sends
/// `signal` to the process with the descriptor in `si_fd`; 0 leaves it at SIGIO, without `si_fd`.
///
/// # Errors
/// EAGAIN: the file is open for writing, or was closed too recently for the kernel to tell; trying
/// again soon can help. EACCES: the file is another user's and CAP_LEASE is missing. EINVAL: the
/// filesystem has no leases.
pub fn set_read_lease(fd: BorrowedFd<'_>, signal: libc::c_int) -> io::Result<()> {
    if signal != 0 {
        fcntl(fd, F_SETSIG, signal)?;
    }
    fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK).map(drop)
}

/// Gives the lease back; a waiting writer goes on.
///
/// # Errors
/// EAGAIN: there was none.
pub fn release(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK).map(drop)
}

/// Whether the lease is held and nobody waits for it: one that is being broken counts as lost.
pub fn still_held(fd: BorrowedFd<'_>) -> bool {
    fcntl(fd, libc::F_GETLEASE, 0).is_ok_and(|lease| lease == libc::F_RDLCK)
}

fn fcntl(fd: BorrowedFd<'_>, command: libc::c_int, argument: libc::c_int) -> io::Result<i32> {
    // SAFETY: the descriptor is open as long as it is borrowed, and the commands used here take an
    // integer or nothing.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, OpenOptions};
    use std::os::fd::AsFd;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn a_lease_is_held_until_it_is_released() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        assert!(!still_held(file.as_fd()));
        set_read_lease(file.as_fd(), libc::SIGURG).unwrap();
        assert!(still_held(file.as_fd()));
        release(file.as_fd()).unwrap();
        assert!(!still_held(file.as_fd()));
        assert_eq!(
            release(file.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::EAGAIN)
        );
    }

    #[test]
    fn a_file_that_is_open_for_writing_gets_no_lease() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let writer = File::create(&path).unwrap();
        let file = File::open(&path).unwrap();
        let refused = set_read_lease(file.as_fd(), libc::SIGURG).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN));
        drop(writer);
        set_read_lease(file.as_fd(), libc::SIGURG).unwrap();
    }

    #[test]
    fn a_lease_that_a_writer_waits_for_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        // SIGURG is ignored by default, which keeps the test alive.
        set_read_lease(file.as_fd(), libc::SIGURG).unwrap();
        let writer = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        assert_eq!(writer.unwrap_err().raw_os_error(), Some(libc::EWOULDBLOCK));
        assert!(!still_held(file.as_fd()));
    }
}
