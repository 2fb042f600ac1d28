//! Sealed objects: vault keys that only the right people can open and that only an admin can have made.
//!
//! Layout, integers little-endian:
//! `"HFSEALED"` (8) · version 1 (u8) · kind (u8) · flags (u16, must be 0) · vault (16) · number (u32) ·
//! signer's Ed25519 key (32) · length of the age file (u32) · age file · Ed25519 signature (64) over the words
//! `"holdfast v1 sealed object"` and everything before it.

use crate::{
    error::{NetError, Result},
    keys::{PublicKey, SIGNATURE_LEN, SealingKey, SealingRecipient, SigningKey},
};
use holdfast_core::{VaultId, limits};
use std::io::{Read as _, Write as _};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"HFSEALED";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 8 + 1 + 1 + 2 + 16 + 4 + 32 + 4;
const SIGNATURE_CONTEXT: &[u8] = b"holdfast v1 sealed object";
/// Most people one object is sealed to.
const RECIPIENTS_MAX: usize = 64;

/// What a sealed object is for; part of what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealedKind {
    /// A vault's keys, sealed to the recovery recipient and the admins.
    VaultKeys,
    /// Keys given to one more reader.
    Grant,
}

impl SealedKind {
    fn code(self) -> u8 {
        match self {
            Self::VaultKeys => 1,
            Self::Grant => 2,
        }
    }

    fn from_code(code: u8) -> Result<Self> {
        match code {
            1 => Ok(Self::VaultKeys),
            2 => Ok(Self::Grant),
            _ => Err(NetError::Unsupported(format!(
                "a sealed object of kind {code}, which this version does not know"
            ))),
        }
    }
}

/// What everyone can read of a sealed object, once its signature is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedHeader {
    /// What it is for.
    pub kind: SealedKind,
    /// The vault whose keys are inside.
    pub vault: VaultId,
    /// Counts a vault's objects of this kind, from 1; readers take the highest.
    pub number: u32,
}

/// Seals a text to some recipients and signs the result.
///
/// # Errors
/// `Invalid` without recipients; `TooLarge` beyond `limits::KEY_OBJECT_MAX`.
pub fn seal_and_sign(
    plaintext: &[u8],
    recipients: &[SealingRecipient],
    signer: &SigningKey,
    header: SealedHeader,
) -> Result<Vec<u8>> {
    let sealed = age_seal(plaintext, recipients)?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + sealed.len() + SIGNATURE_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.push(header.kind.code());
    bytes.extend_from_slice(&0_u16.to_le_bytes());
    bytes.extend_from_slice(header.vault.as_bytes());
    bytes.extend_from_slice(&header.number.to_le_bytes());
    bytes.extend_from_slice(&signer.public().0);
    let sealed_len = u32::try_from(sealed.len()).map_err(|_| too_large())?;
    bytes.extend_from_slice(&sealed_len.to_le_bytes());
    bytes.extend_from_slice(&sealed);
    let signature = signer.sign(&signed_message(&bytes));
    bytes.extend_from_slice(&signature);
    if bytes.len() > limits::KEY_OBJECT_MAX {
        return Err(too_large());
    }
    Ok(bytes)
}

/// Checks form, vault and signature without any secret.
///
/// # Errors
/// `Corrupt` when it is not a whole sealed object or is another vault's; `Untrusted` when no trusted admin
/// signed it; `Unsupported` for a newer form; `TooLarge` beyond the bound.
pub fn verify_signature_only(bytes: &[u8], trusted: &[PublicKey], vault: VaultId) -> Result<SealedHeader> {
    parse(bytes, trusted, vault).map(|(header, _)| header)
}

/// Opens a sealed object, after [`verify_signature_only`].
///
/// # Errors
/// As there; `Invalid` when it is of another kind; `Denied` when it is not sealed to us.
pub fn open(
    bytes: &[u8],
    key: &SealingKey,
    trusted: &[PublicKey],
    vault: VaultId,
    kind: SealedKind,
) -> Result<(SealedHeader, Zeroizing<Vec<u8>>)> {
    let (header, sealed) = parse(bytes, trusted, vault)?;
    if header.kind != kind {
        return Err(NetError::Invalid(format!(
            "a sealed object of kind {:?} where {kind:?} belongs",
            header.kind
        )));
    }
    Ok((header, age_open(sealed, key, limits::KEY_OBJECT_MAX)?))
}

