//! Requests that were answered: a retry gets the first answer and acts no second time.

use crate::{
    catalog::{
        command::{Proposal, Refusal, Reply},
        keys,
        kv::{Read, Txn, encode},
    },
    error::Result,
};
use holdfast_core::{ErrorKind, RequestId, UnixMillis, limits};
use serde::{Deserialize, Serialize};

/// Old requests that one entry forgets: more than one can add, so that they do not pile up.
const FORGOTTEN_PER_ENTRY: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    id: RequestId,
    at: UnixMillis,
    // Over who asked and what: an id that is used for two things is a defect of the client.
    asked: [u8; 32],
    reply: Reply,
}

/// The answer that this request got before.
pub(super) fn remembered<R: Read>(txn: &Txn<'_, R>, proposal: &Proposal) -> Result<Option<Reply>> {
    let Some(id) = proposal.request else {
        return Ok(None);
    };
    let Some(request) = txn.record::<Request>(&keys::request(id))? else {
        return Ok(None);
    };
    if request.asked != asked(proposal)? {
        let text = format!("request id {id} was used for another request; give every request its own");
        return Ok(Some(Reply::Refused(Refusal::new(ErrorKind::Conflict, text))));
    }
    Ok(Some(request.reply))
}

/// Remembers what was done (a refusal did nothing and may be asked again), and forgets what is old.
pub(super) fn remember<R: Read>(
    txn: &mut Txn<'_, R>,
    now: UnixMillis,
    proposal: &Proposal,
    reply: &Reply,
) -> Result<()> {
    forget_old(txn, now)?;
    let Some(id) = proposal.request else { return Ok(()) };
    if matches!(reply, Reply::Refused(_)) {
        return Ok(());
    }
    txn.put(
        keys::request(id),
        &Request {
            id,
            at: now,
            asked: asked(proposal)?,
            reply: reply.clone(),
        },
    )?;
    txn.put(keys::request_by_time(now, id), &id)
}

fn forget_old<R: Read>(txn: &mut Txn<'_, R>, now: UnixMillis) -> Result<()> {
    let memory = u64::try_from(limits::REQUEST_MEMORY.as_millis()).unwrap_or(u64::MAX);
    let oldest_kept = now.saturating_sub(memory);
    for (key, value) in txn.page(&[keys::REQUEST_BY_TIME], None, FORGOTTEN_PER_ENTRY)? {
        let at = key
            .get(1..9)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_be_bytes);
        if at >= oldest_kept {
            break;
        }
        let id: RequestId = crate::catalog::kv::decode(&value)?;
        txn.delete(key);
        txn.delete(keys::request(id));
    }
    Ok(())
}

fn asked(proposal: &Proposal) -> Result<[u8; 32]> {
    // Time and trace differ between retries. Ids that a node draws for the command do too, so only its kind and
    // what the client said may count; see `Command::client_part`.
    Ok(*blake3::hash(&encode(&(&proposal.actor, proposal.command.client_part()))?).as_bytes())
}
