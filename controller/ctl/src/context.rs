//! The admin's context: who we are, which cluster, whom we trust. In `$HOLDFAST_CONFIG_DIR`, readable by us alone.

use crate::error::{Result, fault, invalid, io, lift, lift_display};
use holdfast_core::{ClusterId, ErrorKind, Name};
use holdfast_net::{
    durable,
    keys::{PublicKey, SealingKey, SealingRecipient, SigningKey},
    pem,
    pki::TlsIdentity,
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

const CONTEXT: &str = "context.toml";
const IDENTITY: &str = "admin.pem";
const ROOT: &str = "root-certificate.pem";
const SIGNING: &str = "signing-key.pem";
const SEALING: &str = "sealing-key.txt";
const KEYRING: &str = "keyring";
const HEADS: &str = "heads.json";
const FILE_MAX: usize = 64 * 1024;
const HEADS_MAX: usize = 16 * 1024 * 1024;
const VERSION: u32 = 1;

/// Everything in the directory, loaded.
pub(crate) struct Context {
    pub(crate) dir: PathBuf,
    pub(crate) cluster: ClusterId,
    pub(crate) cluster_name: Name,
    pub(crate) addresses: Vec<String>,
    pub(crate) recovery_recipient: SealingRecipient,
    pub(crate) admin_public_keys: Vec<PublicKey>,
    pub(crate) tls: TlsIdentity,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) signing: SigningKey,
    pub(crate) sealing: SealingKey,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContextFile {
    version: u32,
    cluster: ClusterId,
    cluster_name: Name,
    addresses: Vec<String>,
    recovery_recipient: String,
    admin_public_keys: Vec<String>,
}

/// The directory that is meant, existing or not.
pub(crate) fn directory(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = given {
        return Ok(dir);
    }
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    base.or_else(|| std::env::home_dir().map(|home| home.join(".config")))
        .map(|base| base.join("holdfast"))
        .ok_or_else(|| {
            invalid("there is no home directory for the admin's context")
                .with_hint("set HOLDFAST_CONFIG_DIR to a directory of yours")
        })
}

impl Context {
    /// Whether a directory holds a context.
    pub(crate) fn exists(dir: &Path) -> bool {
        dir.join(CONTEXT).exists()
    }

    /// Writes everything.
    pub(crate) fn save(&self) -> Result<()> {
        durable::create_private_dir(&self.dir).map_err(lift)?;
        durable::create_private_dir(&self.keyring_dir()).map_err(lift)?;
        let write = |name: &str, bytes: &[u8]| {
            durable::write(&self.dir.join(name), bytes, durable::PRIVATE_FILE).map_err(lift)
        };
        self.tls.save(&self.dir.join(IDENTITY)).map_err(lift)?;
        write(ROOT, pem::encode_certificate(&self.root).as_bytes())?;
        write(
            SIGNING,
            pem::encode_key(&self.signing.to_pkcs8().map_err(lift)?).as_bytes(),
        )?;
        write(SEALING, self.sealing.to_text().as_bytes())?;
        let file = ContextFile {
            version: VERSION,
            cluster: self.cluster,
            cluster_name: self.cluster_name.clone(),
            addresses: self.addresses.clone(),
            recovery_recipient: self.recovery_recipient.to_string(),
            admin_public_keys: self.admin_public_keys.iter().map(ToString::to_string).collect(),
        };
        // Last: a directory with this file is whole.
        write(CONTEXT, toml::to_string(&file).map_err(lift_display)?.as_bytes())
    }

    /// Reads everything.
    pub(crate) fn load(dir: PathBuf) -> Result<Self> {
        if !Self::exists(&dir) {
            return Err(fault(
                ErrorKind::NotFound,
                format!("there is no admin's context in {}", dir.display()),
            )
            .with_hint("set HOLDFAST_CONFIG_DIR, or found a cluster: holdfastctl init --help"));
        }
        let read = |name: &str| -> Result<Zeroizing<String>> {
            let path = dir.join(name);
            check_private(&path)?;
            let bytes = durable::read(&path, FILE_MAX).map_err(lift)?;
            String::from_utf8(bytes)
                .map(Zeroizing::new)
                .map_err(|_| invalid(format!("{} is not a text", path.display())))
        };
        let file: ContextFile = toml::from_str(&read(CONTEXT)?)
            .map_err(|e| invalid(format!("read {}: {e}", dir.join(CONTEXT).display())))?;
        if file.version != VERSION {
            return Err(fault(
                ErrorKind::Unsupported,
                format!(
                    "the context is of version {}, which this program does not know",
                    file.version
                ),
            ));
        }
        check_private(&dir.join(IDENTITY))?;
        let signing = pem::private_key(&read(SIGNING)?).map_err(lift)?;
        Ok(Self {
            cluster: file.cluster,
            cluster_name: file.cluster_name,
            addresses: file.addresses,
            recovery_recipient: file.recovery_recipient.parse().map_err(lift)?,
            admin_public_keys: file
                .admin_public_keys
                .iter()
                .map(|key| key.parse().map_err(lift))
                .collect::<Result<_>>()?,
            tls: TlsIdentity::load(&dir.join(IDENTITY)).map_err(lift)?,
            root: pem::certificates(&read(ROOT)?).map_err(lift)?.swap_remove(0),
            signing: SigningKey::from_pkcs8(&signing).map_err(lift)?,
            sealing: read(SEALING)?.parse().map_err(lift)?,
            dir,
        })
    }

    pub(crate) fn keyring_dir(&self) -> PathBuf {
        self.dir.join(KEYRING)
    }

    /// Compares a snapshot's sequence with the highest one seen of its source, and remembers it. An older newest
    /// snapshot than before means that someone took some away, or shows us an old state.
    pub(crate) fn note_head(&self, source: &str, newest: u64) -> Result<()> {
        let path = self.dir.join(HEADS);
        let mut heads: BTreeMap<String, u64> = match durable::read(&path, HEADS_MAX) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| invalid(format!("read {}: {e}", path.display())))?,
            Err(_) if !path.exists() => BTreeMap::new(),
            Err(e) => return Err(lift(e)),
        };
        let seen = heads.get(source).copied().unwrap_or_default();
        if newest < seen {
            eprintln!(
                "warning: the newest snapshot of {source} is number {newest}, but number {seen} was seen here \
                 before: it was deleted, or the cluster shows an old state"
            );
        }
        if newest > seen {
            heads.insert(source.to_owned(), newest);
            let bytes = serde_json::to_vec(&heads).map_err(lift_display)?;
            durable::write(&path, &bytes, durable::PRIVATE_FILE).map_err(lift)?;
        }
        Ok(())
    }
}

