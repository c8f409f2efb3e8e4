//! What the kernel reports of the staging directories, through inotify.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::io::Errno;

use crate::io::open;

use super::settle::SeenBy;

/// Room for the events of one read.
const BUFFER_BYTES: usize = 64 << 10;

/// What was reported.
#[derive(Debug)]
pub enum Report {
    /// Something about a name.
    Name {
        /// Index of the input.
        input: usize,
        /// Path beneath the input.
        path: PathBuf,
        /// What.
        by: SeenBy,
        /// Whether it is a directory.
        directory: bool,
    },
    /// Reports were lost: scan.
    Lost,
    /// A directory that was watched has another place, perhaps outside of all inputs.
    Moved,
    /// An input directory itself was moved or removed.
    RootGone,
}

/// The watches on all inputs.
pub struct Watcher {
    inotify: Inotify,
    directories: HashMap<WatchDescriptor, (usize, Arc<Path>)>,
    buffer: Vec<u8>,
}

impl Watcher {
    /// A watcher without watches.
    pub fn new() -> io::Result<Watcher> {
        Ok(Watcher {
            inotify: Inotify::init()?,
            directories: HashMap::new(),
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Watches the directory behind `fd`, which is `path` beneath an input. By descriptor, so that a directory
    /// swapped for a symbolic link is not followed.
    pub fn watch(&mut self, input: usize, path: &Path, fd: impl AsFd) -> io::Result<()> {
        let mut mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::CREATE
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        if path.as_os_str().is_empty() {
            mask |= WatchMask::DELETE_SELF;
        }
        let added = self.inotify.watches().add(open::proc_path(fd), mask);
        let descriptor = added.map_err(|error| match Errno::from_io_error(&error) {
            // The kernel's words are those of a full disk.
            Some(Errno::NOSPC) => io::Error::new(
                error.kind(),
                "there are no watches left, raise sysctl fs.inotify.max_user_watches",
            ),
            _ => error,
        })?;
        // The same directory under a new name has the same descriptor.
        self.directories.insert(descriptor, (input, path.into()));
        Ok(())
    }

    /// Reads what there is, without waiting. False when there was nothing.
    pub fn read(&mut self, reports: &mut Vec<Report>) -> io::Result<bool> {
        let events = match self.inotify.read_events(&mut self.buffer) {
            Ok(events) => events,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut any = false;
        let mut moved = Vec::new();
        for event in events {
            any = true;
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                reports.push(Report::Lost);
                continue;
            }
            let Some((input, directory)) = self.directories.get(&event.wd) else {
                continue;
            };
            let input = *input;
            if event.mask.contains(EventMask::IGNORED) {
                self.directories.remove(&event.wd);
                continue;
            }
            let of_itself = EventMask::DELETE_SELF | EventMask::MOVE_SELF;
            if event.mask.intersects(of_itself) && directory.as_os_str().is_empty() {
                reports.push(Report::RootGone);
                continue;
            }
            if event.mask.contains(EventMask::MOVE_SELF) {
                moved.push((input, Arc::clone(directory)));
                reports.push(Report::Moved);
                continue;
            }
            let Some(name) = event.name else { continue };
            let finished = EventMask::CLOSE_WRITE | EventMask::MOVED_TO;
            reports.push(Report::Name {
                input,
                path: directory.join(OsString::from(name)),
                by: if event.mask.intersects(finished) {
                    SeenBy::Finished
                } else {
                    SeenBy::Created
                },
                directory: event.mask.contains(EventMask::ISDIR),
            });
        }
        for (input, path) in moved {
            self.unwatch(input, &path);
        }
        Ok(any)
    }

    /// Ends the watches on a directory and those beneath it: what they would report has another path by now, or none.
    fn unwatch(&mut self, input: usize, path: &Path) {
        let mut watches = self.inotify.watches();
        self.directories.retain(|descriptor, (of, directory)| {
            let stays = *of != input || !directory.starts_with(path);
            if !stays {
                // It may be gone already.
                let _ = watches.remove(descriptor.clone());
            }
            stays
        });
    }

    /// What to poll for reports.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
