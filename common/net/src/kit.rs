//! The recovery kit: what brings everything back when every controller is gone. Printed once by `init`.
//!
//! A text of `key: value` lines; a line that begins with a space goes on with the value above it; `#` begins a
//! comment. The last line is a checksum over all others, so that a copy typed from paper is known to be right.

use crate::{
    durable,
    error::{NetError, Result},
    keys::{PublicKey, SealingKey, TlsKey},
    pki::{Fingerprint, RootCa},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_core::{ClusterId, Name};
use rustls_pki_types::CertificateDer;
use std::{fmt, path::Path};
use zeroize::Zeroizing;

const VERSION: &str = "1";
const KIT_MAX: usize = 64 * 1024;
/// Width of wrapped values: fits a page and a terminal.
const LINE_LEN: usize = 64;
/// Bytes of the checksum that are shown.
const CHECK_LEN: usize = 8;

/// Everything that recovery needs.
#[derive(Clone)]
pub struct RecoveryKit {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name, for people.
    pub cluster_name: Name,
    /// Opens the vaults' key objects.
    pub recovery_key: SealingKey,
    /// The admins whose signatures on key objects count.
    pub admin_keys: Vec<PublicKey>,
    /// The offline root, certificate and private key.
    pub root: RootCa,
}

impl RecoveryKit {
    /// The fingerprint of the root.
    #[must_use]
    pub fn ca_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.root.certificate())
    }

    /// The kit as text, secrets included.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(4096));
        text.push_str(&format!(
            "# Holdfast recovery kit of cluster {}.\n\
             # Whoever holds it can read every backup and make administrators. Keep it offline, in two places.\n\
             # To use it: holdfastctl recover --from STORE --kit THIS_FILE --list\n",
            self.cluster_name
        ));
        push(&mut text, "holdfast-recovery-kit", VERSION);
        push(&mut text, "cluster", &self.cluster.to_string());
        push(&mut text, "cluster-name", self.cluster_name.as_str());
        push(&mut text, "recovery-key", &self.recovery_key.to_text());
        for key in &self.admin_keys {
            push(&mut text, "admin-public-key", &key.to_string());
        }
        push(&mut text, "ca-fingerprint", &self.ca_fingerprint().to_string());
        push(
            &mut text,
            "root-certificate",
            &STANDARD.encode(self.root.certificate()),
        );
        push(
            &mut text,
            "root-key",
            &Zeroizing::new(STANDARD.encode(self.root.key().pkcs8())),
        );
        let check = checksum(&parse_lines(&text));
        push(&mut text, "check", &check);
        text
    }

    /// Reads [`RecoveryKit::to_text`].
    ///
    /// # Errors
    /// `Corrupt` when the checksum is wrong or parts are missing; `Unsupported` for a newer form.
    pub fn from_text(text: &str) -> Result<Self> {
        let broken = |what: &str| NetError::Corrupt(format!("the recovery kit is damaged: {what}"));
        if text.len() > KIT_MAX {
            return Err(broken("it is too long"));
        }
        let mut lines = parse_lines(text);
        match lines.first() {
            Some((key, value)) if key == "holdfast-recovery-kit" && value.as_str() == VERSION => {}
            Some((key, value)) if key == "holdfast-recovery-kit" => {
                return Err(NetError::Unsupported(format!(
                    "a recovery kit of version {}, which this version does not know",
                    value.as_str()
                )));
            }
            _ => return Err(NetError::Invalid("this file is not a recovery kit".into())),
        }
        let found = match lines.pop() {
            Some((key, value)) if key == "check" => value,
            _ => return Err(broken("it does not end with its checksum")),
        };
        if checksum(&lines) != *found {
            return Err(broken("the checksum is wrong; compare it with another copy"));
        }
        let one = |key: &str| {
            let mut values = lines.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str());
            match (values.next(), values.next()) {
                (Some(value), None) => Ok(value),
                _ => Err(broken(&format!("{key} must be there once"))),
            }
        };
        let binary = |key: &str| {
            STANDARD
                .decode(one(key)?)
                .map(Zeroizing::new)
                .map_err(|_| broken(&format!("{key} is not base64")))
        };
        let root = RootCa::from_parts(
            CertificateDer::from(binary("root-certificate")?.to_vec()),
            TlsKey::from_pkcs8(&binary("root-key")?)?,
        )?;
        let admin_keys = lines
            .iter()
            .filter(|(k, _)| k == "admin-public-key")
            .map(|(_, v)| v.parse())
            .collect::<Result<Vec<_>>>()?;
        let kit = Self {
            cluster: one("cluster")?.parse().map_err(|_| broken("the cluster id"))?,
            cluster_name: one("cluster-name")?
                .parse()
                .map_err(|_| broken("the cluster's name"))?,
            recovery_key: one("recovery-key")?.parse()?,
            admin_keys,
            root,
        };
        if kit.admin_keys.is_empty() {
            return Err(broken("it names no admin"));
        }
        if kit.ca_fingerprint() != one("ca-fingerprint")?.parse()? {
            return Err(broken("the root certificate does not have the fingerprint"));
        }
        Ok(kit)
    }

    /// Writes the kit to a new file, mode 0600.
    ///
    /// # Errors
    /// `Conflict` when the file exists; `Io` or `NoSpace`.
    pub fn save(&self, path: &Path) -> Result<()> {
        durable::create(path, self.to_text().as_bytes(), durable::PRIVATE_FILE)
    }

    /// Reads a kit from a file.
    ///
    /// # Errors
    /// As [`RecoveryKit::from_text`]; `NotFound` or `Io`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = Zeroizing::new(durable::read(path, KIT_MAX)?);
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| NetError::Invalid(format!("{} is not a recovery kit", path.display())))?;
        Self::from_text(text)
    }
}

