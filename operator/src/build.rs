//! From a valid Connector to what is carried out: pure, without clock, files or network.

mod network_policy;
pub mod objects;
pub mod pod_template;
pub mod quantity;
pub mod rendering;
mod runtime_config;
mod scheduling;
mod sidecar;
pub mod upgrade;

use connector_crds::systems::custom::SourcePositions;
use connector_crds::{Protocol, SinkSpec, SourceSpec};
pub use objects::{Desired, Owner, build, claim_templates, wanted_replicas};
pub use runtime_config::{Placement, live_config, runtime_config};
pub use sidecar::process as custom_process;

use crate::validate::{System, ValidatedConnector};

/// Whether the pods get claims: something has to outlive them, and the spec does not forgo it.
pub fn needs_claim(connector: &ValidatedConnector) -> bool {
    keeps_state(connector) && !connector.volume.ephemeral
}

/// Whether a Connector has something that loses records when it goes with the pod: a transaction log, a file, a dead letter.
pub fn keeps_state(connector: &ValidatedConnector) -> bool {
    let keeps_log = match connector.wallaroo.protocol {
        Protocol::Connector => true,
        Protocol::FramedTCP | Protocol::Stream05 | Protocol::Stream06 => false,
    };
    let needs = match &connector.system {
        System::Source(SourceSpec::File(_)) | System::Sink(SinkSpec::File(_)) => true,
        System::Source(SourceSpec::Custom(custom)) => match custom.positions {
            SourcePositions::Opaque => true,
            SourcePositions::Ordered | SourcePositions::None => false,
        },
        System::Source(SourceSpec::Generator(_) | SourceSpec::Kafka(_) | SourceSpec::Udp(_)) => false,
        System::Sink(
            SinkSpec::Custom(_)
            | SinkSpec::Kafka(_)
            | SinkSpec::Redis(_)
            | SinkSpec::Stdout(_)
            | SinkSpec::Udp(_),
        ) => keeps_log,
    };
    needs || connector.delivery.dead_letter.is_some()
}

#[cfg(test)]
pub(crate) mod tests;
