//! Where the programs under test are.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Names the directory of the programs, when they are not beside the test's own.
const BIN_DIR: &str = "HOLDFAST_BIN_DIR";

/// The three programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// Finds them: `HOLDFAST_BIN_DIR`, else the profile's directory that this very test was built into. Programs
    /// that are missing or older than their sources end the test: it would say nothing about this state.
    #[must_use]
    pub fn find() -> Self {
        let dir = match std::env::var_os(BIN_DIR) {
            Some(dir) => PathBuf::from(dir),
            None => {
                let me = std::env::current_exe().expect("the path of this test");
                // target/<profile>/deps/<test> or target/<profile>/<program>
                let dir = me.parent().expect("a directory").to_path_buf();
                if dir.ends_with("deps") {
                    dir.parent().expect("a profile").to_path_buf()
                } else {
                    dir
                }
            }
        };
        let found = Self { dir };
        for program in [found.controller(), found.agent(), found.ctl()] {
            assert!(
                program.is_file(),
                "{} is missing: run `cargo build --workspace --bins` first, or set {BIN_DIR}",
                program.display()
            );
            let newer =
                newer_source(&program).unwrap_or_else(|e| panic!("sources of {}: {e}", program.display()));
            assert!(
                newer.is_none(),
                "{} is older than {}: run `cargo build --workspace --bins` first",
                program.display(),
                newer.unwrap_or_default().display()
            );
        }
        found
    }

    /// `holdfast-controller`
    #[must_use]
    pub fn controller(&self) -> PathBuf {
        self.dir.join("holdfast-controller")
    }

    /// `holdfast-agent`
    #[must_use]
    pub fn agent(&self) -> PathBuf {
        self.dir.join("holdfast-agent")
    }

    /// `holdfastctl`
    #[must_use]
    pub fn ctl(&self) -> PathBuf {
        self.dir.join("holdfastctl")
    }

    /// The directory of all of them.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// A source file that changed after the program was built, by the list that cargo leaves beside a program. Without a
/// list it was built elsewhere, and nothing can be said.
fn newer_source(program: &Path) -> io::Result<Option<PathBuf>> {
    let list = match std::fs::read_to_string(program.with_extension("d")) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let built = std::fs::metadata(program)?.modified()?;
    let changed = |source: &Path| -> Option<SystemTime> { source.metadata().ok()?.modified().ok() };
    // One that is gone was renamed or removed since: that is a change too.
    Ok(sources(&list)
        .into_iter()
        .find(|source| changed(source).is_none_or(|changed| changed > built)))
}

/// The files of a rule as make writes it: `program: file file …`, with spaces in names behind a backslash.
fn sources(list: &str) -> Vec<PathBuf> {
    let rule = list.lines().next().unwrap_or_default();
    let files = rule.split_once(": ").map_or("", |(_, files)| files);
    let marked = files.replace("\\ ", "\0");
    let names = marked.split(' ').filter(|name| !name.is_empty());
    names.map(|name| PathBuf::from(name.replace('\0', " "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, time::Duration};

    #[test]
    fn programs_older_than_their_sources_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (program, source) = (dir.path().join("program"), dir.path().join("a source.rs"));
        std::fs::write(&program, "").unwrap();
        std::fs::write(&source, "").unwrap();
        assert!(newer_source(&program).unwrap().is_none(), "built elsewhere");
        let escaped = source.display().to_string().replace(' ', "\\ ");
        std::fs::write(
            program.with_extension("d"),
            format!("{}: {escaped}\n", program.display()),
        )
        .unwrap();
        let built = std::fs::metadata(&program).unwrap().modified().unwrap();
        let touch = |at| File::open(&source).unwrap().set_modified(at).unwrap();
        touch(built - Duration::from_secs(1));
        assert_eq!(newer_source(&program).unwrap(), None);
        touch(built + Duration::from_secs(1));
        assert_eq!(newer_source(&program).unwrap(), Some(source.clone()));
        std::fs::remove_file(&source).unwrap();
        assert_eq!(newer_source(&program).unwrap(), Some(source));
    }
}
