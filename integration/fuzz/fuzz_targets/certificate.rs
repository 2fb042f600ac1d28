//! Any bytes as a certificate, a key, a PEM file, a sealed object: an error, or what they are; nothing that
//! nobody signed or sealed is taken.

#![no_main]

use holdfast_core::{VaultId, limits};
use holdfast_net::{
    Identity,
    keys::{SealingKey, SigningKey, TlsKey},
    pem,
    pki::TlsIdentity,
    sealed::{self, SealedKind},
};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

const VAULT: VaultId = VaultId([0x11; 16]);
static SEALING: LazyLock<SealingKey> = LazyLock::new(SealingKey::generate);
static SIGNING: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_seed(&[7; 32]).expect("a key"));

fuzz_target!(|bytes: &[u8]| {
    if let Ok(identity) = Identity::from_certificate(bytes) {
        let again: Identity = identity.to_string().parse().expect("an identity");
        assert_eq!(again, identity);
    }
    let _ = TlsKey::from_pkcs8(bytes);
    let _ = SigningKey::from_pkcs8(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = pem::certificates(text);
        let _ = pem::private_key(text);
        let _ = TlsIdentity::from_pem(text);
    }
    assert!(
        sealed::age_open(bytes, &SEALING, limits::KEY_OBJECT_MAX).is_err(),
        "sealed by nobody"
    );
    let trusted = [SIGNING.public()];
    assert!(
        sealed::verify_signature_only(bytes, &trusted, VAULT).is_err(),
        "signed by nobody"
    );
    if let Some(signed) = signed(bytes) {
        let header = sealed::verify_signature_only(&signed, &trusted, VAULT);
        let opened = sealed::open(&signed, &SEALING, &trusted, VAULT, SealedKind::VaultKeys);
        assert!(opened.is_err(), "sealed by nobody");
        assert!(header.is_err() || signed.starts_with(b"HFSEALED"));
    }
});

/// The bytes with signer, length and signature of a sealed object in order.
fn signed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut object = bytes.to_vec();
    let len = u32::try_from(bytes.len().checked_sub(68)?).ok()?;
    object.get_mut(32..64)?.copy_from_slice(&SIGNING.public().0);
    object.get_mut(64..68)?.copy_from_slice(&len.to_le_bytes());
    let signature = SIGNING.sign(&[b"holdfast v1 sealed object", &object[..]].concat());
    object.extend_from_slice(&signature);
    Some(object)
}
