//! A PostgreSQL server that archives its WAL through an agent, with the cluster that keeps it.

use super::{Cluster, Output, Process, Server, as_server, transfers};
use crate::wait;
use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// The agent, and its source.
pub const AGENT: &str = "db1";
/// See [`AGENT`].
pub const SOURCE: &str = "db1/main";

/// Lets an agent back a server up, and archive for it: its `archive_command`. `base` is where the server's user reaches.
#[must_use]
pub fn attach(cluster: &mut Cluster, server: &Server, base: &Path) -> String {
    attach_with(cluster, server, base, "")
}

/// The same with more lines in the cluster's section of `agent.toml`.
#[must_use]
pub fn attach_with(cluster: &mut Cluster, server: &Server, base: &Path, lines: &str) -> String {
    // Where the server's user reaches it, wherever this was built.
    let agent = base.join("holdfast-agent");
    let _ = fs::remove_file(&agent);
    fs::copy(cluster.binaries().agent(), &agent).expect("a copy of the agent's program");
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).expect("its mode");
    cluster.join_agent(AGENT, &[server.data()]);
    let config = &cluster.agent(AGENT).config;
    let text = fs::read_to_string(config).expect("the agent's configuration");
    let socket = base.join("agent.sock");
    let user = rustix::fs::stat(server.data())
        .expect("the data directory")
        .st_uid;
    let text = format!(
        "socket = \"{}\"\n{text}\n[postgres.main]\nconnection = \"{}\"\nuser = \"{user}\"\n{lines}\n",
        socket.display(),
        server.connection()
    );
    fs::write(config, text).expect("to write the agent's configuration");
    cluster.start_agent(AGENT, None);
    cluster.wait_connected(AGENT);
    cluster.apply(&format!(
        "kind: Source\nname: {SOURCE}\npostgres: {{fast_checkpoint: true}}\n"
    ));
    format!(
        "{} wal push --source main --socket {} %p",
        agent.display(),
        socket.display()
    )
}

/// A server that archives.
#[derive(Debug)]
pub struct Archiving {
    // Before what they lie in, so that processes end before their files go.
    /// Controller and agent.
    pub cluster: Cluster,
    /// The server; started.
    pub server: Server,
    /// Where the server's user reaches everything.
    pub base: tempfile::TempDir,
}

impl Archiving {
    /// Starts all of it. `settings` are appended to `postgresql.conf`.
    #[must_use]
    pub fn start(settings: &str) -> Self {
        Self::start_with(settings, "")
    }

    /// The same with a spool of that size at its agent.
    #[must_use]
    pub fn start_spooling(size: &str) -> Self {
        Self::start_with("", &format!("spool = \"{size}\""))
    }

    fn start_with(settings: &str, lines: &str) -> Self {
        let base = Server::base();
        let server = Server::init(base.path(), "main");
        let mut cluster = Cluster::start();
        let command = attach_with(&mut cluster, &server, base.path(), lines);
        let mut this = Self {
            cluster,
            server,
            base,
        };
        let settings =
            format!("archive_mode = on\narchive_command = '{command}'\nwal_keep_size = '1GB'\n{settings}\n");
        let path = this.server.data().join("postgresql.conf");
        let mut file = File::options().append(true).open(path).expect("postgresql.conf");
        file.write_all(settings.as_bytes())
            .expect("to write postgresql.conf");
        this.server.start();
        this
    }

    /// A path that the server's user reaches.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// Ends the segment that is written to, and waits until everything before is archived.
    pub fn archive_all(&self) {
        let name = self
            .server
            .query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        self.server.execute("SELECT pg_switch_wal()");
        self.wait_archived(&name);
    }

    /// Waits until the server was told that a segment is archived.
    pub fn wait_archived(&self, name: &str) {
        wait::until("the segment to be archived", || {
            let done = format!("pg_wal/archive_status/{name}.done");
            self.server.data().join(done).exists().then_some(())
        });
    }

    /// Where the agent spools.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.cluster.agent(AGENT).state_dir.join("spool/main")
    }

    /// Files of WAL that wait in the spool, and the bytes of all that lies there.
    ///
    /// # Panics
    /// When the spool cannot be looked into.
    #[must_use]
    pub fn spooled(&self) -> (Vec<String>, u64) {
        let (mut names, mut bytes) = (Vec::new(), 0);
        for entry in fs::read_dir(self.spool()).into_iter().flatten() {
            let entry = entry.expect("an entry of the spool");
            let name = entry.file_name().to_string_lossy().into_owned();
            // What is gone meanwhile takes no room.
            bytes += entry.metadata().map_or(0, |about| about.len());
            if name.starts_with("0000") && !name.ends_with(".unfinished") {
                names.push(name);
            }
        }
        names.sort();
        (names, bytes)
    }

    /// Waits until nothing waits in the spool.
    pub fn wait_drained(&self) {
        wait::until("the spool to be drained", || {
            self.spooled().0.is_empty().then_some(())
        });
    }

    /// Files that the server has ready and nobody took.
    ///
    /// # Panics
    /// When the server's directory cannot be read.
    #[must_use]
    pub fn ready(&self) -> usize {
        let dir = self.server.data().join("pg_wal/archive_status");
        let entries = fs::read_dir(dir).expect("the archive's status").flatten();
        entries
            .filter(|entry| entry.path().extension().is_some_and(|end| end == "ready"))
            .count()
    }

    /// Names in the journal.
    #[must_use]
    pub fn kept(&self) -> Vec<String> {
        let rows = self
            .cluster
            .ctl(["get", "journal", SOURCE, "-o", "json"])
            .ok()
            .rows();
        let name = |row: &serde_json::Value| row["name"].as_str().unwrap_or_default().to_owned();
        rows.iter().map(name).collect()
    }

    /// The agent's program as the server runs it: `wal`, `push` or `fetch`, and more.
    #[must_use]
    pub fn agent(&self, args: &[&str]) -> Output {
        Output::of(self.agent_command(args))
    }

    /// The same, not run yet.
    #[must_use]
    pub fn agent_command(&self, args: &[&str]) -> Command {
        let mut command = as_server(&self.server, &self.path("holdfast-agent"));
        command.args(&args[..2]);
        command
            .args(["--source", "main", "--socket"])
            .arg(self.path("agent.sock"));
        command.args(&args[2..]);
        command
    }

    /// Money moves from now on, until the process is stopped: see [`transfers`].
    #[must_use]
    pub fn workload(&self, clients: u32, rate: u32) -> Process {
        transfers::begin(&self.server, &self.path("transfer.sql"), clients, rate)
    }
}
