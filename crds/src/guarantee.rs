//! What a configuration really promises, computed from protocol, system and mode.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::systems::custom::{SinkPositions, SourcePositions};
use crate::{AckMode, ConnectorSpec, DeliverySpec, Protocol, SinkSpec, SourceSpec, WallarooSpec};

/// What a configuration really promises.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct Delivery {
    /// How often a record arrives.
    pub guarantee: Guarantee,
    /// How far, and under which condition, that holds.
    pub scope: Scope,
}

/// How often a record arrives.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum Guarantee {
    /// Once as a rule; both loss and repeats are possible.
    BestEffort,
    /// Never twice; loss is possible.
    AtMostOnce,
    /// Never lost; repeats are possible.
    AtLeastOnce,
    /// Neither lost nor repeated.
    ExactlyOnce,
}

/// How far, and under which condition, a guarantee holds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum Scope {
    /// Up to the kernel of the worker's host: what it took and Wallaroo did not read is lost with the worker.
    WallarooSocket,
    /// From or up to Wallaroo's checkpoint, as long as Wallaroo keeps its checkpoints.
    WallarooCheckpoint,
    /// Nothing is kept for a second try.
    None,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.guarantee {
            Guarantee::BestEffort => "best effort",
            Guarantee::AtMostOnce => "at most once",
            Guarantee::AtLeastOnce => "at least once",
            Guarantee::ExactlyOnce => "exactly once",
        })?;
        f.write_str(match self.scope {
            Scope::WallarooSocket => ", up to the kernel of the worker's host",
            Scope::WallarooCheckpoint => ", while Wallaroo keeps its checkpoints",
            Scope::None => "",
        })
    }
}

/// Whether a system can be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rereading {
    /// Any record, in the same order and under the same position.
    Replayable,
    /// A record that was taken is gone.
    Volatile,
}

/// What writing to a system twice leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rewriting {
    /// The system keeps our position with the data, so nothing is written twice.
    Positioned,
    /// The record stands there twice, or the same value is written again.
    Repeats,
    /// The system does not say whether it took a record.
    Unacknowledged,
}

/// Computes what a Connector promises. A spec that breaks the rule of exactly one direction promises best effort.
///
/// A source over `Connector` is stated as at least once: Wallaroo drops repeats by position, but a cluster that was
/// stopped for good has forgotten the positions, and then what it had not acknowledged comes again. A Redis hash keeps no position;
/// writing a field again leaves it as it is, so its repeats show only for a moment.
pub fn guarantee(spec: &ConnectorSpec) -> Delivery {
    match (&spec.source, &spec.sink) {
        (Some(source), None) => Delivery::of_source(source, &spec.wallaroo, &spec.delivery),
        (None, Some(sink)) => Delivery::of_sink(sink, &spec.wallaroo, &spec.delivery),
        (None, None) | (Some(_), Some(_)) => Delivery::new(Guarantee::BestEffort, Scope::None),
    }
}

impl Delivery {
    const fn new(guarantee: Guarantee, scope: Scope) -> Delivery {
        Delivery { guarantee, scope }
    }

    /// What is left of a promise when the state it rests on goes with the pod.
    #[must_use]
    pub const fn without_state(self) -> Delivery {
        match self.guarantee {
            Guarantee::AtLeastOnce | Guarantee::ExactlyOnce => {
                Delivery::new(Guarantee::BestEffort, Scope::None)
            }
            Guarantee::BestEffort | Guarantee::AtMostOnce => self,
        }
    }

    /// Computes what a source promises.
    pub fn of_source(source: &SourceSpec, wallaroo: &WallarooSpec, delivery: &DeliverySpec) -> Delivery {
        let rereading = match source {
            SourceSpec::File(_) | SourceSpec::Generator(_) | SourceSpec::Kafka(_) => Rereading::Replayable,
            SourceSpec::Udp(_) => Rereading::Volatile,
            SourceSpec::Custom(custom) => match custom.positions {
                SourcePositions::Ordered | SourcePositions::Opaque => Rereading::Replayable,
                SourcePositions::None => Rereading::Volatile,
            },
        };
        match (rereading, checkpoints(wallaroo, delivery)) {
            (Rereading::Replayable, true) => Delivery::new(Guarantee::AtLeastOnce, Scope::WallarooCheckpoint),
            (Rereading::Replayable, false) => Delivery::new(Guarantee::BestEffort, Scope::WallarooSocket),
            (Rereading::Volatile, true | false) => Delivery::new(Guarantee::AtMostOnce, Scope::None),
        }
    }

    /// Computes what a sink promises.
    pub fn of_sink(sink: &SinkSpec, wallaroo: &WallarooSpec, delivery: &DeliverySpec) -> Delivery {
        let rewriting = match sink {
            SinkSpec::File(_) => Rewriting::Positioned,
            SinkSpec::Kafka(kafka) if kafka.exactly_once => Rewriting::Positioned,
            SinkSpec::Kafka(_) | SinkSpec::Redis(_) | SinkSpec::Stdout(_) => Rewriting::Repeats,
            SinkSpec::Udp(_) => Rewriting::Unacknowledged,
            SinkSpec::Custom(custom) => match custom.positions {
                SinkPositions::Ordered => Rewriting::Positioned,
                SinkPositions::None => Rewriting::Repeats,
            },
        };
        match (rewriting, checkpoints(wallaroo, delivery)) {
            (Rewriting::Positioned, true) => Delivery::new(Guarantee::ExactlyOnce, Scope::WallarooCheckpoint),
            (Rewriting::Repeats, true) => Delivery::new(Guarantee::AtLeastOnce, Scope::WallarooCheckpoint),
            (Rewriting::Unacknowledged, true)
            | (Rewriting::Positioned | Rewriting::Repeats | Rewriting::Unacknowledged, false) => {
                Delivery::new(Guarantee::BestEffort, Scope::None)
            }
        }
    }
}

/// Whether Wallaroo's checkpoints decide what was delivered.
fn checkpoints(wallaroo: &WallarooSpec, delivery: &DeliverySpec) -> bool {
    match (wallaroo.protocol, delivery.ack_mode) {
        (Protocol::Connector, AckMode::Checkpoint) => true,
        (Protocol::Connector, AckMode::OnReceipt)
        | (Protocol::FramedTCP | Protocol::Stream05 | Protocol::Stream06, _) => false,
    }
}

#[cfg(test)]
mod tests;
