//! Logs to standard error, spans to an OpenTelemetry collector.

mod journald;

use crate::error::{NetError, Result};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use serde::Deserialize;
use std::{fmt, net::IpAddr, time::Duration};
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Names the variable that sets what is logged, as in `info,holdfast_agent=debug`.
pub const LOG_VARIABLE: &str = "HOLDFAST_LOG";
/// Longest wait for spans to leave at the end of a program.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for one export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The `[telemetry]` table of every configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Form of the log.
    #[serde(default)]
    pub log: LogForm,
    /// Where spans go: an OTLP/gRPC collector on this host, for example `http://127.0.0.1:4317`.
    pub otlp_endpoint: Option<String>,
    /// Where `/metrics` is served: a loopback address.
    pub metrics_listen: Option<String>,
    /// What is logged unless HOLDFAST_LOG says otherwise; `info` by default.
    pub level: Option<String>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogForm {
    /// For people, with times.
    #[default]
    Console,
    /// One JSON object per line.
    Json,
    /// For systemd's journal, which adds times itself and reads the priority from a prefix.
    Journald,
}

/// Keeps the exporter; shut it down before the program ends, or the last spans are lost.
#[must_use = "spans are exported as long as the guard lives"]
pub struct Guard(Option<SdkTracerProvider>);

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

impl Guard {
    /// Sends what is left, in bounded time.
    pub async fn shutdown(mut self) {
        let Some(provider) = self.0.take() else { return };
        // It blocks; the exporter needs the runtime's threads meanwhile.
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        if let Ok(Err(error)) = flushed {
            tracing::debug!(%error, "the last spans could not be exported");
        }
    }
}

/// Sets up the process's log and, if an endpoint is given, the export of spans. Must run within a tokio runtime
/// when spans are exported.
///
/// # Errors
/// `Invalid` when a filter or endpoint makes no sense; `Conflict` when called twice.
pub fn init(config: &TelemetryConfig, service: &str) -> Result<Guard> {
    let text = std::env::var(LOG_VARIABLE).ok().filter(|text| !text.is_empty());
    let text = text
        .or_else(|| config.level.clone())
        .unwrap_or_else(|| "info".into());
    let filter = || {
        EnvFilter::try_new(&text).map_err(|e| {
            NetError::Invalid(format!(
                "log filter {text:?}: {e}; write for example info,holdfast_net=debug"
            ))
        })
    };
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = match config.log {
        LogForm::Console => {
            use std::io::IsTerminal as _;
            log.with_ansi(std::io::stderr().is_terminal()).boxed()
        }
        LogForm::Json => log.json().flatten_event(true).boxed(),
        LogForm::Journald => log.with_ansi(false).event_format(journald::Journald).boxed(),
    };
    let provider = config
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| exporter(endpoint, service))
        .transpose()?;
    let spans = match &provider {
        Some(provider) => {
            let tracer = provider.tracer("holdfast");
            // What the exporter itself does over gRPC must not become spans, or it feeds itself for ever.
            let own =
                EnvFilter::new("info,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off,opentelemetry=off");
            Some(
                tracing_opentelemetry::layer()
                    .with_tracer(tracer)
                    .with_filter(own),
            )
        }
        None => None,
    };
    tracing_subscriber::registry()
        .with(spans)
        .with(log.with_filter(filter()?))
        .try_init()
        .map_err(|_| NetError::Conflict("logging is set up already".into()))?;
    Ok(Guard(provider))
}

fn exporter(endpoint: &str, service: &str) -> Result<SdkTracerProvider> {
    check_endpoint(endpoint)?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|e| NetError::Invalid(format!("otlp_endpoint {endpoint:?}: {e}")))?;
    let resource = Resource::builder().with_service_name(service.to_owned()).build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

/// Spans hold names of sources and hosts: they may leave this host only through a collector that encrypts.
fn check_endpoint(endpoint: &str) -> Result<()> {
    let bad = |why: &str| {
        NetError::Invalid(format!(
            "otlp_endpoint {endpoint:?} {why}: give a collector on this host, for example http://127.0.0.1:4317"
        ))
    };
    let uri: http::Uri = endpoint.parse().map_err(|_| bad("is not a URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(bad("does not begin with http://"));
    }
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if loopback {
        Ok(())
    } else {
        Err(bad("is not on this host and would be reached without encryption"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_stay_on_this_host() {
        for good in [
            "http://127.0.0.1:4317",
            "http://localhost:4317",
            "http://[::1]:4317",
        ] {
            assert!(check_endpoint(good).is_ok(), "{good}");
        }
        for bad in [
            "http://collector:4317",
            "https://127.0.0.1:4317",
            "127.0.0.1:4317",
            "http://10.0.0.1:1",
            "",
        ] {
            assert!(check_endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_table_is_read_and_unknown_keys_are_refused() {
        let config: TelemetryConfig =
            toml::from_str("log = 'json'\notlp_endpoint = 'http://127.0.0.1:4317'").unwrap();
        assert_eq!(config.log, LogForm::Json);
        assert!(toml::from_str::<TelemetryConfig>("logs = 'json'").is_err());
        assert!(toml::from_str::<TelemetryConfig>("log = 'xml'").is_err());
    }
}
