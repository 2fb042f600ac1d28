//! The order of the bench: every tool does a step before any does the next, in rotating order, on the same
//! state of the same data; every restore is compared with its source.

use super::{
    measure::Cost,
    ours::Holdfast,
    peers::{PEERS, Peer, Step, Tool},
    report::{Report, Row},
};
use crate::{
    dataset::{edit, image, tree as tree_set},
    tree,
};
use anyhow::{Context as _, bail};
use std::{
    fs,
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
    /// Tools to measure.
    pub tools: Vec<String>,
    /// Data to measure: `tree`, `image`; or `daily` alone.
    pub data: Vec<String>,
    /// Seed of the data.
    pub seed: u64,
    /// No round is begun after this long.
    pub time: Duration,
}

/// Data of one kind and how it changes.
enum Data {
    Tree(tree_set::Maker),
    Image(image::Spec),
}

impl Data {
    fn name(&self) -> &'static str {
        match self {
            Self::Tree(_) => "tree",
            Self::Image(_) => "image",
        }
    }

    fn bytes_needed(&self) -> u64 {
        match self {
            // Mean size of a file with some room, and five repositories of at most two thirds.
            Self::Tree(maker) => maker.files() * 24_000,
            Self::Image(spec) => spec.bytes(),
        }
    }

    fn make(&self, path: &Path) -> anyhow::Result<u64> {
        match self {
            Self::Tree(maker) => Ok(maker.make(path)?.bytes),
            Self::Image(spec) => image::make(*spec, path).map(|()| spec.bytes()),
        }
    }

    /// Returns the bytes that changed.
    fn change(&self, path: &Path, version: u64) -> anyhow::Result<u64> {
        match self {
            Self::Tree(maker) => Ok(edit::edit(maker, path, version)?.bytes),
            Self::Image(spec) => image::rewrite(*spec, path, 0.01, version),
        }
    }

    fn backups(&self) -> &'static [Step] {
        match self {
            Self::Tree(_) => &[Step::First, Step::Unchanged, Step::Changed],
            Self::Image(_) => &[Step::First, Step::Changed],
        }
    }
}

/// Runs the plan.
///
/// # Errors
/// A tool is missing or fails, space is short, or a restore differs from its source.
pub fn run(plan: &Plan) -> anyhow::Result<Report> {
    let start = Instant::now();
    let sets = [
        Data::Tree(tree_set::Maker::new(tree_set::Spec {
            seed: plan.seed,
            files: ((tree_set::Spec::large(0).files as f64 * plan.scale) as usize).max(100),
        })),
        Data::Image(image::Spec {
            seed: plan.seed,
            pages: ((image::Spec::large(0).pages as f64 * plan.scale) as u64).max(1000),
        }),
    ];
    let largest = sets.iter().map(Data::bytes_needed).max().unwrap_or(0);
    let place = Place::take(plan, largest)?;
    let mut report = Report::new(plan);
    for data in sets
        .iter()
        .filter(|set| plan.data.iter().any(|name| name == set.name()))
    {
        let source = place.dir.join(data.name());
        println!("making the {} …", data.name());
        let bytes = data.make(&source)?;
        report.sources.insert(data.name().into(), bytes);
        let mut tools = tools(plan, &source, &place.dir)?;
        for round in 0..plan.rounds {
            if round > 0 && start.elapsed() > plan.time {
                println!("time is over: {round} rounds instead of {}", plan.rounds);
                break;
            }
            // Each tool is first, second … equally often.
            tools.rotate_left(round.min(1));
            run_round(data, &source, &mut tools, round, &place, &mut report)
                .with_context(|| format!("{}, round {}", data.name(), round + 1))?;
        }
        drop(tools);
        if source.is_dir() {
            fs::remove_dir_all(&source)?
        } else {
            fs::remove_file(&source)?
        }
    }
    Ok(report)
}

