//! `ringest quarantine`: what was set aside, by number or path, and giving it back or removing it.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::ledger::{Outcome, Placement, Position};
use crate::observe::mask::mask;
use crate::pipeline::record::{layout, manifest};
use crate::quarantine::{Changes, Held, Quarantine, Returned, State};
use crate::session;
use crate::settings::{Loaded, Settings};

use super::args::{Chosen, QuarantineAction, Which};

/// The code of a command line that lacks something.
const USAGE: u8 = 2;
/// Files that are named before they are removed; more are counted.
const NAMED_MAX: usize = 20;

/// Does what is asked. Of several files, each that cannot be dealt with is told of on stderr, and the others go on.
pub fn run(loaded: &Loaded, action: QuarantineAction) -> Result<ExitCode, Failure> {
    let settings = &loaded.settings;
    let quarantine = Quarantine::open(settings)?;
    match action {
        QuarantineAction::List { filter, json } => {
            let held = quarantine.list(&filter)?;
            super::printed(list(&quarantine, &held, json))?;
            Ok(ExitCode::SUCCESS)
        }
        QuarantineAction::Show { which, json } => {
            let held = match &which {
                Which::Seq(seq) => vec![quarantine.numbered(*seq)?],
                Which::Path(path) => quarantine.at(path)?,
            };
            super::printed(show(&quarantine, &held, json))?;
            Ok(ExitCode::SUCCESS)
        }
        QuarantineAction::Retry(chosen) => {
            let (held, refused) = choose(&quarantine, chosen)?;
            change(settings, &quarantine, &held, refused, retry)
        }
        QuarantineAction::Drop { chosen, yes } => {
            let (held, refused) = choose(&quarantine, chosen)?;
            if !yes && !held.is_empty() {
                if !io::stdin().is_terminal() {
                    let files = held.len();
                    eprintln!(
                        "ringest: cannot ask whether to remove {files} files for good: stdin is no terminal; say --yes"
                    );
                    return Ok(ExitCode::from(USAGE));
                }
                if !confirmed(&quarantine, &held) {
                    eprintln!("nothing was removed");
                    return Ok(ExitCode::SUCCESS);
                }
            }
            change(settings, &quarantine, &held, refused, drop_one)
        }
    }
}

/// The files that are meant, each once, and the worst of what is wrong with the others.
fn choose(quarantine: &Quarantine, chosen: Chosen) -> Result<(Vec<Held>, Option<Exit>), Failure> {
    let these = match chosen {
        Chosen::All(filter) => return Ok((quarantine.list(&filter)?, None)),
        Chosen::These(these) => these,
    };
    let (mut held, mut refused, mut known) = (Vec::new(), None, BTreeSet::new());
    for which in these {
        let found = match &which {
            Which::Seq(seq) => quarantine.numbered(*seq),
            Which::Path(path) => quarantine.at(path).and_then(|found| only_one(path, found)),
        };
        match found {
            Ok(found) if known.insert(found.arrival.seq) => held.push(found),
            Ok(_) => {}
            Err(failure) => refuse(&mut refused, &failure),
        }
    }
    Ok((held, refused))
}

fn only_one(path: &Path, mut found: Vec<Held>) -> Result<Held, Failure> {
    if found.len() == 1 {
        return Ok(found.remove(0));
    }
    let numbers: Vec<String> = found
        .iter()
        .map(|held| held.arrival.seq.to_string())
        .collect();
    Err(Failure::new(
        Exit::Data,
        "choose a file by",
        path,
        format!("{} files in quarantine came from there", found.len()),
        format!("name one by its number: {}", numbers.join(", ")),
    ))
}

/// Tells of one that cannot be dealt with, and remembers the graver code.
fn refuse(refused: &mut Option<Exit>, failure: &Failure) {
    eprintln!("ringest: {}", mask(&failure.to_string()));
    *refused = match refused {
        Some(Exit::Io) => Some(Exit::Io),
        _ => Some(failure.exit),
    };
}

