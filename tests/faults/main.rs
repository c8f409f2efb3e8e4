//! What the system can refuse: a sync, a descriptor, a byte, an inode, an event, a ring. Nothing is lost, nothing comes
//! twice, and what is said about it is right.

#[path = "../support/mod.rs"]
mod support;

mod filesystems;
mod kernel;
mod limits;
mod readers;
mod syncs;

use support::{output, through};
