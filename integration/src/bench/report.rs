//! What came of it: a table for people, JSON for comparison with later runs.

use super::{measure::Cost, run::Plan};
use anyhow::Context as _;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
};

/// Which measurement it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// `tree`, `image`, `text` or `many`.
    pub data: &'static str,
    /// What was done.
    pub step: &'static str,
    /// By whom.
    pub tool: &'static str,
}

#[derive(Debug, Default)]
struct Measured {
    costs: Vec<Cost>,
    stored: Vec<u64>,
    changed: Vec<u64>,
}

/// Data, step, and what every tool did in it.
type Group<'a> = (&'static str, &'static str, Vec<&'a (Row, Measured)>);

/// All measurements of a run.
#[derive(Debug)]
pub struct Report {
    rows: Vec<(Row, Measured)>,
    /// Bytes of each source.
    pub sources: BTreeMap<String, u64>,
    /// What peers' restores lost.
    pub remarks: BTreeSet<String>,
    /// Rounds that were finished.
    pub rounds_done: usize,
    rounds: usize,
    scale: f64,
    seed: u64,
    tools: Vec<String>,
}

impl Report {
    /// An empty report of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self {
            rows: Vec::new(),
            sources: BTreeMap::new(),
            remarks: BTreeSet::new(),
            rounds_done: 0,
            rounds: plan.rounds,
            scale: plan.scale,
            seed: plan.seed,
            tools: plan.tools_named(),
        }
    }

    /// Adds one round's measurement.
    pub fn add(&mut self, row: Row, cost: Cost, stored: Option<u64>, changed: u64) {
        let at = self
            .rows
            .iter()
            .position(|(other, _)| *other == row)
            .unwrap_or_else(|| {
                self.rows.push((row, Measured::default()));
                self.rows.len() - 1
            });
        let measured = &mut self.rows[at].1;
        measured.costs.push(cost);
        measured.stored.extend(stored);
        if changed > 0 {
            measured.changed.push(changed);
        }
    }

    /// Steps in the order they were done, with their tools in the order of the plan.
    fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for entry in &self.rows {
            let key = (entry.0.data, entry.0.step);
            match groups.iter_mut().find(|group| (group.0, group.1) == key) {
                Some(group) => group.2.push(entry),
                None => groups.push((key.0, key.1, vec![entry])),
            }
        }
        for group in &mut groups {
            group
                .2
                .sort_by_key(|entry| self.tools.iter().position(|tool| tool == entry.0.tool));
        }
        groups
    }

    /// The table, in Markdown.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| data | step | tool | wall s, median (min–max) | time against holdfast | CPU s | stored MB | stored against holdfast | stored / changed | peak RSS MiB |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for (data, step, entries) in self.groups() {
            let ours = entries
                .iter()
                .find(|entry| entry.0.tool == "holdfast")
                .map(|entry| &entry.1);
            for (row, measured) in entries {
                let (low, high) = measured.wall_range();
                let shown = |ratio: Option<f64>| ratio.map_or_else(|| "–".into(), |r| format!("{r:.2}×"));
                let stored = measured
                    .stored()
                    .map_or_else(|| "–".into(), |b| format!("{:.1}", b / 1e6));
                let share = measured
                    .changed_ratio()
                    .map_or_else(|| "–".into(), |r| format!("{r:.2}"));
                let (slower, larger) = (
                    shown(measured.wall_against(ours)),
                    shown(measured.stored_against(ours)),
                );
                let _ = writeln!(
                    text,
                    "| {data} | {step} | {} | {:.2} ({low:.2}–{high:.2}) | {slower} | {:.2} | {stored} | {larger} | {share} | {} |",
                    row.tool,
                    measured.wall(),
                    measured.cpu(),
                    measured
                        .peaks()
                        .iter()
                        .map(|(n, b)| format!("{n} {}", b >> 20))
                        .collect::<Vec<_>>()
                        .join(", ")
                );
            }
        }
        for remark in &self.remarks {
            let _ = writeln!(text, "\nRemark: {remark}");
        }
        text
    }

    /// Writes [`Report::json`].
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        fs::write(path, serde_json::to_vec_pretty(&self.json())?)
            .with_context(|| format!("write {}", path.display()))
    }

    /// Everything, for machines.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut rows = Vec::new();
        for (data, step, entries) in self.groups() {
            let ours = entries
                .iter()
                .find(|entry| entry.0.tool == "holdfast")
                .map(|entry| &entry.1);
            for (row, measured) in entries {
                rows.push(json!({
                    "data": data, "step": step, "tool": row.tool,
                    "wall_s": measured.wall(), "cpu_s": measured.cpu(),
                    "wall_ratio_to_holdfast": measured.wall_against(ours),
                    "stored_ratio_to_holdfast": measured.stored_against(ours),
                    "stored_bytes": measured.stored(),
                    "stored_per_changed_byte": measured.changed_ratio(),
                    "peak_rss_bytes": measured.peaks(),
                    "rounds": measured.costs, "stored_rounds": measured.stored, "changed_rounds": measured.changed,
                }));
            }
        }
        json!({
            "machine": machine(), "versions": versions(&self.tools), "rounds": self.rounds_done,
            "rounds_planned": self.rounds, "scale": self.scale,
            "seed": self.seed, "sources": self.sources, "remarks": self.remarks, "results": rows,
        })
    }
}

