//! `backup run`.

use super::job;
use crate::{
    cluster::{Cluster, job_id, request_id, retry, wire_source},
    error::Result,
    output::{self, Format},
};
use holdfast_core::SourceRef;
use holdfast_proto::v1;
use serde::Serialize;

#[derive(Serialize)]
struct Started {
    job: holdfast_core::JobId,
}

pub(super) async fn run(cluster: &Cluster, source: &SourceRef, wait: bool, format: Format) -> Result<()> {
    let request = v1::RunBackupRequest {
        request_id: request_id(),
        source: Some(wire_source(source)),
    };
    let answer = retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.run_backup(request).await }
    })
    .await?
    .into_inner();
    let job = job_id(&answer.job)?;
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
