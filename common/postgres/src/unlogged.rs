//! Unlogged relations: which ones there are shows only in the names of a directory's files.
//!
//! A server that starts after a crash, or from a backup, makes them anew from their `_init` fork, so that only that
//! is kept. Source: the documentation, "The Initialization Fork".

use crate::{
    error::{PgError, bounded},
    relation_file::{Fork, RelationFile},
};
use holdfast_core::limits::PG_UNLOGGED_RELATIONS_MAX;
use std::collections::HashSet;

/// The unlogged relations of one directory of a database (see [`crate::Layout::holds_relations`]).
///
/// All names of the directory are given to [`Self::see`] first, then [`Self::omits`] answers. A relation whose
/// `_init` fork comes later is kept whole, which costs space and nothing else.
#[derive(Debug, Clone, Default)]
pub struct UnloggedRelations {
    relations: HashSet<u32>,
}

impl UnloggedRelations {
    /// Takes note of one name of the directory, without the directory.
    ///
    /// # Errors
    /// `TooLarge` when there are more unlogged relations than are held at once.
    pub fn see(&mut self, name: &[u8]) -> Result<(), PgError> {
        if let Some(RelationFile {
            session: None,
            relation,
            fork: Fork::Init,
            segment: _,
        }) = RelationFile::parse(name)
            && !self.relations.contains(&relation)
        {
            bounded(
                "the number of unlogged relations of a database",
                self.relations.len() + 1,
                PG_UNLOGGED_RELATIONS_MAX,
            )?;
            self.relations.insert(relation);
        }
        Ok(())
    }

    /// Whether the file of that name, without the directory, is left out.
    #[must_use]
    pub fn omits(&self, name: &[u8]) -> bool {
        RelationFile::parse(name).is_some_and(|file| {
            !file.is_temporary() && file.fork != Fork::Init && self.relations.contains(&file.relation)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unlogged_relations_keep_what_they_are_reset_to() {
        let mut unlogged = UnloggedRelations::default();
        for name in [
            "16384",
            "16385_init",
            "16385",
            "16386_vm",
            "t3_16386_init",
            "16387x_init",
            "PG_VERSION",
        ] {
            unlogged.see(name.as_bytes()).unwrap();
        }
        for name in ["16385", "16385.1", "16385_fsm", "16385_vm", "16385_vm.2"] {
            assert!(unlogged.omits(name.as_bytes()), "{name}");
        }
        for name in [
            "16385_init",
            "16385_init.1",
            "16384",
            "16386",
            "t3_16385",
            "PG_VERSION",
            "163850",
        ] {
            assert!(!unlogged.omits(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn no_more_unlogged_relations_are_held_than_the_bound() {
        let mut unlogged = UnloggedRelations {
            relations: (1..=PG_UNLOGGED_RELATIONS_MAX as u32).collect(),
        };
        assert_eq!(unlogged.see(b"7_init"), Ok(()));
        assert!(matches!(
            unlogged.see(b"4000000000_init"),
            Err(PgError::TooLarge { .. })
        ));
        assert_eq!(unlogged.see(b"4000000000"), Ok(()));
    }

    proptest! {
        #[test]
        fn any_names_are_seen_without_panic(names: Vec<Vec<u8>>) {
            let mut unlogged = UnloggedRelations::default();
            for name in &names {
                unlogged.see(name).unwrap();
            }
            prop_assert!(names.iter().filter(|name| name.ends_with(b"_init")).all(|name| !unlogged.omits(name)));
        }
    }
}
