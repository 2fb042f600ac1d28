//! `global/pg_control`: what a cluster is, and how far its files have come.
//!
//! Offsets are those of 64-bit little-endian servers. Sources: the fields that `pg_controldata` and the functions
//! `pg_control_*` show, found again in files of servers of all known versions (`tests/golden`). From 13 to 17 no field
//! moved: what 17 added lies where 13 had padding.

use crate::{
    error::{PgError, malformed},
    fields::Fields,
    lsn::{Lsn, SystemId, TimelineId},
    segment::SegmentSize,
    version::PgVersion,
};
use std::fmt;

/// Length of the file in bytes, in every version.
pub const CONTROL_FILE_LEN: usize = 8192;
/// Where the checksum stands, over all before it.
const CRC_AT: usize = 288;
/// A floating-point number whose bytes show that both sides mean the same by them.
const FLOAT_FORMAT: f64 = 1_234_567.0;
const WHAT: &str = "pg_control";

/// What the server says of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DbState {
    /// Being started, or made by `initdb` and never started.
    Startup,
    /// Shut down in order.
    ShutDown,
    /// Shut down in order while it was a standby or in recovery.
    ShutDownInRecovery,
    /// Being shut down.
    ShuttingDown,
    /// Replays its own WAL after a crash.
    InCrashRecovery,
    /// Replays archived or streamed WAL.
    InArchiveRecovery,
    /// Takes writes, or crashed while it did.
    InProduction,
}

impl DbState {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Startup, "starting up"),
        (Self::ShutDown, "shut down"),
        (Self::ShutDownInRecovery, "shut down in recovery"),
        (Self::ShuttingDown, "shutting down"),
        (Self::InCrashRecovery, "in crash recovery"),
        (Self::InArchiveRecovery, "in archive recovery"),
        (Self::InProduction, "in production"),
    ];

    /// Whether nothing is missing from the files: no WAL has to be replayed before they can be used.
    #[must_use]
    pub const fn is_clean(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }
}

impl fmt::Display for DbState {
    /// As `pg_controldata` says it in English.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL[*self as usize].1)
    }
}

/// How much a server writes to its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Only what recovery after a crash needs: no backup can be taken.
    Minimal,
    /// What archives and standbys need.
    Replica,
    /// What logical decoding needs as well.
    Logical,
}

/// Settings of a primary of which a standby must have at least as much, or it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyLimits {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

/// The last checkpoint, from which a crash would be recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where its record is.
    pub lsn: Lsn,
    /// Where replay begins.
    pub redo: Lsn,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The timeline before it, if this checkpoint began a new one; else the same.
    pub previous_timeline: TimelineId,
    /// Whether pages were written whole to the WAL.
    pub full_page_writes: bool,
    /// The next transaction id, with its epoch in the upper half.
    pub next_xid: u64,
    /// When, in seconds since 1970.
    pub unix_secs: i64,
}

/// How far recovery must come before the files are consistent. All zero outside recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryBounds {
    /// At least to here.
    pub min_lsn: Lsn,
    /// On this timeline; none where `min_lsn` is zero.
    pub min_timeline: Option<TimelineId>,
    /// Where the backup began that is being recovered; zero once its end was reached.
    pub backup_start: Lsn,
    /// Where it ended, if it was taken from a standby.
    pub backup_end: Lsn,
    /// Whether the WAL must show the end of the backup first.
    pub backup_end_required: bool,
}

/// A decoded `pg_control` whose checksum held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster.
    pub system_id: SystemId,
    /// The server's version, by the file's version and that of the catalogs.
    pub version: PgVersion,
    /// What state the server left it in.
    pub state: DbState,
    /// When the file was last written, in seconds since 1970.
    pub written_unix_secs: i64,
    /// The last checkpoint.
    pub checkpoint: Checkpoint,
    /// The counter that stands in for positions in unlogged relations.
    pub unlogged_lsn: Lsn,
    /// How far recovery must come.
    pub recovery: RecoveryBounds,
    /// How much was written to the WAL.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// What a standby must have at least.
    pub limits: StandbyLimits,
    /// Bytes of a page.
    pub block_len: u32,
    /// Pages of one file of a large relation.
    pub blocks_per_file: u32,
    /// Bytes of a page of the WAL.
    pub wal_block_len: u32,
    /// Size of WAL segments.
    pub wal_segment_size: SegmentSize,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
}

