//! `controller.toml`.

use crate::error::{Error, Result};
use holdfast_core::Size;
use holdfast_net::telemetry::TelemetryConfig;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Longest configuration file.
const CONFIG_MAX: usize = 1 << 20;
/// Stores of one controller in this version.
const STORES_MAX: usize = 1;
/// Sites have names like everything else.
const DEFAULT_SITE: &str = "primary";

/// The configuration of a controller.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Raft log, catalog, index, snapshots of the catalog.
    pub data_dir: PathBuf,
    /// Who it is; written by `holdfastctl init`.
    pub identity_dir: PathBuf,
    /// The node itself.
    pub node: Node,
    /// Where packs lie.
    #[serde(default)]
    pub store: Vec<Store>,
    /// Logs, traces, metrics.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

/// The node itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its number in the cluster; never given to another node again.
    pub id: u64,
    /// Where it listens, host:port.
    pub listen: String,
    /// Where others reach it, if that is not where it listens.
    pub advertise: Option<String>,
}

/// A directory that holds packs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The site it belongs to.
    #[serde(default = "default_site")]
    pub site: String,
    /// The directory.
    pub path: PathBuf,
    /// What it keeps free for commits, deletions and garbage collection, for example "10GiB".
    pub reserve: Option<Size>,
}

fn default_site() -> String {
    DEFAULT_SITE.into()
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// `Config` with file, line and what is wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let wrong = |why: String| Error::Config(format!("{}: {why}", path.display()));
        let bytes = holdfast_net::durable::read(path, CONFIG_MAX)
            .map_err(|error| Error::Config(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8 text".into()))?;
        let config: Self =
            toml::from_str(&text).map_err(|error| wrong(with_suggestion(&error.to_string())))?;
        config.check().map_err(wrong)?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let paths = [&self.data_dir, &self.identity_dir]
            .into_iter()
            .chain(self.store.iter().map(|store| &store.path));
        if let Some(relative) = paths.into_iter().find(|path| !path.is_absolute()) {
            return Err(format!("{} is not an absolute path", relative.display()));
        }
        if self.node.id == 0 {
            return Err("node.id must be at least 1".into());
        }
        if self.store.len() > STORES_MAX {
            return Err(format!(
                "this version serves {STORES_MAX} [[store]]; remove the others"
            ));
        }
        for store in &self.store {
            store
                .site
                .parse::<holdfast_core::Name>()
                .map_err(|error| format!("site: {error}"))?;
        }
        holdfast_net::client::with_port(&self.node.listen)
            .map(|_| ())
            .map_err(|error| format!("node.listen: {error}"))
    }

    /// Where others reach this node.
    #[must_use]
    pub fn address(&self) -> &str {
        self.node.advertise.as_deref().unwrap_or(&self.node.listen)
    }
}

/// Adds the nearest known key to serde's list of them.
fn with_suggestion(error: &str) -> String {
    let mut quoted = error.split('`').skip(1).step_by(2);
    let (Some(given), true) = (quoted.next(), error.contains("unknown field")) else {
        return error.to_owned();
    };
    let nearest = quoted.min_by_key(|known| distance(given, known));
    match nearest {
        Some(known) if distance(given, known) <= 3 => format!("{error}\ndid you mean `{known}`?"),
        _ => error.to_owned(),
    }
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "data_dir = '/d'\nidentity_dir = '/i'\n[node]\nid = 1\nlisten = '127.0.0.1:7443'\n";

    fn load(text: &str) -> Result<Config> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(file.path())
    }

    #[test]
    fn sizes_have_units() {
        let config = load(&format!("{GOOD}[[store]]\npath = '/s'\nreserve = '10GiB'\n")).unwrap();
        assert_eq!(config.store[0].reserve, Some(Size(10 << 30)));
        assert_eq!(config.store[0].site, "primary");
        for bad in ["'10 GB'", "'x'", "'99999999999TiB'", "-1"] {
            assert!(
                load(&format!("{GOOD}[[store]]\npath = '/s'\nreserve = {bad}\n")).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn unknown_keys_are_named_with_line_and_suggestion() {
        let error = load(&GOOD.replace("listen", "listne")).unwrap_err().to_string();
        assert!(
            error.contains("line 5") && error.contains("did you mean `listen`?"),
            "{error}"
        );
        assert!(load(&GOOD.replace("'/d'", "'d'")).is_err());
        assert!(load(&GOOD.replace("id = 1", "id = 0")).is_err());
    }
}
