//! A certificate chain with its key: what one program is on the wire, in memory and as a file.

use super::ca::check_key_belongs;
use crate::{
    durable,
    error::{NetError, Result},
    identity::Identity,
    keys::TlsKey,
    pem,
};
use rustls_pki_types::CertificateDer;
use std::{
    fmt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use zeroize::Zeroizing;

/// A chain of at most four certificates and a key.
const FILE_MAX: usize = 64 * 1024;

/// Chain (leaf first) and private key.
#[derive(Clone)]
pub struct TlsIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: TlsKey,
    identity: Identity,
}

impl TlsIdentity {
    /// Puts chain and key together.
    ///
    /// # Errors
    /// `Invalid` when the chain is empty or the key is not the leaf's; `Untrusted` when the leaf names nobody.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: TlsKey) -> Result<Self> {
        let leaf = chain
            .first()
            .ok_or_else(|| NetError::Invalid("an empty certificate chain".into()))?;
        check_key_belongs(leaf, &key)?;
        let identity = Identity::from_certificate(leaf)?;
        Ok(Self { chain, key, identity })
    }

    /// Puts together what a controller answered to a certificate request.
    ///
    /// # Errors
    /// As [`TlsIdentity::new`].
    pub fn from_der_chain(chain: Vec<Vec<u8>>, key: TlsKey) -> Result<Self> {
        Self::new(chain.into_iter().map(CertificateDer::from).collect(), key)
    }

    /// Who the leaf says we are.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf's key.
    #[must_use]
    pub fn key(&self) -> &TlsKey {
        &self.key
    }

    /// When a new certificate should be fetched: at two thirds of the leaf's life.
    ///
    /// # Errors
    /// `Untrusted` when the leaf is malformed.
    pub fn renew_at(&self) -> Result<SystemTime> {
        let (from, to) = self.validity()?;
        let life = to.duration_since(from).unwrap_or(Duration::ZERO);
        Ok(from + life * 2 / 3)
    }

    /// When the leaf ends.
    ///
    /// # Errors
    /// `Untrusted` when the leaf is malformed.
    pub fn expires_at(&self) -> Result<SystemTime> {
        Ok(self.validity()?.1)
    }

    fn validity(&self) -> Result<(SystemTime, SystemTime)> {
        let bad = || NetError::Untrusted("read the certificate's validity".into());
        let leaf = self.chain.first().ok_or_else(bad)?;
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf).map_err(|_| bad())?;
        let time = |t: x509_parser::time::ASN1Time| {
            u64::try_from(t.timestamp())
                .map(|s| UNIX_EPOCH + Duration::from_secs(s))
                .map_err(|_| bad())
        };
        Ok((
            time(leaf.validity().not_before)?,
            time(leaf.validity().not_after)?,
        ))
    }

    /// Chain and key as one PEM text.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut text = pem::encode_key(self.key.pkcs8());
        for certificate in &self.chain {
            text.push_str(&pem::encode_certificate(certificate));
        }
        text
    }

    /// Reads [`TlsIdentity::to_pem`].
    ///
    /// # Errors
    /// `Invalid` when chain or key are missing, malformed or do not belong together.
    pub fn from_pem(text: &str) -> Result<Self> {
        Self::new(
            pem::certificates(text)?,
            TlsKey::from_pkcs8(&pem::private_key(text)?)?,
        )
    }

    /// Stores both in one file, mode 0600, so that a renewal can never leave a chain beside another's key.
    ///
    /// # Errors
    /// `Io` or `NoSpace`.
    pub fn save(&self, path: &Path) -> Result<()> {
        durable::write(path, self.to_pem().as_bytes(), durable::PRIVATE_FILE)
    }

    /// Reads [`TlsIdentity::save`].
    ///
    /// # Errors
    /// `NotFound` or `Io`; `Invalid` when the file is not what it should be.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = Zeroizing::new(durable::read(path, FILE_MAX)?);
        std::str::from_utf8(&bytes)
            .map_err(|_| NetError::Invalid("not a text".into()))
            .and_then(Self::from_pem)
            .map_err(|e| NetError::Invalid(format!("read {}: {e}", path.display())))
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsIdentity({})", self.identity)
    }
}
