//! The bench: Holdfast and its peers on the same data. `integration/run.sh --bench` installs the peers,
//! builds everything and runs this.

use anyhow::Context as _;
use holdfast_integration::bench::{daily, peers::PEERS, run};
use std::{fs, path::PathBuf, time::Duration};

fn number<T: std::str::FromStr>(name: &str, default: T) -> anyhow::Result<T> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .map_err(|_| anyhow::anyhow!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

fn directory(name: &str, default: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| PathBuf::from(default), PathBuf::from)
}

fn main() -> anyhow::Result<()> {
    let tools = match std::env::var("HOLDFAST_BENCH_TOOLS") {
        Ok(names) => names.split(',').map(str::to_string).collect(),
        Err(_) => std::iter::once("holdfast")
            .chain(PEERS.iter().copied())
            .map(str::to_string)
            .collect(),
    };
    let plan = run::Plan {
        rounds: number("HOLDFAST_BENCH_ROUNDS", 3)?,
        scale: number("HOLDFAST_BENCH_SCALE", 1.0)?,
        // On a disk: many systems have /tmp in memory.
        dir: directory("HOLDFAST_BENCH_DIR", "/var/tmp"),
        restores: directory("HOLDFAST_BENCH_RESTORES", "/dev/shm"),
        tools,
        data: std::env::var("HOLDFAST_BENCH_DATA")
            .unwrap_or_else(|_| "tree,image".into())
            .split(',')
            .map(str::to_string)
            .collect(),
        seed: number("HOLDFAST_SEED", 1)?,
        time: Duration::from_secs(60 * number("HOLDFAST_BENCH_MINUTES", 90)?),
    };
    if plan.data.iter().any(|name| name == "daily") {
        return daily::run(&plan);
    }
    println!(
        "bench: {} rounds at scale {}, tools {}",
        plan.rounds,
        plan.scale,
        plan.tools.join(", ")
    );
    let report = run::run(&plan)?;
    let json = directory("HOLDFAST_BENCH_JSON", "/var/tmp/holdfast-bench.json");
    fs::write(&json, serde_json::to_vec_pretty(&report.json())?)
        .with_context(|| format!("write {}", json.display()))?;
    println!("\n{}\nJSON: {}", report.table(), json.display());
    Ok(())
}
