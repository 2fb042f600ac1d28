//! Who may be at the other end: the rules that rustls asks during every handshake.

use super::ca::Fingerprint;
use crate::{
    error::{NetError, Result},
    identity::{Identity, Role},
};
use holdfast_core::ClusterId;
use parking_lot::Mutex;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// Says whether an identity, whose certificate is good, may still speak: its incarnation may have been replaced
/// or its name removed. Asked at every handshake and again for every request, so it must be quick.
pub trait Authorizer: Send + Sync + 'static {
    /// # Errors
    /// The reason for the refusal, to be shown to the caller.
    fn check(&self, identity: &Identity) -> Result<(), String>;
}

/// Lets every identity with a good certificate speak.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowAll;

impl Authorizer for AllowAll {
    fn check(&self, _identity: &Identity) -> Result<(), String> {
        Ok(())
    }
}

/// The TLS implementation: aws-lc-rs with rustls' default order, hybrid post-quantum key exchange first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(root: &CertificateDer<'_>) -> Result<Arc<RootCertStore>> {
    let mut store = RootCertStore::empty();
    store
        .add(root.clone().into_owned())
        .map_err(|e| NetError::Invalid(format!("use the root certificate: {e}")))?;
    Ok(Arc::new(store))
}

fn refuse(why: CertificateError) -> TlsError {
    TlsError::InvalidCertificate(why)
}

/// What a server asks of clients. A client without a certificate passes: it can only join.
pub struct ClientRule {
    inner: Arc<dyn ClientCertVerifier>,
    cluster: ClusterId,
    authorizer: Arc<dyn Authorizer>,
}

impl ClientRule {
    /// # Errors
    /// `Invalid` when the root is not a certificate.
    pub fn new(
        root: &CertificateDer<'_>,
        cluster: ClusterId,
        authorizer: Arc<dyn Authorizer>,
    ) -> Result<Arc<Self>> {
        let inner = WebPkiClientVerifier::builder_with_provider(roots(root)?, provider())
            .allow_unauthenticated()
            .build()
            .map_err(NetError::internal("prepare the check of client certificates"))?;
        Ok(Arc::new(Self {
            inner,
            cluster,
            authorizer,
        }))
    }
}

impl std::fmt::Debug for ClientRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientRule({})", self.cluster)
    }
}

impl ClientCertVerifier for ClientRule {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let identity = Identity::from_certificate(leaf)
            .map_err(|_| refuse(CertificateError::ApplicationVerificationFailure))?;
        // Without intermediates only a leaf that the root itself signed can pass.
        let intermediates = if identity.role == Role::Admin {
            &[]
        } else {
            intermediates
        };
        let verified = self.inner.verify_client_cert(leaf, intermediates, now)?;
        if identity.cluster != self.cluster {
            return Err(refuse(CertificateError::ApplicationVerificationFailure));
        }
        if let Err(reason) = self.authorizer.check(&identity) {
            tracing::info!(%identity, %reason, "refused a revoked certificate");
            return Err(refuse(CertificateError::Revoked));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// How a client recognises its cluster.
enum Trust {
    /// It has the root.
    Root(Arc<WebPkiServerVerifier>),
    /// It has only the root's fingerprint, and keeps the root that the server shows.
    Pinned(Fingerprint, Mutex<Option<CertificateDer<'static>>>),
}

/// What a client asks of servers: a controller of the expected cluster.
pub struct ServerRule {
    trust: Trust,
    cluster: ClusterId,
}

impl ServerRule {
    /// For a client that has the root.
    ///
    /// # Errors
    /// `Invalid` when the root is not a certificate.
    pub fn with_root(root: &CertificateDer<'_>, cluster: ClusterId) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            trust: Trust::Root(webpki(root)?),
            cluster,
        }))
    }

    /// For a client that is about to join.
    #[must_use]
    pub fn pinned(fingerprint: Fingerprint, cluster: ClusterId) -> Arc<Self> {
        Arc::new(Self {
            trust: Trust::Pinned(fingerprint, Mutex::new(None)),
            cluster,
        })
    }

    /// The root that a pinned server showed, once a handshake succeeded.
    #[must_use]
    pub fn shown_root(&self) -> Option<CertificateDer<'static>> {
        match &self.trust {
            Trust::Root(_) => None,
            Trust::Pinned(_, root) => root.lock().clone(),
        }
    }
}

fn webpki(root: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(roots(root)?, provider())
        .build()
        .map_err(NetError::internal("prepare the check of server certificates"))
}

impl std::fmt::Debug for ServerRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerRule({})", self.cluster)
    }
}

impl ServerCertVerifier for ServerRule {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verify = |inner: &WebPkiServerVerifier| {
            inner.verify_server_cert(leaf, intermediates, server_name, ocsp_response, now)
        };
        let shown = match &self.trust {
            Trust::Root(inner) => {
                verify(inner)?;
                None
            }
            Trust::Pinned(fingerprint, _) => {
                let root = intermediates
                    .iter()
                    .find(|certificate| Fingerprint::of(certificate) == *fingerprint)
                    .ok_or_else(|| refuse(CertificateError::UnknownIssuer))?;
                verify(&*webpki(root).map_err(|_| refuse(CertificateError::BadEncoding))?)?;
                Some(root.clone().into_owned())
            }
        };
        let identity = Identity::from_certificate(leaf)
            .map_err(|_| refuse(CertificateError::ApplicationVerificationFailure))?;
        if identity.role != Role::Controller || identity.cluster != self.cluster {
            return Err(refuse(CertificateError::ApplicationVerificationFailure));
        }
        if let (Trust::Pinned(_, kept), Some(root)) = (&self.trust, shown) {
            *kept.lock() = Some(root);
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let schemes = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let schemes = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
