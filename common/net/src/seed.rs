//! The directory from which a controller knows its cluster and itself: written by `init` for the first one and by
//! joining for the others.
//!
//! `cluster.toml` names the cluster and whose signatures count; `root-certificate.pem`, `issuing-ca.pem`
//! (certificate and key) and `controller.pem` (chain and key) hold the PKI. All of mode 0600.

use crate::{
    durable,
    error::{NetError, Result},
    keys::{PublicKey, SealingRecipient, TlsKey},
    pem,
    pki::{IssuingCa, TlsIdentity},
};
use holdfast_core::{ClusterId, Name};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path};
use zeroize::Zeroizing;

const FILE_MAX: usize = 64 * 1024;
const SEED: &str = "cluster.toml";
const ROOT: &str = "root-certificate.pem";
const ISSUING: &str = "issuing-ca.pem";
const OWN: &str = "controller.pem";

/// What every member must agree on; the first entry of a new cluster's catalog.
#[derive(Debug, Clone)]
pub struct ClusterSeed {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name, for people.
    pub name: Name,
    /// Whom vault keys and catalog copies are sealed to.
    pub recovery_recipient: SealingRecipient,
    /// Admins whose signatures on key objects count.
    pub admin_public_keys: Vec<PublicKey>,
}

/// The seed as written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeedFile {
    version: u32,
    cluster: ClusterId,
    cluster_name: Name,
    recovery_recipient: String,
    admin_public_keys: Vec<String>,
}

const VERSION: u32 = 1;

impl ClusterSeed {
    /// The seed as TOML.
    ///
    /// # Errors
    /// `Internal` when it cannot be encoded.
    pub fn to_toml(&self) -> Result<String> {
        let file = SeedFile {
            version: VERSION,
            cluster: self.cluster,
            cluster_name: self.name.clone(),
            recovery_recipient: self.recovery_recipient.to_string(),
            admin_public_keys: self.admin_public_keys.iter().map(ToString::to_string).collect(),
        };
        toml::to_string(&file).map_err(NetError::internal("write the cluster's seed"))
    }

    /// Reads [`ClusterSeed::to_toml`].
    ///
    /// # Errors
    /// `Invalid` when malformed; `Unsupported` for a newer form.
    pub fn from_toml(text: &str) -> Result<Self> {
        let file: SeedFile =
            toml::from_str(text).map_err(|e| NetError::Invalid(format!("read the cluster's seed: {e}")))?;
        if file.version != VERSION {
            return Err(NetError::Unsupported(format!(
                "a cluster seed of version {}, which this version does not know",
                file.version
            )));
        }
        Ok(Self {
            cluster: file.cluster,
            name: file.cluster_name,
            recovery_recipient: file.recovery_recipient.parse()?,
            admin_public_keys: file
                .admin_public_keys
                .iter()
                .map(|k| k.parse())
                .collect::<Result<_>>()?,
        })
    }
}

/// Everything in a controller's identity directory.
#[derive(Clone)]
pub struct ControllerIdentity {
    /// What the members agree on.
    pub seed: ClusterSeed,
    /// The CA that makes agents and controllers; it knows the root.
    pub issuing: IssuingCa,
    /// This controller itself.
    pub tls: TlsIdentity,
}

