//! Agents.

use super::{id, or_dash, text};
use crate::{
    error::Result,
    output::{Row, short_time, time},
};
use holdfast_core::VaultId;
use holdfast_net::Fault;
use holdfast_proto::v1;
use serde::Serialize;

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AgentRow {
    pub(crate) name: String,
    pub(crate) connected: bool,
    pub(crate) vault: VaultId,
    vault_name: String,
    incarnation: u32,
    version: Option<String>,
    joined_at: Option<String>,
    last_seen_at: Option<String>,
    allow: Vec<String>,
    signing_public_key: Option<String>,
    sealing_recipient: Option<String>,
    #[serde(skip)]
    pub(crate) keys: AgentKeys,
    #[serde(skip)]
    last_seen_millis: u64,
}

/// An agent's public keys as sent, with their endorsement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AgentKeys {
    pub(crate) signing: Vec<u8>,
    pub(crate) sealing: Vec<u8>,
    pub(crate) mac: Vec<u8>,
}

impl TryFrom<v1::Agent> for AgentRow {
    type Error = Fault;
    fn try_from(wire: v1::Agent) -> Result<Self> {
        let v1::Agent {
            name,
            vault,
            vault_name,
            incarnation,
            joined_at,
            connected,
            last_seen_at,
            version,
            allow,
            signing_key,
            sealing_key,
            keys_mac,
        } = wire;
        Ok(Self {
            name,
            connected,
            vault: id(&vault)?,
            vault_name,
            incarnation,
            version: text(version),
            joined_at: time(joined_at),
            last_seen_at: time(last_seen_at),
            allow,
            signing_public_key: text(hex::encode(&signing_key)),
            sealing_recipient: text(String::from_utf8_lossy(&sealing_key).into_owned()),
            keys: AgentKeys {
                signing: signing_key.to_vec(),
                sealing: sealing_key.to_vec(),
                mac: keys_mac.to_vec(),
            },
            last_seen_millis: last_seen_at,
        })
    }
}

impl Row for AgentRow {
    const LIST: &'static str = "AgentList";
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "CONNECTED",
        "LAST SEEN",
        "VAULT",
        "VERSION",
        "INCARNATION",
        "ALLOW",
    ];
    const NARROW: usize = 5;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            if self.connected { "yes".into() } else { "no".into() },
            short_time(self.last_seen_millis),
            self.vault_name.clone(),
            or_dash(&self.version),
            self.incarnation.to_string(),
            self.allow.join(", "),
        ]
    }
}
