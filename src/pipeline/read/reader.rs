//! One reader: a thread with an engine of its own and several files in flight.
//!
//! ```text
//!  Candidate ─▶ open, lease, compare ─▶ read ⇄ hash (⇄ write the copy) ─▶ compare, lease still held? ─▶ Staged
//!                      │                             │                               │
//!                      └────────── Verdict ──────────┴───────────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::io::buffer::Buffer;
use crate::io::disk::Handle;
use crate::io::open::SyncFailed;
use crate::io::read_engine::{Done, ReadEngine};
use crate::io::{
    Disk, FileStat, Identity, RealDisk, Reserve, TICK, clock, direct, lease, open, stat,
};
use crate::ledger::{Counts, SourceId};
use crate::observe::events;
use crate::observe::metrics::{Metrics, Stage};
use crate::pipeline::discover::shares::Shares;
use crate::pipeline::queue::Queue;
use crate::pipeline::{Candidate, Copied, Fate, Input, Proof, Staged, Waiting};
use crate::session::Suspicion;
use crate::settings::{CopyMethod, IoChoice, LeasePolicy, Mode, OnDuplicate, PlacedOwner};

use super::access;
use super::checks::Checks;
use super::copy::{self, CopyTarget};
use super::digest::{self, Stream};
use super::governor::{FILE_WORK, Governor, Seat};
use super::inspect::Inspection;
use super::judge::judge;
use super::large::{Large, Open, takes_large, takes_one_more};
use super::method::Methods;
use super::pace::Pace;
use super::sidecar;

/// Reads in flight for one file: one is hashed while the next arrives.
const READS_PER_FILE: usize = 2;
/// As many reads and writes for a file that is read or written past the page cache: nobody but us is ahead or behind there.
const DIRECT_PER_FILE: usize = 8;
/// A file above this many bytes is large: readers share such files out evenly, and read cold ones past the page cache.
pub(super) const LARGE_BYTES: u64 = 8 << 20;
/// From this many bytes on, a copy is not begun that would leave too little free.
const WEIGHED_BYTES: u64 = 1 << 20;
/// Bytes of one read. Larger ones leave the cache between kernel and hash.
const READ_BYTES: usize = 256 << 10;
/// Files beyond those that it is to have open, which a reader opens for somebody who would wait for hours otherwise: a large one, and
/// a small one beside large ones alone.
const FILES_MORE: usize = 2;
/// What could not be done.
const WRITE_COPY: &str = "write in the warehouse the copy of";
/// How long a file rests after it was seen changing.
const CHANGED_REST: Duration = Duration::from_millis(20);
/// How long a file rests that could not be read; doubled by the discoverer each time.
const ERROR_REST: Duration = Duration::from_secs(1);

/// What all readers share.
pub struct ReaderShared {
    /// Where candidates come from.
    pub candidates: Arc<Queue<Candidate>>,
    /// Large files, and how many of them readers have open.
    pub large: Arc<Large<Candidate>>,
    /// Which readers work, and how many files each has open.
    pub governor: Arc<Governor>,
    /// How fast they may read.
    pub pace: Pace,
    /// Readers that have nothing to do.
    pub idle: AtomicUsize,
    /// The commands that have the last word on the files of some sources.
    pub checks: Arc<Checks>,
    /// Where staged files go.
    pub staged: Arc<Queue<Staged<Handle>>>,
    /// Root of the warehouse, on whose filesystem copies are made.
    pub warehouse: Arc<OwnedFd>,
    /// What is to stay free there.
    pub reserve: Arc<Reserve>,
    /// How to read.
    pub io: IoChoice,
    /// Which ways to read and to copy.
    pub methods: Methods,
    /// How many streams are hashed in lockstep, and so how many large files a reader has open at most.
    pub hash_lanes: usize,
    /// Whether unnamed files may be used for copies.
    pub unnamed_copies: bool,
    /// Which files the cache may be wrong about.
    pub suspicion: Option<Suspicion>,
    /// How files are synced.
    pub disk: RealDisk,
    /// Signal that a broken lease raises.
    pub lease_signal: i32,
    /// Set when what waits in the queue is to be left in staging.
    pub stopping: Arc<AtomicBool>,
    /// Latencies.
    pub metrics: Arc<Metrics>,
    /// Takes a sync that failed to the main thread.
    pub failed: Box<dyn Fn(Failure) + Send + Sync>,
}

/// A reader thread's state.
pub struct Reader {
    shared: Arc<ReaderShared>,
    engine: ReadEngine,
    slots: Vec<Option<InFlight>>,
    /// What is not in use.
    buffers: Vec<Buffer>,
    /// How many more may be made.
    buffers_unmade: usize,
    /// Without one it opens nothing.
    seat: Option<Seat>,
}

/// A file that is being read.
struct InFlight {
    candidate: Candidate,
    file: Handle,
    before: FileStat,
    copy: Option<CopyTarget>,
    /// What direct reads of it have to be multiples of, in bytes. `None`: it is read through the page cache.
    direct: Option<usize>,
    /// Counts a large file while it is open.
    large: Option<Open<Candidate>>,
    stream: Stream,
    /// What its content is checked for, if for anything.
    inspection: Option<Inspection>,
    /// Where the next read begins.
    next: u64,
    /// Reads begun so far; numbers the chunks.
    issued: u64,
    /// What is on its way or waits to be hashed, in the order of the file.
    chunks: VecDeque<Chunk>,
    /// Direct writes of its copy that are in flight.
    writes: Vec<DirectWrite>,
    /// Why it will not be staged, once its last read is back.
    leaving: Option<Leave>,
    began: Instant,
}

/// A piece of a file on its way.
struct Chunk {
    number: u64,
    offset: u64,
    length: usize,
    /// Whether it was asked for past the page cache.
    direct: bool,
    /// The buffer and how many of its bytes count, once they are here.
    here: Option<(Buffer, usize)>,
}

/// A piece of a copy on its way to the disk.
struct DirectWrite {
    number: u64,
    offset: u64,
    /// Bytes of the file in it.
    length: usize,
}

/// What a reader has in flight is named after its slot.
fn token(slot: usize, kind: Kind) -> u64 {
    let (kind, number) = match kind {
        Kind::Splice => (0, 0),
        Kind::Read(number) => (1, number),
        Kind::Write(number) => (2, number),
    };
    number << 10 | kind << 8 | slot as u64
}

/// Reads are named after their chunk, too, and writes after the one that was hashed.
enum Kind {
    Splice,
    Read(u64),
    Write(u64),
}

/// What [`token`] was made of.
fn named(token: u64) -> (usize, Kind) {
    let number = token >> 10;
    let kind = match token >> 8 & 3 {
        0 => Kind::Splice,
        1 => Kind::Read(number),
        _ => Kind::Write(number),
    };
    ((token & 0xff) as usize, kind)
}

impl InFlight {
    /// What is read and hashed: the file, or its copy if the kernel makes that.
    fn read_from(&self) -> BorrowedFd<'_> {
        let copy = self.copy.as_ref().and_then(CopyTarget::read_from);
        copy.unwrap_or_else(|| self.file.as_fd())
    }

    /// Whether it may have one more buffer.
    fn takes_buffer(&self) -> bool {
        let most = match self.direct {
            Some(_) => DIRECT_PER_FILE,
            None => READS_PER_FILE,
        };
        self.chunks.len() < most && self.chunks.len() + self.writes.len() < DIRECT_PER_FILE
    }

    /// How many bytes to ask for, to get a chunk. A direct read goes on to the end of a block, also behind the end of the file.
    fn read_length(&self, chunk: &Chunk) -> usize {
        match self.direct {
            Some(unit) => chunk.length.next_multiple_of(unit),
            None => chunk.length,
        }
    }

    /// Has the rest read through the page cache.
    fn give_up_direct(&mut self) -> io::Result<()> {
        self.direct = None;
        direct::set(self.read_from(), false)
    }
}

/// What a reader finds to do.
#[allow(
    clippy::large_enum_variant,
    reason = "it lives on the stack for a moment"
)]
enum Next {
    /// The file, and that it is open if it is large.
    Candidate(Candidate, Option<Open<Candidate>>),
    NothingNow,
    NothingEver,
}

