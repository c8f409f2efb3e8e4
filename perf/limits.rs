//! What the machine itself allows: loops that do one part of the work of an ingest and nothing else, and the data sets for
//! them.
//!
//! - `limits rename FROM TO` renames every file of one directory into another.
//! - `limits durable FROM TO` does the same, with what it takes to survive a power cut: the bytes are synced before, both
//!   directories after.
//! - `limits copy FROM TO` copies them with two threads through memory, syncs the copies at once, and removes the originals.
//! - `limits syncs DIR COUNT MILLISECONDS` writes and syncs, so often and with so long a rest between, what one file alone is
//!   written and synced for by the commit protocol, in its order.
//! - `limits read FILE…` reads files through the page cache and hashes them, two streams in lockstep in each of two threads.
//! - `limits hash SECONDS HASHER…` hashes on one core, in turn with each hasher: `ring`, or a number of lanes.
//! - `limits make DIR COUNT BYTES` makes files of random content, as a writer leaves them that does not sync.
//!
//! `hash` prints bytes a second of processor time, a line for each hasher, `syncs` the seconds that each turn took, all others the
//! seconds it took.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use ringest::pipeline::read::digest::{self, Stream};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// As much as ringest reads at once.
const READ_BYTES: usize = 256 << 10;
const THREADS: usize = 2;
const LANES: usize = 2;
/// Streams that are hashed beside each other: divisible by every number of lanes.
const STREAMS: usize = 12;
/// How long one hasher has its turn: other guests of the machine come and go more slowly.
const TURN: Duration = Duration::from_millis(20);
/// Bytes that are written at once.
const BLOCK_BYTES: usize = 1 << 20;
/// A file begins with its number, followed by something random.
const FILE_BYTES_MIN: usize = 16;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let figures = match words[..] {
        ["rename", from, to] => vec![rename(Path::new(from), Path::new(to))?],
        ["durable", from, to] => vec![durable(Path::new(from), Path::new(to))?],
        ["copy", from, to] => vec![copy(Path::new(from), Path::new(to))?],
        ["syncs", dir, count, rest] => syncs(Path::new(dir), number(count)?, number(rest)?)?,
        ["read", ref files @ ..] => vec![read(files)?],
        ["hash", seconds, ref hashers @ ..] => hash(number(seconds)?, hashers)?,
        ["make", to, count, bytes] => vec![make(Path::new(to), number(count)?, number(bytes)?)?],
        _ => {
            eprintln!(
                "usage: limits rename FROM TO | durable FROM TO | copy FROM TO | syncs DIR COUNT MILLISECONDS | \
                 read FILE… | hash SECONDS HASHER… | make DIR COUNT BYTES"
            );
            std::process::exit(2);
        }
    };
    for figure in figures {
        println!("{figure}");
    }
    Ok(())
}

fn number<N: FromStr>(word: &str) -> io::Result<N> {
    let wrong = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{word:?} is no number"),
        )
    };
    word.parse().map_err(|_| wrong())
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    let filled = SystemRandom::new().fill(&mut noise);
    filled.expect("the kernel has random bytes");
    noise
}

// ---- rename ----

fn names_in(directory: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect()
}

fn rename(from: &Path, to: &Path) -> io::Result<f64> {
    let began = Instant::now();
    for name in names_in(from)? {
        fs::rename(from.join(&name), to.join(&name))?;
    }
    Ok(began.elapsed().as_secs_f64())
}

fn durable(from: &Path, to: &Path) -> io::Result<f64> {
    let began = Instant::now();
    rustix::fs::syncfs(File::open(from)?)?;
    rename(from, to)?;
    File::open(to)?.sync_all()?;
    File::open(from)?.sync_all()?;
    Ok(began.elapsed().as_secs_f64())
}

// ---- copy ----

fn copy(from: &Path, to: &Path) -> io::Result<f64> {
    let began = Instant::now();
    let names = names_in(from)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = names
            .chunks(names.len().div_ceil(THREADS).max(1))
            .map(|names| {
                scope.spawn(move || {
                    names
                        .iter()
                        .try_for_each(|name| fs::write(to.join(name), fs::read(from.join(name))?))
                })
            })
            .collect();
        let mut ended = threads.into_iter().map(|thread| thread.join());
        ended.try_for_each(|ended| ended.expect("no panic"))
    })?;
    rustix::fs::syncfs(File::open(to)?)?;
    for name in &names {
        fs::remove_file(from.join(name))?;
    }
    File::open(from)?.sync_all()?;
    Ok(began.elapsed().as_secs_f64())
}

// ---- syncs ----

/// Bytes of the ledger's pages that the commit of one file writes, about.
const COMMIT_BYTES: usize = 8 * PAGE_BYTES;
const PAGE_BYTES: usize = 4096;
/// About as long as a line of the manifest.
const LINE_BYTES: usize = 400;

/// A file that is written to and synced as LMDB does it: pages, then the page that says which of them count.
struct Pages {
    file: File,
    noise: Vec<u8>,
}

impl Pages {
    fn make(path: &Path) -> io::Result<Pages> {
        let file = File::create_new(path)?;
        let noise = noise(PAGE_BYTES + COMMIT_BYTES);
        file.write_all_at(&noise, 0)?;
        file.sync_all()?;
        Ok(Pages { file, noise })
    }

    fn commit(&self) -> io::Result<()> {
        let (head, pages) = self.noise.split_at(PAGE_BYTES);
        self.file.write_all_at(pages, PAGE_BYTES as u64)?;
        self.file.sync_data()?;
        self.file.write_all_at(head, 0)?;
        self.file.sync_data()
    }
}

