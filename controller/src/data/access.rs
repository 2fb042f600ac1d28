//! Who may do what on the data path: agents write under their session, agents and admins read.

use super::{Data, wire};
use crate::{
    catalog::{
        CatalogView, Queries,
        model::{Session, SessionState},
    },
    error::{Error, Result},
};
use holdfast_core::{ErrorKind, Name, SessionId, VaultId};
use holdfast_net::{Role, server::PeerIdentity, status::to_status};
use holdfast_proto::v1 as pb;
use std::time::Duration;
use tonic::Status;

/// A node that is this far behind cannot answer for a session.
const CATCH_UP: Duration = Duration::from_secs(10);

/// An agent that calls.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub name: Name,
    pub incarnation: u32,
}

/// Someone who may read.
#[derive(Debug, Clone)]
pub(super) enum Reader {
    Agent(Agent),
    Admin,
}

pub(super) fn agent<T>(request: &tonic::Request<T>) -> Result<Agent, Status> {
    let identity = PeerIdentity::of(request)?;
    if identity.role != Role::Agent {
        let error = Error::refused(
            ErrorKind::Denied,
            format!("{} is no agent; only agents write", identity.actor()),
        );
        return Err(to_status(&error));
    }
    Ok(Agent {
        name: identity.name.clone(),
        incarnation: identity.incarnation,
    })
}

pub(super) fn reader<T>(request: &tonic::Request<T>) -> Result<Reader, Status> {
    match PeerIdentity::of(request)?.role {
        Role::Admin => Ok(Reader::Admin),
        Role::Agent => agent(request).map(Reader::Agent),
        Role::Controller => Err(to_status(&Error::refused(
            ErrorKind::Denied,
            "controllers read from stores",
        ))),
    }
}

impl Reader {
    pub const fn is_admin(&self) -> bool {
        matches!(self, Self::Admin)
    }

    /// The agent that reads, if it is one.
    pub fn agent(&self) -> Option<&Name> {
        match self {
            Self::Admin => None,
            Self::Agent(agent) => Some(&agent.name),
        }
    }

    pub fn may_read(&self, view: &CatalogView, vault: VaultId) -> Result<bool> {
        match self {
            Self::Admin => Ok(true),
            Self::Agent(agent) => Ok(view
                .agent(&agent.name)?
                .is_some_and(|known| known.vault == vault && known.incarnation == agent.incarnation)),
        }
    }
}

impl Data {
    /// The session that a call shows, if it may write.
    pub(super) async fn open_session(&self, peer: &Agent, shown: Option<&pb::SessionRef>) -> Result<Session> {
        let session = self.shown_session(peer, shown).await?;
        if session.state != SessionState::Open {
            return Err(over(&session));
        }
        self.parts.leases.check(session.id)?;
        Ok(session)
    }

    /// The session that a call shows, open or not; it is the caller's, and its fence is right.
    pub(super) async fn shown_session(
        &self,
        peer: &Agent,
        shown: Option<&pb::SessionRef>,
    ) -> Result<Session> {
        let shown = shown.ok_or_else(|| Error::refused(ErrorKind::Invalid, "the call shows no session"))?;
        let id: SessionId = wire::id(&shown.session)?;
        let unknown = || {
            Error::refused(
                ErrorKind::Fenced,
                format!("there is no session {id} with this fence; open a new one"),
            )
        };
        let mut view = self.parts.catalog.view();
        if view.applied_index() < shown.fence {
            // Either this node is behind, or the fence was never given out: the leader's index tells.
            view = self.parts.catalog.read().await?;
            if view.applied_index() < shown.fence {
                return Err(unknown());
            }
            self.parts.catalog.wait_applied(shown.fence, CATCH_UP).await?;
        }
        let session = view.session(id)?.ok_or_else(unknown)?;
        if session.fence != shown.fence
            || session.agent != peer.name
            || session.incarnation != peer.incarnation
        {
            return Err(unknown());
        }
        Ok(session)
    }
}

/// The error for a session that is over.
pub(super) fn over(session: &Session) -> Error {
    Error::refused(
        ErrorKind::Fenced,
        format!(
            "session {} is over ({}); open a new one",
            session.id, session.reason
        ),
    )
}
