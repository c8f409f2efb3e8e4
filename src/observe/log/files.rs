//! Log files: `app.log` at the log level, `error.log` with errors alone, `debug.log` with everything down to debug, one JSON
//! object a line.
//!
//! A file that would grow beyond its size is renamed to `app.log.1`, that one to `app.log.2`, and so on; the last one is
//! replaced. Lines are never cut: one that is longer than that has a file of its own. Whatever somebody moved away is made
//! anew when asked to ([`super::reopen`]). A line that a full disk took only a part of is taken back.
//!
//! Nothing is synced. A killed process leaves at most one torn line, behind which the next run begins a new one; a power cut
//! may take the last seconds. A rotation that was cut off leaves a gap among the numbers, which the next one fills: nothing is
//! replaced while there is one.

// It writes, renames and cuts its own files, in a directory that it has locked; never one of the flow.
#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use tracing::Level;
use tracing::level_filters::LevelFilter;

use super::batch::{Batch, Sink};
use super::console::write_all;
use super::line::Format;
use super::queue::Output;
use crate::failure::{Exit, Failure};
use crate::io::{lock, open};
use crate::observe::events;
use crate::pipeline::is_no_room;

/// How often it is told that a file cannot be written.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The log files of this process. No other one writes them: their directory is locked.
pub struct LogFiles {
    path: PathBuf,
    made: bool,
    files: [(LevelFilter, Batch<LogFile>); 3],
    _lock: OwnedFd,
}

/// How large log files become, and how many there are.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// Bytes of one file; 0: it is never rotated.
    pub file_bytes: u64,
    /// Files of each kind, the current one among them; at least 1.
    pub files: usize,
}

impl LogFiles {
    /// Opens the files in `path`, which is made if it is missing, and locks it.
    ///
    /// # Errors
    /// 75 if another process has the directory, 74 if there is no room to make it, 78 if it cannot be used. Files that a full disk
    /// has no room for are made later.
    pub fn open(path: &Path, level: &str, rotation: Rotation) -> Result<LogFiles, Failure> {
        let unusable = |operation: &str, path: &Path, error: &io::Error| {
            let failure = Failure::io(operation, path, error);
            match is_no_room(error) {
                true => failure,
                false => Failure {
                    exit: Exit::Config,
                    ..failure
                },
            }
        };
        let made = !path.exists();
        open::make_private_dirs(path)
            .map_err(|error| unusable("make the directory for log files", path, &error))?;
        let (dir, lock) = open_dir(path)
            .map_err(|error| unusable("open the directory for log files", path, &error))?
            .ok_or_else(|| {
                Failure::new(
                    Exit::Busy,
                    "lock",
                    path,
                    "another ringest writes its log files there",
                    "let that one finish or stop it, or give each a log_dir of its own",
                )
            })?;
        let dir = Arc::new(dir);
        let file = |name: &'static str| {
            let mut file = LogFile {
                path: path.join(name),
                dir: Arc::clone(&dir),
                name,
                rotation,
                file: None,
                told: None,
            };
            file.make_rotated_private();
            match file.open() {
                Err(error) if !is_no_room(&error) => {
                    Err(unusable("write log lines to", &file.path, &error))
                }
                _ => Ok(Batch::new(file, Format::Json)),
            }
        };
        Ok(LogFiles {
            path: path.to_owned(),
            made,
            _lock: lock,
            files: [
                (level.parse().unwrap_or(LevelFilter::INFO), file("app.log")?),
                (LevelFilter::ERROR, file("error.log")?),
                (LevelFilter::DEBUG, file("debug.log")?),
            ],
        })
    }

    /// The directory, if it was made.
    pub fn made(&self) -> Option<PathBuf> {
        self.made.then(|| self.path.clone())
    }

    /// The directory that has the name of ours by now, locked, if that is another one; it is made if there is none.
    fn other_dir(&self) -> io::Result<Option<(Arc<OwnedFd>, OwnedFd)>> {
        let held = rustix::fs::fstat(&self.files[0].1.sink.dir)?;
        let seen = rustix::fs::stat(&self.path);
        if seen.is_ok_and(|seen| (seen.st_dev, seen.st_ino) == (held.st_dev, held.st_ino)) {
            return Ok(None);
        }
        open::make_private_dirs(&self.path)?;
        let busy = || io::Error::other("another ringest writes its log files there");
        let (dir, lock) = open_dir(&self.path)?.ok_or_else(busy)?;
        Ok(Some((Arc::new(dir), lock)))
    }

    /// The least severe level that any of the files takes.
    pub(super) fn level(&self) -> LevelFilter {
        let levels = self.files.iter().map(|(level, _)| *level);
        levels.max().unwrap_or(LevelFilter::OFF)
    }
}

