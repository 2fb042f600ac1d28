//! The cluster, its vaults and stores, tokens and agents.

use super::{Context, Outcome, refuse, sessions};
use crate::catalog::{
    command::Reply,
    keys,
    kv::Read,
    model::{AdminKey, Agent, Meta, SessionState, Store, Token, TokenRole, Vault},
    query::Queries,
};
use holdfast_core::{ErrorKind, Name, StoreId, VaultId, limits};

/// Most key objects of one vault: each rotation adds one.
const KEY_OBJECTS_MAX: u32 = 1024;
/// Most paths that an agent may announce.
const ALLOW_MAX: usize = 256;

pub(super) struct NewToken<'a> {
    pub auth_hash: &'a [u8; 32],
    pub role: TokenRole,
    pub name: &'a Name,
    pub vault: Option<VaultId>,
    pub wrapped_vault: &'a [u8],
    pub ttl_ms: u64,
    pub replace: bool,
}

pub(super) struct Hello<'a> {
    pub agent: &'a Name,
    pub incarnation: u32,
    pub version: &'a str,
    pub signing_key: &'a [u8],
    pub sealing_key: &'a [u8],
    pub keys_mac: &'a [u8],
    pub allow: &'a [String],
}

pub(super) fn init<R: Read>(cx: &mut Context<'_, '_, R>, meta: &Meta) -> Outcome {
    if let Some(there) = cx.txn.meta()? {
        return if there.cluster == meta.cluster {
            Ok(Reply::Done)
        } else {
            refuse(
                ErrorKind::Conflict,
                format!("this node belongs to cluster {} already", there.cluster),
            )
        };
    }
    cx.txn.put(
        vec![keys::META],
        &Meta {
            founded_at: cx.now,
            ..meta.clone()
        },
    )?;
    Ok(Reply::Done)
}

pub(super) fn add_admin_key<R: Read>(cx: &mut Context<'_, '_, R>, key: &AdminKey) -> Outcome {
    let Some(mut meta) = cx.txn.meta()? else {
        return refuse(ErrorKind::Unavailable, "the cluster is not founded yet");
    };
    if key.0.len() != 32 {
        return refuse(ErrorKind::Invalid, "an Ed25519 public key has 32 bytes");
    }
    if !meta.admin_keys.contains(key) {
        meta.admin_keys.push(key.clone());
        cx.txn.put(vec![keys::META], &meta)?;
    }
    Ok(Reply::Done)
}

pub(super) fn put_vault<R: Read>(
    cx: &mut Context<'_, '_, R>,
    id: VaultId,
    name: &Name,
    key_object: &[u8],
) -> Outcome {
    if key_object.is_empty() || key_object.len() > limits::KEY_OBJECT_MAX {
        return refuse(
            ErrorKind::Invalid,
            format!(
                "a key object has 1 to {} bytes, this one {}",
                limits::KEY_OBJECT_MAX,
                key_object.len()
            ),
        );
    }
    if let Some(other) = cx.txn.vault_by_name(name)?
        && other.id != id
    {
        return refuse(
            ErrorKind::Conflict,
            format!("vault {name} exists already, with id {}", other.id),
        );
    }
    let mut vault = match cx.txn.vault(id)? {
        Some(vault) if vault.name != *name => {
            return refuse(
                ErrorKind::Conflict,
                format!("vault {id} is named {}, not {name}", vault.name),
            );
        }
        Some(vault) => vault,
        None => Vault {
            id,
            name: name.clone(),
            key_objects: 0,
            created_at: cx.now,
        },
    };
    if cx.txn.key_objects(id)?.iter().any(|object| object == key_object) {
        return Ok(Reply::Put {
            created: false,
            changed: false,
        });
    }
    if vault.key_objects == KEY_OBJECTS_MAX {
        return refuse(
            ErrorKind::TooLarge,
            format!("vault {name} has {KEY_OBJECTS_MAX} key objects already"),
        );
    }
    let created = vault.key_objects == 0;
    cx.txn.put(
        keys::vault_key(id, vault.key_objects),
        &serde_bytes::Bytes::new(key_object),
    )?;
    vault.key_objects += 1;
    cx.txn.put(keys::vault(id), &vault)?;
    cx.txn.put(keys::vault_name(name), &id)?;
    Ok(Reply::Put {
        created,
        changed: true,
    })
}

pub(super) fn create_token<R: Read>(cx: &mut Context<'_, '_, R>, new: NewToken<'_>) -> Outcome {
    let longest = u64::try_from(limits::TOKEN_TTL_MAX.as_millis()).unwrap_or(u64::MAX);
    if new.ttl_ms == 0 || new.ttl_ms > longest {
        return refuse(
            ErrorKind::Invalid,
            "a token lives between a moment and 7 days; choose --ttl accordingly",
        );
    }
    if new.wrapped_vault.len() > limits::KEY_OBJECT_MAX {
        return refuse(ErrorKind::TooLarge, "the wrapped vault keys are too long");
    }
    if cx.txn.token(new.auth_hash)?.is_some() {
        return refuse(ErrorKind::Conflict, "this token exists already; create another");
    }
    if new.role == TokenRole::Agent {
        let Some(vault) = new.vault else {
            return refuse(ErrorKind::Invalid, "a token for an agent names its vault");
        };
        if cx.txn.vault(vault)?.is_none() {
            return refuse(ErrorKind::NotFound, format!("there is no vault {vault}"));
        }
        check_name(cx, new.name, vault, new.replace)?;
    }
    let expires_at = cx.now.saturating_add(new.ttl_ms);
    let token = Token {
        auth_hash: *new.auth_hash,
        role: new.role,
        name: new.name.clone(),
        vault: new.vault,
        wrapped_vault: new.wrapped_vault.to_vec(),
        expires_at,
        replace: new.replace,
        used_at: None,
    };
    cx.txn.put(keys::token(new.auth_hash), &token)?;
    Ok(Reply::Token { expires_at })
}

