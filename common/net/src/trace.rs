//! W3C trace context through gRPC metadata and job offers, so that one backup is one trace.

use crate::identity::Identity;
use http::HeaderMap;
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use std::collections::HashMap;
use tonic::{Request, Status, metadata::MetadataMap, service::Interceptor};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const TRACEPARENT: &str = "traceparent";
/// A traceparent of version 00 has 55 characters; later versions may be longer, but not by much.
const TRACEPARENT_MAX: usize = 128;

/// Puts the current span's context into every call.
#[derive(Debug, Clone, Copy, Default)]
pub struct TraceInterceptor;

impl Interceptor for TraceInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        inject(request.metadata_mut());
        Ok(request)
    }
}

/// Puts the current span's context into metadata; does nothing when no trace is recorded.
pub fn inject(metadata: &mut MetadataMap) {
    let text = current_traceparent();
    if !text.is_empty()
        && let Ok(value) = text.parse()
    {
        metadata.insert(TRACEPARENT, value);
    }
}

/// The current span as a W3C traceparent; empty when no trace is recorded.
#[must_use]
pub fn current_traceparent() -> String {
    let context = Span::current().context();
    if !context.span().span_context().is_valid() {
        return String::new();
    }
    let mut carrier = Carrier(HashMap::new());
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.0.remove(TRACEPARENT).unwrap_or_default()
}

/// Makes a span, before it is first entered, a child of the remote one that a traceparent names.
/// An empty or malformed text changes nothing: traces are never a reason to refuse work.
pub fn set_parent(span: &Span, traceparent: &str) {
    if traceparent.is_empty() || traceparent.len() > TRACEPARENT_MAX {
        return;
    }
    let carrier = Carrier(HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]));
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    if parent.span().span_context().is_valid() {
        // Fails only where no trace is recorded.
        let _ = span.set_parent(parent);
    }
}

/// The span of one incoming call, child of the caller's.
pub(crate) fn server_span(path: &str, peer: Option<&Identity>, headers: &HeaderMap) -> Span {
    let method = path.rsplit('/').next().unwrap_or(path);
    let span = tracing::info_span!(
        "rpc",
        otel.name = %path.trim_start_matches('/'),
        otel.kind = "server",
        rpc.method = method,
        peer = peer.map(Identity::actor).unwrap_or_default(),
    );
    if let Some(text) = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()) {
        set_parent(&span, text);
    }
    span
}

struct Carrier(HashMap<String, String>);

impl Injector for Carrier {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }
}

impl Extractor for Carrier {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}
