//! A PostgreSQL server of its own, below a temporary directory, reached by its socket.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const BIN: &str = "/usr/lib/postgresql/15/bin";

pub struct Server {
    dir: tempfile::TempDir,
    data: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop("immediate");
    }
}

impl Server {
    /// A running one with small WAL segments, whose pages carry checksums.
    pub fn new() -> Self {
        Self::with(&["--data-checksums"], "")
    }

    /// The same with these arguments for `initdb` and these lines of configuration.
    pub fn with(arguments: &[&str], lines: &str) -> Self {
        let server = Self::made();
        let data = server.data.to_str().unwrap();
        let all = [
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "--wal-segsize=1",
        ];
        run(program("initdb").args(all).args(arguments));
        server.configure(&format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nautovacuum = off\n\
             max_wal_size = 64MB\nmin_wal_size = 2MB\n{lines}",
            server.dir().display()
        ));
        server.start();
        server
    }

    /// One whose data directory was put there by `fill`.
    pub fn of(fill: impl FnOnce(&Path)) -> Self {
        let server = Self::made();
        fs::create_dir(&server.data).unwrap();
        fill(&server.data);
        run(Command::new("chmod").arg("0700").arg(&server.data));
        server.own(&server.data);
        server.configure(&format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\n",
            server.dir().display()
        ));
        server
    }

    /// A standby that streams from a primary.
    pub fn standby_of(primary: &Self) -> Self {
        let server = Self::made();
        let data = server.data.to_str().unwrap();
        let fixed = [
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
            "-D",
            data,
        ];
        run(program("pg_basebackup").args(primary.reach()).args(fixed));
        server.configure(&format!("unix_socket_directories = '{}'", server.dir().display()));
        server.start();
        server
    }

    fn made() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let server = Self {
            data: dir.path().join("data"),
            dir,
        };
        server.own(server.dir());
        server
    }

    /// Gives a path to whoever servers run as.
    pub fn own(&self, path: &Path) {
        if is_root() {
            run(Command::new("chown").arg("-R").arg("postgres:").arg(path));
        }
    }

    /// A directory beside the data that the server may write to.
    pub fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.dir().join(name);
        fs::create_dir(&path).unwrap();
        self.own(&path);
        path
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Adds lines that hold from the next start on.
    pub fn configure(&self, lines: &str) {
        let path = self.data.join("postgresql.conf");
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{before}\n{lines}\n")).unwrap();
    }

    pub fn start(&self) {
        let log = self.dir().join("server.log");
        let (data, log) = (self.data.to_str().unwrap(), log.to_str().unwrap());
        let mut start = program("pg_ctl");
        start.args(["-D", data, "-l", log, "-w", "-s", "start"]);
        // Its output would stay open as long as the server.
        start.stdout(Stdio::null()).stderr(Stdio::null());
        assert!(start.status().unwrap().success(), "{}", self.log());
    }

    pub fn stop(&self, mode: &str) {
        let data = self.data.to_str().unwrap();
        let mut stop = program("pg_ctl");
        stop.args(["-D", data, "-m", mode, "-w", "-s", "stop"])
            .stderr(Stdio::null());
        let _ = stop.status();
    }

    /// What `psql` prints of it, unaligned.
    pub fn sql(&self, text: &str) -> String {
        let mut psql = program("psql");
        psql.args(self.reach())
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
        String::from_utf8(run(&mut psql).stdout)
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Arguments by which clients reach it.
    pub fn reach(&self) -> [String; 4] {
        let dir = self.dir().to_str().unwrap().to_owned();
        ["-h".into(), dir, "-U".into(), "postgres".into()]
    }

    /// The file of a relation, below the data directory.
    pub fn file_of(&self, relation: &str) -> PathBuf {
        self.sql("CHECKPOINT");
        self.data
            .join(self.sql(&format!("SELECT pg_relation_filepath('{relation}')")))
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("server.log")).unwrap_or_default()
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program of the server's, run as servers are.
pub fn program(name: &str) -> Command {
    let path = Path::new(BIN).join(name);
    assert!(
        path.exists(),
        "{} is missing: install PostgreSQL 15",
        path.display()
    );
    let mut command = if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    command.stdin(Stdio::null()).current_dir("/");
    command
}

pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}