impl ControllerIdentity {
    /// The root certificate.
    #[must_use]
    pub fn root(&self) -> &CertificateDer<'static> {
        self.issuing.root()
    }

    /// Writes all files into a directory, which is made if it is not there.
    ///
    /// # Errors
    /// `Io` or `NoSpace`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        durable::create_private_dir(dir)?;
        let write =
            |name: &str, text: &str| durable::write(&dir.join(name), text.as_bytes(), durable::PRIVATE_FILE);
        write(ROOT, &pem::encode_certificate(self.root()))?;
        let mut issuing = pem::encode_key(self.issuing.key().pkcs8());
        issuing.push_str(&pem::encode_certificate(self.issuing.certificate()));
        write(ISSUING, &issuing)?;
        self.tls.save(&dir.join(OWN))?;
        // Last: a directory with a seed is whole.
        write(SEED, &self.seed.to_toml()?)
    }

    /// Writes this controller's own chain and key alone, after a renewal.
    ///
    /// # Errors
    /// `Io` or `NoSpace`.
    pub fn save_own(dir: &Path, tls: &TlsIdentity) -> Result<()> {
        tls.save(&dir.join(OWN))
    }

    /// Whether a directory holds an identity.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        dir.join(SEED).exists()
    }

    /// Reads [`ControllerIdentity::save`].
    ///
    /// # Errors
    /// `NotFound` or `Io`; `Invalid` when files are malformed or do not belong together.
    pub fn load(dir: &Path) -> Result<Self> {
        let read = |name: &str| -> Result<Zeroizing<String>> {
            let bytes = durable::read(&dir.join(name), FILE_MAX)?;
            String::from_utf8(bytes)
                .map(Zeroizing::new)
                .map_err(|_| NetError::Invalid(format!("{} is not a text", dir.join(name).display())))
        };
        let seed = ClusterSeed::from_toml(&read(SEED)?)?;
        let certificate = |text: &str| pem::certificates(text).map(|mut found| found.swap_remove(0));
        let root = certificate(&read(ROOT)?)?;
        let issuing = read(ISSUING)?;
        let key = TlsKey::from_pkcs8(&pem::private_key(&issuing)?)?;
        let issuing = IssuingCa::from_parts(certificate(&issuing)?, key, root, seed.cluster)?;
        let tls = TlsIdentity::load(&dir.join(OWN))?;
        if tls.identity().cluster != seed.cluster {
            return Err(NetError::Invalid(format!(
                "{} mixes the files of two clusters: {} and {}",
                dir.display(),
                seed.cluster,
                tls.identity().cluster
            )));
        }
        Ok(Self { seed, issuing, tls })
    }
}

impl fmt::Debug for ControllerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ControllerIdentity({})", self.tls.identity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Identity, Role,
        keys::{SealingKey, SigningKey},
        pki::RootCa,
    };
    use std::{os::unix::fs::PermissionsExt as _, time::SystemTime};

    #[test]
    fn directories_round_trip_and_are_private() {
        let (cluster, now) = (ClusterId::generate(), SystemTime::now());
        let issuing = RootCa::generate(cluster, now)
            .unwrap()
            .make_issuing_ca(cluster, now)
            .unwrap();
        let key = TlsKey::generate().unwrap();
        let name: Name = "ctl1".parse().unwrap();
        let identity = Identity {
            cluster,
            role: Role::Controller,
            name,
            incarnation: 1,
        };
        let chain = issuing
            .issue(&identity, &key.certificate_request().unwrap(), now)
            .unwrap();
        let seed = ClusterSeed {
            cluster,
            name: "prod".parse().unwrap(),
            recovery_recipient: SealingKey::generate().recipient(),
            admin_public_keys: vec![SigningKey::generate().unwrap().public()],
        };
        let whole = ControllerIdentity {
            seed,
            issuing,
            tls: TlsIdentity::new(chain, key).unwrap(),
        };
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("identity");
        assert!(!ControllerIdentity::exists(&dir));
        whole.save(&dir).unwrap();
        assert!(ControllerIdentity::exists(&dir));
        let again = ControllerIdentity::load(&dir).unwrap();
        assert_eq!(again.tls.identity(), &identity);
        assert_eq!(again.root(), whole.root());
        assert_eq!(again.seed.admin_public_keys, whole.seed.admin_public_keys);
        for entry in std::fs::read_dir(&dir).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o077, 0);
        }
        // Another's key beside our certificate is found at once.
        durable::write(
            &dir.join(OWN),
            pem::encode_key(TlsKey::generate().unwrap().pkcs8()).as_bytes(),
            0o600,
        )
        .unwrap();
        assert!(ControllerIdentity::load(&dir).is_err());
    }
}
