//! What a limit amounts to: bytes per second that the kernel counts, beside those that were asked for.

use crate::{
    harness::{Cluster, Options},
    seed::Rng,
    wait,
};
use anyhow::Context as _;
use std::{
    fs,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

const AGENT: &str = "bench";
const SOURCE: &str = "bench/data";
/// A run gets so long to come up to speed before it is measured.
const SETTLING: Duration = Duration::from_secs(2);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Directory for the data and the clusters.
    pub dir: std::path::PathBuf,
    /// Rates in MiB/s.
    pub rates: Vec<u64>,
    /// How long each is measured.
    pub window: Duration,
    /// Seed of the data.
    pub seed: u64,
}

/// Which limit.
#[derive(Debug, Clone, Copy)]
enum Limit {
    /// Seen at the controller, which writes what comes.
    Bandwidth,
    /// Seen at the agent.
    ReadRate,
}

impl Limit {
    fn name(self) -> &'static str {
        match self {
            Self::Bandwidth => "bandwidth",
            Self::ReadRate => "read_rate",
        }
    }

    /// What the kernel has counted so far: neither side's own word is taken.
    fn moved(self, cluster: &Cluster) -> anyhow::Result<u64> {
        match self {
            Self::Bandwidth => counted(cluster.controller().pid(), "wchar:"),
            Self::ReadRate => counted(cluster.agent_process(AGENT).pid(), "rchar:"),
        }
    }
}

/// Measures and prints a table.
///
/// # Errors
/// When something cannot be read, or a run ends before it was measured.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("holdfast-limits-")
        .tempdir_in(&plan.dir)?;
    let root = dir.path().join("source");
    fs::create_dir(&root)?;
    let fastest = plan.rates.iter().copied().max().context("no rates")?;
    let seconds = (plan.window + SETTLING).as_secs() + 6;
    println!("making {} MiB that do not compress …", fastest * seconds);
    make(&root, fastest * seconds, plan.seed)?;
    println!(
        "| limit | wanted MiB/s | measured MiB/s | deviation | over s |\n| --- | --- | --- | --- | --- |"
    );
    for limit in [Limit::Bandwidth, Limit::ReadRate] {
        for rate in &plan.rates {
            let (measured, over) = measure(plan, dir.path(), &root, limit, *rate)?;
            let wanted = *rate as f64;
            println!(
                "| {} | {wanted} | {measured:.2} | {:+.1} % | {:.1} |",
                limit.name(),
                (measured / wanted - 1.0) * 100.0,
                over.as_secs_f64()
            );
        }
    }
    Ok(())
}

fn make(root: &Path, mib: u64, seed: u64) -> anyhow::Result<()> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; 1 << 20];
    let mut file = fs::File::create(root.join("noise"))?;
    for _ in 0..mib {
        rng.fill(&mut bytes);
        file.write_all(&bytes)?;
    }
    Ok(())
}

fn measure(plan: &Plan, dir: &Path, root: &Path, limit: Limit, rate: u64) -> anyhow::Result<(f64, Duration)> {
    // A vault that knows nothing, so that all is sent.
    let mut cluster = Cluster::start_with(Options {
        base: Some(dir.to_path_buf()),
        log: Some("warn".into()),
        ..Options::default()
    });
    cluster.add_agent(AGENT, &[root]);
    cluster.apply_limits(SOURCE, root, &format!("{{{}: {rate}MiB/s}}", limit.name()));
    let before = limit.moved(&cluster)?;
    let job = cluster.start_backup(SOURCE);
    wait::until("the first bytes to move", || {
        let moved = limit.moved(&cluster).ok()?;
        (moved > before + (1 << 20)).then_some(())
    });
    sleep(SETTLING);
    let (first, start) = (limit.moved(&cluster)?, Instant::now());
    sleep(plan.window);
    let (last, over) = (limit.moved(&cluster)?, start.elapsed());
    let state = cluster.job(&job)["state"].clone();
    anyhow::ensure!(state == "running", "the run is {state} before it was measured");
    let _ = cluster.ctl(["job", "cancel", &job]).ok();
    Ok((
        (last - first) as f64 / f64::from(1 << 20) / over.as_secs_f64(),
        over,
    ))
}

fn sleep(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        wait::pause_for(left);
    }
}

/// A line of `/proc/PID/io`: bytes that a process passed to read or write calls.
fn counted(pid: u32, line: &str) -> anyhow::Result<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let value = io.lines().find_map(|text| text.strip_prefix(line));
    value
        .and_then(|value| value.trim().parse().ok())
        .with_context(|| format!("/proc/{pid}/io has no {line}"))
}
