//! Names, labels and annotations of everything that the operator makes.

use std::collections::BTreeMap;

/// Field manager of every write, and `app.kubernetes.io/managed-by` of every object.
pub const FIELD_MANAGER: &str = "connector-operator";
/// Name of the Connector that an object belongs to.
pub const CONNECTOR_LABEL: &str = "connectors.wallaroolabs.com/connector";
/// What a `ConfigMap` is for.
pub const PART_LABEL: &str = "connectors.wallaroolabs.com/part";
/// Value of [`PART_LABEL`]: an immutable rendering.
pub const PART_RENDERING: &str = "rendering";
/// Value of [`PART_LABEL`]: the live file.
pub const PART_LIVE: &str = "live";
/// On a pod template: the rendering that it came from.
pub const RENDERING_ANNOTATION: &str = "connectors.wallaroolabs.com/rendering";
/// On every object: a hash of what was applied, so that a field that is not set any more is a difference too.
pub const APPLIED_ANNOTATION: &str = "connectors.wallaroolabs.com/applied";
/// On a pod: a hash of the live file that it was told of.
pub const LIVE_ANNOTATION: &str = "connectors.wallaroolabs.com/live";
/// Name of the container.
pub const CONTAINER: &str = "connector";
/// Name of the container of a custom connector's process.
pub const CUSTOM_CONTAINER: &str = "custom";
/// Name of the port at which a runtime serves its status.
pub const ADMIN_PORT: &str = "admin";
/// Name of the port at which records come in: of a sink's Wallaroo, of a source's senders.
pub const RECORDS_PORT: &str = "records";
/// Name of the state volume and its claims.
pub const STATE_VOLUME: &str = "state";

/// Labels that find the objects of one Connector.
pub fn selector(connector: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned()),
        (CONNECTOR_LABEL.to_owned(), connector.to_owned()),
    ])
}

/// The selector as the text of `status.selector`.
pub fn selector_text(connector: &str) -> String {
    let pairs: Vec<String> =
        selector(connector).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join(",")
}

/// Name of the `ConfigMap` that holds the live file: at most 57 characters, for a Connector has 52.
pub fn live(connector: &str) -> String {
    format!("{connector}-live")
}

/// Name of the claim of a pod's state volume, as a `StatefulSet` names it.
pub fn claim(connector: &str, ordinal: i32) -> String {
    format!("{STATE_VOLUME}-{connector}-{ordinal}")
}

/// Name of the `ConfigMap` of a rendering: at most 63 characters.
pub fn rendering(connector: &str, hash: &str) -> String {
    format!("{connector}-{hash}")
}