fn asks_for_leases(input: &Input) -> bool {
    input.leases && input.settings.lease == LeasePolicy::Auto
}

/// Whether a file of so many bytes is large.
pub fn is_large(size: u64) -> bool {
    size > LARGE_BYTES
}

/// Why a file does not become [`Staged`].
enum Leave {
    With(Fate),
    /// As `With(Fate::Again)`, after saying what could not be done.
    Failed(&'static str, io::Error),
    /// A failed sync ends the program.
    Fatal(Failure),
}

impl Reader {
    /// A reader with an engine of its own. The second value says why there is no ring, if there is none.
    pub fn new(shared: Arc<ReaderShared>) -> io::Result<(Reader, Option<io::Error>)> {
        let files = shared.governor.files_max() + FILES_MORE;
        let deeper = (shared.hash_lanes + 1) * (DIRECT_PER_FILE - READS_PER_FILE);
        let reads = files * READS_PER_FILE + deeper;
        let (engine, fallback) = ReadEngine::open(shared.io, (reads + files) as u32)?;
        let reader = Reader {
            shared,
            engine,
            slots: (0..files).map(|_| None).collect(),
            buffers: Vec::new(),
            buffers_unmade: reads,
            seat: None,
        };
        Ok((reader, fallback))
    }

    /// Reads until the queue of candidates is closed and empty.
    pub fn run(&mut self) -> io::Result<()> {
        let mut done = Vec::new();
        loop {
            if !self.sit() || !self.take_candidates() {
                return Ok(());
            }
            self.engine.wait(&mut done)?;
            for ended in done.drain(..) {
                self.arrived(ended);
            }
            self.hash_what_is_here();
            self.move_on();
            let (candidates, large) = (&self.shared.candidates, &self.shared.large);
            let governor = &self.shared.governor;
            governor.look(|| candidates.depth() + large.depth() > 0);
        }
    }

    /// How many files it may have open. What it has open beyond that it reads to the end.
    fn files_wanted(&self) -> usize {
        self.seat.as_ref().map_or(0, Seat::files)
    }

    /// Parks while this reader is one too many, once it has nothing open. False when it will not be called again.
    fn sit(&mut self) -> bool {
        if self.files_wanted() > 0 || self.slots.iter().any(Option::is_some) {
            return true;
        }
        let shared = Arc::clone(&self.shared);
        // What it left to others goes back to where those look that sleep. Beside a full queue nobody does.
        while !shared.candidates.is_full()
            && let Some(candidate) = shared.large.take_first()
        {
            // During a pause it is not for a reader to find out about room.
            if let Some(reason) = shared.metrics.pause_reason() {
                candidate.ticket.close(Fate::NoRoom(reason));
                continue;
            }
            if let Err(candidate) = shared.candidates.try_push(candidate) {
                if !shared.stopping.load(Ordering::Relaxed) {
                    self.start(0, candidate, None);
                }
                return true;
            }
        }
        self.seat = None;
        self.seat = shared.governor.seat();
        self.seat.is_some()
    }

    /// Fills free slots. False when there is nothing left to do, ever.
    fn take_candidates(&mut self) -> bool {
        while self.files_wanted() > 0
            && let Some(index) = self.slots.iter().position(Option::is_none)
        {
            let (candidate, large) = match self.next_candidate() {
                Next::Candidate(candidate, large) => (candidate, large),
                Next::NothingNow => return true,
                Next::NothingEver => return false,
            };
            if !self.shared.stopping.load(Ordering::Relaxed) {
                self.start(index, candidate, large);
            }
        }
        true
    }

    /// The next file for this reader. Large ones are shared out: a reader that has its share leaves the next to the
    /// others, and goes on with small ones, so that none of them waits behind a large one.
    fn next_candidate(&self) -> Next {
        let shared = &self.shared;
        let open = self.slots.iter().flatten().count();
        let large = self.large_open();
        let has_place = open < self.files_wanted();
        loop {
            while let Some((candidate, open)) = self.next_large(large, has_place) {
                // What was left there is not read during a pause; the discoverer sends one file to find out about room.
                let Some(reason) = shared.metrics.pause_reason() else {
                    return Next::Candidate(candidate, Some(open));
                };
                candidate.ticket.close(Fate::NoRoom(reason));
            }
            // Large ones alone would keep it from small ones for hours.
            if !has_place && open > large {
                return Next::NothingNow;
            }
            let candidate = if open == 0 {
                shared.idle.fetch_add(1, Ordering::AcqRel);
                let candidate = shared.candidates.pop();
                shared.idle.fetch_sub(1, Ordering::AcqRel);
                match candidate {
                    None => return Next::NothingEver,
                    Some(candidate) => candidate,
                }
            } else {
                if large > 0 && shared.idle.load(Ordering::Acquire) > 0 {
                    return Next::NothingNow;
                }
                match shared.candidates.try_pop() {
                    None => return Next::NothingNow,
                    Some(candidate) => candidate,
                }
            };
            if !is_large(candidate.identity.size) {
                return Next::Candidate(candidate, None);
            }
            // During a pause it is the one that finds out about room.
            if has_place && shared.metrics.pause_reason().is_some() {
                let open = shared.large.opened(candidate.uploader());
                return Next::Candidate(candidate, Some(open));
            }
            // This reader takes it up again itself if nobody is faster. What has its place in an order keeps it.
            let bounded = candidate.turn.is_none();
            let uploader = candidate.uploader();
            if let Err(candidate) = shared.large.push(uploader, candidate, bounded) {
                conclude(shared, candidate, again(Duration::ZERO, Waiting::Turn));
            }
        }
    }

    /// How many large files it has open.
    fn large_open(&self) -> usize {
        let files = self.slots.iter().flatten();
        files.filter(|file| file.large.is_some()).count()
    }

    /// The next large file, if this reader that has `own` of them may take one.
    fn next_large(&self, own: usize, has_place: bool) -> Option<(Candidate, Open<Candidate>)> {
        let large = &self.shared.large;
        let (all, readers) = (large.open(), self.shared.governor.readers());
        // One place is for small files.
        let most = self.files_wanted().saturating_sub(1).max(1);
        let lanes = self.shared.hash_lanes.min(most);
        if has_place && takes_large(own, all, readers, lanes) {
            large.take(false)
        } else if takes_one_more(own, all, readers * lanes, self.shared.hash_lanes) {
            large.take(true)
        } else {
            None
        }
    }

    /// Opens a candidate; its slot stays free if it cannot be read now.
    fn start(&mut self, index: usize, candidate: Candidate, large: Option<Open<Candidate>>) {
        let began = Instant::now();
        let queued = began.saturating_duration_since(candidate.settled_at);
        self.shared.metrics.record(Stage::Queue, queued);
        let mut candidate = candidate;
        candidate.shares.queue = None;
        let opened = self.open(&candidate);
        let opened = opened.and_then(|(file, before, copy)| {
            let before = claim(&mut candidate, &file, before)?;
            Ok((file, before, copy))
        });
        match opened {
            Ok((file, before, copy)) => {
                let size = before.identity.size;
                let direct = match &copy {
                    Some(copy) if copy.is_cloned() => {
                        let clone = copy.read_from();
                        clone.and_then(|clone| self.shared.methods.begin_direct(clone, size))
                    }
                    // What the kernel copied a moment ago is in the cache.
                    Some(copy) if !copy.is_written() => None,
                    _ => self.shared.methods.begin_direct(&file, size),
                };
                let rules = &candidate.input.settings.content;
                self.slots[index] = Some(InFlight {
                    inspection: Inspection::begin(rules, candidate.path(), size),
                    large: large.or_else(|| {
                        let opened = || self.shared.large.opened(candidate.uploader());
                        is_large(candidate.identity.size).then(opened)
                    }),
                    candidate,
                    file,
                    before,
                    copy,
                    direct,
                    stream: Stream::default(),
                    next: 0,
                    issued: 0,
                    chunks: VecDeque::new(),
                    writes: Vec::new(),
                    leaving: None,
                    began,
                });
                self.submit(index);
            }
            Err(leave) => conclude(&self.shared, candidate, leave),
        }
    }

