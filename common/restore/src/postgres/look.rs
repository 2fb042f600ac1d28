//! What lies where a cluster is to be restored to; nothing is changed.

use super::{
    PostgresError, Request,
    files::{self, open_dir},
    marker::{self, Marker},
    plan::{Holds, Looked, LookedAt, TablespaceTarget},
};
use crate::{RestoreError, Result};
use holdfast_postgres::{CONTROL_FILE_LEN, ControlFile};
use rustix::{
    fs::{self, Mode, OFlags},
    io::Errno,
    process::{Pid, test_kill_process},
};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

/// Longest postmaster.pid: servers write eight lines, of which two are paths.
const PID_FILE_MAX: usize = 64 * 1024;

/// Looks at all targets.
///
/// # Errors
/// `Corrupt` for a control file that cannot be read; those of the file system.
pub(super) fn look(request: &Request, tablespaces: &[TablespaceTarget]) -> Result<Looked> {
    let dir = open(&request.dir)?;
    let (holds, running) = match &dir {
        None => (Holds::Nothing, None),
        Some(dir) => (holds(dir.as_fd(), &request.dir)?, running(dir.as_fd())?),
    };
    let mut found = Vec::with_capacity(tablespaces.len());
    for target in tablespaces {
        let real_dir = real(&target.dir)?;
        let is_empty = match open(&target.dir)? {
            None => true,
            Some(handle) => files::is_empty_but(handle.as_fd(), b"").map_err(listing(&target.dir))?,
        };
        let link = dir.as_ref().and_then(|dir| link(dir.as_fd(), target.oid));
        let is_linked = link.is_some_and(|link| real(&link).is_ok_and(|link| link == real_dir));
        found.push(LookedAt {
            dir: real_dir,
            is_empty,
            is_linked,
        });
    }
    Ok(Looked {
        dir: real(&request.dir)?,
        holds,
        running,
        tablespaces: found,
    })
}

/// The directory at a path that an operator named; none when there is nothing.
pub(super) fn open(path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match fs::open(path, flags, Mode::empty()) {
        Ok(handle) => Ok(Some(handle)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(RestoreError::io("open", path.display().to_string(), errno)),
    }
}

fn listing(path: &Path) -> impl FnOnce(Errno) -> RestoreError {
    let what = path.display().to_string();
    move |errno| RestoreError::io("list", what, errno)
}

/// The path with links followed as far as it exists: what does not exist cannot be a link.
fn real(path: &Path) -> Result<PathBuf> {
    let existing = path
        .ancestors()
        .find(|path| path.symlink_metadata().is_ok())
        .unwrap_or(Path::new("/"));
    let real = existing.canonicalize().map_err(|source| RestoreError::Io {
        doing: "resolve",
        what: existing.display().to_string(),
        source,
    })?;
    Ok(match path.strip_prefix(existing) {
        Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
        _ => real,
    })
}

fn holds(dir: BorrowedFd<'_>, path: &Path) -> Result<Holds> {
    if files::is_empty_but(dir, marker::NAME.as_bytes()).map_err(listing(path))? {
        return Ok(Holds::Nothing);
    }
    let control = match open_dir(dir, b"global") {
        Ok(global) => files::read(global.as_fd(), b"pg_control", CONTROL_FILE_LEN)?,
        Err(_) => None,
    };
    if let Some(control) = control {
        let control = ControlFile::decode(&control).map_err(|source| PostgresError::File {
            what: path.join("global/pg_control").display().to_string(),
            source,
        })?;
        return Ok(Holds::Cluster(control.system_id));
    }
    let note = files::read(dir, marker::NAME.as_bytes(), marker::LEN_MAX)?;
    Ok(match note.as_deref().and_then(Marker::parse) {
        Some((system_id, _)) => Holds::Unfinished(system_id),
        None => Holds::Something,
    })
}

/// The process of a server that runs in a directory, by the file that it keeps there.
fn running(dir: BorrowedFd<'_>) -> Result<Option<i32>> {
    let Some(bytes) = files::read(dir, b"postmaster.pid", PID_FILE_MAX)? else {
        return Ok(None);
    };
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let pid = std::str::from_utf8(first)
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok());
    // A single-user server writes its process as a negative number.
    let pid = pid.and_then(i32::checked_abs).filter(|pid| *pid > 0);
    let alive = pid.and_then(Pid::from_raw).is_some_and(|pid| {
        // Not allowed to: it is someone else's, and there.
        matches!(test_kill_process(pid), Ok(()) | Err(Errno::PERM))
    });
    Ok(pid.filter(|_| alive))
}

/// Where the link of a tablespace leads.
fn link(dir: BorrowedFd<'_>, oid: u32) -> Option<PathBuf> {
    let links = open_dir(dir, b"pg_tblspc").ok()?;
    let target = fs::readlinkat(links, oid.to_string(), Vec::new()).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(target.to_bytes()))).filter(|path| path.is_absolute())
}
