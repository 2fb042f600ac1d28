//! What an entry has besides owner, mode and times: extended attributes, hard links, file flags.
//!
//! Stored as (tag, value) pairs in the order of their tags. A reader refuses an odd tag that it does not
//! know and passes over an even one.

use crate::{
    codec::{Reader, put_bytes, put_varint},
    error::{RepoError, malformed},
};
use holdfast_core::limits::{ATTRIBUTES_LEN_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX, XATTRS_MAX};
use std::{borrow::Cow, collections::BTreeMap};

/// Most pairs of one entry: room for what later versions record.
const PAIRS_MAX: usize = 256;

/// Odd: who passes over an access control list gives rights that nobody granted.
const TAG_XATTRS: u64 = 1;
/// Even: without it the content comes back as well, only not shared.
const TAG_HARD_LINK: u64 = 2;
const TAG_FLAGS: u64 = 4;

/// One name of a file that has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HardLink {
    /// Tells file systems of one snapshot apart. With the entry's inode it names the file.
    pub device: u64,
    /// Names that the file had, in the snapshot or not: at least 2.
    pub names: u64,
}

/// Extended attributes by their whole names, in order. Held as they are stored: on hosts that label every
/// file, a directory of a million files has a million of these in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xattrs(Box<[u8]>);

impl Xattrs {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that they take in memory and in a node.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.0.len()
    }

    /// Names and values in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut reader = Reader::new("extended attributes", &self.0);
        let count = if self.is_empty() {
            0
        } else {
            reader.varint().unwrap_or(0)
        };
        // They were checked, or made here.
        (0..count).map_while(move |_| Some((reader.bytes(usize::MAX).ok()?, reader.bytes(usize::MAX).ok()?)))
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter()
            .find(|(other, _)| *other == name)
            .map(|(_, value)| value)
    }

    fn decode(bytes: &[u8]) -> Result<Self, RepoError> {
        let mut reader = Reader::new("an attribute of a directory entry", bytes);
        let count = reader.count(2, XATTRS_MAX)?;
        if count == 0 {
            return Err(reader.bad("extended attributes, and none among them"));
        }
        let mut last: Option<&[u8]> = None;
        for _ in 0..count {
            let name = reader.bytes(XATTR_NAME_MAX)?;
            if !is_xattr_name(name) {
                return Err(reader.bad("a name is not one that an extended attribute can have"));
            }
            if last.replace(name).is_some_and(|last| last >= name) {
                return Err(reader.bad("its extended attributes are not in order"));
            }
            reader.bytes(XATTR_VALUE_MAX)?;
        }
        reader.end()?;
        Ok(Self(bytes.into()))
    }
}

impl FromIterator<(Vec<u8>, Vec<u8>)> for Xattrs {
    fn from_iter<I: IntoIterator<Item = (Vec<u8>, Vec<u8>)>>(pairs: I) -> Self {
        let pairs: BTreeMap<_, _> = pairs.into_iter().collect();
        if pairs.is_empty() {
            return Self::default();
        }
        let mut bytes = Vec::new();
        put_varint(&mut bytes, pairs.len() as u64);
        for (name, value) in &pairs {
            put_bytes(&mut bytes, name);
            put_bytes(&mut bytes, value);
        }
        Self(bytes.into())
    }
}

impl<const N: usize> From<[(Vec<u8>, Vec<u8>); N]> for Xattrs {
    fn from(pairs: [(Vec<u8>, Vec<u8>); N]) -> Self {
        pairs.into_iter().collect()
    }
}

/// What few entries have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Extended attributes of every namespace: access control lists and capabilities are among them.
    pub xattrs: Xattrs,
    /// Set when the file has further names; never for a directory.
    pub hard_link: Option<HardLink>,
    /// `FS_*_FL` of Linux: immutable, append-only and the like.
    pub flags: u32,
}