impl fmt::Debug for RecoveryKit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RecoveryKit({} {}, {})",
            self.cluster_name,
            self.cluster,
            self.ca_fingerprint()
        )
    }
}

type Lines = Vec<(String, Zeroizing<String>)>;

fn push(text: &mut String, key: &str, value: &str) {
    text.push_str(key);
    text.push(':');
    let mut rest = value;
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE_LEN));
        // A value that fits stays beside its key; a longer one goes below it.
        text.push_str(if value.len() > LINE_LEN { "\n  " } else { " " });
        text.push_str(line);
        rest = tail;
    }
    text.push('\n');
}

/// Keys and values in order, continuation lines joined; white space carries no meaning within a value.
fn parse_lines(text: &str) -> Lines {
    let mut lines: Lines = Vec::new();
    for line in text.lines() {
        let goes_on = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match (goes_on, lines.last_mut(), line.split_once(':')) {
            (true, Some((_, value)), _) => value.push_str(line),
            (_, _, Some((key, value))) => {
                lines.push((key.trim().to_owned(), Zeroizing::new(value.trim().to_owned())));
            }
            // No key: kept, so that the checksum fails.
            _ => lines.push((line.to_owned(), Zeroizing::default())),
        }
    }
    lines
}

fn checksum(lines: &Lines) -> String {
    let mut hasher = blake3::Hasher::new();
    for (key, value) in lines {
        for part in [key.as_bytes(), value.as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hex::encode(&hasher.finalize().as_bytes()[..CHECK_LEN])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;
    use holdfast_core::{ErrorKind, HasKind as _};
    use std::{os::unix::fs::PermissionsExt as _, time::SystemTime};

    fn kit() -> RecoveryKit {
        let cluster = ClusterId::generate();
        RecoveryKit {
            cluster,
            cluster_name: "prod".parse().unwrap(),
            recovery_key: SealingKey::generate(),
            admin_keys: vec![
                SigningKey::generate().unwrap().public(),
                SigningKey::generate().unwrap().public(),
            ],
            root: RootCa::generate(cluster, SystemTime::now()).unwrap(),
        }
    }

    #[test]
    fn kits_round_trip_through_text_and_rough_typing() {
        let kit = kit();
        let text = kit.to_text();
        let check = |again: RecoveryKit| {
            assert_eq!(again.cluster, kit.cluster);
            assert_eq!(again.admin_keys, kit.admin_keys);
            assert_eq!(*again.recovery_key.to_text(), *kit.recovery_key.to_text());
            assert_eq!(again.root.key().pkcs8(), kit.root.key().pkcs8());
        };
        check(RecoveryKit::from_text(&text).unwrap());
        let roughly = text.replace("\n  ", "\n\t ").replace('\n', "  \r\n");
        check(RecoveryKit::from_text(&roughly).unwrap());
    }

    #[test]
    fn any_changed_character_is_found() {
        let text = kit().to_text();
        for (index, byte) in text.bytes().enumerate() {
            let in_comment = text[..index].rsplit('\n').next().unwrap().starts_with('#');
            if in_comment || !byte.is_ascii_alphanumeric() {
                continue;
            }
            let mut changed = text.as_bytes().to_vec();
            changed[index] = if byte == b'x' { b'y' } else { b'x' };
            assert!(
                RecoveryKit::from_text(std::str::from_utf8(&changed).unwrap()).is_err(),
                "byte {index}"
            );
        }
        assert_eq!(
            RecoveryKit::from_text("hello").unwrap_err().kind(),
            ErrorKind::Invalid
        );
    }

    #[test]
    fn the_file_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kit.txt");
        let kit = kit();
        kit.save(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(kit.save(&path).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(RecoveryKit::load(&path).unwrap().cluster, kit.cluster);
        let debug = format!("{kit:?}");
        assert!(
            !debug.contains("SECRET") && !debug.contains(&STANDARD.encode(&kit.root.key().pkcs8()[40..60]))
        );
    }
}
