//! `diff` of two snapshots.

use super::{
    browse::{kind_and_size, modified_at},
    data::Opener,
    gather::{Gathered, bounded},
};
use crate::{
    address::Address,
    cluster::Cluster,
    error::{Result, fault, lift},
    output::{self, Format, Row},
};
use holdfast_core::ErrorKind;
use holdfast_repo::Entry;
use holdfast_restore::{Change, Difference, TreeEntry, compare, shown};
use serde::Serialize;

/// One path that differs.
#[derive(Debug, Serialize)]
struct DifferenceRow {
    /// added, removed or changed.
    change: &'static str,
    path: String,
    /// What of it changed: type, content, mode, owner, mtime.
    changed: Vec<&'static str>,
    before: Option<State>,
    after: Option<State>,
}

/// An entry on one side.
#[derive(Debug, Serialize)]
struct State {
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    modified_at: String,
}

impl From<&Entry> for State {
    fn from(entry: &Entry) -> Self {
        let (kind, size) = kind_and_size(&entry.kind);
        Self {
            kind,
            mode: format!("{:04o}", entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            size,
            modified_at: modified_at(entry),
        }
    }
}

impl From<Difference> for DifferenceRow {
    fn from(difference: Difference) -> Self {
        match difference {
            Difference::Added(TreeEntry { path, entry }) => Self {
                change: "added",
                path: shown(&path),
                changed: Vec::new(),
                before: None,
                after: Some(State::from(&entry)),
            },
            Difference::Removed(TreeEntry { path, entry }) => Self {
                change: "removed",
                path: shown(&path),
                changed: Vec::new(),
                before: Some(State::from(&entry)),
                after: None,
            },
            Difference::Changed {
                path,
                before,
                after,
                change,
            } => Self {
                change: "changed",
                path: shown(&path),
                changed: respects(change),
                before: Some(State::from(&before)),
                after: Some(State::from(&after)),
            },
        }
    }
}

fn respects(change: Change) -> Vec<&'static str> {
    let Change {
        kind,
        content,
        mode,
        owner,
        mtime,
    } = change;
    let all = [
        (kind, "type"),
        (content, "content"),
        (mode, "mode"),
        (owner, "owner"),
        (mtime, "mtime"),
    ];
    all.into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, name)| name)
        .collect()
}

impl Row for DifferenceRow {
    const LIST: &'static str = "DifferenceList";
    const COLUMNS: &'static [&'static str] = &["CHANGE", "PATH", "WHAT", "SIZE", "WAS"];
    const NARROW: usize = 3;

    fn name(&self) -> String {
        self.path.clone()
    }

    fn cells(&self) -> Vec<String> {
        let size = |state: &Option<State>| {
            state
                .as_ref()
                .map_or_else(|| "-".into(), |s| output::bytes(s.size))
        };
        vec![
            self.change.into(),
            self.path.clone(),
            self.changed.join(","),
            size(&self.after),
            size(&self.before),
        ]
    }
}

pub(super) async fn run(cluster: &Cluster, before: &Address, after: &Address, format: Format) -> Result<()> {
    let opener = Opener::new(cluster).await?;
    let before = opener.open(&cluster.resolve(before).await?).await?;
    let after = opener.open(&cluster.resolve(after).await?).await?;
    let found = Gathered::new();
    let mut sink = found.sink();
    let visit = move |difference: Difference| sink(DifferenceRow::from(difference));
    compare(&before, &after, visit).await.map_err(lift)?;
    let rows = bounded(found.take(), "differences")?;
    output::print(&output::rows(&rows, format)?)?;
    match rows.len() {
        0 => Ok(()),
        count => Err(fault(
            ErrorKind::Findings,
            format!("the snapshots differ in {count} paths"),
        )),
    }
}
