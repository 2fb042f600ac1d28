//! Carrying out a plan: dead packs first, which makes room, then copying, group by group.

use super::{BATCH, Gc, PackPlan, Plan, mark::Live};
use crate::{
    catalog::{Actor, Command, PackOutcome, Reply, RewrittenPack},
    error::{Error, Result},
    index::{Location, sync},
};
use bytes::Bytes;
use holdfast_core::{ErrorKind, HasKind, PackId, VaultId, limits};
use holdfast_repo::{PackDirectory, PackEntry, PackWriter};
use holdfast_store::{Finished, ObjectName, read_places};
use std::collections::HashSet;

/// Live bytes that are copied before their originals are deleted: one new pack's worth of data.
const GROUP_BYTES: u64 = limits::PACK_TARGET as u64;

/// New packs of a group: nodes and data stay apart.
struct Writers {
    nodes: PackWriter,
    data: PackWriter,
    written: u64,
    made: HashSet<PackId>,
}

impl Writers {
    fn of(&mut self, nodes: bool) -> &mut PackWriter {
        if nodes { &mut self.nodes } else { &mut self.data }
    }
}

impl Gc {
    /// Does what the plan says and returns the bytes that were freed.
    pub(super) async fn execute(&self, fence: u64, plan: &Plan, live: &Live) -> Result<u64> {
        let Some(vault) = plan.vault else { return Ok(0) };
        let mut freed = 0;
        for packs in plan.delete.chunks(BATCH) {
            freed += self.delete(fence, packs).await?;
        }
        let mut group: Vec<PackPlan> = Vec::new();
        for pack in &plan.rewrite {
            group.push(pack.clone());
            if group.iter().map(|pack| pack.live).sum::<u64>() >= GROUP_BYTES || group.len() >= BATCH {
                freed += self
                    .rewrite_or_keep(fence, vault, &std::mem::take(&mut group), plan, live)
                    .await?;
            }
        }
        freed += self.rewrite_or_keep(fence, vault, &group, plan, live).await?;
        Ok(freed)
    }

