//! Large files: they wait here for a reader that has a lane for one. Whose source has fewest open comes first, and of its owners
//! the one that has fewest: however many files of however many bytes somebody has, they wait behind one of anybody else.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ledger::SourceId;
use crate::pipeline::Uploader;
use crate::pipeline::queue::part;

/// Large files that wait, and how many are open.
#[derive(Debug)]
pub struct Large<T> {
    files: Mutex<Files<T>>,
    /// How many wait.
    depth: AtomicUsize,
    /// How many are open.
    open: AtomicUsize,
    most: usize,
}

#[derive(Debug)]
struct Files<T> {
    /// In the order in which they came, with their numbers in it.
    waiting: HashMap<Uploader, VecDeque<(u64, T)>>,
    came: u64,
    open: HashMap<Uploader, usize>,
    open_of: HashMap<SourceId, usize>,
}

/// A large file is open. Dropped when it is no more.
#[derive(Debug)]
pub struct Open<T> {
    of: Arc<Large<T>>,
    uploader: Uploader,
}

/// Whether a reader that has `own` of `all` open large files takes another: while one of its lanes is without, and it
/// has no more than the average. So `readers` share few of them out evenly, and many fill the lanes of all.
pub fn takes_large(own: usize, all: usize, readers: usize, lanes: usize) -> bool {
    own < lanes && own * readers <= all
}

/// Whether it takes one beyond that, of somebody who has none open: when the lanes of all are `full`, each reader has one more than
/// its `most` for that.
pub fn takes_one_more(own: usize, all: usize, full: usize, most: usize) -> bool {
    own <= most && all >= full
}

impl<T> Large<T> {
    /// Of an uploader that is alone, half as many wait at most; with others, less.
    pub fn new(most: usize) -> Large<T> {
        Large {
            files: Mutex::new(Files {
                waiting: HashMap::new(),
                came: 0,
                open: HashMap::new(),
                open_of: HashMap::new(),
            }),
            depth: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most,
        }
    }