    /// Opens the file under a lease where one is to be had, and makes sure it is the one that was settled.
    fn open(&self, candidate: &Candidate) -> Result<(Handle, FileStat, Option<CopyTarget>), Leave> {
        let input = &candidate.input;
        let path = candidate.path();
        let fd = open::file_beneath(&*input.dir, path.as_os_str()).map_err(opening)?;
        let file = self.lease(candidate, fd)?;
        let mut before = stat::stat_fd(&file).map_err(|error| Leave::Failed("look at", error))?;
        if before.kind != FileType::RegularFile {
            return Err(Leave::With(Fate::Ignored("not a regular file")));
        }
        // It was for FIFOs and leases at the opening. Linux 5.15 would let it end reads of a ring early, with EAGAIN.
        rustix::fs::fcntl_getfl(&file)
            .and_then(|flags| rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK))
            .map_err(|error| Leave::Failed("open", error.into()))?;
        if before.identity != candidate.identity {
            events::file_changed(
                &input.absolute(path),
                "changed between sighting and reading",
            );
            return Err(changed());
        }
        if before.links > 1 {
            return Err(again(Duration::from_secs(1), Waiting::Links));
        }
        let suspicion = self.shared.suspicion;
        let suspicion = suspicion.filter(|suspicion| before.identity.ctime <= suspicion.until);
        let only_cached = suspicion.is_some_and(|suspicion| suspicion.sync_failed);
        let mut copies =
            input.copy || candidate.copy || only_cached || cannot_be_made_ours(input, &file);
        if !copies {
            (before, copies) = set_access(input, &file, before)?;
        }
        if !file.has_lease() {
            before = self.pin_without_lease(candidate, &file, before)?;
        }
        if input.settings.mode == Mode::Sidecar {
            // Whoever hashes a large file into its sidecar is at it for long: spare both of us the reading.
            open_sidecar(&self.shared, candidate, &before)?;
        }
        if suspicion.is_some() {
            // The session synced the filesystem before intake began, so these pages are clean and can go.
            let advice = rustix::fs::Advice::DontNeed;
            rustix::fs::fadvise(&file, 0, None, advice)
                .map_err(|error| Leave::Failed("drop the cache of", error.into()))?;
        }
        let copy = if copies {
            let method = match only_cached {
                // Nothing but what was hashed is to be trusted.
                true => CopyMethod::Write,
                false => self.shared.methods.copy(input.id),
            };
            let mut copy = self.begin_copy(input.id, method, &file, &before)?;
            // A clone takes no room, nor do holes. Small ones cannot miss the reserve by much before the discoverer sees it.
            let needed = before.identity.size.min(before.blocks * 512);
            if needed >= WEIGHED_BYTES
                && !copy.is_cloned()
                && let Some(reason) = self.shared.reserve.refuses_copy(needed)
            {
                return Err(Leave::With(Fate::NoRoom(reason)));
            }
            if self.shared.disk.durable {
                copy.write_direct(&self.shared.methods).map_err(|error| {
                    no_room_or("make room in the warehouse for the copy of", error)
                })?;
            }
            Some(copy)
        } else {
            None
        };
        Ok((file, before, copy))
    }

    fn begin_copy(
        &self,
        source: SourceId,
        method: CopyMethod,
        file: &Handle,
        before: &FileStat,
    ) -> Result<CopyTarget, Leave> {
        let failed = |error| no_room_or("make in the warehouse a copy of", error);
        let warehouse = &*self.shared.warehouse;
        let mut target =
            CopyTarget::create(warehouse, before, self.shared.unnamed_copies).map_err(failed)?;
        match target.leave_to_kernel(method, file) {
            Ok(()) => return Ok(target),
            Err(error) if copy::is_refusal(&error) => {
                self.shared.methods.copy_refused(source, method, &error);
            }
            // Whatever keeps this file from being cloned (ZFS: it is not on the disk yet), it can still be written.
            Err(error) if method == CopyMethod::Reflink && !crate::pipeline::is_no_room(&error) => {
            }
            // So it can without a pipe, of which one user may have too many.
            Err(_) if method == CopyMethod::Splice => {}
            Err(error) => return Err(failed(error)),
        }
        target.write_after_all().map_err(failed)?;
        Ok(target)
    }

