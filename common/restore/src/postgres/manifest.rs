//! `backup.json`: what the agent says of a backup.

use super::PostgresError;
use holdfast_postgres::{Lsn, SegmentSize, SystemId, TimelineId};
use serde::Deserialize;

/// The forms that are known here. They are alike; the second is that of a standby's backup, which who only knows the first
/// could not restore.
const VERSIONS: std::ops::RangeInclusive<u64> = 1..=2;
/// Field that tells the file from any other JSON; its value is the version.
const MARKER: &str = "holdfast_postgres_backup";
/// Most tablespaces: each costs a restore of its own, and no real cluster comes near.
const TABLESPACES_MAX: usize = 10_000;
/// Longest path of a tablespace in bytes: PostgreSQL's MAXPGPATH with its end, beyond which no server follows a link.
pub(super) const LOCATION_MAX: usize = 1023;

/// What is known of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The cluster.
    pub system_id: SystemId,
    /// Major version of the server.
    pub version: u32,
    /// The server's own words for its version.
    pub server_version: String,
    /// Size of WAL segments.
    pub wal_segment_size: SegmentSize,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// The timeline of the backup.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Up to where WAL must be replayed until the files are consistent.
    pub stop_lsn: Lsn,
    /// When it began, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// Tablespaces besides the two that lie in the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// The first blocks whose checksums were wrong in the cluster itself.
    pub damaged: Vec<DamagedBlock>,
    /// All of those.
    pub damaged_count: u64,
}

/// A tablespace as the backup met it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Tablespace {
    /// Its OID, which names its tree and its link in `pg_tblspc`.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where it was: an absolute path, or one in the data directory.
    pub location: String,
}

impl Tablespace {
    /// Whether it lies outside the data directory, as a tree of its own.
    #[must_use]
    pub fn is_outside(&self) -> bool {
        self.location.starts_with('/')
    }
}

/// A page whose checksum was wrong when it was backed up, and stayed wrong.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DamagedBlock {
    /// The file, below the data directory's tree or that of a tablespace.
    pub file: String,
    /// The block of the relation's fork.
    pub block: u64,
}

#[derive(Deserialize)]
struct Wire {
    system_id: String,
    version: u32,
    server_version: String,
    wal_segment_size: u64,
    data_checksums: bool,
    timeline: u32,
    start_lsn: String,
    stop_lsn: String,
    started_at_ms: u64,
    #[serde(default)]
    tablespaces: Vec<Tablespace>,
    #[serde(default)]
    damaged: Vec<DamagedBlock>,
    #[serde(default)]
    damaged_count: u64,
}

impl Manifest {
    /// Reads the file; none when it is something else. Fields that are not known are passed over.
    ///
    /// # Errors
    /// `Unsupported` for a newer form, `Corrupt` for one that cannot be read.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, PostgresError> {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else {
            return Ok(None);
        };
        match value.get(MARKER).and_then(serde_json::Value::as_u64) {
            None => return Ok(None),
            Some(version) if VERSIONS.contains(&version) => {}
            Some(version) => return Err(PostgresError::Newer(version)),
        }
        let wire: Wire = serde_json::from_value(value)
            .map_err(|error| PostgresError::bad(format!("its backup.json cannot be read: {error}")))?;
        wire.try_into().map(Some)
    }
}

