//! One connection from its first byte to its last.

use super::{Live, OPEN_CALLS, PeerAddress, PeerIdentity, Shared};
use crate::{identity::Identity, read_ahead::ReadAhead, status::to_status_with, trace};
use holdfast_core::{ErrorKind, limits};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConnection;
use std::{convert::Infallible, net::SocketAddr, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::Service as _;
use tracing::Instrument as _;

pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) address: SocketAddr,
    pub(super) shared: Arc<Shared>,
    pub(super) routes: Routes,
    /// Stop politely.
    pub(super) shutdown: CancellationToken,
    /// Stop now.
    pub(super) cut: CancellationToken,
}

impl Connection {
    pub(super) async fn run(self, socket: TcpStream, acceptor: TlsAcceptor) {
        let Some(stream) = self.handshake(socket, acceptor).await else {
            return;
        };
        let certificates = stream.get_ref().1.peer_certificates();
        let identity = match certificates
            .and_then(|chain| chain.first())
            .map(|c| Identity::from_certificate(c))
        {
            None => None,
            Some(Ok(identity)) => Some(Arc::new(identity)),
            // The handshake has checked this already.
            Some(Err(_)) => return,
        };
        let live = Live {
            identity: identity.clone(),
            cut: self.cut.clone(),
        };
        self.shared.connections.lock().insert(self.id, live);
        // Between the handshake's check and the insertion a revocation may have passed unseen.
        let revoked = identity
            .as_deref()
            .is_some_and(|i| self.shared.authorizer.check(i).is_err());
        if !revoked {
            self.serve(stream, identity).await;
        }
        self.shared.connections.lock().remove(&self.id);
    }

    /// The TLS handshake, in bounded time. When too many are pending the oldest is given up: honest peers need
    /// milliseconds, so the oldest is the likeliest to be stuck.
    async fn handshake(
        &self,
        socket: TcpStream,
        acceptor: TlsAcceptor,
    ) -> Option<TlsStream<ReadAhead<TcpStream>>> {
        let given_up = self.cut.child_token();
        {
            let mut pending = self.shared.handshakes.lock();
            if pending.len() >= limits::HANDSHAKES_MAX
                && let Some((_, oldest)) = pending.pop_first()
            {
                oldest.cancel();
            }
            pending.insert(self.id, given_up.clone());
        }
        let outcome = tokio::select! {
            () = given_up.cancelled() => Err("given up for a newer one".to_owned()),
            () = self.shutdown.cancelled() => Err("the server stops".to_owned()),
            () = tokio::time::sleep(limits::HANDSHAKE_TIMEOUT) => Err("took too long".to_owned()),
            stream = async {
                socket.set_nodelay(true)?;
                let limit = |tls: &mut ServerConnection| tls.set_buffer_limit(Some(limits::TLS_BUFFER));
                acceptor.accept_with(ReadAhead::new(socket), limit).await
            } => stream.map_err(|e| e.to_string()),
        };
        self.shared.handshakes.lock().remove(&self.id);
        let address = self.address;
        match outcome {
            // Without ALPN agreement the peer may speak HTTP/1.1, which nothing here does.
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => Some(stream),
            Ok(_) => {
                tracing::debug!(%address, "refused a peer that does not speak HTTP/2");
                None
            }
            Err(reason) => {
                tracing::debug!(%address, %reason, "TLS handshake failed");
                None
            }
        }
    }

    async fn serve(&self, stream: TlsStream<ReadAhead<TcpStream>>, identity: Option<Arc<Identity>>) {
        let service = {
            let shared = Arc::clone(&self.shared);
            let (routes, address, identity) = (self.routes.clone(), self.address, identity.clone());
            hyper::service::service_fn(move |request: Request<Incoming>| {
                answer(
                    request,
                    routes.clone(),
                    Arc::clone(&shared),
                    identity.clone(),
                    address,
                )
            })
        };
        let (interval, timeout) = limits::KEEPALIVE;
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits::STREAM_WINDOW)
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .max_frame_size(limits::HTTP2_FRAME)
            .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
            .max_header_list_size(limits::HEADERS_MAX)
            .keep_alive_interval(interval)
            .keep_alive_timeout(timeout)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let anonymous = identity.is_none();
        let expires = tokio::time::sleep(limits::JOIN_CONNECTION_MAX);
        tokio::pin!(expires);
        let mut stopping = false;
        let outcome = loop {
            tokio::select! {
                outcome = connection.as_mut() => break outcome,
                () = self.cut.cancelled() => return,
                () = &mut expires, if anonymous => return,
                () = self.shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(address = %self.address, %error, "connection ended");
        }
    }
}

async fn answer(
    mut request: Request<Incoming>,
    mut routes: Routes,
    shared: Arc<Shared>,
    identity: Option<Arc<Identity>>,
    address: SocketAddr,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path();
    let refused = match identity.as_deref() {
        None if OPEN_CALLS.contains(&path) => None,
        None => Some(to_status_with(
            ErrorKind::Unauthenticated,
            "this call needs a client certificate of the cluster",
            Some("join first: holdfast-agent join --token-file FILE"),
        )),
        Some(identity) => shared.authorizer.check(identity).err().map(|reason| {
            to_status_with(
                ErrorKind::Denied,
                &format!("{}: {reason}", identity.actor()),
                None,
            )
        }),
    };
    if let Some(status) = refused {
        return Ok(status.into_http());
    }
    let span = trace::server_span(path, identity.as_deref(), request.headers());
    request.extensions_mut().insert(PeerIdentity(identity));
    request.extensions_mut().insert(PeerAddress(address));
    // Routes are always ready.
    routes.call(request).instrument(span).await
}