/// Whether an agent of this name may join: a new name, or one that is meant to be replaced.
fn check_name<R: Read>(
    cx: &mut Context<'_, '_, R>,
    name: &Name,
    vault: VaultId,
    replace: bool,
) -> Outcome<Option<Agent>> {
    let agent = cx.txn.agent(name)?;
    match &agent {
        Some(_) if !replace => refuse(
            ErrorKind::Conflict,
            format!(
                "agent {name} exists already; for a rebuilt host: holdfastctl token create {name} --replace"
            ),
        ),
        Some(agent) if agent.vault != vault => refuse(
            ErrorKind::Conflict,
            format!(
                "agent {name} belongs to vault {}, the token to vault {vault}",
                agent.vault
            ),
        ),
        None if replace => refuse(
            ErrorKind::NotFound,
            format!("there is no agent {name} to replace; leave --replace out"),
        ),
        _ => Ok(agent),
    }
}

pub(super) fn use_token<R: Read>(
    cx: &mut Context<'_, '_, R>,
    auth_hash: &[u8; 32],
    name: &Name,
    version: &str,
) -> Outcome {
    // One text for all that is wrong with a token: a stranger learns nothing from it.
    let not_valid = super::TOKEN_NOT_VALID;
    let Some(mut token) = cx.txn.token(auth_hash)? else {
        return refuse(ErrorKind::Unauthenticated, not_valid);
    };
    if token.used_at.is_some() || cx.now >= token.expires_at || token.name != *name {
        return refuse(ErrorKind::Unauthenticated, not_valid);
    }
    let incarnation = match (token.role, token.vault) {
        (TokenRole::Controller, _) => 1,
        (TokenRole::Agent, None) => return refuse(ErrorKind::Invalid, "the token names no vault"),
        (TokenRole::Agent, Some(vault)) => {
            let before = check_name(cx, name, vault, token.replace)?;
            if before.is_some() {
                // The old host may still run: what it holds open ends here.
                end_sessions_of(cx, name)?;
            }
            let incarnation = before.map_or(1, |agent| agent.incarnation + 1);
            let agent = Agent {
                name: name.clone(),
                vault,
                incarnation,
                signing_key: Vec::new(),
                sealing_key: Vec::new(),
                keys_mac: Vec::new(),
                joined_at: cx.now,
                allow: Vec::new(),
                version: version.chars().take(64).collect(),
            };
            cx.txn.put(keys::agent(name), &agent)?;
            incarnation
        }
    };
    let handed_out = token.clone();
    token.used_at = Some(cx.now);
    token.wrapped_vault.clear();
    cx.txn.put(keys::token(auth_hash), &token)?;
    Ok(Reply::Joined {
        token: handed_out,
        incarnation,
    })
}

fn end_sessions_of<R: Read>(cx: &mut Context<'_, '_, R>, agent: &Name) -> Outcome<()> {
    for session in cx.txn.open_sessions()? {
        if session.agent == *agent {
            sessions::end(cx, session, SessionState::Expired, "the host was replaced")?;
        }
    }
    Ok(())
}

pub(super) fn hello<R: Read>(cx: &mut Context<'_, '_, R>, hello: Hello<'_>) -> Outcome {
    let Some(mut agent) = cx.txn.agent(hello.agent)? else {
        return refuse(ErrorKind::NotFound, format!("there is no agent {}", hello.agent));
    };
    if agent.incarnation != hello.incarnation {
        return refuse(
            ErrorKind::Denied,
            format!("agent {} was replaced by a newer host", hello.agent),
        );
    }
    if hello.signing_key.len() != 32 || hello.sealing_key.len() > 256 || hello.keys_mac.len() > 64 {
        return refuse(ErrorKind::Invalid, "the agent's keys have wrong lengths");
    }
    if hello.allow.len() > ALLOW_MAX || hello.allow.iter().any(|path| path.len() > 4096) {
        return refuse(
            ErrorKind::TooLarge,
            format!("an agent announces at most {ALLOW_MAX} paths"),
        );
    }
    let is_first = agent.signing_key.is_empty();
    let has_same_keys = agent.signing_key == hello.signing_key
        && agent.sealing_key == hello.sealing_key
        && agent.keys_mac == hello.keys_mac;
    if !is_first && !has_same_keys {
        return refuse(
            ErrorKind::Denied,
            format!(
                "agent {} shows other keys than when it joined; join it again: holdfastctl token create {} --replace",
                hello.agent, hello.agent
            ),
        );
    }
    agent.signing_key = hello.signing_key.to_vec();
    agent.sealing_key = hello.sealing_key.to_vec();
    agent.keys_mac = hello.keys_mac.to_vec();
    agent.version = hello.version.chars().take(64).collect();
    agent.allow = hello.allow.to_vec();
    cx.txn.put(keys::agent(hello.agent), &agent)?;
    Ok(Reply::Done)
}

pub(super) fn add_store<R: Read>(
    cx: &mut Context<'_, '_, R>,
    id: StoreId,
    site: &Name,
    path: &str,
) -> Outcome {
    let store = Store {
        id,
        site: site.clone(),
        path: path.to_owned(),
    };
    let before: Option<Store> = cx.txn.record(&keys::store(id))?;
    let changed = before.as_ref() != Some(&store);
    if changed {
        cx.txn.put(keys::store(id), &store)?;
    }
    Ok(Reply::Put {
        created: before.is_none(),
        changed,
    })
}
