//! The table of what each combination promises.

use serde_json::{Value, json};

use super::{Delivery, Guarantee, Scope, guarantee};
use crate::{ConnectorSpec, Protocol, SinkSpec, SourceSpec};

const PLAIN: [Protocol; 3] = [Protocol::FramedTCP, Protocol::Stream05, Protocol::Stream06];

const SOURCE_SOCKET: Delivery = Delivery::new(Guarantee::BestEffort, Scope::WallarooSocket);
const SOURCE_CHECKPOINT: Delivery = Delivery::new(Guarantee::AtLeastOnce, Scope::WallarooCheckpoint);
const VOLATILE: Delivery = Delivery::new(Guarantee::AtMostOnce, Scope::None);
const NOTHING_KEPT: Delivery = Delivery::new(Guarantee::BestEffort, Scope::None);
const SINK_REPEATS: Delivery = Delivery::new(Guarantee::AtLeastOnce, Scope::WallarooCheckpoint);
const SINK_ONCE: Delivery = Delivery::new(Guarantee::ExactlyOnce, Scope::WallarooCheckpoint);

/// Every source: plain framings, `Connector` with checkpoints, `Connector` on receipt.
fn sources() -> Vec<(Value, [Delivery; 3])> {
    let replayable = [SOURCE_SOCKET, SOURCE_CHECKPOINT, SOURCE_SOCKET];
    let custom = |positions| json!({"custom": {"image": "i", "positions": positions}});
    vec![
        (custom("Ordered"), replayable),
        (custom("Opaque"), replayable),
        (custom("None"), [VOLATILE, VOLATILE, VOLATILE]),
        (json!({"file": {"path": "a"}}), replayable),
        (json!({"generator": {}}), replayable),
        (json!({"kafka": {"bootstrapServers": ["k:9092"], "topics": ["t"]}}), replayable),
        (json!({"udp": {"port": 1}}), [VOLATILE, VOLATILE, VOLATILE]),
    ]
}

/// Every sink, in the same columns.
fn sinks() -> Vec<(Value, [Delivery; 3])> {
    let custom = |positions| json!({"custom": {"image": "i", "positions": positions}});
    vec![
        (custom("Ordered"), [NOTHING_KEPT, SINK_ONCE, NOTHING_KEPT]),
        (custom("None"), [NOTHING_KEPT, SINK_REPEATS, NOTHING_KEPT]),
        (json!({"file": {"path": "a"}}), [NOTHING_KEPT, SINK_ONCE, NOTHING_KEPT]),
        (
            json!({"kafka": {"bootstrapServers": ["k:9092"], "topic": "t"}}),
            [NOTHING_KEPT, SINK_ONCE, NOTHING_KEPT],
        ),
        (
            json!({"redis": {"address": "r:6379", "hash": {"key": "k"}}}),
            [NOTHING_KEPT, SINK_REPEATS, NOTHING_KEPT],
        ),
        (json!({"stdout": {}}), [NOTHING_KEPT, SINK_REPEATS, NOTHING_KEPT]),
        (json!({"udp": {"host": "h", "port": 1}}), [NOTHING_KEPT, NOTHING_KEPT, NOTHING_KEPT]),
    ]
}

fn promised(direction: &str, system: &Value, protocol: Protocol, ack_mode: &str) -> Delivery {
    let spec: ConnectorSpec = serde_json::from_value(json!({
        direction: system,
        "wallaroo": {"protocol": protocol},
        "delivery": {"ackMode": ack_mode},
    }))
    .unwrap();
    guarantee(&spec)
}

#[test]
fn each_combination_promises_what_the_table_says() {
    for (direction, rows) in [("source", sources()), ("sink", sinks())] {
        for (system, [plain, checkpoint, receipt]) in rows {
            for protocol in PLAIN {
                assert_eq!(
                    promised(direction, &system, protocol, "Checkpoint"),
                    plain,
                    "{direction} {system} over {protocol:?}"
                );
            }
            let connector = |ack_mode| promised(direction, &system, Protocol::Connector, ack_mode);
            assert_eq!(connector("Checkpoint"), checkpoint, "{direction} {system}");
            assert_eq!(connector("OnReceipt"), receipt, "{direction} {system}, on receipt");
        }
    }
}

#[test]
fn the_table_has_every_system() {
    let names = |rows: Vec<(Value, [Delivery; 3])>| -> Vec<String> {
        let mut names: Vec<String> =
            rows.iter().flat_map(|(system, _)| system.as_object().unwrap().keys().cloned()).collect();
        names.dedup();
        names
    };
    let members = |schema: schemars::Schema| -> Vec<String> {
        schema.get("properties").unwrap().as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(names(sources()), members(schemars::schema_for!(SourceSpec)));
    assert_eq!(names(sinks()), members(schemars::schema_for!(SinkSpec)));
}

#[test]
fn a_promise_reads_as_a_phrase() {
    assert_eq!(SINK_ONCE.to_string(), "exactly once, while Wallaroo keeps its checkpoints");
    assert_eq!(SOURCE_SOCKET.to_string(), "best effort, up to the kernel of the worker's host");
    assert_eq!(VOLATILE.to_string(), "at most once");
}

#[test]
fn a_kafka_sink_without_transactions_repeats() {
    let system = json!({"kafka": {"bootstrapServers": ["k:9092"], "topic": "t", "exactlyOnce": false}});
    assert_eq!(promised("sink", &system, Protocol::Connector, "Checkpoint"), SINK_REPEATS);
}