/// Seals bytes to some recipients (an age file, binary).
///
/// # Errors
/// `Invalid` without recipients or with too many; `TooLarge` beyond `limits::SEALED_BLOB_MAX`.
pub fn age_seal(plaintext: &[u8], recipients: &[SealingRecipient]) -> Result<Vec<u8>> {
    if recipients.len() > RECIPIENTS_MAX {
        return Err(NetError::Invalid(format!(
            "more than {RECIPIENTS_MAX} recipients"
        )));
    }
    if plaintext.len() > limits::SEALED_BLOB_MAX {
        return Err(NetError::TooLarge(format!(
            "more than {} bytes to seal",
            limits::SEALED_BLOB_MAX
        )));
    }
    let encryptor =
        age::Encryptor::with_recipients(recipients.iter().map(|r| r.age() as &dyn age::Recipient))
            .map_err(|e| NetError::Invalid(format!("seal: {e}")))?;
    let mut sealed = Vec::with_capacity(plaintext.len() + 1024);
    let mut writer = encryptor
        .wrap_output(&mut sealed)
        .map_err(NetError::internal("seal"))?;
    writer
        .write_all(plaintext)
        .and_then(|()| writer.finish())
        .map_err(NetError::internal("seal"))?;
    Ok(sealed)
}

/// Opens an age file that holds at most `max` bytes.
///
/// # Errors
/// `Denied` when it is not sealed to this key; `Corrupt` when it was changed; `TooLarge` when it holds more.
pub fn age_open(sealed: &[u8], key: &SealingKey, max: usize) -> Result<Zeroizing<Vec<u8>>> {
    let changed = |e: &dyn std::fmt::Display| NetError::Corrupt(format!("open a sealed object: {e}"));
    let decryptor = age::Decryptor::new_buffered(sealed).map_err(|e| changed(&e))?;
    let reader = decryptor
        .decrypt(std::iter::once(key.age() as &dyn age::Identity))
        .map_err(|e| match e {
            age::DecryptError::NoMatchingKeys => {
                NetError::Denied("this object is sealed to other keys than the one given".into())
            }
            other => changed(&other),
        })?;
    // The plaintext is never longer than its sealed form, so this never grows and leaves no copies behind.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(sealed.len().min(max) + 1));
    reader
        .take(max as u64 + 1)
        .read_to_end(&mut plaintext)
        .map_err(|e| changed(&e))?;
    if plaintext.len() > max {
        return Err(NetError::TooLarge(format!(
            "a sealed object of more than {max} bytes"
        )));
    }
    Ok(plaintext)
}

fn parse<'a>(bytes: &'a [u8], trusted: &[PublicKey], vault: VaultId) -> Result<(SealedHeader, &'a [u8])> {
    if bytes.len() > limits::KEY_OBJECT_MAX {
        return Err(too_large());
    }
    let cut_short = || NetError::Corrupt("a sealed object is cut short or too long".into());
    let (signed, signature) = bytes
        .split_at_checked(bytes.len().saturating_sub(SIGNATURE_LEN))
        .ok_or_else(cut_short)?;
    let mut rest = Reader(signed);
    if rest.take::<8>().ok_or_else(cut_short)? != *MAGIC {
        return Err(NetError::Corrupt("not a sealed object".into()));
    }
    let [version, kind] = rest.take::<2>().ok_or_else(cut_short)?;
    let flags = u16::from_le_bytes(rest.take().ok_or_else(cut_short)?);
    if version != VERSION || flags != 0 {
        return Err(NetError::Unsupported(format!(
            "a sealed object of version {version}, flags {flags:#x}, which this version does not know"
        )));
    }
    let found_vault = VaultId(rest.take().ok_or_else(cut_short)?);
    let number = u32::from_le_bytes(rest.take().ok_or_else(cut_short)?);
    let signer = PublicKey(rest.take().ok_or_else(cut_short)?);
    let sealed_len = u32::from_le_bytes(rest.take().ok_or_else(cut_short)?);
    if rest.0.len() as u64 != u64::from(sealed_len) {
        return Err(cut_short());
    }
    if !trusted.contains(&signer) {
        return Err(NetError::Untrusted(format!(
            "a sealed object signed by {signer}, who is not a trusted admin"
        )));
    }
    if !signer.verifies(&signed_message(signed), signature) {
        return Err(NetError::Untrusted(
            "a sealed object whose signature is wrong".into(),
        ));
    }
    if found_vault != vault {
        return Err(NetError::Corrupt(format!(
            "a sealed object of vault {found_vault} where {vault}'s belongs"
        )));
    }
    Ok((
        SealedHeader {
            kind: SealedKind::from_code(kind)?,
            vault,
            number,
        },
        rest.0,
    ))
}

