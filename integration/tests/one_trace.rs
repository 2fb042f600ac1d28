//! One backup is one trace, with spans of agent and controller, as a real OTLP receiver sees it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::Options,
    scenario::{AGENT, Scenario},
    seed, wait,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};
use tonic::{Request, Response, Status};

#[derive(Debug, Clone)]
struct Seen {
    service: String,
    name: String,
    trace: Vec<u8>,
    span: Vec<u8>,
    parent: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct Receiver {
    spans: Arc<Mutex<Vec<Seen>>>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.spans.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let service = resource
                .resource
                .iter()
                .flat_map(|resource| &resource.attributes)
                .find(|attribute| attribute.key == "service.name")
                .and_then(|attribute| match attribute.value.as_ref()?.value.as_ref()? {
                    Value::StringValue(text) => Some(text.clone()),
                    _ => None,
                })
                .unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                seen.push(Seen {
                    service: service.clone(),
                    name: span.name,
                    trace: span.trace_id,
                    span: span.span_id,
                    parent: span.parent_span_id,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success: None,
        }))
    }
}

#[test]
fn a_backup_is_one_trace_through_agent_and_controller() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let receiver = Receiver::default();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let service = TraceServiceServer::new(receiver.clone());
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );

    let options = Options {
        otlp_endpoint: Some(url),
        ..Options::default()
    };
    let mut scenario = Scenario::start(options, seed::of_run("one_trace"), 100);
    let before = receiver.spans.lock().unwrap().len();
    scenario.backup();
    // A clean stop sends what is still queued.
    scenario.cluster.agent_process(AGENT).terminate();
    scenario.cluster.stop_controller();

    let both = |spans: &[Seen]| {
        let mut services: BTreeMap<Vec<u8>, BTreeSet<String>> = BTreeMap::new();
        for span in spans {
            services
                .entry(span.trace.clone())
                .or_default()
                .insert(span.service.clone());
        }
        services.into_iter().find(|(_, services)| {
            services.iter().any(|service| service.contains("agent"))
                && services.iter().any(|service| service.contains("controller"))
        })
    };
    let (trace, _) = wait::until("a trace with spans of agent and controller", || {
        both(&receiver.spans.lock().unwrap()[before..])
    });
    let spans: Vec<Seen> = receiver
        .spans
        .lock()
        .unwrap()
        .iter()
        .filter(|span| span.trace == trace)
        .cloned()
        .collect();
    let ids: BTreeSet<&[u8]> = spans.iter().map(|span| span.span.as_slice()).collect();
    for span in &spans {
        eprintln!("{} {}", span.service, span.name);
    }
    // One tree: every span of the agent hangs, in the end, on a span of this trace.
    let orphans: Vec<_> = spans
        .iter()
        .filter(|span| span.service.contains("agent"))
        .filter(|span| !span.parent.is_empty() && !ids.contains(span.parent.as_slice()))
        .map(|span| &span.name)
        .collect();
    let adopted = spans
        .iter()
        .filter(|span| ids.contains(span.parent.as_slice()))
        .count();
    assert!(adopted > 0, "no span has its parent in the trace");
    assert!(
        orphans.len() <= 1,
        "spans of the agent without their parent: {orphans:?}"
    );
}
