//! `ringest check --file`: what `run` would do with one file, and why.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::io::{open, stat};
use crate::ledger::{Outcome, Position};
use crate::observe::mask::mask;
use crate::outlook::{self, Outlook, Sight, Unread};
use crate::pipeline::record::manifest;
use crate::settings::{Loaded, Settings, Source};

/// The code of a command line that lacks something.
const USAGE: u8 = 2;

/// Prints it on stdout. 1: the file would be set aside.
pub fn run(
    loaded: &Loaded,
    file: &Path,
    source: Option<&str>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let settings = &loaded.settings;
    let absolute = std::path::absolute(file)
        .map_err(|error| Failure::io("make an absolute path of", file, &error))?;
    let Some(lying) = Lying::find(settings, &absolute, source)? else {
        let names = names(settings);
        let names = mask(&names);
        eprintln!("ringest: the file lies in no staging directory; say --source, one of: {names}");
        return Ok(ExitCode::from(USAGE));
    };
    let answer = Answer::of(settings, &lying, &absolute)?;
    let mut stdout = io::stdout().lock();
    super::printed(match serde_json::to_string(&answer) {
        Ok(line) if json => writeln!(stdout, "{line}"),
        _ => write!(stdout, "{answer}"),
    })?;
    Ok(match answer.action {
        "quarantine" => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// Where the file lies, and as whose.
struct Lying<'a> {
    source: &'a Source,
    /// The input, or the directory that the file is in.
    root: PathBuf,
    /// Beneath that.
    path: PathBuf,
    in_staging: bool,
}

impl<'a> Lying<'a> {
    /// `None`: there are several sources of which it could be.
    fn find(
        settings: &'a Settings,
        absolute: &Path,
        name: Option<&str>,
    ) -> Result<Option<Lying<'a>>, Failure> {
        let sources = &settings.sources;
        let beneath = |source: &'a Source| {
            let path = beneath(&source.input, absolute)?;
            Some(Lying {
                source,
                root: source.input.clone(),
                path,
                in_staging: true,
            })
        };
        let source = match (name, &sources[..]) {
            (Some(name), _) => match sources.iter().find(|source| source.name == name) {
                Some(source) => source,
                None => {
                    let known = names(settings);
                    let remedy = format!("name one of: {known}");
                    let cause = "the settings name no such source";
                    let name = Path::new(name);
                    return Err(Failure::new(
                        Exit::Config,
                        "try a file of the source",
                        name,
                        cause,
                        remedy,
                    ));
                }
            },
            (None, [only]) => only,
            // Inputs may lie in one that is not recursive: the innermost is the file's own.
            (None, _) => {
                let lying = sources.iter().filter_map(beneath);
                return Ok(lying.max_by_key(|lying| lying.source.input.components().count()));
            }
        };
        Ok(Some(beneath(source).unwrap_or_else(|| Lying {
            source,
            root: absolute.parent().unwrap_or(absolute).into(),
            path: absolute.file_name().unwrap_or(".".as_ref()).into(),
            in_staging: false,
        })))
    }
}

fn names(settings: &Settings) -> String {
    let names = settings.sources.iter().map(|source| source.name.as_str());
    names.collect::<Vec<_>>().join(", ")
}

/// The path of a file beneath an input, as it is written or without symbolic links and `..` above the file.
fn beneath(input: &Path, file: &Path) -> Option<PathBuf> {
    let plain = |path: &&Path| {
        let mut parts = path.components().peekable();
        parts.peek().is_some() && parts.all(|part| matches!(part, std::path::Component::Normal(_)))
    };
    let rest = |input: &Path, file: &Path| {
        let path = file.strip_prefix(input).ok().filter(plain)?;
        Some(path.to_path_buf())
    };
    rest(input, file).or_else(|| {
        let real = fs::canonicalize(file.parent()?).ok()?;
        rest(
            &fs::canonicalize(input).ok()?,
            &real.join(file.file_name()?),
        )
    })
}

/// What would happen to the file.
#[derive(Debug, Serialize)]
struct Answer {
    /// `ingest`, `duplicate`, `quarantine`, `ignore` or `wait`.
    action: &'static str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    source: String,
    /// Its path beneath the input, or its name if it lies elsewhere.
    relative_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    relative_path_b64: Option<String>,
    /// Whether it lies beneath the input.
    in_staging: bool,
    /// Bytes.
    size: u64,
    /// Why it would be ignored, or would wait for good.
    reason: Option<&'static str>,
    /// What it would wait for now.
    waits_for: Option<&'static str>,
    sha256: Option<String>,
    records: Option<u64>,
    columns: Option<u64>,
    /// The rule that it breaks.
    rule: Option<String>,
    message: Option<String>,
    #[serde(skip_serializing_if = "Position::is_unknown")]
    position: Position,
    /// The arrival that brought the same content before.
    duplicate_of: Option<u64>,
    /// Where that lies.
    duplicate_of_path: Option<String>,
    /// What would become of the duplicate: `move`, `delete` or `keep`.
    on_duplicate: Option<&'static str>,
    /// Where it would be placed.
    warehouse_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warehouse_path_b64: Option<String>,
    /// Whether a ledger says what came before; without one nothing is known to be a duplicate.
    duplicates_known: bool,
    /// Whether it changed while it was read, so that nothing of this may hold.
    changed: bool,
}

