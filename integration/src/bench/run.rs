//! The order of the bench: every tool does a step before any does the next, in rotating order, on the same
//! state of the same data; every restore is compared with its source. A round is all of that for all data,
//! so that a run that is cut short has as many rounds of each.

use super::{
    measure::{self, Cost},
    ours::Holdfast,
    peers::{PEERS, Peer, Step, Tool},
    place::{Place, remove},
    report::{Report, Row},
    sets::Data,
};
use crate::tree;
use anyhow::{Context as _, bail};
use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// What the bench is asked to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds; medians are over them.
    pub rounds: usize,
    /// Size of the data, 1.0 for the full one.
    pub scale: f64,
    /// Directory for sources and repositories; created, and removed at the end.
    pub dir: PathBuf,
    /// Directory in memory for restores.
    pub restores: PathBuf,
    /// Tools to measure; `None` for all that suit the data.
    pub tools: Option<Vec<String>>,
    /// Data to measure: `tree`, `image`, `text`, `many`; or `daily` alone.
    pub data: Vec<String>,
    /// Seed of the data.
    pub seed: u64,
    /// No round is begun that would end after this long, if it takes as long as the longest before it.
    pub time: Duration,
    /// Where the report is written after each round.
    pub json: PathBuf,
}

impl Plan {
    /// Names of the tools that are measured with data of that kind.
    fn tools_for(&self, data: &Data) -> Vec<String> {
        match &self.tools {
            Some(tools) => tools.clone(),
            None if data.is_ours_alone() => vec!["holdfast".into()],
            None => self.tools_named(),
        }
    }

    /// Names of all tools that may be measured.
    #[must_use]
    pub fn tools_named(&self) -> Vec<String> {
        let all = || ["holdfast"].iter().chain(PEERS).map(ToString::to_string);
        self.tools.clone().unwrap_or_else(|| all().collect())
    }
}

/// Runs the plan and prints the table, before it removes the data, which can take minutes.
///
/// # Errors
/// A tool is missing or fails, space is short, or a restore differs from its source.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    let mut sets = Data::all(plan);
    sets.retain(|set| plan.data.iter().any(|name| name == set.name()));
    if sets.len() != plan.data.len() {
        bail!(
            "of the data {} some has no such name, or is named twice",
            plan.data.join(", ")
        );
    }
    let sizes = || sets.iter().map(Data::bytes_needed);
    let mut bench = Bench {
        place: Place::take(plan, sizes().sum(), sizes().max().unwrap_or(0))?,
        report: Report::new(plan),
        clock: Clock::default(),
    };
    let mut with_tools = Vec::new();
    for data in sets {
        let source = bench.place.dir.join(data.name());
        bench.clock.say(&format!("making the {} …", data.name()));
        let bytes = data.make(&source)?;
        bench.report.sources.insert(data.name().into(), bytes);
        let tools = tools(&plan.tools_for(&data), &source, &bench.place.dir)?;
        with_tools.push((data, source, tools));
    }
    bench.clock.round_is_over("making the data");
    let mut longest = Duration::ZERO;
    for round in 0..plan.rounds {
        if round > 0 && bench.clock.began.elapsed() + longest > plan.time {
            bench.clock.say(&format!(
                "time is over: {round} rounds instead of {}",
                plan.rounds
            ));
            break;
        }
        let start = Instant::now();
        for (data, source, tools) in &mut with_tools {
            // Each tool is first, second … equally often.
            tools.rotate_left(round.min(1));
            bench
                .round(data, source, tools, round)
                .with_context(|| format!("{}, round {}", data.name(), round + 1))?;
        }
        longest = longest.max(start.elapsed());
        bench.report.rounds_done = round + 1;
        // A run that is cut short later has measured this much.
        bench.report.save(&plan.json)?;
        bench
            .clock
            .round_is_over(&format!("round {} of {}", round + 1, plan.rounds));
    }
    println!("\n{}\nJSON: {}", bench.report.table(), plan.json.display());
    Ok(())
}

