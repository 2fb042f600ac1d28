//! `ls` and `cat`.

use super::{
    data,
    gather::{Gathered, bounded},
};
use crate::{
    address::Address,
    cluster::Cluster,
    error::{Result, fault, lift},
    output::{self, Format, Row},
};
use holdfast_core::HasKind as _;
use holdfast_repo::{Entry, EntryKind};
use holdfast_restore::{RestoreError, TreeEntry, shown};
use serde::Serialize;
use std::{
    ffi::OsStr,
    io::{BufWriter, ErrorKind as IoKind},
    os::unix::ffi::OsStrExt as _,
};

/// Buffer between decryption and a pipe.
const OUT_BUFFER: usize = 1024 * 1024;

/// One line of `ls`.
#[derive(Debug, Serialize)]
struct EntryRow {
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    modified_at: String,
    target: Option<String>,
    changed_while_read: bool,
}

impl From<TreeEntry> for EntryRow {
    fn from(TreeEntry { path, entry }: TreeEntry) -> Self {
        let (kind, size) = kind_and_size(&entry.kind);
        let target = match &entry.kind {
            EntryKind::Symlink { target } => Some(shown(target)),
            _ => None,
        };
        Self {
            path: shown(&path),
            kind,
            mode: format!("{:04o}", entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            size,
            modified_at: modified_at(&entry),
            target,
            changed_while_read: entry.changed_while_read,
        }
    }
}

/// What an entry is called, and how much is in it.
pub(super) fn kind_and_size(kind: &EntryKind) -> (&'static str, u64) {
    match kind {
        EntryKind::File { size, .. } => ("file", *size),
        EntryKind::Dir { bytes, .. } => ("directory", *bytes),
        EntryKind::Symlink { .. } => ("symlink", 0),
        EntryKind::Fifo => ("fifo", 0),
        EntryKind::CharDevice { .. } => ("character device", 0),
        EntryKind::BlockDevice { .. } => ("block device", 0),
    }
}

/// An entry's time as text.
pub(super) fn modified_at(entry: &Entry) -> String {
    let nanos = i32::try_from(entry.mtime.nanos).unwrap_or_default();
    let time = jiff::Timestamp::new(entry.mtime.secs, nanos);
    time.map_or_else(|_| "-".into(), |time| time.to_string())
}

impl Row for EntryRow {
    const LIST: &'static str = "EntryList";
    const COLUMNS: &'static [&'static str] = &["MODE", "OWNER", "SIZE", "MODIFIED", "PATH"];
    const NARROW: usize = 5;

    fn name(&self) -> String {
        self.path.clone()
    }

    fn cells(&self) -> Vec<String> {
        let letter = match self.kind {
            "directory" => 'd',
            "symlink" => 'l',
            "fifo" => 'p',
            "character device" => 'c',
            "block device" => 'b',
            _ => '-',
        };
        let target = self
            .target
            .as_ref()
            .map(|target| format!(" -> {target}"))
            .unwrap_or_default();
        vec![
            format!("{letter}{}", self.mode),
            format!("{}:{}", self.uid, self.gid),
            output::bytes(self.size),
            self.modified_at.clone(),
            format!("{}{target}", self.path),
        ]
    }
}

pub(super) async fn ls(
    cluster: &Cluster,
    address: &Address,
    path: Option<&OsStr>,
    recursive: bool,
    format: Format,
) -> Result<()> {
    let snapshot = data::open_address(cluster, address).await?;
    let path = path.map(OsStr::as_bytes).unwrap_or_default();
    let entries = if recursive {
        let found = Gathered::new();
        snapshot.walk(path, found.sink()).await.map_err(lift)?;
        found.take()
    } else {
        snapshot.list(path).await.map_err(lift)?
    };
    let entries = bounded(entries, "entries")
        .map_err(|fault| fault.with_hint("list one directory at a time: holdfastctl ls SOURCE PATH"))?;
    let rows: Vec<EntryRow> = entries.into_iter().map(EntryRow::from).collect();
    output::print(&output::rows(&rows, format)?)
}

pub(super) async fn cat(cluster: &Cluster, address: &Address, path: &OsStr) -> Result<()> {
    let snapshot = data::open_address(cluster, address).await?;
    let out = BufWriter::with_capacity(OUT_BUFFER, std::io::stdout());
    match snapshot.read_file(path.as_bytes(), out).await {
        // Whoever reads has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        Err(error) => {
            let kind = error.kind();
            Err(fault(kind, error.to_string()).with_hint(format!("holdfastctl ls {}", address.source)))
        }
        Ok(_) => Ok(()),
    }
}

fn is_broken_pipe(error: &RestoreError) -> bool {
    match error {
        RestoreError::Io { source, .. } => source.kind() == IoKind::BrokenPipe,
        RestoreError::At { source, .. } => is_broken_pipe(source),
        _ => false,
    }
}
