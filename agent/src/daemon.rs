//! The running agent: one control stream to whichever controller answers, held open for ever.

use crate::{
    config::Config,
    error::{AgentError, Result},
    jobs::{Jobs, OUTBOX_LEN},
    postgres::Staging,
    state::State,
    wal::{self, Archives},
};
use holdfast_core::{ErrorKind, limits::RECONNECT_PAUSE};
use holdfast_net::{
    Fault,
    client::{ClientTls, ConnectOptions, Connection, connect},
    keys::TlsKey,
    metrics::Metrics,
    notify, shutdown, telemetry,
};
use holdfast_proto::v1::{
    AgentHello, AgentMessage, ControllerMessage, RenewRequest, agent_message,
    agent_service_client::AgentServiceClient, controller_message,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// How long jobs may take to stop when the agent is told to.
const STOP_PATIENCE: Duration = Duration::from_secs(8);
/// How often it is looked whether the certificate is due; renewal is days early.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

/// Serves until SIGTERM.
///
/// # Errors
/// When the state or configuration is unusable, or the controllers refuse this agent for good.
pub async fn run(config: Config) -> Result<()> {
    let guard = telemetry::init(&config.telemetry, "holdfast-agent")?;
    let stop = shutdown::on_signals()?;
    let served = serve(config, stop).await;
    notify::stopping();
    if let Err(error) = &served {
        tracing::error!(%error, "the agent ends");
    }
    guard.shutdown().await;
    served
}

async fn serve(config: Config, stop: CancellationToken) -> Result<()> {
    let state = Arc::new(State::open(&config.state_dir)?);
    Staging::clear(state.dir())?;
    let config = Arc::new(config);
    let metrics = Metrics::default();
    if let Some(listen) = &config.telemetry.metrics_listen {
        metrics.serve(listen, stop.clone()).await?;
    }
    let tls = ClientTls::new(&state.tls()?, &state.root)?;
    let jobs = Jobs::new(Arc::clone(&state), Arc::clone(&config), tls.clone(), &metrics);
    jobs.clear_scratch();
    // Distinguishes a restart from a reconnect.
    let hello = hello(&state, &config, u64::from(std::process::id()) ^ boot_nanos());
    let archives = wal::Archives::start(
        Arc::clone(&state),
        Arc::clone(&config),
        tls.clone(),
        &metrics,
        stop.clone(),
    )?;
    let wal = match &config.socket {
        Some(socket) => Some(wal::serve(
            socket,
            Arc::clone(&state),
            Arc::clone(&config),
            tls.clone(),
            archives.clone(),
            stop.clone(),
        )?),
        None => None,
    };
    notify::ready();
    notify::spawn_watchdog(stop.clone(), || true);
    tokio::spawn(keep_certificate_fresh(
        Arc::clone(&state),
        tls.clone(),
        stop.clone(),
    ));
    let mut pause = RECONNECT_PAUSE.0;
    let options = ConnectOptions::default();
    while !stop.is_cancelled() {
        let connected = tokio::select! {
            () = stop.cancelled() => break,
            connected = connect(&state.membership.addresses, &tls, &options) => connected,
        };
        let ended = match connected {
            Ok(connection) => {
                let began = tokio::time::Instant::now();
                let ended = hold_stream(connection, &hello, &jobs, &archives, &stop).await;
                // It held for longer than we had waited for it: a new trouble, not the old one.
                if began.elapsed() > pause {
                    pause = RECONNECT_PAUSE.0;
                }
                ended
            }
            Err(error) => Err(Fault::from(error)),
        };
        match ended {
            Ok(()) => pause = RECONNECT_PAUSE.0,
            Err(fault) if is_final(&fault) => return Err(fault.into()),
            Err(fault) => tracing::warn!(%fault, "no control stream; trying again in {pause:?}"),
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(RECONNECT_PAUSE.1);
    }
    jobs.stop(STOP_PATIENCE).await;
    if let Some(wal) = wal {
        let _ = tokio::time::timeout(STOP_PATIENCE, wal).await;
    }
    let _ = tokio::time::timeout(STOP_PATIENCE, archives.close()).await;
    Ok(())
}

/// A refused identity does not become valid by asking again.
fn is_final(fault: &Fault) -> bool {
    matches!(fault.kind, ErrorKind::Denied | ErrorKind::Unauthenticated)
}

fn boot_nanos() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn hello(state: &State, config: &Config, boot_id: u64) -> AgentHello {
    let signing = state.signing.public();
    let sealing = state.sealing.recipient().to_string();
    AgentHello {
        version: env!("CARGO_PKG_VERSION").into(),
        keys_mac: state.keys.endorse(&signing, sealing.as_bytes()).to_vec().into(),
        signing_key: signing.to_vec().into(),
        sealing_key: sealing.into_bytes().into(),
        allow: config
            .allow
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        boot_id,
        jobs: Vec::new(),
    }
}

/// Holds one control stream until it ends.
async fn hold_stream(
    connection: Connection,
    hello: &AgentHello,
    jobs: &Jobs,
    archives: &Archives,
    stop: &CancellationToken,
) -> std::result::Result<(), Fault> {
    let (outbox, messages) = mpsc::channel(OUTBOX_LEN + 1);
    let hello = AgentHello {
        jobs: jobs.known(),
        ..hello.clone()
    };
    outbox
        .try_send(AgentMessage {
            body: Some(agent_message::Body::Hello(hello)),
        })
        .map_err(|e| Fault::new(ErrorKind::Internal, e.to_string()))?;
    let call = AgentServiceClient::new(connection)
        .control(ReceiverStream::new(messages))
        .await;
    let mut stream = call?.into_inner();
    let mut queues = archives.changes();
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Ok(()) = queues.changed() => {
                tell_queues(archives, 0, &outbox);
                continue;
            }
            message = stream.message() => message?,
        };
        match message {
            Some(message) => receive(message, jobs, archives, &outbox),
            None => return Ok(()),
        }
    }
}

