//! The program under test as a process: its log, its end.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::PATIENCE;

/// How long a command that ends by itself may take.
const LONGEST: Duration = Duration::from_secs(300);

/// A ringest that runs. Killed when it goes out of scope; if that is because the test failed, its log is printed.
pub struct Running {
    child: Child,
    log: Arc<Log>,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Log {
    /// The lines from number `seen` on; waits up to `limit` for the first.
    fn after(&self, seen: usize, limit: Duration) -> Vec<String> {
        let lines = self.lines.lock().expect("log");
        let waited = self
            .more
            .wait_timeout_while(lines, limit, |lines| lines.len() <= seen);
        waited.expect("log").0[seen..].to_vec()
    }
}

impl Running {
    pub fn spawn(mut command: Command) -> Running {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        let log = Arc::new(Log::default());
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let stdout = std::thread::spawn(move || {
            let mut text = Vec::new();
            stdout.read_to_end(&mut text).expect("read stdout");
            String::from_utf8_lossy(&text).into_owned()
        });
        let stderr = child.stderr.take().expect("stderr is piped");
        let into = Arc::clone(&log);
        let stderr = std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n') {
                let line = String::from_utf8_lossy(&line.expect("read stderr")).into_owned();
                into.lines.lock().expect("log").push(line);
                into.more.notify_all();
            }
        });
        Running {
            child,
            log,
            stdout: Some(stdout),
            stderr: Some(stderr),
            ended: None,
        }
    }

    /// Waits for an event of this name whose `path` ends with `path_suffix` (empty: any event of this name).
    pub fn wait_for_event(&mut self, name: &str, path_suffix: &str) -> Value {
        let start = Instant::now();
        let mut seen = 0;
        loop {
            let ended = self.has_ended();
            // The lock is not held when this panics: the log is still to be printed.
            let new = self.log.after(seen, Duration::from_millis(50));
            seen += new.len();
            let found = new
                .iter()
                .find_map(|line| event_of(line, name, path_suffix));
            if let Some(event) = found {
                return event;
            }
            let waited_for = format!("event {name} {path_suffix:?}");
            assert!(
                !ended || !new.is_empty(),
                "ringest ended before {waited_for}"
            );
            assert!(
                start.elapsed() < PATIENCE,
                "in vain waited for {waited_for}"
            );
        }
    }

    /// The log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lines.lock().expect("log").clone()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself. Does not wait.
    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("wait for ringest");
        }
        self.ended.is_some()
    }

    /// SIGTERM, which must end it with exit code 0.
    pub fn terminate(self) -> Finished {
        self.send(rustix::process::Signal::TERM);
        self.finish().ok()
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// If it had ended by itself before: then there was something wrong.
    pub fn kill(mut self) -> Finished {
        assert!(
            !self.has_ended(),
            "ringest ended by itself: {:?}",
            self.ended
        );
        self.child.kill().expect("kill ringest");
        self.finish()
    }

    pub fn send(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).expect("signal ringest");
    }

    /// Waits for its end, whatever that is.
    pub fn finish(mut self) -> Finished {
        let start = Instant::now();
        while !self.has_ended() {
            assert!(start.elapsed() < LONGEST, "ringest does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let stdout = self
            .stdout
            .take()
            .expect("finished once")
            .join()
            .expect("stdout");
        self.stderr
            .take()
            .expect("finished once")
            .join()
            .expect("stderr");
        let status = self.ended.expect("it has ended");
        let stderr = self.log.lines.lock().expect("log").join("\n");
        Finished {
            status,
            stdout,
            stderr,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let lines = self.log();
            eprintln!("the last lines of ringest's log:");
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("    {line}");
            }
        }
    }
}

/// A ringest that has ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn of(command: Command) -> Finished {
        Running::spawn(command).finish()
    }

    /// Requires exit code 0.
    pub fn ok(self) -> Finished {
        self.with_code(0)
    }

    /// Requires this exit code.
    pub fn with_code(self, code: i32) -> Finished {
        assert!(
            self.status.code() == Some(code),
            "expected exit code {code}: {self}"
        );
        self
    }

    /// Requires that it named `text`, on stdout or stderr.
    pub fn naming(self, text: impl AsRef<std::path::Path>) -> Finished {
        let text = text.as_ref().to_str().expect("UTF-8");
        assert!(
            self.stdout.contains(text) || self.stderr.contains(text),
            "expected to see {text:?}: {self}"
        );
        self
    }

    /// The events of this name whose `path` ends with `path_suffix` (empty: all of this name).
    pub fn events(&self, name: &str, path_suffix: &str) -> Vec<Value> {
        self.stderr
            .lines()
            .filter_map(|line| event_of(line, name, path_suffix))
            .collect()
    }

    /// Requires such an event.
    pub fn event(&self, name: &str, path_suffix: &str) -> Value {
        let events = self.events(name, path_suffix);
        events
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("no event {name} {path_suffix:?}: {self}"))
    }

    /// All events, whatever their name, whose `path` ends with `path_suffix`.
    pub fn events_about(&self, path_suffix: &str) -> Vec<Value> {
        self.events("", path_suffix)
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.status)?;
        writeln!(f, "stdout:\n{}", tail(&self.stdout))?;
        writeln!(f, "stderr:\n{}", tail(&self.stderr))
    }
}

/// The last lines: enough to see what went wrong.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// `line` as an event, if it is one of this name (empty: any) about such a path (empty: any).
fn event_of(line: &str, name: &str, path_suffix: &str) -> Option<Value> {
    let event: Value = serde_json::from_str(line).ok()?;
    let named = event.get("event")?.as_str()?;
    let path = event.get("path").and_then(Value::as_str).unwrap_or("");
    ((name.is_empty() || named == name) && path.ends_with(path_suffix)).then_some(event)
}
