//! The files of a bench. Which bytes a file has follows from its number alone, so that nothing is remembered about it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, Mode, OFlags, fadvise};

use super::Progress;
use crate::io::{open, probe};

/// Most files: names have nine digits.
pub const FILES_MAX: u64 = 1_000_000_000;
/// Least bytes of a file: it begins with the number of its content, which tells it from all others.
pub const FILE_BYTES_MIN: u64 = 8;
/// Bytes of noise that contents are made of.
const NOISE_BYTES: usize = 1 << 20;

/// How many files of which kind.
#[derive(Debug, Clone, Copy)]
pub struct DataSet {
    /// How many.
    pub files: u64,
    /// Bytes of each.
    pub file_bytes: u64,
    /// How many of a hundred have the content of an earlier one; below 100.
    pub duplicates_percent: u64,
    /// They are not synced.
    pub dirty: bool,
    /// Their content is dropped from the page cache.
    pub cold: bool,
}

impl DataSet {
    /// How many have the content of an earlier one.
    pub fn duplicates(&self) -> u64 {
        self.duplicates_before(self.files)
    }

    /// How many of the first `number` files. They are spread evenly, and the first file is none.
    fn duplicates_before(&self, number: u64) -> u64 {
        number * self.duplicates_percent / 100
    }

    /// Which content the file of that number has.
    fn content(&self, number: u64) -> u64 {
        let distinct_before = number - self.duplicates_before(number);
        let is_duplicate = self.duplicates_before(number + 1) > self.duplicates_before(number);
        match is_duplicate {
            true => mix(number) % distinct_before,
            false => distinct_before,
        }
    }

    /// The name of the file of that number.
    pub fn name(number: u64) -> String {
        format!("{number:09}.dat")
    }

    /// The number of the file of that name.
    pub fn number(name: &str) -> Option<u64> {
        name.strip_suffix(".dat")?.parse().ok()
    }

    /// Writes all files into `directory` and brings them into the state asked for. False: it was interrupted.
    pub fn make(
        &self,
        directory: &Path,
        progress: &mut Progress,
        interrupted: &AtomicBool,
    ) -> io::Result<bool> {
        let writer = Writer::new(self);
        progress.begin("making", self.files);
        for number in 0..self.files {
            if !writer.write(directory, number, interrupted)? {
                return Ok(false);
            }
            progress.show(number + 1);
        }
        if !self.dirty && !self.sync(directory, progress, interrupted)? {
            return Ok(false);
        }
        if self.cold {
            progress.begin("dropping from the cache", self.files);
            for number in 0..self.files {
                if interrupted.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                drop_from_cache(&directory.join(DataSet::name(number)))?;
                progress.show(number + 1);
            }
        }
        Ok(true)
    }

    /// Syncs all files. False: it was interrupted.
    fn sync(
        &self,
        directory: &Path,
        progress: &mut Progress,
        interrupted: &AtomicBool,
    ) -> io::Result<bool> {
        if probe::filesystem(directory)?.trusts_syncfs() {
            progress.begin("syncing", 0);
            rustix::fs::syncfs(open::root_dir(directory)?)?;
            return Ok(true);
        }
        progress.begin("syncing", self.files);
        for number in 0..self.files {
            if interrupted.load(Ordering::Relaxed) {
                return Ok(false);
            }
            File::open(directory.join(DataSet::name(number)))?.sync_all()?;
            progress.show(number + 1);
        }
        File::open(directory)?.sync_all()?;
        Ok(true)
    }
}

fn drop_from_cache(path: &Path) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

/// Writes files of a data set.
pub struct Writer {
    data: DataSet,
    noise: Vec<u8>,
}

impl Writer {
    /// Makes its noise.
    pub fn new(data: &DataSet) -> Writer {
        let mut noise = Vec::with_capacity(NOISE_BYTES);
        for word in 0..NOISE_BYTES as u64 / 8 {
            noise.extend(mix(word).to_le_bytes());
        }
        Writer { data: *data, noise }
    }

    /// Makes the file of that number. False: it was interrupted, and the file is cut short.
    pub fn write(
        &self,
        directory: &Path,
        number: u64,
        interrupted: &AtomicBool,
    ) -> io::Result<bool> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(directory.join(DataSet::name(number)))?;
        let head = self.data.content(number).to_le_bytes();
        let mut left = self.data.file_bytes as usize;
        let first = left.min(NOISE_BYTES);
        file.write_all(&[&head, &self.noise[head.len()..first]].concat())?;
        left -= first;
        while left > 0 {
            if interrupted.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let part = left.min(NOISE_BYTES);
            file.write_all(&self.noise[..part])?;
            left -= part;
        }
        Ok(!interrupted.load(Ordering::Relaxed))
    }
}

/// The finalizer of splitmix64 (Vigna): neighbours become unlike.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn of(files: u64, file_bytes: u64, duplicates_percent: u64) -> DataSet {
        DataSet {
            files,
            file_bytes,
            duplicates_percent,
            dirty: true,
            cold: false,
        }
    }

    #[test]
    fn as_many_files_repeat_an_earlier_one_as_was_asked_for() {
        for (files, percent) in [(1, 99), (7, 0), (100, 10), (1000, 33), (999, 99)] {
            let data = of(files, 8, percent);
            let mut seen = BTreeSet::new();
            for number in 0..files {
                let content = data.content(number);
                // A new one is the next one; a repeated one was there.
                assert!(content <= seen.len() as u64, "{files} {percent} {number}");
                seen.insert(content);
            }
            assert_eq!(data.duplicates(), files * percent / 100);
            assert_eq!(files - data.duplicates(), seen.len() as u64);
        }
    }

    #[test]
    fn a_file_has_its_size_and_its_number_and_no_other_has_its_bytes() {
        let directory = tempfile::tempdir().expect("a directory");
        for (round, bytes) in [8, 9, 4096, NOISE_BYTES + 5, 2 * NOISE_BYTES]
            .into_iter()
            .enumerate()
        {
            let data = of(2, bytes as u64, 0);
            let place = directory.path().join(round.to_string());
            std::fs::create_dir(&place).expect("a directory");
            let interrupted = AtomicBool::new(false);
            assert!(
                data.make(&place, &mut Progress::hidden(), &interrupted)
                    .expect("made")
            );
            let read = |number| std::fs::read(place.join(DataSet::name(number))).expect("there");
            assert_eq!((read(0).len(), read(1).len()), (bytes, bytes));
            assert_ne!(read(0), read(1));
        }
        assert_eq!(DataSet::number(&DataSet::name(123)), Some(123));
        assert_eq!(DataSet::number("x"), None);
    }

    #[test]
    fn an_interruption_is_seen_within_a_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let data = of(2, 1 << 40, 0);
        let interrupted = AtomicBool::new(true);
        let made = data.make(directory.path(), &mut Progress::hidden(), &interrupted);
        assert!(!made.expect("no error"));
        let size = |number| {
            let found = std::fs::metadata(directory.path().join(DataSet::name(number)));
            found.map(|found| found.len()).ok()
        };
        assert_eq!((size(0), size(1)), (Some(NOISE_BYTES as u64), None));
    }
}
