//! The text form of keys and certificates on disk, so that openssl and people can look at them.

use crate::error::{NetError, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

/// Most certificates of one chain: leaf, issuing CA, root, and one to spare.
const CHAIN_MAX: usize = 4;

/// Encodes one document under the given label.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(body.len() + body.len() / 64 + 64));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// A certificate as PEM.
#[must_use]
pub fn encode_certificate(der: &CertificateDer<'_>) -> String {
    encode("CERTIFICATE", der).to_string()
}

/// A PKCS#8 private key as PEM.
#[must_use]
pub fn encode_key(pkcs8: &[u8]) -> Zeroizing<String> {
    encode("PRIVATE KEY", pkcs8)
}

/// All certificates of a text, in order; other documents are passed over.
///
/// # Errors
/// `Invalid` when there is none, or too many, or one is malformed.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .take(CHAIN_MAX + 1)
        .collect::<Result<_, _>>()
        .map_err(|e| NetError::Invalid(format!("read a certificate in PEM: {e}")))?;
    if found.is_empty() || found.len() > CHAIN_MAX {
        return Err(NetError::Invalid(format!(
            "expected 1 to {CHAIN_MAX} certificates in PEM"
        )));
    }
    Ok(found)
}

/// The first PKCS#8 private key of a text.
///
/// # Errors
/// `Invalid` when there is none.
pub fn private_key(text: &str) -> Result<Zeroizing<Vec<u8>>> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| NetError::Invalid("no PKCS#8 private key in PEM".into()))?;
    Ok(Zeroizing::new(key.secret_pkcs8_der().to_vec()))
}
