//! Programs of PostgreSQL, run as whom a cluster belongs to, and where asked without any network.

use crate::{RestoreError, Result};
use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

/// Whom a directory belongs to: servers run as nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    /// The user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// What a program reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// What every process on this machine does.
    Shared,
    /// Nothing: it runs in a network namespace of its own. Sockets in the file system work.
    None,
}

impl RunAs {
    /// The owner of a directory.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn owner_of(dir: &Path) -> Result<Self> {
        let about = fs::metadata(dir).map_err(|source| RestoreError::Io {
            doing: "look at",
            what: dir.display().to_string(),
            source,
        })?;
        Ok(Self {
            uid: about.uid(),
            gid: about.gid(),
        })
    }

    /// A program, run as the owner where this process may.
    #[must_use]
    pub fn command(self, program: &Path, network: Network) -> Command {
        let is_root = rustix::process::geteuid().is_root();
        let mut command = match network {
            Network::Shared => {
                let mut command = Command::new(program);
                if is_root {
                    command.uid(self.uid).gid(self.gid);
                }
                command
            }
            Network::None => {
                let mut command = Command::new("unshare");
                command.args(self.unshare_arguments(is_root)).arg(program);
                command
            }
        };
        command.stdin(Stdio::null());
        command
    }

    /// A namespace needs a privilege: root has it, and gives itself up only then; others have it in a namespace of users.
    fn unshare_arguments(self, is_root: bool) -> Vec<String> {
        let texts: &[&str] = if is_root {
            &["--net", "--", "setpriv", "--clear-groups", "--no-new-privs"]
        } else {
            &["--user", "--map-current-user", "--net", "--"]
        };
        let mut arguments: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        if is_root {
            arguments.push(format!("--reuid={}", self.uid));
            arguments.push(format!("--regid={}", self.gid));
            arguments.push("--".to_owned());
        }
        arguments
    }

    /// Whether programs can be run without a network here.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn try_without_network(self) -> Result<(), String> {
        let tried = self.command(Path::new("true"), Network::None).output();
        match tried {
            Ok(ended) if ended.status.success() => Ok(()),
            Ok(ended) => Err(String::from_utf8_lossy(&ended.stderr).trim().to_owned()),
            Err(error) => Err(format!("unshare of util-linux cannot be run: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_gives_itself_up_after_it_made_the_namespace() {
        let arguments = RunAs { uid: 7, gid: 8 }.unshare_arguments(true);
        let place = |what: &str| arguments.iter().position(|text| text.starts_with(what)).unwrap();
        assert!(place("--net") < place("setpriv") && place("setpriv") < place("--reuid=7"));
        assert!(arguments.contains(&"--regid=8".to_owned()));
        assert_eq!(arguments.last().map(String::as_str), Some("--"));
    }
}
