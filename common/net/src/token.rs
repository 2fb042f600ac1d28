//! Join tokens: how a new host recognises its cluster, proves that it was invited, and gets its vault's keys
//! past controllers that must not see them.
//!
//! Text form: `holdfast-join-1.` · base64url of a JSON object · `.` · checksum.

use crate::{
    error::{NetError, Result},
    identity::Role,
    pki::Fingerprint,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holdfast_core::{ClusterId, Name, UnixMillis, VaultId, limits};
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path};
use zeroize::{Zeroize as _, Zeroizing};

const PREFIX: &str = "holdfast-join-1.";
const TOKEN_MAX: usize = 16 * 1024;
const CHECK_LEN: usize = 8;

/// `derive(ctx, secret)` of the joining protocol: BLAKE3's key derivation under `"holdfast v1 " + ctx`.
#[must_use]
pub fn derive(context: &str, secret: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(blake3::derive_key(&format!("holdfast v1 {context}"), secret))
}

/// An invitation for one name, used once.
#[derive(Clone)]
pub struct JoinToken {
    /// The cluster.
    pub cluster: ClusterId,
    /// The root that its controllers must show.
    pub ca_fingerprint: Fingerprint,
    /// Where its controllers are.
    pub addresses: Vec<String>,
    /// The name that the joining host gets.
    pub name: Name,
    /// What it may be: an agent or a controller.
    pub role: Role,
    /// Agents: the vault, with its name.
    pub vault: Option<(VaultId, Name)>,
    /// Known to the admin and the joining host alone.
    pub secret: Zeroizing<[u8; 32]>,
    /// After this it is refused.
    pub expires_at: UnixMillis,
}

