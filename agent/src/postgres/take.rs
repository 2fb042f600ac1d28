//! One backup of a cluster, from the session's beginning to the last file.

use super::{
    PageWatch, Staging,
    backup_mode::{self, Stopped},
    control_file,
    manifest::{self, Manifest, ManifestTablespace},
    selection::{self, Places},
    server::{Server, Tablespace},
    session::Session,
    standby,
    wal::Needed,
};
use crate::{
    engine::{Outcome, Stats, report},
    error::{AgentError, Result},
    files::Selection,
};
use holdfast_core::{ErrorKind, limits::LISTED_PROBLEMS_MAX};
use holdfast_postgres::{BackupLabel, Cluster, ControlFile, Lsn, PageCheck, SystemId, TablespaceMap};
use holdfast_repo::EntryKind;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::SystemTime,
};

/// What is to be backed up, and where this host allows it.
pub struct Order {
    /// How to reach the server.
    pub settings: tokio_postgres::Config,
    /// Directories that may be read.
    pub allow: Vec<PathBuf>,
    /// The agent's state: never read, and where files are staged.
    pub state_dir: PathBuf,
    /// Names the run on this host and its slot on the server: at most 43 of a-z, 0-9 and `_`.
    pub run: String,
    /// What the server is told that the backup is.
    pub label: String,
    /// Whether the server is to make its checkpoint at once, with the I/O that takes.
    pub fast_checkpoint: bool,
    /// Set to stop.
    pub cancel: Arc<AtomicBool>,
    /// Counters.
    pub stats: Arc<Stats>,
}

/// Which pass over files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Data directory and tablespaces, while the server writes to them.
    Data,
    /// What is only there after the end: WAL and the server's words.
    End,
}

/// What reads files and stores them: the engine, with whatever is behind it.
pub trait Passes: Sync {
    /// Stores a selection; all packs are acknowledged when it returns.
    fn pass(&self, selection: Selection, part: Part) -> impl Future<Output = Result<Outcome>> + Send;
}

/// A backup that is stored, and not yet committed.
pub struct Taken {
    /// Trees, problems and owners of all of it.
    pub outcome: Outcome,
    /// To be dropped when the snapshot is committed, or given up.
    pub held: Held,
}

/// What a backup holds on the server and on this host: its session, with the WAL that hangs on it, and staged files.
pub struct Held {
    _session: Session,
    _staging: Staging,
}

/// A backup that the server knows of.
struct Begun {
    session: Session,
    server: Server,
    places: Places,
    staging: Staging,
    started_at_ms: u64,
    /// Where replay begins.
    start: Lsn,
    /// As it was right after the start.
    control: ControlFile,
    tablespaces: Vec<Tablespace>,
    watch: Arc<PageWatch>,
}

/// Which cluster the server is one of.
///
/// # Errors
/// When it cannot be reached, or could not be backed up.
pub async fn system_id(order: &Order) -> Result<SystemId> {
    let session = Session::open(&order.settings, &order.cancel).await?;
    Ok(Server::ask(&session).await?.system_id)
}

/// Takes a backup of a running cluster.
///
/// # Errors
/// When the server refuses or is lost, its files are not allowed or not what they should be, the engine fails, or the run
/// is cancelled. The server is out of backup mode then.
pub async fn take(order: &Order, passes: &impl Passes) -> Result<Taken> {
    let begun = begin(order).await?;
    let data = selection::of_data(
        order,
        &begun.places,
        &begun.control,
        &begun.watch,
        &begun.tablespaces,
    )?;
    let mut outcome = pass(order, &begun, passes, data, Part::Data).await?;
    let wal = end(order, &begun, &mut outcome).await?;
    let expected = [wal.len(), begun.staging.names()?.len()];
    let end = selection::of_end(order, &begun.places, wal, &begun.staging)?;
    let end = pass(order, &begun, passes, end, Part::End).await?;
    check_all_read(&end, expected)?;
    Ok(Taken {
        outcome: joined(outcome, end),
        held: Held {
            _session: begun.session,
            _staging: begun.staging,
        },
    })
}

