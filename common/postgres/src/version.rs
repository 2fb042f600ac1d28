//! The versions of PostgreSQL that are known, and the numbers by which their files tell them apart.

use crate::error::{PgError, not_one};
use std::fmt;

/// A major version. The formats that this crate reads do not change within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PgVersion {
    /// PostgreSQL 13.
    V13,
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
}

/// (version, major number, version of pg_control, version of the catalogs, magic number of WAL pages)
///
/// Sources: `pg_controldata` and the first bytes of WAL segments of those servers (`tests/golden`).
type Row = (PgVersion, u32, u32, u32, u16);

const TABLE: &[Row] = &[
    (PgVersion::V13, 13, 1300, 202_007_201, 0xd106),
    (PgVersion::V14, 14, 1300, 202_107_181, 0xd10d),
    (PgVersion::V15, 15, 1300, 202_209_061, 0xd110),
    (PgVersion::V16, 16, 1300, 202_307_071, 0xd113),
    (PgVersion::V17, 17, 1700, 202_406_281, 0xd116),
];

impl PgVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [Self::V13, Self::V14, Self::V15, Self::V16, Self::V17];

    fn row(self) -> &'static Row {
        // Every version has a row (tested below), in the order of their declaration.
        &TABLE[self as usize]
    }

    fn find(
        what: &'static str,
        found: impl fmt::Display,
        is_it: impl Fn(&Row) -> bool,
    ) -> Result<Self, PgError> {
        TABLE
            .iter()
            .find(|row| is_it(row))
            .map(|row| row.0)
            .ok_or_else(|| PgError::UnknownVersion {
                what,
                found: found.to_string(),
            })
    }

    /// Its number: 15 for PostgreSQL 15.
    #[must_use]
    pub fn major(self) -> u32 {
        self.row().1
    }

    /// The version of its `pg_control`.
    #[must_use]
    pub fn control_version(self) -> u32 {
        self.row().2
    }

    /// The version of its system catalogs.
    #[must_use]
    pub fn catalog_version(self) -> u32 {
        self.row().3
    }

    /// The number that each of its WAL pages begins with.
    #[must_use]
    pub fn wal_magic(self) -> u16 {
        self.row().4
    }

    /// The directory below a tablespace's location that belongs to this version, as `PG_15_202209061`.
    #[must_use]
    pub fn tablespace_directory(self) -> String {
        format!("PG_{}_{}", self.major(), self.catalog_version())
    }

    /// Whether everything in this crate was tried with a running server of this version.
    #[must_use]
    pub const fn is_tested(self) -> bool {
        matches!(self, Self::V15)
    }

    /// The version of that `server_version_num`: major × 10000 + minor.
    ///
    /// # Errors
    /// `UnknownVersion`.
    pub fn from_server_version_num(number: u32) -> Result<Self, PgError> {
        Self::find("the server", number, |row| row.1 == number / 10_000)
    }

    /// The version whose `pg_control` says both of these.
    ///
    /// # Errors
    /// `UnknownVersion`, for pre-releases too.
    pub fn from_control(control_version: u32, catalog_version: u32) -> Result<Self, PgError> {
        let found = format!("{control_version}, catalog {catalog_version}");
        Self::find("pg_control", found, |row| {
            row.2 == control_version && row.3 == catalog_version
        })
    }

    /// The version whose WAL pages begin with that number.
    ///
    /// # Errors
    /// `UnknownVersion`.
    pub fn from_wal_magic(magic: u16) -> Result<Self, PgError> {
        Self::find("a WAL segment", format_args!("{magic:#06x}"), |row| {
            row.4 == magic
        })
    }

    /// The version that a `PG_VERSION` file names.
    ///
    /// # Errors
    /// `NotOne` when it is no number, `UnknownVersion` when it is another.
    pub fn from_version_file(bytes: &[u8]) -> Result<Self, PgError> {
        let digits = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let major = crate::lsn::decimal_u32(digits).ok_or_else(|| {
            let text = String::from_utf8_lossy(bytes.get(..80).unwrap_or(bytes));
            not_one(
                "a PG_VERSION file",
                &text,
                "it holds the major version in decimal",
            )
        })?;
        Self::find("PG_VERSION", major, |row| row.1 == major)
    }
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {}", self.major())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_has_one_row_and_its_numbers_name_it() {
        assert_eq!(TABLE.len(), PgVersion::ALL.len());
        for (row, version) in TABLE.iter().zip(PgVersion::ALL) {
            assert_eq!(row.0, version);
            assert_eq!(version.row().0, version);
            assert_eq!(
                PgVersion::from_control(version.control_version(), version.catalog_version()),
                Ok(version)
            );
            assert_eq!(PgVersion::from_wal_magic(version.wal_magic()), Ok(version));
            assert_eq!(
                PgVersion::from_server_version_num(version.major() * 10_000 + 99),
                Ok(version)
            );
            let file = format!("{}\n", version.major());
            assert_eq!(PgVersion::from_version_file(file.as_bytes()), Ok(version));
        }
        assert!(PgVersion::ALL.is_sorted());
    }

    #[test]
    fn other_versions_and_pre_releases_are_refused() {
        assert!(PgVersion::from_server_version_num(120_022).is_err());
        assert!(PgVersion::from_server_version_num(180_000).is_err());
        // 9.6 numbered otherwise.
        assert!(PgVersion::from_server_version_num(90_624).is_err());
        // A beta of 17 had the control version of 16.
        assert!(PgVersion::from_control(1300, 202_406_171).is_err());
        assert!(PgVersion::from_wal_magic(0xd118).is_err());
        for file in [
            &b""[..],
            b"\n",
            b"15\n\n",
            b"15.3\n",
            b" 15",
            b"9.6\n",
            &[0xff; 200],
        ] {
            assert!(PgVersion::from_version_file(file).is_err());
        }
    }

    #[test]
    fn tablespace_directories_are_named_after_version_and_catalog() {
        assert_eq!(PgVersion::V15.tablespace_directory(), "PG_15_202209061");
    }
}
