//! pgBackRest as its users set it: encrypted, zstd at its level 3, small files bundled, both cores.

use crate::harness::{Output, Server, as_server};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// One configuration over the repository of a directory.
pub(super) struct PgBackRest {
    base: PathBuf,
    config: PathBuf,
}

impl PgBackRest {
    /// Writes its configuration `NAME.conf`, with `lines` more in the global section.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(base: &Path, server: &Server, name: &str, lines: &str) -> anyhow::Result<Self> {
        let this = Self {
            base: base.to_path_buf(),
            config: base.join(format!("{name}.conf")),
        };
        let connection = server.connection();
        let value = |key: &str| {
            let found = connection
                .split(' ')
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_default().to_owned()
        };
        let text = format!(
            "[global]\nrepo1-path={repository}\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=bench\nrepo1-bundle=y\n\
             repo1-retention-full=9\ncompress-type=zst\ncompress-level=3\nprocess-max=2\nlog-level-console=warn\n\
             log-level-file=off\nlock-path={work}/lock\nspool-path={work}/spool\nstart-fast=y\narchive-check=n\n{lines}\n\
             [main]\npg1-path={data}\npg1-port={port}\npg1-socket-path={host}\npg1-user={user}\n",
            repository = this.repository().display(),
            work = this.work().display(),
            data = server.data().display(),
            port = value("port"),
            host = value("host"),
            user = value("user"),
        );
        fs::write(&this.config, text)?;
        Ok(this)
    }

    /// An empty repository of this server.
    ///
    /// # Errors
    /// When the old one cannot be removed.
    pub fn create(&self, server: &Server) -> anyhow::Result<()> {
        for dir in [self.repository(), self.work()] {
            if dir.exists() {
                fs::remove_dir_all(&dir)?;
            }
            Server::make_dir(&dir);
        }
        let _ = Output::of(self.command(server, &["stanza-create"])).ok();
        Ok(())
    }

    /// Where its backups and WAL lie.
    pub fn repository(&self) -> PathBuf {
        self.base.join("pgbackrest-repository")
    }

    fn work(&self) -> PathBuf {
        self.base.join("pgbackrest-work")
    }

    /// A call, as the server's user.
    pub fn command(&self, server: &Server, args: &[&str]) -> Command {
        let mut command = as_server(server, Path::new("/usr/bin/pgbackrest"));
        command.arg(format!("--config={}", self.config.display()));
        command.arg("--stanza=main").args(args);
        command
    }

    /// A call as the server makes it.
    pub fn line(&self, what: &str) -> String {
        format!(
            "pgbackrest --config={} --stanza=main {what}",
            self.config.display()
        )
    }
}
