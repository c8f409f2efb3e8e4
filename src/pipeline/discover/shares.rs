//! What files of some sources need before they are handed on: memory for documents that are gathered to be parsed, and a place among
//! those that a source's `check_command` is run for. Files for which there is none wait here, so that none of another source waits
//! behind them.

use std::sync::Arc;
use std::time::Instant;

use crate::pipeline::queue::{Budget, Fair, Share};
use crate::pipeline::read::checks;
use crate::pipeline::read::inspect::gathered_bytes;
use crate::pipeline::{Candidate, Input, Uploader};

/// The shares of one file, given back when they are dropped.
#[derive(Debug, Default)]
pub struct Shares {
    /// Of the memory for documents. Needed until the file is read.
    pub memory: Option<Share>,
    /// Of the places for files that are checked by a command. Needed until it ended.
    pub check: Option<Share>,
    /// Of the bytes that wait in the queue. Needed until it is opened.
    pub queue: Option<Share>,
}

/// What the files of one source need.
#[derive(Default)]
pub struct Needs {
    memory: Option<Arc<Budget>>,
    checks: Option<Arc<Budget>>,
}

/// Settled files of one source without an order, that wait for their shares.
pub struct Scarce {
    needs: Needs,
    waiting: Fair<Candidate>,
}

impl Needs {
    /// What files of that source need. `memory` is for the documents of all sources.
    pub fn of(input: &Input, memory: &Arc<Budget>) -> Needs {
        let rules = &input.settings.content;
        let command = rules.command.as_ref();
        Needs {
            memory: rules.gathers().then(|| Arc::clone(memory)),
            checks: command.map(|command| Budget::new(checks::files_ahead(command) as u64)),
        }
    }

    /// Whether there is nothing that they need.
    pub fn are_none(&self) -> bool {
        self.memory.is_none() && self.checks.is_none()
    }

    /// Gives a file what it needs. False: there is too little left.
    pub fn give(&self, candidate: &mut Candidate) -> bool {
        let rules = &candidate.input.settings.content;
        let bytes = gathered_bytes(rules, candidate.identity.size);
        let who = u64::from(candidate.input.id.0);
        let take = |budget: &Option<Arc<Budget>>, amount| match budget {
            Some(budget) => budget.take_in_turn(who, amount, Instant::now()).map(Some),
            None => Some(None),
        };
        // Who has no place needs no memory.
        let given =
            take(&self.checks, 1).and_then(|check| Some((check, take(&self.memory, bytes)?)));
        let Some((check, memory)) = given else {
            return false;
        };
        candidate.shares = Shares {
            memory,
            check,
            queue: None,
        };
        true
    }
}

impl Scarce {
    /// Nothing yet; `None` for a source whose files need nothing.
    pub fn new(needs: Needs) -> Option<Scarce> {
        (!needs.are_none()).then(|| Scarce {
            needs,
            waiting: Fair::default(),
        })
    }

    /// Adds a settled file.
    pub fn add(&mut self, candidate: Candidate) {
        self.waiting.push(candidate.uploader(), candidate);
    }

    /// Adds one that was handed on and comes back.
    pub fn take_back(&mut self, mut candidate: Candidate) {
        candidate.shares = Shares::default();
        self.waiting.push_front(candidate.uploader(), candidate);
    }

    /// The one whose turn it is, with its shares, if there are any for it. Owners take turns.
    pub fn next_with_shares(&mut self) -> Option<Candidate> {
        let first = self.waiting.front_mut()?;
        match self.needs.give(first) {
            true => self.waiting.pop(),
            false => None,
        }
    }

    /// How many of that uploader wait, and of how many any do.
    pub fn of(&self, uploader: Uploader) -> (usize, usize) {
        self.waiting.of(uploader)
    }

    /// Takes out the file of that uploader that was added last.
    pub fn take_last(&mut self, of: Uploader) -> Option<Candidate> {
        self.waiting.pop_back(of)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets those that wait.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}