/// Says what waits here. A stream that takes nothing loses it: who asked then knows that he does not know.
fn tell_queues(archives: &Archives, question: u64, outbox: &mpsc::Sender<AgentMessage>) {
    let report = archives.report(question);
    let _ = outbox.try_send(AgentMessage {
        body: Some(agent_message::Body::Queues(report)),
    });
}

fn receive(
    message: ControllerMessage,
    jobs: &Jobs,
    archives: &Archives,
    outbox: &mpsc::Sender<AgentMessage>,
) {
    use controller_message::Body;
    match message.body {
        Some(Body::Welcome(_)) => {
            tracing::info!("connected to the controllers");
            notify::status("connected to the controllers");
            jobs.attach(outbox.clone());
            tell_queues(archives, 0, outbox);
        }
        Some(Body::AskQueues(asked)) => tell_queues(archives, asked.question, outbox),
        Some(Body::Offer(offer)) => jobs.offered(offer),
        Some(Body::Start(start)) => jobs.started(&start.job, start.attempt),
        Some(Body::Cancel(cancel)) => jobs.cancel(&cancel.job),
        Some(Body::Limits(limits)) => jobs.set_limits(limits),
        Some(Body::Drop(drop)) => jobs.dropped(&drop.job, drop.attempt),
        None => tracing::debug!("a message that this version does not know"),
    }
}

/// Renews the certificate at two thirds of its life.
async fn keep_certificate_fresh(state: Arc<State>, tls: ClientTls, stop: CancellationToken) {
    loop {
        if let Err(error) = renew_if_due(&state, &tls).await {
            tracing::warn!(%error, "the certificate could not be renewed; trying again within the hour");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RENEWAL_CHECK) => {}
        }
    }
}

async fn renew_if_due(state: &State, tls: &ClientTls) -> Result<()> {
    if state.tls()?.renew_at()? > SystemTime::now() {
        return Ok(());
    }
    let key = TlsKey::generate()?;
    let connection = connect(&state.membership.addresses, tls, &ConnectOptions::default()).await?;
    let request = RenewRequest {
        csr_der: key.certificate_request()?.into(),
    };
    let answer = AgentServiceClient::new(connection)
        .renew(request)
        .await
        .map_err(Fault::from)?
        .into_inner();
    let chain = answer.chain_der.iter().map(|der| der.to_vec()).collect();
    let fresh = holdfast_net::pki::TlsIdentity::from_der_chain(chain, key)?;
    if fresh.identity() != state.tls()?.identity() {
        return Err(AgentError::Invalid(
            "the renewed certificate is for another name".into(),
        ));
    }
    state.save_tls(&fresh)?;
    tls.replace_certificate(&fresh)?;
    tracing::info!("the certificate was renewed");
    Ok(())
}
