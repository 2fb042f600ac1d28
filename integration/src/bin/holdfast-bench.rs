//! The bench: Holdfast and its peers on the same data. `integration/run.sh --bench` installs the peers,
//! builds everything and runs this.

use holdfast_integration::bench::{daily, load, postgres, replay, run};
use std::{path::PathBuf, time::Duration};

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
    let names = |list: String| -> Vec<String> { list.split(',').map(str::to_string).collect() };
    let variable = |name: &str| std::env::var(name).ok();
    let plan = run::Plan {
        rounds: number("HOLDFAST_BENCH_ROUNDS", 3)?,
        scale: number("HOLDFAST_BENCH_SCALE", 1.0)?,
        // On a disk: many systems have /tmp in memory.
        dir: directory("HOLDFAST_BENCH_DIR", "/var/tmp"),
        restores: directory("HOLDFAST_BENCH_RESTORES", "/dev/shm"),
        tools: variable("HOLDFAST_BENCH_TOOLS").map(names),
        data: names(variable("HOLDFAST_BENCH_DATA").unwrap_or_else(|| "tree,image,text".into())),
        seed: number("HOLDFAST_SEED", 1)?,
        time: Duration::from_secs(60 * number("HOLDFAST_BENCH_MINUTES", 60)?),
        json: directory("HOLDFAST_BENCH_JSON", "/var/tmp/holdfast-bench.json"),
    };
    if plan.data.iter().any(|name| name == "daily") {
        return daily::run(&plan);
    }
    if plan.data.iter().any(|name| name == "postgres") {
        return postgres::run(&plan);
    }
    if plan.data.iter().any(|name| name == "load") {
        return load::run(&plan);
    }
    if plan.data.iter().any(|name| name == "replay") {
        return replay::run(&plan);
    }
    println!(
        "bench: {} rounds at scale {} of {}",
        plan.rounds,
        plan.scale,
        plan.data.join(", ")
    );
    run::run(&plan)
}
