//! What the crash tests take hold of. Neither does anything unless it is asked to by the environment.

pub mod mutants;
pub mod points;
