//! What the system can refuse: a sync, a descriptor, a byte, an inode, an event, a ring. Nothing is lost, nothing comes
//! twice, and what is said about it is right.

#[path = "../support/mod.rs"]
mod support;

mod filesystems;
mod kernel;
mod limits;
mod readers;
mod syncs;

use std::process::Command;

/// Runs a program that must end well.
fn output(command: &mut Command) -> String {
    let done = command
        .output()
        .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// `command`, started through a program with arguments.
fn through(wrapper: &[&str], command: &Command) -> Command {
    let mut wrapped = Command::new(wrapper[0]);
    wrapped.args(&wrapper[1..]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}
