//! ringest
pub mod settings;
pub mod observe;
pub mod cli;
pub mod io;
