//! Reads the logs of the code under test: they go into the trace, and name what really happened.

use std::fmt::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::faults::Fault;
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
    ("A transaction of an ended cluster is in doubt.", IN_DOUBT),
    ("The target went back: repeating from the log.", "target went back"),
    ("A worker dialled again", "worker dialled again"),
    ("A connection said HELLO after a newer one", "older connection read late"),
    ("Voted no.", "voted no"),
    ("Rolled back.", ABORTED),
    ("Wallaroo has the stream open elsewhere", "notify refused"),
    ("A decision that was made before.", "decision repeated"),
    ("Stalled: ", "stalled"),
];

const IN_DOUBT: &str = "in doubt at a fresh cluster";

const ABORTED: &str = "voted transaction aborted";

/// Records of transactions that were aborted in a run with a graceful stop, in the coverage table. A fresh cluster that rolls
/// back aborts what the sink lists, also where its predecessor had committed it and the decision was lost.
pub const RECORDS_ABORTED: &str = "records aborted behind a graceful stop";

/// Records of transactions in doubt, in the coverage table.
pub const RECORDS_IN_DOUBT: &str = "records in doubt";

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

struct Message {
    text: String,
    records: u64,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.text, "{value:?}"); // a string takes everything
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "records" {
            self.records = value;
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
        let mut message = Message { text: String::new(), records: 0 };
        event.record(&mut message);
        let Message { text, records } = message;
        self.trace.note(&format!("log: {text}"));
        if let Some((_, name)) = NAMED.iter().find(|(begin, _)| text.starts_with(begin)) {
            self.trace.named(name);
            if *name == IN_DOUBT {
                self.trace.count(RECORDS_IN_DOUBT, records);
            }
            if *name == ABORTED && self.trace.counted(Fault::GracefulStop.name()) > 0 {
                self.trace.count(RECORDS_ABORTED, records);
            }
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
