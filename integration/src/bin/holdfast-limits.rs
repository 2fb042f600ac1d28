//! Measures what limits amount to, against a real controller and agent: wanted, measured, deviation.
//!
//! `HOLDFAST_LIMITS_RATES` (MiB/s, default `5,20,50`), `HOLDFAST_LIMITS_SECONDS` (default 12) and
//! `HOLDFAST_BENCH_DIR` (default `/var/tmp`) change what it does.

use anyhow::Context as _;
use holdfast_integration::bench::limits;
use std::{path::PathBuf, time::Duration};

fn main() -> anyhow::Result<()> {
    let rates = std::env::var("HOLDFAST_LIMITS_RATES").unwrap_or_else(|_| "5,20,50".into());
    let seconds = std::env::var("HOLDFAST_LIMITS_SECONDS").unwrap_or_else(|_| "12".into());
    limits::run(&limits::Plan {
        dir: std::env::var_os("HOLDFAST_BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from),
        rates: rates
            .split(',')
            .map(|rate| {
                rate.trim()
                    .parse()
                    .with_context(|| format!("HOLDFAST_LIMITS_RATES: {rate}"))
            })
            .collect::<anyhow::Result<_>>()?,
        window: Duration::from_secs(seconds.parse().context("HOLDFAST_LIMITS_SECONDS")?),
        seed: 1,
    })
}
