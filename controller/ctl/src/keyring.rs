//! The admin's keyring: vaults' keys as files, and how one that is missing is got from its key object.

use crate::{
    context::Context,
    error::{Result, fault, lift},
};
use holdfast_core::{ErrorKind, VaultId};
use holdfast_net::{
    durable,
    sealed::{self, SealedHeader, SealedKind},
};
use holdfast_repo::VaultKeys;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Largest encoded keys: thousands of generations.
const KEYS_MAX: usize = 1024 * 1024;

impl Context {
    fn key_file(&self, vault: VaultId) -> PathBuf {
        self.keyring_dir().join(format!("{vault}.key"))
    }

    /// A vault's keys from the keyring, if they are there.
    pub(crate) fn keys(&self, vault: VaultId) -> Result<Option<VaultKeys>> {
        let path = self.key_file(vault);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = Zeroizing::new(durable::read(&path, KEYS_MAX).map_err(lift)?);
        decode(&bytes, vault).map(Some)
    }

    /// Puts keys into the keyring.
    pub(crate) fn keep_keys(&self, keys: &VaultKeys) -> Result<()> {
        durable::write(
            &self.key_file(keys.vault()),
            &keys.encode(),
            durable::PRIVATE_FILE,
        )
        .map_err(lift)
    }

    /// Opens a vault's key object, and keeps what is inside.
    pub(crate) fn open_keys(&self, vault: VaultId, object: &[u8]) -> Result<VaultKeys> {
        let trusted = &self.admin_public_keys;
        let (_, bytes) =
            sealed::open(object, &self.sealing, trusted, vault, SealedKind::VaultKeys).map_err(lift)?;
        let keys = decode(&bytes, vault)?;
        self.keep_keys(&keys)?;
        Ok(keys)
    }

    /// The key object of a new vault: sealed to the recovery recipient and to us, signed by us.
    pub(crate) fn seal_keys(&self, keys: &VaultKeys) -> Result<Vec<u8>> {
        let recipients = [self.recovery_recipient.clone(), self.sealing.recipient()];
        let header = SealedHeader {
            kind: SealedKind::VaultKeys,
            vault: keys.vault(),
            number: 1,
        };
        sealed::seal_and_sign(&keys.encode(), &recipients, &self.signing, header).map_err(lift)
    }
}

/// Reads a vault's keys, and makes sure that they are that vault's.
pub(crate) fn decode(bytes: &[u8], vault: VaultId) -> Result<VaultKeys> {
    let keys = VaultKeys::decode(bytes)
        .map_err(|e| fault(ErrorKind::Corrupt, format!("read a vault's keys: {e}")))?;
    if keys.vault() == vault {
        Ok(keys)
    } else {
        Err(fault(
            ErrorKind::Corrupt,
            format!(
                "the keys of vault {} stand in the place of {vault}'s",
                keys.vault()
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::context;

    #[test]
    fn keys_are_kept_and_opened_from_their_object() {
        let dir = tempfile::tempdir().unwrap();
        let context = context(dir.path());
        context.save().unwrap();
        let keys = VaultKeys::generate(VaultId::generate()).unwrap();
        assert!(context.keys(keys.vault()).unwrap().is_none());
        let object = context.seal_keys(&keys).unwrap();
        assert!(context.open_keys(keys.vault(), &object).unwrap() == keys);
        assert!(context.keys(keys.vault()).unwrap().unwrap() == keys);
        assert!(context.open_keys(VaultId::generate(), &object).is_err());
    }

    #[test]
    fn keys_of_another_vault_are_refused() {
        let keys = VaultKeys::generate(VaultId::generate()).unwrap();
        assert!(decode(&keys.encode(), VaultId::generate()).is_err());
    }
}
