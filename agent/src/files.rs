//! What a source selects: roots, rules of what is left out, mounts, and what is never read.

mod rules;

pub use rules::{Fate, Rules};

use crate::error::{AgentError, Result};
use holdfast_proto::v1::FilesSpec;
use ignore::gitignore::GitignoreBuilder;
use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use std::{
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

/// Most roots of one source.
pub(crate) const ROOTS_MAX: usize = 1024;

/// Magic numbers of file systems whose files are not data (linux/magic.h).
const PSEUDO: &[u64] = &[
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0x6265_6570, // configfs
    0x6573_5543, // fusectl
    0x1980_0202, // mqueue
    0x9584_58f6, // hugetlbfs
    0x0187,      // autofs
    0x6e73_6673, // nsfs
    0x1cd1,      // devpts
    0xde5e_81e4, // efivarfs
    0x4249_4e4d, // binfmt_misc
    0xf97c_ff8c, // selinux
    0x6757_6f5f, // rpc_pipefs
];

/// One root, opened.
#[derive(Debug)]
pub struct Root {
    /// What its tree is called in the snapshot: an absolute path, on this host or of our own making.
    pub path: Vec<u8>,
    /// The directory, or the file's parent.
    pub dir: OwnedFd,
    /// The file's name in it, when the root is a single file.
    pub file: Option<Vec<u8>>,
    /// What it is.
    pub stat: Stat,
    /// What of it is read, and how.
    pub rules: Rules,
}

impl Root {
    /// Opens a directory as the tree of that name. Whether it may be read here is for the caller to check.
    ///
    /// # Errors
    /// `Io` when it cannot be opened as a directory, `Invalid` when it holds no data.
    pub fn at(name: &str, dir: &Path, rules: Rules) -> Result<Self> {
        let stat = rustix::fs::stat(dir).map_err(AgentError::io("open", dir))?;
        Ok(Self {
            path: name.as_bytes().to_vec(),
            dir: open_dir(dir, dir)?,
            file: None,
            stat,
            rules,
        })
    }
}

/// What a run reads.
#[derive(Debug)]
pub struct Selection {
    /// The roots, in the order of the source's settings.
    pub roots: Vec<Root>,
    cross_mounts: bool,
    /// (device, inode) of directories that are never read: our own state.
    own: Vec<(u64, u64)>,
}

/// What to do with a directory that the walk comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descend {
    /// Read it.
    Yes,
    /// Keep it as an empty directory: a mount point.
    Empty,
    /// As if it were not there: our own state, a store.
    No,
}

impl Selection {
    /// Checks a source's settings against what this agent allows, and opens its roots.
    ///
    /// # Errors
    /// `NotAllowed` for a root outside `allow`; `Invalid` for rules that do not parse; `Io` for a
    /// root that cannot be opened.
    pub fn open(spec: &FilesSpec, allow: &[PathBuf], own: &[PathBuf]) -> Result<Self> {
        if spec.roots.is_empty() || spec.roots.len() > ROOTS_MAX {
            return Err(AgentError::Invalid(format!(
                "a files source has 1 to {ROOTS_MAX} roots"
            )));
        }
        let roots = spec
            .roots
            .iter()
            .map(|root| open_root(root, spec, allow))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            roots,
            cross_mounts: spec.cross_mounts,
            own: places(own),
        })
    }

    /// These roots, over all mounts; `own` is never read.
    #[must_use]
    pub fn of_roots(roots: Vec<Root>, own: &[PathBuf]) -> Self {
        Self {
            roots,
            cross_mounts: true,
            own: places(own),
        }
    }

    /// What to do with a directory on device `parent_dev`'s tree.
    #[must_use]
    pub fn descend(&self, root: usize, stat: &Stat, parent_dev: u64, dir: &OwnedFd) -> Descend {
        if self.own.contains(&(stat.st_dev, stat.st_ino)) || has_store_marker(dir) {
            return Descend::No;
        }
        let crossed = stat.st_dev != parent_dev;
        if crossed && (!self.cross_mounts || is_pseudo(dir)) {
            return Descend::Empty;
        }
        debug_assert!(self.cross_mounts || stat.st_dev == self.roots[root].stat.st_dev);
        Descend::Yes
    }
}

/// Devices and inodes of those directories that are there.
fn places(dirs: &[PathBuf]) -> Vec<(u64, u64)> {
    dirs.iter()
        .filter_map(|path| rustix::fs::stat(path).ok())
        .map(|stat| (stat.st_dev, stat.st_ino))
        .collect()
}

/// A directory that is one of our stores: its packs would be backed up into themselves.
fn has_store_marker(dir: &OwnedFd) -> bool {
    rustix::fs::accessat(
        dir,
        "holdfast-store.toml",
        rustix::fs::Access::EXISTS,
        rustix::fs::AtFlags::empty(),
    )
    .is_ok()
        && rustix::fs::accessat(
            dir,
            "packs",
            rustix::fs::Access::EXISTS,
            rustix::fs::AtFlags::empty(),
        )
        .is_ok()
}

