//! Packs: every registered one is there, as long as it was, with a directory that fits; on demand, every byte of it.

use super::{Report, Verify, affected::Damage, objects::problem};
use crate::{
    catalog::{CatalogView, Queries, model::Pack},
    error::{Error, Result},
    index::sync,
};
use holdfast_core::{ErrorKind, HasKind, SnapshotId, limits};
use holdfast_repo::{BlobHeader, PackDirectory, PackEntry};
use holdfast_store::{Area, ObjectKind, ObjectName};

/// A damaged pack and which of its blobs are lost; none known means all that the index places there.
pub(super) struct DamagedPack {
    pub pack: Pack,
    pub problem: String,
    pub lost: Option<Vec<PackEntry>>,
}

impl Verify {
    pub(super) async fn check_packs(
        &self,
        view: &CatalogView,
        read_data: bool,
        report: &mut Report,
    ) -> Result<()> {
        let mut damage = Damage::new(self, view);
        let mut after = None;
        loop {
            let page = view.packs(after.as_deref(), limits::LIST_PAGE)?;
            for pack in &page.items {
                report.summary.packs += 1;
                report.summary.pack_bytes += pack.len;
                let found = if read_data {
                    self.read(pack).await?
                } else {
                    self.glance(pack).await?
                };
                // Deleted meanwhile: garbage collection ran beside this.
                if let Some(found) = found
                    && view.pack_exists(pack.id)?
                {
                    damage.add(found);
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        for (found, snapshots) in damage.judge().await? {
            let snapshots: Vec<SnapshotId> = snapshots.into_iter().collect();
            report
                .finding(
                    ObjectName::pack(&found.pack.id).as_str(),
                    &found.problem,
                    &snapshots,
                )
                .await?;
        }
        // Packs of open sessions are on disk a moment before they are registered.
        if !view.open_sessions()?.is_empty() {
            return Ok(());
        }
        self.unknown(Area::Packs, report, |kind| match kind {
            ObjectKind::Pack(id) => view.pack_exists(id),
            _ => Ok(false),
        })
        .await
    }

    /// Existence, length, directory, and that the index knows it.
    async fn glance(&self, pack: &Pack) -> Result<Option<DamagedPack>> {
        let damaged = |problem: String| DamagedPack {
            pack: pack.clone(),
            problem,
            lost: None,
        };
        if let Err(error) = sync::read_directory(&*self.store, pack.id, pack.vault, pack.len).await {
            return problem(error).map(|text| Some(damaged(text)));
        }
        let id = pack.id;
        if !self.index.blocking(move |index| index.has_pack(id)).await? {
            let text = "it is not in the chunk index; restart the controller to index it".to_owned();
            return Ok(Some(DamagedPack {
                lost: Some(Vec::new()),
                ..damaged(text)
            }));
        }
        Ok(None)
    }

    /// Every byte: the pack's hash, its directory, each blob's checksum and header.
    async fn read(&self, pack: &Pack) -> Result<Option<DamagedPack>> {
        let damaged = |problem, lost| {
            Some(DamagedPack {
                pack: pack.clone(),
                problem,
                lost,
            })
        };
        let bytes = match self
            .store
            .get(&ObjectName::pack(&pack.id), limits::PACK_MAX)
            .await
        {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error.into()),
            Err(error) => return Ok(damaged(error.to_string(), None)),
        };
        if bytes.len() as u64 != pack.len {
            return Ok(damaged(
                format!("it is {} bytes long instead of {}", bytes.len(), pack.len),
                None,
            ));
        }
        let (id, vault) = (pack.id, pack.vault);
        let checked = {
            let bytes = bytes.clone();
            tokio::task::spawn_blocking(move || PackDirectory::verify(&bytes, id, vault))
                .await
                .map_err(|_| Error::Internal("a verification ended abnormally".into()))?
        };
        let Err(error) = checked else {
            return self.glance(pack).await;
        };
        let lost = sync::read_directory(&*self.store, id, vault, pack.len)
            .await
            .ok()
            .map(|directory| lost_blobs(&bytes, directory));
        let text = match &lost {
            Some(lost) => format!("{error}; {} of its blobs are damaged", lost.len()),
            None => error.to_string(),
        };
        Ok(damaged(text, lost))
    }
}

/// Blobs that are not what a directory, itself readable, says of them.
fn lost_blobs(bytes: &[u8], directory: PackDirectory) -> Vec<PackEntry> {
    let is_good = |entry: &PackEntry| {
        let start = entry.offset as usize;
        let blob = bytes.get(start..start + entry.len as usize).unwrap_or_default();
        entry.matches(blob) && BlobHeader::decode(blob).is_ok_and(|header| header.id == entry.id)
    };
    directory
        .entries
        .into_iter()
        .filter(|entry| !is_good(entry))
        .collect()
}
