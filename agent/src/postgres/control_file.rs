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
    let shown = places.data.join(PATH);
    let mut tries = TRIES;
    loop {
        let bytes = read_once(&places.data_dir, &shown)?;
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
