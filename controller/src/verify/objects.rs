//! Roots, key objects, catalog copies, and what does not belong in a store.

use super::{Report, Verify};
use crate::{
    catalog::{
        CatalogView, Queries,
        model::{JournalPage, Snapshot, SnapshotState},
    },
    copies,
    data::{page_object, root_object},
    error::{Error, Result},
};
use holdfast_core::{ErrorKind, HasKind, VaultId, limits};
use holdfast_net::{keys::PublicKey, sealed::verify_signature_only};
use holdfast_repo::{RepoError, RootClear};
use holdfast_store::{Area, ObjectKind, ObjectName};

/// Longest catalog copy that is read.
const COPY_MAX: usize = 1 << 30;
/// How often, and at what pause, it is looked whether a page is appended that lies in the store already.
const PENDING_LOOKS: usize = 20;
const PENDING_PAUSE: std::time::Duration = std::time::Duration::from_millis(250);
/// Strays named in one run.
const STRAYS_MAX: usize = 1000;

impl Verify {
    /// Every snapshot's root is there and is the one that was committed; roots without a snapshot are named.
    pub(super) async fn check_roots(&self, view: &CatalogView, report: &mut Report) -> Result<()> {
        let mut after = None;
        loop {
            let page = view.snapshots(after.as_deref(), limits::LIST_PAGE)?;
            for snapshot in &page.items {
                report.summary.objects += 1;
                if let Some(problem) = self.root_problem(snapshot).await? {
                    let name = ObjectName::root(&snapshot.vault, &snapshot.id);
                    let text = match snapshot.state {
                        SnapshotState::Visible => problem,
                        SnapshotState::Deleted => {
                            format!("{problem} (its snapshot is deleted and can be undeleted)")
                        }
                    };
                    // Gone meanwhile: garbage collection ran beside this.
                    if view.snapshot(snapshot.id)?.is_some() {
                        report.finding(name.as_str(), &text, &[snapshot.id]).await?;
                    }
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        self.check_pages(view, report).await?;
        self.unknown(Area::Roots, report, |kind| match kind {
            ObjectKind::Root(_, id) => {
                // Stored just before its commit.
                let pending = view.open_sessions()?.iter().any(|session| session.snapshot == id);
                // So is a page, before it is appended.
                Ok(pending || view.snapshot(id)?.is_some() || view.journal_page(id)?.is_some())
            }
            _ => Ok(false),
        })
        .await
    }

    /// Every page of every journal is there and is the one that was appended.
    async fn check_pages(&self, view: &CatalogView, report: &mut Report) -> Result<()> {
        let mut after = None;
        loop {
            let pages = view.journal_pages(after.as_deref(), limits::LIST_PAGE)?;
            for page in &pages.items {
                report.summary.objects += 1;
                if let Some(problem) = self.page_problem(page).await? {
                    let name = ObjectName::root(&page.vault, &page.id);
                    let text = format!("{problem} (a page of the journal of {})", page.source);
                    report.finding(name.as_str(), &text, &[]).await?;
                }
            }
            after = pages.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn page_problem(&self, page: &JournalPage) -> Result<Option<String>> {
        let bytes = match page_object(&*self.store, page).await {
            Ok(bytes) => bytes,
            Err(error) => return problem(error).map(Some),
        };
        let clear = match RootClear::decode(&bytes) {
            Ok(clear) => clear,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let same = clear.is_journal
            && clear.vault == page.vault
            && clear.snapshot == page.id
            && clear.source == page.source
            && clear.sequence == page.number;
        Ok((!same).then(|| "it is another page's root".to_owned()))
    }

    async fn root_problem(&self, snapshot: &Snapshot) -> Result<Option<String>> {
        let bytes = match root_object(&*self.store, snapshot).await {
            Ok(bytes) => bytes,
            Err(error) => return problem(error).map(Some),
        };
        let clear = match RootClear::decode(&bytes) {
            Ok(clear) => clear,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let same = clear.vault == snapshot.vault
            && clear.snapshot == snapshot.id
            && clear.source == snapshot.source
            && clear.sequence == snapshot.sequence;
        Ok((!same).then(|| "it is another snapshot's root".to_owned()))
    }

    /// Every key object that the catalog holds lies in the store too, signed by an admin.
    pub(super) async fn check_keys(&self, view: &CatalogView, report: &mut Report) -> Result<()> {
        let admins: Vec<PublicKey> = view
            .meta()?
            .map(|meta| meta.admin_keys)
            .unwrap_or_default()
            .iter()
            .filter_map(|key| <[u8; 32]>::try_from(key.0.as_slice()).ok().map(PublicKey))
            .collect();
        for vault in view.vaults()? {
            let wanted = view.key_objects(vault.id)?;
            let mut found = vec![false; wanted.len()];
            for name in self.key_names(vault.id).await? {
                report.summary.objects += 1;
                let bytes = match self.store.get(&name, limits::KEY_OBJECT_MAX).await {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        let text = problem(error.into())?;
                        report.finding(name.as_str(), &text, &[]).await?;
                        continue;
                    }
                };
                if let Err(error) = verify_signature_only(&bytes, &admins, vault.id) {
                    report.finding(name.as_str(), &error.to_string(), &[]).await?;
                }
                if let Some(at) = wanted.iter().position(|object| *object == bytes) {
                    found[at] = true;
                }
            }
            for (number, _) in found.iter().enumerate().filter(|(_, found)| !**found) {
                let name = format!("keys/{}/{number}", vault.id);
                let text = "this key object of the catalog is not in the store: the vault could not be recovered \
                            without controllers";
                report.finding(&name, text, &[]).await?;
            }
        }
        self.unknown(Area::Keys, report, |kind| match kind {
            ObjectKind::Key(vault, _) => Ok(view.vault(vault)?.is_some()),
            _ => Ok(false),
        })
        .await
    }

    async fn key_names(&self, vault: VaultId) -> Result<Vec<ObjectName>> {
        let mut names = Vec::new();
        let mut after = None;
        loop {
            let page = self
                .store
                .list(Area::Keys, after.as_ref(), limits::LIST_PAGE)
                .await?;
            let Some(last) = page.last() else { return Ok(names) };
            after = Some(last.name.clone());
            names.extend(
                page.into_iter()
                    .map(|listed| listed.name)
                    .filter(|name| matches!(name.kind(), Some(ObjectKind::Key(of, _)) if of == vault)),
            );
        }
    }

    /// Every sealed copy of the catalog is whole.
    pub(super) async fn check_catalog_copies(&self, report: &mut Report) -> Result<()> {
        let mut after = None;
        loop {
            let page = self
                .store
                .list(Area::Catalog, after.as_ref(), limits::LIST_PAGE)
                .await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.name.clone());
            for listed in page {
                report.summary.objects += 1;
                let text = match self.store.get(&listed.name, COPY_MAX).await {
                    Ok(bytes) if copies::is_whole(&bytes) => continue,
                    Ok(_) => "it is damaged: its hash is wrong; a new copy is written with the next snapshot"
                        .to_owned(),
                    // Older copies are removed as new ones are written.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => problem(error.into())?,
                };
                report.finding(listed.name.as_str(), &text, &[]).await?;
            }
        }
    }

    /// Whatever lies in the store and is no object of its layout.
    pub(super) async fn check_strays(&self, report: &mut Report) -> Result<()> {
        for stray in self.store.strays(STRAYS_MAX).await? {
            report
                .finding(
                    &stray,
                    "it does not belong in a store; Holdfast did not write it",
                    &[],
                )
                .await?;
        }
        Ok(())
    }

    /// Whether the catalog knows an object, or does so in a moment: a page of a journal is stored just before it is appended, or
    /// removed again when it is refused.
    async fn is_known_soon(
        &self,
        name: &ObjectName,
        is_known: &impl Fn(ObjectKind) -> Result<bool>,
    ) -> Result<bool> {
        for _ in 0..PENDING_LOOKS {
            if name.kind().map(is_known).transpose()?.unwrap_or(false) {
                return Ok(true);
            }
            if name.area() != Area::Roots {
                return Ok(false);
            }
            match self.store.get(name, limits::ROOT_MAX).await {
                Ok(bytes) if RootClear::decode(&bytes).is_ok_and(|clear| clear.is_journal) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
                _ => return Ok(false),
            }
            tokio::time::sleep(PENDING_PAUSE).await;
        }
        Ok(false)
    }

    /// Names objects of an area that nothing refers to.
    pub(super) async fn unknown(
        &self,
        area: Area,
        report: &mut Report,
        is_known: impl Fn(ObjectKind) -> Result<bool>,
    ) -> Result<()> {
        let mut after = None;
        loop {
            let page = self.store.list(area, after.as_ref(), limits::LIST_PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.name.clone());
            for listed in page {
                if !self.is_known_soon(&listed.name, &is_known).await? {
                    let text =
                        "the catalog does not know it; `holdfastctl gc` removes what an interrupted run left";
                    report.finding(listed.name.as_str(), text, &[]).await?;
                }
            }
        }
    }
}

/// The text of a finding, unless the error is about the store as a whole.
pub(super) fn problem(error: Error) -> Result<String> {
    match &error {
        Error::Repo(RepoError::Primitive(_)) | Error::Internal(_) => Err(error),
        _ if error.kind() == ErrorKind::Unavailable => Err(error),
        _ => Ok(error.to_string()),
    }
}