fn tools(names: &[String], source: &Path, dir: &Path) -> anyhow::Result<Vec<Box<dyn Tool>>> {
    names
        .iter()
        .map(|name| -> anyhow::Result<Box<dyn Tool>> {
            if name == "holdfast" {
                return Ok(Box::new(Holdfast::new(source, dir)));
            }
            let Some(name) = PEERS.iter().find(|peer| *peer == name) else {
                bail!("no tool is named {name}")
            };
            Ok(Box::new(Peer::new(name, source, dir)?))
        })
        .collect()
}

/// A run of the bench under way.
struct Bench {
    place: Place,
    report: Report,
    clock: Clock,
}

impl Bench {
    fn round(
        &mut self,
        data: &Data,
        source: &Path,
        tools: &mut [Box<dyn Tool>],
        round: usize,
    ) -> anyhow::Result<()> {
        self.clock.time("repositories", || {
            tools.iter_mut().try_for_each(|tool| tool.prepare())
        })?;
        let mut stored: Vec<u64> = tools.iter().map(|tool| tool.stored()).collect();
        let mut expected = tree::Tree::new();
        for step in data.backups() {
            let mut changed = 0;
            if *step == Step::Changed {
                changed = self
                    .clock
                    .time("changes", || data.change(source, 1 + round as u64))?;
            }
            // Warms the page cache for all of them.
            expected = self.clock.time("reading the source", || tree::read(source));
            for (tool, stored) in tools.iter_mut().zip(&mut stored) {
                // Nobody pays for what another left unwritten.
                self.clock.time("syncing", rustix::fs::sync);
                if *step == Step::First {
                    self.warm(data)?;
                }
                // All repositories together may be more than memory holds, and a host that takes back memory of
                // its machines takes what was read long ago first.
                self.clock
                    .time("warming the page cache", || measure::read_all(source))?;
                let Some(cost) = self.clock.time("tools", || tool.backup(*step))? else {
                    continue;
                };
                let now = tool.stored();
                let row = Row {
                    data: data.name(),
                    step: data.step_name(*step),
                    tool: tool.name(),
                };
                self.note(row, cost, Some(now.saturating_sub(*stored)), changed);
                *stored = now;
            }
        }
        for tool in tools.iter_mut().filter(|tool| has_latest(tool.as_ref())) {
            self.restore(data, tool.as_mut(), source, &expected)?;
        }
        self.clock.time("repositories", || {
            tools.iter_mut().try_for_each(|tool| tool.finish())
        })
    }

    /// Memory for as much as the source holds: for the page cache of what is written.
    fn warm(&mut self, data: &Data) -> anyhow::Result<()> {
        let bytes = self.report.sources.get(data.name()).copied().unwrap_or(0);
        self.clock.time("warming memory", || self.place.warm(bytes))
    }

    fn restore(
        &mut self,
        data: &Data,
        tool: &mut dyn Tool,
        source: &Path,
        expected: &tree::Tree,
    ) -> anyhow::Result<()> {
        self.clock.time("syncing", rustix::fs::sync);
        self.warm(data)?;
        let repository = tool.repository();
        self.clock
            .time("warming the page cache", || measure::read_all(&repository))?;
        let to = self.place.restores.join("to");
        fs::create_dir_all(&to)?;
        let (cost, root) = self.clock.time("tools", || tool.restore(&to))?;
        let remark = self
            .clock
            .time("comparing", || check(tool, source, expected, &root))?;
        self.report.remarks.extend(remark);
        self.clock.time("removing", || remove(&to))?;
        let row = Row {
            data: data.name(),
            step: "restore",
            tool: tool.name(),
        };
        self.note(row, cost, None, 0);
        Ok(())
    }

