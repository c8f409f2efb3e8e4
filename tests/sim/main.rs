//! The recorder and its recovery, as they are in production, on a simulated disk with a simulated ledger.
//!
//! | module | what it is |
//! |---|---|
//! | [`disk`] | the disk, and the fault model |
//! | [`ledger`] | the ledger |
//! | [`upload`] | what uploaders do |
//! | [`world`] | readers, operators, crashes and starts |
//! | [`check`] | what must hold |
//! | [`exhaustive`] | every small workload, crashed everywhere |
//! | [`seeds`] | random worlds, their replay and how they are shrunk |
//!
//! | variable | meaning |
//! |---|---|
//! | `RINGEST_SIM_SEEDS` | how many seeds are run (default: 2,000) |
//! | `RINGEST_SIM_FILES` | most files of a workload of the exhaustive core (default: 3) |
//! | `RINGEST_SIM_FIRST_SEED` | the first of them (default: 1) |
//! | `RINGEST_SIM_SEED` | the seed that `replay` runs, with a trace of every event |
//! | `RINGEST_SIM_KEEP` | the numbers of its steps that are run, as a failure prints them |

mod check;
#[path = "../support/counts.rs"]
mod counts;
mod disk;
mod exhaustive;
mod ledger;
mod random;
mod seeds;
mod upload;
mod world;
