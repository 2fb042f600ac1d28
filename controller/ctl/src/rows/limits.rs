//! The limits that a job runs under.

use super::text;
use crate::output::bytes;
use holdfast_proto::v1;
use serde::Serialize;
use std::fmt;

/// As the job's agent read them back; `null` is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct LimitsRow {
    bandwidth: Option<u64>,
    read_rate: Option<u64>,
    /// Worker threads that what follows was read of; 0 when none runs.
    threads: u32,
    nice: i32,
    cpu_weight: u32,
    /// `null` while nothing was asked for: as the agent was started.
    io_class: Option<String>,
    io_priority: Option<u32>,
    /// What could not be applied, and why.
    pub(super) warnings: Vec<String>,
}

impl From<v1::LimitsInForce> for LimitsRow {
    fn from(wire: v1::LimitsInForce) -> Self {
        let v1::LimitsInForce {
            asked: _,
            bandwidth,
            read_rate,
            threads,
            nice,
            cpu_weight,
            io_class,
            io_priority,
            warnings,
        } = wire;
        let rate = |rate: u64| Some(rate).filter(|rate| *rate > 0);
        Self {
            bandwidth: rate(bandwidth),
            read_rate: rate(read_rate),
            threads,
            nice,
            cpu_weight,
            io_priority: Some(io_priority).filter(|_| io_class == "best-effort"),
            io_class: text(io_class),
            warnings,
        }
    }
}

impl fmt::Display for LimitsRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.bandwidth.map(|rate| format!("send {}/s", bytes(rate))));
        parts.extend(self.read_rate.map(|rate| format!("read {}/s", bytes(rate))));
        if self.threads > 0 {
            parts.push(format!("nice {}", self.nice));
            parts.extend(self.io_class.as_ref().map(|class| format!("io {class}")));
        }
        if !self.warnings.is_empty() {
            parts.push(format!("{} warnings", self.warnings.len()));
        }
        f.write_str(if parts.is_empty() { "-" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}
