//! A trace that begins at the client goes on at the server.

use crate::fixture::{Pki, serve};
use holdfast_net::{
    Role,
    client::{ClientTls, ConnectOptions, connect},
    pki::verify::AllowAll,
    trace::{current_traceparent, set_parent},
};
use holdfast_proto::v1::{RenewRequest, agent_service_client::AgentServiceClient};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::sync::Arc;
use tracing::Instrument as _;
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// (trace id, span id) of a W3C traceparent.
fn parts(traceparent: &str) -> (String, String) {
    let fields: Vec<_> = traceparent.split('-').collect();
    assert_eq!(fields.len(), 4, "{traceparent:?}");
    (fields[1].to_owned(), fields[2].to_owned())
}

#[tokio::test]
async fn the_servers_span_belongs_to_the_clients_trace() {
    // No other test of this binary looks at spans, so the process may have this subscriber.
    let provider = SdkTracerProvider::builder().build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing_subscriber::registry().with(layer).init();

    let pki = Pki::new();
    let running = serve(&pki, Arc::new(AllowAll)).await;
    let tls = ClientTls::new(&pki.issue(Role::Agent, "web1"), pki.root.certificate()).unwrap();
    let connection = connect(
        std::slice::from_ref(&running.address),
        &tls,
        &ConnectOptions::default(),
    )
    .await
    .unwrap();
    let call = async {
        let ours = current_traceparent();
        let answer = AgentServiceClient::new(connection)
            .renew(RenewRequest::default())
            .await
            .unwrap();
        (
            ours,
            String::from_utf8(answer.into_inner().chain_der[1].to_vec()).unwrap(),
        )
    };
    let (ours, theirs) = call.instrument(tracing::info_span!("backup")).await;
    let ((our_trace, our_span), (their_trace, their_span)) = (parts(&ours), parts(&theirs));
    assert_eq!(our_trace, their_trace);
    assert_ne!(our_span, their_span);

    // The same through the text that a job offer carries; nonsense is passed over.
    let offered = tracing::info_span!("job");
    set_parent(&offered, "nonsense");
    set_parent(&offered, &ours);
    let of_job = offered.in_scope(current_traceparent);
    assert_eq!(parts(&of_job).0, our_trace);
    assert_eq!(current_traceparent(), "", "outside of any span there is no trace");
}
