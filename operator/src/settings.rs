//! What the operator's own configuration says about the objects that it makes.

/// Fixed while the operator runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorSettings {
    /// Image of the runtime for Connectors that name none.
    pub runtime_image: String,
    /// What a Connector may ask for.
    pub allow: Allow,
    /// Whether each Connector gets a `NetworkPolicy`.
    pub network_policies: bool,
}

/// What a Connector may ask for: each of these lets its author run more than a connector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// `spec.runtime.image`.
    pub runtime_image: bool,
    /// `spec.source.custom` and `spec.sink.custom`.
    pub custom: bool,
    /// `spec.pod.serviceAccountName`.
    pub service_account_name: bool,
}
