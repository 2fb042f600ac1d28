//! What the controllers know of a spool: that WAL may wait in it. Noted there before the first file is called archived because
//! of it, taken back only when nothing is left.
//!
//! A small file beside the spool remembers that the controllers know, so that spooling goes on after a restart without them. It
//! is written after they said so, and marked as no longer valid before they are told the opposite: it never claims too much.

use super::archive::wire;
use crate::{
    error::{AgentError, Result},
    remote::data_client,
    state::State,
};
use holdfast_core::{ErrorKind, SnapshotId, SourceRef};
use holdfast_net::{
    Fault,
    client::{ClientTls, ConnectOptions, connect},
    durable,
};
use holdfast_postgres::SystemId;
use holdfast_proto::v1::MarkTailRequest;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The file's name.
const FILE: &str = "tail.json";
/// Longest such file: a path, and little else.
const FILE_MAX: usize = 64 << 10;
/// Longest wait for the controllers' word.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was agreed with the controllers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Agreed {
    /// Ours, of this opening.
    mark: [u8; 16],
    /// Of the cluster whose WAL is spooled.
    system_id: u64,
    /// Where the server's files are, and whose they are: a damaged file may still lie there.
    place: (PathBuf, u32),
    /// False when it is being taken back.
    is_open: bool,
}

/// A spool as the controllers know it.
pub(super) struct Tail {
    source: SourceRef,
    state: Arc<State>,
    tls: ClientTls,
    path: PathBuf,
    agreed: Mutex<Option<Agreed>>,
}

impl Tail {
    /// Reads what was agreed before. Damage counts as nothing: it is then agreed upon anew.
    pub fn open(spool: &Path, source: SourceRef, state: Arc<State>, tls: ClientTls) -> Self {
        let path = spool.join(FILE);
        let agreed = match durable::read(&path, FILE_MAX) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .inspect_err(|error| tracing::warn!(%error, path = %path.display(), "it is not understood"))
                .ok(),
            Err(_) => None,
        };
        Self {
            source,
            state,
            tls,
            path,
            agreed: Mutex::new(agreed),
        }
    }

    /// Whether the controllers know that WAL of that cluster may wait here.
    pub fn is_known(&self, system_id: SystemId) -> bool {
        let agreed = self.agreed.lock();
        agreed
            .as_ref()
            .is_some_and(|agreed| agreed.is_open && agreed.system_id == system_id.0)
    }

    /// What the controllers know the spool by; none when they do not know that WAL waits in it.
    pub fn mark(&self) -> Option<[u8; 16]> {
        let agreed = self.agreed.lock();
        agreed
            .as_ref()
            .filter(|agreed| agreed.is_open)
            .map(|agreed| agreed.mark)
    }

    /// Where the server's files were, and whose.
    pub fn place(&self) -> Option<(PathBuf, u32)> {
        self.agreed.lock().as_ref().map(|agreed| agreed.place.clone())
    }

    /// Has the controllers note that WAL of that cluster may wait here.
    ///
    /// # Errors
    /// When they are away; `Conflict` when the journal is another cluster's.
    pub async fn announce(&self, system_id: SystemId, place: (PathBuf, u32)) -> Result<()> {
        let agreed = Agreed {
            mark: *SnapshotId::generate().as_bytes(),
            system_id: system_id.0,
            place,
            is_open: true,
        };
        self.tell(&agreed).await?;
        self.save(&agreed)?;
        *self.agreed.lock() = Some(agreed);
        tracing::info!(source = %self.source, "the controllers know that WAL may wait in the spool");
        Ok(())
    }

    /// Has them note that nothing waits here any more. Nothing may be spooled from before this call on.
    ///
    /// # Errors
    /// When they are away: they are told again at the next start.
    pub async fn take_back(&self) -> Result<()> {
        let agreed = self.agreed.lock().clone();
        let Some(mut agreed) = agreed else {
            return Ok(());
        };
        agreed.is_open = false;
        self.save(&agreed)?;
        *self.agreed.lock() = Some(agreed.clone());
        self.tell(&agreed).await?;
        let _ = fs::remove_file(&self.path);
        *self.agreed.lock() = None;
        tracing::info!(source = %self.source, "the controllers know that nothing waits in the spool");
        Ok(())
    }

    fn save(&self, agreed: &Agreed) -> Result<()> {
        let bytes = serde_json::to_vec(agreed).map_err(|error| AgentError::Internal(error.to_string()))?;
        Ok(durable::write(&self.path, &bytes, durable::PRIVATE_FILE)?)
    }

    async fn tell(&self, agreed: &Agreed) -> Result<()> {
        let request = MarkTailRequest {
            source: Some(wire(&self.source)),
            system_id: agreed.system_id,
            mark: agreed.mark.to_vec().into(),
            is_open: agreed.is_open,
        };
        let told = async {
            let addresses = &self.state.membership.addresses;
            let connection = connect(addresses, &self.tls, &ConnectOptions::default()).await?;
            data_client(connection)
                .mark_tail(request)
                .await
                .map_err(Fault::from)?;
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(told) => told,
            Err(_) => Err(AgentError::Server {
                action: "tell the controllers of the WAL spool",
                message: "they did not answer in time".into(),
                kind: ErrorKind::Timeout,
            }),
        }
    }
}
