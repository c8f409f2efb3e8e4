//! The I/O priority of a thread. It goes with what a ring is given by that thread, too: a request without a priority of
//! its own takes that of the task that submits it, and the ring's workers share their maker's. Schedulers that care are
//! bfq and, for the classes, mq-deadline; `none` and kyber do not.
//!
//! # Safety
//! Neither rustix nor libc has these calls, so they are made by number. Every argument is an integer: no memory is handed
//! to the kernel.
#![allow(unsafe_code)]

use std::io;

use crate::settings::IoPriority;

// From `include/uapi/linux/ioprio.h`.
const IOPRIO_WHO_PROCESS: libc::c_long = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;
const IOPRIO_CLASS_BE: libc::c_long = 2;
const IOPRIO_CLASS_IDLE: libc::c_long = 3;
/// The least of the best-effort levels.
const LEVEL_LEAST: libc::c_long = 7;

/// Gives the calling thread this priority; [`IoPriority::Normal`] leaves it as it is. Before it makes a ring, so that
/// the ring's workers have it from the start.
///
/// # Errors
/// ENOSYS, EPERM: there is no such call here, or it is forbidden. No capability is needed for either class since
/// Linux 2.6.25.
pub fn set_own(priority: IoPriority) -> io::Result<()> {
    let value = match priority {
        IoPriority::Normal => return Ok(()),
        IoPriority::Low => IOPRIO_CLASS_BE << IOPRIO_CLASS_SHIFT | LEVEL_LEAST,
        IoPriority::Idle => IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT,
    };
    let own: libc::c_long = 0;
    // SAFETY: ioprio_set(2) takes three integers.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, own, value) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (libc::c_long, libc::c_long) {
        let own: libc::c_long = 0;
        // SAFETY: ioprio_get(2) takes two integers.
        let value = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, own) };
        assert!(value >= 0, "{}", io::Error::last_os_error());
        let level = value & ((1 << IOPRIO_CLASS_SHIFT) - 1);
        (value >> IOPRIO_CLASS_SHIFT, level)
    }

    #[test]
    fn a_thread_gets_the_priority_that_was_asked_for_and_no_other_thread_does() {
        let before = own();
        for (priority, class) in [
            (IoPriority::Low, IOPRIO_CLASS_BE),
            (IoPriority::Idle, IOPRIO_CLASS_IDLE),
        ] {
            let thread = std::thread::spawn(move || {
                set_own(IoPriority::Normal).unwrap();
                let untouched = own();
                set_own(priority).unwrap();
                (untouched, own())
            });
            let (untouched, (set, level)) = thread.join().unwrap();
            assert_eq!(untouched, before);
            assert_eq!(set, class);
            assert!(priority != IoPriority::Low || level == LEVEL_LEAST);
        }
        assert_eq!(own(), before);
    }
}