impl Attributes {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.xattrs.is_empty() && self.hard_link.is_none() && self.flags == 0
    }

    /// As entries hold them: nothing for nothing.
    #[must_use]
    pub fn boxed(self) -> Option<Box<Self>> {
        (!self.is_empty()).then(|| Box::new(self))
    }

    /// Bytes that an extended attribute takes, at most, in what `limits::ATTRIBUTES_LEN_MAX` bounds.
    #[must_use]
    pub fn xattr_len(name: &[u8], value: &[u8]) -> usize {
        // Each length is a varint of at most 3 bytes.
        name.len() + value.len() + 6
    }

    /// Whether a reader would take them back.
    pub(crate) fn check(&self, is_dir: bool) -> Result<(), RepoError> {
        let bad = |why| Err(malformed("a directory entry", why));
        if self.xattrs.iter().count() > XATTRS_MAX {
            return bad("it has more extended attributes than may be");
        }
        if !self
            .xattrs
            .iter()
            .all(|(name, value)| is_xattr_name(name) && value.len() <= XATTR_VALUE_MAX)
        {
            return bad("an extended attribute is not one that a file can have");
        }
        let len = || self.pairs().iter().map(|(_, value)| value.len()).sum::<usize>();
        if self.xattrs.encoded_len() > ATTRIBUTES_LEN_MAX / 2 && len() > ATTRIBUTES_LEN_MAX {
            return bad("its attributes are longer than may be");
        }
        match self.hard_link {
            Some(_) if is_dir => bad("a directory has hard links"),
            Some(link) if link.names < 2 => bad("a hard link has no second name"),
            _ => Ok(()),
        }
    }

    fn pairs(&self) -> Vec<(u64, Cow<'_, [u8]>)> {
        let mut pairs = Vec::new();
        if !self.xattrs.is_empty() {
            pairs.push((TAG_XATTRS, Cow::from(&self.xattrs.0[..])));
        }
        if let Some(HardLink { device, names }) = self.hard_link {
            let mut value = Vec::new();
            put_varint(&mut value, device);
            put_varint(&mut value, names);
            pairs.push((TAG_HARD_LINK, value.into()));
        }
        if self.flags != 0 {
            let mut value = Vec::new();
            put_varint(&mut value, self.flags.into());
            pairs.push((TAG_FLAGS, value.into()));
        }
        pairs
    }

    pub(crate) fn encode_into(attributes: Option<&Self>, out: &mut Vec<u8>) {
        let pairs = attributes.map(Self::pairs).unwrap_or_default();
        put_varint(out, pairs.len() as u64);
        for (tag, value) in &pairs {
            put_varint(out, *tag);
            put_bytes(out, value);
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>, is_dir: bool) -> Result<Option<Box<Self>>, RepoError> {
        let mut found = Self::default();
        let mut last = None;
        let mut room = ATTRIBUTES_LEN_MAX;
        for _ in 0..reader.count(2, PAIRS_MAX)? {
            let tag = reader.varint()?;
            if last.replace(tag).is_some_and(|last| last >= tag) {
                return Err(reader.bad("its attributes are not in order"));
            }
            let value = reader.bytes(room)?;
            room -= value.len();
            if tag == TAG_XATTRS {
                found.xattrs = Xattrs::decode(value)?;
                continue;
            }
            let mut value = Reader::new("an attribute of a directory entry", value);
            match tag {
                TAG_HARD_LINK => {
                    let link = HardLink {
                        device: value.varint()?,
                        names: value.varint()?,
                    };
                    if is_dir || link.names < 2 {
                        return Err(value.bad("it is not a hard link"));
                    }
                    found.hard_link = Some(link);
                }
                TAG_FLAGS => {
                    found.flags = value.varint_u32()?;
                    if found.flags == 0 {
                        return Err(value.bad("flags without a flag"));
                    }
                }
                unknown if unknown & 1 == 1 => {
                    return Err(RepoError::TooNew {
                        what: "a directory entry",
                        version: 1,
                        flags: tag as u16,
                    });
                }
                _ => continue,
            }
            value.end()?;
        }
        Ok(found.boxed())
    }
}

