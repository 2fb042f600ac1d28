//! Root objects as snapshots and journal pages have them: read back checked, taken only from their signer, put once.

use super::{Data, closure, links::LinkReader};
use crate::{
    catalog::{
        Queries,
        model::{JournalPage, Session, Snapshot},
    },
    error::{Error, Result},
};
use bytes::Bytes;
use holdfast_core::{ErrorKind, HasKind, SnapshotId, VaultId, limits};
use holdfast_repo::{Root, RootClear};
use holdfast_store::{Finished, ObjectName, Store};
use std::sync::Arc;

/// A snapshot's root object, checked against the catalog.
pub(crate) async fn root_object(store: &dyn Store, snapshot: &Snapshot) -> Result<Bytes> {
    read_root(store, &snapshot.vault, snapshot.id, snapshot.root_hash).await
}

/// A journal page's root object, checked against the catalog.
pub(crate) async fn page_object(store: &dyn Store, page: &JournalPage) -> Result<Bytes> {
    read_root(store, &page.vault, page.id, page.root_hash).await
}

async fn read_root(store: &dyn Store, vault: &VaultId, id: SnapshotId, hash: [u8; 32]) -> Result<Bytes> {
    let name = ObjectName::root(vault, &id);
    let bytes = store.get(&name, limits::ROOT_MAX).await?;
    if Root::hash(&bytes) != hash {
        return Err(Error::corrupt(
            name.as_str(),
            "its hash is not the one that the catalog holds; restore it from another site",
        ));
    }
    Ok(bytes)
}

/// The refusal of a root that its session may not hand in.
pub(super) fn denied<T>(why: impl std::fmt::Display) -> Result<T> {
    Err(Error::refused(
        ErrorKind::Denied,
        format!("the root is refused: {why}"),
    ))
}

impl Data {
    /// Decodes a root: signed by the session's agent, and of the session's kind, vault and source.
    pub(super) fn decode_root(&self, session: &Session, bytes: &[u8]) -> Result<RootClear> {
        let clear = RootClear::decode(bytes)?;
        let agent = self.parts.catalog.view().agent(&session.agent)?;
        let Some(agent) = agent.filter(|agent| agent.incarnation == session.incarnation) else {
            return denied(format_args!("agent {} is not registered any more", session.agent));
        };
        if agent.signing_key != clear.signer {
            return denied(format_args!(
                "it is not signed with the key that agent {} registered",
                session.agent
            ));
        }
        if clear.is_journal != session.is_journal {
            return denied("a backup's session makes snapshots, a journal's makes pages");
        }
        if clear.vault != session.vault || clear.source != session.source {
            return denied("it names another vault or source than its session");
        }
        Ok(clear)
    }

    /// Reads what chunks of a vault link to.
    pub(super) fn link_reader(&self, vault: VaultId) -> LinkReader {
        LinkReader {
            store: Arc::clone(&self.parts.store),
            index: Arc::clone(&self.parts.index),
            vault,
        }
    }

    /// Stores a root under its name. Another root that is there stays: what came of it is not known.
    pub(super) async fn put_root(&self, name: &ObjectName, root: &Bytes) -> Result<()> {
        if self.parts.store.put(name, root.clone()).await? == Finished::AlreadyThere
            && self.parts.store.get(name, limits::ROOT_MAX).await? != *root
        {
            return Err(Error::refused(
                ErrorKind::Conflict,
                format!("another root was handed in as {name} before; open a new session"),
            ));
        }
        Ok(())
    }

    /// Deletes a root that the catalog will never know. Only for one whose refusal is final.
    pub(super) async fn take_root_back(&self, name: &ObjectName) {
        if let Err(error) = self.parts.store.delete(name).await {
            tracing::warn!(%name, %error, "a refused root object stays behind until the next gc");
        }
    }
}

/// Whether no later entry can bring what was refused: the catalog itself refused it. Whoever stopped waiting, for a quorum or
/// for room on the disk of the log, does not know, and the entry may still come.
pub(super) fn is_final(error: &Error) -> bool {
    let is_known = !matches!(
        error.kind(),
        ErrorKind::NoQuorum | ErrorKind::NoSpace | ErrorKind::Timeout
    );
    matches!(error, Error::Refused(_)) && is_known
}

/// The ids of missing chunks, one after the other.
pub(super) fn missing_to_wire(missing: &closure::Missing) -> Bytes {
    missing.ids.iter().flat_map(|id| id.0).collect::<Vec<u8>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_catalogs_own_refusal_is_final() {
        for (kind, expected) in [
            (ErrorKind::Conflict, true),
            (ErrorKind::Fenced, true),
            (ErrorKind::NoQuorum, false),
            (ErrorKind::NoSpace, false),
            (ErrorKind::Timeout, false),
        ] {
            assert_eq!(is_final(&Error::refused(kind, "no")), expected, "{kind:?}");
        }
        assert!(!is_final(&Error::Unavailable("away".into())));
    }
}
