//! Jobs of a cluster, as the command line shows them, and the threads that carry them out.

use super::{Cluster, Output};
use crate::wait;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    thread::JoinHandle,
};

/// A thread of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// Its nice value, from `/proc`.
    pub nice: i32,
}

impl Cluster {
    /// Asks for a backup and waits for nothing; the job's id.
    #[must_use]
    pub fn start_backup(&self, source: &str) -> String {
        self.ctl(["backup", "run", source]).ok().text().trim().to_string()
    }

    /// A job as `get jobs` shows it.
    #[must_use]
    pub fn job(&self, id: &str) -> Value {
        self.ctl(["get", "jobs", id, "-o", "json"]).ok().rows().remove(0)
    }

    /// Looks at a job until it is as wanted.
    pub fn wait_for_job(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = wait::poll(wait::PATIENCE, || {
            last = self.job(id);
            wanted(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("job {id} was never {what}: {last:#}"))
    }

    /// Runs the command line beside the test.
    #[must_use]
    pub fn ctl_beside(&self, args: &[&str]) -> JoinHandle<Output> {
        let mut command = self.command(&self.binaries().ctl());
        command.args(args);
        std::thread::spawn(move || Output::of(command))
    }

    /// Applies a source of one root with limits, as YAML in one line, for example `{bandwidth: 1MiB/s}`.
    pub fn apply_limits(&self, source: &str, root: &Path, limits: &str) {
        let document = super::source_document(source, root, &[]);
        self.apply(&format!("{document}limits: {limits}\n"));
    }

    /// Bytes of packs that the catalog knows.
    #[must_use]
    pub fn pack_bytes(&self) -> u64 {
        let status = self.ctl(["status", "-o", "json"]).ok().json();
        let stores = status["stores"].as_array().expect("stores");
        stores
            .iter()
            .filter_map(|store| store["pack_bytes"].as_u64())
            .sum()
    }

    /// What is being received at the store.
    #[must_use]
    pub fn uploads_under_way(&self) -> Vec<PathBuf> {
        entries(&self.store_dir().join("tmp"))
    }
}

/// What is in a directory; nothing when it is not there.
#[must_use]
pub fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// Threads of a process whose names begin so.
#[must_use]
pub fn threads(pid: u32, prefix: &str) -> Vec<Thread> {
    let tasks = entries(Path::new(&format!("/proc/{pid}/task")));
    let mut found: Vec<Thread> = tasks.iter().filter_map(|task| thread(task)).collect();
    found.retain(|thread| thread.name.starts_with(prefix));
    found
}

/// None when it ended meanwhile.
fn thread(task: &Path) -> Option<Thread> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    // The name stands in brackets and may hold anything; the numbers follow the last one.
    let (head, rest) = stat.rsplit_once(')')?;
    let (id, name) = head.split_once(" (")?;
    // proc(5): nice is field 19, and the third one is the first behind the name.
    let nice = rest.split_ascii_whitespace().nth(19 - 3)?;
    Some(Thread {
        name: name.into(),
        id: id.parse().ok()?,
        nice: nice.parse().ok()?,
    })
}
