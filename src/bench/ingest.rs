//! The process that is measured: `ringest run`, what it says in its log, and what it costs.

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal};
use serde::Deserialize;

use super::dataset::DataSet;
use crate::failure::{Exit, Failure};
use crate::io::child;
use crate::observe::usage::{Usage, bytes_of};

/// How often its memory is looked at.
const SAMPLE_REST: Duration = Duration::from_millis(50);
/// How many of its warnings, errors and fallbacks are kept, the last ones.
const WORDS_MAX: usize = 5;

/// A running ingestor.
pub struct Ingest {
    child: Child,
    said: Receiver<Said>,
    log: Option<JoinHandle<Vec<String>>>,
    began: Instant,
    began_at: SystemTime,
    sampled: Instant,
    stopped: bool,
    ended: Ended,
}

/// What it was, once it is over.
#[derive(Debug, Default)]
pub struct Ended {
    /// From its start to its end.
    pub elapsed: Duration,
    /// From its start until it took files.
    pub startup: Option<Duration>,
    /// What it cost.
    pub usage: Usage,
    /// Most memory of its own (not of mapped files) that was seen.
    pub rss_anon_peak_bytes: Option<u64>,
    /// Events that its log dropped.
    pub log_dropped: u64,
    /// Its last warnings and errors, and what it fell back to, as it logged them.
    pub words: Vec<String>,
}

/// What its log says.
#[derive(Debug)]
enum Said {
    Started(SystemTime),
    Done(Done),
    Dropped(u64),
    Stopped(Usage),
}

/// A file whose end is durable.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Its number.
    pub number: u64,
    /// Since when.
    pub at: SystemTime,
}

/// What is heard of it.
#[derive(Debug)]
pub enum Heard {
    /// It takes files.
    Started,
    /// A file is done.
    Done(Done),
    /// Nothing of interest.
    Nothing,
}

impl Ingest {
    /// Starts it. With `each_file`, it is heard of each.
    pub fn start(mut command: Command, each_file: bool) -> io::Result<Ingest> {
        use std::os::unix::process::CommandExt;
        command
            // A Ctrl-C at the terminal is for the bench, which stops it in its own way.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        child::end_with_this_thread(&mut command, Signal::TERM);
        child::inherit_only(&mut command, None);
        let (began, began_at) = (Instant::now(), SystemTime::now());
        let mut child = command.spawn()?;
        let stderr = child.stderr.take().expect("it was asked for");
        let (sender, said) = channel();
        let log = thread::Builder::new()
            .name("log reader".into())
            .spawn(move || listen(stderr, each_file, &sender))?;
        Ok(Ingest {
            child,
            said,
            log: Some(log),
            began,
            began_at,
            sampled: began,
            stopped: false,
            ended: Ended::default(),
        })
    }

