//! What waits for the controllers, and when somebody should look at it.

use super::spool::Fill;
use holdfast_net::metrics::Metrics;
use prometheus_client::metrics::{family::Family, gauge::Gauge};
use std::time::Duration;

/// A spool that is fuller than one in so many is told of: there is still time to do something.
const FULL_ONE_IN: u64 = 2;
/// WAL that waits in the spool for longer than this is told of: the controllers are away, or too slow.
const OLD: Duration = Duration::from_secs(120);
/// So many files that the server has ready are told of: 1 GiB of WAL, with the usual segments.
const READY_MANY: u64 = 64;

/// What waits of one source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// In the spool.
    pub fill: Fill,
    /// Where that is.
    pub dir: String,
    /// Files that the server has ready for its archive.
    pub ready_files: u64,
    /// Their bytes, reckoned as if they were segments.
    pub ready_bytes: u64,
    /// Why nothing gets to the controllers, if so.
    pub trouble: Option<String>,
}

/// Something that somebody should look at: its kind, which stays, and its words, which change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alert {
    pub kind: &'static str,
    pub text: String,
}

impl Waiting {
    /// What somebody should look at.
    pub fn alerts(&self) -> Vec<Alert> {
        let Fill {
            files,
            bytes,
            limit,
            oldest_ms,
            aside,
        } = self.fill;
        let trouble = self.trouble.as_deref();
        let why = trouble.map_or_else(String::new, |why| format!(": {why}"));
        let mut alerts = Vec::new();
        let mut alert = |kind, text| alerts.push(Alert { kind, text });
        if aside > 0 {
            alert(
                "aside",
                format!(
                    "{aside} files of WAL are set aside in {}/aside on the agent's host: damaged, or the journal has others of \
                     their names; look at the agent's log, and remove them there when they are not needed",
                    self.dir
                ),
            );
        }
        if limit > 0 && bytes > limit / FULL_ONE_IN {
            alert(
                "full",
                format!(
                    "the agent's WAL spool is {} % full ({files} files, {} of {} MiB){why}",
                    bytes.saturating_mul(100) / limit,
                    bytes >> 20,
                    limit >> 20
                ),
            );
        }
        if u128::from(oldest_ms) > OLD.as_millis() {
            let minutes = oldest_ms / 60_000;
            alert(
                "old",
                format!("WAL waits in the agent's spool for {minutes} minutes{why}"),
            );
        }
        if self.ready_files >= READY_MANY {
            alert(
                "ready",
                format!(
                    "{} files of WAL ({} MiB) wait at the server to be archived{why}",
                    self.ready_files,
                    self.ready_bytes >> 20
                ),
            );
        }
        alerts
    }
}

type Labels = Vec<(&'static str, String)>;

/// The same for collectors.
#[derive(Clone, Default)]
pub(super) struct Gauges {
    files: Family<Labels, Gauge>,
    bytes: Family<Labels, Gauge>,
    limit: Family<Labels, Gauge>,
    oldest: Family<Labels, Gauge>,
    aside: Family<Labels, Gauge>,
    ready: Family<Labels, Gauge>,
    ready_bytes: Family<Labels, Gauge>,
}

impl Gauges {
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            let mut add = |name: &str, help: &str, gauge: &Family<Labels, Gauge>| {
                registry.register(name, help, gauge.clone());
            };
            add("agent_wal_spool_files", "Files of WAL in the spool", &this.files);
            add("agent_wal_spool_bytes", "Bytes of the spool", &this.bytes);
            add(
                "agent_wal_spool_limit_bytes",
                "Most bytes of the spool",
                &this.limit,
            );
            add(
                "agent_wal_spool_oldest_seconds",
                "How long the oldest file waits in the spool",
                &this.oldest,
            );
            add(
                "agent_wal_spool_aside_files",
                "Files of WAL that are damaged or were refused, and wait for somebody",
                &this.aside,
            );
            add(
                "agent_wal_ready_files",
                "Files that the server has ready for its archive",
                &this.ready,
            );
            add(
                "agent_wal_ready_bytes",
                "Bytes that the server has ready for its archive",
                &this.ready_bytes,
            );
        });
        this
    }

    pub fn set(&self, source: &str, waiting: &Waiting) {
        let labels = vec![("source", source.to_owned())];
        let set = |family: &Family<Labels, Gauge>, value: u64| {
            family
                .get_or_create(&labels)
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.files, waiting.fill.files);
        set(&self.bytes, waiting.fill.bytes);
        set(&self.limit, waiting.fill.limit);
        set(&self.oldest, waiting.fill.oldest_ms / 1000);
        set(&self.aside, waiting.fill.aside);
        set(&self.ready, waiting.ready_files);
        set(&self.ready_bytes, waiting.ready_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(waiting: &Waiting) -> Vec<&'static str> {
        waiting.alerts().iter().map(|alert| alert.kind).collect()
    }

    #[test]
    fn what_is_usual_alerts_nobody() {
        let mut waiting = Waiting::default();
        assert!(kinds(&waiting).is_empty());
        waiting.fill = Fill {
            files: 3,
            bytes: 50,
            limit: 100,
            oldest_ms: 1000,
            aside: 0,
        };
        waiting.ready_files = READY_MANY - 1;
        assert!(kinds(&waiting).is_empty());
        waiting.fill.bytes = 51;
        assert_eq!(kinds(&waiting), ["full"]);
        waiting.fill.oldest_ms = 300_000;
        waiting.fill.aside = 1;
        waiting.ready_files = READY_MANY;
        waiting.trouble = Some("nobody answers".into());
        assert_eq!(kinds(&waiting), ["aside", "full", "old", "ready"]);
        assert!(waiting.alerts()[1].text.contains("nobody answers"));
    }
}
