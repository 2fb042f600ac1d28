//! Spans arrive at a real OTLP receiver, and the last of them before the program ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_net::telemetry::{self, TelemetryConfig};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use std::time::Duration;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tonic::{Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(60);

struct Receiver(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner()).await;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_are_exported_under_the_services_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut received) = mpsc::channel(16);
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Receiver(sender)))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(server);

    let config = TelemetryConfig {
        otlp_endpoint: Some(endpoint),
        ..TelemetryConfig::default()
    };
    let guard = telemetry::init(&config, "holdfast-test").unwrap();
    assert!(telemetry::init(&config, "twice").is_err());
    tracing::info_span!("backup", source = "web1/uploads").in_scope(|| {
        tracing::info_span!("upload").in_scope(|| tracing::info!("a pack"));
    });
    // The batch is not due yet: shutting down sends it.
    guard.shutdown().await;

    let mut names = Vec::new();
    let mut service = None;
    while names.len() < 2 {
        let batch = timeout(PATIENCE, received.recv())
            .await
            .expect("the spans never arrived")
            .unwrap();
        for resource in batch.resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            let found = attributes
                .into_iter()
                .find(|attribute| attribute.key == "service.name");
            service = found
                .and_then(|attribute| attribute.value)
                .map(|value| format!("{value:?}"))
                .or(service);
            names.extend(
                resource
                    .scope_spans
                    .into_iter()
                    .flat_map(|scope| scope.spans)
                    .map(|span| span.name),
            );
        }
    }
    names.sort();
    assert_eq!(names, ["backup", "upload"]);
    assert!(service.unwrap().contains("holdfast-test"));
}
