//! Reading: each file once, from its first byte to its last, hashed and (across filesystems) copied on the way.

pub mod copy;
pub mod digest;
pub mod method;
mod reader;
mod sha256;
pub mod sidecar;

pub use reader::{Reader, ReaderShared, sidecar_path};