impl Answer {
    fn of(settings: &Settings, lying: &Lying<'_>, absolute: &Path) -> Result<Answer, Failure> {
        let failed = |error| Failure::io("look at", absolute, &error);
        let lossy = |path: &Path| path.to_string_lossy().into_owned();
        let Lying { source, path, .. } = lying;
        let root = open::root_dir(&lying.root).map_err(failed)?;
        let seen = stat::stat_at(&root, path.as_os_str()).map_err(failed)?;
        let seen = seen.ok_or_else(|| failed(rustix::io::Errno::NOENT.into()))?;
        let mut outlook = Outlook::open(settings)?;
        let mut answer = Answer {
            action: "ignore",
            path: lossy(absolute),
            path_b64: manifest::exact(absolute),
            source: source.name.clone(),
            relative_path: lossy(path),
            relative_path_b64: manifest::exact(path),
            in_staging: lying.in_staging,
            size: seen.identity.size,
            reason: None,
            waits_for: None,
            sha256: None,
            records: None,
            columns: None,
            rule: None,
            message: None,
            position: Position::default(),
            duplicate_of: None,
            duplicate_of_path: None,
            on_duplicate: None,
            warehouse_path: None,
            warehouse_path_b64: None,
            duplicates_known: outlook.has_ledger(),
            changed: false,
        };
        if let Err(reason) = outlook::takes(source, path) {
            answer.reason = Some(reason);
            return Ok(answer);
        }
        match outlook.sight(source, &root, path, &seen).map_err(failed)? {
            Sight::Ignored(reason) => {
                answer.reason = Some(reason);
                return Ok(answer);
            }
            Sight::Held(reason) => {
                answer.action = "wait";
                answer.reason = Some(reason);
                return Ok(answer);
            }
            // What it holds can be said all the same.
            Sight::Unsettled(reason) => answer.waits_for = Some(reason),
            Sight::Settled => {}
        }
        let examined = match outlook::examine(source, &root, path, absolute) {
            Ok(examined) => examined,
            Err(Unread::Ignored(reason)) => {
                answer.reason = Some(reason);
                return Ok(answer);
            }
            Err(Unread::Failed(failure)) => return Err(failure),
        };
        let prospect = outlook.of(source, path, &examined)?;
        answer.size = examined.bytes;
        answer.changed = examined.changed;
        answer.sha256 = Some(data_encoding::HEXLOWER.encode(&examined.digest));
        answer.records = examined.counts.records;
        answer.columns = examined.counts.columns;
        answer.warehouse_path = prospect.placed.as_deref().map(lossy);
        answer.warehouse_path_b64 = prospect.placed.as_deref().and_then(manifest::exact);
        match prospect.outcome {
            Outcome::Ingest => answer.action = "ingest",
            Outcome::Duplicate { of } => {
                answer.action = "duplicate";
                answer.duplicate_of = Some(of);
                answer.duplicate_of_path = prospect.first.as_deref().map(lossy);
                answer.on_duplicate = Some(source.on_duplicate.as_str());
            }
            Outcome::Quarantine {
                rule,
                message,
                position,
            } => {
                answer.action = "quarantine";
                answer.rule = Some(rule);
                answer.message = Some(message);
                answer.position = position;
            }
        }
        Ok(answer)
    }
}

/// Its fields in aligned lines.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.action, self.on_duplicate) {
            ("ingest", _) => "it would be ingested",
            ("quarantine", _) => "it would be set aside",
            ("wait", _) => "it would stay and wait",
            ("duplicate", Some("delete")) => "it would be deleted: a duplicate",
            ("duplicate", Some("keep")) => "it would be kept where it is: a duplicate",
            ("duplicate", _) => "it would be moved to the duplicates",
            _ => "it would be ignored",
        };
        writeln!(f, "{what}")?;
        let mut line = |name: &str, value: &str| {
            writeln!(f, "  {:<16}{}", format!("{name}:"), super::one_line(value))
        };
        let mut known = |name, value: Option<&str>| value.map_or(Ok(()), |value| line(name, value));
        known("reason", self.reason)?;
        known("rule", self.rule.as_deref())?;
        known("message", self.message.as_deref())?;
        let Position {
            line: in_line,
            column,
            byte,
            pointer,
        } = &self.position;
        for (name, number) in [("line", in_line), ("column", column), ("byte", byte)] {
            known(name, number.map(|number| number.to_string()).as_deref())?;
        }
        known("pointer", pointer.as_deref())?;
        let of = self.duplicate_of.map(|of| format!("arrival {of}"));
        known("duplicate of", of.as_deref())?;
        known("which lies at", self.duplicate_of_path.as_deref())?;
        known("would lie at", self.warehouse_path.as_deref())?;
        known("path", Some(&self.path))?;
        known("source", Some(&self.source))?;
        known("relative path", Some(&self.relative_path))?;
        known("sha256", self.sha256.as_deref())?;
        known("size", Some(&format!("{} bytes", self.size)))?;
        for (name, number) in [("records", self.records), ("columns", self.columns)] {
            known(name, number.map(|number| number.to_string()).as_deref())?;
        }
        known("waits for now", self.waits_for)?;
        let elsewhere = "it does not lie in the staging directory of that source, so its name alone counts as its path";
        known("note", (!self.in_staging).then_some(elsewhere))?;
        let unknown = "there is no ledger, so it is not known whether its content came before";
        let matters = !self.duplicates_known && self.action == "ingest";
        known("note", matters.then_some(unknown))?;
        let changed = "it changed while it was read, so nothing of this may hold";
        known("note", self.changed.then_some(changed))
    }
}