impl Output for LogFiles {
    fn append(&mut self, level: Level, line: &[u8]) {
        for (least, file) in &mut self.files {
            if level <= *least {
                file.append(line);
            }
        }
    }

    fn missed(&mut self, lines: u64) {
        for (least, file) in &mut self.files {
            // Errors are the last to be dropped.
            if *least > LevelFilter::ERROR {
                file.missed(lines);
            }
        }
    }

    fn write(&mut self) -> u64 {
        let files = self.files.iter_mut();
        files
            .map(|(_, file)| {
                file.write();
                file.take_refused()
            })
            .sum()
    }

    fn reopen(&mut self) {
        let dir = self.other_dir();
        for (_, file) in &mut self.files {
            let file = &mut file.sink;
            match &dir {
                Ok(None) => {}
                Ok(Some((dir, _))) => file.dir = Arc::clone(dir),
                Err(error) => file.failed(error),
            }
            // What cannot be opened stays what it was.
            if let Err(error) = file.open() {
                file.failed(&error);
            }
        }
        if let Ok(Some((_, lock))) = dir {
            self._lock = lock;
        }
    }
}

/// Opens the directory and locks it, for as long as what is returned is open. `None`: another process has it.
fn open_dir(path: &Path) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    let held = lock::lock_shared(path)?;
    Ok(held.map(|held| (held.dir, held.record)))
}

/// One of the files, with those that it was before.
struct LogFile {
    path: PathBuf,
    dir: Arc<OwnedFd>,
    name: &'static str,
    rotation: Rotation,
    /// `None` as long as it cannot be opened.
    file: Option<File>,
    /// When it was last told that it cannot be written.
    told: Option<Instant>,
}

impl LogFile {
    /// Opens it, or makes it, at the end of its last line.
    fn open(&mut self) -> io::Result<()> {
        let flags = OFlags::RDWR
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            // A FIFO is an error, not a wait.
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.dir, self.name, flags, open::PRIVATE_FILE)?;
        let mut file = File::from(opened);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            let what = "it is not a regular file";
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        open::make_private(&file)?;
        if let Some(last) = metadata.len().checked_sub(1) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, last)?;
            if byte != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        self.file = Some(file);
        Ok(())
    }

    /// The file and its length. It is looked at each time: whoever copies logs may empty them.
    fn opened(&mut self) -> io::Result<(&mut File, u64)> {
        if self.file.is_none() {
            self.open()?;
        }
        let Some(file) = &mut self.file else {
            return Err(ErrorKind::NotFound.into());
        };
        let length = file.metadata()?.len();
        Ok((file, length))
    }

    /// How many bytes of these lines go into the file as it is, or as it is then.
    fn make_room(&mut self, lines: &[u8]) -> io::Result<usize> {
        let (_, length) = self.opened()?;
        let limit = match self.rotation.file_bytes {
            0 => return Ok(lines.len()),
            limit => limit,
        };
        let fitting = whole_lines(lines, limit.saturating_sub(length));
        if fitting > 0 || length == 0 {
            return Ok(fitting.max(first_line(lines)));
        }
        self.rotate()?;
        Ok(whole_lines(lines, limit).max(first_line(lines)))
    }

    fn numbered(&self, number: usize) -> String {
        format!("{}.{number}", self.name)
    }

    /// Those that an earlier version, or somebody else, left readable for others. Best effort: they are written no more.
    fn make_rotated_private(&self) {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        for number in 1..self.rotation.files {
            let opened = rustix::fs::openat(&self.dir, self.numbered(number), flags, Mode::empty());
            let _ = opened.map(open::make_private);
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number| self.numbered(number);
        let last = self.rotation.files.saturating_sub(1);
        if last == 0 {
            let (file, _) = self.opened()?;
            return file.set_len(0);
        }
        let rename =
            |from: &str, to: &str| match rustix::fs::renameat(&self.dir, from, &self.dir, to) {
                // Somebody moved it away a moment ago.
                Err(Errno::NOENT) => Ok(()),
                renamed => renamed,
            };
        let is_free = |number: &usize| {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let seen = rustix::fs::statat(&self.dir, numbered(*number), flags);
            matches!(seen, Err(Errno::NOENT))
        };
        let gap = (1..last).find(is_free).unwrap_or(last);
        for number in (1..gap).rev() {
            rename(&numbered(number), &numbered(number + 1))?;
        }
        rename(self.name, &numbered(1))?;
        self.file = None;
        self.open()
    }
}

