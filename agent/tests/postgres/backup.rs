//! Backups of a server with the engine, and what they brought.

use crate::{
    host::{Host, Tree},
    server::Server,
};
use holdfast_agent::{
    Result,
    engine::{self, Caches, Outcome, Stats},
    files::Selection,
    postgres::{ClusterConfig, Order, Part, Passes, Taken, take},
    remote::Remote,
};
use holdfast_repo::RootTree;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// One host that takes backups of one server, each based on the last.
pub struct Backups {
    pub host: Host,
    pub cancel: Arc<AtomicBool>,
    /// Bytes that the data alone added to the store, each time.
    pub grown: Mutex<Vec<usize>>,
    pub allow: Vec<PathBuf>,
    pub connection: String,
    pub password_file: Option<PathBuf>,
    stats: Mutex<Arc<Stats>>,
}

impl Backups {
    pub fn of(server: &Server) -> Self {
        Self {
            host: Host::new(),
            cancel: Arc::default(),
            grown: Mutex::default(),
            allow: vec!["/".into()],
            connection: format!("host={} user=postgres", server.dir().display()),
            password_file: None,
            stats: Mutex::default(),
        }
    }

    pub fn order(&self) -> Order {
        let config = ClusterConfig {
            connection: self.connection.clone(),
            password_file: self.password_file.clone(),
            user: None,
            source: None,
            fetch: Vec::new(),
            spool: None,
        };
        let stats = Arc::new(Stats::default());
        *self.stats.lock().unwrap() = Arc::clone(&stats);
        Order {
            settings: config.settings_with_password().unwrap(),
            allow: self.allow.clone(),
            state_dir: self.host.state.path().to_owned(),
            run: "0123_1".into(),
            label: "holdfast host/main".into(),
            fast_checkpoint: true,
            cancel: Arc::clone(&self.cancel),
            stats,
        }
    }

    /// A backup, on a runtime of its own.
    pub fn try_take(&self) -> Result<Taken> {
        runtime().block_on(take(&self.order(), self))
    }

    /// A backup that works out, which the next one is based on.
    pub fn take(&mut self) -> (Outcome, Arc<Stats>) {
        let taken = self.try_take().unwrap();
        self.host.parent = taken.outcome.trees.clone();
        let stats = Arc::clone(&self.stats.lock().unwrap());
        (taken.outcome, stats)
    }

    /// What is stored below a tree's own directory.
    pub fn tree(&self, outcome: &Outcome, path: &str) -> Tree {
        let mut tree = Tree::new();
        let found = outcome.trees.iter().find(|tree| tree.path == path.as_bytes());
        self.host.flatten(&found.unwrap().entry, Path::new(""), &mut tree);
        tree
    }

    /// `backup.json` of a backup.
    pub fn manifest(&self, outcome: &Outcome) -> serde_json::Value {
        let tree = self.tree(outcome, "/postgresql/backup");
        serde_json::from_slice(&tree[Path::new("backup.json")].2).unwrap()
    }

    /// Writes a backup out as a data directory that a server can recover from.
    pub fn restore(&self, outcome: &Outcome, data: &Path) {
        self.write(outcome, "/postgresql/data", data);
        self.write(outcome, "/postgresql/wal", &data.join("pg_wal"));
        let staged = self.tree(outcome, "/postgresql/backup");
        fs::write(data.join("global/pg_control"), &staged[Path::new("pg_control")].2).unwrap();
        fs::write(data.join("backup_label"), &staged[Path::new("backup_label")].2).unwrap();
    }

    /// Writes a tree's directories and files; links are left to the caller.
    pub fn write(&self, outcome: &Outcome, tree: &str, to: &Path) {
        let root = root(outcome, tree);
        self.write_dir(&root.entry, to);
    }

    fn write_dir(&self, entry: &holdfast_repo::Entry, to: &Path) {
        use holdfast_repo::EntryKind;
        use std::os::unix::ffi::OsStrExt as _;
        let EntryKind::Dir { node, .. } = entry.kind else {
            panic!("not a directory")
        };
        fs::create_dir_all(to).unwrap();
        for child in self.host.entries(node) {
            let path = to.join(std::ffi::OsStr::from_bytes(&child.name));
            match &child.kind {
                EntryKind::Dir { .. } => self.write_dir(&child, &path),
                EntryKind::File { content, .. } => {
                    fs::write(&path, self.host.content(content)).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(child.mode)).unwrap();
                }
                _ => {}
            }
        }
    }

    fn stored(&self) -> usize {
        self.host
            .remote
            .blobs
            .lock()
            .values()
            .map(bytes::Bytes::len)
            .sum()
    }
}

fn root<'o>(outcome: &'o Outcome, path: &str) -> &'o RootTree {
    let found = outcome.trees.iter().find(|tree| tree.path == path.as_bytes());
    found.unwrap_or_else(|| panic!("no tree {path}"))
}

impl Passes for Backups {
    async fn pass(&self, selection: Selection, part: Part) -> Result<Outcome> {
        let settings = self.host.settings_of(selection);
        let name = match part {
            Part::Data => "source.cache",
            Part::End => "end.cache",
        };
        let caches = Caches::open(&self.host.state.path().join(name), !self.host.parent.is_empty())?;
        let remote = Arc::clone(&self.host.remote) as Arc<dyn Remote>;
        let (stats, cancel) = (Arc::clone(&self.stats.lock().unwrap()), Arc::clone(&self.cancel));
        let before = self.stored();
        let outcome =
            tokio::task::spawn_blocking(move || engine::run(settings, remote, caches, stats, cancel))
                .await
                .unwrap();
        if part == Part::Data {
            self.grown.lock().unwrap().push(self.stored() - before);
        }
        outcome
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Asks for a stop, as the controllers do.
pub fn stop(cancel: &AtomicBool) {
    cancel.store(true, Ordering::Relaxed);
}
