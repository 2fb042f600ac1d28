//! Verification of what a store holds, without any key: what the catalog counts on is there, whole and genuine.
//!
//! Findings are sent as they are found; what is not a finding is an error of the run itself.

mod affected;
mod objects;
mod packs;

use crate::{
    error::{Error, Result},
    index::ChunkIndex,
    raft::Catalog,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use holdfast_core::SnapshotId;
use holdfast_proto::v1 as pb;
use holdfast_store::Store;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Findings that wait for the network.
const FINDINGS_READY: usize = 16;
/// Most affected snapshots named with one finding.
const AFFECTED_MAX: usize = 20;
/// Longest text of a problem.
const PROBLEM_MAX: usize = 500;

/// What a verification works on.
#[derive(Clone)]
pub struct Verify {
    /// What should be there.
    pub catalog: Catalog,
    /// What is there.
    pub store: Arc<dyn Store>,
    /// Where blobs lie, for the snapshots that damage affects.
    pub index: Arc<ChunkIndex>,
}

impl Verify {
    /// Checks everything; with `read_data` every byte. The last message is the summary.
    #[must_use]
    pub fn run(self, read_data: bool) -> BoxStream<'static, Result<pb::VerifyStoresResponse>> {
        let (sender, receiver) = mpsc::channel(FINDINGS_READY);
        tokio::spawn(async move {
            let mut report = Report {
                sender: sender.clone(),
                summary: pb::VerifySummary::default(),
            };
            let last = match self.check(read_data, &mut report).await {
                Ok(()) => Ok(pb::VerifyStoresResponse {
                    body: Some(pb::verify_stores_response::Body::Summary(report.summary)),
                }),
                Err(error) => Err(error),
            };
            // Nobody listens any more: nothing is lost.
            let _ = sender.send(last).await;
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    async fn check(&self, read_data: bool, report: &mut Report) -> Result<()> {
        let view = self.catalog.read().await?;
        self.check_roots(&view, report).await?;
        self.check_keys(&view, report).await?;
        self.check_catalog_copies(report).await?;
        self.check_packs(&view, read_data, report).await?;
        self.check_strays(report).await
    }
}

/// Where findings go.
struct Report {
    sender: mpsc::Sender<Result<pb::VerifyStoresResponse>>,
    summary: pb::VerifySummary,
}

impl Report {
    async fn finding(&mut self, object: &str, problem: &str, snapshots: &[SnapshotId]) -> Result<()> {
        tracing::warn!(object, problem, "verification found something");
        self.summary.findings += 1;
        let finding = pb::Finding {
            object: object.to_owned(),
            problem: problem.chars().take(PROBLEM_MAX).collect(),
            snapshots: snapshots
                .iter()
                .take(AFFECTED_MAX)
                .map(|id| Bytes::copy_from_slice(id.as_bytes()))
                .collect(),
        };
        let message = pb::VerifyStoresResponse {
            body: Some(pb::verify_stores_response::Body::Finding(finding)),
        };
        self.sender
            .send(Ok(message))
            .await
            .map_err(|_| Error::Unavailable("the caller went away".into()))
    }
}

/// All findings and the summary of a run, for callers that want them at once.
///
/// # Errors
/// The first error of the run.
pub async fn gather(
    run: impl Stream<Item = Result<pb::VerifyStoresResponse>>,
) -> Result<(Vec<pb::Finding>, pb::VerifySummary)> {
    let mut run = std::pin::pin!(run);
    let (mut findings, mut summary) = (Vec::new(), pb::VerifySummary::default());
    while let Some(message) = run.next().await {
        match message?.body {
            Some(pb::verify_stores_response::Body::Finding(finding)) => findings.push(finding),
            Some(pb::verify_stores_response::Body::Summary(last)) => summary = last,
            None => {}
        }
    }
    Ok((findings, summary))
}

#[cfg(test)]
mod tests;
