//! Reading: each file once, from its first byte to its last, hashed and (across filesystems) copied on the way.

pub mod access;
pub mod checks;
pub mod copy;
pub mod digest;
mod governor;
pub mod inspect;
pub mod judge;
mod large;
pub mod method;
mod named_values;
mod pace;
mod reader;
mod sha256;
pub mod sidecar;
mod tuner;

pub use governor::Governor;
pub use large::Large;
pub use pace::Pace;
pub use reader::{Reader, ReaderShared, is_large, nothing_to_ingest, sidecar_path};
