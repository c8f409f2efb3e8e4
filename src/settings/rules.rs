//! Which names a source takes.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use super::{Mode, Source};

/// Why a name is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IgnoreReason {
    /// It, or a directory above it, begins with a dot.
    Hidden,
    /// It tells that another file is finished.
    Sidecar,
    /// It ends like somebody's unfinished work.
    Suffix,
    /// An exclude glob matches.
    Excluded,
    /// No include glob matches.
    NotIncluded,
}

impl IgnoreReason {
    /// The word for it in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::Sidecar => "sidecar",
            Self::Suffix => "suffix",
            Self::Excluded => "excluded",
            Self::NotIncluded => "not_included",
        }
    }
}

impl Source {
    /// Whether the file of that path, relative to the input, is taken. Looks at bytes only, and
    /// without globs allocates nothing.
    ///
    /// # Errors
    /// The first rule that says no.
    pub fn takes(&self, relative: &Path) -> Result<(), IgnoreReason> {
        if is_hidden(relative) {
            return Err(IgnoreReason::Hidden);
        }
        let name = relative.as_os_str().as_bytes();
        if self.mode == Mode::Sidecar && name.ends_with(self.sidecar_suffix.as_bytes()) {
            return Err(IgnoreReason::Sidecar);
        }
        if self
            .ignore_suffixes
            .iter()
            .any(|suffix| name.ends_with(suffix.as_bytes()))
        {
            return Err(IgnoreReason::Suffix);
        }
        if self
            .exclude
            .as_ref()
            .is_some_and(|globs| globs.is_match(relative))
        {
            return Err(IgnoreReason::Excluded);
        }
        if self
            .include
            .as_ref()
            .is_some_and(|globs| !globs.is_match(relative))
        {
            return Err(IgnoreReason::NotIncluded);
        }
        Ok(())
    }

    /// Whether files beneath the directory of that relative path can be taken at all.
    pub fn enters(&self, relative: &Path) -> bool {
        self.recursive && !is_hidden(relative)
    }
}

fn is_hidden(relative: &Path) -> bool {
    let bytes = relative.as_os_str().as_bytes();
    bytes.first() == Some(&b'.') || bytes.windows(2).any(|pair| pair == b"/.")
}

/// `*` stops at a `/`. A glob without one matches the name in any directory, as people expect of
/// `*.csv`; one that begins with it is held to the input itself.
pub(super) fn glob(text: &str) -> Result<Glob, String> {
    if text.is_empty() {
        return Err("a glob cannot be empty".into());
    }
    let anchored = match text.strip_prefix('/') {
        Some(rest) => rest.to_owned(),
        None if text.contains('/') => text.to_owned(),
        None => format!("**/{text}"),
    };
    GlobBuilder::new(&anchored)
        .literal_separator(true)
        .build()
        .map_err(|error| format!("it is not a glob: {}", error.kind()))
}

/// `None` when there are none: they would match nothing, or everything, and cost a call a file.
pub(super) fn globs<'a>(
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Option<GlobSet>, String> {
    let mut builder = GlobSetBuilder::new();
    let mut any = false;
    for text in texts {
        builder.add(glob(text)?);
        any = true;
    }
    let globs = builder.build().map_err(|error| error.to_string())?;
    Ok(any.then_some(globs))
}
