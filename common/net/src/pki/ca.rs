//! The two certificate authorities and the leaves they make.

use crate::{
    error::{NetError, Result},
    identity::{CONTROLLER_DNS_NAME, Identity, Role},
    keys::TlsKey,
};
use holdfast_core::ClusterId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The root stays in the recovery kit; it must outlive what it protects.
pub(crate) const ROOT_LIFETIME: Duration = DAY.saturating_mul(20 * 365);
const ISSUING_LIFETIME: Duration = DAY.saturating_mul(5 * 365);
const LEAF_LIFETIME: Duration = DAY.saturating_mul(90);
const ADMIN_LIFETIME: Duration = DAY.saturating_mul(365);
/// Hosts whose clocks are a little behind accept fresh certificates at once.
const BACKDATED: Duration = Duration::from_secs(600);
/// Length of an uncompressed P-256 point.
const P256_POINT_LEN: usize = 65;
/// A request holds a key and a signature: a few hundred bytes.
const REQUEST_MAX: usize = 8 * 1024;

/// BLAKE3 of a root certificate: how a joining host recognises its cluster. Shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(*blake3::hash(certificate).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|e| NetError::Invalid(format!("not a fingerprint of 64 hexadecimal digits: {e}")))?;
        Ok(Self(bytes))
    }
}

/// The offline root: made by `init`, kept in the recovery kit, used to make admins and issuing CAs.
#[derive(Clone)]
pub struct RootCa {
    certificate: CertificateDer<'static>,
    key: TlsKey,
}

impl RootCa {
    /// A fresh root for a cluster.
    ///
    /// # Errors
    /// `Internal` when the library cannot make one.
    pub fn generate(cluster: ClusterId, now: SystemTime) -> Result<Self> {
        let key = TlsKey::generate()?;
        let params = ca_params(&format!("Holdfast root {cluster}"), now, ROOT_LIFETIME, 1)?;
        let certificate = params
            .self_signed(&key.pair()?)
            .map_err(NetError::internal("make the root certificate"))?;
        Ok(Self {
            certificate: certificate.into(),
            key,
        })
    }

    /// Puts a stored root together again.
    ///
    /// # Errors
    /// `Invalid` when the key is not the certificate's.
    pub fn from_parts(certificate: CertificateDer<'static>, key: TlsKey) -> Result<Self> {
        check_key_belongs(&certificate, &key)?;
        Ok(Self { certificate, key })
    }

    /// The root certificate: what everyone trusts.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The root's private key.
    #[must_use]
    pub fn key(&self) -> &TlsKey {
        &self.key
    }

    /// A new issuing CA under this root.
    ///
    /// # Errors
    /// `Internal` when the library cannot make one.
    pub fn make_issuing_ca(&self, cluster: ClusterId, now: SystemTime) -> Result<IssuingCa> {
        let key = TlsKey::generate()?;
        let params = ca_params(
            &format!("Holdfast issuing CA {cluster}"),
            now,
            ISSUING_LIFETIME,
            0,
        )?;
        let certificate = params
            .signed_by(&key.pair()?, &self.issuer()?)
            .map_err(NetError::internal("make the issuing CA's certificate"))?;
        Ok(IssuingCa {
            certificate: certificate.into(),
            key,
            root: self.certificate.clone(),
            cluster,
        })
    }

    /// An admin's certificate chain (the leaf alone) for the key of a certificate request.
    ///
    /// # Errors
    /// `Invalid` when the request is malformed or not signed by its key; `Denied` for another role.
    pub fn issue_admin(
        &self,
        identity: &Identity,
        request: &[u8],
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>> {
        if identity.role != Role::Admin {
            return Err(NetError::Denied(format!(
                "the root issues admins only, not {identity}"
            )));
        }
        Ok(vec![issue_leaf(identity, request, now, &self.issuer()?)?])
    }

    fn issuer(&self) -> Result<Issuer<'static, rcgen::KeyPair>> {
        Issuer::from_ca_cert_der(&self.certificate, self.key.pair()?)
            .map_err(|e| NetError::Invalid(format!("read the root certificate: {e}")))
    }
}

impl fmt::Debug for RootCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootCa({})", Fingerprint::of(&self.certificate))
    }
}

/// The controllers' CA: makes agents and controllers, never admins.
#[derive(Clone)]
pub struct IssuingCa {
    certificate: CertificateDer<'static>,
    key: TlsKey,
    root: CertificateDer<'static>,
    cluster: ClusterId,
}

