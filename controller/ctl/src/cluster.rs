//! The connection to the cluster, and questions that several commands ask.

use crate::{
    address::{Address, At},
    context::Context,
    error::{Result, fault, lift},
    rows::{SnapshotRow, id},
};
use bytes::Bytes;
use holdfast_core::{ErrorKind, RequestId, SnapshotId, SourceRef, VaultId, limits};
use holdfast_net::{
    Fault,
    client::{ClientTls, ConnectOptions, Connection, connect},
};
use holdfast_proto::v1::{self, control_service_client::ControlServiceClient};
use holdfast_repo::VaultKeys;

use std::{future::Future, time::Duration};

/// Most pages of one list; a page has up to `limits::LIST_PAGE` rows.
const PAGES_MAX: usize = 10_000;
/// How often a call is tried while the cluster is away.
const ATTEMPTS: u32 = 5;
/// First pause between attempts; doubled each time.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) type Control = ControlServiceClient<Connection>;

/// A connected admin.
pub(crate) struct Cluster {
    pub(crate) context: Context,
    pub(crate) connection: Connection,
}

impl Cluster {
    /// Connects with the admin's certificate.
    pub(crate) async fn connect(context: Context) -> Result<Self> {
        let tls = ClientTls::new(&context.tls, &context.root).map_err(lift)?;
        let connection = connect(&context.addresses, &tls, &ConnectOptions::default())
            .await
            .map_err(lift)?;
        Ok(Self { context, connection })
    }

    /// The operators' service.
    pub(crate) fn control(&self) -> Control {
        ControlServiceClient::new(self.connection.clone()).max_decoding_message_size(limits::MESSAGE_MAX)
    }

    /// All snapshots, of one source or of every one, newest first.
    pub(crate) async fn snapshots(
        &self,
        source: Option<&SourceRef>,
        include_deleted: bool,
    ) -> Result<Vec<SnapshotRow>> {
        let request = |after| v1::ListSnapshotsRequest {
            source: source.map(wire_source),
            include_deleted,
            after,
            limit: 0,
            id: Bytes::new(),
        };
        let found = pages(|after| async {
            let answer = self.control().list_snapshots(request(after)).await?.into_inner();
            Ok((answer.snapshots, answer.next))
        })
        .await?;
        found.into_iter().map(SnapshotRow::try_from).collect()
    }

    /// One snapshot by its id, deleted or not.
    pub(crate) async fn snapshot(&self, wanted: SnapshotId) -> Result<SnapshotRow> {
        let request = v1::ListSnapshotsRequest {
            source: None,
            include_deleted: true,
            after: String::new(),
            limit: 1,
            id: bytes_of(wanted.as_bytes()),
        };
        let answer = self.control().list_snapshots(request).await?.into_inner();
        let found = answer
            .snapshots
            .into_iter()
            .next()
            .ok_or_else(|| no_snapshot(&wanted.to_string()))?;
        SnapshotRow::try_from(found)
    }

    /// The snapshot that an address means.
    pub(crate) async fn resolve(&self, address: &Address) -> Result<SnapshotRow> {
        if let At::Snapshot(wanted) = address.at {
            let found = self.snapshot(wanted).await?;
            if found.source != address.source {
                return Err(fault(
                    ErrorKind::NotFound,
                    format!(
                        "snapshot {wanted} is one of {}, not of {}",
                        found.source, address.source
                    ),
                ));
            }
            if found.state != "visible" {
                return Err(fault(
                    ErrorKind::NotFound,
                    format!("snapshot {wanted} is {}", found.state),
                )
                .with_hint(format!("holdfastctl snapshot undelete {wanted}")));
            }
            return Ok(found);
        }
        let all = self.snapshots(Some(&address.source), false).await?;
        if let Some(newest) = all.first() {
            self.context
                .note_head(&address.source.to_string(), newest.sequence)?;
        }
        pick(&address.source, address.at, all)
    }

    /// A vault's keys: from the keyring, or from the key object that the cluster keeps.
    pub(crate) async fn vault_keys(&self, vault: VaultId) -> Result<VaultKeys> {
        if let Some(keys) = self.context.keys(vault)? {
            return Ok(keys);
        }
        let answer = self
            .control()
            .list_vaults(v1::ListVaultsRequest {})
            .await?
            .into_inner();
        let found = answer
            .vaults
            .into_iter()
            .find(|found| found.id == vault.as_bytes()[..]);
        let found = found.ok_or_else(|| fault(ErrorKind::NotFound, format!("there is no vault {vault}")))?;
        self.context.open_keys(vault, &found.key_object)
    }
}

