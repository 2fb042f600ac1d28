//! Prometheus metrics over plain HTTP on a loopback address: the one listener without TLS.

use crate::error::{NetError, Result};
use axum::{Router, http::header, response::IntoResponse as _, routing::get};
use parking_lot::Mutex;
use prometheus_client::{encoding::text::encode, registry::Registry};
use std::{fmt, net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A process's metrics, all named `holdfast_…`.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Registry::with_prefix("holdfast"))))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Registers metrics; the registry is locked only meanwhile.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.lock())
    }

    /// All metrics in OpenMetrics text form.
    ///
    /// # Errors
    /// `Internal` when a metric cannot be written.
    pub fn encode(&self) -> Result<String> {
        let mut text = String::new();
        encode(&mut text, &self.0.lock()).map_err(NetError::internal("write metrics"))?;
        Ok(text)
    }

    /// Serves `/metrics` on a loopback address until told to stop; answers with the bound address at once.
    ///
    /// # Errors
    /// `Invalid` for an address that others could reach; `Io` when it is taken.
    pub async fn serve(&self, listen: &str, shutdown: CancellationToken) -> Result<SocketAddr> {
        let address: SocketAddr = listen.parse().map_err(|_| {
            NetError::Invalid(format!(
                "metrics_listen {listen:?} is not IP:PORT: write for example 127.0.0.1:9464"
            ))
        })?;
        if !address.ip().is_loopback() {
            return Err(NetError::Invalid(format!(
                "metrics_listen {listen:?} is not a loopback address: metrics are served without TLS, \
                 so let a collector on this host fetch them"
            )));
        }
        let listener = TcpListener::bind(address)
            .await
            .map_err(NetError::io(format!("listen on {address}")))?;
        let bound = listener
            .local_addr()
            .map_err(NetError::io("ask for the listening address"))?;
        let metrics = self.clone();
        let app = Router::new().route("/metrics", get(move || async move { metrics.answer() }));
        tokio::spawn(async move {
            let stopped = async move { shutdown.cancelled().await };
            if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
                tracing::warn!(%error, "serving metrics failed");
            }
        });
        Ok(bound)
    }

    fn answer(&self) -> axum::response::Response {
        match self.encode() {
            Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
            Err(error) => (axum::http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn metrics_are_served_on_loopback_only() {
        let metrics = Metrics::default();
        let runs = Counter::<u64>::default();
        metrics.register(|registry| registry.register("runs", "Backup runs", runs.clone()));
        runs.inc_by(3);
        let stop = CancellationToken::new();
        assert!(metrics.serve("0.0.0.0:0", stop.clone()).await.is_err());
        assert!(metrics.serve("localhost", stop.clone()).await.is_err());
        let address = metrics.serve("127.0.0.1:0", stop.clone()).await.unwrap();
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        socket
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("holdfast_runs_total 3"), "{answer}");
        stop.cancel();
    }
}
