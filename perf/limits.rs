//! What the machine itself allows: loops that do one part of the work of an ingest and nothing else.
//!
//! `limits rename FROM TO` renames every file of one directory into another. `limits read FILE…` reads files through the
//! page cache and hashes them, two streams in lockstep in each of two threads. Both print the seconds it took.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use ringest::pipeline::read::digest::{self, Stream};

/// As much as ringest reads at once.
const READ_BYTES: usize = 256 << 10;
const THREADS: usize = 2;
const LANES: usize = 2;

fn main() -> std::io::Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let words: Vec<&Path> = arguments.iter().map(PathBuf::as_path).collect();
    let seconds = match words[..] {
        [what, from, to] if what == Path::new("rename") => rename(from, to)?,
        [what, ref files @ ..] if what == Path::new("read") => read(files)?,
        _ => {
            eprintln!("usage: limits rename FROM TO | limits read FILE…");
            std::process::exit(2);
        }
    };
    println!("{seconds}");
    Ok(())
}

fn rename(from: &Path, to: &Path) -> std::io::Result<f64> {
    let began = Instant::now();
    let names: Result<Vec<_>, _> = fs::read_dir(from)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect();
    for name in names? {
        fs::rename(from.join(&name), to.join(&name))?;
    }
    Ok(began.elapsed().as_secs_f64())
}

fn read(files: &[&Path]) -> std::io::Result<f64> {
    let began = Instant::now();
    let waiting = Mutex::new(files.chunks(LANES));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| -> std::io::Result<()> {
                    loop {
                        let next = waiting.lock().expect("no panic").next();
                        let Some(files) = next else { return Ok(()) };
                        hash(files)?;
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
fn hash(paths: &[&Path]) -> std::io::Result<()> {
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
        std::hint::black_box(stream.finish());
    }
    Ok(())
}
