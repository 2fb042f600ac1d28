//! Leases: an agent that is not heard of for [`limits::LEASE_TTL`] loses its session.
//!
//! They live in the leader's memory on a clock that never steps and counts suspended time; only the
//! end of one is an entry. A new leader grants every open session a full term.

use crate::{
    catalog::{Actor, Command, Queries as _, model::Session},
    error::{Error, Result},
    raft::Catalog,
};
use holdfast_core::{Clock, ErrorKind, SessionId, limits};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How often ended leases are looked for.
const EXPIRY_CHECK: Duration = Duration::from_millis(500);

/// When each session's lease ends, in boot time.
pub struct Leases {
    ends: Mutex<BTreeMap<SessionId, Duration>>,
    clock: Arc<dyn Clock>,
}

impl Leases {
    /// No leases yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            ends: Mutex::default(),
            clock,
        })
    }

    /// A full term for a session that was just opened.
    pub fn grant(&self, session: SessionId) {
        self.ends
            .lock()
            .insert(session, self.clock.boot() + limits::LEASE_TTL);
    }

    /// Another full term.
    ///
    /// # Errors
    /// `Fenced` when the lease ended, even if the catalog does not know yet.
    pub fn renew(&self, session: SessionId) -> Result<Duration> {
        self.check(session)?;
        self.grant(session);
        Ok(limits::LEASE_TTL)
    }

    /// Whether a session may still act; one that this leader has not heard of gets a full term.
    ///
    /// # Errors
    /// `Fenced` when its lease ended.
    pub fn check(&self, session: SessionId) -> Result<()> {
        let now = self.clock.boot();
        let end = *self.ends.lock().entry(session).or_insert(now + limits::LEASE_TTL);
        if now <= end {
            return Ok(());
        }
        Err(Error::refused(
            ErrorKind::Fenced,
            format!("the lease of session {session} ended; open a new session"),
        ))
    }

    /// Forgets a session that is over.
    pub fn forget(&self, session: SessionId) {
        self.ends.lock().remove(&session);
    }

    /// Of the sessions that are open, those whose leases ended. Forgets all others that are not open.
    fn ended(&self, open: Vec<Session>) -> Vec<Session> {
        let known: Vec<SessionId> = open.iter().map(|session| session.id).collect();
        self.ends
            .lock()
            .retain(|session, _| known.binary_search(session).is_ok());
        open.into_iter()
            .filter(|session| self.check(session.id).is_err())
            .collect()
    }
}

/// Expires sessions whose leases ended, until told to stop.
pub async fn expire_leases(catalog: Catalog, leases: Arc<Leases>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EXPIRY_CHECK) => {}
        }
        let mut open = match catalog.view().open_sessions() {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(%error, "open sessions could not be read");
                continue;
            }
        };
        open.sort_by_key(|session| session.id);
        for session in leases.ended(open) {
            tracing::warn!(session = %session.id, source = %session.source, "its lease ended");
            let command = Command::ExpireSession {
                session: session.id,
                fence: session.fence,
            };
            if let Err(error) = catalog.propose(Actor::System, None, command).await {
                tracing::warn!(session = %session.id, %error, "its end could not be noted; trying again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::ManualClock;

    #[test]
    fn a_lease_ends_unless_renewed_and_a_clock_step_does_not_end_it() {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let leases = Leases::new(clock.clone());
        let session = SessionId([1; 16]);
        leases.grant(session);
        clock.set_wall(u64::MAX / 2);
        clock.advance(limits::LEASE_TTL - Duration::from_secs(1));
        assert!(leases.renew(session).is_ok());
        clock.advance(limits::LEASE_TTL);
        assert!(leases.check(session).is_ok());
        clock.advance(Duration::from_millis(1));
        assert_eq!(
            holdfast_core::HasKind::kind(&leases.check(session).unwrap_err()),
            ErrorKind::Fenced
        );
        assert!(
            leases.renew(session).is_err(),
            "a lease that ended is not renewed"
        );
    }

    #[test]
    fn a_new_leader_grants_a_full_term() {
        let clock = Arc::new(ManualClock::new(0));
        let leases = Leases::new(clock.clone());
        clock.advance(Duration::from_secs(10_000));
        let session = SessionId([2; 16]);
        assert!(leases.check(session).is_ok());
        clock.advance(limits::LEASE_TTL);
        assert!(leases.check(session).is_ok());
    }
}
