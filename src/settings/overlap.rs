//! Directories that must not lie in one another: ringest would ingest its own output, or place
//! files where it looks for others.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::layout::Template;
use super::{Layout, Purpose, Settings, SettingsError, Source};
use crate::pipeline::record::layout::source_component;

/// A directory as the kernel sees it, whether it exists yet or not.
struct Place<'a> {
    what: String,
    path: &'a Path,
    /// Without symlinks as far as it exists.
    real: PathBuf,
    /// Device and inode of itself and every directory above it, itself first; shorter than the path
    /// when its end does not exist. A bind mount hides from paths, not from these.
    identities: Vec<(u64, u64)>,
    exists: bool,
    kind: Kind,
    /// Whether what lies deeper than the directory itself is its business.
    is_deep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Input,
    Warehouse,
    Other,
}

/// # Errors
/// The first two directories that overlap. An input that is not recursive may hold other inputs. The warehouse may hold what
/// lies beside all that is placed in it, where `partition` is set: so the folders of one flow can lie beside each other.
pub(super) fn refuse(settings: &Settings, purpose: Purpose) -> Result<(), SettingsError> {
    // Inputs come first: what was given by hand is named before what a default brought along.
    let mut places = Vec::new();
    if purpose == Purpose::Flow {
        places.extend(settings.sources.iter().map(|source| Place {
            kind: Kind::Input,
            is_deep: source.recursive,
            ..Place::new(
                format!("the input of source {:?}", source.name),
                &source.input,
            )
        }));
    }
    if purpose == Purpose::Flow {
        let claims = settings.sources.iter().filter_map(|source| {
            let path = source.claim_dir.as_ref()?;
            let what = format!("the claim_dir of source {:?}", source.name);
            Some(Place::new(what, path))
        });
        places.extend(claims);
    }
    places.extend([
        Place {
            kind: Kind::Warehouse,
            ..Place::new("the warehouse".into(), &settings.warehouse)
        },
        Place::new("the manifests directory".into(), &settings.manifests),
        Place::new("the state directory".into(), &settings.state_path),
    ]);
    for (index, a) in places.iter().enumerate() {
        for b in &places[index + 1..] {
            if a.is_same(b) {
                return Err(SettingsError::Overlap(format!(
                    "{} {} and {} {} are the same directory; give each a directory of its own",
                    a.what,
                    a.shown(),
                    b.what,
                    b.shown()
                )));
            }
            for (outer, inner) in [(a, b), (b, a)] {
                let is_harmless = match outer.kind {
                    Kind::Input => inner.kind == Kind::Input && !outer.is_deep,
                    Kind::Warehouse => outer.keeps_out_of(inner, settings),
                    Kind::Other => false,
                };
                if outer.holds(inner) && !is_harmless {
                    return Err(SettingsError::Overlap(format!(
                        "{} {} is inside {} {}; choose directories beside each other",
                        inner.what,
                        inner.shown(),
                        outer.what,
                        outer.shown()
                    )));
                }
            }
        }
    }
    apart_in_the_warehouse(settings)?;
    let log_dir = settings.log_dir.as_deref();
    let log_dir = log_dir.map(|path| Place::new("the log directory".into(), path));
    let hlog = settings.hlog.as_deref();
    let hlog = hlog.map(|path| Place::new("the interval log".into(), path));
    let Some((state, others)) = places.split_last() else {
        return Ok(());
    };
    for log in log_dir.iter().chain(&hlog) {
        // Beside the ledger, but not in the place of its directory, they are in nobody's way.
        let outer = match state.holds(log) {
            true => Some(state).filter(|state| state.is_same(log)),
            false => others.iter().find(|it| it.holds(log)),
        };
        if let Some(outer) = outer {
            return Err(inside(log, outer));
        }
    }
    Ok(())
}

