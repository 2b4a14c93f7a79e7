//! The `Connector` resource: API types, the rules they obey, and what the operator hands to the runtime.
//!
//! `connectors.yaml` beside this crate is generated from these types by the `crdgen` binary; a test compares.

mod condition;
mod connector;
mod crd;
mod delivery;
mod effect;
mod guarantee;
mod pod;
mod reference;
mod rules;
mod runtime;
mod runtime_config;
mod scheduling;
mod secret;
mod sink;
mod source;
mod status;
pub mod systems;
mod union;
mod validate;
mod volume;
mod wallaroo;

pub use condition::{Condition, ConditionStatus};
pub use connector::{Connector, ConnectorSpec, State};
pub use crd::{MAX_CRD_BYTES, crd, crd_yaml};
pub use delivery::{AckMode, DeadLetter, DeliverySpec, InFlight, OnError, OnInDoubt, StorageSpec};
pub use effect::{Effect, effects};
pub use guarantee::{Delivery, Guarantee, Scope, guarantee};
pub use pod::{Amounts, PodSpec, Resources, ServiceAccountSpec, TaintEffect, Toleration, TolerationOperator};
pub use reference::field_reference;
pub use runtime::{LogLevel, RuntimeSpec, UpgradePolicy};
pub use runtime_config::{ConnectorIdentity, LiveConfig, Paths, RuntimeConfig};
pub use scheduling::{
    Affinity, NodeAffinity, NodeExpression, NodeOperator, NodeSelector, NodeTerm, PodAffinity, PodLabels,
    PodTerm, PreferredNode, PreferredPod, Spread, Unsatisfiable,
};
pub use secret::SecretKeyRef;
pub use sink::SinkSpec;
pub use source::SourceSpec;
pub use status::{ConnectorStatus, LastError};
pub use validate::{
    FieldError, read_connector, read_runtime_config, unknown_fields, unknown_runtime_config_fields, validate,
    validate_runtime_config, validate_update,
};
pub use volume::{ClaimPolicy, VolumeSpec};
pub use wallaroo::{ByteOrder, FramingSpec, HeaderWidth, Protocol, SinkFraming, WallarooSpec};

/// API group of the resource.
pub const GROUP: &str = "connectors.wallaroolabs.com";
/// API version of the resource.
pub const VERSION: &str = "v1alpha1";
