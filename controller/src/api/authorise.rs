//! Who may call what: one table, and the check of every identity against the catalog.

use crate::{
    catalog::{CatalogView, Queries as _},
    error::{Error, Result},
    raft::Catalog,
};
use holdfast_core::{ErrorKind, Name};
use holdfast_net::{Identity, Role, pki::verify::Authorizer, server::ServerHandle};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What calls are for, and so who may make them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Everything about the cluster: operators.
    Operate,
    /// An agent about itself: control stream, renewal.
    BeAgent,
    /// Writing into the caller's own vault, under a session.
    Write,
    /// Reading blobs and roots: an agent of its own vault, an admin of any (still sealed).
    Read,
}

/// (right, roles that have it). Controllers have none of these: they speak to each other elsewhere.
const RIGHTS: &[(Right, &[Role])] = &[
    (Right::Operate, &[Role::Admin]),
    (Right::BeAgent, &[Role::Agent]),
    (Right::Write, &[Role::Agent]),
    (Right::Read, &[Role::Agent, Role::Admin]),
];

/// Checks a right.
///
/// # Errors
/// `Denied`, saying who may.
pub fn require(identity: &Identity, right: Right) -> Result<()> {
    let roles = RIGHTS
        .iter()
        .find(|row| row.0 == right)
        .map_or(&[][..], |row| row.1);
    if roles.contains(&identity.role) {
        return Ok(());
    }
    let may: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
    Err(Error::refused(
        ErrorKind::Denied,
        format!(
            "{} may not call this; only {} may",
            identity.actor(),
            may.join(" and ")
        ),
    ))
}

/// Knows which certificates still count.
pub struct CatalogAuthorizer(pub CatalogView);

impl Authorizer for CatalogAuthorizer {
    fn check(&self, identity: &Identity) -> std::result::Result<(), String> {
        if identity.role != Role::Agent {
            return Ok(());
        }
        match self.0.agent(&identity.name) {
            Ok(Some(agent)) if agent.incarnation == identity.incarnation => Ok(()),
            Ok(Some(_)) => Err(format!(
                "agent {} was replaced by another host; this certificate no longer counts",
                identity.name
            )),
            Ok(None) => Err(format!("there is no agent {}", identity.name)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The vault that an agent may use.
///
/// # Errors
/// `NotFound` when the agent is gone.
pub fn vault_of(view: &CatalogView, agent: &Name) -> Result<holdfast_core::VaultId> {
    let agent = view.agent(agent)?;
    agent
        .map(|agent| agent.vault)
        .ok_or_else(|| Error::refused(ErrorKind::NotFound, "the agent is not known"))
}

/// Cuts connections whose identity no longer counts, whenever the catalog changed, until told to stop.
pub async fn cut_revoked(catalog: Catalog, server: ServerHandle, stop: CancellationToken) {
    let mut applied = catalog.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = applied.changed() => if changed.is_err() { return },
        }
        let cut = server.cut_revoked();
        if cut > 0 {
            tracing::info!(cut, "connections of replaced identities were cut");
        }
    }
}

/// Shared by the server and everything that asks.
#[must_use]
pub fn authorizer(catalog: &Catalog) -> Arc<dyn Authorizer> {
    Arc::new(CatalogAuthorizer(catalog.view()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::ClusterId;

    #[test]
    fn the_table_is_exactly_this() {
        use Right::{BeAgent, Operate, Read, Write};
        let allowed = |role: Role| {
            let identity = Identity {
                cluster: ClusterId([1; 16]),
                role,
                name: "x".parse().unwrap(),
                incarnation: 1,
            };
            [Operate, BeAgent, Write, Read].map(|right| require(&identity, right).is_ok())
        };
        assert_eq!(allowed(Role::Admin), [true, false, false, true]);
        assert_eq!(allowed(Role::Agent), [false, true, true, true]);
        assert_eq!(allowed(Role::Controller), [false, false, false, false]);
    }
}