    fn lease(&self, candidate: &Candidate, fd: OwnedFd) -> Result<Handle, Leave> {
        let input = &candidate.input;
        if asks_for_leases(input) {
            match lease::set_read_lease(fd.as_fd(), self.shared.lease_signal) {
                Ok(()) => return Ok(Handle::leased(fd)),
                // Somebody has it open for writing, or the filesystem is still flushing what he wrote.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(again(Duration::ZERO, Waiting::HeldOpen));
                }
                // Not our file, or not that kind of filesystem.
                Err(_) => {}
            }
        }
        match candidate.proof {
            Proof::Settled => Ok(Handle::new(fd)),
            Proof::IfLeased => Err(Leave::With(Fate::NeedsInterval)),
        }
    }

    /// Without a lease: a store through a mapping shows in the file's times only once its page was written back, so
    /// sync first; then any later change shows, if the times are old enough to tell.
    fn pin_without_lease(
        &self,
        candidate: &Candidate,
        file: &Handle,
        before: FileStat,
    ) -> Result<FileStat, Leave> {
        let path = || candidate.input.absolute(candidate.path());
        let root = &candidate.input.dir;
        self.shared
            .disk
            .sync_files(root, &[file])
            .map_err(|error| Leave::Fatal(Failure::sync("sync", &path(), &error)))?;
        let synced = stat::stat_fd(file).map_err(|error| Leave::Failed("look at", error))?;
        if synced.identity != before.identity || !synced.has_rights_of(&before) {
            events::file_changed(&path(), "changed before it was read");
            return Err(changed());
        }
        let age = clock::realtime().as_nanos() - synced.identity.ctime.as_nanos();
        // A time stamp from the future does not get older by waiting for it.
        if (0..TICK.as_nanos() as i128).contains(&age) {
            return Err(again(TICK, Waiting::Still));
        }
        Ok(synced)
    }

    /// Puts reads of a file in flight, as many as it may have.
    fn submit(&mut self, index: usize) {
        self.copy_ahead(index);
        let Some(file) = &mut self.slots[index] else {
            return;
        };
        let size = file.before.identity.size;
        if self.shared.stopping.load(Ordering::Relaxed) && size - file.next > LARGE_BYTES {
            // It stays in staging: to read it to the end may take longer than anybody waits for that.
            let leave = || again(Duration::ZERO, Waiting::Turn);
            file.leaving.get_or_insert_with(leave);
        }
        let readable = file.copy.as_ref().map(CopyTarget::readable);
        let readable = readable.unwrap_or(size);
        while file.leaving.is_none() && file.next < readable && file.takes_buffer() {
            let buffer = match self.buffers.pop() {
                Some(buffer) => buffer,
                None if self.buffers_unmade > 0 => {
                    self.buffers_unmade -= 1;
                    Buffer::new(READ_BYTES)
                }
                None => return,
            };
            let chunk = Chunk {
                number: file.issued,
                offset: file.next,
                length: (readable - file.next).min(READ_BYTES as u64) as usize,
                direct: file.direct.is_some(),
                here: None,
            };
            if !(self.shared.pace).wait(chunk.length as u64, &self.shared.stopping) {
                // It stays in staging; to read it to the end at this pace may take long.
                self.buffers.push(buffer);
                file.leaving = Some(again(Duration::ZERO, Waiting::Turn));
                return;
            }
            file.issued += 1;
            file.next += chunk.length as u64;
            match read(&mut self.engine, index, file, &chunk, buffer) {
                Ok(()) => {
                    file.chunks.push_back(chunk);
                    // The next one may have to wait for its turn.
                    if self.shared.pace.is_limited() {
                        self.engine.begin();
                    }
                }
                Err(error) => {
                    self.buffers_unmade += 1;
                    file.leaving = Some(Leave::Failed("read", error));
                }
            }
        }
    }

    /// Lets the kernel go on with a copy that it makes ahead of the reads.
    fn copy_ahead(&mut self, index: usize) {
        let Some(file) = &mut self.slots[index] else {
            return;
        };
        let (Some(copy), None) = (&mut file.copy, &file.leaving) else {
            return;
        };
        let begun = match copy.copy_ahead(file.file.as_fd(), file.next) {
            Ok(None) => Ok(()),
            Ok(Some(step)) => {
                let name = token(index, Kind::Splice);
                self.engine.splice(name, step.from, step.to, step.length)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = begun.or_else(|error| copy.spliced(Err(error))) {
            self.copy_failed(index, error);
        }
    }

    /// A copy that the kernel was to make is written instead, if it cannot be made that way.
    fn copy_failed(&mut self, index: usize, error: io::Error) {
        let Some(file) = &mut self.slots[index] else {
            return;
        };
        if let Some(copy) = &mut file.copy
            && file.issued == 0
            && copy::is_refusal(&error)
        {
            let source = file.candidate.input.id;
            match copy.write_after_all() {
                Ok(method) => self.shared.methods.copy_refused(source, method, &error),
                Err(error) => {
                    file.leaving.get_or_insert(Leave::Failed(WRITE_COPY, error));
                }
            }
        } else if let Some(method) = file.copy.as_ref().and_then(CopyTarget::by_kernel)
            && copy::is_refusal(&error)
        {
            // Too late for this turn: some of it was hashed. The next one writes it.
            let source = file.candidate.input.id;
            self.shared.methods.copy_refused(source, method, &error);
            file.leaving
                .get_or_insert_with(|| again(CHANGED_REST, Waiting::Turn));
        } else if error.kind() == io::ErrorKind::UnexpectedEof {
            let input = &file.candidate.input;
            let path = input.absolute(file.candidate.path());
            events::file_changed(&path, "shorter than when it was opened");
            file.leaving.get_or_insert_with(changed);
        } else {
            let leave = no_room_or(WRITE_COPY, error);
            file.leaving.get_or_insert(leave);
        }
    }

    /// Takes in a completion. A read that ended early is begun again where it ended.
    fn arrived(&mut self, done: Done) {
        let (index, kind) = named(done.token);
        let (number, buffer) = match (kind, done.buffer) {
            (Kind::Read(number), Some(buffer)) => (number, buffer),
            (Kind::Write(number), Some(buffer)) => {
                self.written(index, number, &buffer, done.bytes);
                self.buffers.push(buffer);
                return;
            }
            _ => {
                let file = self.slots[index].as_mut();
                if let Some(copy) = file.and_then(|file| file.copy.as_mut())
                    && let Err(error) = copy.spliced(done.bytes)
                {
                    self.copy_failed(index, error);
                }
                return;
            }
        };
        if let Ok(bytes) = done.bytes {
            let read = &self.shared.metrics.bytes_read;
            read.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        let Some(file) = &mut self.slots[index] else {
            self.buffers.push(buffer);
            return;
        };
        let Some(at) = file.chunks.iter().position(|chunk| chunk.number == number) else {
            self.buffers.push(buffer);
            return;
        };
        match done.bytes {
            Ok(0) => {
                // Shorter than it was when it was opened.
                file.leaving.get_or_insert_with(changed);
            }
            Ok(bytes) => {
                // A direct read may have seen more, of a file that has grown: its identity will tell.
                let bytes = bytes.min(file.chunks[at].length);
                file.chunks[at].here = Some((buffer, bytes));
                return;
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                file.chunks[at].here = Some((buffer, 0));
                return;
            }
            // Not that way after all: what lies beneath the filesystem wants another alignment.
            Err(error)
                if file.chunks[at].direct && Errno::from_io_error(&error) == Some(Errno::INVAL) =>
            {
                self.shared.methods.direct_refused(&error);
                match file.give_up_direct() {
                    Ok(()) => {
                        file.chunks[at].here = Some((buffer, 0));
                        return;
                    }
                    Err(error) => {
                        file.leaving.get_or_insert(Leave::Failed("read", error));
                    }
                }
            }
            Err(error) => {
                file.leaving.get_or_insert(Leave::Failed("read", error));
            }
        }
        file.chunks.remove(at);
        self.buffers.push(buffer);
    }

    /// Takes in the end of a direct write. What is missing of it is written through the page cache, and so are the next ones.
    fn written(&mut self, index: usize, number: u64, buffer: &Buffer, bytes: io::Result<usize>) {
        let Some(file) = &mut self.slots[index] else {
            return;
        };
        let Some(at) = file.writes.iter().position(|write| write.number == number) else {
            return;
        };
        let write = file.writes.swap_remove(at);
        let Some(copy) = &mut file.copy else {
            return;
        };
        let done = match bytes {
            Ok(done) if done >= write.length => return,
            Ok(done) => done,
            // Not that way after all.
            Err(error) if copy::is_refusal(&error) => {
                self.shared.methods.direct_writes_refused();
                0
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                file.leaving
                    .get_or_insert_with(|| no_room_or(WRITE_COPY, error));
                return;
            }
        };
        let rest = &buffer[done..write.length];
        let written = copy.give_up_direct();
        if let Err(error) = written.and_then(|()| copy.write(rest, write.offset + done as u64)) {
            file.leaving
                .get_or_insert_with(|| no_room_or(WRITE_COPY, error));
        }
    }

    /// Hashes what is next in each file, the files side by side, until nothing more is here.
    fn hash_what_is_here(&mut self) {
        loop {
            let mut lanes: Vec<(&mut Stream, &[u8])> = Vec::with_capacity(self.slots.len());
            for file in self.slots.iter_mut().flatten() {
                let InFlight { stream, chunks, .. } = file;
                if let Some(Chunk {
                    here: Some((buffer, bytes)),
                    ..
                }) = chunks.front()
                {
                    lanes.push((stream, &buffer[..*bytes]));
                }
            }
            if lanes.is_empty() {
                return;
            }
            digest::update_in(self.shared.hash_lanes, &mut lanes);
            drop(lanes);
            for index in 0..self.slots.len() {
                self.hashed_front(index);
            }
        }
    }

    /// Writes the piece that was just hashed to the copy, and reads what is missing of it or what follows.
    fn hashed_front(&mut self, index: usize) {
        let Some(file) = &mut self.slots[index] else {
            return;
        };
        let Some(front) = file.chunks.front_mut() else {
            return;
        };
        let Some((mut buffer, bytes)) = front.here.take() else {
            return;
        };
        if let Some(inspection) = &mut file.inspection {
            inspection.feed(&buffer[..bytes]);
        }
        self.shared.governor.count(bytes as u64);
        if let (Some(copy), None) = (&mut file.copy, &file.leaving)
            && copy.is_written()
        {
            // A piece that is not all there is followed by others that begin nowhere.
            let direct = copy
                .direct_length(front.offset, bytes)
                .filter(|_| bytes == front.length);
            if let Some(length) = direct {
                buffer[bytes..length].fill(0);
                let (number, offset) = (front.number, front.offset);
                let name = token(index, Kind::Write(number));
                let begun = self.engine.write(name, copy.fd(), buffer, offset, length);
                file.chunks.pop_front();
                match begun {
                    Ok(()) => file.writes.push(DirectWrite {
                        number,
                        offset,
                        length: bytes,
                    }),
                    Err(error) => {
                        self.buffers_unmade += 1;
                        file.leaving = Some(Leave::Failed(WRITE_COPY, error));
                    }
                }
                self.submit(index);
                return;
            }
            let written = copy.give_up_direct();
            let written = written.and_then(|()| copy.write(&buffer[..bytes], front.offset));
            if let Err(error) = written {
                file.leaving = Some(no_room_or(WRITE_COPY, error));
            }
        }
        front.offset += bytes as u64;
        front.length -= bytes;
        if front.length > 0 && file.leaving.is_none() {
            match self.read_rest(index, buffer) {
                Ok(()) => return,
                Err(error) => {
                    self.buffers_unmade += 1;
                    if let Some(file) = &mut self.slots[index] {
                        file.leaving = Some(Leave::Failed("read", error));
                        file.chunks.pop_front();
                    }
                    return;
                }
            }
        }
        file.chunks.pop_front();
        self.buffers.push(buffer);
        self.submit(index);
    }

    /// Reads what is missing of the first chunk.
    fn read_rest(&mut self, index: usize, buffer: Buffer) -> io::Result<()> {
        let Some(file) = &mut self.slots[index] else {
            return Ok(());
        };
        let offset = file.chunks.front().map_or(0, |front| front.offset);
        if file
            .direct
            .is_some_and(|unit| !offset.is_multiple_of(unit as u64))
        {
            file.give_up_direct()?;
        }
        let direct = file.direct.is_some();
        let Some(front) = file.chunks.front_mut() else {
            return Ok(());
        };
        front.direct = direct;
        let front = &file.chunks[0];
        read(&mut self.engine, index, file, front, buffer)
    }

    /// Hands on the files that are read to the end, and lets go of those that will not be.
    fn move_on(&mut self) {
        for index in 0..self.slots.len() {
            let ended = self.slots[index].as_ref().is_some_and(|file| {
                let splicing = file.copy.as_ref().is_some_and(CopyTarget::is_busy);
                let all_back = file.chunks.is_empty() && file.writes.is_empty() && !splicing;
                all_back && (file.leaving.is_some() || file.next == file.before.identity.size)
            });
            if ended {
                if let Some(file) = self.slots[index].take() {
                    self.finish(file);
                }
            } else {
                // Buffers may have been short when its turn came.
                self.submit(index);
            }
        }
    }

    fn finish(&self, mut file: InFlight) {
        let whole = match file.leaving.take() {
            Some(leave) => Err(leave),
            None => check_whole(&self.shared, &file).and_then(|sidecar| {
                let layout = &file.candidate.input.settings.layout;
                let copy = file
                    .copy
                    .take()
                    .map(|copy| copy.finish(&file.file, &file.before, layout));
                let copy = copy.transpose();
                Ok((
                    sidecar,
                    copy.map_err(|error| no_room_or("finish in the warehouse the copy of", error))?,
                ))
            }),
        };
        let (sidecar, copy) = match whole {
            Ok(whole) => whole,
            Err(leave) => {
                return conclude(&self.shared, file.candidate, leave);
            }
        };
        let ended = Instant::now();
        let digest = file.stream.finish();
        let claimed = sidecar.as_ref().and_then(|sidecar| sidecar.claimed);
        let judged = judge(&digest, claimed.as_ref(), file.inspection.take());
        file.candidate.shares.memory = None;
        let staged = Staged {
            candidate: file.candidate,
            stat: file.before,
            digest,
            file: file.file,
            copy,
            sidecar: sidecar.map(|sidecar| (sidecar.path, sidecar.identity)),
            counts: *judged.as_ref().unwrap_or(&Counts::default()),
            finding: judged.err(),
            read: (file.began, ended),
        };
        self.shared.governor.count(FILE_WORK);
        match self.shared.checks.of(staged.candidate.input.id) {
            Some(checks) if staged.finding.is_none() => checks.take(staged),
            _ => hand_on(&self.shared, staged),
        }
    }
}

/// Hands a file on to the recorder.
fn hand_on(shared: &ReaderShared, mut staged: Staged<Handle>) {
    let (began, ended) = staged.read;
    let took = ended.saturating_duration_since(began);
    shared.metrics.record(Stage::Read, took);
    staged.candidate.shares = Shares::default();
    let held_back = |rest| shared.governor.held_back(rest);
    match staged.candidate.turn.take() {
        Some(turn) => turn.hand_on(staged, held_back),
        // A closed queue: the recorder is gone, and the ticket says so.
        None => drop(shared.staged.push_telling(staged, held_back)),
    }
}

/// Hands a file on that a command looked at, if it is what was read.
pub(super) fn hand_on_if_whole(shared: &ReaderShared, staged: Staged<Handle>) {
    if let Some(staged) = still_whole(shared, staged) {
        hand_on(shared, staged);
    }
}

/// The file, if it is what was read, with its copy, and lies where it lay.
pub(super) fn still_whole(shared: &ReaderShared, staged: Staged<Handle>) -> Option<Staged<Handle>> {
    let input = &staged.candidate.input;
    let path = staged.candidate.path();
    let dir = input
        .claim
        .as_ref()
        .map_or(&*input.dir, |claims| &*claims.dir);
    let whole = check_unchanged(input, path, &staged.file, &staged.stat).and_then(|()| {
        // Beneath, as it was opened: a directory on the way may be another one by now, or a link.
        match open::stat_beneath(dir, path) {
            Ok(Some(seen)) if seen.identity.same_inode(&staged.stat.identity) => Ok(()),
            Ok(Some(_)) => Err(changed()),
            Ok(None) => Err(Leave::With(Fate::Withdrawn)),
            Err(error) => Err(Leave::Failed("look at", error)),
        }
    });
    let copy = staged.copy.as_ref();
    let whole = whole.and_then(|()| copy.map_or(Ok(()), |copy| copy_unchanged(input, path, copy)));
    match whole {
        Ok(()) => Some(staged),
        Err(leave) => {
            conclude(shared, staged.candidate, leave);
            None
        }
    }
}

/// What was handed to a command may have been written by it.
fn copy_unchanged(input: &Input, path: &Path, copy: &Copied<Handle>) -> Result<(), Leave> {
    let seen =
        stat::stat_fd(&copy.file).map_err(|error| Leave::Failed("look at the copy of", error))?;
    match seen.identity == copy.stat.identity {
        true => Ok(()),
        false => {
            events::file_changed(
                &input.absolute(path),
                "its copy changed while it was checked",
            );
            Err(changed())
        }
    }
}

/// Leaves a file in staging, for the next run of the program.
pub(super) fn leave_to_next_turn(shared: &ReaderShared, staged: Staged<Handle>) {
    conclude(
        shared,
        staged.candidate,
        again(Duration::ZERO, Waiting::Turn),
    );
}

/// Leaves a file in staging whose command could not be run.
pub(super) fn check_failed(shared: &ReaderShared, staged: Staged<Handle>, error: io::Error) {
    let leave = no_room_or("run check_command for", error);
    conclude(shared, staged.candidate, leave);
}

/// Whether a file that is to belong to ringest has to be copied. A lease shows that nobody has it open for writing, and after a
/// change of owner nobody comes; without one, who has it open goes on. What is kept in staging stays its uploader's.
fn cannot_be_made_ours(input: &Input, file: &Handle) -> bool {
    let settings = &input.settings;
    settings.layout.placed_owner == PlacedOwner::Own
        && (!file.has_lease() || settings.on_duplicate == OnDuplicate::Keep)
}

/// Gives a file that will be renamed the owner and the permissions that it is to have there. True: it has to be copied, since its
/// owner or its filesystem will not have that.
fn set_access(input: &Input, file: &Handle, before: FileStat) -> Result<(FileStat, bool), Leave> {
    let layout = &input.settings.layout;
    let refused = match access::set(file, &before, layout) {
        Ok(false) => return Ok((before, false)),
        Ok(true) => false,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => true,
        Err(error) => return Err(no_room_or("set permissions or owner of", error)),
    };
    let after = stat::stat_fd(file).map_err(|error| Leave::Failed("look at", error))?;
    let same = Identity {
        ctime: after.identity.ctime,
        ..before.identity
    };
    match after.identity == same && after.links == before.links {
        true => Ok((after, refused || !access::is_set(&after, layout))),
        false => Err(changed()),
    }
}

/// Moves the file to where its source keeps what is in work, if it does.
fn claim(candidate: &mut Candidate, file: &Handle, before: FileStat) -> Result<FileStat, Leave> {
    let input = Arc::clone(&candidate.input);
    let failed = |error| Leave::Failed("move to the claim directory", error);
    let Some(claims) = &input.claim else {
        return Ok(before);
    };
    match candidate.ticket.claim(Some(claims)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Leave::With(Fate::Withdrawn));
        }
        Err(error) if SyncFailed::is(&error) => {
            let failure = Failure::sync("sync the claim directory", &claims.path, &error);
            return Err(Leave::Fatal(failure));
        }
        Err(error) => return Err(failed(error)),
    }
    let path = candidate.path();
    let moved = stat::stat_at(&claims.dir, path.as_os_str()).map_err(failed)?;
    let after = stat::stat_fd(file).map_err(failed)?;
    let same = Identity {
        ctime: after.identity.ctime,
        ..before.identity
    };
    // One that took its name a moment ago goes back.
    let itself = moved.is_some_and(|moved| moved.identity.same_inode(&after.identity));
    match itself && after.identity == same && after.has_rights_of(&before) {
        true => Ok(after),
        false => Err(changed()),
    }
}

