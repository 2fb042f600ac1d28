//! One child process: its log as it is written, and its end.

use crate::wait;
use std::{
    collections::VecDeque,
    fmt,
    io::{BufRead, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Lines kept per process; older ones are dropped.
const LINES_KEPT: usize = 20_000;

/// A process that a trap kills, when it is not the one that it watches.
#[derive(Clone)]
pub struct Victim(Arc<Mutex<Child>>);

impl fmt::Debug for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Victim")
    }
}

/// Kills a process when the watched one says for the n-th time that it enters a phase.
#[derive(Debug, Clone)]
pub struct Trap {
    /// Name of the phase, for example `upload`.
    pub phase: String,
    /// Which occurrence, from 1.
    pub nth: usize,
    /// How long after the line the kill comes, so that it hits the phase's middle too.
    pub delay: Duration,
    /// Whom to kill; the watched process itself when absent.
    pub victim: Option<Victim>,
}

impl Trap {
    /// Kills the process itself when it first enters `phase`.
    #[must_use]
    pub fn at(phase: &str) -> Self {
        Self {
            phase: phase.into(),
            nth: 1,
            delay: Duration::ZERO,
            victim: None,
        }
    }
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    /// Lines that were dropped from the front.
    dropped: usize,
    trap: Option<Trap>,
    sprung: bool,
    closed: bool,
}

#[derive(Default)]
struct Log {
    state: Mutex<State>,
    changed: Condvar,
}

/// A running child. Killed and reaped on drop.
pub struct Process {
    name: String,
    pid: u32,
    child: Arc<Mutex<Child>>,
    log: Arc<Log>,
    readers: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.name, self.pid)
    }
}

/// Wraps a command so that the child dies with the thread that started it, where util-linux offers that:
/// a test that is itself killed leaves nothing behind.
pub(super) fn dying_with_parent(program: &std::path::Path) -> Command {
    dying_as(None, program)
}

