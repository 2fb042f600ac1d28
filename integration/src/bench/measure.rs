//! Wall time, CPU time and peak memory of commands and of processes that go on running.

use crate::wait;
use anyhow::{Context as _, bail};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// A step that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How often the memory of short-lived processes is looked at.
const SAMPLE: Duration = Duration::from_millis(25);

/// What one step cost.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cost {
    /// Seconds from start to end.
    pub wall_s: f64,
    /// User and system CPU seconds of all processes together.
    pub cpu_s: f64,
    /// Peak resident memory by process name, bytes.
    pub peak_rss: BTreeMap<String, u64>,
    /// CPU seconds by process name, where processes are told apart.
    pub cpu_by_process: BTreeMap<String, f64>,
    /// What the command wrote to standard output.
    #[serde(skip)]
    pub stdout: String,
}

/// A process that was there before the step and stays after it, such as a server.
#[derive(Debug, Clone)]
pub struct Resident {
    /// For the report.
    pub name: String,
    /// Its process id.
    pub pid: u32,
}

/// Runs `command` to its end and measures it, everything it starts, and `residents`.
///
/// # Errors
/// It cannot be started, fails, or takes longer than an hour.
pub fn run(name: &str, mut command: Command, residents: &[Resident]) -> anyhow::Result<Cost> {
    let ticks = ticks_per_second();
    let before: Vec<u64> = residents
        .iter()
        .map(|r| cpu_ticks(r.pid))
        .collect::<anyhow::Result<_>>()?;
    for resident in residents {
        // Resets VmHWM, so that each step has its own peak.
        fs::write(format!("/proc/{}/clear_refs", resident.pid), "5").context("reset the peak of memory")?;
    }
    let children_before = reaped_ticks()?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("start {command:?}"))?;
    let pid = child.id();
    let (output, wall_s, peaks) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peaks = BTreeMap::new();
            while !done.load(Ordering::Relaxed) && start.elapsed() < PATIENCE {
                sample(pid, &mut peaks);
                wait::pause_for(SAMPLE);
            }
            if !done.load(Ordering::Relaxed) {
                kill(pid);
            }
            peaks
        });
        let output = child.wait_with_output();
        let wall_s = start.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        (output, wall_s, sampler.join().expect("the sampler"))
    });
    let output = output?;
    if !output.status.success() {
        bail!(
            "{name}: {command:?} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let own = (reaped_ticks()? - children_before) as f64 / ticks;
    let mut cost = Cost {
        wall_s,
        cpu_s: own,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        ..Cost::default()
    };
    cost.cpu_by_process.insert(name.to_string(), own);
    for (process, peak) in peaks {
        let slot = cost.peak_rss.entry(process).or_default();
        *slot = (*slot).max(peak);
    }
    for (resident, before) in residents.iter().zip(before) {
        let cpu = (cpu_ticks(resident.pid)? - before) as f64 / ticks;
        cost.cpu_s += cpu;
        cost.cpu_by_process.insert(resident.name.clone(), cpu);
        cost.peak_rss.insert(
            resident.name.clone(),
            peak_rss(resident.pid).context("read the peak of memory")?,
        );
    }
    Ok(cost)
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Notes the peaks of `root` and all its descendants. Processes of one name in one tree add up.
fn sample(root: u32, peaks: &mut BTreeMap<String, u64>) {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
            && let Some(fields) = stat_fields(pid)
        {
            parents.insert(
                pid,
                fields.get(1).and_then(|ppid| ppid.parse().ok()).unwrap_or(0u32),
            );
        }
    }
    let mut now: BTreeMap<String, u64> = BTreeMap::new();
    for pid in parents.keys().filter(|pid| descends(**pid, root, &parents)) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"))
            .unwrap_or_default()
            .trim()
            .to_string();
        if let Some(peak) = peak_rss(*pid) {
            *now.entry(name).or_default() += peak;
        }
    }
    for (name, sum) in now {
        let slot = peaks.entry(name).or_default();
        *slot = (*slot).max(sum);
    }
}

fn descends(pid: u32, root: u32, parents: &BTreeMap<u32, u32>) -> bool {
    let mut at = pid;
    while at > 1 {
        if at == root {
            return true;
        }
        at = parents.get(&at).copied().unwrap_or(0);
    }
    false
}

/// The fields of `/proc/PID/stat` after the name, which may hold spaces.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.rsplit_once(')')?.1;
    Some(rest.split_ascii_whitespace().map(str::to_string).collect())
}

fn tick_fields(pid: u32, first: usize) -> anyhow::Result<u64> {
    let fields = stat_fields(pid).with_context(|| format!("process {pid} is gone"))?;
    let field = |at: usize| -> anyhow::Result<u64> {
        Ok(fields.get(at).context("a field of /proc/PID/stat")?.parse()?)
    };
    Ok(field(first)? + field(first + 1)?)
}

/// User and system time of a running process, in ticks: fields 14 and 15 of its stat.
fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    tick_fields(pid, 11)
}

/// The same of all our children that ended and were waited for, theirs included: fields 16 and 17.
fn reaped_ticks() -> anyhow::Result<u64> {
    tick_fields(std::process::id(), 13)
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// VmHWM of a process, bytes.
fn peak_rss(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_ascii_whitespace()
        .next()?
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// Reads all that lies below a path, so that the page cache holds it.
///
/// # Errors
/// When something cannot be read.
pub fn read_all(path: &std::path::Path) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut pending = vec![path.to_path_buf()];
    while let Some(path) = pending.pop() {
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        } else if kind.is_file() {
            let mut file = fs::File::open(&path)?;
            while file.read(&mut buffer)? > 0 {}
        }
    }
    Ok(())
}

/// Bytes in regular files below `dir`.
#[must_use]
pub fn stored_bytes(dir: &std::path::Path) -> u64 {
    let mut sum = 0;
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => pending.push(entry.path()),
                Ok(meta) if meta.is_file() => sum += meta.len(),
                _ => {}
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_cpu_and_memory_are_seen_and_its_failure_too() {
        let mut command = Command::new("bash");
        command.args(["-c", "x=$(head -c 40000000 /dev/zero | tr '\\0' a); i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo ${#x}"]);
        let cost = run("bash", command, &[]).unwrap();
        assert_eq!(cost.stdout.trim(), "40000000");
        assert!(cost.cpu_s > 0.0 && cost.wall_s > 0.0, "{cost:?}");
        assert!(cost.peak_rss["bash"] > 40_000_000, "{cost:?}");
        let mut command = Command::new("sh");
        command.args(["-c", "echo reason >&2; exit 3"]);
        assert!(
            run("sh", command, &[])
                .unwrap_err()
                .to_string()
                .contains("reason")
        );
    }

    #[test]
    fn a_resident_process_is_counted() {
        let mut child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let resident = Resident {
            name: "busy".into(),
            pid: child.id(),
        };
        let mut command = Command::new("sleep");
        command.arg("0.3");
        let cost = run("sleep", command, &[resident]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(cost.unwrap().cpu_by_process["busy"] > 0.0);
    }
}
