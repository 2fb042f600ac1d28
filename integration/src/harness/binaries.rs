//! Where the programs under test are.

use std::path::{Path, PathBuf};

/// Names the directory of the programs, when they are not beside the test's own.
const BIN_DIR: &str = "HOLDFAST_BIN_DIR";

/// The three programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// Finds them: `HOLDFAST_BIN_DIR`, else the profile's directory that this very test was built into.
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
