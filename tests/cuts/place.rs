//! Where a site's four directories lie, and how its processes and its disks come to an end.

use std::path::PathBuf;

use crate::support::Site;
use crate::support::image::{Apart, Disk, Fs};
use crate::support::program::{Program, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// Everything on one filesystem: files are renamed.
    Same,
    /// The staging directory on another one: files are copied.
    Other,
    /// Everything on one filesystem, but files cannot be renamed into the warehouse: where the filesystem can, they are cloned.
    Apart,
    /// Each directory on its own.
    Each,
}

impl Layout {
    pub const ALL: [Layout; 4] = [Layout::Same, Layout::Other, Layout::Apart, Layout::Each];

    /// On which disk each is: staging, warehouse, manifests, state.
    fn disks(self) -> [usize; 4] {
        match self {
            Layout::Same | Layout::Apart => [0, 0, 0, 0],
            Layout::Other => [1, 0, 0, 0],
            Layout::Each => [1, 0, 2, 3],
        }
    }

    pub fn copies(self) -> bool {
        self != Layout::Same
    }
}

/// How a run is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Crash {
    Kill,
    /// Everything that it may have started too.
    KillGroup,
    Cut,
}

/// Disks, each of which outlives many sites.
pub struct Machine {
    pub directory: PathBuf,
    kinds: [Fs; 4],
    disks: Vec<Disk>,
}

impl Machine {
    /// The disks, which are made when they are needed, are of these kinds.
    pub fn new(kinds: [Fs; 4], directory: PathBuf) -> Machine {
        std::fs::create_dir(&directory).expect("make a directory for images");
        Machine {
            directory,
            kinds,
            disks: Vec::new(),
        }
    }

    /// A new place on these disks; nothing of it is there yet.
    pub fn place(&mut self, layout: Layout, name: &str) -> Place<'_> {
        let disks = layout.disks();
        for number in self.disks.len()..=disks.into_iter().max().expect("four") {
            let disk = Disk::new(
                self.kinds[number],
                &self.directory,
                &format!("disk{number}"),
            );
            self.disks.push(disk);
        }
        let names = ["staging", "warehouse", "manifests", "state"];
        let at = |i: usize| self.disks[disks[i]].root.join(name).join(names[i]);
        let site = Site::at(&self.directory, [at(0), at(1), at(2), at(3)]);
        let apart = (layout == Layout::Apart).then(|| Apart::new(self.kinds[0], &site.warehouse));
        let used = self.disks.iter_mut().enumerate();
        Place {
            site,
            apart,
            log: self.directory.join(format!("{name}.log")),
            name: name.to_owned(),
            disks: used
                .filter(|(number, _)| disks.contains(number))
                .map(|(_, disk)| disk)
                .collect(),
        }
    }
}

pub struct Place<'a> {
    pub site: Site,
    /// The log of all of its runs.
    pub log: PathBuf,
    name: String,
    apart: Option<Apart>,
    disks: Vec<&'a mut Disk>,
}

impl Place<'_> {
    /// Everything written so far reaches the disks.
    pub fn sync(&self) {
        for disk in &self.disks {
            let root = std::fs::File::open(&disk.root).expect("open the root");
            rustix::fs::syncfs(root).expect("syncfs");
        }
    }

    /// Whether a run must be stopped before its power is cut. btrfs is cut by copying it, which takes a while. Several disks
    /// are cut one after the other, and xfs answers the sync of a directory with OK once it is cut (its changes are no
    /// longer pinned in the log; tried, kernel 6.18): a run would go on to the others with what is not so.
    pub fn must_stop_first(&self) -> bool {
        self.disks.len() > 1 || self.disks.iter().any(|disk| disk.fs == Fs::Btrfs)
    }

    /// Ends a run that has stopped at a point, or one that runs.
    pub fn crash(&mut self, program: &mut Program, crash: Crash) -> State {
        let said = std::fs::metadata(&self.log).map_or(0, |log| log.len());
        if crash == Crash::Cut {
            for disk in &mut self.disks {
                disk.cut();
            }
        }
        let status = program.kill(crash == Crash::KillGroup);
        if crash == Crash::Cut {
            // No power cut lets a process speak afterwards. Here it goes on for a moment, with syncs that lie.
            let log = std::fs::File::options().write(true).open(&self.log);
            log.and_then(|log| log.set_len(said)).expect("cut the log");
            if let Some(apart) = &self.apart {
                apart.unmount();
            }
            for disk in &mut self.disks {
                disk.restart();
            }
            if let Some(apart) = &self.apart {
                apart.mount();
            }
        }
        State::Ended(status)
    }

    /// Makes room for the next.
    pub fn remove(mut self) {
        if let Some(apart) = self.apart.take() {
            apart.unmount();
        }
        for disk in &self.disks {
            let directory = disk.root.join(&self.name);
            if let Err(error) = std::fs::remove_dir_all(&directory) {
                assert!(!directory.exists(), "remove {directory:?}: {error}");
            }
        }
        let _ = std::fs::remove_file(&self.log);
    }
}