fn change(
    settings: &Settings,
    quarantine: &Quarantine,
    held: &[Held],
    mut refused: Option<Exit>,
    one: fn(&Quarantine, &Changes<'_>, &Held) -> Result<String, Failure>,
) -> Result<ExitCode, Failure> {
    if !held.is_empty() {
        let changes = quarantine.change()?;
        for held in held {
            match one(quarantine, &changes, held) {
                // Whoever reads that may be gone; what is asked for is done all the same.
                Ok(done) => drop(writeln!(io::stdout(), "{}", super::one_line(&done))),
                Err(failure) if failure.suspect => {
                    session::raise_suspicion(&settings.state_path, true);
                    return Err(failure);
                }
                Err(failure) => refuse(&mut refused, &failure),
            }
        }
    } else if refused.is_none() {
        eprintln!("nothing of that kind lies in quarantine");
    }
    Ok(refused.map_or(ExitCode::SUCCESS, |exit| ExitCode::from(exit as u8)))
}

fn retry(_: &Quarantine, changes: &Changes<'_>, held: &Held) -> Result<String, Failure> {
    let seq = held.arrival.seq;
    Ok(match changes.give_back(seq)? {
        Returned::To(path) => format!("{seq}: given back as {}", path.display()),
        Returned::ReasonOnly => {
            format!("{seq}: it was given back or taken away before; its reason is removed")
        }
        Returned::Before => {
            format!("{seq}: it was given back before and is recorded; what was left is removed")
        }
    })
}

fn drop_one(
    quarantine: &Quarantine,
    changes: &Changes<'_>,
    held: &Held,
) -> Result<String, Failure> {
    changes.drop_for_good(held.arrival.seq)?;
    let path = quarantine.quarantine_path(&held.arrival);
    Ok(format!("{}: removed {}", held.arrival.seq, path.display()))
}

/// Asks at the terminal. Only a clear yes is one.
fn confirmed(quarantine: &Quarantine, held: &[Held]) -> bool {
    for held in held.iter().take(NAMED_MAX) {
        let path = quarantine.quarantine_path(&held.arrival);
        eprintln!("{}", super::one_line(&path.to_string_lossy()));
    }
    if held.len() > NAMED_MAX {
        eprintln!("and {} more", held.len() - NAMED_MAX);
    }
    let bytes: u64 = held.iter().map(size_of).sum();
    let files = held.len();
    eprint!("remove for good ({files} files, {bytes} bytes)? [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

fn size_of(held: &Held) -> u64 {
    let seen = held.seen.map(|seen| seen.identity.size);
    seen.unwrap_or(held.arrival.identity.size)
}

/// A file that was set aside, as `--json` has it.
#[derive(Debug, Serialize)]
struct Shown {
    seq: u64,
    state: State,
    /// When it was taken, in RFC 3339.
    time: String,
    rule: String,
    message: String,
    #[serde(skip_serializing_if = "Position::is_unknown")]
    position: Position,
    source: String,
    /// Where it came from.
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    /// The same, beneath its staging directory.
    relative_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    relative_path_b64: Option<String>,
    /// Where it lies.
    quarantine_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantine_path_b64: Option<String>,
    /// Its reason, if that is there.
    reason_path: Option<String>,
    sha256: String,
    /// Bytes, when it was taken.
    size: u64,
    /// Bytes, as it lies there.
    size_now: Option<u64>,
    /// Last change of its content before it was taken, in nanoseconds since the epoch.
    mtime_ns: i128,
    /// How it got there.
    placed_by: &'static str,
    /// The sidecar that came with it.
    sidecar: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    columns: Option<u64>,
}

impl Shown {
    fn new(quarantine: &Quarantine, held: &Held) -> Shown {
        let arrival = &held.arrival;
        let lossy = |path: &Path| path.to_string_lossy().into_owned();
        let path = held.source.input.join(&arrival.path);
        let lies = quarantine.quarantine_path(arrival);
        let reason = lies.with_file_name(layout::reason_name(lies.file_name().unwrap_or_default()));
        let (rule, message, position) = match &arrival.outcome {
            Outcome::Quarantine {
                rule,
                message,
                position,
            } => (rule.clone(), message.clone(), position.clone()),
            _ => Default::default(),
        };
        let sidecar = arrival.sidecar.as_ref();
        Shown {
            seq: arrival.seq,
            state: held.state,
            time: layout::rfc3339(arrival.time_micros),
            rule,
            message,
            position,
            source: held.source.name.clone(),
            path_b64: manifest::exact(&path),
            path: lossy(&path),
            relative_path_b64: manifest::exact(&arrival.path),
            relative_path: lossy(&arrival.path),
            quarantine_path_b64: manifest::exact(&lies),
            quarantine_path: lossy(&lies),
            reason_path: held.has_reason.then(|| lossy(&reason)),
            sha256: data_encoding::HEXLOWER.encode(&arrival.digest),
            size: arrival.identity.size,
            size_now: held.seen.map(|seen| seen.identity.size),
            mtime_ns: arrival.identity.mtime.as_nanos(),
            placed_by: match arrival.placement {
                Placement::Copy => "copy",
                Placement::Rename => "rename",
                Placement::None => "",
            },
            sidecar: sidecar.map(|(path, _): &(PathBuf, _)| lossy(path)),
            records: arrival.counts.records,
            columns: arrival.counts.columns,
        }
    }
}

/// Its fields in aligned lines.
impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Quarantined => "quarantined",
            State::GivingBack => {
                "on its way back: its retry was interrupted, another one finishes it"
            }
            State::Missing => "missing: only its reason is there",
            State::Gone => "gone: given back, dropped, or taken away",
        };
        writeln!(f, "arrival {}, {state}", self.seq)?;
        let mut line = |name: &str, value: &str| {
            writeln!(f, "  {:<16}{}", format!("{name}:"), super::one_line(value))
        };
        line("rule", &self.rule)?;
        line("message", &self.message)?;
        let Position {
            line: in_line,
            column,
            byte,
            pointer,
        } = &self.position;
        for (name, number) in [("line", in_line), ("column", column), ("byte", byte)] {
            if let Some(number) = number {
                line(name, &number.to_string())?;
            }
        }
        if let Some(pointer) = pointer {
            line("pointer", pointer)?;
        }
        line("lies at", &self.quarantine_path)?;
        line("reason", self.reason_path.as_deref().unwrap_or("none"))?;
        line("came from", &self.path)?;
        line("source", &self.source)?;
        line("relative path", &self.relative_path)?;
        if let Some(sidecar) = &self.sidecar {
            line("sidecar", sidecar)?;
        }
        line("sha256", &self.sha256)?;
        line("size", &format!("{} bytes", self.size))?;
        if let Some(now) = self.size_now.filter(|now| *now != self.size) {
            line("size now", &format!("{now} bytes"))?;
        }
        if let Ok(mtime) = i64::try_from(self.mtime_ns / 1000) {
            line("changed", &layout::rfc3339(mtime))?;
        }
        line("set aside", &self.time)?;
        line("placed by", self.placed_by)?;
        for (name, number) in [("records", self.records), ("columns", self.columns)] {
            if let Some(number) = number {
                line(name, &number.to_string())?;
            }
        }
        Ok(())
    }
}