/// Finds the server fit and its files allowed, then lets it begin.
async fn begin(order: &Order) -> Result<Begun> {
    let started_at_ms = unix_millis();
    let session = Session::open(&order.settings, &order.cancel).await?;
    let server = Server::ask(&session).await?;
    let places = Places::open(&server, order)?;
    // Now, since the start may wait for a checkpoint for long; again then.
    selection::check_tablespaces(&Server::tablespaces(&session).await?, order)?;
    let staging = Staging::create(&order.state_dir, &order.run)?;
    tracing::debug!(target: "holdfast::phase", phase = "backup-start");
    backup_mode::reserve_wal(&session, &slot_name(&order.run)).await?;
    let start = backup_mode::start(&session, server.version, &order.label, order.fast_checkpoint).await?;
    let (_, control) = control_file::read(&places).await?;
    check_control(&server, &control, start)?;
    let tablespaces = Server::tablespaces(&session).await?;
    let watch = Arc::new(PageWatch::new(PageCheck::new(&control)?, start));
    let (version, is_standby) = (&server.version_text, server.is_standby);
    tracing::info!(%start, version, is_standby, "the backup of the PostgreSQL server begins");
    Ok(Begun {
        session,
        server,
        places,
        staging,
        started_at_ms,
        start,
        control,
        tablespaces,
        watch,
    })
}

/// Ends the backup on the server once its files are read; stages what it says, and names the WAL that is needed.
async fn end(order: &Order, begun: &Begun, outcome: &mut Outcome) -> Result<BTreeSet<Vec<u8>>> {
    if begun.server.is_standby {
        standby::check(&begun.session).await?;
    }
    // pg_control is the last of all files, as with the server's own tools.
    let (control_bytes, control_at_end) = control_file::read(&begun.places).await?;
    check_control(&begun.server, &control_at_end, begun.start)?;
    tracing::debug!(target: "holdfast::phase", phase = "backup-stop");
    let mut stopped = backup_mode::stop(&begun.session, begun.server.version).await?;
    if begun.server.is_standby {
        // What the server says may be further: recovery looks at the file.
        stopped.stop = standby::end_of(&control_at_end, begun.control.checkpoint.timeline, begun.start)?;
    }
    check_words(&stopped, begun)?;
    for page in begun.watch.end(stopped.stop) {
        let path = format!("/postgresql/{}", page.file).into_bytes();
        report(&order.stats, &mut outcome.problems, path, &page.problem());
    }
    stage(begun, &stopped, &control_bytes)?;
    let needed = Needed {
        cluster: Cluster {
            system_id: begun.server.system_id,
            version: begun.server.version,
        },
        size: begun.control.wal_segment_size,
        timeline: begun.control.checkpoint.timeline,
        from: begun.start,
        to: stopped.stop,
        is_standby: begun.server.is_standby,
    };
    let dir = begun.places.wal.clone();
    // Each segment is looked at, on a thread that may wait for the disk.
    tokio::task::spawn_blocking(move || needed.find(&dir))
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))?
}

