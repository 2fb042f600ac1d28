//! The plan: which packs go, which are copied, which stay. A value that can be printed before anything happens.

use super::{
    Gc,
    mark::{Copies, Live},
};
use crate::{
    catalog::{
        CatalogView, Queries,
        model::{Pack, SessionState},
    },
    error::{Error, Result},
    index::sync,
};
use holdfast_core::{PackId, SessionId, UnixMillis, VaultId, limits};
use std::{collections::HashMap, fmt};

/// A pack of which less than this part is live is copied.
const REWRITE_BELOW_PERCENT: u64 = 50;

/// A pack of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackPlan {
    /// The pack.
    pub id: PackId,
    /// Its length in bytes.
    pub len: u64,
    /// Bytes of its live blobs.
    pub live: u64,
    /// Bytes of all its blobs. Of small packs the frame is the larger part: it must not count as dead, or they
    /// would be copied again and again.
    pub blobs: u64,
    /// Its number within the vault, in the order of registration.
    pub(super) number: u32,
}

/// What to do with one vault.
#[derive(Default, Clone)]
pub struct Plan {
    /// The vault, as text.
    pub vault: Option<VaultId>,
    /// Packs without anything live.
    pub delete: Vec<PackPlan>,
    /// Packs with little that is live.
    pub rewrite: Vec<PackPlan>,
    /// Number of packs that stay.
    pub kept: u64,
    /// Of these, packs of interrupted runs that wait for the next one.
    pub waiting: u64,
    /// Blobs that something reaches.
    pub chunks_live: u64,
    /// Blobs that nothing reaches.
    pub chunks_dead: u64,
    pub(super) copies: std::sync::Arc<Copies>,
}

impl Plan {
    /// Bytes of packs that go, less what is copied.
    #[must_use]
    pub fn bytes_to_free(&self) -> u64 {
        let sum = |packs: &[PackPlan]| packs.iter().map(|pack| pack.len - pack.live).sum::<u64>();
        sum(&self.delete) + sum(&self.rewrite)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vault) = self.vault {
            write!(f, "vault {vault}: ")?;
        }
        write!(
            f,
            "delete {} packs, rewrite {}, keep {} ({} of interrupted runs); {} blobs live, {} dead; {} MiB to free",
            self.delete.len(),
            self.rewrite.len(),
            self.kept,
            self.waiting,
            self.chunks_live,
            self.chunks_dead,
            self.bytes_to_free() >> 20
        )
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Gc {
    /// Judges every pack of a vault by what is live.
    pub(super) async fn plan(
        &self,
        view: &CatalogView,
        vault: VaultId,
        live: &Live,
        now: UnixMillis,
    ) -> Result<Plan> {
        let mut plan = Plan {
            vault: Some(vault),
            ..Plan::default()
        };
        let mut copies = Copies::default();
        let mut packs: Vec<PackPlan> = Vec::new();
        let mut waiting = Waiting::new(view, now);
        let mut after = None;
        loop {
            let page = view.packs_of(vault, after.as_deref(), limits::LIST_PAGE)?;
            for pack in &page.items {
                let number =
                    u32::try_from(packs.len()).map_err(|_| Error::Internal("too many packs".into()))?;
                let mut judged = PackPlan {
                    id: pack.id,
                    len: pack.len,
                    live: 0,
                    blobs: 0,
                    number,
                };
                self.judge(pack, live, &mut judged, &mut packs, &mut copies, &mut plan)
                    .await?;
                packs.push(judged);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        for judged in packs {
            let is_dead = judged.live == 0;
            let is_sparse = judged.live * 100 < judged.blobs * REWRITE_BELOW_PERCENT;
            if (is_dead || is_sparse) && waiting.covers(judged.id)? {
                plan.waiting += 1;
                plan.kept += 1;
            } else if is_dead {
                plan.delete.push(judged);
            } else if is_sparse {
                plan.rewrite.push(judged);
            } else {
                plan.kept += 1;
            }
        }
        plan.copies = std::sync::Arc::new(copies);
        Ok(plan)
    }

    async fn judge(
        &self,
        pack: &Pack,
        live: &Live,
        judged: &mut PackPlan,
        earlier: &mut [PackPlan],
        copies: &mut Copies,
        plan: &mut Plan,
    ) -> Result<()> {
        let id = pack.id;
        if !self.index.blocking(move |index| index.has_pack(id)).await? {
            return Err(Error::corrupt(
                format!("pack {id}"),
                "it is registered but not in the index, so nothing can be said of its vault; see `holdfastctl verify`, \
                 then restart the controller",
            ));
        }
        let directory = sync::read_directory(&*self.store, pack.id, pack.vault, pack.len).await?;
        for entry in directory.entries {
            judged.blobs += u64::from(entry.len);
            if !live.has(&entry.id) {
                plan.chunks_dead += 1;
                continue;
            }
            plan.chunks_live += 1;
            judged.live += u64::from(entry.len);
            if !live.is_repeated(&entry.id) {
                continue;
            }
            // The older of two equal blobs does not count any more.
            match copies.claim(&entry.id, entry.check, judged.number) {
                Some(before) if before == judged.number => judged.live -= u64::from(entry.len),
                Some(before) => {
                    if let Some(before) = earlier.get_mut(before as usize) {
                        before.live -= u64::from(entry.len);
                    }
                    plan.chunks_live -= 1;
                    plan.chunks_dead += 1;
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// How long a session's unreferenced packs stay.
#[derive(Clone, Copy)]
enum Wait {
    /// It is open, or was when the plan was made.
    Always,
    /// It was interrupted: the next run may take them over, if it comes soon.
    ForAWhile,
    /// What it needed it has, or a later run has.
    Not,
}

/// Packs of interrupted runs wait for the next run: until the source has a newer snapshot, but not for ever.
struct Waiting<'a> {
    view: &'a CatalogView,
    now: UnixMillis,
    sessions: HashMap<SessionId, Wait>,
}

impl<'a> Waiting<'a> {
    fn new(view: &'a CatalogView, now: UnixMillis) -> Self {
        Self {
            view,
            now,
            sessions: HashMap::new(),
        }
    }

    fn covers(&mut self, pack: PackId) -> Result<bool> {
        let Some(pack) = self.view.pack(pack)? else {
            return Ok(false);
        };
        let Some(id) = pack.session else { return Ok(false) };
        let wait = match self.sessions.get(&id) {
            Some(wait) => *wait,
            None => {
                let wait = self.wait(id)?;
                self.sessions.insert(id, wait);
                wait
            }
        };
        let kept = u64::try_from(limits::ORPHAN_PACKS_KEPT.as_millis()).unwrap_or(u64::MAX);
        Ok(match wait {
            Wait::Always => true,
            Wait::ForAWhile => self.now < pack.registered_at.saturating_add(kept),
            Wait::Not => false,
        })
    }

    fn wait(&self, id: SessionId) -> Result<Wait> {
        let Some(session) = self.view.session(id)? else {
            return Ok(Wait::Not);
        };
        Ok(match session.state {
            SessionState::Open => Wait::Always,
            SessionState::Committed => Wait::Not,
            SessionState::Closed | SessionState::Expired => {
                let source = self.view.source(&session.source)?;
                if source.is_some_and(|source| source.latest_at <= session.ended_at) {
                    Wait::ForAWhile
                } else {
                    Wait::Not
                }
            }
        })
    }
}