impl IssuingCa {
    /// Puts a stored CA together again.
    ///
    /// # Errors
    /// `Invalid` when the key is not the certificate's.
    pub fn from_parts(
        certificate: CertificateDer<'static>,
        key: TlsKey,
        root: CertificateDer<'static>,
        cluster: ClusterId,
    ) -> Result<Self> {
        check_key_belongs(&certificate, &key)?;
        Ok(Self {
            certificate,
            key,
            root,
            cluster,
        })
    }

    /// The CA's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA's private key.
    #[must_use]
    pub fn key(&self) -> &TlsKey {
        &self.key
    }

    /// The root above it.
    #[must_use]
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// A certificate chain for the key of a request (PKCS#10, DER); everything else in the request is ignored.
    /// Agents get leaf and CA; controllers the root as well, which joining hosts compare with its fingerprint.
    ///
    /// # Errors
    /// `Invalid` when the request is malformed or not signed by its key; `Denied` for an admin or another cluster.
    pub fn issue(
        &self,
        identity: &Identity,
        request: &[u8],
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>> {
        if identity.cluster != self.cluster {
            return Err(NetError::Denied(format!("{identity} belongs to another cluster")));
        }
        let mut chain = match identity.role {
            Role::Admin => {
                return Err(NetError::Denied(
                    "admins are made by the offline root alone, with the recovery kit".into(),
                ));
            }
            Role::Agent | Role::Controller => {
                vec![
                    issue_leaf(identity, request, now, &self.issuer()?)?,
                    self.certificate.clone(),
                ]
            }
        };
        if identity.role == Role::Controller {
            chain.push(self.root.clone());
        }
        Ok(chain)
    }

    fn issuer(&self) -> Result<Issuer<'static, rcgen::KeyPair>> {
        Issuer::from_ca_cert_der(&self.certificate, self.key.pair()?)
            .map_err(|e| NetError::Invalid(format!("read the issuing CA's certificate: {e}")))
    }
}

impl fmt::Debug for IssuingCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IssuingCa({})", Fingerprint::of(&self.certificate))
    }
}

fn ca_params(
    name: &str,
    now: SystemTime,
    lifetime: Duration,
    ca_certificates_below: u8,
) -> Result<CertificateParams> {
    let mut params = common_params(name, now, lifetime)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(ca_certificates_below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn common_params(name: &str, now: SystemTime, lifetime: Duration) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + lifetime).into();
    params.use_authority_key_identifier_extension = true;
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(NetError::internal("draw random bytes"))?;
    // A serial number is a positive integer.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// Makes a leaf without checking whether its issuer may.
pub(crate) fn issue_leaf(
    identity: &Identity,
    request: &[u8],
    now: SystemTime,
    issuer: &Issuer<'_, rcgen::KeyPair>,
) -> Result<CertificateDer<'static>> {
    if request.len() > REQUEST_MAX {
        return Err(NetError::TooLarge(format!(
            "a certificate request of more than {REQUEST_MAX} bytes"
        )));
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
        .map_err(|e| NetError::Invalid(format!("read a certificate request: {e}")))?;
    let key = &request.public_key;
    if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT_LEN {
        return Err(NetError::Invalid(
            "a certificate request must be for an ECDSA P-256 key".into(),
        ));
    }
    let lifetime = if identity.role == Role::Admin {
        ADMIN_LIFETIME
    } else {
        LEAF_LIFETIME
    };
    let mut params = common_params(&identity.actor(), now, lifetime)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let text = |s: String| s.try_into().map_err(NetError::internal("name a certificate"));
    params.subject_alt_names = vec![SanType::URI(text(identity.to_string())?)];
    if identity.role == Role::Controller {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
        params
            .subject_alt_names
            .push(SanType::DnsName(text(CONTROLLER_DNS_NAME.into())?));
    }
    let certificate = params
        .signed_by(key, issuer)
        .map_err(NetError::internal("make a certificate"))?;
    Ok(certificate.into())
}

/// Refuses a key that is not the certificate's: better at start than at the first handshake.
pub(crate) fn check_key_belongs(certificate: &CertificateDer<'_>, key: &TlsKey) -> Result<()> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|e| NetError::Invalid(format!("read a certificate: {e}")))?;
    if parsed.public_key().subject_public_key.data.as_ref() == key.pair()?.der_bytes() {
        Ok(())
    } else {
        Err(NetError::Invalid(
            "the private key does not belong to the certificate".into(),
        ))
    }
}
