//! Raw settings → [`Settings`]: flags win over the environment, that over the file, that over the
//! defaults.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::keys::absolute;
use super::raw::{Block, DISABLE_VARIABLE, Environment, File, RawSettings, TRUST_VARIABLE, Words};
use super::trust::Trust;
use super::{
    CommandRule, Content, ContentRules, CsvRules, Disable, Key, Layout, Mode, OnDuplicate, Schema,
    Settings, SettingsError, Source, content, layout, overlap, rules,
};

/// Who gave a setting its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// The variable of that name.
    Environment(String),
    /// The settings file of that path.
    File(PathBuf),
    /// Nobody.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One effective value, to be shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// The source it is for; `None` when it is for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// As in the file.
    pub key: &'static str,
    /// The value; paths are absolute, times in seconds.
    pub value: Value,
    /// Who gave it.
    pub origin: Origin,
}

/// Settings, and how they came about.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What to run by.
    pub settings: Settings,
    /// Every effective value: those for all first, then source by source.
    pub origins: Vec<Setting>,
    /// Things that look like mistakes and stop nothing.
    pub warnings: Vec<String>,
}

/// Which directories a command works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `run` and `check`: all.
    Flow,
    /// `status`, `find` and `verify`: what is stored. Inputs may lie anywhere.
    Store,
}

impl RawSettings {
    /// Merges and checks. Reads the settings file; looks at directories, makes none.
    ///
    /// # Errors
    /// The first thing that is wrong, with the way out.
    pub fn resolve(self, purpose: Purpose) -> Result<Loaded, SettingsError> {
        let environment = Environment::read(&self.environment);
        let trust = Trust::new(self.trust_config || trusts(environment.trust)?);
        let file = match self.config.as_ref().or(environment.config.as_ref()) {
            Some(path) => {
                trust.ask("settings file", &absolute(path))?;
                File::read(path)?
            }
            None => File::default(),
        };
        let disable = disabled(environment.disable)?;
        let warnings = RefCell::new(environment.warnings);
        let layers = Layers {
            flags: self.flags,
            environment: environment.words,
            file,
        };
        let mut merged = Merged {
            layers,
            shown: Vec::new(),
            given: Given {
                purpose,
                trust: &trust,
                variables: &self.environment,
                warnings: &warnings,
            },
        };

        let inputs = merged.inputs()?;
        let settings = Settings {
            warehouse: merged.directory("warehouse")?,
            manifests: merged.directory("manifests")?,
            state_path: merged.directory("state_path")?,
            concurrency: merged.of_flow("concurrency")?.parse()?,
            max_bytes_per_second: merged.of_flow("max_bytes_per_second")?.bytes()?,
            io_priority: merged.of_flow("io_priority")?.parse()?,
            once: self.once,
            dry_run: self.dry_run,
            durability: merged.of_flow("durability")?.parse()?,
            io: merged.of_flow("io")?.parse()?,
            copy_method: merged.of_flow("copy_method")?.parse()?,
            read_method: merged.of_flow("read_method")?.parse()?,
            rescan: merged.of_flow("rescan_seconds")?.seconds()?,
            metrics_interval: merged.of_flow("metrics_interval")?.seconds()?,
            log_level: merged.of_flow("log_level")?.parse()?,
            log_format: merged.of_flow("log_format")?.parse()?,
            log_to_console: merged.of_flow("log_to_console")?.parse()?,
            log_dir: merged
                .of_flow("log_dir")?
                .words
                .first()
                .map(|word| absolute(Path::new(word))),
            log_file_bytes: merged.of_flow("log_file_bytes")?.bytes()?,
            log_files: merged.of_flow("log_files")?.parse()?,
            min_free_bytes: merged.of_flow("min_free_bytes")?.bytes()?,
            batch_files: merged.of_flow("batch_files")?.parse()?,
            hash_lanes: merged.of_flow("hash_lanes")?.parse()?,
            hlog: merged
                .of_flow("hlog")?
                .words
                .first()
                .map(|word| absolute(Path::new(word))),
            disable,
            sources: inputs
                .into_iter()
                .map(|it| merged.source(it))
                .collect::<Result<_, _>>()?,
        };
        if !settings.log_to_console && settings.log_dir.is_none() {
            let cause = "nothing would be logged anywhere; give log_dir, too".into();
            let found = merged.layers.find("log_to_console", None)?;
            return Err(found.wrong("false".into(), cause));
        }
        overlap::refuse(&settings, purpose)?;
        let origins = merged.shown;
        let mut warnings = warnings.into_inner();
        warnings.extend(trust.doubts());
        Ok(Loaded {
            settings,
            origins,
            warnings,
        })
    }
}

