//! `snapshot delete` and `snapshot undelete`.

use crate::{
    address::snapshot_id,
    cluster::{Cluster, bytes_of, request_id, retry},
    error::{Result, fault},
    output::{print, short_time},
};
use holdfast_core::{ErrorKind, SnapshotId};
use holdfast_proto::v1;

pub(super) async fn delete(cluster: &Cluster, text: &str) -> Result<()> {
    let snapshot = named(cluster, text).await?;
    let request = v1::DeleteSnapshotRequest {
        request_id: request_id(),
        snapshot: bytes_of(snapshot.as_bytes()),
    };
    let answer = retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.delete_snapshot(request).await }
    })
    .await?
    .into_inner();
    let until = short_time(answer.undo_until);
    print(&format!(
        "snapshot {snapshot}: deleted; it can be brought back until {until}\n"
    ))?;
    eprintln!("Undo: holdfastctl snapshot undelete {snapshot}");
    Ok(())
}

pub(super) async fn undelete(cluster: &Cluster, text: &str) -> Result<()> {
    let snapshot = named(cluster, text).await?;
    let request = v1::UndeleteSnapshotRequest {
        request_id: request_id(),
        snapshot: bytes_of(snapshot.as_bytes()),
    };
    retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.undelete_snapshot(request).await }
    })
    .await?;
    print(&format!("snapshot {snapshot}: visible again\n"))
}

/// The id that is meant. A source given with it must be the snapshot's: whoever mistypes one of the two is told.
async fn named(cluster: &Cluster, text: &str) -> Result<SnapshotId> {
    let (source, snapshot) = snapshot_id(text)?;
    if let Some(source) = source {
        let found = cluster.snapshot(snapshot).await?;
        if found.source != source {
            let text = format!("snapshot {snapshot} is one of {}, not of {source}", found.source);
            return Err(fault(ErrorKind::NotFound, text));
        }
    }
    Ok(snapshot)
}