/// Refuses secrets that others can read, as ssh does: they may be known already.
fn check_private(path: &Path) -> Result<()> {
    let mode = fs::metadata(path)
        .map_err(io(format!("look at {}", path.display())))?
        .permissions()
        .mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(fault(
        ErrorKind::Denied,
        format!(
            "{} can be read by others (mode {:o})",
            path.display(),
            mode & 0o777
        ),
    )
    .with_hint(format!("chmod 600 {}", path.display())))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use holdfast_net::{Identity, Role, keys::TlsKey, pki::RootCa};
    use std::time::SystemTime;

    pub(crate) fn context(dir: &Path) -> Context {
        let (cluster, now) = (ClusterId::generate(), SystemTime::now());
        let root = RootCa::generate(cluster, now).unwrap();
        let key = TlsKey::generate().unwrap();
        let name: Name = "admin".parse().unwrap();
        let identity = Identity {
            cluster,
            role: Role::Admin,
            name,
            incarnation: 1,
        };
        let chain = root
            .issue_admin(&identity, &key.certificate_request().unwrap(), now)
            .unwrap();
        let signing = SigningKey::generate().unwrap();
        Context {
            dir: dir.join("holdfast"),
            cluster,
            cluster_name: "test".parse().unwrap(),
            addresses: vec!["127.0.0.1:1".into()],
            recovery_recipient: SealingKey::generate().recipient(),
            admin_public_keys: vec![signing.public()],
            tls: TlsIdentity::new(chain, key).unwrap(),
            root: root.certificate().clone(),
            signing,
            sealing: SealingKey::generate(),
        }
    }

    #[test]
    fn contexts_round_trip_and_must_be_private() {
        let dir = tempfile::tempdir().unwrap();
        let context = context(dir.path());
        assert_eq!(
            Context::load(context.dir.clone()).err().unwrap().kind,
            ErrorKind::NotFound
        );
        context.save().unwrap();
        let again = Context::load(context.dir.clone()).unwrap();
        assert_eq!(again.cluster, context.cluster);
        assert_eq!(again.signing.public(), context.signing.public());
        assert_eq!(*again.sealing.to_text(), *context.sealing.to_text());
        assert_eq!(again.tls.identity(), context.tls.identity());
        for name in [CONTEXT, IDENTITY, SIGNING, SEALING] {
            let path = context.dir.join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            let fault = Context::load(context.dir.clone()).err().unwrap();
            assert_eq!(fault.kind, ErrorKind::Denied, "{name}");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    #[test]
    fn heads_only_grow() {
        let dir = tempfile::tempdir().unwrap();
        let context = context(dir.path());
        context.save().unwrap();
        let stored = || {
            let bytes = fs::read(context.dir.join(HEADS)).unwrap();
            serde_json::from_slice::<BTreeMap<String, u64>>(&bytes).unwrap()["web1/a"]
        };
        context.note_head("web1/a", 5).unwrap();
        context.note_head("web1/a", 3).unwrap();
        assert_eq!(stored(), 5);
        context.note_head("web1/a", 6).unwrap();
        assert_eq!(stored(), 6);
    }
}