/// Starts the read of a chunk.
fn read(
    engine: &mut ReadEngine,
    slot: usize,
    file: &InFlight,
    chunk: &Chunk,
    buffer: Buffer,
) -> io::Result<()> {
    let name = token(slot, Kind::Read(chunk.number));
    let length = file.read_length(chunk);
    let from = file.read_from();
    engine.read(name, from, buffer, chunk.offset, length, chunk.direct)
}

/// A sidecar as it was read.
struct SidecarRead {
    path: PathBuf,
    identity: Identity,
    claimed: Option<crate::ledger::Digest>,
}

/// Whether the file is still what it was when its reading began.
fn check_whole(shared: &ReaderShared, file: &InFlight) -> Result<Option<SidecarRead>, Leave> {
    let input = &file.candidate.input;
    check_unchanged(input, file.candidate.path(), &file.file, &file.before)?;
    if input.settings.mode == Mode::Sidecar {
        return read_sidecar(shared, file);
    }
    Ok(None)
}

/// Whether nobody has written to the file since it was in that state.
fn check_unchanged(
    input: &Input,
    path: &Path,
    file: &Handle,
    before: &FileStat,
) -> Result<(), Leave> {
    let path = || input.absolute(path);
    let after = stat::stat_fd(file).map_err(|error| Leave::Failed("look at", error))?;
    if after.identity != before.identity || !after.has_rights_of(before) {
        events::file_changed(&path(), "changed while it was read");
        return Err(changed());
    }
    if file.has_lease() && !lease::still_held(file.as_fd()) {
        events::file_changed(&path(), "opened for writing while it was read");
        return Err(again(CHANGED_REST, Waiting::HeldOpen));
    }
    Ok(())
}

