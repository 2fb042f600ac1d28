//! Names of the files that hold tables, indexes and what else has pages.
//!
//! A relation's file is named after its number (*filenode*). Beside the main fork are the map of free space
//! (`_fsm`), the visibility map (`_vm`) and, of unlogged relations, what they are reset to after a crash (`_init`).
//! Past 1 GiB a fork goes on in `.1`, `.2` and so on. Temporary relations begin with `t`, the number of their
//! session, and `_`. Source: the documentation, "Database File Layout".

use crate::lsn::decimal_u32;

/// The number of a block that servers use for none: no relation has that many.
const BLOCK_NONE: u32 = u32::MAX;

/// Which part of a relation a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// Its content.
    Main,
    /// Where there is room in it: `_fsm`.
    FreeSpace,
    /// Which pages everybody may see: `_vm`.
    Visibility,
    /// What an unlogged relation is reset to after a crash: `_init`.
    Init,
}

/// The name of a file of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile {
    /// The session that a temporary relation belongs to; none for what outlives its session.
    pub session: Option<u32>,
    /// The filenode. Never zero.
    pub relation: u32,
    /// Which part of it.
    pub fork: Fork,
    /// Which file of that fork, from 0.
    pub segment: u32,
}

impl RelationFile {
    /// Reads a name without any directory; none for a name that no server gives to a file of a relation.
    #[must_use]
    pub fn parse(name: &[u8]) -> Option<Self> {
        let (session, rest) = match name.strip_prefix(b"t") {
            Some(rest) => {
                let (session, rest) = split(rest, b'_')?;
                (Some(decimal_u32(session)?), rest)
            }
            None => (None, name),
        };
        let (rest, segment) = match split(rest, b'.') {
            // The first file of a fork has no number.
            Some((rest, segment)) => (rest, decimal_u32(segment).filter(|segment| *segment != 0)?),
            None => (rest, 0),
        };
        let (relation, fork) = match split(rest, b'_') {
            Some((relation, b"fsm")) => (relation, Fork::FreeSpace),
            Some((relation, b"vm")) => (relation, Fork::Visibility),
            Some((relation, b"init")) => (relation, Fork::Init),
            Some(_) => return None,
            None => (rest, Fork::Main),
        };
        Some(Self {
            session,
            relation: decimal_u32(relation).filter(|relation| *relation != 0)?,
            fork,
            segment,
        })
    }

    /// Whether it belongs to a temporary relation, which ends with its session.
    #[must_use]
    pub const fn is_temporary(self) -> bool {
        self.session.is_some()
    }

    /// The number of the first page of this file within its fork, which goes into the checksum of each page.
    /// `blocks_per_file` is what `pg_control` says. None where the server's numbers of pages end.
    #[must_use]
    pub const fn first_block(self, blocks_per_file: u32) -> Option<u32> {
        match self.segment.checked_mul(blocks_per_file) {
            Some(block) if block != BLOCK_NONE => Some(block),
            _ => None,
        }
    }
}

/// What is before and behind the first such byte.
fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let index = bytes.iter().position(|byte| *byte == at)?;
    Some((bytes.get(..index)?, bytes.get(index + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn render(file: RelationFile) -> String {
        let session = file
            .session
            .map_or(String::new(), |session| format!("t{session}_"));
        let fork = match file.fork {
            Fork::Main => "",
            Fork::FreeSpace => "_fsm",
            Fork::Visibility => "_vm",
            Fork::Init => "_init",
        };
        let segment = match file.segment {
            0 => String::new(),
            segment => format!(".{segment}"),
        };
        format!("{session}{}{fork}{segment}", file.relation)
    }

    fn any_file() -> impl Strategy<Value = RelationFile> {
        let fork = prop_oneof![
            Just(Fork::Main),
            Just(Fork::FreeSpace),
            Just(Fork::Visibility),
            Just(Fork::Init)
        ];
        (any::<Option<u32>>(), 1..=u32::MAX, fork, any::<u32>()).prop_map(
            |(session, relation, fork, segment)| RelationFile {
                session,
                relation,
                fork,
                segment,
            },
        )
    }

    proptest! {
        #[test]
        fn every_name_reads_back(file in any_file()) {
            prop_assert_eq!(RelationFile::parse(render(file).as_bytes()), Some(file));
        }

        #[test]
        fn what_is_read_is_written_the_same(name in "t?[0-9_.]{0,6}(_fsm|_vm|_init)?[0-9.]{0,3}") {
            if let Some(file) = RelationFile::parse(name.as_bytes()) {
                prop_assert_eq!(render(file), name);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(name: Vec<u8>) {
            let _ = RelationFile::parse(&name);
        }
    }

    #[test]
    fn other_files_beside_relations_are_none() {
        for name in [
            "",
            "t",
            "t_",
            "t3",
            "t3_",
            "t_16384",
            "0",
            "016384",
            "4294967296",
            "16384_",
            "16384.",
            "16384.0",
            "16384.01",
            "16384.1.2",
            "16384_foo",
            "16384_fsm_vm",
            "16384_init.x",
            "16384.1_fsm",
            "-16384",
            "16384 ",
            "T3_16384",
            "tt3_16384",
            "PG_VERSION",
            "pg_filenode.map",
            "pg_internal.init",
            "pg_control",
        ] {
            assert_eq!(RelationFile::parse(name.as_bytes()), None, "{name:?}");
        }
    }

    #[test]
    fn pages_are_numbered_on_from_file_to_file() {
        let first = |name: &str, per_file| {
            RelationFile::parse(name.as_bytes())
                .unwrap()
                .first_block(per_file)
        };
        assert_eq!(first("16384", 131_072), Some(0));
        assert_eq!(first("16384_vm.1", 131_072), Some(131_072));
        assert_eq!(first("16384.32767", 131_072), Some(4_294_836_224));
        assert_eq!(first("16384.32768", 131_072), None);
        assert_eq!(first("16384.4294967295", 1), None);
    }
}
