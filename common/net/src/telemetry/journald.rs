//! The log in the form that systemd's journal reads from standard error: `<priority>text`, one line each.

use std::fmt::{self, Write as _};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{DefaultFields, Writer},
    },
    registry::LookupSpan,
};

pub(super) struct Journald;

impl<S> FormatEvent<S, DefaultFields> for Journald
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, DefaultFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = format!("{}: ", metadata.target());
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            write!(line, "{}: ", span.name())?;
        }
        context
            .field_format()
            .format_fields(Writer::new(&mut line), event)?;
        // A line break would begin a record of its own, with whatever priority its text claims.
        writeln!(
            writer,
            "<{}>{}",
            priority(*metadata.level()),
            line.replace(['\n', '\r'], " ")
        )
    }
}

/// Priorities of syslog.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::{io, sync::Arc};
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn records_are_one_line_with_their_priority() {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Journald);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(path = "a\n<0>forged", "two\nlines");
        });
        let text = String::from_utf8(sink.0.lock().clone()).unwrap();
        assert!(text.starts_with("<4>"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