/// The same as another user, which only root can.
pub(super) fn dying_as(user: Option<&str>, program: &std::path::Path) -> Command {
    let setpriv = std::path::Path::new("/usr/bin/setpriv");
    if setpriv.exists() {
        let mut command = Command::new(setpriv);
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = user {
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        }
        command.arg("--").arg(program);
        return command;
    }
    match user {
        Some(user) => {
            let mut command = Command::new("runuser");
            command.args(["-u", user, "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

impl Process {
    /// Starts `command`, with a trap that is armed before its first line.
    #[must_use]
    pub fn start(name: &str, mut command: Command, trap: Option<Trap>) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("start {name} ({command:?}): {e}"));
        let log = Arc::new(Log::default());
        log.state.lock().unwrap().trap = trap;
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let pid = child.id();
        let child = Arc::new(Mutex::new(child));
        let readers = vec![
            read_lines(BufReader::new(stdout), log.clone(), child.clone(), false),
            read_lines(BufReader::new(stderr), log.clone(), child.clone(), true),
        ];
        Self {
            name: name.to_string(),
            pid,
            child,
            log,
            readers,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Itself, as the victim of a trap that watches another process.
    #[must_use]
    pub fn victim(&self) -> Victim {
        Victim(self.child.clone())
    }

    /// Kills it when it next enters `trap.phase`; counts from now.
    pub fn arm(&self, trap: Trap) {
        let mut state = self.log.state.lock().unwrap();
        state.trap = Some(trap);
        state.sprung = false;
    }

    /// Forgets the trap. Returns whether it had sprung.
    pub fn disarm(&self) -> bool {
        let mut state = self.log.state.lock().unwrap();
        state.trap = None;
        state.sprung
    }

    /// Whether the trap killed it.
    #[must_use]
    pub fn sprung(&self) -> bool {
        self.log.state.lock().unwrap().sprung
    }

    /// kill -9, now. Waits until it is gone.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        // An error means that it is gone already.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// SIGTERM, then waits for it to end in its own time; panics when it does not.
    pub fn terminate(&self) -> ExitStatus {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid as i32)
            && self.exited().is_none()
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        wait::until(&format!("{self:?} to end after SIGTERM"), || self.exited())
    }

    /// SIGSTOP: it sleeps until [`Self::resume`].
    pub fn suspend(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    /// Number of lines so far: a mark for [`Self::wait_for_line`].
    #[must_use]
    pub fn mark(&self) -> usize {
        let state = self.log.state.lock().unwrap();
        state.dropped + state.lines.len()
    }

    /// The first line after `mark` that satisfies `wanted`, waiting for it up to `patience`. Ends early when
    /// the process closed its output.
    pub fn wait_for_line(
        &self,
        mark: usize,
        patience: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let end = Instant::now() + patience;
        let mut state = self.log.state.lock().unwrap();
        let mut next = mark;
        loop {
            let from = next.saturating_sub(state.dropped);
            if let Some(line) = state.lines.iter().skip(from).find(|line| wanted(line)) {
                return Some(line.clone());
            }
            next = state.dropped + state.lines.len();
            let left = end.checked_duration_since(Instant::now())?;
            if state.closed {
                return None;
            }
            state = self.log.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits until it says that it enters `phase`, after `mark`.
    pub fn wait_for_phase(&self, mark: usize, phase: &str) {
        let found = self.wait_for_line(mark, wait::PATIENCE, |line| is_phase(line, phase));
        assert!(
            found.is_some(),
            "{self:?} did not reach phase {phase}:\n{}",
            self.tail(40)
        );
    }

    /// Whether it said, after `mark`, that it enters `phase`.
    #[must_use]
    pub fn announced(&self, mark: usize, phase: &str) -> bool {
        self.wait_for_line(mark, Duration::ZERO, |line| is_phase(line, phase))
            .is_some()
    }

    /// All lines that are still kept.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.log.state.lock().unwrap().lines.iter().cloned().collect()
    }

    /// Its last `count` lines, for a panic's text.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let state = self.log.state.lock().unwrap();
        let skip = state.lines.len().saturating_sub(count);
        state
            .lines
            .iter()
            .skip(skip)
            .fold(String::new(), |text, line| text + "    " + line + "\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!("--- last lines of {self:?}\n{}", self.tail(40));
        }
    }
}

fn read_lines(
    mut from: impl BufRead + Send + 'static,
    log: Arc<Log>,
    child: Arc<Mutex<Child>>,
    is_log: bool,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match from.read_until(b'\n', &mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(_) => take_line(&String::from_utf8_lossy(&bytes), &log, &child),
            }
        }
        if is_log {
            log.state.lock().unwrap().closed = true;
            log.changed.notify_all();
        }
    })
}

fn take_line(line: &str, log: &Log, child: &Mutex<Child>) {
    let line = line.trim_end().to_string();
    let mut state = log.state.lock().unwrap();
    let mut kill_after = None;
    if let Some(trap) = &mut state.trap
        && is_phase(&line, &trap.phase)
    {
        trap.nth -= 1;
        if trap.nth == 0 {
            kill_after = Some((trap.delay, trap.victim.take()));
            state.trap = None;
            state.sprung = true;
        }
    }
    if let Some((delay, victim)) = kill_after {
        if !delay.is_zero() {
            wait::pause_for(delay);
        }
        let child = victim.as_ref().map_or(child, |victim| &*victim.0);
        // An error means that it is gone already; whoever waits for it sees how it ended.
        let _ = child.lock().unwrap().kill();
    }
    state.lines.push_back(line);
    if state.lines.len() > LINES_KEPT {
        state.lines.pop_front();
        state.dropped += 1;
    }
    drop(state);
    log.changed.notify_all();
}

/// Whether a log line, console or JSON, announces that phase (target `holdfast::phase`).
#[must_use]
fn is_phase(line: &str, phase: &str) -> bool {
    if !line.contains("holdfast::phase") {
        return false;
    }
    let plain = strip_colour(line);
    [format!("phase=\"{phase}\""), format!("\"phase\":\"{phase}\"")]
        .iter()
        .any(|form| plain.contains(form))
        || plain
            .split_ascii_whitespace()
            .any(|word| word.strip_prefix("phase=") == Some(phase))
}

fn strip_colour(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('\x1b') {
        plain.push_str(&rest[..at]);
        rest = rest[at..].find('m').map_or("", |end| &rest[at + end + 1..]);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, trap: Option<Trap>) -> Process {
        let mut command = dying_with_parent(std::path::Path::new("/bin/sh"));
        command.args(["-c", script]);
        Process::start("sh", command, trap)
    }

    #[test]
    fn phases_are_recognised_in_every_log_format_and_not_in_longer_names() {
        for line in [
            r#"2026-01-01T00:00:00Z DEBUG holdfast::phase: phase="upload" n=1"#,
            "DEBUG holdfast::phase: phase=upload",
            "\x1b[34mDEBUG\x1b[0m \x1b[2mholdfast::phase\x1b[0m: \x1b[3mphase\x1b[0m\x1b[2m=\x1b[0m\"upload\"",
            r#"{"level":"DEBUG","target":"holdfast::phase","fields":{"phase":"upload"}}"#,
        ] {
            assert!(is_phase(line, "upload"), "{line}");
            assert!(!is_phase(line, "up"), "{line}");
        }
        assert!(!is_phase("INFO other: phase=upload", "upload"));
    }

    #[test]
    fn a_trap_kills_at_the_right_occurrence() {
        let script =
            "i=0; while :; do i=$((i+1)); echo \"holdfast::phase phase=walk $i\" >&2; sleep 0.01; done";
        let process = shell(
            script,
            Some(Trap {
                nth: 3,
                ..Trap::at("walk")
            }),
        );
        let status = wait::until("the trap", || process.exited());
        assert!(process.sprung());
        assert!(!status.success());
        assert!(
            process
                .wait_for_line(0, Duration::ZERO, |line| line.ends_with(" 3"))
                .is_some()
        );
    }

    #[test]
    fn lines_are_waited_for_and_a_silent_end_is_noticed() {
        let process = shell("echo one; echo two >&2; exec sleep 100", None);
        assert!(
            process
                .wait_for_line(0, wait::PATIENCE, |line| line == "one")
                .is_some()
        );
        assert!(
            process
                .wait_for_line(0, wait::PATIENCE, |line| line == "two")
                .is_some()
        );
        assert!(
            process
                .wait_for_line(0, Duration::from_millis(50), |line| line == "three")
                .is_none()
        );
        assert!(!process.terminate().success());
        assert!(
            process
                .wait_for_line(0, wait::PATIENCE, |line| line == "three")
                .is_none()
        );
    }
}
