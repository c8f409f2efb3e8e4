//! A disk that this process plays: a file on a FUSE filesystem, and a loop device over it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use crate::log::{DiskId, Image, Log, Op};
use crate::support::{PATIENCE, make_filesystem, output};

/// Which requests fail with EIO.
#[derive(Default)]
pub enum Fault {
    #[default]
    None,
    /// Writes whose bytes contain these.
    WritesWith(Vec<u8>),
    /// The flush after so many others, and every one after it.
    FlushesFrom(u64),
}

/// What a disk is at a moment.
#[derive(Default)]
struct State {
    image: Image,
    log: Option<(Arc<Log>, DiskId)>,
    fault: Fault,
    /// Requests that failed since the fault was set.
    failed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
        }
    }

    /// The least that its mkfs takes without complaint; the image is sparse.
    pub fn size(self) -> u64 {
        match self {
            Kind::Ext4 => 64 << 20,
            Kind::Xfs => 320 << 20,
            Kind::Btrfs => 256 << 20,
        }
    }

    /// What the disk writes as a whole. xfs is made for sectors of 512 bytes. The superblock of ext4 has a checksum over 1 KiB,
    /// that of btrfs over 4 KiB, and they do not mount if a disk tears that.
    pub fn sector(self) -> usize {
        match self {
            Kind::Xfs => 512,
            Kind::Ext4 => 1024,
            Kind::Btrfs => 4096,
        }
    }

    fn mkfs(self) -> &'static [&'static str] {
        match self {
            Kind::Ext4 => &["mkfs.ext4", "-qF", "-E", "nodiscard,lazy_itable_init=0"],
            Kind::Xfs => &["mkfs.xfs", "-qfK"],
            Kind::Btrfs => &["mkfs.btrfs", "-qfK"],
        }
    }

    fn options(self) -> &'static str {
        match self {
            Kind::Ext4 => "",
            Kind::Xfs => "nouuid",
            Kind::Btrfs => "nodiscard",
        }
    }
}

/// A loop device, and where it is mounted.
pub struct Disk {
    pub kind: Kind,
    state: Arc<Mutex<State>>,
    /// Where this process serves the disk's content.
    served: PathBuf,
    device: PathBuf,
    mountpoint: PathBuf,
    mounted: bool,
    session: Option<BackgroundSession>,
    /// Holds the mount points. Last: it goes when nothing is mounted in it any more.
    _directory: TempDir,
}

impl Disk {
    /// A disk with an empty filesystem, not mounted.
    pub fn new(kind: Kind) -> Disk {
        let directory = tempfile::Builder::new()
            .prefix("ringest-blocks-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("make a directory");
        let (served, mountpoint) = (directory.path().join("disk"), directory.path().join("fs"));
        std::fs::create_dir(&served).expect("make a mount point");
        std::fs::create_dir(&mountpoint).expect("make a mount point");
        let state = Arc::<Mutex<State>>::default();
        let server = Server {
            size: kind.size(),
            state: Arc::clone(&state),
        };
        let session =
            fuser::spawn_mount(server, &served, &Config::default()).expect("mount through FUSE");
        let device = output(
            Command::new("losetup")
                .args(["-f", "--show", "-b"])
                .arg(kind.sector().to_string())
                .arg(served.join("disk")),
        );
        let disk = Disk {
            kind,
            state,
            served,
            device: device.trim().into(),
            mountpoint,
            mounted: false,
            session: Some(session),
            _directory: directory,
        };
        let mkfs = kind.mkfs();
        make_filesystem(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&disk.device));
        disk
    }

    /// Where it is, or will be, mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    pub fn mount(&mut self) -> std::io::Result<()> {
        let options = std::ffi::CString::new(self.kind.options()).expect("no NUL");
        rustix::mount::mount(
            &self.device,
            &self.mountpoint,
            self.kind.name(),
            MountFlags::empty(),
            &*options,
        )?;
        self.mounted = true;
        Ok(())
    }

    pub fn unmount(&mut self) {
        if std::mem::take(&mut self.mounted) {
            unmount(&self.mountpoint).expect("unmount");
        }
    }

    /// Makes it hold something else. Not while it is mounted.
    pub fn replace(&mut self, image: Image) {
        assert!(!self.mounted);
        self.state.lock().expect("disk").image = image;
    }

    /// From now on notes everything in a log. Returns what it holds at that moment.
    pub fn log_to(&self, log: &Arc<Log>, id: DiskId) -> Image {
        let mut state = self.state.lock().expect("disk");
        state.log = Some((Arc::clone(log), id));
        state.image.clone()
    }

    pub fn stop_logging(&self) {
        self.state.lock().expect("disk").log = None;
    }

    /// From now on fails like this.
    pub fn fail(&self, fault: Fault) {
        let mut state = self.state.lock().expect("disk");
        state.fault = fault;
        state.failed = 0;
    }

    /// How many requests failed since that was asked for.
    pub fn failed(&self) -> u64 {
        self.state.lock().expect("disk").failed
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH);
        }
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
        let _ = unmount(&self.served);
        if let Some(session) = self.session.take() {
            let _ = session.join();
        }
    }
}

/// The kernel may take down a ring, with the files it had open, a moment after its process has ended, and lets go of
/// the file under a loop device in its own time.
fn unmount(path: &Path) -> std::io::Result<()> {
    let start = Instant::now();
    loop {
        match rustix::mount::unmount(path, UnmountFlags::empty()) {
            Err(Errno::BUSY) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            unmounted => return Ok(unmounted?),
        }
    }
}

/// One file, `disk`, in a directory. Does one request after the other.
struct Server {
    size: u64,
    state: Arc<Mutex<State>>,
}

const DISK: INodeNo = INodeNo(2);
/// Nothing changes but by what the kernel itself asks for.
const FOREVER: Duration = Duration::from_secs(1 << 30);

impl Server {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let directory = inode == INodeNo::ROOT;
        FileAttr {
            ino: inode,
            size: if directory { 0 } else { self.size },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: match directory {
                true => FileType::Directory,
                false => FileType::RegularFile,
            },
            perm: if directory { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("disk") => reply.entry(&FOREVER, &self.attributes(DISK), Generation(0)),
            _ => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Nothing is cached between the loop device and this.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = u64::from(size).min(self.size.saturating_sub(offset));
        let mut bytes = vec![0; size as usize];
        self.state
            .lock()
            .expect("disk")
            .image
            .read(offset, &mut bytes);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state.lock().expect("disk");
        if let Fault::WritesWith(part) = &state.fault
            && bytes.windows(part.len()).any(|window| window == part)
        {
            state.failed += 1;
            return reply.error(fuser::Errno::EIO);
        }
        state.image.write(offset, bytes);
        if let Some((log, disk)) = &state.log {
            let bytes = bytes.into();
            log.push(*disk, Op::Write { offset, bytes });
        }
        reply.written(bytes.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.state.lock().expect("disk");
        match &mut state.fault {
            Fault::FlushesFrom(0) => {
                state.failed += 1;
                return reply.error(fuser::Errno::EIO);
            }
            Fault::FlushesFrom(left) => *left -= 1,
            _ => {}
        }
        if let Some((log, disk)) = &state.log {
            log.push(*disk, Op::Flush);
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Of a descriptor, at close: not of the disk.
        reply.ok();
    }
}
