//! The socket through which `status` asks a running instance.

use std::io;
use std::path::Path;

/// Answers every connection with one line, until dropped.
#[derive(Debug)]
pub struct ControlSocket {}

impl ControlSocket {
    /// Listens at `path` and answers each connection with what `answer` returns, and a newline.
    /// A socket left at `path` is replaced: the caller holds the instance lock.
    pub fn bind(path: &Path, answer: impl Fn() -> String + Send + 'static) -> io::Result<Self> {
        todo!()
    }
}

/// Asks the instance that listens at `path`; `None` if nobody does.
pub fn ask(path: &Path) -> io::Result<Option<String>> {
    todo!()
}
