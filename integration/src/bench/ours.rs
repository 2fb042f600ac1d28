//! Holdfast as it is deployed: an agent, mTLS, a controller, and the command line that asks.

use super::{
    measure::{self, Cost, Resident},
    peers::{Step, Tool},
};
use crate::harness::{Cluster, Options, restored_root};
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};

const SOURCE: &str = "bench/data";

/// One fresh cluster per repository.
#[derive(Debug)]
pub struct Holdfast {
    source: PathBuf,
    dir: PathBuf,
    cluster: Option<Cluster>,
}

impl Holdfast {
    /// For one source, with all files below `dir`.
    #[must_use]
    pub fn new(source: &Path, dir: &Path) -> Self {
        Self {
            source: source.to_path_buf(),
            dir: dir.to_path_buf(),
            cluster: None,
        }
    }

    fn cluster(&self) -> anyhow::Result<&Cluster> {
        self.cluster.as_ref().context("the cluster was not prepared")
    }

    fn residents(&self, with_agent: bool) -> anyhow::Result<Vec<Resident>> {
        let cluster = self.cluster()?;
        let mut residents = vec![Resident {
            name: "controller".into(),
            pid: cluster.controller().pid(),
        }];
        if with_agent {
            residents.push(Resident {
                name: "agent".into(),
                pid: cluster.agent_process("bench").pid(),
            });
        }
        Ok(residents)
    }
}

/// The agent's settings of the engine, as in `level=1,workers=3`.
fn pipeline(text: &str) -> anyhow::Result<Vec<(String, i64)>> {
    let setting = |setting: &str| {
        let (name, value) = setting.split_once('=')?;
        Some((name.to_string(), value.parse().ok()?))
    };
    let settings = text.split(',').filter(|part| !part.is_empty());
    settings
        .map(|part| setting(part).with_context(|| format!("HOLDFAST_BENCH_PIPELINE: {part:?} is no setting")))
        .collect()
}

impl Tool for Holdfast {
    fn name(&self) -> &'static str {
        "holdfast"
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        let mut cluster = Cluster::start_with(Options {
            base: Some(self.dir.clone()),
            log: Some("warn".into()),
            pipeline: pipeline(&std::env::var("HOLDFAST_BENCH_PIPELINE").unwrap_or_default())?,
            ..Options::default()
        });
        let Some(parent) = self.source.parent() else {
            bail!("the source has no directory")
        };
        cluster.add_agent("bench", &[parent]);
        cluster.apply_source(SOURCE, &self.source);
        self.cluster = Some(cluster);
        Ok(())
    }

    fn backup(&mut self, _: Step) -> anyhow::Result<Option<Cost>> {
        let cluster = self.cluster()?;
        let mut command = cluster.command(&cluster.binaries().ctl());
        command.args(["backup", "run", SOURCE, "--wait"]);
        measure::run("ctl", command, &self.residents(true)?).map(Some)
    }

    fn restore(&mut self, to: &Path) -> anyhow::Result<(Cost, PathBuf)> {
        let cluster = self.cluster()?;
        let target = to.join("holdfast");
        let mut command = cluster.command(&cluster.binaries().ctl());
        command.args(["restore", SOURCE, "--to"]).arg(&target);
        let cost = measure::run("ctl", command, &self.residents(false)?)?;
        Ok((cost, restored_root(&target, &self.source)))
    }

    fn repository(&self) -> PathBuf {
        self.cluster
            .as_ref()
            .map_or_else(PathBuf::new, Cluster::store_dir)
    }

    fn stored(&self) -> u64 {
        self.cluster
            .as_ref()
            .map_or(0, |cluster| measure::stored_bytes(&cluster.store_dir()))
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.cluster = None;
        Ok(())
    }
}
