//! `check_command`: a program has the last word on the files of a source, after all other rules.
//!
//! It is run by threads of that source, beside the readers: while it takes its time, the file stays open under its lease, and
//! readers go on. The discoverer hands on no more files of the source than [`files_ahead`] allows.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use data_encoding::HEXLOWER;

use crate::io::command::{self, End, KEPT_BYTES, WRITTEN_BYTES_MAX};
use crate::io::disk::Handle;
use crate::io::open;
use crate::io::scratch::Scratch;
use crate::ledger::{Digest, Position, SourceId};
use crate::observe::events;
use crate::observe::mask::mask;
use crate::pipeline::queue::Queue;
use crate::pipeline::{Finding, Input, Staged, is_no_room};
use crate::settings::{CHECK_VARIABLES, CommandRule, ContentRules};

use super::named_values::mask_named;
use super::reader::{self, ReaderShared};

/// Files that are read ahead of each command that may run at a time.
const CHECKS_AHEAD: usize = 8;
/// Descriptors of a file that was read, with a copy, and of a command that runs.
const DESCRIPTORS_PER_FILE: usize = 2;
const DESCRIPTORS_PER_RUN: usize = 8;

const RULE: &str = "check_command";
/// The last bytes of what is kept of a long text are not told: they may be a part of something that is to be masked.
const UNTOLD_BYTES: usize = 256;

/// Files of a source that may be read or checked before others of it are handed on.
pub fn files_ahead(command: &CommandRule) -> usize {
    command.concurrency * CHECKS_AHEAD
}

/// What a command says of a file.
#[derive(Debug)]
pub enum Judgement {
    /// It may come in.
    Accepted,
    /// It is set aside.
    Refused(Finding),
    /// Nobody wants to know any more.
    GivenUp,
}

/// A file that a command is asked about.
#[derive(Debug)]
pub struct Asked<'a> {
    /// What was hashed, open.
    pub hashed: BorrowedFd<'a>,
    /// The same, opened again for the command alone.
    pub handed: OwnedFd,
    /// The path that people know it by. Whoever opens that may find something else.
    pub path: &'a Path,
    /// The name of its source.
    pub source: &'a str,
    /// SHA-256 of its bytes.
    pub digest: &'a Digest,
}

/// Asks the command of these rules, if there is one, about a file.
///
/// The command gets no path in a directory that others write to: its last argument is the descriptor that it is handed, which is of
/// what was hashed, whatever becomes of names meanwhile.
///
/// # Errors
/// It cannot be run.
pub fn judge(
    rules: &ContentRules,
    asked: &Asked<'_>,
    give_up: &AtomicBool,
) -> io::Result<Judgement> {
    let Some(rule) = &rules.command else {
        return Ok(Judgement::Accepted);
    };
    let scratch = Scratch::new()?;
    let mut command = Command::new(&rule.program);
    command
        .args(&rule.arguments)
        .arg(open::proc_path(&asked.handed))
        .current_dir(scratch.path())
        .env_clear()
        .envs(rule.environment.iter().map(|(name, value)| (name, value)));
    let name = asked.path.file_name().unwrap_or_default();
    let [of_path, of_name, of_source, of_digest] = CHECK_VARIABLES;
    command
        .env(of_path, asked.path)
        .env(of_name, name)
        .env(of_source, asked.source)
        .env(of_digest, HEXLOWER.encode(asked.digest));
    let ran = command::run(command, asked.handed.as_fd(), rule.timeout, give_up);
    let made_in = scratch.path().to_owned();
    if let Err(error) = scratch.remove() {
        events::check_left(&made_in, &error.to_string());
    }
    let ran = ran.map_err(|error| {
        // For want of room is no fault of the program.
        match is_no_room(&error) {
            true => error,
            false => io::Error::new(error.kind(), format!("{}: {error}", rule.program.display())),
        }
    })?;
    let message = match ran.end {
        End::Code(0) => return Ok(Judgement::Accepted),
        End::GivenUp => return Ok(Judgement::GivenUp),
        End::Code(code) => format!("check_command ended with code {code}"),
        End::Signal(signal) => format!("check_command was killed by signal {signal}"),
        End::TimedOut => format!(
            "check_command was still running after {} s, and was killed",
            rule.timeout.as_secs_f64()
        ),
        End::Flooded => {
            format!("check_command wrote more than {WRITTEN_BYTES_MAX} bytes, and was killed")
        }
    };
    let said = said(rules, asked.hashed, &ran.written, give_up);
    if give_up.load(Ordering::Relaxed) {
        return Ok(Judgement::GivenUp);
    }
    Ok(Judgement::Refused(Finding {
        rule: RULE.into(),
        message: match said {
            Some(said) if said.is_empty() => message,
            Some(said) => format!("{message}: {said}"),
            None => format!("{message}; what it wrote cannot be told, for mask_fields"),
        },
        position: Position::default(),
    }))
}