/// What the JSON object holds; version 1 knows exactly these.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    cluster: ClusterId,
    ca: String,
    addresses: Vec<String>,
    name: Name,
    role: String,
    vault: Option<VaultId>,
    vault_name: Option<Name>,
    secret: String,
    expires_at: UnixMillis,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl JoinToken {
    /// A fresh secret.
    ///
    /// # Errors
    /// `Internal` when the system gives no randomness.
    pub fn new_secret() -> Result<Zeroizing<[u8; 32]>> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut secret[..]).map_err(NetError::internal("draw random bytes"))?;
        Ok(secret)
    }

    /// What the joining host shows to the controller.
    #[must_use]
    pub fn join_auth(&self) -> Zeroizing<[u8; 32]> {
        derive("join-auth", &self.secret)
    }

    /// What the controller keeps to recognise it.
    #[must_use]
    pub fn join_auth_hash(&self) -> [u8; 32] {
        hash_join_auth(&self.join_auth()[..])
    }

    /// Wraps the vault's keys so that only a holder of this token can unwrap them.
    ///
    /// # Errors
    /// `TooLarge` beyond `limits::KEY_OBJECT_MAX`; `Internal` when the system gives no randomness.
    pub fn wrap(&self, plaintext: &[u8]) -> Result<Vec<u8>> {
        if plaintext.len() > limits::KEY_OBJECT_MAX {
            return Err(NetError::TooLarge(format!(
                "more than {} bytes of keys",
                limits::KEY_OBJECT_MAX
            )));
        }
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(NetError::internal("draw random bytes"))?;
        let mut sealed = Zeroizing::new(plaintext.to_vec());
        self.wrap_key()?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), self.aad(), &mut *sealed)
            .map_err(NetError::internal("wrap keys"))?;
        Ok([&nonce[..], &sealed[..]].concat())
    }

    /// Unwraps what the controller handed over.
    ///
    /// # Errors
    /// `Corrupt` when it was changed or made for another token, name, vault or cluster.
    pub fn unwrap(&self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let wrong = || {
            NetError::Corrupt("the vault's keys do not unwrap with this token: ask for a new token".into())
        };
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        if sealed.len() > limits::KEY_OBJECT_MAX + AES_256_GCM.tag_len() {
            return Err(wrong());
        }
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let length = self
            .wrap_key()?
            .open_in_place(Nonce::assume_unique_for_key(*nonce), self.aad(), &mut buffer)
            .map_err(|_| wrong())?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }

    /// The token as one line of text, secret included.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let wire = Wire {
            cluster: self.cluster,
            ca: self.ca_fingerprint.to_string(),
            addresses: self.addresses.clone(),
            name: self.name.clone(),
            role: self.role.to_string(),
            vault: self.vault.as_ref().map(|(id, _)| *id),
            vault_name: self.vault.as_ref().map(|(_, name)| name.clone()),
            secret: hex::encode(&self.secret[..]),
            expires_at: self.expires_at,
        };
        // Texts, numbers and ids: encoding them cannot fail.
        let json = Zeroizing::new(serde_json::to_vec(&wire).unwrap_or_default());
        let mut text = Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&json[..])));
        let check = checksum(&text);
        text.push('.');
        text.push_str(&check);
        text
    }

    /// Reads [`JoinToken::to_text`]; white space around and line breaks within do not matter.
    ///
    /// # Errors
    /// `Invalid` when it is not a token; `Corrupt` when it was damaged on the way.
    pub fn from_text(text: &str) -> Result<Self> {
        let damaged = || NetError::Corrupt("the join token is damaged: copy it again, whole".into());
        if text.len() > TOKEN_MAX {
            return Err(damaged());
        }
        let text = Zeroizing::new(text.split_ascii_whitespace().collect::<String>());
        if !text.starts_with(PREFIX) {
            return Err(NetError::Invalid(format!(
                "this is not a join token: it begins with {PREFIX}"
            )));
        }
        let (body, check) = text.rsplit_once('.').ok_or_else(damaged)?;
        if checksum(body) != check {
            return Err(damaged());
        }
        let encoded = body.strip_prefix(PREFIX).ok_or_else(damaged)?;
        let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| damaged())?);
        let wire: Wire = serde_json::from_slice(&json).map_err(|_| damaged())?;
        let mut secret = Zeroizing::new([0; 32]);
        hex::decode_to_slice(&wire.secret, &mut secret[..]).map_err(|_| damaged())?;
        let role: Role = wire.role.parse()?;
        let vault = match (role, wire.vault, wire.vault_name.clone()) {
            (Role::Agent, Some(id), Some(name)) => Some((id, name)),
            (Role::Controller, None, None) => None,
            _ => return Err(damaged()),
        };
        Ok(Self {
            cluster: wire.cluster,
            ca_fingerprint: wire.ca.parse()?,
            addresses: wire.addresses.clone(),
            name: wire.name.clone(),
            role,
            vault,
            secret,
            expires_at: wire.expires_at,
        })
    }

    /// Reads a token from a file, or from standard input for `-`; never from an argument, which others can see.
    ///
    /// # Errors
    /// As [`JoinToken::from_text`]; `NotFound` or `Io`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = if path == Path::new("-") {
            use std::io::Read as _;
            let mut bytes = Vec::with_capacity(TOKEN_MAX);
            std::io::stdin()
                .take(TOKEN_MAX as u64)
                .read_to_end(&mut bytes)
                .map_err(NetError::io("read standard input"))?;
            bytes
        } else {
            crate::durable::read(path, TOKEN_MAX)?
        };
        let bytes = Zeroizing::new(bytes);
        Self::from_text(
            std::str::from_utf8(&bytes).map_err(|_| NetError::Invalid("not a join token".into()))?,
        )
    }

    fn wrap_key(&self) -> Result<LessSafeKey> {
        let key = derive("join-wrap", &self.secret);
        let key = UnboundKey::new(&AES_256_GCM, &key[..]).map_err(NetError::internal("prepare a key"))?;
        Ok(LessSafeKey::new(key))
    }

    fn aad(&self) -> Aad<Vec<u8>> {
        let name = self.name.as_str().as_bytes();
        let vault = self.vault.as_ref().map_or([0; 16], |(id, _)| id.0);
        // Names are at most 63 bytes.
        let name_len = [u8::try_from(name.len()).unwrap_or(u8::MAX)];
        Aad::from([self.cluster.as_bytes(), &name_len[..], name, &vault].concat())
    }
}

