//! Between wire messages and the catalog's records, at the edge and nowhere else.

use crate::{
    catalog::model::{Problem, RunStats, Snapshot, SnapshotState},
    error::{Error, Result},
};
use bytes::Bytes;
use holdfast_core::{ChunkId, ErrorKind, IdError, SourceRef, limits};
use holdfast_proto::v1 as pb;

/// Longest reason or path that is kept with a problem.
const PROBLEM_TEXT_MAX: usize = 1024;

pub(super) fn id<T>(bytes: &Bytes) -> Result<T>
where
    for<'a> T: TryFrom<&'a [u8], Error = IdError>,
{
    T::try_from(bytes).map_err(|e| Error::refused(ErrorKind::Invalid, e.to_string()))
}

pub(super) fn source(source: Option<pb::SourceRef>) -> Result<SourceRef> {
    let pb::SourceRef { agent, source } =
        source.ok_or_else(|| Error::refused(ErrorKind::Invalid, "the call names no source"))?;
    let invalid = |e: holdfast_core::NameError| Error::refused(ErrorKind::Invalid, e.to_string());
    Ok(SourceRef {
        agent: agent.parse().map_err(invalid)?,
        source: source.parse().map_err(invalid)?,
    })
}

/// Ids that stand one behind the other, no more than a query may hold.
pub(super) fn chunk_ids(bytes: &Bytes) -> Result<Vec<ChunkId>> {
    let (ids, rest) = bytes.as_chunks::<{ ChunkId::LEN }>();
    if !rest.is_empty() {
        return Err(Error::refused(
            ErrorKind::Invalid,
            "a list of ids is not a multiple of 32 bytes long",
        ));
    }
    if ids.len() > limits::IDS_PER_QUERY {
        return Err(Error::refused(
            ErrorKind::TooLarge,
            format!(
                "{} ids in one call, at most {} are allowed",
                ids.len(),
                limits::IDS_PER_QUERY
            ),
        ));
    }
    Ok(ids.iter().map(|id| ChunkId(*id)).collect())
}

pub(super) fn stats(stats: pb::RunStats) -> RunStats {
    let pb::RunStats {
        files,
        dirs,
        symlinks,
        others,
        skipped,
        bytes,
        files_unchanged,
        bytes_read,
        chunks_new,
        bytes_new,
        bytes_stored,
        files_vanished,
        files_changing,
        unreadable,
        packs,
    } = stats;
    RunStats {
        files,
        dirs,
        symlinks,
        others,
        skipped,
        bytes,
        files_unchanged,
        bytes_read,
        chunks_new,
        bytes_new,
        bytes_stored,
        files_vanished,
        files_changing,
        unreadable,
        packs,
    }
}

pub(super) fn stats_to_wire(stats: RunStats) -> pb::RunStats {
    let RunStats {
        files,
        dirs,
        symlinks,
        others,
        skipped,
        bytes,
        files_unchanged,
        bytes_read,
        chunks_new,
        bytes_new,
        bytes_stored,
        files_vanished,
        files_changing,
        unreadable,
        packs,
    } = stats;
    pb::RunStats {
        files,
        dirs,
        symlinks,
        others,
        skipped,
        bytes,
        files_unchanged,
        bytes_read,
        chunks_new,
        bytes_new,
        bytes_stored,
        files_vanished,
        files_changing,
        unreadable,
        packs,
    }
}

pub(super) fn problems(problems: Vec<pb::Problem>) -> Vec<Problem> {
    problems
        .into_iter()
        .take(limits::LISTED_PROBLEMS_MAX)
        .map(|pb::Problem { path, reason }| Problem {
            path: path[..path.len().min(PROBLEM_TEXT_MAX)].to_vec(),
            reason: reason.chars().take(PROBLEM_TEXT_MAX).collect(),
        })
        .collect()
}

pub(super) fn snapshot(snapshot: Snapshot) -> pb::Snapshot {
    let Snapshot {
        id,
        source,
        vault,
        sequence,
        root_hash,
        root_len,
        prev_root_hash: _,
        started_at,
        finished_at,
        stats,
        partial,
        state,
        deleted_at,
        undo_until,
        hold,
        job,
        problems,
        last_test: _,
    } = snapshot;
    let state = match state {
        SnapshotState::Visible => "visible",
        SnapshotState::Deleted => "deleted",
    };
    pb::Snapshot {
        id: Bytes::copy_from_slice(id.as_bytes()),
        source: Some(pb::SourceRef {
            agent: source.agent.to_string(),
            source: source.source.to_string(),
        }),
        vault: Bytes::copy_from_slice(vault.as_bytes()),
        sequence,
        root_hash: Bytes::copy_from_slice(&root_hash),
        root_len,
        started_at,
        finished_at,
        stats: Some(stats_to_wire(stats)),
        partial,
        state: state.to_owned(),
        deleted_at,
        undo_until,
        hold,
        job: Bytes::copy_from_slice(job.as_bytes()),
        problems: problems
            .into_iter()
            .map(|Problem { path, reason }| pb::Problem {
                path: path.into(),
                reason,
            })
            .collect(),
        // For people, who ask elsewhere.
        last_test: None,
    }
}