impl TryFrom<Wire> for Manifest {
    type Error = PostgresError;
    fn try_from(wire: Wire) -> Result<Self, PostgresError> {
        let Wire {
            system_id,
            version,
            server_version,
            wal_segment_size,
            data_checksums,
            timeline,
            start_lsn,
            stop_lsn,
            started_at_ms,
            tablespaces,
            damaged,
            damaged_count,
        } = wire;
        let bad = |error| PostgresError::File {
            what: "backup.json".into(),
            source: error,
        };
        if tablespaces.len() > TABLESPACES_MAX {
            return Err(PostgresError::bad(format!(
                "it names more than {TABLESPACES_MAX} tablespaces"
            )));
        }
        for (at, tablespace) in tablespaces.iter().enumerate() {
            if tablespaces[..at].iter().any(|other| other.oid == tablespace.oid) {
                return Err(PostgresError::bad(format!(
                    "it names tablespace {} twice",
                    tablespace.oid
                )));
            }
            let location = &tablespace.location;
            if location.is_empty() || location.len() > LOCATION_MAX || location.contains('\0') {
                return Err(PostgresError::bad(format!(
                    "tablespace {} has no usable location",
                    tablespace.oid
                )));
            }
        }
        let (start_lsn, stop_lsn): (Lsn, Lsn) =
            (start_lsn.parse().map_err(bad)?, stop_lsn.parse().map_err(bad)?);
        if stop_lsn < start_lsn {
            return Err(PostgresError::bad("it ends before it begins"));
        }
        Ok(Self {
            system_id: system_id.parse().map_err(bad)?,
            version,
            server_version,
            wal_segment_size: SegmentSize::new(wal_segment_size).map_err(bad)?,
            data_checksums,
            timeline: TimelineId::new(timeline).ok_or_else(|| PostgresError::bad("it has no timeline"))?,
            start_lsn,
            stop_lsn,
            started_at_ms,
            tablespaces,
            damaged_count: damaged_count.max(damaged.len() as u64),
            damaged,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use holdfast_core::{ErrorKind, HasKind as _};
    use serde_json::{Value, json};

    pub(crate) fn example() -> Value {
        json!({
            "holdfast_postgres_backup": 1,
            "system_id": "7301234567890123456",
            "version": 15,
            "server_version": "15.18 (Debian 15.18-0+deb12u1)",
            "wal_segment_size": 16_777_216,
            "data_checksums": true,
            "timeline": 1,
            "start_lsn": "0/2000028",
            "stop_lsn": "0/2000100",
            "started_at_ms": 1_700_000_000_000_u64,
            "tablespaces": [{"oid": 16384, "name": "x", "location": "/srv/ts"}],
            "damaged": [{"file": "data/base/5/1234", "block": 17}],
            "damaged_count": 1,
            "of a later version": true,
        })
    }

    fn with(field: &str, value: Value) -> Vec<u8> {
        let mut example = example();
        example[field] = value;
        example.to_string().into_bytes()
    }

    #[test]
    fn the_contract_is_read() {
        let manifest = Manifest::parse(example().to_string().as_bytes())
            .unwrap()
            .unwrap();
        assert_eq!(manifest.system_id, SystemId(7_301_234_567_890_123_456));
        assert_eq!(manifest.stop_lsn, Lsn(0x200_0100));
        assert_eq!(manifest.tablespaces[0].location, "/srv/ts");
        assert_eq!((manifest.damaged[0].block, manifest.damaged_count), (17, 1));
        assert!(manifest.tablespaces[0].is_outside());
    }

    #[test]
    fn other_files_are_told_apart_and_bad_ones_refused() {
        for other in [
            &b""[..],
            b"{}",
            b"[1]",
            b"{\"a\":1}",
            b"not json",
            b"{\"holdfast_postgres_backup\":\"1\"}",
        ] {
            assert_eq!(Manifest::parse(other).unwrap(), None);
        }
        assert!(Manifest::parse(&with(MARKER, json!(2))).unwrap().is_some());
        let newer = Manifest::parse(&with(MARKER, json!(3))).unwrap_err();
        assert_eq!(newer.kind(), ErrorKind::Unsupported);
        let twice =
            json!([{"oid": 1, "name": "a", "location": "/a"}, {"oid": 1, "name": "b", "location": "/b"}]);
        for (field, value) in [
            ("system_id", json!(5)),
            ("system_id", json!("-5")),
            ("timeline", json!(0)),
            ("start_lsn", json!("0/3000000")),
            ("stop_lsn", json!("2000100")),
            ("wal_segment_size", json!(1000)),
            ("tablespaces", twice),
            ("tablespaces", json!([{"oid": 1, "name": "a", "location": ""}])),
        ] {
            let bad = Manifest::parse(&with(field, value.clone())).unwrap_err();
            assert_eq!(bad.kind(), ErrorKind::Corrupt, "{field} {value}");
        }
    }
}
