//! Whether there is room for a cluster, found out before anything is touched.
//!
//! In place only what differs is written, and what that is nobody knows without reading everything. So what lies there already
//! counts as room for what comes in its place; the old WAL does not, since it is kept aside.

use super::{PostgresError, files::failed};
use crate::{Result, shown};
use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

/// Segments that a server makes for itself, beside those that are restored.
pub(super) const SEGMENTS_SPARE: u64 = 3;
/// Deepest directory that is looked into: clusters have four levels.
const DEPTH_MAX: usize = 8;

/// What comes to a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share {
    /// The directory.
    pub(super) dir: PathBuf,
    /// Its file system.
    pub(super) device: u64,
    /// Bytes that come.
    pub(super) comes: u64,
    /// Bytes there that they take the place of.
    pub(super) replaces: u64,
}

/// A file system without enough room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What would come to it.
    pub dirs: Vec<PathBuf>,
    /// Bytes that are needed.
    pub needs: u64,
    /// Bytes that are free.
    pub free: u64,
}

/// Where there is not enough; shares of one file system add up.
pub(super) fn lacks(shares: &[Share], free: impl Fn(u64) -> u64) -> Vec<Lack> {
    let mut lacks: Vec<(u64, Lack)> = Vec::new();
    for share in shares {
        let needs = share.comes.saturating_sub(share.replaces);
        match lacks.iter_mut().find(|(device, _)| *device == share.device) {
            Some((_, lack)) => {
                lack.needs = lack.needs.saturating_add(needs);
                lack.dirs.push(share.dir.clone());
            }
            None => {
                let lack = Lack {
                    dirs: vec![share.dir.clone()],
                    needs,
                    free: free(share.device),
                };
                lacks.push((share.device, lack));
            }
        }
    }
    let all = lacks.into_iter().map(|(_, lack)| lack);
    all.filter(|lack| lack.needs > lack.free).collect()
}

/// Refuses what would not fit. `coming` has bytes for each directory; `replaces` says whether what lies in it makes room.
///
/// # Errors
/// `NoSpace` with what is needed and what is free; those of the file system.
pub(super) fn check(coming: Vec<(PathBuf, u64)>, replaces: bool) -> Result<()> {
    let (mut shares, mut free) = (Vec::new(), Vec::new());
    for (dir, comes) in coming {
        let existing = existing(&dir);
        let what = existing.as_os_str().as_bytes();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = fs::open(existing, flags, Mode::empty()).map_err(failed("open", what))?;
        let device = fs::fstat(&handle).map_err(failed("look at", what))?.st_dev;
        let about = fs::fstatvfs(&handle).map_err(failed("look at", what))?;
        // What a file system keeps for root is not there for a database.
        free.push((device, about.f_bavail.saturating_mul(about.f_frsize)));
        let there = if replaces && existing == dir {
            taken(&handle, device, DEPTH_MAX).map_err(failed("look through", what))?
        } else {
            0
        };
        shares.push(Share {
            dir,
            device,
            comes,
            replaces: there,
        });
    }
    let free_of = |device| {
        free.iter()
            .find(|(of, _)| *of == device)
            .map_or(0, |(_, free)| *free)
    };
    let lacks = lacks(&shares, free_of);
    if lacks.is_empty() {
        return Ok(());
    }
    Err(PostgresError::NoRoom { lacks }.into())
}

/// The directory, or the nearest one above it that exists.
fn existing(dir: &Path) -> &Path {
    let mut above = dir.ancestors();
    above.find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

/// Bytes that files below a directory take, without its WAL and what lies on other file systems.
fn taken(dir: &OwnedFd, device: u64, depth: usize) -> rustix::io::Result<u64> {
    let mut sum = 0_u64;
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_wal = name.to_bytes().starts_with(b"pg_wal");
        if is_wal || matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::RegularFile {
            // By blocks, which st_blocks counts in 512 bytes wherever it is.
            sum = sum.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
        } else if kind == FileType::Directory && stat.st_dev == device && depth > 0 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = fs::openat(dir.as_fd(), name, flags, Mode::empty())?;
            sum = sum.saturating_add(taken(&below, device, depth - 1)?);
        }
    }
    Ok(sum)
}

/// In words, for people.
pub(super) fn told(lacks: &[Lack]) -> String {
    let each = lacks.iter().map(|lack| {
        let dirs: Vec<String> = lack
            .dirs
            .iter()
            .map(|dir| shown(dir.as_os_str().as_bytes()))
            .collect();
        format!(
            "{} MiB are needed in {}, where {} MiB are free",
            lack.needs.div_ceil(1 << 20),
            dirs.join(" and "),
            lack.free >> 20
        )
    });
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(dir: &str, device: u64, comes: u64, replaces: u64) -> Share {
        Share {
            dir: dir.into(),
            device,
            comes,
            replaces,
        }
    }

    #[test]
    fn shares_of_one_file_system_add_up() {
        let shares = [
            share("/a", 1, 60, 0),
            share("/b", 2, 60, 0),
            share("/c", 1, 41, 0),
        ];
        assert!(lacks(&shares, |_| 101).is_empty());
        let lack = Lack {
            dirs: vec!["/a".into(), "/c".into()],
            needs: 101,
            free: 100,
        };
        assert_eq!(lacks(&shares, |_| 100), [lack]);
        assert_eq!(lacks(&shares, |_| 0).len(), 2);
        assert!(told(&lacks(&shares, |_| 0)).contains("/a and /c"));
    }

    #[test]
    fn what_is_replaced_makes_room_where_it_is() {
        assert!(lacks(&[share("/a", 1, 100, 95)], |_| 5).is_empty());
        assert_eq!(lacks(&[share("/a", 1, 101, 95)], |_| 5)[0].needs, 6);
        // What shrinks in one place may be needed in the other before it is free.
        let shares = [share("/a", 1, 0, 50), share("/b", 1, 10, 0)];
        assert_eq!(lacks(&shares, |_| 5)[0].needs, 10);
    }

    #[test]
    fn what_lies_there_is_counted_without_the_wal() {
        let dir = tempfile::tempdir().unwrap();
        for (name, len) in [
            ("base/1/2", 100_000),
            ("pg_wal/x", 1 << 20),
            ("pg_wal.before-restore-1/y", 1 << 20),
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![1; len]).unwrap();
        }
        let handle = fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let device = fs::fstat(&handle).unwrap().st_dev;
        let taken = taken(&handle, device, DEPTH_MAX).unwrap();
        assert!((100_000..1 << 20).contains(&taken), "{taken}");
        assert_eq!(existing(&dir.path().join("no/such")), dir.path());
        assert!(check(vec![(dir.path().join("new"), 1)], false).is_ok());
        assert!(check(vec![(dir.path().join("new"), u64::MAX)], false).is_err());
    }
}
