//! Names of objects: only those of the layout can be made, so a name can never leave the store.

use crate::StoreError;
use holdfast_core::{PackId, SnapshotId, VaultId};
use std::{fmt, str::FromStr};

/// The kinds of object that a store holds; each has a top-level directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// Sealed copies of the catalog.
    Catalog,
    /// Recovery-sealed vault keys.
    Keys,
    /// Packs.
    Packs,
    /// Root objects of snapshots.
    Roots,
}

impl Area {
    /// All areas in the order of their names.
    pub const ALL: [Self; 4] = [Self::Catalog, Self::Keys, Self::Packs, Self::Roots];

    /// The directory's name.
    #[must_use]
    pub fn dir(self) -> &'static str {
        match self {
            Self::Catalog => "catalog",
            Self::Keys => "keys",
            Self::Packs => "packs",
            Self::Roots => "roots",
        }
    }

    /// Whether objects lie one directory deeper.
    pub(crate) fn is_nested(self) -> bool {
        self != Self::Catalog
    }
}

/// The name of one object, `area/…`; ordered as text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

/// What an object is, taken from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// A pack.
    Pack(PackId),
    /// A snapshot's root object.
    Root(VaultId, SnapshotId),
    /// The n-th key object of a vault.
    Key(VaultId, u32),
    /// A sealed copy of the catalog.
    Catalog([u8; 16]),
}

impl ObjectName {
    /// The name of a pack.
    #[must_use]
    pub fn pack(id: &PackId) -> Self {
        let hex = id.to_string();
        Self(format!("packs/{}/{hex}", &hex[..2]))
    }

    /// The name of a snapshot's root object.
    #[must_use]
    pub fn root(vault: &VaultId, snapshot: &SnapshotId) -> Self {
        Self(format!("roots/{vault}/{snapshot}"))
    }

    /// The name of a vault's n-th key object.
    #[must_use]
    pub fn key(vault: &VaultId, n: u32) -> Self {
        Self(format!("keys/{vault}/{n}"))
    }

    /// The name of a sealed catalog copy; the ULID's bytes say when it was made.
    #[must_use]
    pub fn catalog(ulid: [u8; 16]) -> Self {
        Self(format!("catalog/{}", ulid::Ulid::from_bytes(ulid)))
    }

    /// The text, relative to the store.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it names. Always `Some` for a name that was made by this type.
    #[must_use]
    pub fn kind(&self) -> Option<ObjectKind> {
        let (area, rest) = self.0.split_once('/')?;
        match area {
            "packs" => Some(ObjectKind::Pack(rest.split_once('/')?.1.parse().ok()?)),
            "roots" => {
                let (vault, snapshot) = rest.split_once('/')?;
                Some(ObjectKind::Root(vault.parse().ok()?, snapshot.parse().ok()?))
            }
            "keys" => {
                let (vault, n) = rest.split_once('/')?;
                Some(ObjectKind::Key(vault.parse().ok()?, n.parse().ok()?))
            }
            "catalog" => Some(ObjectKind::Catalog(
                ulid::Ulid::from_string(rest).ok()?.to_bytes(),
            )),
            _ => None,
        }
    }

    /// The object's area.
    #[must_use]
    pub fn area(&self) -> Area {
        let top = self.0.split('/').next().unwrap_or_default();
        Area::ALL
            .into_iter()
            .find(|area| area.dir() == top)
            .unwrap_or(Area::Packs)
    }

    /// The directory that holds it, relative to the store.
    pub(crate) fn parent(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(parent, _)| parent)
    }
}

impl FromStr for ObjectName {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        // Only the one canonical spelling passes: it is made again from the parsed parts and compared.
        let made = Self(text.to_owned()).kind().map(|kind| match kind {
            ObjectKind::Pack(id) => Self::pack(&id),
            ObjectKind::Root(vault, snapshot) => Self::root(&vault, &snapshot),
            ObjectKind::Key(vault, n) => Self::key(&vault, n),
            ObjectKind::Catalog(ulid) => Self::catalog(ulid),
        });
        made.filter(|name| name.0 == text)
            .ok_or_else(|| StoreError::BadName(text.chars().take(200).collect()))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_round_trip() {
        let vault = VaultId([7; 16]);
        for name in [
            ObjectName::pack(&PackId([0xab; 32])),
            ObjectName::root(&vault, &SnapshotId([9; 16])),
            ObjectName::key(&vault, 12),
            ObjectName::catalog([3; 16]),
        ] {
            assert_eq!(name.as_str().parse::<ObjectName>().unwrap(), name);
            assert!(name.as_str().starts_with(name.area().dir()));
        }
    }

    #[test]
    fn nothing_outside_the_layout_has_a_name() {
        let pack = PackId([0xab; 32]).to_string();
        let vault = VaultId([7; 16]);
        for bad in [
            String::new(),
            "/etc/passwd".into(),
            "packs".into(),
            "packs/../roots".into(),
            format!("packs/cd/{pack}"),
            format!("packs/AB/{}", pack.to_uppercase()),
            format!("packs/ab/{pack}/x"),
            format!("/packs/ab/{pack}"),
            format!("roots/{vault}/.."),
            format!(
                "roots/{}/{}",
                vault.to_string().to_lowercase(),
                SnapshotId([9; 16])
            ),
            format!("keys/{vault}/01"),
            format!("keys/{vault}/+1"),
            "tmp/x".into(),
            "holdfast-store.toml".into(),
        ] {
            assert!(bad.parse::<ObjectName>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_that_parses_is_canonical(text in "(packs|roots|keys|catalog|tmp|\\.\\.)(/[0-9a-zA-Z.]{0,64}){0,3}") {
            if let Ok(name) = text.parse::<ObjectName>() {
                prop_assert_eq!(name.as_str(), text.as_str());
                prop_assert!(!text.contains(".."));
            }
        }
    }
}
