//! Tidying: objects in the store that the catalog does not know any more, or never came to know.
//!
//! A catalog that is older than its store must not be believed: founded anew, or brought back from a copy, it would
//! call every newer pack unknown. Root objects tell: each carries the number of its run, and a catalog that has not
//! given out that number yet has missed something. Then only what the catalog itself has deleted is removed.

use super::Gc;
use crate::{
    catalog::{CatalogView, Queries},
    error::Result,
};
use holdfast_core::{PackId, limits};
use holdfast_repo::{
    RootClear,
    pack::{HEADER_LEN, pack_vault},
};
use holdfast_store::{Area, ObjectKind, ObjectName};

impl Gc {
    /// Removes files of deleted packs, roots of forgotten snapshots, and what interrupted uploads and commits left.
    /// No session is open meanwhile, so nothing here is still to be registered.
    pub(super) async fn tidy(&self, view: &CatalogView) -> Result<()> {
        let is_behind = !self.tidy_roots(view).await?;
        let mut after = None;
        loop {
            let page = self
                .store
                .list(Area::Packs, after.as_ref(), limits::LIST_PAGE)
                .await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.name.clone());
            for listed in page {
                if let Some(ObjectKind::Pack(id)) = listed.name.kind()
                    && self.is_refuse(view, id, is_behind).await?
                {
                    tracing::info!(name = %listed.name, "removing a pack that nothing can refer to");
                    self.store.delete(&listed.name).await?;
                }
            }
        }
    }

    async fn is_refuse(&self, view: &CatalogView, id: PackId, is_behind: bool) -> Result<bool> {
        if view.pack_exists(id)? {
            return Ok(false);
        }
        if view.pack_deleted_at(id)?.is_some() {
            return Ok(true);
        }
        if is_behind {
            return Ok(false);
        }
        // Never registered: the upload broke off between the disk and the catalog. A pack of a vault
        // that this catalog does not know is another cluster's.
        let Ok(header) = self.store.get_range(&ObjectName::pack(&id), 0, HEADER_LEN).await else {
            return Ok(false);
        };
        match pack_vault(&header) {
            Ok(vault) => Ok(view.vault(vault)?.is_some()),
            Err(_) => Ok(false),
        }
    }

    /// Removes roots without a snapshot; false when there is one that this catalog should know and does not.
    async fn tidy_roots(&self, view: &CatalogView) -> Result<bool> {
        let mut refuse = Vec::new();
        let mut after = None;
        loop {
            let page = self
                .store
                .list(Area::Roots, after.as_ref(), limits::LIST_PAGE)
                .await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            for listed in page {
                let Some(ObjectKind::Root(_, snapshot)) = listed.name.kind() else {
                    continue;
                };
                if view.snapshot(snapshot)?.is_some() || view.journal_page(snapshot)?.is_some() {
                    continue;
                }
                if !self.is_known_run(view, &listed.name).await? {
                    tracing::warn!(
                        name = %listed.name,
                        "the store holds a root that this catalog has never heard of; unknown objects are left alone"
                    );
                    return Ok(false);
                }
                refuse.push(listed.name);
            }
        }
        for name in refuse {
            tracing::info!(%name, "removing the root of a snapshot that is gone");
            self.store.delete(&name).await?;
        }
        Ok(true)
    }

    /// Whether the catalog has given out the number of the run that made this root.
    async fn is_known_run(&self, view: &CatalogView, name: &ObjectName) -> Result<bool> {
        let bytes = self.store.get(name, limits::ROOT_MAX).await?;
        let Ok(root) = RootClear::decode(&bytes) else {
            return Ok(false);
        };
        let Some(source) = view.source(&root.source)? else {
            return Ok(false);
        };
        // A page gets its number only when it is appended: one with the next number was refused, or this catalog is older than
        // its store. The next append tells; until then nothing unknown is removed.
        let given_out = if root.is_journal {
            source
                .journal
                .is_some_and(|journal| root.sequence < journal.next_page)
        } else {
            root.sequence < source.next_sequence
        };
        Ok(given_out)
    }
}
