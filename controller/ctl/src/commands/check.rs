//! `check`: whether a source can be backed up as it should be, with the lines that mend what is wrong.

use super::job;
use crate::{
    cluster::{Cluster, job_id, request_id, retry, wire_source},
    error::{Result, fault},
    output::{self, Format},
    rows::Finding,
};
use holdfast_core::{ErrorKind, SourceRef};
use holdfast_proto::v1;
use serde::Serialize;

#[derive(Serialize)]
struct Checked<'a> {
    source: &'a SourceRef,
    findings: &'a [Finding],
}

pub(super) async fn run(cluster: &Cluster, source: &SourceRef, format: Format) -> Result<()> {
    let request = v1::RunCheckRequest {
        request_id: request_id(),
        source: Some(wire_source(source)),
    };
    let answer = retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.run_check(request).await }
    })
    .await?
    .into_inner();
    let ended = job::follow(cluster, job_id(&answer.job)?).await?;
    job::outcome(&ended)?;
    let findings = &ended.findings;
    match format {
        Format::Json | Format::Yaml => {
            output::print(&output::value(&Checked { source, findings }, format)?)?;
        }
        Format::Table | Format::Wide | Format::Name => {
            for Finding { what, why, fix } in findings {
                output::print(&format!(
                    "FOUND {what}: {why}\n    {}\n",
                    fix.replace('\n', "\n    ")
                ))?;
            }
            if findings.is_empty() {
                output::print(&format!("{source}: nothing found\n"))?;
            }
        }
    }
    match findings.len() {
        0 => Ok(()),
        count => Err(fault(
            ErrorKind::Findings,
            format!("{count} things of {source} should be mended"),
        )),
    }
}
