//! The peers as their users call them: encrypted, at their defaults; and plain copies as limits.

use super::measure::{self, Cost};
use anyhow::{Context as _, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// One tool under measurement, with a fresh repository for one source.
pub trait Tool {
    /// Name in the table.
    fn name(&self) -> &'static str;
    /// Whether it only shows what the machine can do, without encryption or deduplication.
    fn is_limit(&self) -> bool {
        false
    }
    /// Makes an empty repository; not measured.
    fn prepare(&mut self) -> anyhow::Result<()>;
    /// Backs the source up. `None`: this tool has no such step.
    fn backup(&mut self, step: Step) -> anyhow::Result<Option<Cost>>;
    /// Restores the latest backup below `to`. Returns the cost and where the source's root is then.
    fn restore(&mut self, to: &Path) -> anyhow::Result<(Cost, PathBuf)>;
    /// Where what it restores from lies.
    fn repository(&self) -> PathBuf;
    /// Bytes in the repository.
    fn stored(&self) -> u64;
    /// Removes the repository.
    fn finish(&mut self) -> anyhow::Result<()>;
}

/// Which backup of a source it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Into an empty repository.
    First,
    /// Nothing changed since.
    Unchanged,
    /// After edits, or after pages were rewritten.
    Changed,
}

/// Peers by name.
pub const PEERS: &[&str] = &["restic", "borg", "rustic", "rsync", "cp", "tar-zstd"];

/// A peer or limit for one source, with its files below `dir`.
#[derive(Debug)]
pub struct Peer {
    name: &'static str,
    source: PathBuf,
    repo: PathBuf,
    home: PathBuf,
    backups: u32,
    /// rsync keeps no history: what it stored is what it sent.
    sent: u64,
}

const PASSWORD: &str = "bench";

impl Peer {
    /// `name` is one of [`PEERS`].
    ///
    /// # Errors
    /// The program is not installed.
    pub fn new(name: &'static str, source: &Path, dir: &Path) -> anyhow::Result<Self> {
        for program in name.split('-') {
            let found = std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
            if !found {
                bail!("{program} is missing: run integration/run.sh --bench, which installs it");
            }
        }
        Ok(Self {
            name,
            source: source.to_path_buf(),
            repo: dir.join(format!("{name}-repo")),
            home: dir.join(format!("{name}-home")),
            backups: 0,
            sent: 0,
        })
    }

    /// A command whose caches and configuration stay inside the bench's directory.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", &self.home)
            .env("XDG_CACHE_HOME", self.home.join("cache"))
            .env("XDG_CONFIG_HOME", self.home.join("config"))
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("RESTIC_REPOSITORY", &self.repo)
            .env("BORG_PASSPHRASE", PASSWORD)
            .env("BORG_REPO", &self.repo)
            .env("BORG_BASE_DIR", &self.home)
            .env("RUSTIC_PASSWORD", PASSWORD)
            .env("RUSTIC_REPOSITORY", &self.repo)
            .env("RUSTIC_NO_PROGRESS", "true")
            .current_dir(self.source.parent().unwrap_or(Path::new("/")));
        command
    }

    fn source_name(&self) -> &Path {
        Path::new(self.source.file_name().unwrap_or_default())
    }

    fn measure(&self, command: Command) -> anyhow::Result<Cost> {
        measure::run(self.name, command, &[])
    }

    fn archive(&self) -> PathBuf {
        self.repo.join("archive.tar.zst")
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = self.command("bash");
        command.args(["-o", "pipefail", "-c", script]);
        command
            .env("SOURCE", self.source_name())
            .env("ARCHIVE", self.archive());
        command
    }

    fn rsync(&mut self, step: Step) -> anyhow::Result<Cost> {
        let mut command = self.command("rsync");
        command.args(["-a", "--delete", "--stats"]);
        if step == Step::Changed && self.source.is_file() {
            // Between two disks rsync copies whole files; this is what it would do over a wire.
            command.arg("--no-whole-file");
            if self.source_name() == Path::new("image") {
                // Pages stay in their places; where content moves, writing in place destroys what it needs.
                command.arg("--inplace");
            }
        }
        command.arg(self.source_name()).arg(&self.repo);
        let cost = self.measure(command)?;
        let sent = cost
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("Total bytes sent: "))
            .context("rsync printed no bytes sent")?;
        self.sent += sent.replace([',', '.'], "").trim().parse::<u64>()?;
        Ok(cost)
    }
}