/// Chooses among a source's snapshots, which are sorted newest first.
fn pick(source: &SourceRef, at: At, all: Vec<SnapshotRow>) -> Result<SnapshotRow> {
    let visible: Vec<SnapshotRow> = all.into_iter().filter(|s| s.state == "visible").collect();
    let any = visible.first().map(|s| s.id);
    let fits = |s: &SnapshotRow| match at {
        At::Latest => true,
        At::Time(time) => s.finished_millis <= time,
        At::Snapshot(wanted) => s.id == wanted,
    };
    if let Some(found) = visible.into_iter().find(|s| !s.partial && fits(s)) {
        return Ok(found);
    }
    Err(match any {
        Some(id) => fault(ErrorKind::NotFound, format!("no whole snapshot of {source} fits")).with_hint(
            format!("choose one: holdfastctl get snapshots {source}, for example {source}@{id}"),
        ),
        None => fault(ErrorKind::NotFound, format!("there is no snapshot of {source}")).with_hint(format!(
            "holdfastctl get sources, then: holdfastctl backup run {source} --wait"
        )),
    })
}

fn no_snapshot(wanted: &str) -> Fault {
    fault(ErrorKind::NotFound, format!("there is no snapshot {wanted}"))
        .with_hint("holdfastctl get snapshots")
}

/// Fetches a list to its end.
pub(crate) async fn pages<T, F, R>(mut page: F) -> Result<Vec<T>>
where
    F: FnMut(String) -> R,
    R: Future<Output = Result<(Vec<T>, String)>>,
{
    let mut all = Vec::new();
    let mut after = String::new();
    for _ in 0..PAGES_MAX {
        let (rows, next) = page(after).await?;
        all.extend(rows);
        if next.is_empty() {
            return Ok(all);
        }
        after = next;
    }
    Err(fault(
        ErrorKind::TooLarge,
        format!("the list has more than {PAGES_MAX} pages"),
    ))
}

/// Repeats a call while the cluster is away for a moment. The call must carry the same request id each time.
pub(crate) async fn retry<T, F, R>(mut call: F) -> Result<T>
where
    F: FnMut() -> R,
    R: Future<Output = Result<T, tonic::Status>>,
{
    let mut pause = PAUSE;
    for attempt in 1.. {
        match call().await.map_err(Fault::from) {
            Err(fault) if fault.kind.is_transient() && attempt < ATTEMPTS => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            outcome => return outcome,
        }
    }
    Err(fault(ErrorKind::Internal, "a call was never made"))
}

/// A fresh request id in wire form.
pub(crate) fn request_id() -> Bytes {
    bytes_of(RequestId::generate().as_bytes())
}

/// Raw bytes in wire form.
pub(crate) fn bytes_of(raw: &[u8]) -> Bytes {
    Bytes::copy_from_slice(raw)
}

/// A source in wire form.
pub(crate) fn wire_source(source: &SourceRef) -> v1::SourceRef {
    v1::SourceRef {
        agent: source.agent.to_string(),
        source: source.source.to_string(),
    }
}

/// A job's id from an answer.
pub(crate) fn job_id(raw: &[u8]) -> Result<holdfast_core::JobId> {
    id(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::snapshot;

    #[test]
    fn the_newest_whole_visible_snapshot_is_latest() {
        let source: SourceRef = "web1/a".parse().unwrap();
        let mut all = vec![snapshot(4), snapshot(3), snapshot(2), snapshot(1)];
        all[0].partial = true;
        all[1].state = "deleted".into();
        let ids: Vec<_> = all.iter().map(|s| s.id).collect();
        let pick = |at| pick(&source, at, all.clone()).map(|s| s.id);
        assert_eq!(pick(At::Latest).unwrap(), ids[2]);
        assert_eq!(pick(At::Time(u64::MAX)).unwrap(), ids[2]);
        assert_eq!(pick(At::Time(1_999)).unwrap(), ids[3]);
        assert_eq!(pick(At::Time(999)).unwrap_err().kind, ErrorKind::NotFound);
        let fault = super::pick(&source, At::Latest, Vec::new()).unwrap_err();
        assert!(fault.hint.unwrap().contains("backup run"));
    }

    #[tokio::test]
    async fn lists_are_followed_to_their_end_and_calls_repeated() {
        let all = pages(|after| async move {
            let n: u32 = after.parse().unwrap_or(0);
            Ok((vec![n], if n < 3 { (n + 1).to_string() } else { String::new() }))
        })
        .await;
        assert_eq!(all.unwrap(), [0, 1, 2, 3]);

        let mut calls = 0;
        let outcome = retry(|| {
            calls += 1;
            let outcome = if calls < 3 {
                Err(tonic::Status::unavailable("away"))
            } else {
                Ok(calls)
            };
            async move { outcome }
        })
        .await;
        assert_eq!(outcome.unwrap(), 3);
        let refused = retry(|| async { Err::<(), _>(tonic::Status::permission_denied("no")) }).await;
        assert_eq!(refused.unwrap_err().kind, ErrorKind::Denied);
    }
}
