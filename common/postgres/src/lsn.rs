//! Positions in the WAL, timelines and cluster identities: each its own type, so that none stands in for another.

use crate::error::{PgError, not_one};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, num::NonZeroU32, str::FromStr};

/// A position in the WAL: bytes since the cluster was made. Written `X/X`, two halves of 32 bits in hexadecimal.
///
/// Source: the documentation of the type `pg_lsn`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// No position: nothing was ever written there.
    pub const ZERO: Self = Self(0);

    /// Whether it stands for none.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// So many bytes further; none past the end of the WAL.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(lsn) => Some(Self(lsn)),
            None => None,
        }
    }

    /// So many bytes back; none before its beginning.
    #[must_use]
    pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
        match self.0.checked_sub(bytes) {
            Some(lsn) => Some(Self(lsn)),
            None => None,
        }
    }

    /// Bytes from an earlier position to this one; none if the other is later.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = PgError;
    fn from_str(text: &str) -> Result<Self, PgError> {
        let bad = || not_one("a WAL position", text, "write it as 16/B374D848");
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let half = |digits: &str| hex_u32(digits.as_bytes(), 1).map(u64::from).ok_or_else(bad);
        Ok(Self((half(high)? << 32) | half(low)?))
    }
}

/// A number of at least so many and at most 8 hexadecimal digits, and nothing else: no sign, no space, no `0x`.
pub(crate) fn hex_u32(digits: &[u8], len_min: usize) -> Option<u32> {
    if digits.len() < len_min || digits.len() > 8 {
        return None;
    }
    digits.iter().try_fold(0_u32, |sum, digit| {
        Some((sum << 4) | char::from(*digit).to_digit(16)?)
    })
}

/// A number in decimal digits as servers write it: no sign, no space, no leading zero.
pub(crate) fn decimal_u64(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if !all_digits || (digits.len() > 1 && digits.first() == Some(&b'0')) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// See [`decimal_u64`].
pub(crate) fn decimal_u32(digits: &[u8]) -> Option<u32> {
    decimal_u64(digits).and_then(|number| u32::try_from(number).ok())
}

/// What `initdb` gave a cluster, and its standbys and copies share: the *system identifier*, written in decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = PgError;
    fn from_str(text: &str) -> Result<Self, PgError> {
        decimal_u64(text.as_bytes())
            .map(Self)
            .ok_or_else(|| not_one("a system identifier", text, "write it in decimal digits"))
    }
}

/// A branch of a cluster's history; the first is 1, and each promotion begins another. Written in decimal, and as
/// 8 hexadecimal digits in names of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// Where every cluster begins.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The timeline of that number; none for 0, which servers write where there is no timeline.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TimelineId {
    type Err = PgError;
    fn from_str(text: &str) -> Result<Self, PgError> {
        decimal_u32(text.as_bytes())
            .and_then(Self::new)
            .ok_or_else(|| not_one("a timeline", text, "write its number in decimal, from 1"))
    }
}

/// In text formats a string: numbers beyond 2^53 lose digits in JSON. In binary ones a number.
macro_rules! serialize_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() {
                    s.collect_str(self)
                } else {
                    s.serialize_u64(self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(D::Error::custom)
                } else {
                    u64::deserialize(d).map(Self)
                }
            }
        }
    };
}

serialize_as_text!(Lsn);
serialize_as_text!(SystemId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_read_back_as_they_are_written(number: u64) {
            let lsn = Lsn(number);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>().unwrap(), lsn);
            prop_assert_eq!(lsn.to_string().to_lowercase().parse::<Lsn>().unwrap(), lsn);
            prop_assert_eq!(SystemId(number).to_string().parse::<SystemId>().unwrap(), SystemId(number));
        }

        #[test]
        fn positions_order_like_their_bytes(a: u64, b: u64) {
            prop_assert_eq!(Lsn(a).cmp(&Lsn(b)), a.cmp(&b));
            prop_assert_eq!(Lsn(a).bytes_since(Lsn(b)).is_some(), a >= b);
            if let Some(bytes) = Lsn(a).bytes_since(Lsn(b)) {
                prop_assert_eq!(Lsn(b).checked_add(bytes), Some(Lsn(a)));
                prop_assert_eq!(Lsn(a).checked_sub(bytes), Some(Lsn(b)));
            }
        }

        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = text.parse::<Lsn>();
            let _ = text.parse::<SystemId>();
            let _ = text.parse::<TimelineId>();
        }
    }

    #[test]
    fn positions_are_written_as_the_server_writes_them() {
        assert_eq!(Lsn(0x16_b374_d848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0x300_0028).to_string(), "0/3000028");
        assert_eq!("00000000/03000028".parse(), Ok(Lsn(0x300_0028)));
        assert_eq!(Lsn(u64::MAX).to_string(), "FFFFFFFF/FFFFFFFF");
        assert_eq!(Lsn(u64::MAX).checked_add(1), None);
    }

    #[test]
    fn what_is_not_a_position_is_refused() {
        for text in [
            "",
            "/",
            "0/",
            "/0",
            "0",
            "0/0/0",
            "+1/0",
            "-1/0",
            "0x1/0",
            " 0/1",
            "0/1 ",
            "123456789/0",
            "g/0",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn timeline_0_is_none_and_numbers_have_one_form() {
        assert_eq!(TimelineId::new(0), None);
        assert_eq!("1".parse(), Ok(TimelineId::FIRST));
        assert_eq!("4294967295".parse(), Ok(TimelineId::new(u32::MAX).unwrap()));
        // The server would take 010 for 8.
        for text in ["0", "010", "+1", "-1", "1 ", "4294967296", "0x1", "latest", ""] {
            assert!(text.parse::<TimelineId>().is_err(), "{text:?}");
        }
        assert!("18446744073709551616".parse::<SystemId>().is_err());
    }

    #[test]
    fn json_keeps_every_digit_of_an_identifier() {
        let id = SystemId(7_712_793_015_254_939_039);
        let json = serde_json::to_string(&(id, Lsn(0x300_0028), TimelineId::FIRST)).unwrap();
        assert_eq!(json, r#"["7712793015254939039","0/3000028",1]"#);
        let back: (SystemId, Lsn, TimelineId) = serde_json::from_str(&json).unwrap();
        assert_eq!(back, (id, Lsn(0x300_0028), TimelineId::FIRST));
        assert!(serde_json::from_str::<TimelineId>("0").is_err());
    }
}
