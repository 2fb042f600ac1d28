//! `backup.json` of a snapshot: what it is a backup of, for restores and for people.

use super::pages::DamagedPage;
use holdfast_postgres::{Lsn, SystemId, TimelineId};
use serde::Serialize;

/// Version of the format.
const VERSION: u32 = 1;
/// The same of a standby's backup. Its last WAL segment is whole up to the backup's end only: who does not know that would
/// take it for the archived one, and miss what follows.
const OF_STANDBY: u32 = 2;

/// The version that says whether the backup is a standby's.
pub(super) const fn version(is_standby: bool) -> u32 {
    if is_standby { OF_STANDBY } else { VERSION }
}

/// The file's content.
#[derive(Debug, Serialize)]
pub struct Manifest {
    /// Version of this format: 2 for backups of standbys.
    pub holdfast_postgres_backup: u32,
    /// The cluster.
    pub system_id: SystemId,
    /// Major version of the server.
    pub version: u32,
    /// All of it, for people.
    pub server_version: String,
    /// Bytes of a WAL segment.
    pub wal_segment_size: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// The timeline.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Up to where it must come.
    pub stop_lsn: Lsn,
    /// When it was begun, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<ManifestTablespace>,
    /// Damaged pages, the first of them.
    pub damaged: Vec<DamagedPage>,
    /// How many there are.
    pub damaged_count: u64,
}

/// A tablespace, whose content is the tree `/postgresql/tablespaces/OID`.
#[derive(Debug, Serialize)]
pub struct ManifestTablespace {
    /// Its object identifier.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where it was.
    pub location: String,
}
