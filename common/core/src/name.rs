//! Names that people give: agents, vaults, sources. Checked once, at the edge.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr};

/// The longest name in bytes: fits a DNS label, a file name and a column.
const MAX_NAME_LEN: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not of the form that names have.
    #[error(
        "{0:?} is not a name: use 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit"
    )]
    Malformed(String),
    /// Not `agent/source`.
    #[error("{0:?} is not a source: write AGENT/SOURCE, for example web1/uploads")]
    NotASource(String),
}

/// The name of an agent, a vault or a source.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let starts_well = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let all_allowed = text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'));
        if starts_well && all_allowed && text.len() <= MAX_NAME_LEN {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Malformed(text.chars().take(80).collect()))
        }
    }
}

/// A source's address: `agent/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRef {
    /// The agent that serves it.
    pub agent: Name,
    /// Its name on that agent.
    pub source: Name,
}

impl FromStr for SourceRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (agent, source) = text
            .split_once('/')
            .ok_or_else(|| NameError::NotASource(text.chars().take(80).collect()))?;
        Ok(Self {
            agent: agent.parse()?,
            source: source.parse()?,
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.agent, self.source)
    }
}

/// Text forms for Debug and serde, the same for both types.
macro_rules! text_form {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.to_string())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

text_form!(Name);
text_form!(SourceRef);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!("web1".parse::<Name>().is_ok());
        assert!("9.a-b_c".parse::<Name>().is_ok());
        for bad in ["", "-a", "Web", "a/b", "a b", "..", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sources_are_agent_slash_name() {
        let source: SourceRef = "web1/uploads".parse().unwrap();
        assert_eq!(source.to_string(), "web1/uploads");
        assert!("web1".parse::<SourceRef>().is_err());
        assert!("web1/a/b".parse::<SourceRef>().is_err());
    }
}
