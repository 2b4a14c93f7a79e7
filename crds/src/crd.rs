//! The definition of the resource as the API server gets it, and the schemas that the checks walk.

use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kube::core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::AddNullable;
use serde_json::Value;

use crate::{Connector, ConnectorSpec, RuntimeConfig};

/// Largest definition as compact JSON, in bytes: client-side apply keeps a copy in an annotation, and those end at 262,144.
pub const MAX_CRD_BYTES: usize = 200_000;

/// Formats that API servers know; another one is a warning at each apply.
const KNOWN_FORMATS: [&str; 3] = ["int32", "int64", "date-time"];

/// `status.observedGeneration` of a Connector that no operator has seen: tools that wait take an object without a status for done.
const UNSEEN: i64 = -1;

/// The `CustomResourceDefinition` of [`Connector`]; `connectors.yaml` is its YAML.
///
/// It differs from kube's `Connector::crd()` in that no field is nullable (the API server then drops a null, so that the rules see it
/// as absent, as serde does), that no unknown format is left, and that `status` has a default.
pub fn crd() -> CustomResourceDefinition {
    let mut crd = Connector::crd();
    for version in &mut crd.spec.versions {
        let Some(validation) = &mut version.schema else { continue };
        let Some(schema) = &mut validation.open_api_v3_schema else { continue };
        let mut value = serde_json::to_value(&*schema).expect("a schema is JSON");
        tidy(&mut value);
        value["properties"]["status"]["default"] = serde_json::json!({"observedGeneration": UNSEEN});
        *schema = serde_json::from_value(value).expect("a tidied schema is a schema");
    }
    crd
}

/// The schema of a whole Connector.
pub(crate) fn connector_schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        let crd = serde_json::to_value(crd()).expect("a definition is JSON");
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
    });
    &SCHEMA
}

/// The schema of `config.json`.
pub(crate) fn runtime_config_schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(schema_of::<RuntimeConfig>);
    &SCHEMA
}

/// The schema of a type, as kube makes it for a definition.
fn schema_of<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::openapi3()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString)
        .into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    schema
}

/// The schema of `spec` before kube makes it structural: it still says what each word of an enumeration means.
pub(crate) fn plain_spec_schema() -> Value {
    let generator = SchemaSettings::openapi3()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .into_generator();
    generator.into_root_schema_for::<ConnectorSpec>().to_value()
}

/// The definition as YAML: what `connectors.yaml` holds.
pub fn crd_yaml() -> String {
    let yaml = serde_saphyr::to_string(&crd()).expect("a definition is plain data");
    format!(
        "# Generated from crds/src. To renew: cargo run -q -p connector-crds --bin crdgen > crds/connectors.yaml\n{yaml}"
    )
}

fn tidy(schema: &mut Value) {
    let Value::Object(node) = schema else { return };
    node.remove("nullable");
    node.remove("title");
    if node.get("default").is_some_and(Value::is_null) {
        node.remove("default");
    }
    if node.get("format").and_then(Value::as_str).is_some_and(|format| !KNOWN_FORMATS.contains(&format)) {
        node.remove("format");
    }
    if let Some(Value::Object(properties)) = node.get_mut("properties") {
        properties.values_mut().for_each(tidy);
    }
    for below in ["items", "additionalProperties"] {
        if let Some(below) = node.get_mut(below) {
            tidy(below);
        }
    }
}
