//! What lists show: the catalog's records in their stable JSON form, and as table rows.

mod agent;
mod cluster;
mod job;
mod journal;
mod limits;
mod snapshot;
mod source;
mod test_restore;

pub(crate) use agent::AgentRow;
pub(crate) use cluster::{AuditRow, MemberRow, VaultRow};
pub(crate) use job::{Finding, JobRow};
pub(crate) use journal::{JournalDescription, JournalFileRow, TailRow, TimelineRow};
pub(crate) use snapshot::{SnapshotRow, Stats};
pub(crate) use source::SourceRow;
pub(crate) use test_restore::{TestReportRow, TestSummaryRow};

use crate::error::{Result, fault};
use holdfast_core::{ErrorKind, Name, SourceRef};
use holdfast_proto::v1;

/// An id from its wire form.
pub(crate) fn id<'a, T>(raw: &'a [u8]) -> Result<T>
where
    T: TryFrom<&'a [u8]>,
    T::Error: std::fmt::Display,
{
    T::try_from(raw).map_err(|e| fault(ErrorKind::Internal, format!("the controller sent {e}")))
}

/// An id that may be absent.
pub(crate) fn optional_id<'a, T>(raw: &'a [u8]) -> Result<Option<T>>
where
    T: TryFrom<&'a [u8]>,
    T::Error: std::fmt::Display,
{
    if raw.is_empty() {
        Ok(None)
    } else {
        id(raw).map(Some)
    }
}

/// A source from its wire form.
pub(crate) fn source(wire: Option<v1::SourceRef>) -> Result<SourceRef> {
    let v1::SourceRef { agent, source } = wire.ok_or_else(|| {
        fault(
            ErrorKind::Internal,
            "the controller sent a record without its source",
        )
    })?;
    let name = |text: String| -> Result<Name> {
        text.parse()
            .map_err(|e| fault(ErrorKind::Internal, format!("the controller sent a name: {e}")))
    };
    Ok(SourceRef {
        agent: name(agent)?,
        source: name(source)?,
    })
}

fn text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn or_dash(text: &Option<impl ToString>) -> String {
    text.as_ref().map_or_else(|| "-".into(), ToString::to_string)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::output::{Format, Row as _, rows};

    pub(crate) fn snapshot(number: u8) -> SnapshotRow {
        let wire = v1::Snapshot {
            id: vec![number; 16].into(),
            source: Some(v1::SourceRef {
                agent: "web1".into(),
                source: "a".into(),
            }),
            vault: vec![9; 16].into(),
            sequence: number.into(),
            finished_at: u64::from(number) * 1000,
            state: "visible".into(),
            problems: vec![v1::Problem {
                path: vec![b'a', 0xff].into(),
                reason: "denied".into(),
            }],
            ..v1::Snapshot::default()
        };
        wire.try_into().unwrap()
    }

    #[test]
    fn snapshots_in_json_begin_with_id_and_source() {
        let text = rows(&[snapshot(1)], Format::Json).unwrap();
        let (id, source) = (
            text.find("\"id\"").unwrap(),
            text.find("\"source\": \"web1/a\"").unwrap(),
        );
        assert!(id < source && source < text.find("\"stats\"").unwrap());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["items"][0]["problems"][0]["path"], "a\u{fffd}");
        assert_eq!(value["items"][0]["deleted_at"], serde_json::Value::Null);
    }

    #[test]
    fn every_row_has_a_cell_per_column() {
        assert_eq!(snapshot(1).cells().len(), SnapshotRow::COLUMNS.len());
        let agent = v1::Agent {
            vault: vec![1; 16].into(),
            ..v1::Agent::default()
        };
        assert_eq!(
            AgentRow::try_from(agent).unwrap().cells().len(),
            AgentRow::COLUMNS.len()
        );
        let source = || {
            Some(v1::SourceRef {
                agent: "a".into(),
                source: "b".into(),
            })
        };
        let row = v1::Source {
            r#ref: source(),
            ..v1::Source::default()
        };
        assert_eq!(
            SourceRow::try_from(row).unwrap().cells().len(),
            SourceRow::COLUMNS.len()
        );
        let job = v1::Job {
            id: vec![1; 16].into(),
            source: source(),
            ..v1::Job::default()
        };
        assert_eq!(
            JobRow::try_from(job).unwrap().cells().len(),
            JobRow::COLUMNS.len()
        );
        assert_eq!(
            MemberRow::from(v1::Member::default()).cells().len(),
            MemberRow::COLUMNS.len()
        );
        let vault = v1::Vault {
            id: vec![1; 16].into(),
            ..v1::Vault::default()
        };
        assert_eq!(
            VaultRow::try_from(vault).unwrap().cells().len(),
            VaultRow::COLUMNS.len()
        );
        assert_eq!(
            AuditRow::from(v1::AuditRecord::default()).cells().len(),
            AuditRow::COLUMNS.len()
        );
    }

    #[test]
    fn malformed_records_are_refused() {
        let bad = v1::Snapshot {
            id: vec![1; 15].into(),
            ..v1::Snapshot::default()
        };
        assert_eq!(SnapshotRow::try_from(bad).unwrap_err().kind, ErrorKind::Internal);
        assert!(
            JobRow::try_from(v1::Job {
                id: vec![1; 16].into(),
                ..v1::Job::default()
            })
            .is_err()
        );
    }
}