impl Measured {
    fn wall(&self) -> f64 {
        median(self.costs.iter().map(|cost| cost.wall_s).collect())
    }

    fn wall_range(&self) -> (f64, f64) {
        self.costs.iter().fold((f64::MAX, 0.0), |(low, high), c| {
            (c.wall_s.min(low), c.wall_s.max(high))
        })
    }

    fn cpu(&self) -> f64 {
        median(self.costs.iter().map(|cost| cost.cpu_s).collect())
    }

    fn stored(&self) -> Option<f64> {
        (!self.stored.is_empty()).then(|| median(self.stored.iter().map(|bytes| *bytes as f64).collect()))
    }

    fn wall_against(&self, ours: Option<&Self>) -> Option<f64> {
        Some(self.wall() / ours?.wall())
    }

    fn stored_against(&self, ours: Option<&Self>) -> Option<f64> {
        Some(self.stored()? / ours?.stored()?)
    }

    fn changed_ratio(&self) -> Option<f64> {
        if self.changed.is_empty() || self.changed.len() != self.stored.len() {
            return None;
        }
        Some(median(
            self.stored
                .iter()
                .zip(&self.changed)
                .map(|(s, c)| *s as f64 / *c as f64)
                .collect(),
        ))
    }

    fn peaks(&self) -> BTreeMap<String, u64> {
        let mut peaks: BTreeMap<String, u64> = BTreeMap::new();
        for (name, peak) in self.costs.iter().flat_map(|cost| &cost.peak_rss) {
            // The wrapper that the harness starts a program with is gone before anything happens.
            if name != "setpriv" {
                let slot = peaks.entry(name.clone()).or_default();
                *slot = (*slot).max(*peak);
            }
        }
        peaks
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

fn machine() -> Value {
    let line = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let found = text
            .lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| line.split_once(':'));
        found.map(|(_, value)| value.trim().to_string())
    };
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "cpu": line("/proc/cpuinfo", "model name"),
        "memory": line("/proc/meminfo", "MemTotal"),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    })
}

fn versions(tools: &[String]) -> Value {
    let mut versions = serde_json::Map::new();
    for tool in tools
        .iter()
        .flat_map(|tool| tool.split('-'))
        .filter(|tool| *tool != "holdfast")
    {
        let argument = if tool == "restic" { "version" } else { "--version" };
        let output = Command::new(tool).arg(argument).output();
        let text = output
            .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
            .unwrap_or_default();
        versions.insert(tool.into(), text.lines().next().unwrap_or_default().trim().into());
    }
    versions.insert("holdfast".into(), env!("CARGO_PKG_VERSION").into());
    Value::Object(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