/// What is set aside lies where nothing is placed: by its directory it is known for what it is.
fn apart_in_the_warehouse(settings: &Settings) -> Result<(), SettingsError> {
    let filled = |source: &Source, template: &Template| {
        let layout = &source.layout;
        let text = template.to_string();
        let text = text.replace("{partition}", &layout.partition.to_string());
        PathBuf::from(text.replace("{source}", &source_component(&source.name)))
    };
    for aside in &settings.sources {
        let kept = filled(aside, &aside.layout.quarantine_dir);
        for source in &settings.sources {
            let placed = filled(source, &source.layout.partition);
            if placed.starts_with(&kept) {
                return Err(SettingsError::Overlap(format!(
                    "partition = {:?} of source {} is inside quarantine_dir = {:?} of source {}; choose a quarantine_dir that holds nothing else",
                    source.layout.partition.to_string(),
                    source.name,
                    aside.layout.quarantine_dir.to_string(),
                    aside.name
                )));
            }
        }
    }
    Ok(())
}

fn inside(log: &Place, outer: &Place) -> SettingsError {
    SettingsError::Overlap(format!(
        "{} {} is inside {} {}; choose a place outside",
        log.what,
        log.shown(),
        outer.what,
        outer.shown()
    ))
}

impl<'a> Place<'a> {
    fn new(what: String, path: &'a Path) -> Self {
        let real = real(path);
        let identity = |path: &Path| {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino()))
        };
        // One look at each: another instance may be making it at this moment.
        let found: Vec<Option<(u64, u64)>> = real.ancestors().map(identity).collect();
        let exists = found.first().is_some_and(Option::is_some);
        let identities = found.into_iter().flatten().collect();
        Self {
            what,
            path,
            real,
            identities,
            exists,
            kind: Kind::Other,
            is_deep: true,
        }
    }

    fn identity(&self) -> Option<&(u64, u64)> {
        self.identities.first().filter(|_| self.exists)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.real == other.real
            || (self.identity().is_some() && self.identity() == other.identity())
    }

    fn holds(&self, inner: &Self) -> bool {
        inner.real.starts_with(&self.real)
            || self
                .identity()
                .is_some_and(|identity| inner.identities.contains(identity))
    }

    /// Whether nothing that is placed in this warehouse can come to lie in `inner`.
    fn keeps_out_of(&self, inner: &Self, settings: &Settings) -> bool {
        let Ok(beneath) = inner.real.strip_prefix(&self.real) else {
            return false;
        };
        let first = beneath.components().next();
        let Some(name) = first.and_then(|first| first.as_os_str().to_str()) else {
            return false;
        };
        let usual = Layout::default();
        let taken = settings.sources.iter().any(|source| {
            let layout = &source.layout;
            // Who has partitions by date did not mean to lay out folders.
            layout.partition == usual.partition
                || [&layout.partition, &layout.quarantine_dir]
                    .iter()
                    .any(|template| template.may_begin_with(name))
        });
        !taken && !name.starts_with('_') && !name.starts_with(".ringest-")
    }

    fn shown(&self) -> String {
        match self.real == self.path {
            true => self.path.display().to_string(),
            false => format!("{} (really {})", self.path.display(), self.real.display()),
        }
    }
}

/// The longest part that exists without its symlinks, then the rest as it would be made.
fn real(path: &Path) -> PathBuf {
    let mut missing: Vec<OsString> = Vec::new();
    let mut prefix = path;
    let mut real = loop {
        match (fs::canonicalize(prefix), prefix.parent()) {
            (Ok(real), _) => break real,
            (Err(_), None) => break prefix.into(),
            (Err(_), Some(parent)) => {
                // `file_name` is `None` for `..`, which a missing directory resolves by its text.
                let last = prefix.components().next_back();
                missing.extend(last.map(|last| last.as_os_str().into()));
                prefix = parent;
            }
        }
    };
    for part in missing.iter().rev() {
        match Path::new(part).components().next() {
            Some(Component::ParentDir) => drop(real.pop()),
            _ => real.push(part),
        }
    }
    real
}
