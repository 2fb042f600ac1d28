//! The client side of the wire: connections to whichever controller answers, over TLS 1.3 only.

use crate::{
    error::{NetError, Result},
    identity::CONTROLLER_DNS_NAME,
    pki::{
        Fingerprint, TlsIdentity,
        verify::{ServerRule, provider},
    },
    read_ahead::ReadAhead,
    trace::TraceInterceptor,
};
use holdfast_core::{ClusterId, limits};
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use rustls::{
    ClientConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

/// A connection that carries trace context with every call; give it to a generated client's `new`.
/// It connects again by itself when the peer was away.
pub type Connection = InterceptedService<Channel, TraceInterceptor>;

/// The port of controllers unless an address names another.
pub const DEFAULT_PORT: u16 = 7443;
/// Most addresses that are tried.
const ADDRESSES_MAX: usize = 32;

/// Who we are and whom we trust. Clones share the certificate, so that one renewal serves all connections.
#[derive(Clone)]
pub struct ClientTls {
    certificate: Arc<Certificate>,
    rule: Arc<ServerRule>,
}

impl ClientTls {
    /// # Errors
    /// `Invalid` when the root or our own key cannot be used.
    pub fn new(identity: &TlsIdentity, root: &CertificateDer<'_>) -> Result<Self> {
        Ok(Self {
            certificate: Arc::new(Certificate(RwLock::new(certified_key(identity)?))),
            rule: ServerRule::with_root(root, identity.identity().cluster)?,
        })
    }

    /// Shows a new certificate from the next connection on.
    ///
    /// # Errors
    /// `Invalid` when the key cannot be used.
    pub fn replace_certificate(&self, identity: &TlsIdentity) -> Result<()> {
        let certified = certified_key(identity)?;
        *self.certificate.0.write() = certified;
        Ok(())
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTls({:?})", self.rule)
    }
}

/// How patiently to connect and wait.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// For one address, handshake included.
    pub connect_timeout: Duration,
    /// For one call from request to the head of its answer; `None` waits for ever.
    pub call_timeout: Option<Duration>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: limits::CONNECT_TIMEOUT,
            call_timeout: None,
        }
    }
}

/// Connects to the first address (`host` or `host:port`) that answers as a controller of our cluster.
///
/// # Errors
/// `Unavailable` when none answers; `Untrusted` when one answers that is not ours; `Denied` when we are refused.
pub async fn connect(addresses: &[String], tls: &ClientTls, options: &ConnectOptions) -> Result<Connection> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(NetError::internal("prepare TLS 1.3"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&tls.rule) as _)
        .with_client_cert_resolver(Arc::clone(&tls.certificate) as _);
    open(addresses, config, options).await
}

/// Several connections, for transfers that one connection's lock would slow down.
///
/// # Errors
/// As [`connect`].
pub async fn connect_pool(
    addresses: &[String],
    tls: &ClientTls,
    options: &ConnectOptions,
    count: usize,
) -> Result<Vec<Connection>> {
    let mut pool = Vec::with_capacity(count);
    for _ in 0..count {
        pool.push(connect(addresses, tls, options).await?);
    }
    Ok(pool)
}

/// Connects without a certificate, to join: the server is recognised by the fingerprint of its root, which is
/// returned for keeping.
///
/// # Errors
/// As [`connect`].
pub async fn connect_join(
    addresses: &[String],
    fingerprint: Fingerprint,
    cluster: ClusterId,
    options: &ConnectOptions,
) -> Result<(Connection, CertificateDer<'static>)> {
    let rule = ServerRule::pinned(fingerprint, cluster);
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(NetError::internal("prepare TLS 1.3"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&rule) as _)
        .with_no_client_auth();
    let connection = open(addresses, config, options).await?;
    let root = rule
        .shown_root()
        .ok_or_else(|| NetError::Internal("connected without seeing the root".into()))?;
    Ok((connection, root))
}

async fn open(
    addresses: &[String],
    mut config: ClientConfig,
    options: &ConnectOptions,
) -> Result<Connection> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    // The server keeps no sessions.
    config.resumption = Resumption::disabled();
    let dialer = Arc::new(Dialer {
        addresses: addresses.iter().map(|a| with_port(a)).collect::<Result<_>>()?,
        last_good: AtomicUsize::new(0),
        tls: TlsConnector::from(Arc::new(config)),
        timeout: options.connect_timeout,
    });
    if dialer.addresses.is_empty() || dialer.addresses.len() > ADDRESSES_MAX {
        return Err(NetError::Invalid(format!(
            "give 1 to {ADDRESSES_MAX} controller addresses"
        )));
    }
    let (interval, timeout) = limits::KEEPALIVE;
    // "http": TLS is the connector's affair, and tonic would look for a TLS layer of its own.
    let mut endpoint = Endpoint::from_shared(format!("http://{CONTROLLER_DNS_NAME}"))
        .map_err(NetError::internal("prepare a connection"))?
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_frame_size(limits::HTTP2_FRAME)
        .http2_max_header_list_size(limits::HEADERS_MAX)
        .http2_keep_alive_interval(interval)
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(true);
    if let Some(timeout) = options.call_timeout {
        endpoint = endpoint.timeout(timeout);
    }
    // The first dial is ours, so that its error keeps its kind; tonic uses the connection it made.
    let first = Arc::new(parking_lot::Mutex::new(Some(dialer.dial().await?)));
    let connector = tower::service_fn(move |_| {
        let dialer = Arc::clone(&dialer);
        let ready = first.lock().take();
        async move {
            match ready {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => dialer.dial().await.map(TokioIo::new),
            }
        }
    });
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|e| NetError::Unavailable(format!("connect: {}", crate::status::error_chain(&e))))?;
    Ok(InterceptedService::new(channel, TraceInterceptor))
}

