//! ringest takes files from staging directories into a date-partitioned warehouse: each read once, recorded exactly
//! once, whatever crashes.
//!
//! ```text
//!     discover ──Candidate──▶ queue ──▶ read ──Staged──▶ record ──▶ warehouse, manifest, ledger
//!     inotify + rescans       bounded,   io_uring readers:  one recorder:
//!     settle: finished?       lock-free  hash (+ copy)      dedupe, place, commit
//! ```
//!
//! In reading order: [`settings`] says what to do, [`ingestor`] wires the threads, [`pipeline`] is the way of a file,
//! [`ledger`] the truth about it, [`io`] the door to the kernel, [`observe`] what is seen from outside,
//! [`bench`](mod@bench) a measurement of all that,
//! [`verify`] the check that ledger, manifests and warehouse agree, [`rebuild`] a new ledger from the others, [`quarantine`] what
//! was set aside and how it comes back, [`outlook`] what would become of a file, [`trial`] what the crash tests take hold of.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod bench;
pub mod cli;
pub mod failure;
pub mod ingestor;
pub mod io;
pub mod ledger;
pub mod observe;
pub mod outlook;
pub mod pipeline;
pub mod quarantine;
pub mod rebuild;
pub mod session;
pub mod settings;
pub mod trial;
pub mod verify;