fn tools(plan: &Plan, source: &Path, dir: &Path) -> anyhow::Result<Vec<Box<dyn Tool>>> {
    plan.tools
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

fn run_round(
    data: &Data,
    source: &Path,
    tools: &mut [Box<dyn Tool>],
    round: usize,
    place: &Place,
    report: &mut Report,
) -> anyhow::Result<()> {
    for tool in tools.iter_mut() {
        tool.prepare()?;
    }
    let mut stored: Vec<u64> = tools.iter().map(|tool| tool.stored()).collect();
    for step in data.backups() {
        let mut changed = 0;
        if *step == Step::Changed {
            changed = data.change(source, 1 + round as u64)?;
        }
        // Warms the page cache for all of them.
        drop(tree::read(source));
        for (tool, stored) in tools.iter_mut().zip(&mut stored) {
            // Nobody pays for what another left unwritten.
            rustix::fs::sync();
            let Some(cost) = tool.backup(*step)? else { continue };
            let now = tool.stored();
            let row = Row {
                data: data.name(),
                step: step_name(data, *step),
                tool: tool.name(),
            };
            note(report, row, cost, Some(now.saturating_sub(*stored)), changed);
            *stored = now;
        }
    }
    let expected = tree::read(source);
    for tool in tools.iter_mut().filter(|tool| has_latest(tool.as_ref())) {
        rustix::fs::sync();
        let to = place.restores.join("to");
        fs::create_dir_all(&to)?;
        let (cost, root) = tool.restore(&to)?;
        check(tool.as_ref(), &expected, &root, report)?;
        fs::remove_dir_all(&to)?;
        let row = Row {
            data: data.name(),
            step: "restore",
            tool: tool.name(),
        };
        note(report, row, cost, None, 0);
    }
    tools.iter_mut().try_for_each(|tool| tool.finish())
}

/// tar has only the first state, so that its restore cannot be compared with the last.
fn has_latest(tool: &dyn Tool) -> bool {
    tool.name() != "tar-zstd"
}

fn step_name(data: &Data, step: Step) -> &'static str {
    match (data, step) {
        (_, Step::First) => "first",
        (_, Step::Unchanged) => "unchanged",
        (Data::Tree(_), Step::Changed) => "after edits",
        (Data::Image(_), Step::Changed) => "1 % rewritten",
    }
}

fn note(report: &mut Report, row: Row, cost: Cost, stored: Option<u64>, changed: u64) {
    println!(
        "{:>6} {:<14} {:<9} {:7.2} s  {:7.2} CPU s  {}",
        row.data,
        row.step,
        row.tool,
        cost.wall_s,
        cost.cpu_s,
        stored.map_or_else(String::new, |bytes| format!(
            "{:8.1} MB stored",
            bytes as f64 / 1e6
        ))
    );
    report.add(row, cost, stored, changed);
}

/// Ours must be equal in everything. A peer must have the content; what else it loses is reported.
fn check(tool: &dyn Tool, expected: &tree::Tree, root: &Path, report: &mut Report) -> anyhow::Result<()> {
    let strict = tree::Strictness {
        owner: true,
        root: expected.len() == 1,
    };
    let actual = tree::read(root);
    let found = tree::differences(expected, &actual, strict, 5);
    if found.is_empty() {
        return Ok(());
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
    report
        .remarks
        .insert(format!("{} restores content, but: {}", tool.name(), found[0]));
    Ok(())
}

/// The bench's directories, taken exclusively and removed at the end.
pub(super) struct Place {
    pub dir: PathBuf,
    pub restores: PathBuf,
    _lock: fs::File,
}

impl Place {
    /// `largest` is the size of the largest source in bytes.
    pub fn take(plan: &Plan, largest: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(&plan.dir).with_context(|| format!("create {}", plan.dir.display()))?;
        let lock = fs::File::create(plan.dir.join("holdfast-bench.lock"))?;
        lock.try_lock()
            .map_err(|_| anyhow::anyhow!("another bench runs in {}", plan.dir.display()))?;
        let place = Self {
            dir: plan.dir.join("holdfast-bench"),
            restores: plan.restores.join("holdfast-bench"),
            _lock: lock,
        };
        place.clear();
        fs::create_dir_all(&place.dir)?;
        fs::create_dir_all(&place.restores)?;
        enough(&place.dir, largest * 5)?;
        enough(&place.restores, largest + (1 << 30))?;
        Ok(place)
    }

    fn clear(&self) {
        for dir in [&self.dir, &self.restores] {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
    }
}

fn enough(dir: &Path, bytes: u64) -> anyhow::Result<()> {
    let stat = rustix::fs::statvfs(dir)?;
    let free = stat.f_bavail * stat.f_frsize;
    if free < bytes {
        bail!(
            "{} has {:.1} GB free, the bench needs {:.1} GB: set HOLDFAST_BENCH_DIR, or HOLDFAST_BENCH_SCALE below 1",
            dir.display(),
            free as f64 / 1e9,
            bytes as f64 / 1e9
        );
    }
    Ok(())
}