/// The hash by which a controller recognises a join-auth value.
#[must_use]
pub fn hash_join_auth(join_auth: &[u8]) -> [u8; 32] {
    *blake3::hash(join_auth).as_bytes()
}

fn checksum(text: &str) -> String {
    hex::encode(&blake3::hash(text.as_bytes()).as_bytes()[..CHECK_LEN])
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "JoinToken({}/{}, cluster {}, secret hidden)",
            self.role, self.name, self.cluster
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            cluster: ClusterId([1; 16]),
            ca_fingerprint: Fingerprint([2; 32]),
            addresses: vec!["ctl1:7443".into(), "[::1]:7443".into()],
            name: "web1".parse().unwrap(),
            role: Role::Agent,
            vault: Some((VaultId([3; 16]), "web".parse().unwrap())),
            secret: JoinToken::new_secret().unwrap(),
            expires_at: 1_700_000_000_000,
        }
    }

    #[test]
    fn tokens_round_trip_through_text() {
        let token = token();
        let again = JoinToken::from_text(&format!(" {}\n", *token.to_text())).unwrap();
        assert_eq!(*again.secret, *token.secret);
        assert_eq!(again.vault, token.vault);
        assert_eq!(again.addresses, token.addresses);
        assert_eq!((again.role, again.expires_at), (token.role, token.expires_at));
        let controller = JoinToken {
            role: Role::Controller,
            vault: None,
            ..token
        };
        assert!(
            JoinToken::from_text(&controller.to_text())
                .unwrap()
                .vault
                .is_none()
        );
    }

    #[test]
    fn any_changed_character_is_found() {
        let text = token().to_text();
        for index in 0..text.len() {
            let mut changed = text.as_bytes().to_vec();
            changed[index] = if changed[index] == b'x' { b'y' } else { b'x' };
            assert!(
                JoinToken::from_text(std::str::from_utf8(&changed).unwrap()).is_err(),
                "byte {index}"
            );
        }
    }

    #[test]
    fn keys_unwrap_only_for_the_same_token_name_vault_and_cluster() {
        let token = token();
        let wrapped = token.wrap(b"vault keys").unwrap();
        assert_eq!(&token.unwrap(&wrapped).unwrap()[..], b"vault keys");
        assert_ne!(wrapped, token.wrap(b"vault keys").unwrap(), "nonces differ");
        let vault = Some((VaultId([9; 16]), "web".parse().unwrap()));
        for other in [
            JoinToken {
                secret: JoinToken::new_secret().unwrap(),
                ..token.clone()
            },
            JoinToken {
                name: "web2".parse().unwrap(),
                ..token.clone()
            },
            JoinToken {
                cluster: ClusterId([9; 16]),
                ..token.clone()
            },
            JoinToken {
                vault,
                ..token.clone()
            },
        ] {
            assert!(other.unwrap(&wrapped).is_err());
        }
        for index in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[index] ^= 0x40;
            assert!(token.unwrap(&changed).is_err());
            assert!(token.unwrap(&wrapped[..index]).is_err());
        }
    }

    #[test]
    fn debug_hides_the_secret_and_the_hash_does_not_reveal_it() {
        let token = token();
        assert!(!format!("{token:?}").contains(&hex::encode(&token.secret[..4])));
        assert_eq!(token.join_auth_hash(), hash_join_auth(&token.join_auth()[..]));
        assert_ne!(*token.join_auth(), *token.secret);
    }
}
