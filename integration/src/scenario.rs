//! One agent with one source that changes from backup to backup, and what each snapshot must restore to.

use crate::{
    dataset::{
        edit,
        tree::{Maker, Spec},
    },
    harness::{Cluster, Options, Output},
    tree::{self, Tree},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
};

/// The agent of every scenario.
pub const AGENT: &str = "web1";
/// The source of every scenario.
pub const SOURCE: &str = "web1/data";

/// A protected tree with its history.
#[derive(Debug)]
pub struct Scenario {
    /// The processes.
    pub cluster: Cluster,
    root: PathBuf,
    maker: Maker,
    version: u64,
    expected: BTreeMap<String, Rc<Tree>>,
    now: Rc<Tree>,
}

impl Scenario {
    /// A fresh cluster with a connected agent and an applied source of `files` files.
    #[must_use]
    pub fn start(options: Options, seed: u64, files: usize) -> Self {
        let mut cluster = Cluster::start_with(options);
        let root = cluster.dir().join("source");
        let maker = Maker::new(Spec { seed, files });
        maker.make(&root).expect("make the source");
        cluster.add_agent(AGENT, &[&root]);
        cluster.apply_source(SOURCE, &root);
        let now = Rc::new(tree::read(&root));
        Self {
            cluster,
            root,
            maker,
            version: 0,
            expected: BTreeMap::new(),
            now,
        }
    }

    /// The source's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Edits about one file in a hundred, and at least one of each kind.
    pub fn change(&mut self) {
        self.version += 1;
        edit::edit(&self.maker, &self.root, self.version).expect("edit the source");
        self.look();
    }

    /// Reads the source again after a change that a test made by itself.
    pub fn look(&mut self) {
        self.now = Rc::new(tree::read(&self.root));
    }

    /// Backs up; it must succeed and make exactly one snapshot, whose id is returned.
    pub fn backup(&mut self) -> String {
        let _ = self.cluster.backup(SOURCE).ok();
        let mut new = self.adopt();
        assert_eq!(new.len(), 1, "one backup made {} snapshots", new.len());
        new.remove(0)
    }

    /// Takes note of visible snapshots that were not there before: they hold the source as it is now.
    pub fn adopt(&mut self) -> Vec<String> {
        let new: Vec<String> = self
            .cluster
            .snapshots(SOURCE)
            .into_iter()
            .filter(|id| !self.expected.contains_key(id))
            .collect();
        for id in &new {
            self.expected.insert(id.clone(), self.now.clone());
        }
        new
    }

    /// Every snapshot that was ever noted is still visible.
    pub fn assert_none_lost(&self) {
        let visible = self.cluster.snapshots(SOURCE);
        for id in self.expected.keys() {
            assert!(
                visible.contains(id),
                "snapshot {id} was visible and is not any more"
            );
        }
    }

    /// Restores one snapshot and compares.
    pub fn assert_restores(&self, id: &str) {
        let expected = self.expected.get(id).expect("a noted snapshot");
        self.cluster
            .assert_restores(&format!("{SOURCE}@{id}"), &self.root, expected);
    }

    /// Restores every noted snapshot and compares.
    pub fn assert_all_restore(&self) {
        self.assert_none_lost();
        for id in self.expected.keys() {
            self.assert_restores(id);
        }
    }

    /// What a restore of one snapshot, successful or not, left: it either succeeded with the right tree, or
    /// failed. Returns its output.
    pub fn restore_is_right_or_fails(&self, id: &str) -> Output {
        let target = tempfile::Builder::new()
            .prefix("restore-")
            .tempdir_in(self.cluster.dir())
            .unwrap();
        let to = target.path().join("to");
        let output = self.cluster.restore(&format!("{SOURCE}@{id}"), &to);
        if output.code == 0 {
            let root = crate::harness::restored_root(&to, &self.root);
            tree::assert_same(id, &self.expected[id], &tree::read(&root));
        }
        output
    }

    /// What a snapshot must restore to.
    #[must_use]
    pub fn expected(&self, id: &str) -> &Tree {
        &self.expected[id]
    }

    /// Does not expect this snapshot any more.
    pub fn forget(&mut self, id: &str) {
        self.expected.remove(id);
    }

    /// Noted snapshots.
    #[must_use]
    pub fn noted(&self) -> Vec<String> {
        self.expected.keys().cloned().collect()
    }
}