fn is_pseudo(dir: &OwnedFd) -> bool {
    rustix::fs::fstatfs(dir).is_ok_and(|fs| PSEUDO.contains(&(fs.f_type as u64)))
}

fn open_root(root: &str, spec: &FilesSpec, allow: &[PathBuf]) -> Result<Root> {
    let path = Path::new(root);
    let plain = path.is_absolute()
        && path
            .components()
            .all(|c| !matches!(c, std::path::Component::ParentDir));
    if !plain {
        return Err(AgentError::Invalid(format!(
            "root {root:?}: write an absolute path without '..'"
        )));
    }
    // Links in the root's own path are followed once, here; what they lead to must be allowed too.
    let real = path.canonicalize().map_err(AgentError::io("open root", path))?;
    check_allowed(&real, allow)?;
    let stat = rustix::fs::stat(&real).map_err(AgentError::io("open root", path))?;
    let is_dir = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
    let (dir_path, file) = match (is_dir, real.parent(), real.file_name()) {
        (false, Some(parent), Some(name)) => (parent.to_owned(), Some(name.as_bytes().to_vec())),
        _ => (real.clone(), None),
    };
    let dir = open_dir(&dir_path, path)?;
    let mut rules = GitignoreBuilder::new("");
    for pattern in &spec.exclude {
        rules
            .add_line(None, pattern)
            .map_err(|error| AgentError::Invalid(format!("exclude rule {pattern:?}: {error}")))?;
    }
    let rules = rules
        .build()
        .map_err(|error| AgentError::Invalid(format!("exclude rules: {error}")))?;
    Ok(Root {
        path: path.as_os_str().as_bytes().to_vec(),
        dir,
        file,
        stat,
        rules: Rules::Ignore(rules),
    })
}

/// Opens a directory that holds data; errors name `shown`.
fn open_dir(dir: &Path, shown: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty()).map_err(AgentError::io("open root", shown))?;
    if is_pseudo(&dir) {
        return Err(AgentError::Invalid(format!(
            "root {shown:?} is on a pseudo file system, which holds no data"
        )));
    }
    Ok(dir)
}

/// Whether a path lies in one of the allowed directories.
///
/// # Errors
/// `NotAllowed`, with the line that would allow it.
pub fn check_allowed(path: &Path, allow: &[PathBuf]) -> Result<()> {
    let allowed = allow.iter().any(|allowed| {
        path.starts_with(allowed) || allowed.canonicalize().is_ok_and(|real| path.starts_with(real))
    });
    if allowed {
        return Ok(());
    }
    Err(AgentError::NotAllowed(format!(
        "{} is not allowed on this host; add it to `allow` in agent.toml and restart the agent",
        path.display()
    )))
}

/// Opens a path below a root without following any link, wherever the path's parts have gone.
pub(crate) fn open_beneath(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    rustix::fs::openat2(
        root,
        path,
        flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FileType;

    fn spec(root: &Path, exclude: &[&str]) -> FilesSpec {
        FilesSpec {
            roots: vec![root.to_str().unwrap().to_owned()],
            exclude: exclude.iter().map(|e| (*e).to_owned()).collect(),
            cross_mounts: false,
        }
    }

    #[test]
    fn nothing_is_read_that_is_not_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let allow = [inside.clone()];
        assert!(Selection::open(&spec(&inside, &[]), &allow, &[]).is_ok());
        for bad in [
            &outside,
            &inside.join("link"),
            &inside.join("../out"),
            &PathBuf::from("in"),
        ] {
            assert!(Selection::open(&spec(bad, &[]), &allow, &[]).is_err(), "{bad:?}");
        }
        assert!(
            Selection::open(&spec(&inside, &[]), &[], &[]).is_err(),
            "nothing is allowed until told"
        );
    }

    #[test]
    fn rules_are_those_of_gitignore() {
        let dir = tempfile::tempdir().unwrap();
        let allow = [dir.path().to_owned()];
        let rules = ["*.tmp", "/cache/", "!keep.tmp"];
        let selection = Selection::open(&spec(dir.path(), &rules), &allow, &[]).unwrap();
        let root = &selection.roots[0];
        let is_left_out = |path: &str, kind| root.rules.fate(Path::new(path), kind, &root.dir) == Fate::Leave;
        assert!(is_left_out("a/b.tmp", FileType::RegularFile));
        assert!(!is_left_out("a/keep.tmp", FileType::RegularFile));
        assert!(is_left_out("cache", FileType::Directory));
        assert!(!is_left_out("a/cache", FileType::Directory));
        assert!(Selection::open(&spec(dir.path(), &["a{b"]), &allow, &[]).is_err());
    }

    #[test]
    fn pseudo_file_systems_are_refused() {
        let allow = [PathBuf::from("/")];
        assert!(Selection::open(&spec(Path::new("/proc"), &[]), &allow, &[]).is_err());
    }
}