struct Dialer {
    addresses: Vec<String>,
    last_good: AtomicUsize,
    tls: TlsConnector,
    timeout: Duration,
}

impl Dialer {
    /// Tries each address once, beginning with the one that last answered.
    async fn dial(&self) -> Result<TlsStream<ReadAhead<TcpStream>>> {
        let start = self.last_good.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for step in 0..self.addresses.len() {
            let index = (start + step) % self.addresses.len();
            let address = &self.addresses[index];
            let outcome = tokio::time::timeout(self.timeout, self.dial_one(address)).await;
            match outcome {
                Ok(Ok(stream)) => {
                    self.last_good.store(index, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => failures.push((address, error)),
                Err(_) => failures.push((
                    address,
                    NetError::Unavailable(format!("no answer within {} s", self.timeout.as_secs())),
                )),
            }
        }
        let text = failures
            .iter()
            .map(|(a, e)| format!("{a}: {e}"))
            .collect::<Vec<_>>()
            .join("; ");
        let text = format!("no controller could be reached ({text})");
        // One answer that is wrong tells more than many that are missing.
        match failures
            .into_iter()
            .map(|(_, e)| e)
            .find(|e| !matches!(e, NetError::Unavailable(_)))
        {
            Some(NetError::Untrusted(_)) => Err(NetError::Untrusted(text)),
            Some(NetError::Denied(_)) => Err(NetError::Denied(text)),
            _ => Err(NetError::Unavailable(text)),
        }
    }

    async fn dial_one(&self, address: &str) -> Result<TlsStream<ReadAhead<TcpStream>>> {
        let unavailable = |e: std::io::Error| NetError::Unavailable(e.to_string());
        let socket = TcpStream::connect(address).await.map_err(unavailable)?;
        socket.set_nodelay(true).map_err(unavailable)?;
        let name =
            ServerName::try_from(CONTROLLER_DNS_NAME).map_err(NetError::internal("name the server"))?;
        let connecting = self.tls.connect_with(name, ReadAhead::new(socket), |tls| {
            tls.set_buffer_limit(Some(limits::TLS_BUFFER));
        });
        let stream = connecting.await.map_err(tls_error)?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(NetError::Untrusted("the server does not speak HTTP/2".into()));
        }
        Ok(stream)
    }
}

fn tls_error(error: std::io::Error) -> NetError {
    use rustls::{AlertDescription as Alert, Error as Tls};
    match error.get_ref().and_then(|e| e.downcast_ref::<Tls>()) {
        Some(Tls::InvalidCertificate(why)) => NetError::Untrusted(format!(
            "the server did not show that it is a controller of this cluster ({why:?})"
        )),
        Some(Tls::AlertReceived(Alert::CertificateRevoked)) => {
            NetError::Denied("our certificate was revoked or replaced".into())
        }
        Some(Tls::AlertReceived(alert)) => {
            NetError::Untrusted(format!("the server refused the handshake ({alert:?})"))
        }
        Some(other) => NetError::Untrusted(format!("the TLS handshake failed ({other})")),
        None => NetError::Unavailable(error.to_string()),
    }
}

/// Adds the default port to an address without one.
///
/// # Errors
/// `Invalid` when it is not `host` or `host:port`.
pub fn with_port(address: &str) -> Result<String> {
    let bad = || NetError::Invalid(format!("{address:?} is not an address: write HOST or HOST:PORT"));
    if address.is_empty() || address.contains(['/', ' ', '@']) {
        return Err(bad());
    }
    let bare_v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
    let port = match address.rsplit_once(':') {
        _ if bare_v6 => return Ok(format!("[{address}]:{DEFAULT_PORT}")),
        Some((host, port)) if !host.is_empty() && !port.ends_with(']') => port,
        Some(("", _)) => return Err(bad()),
        _ => return Ok(format!("{address}:{DEFAULT_PORT}")),
    };
    port.parse::<u16>().map_err(|_| bad())?;
    Ok(address.to_owned())
}

/// Chain and key in the form that rustls signs with.
pub(crate) fn certified_key(identity: &TlsIdentity) -> Result<Arc<CertifiedKey>> {
    let key = provider()
        .key_provider
        .load_private_key(identity.key().rustls())
        .map_err(|e| NetError::Invalid(format!("use the TLS key: {e}")))?;
    Ok(Arc::new(CertifiedKey::new(identity.chain().to_vec(), key)))
}

/// The certificate that we show now.
struct Certificate(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

impl ResolvesClientCert for Certificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_port_is_added_where_none_is() {
        for (given, expected) in [
            ("ctl1", "ctl1:7443"),
            ("ctl1:1", "ctl1:1"),
            ("10.0.0.1", "10.0.0.1:7443"),
            ("::1", "[::1]:7443"),
            ("[::1]", "[::1]:7443"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(with_port(given).unwrap(), expected);
        }
        for bad in ["", ":7443", "https://x", "a b", "x:port", "x:70000"] {
            assert!(with_port(bad).is_err(), "{bad}");
        }
    }
}
