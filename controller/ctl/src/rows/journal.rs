//! Files of a source's journal, and what they make up.

use super::id;
use crate::{
    error::Result,
    output::{Row, bytes, short_time, time},
};
use holdfast_core::SnapshotId;
use holdfast_net::Fault;
use holdfast_proto::v1;
use holdfast_restore::postgres::TimelineContents;
use serde::Serialize;

/// A file that is kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct JournalFileRow {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    kept_at: Option<String>,
    pub(crate) page: SnapshotId,
    /// Other contents that were handed in under its name.
    divergent: usize,
    #[serde(skip)]
    pub(crate) kept_millis: u64,
}

impl TryFrom<v1::JournalFile> for JournalFileRow {
    type Error = Fault;
    fn try_from(wire: v1::JournalFile) -> Result<Self> {
        let v1::JournalFile {
            name,
            len,
            content: _,
            page,
            kept_at,
            divergent,
        } = wire;
        Ok(Self {
            name,
            bytes: len,
            kept_at: time(kept_at),
            page: id(&page)?,
            divergent: divergent.len(),
            kept_millis: kept_at,
        })
    }
}

impl Row for JournalFileRow {
    const LIST: &'static str = "JournalFileList";
    const COLUMNS: &'static [&'static str] = &["NAME", "SIZE", "KEPT", "DIVERGENT", "PAGE"];
    const NARROW: usize = 4;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            bytes(self.bytes),
            short_time(self.kept_millis),
            if self.divergent == 0 {
                "-".into()
            } else {
                self.divergent.to_string()
            },
            self.page.to_string(),
        ]
    }
}

/// What a journal holds of one timeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TimelineRow {
    timeline: u32,
    segments: u64,
    first: Option<String>,
    last: Option<String>,
    /// What a recovery across them would miss.
    missing: Vec<Gap>,
    history: bool,
    /// The segment in the middle of which it ended.
    partial: Option<String>,
}

/// Consecutive segments that are missing.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Gap {
    first: String,
    last: String,
}

impl From<TimelineContents> for TimelineRow {
    fn from(of: TimelineContents) -> Self {
        let (first, last) = of.ends.unzip();
        Self {
            timeline: of.timeline.get(),
            segments: of.segments,
            first: first.map(|first| first.to_string()),
            last: last.map(|last| last.to_string()),
            missing: of
                .gaps
                .iter()
                .map(|(first, last)| Gap {
                    first: first.to_string(),
                    last: last.to_string(),
                })
                .collect(),
            history: of.has_history,
            partial: of.partial.map(|partial| partial.to_string()),
        }
    }
}

/// A journal in its stable JSON form.
#[derive(Debug, Serialize)]
pub(crate) struct JournalDescription<'a> {
    kind: &'static str,
    items: &'a [TimelineRow],
    /// Agents whose spools may hold more of it.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tails: &'a [TailRow],
}

impl<'a> JournalDescription<'a> {
    pub(crate) fn new(items: &'a [TimelineRow], tails: &'a [TailRow]) -> Self {
        Self {
            kind: "JournalTimelineList",
            items,
            tails,
        }
    }
}

/// An agent whose spool may hold WAL that the journal lacks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TailRow {
    pub(crate) agent: String,
    /// False when the agent just said that there is none.
    pub(crate) open: bool,
    pub(crate) why: String,
    since: Option<String>,
}

impl From<v1::JournalTail> for TailRow {
    fn from(wire: v1::JournalTail) -> Self {
        let v1::JournalTail {
            agent,
            opened_at,
            is_open,
            why,
        } = wire;
        Self {
            agent,
            open: is_open,
            why,
            since: time(opened_at),
        }
    }
}
