//! What ringest shows of itself. The flow never waits on anything here.
//!
//! | module | what it is |
//! |---|---|
//! | [`events`] | one function for each thing that can be observed; the only place that names them |
//! | [`log`] | events as JSON or text lines on stderr and in files, written by threads of their own |
//! | [`mask`] | no card numbers in anything that is told |
//! | [`metrics`] | counters, gauges and latency histograms; what `status` and `summary` show |
//! | [`reporter`] | the `summary` event every interval, and the latencies of each interval in [`hlog`] |
//! | [`hlog`] | interval logs that HdrHistogram's tools read |
//! | [`usage`] | what the process has cost: processor time, memory |
//! | [`control`] | the socket through which `status` asks a running instance |
//! | [`systemd`] | READY, STOPPING and STATUS for `Type=notify` units |

pub mod control;
pub mod events;
pub mod hlog;
pub mod log;
pub mod mask;
pub mod metrics;
mod repeats;
pub mod reporter;
pub mod systemd;
pub mod usage;
