//! One line on a terminal that says how far it is.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::observe::control;
use crate::observe::metrics::{Status, grouped};

/// How often the line is drawn.
const REDRAW_REST: Duration = Duration::from_millis(200);
/// Cells of the bar.
const BAR_CELLS: usize = 30;
/// Erases the line to its end (ECMA-48, EL).
const ERASE: &str = "\r\x1b[K";

/// The line, or nothing where nobody looks.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    what: &'static str,
    all: u64,
    next: Instant,
}

impl Progress {
    /// On stderr, if that is a terminal.
    pub fn on_terminal() -> Progress {
        Progress {
            shown: io::stderr().is_terminal(),
            ..Progress::hidden()
        }
    }

    /// Shows nothing.
    pub fn hidden() -> Progress {
        Progress {
            shown: false,
            what: "",
            all: 0,
            next: Instant::now(),
        }
    }

    /// Something begins, with so many files (0: there is nothing to count).
    pub fn begin(&mut self, what: &'static str, all: u64) {
        (self.what, self.all) = (what, all);
        self.draw(0);
    }

    /// So many of them are done.
    pub fn show(&mut self, done: u64) {
        if self.shown && Instant::now() >= self.next {
            self.draw(done);
        }
    }

    /// The same, as a running instance tells. It is asked only if somebody looks.
    pub fn ask(&mut self, socket: &Path) {
        if !self.shown || Instant::now() < self.next {
            return;
        }
        let answer = control::ask(socket).ok().flatten();
        let status = answer.and_then(|json| serde_json::from_str::<Status>(&json).ok());
        match status {
            Some(status) => self.draw(status.files.ingested + status.files.duplicate),
            None => self.next = Instant::now() + REDRAW_REST,
        }
    }

    /// Removes the line.
    pub fn clear(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "{ERASE}");
        }
    }

    fn draw(&mut self, done: u64) {
        if self.shown {
            let line = line(self.what, done, self.all);
            let _ = write!(io::stderr(), "{ERASE}{line}");
            self.next = Instant::now() + REDRAW_REST;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(what: &str, done: u64, all: u64) -> String {
    if all == 0 {
        return format!("{what} …");
    }
    let done = done.min(all);
    let filled = (BAR_CELLS as u64 * done / all) as usize;
    let bar = "#".repeat(filled) + &"-".repeat(BAR_CELLS - filled);
    let (done, all) = (grouped(done), grouped(all));
    format!("{what} [{bar}] {done} of {all}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_full_as_the_work_is_done() {
        let bar = |filled| "#".repeat(filled) + &"-".repeat(BAR_CELLS - filled);
        let text = |done| line("making", done, 3000);
        assert_eq!(text(0), format!("making [{}] 0 of 3,000", bar(0)));
        assert_eq!(text(1500), format!("making [{}] 1,500 of 3,000", bar(15)));
        assert_eq!(text(9000), format!("making [{}] 3,000 of 3,000", bar(30)));
        assert_eq!(line("syncing", 0, 0), "syncing …");
    }
}
