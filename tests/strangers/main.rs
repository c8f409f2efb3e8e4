//! Uploaders who are other users of the machine, and hostile. They write to staging directories and read what is public; whatever they do
//! to their own names ends nothing, stops nobody else, and gets them no bytes, rights or deletions that they could not have had themselves.
//!
//! Every attack is played by a process of the uploader's uid, against ringest as root and as nobody, in staging directories of three kinds
//! ([`stage::everywhere`]). Where an attack is a race, ringest stops at a named point while it is played. These tests need root and
//! python3, and say so where they have neither.

#[path = "../support/mod.rs"]
mod support;

mod bytes;
mod debts;
mod locks;
mod names;
mod rights;
mod stage;
mod storm;
mod swaps;
