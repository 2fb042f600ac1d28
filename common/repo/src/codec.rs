//! Bounded reading and writing of the few primitive forms that the format uses.

use crate::error::{RepoError, malformed};

/// Appends an unsigned LEB128 number.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number, zigzag first so that small negatives stay short.
pub(crate) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads from a byte string; every read is checked and names what was being read.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn bad(&self, why: &'static str) -> RepoError {
        malformed(self.what, why)
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], RepoError> {
        let (head, tail) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| self.bad("it ends too early"))?;
        self.rest = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], RepoError> {
        let (head, tail) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or_else(|| self.bad("it ends too early"))?;
        self.rest = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, RepoError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, RepoError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, RepoError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, RepoError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A LEB128 number in its shortest form; any other form is refused, so that one value has one
    /// encoding and equal content gets equal ids.
    pub(crate) fn varint(&mut self) -> Result<u64, RepoError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.bad("a number is beyond 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(self.bad("a number is not in its shortest form"));
                }
                return Ok(value);
            }
        }
        Err(self.bad("a number is beyond 64 bits"))
    }

    pub(crate) fn varint_u32(&mut self) -> Result<u32, RepoError> {
        u32::try_from(self.varint()?).map_err(|_| self.bad("a number is beyond 32 bits"))
    }

    pub(crate) fn signed(&mut self) -> Result<i64, RepoError> {
        let raw = self.varint()?;
        Ok(((raw >> 1) as i64) ^ -((raw & 1) as i64))
    }

    /// A count of things of at least `min_len` bytes each: never more than the rest can hold.
    pub(crate) fn count(&mut self, min_len: usize, max: usize) -> Result<usize, RepoError> {
        let count = usize::try_from(self.varint()?).map_err(|_| self.bad("a count is too large"))?;
        if count > max || count.saturating_mul(min_len) > self.rest.len() {
            return Err(self.bad("a count is larger than what follows it"));
        }
        Ok(count)
    }

    pub(crate) fn bytes(&mut self, max: usize) -> Result<&'a [u8], RepoError> {
        let len = usize::try_from(self.varint()?).map_err(|_| self.bad("a length is too large"))?;
        if len > max {
            return Err(self.bad("a length is beyond its bound"));
        }
        self.take(len)
    }

    pub(crate) fn end(&self) -> Result<(), RepoError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.bad("bytes follow its end"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_round_trip(value: u64, signed: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, signed);
            let mut reader = Reader::new("test", &out);
            prop_assert_eq!(reader.varint().unwrap(), value);
            prop_assert_eq!(reader.signed().unwrap(), signed);
            prop_assert!(reader.end().is_ok());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new("test", &bytes);
            while reader.remaining() > 0 {
                if reader.varint().is_err() || reader.bytes(16).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn long_forms_are_refused() {
        assert!(Reader::new("test", &[0x80, 0x00]).varint().is_err());
        assert!(Reader::new("test", &[0xff; 10]).varint().is_err());
    }
}
