//! `backup run`.

use super::job;
use crate::{
    cluster::{Cluster, job_id, request_id, retry, wire_source},
    error::Result,
    output::{self, Format},
};
use holdfast_core::{Name, SourceRef};
use holdfast_proto::v1;
use serde::Serialize;

#[derive(Serialize)]
struct Started {
    job: holdfast_core::JobId,
}

/// What is to be backed up, and by whom if that was said.
pub(super) struct Wanted {
    pub source: SourceRef,
    pub agent: Option<Name>,
}

pub(super) async fn run(cluster: &Cluster, wanted: &Wanted, wait: bool, format: Format) -> Result<()> {
    let Wanted { source, agent } = wanted;
    let request = v1::RunBackupRequest {
        request_id: request_id(),
        source: Some(wire_source(source)),
        agent: agent.as_ref().map_or_else(String::new, ToString::to_string),
    };
    let answer = retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.run_backup(request).await }
    })
    .await?
    .into_inner();
    let job = job_id(&answer.job)?;
    // Controllers of before members do not say who it is.
    if agent.is_none() && !answer.agent.is_empty() && answer.agent != source.agent.as_str() {
        eprintln!(
            "note: agent {} is not connected; {}, a member of {source}, backs it up",
            source.agent, answer.agent
        );
    }
    if wait {
        return job::finish(job::follow(cluster, job).await?, format);
    }
    match format {
        Format::Json | Format::Yaml => output::print(&output::value(&Started { job }, format)?),
        Format::Table | Format::Wide | Format::Name => {
            output::print(&format!("{job}\n"))?;
            eprintln!("Next: holdfastctl job watch {job}");
            Ok(())
        }
    }
}
