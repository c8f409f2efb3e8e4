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

/// Bytes of the paths of all directories that are watched.
const PATHS_MAX: usize = 64 << 20;

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
    Moved {
        /// Index of the input.
        input: usize,
    },
    /// An input directory itself was moved or removed.
    RootGone,
}

/// The watches on all inputs.
pub struct Watcher {
    inotify: Inotify,
    directories: HashMap<WatchDescriptor, (usize, Arc<Path>)>,
    /// Of each input.
    held: Vec<Held>,
    buffer: Vec<u8>,
}

/// What the watches of one input take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    watches: usize,
    /// Of their paths.
    bytes: usize,
}

impl Watcher {
    /// A watcher of so many inputs, without watches.
    pub fn new(inputs: usize) -> io::Result<Watcher> {
        Ok(Watcher {
            inotify: Inotify::init()?,
            directories: HashMap::new(),
            held: vec![Held::default(); inputs],
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Watches the directory behind `fd`, which is `path` beneath an input. By descriptor, so that a directory
    /// swapped for a symbolic link is not followed. Where there is no room, an input that has much more gives up half of its own:
    /// that one is returned.
    pub fn watch(&mut self, input: usize, path: &Path, fd: impl AsFd) -> io::Result<Option<usize>> {
        let mut gave_up = None;
        let bytes = path.as_os_str().len();
        let taken = |held: &[Held]| held.iter().map(|held| held.bytes).sum::<usize>();
        if taken(&self.held) + bytes > PATHS_MAX {
            gave_up = self.make_room(input, |held| held.bytes);
            if taken(&self.held) + bytes > PATHS_MAX {
                return Err(io::Error::other(format!(
                    "the paths of those that are watched take {} MiB already; fewer directories, or shorter paths, are all watched",
                    PATHS_MAX >> 20
                )));
            }
        }
        let mut mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::CREATE
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        if path.as_os_str().is_empty() {
            mask |= WatchMask::DELETE_SELF;
        }
        let place = open::proc_path(fd);
        let no_more = |error: &io::Error| Errno::from_io_error(error) == Some(Errno::NOSPC);
        let mut added = self.inotify.watches().add(&place, mask);
        if added.as_ref().is_err_and(no_more)
            && let Some(other) = self.make_room(input, |held| held.watches)
        {
            gave_up = Some(other);
            added = self.inotify.watches().add(&place, mask);
        }
        let descriptor = added.map_err(|error| match no_more(&error) {
            // The kernel's words are those of a full disk.
            true => io::Error::new(
                error.kind(),
                "there are no watches left, raise sysctl fs.inotify.max_user_watches",
            ),
            false => error,
        })?;
        // The same directory under a new name has the same descriptor.
        self.forget(&descriptor);
        self.directories.insert(descriptor, (input, path.into()));
        self.held[input].watches += 1;
        self.held[input].bytes += bytes;
        Ok(gave_up)
    }

    fn forget(&mut self, descriptor: &WatchDescriptor) {
        if let Some((input, path)) = self.directories.remove(descriptor) {
            self.held[input].give_back(&path);
        }
    }

    /// Has the input that has most of something give up half of it, if it has more than twice as much as this one: so whoever takes
    /// what was given up does not give it up in turn. The input's own directory stays watched.
    fn make_room(&mut self, input: usize, of: impl Fn(&Held) -> usize) -> Option<usize> {
        let fullest = (0..self.held.len()).max_by_key(|other| of(&self.held[*other]))?;
        let most = of(&self.held[fullest]);
        if most <= 2 * of(&self.held[input]) + 2 {
            return None;
        }
        let mut watches = self.inotify.watches();
        let held = &mut self.held[fullest];
        self.directories.retain(|descriptor, (of_input, path)| {
            let root = path.as_os_str().is_empty();
            let stays = *of_input != fullest || root || of(held) <= most / 2;
            if !stays {
                let _ = watches.remove(descriptor.clone());
                held.give_back(path);
            }
            stays
        });
        Some(fullest)
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
                let path = Arc::clone(directory);
                self.held[input].give_back(&path);
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
                reports.push(Report::Moved { input });
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
                self.held[*of].give_back(directory);
            }
            stays
        });
    }

    /// What to poll for reports.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Held {
    fn give_back(&mut self, path: &Path) {
        self.watches -= 1;
        self.bytes -= path.as_os_str().len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Watches so many directories for that input.
    fn watch(watcher: &mut Watcher, root: &Path, input: usize, names: std::ops::Range<usize>) {
        for name in names {
            let name = format!("{input}-{name}");
            std::fs::create_dir_all(root.join(&name)).unwrap();
            let dir = std::fs::File::open(root.join(&name)).unwrap();
            watcher.watch(input, Path::new(&name), &dir).unwrap();
        }
    }

    #[test]
    fn an_input_with_many_watches_gives_up_half_of_them_to_one_with_few() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(2).unwrap();
        let dir = open::root_dir(root.path()).unwrap();
        watcher.watch(0, Path::new(""), &dir).unwrap();
        watch(&mut watcher, root.path(), 0, 0..9);
        watch(&mut watcher, root.path(), 1, 0..1);
        let watches = |held: &Held| held.watches;
        assert_eq!(watcher.make_room(0, watches), None, "nobody has more");
        assert_eq!(watcher.make_room(1, watches), Some(0));
        assert_eq!(watcher.held[0].watches, 5);
        assert!((watcher.directories.values()).any(|(_, path)| path.as_os_str().is_empty()));
        watch(&mut watcher, root.path(), 1, 1..3);
        assert_eq!(watcher.make_room(1, watches), None, "it has a part by now");
        assert_eq!(watcher.make_room(0, watches), None);
    }

    #[test]
    fn what_is_watched_no_more_takes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(1).unwrap();
        watch(&mut watcher, root.path(), 0, 0..3);
        // Once more makes no difference.
        watch(&mut watcher, root.path(), 0, 0..3);
        let bytes = "0-0".len();
        assert_eq!(
            watcher.held,
            [Held {
                watches: 3,
                bytes: 3 * bytes
            }]
        );
        std::fs::remove_dir(root.path().join("0-0")).unwrap();
        std::fs::rename(root.path().join("0-1"), root.path().join("x")).unwrap();
        watcher.read(&mut Vec::new()).unwrap();
        assert_eq!(watcher.held, [Held { watches: 1, bytes }]);
        watcher.read(&mut Vec::new()).unwrap();
        assert_eq!(watcher.held, [Held { watches: 1, bytes }]);
    }
}