impl Tool for Peer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_limit(&self) -> bool {
        matches!(self.name, "rsync" | "cp" | "tar-zstd")
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.home)?;
        let mut command = match self.name {
            "restic" => {
                let mut command = self.command("restic");
                command.args(["init", "-q"]);
                command
            }
            "borg" => {
                let mut command = self.command("borg");
                command.args(["init", "-e", "repokey"]);
                command
            }
            "rustic" => {
                let mut command = self.command("rustic");
                command.arg("init");
                command
            }
            _ => {
                fs::create_dir_all(&self.repo)?;
                return Ok(());
            }
        };
        let output = command.output().with_context(|| format!("start {}", self.name))?;
        if !output.status.success() {
            bail!("{} init: {}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn backup(&mut self, step: Step) -> anyhow::Result<Option<Cost>> {
        self.backups += 1;
        let command = match self.name {
            "restic" => {
                let mut command = self.command("restic");
                command.args(["backup", "-q"]).arg(self.source_name());
                command
            }
            "borg" => {
                let mut command = self.command("borg");
                command
                    .args(["create", &format!("::b{}", self.backups)])
                    .arg(self.source_name());
                command
            }
            "rustic" => {
                let mut command = self.command("rustic");
                command.args(["backup"]).arg(self.source_name());
                command
            }
            "rsync" => return self.rsync(step).map(Some),
            // A limit for restores alone.
            "cp" => return Ok(None),
            _ if step == Step::First => self.shell("tar -cf - \"$SOURCE\" | zstd -q -3 -T2 -o \"$ARCHIVE\""),
            _ => return Ok(None),
        };
        self.measure(command).map(Some)
    }

    fn restore(&mut self, to: &Path) -> anyhow::Result<(Cost, PathBuf)> {
        let root = to.join(self.source_name());
        let command = match self.name {
            "restic" => {
                let mut command = self.command("restic");
                command.args(["restore", "-q", "latest", "--target"]).arg(to);
                command
            }
            "borg" => {
                let mut command = self.command("borg");
                command
                    .args(["extract", &format!("::b{}", self.backups)])
                    .current_dir(to);
                command
            }
            "rustic" => {
                let mut command = self.command("rustic");
                command.args(["restore", "latest"]).arg(to);
                command
            }
            "rsync" => {
                let mut command = self.command("rsync");
                command.arg("-a").arg(self.repo.join(self.source_name())).arg(to);
                command
            }
            "cp" => {
                let mut command = self.command("cp");
                command.args(["-a", "--sparse=auto"]).arg(&self.source).arg(to);
                command
            }
            _ => {
                let mut command = self.shell("zstd -q -d -c \"$ARCHIVE\" | tar -xf - -C \"$TO\"");
                command.env("TO", to);
                command
            }
        };
        Ok((self.measure(command)?, root))
    }

    fn repository(&self) -> PathBuf {
        if self.name == "cp" {
            self.source.clone()
        } else {
            self.repo.clone()
        }
    }

    fn stored(&self) -> u64 {
        if self.name == "rsync" {
            self.sent
        } else {
            measure::stored_bytes(&self.repo)
        }
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        for dir in [&self.repo, &self.home] {
            if dir.exists() {
                fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
            }
        }
        (self.backups, self.sent) = (0, 0);
        Ok(())
    }
}