impl ControlFile {
    /// Decodes the whole file. It is small and written at once, but not atomically with a reader: after
    /// `ChecksumWrong` it is read again.
    ///
    /// # Errors
    /// `Malformed` for another length or values that no server writes, `UnknownVersion`, `ChecksumWrong`.
    pub fn decode(bytes: &[u8]) -> Result<Self, PgError> {
        if bytes.len() < CONTROL_FILE_LEN {
            return Err(malformed(WHAT, "it is too short: servers write 8192 bytes"));
        }
        if bytes.len() > CONTROL_FILE_LEN {
            return Err(malformed(WHAT, "it is too long: servers write 8192 bytes"));
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(malformed(WHAT, "it holds nothing but zeros"));
        }
        let fields = Fields::new(WHAT, bytes);
        // The version first: where the checksum stands could depend on it.
        let version = PgVersion::from_control(fields.u32(8)?, fields.u32(12)?)?;
        let (stored, computed) = (
            fields.u32(CRC_AT)?,
            crc32c::crc32c(bytes.get(..CRC_AT).unwrap_or_default()),
        );
        if stored != computed {
            return Err(PgError::ChecksumWrong {
                what: WHAT,
                stored,
                computed,
            });
        }
        check_platform(&fields)?;
        Ok(Self {
            system_id: SystemId(fields.u64(0)?),
            version,
            state: state(&fields)?,
            written_unix_secs: fields.i64(24)?,
            checkpoint: checkpoint(&fields)?,
            unlogged_lsn: Lsn(fields.u64(128)?),
            recovery: RecoveryBounds {
                min_lsn: Lsn(fields.u64(136)?),
                min_timeline: TimelineId::new(fields.u32(144)?),
                backup_start: Lsn(fields.u64(152)?),
                backup_end: Lsn(fields.u64(160)?),
                backup_end_required: fields.flag(168)?,
            },
            wal_level: match fields.u32(172)? {
                0 => WalLevel::Minimal,
                1 => WalLevel::Replica,
                2 => WalLevel::Logical,
                _ => return Err(fields.bad("its wal_level is none of three")),
            },
            wal_log_hints: fields.flag(176)?,
            limits: StandbyLimits {
                max_connections: fields.count(180)?,
                max_worker_processes: fields.count(184)?,
                max_wal_senders: fields.count(188)?,
                max_prepared_transactions: fields.count(192)?,
                max_locks_per_transaction: fields.count(196)?,
            },
            track_commit_timestamp: fields.flag(200)?,
            block_len: block_len(&fields, 216, 1 << 15)?,
            blocks_per_file: fields.u32(220)?,
            wal_block_len: block_len(&fields, 224, 1 << 16)?,
            wal_segment_size: SegmentSize::new(u64::from(fields.u32(228)?))?,
            data_checksums: match fields.u32(252)? {
                0 => false,
                1 => true,
                _ => return Err(fields.bad("its page checksums are of an unknown kind")),
            },
        })
    }
}

/// Servers of other platforms lay out their files otherwise; so would their `pg_control`, but its head might agree.
fn check_platform(fields: &Fields<'_>) -> Result<(), PgError> {
    if fields.u32(204)? == 8 && fields.u64(208)? == FLOAT_FORMAT.to_bits() {
        Ok(())
    } else {
        Err(fields.bad("it comes from another kind of machine"))
    }
}

fn state(fields: &Fields<'_>) -> Result<DbState, PgError> {
    let number = fields.u32(16)? as usize;
    DbState::ALL
        .get(number)
        .map(|row| row.0)
        .ok_or_else(|| fields.bad("its state is none that servers write"))
}

