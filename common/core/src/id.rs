//! Identifiers, each its own type so that none can stand in for another.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr};

/// Why a text or byte string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}: {reason}")]
pub struct IdError {
    kind: &'static str,
    reason: String,
}

/// 32-byte content hashes, shown as 64 hexadecimal digits.
macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = 32;

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;
            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                let array = <[u8; 32]>::try_from(bytes).map_err(|_| IdError {
                    kind: stringify!($name),
                    reason: format!("{} bytes instead of 32", bytes.len()),
                })?;
                Ok(Self(array))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({}…)", stringify!($name), hex::encode(&self.0[..6]))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|e| IdError {
                    kind: stringify!($name),
                    reason: e.to_string(),
                })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { s.serialize_bytes(&self.0) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(D::Error::custom)
                } else {
                    let bytes = d.deserialize_bytes(BytesVisitor)?;
                    Self::try_from(&bytes[..]).map_err(D::Error::custom)
                }
            }
        }
    };
}

/// 16-byte ids that sort by time of creation (ULID), shown in Crockford's base 32.
macro_rules! time_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = 16;

            /// A new id for the present moment, from the system's random source.
            #[must_use]
            pub fn generate() -> Self {
                Self(ulid::Ulid::generate().to_bytes())
            }

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;
            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                let array = <[u8; 16]>::try_from(bytes).map_err(|_| IdError {
                    kind: stringify!($name),
                    reason: format!("{} bytes instead of 16", bytes.len()),
                })?;
                Ok(Self(array))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", ulid::Ulid::from_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let id = ulid::Ulid::from_string(text).map_err(|e| IdError {
                    kind: stringify!($name),
                    reason: e.to_string(),
                })?;
                Ok(Self(id.to_bytes()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { s.serialize_bytes(&self.0) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(D::Error::custom)
                } else {
                    let bytes = d.deserialize_bytes(BytesVisitor)?;
                    Self::try_from(&bytes[..]).map_err(D::Error::custom)
                }
            }
        }
    };
}

hash_id! {
    /// Names a piece of content of one vault: its keyed hash.
    ChunkId
}
hash_id! {
    /// Names a pack: the BLAKE3 hash of everything in it before its last 32 bytes.
    PackId
}
time_id! {
    /// A cluster of controllers, from `init` to its end.
    ClusterId
}
time_id! {
    /// A vault: one domain of keys and deduplication.
    VaultId
}
time_id! {
    /// A store: one place at a site that holds packs.
    StoreId
}
time_id! {
    /// A snapshot of a source.
    SnapshotId
}
time_id! {
    /// An agent's run under a lease.
    SessionId
}
time_id! {
    /// A unit of work that a controller hands out.
    JobId
}
time_id! {
    /// A client's name for one request, so that a retry acts once.
    RequestId
}

struct BytesVisitor;

impl<'de> serde::de::Visitor<'de> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes of an id")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
        let mut bytes = Vec::with_capacity(32);
        while let Some(byte) = seq.next_element()? {
            if bytes.len() == 32 {
                return Err(A::Error::custom("an id of more than 32 bytes"));
            }
            bytes.push(byte);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip() {
        let pack = PackId([7; 32]);
        assert_eq!(pack.to_string().parse::<PackId>(), Ok(pack));
        let snapshot = SnapshotId::generate();
        assert_eq!(snapshot.to_string().parse::<SnapshotId>(), Ok(snapshot));
        assert!("xyz".parse::<PackId>().is_err());
        assert!("".parse::<SnapshotId>().is_err());
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(ChunkId::try_from(&[0_u8; 31][..]).is_err());
        assert!(JobId::try_from(&[0_u8; 17][..]).is_err());
    }
}
