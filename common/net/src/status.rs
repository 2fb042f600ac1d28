//! Errors on the wire: one mapping between kinds and gRPC statuses, both ways.

use holdfast_core::{ErrorKind, HasKind};
use std::{error::Error, fmt};
use tonic::{Code, Status, metadata::MetadataValue};

const KIND_KEY: &str = "holdfast-kind";
/// Binary, because a hint may hold any text.
const HINT_KEY: &str = "holdfast-hint-bin";
/// Longest message or hint that is sent: statuses travel in headers, which are bounded.
const TEXT_MAX: usize = 2 * 1024;

/// An error that came over the wire, or is about to go: what kind, what it says, what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind.
    pub kind: ErrorKind,
    /// What failed and why.
    pub message: String,
    /// The next thing to try.
    pub hint: Option<String>,
}

impl Fault {
    /// A fault without a hint.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Fault {}

impl HasKind for Fault {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        from_status(&status)
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        to_status_with(fault.kind, &fault.message, fault.hint.as_deref())
    }
}

impl From<crate::NetError> for Fault {
    fn from(error: crate::NetError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

/// The status that carries an error to the other side.
#[must_use]
pub fn to_status<E: HasKind>(error: &E) -> Status {
    to_status_with(error.kind(), &error.to_string(), None)
}

/// The status that carries a kind, a message and what to do next.
#[must_use]
pub fn to_status_with(kind: ErrorKind, message: &str, hint: Option<&str>) -> Status {
    let mut status = Status::new(Code::from_i32(kind.grpc_code()), cut(message));
    status
        .metadata_mut()
        .insert(KIND_KEY, MetadataValue::from_static(kind.as_str()));
    if let Some(hint) = hint {
        status
            .metadata_mut()
            .insert_bin(HINT_KEY, MetadataValue::from_bytes(cut(hint).as_bytes()));
    }
    status
}

/// What a status says, whoever sent it.
#[must_use]
pub fn from_status(status: &Status) -> Fault {
    let metadata = status.metadata();
    let kind = metadata
        .get(KIND_KEY)
        .and_then(|v| v.to_str().ok())
        .and_then(ErrorKind::from_wire);
    let hint = metadata
        .get_bin(HINT_KEY)
        .and_then(|v| v.to_bytes().ok())
        .and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
    let kind = kind.unwrap_or_else(|| match status.code() {
        // Made by the transport on our own side: the connection broke or was cut under the call.
        Code::Unknown | Code::Internal | Code::Cancelled if status.source().is_some() => {
            ErrorKind::Unavailable
        }
        code => ErrorKind::from_grpc_code(code as i32),
    });
    let mut message = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    if let Some(source) = status.source() {
        let chain = error_chain(source);
        if !message.contains(&chain) {
            message = format!("{message}: {chain}");
        }
    }
    Fault { kind, message, hint }
}

/// An error with all its causes on one line, without repeating what the outer text says already.
#[must_use]
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_survive_the_wire() {
        let fault = Fault::new(ErrorKind::NotFound, "no agent „web1“").with_hint("holdfastctl get agents");
        let status: Status = fault.clone().into();
        assert_eq!(status.code(), Code::NotFound);
        let headers = status.into_http::<()>().into_parts().0.headers;
        let received = Status::from_header_map(&headers).unwrap();
        assert_eq!(from_status(&received), fault);
    }

    #[test]
    fn bare_statuses_get_the_likeliest_kind_and_long_texts_are_cut() {
        assert_eq!(
            from_status(&Status::permission_denied("no")).kind,
            ErrorKind::Denied
        );
        let status = to_status_with(ErrorKind::Io, &"ä".repeat(5000), None);
        assert!(status.message().len() <= TEXT_MAX);
    }
}
