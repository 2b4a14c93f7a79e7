//! The checks of the resource without an API server: bounds of the schema, cross-field rules, unknown fields.
//!
//! Stored objects may be older than a rule, and `local` and the runtime have no API server: so everything that a schema and its CEL rules
//! refuse is refused here too, with the same message at the same path. The table `tests/cases.yaml` runs both.

mod cross_field;
mod shape;
mod text;
mod unknown;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::crd::{connector_schema, runtime_config_schema};
use crate::{Connector, RuntimeConfig};

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{message}", path, if path.is_empty() { "" } else { ": " })]
pub struct FieldError {
    /// Path of the field, e.g. `spec.wallaroo.connect[0]`; empty: the object.
    pub path: String,
    /// What is wrong, as a sentence that needs the path in front of it or names the field itself.
    pub message: String,
}

/// Checks a Connector: bounds of the schema and cross-field rules. Empty: it is valid.
///
/// Twin of what the API server checks at creation. Unknown fields are not seen any more; see [`read_connector`].
pub fn validate(connector: &Connector) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = serde_json::to_value(&connector.spec).expect("a spec is JSON: its maps have text keys");
    shape::check(&connector_schema()["properties"]["spec"], &spec, "spec", &mut errors);
    cross_field::connector(connector, &mut errors);
    errors
}

/// Checks a Connector that replaces `old`: [`validate`], and what must not change. Empty: the change is valid.
pub fn validate_update(connector: &Connector, old: &Connector) -> Vec<FieldError> {
    let mut errors = validate(connector);
    cross_field::update(&connector.spec, &old.spec, &mut errors);
    errors
}

/// Checks what the operator rendered. Paths are those of `config.json`, e.g. `wallaroo.connect[0]`. Empty: it is valid.
pub fn validate_runtime_config(config: &RuntimeConfig) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let value = serde_json::to_value(config).expect("a configuration is JSON: its maps have text keys");
    shape::check(runtime_config_schema(), &value, "", &mut errors);
    cross_field::runtime_config(config, &mut errors);
    errors
}

/// Finds the fields of a Connector's manifest that the schema does not have, each with a hint at what was meant.
///
/// `kubectl` refuses them too; other clients get a warning and the API server drops the field.
pub fn unknown_fields(manifest: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    unknown::connector(connector_schema(), manifest, &mut errors);
    errors
}

/// Finds the fields of a `config.json` that the runtime does not know. The runtime itself ignores them.
pub fn unknown_runtime_config_fields(config: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    unknown::object(runtime_config_schema(), config, &mut errors);
    errors
}

/// Reads a Connector's manifest strictly: unknown fields, shape, bounds and cross-field rules.
///
/// # Errors
///
/// Everything that is wrong; cross-field rules only once fields have the right shape.
pub fn read_connector(manifest: &Value) -> Result<Connector, Vec<FieldError>> {
    let mut errors = unknown_fields(manifest);
    let schema = connector_schema();
    shape::check(schema, manifest, "", &mut errors);
    // Metadata is outside of the schema, and without it nothing can be named.
    if !manifest.get("metadata").is_some_and(Value::is_object) {
        errors.push(FieldError { path: "metadata".into(), message: "must be set".into() });
    }
    let (connector, mut ill_shaped) = typed::<Connector>(manifest, errors)?;
    cross_field::connector(&connector, &mut ill_shaped);
    if ill_shaped.is_empty() { Ok(connector) } else { Err(ill_shaped) }
}

/// Reads a `config.json` strictly: unknown fields, shape, bounds and cross-field rules.
///
/// # Errors
///
/// Everything that is wrong; cross-field rules only once fields have the right shape.
pub fn read_runtime_config(config: &Value) -> Result<RuntimeConfig, Vec<FieldError>> {
    let mut errors = unknown_runtime_config_fields(config);
    shape::check(runtime_config_schema(), config, "", &mut errors);
    let (config, mut errors) = typed::<RuntimeConfig>(config, errors)?;
    cross_field::runtime_config(&config, &mut errors);
    if errors.is_empty() { Ok(config) } else { Err(errors) }
}

/// Turns a value into its type. With errors found already, serde's own view of them is not worth a line.
fn typed<T: DeserializeOwned>(
    value: &Value,
    mut errors: Vec<FieldError>,
) -> Result<(T, Vec<FieldError>), Vec<FieldError>> {
    match serde_path_to_error::deserialize(without_nulls(value)) {
        Ok(typed) => Ok((typed, errors)),
        Err(error) => {
            if errors.is_empty() {
                errors
                    .push(FieldError { path: error.path().to_string(), message: error.inner().to_string() });
            }
            Err(errors)
        }
    }
}

/// The value as the API server keeps it: a field that is null is not there.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, field)| !field.is_null());
            Value::Object(
                kept.map(|(name, field)| (name.clone(), without_nulls(field))).collect::<Map<_, _>>(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}
