//! What an agent keeps on its disk: who it is, its vault's keys, and what it last saw.

use crate::error::{AgentError, Result};
use holdfast_core::{ClusterId, Name, SourceRef, VaultId};
use holdfast_net::{durable, keys::SealingKey, pem, pki::TlsIdentity};
use holdfast_repo::{SigningKey, VaultKeys};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Longest file of ours that is read whole.
const FILE_MAX: usize = 1 << 20;

/// Who this agent is; written by `join`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// Where its controllers are.
    pub addresses: Vec<String>,
    /// Our name.
    pub name: Name,
    /// Our vault.
    pub vault: VaultId,
    /// What people call it.
    pub vault_name: Name,
}

/// The highest root seen of each source, by what it is called here: an older one must not be shown to us as the newest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Heads(pub BTreeMap<String, u64>);

/// Between agent and name of a source in names of files; in no name of either.
const JOINED: char = '=';

/// What a source's files are called at an agent: its name if it is the agent's own, else with whose it is.
#[must_use]
pub(crate) fn local_name(own: &Name, source: &SourceRef) -> String {
    if source.agent == *own {
        source.source.to_string()
    } else {
        format!("{}{JOINED}{}", source.agent, source.source)
    }
}

/// The source whose files are called so.
#[must_use]
pub(crate) fn source_called(own: &Name, local: &str) -> Option<SourceRef> {
    match local.split_once(JOINED) {
        Some((agent, source)) => Some(SourceRef {
            agent: agent.parse().ok()?,
            source: source.parse().ok()?,
        }),
        None => Some(SourceRef {
            agent: own.clone(),
            source: local.parse().ok()?,
        }),
    }
}

/// The state directory, locked.
pub struct State {
    dir: PathBuf,
    /// Who we are.
    pub membership: Membership,
    /// Keys of our vault.
    pub keys: Arc<VaultKeys>,
    /// Signs our roots.
    pub signing: Arc<SigningKey>,
    /// Receives grants.
    pub sealing: SealingKey,
    /// The cluster's root certificate.
    pub root: CertificateDer<'static>,
    /// Held so that no second process runs on the same state.
    _lock: OwnedFd,
}

/// Paths below a state directory.
pub(crate) struct Layout<'a>(pub &'a Path);

impl Layout<'_> {
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }
    pub fn membership(&self) -> PathBuf {
        self.identity().join("agent.json")
    }
    pub fn tls(&self) -> PathBuf {
        self.identity().join("tls.pem")
    }
    pub fn root(&self) -> PathBuf {
        self.identity().join("root.pem")
    }
    pub fn vault(&self) -> PathBuf {
        self.identity().join("vault.key")
    }
    pub fn signing(&self) -> PathBuf {
        self.identity().join("signing.key")
    }
    pub fn sealing(&self) -> PathBuf {
        self.identity().join("sealing.key")
    }
    fn heads(&self) -> PathBuf {
        self.0.join("heads.json")
    }
    fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }
    fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }
}

