//! Which snapshot is meant: `SOURCE`, `SOURCE@latest`, `SOURCE@SNAPSHOT`, `SOURCE@TIME`.

use crate::error::{Result, invalid, lift_display};
use holdfast_core::{SnapshotId, SourceRef, UnixMillis};

/// A source at some point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The source.
    pub source: SourceRef,
    /// The point.
    pub at: At,
}

/// Which of a source's snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The newest visible one that is not partial.
    Latest,
    /// Exactly this one.
    Snapshot(SnapshotId),
    /// The newest that was finished by then.
    Time(UnixMillis),
}

impl std::str::FromStr for Address {
    type Err = holdfast_net::Fault;
    fn from_str(text: &str) -> Result<Self> {
        let (source, at) = match text.split_once('@') {
            None => (text, At::Latest),
            Some((source, at)) => (source, parse_at(at)?),
        };
        Ok(Self {
            source: source.parse().map_err(lift_display)?,
            at,
        })
    }
}

/// Reads what stands behind the `@`.
///
/// # Errors
/// `Invalid`, also for a time without a zone.
pub fn parse_at(text: &str) -> Result<At> {
    if text == "latest" {
        return Ok(At::Latest);
    }
    if let Ok(id) = text.parse() {
        return Ok(At::Snapshot(id));
    }
    let time = text
        .parse::<jiff::Timestamp>()
        .ok()
        .or_else(|| text.parse::<jiff::Zoned>().ok().map(|zoned| zoned.timestamp()));
    if let Some(time) = time {
        let millis = u64::try_from(time.as_millisecond())
            .map_err(|_| invalid(format!("{text:?} lies before 1970")))?;
        return Ok(At::Time(millis));
    }
    if text.parse::<jiff::civil::DateTime>().is_ok() || text.parse::<jiff::civil::Date>().is_ok() {
        return Err(invalid(format!(
            "{text:?} is a time without a zone, which means something else on each host"
        ))
        .with_hint("add the zone: 2026-11-20T18:30:00Z, …+01:00 or …[Europe/Berlin]"));
    }
    Err(
        invalid(format!("{text:?} is neither `latest`, a snapshot id nor a time"))
            .with_hint("holdfastctl get snapshots"),
    )
}

/// Reads a snapshot's id, alone or behind its source.
///
/// # Errors
/// `Invalid` for anything else, also for other ways to name a snapshot.
pub fn snapshot_id(text: &str) -> Result<(Option<SourceRef>, SnapshotId)> {
    if !text.contains('@') {
        let id = text.parse().map_err(|e| {
            invalid(format!("{text:?} is not a snapshot id ({e})")).with_hint("holdfastctl get snapshots")
        })?;
        return Ok((None, id));
    }
    match text.parse()? {
        Address {
            source,
            at: At::Snapshot(id),
        } => Ok((Some(source), id)),
        Address { .. } => Err(invalid(format!("{text:?} does not name one snapshot by its id"))
            .with_hint("holdfastctl get snapshots")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<At> {
        text.parse::<Address>().map(|address| address.at)
    }

    #[test]
    fn every_form_is_read() {
        let id = SnapshotId([7; 16]);
        assert_eq!(at("web1/uploads").unwrap(), At::Latest);
        assert_eq!(at("web1/uploads@latest").unwrap(), At::Latest);
        assert_eq!(at(&format!("web1/uploads@{id}")).unwrap(), At::Snapshot(id));
        let expected = At::Time(1_732_127_400_000);
        for text in [
            "2024-11-20T18:30:00Z",
            "2024-11-20T19:30:00+01:00",
            "2024-11-20 18:30:00Z",
            "2024-11-20T19:30:00[Europe/Berlin]",
        ] {
            assert_eq!(at(&format!("web1/uploads@{text}")).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn times_without_a_zone_and_nonsense_are_refused() {
        for text in ["2024-11-20T18:30:00", "2024-11-20", "2024-11-20 18:30"] {
            let fault = at(&format!("web1/uploads@{text}")).unwrap_err();
            assert!(fault.message.contains("zone"), "{fault}");
            assert!(fault.hint.is_some());
        }
        for text in [
            "web1/uploads@",
            "web1/uploads@yesterday",
            "web1@latest",
            "Web1/uploads",
            "a/b@latest@x",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn snapshots_are_named_alone_or_behind_their_source() {
        let id = SnapshotId([7; 16]);
        assert_eq!(snapshot_id(&id.to_string()).unwrap(), (None, id));
        assert_eq!(snapshot_id(&format!("web1/u@{id}")).unwrap().1, id);
        assert!(snapshot_id("web1/u@latest").is_err());
        assert!(snapshot_id("web1/u").is_err());
    }
}
