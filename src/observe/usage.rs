//! What this process has cost so far, from `/proc` (proc_pid_stat(5), proc_pid_status(5)).

use std::fs;

use serde::{Deserialize, Serialize};

/// Of the whole process, ended threads included. `None` where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in user mode, in steps of the kernel's tick (10 ms).
    pub cpu_user_seconds: Option<f64>,
    /// Processor time in the kernel, likewise.
    pub cpu_system_seconds: Option<f64>,
    /// Most memory that was resident at once, pages of mapped files (the ledger) included.
    pub rss_peak_bytes: Option<u64>,
}

impl Usage {
    /// As of now.
    pub fn now() -> Usage {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Usage {
            cpu_user_seconds: cpu_seconds(&stat, 14),
            cpu_system_seconds: cpu_seconds(&stat, 15),
            rss_peak_bytes: bytes_of(&status, "VmHWM:"),
        }
    }
}

/// Of a `/proc/…/stat`: the field of that number, counted from 1, as processor time.
fn cpu_seconds(stat: &str, number: usize) -> Option<f64> {
    // The second field, a name in parentheses, may hold anything.
    let (_, after_name) = stat.rsplit_once(") ")?;
    let ticks: u64 = after_name.split(' ').nth(number - 3)?.parse().ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Of a `/proc/…/status`: the line of that name, which is in KiB.
pub fn bytes_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_what_it_has_cost() {
        let usage = Usage::now();
        assert!(usage.cpu_user_seconds.is_some() && usage.cpu_system_seconds.is_some());
        assert!(usage.rss_peak_bytes.is_some_and(|bytes| bytes > 100 << 10));
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_shifts_no_field() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4 10 0 0 0 250 50 0 0 20 0 1 0 9 9 9";
        assert_eq!(cpu_seconds(stat, 14), Some(2.5));
        assert_eq!(cpu_seconds(stat, 15), Some(0.5));
        assert_eq!(cpu_seconds("", 14), None);
    }
}