/// Opens a file's sidecar, once nobody writes to it any more. An empty file needs none.
fn open_sidecar(
    shared: &ReaderShared,
    candidate: &Candidate,
    of: &FileStat,
) -> Result<Option<(PathBuf, Handle, FileStat)>, Leave> {
    let input = &candidate.input;
    let path = sidecar_path(candidate.path(), &input.settings.sidecar_suffix);
    let fd = match open::file_beneath(&*input.dir, path.as_os_str()) {
        Ok(fd) => fd,
        Err(_) if of.identity.size == 0 => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(again(CHANGED_REST, Waiting::Sidecar));
        }
        Err(error) => return Err(Leave::Failed("open the sidecar of", error)),
    };
    let leased = if asks_for_leases(input) {
        lease::set_read_lease(fd.as_fd(), shared.lease_signal)
    } else {
        Err(Errno::INVAL.into())
    };
    let file = match leased {
        Ok(()) => Handle::leased(fd),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(again(Duration::ZERO, Waiting::Sidecar));
        }
        Err(_) => Handle::new(fd),
    };
    let seen = stat::stat_fd(&file).map_err(|e| Leave::Failed("read the sidecar of", e))?;
    if seen.kind != FileType::RegularFile {
        return Err(again(CHANGED_REST, Waiting::Sidecar));
    }
    if !file.has_lease() {
        let age = clock::realtime().as_nanos() - seen.identity.ctime.as_nanos();
        if let Some(rest) = rest_of(age, input.settings.stability) {
            return Err(again(rest, Waiting::Sidecar));
        }
    }
    Ok(Some((path, file, seen)))
}

/// What is left of `interval` at that age. A time stamp from the future does not get older by waiting for it.
fn rest_of(age_nanos: i128, interval: Duration) -> Option<Duration> {
    let age = Duration::from_nanos(u64::try_from(age_nanos).ok()?);
    interval.checked_sub(age).filter(|rest| !rest.is_zero())
}

fn read_sidecar(shared: &ReaderShared, file: &InFlight) -> Result<Option<SidecarRead>, Leave> {
    let opened = open_sidecar(shared, &file.candidate, &file.before)?;
    let Some((path, handle, before)) = opened else {
        return Ok(None);
    };
    let failed = |error: io::Error| Leave::Failed("read the sidecar of", error);
    let name = file.candidate.path().file_name().unwrap_or_default();
    let claim = sidecar::read_claim(&handle, before.identity.size, name).map_err(failed)?;
    let all_read = &shared.metrics.bytes_read;
    all_read.fetch_add(claim.bytes_read, Ordering::Relaxed);
    let broken = handle.has_lease() && !lease::still_held(handle.as_fd());
    if broken || stat::stat_fd(&handle).map_err(failed)?.identity != before.identity {
        return Err(again(CHANGED_REST, Waiting::Sidecar));
    }
    Ok(Some(SidecarRead {
        path,
        identity: before.identity,
        claimed: claim.digest,
    }))
}

/// The path of a file's sidecar.
pub fn sidecar_path(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

fn changed() -> Leave {
    again(CHANGED_REST, Waiting::Still)
}

fn again(after: Duration, why: Waiting) -> Leave {
    Leave::With(Fate::Again { after, why })
}

/// Why what cannot be opened with that error is nothing to ingest, if that is what the error means.
pub fn nothing_to_ingest(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        Errno::LOOP => Some("a symbolic link is on its path"),
        Errno::XDEV => Some("another filesystem is mounted there"),
        Errno::NXIO | Errno::NODEV => Some("not a regular file"),
        _ => None,
    }
}

/// What an error of opening means for the file.
fn opening(error: io::Error) -> Leave {
    if let Some(reason) = nothing_to_ingest(&error) {
        return Leave::With(Fate::Ignored(reason));
    }
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR) => Leave::With(Fate::Withdrawn),
        Some(Errno::AGAIN) => again(Duration::ZERO, Waiting::HeldOpen),
        _ => no_room_or("open", error),
    }
}

fn no_room_or(operation: &'static str, error: io::Error) -> Leave {
    let read_only = error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    if read_only || crate::pipeline::is_no_room(&error) {
        let remedy = match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                "mount it for writing (dmesg may say why it is not)"
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space",
            _ => "raise the limit on open files (LimitNOFILE=, ulimit -n) or on memory",
        };
        Leave::With(Fate::NoRoom(format!(
            "cannot {operation} a file: {error}; {remedy}, intake resumes by itself"
        )))
    } else {
        Leave::Failed(operation, error)
    }
}

