//! ringest
pub mod settings;
pub mod observe;