    /// Adds a file, or gives it back if too many of its uploader wait and `bounded`.
    pub fn push(&self, of: Uploader, file: T, bounded: bool) -> Result<(), T> {
        let mut files = self.lock();
        let own = files.waiting.get(&of).map_or(0, VecDeque::len);
        let uploaders = files.waiting.len() + usize::from(own == 0);
        if bounded && own >= part(self.most, uploaders) {
            return Err(file);
        }
        files.came += 1;
        let came = files.came;
        files.waiting.entry(of).or_default().push_back((came, file));
        self.depth.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Takes the next one, which counts as open; if `of_new`, only one of an uploader that has none open.
    pub fn take(self: &Arc<Large<T>>, of_new: bool) -> Option<(T, Open<T>)> {
        if self.depth() == 0 {
            return None;
        }
        let mut files = self.lock();
        let (_, _, uploader) = files
            .waiting
            .iter()
            .map(|(uploader, waiting)| {
                let source = files.open_of.get(&uploader.source).copied();
                let own = files.open.get(uploader).copied().unwrap_or(0);
                let came = waiting.front().map_or(0, |(came, _)| *came);
                ((source.unwrap_or(0), own, came), own, *uploader)
            })
            .filter(|(_, own, _)| !of_new || *own == 0)
            .min_by_key(|(order, ..)| *order)?;
        let file = self.remove(&mut files, uploader)?;
        drop(files);
        Some((file, self.opened(uploader)))
    }

    /// Takes the one that came first, wherever it goes then.
    pub fn take_first(&self) -> Option<T> {
        let mut files = self.lock();
        let came = |waiting: &VecDeque<(u64, T)>| waiting.front().map_or(0, |(came, _)| *came);
        let first = files
            .waiting
            .iter()
            .min_by_key(|(_, waiting)| came(waiting));
        let uploader = *first?.0;
        self.remove(&mut files, uploader)
    }

    fn remove(&self, files: &mut Files<T>, uploader: Uploader) -> Option<T> {
        let waiting = files.waiting.get_mut(&uploader)?;
        let (_, file) = waiting.pop_front()?;
        if waiting.is_empty() {
            files.waiting.remove(&uploader);
        }
        self.depth.fetch_sub(1, Ordering::AcqRel);
        Some(file)
    }

    /// One is open that did not wait here.
    pub fn opened(self: &Arc<Large<T>>, uploader: Uploader) -> Open<T> {
        let mut files = self.lock();
        *files.open.entry(uploader).or_default() += 1;
        *files.open_of.entry(uploader.source).or_default() += 1;
        self.open.fetch_add(1, Ordering::AcqRel);
        drop(files);
        let of = Arc::clone(self);
        Open { of, uploader }
    }

    /// How many wait.
    pub fn depth(&self) -> usize {
        self.depth.load(Ordering::Acquire)
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Files<T>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Open<T> {
    fn drop(&mut self) {
        let mut files = self.of.lock();
        let Files { open, open_of, .. } = &mut *files;
        let less = |files: &mut usize| {
            *files -= 1;
            *files == 0
        };
        if open.get_mut(&self.uploader).is_some_and(less) {
            open.remove(&self.uploader);
        }
        if open_of.get_mut(&self.uploader.source).is_some_and(less) {
            open_of.remove(&self.uploader.source);
        }
        self.of.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uploader(source: u16, user: u32) -> Uploader {
        let source = SourceId(source);
        Uploader { source, user }
    }

    const ME: (u16, u32) = (1, 2001);

    #[test]
    fn whose_source_has_fewest_open_comes_first_and_then_who_has_fewest() {
        let large = Arc::new(Large::new(100));
        let (me, you) = (uploader(ME.0, ME.1), uploader(1, 2002));
        let elsewhere = uploader(2, 2001);
        for file in ["a1", "a2", "a3", "a4"] {
            large.push(me, file, true).unwrap();
        }
        large.push(you, "b1", true).unwrap();
        large.push(you, "b2", true).unwrap();
        large.push(elsewhere, "c1", true).unwrap();
        large.push(elsewhere, "c2", true).unwrap();
        let mut open = Vec::new();
        let mut order = Vec::new();
        while let Some((file, it)) = large.take(false) {
            order.push(file);
            open.push(it);
        }
        assert_eq!(order, ["a1", "c1", "b1", "c2", "a2", "b2", "a3", "a4"]);
        assert_eq!((large.open(), large.depth()), (8, 0));
        open.clear();
        assert_eq!(large.open(), 0);
        assert!(large.lock().open.is_empty() && large.lock().open_of.is_empty());
    }

    #[test]
    fn a_place_that_is_kept_is_for_those_that_have_none_open() {
        let large = Arc::new(Large::new(100));
        let (me, you) = (uploader(ME.0, ME.1), uploader(1, 2002));
        for file in 0..3 {
            large.push(me, file, true).unwrap();
        }
        let mine = large.take(true);
        assert!(mine.is_some() && large.take(true).is_none());
        large.push(you, 10, true).unwrap();
        large.push(you, 11, true).unwrap();
        let yours = large.take(true);
        assert_eq!(yours.as_ref().map(|(file, _)| *file), Some(10));
        assert!(large.take(true).is_none());
        drop(yours);
        assert_eq!(large.take(true).map(|(file, _)| file), Some(11));
    }

    #[test]
    fn who_has_too_many_waiting_gets_them_back_and_others_have_place() {
        let large = Large::new(6);
        let (me, you) = (uploader(ME.0, ME.1), uploader(1, 2002));
        let came = (0..9).filter(|file| large.push(me, *file, true).is_ok());
        assert_eq!(came.count(), 3);
        let came = (0..9).filter(|file| large.push(you, *file, true).is_ok());
        assert_eq!(came.count(), 2);
        // Those of an order would lose their place in it.
        assert_eq!(large.push(me, 9, false), Ok(()));
        let all = std::iter::from_fn(|| large.take_first());
        assert_eq!(all.collect::<Vec<_>>(), [0, 1, 2, 0, 1, 9]);
    }

    #[test]
    fn large_files_are_shared_out_evenly_until_every_lane_has_one() {
        for readers in 1..=5 {
            for lanes in 1..=4 {
                let mut open = vec![0; readers];
                for all in 0..readers * lanes {
                    // Whoever comes first may be the one that came last.
                    let taker = (0..readers)
                        .rev()
                        .find(|&reader| takes_large(open[reader], all, readers, lanes));
                    assert!(!takes_one_more(open[0], all, readers * lanes, lanes));
                    open[taker.expect("somebody takes it")] += 1;
                    let (least, most) = (open.iter().min(), open.iter().max());
                    assert!(most.unwrap() - least.unwrap() <= 1, "{open:?}");
                }
                let full = readers * lanes;
                assert!(!takes_large(lanes, full, readers, lanes));
                // One that ends makes room for the next with the reader that had it.
                assert!(takes_large(lanes - 1, full - 1, readers, lanes));
                // One more of each is for somebody else.
                assert!(takes_one_more(lanes, full, full, lanes));
                assert!(!takes_one_more(lanes + 1, full + 1, full, lanes));
            }
        }
    }
}
