//! Who a certificate says its holder is: `holdfast://<cluster>/<role>/<name>/<incarnation>`.

use crate::error::{NetError, Result};
use holdfast_core::{ClusterId, Name};
use std::{fmt, str::FromStr};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// The DNS name that every controller's certificate carries, whatever address it listens on.
pub const CONTROLLER_DNS_NAME: &str = "controller.holdfast.internal";

const SCHEME: &str = "holdfast://";

/// What the holder of a certificate may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A person or automation that operates the cluster.
    Admin,
    /// A host that is backed up.
    Agent,
    /// A member of the cluster.
    Controller,
}

impl Role {
    /// The role as written in certificates and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Agent => "agent",
            Self::Controller => "controller",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "admin" => Ok(Self::Admin),
            "agent" => Ok(Self::Agent),
            "controller" => Ok(Self::Controller),
            _ => Err(NetError::Invalid(format!(
                "{text:?} is not a role: use admin, agent or controller"
            ))),
        }
    }
}

/// A verified or claimed identity; shown as its URI.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// What it may be.
    pub role: Role,
    /// Its name within the role.
    pub name: Name,
    /// Counts how often the name was given out; older ones are refused.
    pub incarnation: u32,
}

impl Identity {
    /// `role/name`, as audit records show who acted.
    #[must_use]
    pub fn actor(&self) -> String {
        format!("{}/{}", self.role, self.name)
    }

    /// Reads the identity out of a certificate. Says nothing about whether the certificate is to be trusted.
    ///
    /// # Errors
    /// `Untrusted` when the certificate is malformed or does not hold exactly one identity.
    pub fn from_certificate(der: &[u8]) -> Result<Self> {
        let malformed = |e: &dyn fmt::Display| NetError::Untrusted(format!("read a certificate: {e}"));
        let (_, certificate) = parse_x509_certificate(der).map_err(|e| malformed(&e))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| malformed(&e))?
            .ok_or_else(|| NetError::Untrusted("the certificate names nobody".into()))?;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(NetError::Untrusted(
                "the certificate does not hold exactly one identity".into(),
            ));
        };
        uri.parse()
            .map_err(|e: NetError| NetError::Untrusted(e.to_string()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{SCHEME}{}/{}/{}/{}",
            self.cluster, self.role, self.name, self.incarnation
        )
    }
}

impl FromStr for Identity {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            NetError::Invalid(format!(
                "{:?} is not an identity",
                text.chars().take(120).collect::<String>()
            ))
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(bad)?;
        let mut parts = rest.split('/');
        let (Some(cluster), Some(role), Some(name), Some(incarnation), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(bad());
        };
        let identity = Self {
            cluster: cluster.parse().map_err(|_| bad())?,
            role: role.parse()?,
            name: name.parse().map_err(|_| bad())?,
            incarnation: incarnation.parse().map_err(|_| bad())?,
        };
        // One spelling per identity: "+1", "01" or a lower-case cluster would slip past comparisons of text.
        if identity.to_string() == text {
            Ok(identity)
        } else {
            Err(bad())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_round_trip_and_have_one_spelling() {
        let identity = Identity {
            cluster: ClusterId([7; 16]),
            role: Role::Agent,
            name: "web1".parse().unwrap(),
            incarnation: 3,
        };
        let uri = identity.to_string();
        assert_eq!(uri.parse::<Identity>().unwrap(), identity);
        assert_eq!(identity.actor(), "agent/web1");
        for bad in [
            uri.replace("/3", "/03"),
            uri.replace("/3", "/+3"),
            uri.replace("/3", ""),
            format!("{uri}/x"),
            uri.replace("agent", "root"),
            uri.replace("web1", "Web1"),
            uri.replace("holdfast", "https"),
            String::new(),
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
