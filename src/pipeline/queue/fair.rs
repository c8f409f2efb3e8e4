//! Items of many uploaders, of which each has its turn: whoever adds a million waits behind them alone.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use crate::ledger::SourceId;
use crate::pipeline::Uploader;

/// Items that are taken in turns: of one source after the other, and of each source of one owner after the other. Those of one
/// uploader keep their order.
#[derive(Debug)]
pub struct Fair<T> {
    sources: Rounds<SourceId, Owners<T>>,
    len: usize,
}

#[derive(Debug)]
struct Owners<T> {
    rounds: Rounds<u32, VecDeque<T>>,
    len: usize,
}

/// Lanes that have something in them, and whose turn comes when.
#[derive(Debug)]
struct Rounds<K, L> {
    lanes: HashMap<K, L>,
    turns: VecDeque<K>,
}

/// What each of `parties` may have of something that another one may want a part of as well.
pub fn part(most: usize, parties: usize) -> usize {
    most / (parties + 1)
}

impl<T> Fair<T> {
    /// Adds an item behind those of its uploader.
    pub fn push(&mut self, of: Uploader, item: T) {
        let owners = self.sources.lane(of.source);
        owners.rounds.lane(of.user).push_back(item);
        owners.len += 1;
        self.len += 1;
    }

    /// Adds one before all others.
    pub fn push_front(&mut self, of: Uploader, item: T) {
        let owners = self.sources.lane(of.source);
        owners.rounds.lane(of.user).push_front(item);
        owners.rounds.is_next(of.user);
        owners.len += 1;
        self.sources.is_next(of.source);
        self.len += 1;
    }

    /// The item that [`Fair::pop`] takes.
    pub fn front_mut(&mut self) -> Option<&mut T> {
        self.sources.front_mut()?.rounds.front_mut()?.front_mut()
    }

    /// Takes an item of whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let pop = |owners: &mut Owners<T>| {
            owners.len -= 1;
            owners.rounds.take(VecDeque::pop_front, VecDeque::is_empty)
        };
        let item = self.sources.take(pop, |owners| owners.len == 0)?;
        self.len -= 1;
        Some(item)
    }

    /// Takes the item of that uploader that was added last.
    pub fn pop_back(&mut self, of: Uploader) -> Option<T> {
        let owners = self.sources.lanes.get_mut(&of.source)?;
        let lane = owners.rounds.lanes.get_mut(&of.user)?;
        let item = lane.pop_back()?;
        if lane.is_empty() {
            owners.rounds.remove(of.user);
        }
        owners.len -= 1;
        if owners.len == 0 {
            self.sources.remove(of.source);
        }
        self.len -= 1;
        Some(item)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many are of that source.
    pub fn of_source(&self, source: SourceId) -> usize {
        self.sources
            .lanes
            .get(&source)
            .map_or(0, |owners| owners.len)
    }

    /// How many are of that uploader, and how many uploaders of its source have any.
    pub fn of(&self, uploader: Uploader) -> (usize, usize) {
        let owners = self.sources.lanes.get(&uploader.source);
        let lanes = owners.map(|owners| &owners.rounds.lanes);
        let own = lanes.and_then(|lanes| lanes.get(&uploader.user));
        (own.map_or(0, VecDeque::len), lanes.map_or(0, HashMap::len))
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Fair::default();
    }
}

impl<T> Default for Fair<T> {
    fn default() -> Fair<T> {
        Fair {
            sources: Rounds::default(),
            len: 0,
        }
    }
}

impl<T> Default for Owners<T> {
    fn default() -> Owners<T> {
        Owners {
            rounds: Rounds::default(),
            len: 0,
        }
    }
}

impl<K, L> Default for Rounds<K, L> {
    fn default() -> Rounds<K, L> {
        Rounds {
            lanes: HashMap::new(),
            turns: VecDeque::new(),
        }
    }
}

impl<K: Copy + Eq + Hash, L> Rounds<K, L> {
    fn lane(&mut self, key: K) -> &mut L
    where
        L: Default,
    {
        self.lanes.entry(key).or_insert_with(|| {
            self.turns.push_back(key);
            L::default()
        })
    }

    fn front_mut(&mut self) -> Option<&mut L> {
        self.lanes.get_mut(self.turns.front()?)
    }

    /// Takes something out of the lane whose turn it is, which comes last then.
    fn take<T>(
        &mut self,
        take: impl FnOnce(&mut L) -> Option<T>,
        is_empty: impl FnOnce(&L) -> bool,
    ) -> Option<T> {
        let key = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&key)?;
        let item = take(lane);
        match is_empty(lane) {
            true => drop(self.lanes.remove(&key)),
            false => self.turns.push_back(key),
        }
        item
    }

    /// Who has just had a turn is the last one.
    fn is_next(&mut self, key: K) {
        if let Some(at) = self.turns.iter().rposition(|turn| *turn == key) {
            self.turns.remove(at);
            self.turns.push_front(key);
        }
    }

    fn remove(&mut self, key: K) {
        self.lanes.remove(&key);
        self.turns.retain(|turn| *turn != key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uploader(source: u16, user: u32) -> Uploader {
        let source = SourceId(source);
        Uploader { source, user }
    }

    #[test]
    fn sources_take_turns_and_so_do_the_owners_within_each() {
        let mut fair = Fair::default();
        for item in ["a1", "a2", "a3", "a4"] {
            fair.push(uploader(1, 2001), item);
        }
        fair.push(uploader(1, 2002), "b1");
        fair.push(uploader(2, 2001), "c1");
        fair.push(uploader(2, 2001), "c2");
        let order: Vec<&str> = std::iter::from_fn(|| fair.pop()).collect();
        assert_eq!(order, ["a1", "c1", "b1", "c2", "a2", "a3", "a4"]);
        assert!(fair.is_empty() && fair.front_mut().is_none());
    }

    #[test]
    fn what_comes_back_is_next_and_what_came_last_goes_first() {
        let (mine, yours) = (uploader(1, 2001), uploader(1, 2002));
        let mut fair = Fair::default();
        for item in 1..=3 {
            fair.push(mine, item);
            fair.push(yours, 10 * item);
        }
        let first = fair.pop().unwrap();
        fair.push_front(mine, first);
        assert_eq!(fair.front_mut().copied(), Some(1));
        assert_eq!(fair.of(mine), (3, 2));
        assert_eq!(fair.pop_back(mine), Some(3));
        assert_eq!(fair.pop_back(uploader(9, 2001)), None);
        assert_eq!((fair.len(), fair.of_source(SourceId(1))), (5, 5));
        while fair.pop_back(mine).is_some() {}
        assert_eq!(fair.of(mine), (0, 1));
        assert_eq!(
            std::iter::from_fn(|| fair.pop()).collect::<Vec<_>>(),
            [10, 20, 30]
        );
    }

    #[test]
    fn whoever_comes_later_finds_a_part_left() {
        let most = 100;
        for parties in 0..10 {
            let taken: usize = (0..parties).map(|_| part(most, parties)).sum();
            assert!(most - taken >= part(most, parties));
        }
    }
}
