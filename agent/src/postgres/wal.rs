//! The WAL that makes a backup consistent: each segment is there, whole and of this cluster.

use super::standby;
use crate::{
    error::{AgentError, Result},
    files::open_beneath,
};
use holdfast_postgres::{Cluster, Lsn, Segment, SegmentSize, TimelineId, WAL_HEADER_LEN, WalFile, WalHeader};
use rustix::fs::{Mode, OFlags};
use std::{collections::BTreeSet, os::fd::OwnedFd, path::Path};

/// The WAL that a backup needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needed {
    pub cluster: Cluster,
    pub size: SegmentSize,
    pub timeline: TimelineId,
    pub from: Lsn,
    /// Behind the last byte.
    pub to: Lsn,
    /// Of a standby: what else may have become of a segment.
    pub is_standby: bool,
}

impl Needed {
    /// Names of the files in `pg_wal` that hold it, once each was looked at.
    ///
    /// # Errors
    /// When one is missing, cannot be read or is another than its name says.
    pub fn find(&self, dir: &Path) -> Result<BTreeSet<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let wal = rustix::fs::open(dir, flags, Mode::empty()).map_err(AgentError::io("open", dir))?;
        let mut names = BTreeSet::new();
        for segment in self.size.segments_between(self.timeline, self.from, self.to) {
            let name = segment.to_string();
            self.check(&wal, segment, &dir.join(&name))?;
            names.insert(name.into_bytes());
        }
        if self.timeline != TimelineId::FIRST {
            let history = WalFile::History(self.timeline).to_string();
            match open_beneath(&wal, Path::new(&history), OFlags::RDONLY) {
                Ok(_) => {
                    names.insert(history.into_bytes());
                }
                // Recovery to the end of the backup does without.
                Err(error) => tracing::warn!(%error, history, "the timeline's history is not in pg_wal"),
            }
        }
        Ok(names)
    }

    fn check(&self, wal: &OwnedFd, segment: Segment, shown: &Path) -> Result<()> {
        let name = segment.to_string();
        let file = match open_beneath(wal, Path::new(&name), OFlags::RDONLY) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) if self.is_standby => {
                return Err(AgentError::Invalid(standby::wal_gone(&name)));
            }
            Err(rustix::io::Errno::NOENT) => {
                return Err(AgentError::Invalid(format!(
                    "WAL segment {name}, which the backup needs, is gone: raise max_slot_wal_keep_size on the server \
                     (or set it to -1), and let nothing else remove files from pg_wal"
                )));
            }
            Err(error) => return Err(AgentError::io("open", shown)(error)),
        };
        let mut head = [0; WAL_HEADER_LEN];
        let read = rustix::io::pread(&file, &mut head, 0).map_err(AgentError::io("read", shown))?;
        let len = rustix::fs::fstat(&file)
            .map_err(AgentError::io("look at", shown))?
            .st_size;
        let header = WalHeader::decode(head.get(..read).unwrap_or_default())?;
        Ok(header.check(segment, len.cast_unsigned(), &self.cluster)?)
    }
}
