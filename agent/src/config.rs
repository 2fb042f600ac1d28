//! `agent.toml`: where state is, and what this host allows, whatever a controller asks.

use crate::{
    engine::Levels,
    error::{AgentError, Result},
    postgres::ClusterConfig,
};
use holdfast_core::{Name, limits::SEGMENT_CHUNKS_MAX};
use holdfast_net::telemetry::TelemetryConfig;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// zstd levels unless one is named: those at which size and speed both pay (measured by the bench). Databases
/// and disk images gain little by more effort and are large.
pub const DEFAULT_LEVELS: Levels = Levels {
    content: 3,
    segments: 1,
};
/// zstd levels that are accepted: beyond 19 memory is no longer bounded as promised.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;
/// Most worker threads: each holds buffers.
const WORKERS_MAX: usize = 64;
/// Longest configuration file.
const CONFIG_MAX: usize = 1 << 20;

/// The configuration of an agent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Identity, keys, caches.
    pub state_dir: PathBuf,
    /// Directories that may be backed up; none unless named.
    #[serde(default)]
    pub allow: Vec<PathBuf>,
    /// Directories that restores may write to; none unless named.
    #[serde(default)]
    pub restore_targets: Vec<PathBuf>,
    /// Where test restores of PostgreSQL clusters are made, and removed; nowhere unless named.
    pub scratch: Option<PathBuf>,
    /// PostgreSQL clusters that may be backed up, by name; none unless named.
    #[serde(default)]
    pub postgres: BTreeMap<Name, ClusterConfig>,
    /// Where servers on this host push and fetch their WAL; nowhere unless named.
    pub socket: Option<PathBuf>,
    /// Logs, traces, metrics.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// The engine.
    #[serde(default)]
    pub pipeline: Pipeline,
}

/// Settings of the engine.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Threads that read, hash, compress and seal; one per core when absent.
    pub workers: Option<usize>,
    /// zstd level for everything.
    pub level: Option<i32>,
    /// Most chunks that a segment of a file which is rewritten in place may be put together from. More means that
    /// less is stored, and that restores read more.
    pub segment_chunks: Option<usize>,
}

impl Pipeline {
    /// Threads.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(2, |n| n.get()))
    }

    /// Most chunks of one segment.
    #[must_use]
    pub fn segment_chunks(&self) -> usize {
        self.segment_chunks.unwrap_or(SEGMENT_CHUNKS_MAX)
    }

    /// zstd levels.
    #[must_use]
    pub fn levels(&self) -> Levels {
        self.level.map_or(DEFAULT_LEVELS, |level| Levels {
            content: level,
            segments: level,
        })
    }
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// `Invalid` with file, line and what is wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = holdfast_net::durable::read(path, CONFIG_MAX)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| AgentError::Invalid(format!("{} is not UTF-8 text", path.display())))?;
        let config: Self = toml::from_str(&text)
            .map_err(|error| AgentError::Invalid(format!("{}: {error}", path.display())))?;
        config
            .check()
            .map_err(|why| AgentError::Invalid(format!("{}: {why}", path.display())))?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let dirs = self
            .allow
            .iter()
            .chain(&self.restore_targets)
            .chain([&self.state_dir])
            .chain(&self.socket)
            .chain(&self.scratch);
        if let Some(relative) = dirs.into_iter().find(|path| !path.is_absolute()) {
            return Err(format!("{} is not an absolute path", relative.display()));
        }
        let mut served = BTreeSet::new();
        for (name, cluster) in &self.postgres {
            if let Some(source) = &cluster.source
                && !served.insert(source)
            {
                return Err(format!(
                    "[postgres.{name}]: another section says already that its server is of {source}"
                ));
            }
            cluster
                .settings()
                .map_err(|why| format!("[postgres.{name}]: {why}"))?;
            cluster
                .check_spool()
                .map_err(|why| format!("[postgres.{name}]: {why}"))?;
            if cluster
                .password_file
                .as_ref()
                .is_some_and(|path| !path.is_absolute())
            {
                return Err(format!(
                    "[postgres.{name}]: password_file is not an absolute path"
                ));
            }
        }
        if !(1..=WORKERS_MAX).contains(&self.pipeline.workers()) {
            return Err(format!("pipeline.workers must be 1 to {WORKERS_MAX}"));
        }
        if self.pipeline.level.is_some_and(|level| !LEVELS.contains(&level)) {
            return Err(format!(
                "pipeline.level must be {} to {}",
                LEVELS.start(),
                LEVELS.end()
            ));
        }
        if !(1..=SEGMENT_CHUNKS_MAX).contains(&self.pipeline.segment_chunks()) {
            return Err(format!(
                "pipeline.segment_chunks must be 1 to {SEGMENT_CHUNKS_MAX}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(file.path())
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let config = load("state_dir = '/var/lib/x'").unwrap();
        assert!(config.allow.is_empty() && config.restore_targets.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        let error = load("state_dir = '/x'\nallowed = ['/srv']")
            .unwrap_err()
            .to_string();
        assert!(error.contains("allowed") && error.contains("line 2"), "{error}");
        assert!(load("state_dir = 'x'").is_err());
        assert!(load("state_dir = '/x'\n[pipeline]\nworkers = 0").is_err());
        assert!(load("state_dir = '/x'\n[pipeline]\nlevel = 22").is_err());
        assert!(load("state_dir = '/x'\n[pipeline]\nsegment_chunks = 65").is_err());
    }

    #[test]
    fn clusters_have_names_and_connections_to_this_host() {
        let cluster = |lines: &str| load(&format!("state_dir = '/x'\n[postgres.main]\n{lines}"));
        let config = cluster("connection = 'host=/tmp port=5433'\npassword_file = '/etc/p'").unwrap();
        assert_eq!(
            config.postgres.keys().map(Name::as_str).collect::<Vec<_>>(),
            ["main"]
        );
        assert!(cluster("").is_ok());
        let spool = |lines| {
            cluster(lines)
                .unwrap()
                .postgres
                .values()
                .next()
                .and_then(|c| c.spool)
        };
        assert_eq!(spool(""), None);
        assert_eq!(spool("spool = '1GiB'"), Some(holdfast_core::Size(1 << 30)));
        for (lines, named) in [
            ("conection = ''", "conection"),
            ("connection = 'host=db.example'", "[postgres.main]"),
            ("password_file = 'p'", "absolute"),
            ("spool = '1GB'", "KiB, MiB, GiB or TiB"),
            ("spool = 'lots'", "spool"),
            ("spool = 1000", "32MiB"),
            ("spool = '5TiB'", "4TiB"),
            ("spool = -1", "spool"),
            ("source = 'main'", "AGENT/SOURCE"),
            (
                "source = 'db1/main'\n[postgres.other]\nsource = 'db1/main'",
                "already",
            ),
        ] {
            let error = cluster(lines).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(load("state_dir = '/x'\n[postgres.\"Main DB\"]").is_err());
    }
}
