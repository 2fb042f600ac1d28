//! The agent's end of the socket: who may ask is asked of the kernel, one request a connection.

use super::{
    archives::Archives,
    blank::Blank,
    caller,
    cluster_files::ClusterFiles,
    fetched::{Fetcher, Found, Wanted},
    protocol::{Answer, Request, TEXT_MAX, receive, send},
};
use crate::{
    config::Config,
    error::{AgentError, Result},
    postgres::{ClusterConfig, not_a_member, section_of},
    state::State,
};
use holdfast_core::{ErrorKind, HasKind as _, Name, NameError, SourceRef};
use holdfast_net::client::ClientTls;
use std::{
    fs,
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

/// Requests that are answered side by side; more wait. Servers archive one file at a time.
const REQUESTS_MAX: usize = 64;
/// Refusals that are told side by side to users whom no section names.
const REFUSED_MAX: usize = 8;
/// Longest that one of these may take.
const REFUSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Characters of a source's name, as a client gave it, that are logged.
const NAME_LOGGED: usize = 130;
/// Longest wait for what a client asks.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that a push may take before the server is told to try again.
const PUSH_TIMEOUT: Duration = Duration::from_secs(120);
/// How often sessions are looked at that nothing is appended to.
const IDLE_CHECK: Duration = Duration::from_secs(10);

/// The socket's service.
struct Service {
    state: Arc<State>,
    config: Arc<Config>,
    archives: Archives,
    fetcher: Fetcher,
}

/// Listens at `socket` until told to stop.
///
/// # Errors
/// When the socket cannot be made, or another agent listens there.
pub fn serve(
    socket: &Path,
    state: Arc<State>,
    config: Arc<Config>,
    tls: ClientTls,
    archives: Archives,
    stop: CancellationToken,
) -> Result<tokio::task::JoinHandle<()>> {
    let listener = listen(socket)?;
    let fetcher = Fetcher::new(Arc::clone(&state), tls)?;
    let service = Arc::new(Service {
        state,
        config,
        archives,
        fetcher,
    });
    let socket = socket.to_owned();
    tracing::info!(socket = %socket.display(), "WAL can be pushed and fetched");
    Ok(tokio::spawn(async move {
        service.run(listener, stop).await;
        let _ = fs::remove_file(&socket);
    }))
}

fn listen(socket: &Path) -> Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .map_err(AgentError::io("make", dir))?;
    }
    if fs::symlink_metadata(socket).is_ok_and(|about| about.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return Err(AgentError::Invalid(format!(
                "another process listens at {}; stop it, or name another socket in agent.toml",
                socket.display()
            )));
        }
        fs::remove_file(socket).map_err(AgentError::io("remove", socket))?;
    }
    let listener = UnixListener::bind(socket).map_err(AgentError::io("listen at", socket))?;
    // Everybody may connect; who may ask for what is decided by the kernel's word on who that is.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))
        .map_err(AgentError::io("open to all", socket))?;
    Ok(listener)
}

