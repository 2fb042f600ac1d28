//! `verify --test-restore`: an agent brings a PostgreSQL cluster back in a scratch directory, starts a server on it and looks
//! through it.

use super::super::{job, restore::recovery};
use crate::{
    address::Address,
    cli::TargetArgs,
    cluster::{Cluster, bytes_of, job_id, request_id, retry},
    error::{Result, fault},
    output::{self, Format},
    rows::{Finding, JobRow},
};
use holdfast_core::{ErrorKind, JobId, Name};
use holdfast_proto::v1;
use holdfast_restore::postgres::{Recovery, RecoveryTarget};
use serde::Serialize;

#[derive(Serialize)]
struct Started {
    job: JobId,
}

pub(in super::super) async fn run(
    cluster: &Cluster,
    address: &Address,
    agent: Option<&Name>,
    wait: bool,
    format: Format,
) -> Result<()> {
    // What is tried is what is archived; how far that reaches is part of the result.
    let target = TargetArgs {
        accept_loss: true,
        ..TargetArgs::default()
    };
    let chosen = recovery::choose(cluster, address, true, &target).await?;
    let snapshot = chosen.snapshot.root().clear.snapshot;
    let request = v1::RunTestRestoreRequest {
        request_id: request_id(),
        snapshot: bytes_of(snapshot.as_bytes()),
        agent: agent.map(Name::to_string).unwrap_or_default(),
        recovery: chosen.recover_to.map(|to| wire(&to.recovery)),
    };
    let answer = retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.run_test_restore(request).await }
    })
    .await?
    .into_inner();
    let job = job_id(&answer.job)?;
    if wait {
        return finish(job::follow(cluster, job).await?, format);
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

fn wire(recovery: &Recovery) -> v1::RecoverySpec {
    let (target, value) = match &recovery.target {
        RecoveryTarget::Latest => ("latest", String::new()),
        RecoveryTarget::Immediate => ("immediate", String::new()),
        RecoveryTarget::Time(time) => ("time", time.to_string()),
        RecoveryTarget::Xid(xid) => ("xid", xid.to_string()),
        RecoveryTarget::Lsn(lsn) => ("lsn", lsn.to_string()),
        RecoveryTarget::Name(name) => ("name", name.clone()),
    };
    v1::RecoverySpec {
        target: target.into(),
        value,
        timeline: recovery.timeline.to_string(),
    }
}

/// Shows what a test restore came to, and turns that into the command's outcome.
pub(in super::super) fn finish(job: JobRow, format: Format) -> Result<()> {
    match format {
        Format::Json | Format::Yaml => output::print(&output::value(&job, format)?)?,
        Format::Name => output::print(&job.snapshot.map(|id| format!("{id}\n")).unwrap_or_default())?,
        Format::Table | Format::Wide => told(&job)?,
    }
    job::outcome(&job)?;
    let Some(report) = &job.test else {
        return Err(fault(ErrorKind::Internal, "the agent came to no verdict"));
    };
    for (name, why) in report.not_run() {
        eprintln!("warning: {name} was not run, or not to its end: {why}");
    }
    match report.findings {
        0 => Ok(()),
        count => Err(fault(
            ErrorKind::Findings,
            format!("{count} things of {} were found", job.source),
        )
        .with_hint(format!("holdfastctl describe jobs {}", job.id))),
    }
}

fn told(job: &JobRow) -> Result<()> {
    let Some(report) = &job.test else {
        return Ok(());
    };
    let snapshot = job.snapshot.map_or_else(String::new, |id| format!("@{id}"));
    let mut text = format!("test restore of {}{snapshot}: {}\n", job.source, report.verdict);
    text.push_str(&report.text());
    for Finding { what, why, fix } in &job.findings {
        text.push_str(&format!("FOUND {what}: {why}\n"));
        if !fix.is_empty() {
            text.push_str(&format!("    {}\n", fix.replace('\n', "\n    ")));
        }
    }
    for note in report.notes() {
        text.push_str(&format!("note: {note}\n"));
    }
    output::print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(state: &str, verdict: &str, findings: u64) -> Result<()> {
        let wire = v1::Job {
            id: vec![1; 16].into(),
            kind: "test-restore".into(),
            source: Some(v1::SourceRef {
                agent: "db1".into(),
                source: "main".into(),
            }),
            state: state.into(),
            error_kind: if state == "failed" { "corrupt" } else { "" }.into(),
            test: (!verdict.is_empty()).then(|| v1::TestReport {
                verdict: verdict.into(),
                findings,
                ..v1::TestReport::default()
            }),
            ..v1::Job::default()
        };
        finish(JobRow::try_from(wire).unwrap(), Format::Name)
    }

    #[test]
    fn verdicts_become_exit_codes() {
        assert!(ended("succeeded", "ok", 0).is_ok());
        for (state, verdict, findings, code) in [
            ("succeeded", "findings", 2, 4),
            ("failed", "failed", 1, 1),
            ("failed", "", 0, 1),
            ("cancelled", "", 0, 130),
            ("succeeded", "", 0, 1),
        ] {
            let fault = ended(state, verdict, findings).unwrap_err();
            assert_eq!(fault.kind.exit_code(), code, "{state} {verdict}");
        }
    }
}
