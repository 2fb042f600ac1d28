//! Keys of people and programs: Ed25519 signing keys, age sealing keys, TLS keys. Secrets never show in Debug.

use crate::error::{NetError, Result};
use age::secrecy::ExposeSecret;
use aws_lc_rs::{
    encoding::AsBigEndian as _,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{fmt, str::FromStr};
use zeroize::Zeroizing;

/// Length of an Ed25519 signature in bytes.
pub const SIGNATURE_LEN: usize = 64;

/// An Ed25519 key that signs: an admin's (key objects) or an agent's (roots).
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: Zeroizing<[u8; 32]>,
}

impl SigningKey {
    /// A fresh key.
    ///
    /// # Errors
    /// `Internal` when the system gives no randomness.
    pub fn generate() -> Result<Self> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut seed[..]).map_err(NetError::internal("draw random bytes"))?;
        Self::from_seed(&seed)
    }

    /// The key of a 32-byte seed.
    ///
    /// # Errors
    /// `Invalid` when the library refuses the seed.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed)
            .map_err(|_| NetError::Invalid("not an Ed25519 private key".into()))?;
        Ok(Self {
            pair,
            seed: Zeroizing::new(*seed),
        })
    }

    /// The seed: all of the secret.
    #[must_use]
    pub fn seed(&self) -> &Zeroizing<[u8; 32]> {
        &self.seed
    }

    /// Reads a PKCS#8 document (DER).
    ///
    /// # Errors
    /// `Invalid` when it is not an Ed25519 key in PKCS#8.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self> {
        let bad = || NetError::Invalid("not an Ed25519 private key in PKCS#8".into());
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| bad())?;
        let seed = pair.seed().map_err(|_| bad())?;
        let bytes = seed.as_be_bytes().map_err(|_| bad())?;
        Self::from_seed(bytes.as_ref().try_into().map_err(|_| bad())?)
    }

    /// The key as a PKCS#8 document (DER).
    ///
    /// # Errors
    /// `Internal` when the library cannot encode it.
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>> {
        let document = self
            .pair
            .to_pkcs8v1()
            .map_err(NetError::internal("encode a signing key"))?;
        Ok(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        let mut signature = [0; SIGNATURE_LEN];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(public {})", self.public())
    }
}

/// An Ed25519 public key, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Whether this key's owner signed the message.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|e| NetError::Invalid(format!("not an Ed25519 public key in hexadecimal: {e}")))?;
        Ok(Self(bytes))
    }
}

/// An age X25519 identity: opens what was sealed to its recipient.
#[derive(Clone)]
pub struct SealingKey(age::x25519::Identity);

impl SealingKey {
    /// A fresh key.
    #[must_use]
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// The secret as text (`AGE-SECRET-KEY-1…`).
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.to_string().expose_secret().to_owned())
    }

    /// The public half.
    #[must_use]
    pub fn recipient(&self) -> SealingRecipient {
        SealingRecipient(self.0.to_public())
    }

    pub(crate) fn age(&self) -> &age::x25519::Identity {
        &self.0
    }
}

impl FromStr for SealingKey {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self> {
        // The library's message could quote the secret.
        text.trim().parse().map(Self).map_err(|_: &str| {
            NetError::Invalid("not an age identity: it begins with AGE-SECRET-KEY-1".into())
        })
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey(recipient {})", self.recipient())
    }
}

/// An age X25519 recipient (`age1…`): whom something is sealed to.
#[derive(Clone)]
pub struct SealingRecipient(age::x25519::Recipient);

impl SealingRecipient {
    pub(crate) fn age(&self) -> &age::x25519::Recipient {
        &self.0
    }
}

impl FromStr for SealingRecipient {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self> {
        text.trim()
            .parse()
            .map(Self)
            .map_err(|e: &str| NetError::Invalid(format!("not an age recipient (age1…): {e}")))
    }
}

impl fmt::Display for SealingRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SealingRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingRecipient({self})")
    }
}

/// The private key of a TLS certificate (ECDSA P-256), held as PKCS#8.
#[derive(Clone)]
pub struct TlsKey(Zeroizing<Vec<u8>>);

impl TlsKey {
    /// A fresh key.
    ///
    /// # Errors
    /// `Internal` when the library cannot make one.
    pub fn generate() -> Result<Self> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(NetError::internal("make a TLS key"))?;
        Ok(Self(Zeroizing::new(pair.serialize_der())))
    }

    /// Reads a PKCS#8 document (DER).
    ///
    /// # Errors
    /// `Invalid` when it is not a key that TLS can use here.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self> {
        let key = Self(Zeroizing::new(der.to_vec()));
        key.pair()?;
        Ok(key)
    }

    /// The key as PKCS#8 (DER).
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.0
    }

    /// A request (PKCS#10, DER) for a certificate over this key. It names nobody: the controller decides all names.
    ///
    /// # Errors
    /// `Internal` when the library cannot make one.
    pub fn certificate_request(&self) -> Result<Vec<u8>> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params
            .serialize_request(&self.pair()?)
            .map_err(NetError::internal("make a certificate request"))?;
        Ok(request.der().to_vec())
    }

    pub(crate) fn pair(&self) -> Result<rcgen::KeyPair> {
        let der = PrivatePkcs8KeyDer::from(&self.0[..]);
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|_| NetError::Invalid("not an ECDSA P-256 private key in PKCS#8".into()))
    }

    pub(crate) fn rustls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.to_vec()))
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_keys_round_trip_and_verify() {
        let key = SigningKey::generate().unwrap();
        let signature = key.sign(b"message");
        assert!(key.public().verifies(b"message", &signature));
        assert!(!key.public().verifies(b"massage", &signature));
        let again = SigningKey::from_pkcs8(&key.to_pkcs8().unwrap()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(SigningKey::from_seed(key.seed()).unwrap().public(), key.public());
        assert_eq!(
            key.public().to_string().parse::<PublicKey>().unwrap(),
            key.public()
        );
        assert!(SigningKey::from_pkcs8(b"nonsense").is_err());
    }

    #[test]
    fn sealing_keys_round_trip() {
        let key = SealingKey::generate();
        let again: SealingKey = key.to_text().parse().unwrap();
        assert_eq!(again.recipient().to_string(), key.recipient().to_string());
        assert!("age1nonsense".parse::<SealingRecipient>().is_err());
        assert!("AGE-SECRET-KEY-1NONSENSE".parse::<SealingKey>().is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        let signing = SigningKey::generate().unwrap();
        assert!(!format!("{signing:?}").contains(&hex::encode(&signing.seed()[..4])));
        let sealing = SealingKey::generate();
        assert!(!format!("{sealing:?}").contains("SECRET"));
        let tls = TlsKey::generate().unwrap();
        assert_eq!(format!("{tls:?}"), "TlsKey(hidden)");
    }
}
