//! Limits of the process: open files, core dumps.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit};

static FORMER: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit on descriptors to the hard one. Returns it.
pub fn raise_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = FORMER.set(limit);
    let _ = rustix::process::setrlimit(Resource::Nofile, wanted);
    rustix::process::getrlimit(Resource::Nofile)
        .current
        .unwrap_or(u64::from(u32::MAX))
}

/// The limit before it was raised.
pub fn former_limit() -> Option<Rlimit> {
    FORMER.get().copied()
}

/// Has nothing dumped when the process aborts: a dump would hold what is in files and in the ledger. Its children inherit that.
pub fn forbid_core_dumps() {
    let maximum = rustix::process::getrlimit(Resource::Core).maximum;
    let none = Rlimit {
        current: Some(0),
        maximum,
    };
    let _ = rustix::process::setrlimit(Resource::Core, none);
}
