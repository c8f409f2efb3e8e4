//! The program as a process that stops at a named point and is killed there.

use std::fs::{self, OpenOptions};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, waitpid};
use serde_json::Value;

use super::PATIENCE;

/// What a process came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Stopped,
    Ended(ExitStatus),
}

pub struct Program {
    // Never waited for by itself: that would miss a stop.
    child: Child,
    ended: Option<ExitStatus>,
}

impl Program {
    /// Starts it in a process group of its own; its log is appended to `log`.
    pub fn start(mut command: Command, log: &Path) -> Program {
        let log = OpenOptions::new().create(true).append(true).open(log);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("open the log"))
            .process_group(0);
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        Program { child, ended: None }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The id of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until all of its threads have stopped, or until it has ended.
    pub fn wait(&mut self) -> State {
        let start = Instant::now();
        loop {
            if let Some(state) = self.look() {
                return state;
            }
            assert!(start.elapsed() < PATIENCE, "it neither stops nor ends");
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    /// Does not wait.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.look(), Some(State::Ended(_)))
    }

    fn look(&mut self) -> Option<State> {
        if let Some(status) = self.ended {
            return Some(State::Ended(status));
        }
        let options = WaitOptions::UNTRACED | WaitOptions::NOHANG;
        let (_, status) = waitpid(Some(self.pid()), options).expect("wait for ringest")?;
        if status.stopped() {
            return Some(State::Stopped);
        }
        let status = ExitStatus::from_raw(status.as_raw());
        self.ended = Some(status);
        Some(State::Ended(status))
    }

    /// Stops it wherever it is. In-flight system calls end first.
    pub fn stop(&mut self) -> State {
        self.send(Signal::STOP);
        self.wait()
    }

    pub fn go_on(&self) {
        self.send(Signal::CONT);
    }

    pub fn send(&self, signal: Signal) {
        if self.ended.is_none() {
            kill_process(self.pid(), signal).expect("signal ringest");
        }
    }

    /// SIGKILL, to the process or to everything that it started too. Returns how it ended.
    pub fn kill(&mut self, group: bool) -> ExitStatus {
        if self.ended.is_none() {
            match group {
                true => kill_process_group(self.pid(), Signal::KILL),
                false => kill_process(self.pid(), Signal::KILL),
            }
            .expect("kill ringest");
        }
        loop {
            if let State::Ended(status) = self.wait() {
                return status;
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A log, of one process or of several after another.
pub struct Log(pub PathBuf);

impl Log {
    /// The events of this name.
    pub fn events(&self, name: &str) -> Vec<Value> {
        let text = fs::read(&self.0).unwrap_or_default();
        let named = format!("\"{name}\"");
        String::from_utf8_lossy(&text)
            .lines()
            .filter(|line| line.contains(&named))
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|event| event["event"] == name)
            .collect()
    }

    /// Its end, for people.
    pub fn tail(&self) -> String {
        let text = fs::read(&self.0).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}