/// Another one each time: the slot of a session that was just given up may still be there.
fn slot_name(run: &str) -> String {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    format!("holdfast_{run}_{}", TAKEN.fetch_add(1, Ordering::Relaxed))
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// One pass; it ends when the session does, or a standby's files become those of a primary: without which what it reads is
/// worth nothing.
async fn pass(
    order: &Order,
    begun: &Begun,
    passes: &impl Passes,
    selection: Selection,
    part: Part,
) -> Result<Outcome> {
    let session = &begun.session;
    let pass = passes.pass(selection, part);
    tokio::pin!(pass);
    let in_vain = async {
        tokio::select! {
            () = session.closed() => Session::lost(),
            // The WAL of a backup that has ended stays what it is.
            error = standby::ended(session), if begun.server.is_standby && part == Part::Data => error,
        }
    };
    tokio::select! {
        outcome = &mut pass => outcome,
        error = in_vain => {
            order.cancel.store(true, Ordering::Relaxed);
            let _ = pass.await;
            Err(error)
        }
    }
}

/// The files are those of the server that was asked, and hold all that it wrote before the backup began.
fn check_control(server: &Server, control: &ControlFile, start: Lsn) -> Result<()> {
    let why = if control.system_id != server.system_id || control.version != server.version {
        "they are of another cluster".to_owned()
    } else if control.checkpoint.lsn < start {
        format!(
            "their last checkpoint is at {}, before the backup's beginning at {start}",
            control.checkpoint.lsn
        )
    } else {
        return Ok(());
    };
    Err(AgentError::Server {
        action: "back the PostgreSQL server up",
        message: format!(
            "the files in {} are not those of the server that the connection leads to: {why}",
            server.data_directory.display()
        ),
        kind: ErrorKind::Invalid,
    })
}

/// The server's words agree with what was seen.
fn check_words(stopped: &Stopped, begun: &Begun) -> Result<()> {
    let label = BackupLabel::parse(&stopped.label, begun.control.wal_segment_size)?;
    let map = TablespaceMap::parse(&stopped.tablespace_map)?;
    let is_known = |oid| begun.tablespaces.iter().any(|tablespace| tablespace.oid == oid);
    let is_this = label.start == begun.start
        && label.timeline() == begun.control.checkpoint.timeline
        && label.from_standby == begun.server.is_standby;
    let why = if !is_this {
        "its backup label tells of another backup"
    } else if !map.tablespaces().iter().all(|mapped| is_known(mapped.oid)) {
        "a tablespace was dropped while the backup began; run it again"
    } else {
        return Ok(());
    };
    Err(AgentError::Server {
        action: "back the PostgreSQL server up",
        message: why.into(),
        kind: ErrorKind::Conflict,
    })
}

fn in_manifest(tablespace: &Tablespace) -> ManifestTablespace {
    ManifestTablespace {
        oid: tablespace.oid,
        name: tablespace.name.clone(),
        location: tablespace.location.display().to_string(),
    }
}

fn stage(begun: &Begun, stopped: &Stopped, control: &[u8]) -> Result<()> {
    let (damaged, damaged_count) = begun.watch.damaged();
    let manifest = Manifest {
        holdfast_postgres_backup: manifest::version(begun.server.is_standby),
        system_id: begun.server.system_id,
        version: begun.server.version.major(),
        server_version: begun.server.version_text.clone(),
        wal_segment_size: begun.control.wal_segment_size.bytes(),
        data_checksums: begun.control.data_checksums,
        timeline: begun.control.checkpoint.timeline,
        start_lsn: begun.start,
        stop_lsn: stopped.stop,
        started_at_ms: begun.started_at_ms,
        tablespaces: begun.tablespaces.iter().map(in_manifest).collect(),
        damaged,
        damaged_count,
    };
    let manifest =
        serde_json::to_vec_pretty(&manifest).map_err(|error| AgentError::Internal(error.to_string()))?;
    let staging = &begun.staging;
    staging.put("backup_label", &stopped.label)?;
    if !stopped.tablespace_map.is_empty() {
        staging.put("tablespace_map", &stopped.tablespace_map)?;
    }
    staging.put("pg_control", control)?;
    staging.put("backup.json", &manifest)
}

/// Of the WAL and of what was staged nothing may be missing: without it the rest is worth nothing.
fn check_all_read(end: &Outcome, expected: [usize; 2]) -> Result<()> {
    let read = end.trees.iter().map(|tree| match tree.entry.kind {
        EntryKind::Dir { files, .. } => files,
        _ => 0,
    });
    if read.eq(expected.map(|files| files as u64)) {
        return Ok(());
    }
    let why = end.problems.first().map_or_else(String::new, |problem| {
        format!(": {}: {}", problem.path.escape_ascii(), problem.reason)
    });
    Err(AgentError::Server {
        action: "back the PostgreSQL server up",
        message: format!("some of its WAL could not be read{why}"),
        kind: ErrorKind::Io,
    })
}

/// What two passes brought together.
fn joined(mut first: Outcome, second: Outcome) -> Outcome {
    first.trees.extend(second.trees);
    first.problems.extend(second.problems);
    first.problems.truncate(LISTED_PROBLEMS_MAX);
    first.uids.extend(second.uids);
    first.gids.extend(second.gids);
    first
}
