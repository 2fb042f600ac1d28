//! Restores: into memory, to disk, and in place over small damage.

use super::{Bench, Round, Tool, archiving, measure, residents};
use crate::harness::{Server, as_server};
use anyhow::bail;
use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Places in the largest files that are overwritten before a restore in place.
const DAMAGES: u64 = 50;

/// Where to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Memory,
    Disk,
    Damaged,
}

impl To {
    /// In this order, the last one over what the one before left.
    const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::Damaged];

    const fn step(self) -> &'static str {
        match self {
            Self::Memory => "restore to memory",
            Self::Disk => "restore to disk",
            Self::Damaged => "restore in place",
        }
    }
}

impl Bench {
    pub(super) fn restores(&mut self, tool: Tool, round: &Round) -> anyhow::Result<()> {
        let (memory, disk) = (self.place.restores.join("to"), self.base.join("restored"));
        for to in To::ALL {
            let dir = if to == To::Memory { &memory } else { &disk };
            match to {
                To::Damaged => damage(dir)?,
                To::Memory | To::Disk => Server::make_dir(dir),
            }
            rustix::fs::sync();
            // Last: what is not used at once may be given back to the host again.
            self.place.warm(self.report.sources["postgres"])?;
            let Some(command) = self.restore(tool, round, to, dir) else {
                break;
            };
            let cost = measure::run(tool.name(), command, &residents(tool, &round.cluster, false))?;
            self.note(to.step(), tool.name(), cost, None);
            if to == To::Memory {
                self.check(tool, round, dir)?;
                fs::remove_dir_all(dir)?;
            }
        }
        if disk.exists() {
            fs::remove_dir_all(&disk)?;
        }
        Ok(())
    }

    /// `None` if the tool has no such step.
    fn restore(&self, tool: Tool, round: &Round, to: To, dir: &Path) -> Option<Command> {
        match tool {
            Tool::Holdfast => {
                let mut command = round.cluster.command(&round.cluster.binaries().ctl());
                let what = format!("{}@latest", archiving::SOURCE);
                command.args(["restore", &what, "--to"]).arg(dir);
                if to == To::Damaged {
                    command.arg("--in-place");
                }
                Some(command)
            }
            Tool::PgBackRest => {
                let path = format!("--pg1-path={}", dir.display());
                let delta = if to == To::Damaged {
                    "--delta"
                } else {
                    "--no-delta"
                };
                Some(self.theirs.command(&self.server, &[&path, delta, "restore"]))
            }
            Tool::BaseBackup | Tool::Zstd if to == To::Damaged => None,
            // Both others sync what they restored before they say that it is there; tar does not.
            Tool::BaseBackup => {
                let archive = self.repository(tool).join("backup/base.tar.zst");
                Some(self.unpack(&archive, dir))
            }
            Tool::Zstd => Some(self.unpack(&self.repository(tool).join("cluster.tar.zst"), dir)),
        }
    }

    fn unpack(&self, archive: &Path, dir: &Path) -> Command {
        let mut command = as_server(&self.server, Path::new("/bin/bash"));
        command.args(["-c", "tar -I 'zstd -T2' -xf \"$0\" -C \"$1\" && sync -f \"$1\""]);
        command.arg(archive).arg(dir);
        command
    }

    /// A fast restore of half the rows would be none.
    fn check(&self, tool: Tool, round: &Round, dir: &Path) -> anyhow::Result<()> {
        if tool != Tool::Holdfast || round.number > 0 {
            return Ok(());
        }
        let socket: PathBuf = self.base.join("restored.socket");
        let mut restored = Server::at(dir, &socket);
        restored.start();
        let found = restored.number("SELECT count(*) FROM orders");
        restored.stop();
        if found != i64::try_from(self.rows)? {
            bail!("{found} rows of {} came back", self.rows);
        }
        Ok(())
    }
}

/// Overwrites pages all over the largest files of a restored cluster.
fn damage(dir: &Path) -> anyhow::Result<()> {
    let mut files = Vec::new();
    let mut pending = vec![dir.join("base")];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let about = entry.metadata()?;
            if about.is_dir() {
                pending.push(entry.path());
            } else if about.len() > 64 << 20 {
                files.push((entry.path(), about.len()));
            }
        }
    }
    let mut noise = [0; 8192];
    File::open("/dev/urandom")?.read_exact(&mut noise)?;
    for (path, len) in &files {
        let file = File::options().write(true).open(path)?;
        let each = DAMAGES.div_ceil(files.len() as u64);
        for at in 0..each {
            file.write_all_at(&noise, (len / each * at) / 8192 * 8192)?;
        }
    }
    Ok(())
}
