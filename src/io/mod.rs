//! The only door to the kernel.

pub mod lease;
pub mod probe;
