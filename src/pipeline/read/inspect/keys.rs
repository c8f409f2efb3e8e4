//! The keys of JSON objects, so that none is in one object twice.
//!
//! A key is where it stands in the text; only one with escapes is kept. So the keys of a document, of which there may be millions,
//! take few times the bytes of its text, and when they take much it is the only one that does.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard};

use hashbrown::HashTable;
use serde::de::{DeserializeSeed, Deserializer, Error, Visitor};

/// From so many bytes on, what is made of a document is in memory for one document at a time.
pub const ALONE_BYTES: usize = 8 << 20;
/// Held by who has that much.
static ALONE: Mutex<()> = Mutex::new(());

/// Waits until nobody else has [`ALONE_BYTES`] or more.
pub fn alone() -> MutexGuard<'static, ()> {
    // What a panic left behind is nothing.
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// What the objects of a document share while it is parsed.
pub struct Names<'t> {
    text: &'t [u8],
    /// Keys that do not stand in the text as they are.
    unescaped: RefCell<Vec<u8>>,
    /// How many keys are in tables.
    hashed: Cell<usize>,
    random: RandomState,
    alone: OnceCell<MutexGuard<'static, ()>>,
}

/// Where a key is: in the text, or so far behind it as it is in what is unescaped.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    begin: u32,
    /// Its length, in bytes.
    pub bytes: u32,
}

/// The keys of one object.
pub struct Keys<'n, 't> {
    names: &'n Names<'t>,
    unescaped_before: usize,
    few: Vec<Name>,
    more: HashTable<Name>,
}

/// Up to so many keys, comparing with all of them is faster than hashing.
const FEW: usize = 16;
/// Bytes that a key takes in a table, about.
const HASHED_BYTES: usize = 2 * size_of::<Name>();

impl<'t> Names<'t> {
    /// For the objects of a text, which is no longer than a document may be.
    pub fn new(text: &'t [u8]) -> Names<'t> {
        Names {
            text,
            unescaped: RefCell::default(),
            hashed: Cell::new(0),
            random: RandomState::new(),
            alone: OnceCell::new(),
        }
    }

    /// A key that stands in the text as it is.
    fn in_text(&self, key: &str) -> Option<Name> {
        let begin = key.as_ptr().addr().checked_sub(self.text.as_ptr().addr())?;
        (begin + key.len() <= self.text.len()).then_some(Name {
            begin: begin as u32,
            bytes: key.len() as u32,
        })
    }

    fn keep(&self, key: &str) -> Name {
        let mut unescaped = self.unescaped.borrow_mut();
        let begin = self.text.len() + unescaped.len();
        unescaped.extend_from_slice(key.as_bytes());
        Name {
            begin: begin as u32,
            bytes: key.len() as u32,
        }
    }

    fn of<'a>(&'a self, unescaped: &'a [u8], name: Name) -> &'a [u8] {
        let (begin, bytes) = (name.begin as usize, name.bytes as usize);
        match begin.checked_sub(self.text.len()) {
            None => &self.text[begin..begin + bytes],
            Some(begin) => &unescaped[begin..begin + bytes],
        }
    }
}

impl<'n, 't> Keys<'n, 't> {
    /// Of an object that begins.
    pub fn new(names: &'n Names<'t>) -> Keys<'n, 't> {
        Keys {
            names,
            unescaped_before: names.unescaped.borrow().len(),
            few: Vec::new(),
            more: HashTable::new(),
        }
    }

    /// False if it is there already.
    pub fn insert(&mut self, key: Name) -> bool {
        let names = self.names;
        let unescaped = names.unescaped.borrow();
        let of = |name: &Name| names.of(&unescaped, *name);
        let new = of(&key);
        if self.few.iter().any(|other| of(other) == new) {
            return false;
        }
        if self.few.len() < FEW {
            self.few.push(key);
            return true;
        }
        let hash = |name: &Name| names.random.hash_one(of(name));
        let hashed = hash(&key);
        if self.more.find(hashed, |other| of(other) == new).is_some() {
            return false;
        }
        names.hashed.set(names.hashed.get() + 1);
        if names.hashed.get() * HASHED_BYTES + unescaped.len() > ALONE_BYTES {
            names.alone.get_or_init(alone);
        }
        self.more.insert_unique(hashed, key, hash);
        true
    }
}

impl Drop for Keys<'_, '_> {
    fn drop(&mut self) {
        let names = self.names;
        names.hashed.set(names.hashed.get() - self.more.len());
        names.unescaped.borrow_mut().truncate(self.unescaped_before);
    }
}

impl<'de> DeserializeSeed<'de> for &Names<'_> {
    type Value = Name;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for &Names<'_> {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: Error>(self, key: &'de str) -> Result<Name, E> {
        Ok(self.in_text(key).unwrap_or_else(|| self.keep(key)))
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Name, E> {
        Ok(self.keep(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_wherever_they_are() {
        let text = "one two";
        let names = Names::new(text.as_bytes());
        let mut keys = Keys::new(&names);
        let one = names.in_text(&text[..3]).unwrap();
        assert!(keys.insert(one));
        assert!(keys.insert(names.keep("two")));
        assert!(!keys.insert(names.in_text(&text[4..]).unwrap()));
        assert!(!keys.insert(names.keep("one")));
        assert!(keys.insert(names.keep("")));
        assert!(names.in_text("one").is_none());
    }

    #[test]
    fn an_object_that_ends_keeps_nothing_and_leaves_the_keys_of_those_around_it() {
        let names = Names::new(b"");
        let mut outer = Keys::new(&names);
        assert!(outer.insert(names.keep("a")));
        let mut inner = Keys::new(&names);
        for number in 0..2 * FEW {
            assert!(inner.insert(names.keep(&number.to_string())));
        }
        assert!(inner.insert(names.keep("a")));
        assert_eq!(names.hashed.get(), FEW + 1);
        drop(inner);
        assert_eq!(names.hashed.get(), 0);
        assert_eq!(names.unescaped.borrow().len(), 1);
        assert!(outer.insert(names.keep("0")));
        assert!(!outer.insert(names.keep("a")));
    }

    #[test]
    fn one_document_at_a_time_has_keys_that_take_much() {
        let text: Vec<String> = (0..ALONE_BYTES / HASHED_BYTES + FEW + 1)
            .map(|number| format!("{number:07}"))
            .collect();
        let text = text.concat();
        let names = Names::new(text.as_bytes());
        let mut keys = Keys::new(&names);
        let mut rest = &*text;
        while let Some((key, others)) = rest.split_at_checked(7) {
            assert!(names.alone.get().is_none());
            assert!(keys.insert(names.in_text(key).unwrap()));
            rest = others;
        }
        assert!(names.alone.get().is_some());
        assert!(ALONE.try_lock().is_err());
    }
}
