//! Deliberate faults in the commit and recovery code, to see that the tests notice each. Only a build with
//! `--cfg ringest_mutants` has them; there `RINGEST_MUTANT` chooses one. Anywhere else [`on`] is a constant.

/// Whether this fault is to be committed.
#[cfg(not(ringest_mutants))]
#[inline(always)]
pub const fn on(_name: &str) -> bool {
    false
}

/// Whether this fault is to be committed.
#[cfg(ringest_mutants)]
pub fn on(name: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("RINGEST_MUTANT").ok());
    CHOSEN.as_deref() == Some(name)
}
