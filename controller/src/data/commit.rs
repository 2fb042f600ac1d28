//! Commit: the root is what its session may hand in, everything below it is stored, then it becomes visible.

use super::{
    Data, access, closure, root_object,
    roots::{denied, is_final, missing_to_wire},
    wire,
};
use crate::{
    catalog::{
        Command, NewSnapshot, Queries, Reply,
        model::{Session, SessionState, Snapshot},
    },
    error::{Error, Result},
};
use bytes::Bytes;
use holdfast_core::SessionId;
use holdfast_net::trace::current_traceparent;
use holdfast_proto::v1 as pb;
use holdfast_repo::{Root, RootClear};
use holdfast_store::ObjectName;
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc};

impl Data {
    pub(super) async fn commit_snapshot(
        &self,
        peer: &access::Agent,
        request: pb::CommitRequest,
    ) -> Result<pb::CommitResponse> {
        let pb::CommitRequest {
            session,
            root,
            stats,
            problems,
            partial,
        } = request;
        let session = self.shown_session(peer, session.as_ref()).await?;
        let _alone = Committing::begin(&self.commits, session.id)?;
        let root_hash = Root::hash(&root);
        if let Some(done) = self.committed_before(&session, root_hash).await? {
            return Ok(visible(&done));
        }
        self.parts.leases.check(session.id)?;
        tracing::debug!(target: "holdfast::phase", phase = "commit-check");
        let view = self.parts.catalog.read().await?;
        let parent = match session.parent {
            Some(id) => view.snapshot(id)?,
            None => None,
        };
        let parent_root = self.parent_root(parent.as_ref()).await;
        let clear = self.check_root(&session, &root, partial, parent.as_ref(), parent_root.is_some())?;
        // Before the walk: a deletion after this index makes the commit fail.
        let as_of_index = view.applied_index();
        let missing = closure::check(
            &self.link_reader(session.vault),
            &clear.links,
            parent_root.as_ref().map(|root| &root.links),
        )
        .await?;
        if missing.count > 0 {
            return Ok(pb::CommitResponse {
                snapshot: Bytes::new(),
                missing: missing_to_wire(&missing),
                missing_count: missing.count,
            });
        }
        let snapshot = NewSnapshot {
            root_hash,
            root_len: root.len() as u64,
            prev_root_hash: (clear.previous != [0; 32]).then_some(clear.previous),
            stats: wire::stats(stats.unwrap_or_default()),
            partial,
            problems: wire::problems(problems),
        };
        let snapshot = self
            .make_visible(peer, &session, root, as_of_index, snapshot)
            .await?;
        Ok(visible(&snapshot))
    }

    /// The answer to an earlier, equal commit may have been lost.
    async fn committed_before(&self, session: &Session, root_hash: [u8; 32]) -> Result<Option<Snapshot>> {
        match session.state {
            SessionState::Open => Ok(None),
            SessionState::Committed => {
                let snapshot = self.parts.catalog.read().await?.snapshot(session.snapshot)?;
                match snapshot.filter(|snapshot| snapshot.root_hash == root_hash) {
                    Some(snapshot) => Ok(Some(snapshot)),
                    None => Err(access::over(session)),
                }
            }
            SessionState::Closed | SessionState::Expired => Err(access::over(session)),
        }
    }

    /// The parent's root, if it can be used to shorten the walk.
    async fn parent_root(&self, parent: Option<&Snapshot>) -> Option<RootClear> {
        let parent = parent?;
        let read = root_object(&*self.parts.store, parent)
            .await
            .and_then(|bytes| Ok(RootClear::decode(&bytes)?));
        match read {
            Ok(root) => Some(root),
            Err(error) => {
                tracing::error!(snapshot = %parent.id, %error, "the root of a parent snapshot cannot be read");
                None
            }
        }
    }

    fn check_root(
        &self,
        session: &Session,
        bytes: &[u8],
        partial: bool,
        parent: Option<&Snapshot>,
        parent_readable: bool,
    ) -> Result<RootClear> {
        let clear = self.decode_root(session, bytes)?;
        if session.is_journal {
            return denied("a journal's session makes pages");
        }
        if clear.snapshot != session.snapshot {
            return denied("it names another snapshot than its session");
        }
        if clear.sequence != session.sequence {
            return denied(format_args!(
                "its number is {}, the session's {}",
                clear.sequence, session.sequence
            ));
        }
        let first = clear.previous == [0; 32];
        let follows = match parent {
            Some(parent) => clear.previous == parent.root_hash || (first && !parent_readable),
            None => first,
        };
        if !follows {
            return denied("the root before it is not the one that its session began with");
        }
        if clear.partial != partial {
            return denied("it and the call say differently whether the snapshot is partial");
        }
        Ok(clear)
    }

    async fn make_visible(
        &self,
        peer: &access::Agent,
        session: &Session,
        root: Bytes,
        as_of_index: u64,
        snapshot: NewSnapshot,
    ) -> Result<Snapshot> {
        let name = ObjectName::root(&session.vault, &session.snapshot);
        self.put_root(&name, &root).await?;
        let command = Command::CommitSnapshot {
            session: session.id,
            fence: session.fence,
            as_of_index,
            snapshot,
        };
        let catalog = &self.parts.catalog;
        match catalog
            .propose_traced(peer.actor(), None, current_traceparent(), command)
            .await
        {
            Ok((_, Reply::Snapshot(snapshot))) => Ok(*snapshot),
            Ok((_, other)) => Err(Error::Internal(format!("a commit was answered by {other:?}"))),
            Err(error) => {
                if is_final(&error) {
                    self.take_root_back(&name).await;
                }
                Err(error)
            }
        }
    }
}

fn visible(snapshot: &Snapshot) -> pb::CommitResponse {
    pb::CommitResponse {
        snapshot: Bytes::copy_from_slice(snapshot.id.as_bytes()),
        missing: Bytes::new(),
        missing_count: 0,
    }
}

/// One commit of a session at a time: two could not agree on its root object.
struct Committing {
    sessions: Arc<Mutex<HashSet<SessionId>>>,
    session: SessionId,
}

impl Committing {
    fn begin(sessions: &Arc<Mutex<HashSet<SessionId>>>, session: SessionId) -> Result<Self> {
        if !sessions.lock().insert(session) {
            return Err(Error::Unavailable(format!(
                "session {session} is being committed already"
            )));
        }
        Ok(Self {
            sessions: Arc::clone(sessions),
            session,
        })
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.session);
    }
}