impl Sink for LogFile {
    fn write_lines(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut taken = 0;
        while taken < lines.len() {
            let refused = |error| (taken, error);
            let fitting = self.make_room(&lines[taken..]).map_err(refused)?;
            let (file, length) = self.opened().map_err(refused)?;
            let piece = &lines[taken..taken + fitting];
            if let Err((written, error)) = write_all(file, piece) {
                let whole = whole_lines(piece, written as u64);
                if whole < written && file.set_len(length + whole as u64).is_err() {
                    // Opened again, it is mended.
                    self.file = None;
                }
                return Err((taken + whole, error));
            }
            taken += fitting;
        }
        Ok(())
    }

    fn failed(&mut self, error: &io::Error) {
        if self.told.is_none_or(|told| told.elapsed() > TOLD_EVERY) {
            self.told = Some(Instant::now());
            events::log_file_failed(&self.path, &error.to_string());
        }
    }
}

/// The length of the whole lines within the first so many bytes.
fn whole_lines(lines: &[u8], bytes: u64) -> usize {
    let end = usize::try_from(bytes)
        .unwrap_or(usize::MAX)
        .min(lines.len());
    let newline = memchr::memrchr(b'\n', &lines[..end]);
    newline.map_or(0, |newline| newline + 1)
}

fn first_line(lines: &[u8]) -> usize {
    memchr::memchr(b'\n', lines).map_or(lines.len(), |newline| newline + 1)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn here(file_bytes: u64, files: usize) -> (tempfile::TempDir, LogFiles) {
        let root = tempfile::tempdir().expect("a directory");
        let rotation = Rotation { file_bytes, files };
        let files = LogFiles::open(&root.path().join("a/logs"), "info", rotation);
        (root, files.expect("open"))
    }

    fn read(root: &tempfile::TempDir, name: &str) -> Option<String> {
        fs::read_to_string(root.path().join("a/logs").join(name)).ok()
    }

    fn write(files: &mut LogFiles, level: Level, lines: &[&str]) -> u64 {
        for line in lines {
            files.append(level, format!("{line}\n").as_bytes());
        }
        Output::write(files)
    }

    #[test]
    fn each_file_takes_its_levels() {
        let (root, mut files) = here(0, 5);
        for level in [
            Level::TRACE,
            Level::DEBUG,
            Level::INFO,
            Level::WARN,
            Level::ERROR,
        ] {
            write(&mut files, level, &[level.as_str()]);
        }
        assert_eq!(read(&root, "app.log").unwrap(), "INFO\nWARN\nERROR\n");
        assert_eq!(read(&root, "error.log").unwrap(), "ERROR\n");
        assert_eq!(
            read(&root, "debug.log").unwrap(),
            "DEBUG\nINFO\nWARN\nERROR\n"
        );
        assert_eq!(files.level(), LevelFilter::DEBUG);
        assert_eq!(files.made(), Some(root.path().join("a/logs")));
    }

    #[test]
    fn files_are_rotated_between_lines_and_the_last_one_is_replaced() {
        let (root, mut files) = here(8, 3);
        for line in ["1aa", "2bb", "3cc", "4dd", "5ee", "6ff", "7gg"] {
            write(&mut files, Level::INFO, &[line]);
        }
        let read = |name| read(&root, name);
        assert_eq!(read("app.log").as_deref(), Some("7gg\n"));
        assert_eq!(read("app.log.1").as_deref(), Some("5ee\n6ff\n"));
        assert_eq!(read("app.log.2").as_deref(), Some("3cc\n4dd\n"));
        assert_eq!(read("app.log.3"), None);
        assert_eq!(read("error.log").as_deref(), Some(""));
    }

    #[test]
    fn a_batch_is_spread_over_files_and_a_long_line_has_one_of_its_own() {
        let (root, mut files) = here(8, 5);
        write(
            &mut files,
            Level::INFO,
            &["a", "much longer", "b", "c", "d", "e", "f"],
        );
        assert_eq!(read(&root, "app.log").unwrap(), "f\n");
        assert_eq!(read(&root, "app.log.1").unwrap(), "b\nc\nd\ne\n");
        assert_eq!(read(&root, "app.log.2").unwrap(), "much longer\n");
        assert_eq!(read(&root, "app.log.3").unwrap(), "a\n");
        assert_eq!(read(&root, "app.log.4"), None);
    }

    #[test]
    fn a_single_file_starts_over_and_one_without_a_size_never_does() {
        let (root, mut files) = here(4, 1);
        write(&mut files, Level::INFO, &["a", "b", "c"]);
        assert_eq!(read(&root, "app.log").unwrap(), "c\n");
        let (root, mut files) = here(0, 1);
        let many = vec!["line"; 10_000];
        write(&mut files, Level::INFO, &many);
        assert_eq!(read(&root, "app.log").unwrap().len(), 50_000);
    }

    #[test]
    fn a_rotation_that_was_cut_off_anywhere_loses_nothing_to_the_next() {
        // Each number in turn is missing, as after a crash between two renames.
        for missing in 1..=3 {
            let (root, mut files) = here(2, 5);
            let dir = root.path().join("a/logs");
            for number in (1..=4).filter(|&it| it != missing) {
                fs::write(dir.join(format!("app.log.{number}")), format!("{number}\n")).unwrap();
            }
            write(&mut files, Level::INFO, &["0", "-"]);
            let mut all: Vec<String> = (1..=4)
                .map(|number| read(&root, &format!("app.log.{number}")).unwrap())
                .collect();
            all.push(read(&root, "app.log").unwrap());
            all.sort();
            let mut expected = vec!["-\n".to_string(), "0\n".into()];
            expected.extend(
                (1..=4)
                    .filter(|&it| it != missing)
                    .map(|it| format!("{it}\n")),
            );
            assert_eq!(all, expected, "{missing}");
        }
    }

    #[test]
    fn what_was_moved_away_is_made_anew_when_asked_to_and_emptied_files_are_noticed() {
        let (root, mut files) = here(8, 5);
        let dir = root.path().join("a/logs");
        write(&mut files, Level::INFO, &["1"]);
        fs::rename(dir.join("app.log"), dir.join("moved")).unwrap();
        write(&mut files, Level::INFO, &["2"]);
        files.reopen();
        write(&mut files, Level::INFO, &["3"]);
        assert_eq!(read(&root, "moved").unwrap(), "1\n2\n");
        assert_eq!(read(&root, "app.log").unwrap(), "3\n");
        fs::write(dir.join("app.log"), "").unwrap();
        write(&mut files, Level::INFO, &["4", "5", "6", "7"]);
        assert_eq!(read(&root, "app.log").unwrap(), "4\n5\n6\n7\n");
        // Moved away and not told: the rotation finds nothing to rename.
        fs::remove_file(dir.join("app.log")).unwrap();
        assert_eq!(write(&mut files, Level::INFO, &["8"]), 0);
        assert_eq!(read(&root, "app.log").unwrap(), "8\n");
    }

    #[test]
    fn a_directory_that_was_replaced_is_found_by_its_name_when_asked_to() {
        let (root, mut files) = here(1 << 20, 2);
        let dir = root.path().join("a/logs");
        write(&mut files, Level::ERROR, &["one"]);
        fs::rename(&dir, root.path().join("old")).unwrap();
        files.reopen();
        write(&mut files, Level::ERROR, &["two"]);
        assert_eq!(
            fs::read_to_string(root.path().join("old/app.log")).unwrap(),
            "one\n"
        );
        assert_eq!(read(&root, "app.log").as_deref(), Some("two\n"));
        assert_eq!(read(&root, "error.log").as_deref(), Some("two\n"));
        // It is ours alone, and the old one is free.
        assert!(lock::lock_dir(&dir).unwrap().is_none());
        assert!(lock::lock_dir(&root.path().join("old")).unwrap().is_some());
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        files.reopen();
        write(&mut files, Level::ERROR, &["three"]);
        assert_eq!(read(&root, "app.log").as_deref(), Some("three\n"));
    }

    #[test]
    fn a_torn_line_is_ended_and_the_next_run_begins_a_new_one() {
        let (root, files) = here(0, 5);
        drop(files);
        let dir = root.path().join("a/logs");
        fs::write(dir.join("app.log"), "whole\nto").unwrap();
        let rotation = Rotation {
            file_bytes: 0,
            files: 5,
        };
        let mut files = LogFiles::open(&dir, "info", rotation).unwrap();
        assert_eq!(files.made(), None);
        write(&mut files, Level::INFO, &["next"]);
        assert_eq!(read(&root, "app.log").unwrap(), "whole\nto\nnext\n");
    }

    #[test]
    fn one_process_writes_and_what_cannot_be_written_is_refused() {
        let (root, _files) = here(0, 5);
        let rotation = Rotation {
            file_bytes: 0,
            files: 5,
        };
        let refused = |path: &Path| match LogFiles::open(path, "info", rotation) {
            Ok(_) => panic!("{} can be used", path.display()),
            Err(failure) => failure.exit,
        };
        assert_eq!(refused(&root.path().join("a/logs")), Exit::Busy);
        fs::write(root.path().join("file"), "").unwrap();
        assert_eq!(refused(&root.path().join("file/logs")), Exit::Config);
        let other = root.path().join("other");
        fs::create_dir_all(other.join("debug.log")).unwrap();
        assert_eq!(refused(&other), Exit::Config);
        let linked = root.path().join("linked");
        fs::create_dir(&linked).unwrap();
        std::os::unix::fs::symlink("/dev/null", linked.join("app.log")).unwrap();
        assert_eq!(refused(&linked), Exit::Config);
    }

    #[test]
    fn lines_that_find_no_room_are_counted_and_told_of_where_they_are_missing() {
        let (root, mut files) = here(2, 2);
        let dir = root.path().join("a/logs");
        write(&mut files, Level::INFO, &["1"]);
        // No file can be renamed to the name of a directory.
        fs::create_dir(dir.join("app.log.1")).unwrap();
        assert_eq!(write(&mut files, Level::INFO, &["2", "3"]), 2);
        assert_eq!(write(&mut files, Level::INFO, &["4"]), 1);
        assert_eq!(read(&root, "app.log").unwrap(), "1\n");
        fs::remove_dir(dir.join("app.log.1")).unwrap();
        assert_eq!(write(&mut files, Level::INFO, &[]), 0);
        let told = read(&root, "app.log").unwrap();
        assert!(
            told.contains(r#""event":"log_dropped","lines":3"#),
            "{told}"
        );
        assert_eq!(write(&mut files, Level::INFO, &["5"]), 0);
        assert_eq!(read(&root, "app.log").unwrap(), "5\n");
        assert_eq!(read(&root, "debug.log").unwrap(), "5\n");
    }
}
