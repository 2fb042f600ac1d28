//! `global/pg_control` of a running server, read until it is whole.

use super::selection::Places;
use crate::{
    error::{AgentError, Result},
    files::open_beneath,
};
use holdfast_postgres::{CONTROL_FILE_LEN, ControlFile, PgError};
use rustix::fs::OFlags;
use std::{fs::File, io::Read as _, os::fd::OwnedFd, path::Path, time::Duration};

const PATH: &str = "global/pg_control";
/// Times that it is read while it does not match its checksum: servers write it in one go and rarely.
const TRIES: usize = 20;
/// Between them.
const PAUSE: Duration = Duration::from_millis(20);

/// The file of a data directory: its bytes, and what they say.
///
/// # Errors
/// `Io`, or what is wrong with it after some tries.
pub(super) async fn read(places: &Places) -> Result<(Vec<u8>, ControlFile)> {
    read_in(&places.data, &places.data_dir).await
}

async fn read_in(data: &Path, dir: &OwnedFd) -> Result<(Vec<u8>, ControlFile)> {
    let shown = data.join(PATH);
    let mut tries = TRIES;
    loop {
        let bytes = read_once(dir, &shown)?;
        match ControlFile::decode(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(PgError::ChecksumWrong { .. }) if tries > 1 => {}
            Err(error) => return Err(error.into()),
        }
        tries -= 1;
        tokio::time::sleep(PAUSE).await;
    }
}

fn read_once(data: &OwnedFd, shown: &Path) -> Result<Vec<u8>> {
    let file = open_beneath(data, Path::new(PATH), OFlags::RDONLY).map_err(AgentError::io("open", shown))?;
    let mut bytes = Vec::with_capacity(CONTROL_FILE_LEN + 1);
    File::from(file)
        .take(CONTROL_FILE_LEN as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(AgentError::io("read", shown))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::PathBuf, process::Command};

    /// A data directory with nothing but the control file of a real cluster, and that file.
    fn cluster() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(PATH);
        fs::create_dir(dir.path().join("global")).unwrap();
        let made = dir.path().join("made");
        fs::create_dir(&made).unwrap();
        let mut initdb = Command::new("/usr/lib/postgresql/15/bin/initdb");
        if rustix::process::geteuid().is_root() {
            let mut owned = Command::new("chown");
            assert!(
                owned
                    .args(["-R", "postgres:"])
                    .arg(dir.path())
                    .status()
                    .unwrap()
                    .success()
            );
            let program = initdb.get_program().to_owned();
            initdb = Command::new("setpriv");
            initdb
                .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
                .arg(program);
        }
        initdb.arg("--no-sync").arg("-D").arg(&made);
        assert!(initdb.output().unwrap().status.success());
        let bytes = fs::read(made.join(PATH)).unwrap();
        fs::write(&file, &bytes).unwrap();
        (dir, file, bytes)
    }

    #[tokio::test]
    async fn a_control_file_that_is_being_written_is_read_again() {
        let (dir, file, whole) = cluster();
        let open = OwnedFd::from(File::open(dir.path()).unwrap());
        let mut half = whole.clone();
        // As when a server has written a new time and not yet the checksum.
        half[40] ^= 1;
        fs::write(&file, &half).unwrap();
        let error = read_in(dir.path(), &open).await.unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
        let (read, ()) = tokio::join!(read_in(dir.path(), &open), async {
            tokio::time::sleep(PAUSE * 3).await;
            fs::write(&file, &whole).unwrap();
        });
        assert_eq!(read.unwrap().0, whole);
    }
}