impl Service {
    async fn run(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(REQUESTS_MAX));
        let others = Arc::new(Semaphore::new(REFUSED_MAX));
        let mut idle = tokio::time::interval(IDLE_CHECK);
        loop {
            let connection = tokio::select! {
                () = stop.cancelled() => break,
                _ = idle.tick() => {
                    self.fetcher.forget_what_nobody_wants();
                    for archive in self.archives.all() {
                        // Not here: a push may hold it for long.
                        tokio::spawn(async move { archive.close_idle().await });
                    }
                    continue;
                }
                accepted = listener.accept() => match accepted {
                    Ok((connection, _)) => connection,
                    Err(error) => {
                        tracing::warn!(%error, "a connection to the agent's socket failed");
                        continue;
                    }
                },
            };
            let caller = match connection.peer_cred() {
                Ok(caller) => caller.uid(),
                Err(error) => {
                    tracing::warn!(%error, "who is at the agent's socket cannot be asked");
                    continue;
                }
            };
            if !self.is_named(caller) {
                // In places of their own, so that they keep nobody waiting; and if these are taken, without an answer.
                if let Ok(place) = Arc::clone(&others).try_acquire_owned() {
                    tokio::spawn(async move {
                        let _ = tokio::time::timeout(REFUSE_TIMEOUT, refuse(connection, caller)).await;
                        drop(place);
                    });
                }
                continue;
            }
            let Ok(place) = Arc::clone(&room).acquire_owned().await else {
                break;
            };
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = this.answer(connection, caller).await {
                    tracing::debug!(%error, "a client of the agent's socket went away");
                }
                drop(place);
            });
        }
    }

    async fn answer(&self, connection: UnixStream, caller: u32) -> Result<()> {
        let (request, handles) = tokio::time::timeout(ASK_TIMEOUT, receive(&connection))
            .await
            .map_err(|_| failure(ErrorKind::Timeout, "it asked nothing in time"))??;
        match request {
            Request::Push { source, data, path } => {
                let kept =
                    match tokio::time::timeout(PUSH_TIMEOUT, self.push(caller, &source, data, path)).await {
                        Ok(kept) => kept,
                        Err(_) => Err(failure(
                            ErrorKind::Timeout,
                            "the controllers did not take it in time; the server tries again",
                        )),
                    };
                let answer = match kept {
                    Ok(()) => Answer::Kept,
                    Err(error) => failed(&source, &error),
                };
                send(&connection, &answer, &[]).await
            }
            Request::Fetch {
                source,
                name,
                patience_ms,
                accept_loss,
            } => {
                let patience = Duration::from_millis(patience_ms);
                // A file system of the caller's may keep us waiting.
                let blanks = tokio::task::spawn_blocking(move || Blank::all(handles, caller))
                    .await
                    .map_err(|error| AgentError::Internal(error.to_string()))?;
                let wanted = Wanted {
                    name: &name,
                    caller,
                    patience,
                    accept_loss,
                    blanks,
                };
                match self.fetch(&source, wanted).await {
                    Ok(Found::Absent) => send(&connection, &Answer::Absent, &[]).await,
                    Ok(Found::File { file, len }) => {
                        send(&connection, &Answer::File { len }, &[file.as_fd()]).await
                    }
                    Err(error) => send(&connection, &failed(&source, &error), &[]).await,
                }
            }
        }
    }

    async fn push(&self, caller: u32, source: &str, data: PathBuf, path: PathBuf) -> Result<()> {
        let source = self.source(source)?;
        let own = &self.state.membership.name;
        let section = section_of(&self.config, own, &source).ok_or_else(|| {
            if source.agent != *own {
                return not_a_member(&source);
            }
            AgentError::NotAllowed(format!(
                "no PostgreSQL cluster {0} is allowed on this host; add these lines to agent.toml, with its data directory in \
                 `allow`, and restart the agent:\n[postgres.{0}]",
                source.source
            ))
        })?;
        let (name, section) = section;
        caller::check(caller, section, name.as_str())?;
        let allow = self.config.allow.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let files = ClusterFiles::open(&data, caller, &allow)?;
            let name = files.name_of(&data, &path)?;
            Ok::<_, AgentError>((Arc::new(files), name))
        });
        let (files, name) = opened
            .await
            .map_err(|error| AgentError::Internal(error.to_string()))??;
        self.archives.archive(&source)?.keep(files, name).await?;
        tracing::debug!(%source, file = %name, "WAL kept");
        Ok(())
    }

    async fn fetch(&self, source: &str, wanted: Wanted<'_>) -> Result<Found> {
        let source = self.source(source)?;
        let (name, caller) = (wanted.name, wanted.caller);
        if caller != 0 {
            let (section_name, section) = self.may_fetch(&source).ok_or_else(|| {
                AgentError::NotAllowed(format!(
                    "agent.toml does not say who may fetch WAL of {source} here; name it in the section of the server that \
                     fetches, and restart the agent:\nfetch = [\"{source}\"]"
                ))
            })?;
            caller::check(caller, section, section_name.as_str())?;
        }
        // In this order: what is in the spool no more, the controllers hold.
        let spooled = match self.archives.existing(&source) {
            Some(archive) => archive.fetch_spooled(name).await,
            None => Ok(None),
        };
        let damage = match spooled {
            Ok(Some(file)) => {
                let len = file
                    .metadata()
                    .map_err(AgentError::io("look at", Path::new(name)))?
                    .len();
                return Ok(Found::File {
                    file: Arc::new(file),
                    len,
                });
            }
            Ok(None) => None,
            Err(error) => Some(error),
        };
        match (self.fetcher.fetch(&source, wanted).await?, damage) {
            (Found::Absent, Some(damage)) => Err(damage),
            (found, _) => Ok(found),
        }
    }

    /// `NAME` is what the section of that name says, or else a source of this agent; `AGENT/NAME` is of any in its vault.
    fn source(&self, text: &str) -> Result<SourceRef> {
        let invalid = |error: NameError| AgentError::Invalid(format!("source {text:?}: {error}"));
        if text.contains('/') {
            return text.parse().map_err(invalid);
        }
        let name: Name = text.parse().map_err(invalid)?;
        let section = self.config.postgres.get(&name);
        let said = section.and_then(|section| section.source.clone());
        Ok(said.unwrap_or_else(|| SourceRef {
            agent: self.state.membership.name.clone(),
            source: name,
        }))
    }

    /// The section of `agent.toml` whose user may fetch a source's WAL: its own, or for other agents' one that names it.
    fn may_fetch(&self, source: &SourceRef) -> Option<(&Name, &ClusterConfig)> {
        let own = &self.state.membership.name;
        let sections = &self.config.postgres;
        // Of our own sources none is named in `fetch`.
        let named = || {
            sections
                .iter()
                .find(|(_, section)| section.fetch.contains(source))
        };
        section_of(&self.config, own, source).or_else(|| named().filter(|_| source.agent != *own))
    }

    /// Whether some section names this user.
    fn is_named(&self, caller: u32) -> bool {
        let mut sections = self.config.postgres.iter();
        caller == 0 || sections.any(|(name, section)| caller::check(caller, section, name.as_str()).is_ok())
    }
}

fn failure(kind: ErrorKind, why: &str) -> AgentError {
    AgentError::Server {
        action: "serve WAL",
        message: why.into(),
        kind,
    }
}

/// Tells a user whom no section names.
async fn refuse(connection: UnixStream, caller: u32) -> Result<()> {
    let _: (Request, _) = receive(&connection).await?;
    tracing::debug!(caller, "a user whom agent.toml does not name asked for WAL");
    let why = format!(
        "the user with number {caller} may not push or fetch WAL on this host; if the server runs as that user, name it in \
         agent.toml and restart the agent:\n[postgres.NAME]\nuser = \"NAME\""
    );
    send(&connection, &Answer::Failed { why }, &[]).await
}

fn failed(source: &str, error: &AgentError) -> Answer {
    let source: String = source.chars().take(NAME_LOGGED).collect();
    tracing::warn!(source, %error, kind = error.kind().as_str(), "WAL was not served");
    Answer::Failed {
        why: error.to_string().chars().take(TEXT_MAX).collect(),
    }
}
