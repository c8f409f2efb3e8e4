//! Where files are placed, and how they are called there.

use std::fmt;
use std::path::{Component, Path};

use super::PlacedOwner;

/// How a source's files are laid out beneath the warehouse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The directory that new content goes to; empty: the warehouse itself.
    pub partition: Template,
    /// What it is called there.
    pub placed_name: Template,
    /// The directory that files go to which break a rule.
    pub quarantine_dir: Template,
    /// Permissions that files get; `None`: they keep theirs.
    pub placed_mode: Option<u32>,
    /// Who owns them.
    pub placed_owner: PlacedOwner,
    /// Number of the group that files get; `None`: they keep theirs.
    pub placed_group: Option<u32>,
}

impl Default for Layout {
    fn default() -> Layout {
        let template = |text: &str| text.parse().expect("a template");
        Layout {
            partition: template(PARTITION),
            placed_name: template(PLACED_NAME),
            quarantine_dir: template(QUARANTINE_DIR),
            placed_mode: None,
            placed_owner: PlacedOwner::default(),
            placed_group: None,
        }
    }
}

/// The default of `partition`.
pub(super) const PARTITION: &str = "ingest_date={date}";
/// The default of `placed_name`.
pub(super) const PLACED_NAME: &str = "{name}";
/// The default of `quarantine_dir`.
pub(super) const QUARANTINE_DIR: &str = "_quarantine/{partition}";

/// Text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// As it stands.
    Text(String),
    /// To be filled in.
    Field(Field),
}

/// What can be filled in. Times are UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `2026-11-23`.
    Date,
    /// `2026`.
    Year,
    /// `11`.
    Month,
    /// `23`.
    Day,
    /// `00` to `23`.
    Hour,
    /// `20261123T104501.123`.
    Timestamp,
    /// The source's name.
    Source,
    /// The file's own name.
    Name,
    /// What `partition` comes to.
    Partition,
}

impl Field {
    const ALL: [(&str, Field); 9] = [
        ("date", Field::Date),
        ("year", Field::Year),
        ("month", Field::Month),
        ("day", Field::Day),
        ("hour", Field::Hour),
        ("timestamp", Field::Timestamp),
        ("source", Field::Source),
        ("name", Field::Name),
        ("partition", Field::Partition),
    ];
}

impl Template {
    /// Its pieces.
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    fn has(&self, field: Field) -> bool {
        self.0.contains(&Piece::Field(field))
    }

    /// Whether a path that is made of it can begin with a component of this name.
    pub(super) fn may_begin_with(&self, name: &str) -> bool {
        match self.0.first() {
            // Into the root itself, or into whatever it comes to.
            None | Some(Piece::Field(_)) => true,
            Some(Piece::Text(text)) => match text.split_once('/') {
                Some((first, _)) => first == name,
                None if self.0.len() == 1 => text == name,
                None => name.starts_with(text.as_str()),
            },
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => f.write_str(text)?,
                Piece::Field(field) => {
                    let all = Field::ALL.iter();
                    let name = all
                        .clone()
                        .find(|(_, it)| it == field)
                        .map(|(name, _)| name);
                    write!(f, "{{{}}}", name.unwrap_or(&""))?;
                }
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Template, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let (before, after) = rest.split_at(open);
            if !before.is_empty() {
                pieces.push(Piece::Text(before.into()));
            }
            let name = after.strip_prefix('{').and_then(|it| it.split_once('}'));
            let (name, after) = name.ok_or("a placeholder is a word in braces: {date}")?;
            let field = Field::ALL.iter().find(|(known, _)| *known == name);
            let (_, field) = field.ok_or_else(|| {
                let known: Vec<&str> = Field::ALL.iter().map(|(name, _)| *name).collect();
                format!(
                    "{{{name}}} is no placeholder; known are {}",
                    known.join(", ")
                )
            })?;
            pieces.push(Piece::Field(*field));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.into()));
        }
        Ok(Template(pieces))
    }
}

/// What a template is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateFor {
    /// `partition`.
    Partition,
    /// `placed_name`.
    PlacedName,
    /// `quarantine_dir`.
    QuarantineDir,
}

/// Names in the root of the warehouse that are ringest's own.
pub const RESERVED_NAMES: [&str; 2] = ["_tmp", "_duplicates"];