/// What the variable says.
fn trusts(word: Option<OsString>) -> Result<bool, SettingsError> {
    let Some(word) = word else { return Ok(false) };
    match word.to_str() {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(SettingsError::Value {
            key: "trust_config",
            origin: Origin::Environment(TRUST_VARIABLE.into()),
            value: word.to_string_lossy().into_owned(),
            cause: "it is true or false".into(),
        }),
    }
}

fn disabled(list: Option<OsString>) -> Result<Disable, SettingsError> {
    let list = list.unwrap_or_default();
    let list = list.to_string_lossy();
    list.parse()
        .map_err(|cause: super::NotAChoice| SettingsError::Value {
            key: "disable",
            origin: Origin::Environment(DISABLE_VARIABLE.into()),
            value: list.into_owned(),
            cause: cause.to_string(),
        })
}

/// What was given, strongest first.
struct Layers {
    flags: Words,
    environment: Words,
    file: File,
}

struct Merged<'a> {
    layers: Layers,
    shown: Vec<Setting>,
    given: Given<'a>,
}

/// What values are resolved for, and with.
#[derive(Clone, Copy)]
struct Given<'a> {
    purpose: Purpose,
    trust: &'a Trust,
    /// The whole environment.
    variables: &'a [(OsString, OsString)],
    /// What looks like a mistake and stops nothing.
    warnings: &'a RefCell<Vec<String>>,
}

/// A source of which only the directory and the name are known yet.
struct Input {
    name: String,
    path: PathBuf,
    origin: Origin,
    named: bool,
    /// Its place among the blocks of the file.
    block: Option<usize>,
}

/// The checked words of one setting.
struct Found {
    key: &'static Key,
    words: Vec<OsString>,
    origin: Origin,
}

impl Layers {
    /// The strongest layer that gives the key, every word of it checked.
    fn find(&self, name: &str, block: Option<&Block>) -> Result<Found, SettingsError> {
        let key = Key::named(name).expect("only names from the registry are asked for");
        let file = || Origin::File(self.file.path.clone());
        let (words, origin) = if let Some(words) = self.flags.get(key.name) {
            (words.clone(), Origin::Flag)
        } else if let Some(words) = self.environment.get(key.name) {
            (words.clone(), Origin::Environment(key.variable()))
        } else if let Some(words) = block.and_then(|block| block.words.get(key.name)) {
            (words.clone(), file())
        } else if let Some(words) = self.file.words.get(key.name) {
            (words.clone(), file())
        } else {
            (
                key.default.iter().map(OsString::from).collect(),
                Origin::Default,
            )
        };
        let found = Found { key, words, origin };
        for word in &found.words {
            key.kind
                .check(word)
                .map_err(|cause| found.wrong(word.to_string_lossy(), cause))?;
        }
        Ok(found)
    }
}