fn checkpoint(fields: &Fields<'_>) -> Result<Checkpoint, PgError> {
    let timeline =
        |at| TimelineId::new(fields.u32(at)?).ok_or_else(|| fields.bad("its checkpoint is on timeline 0"));
    Ok(Checkpoint {
        lsn: Lsn(fields.u64(32)?),
        redo: Lsn(fields.u64(40)?),
        timeline: timeline(48)?,
        previous_timeline: timeline(52)?,
        full_page_writes: fields.flag(56)?,
        next_xid: fields.u64(64)?,
        unix_secs: fields.i64(104)?,
    })
}

fn block_len(fields: &Fields<'_>, at: usize, max: u32) -> Result<u32, PgError> {
    let len = fields.u32(at)?;
    if len.is_power_of_two() && (1 << 10..=max).contains(&len) {
        Ok(len)
    } else {
        Err(fields.bad("its block size is none that servers have"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What a server of that version wrote, and what it said of it through `pg_control_*()`.
    fn golden(version: PgVersion) -> (Vec<u8>, BTreeMap<&'static str, &'static str>) {
        let (head, said): (&[u8], &str) = match version {
            PgVersion::V13 => (
                include_bytes!("../tests/golden/pg_control-13.bin"),
                include_str!("../tests/golden/pg_control-13.txt"),
            ),
            PgVersion::V14 => (
                include_bytes!("../tests/golden/pg_control-14.bin"),
                include_str!("../tests/golden/pg_control-14.txt"),
            ),
            PgVersion::V15 => (
                include_bytes!("../tests/golden/pg_control-15.bin"),
                include_str!("../tests/golden/pg_control-15.txt"),
            ),
            PgVersion::V16 => (
                include_bytes!("../tests/golden/pg_control-16.bin"),
                include_str!("../tests/golden/pg_control-16.txt"),
            ),
            PgVersion::V17 => (
                include_bytes!("../tests/golden/pg_control-17.bin"),
                include_str!("../tests/golden/pg_control-17.txt"),
            ),
        };
        let mut file = head.to_vec();
        file.resize(CONTROL_FILE_LEN, 0);
        (
            file,
            said.lines().filter_map(|line| line.split_once('=')).collect(),
        )
    }

    /// A file in which some bytes are others, with a checksum that holds.
    fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
        let (mut file, _) = golden(PgVersion::V15);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = crc32c::crc32c(&file[..CRC_AT]);
        file[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        file
    }

    #[test]
    fn files_of_every_version_say_what_their_servers_said() {
        for version in PgVersion::ALL {
            let (file, said) = golden(version);
            let control = ControlFile::decode(&file).unwrap();
            let is = |key: &str, value: &dyn fmt::Display| {
                assert_eq!(said[key], value.to_string(), "{version} {key}")
            };
            assert_eq!(control.version, version);
            is("system_identifier", &control.system_id);
            is("pg_control_version", &version.control_version());
            is("catalog_version_no", &version.catalog_version());
            let checkpoint = control.checkpoint;
            is("checkpoint_lsn", &checkpoint.lsn);
            is("redo_lsn", &checkpoint.redo);
            is("timeline_id", &checkpoint.timeline);
            is("prev_timeline_id", &checkpoint.previous_timeline);
            is("full_page_writes", &checkpoint.full_page_writes);
            is(
                "next_xid",
                &format!(
                    "{}:{}",
                    checkpoint.next_xid >> 32,
                    checkpoint.next_xid & 0xffff_ffff
                ),
            );
            let segment = control
                .wal_segment_size
                .segment_at(checkpoint.timeline, checkpoint.redo);
            is("redo_wal_file", &segment);
            let time: jiff::Timestamp = said["checkpoint_time"].parse().unwrap();
            assert_eq!(checkpoint.unix_secs, time.as_second());
            assert!((0..60).contains(&(control.written_unix_secs - checkpoint.unix_secs)));
            is("min_recovery_end_lsn", &control.recovery.min_lsn);
            is("backup_start_lsn", &control.recovery.backup_start);
            is("backup_end_lsn", &control.recovery.backup_end);
            is(
                "end_of_backup_record_required",
                &control.recovery.backup_end_required,
            );
            is("database_block_size", &control.block_len);
            is("blocks_per_segment", &control.blocks_per_file);
            is("wal_block_size", &control.wal_block_len);
            is("bytes_per_wal_segment", &control.wal_segment_size.bytes());
            is("data_page_checksum_version", &u32::from(control.data_checksums));
        }
    }

    #[test]
    fn settings_of_every_version_are_the_ones_that_were_set() {
        for version in PgVersion::ALL {
            let control = ControlFile::decode(&golden(version).0).unwrap();
            let expected = StandbyLimits {
                max_connections: 37,
                max_worker_processes: 9,
                max_wal_senders: 5,
                max_prepared_transactions: 11,
                max_locks_per_transaction: 66,
            };
            assert_eq!(control.limits, expected, "{version}");
            assert_eq!(
                (control.wal_level, control.state),
                (WalLevel::Logical, DbState::InProduction)
            );
            assert!(control.wal_log_hints && control.track_commit_timestamp);
            assert_eq!(control.unlogged_lsn, Lsn(1000));
        }
    }

    #[test]
    fn a_short_long_or_empty_file_is_no_control_file() {
        let (file, _) = golden(PgVersion::V15);
        for len in [0, 8, 16, 292, CONTROL_FILE_LEN - 1] {
            let error = ControlFile::decode(&file[..len]).unwrap_err();
            assert!(error.to_string().contains("too short"), "{error}");
        }
        assert!(ControlFile::decode(&[&file[..], &[0]].concat()).is_err());
        let zeros = ControlFile::decode(&[0; CONTROL_FILE_LEN]).unwrap_err();
        assert!(zeros.to_string().contains("zeros"), "{zeros}");
    }

    #[test]
    fn an_unknown_version_is_named() {
        for (control, catalog) in [
            (1201, 201_909_212),
            (1800, 202_506_291),
            (1300, 202_406_171),
            (0x1405_0000, 0),
        ] {
            let head = [u32::to_le_bytes(control), u32::to_le_bytes(catalog)].concat();
            let error = ControlFile::decode(&changed(8, &head)).unwrap_err();
            assert!(matches!(error, PgError::UnknownVersion { .. }), "{error}");
            assert!(error.to_string().contains(&control.to_string()), "{error}");
        }
    }

    #[test]
    fn values_that_no_server_writes_are_refused() {
        for (at, bytes) in [
            (16, &7_u32.to_le_bytes()[..]),
            (48, &[0; 4]),
            (52, &[0; 4]),
            (56, &[2]),
            (172, &[3]),
            (180, &(-1_i32).to_le_bytes()),
            (204, &[4]),
            (208, &[1]),
            (216, &[0; 4]),
            (216, &(1_u32 << 16).to_le_bytes()),
            (224, &3000_u32.to_le_bytes()),
            (228, &(1_u32 << 19).to_le_bytes()),
            (252, &[2]),
        ] {
            assert!(ControlFile::decode(&changed(at, bytes)).is_err(), "{at}");
        }
        assert!(ControlFile::decode(&changed(0, &[1])).is_ok());
    }

    #[test]
    fn recovery_bounds_are_read_from_where_they_stand() {
        let bytes = [
            &0x1122_3344_5566_7788_u64.to_le_bytes()[..],
            &3_u64.to_le_bytes(),
            &5_u64.to_le_bytes(),
            &7_u64.to_le_bytes(),
            &[1],
        ]
        .concat();
        let expected = RecoveryBounds {
            min_lsn: Lsn(0x1122_3344_5566_7788),
            min_timeline: TimelineId::new(3),
            backup_start: Lsn(5),
            backup_end: Lsn(7),
            backup_end_required: true,
        };
        assert_eq!(
            ControlFile::decode(&changed(136, &bytes)).unwrap().recovery,
            expected
        );
    }

    proptest! {
        #[test]
        fn any_flipped_bit_before_the_checksum_is_found(at in 0..CRC_AT + 4, bit in 0_u8..8) {
            let (mut file, _) = golden(PgVersion::V15);
            file[at] ^= 1 << bit;
            prop_assert!(ControlFile::decode(&file).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_panic(at in 0..CRC_AT, bytes in proptest::collection::vec(any::<u8>(), 0..8)) {
            let at = at.min(CRC_AT - bytes.len());
            let _ = ControlFile::decode(&changed(at, &bytes));
        }
    }
}
