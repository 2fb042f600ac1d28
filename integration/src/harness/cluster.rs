//! A controller and its agents, started from nothing through the same commands that an operator types.

use super::{
    binaries::Binaries,
    ctl::Output,
    process::{Process, Trap, dying_with_parent},
};
use crate::{tree, wait};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

/// What differs from an ordinary cluster.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where the cluster's own directory is made; the system's temporary directory otherwise.
    pub base: Option<PathBuf>,
    /// The controller's `data_dir`, when it must lie elsewhere (a file system under test).
    pub data_dir: Option<PathBuf>,
    /// The store's directory, when it must lie elsewhere.
    pub store_dir: Option<PathBuf>,
    /// The agents' state directories lie below this one.
    pub agents_dir: Option<PathBuf>,
    /// `reserve` of the store, such as `1MiB`.
    pub reserve: Option<String>,
    /// Receiver of traces, such as `http://127.0.0.1:4317`.
    pub otlp_endpoint: Option<String>,
    /// Further environment of every process.
    pub env: Vec<(String, String)>,
    /// Filter of the log, when not the harness' own.
    pub log: Option<String>,
    /// The agents' settings of the engine that are not the default, such as `("workers", 2)`.
    pub pipeline: Vec<(String, i64)>,
}

/// An agent's process and its files.
#[derive(Debug)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// Its `agent.toml`.
    pub config: PathBuf,
    /// Its `state_dir`.
    pub state_dir: PathBuf,
    /// The running process, if it runs.
    pub process: Option<Process>,
}

/// One cluster in a directory of its own; everything ends and goes with it.
#[derive(Debug)]
pub struct Cluster {
    // Before `dir`, so that processes end before their files go.
    controller: Option<Process>,
    agents: BTreeMap<String, Agent>,
    options: Options,
    binaries: Binaries,
    address: String,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Founds a cluster and starts its controller.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// The same, with differences.
    #[must_use]
    pub fn start_with(options: Options) -> Self {
        let mut cluster = Self::init(options);
        cluster.start_controller(None);
        cluster.wait_ready();
        cluster
    }

    /// Founds a cluster and starts nothing.
    #[must_use]
    pub fn init(options: Options) -> Self {
        let base = options.base.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new()
            .prefix("holdfast-it-")
            .tempdir_in(base)
            .expect("a temporary directory");
        let address = format!("127.0.0.1:{}", free_port());
        let cluster = Self {
            controller: None,
            agents: BTreeMap::new(),
            options,
            binaries: Binaries::find(),
            address,
            dir,
        };
        fs::create_dir_all(cluster.controller_dir()).unwrap();
        fs::write(cluster.controller_config(), cluster.controller_toml()).unwrap();
        let kit = cluster.kit();
        let controller_dir = cluster.controller_dir();
        let _ = cluster
            .ctl([
                OsStr::new("init"),
                OsStr::new("--name"),
                OsStr::new("test"),
                OsStr::new("--address"),
                OsStr::new(&cluster.address),
                OsStr::new("--recovery-kit"),
                kit.as_os_str(),
                OsStr::new("--controller-dir"),
                controller_dir.as_os_str(),
            ])
            .ok();
        cluster
    }

    fn controller_toml(&self) -> String {
        let telemetry = self.telemetry_toml();
        let reserve = self.options.reserve.as_deref().unwrap_or("1MiB");
        format!(
            "data_dir = {data:?}\nidentity_dir = {identity:?}\n\n[node]\nid = 1\nlisten = {address:?}\n\n\
             [[store]]\nsite = \"primary\"\npath = {store:?}\nreserve = {reserve:?}\n\n{telemetry}",
            data = self.data_dir(),
            identity = self.controller_dir().join("identity"),
            address = self.address,
            store = self.store_dir(),
        )
    }

    fn telemetry_toml(&self) -> String {
        let otlp = self
            .options
            .otlp_endpoint
            .as_ref()
            .map_or_else(String::new, |url| format!("otlp_endpoint = {url:?}\n"));
        format!("[telemetry]\nlog = \"console\"\n{otlp}")
    }

    // --- Places -------------------------------------------------------------

    /// The directory that holds everything, for a test's own files too.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where `init` wrote the controller's files.
    #[must_use]
    pub fn controller_dir(&self) -> PathBuf {
        self.dir.path().join("controller")
    }

    /// The controller's configuration.
    #[must_use]
    pub fn controller_config(&self) -> PathBuf {
        self.controller_dir().join("controller.toml")
    }

