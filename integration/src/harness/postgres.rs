//! A PostgreSQL server of a test's own: PostgreSQL 15 with a socket in the test's directory and no address.

use super::{Output, Process, process::dying_as};
use crate::wait;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Where the programs of the tested version are.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// Whom servers run as when a test runs as root: they refuse to run as root.
const USER: &str = "postgres";
/// Names the socket; nothing listens at an address.
const PORT: &str = "5432";

/// A server and its data directory.
#[derive(Debug)]
pub struct Server {
    process: Option<Process>,
    data: PathBuf,
    socket: PathBuf,
    /// Another process started it, and it must not outlive the test either.
    is_adopted: bool,
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_adopted {
            let _ = Output::of(self.pg_ctl(&["stop", "--mode=immediate"]));
        }
    }
}

impl Server {
    /// A directory that the server's user can reach and write to, made below the system's temporary directory: paths
    /// of sockets are short.
    #[must_use]
    pub fn base() -> tempfile::TempDir {
        let dir = tempfile::Builder::new()
            .prefix("holdfast-pg-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .expect("a temporary directory");
        own(dir.path());
        dir
    }

    /// A directory of the server's user.
    pub fn make_dir(path: &Path) {
        fs::create_dir_all(path).unwrap();
        own(path);
    }

    /// A fresh cluster with data checksums, that trusts everybody who reaches its socket.
    #[must_use]
    pub fn init(base: &Path, name: &str) -> Self {
        let server = Self::at(&base.join(name), &base.join(format!("{name}.socket")));
        let mut command = program("initdb");
        command
            .args([
                "--auth=trust",
                "--data-checksums",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .args(["--no-sync", "--username", USER, "--pgdata"])
            .arg(&server.data);
        let _ = Output::of(command).ok();
        server
    }

    /// A standby that streams from this server; not started.
    #[must_use]
    pub fn standby(&self, base: &Path, name: &str) -> Self {
        let standby = Self::at(&base.join(name), &base.join(format!("{name}.socket")));
        let mut command = self.client("pg_basebackup");
        command
            .args([
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
                "--pgdata",
            ])
            .arg(&standby.data);
        let _ = Output::of(command).ok();
        standby
    }

    /// The cluster in a directory; not started.
    #[must_use]
    pub fn at(data: &Path, socket: &Path) -> Self {
        Self::make_dir(socket);
        Self {
            process: None,
            data: data.to_path_buf(),
            socket: socket.to_path_buf(),
            is_adopted: false,
        }
    }

    /// One that somebody else started, with [`Self::options`].
    #[must_use]
    pub fn adopt(mut self) -> Self {
        self.is_adopted = true;
        self
    }

    /// What a server must be told to be reached.
    #[must_use]
    pub fn options(&self) -> String {
        format!(
            "-c listen_addresses= -c port={PORT} -c unix_socket_directories={}",
            self.socket.display()
        )
    }

    fn pg_ctl(&self, args: &[&str]) -> Command {
        let mut command = program("pg_ctl");
        command.args(args).arg("--pgdata").arg(&self.data);
        command
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// How clients and agents reach it.
    #[must_use]
    pub fn connection(&self) -> String {
        format!(
            "host={} port={PORT} user={USER} dbname=postgres",
            self.socket.display()
        )
    }

    /// Starts it, without waiting.
    pub fn launch(&mut self) {
        let mut command = program("postgres");
        command
            .arg("-D")
            .arg(&self.data)
            .args(["-c", "listen_addresses="]);
        command.arg("-c").arg(format!("port={PORT}"));
        command
            .arg("-c")
            .arg(format!("unix_socket_directories={}", self.socket.display()));
        self.process = Some(Process::start("postgres", command, None));
    }

    /// Starts it, and waits until it accepts connections.
    pub fn start(&mut self) {
        self.launch();
        wait::until("the server to accept connections", || {
            let process = self.process();
            if let Some(status) = process.exited() {
                panic!("the server ended with {status}\n{}", process.tail(40));
            }
            (self.try_query("SELECT 1").code == 0).then_some(())
        });
    }

    /// Starts it where it must not start; panics if it accepts connections, and gives the end of its log.
    pub fn fails_to_start(&mut self) -> String {
        self.launch();
        let log = wait::until("the server to end", || {
            assert_ne!(self.try_query("SELECT 1").code, 0, "the server started");
            self.process().exited().map(|status| {
                assert!(!status.success());
                self.process().tail(40)
            })
        });
        self.process = None;
        log
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("a started server")
    }

    /// kill -9: what `pg_ctl stop -m immediate` does at its worst.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends it in order, once its clients are gone.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.is_adopted) {
            let _ = Output::of(self.pg_ctl(&["stop", "--mode=fast"])).ok();
        }
        if let Some(process) = self.process.take() {
            let status = process.terminate();
            assert!(
                status.success(),
                "the server ended with {status}\n{}",
                process.tail(40)
            );
        }
    }

    /// Runs a statement; what it gives, without headers.
    #[must_use]
    pub fn query(&self, statement: &str) -> String {
        self.try_query(statement).ok().text().trim().to_owned()
    }

    /// The same for statements that give one number.
    #[must_use]
    pub fn number(&self, statement: &str) -> i64 {
        let text = self.query(statement);
        text.parse()
            .unwrap_or_else(|e| panic!("{statement}: {text:?} is no number: {e}"))
    }

    /// Runs statements that give nothing.
    pub fn execute(&self, statements: &str) {
        let _ = self.try_query(statements).ok();
    }

    fn try_query(&self, statement: &str) -> Output {
        let mut command = self.client("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement]);
        Output::of(command)
    }

    /// A client program that reaches it.
    #[must_use]
    pub fn client(&self, name: &str) -> Command {
        let mut command = program(name);
        command
            .env("PGHOST", &self.socket)
            .env("PGPORT", PORT)
            .env("PGUSER", USER)
            .env("PGDATABASE", "postgres")
            .env("PGCONNECT_TIMEOUT", "10");
        command
    }
}

/// A program that a server runs: as its user, in its data directory.
#[must_use]
pub fn as_server(server: &Server, path: &Path) -> Command {
    let mut command = dying_as(is_root().then_some(USER), path);
    command.current_dir(server.data());
    command
}

/// A program of PostgreSQL, run as its user.
fn program(name: &str) -> Command {
    let path = Path::new(PROGRAMS).join(name);
    assert!(
        path.exists(),
        "{} is missing: install postgresql-15",
        path.display()
    );
    dying_as(is_root().then_some(USER), &path)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn own(path: &Path) {
    if is_root() {
        let mut command = Command::new("chown");
        command.arg(format!("{USER}:")).arg(path);
        let _ = Output::of(command).ok();
    }
}