fn show(quarantine: &Quarantine, held: &[Held], json: bool) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for held in held {
        let shown = Shown::new(quarantine, held);
        match json {
            true => writeln!(out, "{}", serde_json::to_string(&shown)?)?,
            false => write!(out, "{shown}")?,
        }
    }
    out.flush()
}

/// One line for each file, in columns.
fn list(quarantine: &Quarantine, held: &[Held], json: bool) -> io::Result<()> {
    if json {
        return show(quarantine, held, json);
    }
    let mut rows =
        vec![["seq", "time", "rule", "source", "size", "path", "lies at"].map(String::from)];
    rows.extend(held.iter().map(|held| {
        let shown = Shown::new(quarantine, held);
        let note = match held.state {
            State::GivingBack => " (on its way back: retry again)",
            State::Missing => " (missing: only its reason is there)",
            State::Quarantined | State::Gone => "",
        };
        [
            shown.seq.to_string(),
            shown.time,
            super::one_line(&shown.rule),
            super::one_line(&shown.source),
            size_of(held).to_string(),
            super::one_line(&shown.relative_path),
            super::one_line(&shown.quarantine_path) + note,
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..6).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = BufWriter::new(io::stdout().lock());
    // Nothing but a header would be nothing to read.
    for row in rows.iter().filter(|_| !held.is_empty()) {
        for (at, text) in row.iter().enumerate() {
            match (at, widths.get(at)) {
                // Numbers to the right.
                (0 | 4, Some(width)) => write!(out, "{text:>width$}  ")?,
                (_, Some(width)) => write!(out, "{text:<width$}  ")?,
                (_, None) => writeln!(out, "{text}")?,
            }
        }
    }
    out.flush()
}
