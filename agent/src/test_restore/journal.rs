//! The journal of a source, as the controllers list it to an agent of its vault.

use crate::{
    error::{AgentError, Result},
    remote::data_client,
};
use async_trait::async_trait;
use holdfast_core::{SnapshotId, SourceRef};
use holdfast_net::{Fault, client::Connection};
use holdfast_proto::v1::{self, BrowseJournalRequest};
use holdfast_repo::{Root, VaultKeys};
use holdfast_restore::{GrpcSource, Journal, JournalFile, JournalRoots, RestoreError, Snapshot, open_root};
use std::{collections::BTreeMap, sync::Arc};

/// Most files of a journal: 32 TiB of WAL in segments of the usual size, and what this process can hold.
const FILES_MAX: usize = 2_000_000;

/// All of it, read with the snapshot's keys.
///
/// # Errors
/// When no controller answers, or there is more than an agent can hold.
pub async fn journal(
    source: &SourceRef,
    snapshot: &Snapshot,
    connection: &Connection,
    keys: &Arc<VaultKeys>,
) -> Result<Journal> {
    let mut files = BTreeMap::new();
    let mut after = String::new();
    loop {
        let request = BrowseJournalRequest {
            source: Some(v1::SourceRef {
                agent: source.agent.to_string(),
                source: source.source.to_string(),
            }),
            after: after.clone(),
        };
        let page = data_client(connection.clone())
            .browse_journal(request)
            .await
            .map_err(Fault::from)?
            .into_inner();
        let Some(last) = page.files.last().map(|file| file.name.clone()) else {
            break;
        };
        if last <= after {
            return Err(AgentError::Internal(
                "the controllers list the journal in no order".into(),
            ));
        }
        for file in page.files {
            let id = SnapshotId::try_from(&file.page[..])
                .map_err(|error| AgentError::Invalid(error.to_string()))?;
            let known = JournalFile {
                len: file.len,
                page: id,
                kept_at: file.kept_at,
            };
            files.insert(file.name, known);
        }
        if files.len() > FILES_MAX {
            return Err(AgentError::Invalid(format!(
                "the journal of {source} has more than {FILES_MAX} files"
            )));
        }
        if !page.more {
            break;
        }
        after = last;
    }
    let roots = Pages {
        connection: connection.clone(),
        keys: Arc::clone(keys),
    };
    let reader = snapshot.reader().clone();
    Ok(Journal::new(source.clone(), files, Arc::new(roots), reader))
}

/// Pages from the controllers.
struct Pages {
    connection: Connection,
    keys: Arc<VaultKeys>,
}

#[async_trait]
impl JournalRoots for Pages {
    async fn root(&self, page: SnapshotId) -> std::result::Result<Root, RestoreError> {
        let (root, _) = GrpcSource::root(self.connection.clone(), page).await?;
        open_root(&root, &self.keys)
    }
}
