//! The marker file: proof that a directory is a certain store and that its disk is mounted.

use crate::{Area, StoreError};
use holdfast_core::StoreId;
use serde::Deserialize;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

/// Name of the marker file.
pub const MARKER: &str = "holdfast-store.toml";
/// Directory of unfinished uploads.
pub(super) const TMP: &str = "tmp";
const VERSION: u32 = 1;
const MARKER_MAX: u64 = 64 * 1024;

#[derive(Deserialize)]
struct Marker {
    version: u32,
    id: StoreId,
}

/// Makes the directories, then, last of all, the marker.
pub(super) fn create(path: &Path, id: StoreId) -> Result<(), StoreError> {
    let failed = |doing| move |e| StoreError::io(doing, path, e);
    fs::create_dir_all(path).map_err(failed("making the store's directory"))?;
    refuse_used(path)?;
    for dir in Area::ALL.iter().map(|area| area.dir()).chain([TMP]) {
        match fs::create_dir(path.join(dir)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("making a directory")(e));
            }
            _ => {}
        }
    }
    let temporary = path.join(TMP).join(MARKER);
    let text = format!(
        "# This directory is a Holdfast store. Without this file it counts as offline; keep it.\nversion = {VERSION}\nid = \"{id}\"\n"
    );
    let mut file = File::create(&temporary).map_err(failed("writing the marker"))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(rustix::fs::rename(&temporary, path.join(MARKER))?))
        .and_then(|()| sync_dir(path))
        .and_then(|()| path.canonicalize()?.parent().map_or(Ok(()), sync_dir))
        .map_err(failed("writing the marker"))
}

/// Reads the marker and keeps it open.
pub(super) fn open(path: &Path) -> Result<(StoreId, File), StoreError> {
    let offline = |reason: String| StoreError::Offline {
        path: path.to_owned(),
        reason,
    };
    let marker = path.join(MARKER);
    let file = OpenOptions::new()
        .read(true)
        .open(&marker)
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => offline(format!("it has no {MARKER}")),
            _ => StoreError::io("opening the marker", &marker, e),
        })?;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(&file, MARKER_MAX), &mut text)
        .map_err(|e| StoreError::io("reading the marker", &marker, e))?;
    let parsed: Marker = toml::from_str(&text)
        .map_err(|e| offline(format!("its {MARKER} cannot be read ({})", e.message())))?;
    if parsed.version != VERSION {
        return Err(StoreError::Version {
            path: path.to_owned(),
            version: parsed.version,
        });
    }
    Ok((parsed.id, file))
}

/// Keeps other processes from serving the same store; the lock lives as long as the file is open.
pub(super) fn lock(path: &Path, marker: &File) -> Result<(), StoreError> {
    match rustix::fs::flock(marker, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Conflict {
            path: path.to_owned(),
            reason: "another process serves it; stop that one first".into(),
        }),
        Err(e) => Err(StoreError::io("locking the marker", path.join(MARKER), e.into())),
    }
}

/// Refuses a directory in which anything lies, save what an interrupted `create` leaves.
fn refuse_used(path: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::io("looking into the store's directory", path, e);
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let ours = Area::ALL.iter().any(|area| name == area.dir());
        let unused = name == "lost+found"
            || name == TMP
            || (ours && fs::read_dir(entry.path()).map_err(failed)?.next().is_none());
        if !unused {
            return Err(StoreError::Conflict {
                path: path.to_owned(),
                reason: format!(
                    "{} lies there already; a new store needs an empty directory",
                    name.display()
                ),
            });
        }
    }
    Ok(())
}

/// Makes a directory's entries durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
