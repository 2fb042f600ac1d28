//! A controller from its configuration to its end: state, node, store, index, services, tasks.

use crate::{
    api::{
        agent::Agents,
        authorise::{authorizer, cut_revoked},
        control::Control,
    },
    catalog::{
        Actor, Command, Queries as _,
        model::{AdminKey, Meta},
    },
    config::{Config, Store as StoreConfig},
    copies::keep_copies,
    data::{Data, DataParts},
    error::{Error, Result},
    gauges,
    gc::Gc,
    index::{ChunkIndex, IndexOptions, sync},
    ingest::Ingest,
    jobs::{Hub, dispatch, lose_jobs_without_agent},
    raft::{Catalog, Node, NodeOptions, node::SNAPSHOT_LOG_BYTES},
    session::{Leases, expire_leases},
    upkeep::Upkeep,
};
use holdfast_core::{Clock, HasKind as _, StoreId, SystemClock, limits};
use holdfast_net::{
    NetError,
    client::with_port,
    metrics::Metrics,
    notify,
    pki::Fingerprint,
    seed::ControllerIdentity,
    server::{Server, ServerTls},
    shutdown, telemetry,
};
use holdfast_proto::v1::{
    agent_service_server::AgentServiceServer, control_service_server::ControlServiceServer,
};
use holdfast_store::{DirStore, Store};
use std::{fs::File, os::fd::OwnedFd, path::Path, sync::Arc};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Serves until SIGTERM.
///
/// # Errors
/// When state or configuration cannot be used.
pub async fn run(config: Config) -> Result<()> {
    let guard = telemetry::init(&config.telemetry, "holdfast-controller").map_err(lift)?;
    let stop = shutdown::on_signals().map_err(lift)?;
    let served = serve(&config, stop).await;
    notify::stopping();
    if let Err(error) = &served {
        tracing::error!(%error, "the controller ends");
    }
    guard.shutdown().await;
    served
}

fn lift(error: NetError) -> Error {
    Error::refused(error.kind(), error.to_string())
}

async fn serve(config: &Config, stop: CancellationToken) -> Result<()> {
    let metrics = Metrics::default();
    if let Some(listen) = &config.telemetry.metrics_listen {
        metrics.serve(listen, stop.clone()).await.map_err(lift)?;
    }
    let identity = ControllerIdentity::load(&config.identity_dir).map_err(lift)?;
    std::fs::create_dir_all(&config.data_dir).map_err(|e| Error::io("create", &config.data_dir, e))?;
    let _lock = lock(&config.data_dir.join("lock"))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let options = NodeOptions {
        id: config.node.id,
        address: config.address().into(),
        snapshot_log_bytes: snapshot_log_bytes(),
        clock: Arc::clone(&clock),
    };
    let node = Node::start(
        &config.data_dir,
        options,
        Some(meta_of(&identity, clock.as_ref())),
    )
    .await?;
    let catalog = node.catalog().clone();
    let tls = ServerTls {
        identity: identity.tls.clone(),
        root: identity.root().clone(),
    };
    let listen = with_port(&config.node.listen).map_err(lift)?;
    let server = Server::bind(&listen, &tls, authorizer(&catalog))
        .await
        .map_err(lift)?;
    let (routes, tasks) = assemble(config, &catalog, &clock, identity, &metrics, &stop).await?;
    let revoked = tokio::spawn(cut_revoked(catalog.clone(), server.handle(), stop.clone()));
    tracing::info!(%listen, node = config.node.id, "the controller serves");
    notify::ready();
    notify::spawn_watchdog(stop.clone(), || true);
    server.serve(routes, stop).await;
    for task in tasks.into_iter().chain([revoked]) {
        task.abort();
    }
    node.shutdown().await;
    Ok(())
}