    /// Waits a moment for what is heard next. `None`: it has ended.
    pub fn next(&mut self) -> Option<Heard> {
        if self.sampled.elapsed() >= SAMPLE_REST {
            self.sampled = Instant::now();
            self.sample();
        }
        match self.said.recv_timeout(SAMPLE_REST) {
            Ok(Said::Started(at)) => {
                self.ended.startup = at.duration_since(self.began_at).ok();
                return Some(Heard::Started);
            }
            Ok(Said::Done(done)) => return Some(Heard::Done(done)),
            Ok(Said::Dropped(events)) => self.ended.log_dropped += events,
            Ok(Said::Stopped(usage)) => self.ended.usage = usage,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
        Some(Heard::Nothing)
    }

    /// Lets it finish what is in flight and end.
    pub fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            let id = Pid::from_child(&self.child);
            // It may have ended by itself.
            let _ = rustix::process::kill_process(id, Signal::TERM);
        }
    }

    /// What it was. An end that was not asked for or went wrong is a failure.
    pub fn end(mut self) -> Result<Ended, Failure> {
        let status = self.child.wait();
        self.ended.elapsed = self.began.elapsed();
        if let Some(log) = self.log.take() {
            self.ended.words = log.join().unwrap_or_default();
        }
        let failed = |exit: Exit, cause: String| Failure {
            exit,
            operation: "ingest the files".into(),
            path: None,
            cause,
            remedy: "--keep leaves everything to be looked at".into(),
            suspect: false,
        };
        match status {
            Ok(status) if status.success() => Ok(std::mem::take(&mut self.ended)),
            Ok(status) => {
                let words = self.ended.last_words();
                Err(failed(exit_of(status), format!("{status}{words}")))
            }
            Err(error) => Err(failed(Exit::Io, error.to_string())),
        }
    }

    /// The kernel keeps no high-water mark of this.
    fn sample(&mut self) {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let seen = bytes_of(&status, "RssAnon:");
        self.ended.rss_anon_peak_bytes = self.ended.rss_anon_peak_bytes.max(seen);
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // Waited for already, unless something failed on the way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// What it said last, to be put behind a cause.
    pub fn last_words(&self) -> String {
        match &self.words[..] {
            [] => String::new(),
            words => format!("; it said: {}", words.join("; ")),
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    let known = [Exit::Unavailable, Exit::Busy, Exit::Config];
    let same = |exit: &Exit| status.code() == Some(*exit as i32);
    known.into_iter().find(same).unwrap_or(Exit::Io)
}

/// A line of its log.
#[derive(Deserialize)]
struct Line<'a> {
    ts: &'a str,
    level: &'a str,
    event: &'a str,
    #[serde(borrow, default)]
    path: std::borrow::Cow<'a, str>,
    #[serde(default)]
    lines: u64,
    #[serde(flatten)]
    usage: Usage,
}

/// Passes on what matters until it has ended; returns what it said last that a reader of its figures should know.
fn listen(stderr: ChildStderr, each_file: bool, said: &Sender<Said>) -> Vec<String> {
    let mut words = Vec::new();
    let mut lines = BufReader::with_capacity(1 << 16, stderr);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match lines.read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return words,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end();
        // Most lines by far, and parsing them would take time from what is measured.
        if !each_file && text.contains("\"level\":\"info\",\"event\":\"file_") {
            continue;
        }
        let message = match serde_json::from_str::<Line>(text) {
            Ok(line) => {
                if matches!(line.level, "warn" | "error") || line.event == "fallback" {
                    keep(&mut words, text);
                }
                heard(&line)
            }
            Err(_) => {
                keep(&mut words, text);
                None
            }
        };
        if let Some(message) = message {
            // Nobody listens any more: then it only has to be kept from blocking.
            let _ = said.send(message);
        }
    }
}

fn keep(words: &mut Vec<String>, text: &str) {
    if words.len() == WORDS_MAX {
        words.remove(0);
    }
    words.push(text.to_owned());
}

fn heard(line: &Line) -> Option<Said> {
    let at = || Some(SystemTime::from(line.ts.parse::<jiff::Timestamp>().ok()?));
    match line.event {
        "file_ingested" | "file_duplicate" => {
            let name = Path::new(&*line.path).file_name()?.to_str()?;
            let number = DataSet::number(name)?;
            Some(Said::Done(Done { number, at: at()? }))
        }
        "started" => Some(Said::Started(at()?)),
        "log_dropped" => Some(Said::Dropped(line.lines)),
        "stopped" => Some(Said::Stopped(line.usage)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_log_is_understood() {
        let line = |text: &str| {
            let line: Line = serde_json::from_str(text).expect("a line");
            heard(&line)
        };
        let done = r#"{"ts":"2026-01-02T03:04:05.678901Z","level":"info","event":"file_ingested","path":"/a\"b/000000012.dat","bytes":5}"#;
        let Some(Said::Done(done)) = line(done) else {
            panic!("a file is done")
        };
        let since = done.at.duration_since(SystemTime::UNIX_EPOCH);
        assert_eq!(since.expect("later").as_micros(), 1_767_323_045_678_901);
        assert_eq!(done.number, 12);
        let stopped = r#"{"ts":"2026-01-02T03:04:05.678901Z","level":"info","event":"stopped","reason":"done","cpu_user_seconds":1.5,"cpu_system_seconds":0.25,"rss_peak_bytes":4096}"#;
        let Some(Said::Stopped(usage)) = line(stopped) else {
            panic!("it stopped")
        };
        assert_eq!(usage.cpu_user_seconds, Some(1.5));
        assert_eq!(usage.rss_peak_bytes, Some(4096));
    }
}
