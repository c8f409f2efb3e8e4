//! Deliberate faults in the commit and recovery code, to see that the tests notice each. Only a build with
//! `--cfg ringest_mutants` has them; there `RINGEST_MUTANT` chooses one. Anywhere else [`on`] is a constant.

/// The variable that chooses one.
pub const VARIABLE: &str = "RINGEST_MUTANT";

#[cfg(ringest_mutants)]
use std::sync::LazyLock;

#[cfg(ringest_mutants)]
static CHOSEN: LazyLock<String> = LazyLock::new(|| std::env::var(VARIABLE).unwrap_or_default());

/// Whether this fault is to be committed.
#[cfg(not(ringest_mutants))]
#[inline(always)]
pub const fn on(_name: &str) -> bool {
    false
}

/// Whether this fault is to be committed.
#[cfg(ringest_mutants)]
pub fn on(name: &str) -> bool {
    *CHOSEN == name
}

/// A result, unless this fault takes every error for a success.
#[inline(always)]
pub fn forgiven(name: &str, result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(_) if on(name) => Ok(()),
        result => result,
    }
}

/// What a table says of a case.
#[cfg(not(ringest_mutants))]
#[inline(always)]
pub fn decided<C, A>(_case: C, action: A, _actions: &[A]) -> A {
    action
}

/// What a table says of a case, or what `case:CASE=ACTION` says of it.
#[cfg(ringest_mutants)]
pub fn decided<C, A>(case: C, action: A, actions: &[A]) -> A
where
    C: std::fmt::Debug,
    A: Copy + std::fmt::Debug,
{
    let altered = CHOSEN
        .strip_prefix("case:")
        .and_then(|rest| rest.split_once('='))
        .filter(|(wanted, _)| *wanted == format!("{case:?}"))
        .and_then(|(_, name)| actions.iter().find(|one| format!("{one:?}") == name));
    *altered.unwrap_or(&action)
}

/// The steps of a protocol, as they are.
#[cfg(not(ringest_mutants))]
#[inline(always)]
pub const fn altered<S: Copy>(steps: &[S]) -> &[S] {
    steps
}

/// The steps of a protocol without the one that `skip:STEP` names, or with the one that `after:STEP:OTHER` names moved to
/// after the other.
#[cfg(ringest_mutants)]
pub fn altered<S: Copy + std::fmt::Debug>(steps: &[S]) -> Vec<S> {
    let mut steps = steps.to_vec();
    let place = |name: &str| steps.iter().position(|step| format!("{step:?}") == name);
    let words: Vec<&str> = CHOSEN.split(':').collect();
    match words[..] {
        ["skip", name] => {
            if let Some(at) = place(name) {
                steps.remove(at);
            }
        }
        ["after", name, other] => {
            if let (Some(from), Some(to)) = (place(name), place(other)) {
                let step = steps.remove(from);
                steps.insert(to, step);
            }
        }
        _ => {}
    }
    steps
}
