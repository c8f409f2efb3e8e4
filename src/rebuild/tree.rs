//! Which directories of the warehouse hold what, as far as the settings tell: those of today and the default ones.

use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use crate::pipeline::record::layout;
use crate::settings::{Field, Layout, Piece, RESERVED_NAMES, Settings, Source, Template};

/// The layouts of a warehouse.
pub struct Tree {
    partitions: Vec<Pattern>,
    asides: Vec<Pattern>,
    /// Directories in the warehouse that are none of its own.
    apart: Vec<PathBuf>,
}

/// What the first components of a path have to be.
struct Pattern {
    glob: GlobMatcher,
    components: usize,
}

impl Tree {
    /// Of a warehouse in which these sources place files.
    pub fn new(settings: &Settings) -> Tree {
        let mut tree = Tree {
            partitions: Vec::new(),
            asides: Vec::new(),
            apart: settings.apart_dirs(),
        };
        tree.add("", &Layout::default());
        for source in &settings.sources {
            tree.add(&source.name, &source.layout);
        }
        for path in &mut tree.apart {
            if let Ok(beneath) = path.strip_prefix(&settings.warehouse) {
                *path = beneath.to_path_buf();
            }
        }
        // The longest says most.
        for patterns in [&mut tree.partitions, &mut tree.asides] {
            patterns.sort_by_key(|pattern| std::cmp::Reverse(pattern.components));
        }
        tree
    }

    fn add(&mut self, source: &str, of: &Layout) {
        let partition = glob(&of.partition, source, "");
        let quarantine = glob(&of.quarantine_dir, source, &partition);
        let duplicates = format!("{}/{partition}", layout::DUPLICATES_DIR);
        self.asides.extend(pattern(&quarantine));
        self.asides.extend(pattern(&duplicates));
        self.partitions.extend(pattern(&partition));
    }

    /// How many components of a directory's path are a partition. `None`: new content is not placed there.
    pub fn partition_depth(&self, dir: &Path) -> Option<usize> {
        if !self.is_data(dir) || self.aside_depth(dir).is_some() {
            return None;
        }
        depth(&self.partitions, dir)
    }

    /// How many components of a directory's path are one in which files are set aside.
    pub fn aside_depth(&self, dir: &Path) -> Option<usize> {
        depth(&self.asides, dir)
    }

    /// Whether a directory, or one beneath it, may be one in which files are set aside.
    pub fn leads_aside(&self, dir: &Path) -> bool {
        let first = |path: &Path| path.iter().next().map(PathBuf::from).unwrap_or_default();
        self.asides
            .iter()
            .any(|aside| first(Path::new(aside.glob.glob().glob())) == first(dir))
    }

    /// Whether a directory, or one beneath it, may hold files of the warehouse.
    pub fn is_data(&self, dir: &Path) -> bool {
        let first = dir.iter().next().unwrap_or_default();
        let own = RESERVED_NAMES.iter().any(|name| first == *name) || first == "lost+found";
        !own && !self.apart.iter().any(|apart| dir == apart)
    }
}

fn depth(patterns: &[Pattern], dir: &Path) -> Option<usize> {
    let matches = |pattern: &&Pattern| {
        let first: PathBuf = dir.iter().take(pattern.components).collect();
        pattern.glob.is_match(&first)
    };
    patterns
        .iter()
        .find(matches)
        .map(|pattern| pattern.components)
}

fn pattern(glob: &str) -> Option<Pattern> {
    let glob = glob.trim_end_matches('/');
    let built = GlobBuilder::new(glob).literal_separator(true).build();
    Some(Pattern {
        glob: built.ok()?.compile_matcher(),
        components: Path::new(glob).iter().count(),
    })
}

/// What a template may come to, as a glob.
fn glob(template: &Template, source: &str, partition: &str) -> String {
    const YEAR: &str = "[0-9][0-9][0-9][0-9]";
    const TWO: &str = "[0-9][0-9]";
    let pieces = template.pieces().iter().map(|piece| match piece {
        Piece::Text(text) => globset::escape(text),
        Piece::Field(Field::Date) => format!("{YEAR}-{TWO}-{TWO}"),
        Piece::Field(Field::Year) => YEAR.into(),
        Piece::Field(Field::Month | Field::Day | Field::Hour) => TWO.into(),
        Piece::Field(Field::Timestamp) => format!("{YEAR}{TWO}{TWO}T*"),
        Piece::Field(Field::Source) => globset::escape(&layout::source_component(source)),
        Piece::Field(Field::Name) => "*".into(),
        Piece::Field(Field::Partition) => partition.into(),
    });
    pieces.collect()
}

/// What new content that came as `path` may be called, whatever name it had to give way to.
pub fn may_be_called(source: Option<&Source>, path: &Path, time_micros: i64) -> Vec<PathBuf> {
    let own = path.file_name().map(PathBuf::from);
    let placed = source.map(|source| layout::new_path(source, path, time_micros));
    let placed = placed.and_then(|placed| placed.file_name().map(PathBuf::from));
    own.into_iter().chain(placed).collect()
}
