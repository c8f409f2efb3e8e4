//! The only door to the kernel. `record/` goes through [`Disk`], so that a simulated disk can stand in for the
//! real one; discovery and the readers use the plain calls gathered here.

// The methods that clippy.toml keeps from everybody else.
#![allow(clippy::disallowed_methods)]

pub mod buffer;
pub mod child;
pub mod clock;
pub mod command;
pub mod descriptors;
pub mod direct;
pub mod disk;
pub mod lease;
pub mod lease_keeper;
pub mod lock;
pub mod memory;
pub mod open;
pub mod priority;
pub mod probe;
pub mod read_engine;
pub mod reserve;
pub mod scratch;
pub mod stat;
pub mod strays;

pub use clock::Clock;
pub use disk::{Disk, RealDisk};
pub use reserve::Reserve;
pub use stat::{FileStat, Identity, TICK, Timestamp};