impl Merged<'_> {
    fn of_flow(&mut self, name: &str) -> Result<Found, SettingsError> {
        let found = self.layers.find(name, None)?;
        self.show(&found, None);
        Ok(found)
    }

    fn directory(&mut self, name: &str) -> Result<PathBuf, SettingsError> {
        Ok(absolute(Path::new(&self.of_flow(name)?.words[0])))
    }

    fn show(&mut self, found: &Found, source: Option<&str>) {
        self.shown.push(Setting {
            source: source.map(Into::into),
            key: found.key.name,
            value: found.key.kind.show(&found.words),
            origin: found.origin.clone(),
        });
    }

    /// The staging directories with their names. Those of the file count only when neither flags
    /// nor environment give any, the default only when nobody does.
    fn inputs(&self) -> Result<Vec<Input>, SettingsError> {
        let found = self.layers.find("input", None)?;
        let mut inputs = Vec::new();
        let file = &self.layers.file;
        if found.origin != Origin::Default || file.sources.is_empty() {
            inputs.extend(found.words.iter().map(|word| Input {
                name: String::new(),
                path: absolute(Path::new(word)),
                origin: found.origin.clone(),
                named: false,
                block: None,
            }));
        }
        if matches!(found.origin, Origin::Default | Origin::File(_)) {
            for (index, block) in file.sources.iter().enumerate() {
                found
                    .key
                    .kind
                    .check(block.input.as_os_str())
                    .map_err(|cause| SettingsError::Value {
                        key: "input",
                        origin: Origin::File(file.path.clone()),
                        value: block.input.display().to_string(),
                        cause,
                    })?;
                inputs.push(Input {
                    name: block.name.clone().unwrap_or_default(),
                    path: absolute(&block.input),
                    origin: Origin::File(file.path.clone()),
                    named: block.name.is_some(),
                    block: Some(index),
                });
            }
        }
        if inputs.is_empty() {
            return Err(found.wrong("[]".into(), "it names at least one directory".into()));
        }
        name(&mut inputs)?;
        Ok(inputs)
    }

    fn source(&mut self, input: Input) -> Result<Source, SettingsError> {
        let Input {
            name,
            path,
            origin,
            named,
            block,
        } = input;
        let name_origin = if named {
            origin.clone()
        } else {
            Origin::Default
        };
        let path_shown = path.to_string_lossy();
        for (key, value, origin) in [
            ("name", name.as_str(), name_origin),
            ("input", &path_shown, origin),
        ] {
            let source = Some(name.clone());
            self.shown.push(Setting {
                source,
                key,
                value: value.into(),
                origin,
            });
        }
        let given = self.given;
        let mut of_source = |key: &str| {
            let block = block.map(|index| &self.layers.file.sources[index]);
            let found = self.layers.find(key, block)?;
            self.show(&found, Some(&name));
            Ok::<_, SettingsError>(found)
        };
        let claims = of_source("claim_dir")?;
        let claim_dir = claims.words.first().map(|word| {
            let own = crate::pipeline::record::layout::source_component(&name);
            let path = word.to_str().map(|word| word.replace("{source}", &own));
            absolute(path.as_deref().map_or(Path::new(word), Path::new))
        });
        let mode = of_source("mode")?.parse()?;
        let on_duplicate = of_source("on_duplicate")?.parse()?;
        if claim_dir.is_some() {
            let shown = claims.words[0].to_string_lossy();
            if mode == Mode::Sidecar {
                let cause = "sidecars are looked for in the input; use another mode with it".into();
                return Err(claims.wrong(shown, cause));
            }
            if on_duplicate == OnDuplicate::Keep {
                let cause =
                    "what is kept stays in the input; on_duplicate is move or delete with it"
                        .into();
                return Err(claims.wrong(shown, cause));
            }
        }
        Ok(Source {
            mode,
            stability: of_source("stability_seconds")?.seconds()?,
            sidecar_suffix: of_source("sidecar_suffix")?.parse()?,
            recursive: of_source("recursive")?.parse()?,
            include: of_source("include")?.globs()?,
            exclude: of_source("exclude")?.globs()?,
            ignore_suffixes: of_source("ignore_suffixes")?
                .texts()
                .map(Into::into)
                .collect(),
            empty: of_source("empty")?.parse()?,
            order: of_source("order")?.parse()?,
            lease: of_source("lease")?.parse()?,
            dedupe: of_source("dedupe")?.parse()?,
            on_duplicate,
            content: content_rules(given, &mut of_source)?,
            layout: Layout {
                partition: of_source("partition")?.parse()?,
                placed_name: of_source("placed_name")?.parse()?,
                quarantine_dir: of_source("quarantine_dir")?.parse()?,
                placed_mode: of_source("placed_mode")?.optional(layout::mode)?,
                placed_owner: of_source("placed_owner")?.parse()?,
                placed_group: of_source("placed_group")?.optional(layout::group)?,
            },
            claim_dir,
            input: path,
            name,
        })
    }
}