fn signed_message(bytes: &[u8]) -> Vec<u8> {
    [SIGNATURE_CONTEXT, bytes].concat()
}

fn too_large() -> NetError {
    NetError::TooLarge(format!(
        "a key object of more than {} bytes",
        limits::KEY_OBJECT_MAX
    ))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::{ErrorKind, HasKind as _};

    struct Fixture {
        recovery: SealingKey,
        admin: SigningKey,
        header: SealedHeader,
        object: Vec<u8>,
    }

    fn fixture() -> Fixture {
        let recovery = SealingKey::generate();
        let admin = SigningKey::generate().unwrap();
        let header = SealedHeader {
            kind: SealedKind::VaultKeys,
            vault: VaultId([5; 16]),
            number: 1,
        };
        let object = seal_and_sign(b"the keys", &[recovery.recipient()], &admin, header).unwrap();
        Fixture {
            recovery,
            admin,
            header,
            object,
        }
    }

    #[test]
    fn what_is_sealed_opens_for_its_recipients_only() {
        let f = fixture();
        let trusted = [f.admin.public()];
        let (header, plaintext) = open(
            &f.object,
            &f.recovery,
            &trusted,
            f.header.vault,
            SealedKind::VaultKeys,
        )
        .unwrap();
        assert_eq!((header, &plaintext[..]), (f.header, &b"the keys"[..]));
        let stranger = SealingKey::generate();
        let error = open(
            &f.object,
            &stranger,
            &trusted,
            f.header.vault,
            SealedKind::VaultKeys,
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        let error = open(
            &f.object,
            &f.recovery,
            &trusted,
            f.header.vault,
            SealedKind::Grant,
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_forged_object_and_another_vaults_are_refused() {
        let f = fixture();
        let forger = SigningKey::generate().unwrap();
        let forged = seal_and_sign(b"mine", &[f.recovery.recipient()], &forger, f.header).unwrap();
        let trusted = [f.admin.public()];
        let error = verify_signature_only(&forged, &trusted, f.header.vault).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        // The forger claims the admin's name: the signature does not fit.
        let mut claimed = forged;
        claimed[32..64].copy_from_slice(&f.admin.public().0);
        assert!(verify_signature_only(&claimed, &trusted, f.header.vault).is_err());
        let error = verify_signature_only(&f.object, &trusted, VaultId([6; 16])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_found() {
        let f = fixture();
        let trusted = [f.admin.public()];
        for index in 0..f.object.len() {
            let mut changed = f.object.clone();
            changed[index] ^= 1 << (index % 8);
            assert!(
                verify_signature_only(&changed, &trusted, f.header.vault).is_err(),
                "byte {index}"
            );
            assert!(verify_signature_only(&f.object[..index], &trusted, f.header.vault).is_err());
        }
        let longer = [&f.object[..], &[0]].concat();
        assert!(verify_signature_only(&longer, &trusted, f.header.vault).is_err());
    }

    #[test]
    fn bounds_hold() {
        let f = fixture();
        let big = vec![0; limits::KEY_OBJECT_MAX];
        let error = seal_and_sign(&big, &[f.recovery.recipient()], &f.admin, f.header).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        let sealed = age_seal(&[7; 1000], &[f.recovery.recipient()]).unwrap();
        assert_eq!(
            age_open(&sealed, &f.recovery, 999).unwrap_err().kind(),
            ErrorKind::TooLarge
        );
        assert_eq!(age_open(&sealed, &f.recovery, 1000).unwrap().len(), 1000);
        assert!(age_seal(b"x", &[]).is_err());
    }
}
