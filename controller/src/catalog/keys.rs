//! Keys of the catalog's records: a table byte, then parts that sort the way lists are read.
//!
//! Ids of snapshots and jobs and numbers of audit records are inverted, so that a forward scan
//! gives the newest first. Packs are keyed by the entry that registered them, because sled holds
//! badly many keys in random order.

#![allow(
    missing_docs,
    reason = "a key function is named after its record, a constant after its table"
)]

use holdfast_core::{
    JobId, Name, PackId, RequestId, SessionId, SnapshotId, SourceRef, StoreId, UnixMillis, VaultId,
};

/// A table: the first byte of its keys. Bytes below 0x10 belong to the store itself.
pub type Table = u8;

// Each table is named after its record in `model`.
pub const META: Table = 0x10;
pub const CLOCK: Table = 0x11;
pub const GC: Table = 0x12;
pub const VAULT: Table = 0x20;
pub const VAULT_KEY: Table = 0x21;
pub const VAULT_NAME: Table = 0x22;
pub const VAULT_USE: Table = 0x23;
pub const AGENT: Table = 0x30;
pub const TOKEN: Table = 0x31;
pub const SOURCE: Table = 0x40;
pub const JOB: Table = 0x50;
pub const JOB_ACTIVE: Table = 0x51;
pub const CLUSTER_JOB: Table = 0x52;
pub const SESSION: Table = 0x60;
pub const SESSION_OPEN: Table = 0x61;
pub const SNAPSHOT: Table = 0x70;
pub const SNAPSHOT_BY_SOURCE: Table = 0x71;
pub const JOURNAL_PAGE: Table = 0x72;
pub const JOURNAL_FILE: Table = 0x73;
pub const PACK: Table = 0x80;
pub const PACK_PLACE: Table = 0x81;
pub const PACK_DELETED: Table = 0x82;
pub const STORE: Table = 0x90;
pub const AUDIT: Table = 0xa0;
pub const AUDIT_HEAD: Table = 0xa1;
pub const REQUEST: Table = 0xb0;
pub const REQUEST_BY_TIME: Table = 0xb1;

/// A key of `table` with these parts.
#[must_use]
pub fn key(table: Table, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(table);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

fn inverted(id: &[u8; 16]) -> [u8; 16] {
    id.map(|byte| !byte)
}

#[must_use]
pub fn vault(id: VaultId) -> Vec<u8> {
    key(VAULT, &[id.as_bytes()])
}

#[must_use]
pub fn vault_key(id: VaultId, number: u32) -> Vec<u8> {
    key(VAULT_KEY, &[id.as_bytes(), &number.to_be_bytes()])
}

#[must_use]
pub fn vault_name(name: &Name) -> Vec<u8> {
    key(VAULT_NAME, &[name.as_str().as_bytes()])
}

#[must_use]
pub fn vault_use(id: VaultId) -> Vec<u8> {
    key(VAULT_USE, &[id.as_bytes()])
}

#[must_use]
pub fn agent(name: &Name) -> Vec<u8> {
    key(AGENT, &[name.as_str().as_bytes()])
}

#[must_use]
pub fn token(auth_hash: &[u8; 32]) -> Vec<u8> {
    key(TOKEN, &[auth_hash])
}

#[must_use]
pub fn source(source: &SourceRef) -> Vec<u8> {
    key(SOURCE, &[source.to_string().as_bytes()])
}

#[must_use]
pub fn job(id: JobId) -> Vec<u8> {
    key(JOB, &[&inverted(id.as_bytes())])
}

/// Active jobs of one agent, oldest first.
#[must_use]
pub fn job_active_prefix(agent: &Name) -> Vec<u8> {
    // Names contain no NUL: no agent's prefix is another's.
    key(JOB_ACTIVE, &[agent.as_str().as_bytes(), &[0]])
}

#[must_use]
pub fn job_active(agent: &Name, id: JobId) -> Vec<u8> {
    key(JOB_ACTIVE, &[agent.as_str().as_bytes(), &[0], id.as_bytes()])
}

/// The job that backed a PostgreSQL cluster up last; whether it still does is for the job's record to say.
#[must_use]
pub fn cluster_job(system_id: u64) -> Vec<u8> {
    key(CLUSTER_JOB, &[&system_id.to_be_bytes()])
}

#[must_use]
pub fn session(id: SessionId) -> Vec<u8> {
    key(SESSION, &[id.as_bytes()])
}

#[must_use]
pub fn session_open(id: SessionId) -> Vec<u8> {
    key(SESSION_OPEN, &[id.as_bytes()])
}

#[must_use]
pub fn snapshot(id: SnapshotId) -> Vec<u8> {
    key(SNAPSHOT, &[&inverted(id.as_bytes())])
}

/// Snapshots of one source, newest first.
#[must_use]
pub fn snapshot_by_source_prefix(source: &SourceRef) -> Vec<u8> {
    key(SNAPSHOT_BY_SOURCE, &[source.to_string().as_bytes(), &[0]])
}

#[must_use]
pub fn snapshot_by_source(source: &SourceRef, sequence: u64) -> Vec<u8> {
    key(
        SNAPSHOT_BY_SOURCE,
        &[source.to_string().as_bytes(), &[0], &(!sequence).to_be_bytes()],
    )
}

#[must_use]
pub fn journal_page(id: SnapshotId) -> Vec<u8> {
    key(JOURNAL_PAGE, &[id.as_bytes()])
}

/// Files of one source's journal by name: timelines and positions are in order as names are.
#[must_use]
pub fn journal_file_prefix(source: &SourceRef) -> Vec<u8> {
    key(JOURNAL_FILE, &[source.to_string().as_bytes(), &[0]])
}

#[must_use]
pub fn journal_file(source: &SourceRef, name: &str) -> Vec<u8> {
    key(
        JOURNAL_FILE,
        &[source.to_string().as_bytes(), &[0], name.as_bytes()],
    )
}

#[must_use]
pub fn pack_prefix(vault: VaultId) -> Vec<u8> {
    key(PACK, &[vault.as_bytes()])
}

#[must_use]
pub fn pack(vault: VaultId, index: u64, ordinal: u32) -> Vec<u8> {
    key(
        PACK,
        &[vault.as_bytes(), &index.to_be_bytes(), &ordinal.to_be_bytes()],
    )
}

#[must_use]
pub fn pack_place(id: PackId) -> Vec<u8> {
    key(PACK_PLACE, &[id.as_bytes()])
}

#[must_use]
pub fn pack_deleted(id: PackId) -> Vec<u8> {
    key(PACK_DELETED, &[id.as_bytes()])
}

#[must_use]
pub fn store(id: StoreId) -> Vec<u8> {
    key(STORE, &[id.as_bytes()])
}

#[must_use]
pub fn audit(sequence: u64) -> Vec<u8> {
    key(AUDIT, &[&(!sequence).to_be_bytes()])
}

#[must_use]
pub fn request(id: RequestId) -> Vec<u8> {
    key(REQUEST, &[id.as_bytes()])
}

#[must_use]
pub fn request_by_time(at: UnixMillis, id: RequestId) -> Vec<u8> {
    key(REQUEST_BY_TIME, &[&at.to_be_bytes(), id.as_bytes()])
}
