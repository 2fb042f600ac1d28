//! The server side of the wire: an accept loop of our own, so that certificates can be replaced and peers cut
//! off while it runs. TLS 1.3 and HTTP/2 only; a client without a certificate can call nothing but `Join`.

mod connection;

use crate::{
    error::{NetError, Result},
    identity::{Identity, Role},
    pki::{
        TlsIdentity,
        verify::{Authorizer, ClientRule, provider},
    },
};
use holdfast_core::{ClusterId, limits};
use parking_lot::{Mutex, RwLock};
use rustls::{
    ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::CertificateDer;
use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

/// Calls that need no client certificate.
const OPEN_CALLS: &[&str] = &["/holdfast.v1.AgentService/Join"];

/// What a server shows and whom it trusts.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// Its own chain (leaf, issuing CA, root) and key; the leaf must be a controller's.
    pub identity: TlsIdentity,
    /// The root that clients' certificates must lead to.
    pub root: CertificateDer<'static>,
}

/// The verified identity of a request's peer; `None` only for `Join`. Found in the extensions of every request.
#[derive(Debug, Clone)]
pub struct PeerIdentity(pub Option<Arc<Identity>>);

impl PeerIdentity {
    /// The identity behind a request.
    ///
    /// # Errors
    /// An `Unauthenticated` status when the peer showed none.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Arc<Identity>, tonic::Status> {
        request
            .extensions()
            .get::<Self>()
            .and_then(|peer| peer.0.clone())
            .ok_or_else(|| tonic::Status::unauthenticated("this call needs a client certificate"))
    }
}

/// Where a request came from. Found in the extensions of every request.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub SocketAddr);

/// A bound server that does not accept yet.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
}

/// State of a server that its connections and handles share.
struct Shared {
    cluster: ClusterId,
    authorizer: Arc<dyn Authorizer>,
    certificate: Arc<Certificate>,
    next_id: AtomicU64,
    /// Both maps are behind short, synchronous sections; neither lock is held across an await.
    handshakes: Mutex<BTreeMap<u64, CancellationToken>>,
    connections: Mutex<BTreeMap<u64, Live>>,
}

struct Live {
    identity: Option<Arc<Identity>>,
    cut: CancellationToken,
}

/// Steers a running server.
#[derive(Clone)]
pub struct ServerHandle(Arc<Shared>);

impl ServerHandle {
    /// Cuts every live connection whose identity matches, requests and streams included; tells how many.
    pub fn cut(&self, matches: impl Fn(&Identity) -> bool) -> usize {
        let mut count = 0;
        for live in self.0.connections.lock().values() {
            if live.identity.as_deref().is_some_and(&matches) {
                live.cut.cancel();
                count += 1;
            }
        }
        count
    }

    /// Cuts every live connection that the authorizer no longer allows; tells how many.
    pub fn cut_revoked(&self) -> usize {
        self.cut(|identity| self.0.authorizer.check(identity).is_err())
    }

    /// Shows a new certificate from the next handshake on.
    ///
    /// # Errors
    /// `Invalid` when it is not a controller's certificate of this cluster.
    pub fn replace_certificate(&self, identity: &TlsIdentity) -> Result<()> {
        self.0.certificate.replace(identity, self.0.cluster)
    }

    /// Identities that are connected now.
    #[must_use]
    pub fn connected(&self) -> Vec<Arc<Identity>> {
        self.0
            .connections
            .lock()
            .values()
            .filter_map(|live| live.identity.clone())
            .collect()
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerHandle")
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({:?})", self.listener.local_addr())
    }
}

impl Server {
    /// Binds an address (`host:port`).
    ///
    /// # Errors
    /// `Io` when the address is taken or not ours; `Invalid` when the certificates do not fit.
    pub async fn bind(listen: &str, tls: &ServerTls, authorizer: Arc<dyn Authorizer>) -> Result<Self> {
        let cluster = tls.identity.identity().cluster;
        let certificate = Arc::new(Certificate(RwLock::new(certified(&tls.identity, cluster)?)));
        let rule = ClientRule::new(&tls.root, cluster, Arc::clone(&authorizer))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(NetError::internal("prepare TLS 1.3"))?
            .with_client_cert_verifier(rule)
            .with_cert_resolver(Arc::clone(&certificate) as _);
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would skip the check of the client's certificate, and with it revocation.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(NetError::io(format!("listen on {listen}")))?;
        let shared = Shared {
            cluster,
            authorizer,
            certificate,
            next_id: AtomicU64::new(0),
            handshakes: Mutex::default(),
            connections: Mutex::default(),
        };
        Ok(Self {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            shared: Arc::new(shared),
        })
    }

    /// The bound address, with the real port when port 0 was asked for.
    ///
    /// # Errors
    /// `Io` when the system does not know.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.listener
            .local_addr()
            .map_err(NetError::io("ask for the listening address"))
    }

    /// A handle that outlives [`Server::serve`].
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        ServerHandle(Arc::clone(&self.shared))
    }

    /// Accepts and serves until told to stop; then refuses new requests, gives running ones
    /// `limits::SHUTDOWN_GRACE`, and cuts the rest. Streams that never end should watch the same token.
    pub async fn serve(self, routes: Routes, shutdown: CancellationToken) {
        let Self {
            listener,
            acceptor,
            shared,
        } = self;
        let routes = routes.prepare();
        let slots = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
        let tasks = TaskTracker::new();
        let cut_all = CancellationToken::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors or memory: a pause lets others finish instead of spinning.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                tracing::warn!(%address, "too many connections; this one is dropped");
                continue;
            };
            let task = connection::Connection {
                id: shared.next_id.fetch_add(1, Ordering::Relaxed),
                address,
                shared: Arc::clone(&shared),
                routes: routes.clone(),
                shutdown: shutdown.clone(),
                cut: cut_all.child_token(),
            };
            let acceptor = acceptor.clone();
            tasks.spawn(async move {
                task.run(socket, acceptor).await;
                drop(slot);
            });
        }
        drop(listener);
        tasks.close();
        if tokio::time::timeout(limits::SHUTDOWN_GRACE, tasks.wait())
            .await
            .is_err()
        {
            cut_all.cancel();
            tasks.wait().await;
        }
    }
}

/// The certificate that is shown now.
struct Certificate(RwLock<Arc<CertifiedKey>>);

impl Certificate {
    fn replace(&self, identity: &TlsIdentity, cluster: ClusterId) -> Result<()> {
        let certified = certified(identity, cluster)?;
        *self.0.write() = certified;
        Ok(())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

fn certified(identity: &TlsIdentity, cluster: ClusterId) -> Result<Arc<CertifiedKey>> {
    let who = identity.identity();
    if who.role != Role::Controller || who.cluster != cluster {
        return Err(NetError::Invalid(format!(
            "{who} cannot serve: the certificate is not a controller's"
        )));
    }
    crate::client::certified_key(identity)
}
