//! The limit on open files.

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
