//! From a Connector as it was written to one that cannot be wrong.

use connector_crds::{
    Connector, ConnectorIdentity, Delivery, DeliverySpec, FieldError, PodSpec, RuntimeSpec, SinkSpec,
    SourceSpec, State, StorageSpec, VolumeSpec, WallarooSpec,
};

use crate::build::keeps_state;

/// Namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The one system of a Connector, and with it the direction.
#[derive(Clone, Debug, PartialEq)]
pub enum System {
    /// Records come from it.
    Source(SourceSpec),
    /// Records go to it.
    Sink(SinkSpec),
}

impl System {
    /// Name of system and direction, e.g. `KafkaSource`: `status.type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            System::Source(SourceSpec::Custom(_)) => "CustomSource",
            System::Source(SourceSpec::File(_)) => "FileSource",
            System::Source(SourceSpec::Generator(_)) => "GeneratorSource",
            System::Source(SourceSpec::Kafka(_)) => "KafkaSource",
            System::Source(SourceSpec::Udp(_)) => "UdpSource",
            System::Sink(SinkSpec::Custom(_)) => "CustomSink",
            System::Sink(SinkSpec::File(_)) => "FileSink",
            System::Sink(SinkSpec::Kafka(_)) => "KafkaSink",
            System::Sink(SinkSpec::Redis(_)) => "RedisSink",
            System::Sink(SinkSpec::Stdout(_)) => "StdoutSink",
            System::Sink(SinkSpec::Udp(_)) => "UdpSink",
        }
    }
}

/// A Connector that passed every rule: what [`crate::build`] takes.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedConnector {
    /// Who it is.
    pub identity: ConnectorIdentity,
    /// Its system.
    pub system: System,
    /// The Wallaroo end.
    pub wallaroo: WallarooSpec,
    /// How records are handed over.
    pub delivery: DeliverySpec,
    /// What the runtime keeps in the state volume.
    pub storage: StorageSpec,
    /// The state volume as Kubernetes sees it.
    pub volume: VolumeSpec,
    /// The process in the pods.
    pub runtime: RuntimeSpec,
    /// The pods.
    pub pod: PodSpec,
    /// A new value restarts the pods.
    pub restart_nonce: Option<String>,
    /// Whether it runs.
    pub state: State,
    /// How many processes share the work.
    pub replicas: i32,
}

impl ValidatedConnector {
    /// What this configuration really promises: `status.delivery`.
    pub fn promise(&self) -> Delivery {
        let kept = match &self.system {
            System::Source(source) => Delivery::of_source(source, &self.wallaroo, &self.delivery),
            System::Sink(sink) => Delivery::of_sink(sink, &self.wallaroo, &self.delivery),
        };
        if self.volume.ephemeral && keeps_state(self) { kept.without_state() } else { kept }
    }
}

/// Applies every rule of the resource.
///
/// # Errors
///
/// All violations, each with the path of its field.
pub fn validate(connector: &Connector) -> Result<ValidatedConnector, Vec<FieldError>> {
    let mut errors = connector_crds::validate(connector);
    let spec = &connector.spec;
    let system = match (&spec.source, &spec.sink) {
        (Some(source), None) => Some(System::Source(source.clone())),
        (None, Some(sink)) => Some(System::Sink(sink.clone())),
        (None, None) | (Some(_), Some(_)) => {
            // The rule of the resource says so already; this holds should it ever be lost.
            if errors.is_empty() {
                errors.push(field_error("spec", "exactly one of source and sink must be set"));
            }
            None
        }
    };
    match system {
        Some(system) if errors.is_empty() => Ok(ValidatedConnector {
            identity: ConnectorIdentity {
                namespace: connector.metadata.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.into()),
                name: connector.metadata.name.clone().unwrap_or_default(),
                epoch: spec.position_reset.clone().unwrap_or_default(),
            },
            system,
            wallaroo: spec.wallaroo.clone(),
            delivery: spec.delivery.clone(),
            storage: spec.storage.log.clone(),
            volume: spec.storage.clone(),
            runtime: spec.runtime.clone(),
            pod: spec.pod.clone(),
            restart_nonce: spec.restart_nonce.clone(),
            state: spec.state,
            replicas: spec.replicas,
        }),
        Some(_) | None => Err(errors),
    }
}

fn field_error(path: &str, message: &str) -> FieldError {
    FieldError { path: path.into(), message: message.into() }
}
