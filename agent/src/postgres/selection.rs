//! Which directories of a cluster are read, each once its place is known to be allowed on this host.

use super::{
    ClusterRules, PageWatch, Staging,
    server::{Server, Tablespace},
    take::Order,
};
use crate::{
    error::{AgentError, Result},
    files::{Root, Rules, Selection, check_allowed},
};
use holdfast_postgres::{ControlFile, Place};
use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Directories that are known before the backup begins.
pub(super) struct Places {
    /// The data directory, links followed.
    pub data: PathBuf,
    /// The same, open: files are read through it whatever becomes of the path.
    pub data_dir: OwnedFd,
    /// `pg_wal`, links followed: on some hosts it is one.
    pub wal: PathBuf,
}

impl Places {
    /// Finds and opens them.
    ///
    /// # Errors
    /// `NotAllowed`, or `Io` for what is not there.
    pub fn open(server: &Server, order: &Order) -> Result<Self> {
        let data = real(&server.data_directory, order)?;
        let wal = real(&data.join("pg_wal"), order)?;
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let data_dir = rustix::fs::open(&data, flags, rustix::fs::Mode::empty())
            .map_err(AgentError::io("open", &data))?;
        Ok(Self { data, data_dir, wal })
    }
}

/// Refuses tablespaces that lie where nothing may be read.
pub(super) fn check_tablespaces(tablespaces: &[Tablespace], order: &Order) -> Result<()> {
    tablespaces
        .iter()
        .try_for_each(|tablespace| real(&tablespace.location, order).map(drop))
}

/// Where a path leads, if that is allowed.
fn real(path: &Path, order: &Order) -> Result<PathBuf> {
    let real = path.canonicalize().map_err(AgentError::io("open", path))?;
    check_allowed(&real, &order.allow)?;
    Ok(real)
}

/// The data directory and the tablespaces, as they change under the reader.
pub(super) fn of_data(
    order: &Order,
    places: &Places,
    control: &ControlFile,
    watch: &Arc<PageWatch>,
    tablespaces: &[Tablespace],
) -> Result<Selection> {
    let rules = |place, name: &str| {
        let watch = control.data_checksums.then(|| Arc::clone(watch));
        Rules::Cluster(ClusterRules::new(
            control.version,
            place,
            name.to_owned(),
            control.blocks_per_file,
            watch,
        ))
    };
    let data = Root::at(
        "/postgresql/data",
        &places.data,
        rules(Place::DataDirectory, "data"),
    )?;
    let mut roots = vec![data];
    for tablespace in tablespaces {
        let name = format!("tablespaces/{}", tablespace.oid);
        let dir = real(&tablespace.location, order)?;
        let rules = rules(Place::Tablespace, &name);
        roots.push(Root::at(&format!("/postgresql/{name}"), &dir, rules)?);
    }
    Ok(Selection::of_roots(roots, &own(order)))
}

/// These files of `pg_wal`, and what is staged.
pub(super) fn of_end(
    order: &Order,
    places: &Places,
    wal: BTreeSet<Vec<u8>>,
    staging: &Staging,
) -> Result<Selection> {
    let staged = staging.names()?;
    let roots = vec![
        Root::at("/postgresql/wal", &places.wal, Rules::Only(wal))?,
        Root::at("/postgresql/backup", staging.path(), Rules::Only(staged))?,
    ];
    Ok(Selection::of_roots(roots, &own(order)))
}

fn own(order: &Order) -> [PathBuf; 1] {
    [order.state_dir.clone()]
}