/// What a command wrote, on one line, as far as it may be told. `None`: it cannot be known what of it may.
fn said(
    rules: &ContentRules,
    file: BorrowedFd<'_>,
    written: &[u8],
    give_up: &AtomicBool,
) -> Option<String> {
    if !rules.mask_fields.is_empty() && written.contains(&0) {
        // Text of two bytes each would be taken apart.
        return None;
    }
    let text = String::from_utf8_lossy(written);
    let lines = text.split(char::is_control).map(str::trim);
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let masked = mask_named(rules, file, &lines.join(" | "), give_up)?;
    let masked = mask(&masked);
    if written.len() < KEPT_BYTES {
        return Some(masked.into());
    }
    let told = masked.len().saturating_sub(UNTOLD_BYTES);
    let begins = masked.char_indices().map(|(begin, _)| begin);
    let end = begins.take_while(|begin| *begin <= told).last();
    Some(masked[..end.unwrap_or(0)].to_owned() + " …")
}

/// The commands of all sources.
#[derive(Default)]
pub struct Checks {
    of: HashMap<SourceId, Arc<SourceChecks>>,
}

/// The command of one source, and the files that wait for it.
pub struct SourceChecks {
    rule: CommandRule,
    waiting: Queue<Staged<Handle>>,
}

impl Checks {
    /// Those of these inputs.
    pub fn new(inputs: &[Arc<Input>]) -> Checks {
        let of = inputs.iter().filter_map(|input| {
            let rule = input.settings.content.command.clone()?;
            let waiting = Queue::new(files_ahead(&rule));
            Some((input.id, Arc::new(SourceChecks { rule, waiting })))
        });
        Checks { of: of.collect() }
    }

    /// That of a source, if it has one.
    pub fn of(&self, source: SourceId) -> Option<&SourceChecks> {
        self.of.get(&source).map(|checks| &**checks)
    }

    /// What each thread is for that runs commands.
    pub fn threads(&self) -> Vec<Arc<SourceChecks>> {
        let each = self.of.values();
        each.flat_map(|checks| std::iter::repeat_n(Arc::clone(checks), checks.rule.concurrency))
            .collect()
    }

    /// Most descriptors that they need.
    pub fn descriptors(&self) -> u64 {
        let each = self.of.values().map(|checks| &checks.rule);
        let descriptors = each.map(|rule| {
            files_ahead(rule) * DESCRIPTORS_PER_FILE + rule.concurrency * DESCRIPTORS_PER_RUN
        });
        descriptors.sum::<usize>() as u64
    }

    /// Has the threads end once all that waits is checked.
    pub fn close(&self) {
        for checks in self.of.values() {
            checks.waiting.close();
        }
    }
}

impl SourceChecks {
    /// Takes a file that keeps all other rules.
    pub(super) fn take(&self, staged: Staged<Handle>) {
        // There is room: each has one of the places of its source. If nobody checks any more, its ticket says so.
        drop(self.waiting.push(staged));
    }

    /// Checks files until no more come.
    pub fn run(&self, shared: &ReaderShared) {
        while let Some(staged) = self.waiting.pop() {
            // The panic hook tells, and the file is discovered again.
            let _ = catch_unwind(AssertUnwindSafe(|| self.check(shared, staged)));
        }
    }

    fn check(&self, shared: &ReaderShared, staged: Staged<Handle>) {
        if shared.stopping.load(Ordering::Relaxed) {
            return reader::leave_to_next_turn(shared, staged);
        }
        // One that has changed since it was read is read again, whatever would be said of it.
        let Some(mut staged) = reader::still_whole(shared, staged) else {
            return;
        };
        match ask(&staged, &shared.stopping) {
            Ok(Judgement::Accepted) => {}
            Ok(Judgement::Refused(finding)) => staged.finding = Some(finding),
            Ok(Judgement::GivenUp) => return reader::leave_to_next_turn(shared, staged),
            Err(error) => return reader::check_failed(shared, staged, error),
        }
        staged.read.1 = Instant::now();
        reader::hand_on_if_whole(shared, staged);
    }
}

