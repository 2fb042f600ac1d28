//! Snapshots opened for reading, with the admin's keys.

use crate::{
    address::Address,
    cluster::Cluster,
    error::{Result, fault, lift},
    rows::SnapshotRow,
};
use holdfast_core::{ErrorKind, SnapshotId, SourceRef, VaultId};
use holdfast_net::client::{ClientTls, ConnectOptions, Connection, connect_pool};
use holdfast_restore::{GrpcSource, Snapshot};
use std::sync::Arc;

/// Connections of one transfer: more than one, because each has one lock; not many, since the disk is the limit.
const CONNECTIONS: usize = 4;

/// Opens the snapshot that an address means.
pub(super) async fn open_address(cluster: &Cluster, address: &Address) -> Result<Snapshot> {
    let row = cluster.resolve(address).await?;
    Opener::new(cluster).await?.open(&row).await
}

/// Opens any number of snapshots over the same connections.
pub(super) struct Opener<'c> {
    cluster: &'c Cluster,
    connections: Vec<Connection>,
}

impl<'c> Opener<'c> {
    pub(super) async fn new(cluster: &'c Cluster) -> Result<Self> {
        let tls = ClientTls::new(&cluster.context.tls, &cluster.context.root).map_err(lift)?;
        let addresses = &cluster.context.addresses;
        let connections = connect_pool(addresses, &tls, &ConnectOptions::default(), CONNECTIONS)
            .await
            .map_err(lift)?;
        Ok(Self { cluster, connections })
    }

    /// Opens a page of a source's journal, and makes sure that it is that page.
    pub(super) async fn page(
        &self,
        source: &SourceRef,
        vault: VaultId,
        page: SnapshotId,
    ) -> Result<Snapshot> {
        let keys = Arc::new(self.cluster.vault_keys(vault).await?);
        let (root, store) = GrpcSource::root(self.cluster.connection.clone(), page)
            .await
            .map_err(lift)?;
        let blobs = GrpcSource::new(self.connections.clone(), vault)
            .map_err(lift)?
            .reading(store.as_ref());
        let opened = Snapshot::open(&root, Arc::new(blobs), keys).map_err(lift)?;
        let clear = &opened.root().clear;
        if clear.is_journal && clear.snapshot == page && clear.source == *source && clear.vault == vault {
            Ok(opened)
        } else {
            let text = format!("the controller gave another root than that of page {page} of {source}");
            Err(fault(ErrorKind::Corrupt, text))
        }
    }

    /// Opens one snapshot, and makes sure that it is the one that was asked for: a controller could hand out the
    /// genuine root of another.
    pub(super) async fn open(&self, row: &SnapshotRow) -> Result<Snapshot> {
        let keys = Arc::new(self.cluster.vault_keys(row.vault).await?);
        let (root, store) = GrpcSource::root(self.cluster.connection.clone(), row.id)
            .await
            .map_err(lift)?;
        let source = GrpcSource::new(self.connections.clone(), row.vault)
            .map_err(lift)?
            .reading(store.as_ref());
        let snapshot = Snapshot::open(&root, Arc::new(source), keys).map_err(lift)?;
        let clear = &snapshot.root().clear;
        let same = clear.snapshot == row.id
            && clear.source == row.source
            && clear.vault == row.vault
            && clear.sequence == row.sequence;
        if same {
            Ok(snapshot)
        } else {
            Err(fault(
                ErrorKind::Corrupt,
                format!(
                    "the controller gave the root of snapshot {} of {} (number {}) where that of {} of {} (number {}) \
                     was asked for",
                    clear.snapshot, clear.source, clear.sequence, row.id, row.source, row.sequence
                ),
            ))
        }
    }
}
