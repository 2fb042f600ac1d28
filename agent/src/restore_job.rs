//! A restore onto this host, into a directory that `agent.toml` names as a target.

use crate::{
    error::{AgentError, Result},
    jobs::{JobContext, Phase},
};
use holdfast_proto::v1::{JobResult, RestoreSpec};

/// Carries a restore out.
///
/// # Errors
/// `NotAllowed` outside the allowed targets; otherwise what the restore said.
pub async fn run(context: &JobContext, spec: &RestoreSpec) -> Result<JobResult> {
    context.set_phase(Phase::Restore);
    let _ = spec;
    Err(AgentError::Internal("unfinished".into()))
}