/// What a source expects of content. `of_source` finds a key's words.
fn content_rules(
    given: Given<'_>,
    mut of_source: impl FnMut(&str) -> Result<Found, SettingsError>,
) -> Result<ContentRules, SettingsError> {
    let texts = |found: &Found| -> Vec<String> { found.texts().map(Into::into).collect() };
    let character = |found: &Found| content::character(found.texts().next().unwrap_or_default());
    let stated = of_source("content")?;
    let content = stated.parse()?;
    let encoding = of_source("encoding")?;
    if encoding.origin != Origin::Default && stated.origin == Origin::Default {
        let cause =
            "it does nothing without content = \"text\", \"csv\", \"json\" or \"jsonl\"".into();
        return Err(encoding.wrong(encoding.words[0].to_string_lossy(), cause));
    }
    let masked = of_source("mask_fields")?;
    let limits = ContentRules {
        content,
        encoding: encoding.parse()?,
        extensions: texts(&of_source("extensions")?),
        max_file_size: of_source("max_file_size")?.bytes()?,
        min_file_size: of_source("min_file_size")?.bytes()?,
        csv: CsvRules::default(),
        json_schema: schema(given, content, &stated, &of_source("json_schema")?)?,
        command: command(given, &mut of_source)?,
        mask_fields: masked.texts().map(Into::into).collect(),
    };
    let has_fields = matches!(content, Content::Csv | Content::Json | Content::Jsonl);
    if masked.origin != Origin::Default && !has_fields && stated.origin == Origin::Default {
        let shown = texts(&masked).join(" ").into();
        let cause = "it does nothing without content = \"csv\", \"json\" or \"jsonl\"".into();
        return Err(masked.wrong(shown, cause));
    }
    let delimiter = of_source("csv_delimiter")?;
    let quote = of_source("csv_quote")?;
    let header = of_source("csv_header")?.parse()?;
    let required = of_source("required_columns")?;
    let key = of_source("key_column")?;
    let records = of_source("min_records")?;
    let csv = CsvRules {
        delimiter: character(&delimiter).unwrap_or(b','),
        quote: character(&quote),
        header,
        required_columns: texts(&required),
        key_column: texts(&key).pop(),
        min_records: records.parse()?,
    };
    if csv.quote == Some(csv.delimiter) {
        let cause = "it is the delimiter, too".into();
        return Err(quote.wrong(texts(&quote).concat().into(), cause));
    }
    if content == Content::Csv && !header && !limits.mask_fields.is_empty() {
        let cause = "columns have names only with csv_header = true".into();
        return Err(masked.wrong(texts(&masked).join(" ").into(), cause));
    }
    for found in [&delimiter, &quote, &required, &key, &records] {
        let shown = || texts(found).join(" ").into();
        let given = found.origin != Origin::Default;
        // A source that says otherwise may share a file with one that says so.
        if given && stated.origin == Origin::Default {
            let cause = "it does nothing without content = \"csv\"".into();
            return Err(found.wrong(shown(), cause));
        }
        let names =
            content == Content::Csv && matches!(found.key.name, "required_columns" | "key_column");
        if given && names && !header && !found.words.is_empty() {
            let cause = "columns have names only with csv_header = true".into();
            return Err(found.wrong(shown(), cause));
        }
    }
    Ok(ContentRules { csv, ..limits })
}

/// The command that has the last word on the files of a source, if there is one.
fn command(
    given: Given<'_>,
    of_source: &mut impl FnMut(&str) -> Result<Found, SettingsError>,
) -> Result<Option<CommandRule>, SettingsError> {
    let stated = of_source("check_command")?;
    let environment = of_source("check_environment")?;
    let timeout = of_source("check_timeout_seconds")?.seconds()?;
    let concurrency = of_source("check_concurrency")?.parse()?;
    let words: Vec<String> = stated.texts().map(Into::into).collect();
    let Some((program, arguments)) = words.split_first() else {
        return Ok(None);
    };
    if given.purpose == Purpose::Store {
        return Ok(None);
    }
    let program = content::program(program).map_err(|cause| stated.wrong(program.into(), cause))?;
    given.trust.ask("check_command", &program)?;
    for word in arguments.iter().filter(|word| content::may_be_lost(word)) {
        given.warnings.borrow_mut().push(format!(
            "check_command: {word:?} is a file in the working directory of ringest, where the command does not run; if it is \
             meant, write ./{word}"
        ));
    }
    let arguments: Vec<_> = arguments.iter().map(|it| content::argument(it)).collect();
    for argument in arguments.iter().map(Path::new) {
        if argument.is_absolute() && argument.is_file() {
            given.trust.ask("argument of check_command", argument)?;
        }
    }
    Ok(Some(CommandRule {
        program,
        arguments,
        environment: content::environment(environment.texts(), given.variables),
        timeout,
        concurrency,
    }))
}

