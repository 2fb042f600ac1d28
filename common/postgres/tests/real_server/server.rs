//! A real PostgreSQL 15 server in a temporary directory, and sessions with it.
//!
//! Servers refuse to run as root: then they run as the user `postgres`, which Debian's package makes.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(300);
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

/// A command for one of the server's programs.
pub fn program(name: &str) -> Command {
    let path = Path::new(PROGRAMS).join(name);
    assert!(
        path.exists(),
        "{} is missing: install Debian's package postgresql-15, or run integration/run.sh once",
        path.display()
    );
    let mut command = if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    // Texts in English, and no directory that the other user may not enter.
    command.env("LC_ALL", "C").current_dir("/");
    command
}

/// Runs a command that must succeed, and returns what it said.
pub fn said_by(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Gives files that this test made to the user that servers run as.
pub fn give_to_server(path: &Path) {
    if is_root() {
        said_by(Command::new("chown").args(["-hR", "postgres:"]).arg(path));
    }
}

/// Asks until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A directory that servers may use, for data directories, sockets and tablespaces.
pub fn directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("holdfast-pg-").tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    give_to_server(directory.path());
    directory
}

/// A directory in it.
pub fn subdirectory(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    fs::create_dir_all(&path).unwrap();
    give_to_server(&path);
    path
}

/// A cluster; running or not. What runs is stopped at the end.
pub struct Server {
    pub data: PathBuf,
    directory: PathBuf,
    port: u16,
}

impl Server {
    /// Makes a cluster with checksums that keeps still: nothing changes but by what the test does.
    pub fn make(directory: &Path, settings: &str) -> Self {
        let data = directory.join("data");
        said_by(
            program("initdb")
                .args([
                    "-k",
                    "-N",
                    "-U",
                    "postgres",
                    "-A",
                    "trust",
                    "-E",
                    "UTF8",
                    "--locale=C",
                    "-D",
                ])
                .arg(&data),
        );
        let file = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&file).unwrap();
        text.push_str(&format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nautovacuum = off\n\
             shared_buffers = 16MB\nmax_connections = 20\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n{settings}",
            directory.display()
        ));
        fs::write(&file, text).unwrap();
        Self::of(directory, data, 5432)
    }

    /// A cluster whose files are already there, with a port of its own in its settings.
    pub fn of(directory: &Path, data: PathBuf, port: u16) -> Self {
        Self {
            data,
            directory: directory.to_path_buf(),
            port,
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.port))
    }

    fn control(&self, arguments: &[&str]) -> Command {
        let mut command = program("pg_ctl");
        let patience = PATIENCE.as_secs().to_string();
        command
            .args(["-w", "-s", "-t", &patience, "-D"])
            .arg(&self.data)
            .args(arguments);
        command
    }

    /// Starts it and waits until it takes connections.
    pub fn start(&self) {
        let log = self.log();
        let mut command = self.control(&["start", "-l"]);
        // Output into files: a server keeps pipes of its starter open.
        let status = command
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(
            status.success(),
            "{}",
            fs::read_to_string(log).unwrap_or_default()
        );
    }

    /// Stops it in order.
    pub fn stop(&self) {
        said_by(&mut self.control(&["stop", "-m", "fast"]));
    }

    pub fn session(&self) -> Session {
        Session::open(&self.directory, self.port)
    }

    /// A program of PostgreSQL with what it needs to connect.
    pub fn client(&self, name: &str) -> Command {
        let mut command = program(name);
        command
            .args(["-U", "postgres", "-p", &self.port.to_string(), "-h"])
            .arg(&self.directory);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists() {
            // A test that failed has other worries than one more error here.
            let _ = self.control(&["stop", "-m", "immediate"]).output();
        }
    }
}

/// One connection, open until it is dropped.
pub struct Session {
    client: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Session {
    fn open(directory: &Path, port: u16) -> Self {
        let mut client = Command::new(Path::new(PROGRAMS).join("psql"))
            .args([
                "-X",
                "-A",
                "-t",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-h",
            ])
            .arg(directory)
            .args(["-p", &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(client.stdout.take().unwrap());
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let input = client.stdin.take();
        Self { client, input, lines }
    }

    /// Runs statements and returns the rows that they gave, columns divided by `|`.
    pub fn run(&mut self, statements: &str) -> Vec<String> {
        const END: &str = "-- that was all --";
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{statements}\n;\\echo '{END}'").unwrap();
        input.flush().unwrap();
        let mut rows = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line == END => return rows,
                Ok(line) => rows.push(line),
                Err(error) => panic!("{error} after {rows:?} of {statements}"),
            }
        }
    }

    /// The one value that a statement gives.
    pub fn value(&mut self, statement: &str) -> String {
        let mut rows = self.run(statement);
        assert_eq!(rows.len(), 1, "{statement}: {rows:?}");
        rows.remove(0)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.client.wait();
    }
}
