//! The backup in a snapshot: whether there is one, and its small files.

use super::{BACKUP, DATA, Manifest, PostgresError, TABLESPACES, WAL};
use crate::{BlobOpener, Result, Snapshot};
use holdfast_core::limits::{PG_BACKUP_LABEL_MAX, PG_TABLESPACE_MAP_MAX};
use holdfast_postgres::{BackupLabel, CONTROL_FILE_LEN, ControlFile, Segment, StandbyLimits};
use holdfast_repo::EntryKind;

/// Longest backup.json: thousands of tablespaces and damaged blocks.
const MANIFEST_MAX: usize = 16 * 1024 * 1024;

/// What a snapshot holds of a backup besides the files of the cluster, all of it checked.
#[derive(Debug, Clone)]
pub struct Backup {
    /// What the agent says of it.
    pub manifest: Manifest,
    /// The server's label file, byte for byte.
    pub(super) label: Vec<u8>,
    /// The server's map of tablespaces, byte for byte; none when there were no tablespaces.
    pub(super) map: Option<Vec<u8>>,
    /// `global/pg_control`, whose checksum held.
    pub(super) control: Vec<u8>,
    /// OIDs under which the data directory has links to tablespaces.
    pub(super) links: Vec<Vec<u8>>,
    /// It was taken from a standby: its last segment of WAL is whole up to the backup's end only.
    pub(super) is_of_standby: bool,
}

impl Backup {
    /// The PostgreSQL backup in a snapshot; none when it is a snapshot of something else.
    ///
    /// # Errors
    /// `Unsupported` when a newer version made it, `Corrupt` when it contradicts itself; those of reading.
    pub async fn find(snapshot: &Snapshot) -> Result<Option<Self>> {
        let this = snapshot.clone();
        snapshot
            .reader()
            .blocking(move |opener| Self::read(opener, &this))
            .await
    }

    /// A transaction number that was not given out yet when the backup's last checkpoint began; with its epoch.
    #[must_use]
    pub fn next_xid(&self) -> Option<u64> {
        let control = ControlFile::decode(&self.control).ok()?;
        Some(control.checkpoint.next_xid)
    }

    /// The settings of which a server that replays its WAL needs at least as much as the origin had.
    #[must_use]
    pub fn standby_limits(&self) -> Option<StandbyLimits> {
        let control = ControlFile::decode(&self.control).ok()?;
        Some(control.limits)
    }

    fn read(opener: &mut BlobOpener, snapshot: &Snapshot) -> Result<Option<Self>> {
        let has = |path: &str| has_tree(snapshot, path);
        if !(has(DATA) && has(WAL) && has(BACKUP)) {
            return Ok(None);
        }
        let mut file =
            |name: &str, max| snapshot.read_small(opener, format!("{BACKUP}/{name}").as_bytes(), max);
        let Some(manifest) = file("backup.json", MANIFEST_MAX)? else {
            return Ok(None);
        };
        let Some(manifest) = Manifest::parse(&manifest)? else {
            return Ok(None);
        };
        let missing = |what: &str| PostgresError::bad(format!("it has no {what}"));
        let label = file("backup_label", PG_BACKUP_LABEL_MAX)?.ok_or_else(|| missing("backup_label"))?;
        let map = file("tablespace_map", PG_TABLESPACE_MAP_MAX)?;
        let control = file("pg_control", CONTROL_FILE_LEN)?.ok_or_else(|| missing("pg_control"))?;
        let is_of_standby = check_label(&label, &manifest)?;
        check_control(&control, &manifest)?;
        for tablespace in manifest.tablespaces.iter().filter(|t| t.is_outside()) {
            if !has(&tree_of(tablespace.oid)) {
                return Err(missing(&format!("content of tablespace {}", tablespace.name)).into());
            }
        }
        check_wal(opener, snapshot, &manifest)?;
        let links = snapshot
            .list_blocking(opener, format!("{DATA}/pg_tblspc").as_bytes())?
            .into_iter()
            .filter(|found| matches!(found.entry.kind, EntryKind::Symlink { .. }))
            .map(|found| found.entry.name)
            .collect();
        Ok(Some(Self {
            manifest,
            label,
            map,
            control,
            links,
            is_of_standby,
        }))
    }
}

/// Path of a tablespace's tree.
pub(super) fn tree_of(oid: u32) -> String {
    format!("{TABLESPACES}/{oid}")
}

fn has_tree(snapshot: &Snapshot, path: &str) -> bool {
    let trees = &snapshot.root().sealed.trees;
    let is_dir = |kind: &EntryKind| matches!(kind, EntryKind::Dir { .. });
    trees
        .iter()
        .any(|tree| tree.path == path.as_bytes() && is_dir(&tree.entry.kind))
}

/// Recovery begins where the label says: it must be of this backup too. Gives whether it is a standby's.
fn check_label(bytes: &[u8], manifest: &Manifest) -> Result<bool, PostgresError> {
    let label =
        BackupLabel::parse(bytes, manifest.wal_segment_size).map_err(|source| PostgresError::File {
            what: "the backup's backup_label".into(),
            source,
        })?;
    if label.incremental.is_some() {
        return Err(PostgresError::bad("it is incremental to another one"));
    }
    if (label.start, label.segment.timeline()) != (manifest.start_lsn, manifest.timeline) {
        return Err(PostgresError::bad(format!(
            "its backup_label begins at {}, and its backup.json at {}",
            label.start, manifest.start_lsn
        )));
    }
    Ok(label.from_standby)
}

/// The control file decides what a server makes of everything else: it must be of this backup.
fn check_control(bytes: &[u8], manifest: &Manifest) -> Result<(), PostgresError> {
    let control = ControlFile::decode(bytes).map_err(|source| PostgresError::File {
        what: "the backup's pg_control".into(),
        source,
    })?;
    if control.system_id != manifest.system_id {
        return Err(PostgresError::bad(format!(
            "its pg_control is of the cluster {}, and its backup.json of {}",
            control.system_id, manifest.system_id
        )));
    }
    if control.wal_segment_size != manifest.wal_segment_size {
        return Err(PostgresError::bad(
            "its pg_control and its backup.json disagree on the size of WAL segments",
        ));
    }
    if control.checkpoint.lsn < manifest.start_lsn {
        return Err(PostgresError::bad(
            "its pg_control is older than the checkpoint with which it begins",
        ));
    }
    Ok(())
}

/// Without all WAL from start to stop no server ever calls the files consistent.
fn check_wal(opener: &mut BlobOpener, snapshot: &Snapshot, manifest: &Manifest) -> Result<()> {
    let entries = snapshot.list_blocking(opener, WAL.as_bytes())?;
    let size = manifest.wal_segment_size;
    let needed = size.segments_between(manifest.timeline, manifest.start_lsn, manifest.stop_lsn);
    for segment in needed {
        let name = segment.to_string();
        let is_there = |kind: &EntryKind| matches!(kind, EntryKind::File { size: len, .. } if *len == u64::from(size.bytes()));
        // Names are in order, since directories are.
        let found = entries.binary_search_by(|found| found.entry.name[..].cmp(name.as_bytes()));
        if !found.is_ok_and(|at| is_there(&entries[at].entry.kind)) {
            return Err(lacks(segment).into());
        }
    }
    Ok(())
}

fn lacks(segment: Segment) -> PostgresError {
    PostgresError::bad(format!(
        "its WAL segment {segment} is not there, without which no server starts from it"
    ))
}