/// Bytes of Raft log between snapshots; a variable lets tests see many of them.
fn snapshot_log_bytes() -> u64 {
    std::env::var("HOLDFAST_SNAPSHOT_LOG_BYTES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(SNAPSHOT_LOG_BYTES)
}

/// The services of one node over its parts, and the tasks that keep them going.
async fn assemble(
    config: &Config,
    catalog: &Catalog,
    clock: &Arc<dyn Clock>,
    identity: ControllerIdentity,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<(Routes, Vec<tokio::task::JoinHandle<()>>)> {
    let store_config = config.store.first().ok_or_else(|| {
        Error::Config(
            "no [[store]] is configured: add one with site and path, packs must lie somewhere".into(),
        )
    })?;
    let store = open_store(catalog, store_config).await?;
    let index = Arc::new(ChunkIndex::open(
        &config.data_dir.join("index"),
        IndexOptions::default(),
    )?);
    let report = sync::sync(&index, &catalog.view(), store.as_ref()).await?;
    if report != sync::SyncReport::default() {
        tracing::info!(
            indexed = report.indexed,
            dropped = report.dropped,
            failed = report.failed_count,
            "index synced"
        );
    }
    let reserve = store_config.reserve.map(|size| size.0);
    let ingest = Arc::new(Ingest::new(
        Arc::clone(&store),
        Arc::clone(&index),
        catalog,
        reserve,
    ));
    let leases = Leases::new(Arc::clone(clock));
    let hub = Hub::new(Arc::clone(clock));
    gauges::register(metrics, catalog.clone(), hub.clone());
    let data = Data::new(DataParts {
        catalog: catalog.clone(),
        leases: leases.clone(),
        store: Arc::clone(&store),
        index: Arc::clone(&index),
        ingest: Arc::clone(&ingest),
        fleet: hub.clone(),
    });
    let gc = Gc::new(catalog.clone(), Arc::clone(&store), Arc::clone(&index));
    // Backups are refused until a collection that a crash broke off has ended.
    gc.resume().await?;
    let upkeep = Upkeep {
        catalog: catalog.clone(),
        store: Arc::clone(&store),
        index,
        gc,
        ingest,
    };
    let node = (config.node.id, config.address().to_owned());
    let control = Control::new(catalog.clone(), hub.clone(), Arc::new(upkeep), node);
    let agents = Agents {
        catalog: catalog.clone(),
        hub: Arc::clone(&hub),
        issuing: Arc::new(identity.issuing),
        stop: stop.clone(),
    };
    let routes = Routes::new(data.into_server())
        .add_service(AgentServiceServer::new(agents).max_decoding_message_size(limits::MESSAGE_MAX))
        .add_service(ControlServiceServer::new(control).max_decoding_message_size(limits::MESSAGE_MAX));
    let tasks = vec![
        tokio::spawn(dispatch(catalog.clone(), Arc::clone(&hub), stop.clone())),
        tokio::spawn(lose_jobs_without_agent(catalog.clone(), hub, stop.clone())),
        tokio::spawn(expire_leases(catalog.clone(), leases, stop.clone())),
        tokio::spawn(keep_copies(catalog.clone(), store, stop.clone())),
    ];
    Ok((routes, tasks))
}

/// Opens the configured store. One that the catalog does not know is made, if the directory is
/// missing or empty; one that it knows must be there with the same id.
async fn open_store(catalog: &Catalog, config: &StoreConfig) -> Result<Arc<dyn Store>> {
    let site = config
        .site
        .parse()
        .map_err(|error: holdfast_core::NameError| Error::Config(error.to_string()))?;
    let path = config.path.display().to_string();
    let known = catalog
        .view()
        .stores()?
        .into_iter()
        .find(|record| record.path == path);
    let store = match &known {
        None if is_empty(&config.path) => DirStore::create(&config.path, StoreId::generate())?,
        _ => DirStore::open(&config.path)?,
    };
    if let Some(known) = known.filter(|known| known.id != store.id()) {
        return Err(Error::Config(format!(
            "{path} holds store {}, but the catalog expects {} there; mount the right one",
            store.id(),
            known.id
        )));
    }
    catalog
        .propose(
            Actor::System,
            None,
            Command::AddStore {
                store: store.id(),
                site,
                path,
            },
        )
        .await?;
    Ok(Arc::new(store))
}

fn is_empty(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn meta_of(identity: &ControllerIdentity, clock: &dyn Clock) -> Meta {
    let seed = &identity.seed;
    Meta {
        cluster: seed.cluster,
        name: seed.name.to_string(),
        generation: 1,
        recovery_recipient: seed.recovery_recipient.to_string(),
        admin_keys: seed
            .admin_public_keys
            .iter()
            .map(|key| AdminKey(key.0.to_vec()))
            .collect(),
        root_ca_fingerprint: Fingerprint::of(identity.root()).0.to_vec(),
        founded_at: clock.wall(),
    }
}

/// Keeps a second process off the same state; the kernel frees it when this one ends, however.
fn lock(path: &Path) -> Result<OwnedFd> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| Error::io("open", path, error))?;
    let file = OwnedFd::from(file);
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::refused(
            holdfast_core::ErrorKind::Conflict,
            format!(
                "another controller runs on {}; stop it first",
                path.parent().unwrap_or(path).display()
            ),
        )),
        Err(error) => Err(Error::io("lock", path, error.into())),
    }
}