    /// Raft log, catalog, index.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.options
            .data_dir
            .clone()
            .unwrap_or_else(|| self.controller_dir().join("data"))
    }

    /// The one directory store.
    #[must_use]
    pub fn store_dir(&self) -> PathBuf {
        self.options
            .store_dir
            .clone()
            .unwrap_or_else(|| self.dir.path().join("store"))
    }

    /// The admin's context and keys.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.dir.path().join("admin")
    }

    /// The recovery kit.
    #[must_use]
    pub fn kit(&self) -> PathBuf {
        self.dir.path().join("kit.txt")
    }

    /// The controller's address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The programs.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// A command of ours with this cluster's environment.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = dying_with_parent(program);
        command
            .current_dir(self.dir.path())
            .env("HOLDFAST_CONFIG_DIR", self.config_dir())
            .env(
                "HOLDFAST_LOG",
                self.options
                    .log
                    .as_deref()
                    .unwrap_or("info,holdfast::phase=debug"),
            )
            .env("NO_COLOR", "1")
            .env("RUST_BACKTRACE", "1")
            .env_remove("NOTIFY_SOCKET")
            .envs(self.options.env.iter().map(|(key, value)| (key, value)));
        command
    }

    // --- Controller ---------------------------------------------------------

    /// Starts the controller, with a trap if it is to be killed on its way up.
    pub fn start_controller(&mut self, trap: Option<Trap>) {
        self.controller = None;
        let mut command = self.command(&self.binaries.controller());
        command.args(["run", "--config"]).arg(self.controller_config());
        self.controller = Some(Process::start("controller", command, trap));
    }

    /// The controller's process.
    #[must_use]
    pub fn controller(&self) -> &Process {
        self.controller.as_ref().expect("the controller was started")
    }

    /// kill -9.
    pub fn kill_controller(&mut self) {
        if let Some(process) = self.controller.take() {
            process.kill();
        }
    }

    /// SIGTERM, and waits for a clean end.
    pub fn stop_controller(&mut self) {
        if let Some(process) = self.controller.take() {
            let status = process.terminate();
            assert!(
                status.success(),
                "the controller ended with {status} after SIGTERM\n{}",
                process.tail(40)
            );
        }
    }

    /// Waits until the controller answers.
    pub fn wait_ready(&self) {
        wait::until("the controller to answer", || {
            let controller = self.controller();
            if let Some(status) = controller.exited() {
                panic!("the controller ended with {status}\n{}", controller.tail(40));
            }
            (self.ctl(["status"]).code == 0).then_some(())
        });
    }

    // --- Agents -------------------------------------------------------------

    /// Token, join and start of a new agent that may read `allow`; returns once it is connected.
    pub fn add_agent(&mut self, name: &str, allow: &[&Path]) {
        self.join_agent(name, allow);
        self.start_agent(name, None);
        self.wait_connected(name);
    }

    /// Token and join, without starting it.
    pub fn join_agent(&mut self, name: &str, allow: &[&Path]) {
        let token = self.dir.path().join(format!("{name}.token"));
        let _ = self
            .ctl([
                OsStr::new("token"),
                OsStr::new("create"),
                OsStr::new(name),
                OsStr::new("--out"),
                token.as_os_str(),
            ])
            .ok();
        self.rejoin_agent(name, &token, allow);
    }

    /// Joins with a token that the test made, into the agent's usual directories.
    pub fn rejoin_agent(&mut self, name: &str, token: &Path, allow: &[&Path]) {
        let base = self
            .options
            .agents_dir
            .clone()
            .unwrap_or_else(|| self.dir.path().join("agents"));
        let state_dir = base.join(name);
        let config = self.dir.path().join(format!("{name}.toml"));
        let mut command = self.command(&self.binaries.agent());
        command.args(["join", "--token-file"]).arg(token);
        for path in allow {
            command.arg("--allow").arg(path);
        }
        command
            .arg("--config")
            .arg(&config)
            .arg("--state-dir")
            .arg(&state_dir);
        let _ = Output::of(command).ok();
        self.adjust_agent_toml(&config);
        let agent = Agent {
            name: name.into(),
            config,
            state_dir,
            process: None,
        };
        self.agents.insert(name.into(), agent);
    }

    /// Our telemetry, and a restore target for tests that restore onto the agent's host.
    fn adjust_agent_toml(&self, config: &Path) {
        let mut table: toml::Table = fs::read_to_string(config).unwrap().parse().unwrap();
        let telemetry: toml::Table = self.telemetry_toml().parse().unwrap();
        table.extend(telemetry);
        let target = self
            .dir
            .path()
            .join("agent-restores")
            .to_string_lossy()
            .into_owned();
        table.insert(
            "restore_targets".into(),
            toml::Value::Array(vec![toml::Value::String(target)]),
        );
        let settings = self.options.pipeline.iter();
        let pipeline: toml::Table = settings
            .map(|(name, value)| (name.clone(), toml::Value::Integer(*value)))
            .collect();
        table.insert("pipeline".into(), toml::Value::Table(pipeline));
        fs::write(config, toml::to_string(&table).unwrap()).unwrap();
    }

    /// Starts a joined agent, with a trap if it is to be killed in some phase.
    pub fn start_agent(&mut self, name: &str, trap: Option<Trap>) {
        let mut command = self.command(&self.binaries.agent());
        let agent = self.agents.get_mut(name).expect("a joined agent");
        agent.process = None;
        command.args(["run", "--config"]).arg(&agent.config);
        agent.process = Some(Process::start(name, command, trap));
    }

    /// A joined agent.
    #[must_use]
    pub fn agent(&self, name: &str) -> &Agent {
        self.agents.get(name).expect("a joined agent")
    }

    /// The process of a started agent.
    #[must_use]
    pub fn agent_process(&self, name: &str) -> &Process {
        self.agent(name).process.as_ref().expect("a started agent")
    }

    /// kill -9.
    pub fn kill_agent(&mut self, name: &str) {
        if let Some(process) = self.agents.get_mut(name).and_then(|agent| agent.process.take()) {
            process.kill();
        }
    }

    /// Waits until the controller has the agent's control stream.
    pub fn wait_connected(&self, name: &str) {
        wait::until(&format!("agent {name} to connect"), || {
            if let Some(process) = &self.agent(name).process
                && let Some(status) = process.exited()
            {
                panic!("agent {name} ended with {status}\n{}", process.tail(40));
            }
            self.is_connected(name).then_some(())
        });
    }

    /// Whether the controller has the agent's control stream now.
    #[must_use]
    pub fn is_connected(&self, name: &str) -> bool {
        let output = self.ctl(["get", "agents", "-o", "json"]);
        output.code == 0
            && output
                .rows()
                .iter()
                .any(|row| row["name"] == name && row["connected"] == true)
    }

    // --- Operator -----------------------------------------------------------

    /// Runs `holdfastctl` to its end.
    pub fn ctl<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        let mut command = self.command(&self.binaries.ctl());
        command.args(args);
        Output::of(command)
    }

    /// Declares a source of one directory.
    pub fn apply_source(&self, source: &str, root: &Path) {
        self.apply(&source_document(source, root, &[]));
    }

    /// Applies a document.
    pub fn apply(&self, document: &str) {
        let file = self.dir.path().join("applied.yaml");
        fs::write(&file, document).unwrap();
        let _ = self
            .ctl([OsStr::new("apply"), OsStr::new("-f"), file.as_os_str()])
            .ok();
    }

    /// Backs up and waits for the end, whatever it is.
    pub fn backup(&self, source: &str) -> Output {
        self.ctl(["backup", "run", source, "--wait"])
    }

    /// Restores `what` (source, source@snapshot …) to a directory of this machine.
    pub fn restore(&self, what: &str, to: &Path) -> Output {
        self.ctl([
            OsStr::new("restore"),
            OsStr::new(what),
            OsStr::new("--to"),
            to.as_os_str(),
        ])
    }

    /// Ids of the visible snapshots of a source, newest first.
    #[must_use]
    pub fn snapshots(&self, source: &str) -> Vec<String> {
        self.ctl(["get", "snapshots", "-o", "json"])
            .ok()
            .rows()
            .iter()
            .filter(|row| row["source"] == source && row["state"] == "visible")
            .map(|row| row["id"].as_str().expect("a snapshot's id").to_string())
            .collect()
    }

    /// Restores a snapshot of a one-root source into a fresh directory, compares, and removes it again.
    pub fn assert_restores(&self, what: &str, source_root: &Path, expected: &tree::Tree) {
        let target = tempfile::Builder::new()
            .prefix("restore-")
            .tempdir_in(self.dir.path())
            .unwrap();
        let to = target.path().join("to");
        let _ = self.restore(what, &to).ok();
        tree::assert_same(what, expected, &tree::read(&restored_root(&to, source_root)));
    }
}

/// Where a restore puts the content of a source's root.
#[must_use]
pub fn restored_root(target: &Path, source_root: &Path) -> PathBuf {
    target.join(source_root.strip_prefix("/").expect("an absolute root"))
}

/// A source document of one root.
#[must_use]
pub fn source_document(source: &str, root: &Path, exclude: &[&str]) -> String {
    let exclude: String = exclude
        .iter()
        .map(|pattern| format!("\n    - {pattern:?}"))
        .collect();
    let exclude = if exclude.is_empty() {
        String::new()
    } else {
        format!("  exclude:{exclude}\n")
    };
    format!("kind: Source\nname: {source}\nfiles:\n  roots:\n    - {root:?}\n{exclude}")
}

/// A port that was free a moment ago.
#[must_use]
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a free port")
        .port()
}