impl TemplateFor {
    /// # Errors
    /// What it should be instead.
    pub fn check(self, text: &str) -> Result<(), String> {
        let template: Template = text.parse()?;
        if text.contains(char::is_control) {
            return Err("it holds visible characters only".into());
        }
        if self == TemplateFor::PlacedName {
            let fields = [Field::Partition];
            return match template.has(Field::Name) {
                _ if text.contains('/') => Err("it is one name, without a '/'".into()),
                _ if fields.iter().any(|field| template.has(*field)) => {
                    Err("{partition} is a directory".into())
                }
                false => Err("it holds {name}: files of different names stay so".into()),
                true if text.starts_with('.') => Err("hidden files are no data".into()),
                true => Ok(()),
            };
        }
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        let path = Path::new(text);
        let tidy = !text.ends_with('/') && !text.contains("//") && !text.contains("/./");
        if !path.components().all(plain) || !tidy {
            return Err(
                "it is a path beneath the warehouse: relative, without '.', '..' or a '/' at its end".into(),
            );
        }
        let first = text.split('/').next().unwrap_or_default();
        if RESERVED_NAMES.contains(&first) || first.starts_with('.') {
            return Err(format!("{first:?} is not for data"));
        }
        match self {
            TemplateFor::Partition if first == "_quarantine" => {
                Err(format!("{first:?} is not for data"))
            }
            TemplateFor::Partition if template.has(Field::Partition) => {
                Err("{partition} is what it is itself".into())
            }
            TemplateFor::QuarantineDir if first.is_empty() || first.contains('{') => {
                Err("it begins with a directory that has a fixed name: _quarantine/{date}".into())
            }
            _ if template.has(Field::Name) => Err("{name} is no directory".into()),
            _ => Ok(()),
        }
    }
}

/// Permissions in octal digits.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && mode & 0o400 != 0 => Ok(mode),
        Ok(mode) if mode <= 0o777 => Err("its owner has to be able to read it: 0640".into()),
        _ => Err("it is three octal digits: 0640".into()),
    }
}

/// The number of a group, or of one that /etc/group names.
pub(super) fn group(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let file = std::fs::read_to_string("/etc/group")
        .map_err(|error| format!("/etc/group cannot be read: {error}; give its number"))?;
    let number = file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(text)).then(|| fields.nth(1)?.parse().ok())?
    });
    number.ok_or_else(|| "there is no such group in /etc/group; give its number".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_shown_as_they_were_given() {
        for text in [
            "",
            "a",
            "ingest_date={date}",
            "{source}/{year}/x{hour}",
            "{name}.{timestamp}",
        ] {
            assert_eq!(text.parse::<Template>().unwrap().to_string(), text);
        }
        for bad in ["{", "}", "{dat}", "a{date", "{}"] {
            assert!(bad.parse::<Template>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_leads_out_of_the_warehouse_or_to_its_own_directories_is_refused() {
        use TemplateFor::{Partition, PlacedName, QuarantineDir};
        for good in [
            "",
            "validated",
            "a/b",
            "ingest_date={date}/hour={hour}",
            "{source}",
        ] {
            assert_eq!(Partition.check(good), Ok(()), "{good}");
        }
        for bad in [
            "/a",
            "a/",
            "../a",
            "a/../b",
            "./a",
            "_tmp",
            "_duplicates/x",
            ".a",
            "{name}",
            "{partition}",
            "a\nb",
        ] {
            assert!(Partition.check(bad).is_err(), "{bad}");
        }
        for good in ["_quarantine/{partition}", "returns", "bad/{date}"] {
            assert_eq!(QuarantineDir.check(good), Ok(()), "{good}");
        }
        for bad in ["", "{date}", "{source}/x", "/srv/returns", "_tmp"] {
            assert!(QuarantineDir.check(bad).is_err(), "{bad}");
        }
        for good in ["{name}", "{name}.{timestamp}", "{source}-{name}"] {
            assert_eq!(PlacedName.check(good), Ok(()), "{good}");
        }
        for bad in ["", "a", "{timestamp}", "a/{name}", ".{name}"] {
            assert!(PlacedName.check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_path_may_begin_with_is_known() {
        for (template, name, may) in [
            ("", "data", true),
            ("{source}", "data", true),
            ("validated", "data", false),
            ("validated", "validated", true),
            ("validated/{date}", "validated", true),
            ("validated/{date}", "validate", false),
            ("ingest_date={date}", "ingest_date=x", true),
            ("ingest_date={date}", "data", false),
        ] {
            let template: Template = template.parse().unwrap();
            assert_eq!(template.may_begin_with(name), may, "{template} {name}");
        }
    }

    #[test]
    fn modes_and_groups_are_numbers_in_the_end() {
        assert_eq!(mode("0640"), Ok(0o640));
        assert_eq!(mode("664"), Ok(0o664));
        for bad in ["", "8", "1777", "040", "rw"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
        assert_eq!(group("7"), Ok(7));
        assert_eq!(group("root"), Ok(0));
        assert!(group("no such group").is_err());
    }
}