fn conclude(shared: &ReaderShared, candidate: Candidate, leave: Leave) {
    let path = candidate.input.absolute(candidate.path());
    match leave {
        Leave::With(fate) => candidate.ticket.close(fate),
        Leave::Failed(operation, error) => {
            let remedy =
                "it stays in staging and is tried again; check its permissions and the device";
            events::file_failed(&path, operation, &error.to_string(), remedy);
            shared.metrics.errors.fetch_add(1, Ordering::Relaxed);
            candidate.ticket.close(Fate::Again {
                after: ERROR_REST,
                why: Waiting::Unreadable,
            });
        }
        Leave::Fatal(failure) => {
            drop(candidate);
            (shared.failed)(failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::read::tuner::Setting;
    use crate::pipeline::{Ticket, Verdicts};
    use crate::settings::{Concurrency, Purpose, RawSettings};
    use sha2::Digest as _;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// Candidates in a staging directory, and what so many readers of them share.
    fn shared(root: &Path, sizes: &[u64], readers: usize) -> Arc<ReaderShared> {
        let readers = Concurrency::Fixed(readers.try_into().unwrap());
        let staging = root.join("staging");
        std::fs::create_dir(&staging).unwrap();
        let raw = RawSettings {
            environment: vec![("RINGEST_INPUT".into(), staging.clone().into())],
            ..RawSettings::default()
        };
        let settings = raw.resolve(Purpose::Store).unwrap().settings;
        let dir = Arc::new(open::root_dir(&staging).unwrap());
        let input = Arc::new(Input {
            id: SourceId(1),
            settings: settings.sources[0].clone(),
            root: stat::stat_fd(&dir).unwrap(),
            dir,
            leases: false,
            inotify: false,
            copy: false,
            claim: None,
        });
        let candidates = Arc::new(Queue::new(sizes.len()));
        let verdicts = Verdicts::new().unwrap();
        for (number, &size) in sizes.iter().enumerate() {
            let name = format!("{number}");
            let file = File::create(staging.join(&name)).unwrap();
            file.set_len(size).unwrap();
            file.write_all_at(name.as_bytes(), size - 1).unwrap();
            let path: Arc<Path> = Path::new(&name).into();
            let pushed = candidates.try_push(Candidate {
                owner: 0,
                identity: stat::stat_fd(&file).unwrap().identity,
                input: Arc::clone(&input),
                proof: Proof::Settled,
                copy: false,
                seen_at: Instant::now(),
                settled_at: Instant::now(),
                turn: None,
                shares: Shares::default(),
                ticket: Ticket::new(input.id, path, Arc::clone(&verdicts)),
            });
            pushed.unwrap();
        }
        // Files that changed a moment ago would be sent back.
        std::thread::sleep(TICK * 2);
        let warehouse = Arc::new(open::root_dir(root).unwrap());
        Arc::new(ReaderShared {
            candidates,
            large: Arc::new(Large::new(4 * sizes.len())),
            governor: Governor::new(readers, Arc::default()),
            pace: Pace::new(0),
            idle: AtomicUsize::new(0),
            staged: Arc::new(Queue::new(sizes.len())),
            reserve: Arc::new(Reserve::new(
                0,
                (root.into(), Arc::clone(&warehouse)),
                Vec::new(),
            )),
            warehouse,
            io: IoChoice::Auto,
            methods: Methods::new(&settings),
            checks: Arc::default(),
            hash_lanes: 3,
            unnamed_copies: true,
            suspicion: None,
            disk: RealDisk {
                durable: false,
                syncfs: false,
                lease_signal: None,
            },
            lease_signal: 0,
            stopping: Arc::default(),
            metrics: Arc::new(Metrics::new()),
            failed: Box::new(|failure| panic!("{failure}")),
        })
    }

    #[test]
    fn two_readers_share_large_files_and_fill_their_lanes_and_small_ones_pass() {
        let root = tempfile::tempdir().unwrap();
        let large = LARGE_BYTES + 77;
        let sizes = [large, large, 5, large, large, 300_000, large, large, large];
        let shared = shared(root.path(), &sizes, 2);
        let mut readers = [(); 2].map(|()| Reader::new(Arc::clone(&shared)).unwrap().0);
        let mut open = Vec::new();
        for turn in 0..4 {
            let reader = &mut readers[turn % 2];
            assert!(reader.sit() && reader.take_candidates());
            let files = reader.slots.iter().flatten();
            let (large, small): (Vec<_>, Vec<_>) = files.partition(|file| file.large.is_some());
            open.push((large.len(), small.len()));
        }
        assert_eq!(open, [(1, 2), (2, 0), (3, 2), (3, 0)]);
        assert_eq!(shared.large.depth(), 1);

        shared.candidates.close();
        for mut reader in readers {
            reader.run().unwrap();
        }
        assert_eq!(shared.large.open(), 0);
        let bytes_read = shared.metrics.bytes_read.load(Ordering::Relaxed);
        assert_eq!(bytes_read, sizes.iter().sum::<u64>());
        for _ in sizes {
            let staged = shared.staged.try_pop().expect("all are staged");
            let path = root.path().join("staging").join(staged.candidate.path());
            let oracle = sha2::Sha256::digest(std::fs::read(path).unwrap());
            assert_eq!(staged.digest, <[u8; 32]>::from(oracle));
            staged.candidate.ticket.close(Fate::Done);
        }
    }

    #[test]
    fn a_reader_too_many_ends_with_nothing_open_and_nothing_left_where_nobody_looks() {
        // What is left behind goes back to the others, is read if they may not look again, or back to staging in a pause.
        let cases = [
            (false, false, (2, 1), 4),
            (true, false, (3, 0), 4),
            (false, true, (2, 0), 3),
        ];
        for (closed, paused, then, in_the_end) in cases {
            let root = tempfile::tempdir().unwrap();
            let shared = shared(root.path(), &[LARGE_BYTES + 1; 4], 2);
            let mut readers = [(); 2].map(|()| Reader::new(Arc::clone(&shared)).unwrap().0);
            for reader in &mut readers {
                assert!(reader.sit() && reader.take_candidates());
            }
            let open = |reader: &Reader| reader.slots.iter().flatten().count();
            assert_eq!(readers.each_ref().map(open), [1, 2]);
            assert_eq!(shared.large.depth(), 1);

            let one = Setting {
                readers: 1,
                files: 8,
            };
            shared.governor.apply(one);
            shared.governor.close();
            if closed {
                shared.candidates.close();
            }
            if paused {
                shared.metrics.pause("a test");
            }
            let [mut first, mut second] = readers;
            second.run().unwrap();
            assert_eq!(open(&second), 0);
            assert_eq!(shared.large.depth(), 0);
            assert_eq!((shared.staged.depth(), shared.candidates.depth()), then);

            shared.candidates.close();
            first.run().unwrap();
            assert_eq!(shared.staged.depth(), in_the_end);
        }
    }

    #[test]
    fn a_pause_sends_back_all_that_was_left_to_others_before_anybody_waits_for_more() {
        let root = tempfile::tempdir().unwrap();
        let shared = shared(root.path(), &[LARGE_BYTES + 1; 4], 1);
        let (mut reader, _) = Reader::new(Arc::clone(&shared)).unwrap();
        assert!(reader.sit());
        while let Some(candidate) = shared.candidates.try_pop() {
            let uploader = candidate.uploader();
            assert!(shared.large.push(uploader, candidate, true).is_ok());
        }
        shared.metrics.pause("a test");
        shared.candidates.close();
        assert!(matches!(reader.next_candidate(), Next::NothingEver));
        assert_eq!(shared.large.depth(), 0);
    }

    #[test]
    fn who_is_asked_to_stop_reads_small_files_to_the_end_and_leaves_large_ones() {
        let root = tempfile::tempdir().unwrap();
        let shared = shared(root.path(), &[4 * LARGE_BYTES, 700_000], 1);
        let (mut reader, _) = Reader::new(Arc::clone(&shared)).unwrap();
        assert!(reader.sit() && reader.take_candidates());
        assert_eq!(reader.slots.iter().flatten().count(), 2);
        shared.stopping.store(true, Ordering::Relaxed);
        shared.candidates.close();
        reader.run().unwrap();
        let staged = shared.staged.try_pop().expect("the small one");
        assert_eq!(staged.stat.identity.size, 700_000);
        assert_eq!(shared.staged.depth(), 0);
    }

    #[test]
    fn what_changed_while_it_was_read_is_read_again_and_counted_again() {
        let root = tempfile::tempdir().unwrap();
        let shared = shared(root.path(), &[200_000], 1);
        let (mut reader, _) = Reader::new(Arc::clone(&shared)).unwrap();
        let candidate = shared.candidates.try_pop().expect("one");
        let (input, path) = (Arc::clone(&candidate.input), candidate.path().into());
        let verdicts = Verdicts::new().unwrap();
        let mut next = Candidate {
            owner: 0,
            identity: candidate.identity,
            proof: Proof::Settled,
            copy: false,
            seen_at: Instant::now(),
            settled_at: Instant::now(),
            turn: None,
            shares: Shares::default(),
            ticket: Ticket::new(input.id, path, verdicts),
            input,
        };
        assert!(reader.sit());
        reader.start(0, candidate, None);
        let bytes_read = || shared.metrics.bytes_read.load(Ordering::Relaxed);
        let mut done = Vec::new();
        while bytes_read() < 200_000 {
            reader.engine.wait(&mut done).unwrap();
            for ended in done.drain(..) {
                reader.arrived(ended);
            }
        }
        let path = root.path().join("staging/0");
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"more", 200_000).unwrap();
        reader.hash_what_is_here();
        reader.move_on();
        assert!(shared.staged.try_pop().is_none());

        std::thread::sleep(TICK * 2);
        next.identity = stat::stat_fd(&file).unwrap().identity;
        shared.candidates.try_push(next).unwrap();
        shared.candidates.close();
        reader.run().unwrap();
        assert_eq!(shared.staged.depth(), 1);
        assert_eq!(bytes_read(), 200_000 + 200_004);
    }

    #[test]
    fn a_way_to_copy_that_ends_half_way_is_not_taken_again() {
        for (issued, then) in [(0, CopyMethod::CopyFileRange), (3, CopyMethod::Write)] {
            let root = tempfile::tempdir().unwrap();
            let mut shared = shared(root.path(), &[2 << 20], 1);
            let method = CopyMethod::CopyFileRange;
            Arc::get_mut(&mut shared).expect("nobody else's").methods = Methods::of(method);
            let (mut reader, _) = Reader::new(Arc::clone(&shared)).unwrap();
            let mut candidate = shared.candidates.try_pop().expect("one");
            candidate.copy = true;
            let source = candidate.input.id;
            reader.start(0, candidate, None);
            let file = reader.slots[0].as_mut().expect("it is open");
            assert_eq!(file.copy.as_ref().unwrap().by_kernel(), Some(method));
            file.issued = issued;
            // A full disk says nothing about the way.
            reader.copy_failed(0, Errno::NOSPC.into());
            assert_eq!(shared.methods.copy(source), method);
            let file = reader.slots[0].as_mut().unwrap();
            assert!(matches!(
                file.leaving.take(),
                Some(Leave::With(Fate::NoRoom(_)))
            ));
            if then == CopyMethod::Write {
                reader.copy_failed(0, Errno::OPNOTSUPP.into());
                let file = reader.slots[0].as_ref().unwrap();
                let again = matches!(file.leaving, Some(Leave::With(Fate::Again { .. })));
                assert!(again, "its next turn is soon");
            }
            assert_eq!(shared.methods.copy(source), then);
        }
    }

    #[test]
    fn a_direct_write_that_is_refused_or_ends_early_is_made_up_for() {
        let size = (3 << 20) + 77;
        type Ending = fn(u64, usize) -> io::Result<usize>;
        let endings: [(Ending, bool); 4] = [
            (|_, bytes| Ok(bytes), true),
            (|_, _| Err(Errno::INVAL.into()), true),
            (
                |number, bytes| Ok(if number == 3 { 4096 } else { bytes }),
                true,
            ),
            (|_, _| Err(Errno::NOSPC.into()), false),
        ];
        for (ending, arrives) in endings {
            // /tmp may have no disk.
            let beside = std::env::current_exe().unwrap();
            let root = tempfile::tempdir_in(beside.parent().unwrap()).unwrap();
            let mut shared = shared(root.path(), &[size], 1);
            let parts = Arc::get_mut(&mut shared).expect("nobody else's");
            parts.methods = Methods::of(CopyMethod::Write);
            parts.disk.durable = true;
            let (mut reader, _) = Reader::new(Arc::clone(&shared)).unwrap();
            let mut candidate = shared.candidates.try_pop().expect("one");
            candidate.copy = true;
            let path = candidate.input.absolute(candidate.path());
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            candidate.identity = stat::stat_fd(File::open(&path).unwrap()).unwrap().identity;
            std::thread::sleep(TICK * 2);
            reader.start(0, candidate, None);
            let (mut done, mut written) = (Vec::new(), 0);
            while reader.slots[0].is_some() {
                reader.engine.wait(&mut done).unwrap();
                for mut ended in done.drain(..) {
                    if let (_, Kind::Write(number)) = named(ended.token) {
                        // What is said to be missing is missing.
                        let file = reader.slots[0].as_ref().unwrap();
                        let write = file.writes.iter().find(|write| write.number == number);
                        let write = write.expect("it is in flight");
                        let bytes = ending(number, ended.bytes.unwrap());
                        let kept = *bytes.as_ref().unwrap_or(&0);
                        let missing = vec![1; write.length.saturating_sub(kept)];
                        let copy = file.copy.as_ref().unwrap();
                        direct::set(copy.fd(), false).unwrap();
                        copy.write(&missing, write.offset + kept as u64).unwrap();
                        direct::set(copy.fd(), copy.is_direct()).unwrap();
                        written += 1;
                        ended.bytes = bytes;
                    }
                    reader.arrived(ended);
                }
                reader.hash_what_is_here();
                reader.move_on();
            }
            assert!(written > 0, "nothing was written directly");
            assert_eq!(shared.staged.depth(), usize::from(arrives));
            if let Some(staged) = shared.staged.try_pop() {
                let copy = staged.copy.expect("a copy");
                let mut content = vec![1; size as usize + 1];
                let read = rustix::io::pread(&copy.file, &mut content, 0).unwrap();
                assert!(content[..read] == bytes);
                assert_eq!(copy.stat.identity.size, size);
            }
        }
    }

    #[test]
    fn a_reader_opens_as_many_files_as_it_may() {
        let root = tempfile::tempdir().unwrap();
        let shared = shared(root.path(), &[5; 6], 1);
        let (mut reader, _) = Reader::new(Arc::clone(&shared)).unwrap();
        for (files, open) in [(2, 2), (1, 2), (4, 4), (8, 6)] {
            shared.governor.apply(Setting { readers: 1, files });
            assert!(reader.sit() && reader.take_candidates());
            assert_eq!(reader.slots.iter().flatten().count(), open);
        }
    }

    #[test]
    fn a_large_file_of_somebody_else_and_a_small_one_are_opened_at_once_when_all_lanes_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let mut sizes = [LARGE_BYTES + 1; 7];
        sizes[6] = 5;
        let shared = shared(root.path(), &sizes, 1);
        let few = Setting {
            readers: 1,
            files: 2,
        };
        let (mut reader, _) = Reader::new(Arc::clone(&shared)).unwrap();
        let mut all: Vec<Candidate> = std::iter::from_fn(|| shared.candidates.try_pop()).collect();
        let small = all.pop().unwrap();
        let mut other = all.pop().unwrap();
        other.owner = 2002;
        for candidate in all {
            shared.candidates.try_push(candidate).unwrap();
        }
        assert!(reader.sit() && reader.take_candidates());
        let open = |reader: &Reader| {
            let files = reader.slots.iter().flatten().count();
            (files - reader.large_open(), reader.large_open())
        };
        assert_eq!(open(&reader), (0, 3));
        // Fewer files than it has large ones open.
        shared.governor.apply(few);
        shared.candidates.try_push(other).unwrap();
        assert!(reader.take_candidates());
        assert_eq!(open(&reader), (0, 4));
        shared.candidates.try_push(small).unwrap();
        assert!(reader.take_candidates());
        assert_eq!(open(&reader), (1, 4));
        assert_eq!(shared.large.depth(), 2);
    }

    #[test]
    fn what_is_left_of_an_interval() {
        let second = Duration::from_secs(1);
        assert_eq!(rest_of(0, second), Some(second));
        assert_eq!(rest_of(400_000_000, second), Some(second * 6 / 10));
        assert_eq!(rest_of(1_000_000_000, second), None);
        assert_eq!(rest_of(i128::from(u64::MAX) * 2, second), None);
        assert_eq!(rest_of(-1, second), None);
        assert_eq!(rest_of(0, Duration::ZERO), None);
    }
}
