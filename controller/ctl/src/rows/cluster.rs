//! Members, vaults and audit records.

use super::id;
use crate::{
    error::Result,
    output::{Row, short_time, time},
};
use holdfast_core::VaultId;
use holdfast_net::Fault;
use holdfast_proto::v1;
use serde::Serialize;

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MemberRow {
    node: u64,
    address: String,
    role: String,
    version: String,
}

impl From<v1::Member> for MemberRow {
    fn from(
        v1::Member {
            node,
            address,
            role,
            version,
        }: v1::Member,
    ) -> Self {
        Self {
            node,
            address,
            role,
            version,
        }
    }
}

impl Row for MemberRow {
    const LIST: &'static str = "MemberList";
    const COLUMNS: &'static [&'static str] = &["NODE", "ADDRESS", "ROLE", "VERSION"];
    const NARROW: usize = 4;

    fn name(&self) -> String {
        self.node.to_string()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.node.to_string(),
            self.address.clone(),
            self.role.clone(),
            self.version.clone(),
        ]
    }
}

/// A vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct VaultRow {
    pub(crate) name: String,
    pub(crate) id: VaultId,
    key_object_len: usize,
    #[serde(skip)]
    pub(crate) key_object: Vec<u8>,
}

impl TryFrom<v1::Vault> for VaultRow {
    type Error = Fault;
    fn try_from(
        v1::Vault {
            id: raw,
            name,
            key_object,
        }: v1::Vault,
    ) -> Result<Self> {
        Ok(Self {
            name,
            id: id(&raw)?,
            key_object_len: key_object.len(),
            key_object: key_object.to_vec(),
        })
    }
}

impl Row for VaultRow {
    const LIST: &'static str = "VaultList";
    const COLUMNS: &'static [&'static str] = &["NAME", "ID"];
    const NARROW: usize = 2;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.id.to_string()]
    }
}

/// An audit record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AuditRow {
    sequence: u64,
    at: Option<String>,
    actor: String,
    action: String,
    object: String,
    outcome: String,
    hash: String,
    #[serde(skip)]
    at_millis: u64,
}

impl From<v1::AuditRecord> for AuditRow {
    fn from(wire: v1::AuditRecord) -> Self {
        let v1::AuditRecord {
            sequence,
            at,
            actor,
            action,
            object,
            outcome,
            hash,
        } = wire;
        let hash = hex::encode(hash);
        Self {
            sequence,
            at: time(at),
            actor,
            action,
            object,
            outcome,
            hash,
            at_millis: at,
        }
    }
}

impl Row for AuditRow {
    const LIST: &'static str = "AuditList";
    const COLUMNS: &'static [&'static str] =
        &["SEQUENCE", "AT", "ACTOR", "ACTION", "OBJECT", "OUTCOME", "HASH"];
    const NARROW: usize = 6;

    fn name(&self) -> String {
        self.sequence.to_string()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.sequence.to_string(),
            short_time(self.at_millis),
            self.actor.clone(),
            self.action.clone(),
            self.object.clone(),
            self.outcome.clone(),
            self.hash.clone(),
        ]
    }
}