    fn note(&mut self, row: Row, cost: Cost, stored: Option<u64>, changed: u64) {
        self.clock.say(&format!(
            "{:>6} {:<16} {:<9} {:7.2} s  {:7.2} CPU s  {}",
            row.data,
            row.step,
            row.tool,
            cost.wall_s,
            cost.cpu_s,
            stored.map_or_else(String::new, |bytes| format!(
                "{:8.1} MB stored",
                bytes as f64 / 1e6
            ))
        ));
        self.report.add(row, cost, stored, changed);
    }
}

/// How long it has been, and where the time went.
struct Clock {
    began: Instant,
    round: Instant,
    spent: BTreeMap<&'static str, Duration>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            round: Instant::now(),
            spent: BTreeMap::new(),
        }
    }
}

impl Clock {
    fn say(&self, text: &str) {
        let seconds = self.began.elapsed().as_secs();
        println!("[{:3}:{:02}] {text}", seconds / 60, seconds % 60);
    }

    fn time<T>(&mut self, what: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        *self.spent.entry(what).or_default() += start.elapsed();
        result
    }

    fn round_is_over(&mut self, what: &str) {
        let parts: Vec<String> = std::mem::take(&mut self.spent)
            .into_iter()
            .map(|(what, spent)| format!("{what} {:.0}", spent.as_secs_f64()))
            .collect();
        let total = self.round.elapsed().as_secs_f64();
        self.say(&format!("{what}: {total:.0} s ({})", parts.join(", ")));
        self.round = Instant::now();
    }
}

/// tar has only the first state, so that its restore cannot be compared with the last.
fn has_latest(tool: &dyn Tool) -> bool {
    tool.name() != "tar-zstd"
}

/// Ours must be equal in everything. A peer must have the content; what else it loses is returned.
fn check(
    tool: &dyn Tool,
    source: &Path,
    expected: &tree::Tree,
    root: &Path,
) -> anyhow::Result<Option<String>> {
    let is_file = source.is_file();
    let strict = tree::Strictness {
        owner: true,
        root: is_file,
    };
    if is_file {
        same_bytes(source, root).with_context(|| format!("{}: the restore differs", tool.name()))?;
    }
    let actual = tree::read(root);
    let found = tree::differences(expected, &actual, strict, 5);
    if found.is_empty() {
        return Ok(None);
    }
    let same_content = expected.len() == actual.len()
        && expected
            .iter()
            .zip(&actual)
            .all(|(want, have)| want.0 == have.0 && want.1.kind == have.1.kind);
    if tool.name() == "holdfast" || !same_content {
        bail!(
            "{}: the restore differs from its source\n  {}",
            tool.name(),
            found.join("\n  ")
        );
    }
    Ok(Some(format!(
        "{} restores content, but: {}",
        tool.name(),
        found[0]
    )))
}

/// Compares two files byte by byte.
fn same_bytes(one: &Path, other: &Path) -> anyhow::Result<()> {
    const PIECE: u64 = 1 << 20;
    let open = |path: &Path| fs::File::open(path).with_context(|| format!("open {}", path.display()));
    let (mut one, mut other) = (open(one)?, open(other)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for piece in 0.. {
        left.clear();
        right.clear();
        (&mut one).take(PIECE).read_to_end(&mut left)?;
        (&mut other).take(PIECE).read_to_end(&mut right)?;
        if left != right {
            bail!("within the {PIECE} bytes from {}", piece * PIECE);
        }
        if left.is_empty() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_the_same_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let mut bytes = vec![7; (1 << 20) + 9];
        let one = write("one", &bytes);
        let same = write("same", &bytes);
        let short = write("short", &bytes[..1 << 20]);
        bytes[1 << 20] = 8;
        let other = write("other", &bytes);
        assert!(same_bytes(&one, &same).is_ok());
        assert!(same_bytes(&one, &short).is_err());
        assert!(same_bytes(&one, &other).is_err());
    }
}
