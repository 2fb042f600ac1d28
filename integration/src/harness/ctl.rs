//! One call of the command line, and what came of it.

use crate::wait;
use std::{
    io::Read,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// A call that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What a finished call left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The call, for messages.
    pub call: String,
    /// Exit code; 128 + number when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Runs `command` to its end.
    #[must_use]
    pub fn of(command: Command) -> Self {
        Self::of_until(command, &AtomicBool::new(false))
    }

    /// Runs `command` to its end, or kills it once `give_up` is set.
    #[must_use]
    pub fn of_until(mut command: Command, give_up: &AtomicBool) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let call = format!("{command:?}");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("start {call}: {e}"));
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        std::thread::scope(|scope| {
            let stdout = scope.spawn(move || {
                let mut bytes = Vec::new();
                out.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
            });
            let stderr = scope.spawn(move || {
                let mut bytes = Vec::new();
                err.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
            });
            let ended = wait::poll(PATIENCE, || match child.try_wait().unwrap() {
                Some(status) => Some(Some(status)),
                None => give_up.load(Ordering::Relaxed).then_some(None),
            });
            let status = ended.flatten().unwrap_or_else(|| {
                let _ = child.kill();
                child.wait().unwrap()
            });
            Self {
                call,
                code: status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
                stdout: stdout.join().unwrap(),
                stderr: String::from_utf8_lossy(&stderr.join().unwrap()).into_owned(),
            }
        })
    }

    /// Panics unless the exit code is `code`.
    #[must_use]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            code,
            "{}: exit code {} instead of {code}\nstdout: {}\nstderr: {}",
            self.call,
            self.code,
            self.text(),
            self.stderr
        );
        self
    }

    /// Panics unless it succeeded.
    #[must_use]
    pub fn ok(self) -> Self {
        self.expect_code(0)
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| {
            panic!(
                "{}: standard output is not JSON ({e}): {}",
                self.call,
                self.text()
            )
        })
    }

    /// The rows of a list: the value itself, or the array that it holds under `items` or any one key.
    #[must_use]
    pub fn rows(&self) -> Vec<serde_json::Value> {
        match self.json() {
            serde_json::Value::Array(rows) => rows,
            serde_json::Value::Object(map) => map
                .get("items")
                .or_else(|| map.values().find(|value| value.is_array()))
                .and_then(|value| value.as_array().cloned())
                .unwrap_or_else(|| panic!("{}: no list in {}", self.call, self.text())),
            other => panic!("{}: no list in {other}", self.call),
        }
    }
}
