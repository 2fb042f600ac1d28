//! The data directory while a cluster is restored to it: its note, what goes out of the way, and what comes last.

use super::{
    PostgresError, TablespaceTarget,
    files::{self, Owner, failed, make_dir, open_dir},
    marker::{self, Marker, Phase},
    plan::{Begin, Plan},
};
use crate::{RestoreError, Result, place::open_below};
use holdfast_core::limits::PG_SETTINGS_MAX;
use holdfast_postgres::{Recovery, RecoveryMode, SettingsFile, SystemId, recovery_settings_in};
use rustix::{
    fs::{self, AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};
use std::{
    fs::DirBuilder,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::Path,
};

/// Where the control file of a cluster goes that is restored over; removed in the end.
pub(super) const CONTROL_ASIDE: &str = "pg_control.before-restore";
/// The settings that count more than those of other files; `ALTER SYSTEM` writes them.
const SETTINGS: &[u8] = b"postgresql.auto.conf";
/// How names of WAL directories begin that were moved aside.
pub(super) const WAL_ASIDE: &str = "pg_wal.before-restore-";
/// Most of them that are kept: whoever restores so often over one directory should look into it.
const WAL_ASIDE_MAX: u32 = 1000;

/// The data directory, held open, with a lock on its note.
pub(super) struct Site {
    dir: OwnedFd,
    note: OwnedFd,
    system_id: SystemId,
}

impl Site {
    /// Makes the directory if it is absent, and leaves the note that a restore has begun.
    ///
    /// # Errors
    /// `Conflict` when another restore works in it, or when it has changed since it was looked at.
    pub(super) fn begin(plan: &Plan, system_id: SystemId) -> Result<(Self, Phase)> {
        let shown = || plan.dir.display().to_string();
        let dir = make(&plan.dir)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
        let note = open_below(&dir, marker::NAME.as_bytes(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("open", marker::NAME.as_bytes()))?;
        // Any other error: some network file systems have no locks.
        if fs::flock(&note, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(PostgresError::Busy { dir: shown() }.into());
        }
        let site = Self { dir, note, system_id };
        let phase = match plan.begin {
            Begin::Fresh => {
                let empty = files::is_empty_but(site.dir(), marker::NAME.as_bytes());
                if !empty.map_err(failed("list", plan.dir.as_os_str().as_bytes()))? {
                    return Err(PostgresError::NotEmpty { dir: shown() }.into());
                }
                Phase::Place
            }
            Begin::Resume => {
                let found = files::read(site.dir(), marker::NAME.as_bytes(), marker::LEN_MAX)?;
                match found.as_deref().and_then(Marker::parse) {
                    Some((theirs, phase)) if theirs == system_id => phase,
                    _ => return Err(PostgresError::Foreign { dir: shown() }.into()),
                }
            }
            Begin::Replace => Phase::Aside,
        };
        site.note(phase)?;
        Ok((site, phase))
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Another handle of the directory.
    pub(super) fn handle(&self) -> Result<OwnedFd> {
        self.dir.try_clone().map_err(|source| RestoreError::Io {
            doing: "open",
            what: "the data directory".into(),
            source,
        })
    }

    /// Notes how far the restore has come.
    fn note(&self, phase: Phase) -> Result<()> {
        let bytes = Marker::new(self.system_id, phase).bytes();
        let written = (|| {
            let mut at = 0;
            while at < bytes.len() {
                at += rustix::io::pwrite(&self.note, &bytes[at..], at as u64)?;
            }
            fs::ftruncate(&self.note, bytes.len() as u64)?;
            fs::fsync(&self.note)?;
            fs::fsync(&self.dir)
        })();
        written.map_err(failed("write", marker::NAME.as_bytes()))
    }

    /// Takes from a cluster that is restored over what a server starts with, and its WAL, which does not belong to
    /// the restored state. Gives the name under which the WAL is kept.
    pub(super) fn set_aside(&self) -> Result<Option<String>> {
        if let Ok(global) = open_dir(&self.dir, b"global") {
            match fs::renameat(&global, "pg_control", &global, CONTROL_ASIDE) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed("rename", b"global/pg_control")(errno)),
            }
            fs::fsync(&global).map_err(failed("sync", b"global"))?;
        }
        let mut kept = None;
        if fs::statat(&self.dir, "pg_wal", AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            let names = (1..=WAL_ASIDE_MAX).map(|n| format!("{WAL_ASIDE}{n}"));
            for name in names {
                if files::rename_new(self.dir(), b"pg_wal", name.as_bytes())? {
                    kept = Some(name);
                    break;
                }
            }
            if kept.is_none() {
                return Err(failed("move aside", b"pg_wal")(Errno::EXIST));
            }
        }
        self.note(Phase::Place)?;
        Ok(kept)
    }

    /// Makes the links to tablespaces, before there is anything in them: what they lead to is known as ours.
    pub(super) fn link(&self, tablespaces: &[TablespaceTarget], owner: Owner) -> Result<()> {
        if tablespaces.is_empty() {
            return Ok(());
        }
        let links = make_dir(self.dir(), b"pg_tblspc")?;
        for target in tablespaces {
            let name = target.oid.to_string();
            let to = target.dir.as_os_str().as_bytes();
            let is_right = fs::readlinkat(&links, &name, Vec::new()).is_ok_and(|link| link.to_bytes() == to);
            if !is_right {
                let failed = |doing| failed(doing, name.as_bytes());
                match fs::unlinkat(&links, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(failed("replace")(errno)),
                }
                fs::symlinkat(to, &links, &name).map_err(failed("link"))?;
            }
            owner
                .give_link(links.as_fd(), name.as_bytes())
                .map_err(failed("set the owner of", name.as_bytes()))?;
        }
        fs::fsync(&links).map_err(failed("sync", b"pg_tblspc"))
    }

    /// Makes the directory for the WAL.
    pub(super) fn make_wal(&self) -> Result<()> {
        let wal = make_dir(self.dir(), b"pg_wal")?;
        make_dir(wal.as_fd(), b"archive_status").map(|_| ())
    }

    /// The directory for the WAL.
    pub(super) fn wal(&self) -> Result<OwnedFd> {
        open_dir(&self.dir, b"pg_wal").map_err(failed("enter", b"pg_wal"))
    }

    /// Gives the WAL to whom the cluster belongs, whoever's it was where the agent gathered it.
    pub(super) fn own_wal(&self, owner: Owner) -> Result<()> {
        let wal = open_dir(&self.dir, b"pg_wal").map_err(failed("enter", b"pg_wal"))?;
        let status = open_dir(&wal, b"archive_status").map_err(failed("enter", b"archive_status"))?;
        for dir in [&wal, &status] {
            owner
                .give(dir.as_fd(), owner.dir_mode())
                .map_err(failed("set the owner of", b"pg_wal"))?;
        }
        for (name, is_file) in files::list(wal.as_fd()).map_err(failed("list", b"pg_wal"))? {
            if is_file {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                open_below(&wal, &name, flags, Mode::empty())
                    .and_then(|file| owner.give(file.as_fd(), owner.file_mode()))
                    .map_err(failed("set the owner of", &name))?;
            }
        }
        Ok(())
    }

    /// Turns the archiving of WAL off. A restored cluster goes on where the backup ended, on the same timeline: it would
    /// archive other WAL under the very names that its origin archived, or still archives.
    fn write_settings(&self, owner: Owner, to: Option<&Recovery>) -> Result<()> {
        let found = files::read(self.dir(), SETTINGS, PG_SETTINGS_MAX)?;
        if found.is_none() && fs::statat(&self.dir, SETTINGS, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            let why = "its postgresql.auto.conf is no file, or longer than any server's";
            return Err(PostgresError::bad(why).into());
        }
        let mut settings = SettingsFile::parse(&found.unwrap_or_default()).map_err(in_settings)?;
        settings.set("archive_mode", "off").map_err(in_settings)?;
        if let Some(to) = to {
            let main = files::read(self.dir(), b"postgresql.conf", PG_SETTINGS_MAX)?.unwrap_or_default();
            // One that servers do not read either has nothing to say.
            let elsewhere =
                SettingsFile::parse(&main).map_or_else(|_| Vec::new(), |file| recovery_settings_in(&file));
            to.write_to(&mut settings, &elsewhere).map_err(in_settings)?;
        }
        files::write(self.dir(), SETTINGS, settings.render(), owner)
    }

    /// Puts into place what makes a cluster of it. The control file comes when everything before is on disk.
    pub(super) fn complete(
        self,
        label: &[u8],
        map: Option<&[u8]>,
        control: &[u8],
        owner: Owner,
        to: Option<&Recovery>,
    ) -> Result<()> {
        self.write_settings(owner, to)?;
        for mode in [RecoveryMode::Primary, RecoveryMode::Standby] {
            let name = mode.signal_file().as_bytes();
            match to {
                Some(to) if to.mode == mode => files::write(self.dir(), name, b"", owner)?,
                _ => files::remove(self.dir(), name)?,
            }
        }
        files::write(self.dir(), b"backup_label", label, owner)?;
        match map {
            Some(map) => files::write(self.dir(), b"tablespace_map", map, owner)?,
            None => files::remove(self.dir(), b"tablespace_map")?,
        }
        owner
            .give(self.dir(), owner.dir_mode())
            .map_err(failed("set the owner of", b"the data directory"))?;
        fs::syncfs(&self.dir).map_err(failed("sync", b"the data directory"))?;
        let global = open_dir(&self.dir, b"global").map_err(failed("enter", b"global"))?;
        files::write(global.as_fd(), b"pg_control", control, owner)?;
        files::remove(global.as_fd(), CONTROL_ASIDE.as_bytes())?;
        files::remove(self.dir(), marker::NAME.as_bytes())
    }
}

fn in_settings(source: holdfast_postgres::PgError) -> PostgresError {
    PostgresError::File {
        what: "its postgresql.auto.conf".into(),
        source,
    }
}

/// Names at the top of a data directory that are not the snapshot's to say anything about.
pub(super) fn kept_names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let all = files::list(dir).map_err(failed("list", b"the data directory"))?;
    let names = all.into_iter().map(|(name, _)| name);
    Ok(names
        .filter(|name| name.starts_with(WAL_ASIDE.as_bytes()))
        .collect())
}

/// Opens a directory that an operator named, and makes it first if it is absent.
pub(super) fn make(path: &Path) -> Result<OwnedFd> {
    let shown = path.as_os_str().as_bytes();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| RestoreError::Io {
            doing: "make",
            what: crate::shown(shown),
            source,
        })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty()).map_err(failed("open", shown))
}