impl State {
    /// Opens the state of a joined agent and locks it.
    ///
    /// # Errors
    /// `NotFound` before `join`; `Conflict` while another process runs on it; `Invalid` for damage.
    pub fn open(dir: &Path) -> Result<Self> {
        let layout = Layout(dir);
        if !layout.membership().exists() {
            return Err(AgentError::Invalid(format!(
                "{} holds no identity: run `holdfast-agent join --token-file FILE --state-dir {0}` first",
                dir.display()
            )));
        }
        let lock = lock(&layout.lock())?;
        let membership = serde_json::from_slice(&durable::read(&layout.membership(), FILE_MAX)?)
            .map_err(|error| AgentError::Invalid(format!("{}: {error}", layout.membership().display())))?;
        let root = String::from_utf8_lossy(&durable::read(&layout.root(), FILE_MAX)?).into_owned();
        let root = pem::certificates(&root)?.into_iter().next().ok_or_else(|| {
            AgentError::Invalid(format!("{} holds no certificate", layout.root().display()))
        })?;
        let vault = zeroize::Zeroizing::new(durable::read(&layout.vault(), FILE_MAX)?);
        let signing = zeroize::Zeroizing::new(durable::read(&layout.signing(), FILE_MAX)?);
        let sealing = zeroize::Zeroizing::new(durable::read(&layout.sealing(), FILE_MAX)?);
        let sealing = std::str::from_utf8(&sealing)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| AgentError::Invalid(format!("{} is damaged", layout.sealing().display())))?;
        durable::create_private_dir(&layout.cache())?;
        Ok(Self {
            dir: dir.to_owned(),
            membership,
            keys: Arc::new(VaultKeys::decode(&vault)?),
            signing: Arc::new(SigningKey::from_pkcs8(&signing)?),
            sealing,
            root,
            _lock: lock,
        })
    }

    /// What a source's files are called here.
    #[must_use]
    pub fn local_name(&self, source: &SourceRef) -> String {
        local_name(&self.membership.name, source)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Our certificate now; renewal replaces the file.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn tls(&self) -> Result<TlsIdentity> {
        Ok(TlsIdentity::load(&Layout(&self.dir).tls())?)
    }

    /// Keeps a renewed certificate.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_tls(&self, identity: &TlsIdentity) -> Result<()> {
        Ok(identity.save(&Layout(&self.dir).tls())?)
    }

    /// Where the caches of a source are: these files, each with an extension of its own.
    #[must_use]
    pub fn caches(&self, source: &SourceRef) -> PathBuf {
        let source = self.local_name(source);
        // The dot keeps what follows one in a name from being taken for the extension.
        Layout(&self.dir).cache().join(format!("{source}.cache"))
    }

    /// The same for what is read in a second pass: each pass keeps of its cache only what it met.
    #[must_use]
    pub fn end_caches(&self, source: &SourceRef) -> PathBuf {
        let source = self.local_name(source);
        // No name of a source has a plus sign.
        Layout(&self.dir).cache().join(format!("{source}+end.cache"))
    }

    /// The highest sequence seen of a source; 0 before the first.
    #[must_use]
    pub fn head(&self, source: &SourceRef) -> u64 {
        self.heads().0.get(&self.local_name(source)).copied().unwrap_or(0)
    }

    /// Remembers the highest sequence seen.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember_head(&self, source: &SourceRef, sequence: u64) -> Result<()> {
        let mut heads = self.heads();
        let head = heads.0.entry(self.local_name(source)).or_default();
        *head = sequence.max(*head);
        let bytes = serde_json::to_vec(&heads).map_err(|error| AgentError::Internal(error.to_string()))?;
        Ok(durable::write(
            &Layout(&self.dir).heads(),
            &bytes,
            durable::PRIVATE_FILE,
        )?)
    }

    fn heads(&self) -> Heads {
        let bytes = durable::read(&Layout(&self.dir).heads(), FILE_MAX).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }
}

/// Takes the lock file, which the kernel frees when the process ends, however it ends.
pub(crate) fn lock(path: &Path) -> Result<OwnedFd> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(AgentError::io("open", path))?;
    let file = OwnedFd::from(file);
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AgentError::Remote(
            holdfast_net::Fault::new(
                holdfast_core::ErrorKind::Conflict,
                format!(
                    "another agent runs on {}",
                    path.parent().unwrap_or(path).display()
                ),
            )
            .with_hint("stop it first, or give this one a --state-dir of its own"),
        )),
        Err(error) => Err(AgentError::io("lock", path)(error)),
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({})", self.dir.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_two_sources_are_never_called_the_same() {
        let own: Name = "db2".parse().unwrap();
        for (source, local) in [
            ("db2/main", "main"),
            ("db1/main", "db1=main"),
            ("db2/db1", "db1"),
            // Of this one a cache ends in "+end" beside that of its data.
            ("main/end", "main=end"),
        ] {
            let source: SourceRef = source.parse().unwrap();
            assert_eq!(local_name(&own, &source), local);
            assert_eq!(source_called(&own, local), Some(source));
        }
        assert_eq!(source_called(&own, "db1=main=x"), None);
        assert_eq!(source_called(&own, ""), None);
        // Heads that were remembered before there were members.
        let heads: Heads = serde_json::from_str(r#"{"main":3}"#).unwrap();
        assert_eq!(heads.0.get("main"), Some(&3));
    }
}
