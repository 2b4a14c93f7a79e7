//! Reads the logs of the code under test: they go into the trace, and name what really happened.

use std::fmt::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::trace::Trace;

/// Beginnings of log messages, and what they tell.
const NAMED: &[(&str, &str)] = &[
    ("fault plan: connection closed before the vote", "vote lost"),
    ("fault plan: decision lost", "decision lost"),
    ("fault plan: checkpoint aborted after the vote", "vote overruled"),
    ("sink lost: the cluster rolls back", "sink lost by its cluster"),
    ("rolled back", "rollback done"),
    ("a write that never became durable is cut off", "torn record cut off"),
    ("A fresh cluster: the earlier incarnation is archived.", "fresh cluster"),
    ("A transaction of an ended cluster is in doubt.", "in doubt at a fresh cluster"),
    ("The target went back: repeating from the log.", "target went back"),
    ("A worker dialled again", "worker dialled again"),
    ("A connection said HELLO after a newer one", "older connection read late"),
    ("Voted no.", "voted no"),
    ("Rolled back.", "voted transaction aborted"),
    ("Wallaroo has the stream open elsewhere", "notify refused"),
    ("A decision that was made before.", "decision repeated"),
    ("Stalled: ", "stalled"),
];

/// See the module's first line.
#[derive(Debug)]
pub struct Observer {
    trace: Trace,
}

impl Observer {
    /// Writes to `trace`.
    pub fn new(trace: Trace) -> Observer {
        Observer { trace }
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}"); // a string takes everything
        }
    }
}

impl Subscriber for Observer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        let ours = target.starts_with("connector_") || target.starts_with("wallaroo_");
        let most = if target.starts_with("connector_runtime::pump") { Level::DEBUG } else { Level::INFO };
        ours && metadata.is_event() && *metadata.level() <= most
    }

    fn event(&self, event: &Event<'_>) {
        let mut message = Message::default();
        event.record(&mut message);
        let Message(text) = message;
        self.trace.note(&format!("log: {text}"));
        if let Some((_, name)) = NAMED.iter().find(|(begin, _)| text.starts_with(begin)) {
            self.trace.named(name);
        }
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}
