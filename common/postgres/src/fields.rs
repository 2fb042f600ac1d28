//! Little-endian fields at fixed offsets, as servers write their structures to disk.

use crate::error::{PgError, malformed};

/// Reads fields of one structure; each read is checked against its end.
pub(crate) struct Fields<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) const fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes }
    }

    pub(crate) const fn bad(&self, why: &'static str) -> PgError {
        malformed(self.what, why)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], PgError> {
        self.bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk::<N>())
            .copied()
            .ok_or_else(|| self.bad("it ends too early"))
    }

    pub(crate) fn u16(&self, at: usize) -> Result<u16, PgError> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&self, at: usize) -> Result<u32, PgError> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&self, at: usize) -> Result<u64, PgError> {
        self.array(at).map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&self, at: usize) -> Result<i64, PgError> {
        self.array(at).map(i64::from_le_bytes)
    }

    /// A byte that is 0 or 1.
    pub(crate) fn flag(&self, at: usize) -> Result<bool, PgError> {
        match self.array(at)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(self.bad("a flag is neither on nor off")),
        }
    }

    /// A signed number of 32 bits that counts something.
    pub(crate) fn count(&self, at: usize) -> Result<u32, PgError> {
        u32::try_from(i32::from_le_bytes(self.array(at)?)).map_err(|_| self.bad("a count is negative"))
    }
}
