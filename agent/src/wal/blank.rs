//! Empty files without names that clients hand over, so that what is fetched lies where it belongs.

use std::{fs::File, os::fd::OwnedFd, os::unix::fs::MetadataExt as _};

/// An empty file of a client, on its own file system. Without a name, it goes with its last handle.
#[derive(Debug)]
pub(super) struct Blank {
    file: File,
    owner: u32,
}

impl Blank {
    /// Those of the handles that are such files of that user's; the others are closed. Blocks.
    pub fn all(handles: Vec<OwnedFd>, caller: u32) -> Vec<Self> {
        let handles = handles.into_iter().map(File::from);
        handles.filter_map(|file| Self::of(file, caller)).collect()
    }

    /// None of what has a name, has content, is no regular file or is somebody else's.
    fn of(file: File, owner: u32) -> Option<Self> {
        let about = file.metadata().ok()?;
        let is_blank = about.is_file() && about.nlink() == 0 && about.len() == 0 && about.uid() == owner;
        is_blank.then_some(Self { file, owner })
    }

    /// Whose it is.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// The file.
    pub fn into_file(self) -> File {
        self.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn only_nameless_empty_files_of_the_caller_are_written_to() {
        let own = rustix::process::geteuid().as_raw();
        let dir = tempfile::tempdir().unwrap();
        let blank = || tempfile::tempfile_in(dir.path()).unwrap();
        let named = File::create(dir.path().join("named")).unwrap();
        let mut full = blank();
        full.write_all(b"x").unwrap();
        let (pipe, _) = std::io::pipe().unwrap();
        let other: Vec<OwnedFd> = vec![
            named.into(),
            full.into(),
            pipe.into(),
            File::open("/dev/null").unwrap().into(),
        ];
        assert!(Blank::all(other, own).is_empty());
        assert!(Blank::all(vec![blank().into()], own + 1).is_empty());
        let found = Blank::all(vec![blank().into(), blank().into()], own);
        assert_eq!(found.iter().map(Blank::owner).collect::<Vec<_>>(), [own, own]);
    }
}
