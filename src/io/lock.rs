//! Makes two instances on the same directories impossible.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::trial::mutants;

/// A killed process can hold its locks for some milliseconds, while its ring is torn down.
const PATIENCE: Duration = Duration::from_secs(1);
const RETRY_REST: Duration = Duration::from_millis(10);

/// Opens a directory and locks it, for as long as the descriptor is open. `Ok(None)`: somebody else has it.
pub fn lock_dir(path: &Path) -> io::Result<Option<OwnedFd>> {
    let dir = super::open::root_dir(path)?;
    Ok(lock(&dir)?.then_some(dir))
}

/// Locks what is open, for as long as it is. False: somebody else has it.
pub fn lock(fd: impl AsFd) -> io::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if mutants::on("locks_ignored") => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(RETRY_REST),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once_and_free_again_when_it_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_dir(dir.path()).unwrap();
        assert!(first.is_some());
        assert!(lock_dir(dir.path()).unwrap().is_none());
        drop(first);
        assert!(lock_dir(dir.path()).unwrap().is_some());
    }
}