/// The schema of a source, if it has one and its content is read.
fn schema(
    given: Given<'_>,
    content: Content,
    stated: &Found,
    named: &Found,
) -> Result<Option<Schema>, SettingsError> {
    let Some(path) = named.words.first() else {
        return Ok(None);
    };
    let is_json = matches!(content, Content::Json | Content::Jsonl);
    // A source that says otherwise may share a file with one that says so.
    if !is_json && stated.origin == Origin::Default {
        let cause = "it does nothing without content = \"json\" or \"jsonl\"".into();
        return Err(named.wrong(path.to_string_lossy(), cause));
    }
    if !is_json || given.purpose == Purpose::Store {
        return Ok(None);
    }
    let file = absolute(Path::new(path));
    given.trust.ask("json_schema", &file)?;
    Schema::load(&file)
        .map(Some)
        .map_err(|cause| named.wrong(path.to_string_lossy(), cause))
}

/// A source without a name is called as its directory; where that says too little, by its path.
fn name(inputs: &mut [Input]) -> Result<(), SettingsError> {
    let short = |input: &Input| match (input.named, input.path.file_name()) {
        (false, Some(name)) => name.to_string_lossy().into_owned(),
        (false, None) => input.path.display().to_string(),
        (true, _) => input.name.clone(),
    };
    let shorts: Vec<String> = inputs.iter().map(short).collect();
    for (index, input) in inputs.iter_mut().enumerate() {
        let alone = shorts.iter().filter(|name| **name == shorts[index]).count() == 1;
        input.name = match alone || input.named {
            true => shorts[index].clone(),
            false => input.path.display().to_string(),
        };
    }
    let mut seen = BTreeSet::new();
    // The same directory twice, however it came to be named, is an overlap and is told as one.
    match inputs.iter().find(|input| !seen.insert(&input.name)) {
        Some(second) => match inputs.iter().find(|first| first.name == second.name) {
            Some(first) if first.path != second.path => Err(SettingsError::SameName {
                name: second.name.clone(),
                first: first.path.clone(),
                second: second.path.clone(),
            }),
            _ => Ok(()),
        },
        None => Ok(()),
    }
}

impl Found {
    fn wrong(&self, value: std::borrow::Cow<'_, str>, cause: String) -> SettingsError {
        let origin = self.origin.clone();
        SettingsError::Value {
            key: self.key.name,
            origin,
            value: value.into_owned(),
            cause,
        }
    }

    /// Words that passed the check of their kind are UTF-8 except for paths.
    fn texts(&self) -> impl Iterator<Item = &str> {
        self.words.iter().filter_map(|word| word.to_str())
    }

    fn parse<T>(&self) -> Result<T, SettingsError>
    where
        T: std::str::FromStr<Err: fmt::Display>,
    {
        let text = self.texts().next().unwrap_or_default();
        text.parse()
            .map_err(|cause: T::Err| self.wrong(text.into(), cause.to_string()))
    }

    /// The value, if one was given.
    fn optional<T>(
        &self,
        value: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, SettingsError> {
        let text = self.texts().next();
        text.map(|text| value(text).map_err(|cause| self.wrong(text.into(), cause)))
            .transpose()
    }

    fn bytes(&self) -> Result<u64, SettingsError> {
        Ok(self.parse::<super::size::ByteSize>()?.0)
    }

    fn seconds(&self) -> Result<Duration, SettingsError> {
        Ok(Duration::from_secs_f64(self.parse()?))
    }

    fn globs(&self) -> Result<Option<globset::GlobSet>, SettingsError> {
        rules::globs(self.texts())
            .map_err(|cause| self.wrong(self.texts().collect::<Vec<_>>().join(" ").into(), cause))
    }
}
