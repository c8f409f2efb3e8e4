//! What flags, environment and file say, not yet merged: words by key.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{CHECK_VARIABLES, KEYS, Key, Origin, SettingsError};
use crate::io::strays;
use crate::trial::{mutants, points};

/// The words given for each key, as typed. A key that is absent was not given.
pub type Words = BTreeMap<&'static str, Vec<OsString>>;

/// The variable that names the settings file.
pub const CONFIG_VARIABLE: &str = "RINGEST_CONFIG";
/// The variable that lists the kernel features to do without.
pub const DISABLE_VARIABLE: &str = "RINGEST_DISABLE";

/// The variable that says what `--trust-config` says.
pub const TRUST_VARIABLE: &str = "RINGEST_TRUST_CONFIG";

/// All that was said, before anything of it is believed.
#[derive(Debug, Default)]
pub struct RawSettings {
    /// From the command line.
    pub flags: Words,
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--trust-config`.
    pub trust_config: bool,
    /// `--once`.
    pub once: bool,
    /// `--dry-run`.
    pub dry_run: bool,
    /// Every variable of the process; those of other programs are passed over.
    pub environment: Vec<(OsString, OsString)>,
}

/// The variables that begin with `RINGEST_`.
#[derive(Debug, Default)]
pub(super) struct Environment {
    pub words: Words,
    pub config: Option<PathBuf>,
    pub disable: Option<OsString>,
    pub trust: Option<OsString>,
    /// Names that mean nothing, said to the user.
    pub warnings: Vec<String>,
}

impl Environment {
    /// An empty variable counts as not set, as shells and units have no other way to unset one.
    pub fn read(variables: &[(OsString, OsString)]) -> Self {
        let mut environment = Self::default();
        for (name, value) in variables {
            if value.is_empty() || !name.as_bytes().starts_with(b"RINGEST_") {
                continue;
            }
            let name = name.to_string_lossy();
            if let Some(key) = KEYS.iter().find(|key| key.variable() == name) {
                environment.words.insert(key.name, split(key, value));
            } else if name == CONFIG_VARIABLE {
                environment.config = Some(value.into());
            } else if name == DISABLE_VARIABLE {
                environment.disable = Some(value.clone());
            } else if name == TRUST_VARIABLE {
                environment.trust = Some(value.clone());
            } else if !is_of_others(&name) {
                let known = KEYS.iter().map(Key::variable);
                let ours = [CONFIG_VARIABLE, DISABLE_VARIABLE, TRUST_VARIABLE];
                let known = known.chain(ours.map(String::from));
                let hint = nearest(&name, known);
                environment
                    .warnings
                    .push(format!("{name} is set but means nothing; {hint}"));
            }
        }
        environment
    }
}

/// Whether a variable has a meaning that is none of the settings'.
fn is_of_others(name: &str) -> bool {
    let others = [
        points::VARIABLE,
        points::PANIC_VARIABLE,
        mutants::VARIABLE,
        strays::VARIABLE,
    ];
    others.contains(&name) || CHECK_VARIABLES.contains(&name)
}

/// Lists are separated by colons, like `PATH`.
fn split(key: &Key, value: &OsStr) -> Vec<OsString> {
    if !key.kind.is_list() {
        return vec![value.into()];
    }
    let parts = value
        .as_bytes()
        .split(|&byte| byte == b':')
        .filter(|part| !part.is_empty());
    parts
        .map(|part| OsString::from_vec(part.to_vec()))
        .collect()
}

/// The settings file.
#[derive(Debug, Default)]
pub(super) struct File {
    pub path: PathBuf,
    /// Keys of the whole file: for a key of sources, the default of its sources.
    pub words: Words,
    pub sources: Vec<Block>,
}

/// One `[[source]]`.
#[derive(Debug)]
pub(super) struct Block {
    pub name: Option<String>,
    pub input: PathBuf,
    pub words: Words,
}

impl File {
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|cause| SettingsError::Unreadable {
            file: path.into(),
            cause,
        })?;
        Self::parse(path, &text)
    }

    /// JSON when named or beginning so, else TOML.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let malformed = |cause: String| SettingsError::Malformed {
            file: path.into(),
            cause: cause.trim().into(),
        };
        let named_json = path
            .extension()
            .is_some_and(|end| end.eq_ignore_ascii_case("json"));
        let table: Map<String, Value> = if named_json || text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| malformed(format!("not JSON: {error}")))?
        } else {
            toml::from_str(text).map_err(|error| malformed(format!("not TOML: {error}")))?
        };

        let mut file = Self {
            path: path.into(),
            ..Self::default()
        };
        for (name, value) in &table {
            if name == "source" {
                let blocks = value.as_array().ok_or_else(|| {
                    malformed("source is a list of blocks, each headed [[source]]".into())
                })?;
                for (index, block) in blocks.iter().enumerate() {
                    file.sources.push(Block::parse(path, index + 1, block)?);
                }
            } else if name == "name" && value.as_str().is_some_and(|it| it.contains("{name}")) {
                file.words
                    .insert("placed_name", words(path, "placed_name", false, value)?);
            } else if let Some(key) = Key::named(name) {
                file.words
                    .insert(key.name, words(path, key.name, key.kind.is_list(), value)?);
            } else {
                let hint = match name.as_str() {
                    "once" | "dry_run" => "it is a flag only".into(),
                    "trust_config" => "no file can vouch for itself: say --trust-config".into(),
                    _ => nearest(
                        name,
                        KEYS.iter()
                            .map(|key| key.name.into())
                            .chain(["source".into()]),
                    ),
                };
                return Err(unknown(path, String::new(), name, hint));
            }
        }
        Ok(file)
    }
}

impl Block {
    fn parse(path: &Path, number: usize, block: &Value) -> Result<Self, SettingsError> {
        let malformed = |cause: &str| SettingsError::Malformed {
            file: path.into(),
            cause: format!("[[source]] {number}: {cause}"),
        };
        let table = block
            .as_object()
            .ok_or_else(|| malformed("it is a block of keys"))?;
        let mut name = None;
        let mut input = None;
        let mut given = Words::new();
        for (key, value) in table {
            match (key.as_str(), Key::named(key)) {
                ("name", _) => {
                    let text = value.as_str().unwrap_or_default();
                    // No source is called so: it says how files are called.
                    if text.contains("{name}") {
                        given.insert("placed_name", vec![text.into()]);
                        continue;
                    }
                    if text.is_empty() || text.contains(char::is_control) {
                        return Err(malformed("its name is a text of visible characters"));
                    }
                    name = Some(text.to_owned());
                }
                ("input", _) => {
                    let words = words(path, "input", false, value)?;
                    input = words.into_iter().next().map(PathBuf::from);
                }
                (_, Some(key)) if key.per_source => {
                    given.insert(key.name, words(path, key.name, key.kind.is_list(), value)?);
                }
                (_, Some(_)) => {
                    let hint = "it is for the whole file, above the first [[source]]".into();
                    return Err(unknown(path, format!("[[source]] {number}: "), key, hint));
                }
                (_, None) => {
                    let known = KEYS
                        .iter()
                        .filter(|key| key.per_source)
                        .map(|key| key.name.into());
                    let hint = nearest(key, known.chain(["name".into(), "input".into()]));
                    return Err(unknown(path, format!("[[source]] {number}: "), key, hint));
                }
            }
        }
        let input = input.ok_or_else(|| malformed("it names no input; add input = \"DIR\""))?;
        Ok(Self {
            name,
            input,
            words: given,
        })
    }
}

fn unknown(file: &Path, place: String, key: &str, hint: String) -> SettingsError {
    SettingsError::UnknownKey {
        file: file.into(),
        place,
        key: key.into(),
        hint,
    }
}

/// Numbers and booleans become the words that a flag would have been given.
fn words(
    file: &Path,
    key: &'static str,
    is_list: bool,
    value: &Value,
) -> Result<Vec<OsString>, SettingsError> {
    let word = |value: &Value| match value {
        Value::String(text) => Some(text.into()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string().into()),
        _ => None,
    };
    let words = match value {
        Value::Array(items) if is_list => items.iter().map(word).collect(),
        value => word(value).map(|word| vec![word]),
    };
    words.ok_or_else(|| SettingsError::Value {
        key,
        origin: Origin::File(file.into()),
        value: value.to_string(),
        cause: if is_list {
            "it is a list of texts"
        } else {
            "it is one value"
        }
        .into(),
    })
}

fn nearest(word: &str, known: impl Iterator<Item = String>) -> String {
    let known: Vec<String> = known.collect();
    let distance = |name: &&String| strsim::damerau_levenshtein(word, name);
    match known.iter().min_by_key(distance) {
        Some(name) if distance(&name) <= name.len() / 2 => format!("did you mean {name:?}?"),
        _ => format!("known are {}", known.join(", ")),
    }
}