fn syncs(dir: &Path, count: u64, rest: u64) -> io::Result<Vec<f64>> {
    let (from, to) = (dir.join("from"), dir.join("to"));
    fs::create_dir(&from)?;
    fs::create_dir(&to)?;
    let ledger = Pages::make(&dir.join("ledger"))?;
    let manifest = File::create_new(dir.join("manifest"))?;
    let (from_dir, to_dir) = (File::open(&from)?, File::open(&to)?);
    File::open(dir)?.sync_all()?;
    let line = noise(LINE_BYTES);
    let mut took = Vec::new();
    for turn in 0..count {
        std::thread::sleep(Duration::from_millis(rest));
        let name = turn.to_string();
        fs::write(from.join(&name), &name)?;
        let began = Instant::now();
        let file = File::open(from.join(&name))?;
        std::thread::scope(|scope| {
            let synced = scope.spawn(|| file.sync_all());
            ledger.commit()?;
            synced.join().expect("no panic")
        })?;
        fs::rename(from.join(&name), to.join(&name))?;
        to_dir.sync_all()?;
        from_dir.sync_all()?;
        ledger.commit()?;
        manifest.write_all_at(&line, turn * LINE_BYTES as u64)?;
        manifest.sync_all()?;
        took.push(began.elapsed().as_secs_f64());
    }
    Ok(took)
}

// ---- read ----

fn read(files: &[&str]) -> io::Result<f64> {
    let began = Instant::now();
    let waiting = Mutex::new(files.chunks(LANES));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| -> io::Result<()> {
                    loop {
                        let next = waiting.lock().expect("no panic").next();
                        let Some(files) = next else { return Ok(()) };
                        read_together(files)?;
                    }
                })
            })
            .collect();
        let mut ended = threads.into_iter().map(|thread| thread.join());
        ended.try_for_each(|ended| ended.expect("no panic"))
    })?;
    Ok(began.elapsed().as_secs_f64())
}

/// Some files side by side.
fn read_together(paths: &[&str]) -> io::Result<()> {
    let files: Result<Vec<File>, _> = paths.iter().map(File::open).collect();
    let files = files?;
    let mut streams = vec![Stream::default(); files.len()];
    let mut buffers = vec![vec![0; READ_BYTES]; files.len()];
    for offset in (0..).step_by(READ_BYTES) {
        let mut pieces = Vec::with_capacity(files.len());
        for ((file, stream), buffer) in files.iter().zip(&mut streams).zip(&mut buffers) {
            let length = file.read_at(buffer, offset)?;
            if length > 0 {
                pieces.push((stream, &buffer[..length]));
            }
        }
        if pieces.is_empty() {
            break;
        }
        digest::update_in(LANES, &mut pieces);
    }
    for stream in streams {
        black_box(stream.finish());
    }
    Ok(())
}

// ---- hash ----

/// Something that hashes on one core.
#[derive(Clone, Copy)]
enum Hasher {
    /// One stream after the other.
    Ring,
    /// So many in lockstep.
    Lanes(usize),
}

impl Hasher {
    fn of(word: &str) -> io::Result<Hasher> {
        match word {
            "ring" => Ok(Hasher::Ring),
            lanes => Ok(Hasher::Lanes(number(lanes)?)),
        }
    }

    fn hash(self, messages: &[Vec<u8>]) {
        match self {
            Hasher::Ring => {
                for message in messages {
                    black_box(ring::digest::digest(&ring::digest::SHA256, message));
                }
            }
            Hasher::Lanes(lanes) => {
                let mut streams = vec![Stream::default(); messages.len()];
                let mut pieces: Vec<(&mut Stream, &[u8])> = streams
                    .iter_mut()
                    .zip(messages.iter().map(Vec::as_slice))
                    .collect();
                digest::update_in(lanes, &mut pieces);
                for stream in streams {
                    black_box(stream.finish());
                }
            }
        }
    }
}

fn hash(seconds: f64, words: &[&str]) -> io::Result<Vec<f64>> {
    let hashers: Result<Vec<Hasher>, _> = words.iter().map(|word| Hasher::of(word)).collect();
    let hashers = hashers?;
    stay_on_this_core()?;
    let messages: Vec<Vec<u8>> = (0..STREAMS).map(|_| noise(READ_BYTES)).collect();
    let mut hashed = vec![(0, Duration::ZERO); hashers.len()];
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds {
        for (hasher, (bytes, spent)) in hashers.iter().zip(&mut hashed) {
            let turn = processor_time();
            while processor_time() < turn + TURN {
                hasher.hash(black_box(&messages));
                *bytes += STREAMS * READ_BYTES;
            }
            *spent += processor_time() - turn;
        }
    }
    Ok(hashed
        .into_iter()
        .map(|(bytes, spent)| bytes as f64 / spent.as_secs_f64())
        .collect())
}

fn stay_on_this_core() -> io::Result<()> {
    let mut core = CpuSet::new();
    core.set(sched_getcpu());
    Ok(sched_setaffinity(None, &core)?)
}

/// Of this thread: what else runs on this core does not count.
fn processor_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

// ---- make ----

fn make(to: &Path, count: u64, bytes: usize) -> io::Result<f64> {
    if bytes < FILE_BYTES_MIN {
        let why = format!("a file has {FILE_BYTES_MIN} bytes at least");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let began = Instant::now();
    // Other noise each time: a ledger knows what was made before.
    let mut block = noise(BLOCK_BYTES);
    for number in 0..count {
        let mut file = File::create_new(to.join(format!("{number:07}.csv")))?;
        block[..8].copy_from_slice(&number.to_le_bytes());
        let mut left = bytes;
        while left > 0 {
            let part = left.min(BLOCK_BYTES);
            file.write_all(&block[..part])?;
            left -= part;
        }
    }
    Ok(began.elapsed().as_secs_f64())
}