    /// Where there is no room to copy, or a blob is damaged, the originals stay: that is no failure of the run.
    async fn rewrite_or_keep(
        &self,
        fence: u64,
        vault: VaultId,
        group: &[PackPlan],
        plan: &Plan,
        live: &Live,
    ) -> Result<u64> {
        match self.rewrite(fence, vault, group, plan, live).await {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NoSpace | ErrorKind::Corrupt | ErrorKind::Conflict
                ) =>
            {
                tracing::warn!(%error, packs = group.len(), "mostly dead packs are kept as they are");
                Ok(0)
            }
            other => other,
        }
    }

    async fn rewrite(
        &self,
        fence: u64,
        vault: VaultId,
        group: &[PackPlan],
        plan: &Plan,
        live: &Live,
    ) -> Result<u64> {
        if group.is_empty() {
            return Ok(0);
        }
        let mut writers = Writers {
            nodes: PackWriter::new(vault, Vec::new()),
            data: PackWriter::new(vault, Vec::new()),
            written: 0,
            made: HashSet::new(),
        };
        for pack in group {
            let directory = sync::read_directory(&*self.store, pack.id, vault, pack.len).await?;
            let wanted: Vec<PackEntry> = directory
                .entries
                .into_iter()
                .filter(|entry| live.has(&entry.id))
                .filter(|entry| plan.copies.is_kept(&entry.id, entry.check, pack.number))
                .collect();
            self.copy(fence, vault, pack.id, &wanted, &mut writers).await?;
        }
        for nodes in [true, false] {
            self.close(fence, vault, &mut writers, nodes).await?;
        }
        // A copy that is byte for byte its original would take itself away.
        let originals: Vec<PackPlan> = group
            .iter()
            .filter(|pack| !writers.made.contains(&pack.id))
            .cloned()
            .collect();
        Ok(self
            .delete(fence, &originals)
            .await?
            .saturating_sub(writers.written))
    }

    async fn copy(
        &self,
        fence: u64,
        vault: VaultId,
        pack: PackId,
        wanted: &[PackEntry],
        writers: &mut Writers,
    ) -> Result<()> {
        let places: Vec<Location> = wanted
            .iter()
            .map(|entry| Location {
                pack,
                offset: entry.offset,
                len: entry.len,
            })
            .collect();
        let blobs = read_places(&*self.store, &places).await?;
        for (entry, blob) in wanted.iter().zip(blobs) {
            let blob = blob.filter(|blob| entry.matches(blob)).ok_or_else(|| {
                Error::corrupt(
                    format!("pack {pack}"),
                    format!("its blob {} is not what its directory lists", entry.id),
                )
            })?;
            let nodes = entry.kind.is_node();
            let writer = writers.of(nodes);
            writer.push_verbatim(&blob)?;
            if writer.is_full() {
                self.close(fence, vault, writers, nodes).await?;
            }
        }
        Ok(())
    }

    async fn close(&self, fence: u64, vault: VaultId, writers: &mut Writers, nodes: bool) -> Result<()> {
        let full = std::mem::replace(writers.of(nodes), PackWriter::new(vault, Vec::new()));
        if let Some((id, len)) = self.keep_pack(fence, vault, full).await? {
            writers.made.insert(id);
            writers.written += len;
        }
        Ok(())
    }

    /// Writes a new pack durably, registers it, indexes it: from then on its originals are not needed.
    async fn keep_pack(
        &self,
        fence: u64,
        vault: VaultId,
        writer: PackWriter,
    ) -> Result<Option<(PackId, u64)>> {
        if writer.is_empty() {
            return Ok(None);
        }
        let finished = tokio::task::spawn_blocking(move || {
            let (id, bytes) = writer.finish();
            let directory = PackDirectory::verify(&bytes, id, vault);
            directory.map(|directory| (id, Bytes::from(bytes), directory))
        });
        let (id, bytes, directory) = finished
            .await
            .map_err(|_| Error::Internal("writing a pack ended abnormally".into()))??;
        let name = ObjectName::pack(&id);
        let len = bytes.len() as u64;
        if self.store.put(&name, bytes.clone()).await? == Finished::AlreadyThere
            && self.store.get(&name, limits::PACK_MAX).await? != bytes
        {
            self.store.delete(&name).await?;
            self.store.put(&name, bytes).await?;
        }
        let packs = vec![RewrittenPack { pack: id, vault, len }];
        match self
            .catalog
            .propose(Actor::System, None, Command::GcRegister { fence, packs })
            .await?
        {
            Reply::Packs(outcomes) if outcomes.iter().any(|o| matches!(o, PackOutcome::Refused(_))) => {
                return Err(Error::Internal(format!(
                    "a rewritten pack was refused: {outcomes:?}"
                )));
            }
            Reply::Packs(_) => {}
            other => return Err(Error::Internal(format!("registering was answered by {other:?}"))),
        }
        let indexed = sync::indexed(id, vault, &directory);
        self.index.blocking(move |index| index.add(&[indexed])).await?;
        Ok(Some((id, len)))
    }

    /// Deletes packs: in the catalog, for ever; then in the index; then their files.
    async fn delete(&self, fence: u64, packs: &[PackPlan]) -> Result<u64> {
        let ids: Vec<PackId> = packs.iter().map(|pack| pack.id).collect();
        if ids.is_empty() {
            return Ok(0);
        }
        self.catalog
            .propose(
                Actor::System,
                None,
                Command::GcDelete {
                    fence,
                    packs: ids.clone(),
                },
            )
            .await?;
        let gone = ids.clone();
        self.index.blocking(move |index| index.remove(&gone)).await?;
        for id in &ids {
            self.store.delete(&ObjectName::pack(id)).await?;
        }
        Ok(packs.iter().map(|pack| pack.len).sum())
    }
}