/// Asks about what will be placed: the copy, if there is one.
fn ask(staged: &Staged<Handle>, give_up: &AtomicBool) -> io::Result<Judgement> {
    let (input, path) = (&staged.candidate.input, staged.candidate.path());
    let copy = staged.copy.as_ref().map(|copy| &copy.file);
    // Who may read a file need not have the right to read a copy that has its owner and mode; both have the same bytes.
    let opened = copy.and_then(|copy| Some((copy, open::again(copy).ok()?)));
    let (hashed, handed) = match opened {
        Some(opened) => opened,
        None => (&staged.file, open::again(&staged.file)?),
    };
    let asked = Asked {
        hashed: hashed.as_fd(),
        handed,
        path: &input.absolute(path),
        source: &input.settings.name,
        digest: &staged.digest,
    };
    judge(&input.settings.content, &asked, give_up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn what_a_command_says_becomes_the_reason() {
        let rule = |program: &str, script: &str, millis| ContentRules {
            command: Some(CommandRule {
                program: program.into(),
                arguments: ["-c", script, "sh"].map(String::from).into(),
                environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
                timeout: Duration::from_millis(millis),
                concurrency: 1,
            }),
            ..ContentRules::default()
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"its content").unwrap();
        let judge = |rules: &ContentRules, give_up| {
            let asked = Asked {
                hashed: file.as_fd(),
                handed: open::again(&file).unwrap(),
                path: Path::new("/in/a file"),
                source: "in",
                digest: &[0xab; 32],
            };
            judge(rules, &asked, give_up)
        };
        let never = AtomicBool::new(false);
        let message =
            |script: &str, millis| match judge(&rule("/bin/sh", script, millis), &never).unwrap() {
                Judgement::Refused(finding) => {
                    assert_eq!(finding.rule, "check_command");
                    finding.message
                }
                other => panic!("{other:?}"),
            };
        // Whatever it finds out about the file it finds out from a descriptor, and where it works nothing else is.
        let script = r#"
            test "$(cat "$1") $(cat "$1")" = "its content its content" || exit 1
            test "${1%/*} $1" = "/proc/self/fd $(ls -d "$1")" || exit 2
            test "$RINGEST_CHECK_PATH $RINGEST_CHECK_NAME" = "/in/a file a file" || exit 3
            test "$RINGEST_CHECK_SOURCE $RINGEST_CHECK_SHA256" = "in $(printf %064d 0 | sed s/00/ab/g)" || exit 4
            test "$(stat -c %a .) $(ls -A | wc -l)" = "700 0" || exit 5
            ln -s "$1" "./$RINGEST_CHECK_NAME" && grep -q content "./$RINGEST_CHECK_NAME" || exit 6
            pwd
            exit 7
        "#;
        let said = message(script, 60_000);
        let made_in = said.strip_prefix("check_command ended with code 7: ");
        let made_in = made_in.unwrap_or_else(|| panic!("{said}"));
        assert!(made_in.contains("/ringest-check-"), "{said}");
        assert!(!Path::new(made_in).exists(), "{said}");
        let accepted = judge(&rule("/bin/sh", "", 60_000), &never);
        assert!(matches!(accepted, Ok(Judgement::Accepted)));
        assert_eq!(message("exit 7", 60_000), "check_command ended with code 7");
        assert_eq!(
            message(
                "printf 'no good:\\n\\tline 3\\033[1m\\n' >&2; exit 1",
                60_000
            ),
            "check_command ended with code 1: no good: | line 3 | [1m"
        );
        assert_eq!(
            message("kill -9 $$", 60_000),
            "check_command was killed by signal 9"
        );
        assert_eq!(
            message("echo so far; sleep 1000", 300),
            "check_command was still running after 0.3 s, and was killed: so far"
        );
        let flood = message("yes", 60_000);
        assert!(flood.starts_with("check_command wrote more than 1048576 bytes"));
        assert!(flood.ends_with(" …") && flood.len() < 4 * KEPT_BYTES);
        // Half a card number is none, and half of a value is not found.
        for filled in (KEPT_BYTES - UNTOLD_BYTES - 20..KEPT_BYTES).step_by(7) {
            let script = format!(
                "printf %0{filled}d 0 | tr 0 x; echo ' 4111 1111 1111 1111 0001'; yes | head -c 5000; exit 1"
            );
            let cut = message(&script, 60_000);
            assert!(!cut.contains("4111") && cut.contains("xxx"), "{cut}");
        }
        let gone = rule("/nowhere", "", 1);
        let error = judge(&gone, &never).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere: "), "{error}");
    }
}