fn is_xattr_name(name: &[u8]) -> bool {
    (1..=XATTR_NAME_MAX).contains(&name.len()) && !name.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection, option, prelude::*};

    fn encoded(attributes: &Attributes) -> Vec<u8> {
        let mut out = Vec::new();
        Attributes::encode_into(Some(attributes), &mut out);
        out
    }

    fn decoded(bytes: &[u8], is_dir: bool) -> Result<Option<Box<Attributes>>, RepoError> {
        let mut reader = Reader::new("test", bytes);
        let found = Attributes::decode(&mut reader, is_dir)?;
        reader.end()?;
        Ok(found)
    }

    fn any_attributes() -> impl Strategy<Value = Attributes> {
        let name = collection::vec(1_u8.., 1..=255);
        let value = collection::vec(any::<u8>(), 0..200);
        let link = (any::<u64>(), 2_u64..).prop_map(|(device, names)| HardLink { device, names });
        (
            collection::vec((name, value), 0..20).prop_map(|pairs| pairs.into_iter().collect()),
            option::of(link),
            any::<u32>(),
        )
            .prop_map(|(xattrs, hard_link, flags)| Attributes {
                xattrs,
                hard_link,
                flags,
            })
    }

    proptest! {
        #[test]
        fn any_attributes_come_back(attributes in any_attributes()) {
            prop_assert!(attributes.check(false).is_ok());
            let back = decoded(&encoded(&attributes), false).unwrap();
            prop_assert_eq!(back, attributes.boxed());
        }

        #[test]
        fn any_bytes_are_read_without_panic_and_have_one_encoding(bytes: Vec<u8>) {
            if let Ok(Some(found)) = decoded(&bytes, false) {
                prop_assert!(found.check(false).is_ok());
            }
        }

        #[test]
        fn damaged_attributes_are_sound_or_refused(
            attributes in any_attributes(), at: prop::sample::Index, bit in 0..8,
        ) {
            let mut bytes = encoded(&attributes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            if let Ok(found) = decoded(&bytes, false) {
                let found = found.map(|found| *found).unwrap_or_default();
                prop_assert!(found.check(false).is_ok());
                prop_assert_eq!(decoded(&encoded(&found), false).unwrap(), found.boxed());
            }
        }
    }

    #[test]
    fn every_prefix_is_refused() {
        let attributes = Attributes {
            xattrs: [
                (b"user.a".to_vec(), b"value".to_vec()),
                (b"user.b".to_vec(), Vec::new()),
            ]
            .into(),
            hard_link: Some(HardLink {
                device: 300,
                names: 2,
            }),
            flags: 0x10,
        };
        let bytes = encoded(&attributes);
        assert_eq!(decoded(&bytes, false).unwrap(), attributes.clone().boxed());
        for len in 0..bytes.len() {
            assert!(decoded(&bytes[..len], false).is_err(), "{len}");
        }
        assert!(decoded(&bytes, true).is_err(), "a directory has no hard links");
        assert!(attributes.check(true).is_err());
    }

    #[test]
    fn hostile_attributes_are_refused() {
        let pairs = |pairs: &[(u8, &[u8])]| {
            let mut out = vec![pairs.len() as u8];
            for (tag, value) in pairs {
                out.push(*tag);
                put_bytes(&mut out, value);
            }
            decoded(&out, false)
        };
        // What is known, what is not known and may be passed over, and what must be understood.
        let xattr: &[u8] = b"\x01\x01a\x00";
        assert!(
            pairs(&[(1, xattr), (2, &[7, 2]), (4, &[16]), (6, b"later")])
                .unwrap()
                .is_some()
        );
        assert_eq!(pairs(&[(6, b"later")]).unwrap(), None);
        assert!(matches!(
            pairs(&[(3, b"x")]),
            Err(RepoError::TooNew { flags: 3, .. })
        ));
        let bad: [&[(u8, &[u8])]; 16] = [
            &[(2, &[7, 2]), (1, xattr)],
            &[(1, xattr), (1, xattr)],
            &[(1, b"")],
            &[(1, b"\x00")],
            &[(1, b"\x01\x00\x00")],
            &[(1, b"\x01\x02a\0\x00")],
            &[(1, b"\x02\x01b\x00\x01a\x00")],
            &[(1, b"\x02\x01a\x00\x01a\x00")],
            &[(1, b"\x01\x01a\x00more")],
            &[(1, b"\xff\xff\x03\x01a\x00")],
            &[(2, &[7])],
            &[(2, &[7, 1])],
            &[(2, &[7, 2, 0])],
            &[(4, &[])],
            &[(4, &[0])],
            &[(4, &[0xff, 0xff, 0xff, 0xff, 0x1f])],
        ];
        for pairs_of in bad {
            assert!(pairs(pairs_of).is_err(), "{pairs_of:02x?}");
        }
    }

    #[test]
    fn what_passes_a_bound_is_refused_both_ways() {
        let of = |count: usize, name: usize, value: usize| Attributes {
            xattrs: (0..count)
                .map(|n| (format!("{n:0name$}").into_bytes(), vec![1; value]))
                .collect(),
            ..Attributes::default()
        };
        for (attributes, fits) in [
            (of(1, 255, XATTR_VALUE_MAX), true),
            (of(1, 256, 0), false),
            (of(1, 5, XATTR_VALUE_MAX + 1), false),
            (of(XATTRS_MAX, 5, 10), true),
            (of(XATTRS_MAX + 1, 5, 10), false),
            (of(3, 5, XATTR_VALUE_MAX), true),
            (of(4, 5, XATTR_VALUE_MAX), false),
        ] {
            assert_eq!(attributes.check(false).is_ok(), fits);
            assert_eq!(decoded(&encoded(&attributes), false).is_ok(), fits);
        }
        // A sum that passes the bound, although no single value does.
        let pair = vec![0; ATTRIBUTES_LEN_MAX / 2 + 1];
        let mut out = vec![2];
        for tag in [6, 8] {
            out.push(tag);
            put_bytes(&mut out, &pair);
        }
        assert!(decoded(&out, false).is_err());
    }
}
