//! The way of a file from the staging directory to the warehouse and the manifest, seen from outside.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod commands;
mod content;
mod duplicates;
mod finding;
mod formats;
mod hostile;
mod hostile_content;
mod layout;
mod logs;
mod masking;
mod methods;
mod one_pass;
mod order;
mod placing;
mod quarantine;
mod readers;
mod settling;
mod starting;
mod trusting;
mod trying;
