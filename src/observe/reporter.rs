//! The `summary` event every interval.

use std::sync::Arc;
use std::time::Duration;

use super::metrics::{Metrics, Summary};

/// A thread that reports every interval; ends when dropped.
#[derive(Debug)]
pub struct Reporter {}

impl Reporter {
    /// Starts it. An interval of zero reports nothing but the end.
    pub fn start(metrics: Arc<Metrics>, interval: Duration) -> Reporter {
        todo!()
    }

    /// Ends it, emits a last summary with the rates of the whole run, and returns it.
    pub fn final_summary(self) -> Summary {
        todo!()
    }
}
