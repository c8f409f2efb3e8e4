//! Whose files may be remembered: each source has a part that is its own, and so has each owner within a source.

use std::collections::HashMap;
use std::path::Path;

/// Bytes of a path that count as one file more.
const PATH_BYTES: usize = 512;

/// As how many files one of that path counts: what is remembered of it is no more than its path.
pub fn weight(path: &Path) -> usize {
    1 + path.as_os_str().len() / PATH_BYTES
}

/// How many files of whom are remembered, each by its weight.
#[derive(Debug)]
pub struct Room {
    most: usize,
    all: usize,
    sources: Vec<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    owners: HashMap<u32, usize>,
}

/// Who has to make place for somebody else, and how many files are to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Index of the input.
    pub input: usize,
    /// Who owns them.
    pub owner: u32,
    /// How many.
    pub files: usize,
}

impl Held {
    fn of(&self, owner: u32) -> usize {
        self.owners.get(&owner).copied().unwrap_or(0)
    }

    fn fullest(&self) -> Option<(u32, usize)> {
        let owners = self.owners.iter();
        let (owner, files) = owners.max_by_key(|(_, files)| **files)?;
        Some((*owner, *files))
    }
}

impl Room {
    /// Room for so many files of so many inputs.
    pub fn new(most: usize, inputs: usize) -> Room {
        let sources = std::iter::repeat_with(Held::default).take(inputs).collect();
        Room {
            most,
            all: 0,
            sources,
        }
    }

    /// One more of that weight is remembered.
    pub fn add(&mut self, input: usize, owner: u32, weight: usize) {
        let held = &mut self.sources[input];
        self.all += weight;
        held.all += weight;
        *held.owners.entry(owner).or_default() += weight;
    }

    /// One less.
    pub fn remove(&mut self, input: usize, owner: u32, weight: usize) {
        let held = &mut self.sources[input];
        let Some(files) = held.owners.get_mut(&owner) else {
            return;
        };
        *files -= weight;
        if *files == 0 {
            held.owners.remove(&owner);
        }
        self.all -= weight;
        held.all -= weight;
    }

    /// Whether there is none left.
    pub fn is_full(&self) -> bool {
        self.all >= self.most
    }

    /// Who has to make place for a file of that owner. Half of an even part is everybody's own, and whoever has to make place
    /// loses half of what it has: so it keeps that much, and going through its files is worth it.
    pub fn claim(&self, input: usize, owner: u32) -> Option<Claim> {
        let own = &self.sources[input];
        let from = match own.all < self.most / (2 * self.sources.len()) {
            true => (0..self.sources.len()).max_by_key(|input| self.sources[*input].all)?,
            false => input,
        };
        let held = &self.sources[from];
        let (fullest, files) = held.fullest()?;
        let owners = held.owners.len() + usize::from(own.of(owner) == 0);
        let may = from != input || own.of(owner) < held.all / (2 * owners);
        (may && files > 1).then_some(Claim {
            input: from,
            owner: fullest,
            files: files / 2,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1000;

    /// What everybody has after these came, each with so many files, one after the other: input, owner, files.
    fn after(inputs: usize, came: &[(usize, u32, usize)]) -> Vec<HashMap<u32, usize>> {
        let mut room = Room::new(MOST, inputs);
        for &(input, owner, files) in came {
            for _ in 0..files {
                if room.is_full()
                    && let Some(claim) = room.claim(input, owner)
                {
                    assert_ne!((claim.input, claim.owner), (input, owner));
                    (0..claim.files).for_each(|_| room.remove(claim.input, claim.owner, 1));
                }
                if !room.is_full() {
                    room.add(input, owner, 1);
                }
            }
            assert!(room.all <= MOST);
        }
        room.sources.into_iter().map(|held| held.owners).collect()
    }

    #[test]
    fn whoever_is_alone_may_have_all_and_no_more() {
        assert_eq!(after(3, &[(0, 1, 5000)])[0][&1], MOST);
    }

    #[test]
    fn a_flood_of_one_source_leaves_every_other_its_part() {
        let held = after(4, &[(0, 1, 5000), (1, 1, 125), (2, 2, 125), (3, 3, 125)]);
        assert_eq!((held[1][&1], held[2][&2], held[3][&3]), (125, 125, 125));
        let held = after(4, &[(0, 1, 5000), (1, 1, 125), (0, 1, 5000), (0, 2, 5000)]);
        assert_eq!(held[1][&1], 125, "it keeps what it has");
    }

    #[test]
    fn a_flood_of_one_owner_leaves_every_other_of_its_source_a_part() {
        let held = after(2, &[(0, 1, 5000), (0, 2, 100), (0, 1, 5000), (0, 3, 100)]);
        assert_eq!((held[0][&2], held[0][&3]), (100, 100));
        assert!(held[0][&1] >= MOST / 4);
        // Its other source is none of an owner's business.
        let held = after(2, &[(0, 1, 5000), (1, 1, 250)]);
        assert_eq!(held[1][&1], 250);
    }

    #[test]
    fn what_makes_place_keeps_a_part_itself() {
        let held = after(2, &[(0, 1, 5000), (1, 1, 5000), (0, 1, 5000), (1, 1, 5000)]);
        assert!(held.iter().all(|held| held[&1] >= MOST / 4), "{held:?}");
    }

    #[test]
    fn what_is_forgotten_is_counted_no_more() {
        let mut room = Room::new(9, 1);
        let long = "long/".repeat(800);
        assert_eq!((weight(Path::new("a/b")), weight(Path::new(&long))), (1, 8));
        room.add(0, 1, 8);
        room.add(0, 2, 1);
        assert!(room.is_full());
        room.remove(0, 1, 8);
        room.remove(0, 1, 8);
        assert!(!room.is_full());
        assert_eq!(room.sources[0].owners, HashMap::from([(2, 1)]));
    }
}
