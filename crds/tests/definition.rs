//! The generated definition and field reference: up to date, small, bounded, and free of what API servers reject.

#![allow(clippy::unwrap_used, reason = "what a test reads is known; a panic is a failed test")]

use std::path::Path;

use connector_crds::{Effect, MAX_CRD_BYTES, crd, crd_yaml, effects, field_reference};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::cel::{ScopeContext, check_rule_scope, compile_schema, estimate_rule_cost};
use serde_json::Value;

/// Longest description in the schema: one sentence; long text belongs into the docs.
const MAX_DESCRIPTION: usize = 200;

fn committed(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn schema() -> Value {
    serde_json::to_value(crd()).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Calls `visit` with the path and schema of every node, the root included.
fn walk(schema: &Value, path: &str, visit: &mut dyn FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(field, &format!("{path}.{name}"), visit);
    }
    for below in ["items", "additionalProperties"] {
        if let Some(below) = schema.get(below) {
            walk(below, &format!("{path}[]"), visit);
        }
    }
}

/// All paths whose schema is wrong in some way, with what is wrong.
fn complaints(check: impl Fn(&Value) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut nodes = 0;
    walk(&schema(), "", &mut |path, node| {
        nodes += 1;
        found.extend(check(node).map(|complaint| format!("{path}: {complaint}")));
    });
    assert!(nodes > 100, "the walk saw only {nodes} nodes");
    found
}

#[test]
fn the_committed_definition_is_the_one_of_the_types() {
    assert!(
        committed("connectors.yaml") == crd_yaml(),
        "crds/connectors.yaml is out of date; run: cargo run -q -p connector-crds --bin crdgen > crds/connectors.yaml"
    );
}

#[test]
fn the_committed_reference_is_the_one_of_the_types() {
    assert!(
        committed("../docs/reference.md") == field_reference(),
        "docs/reference.md is out of date; run: cargo run -q -p connector-crds --bin crdgen reference > docs/reference.md"
    );
}

#[test]
fn a_change_does_what_its_field_or_the_one_above_says() {
    let effects = effects();
    for (path, effect) in [
        ("spec.replicas", Effect::Scales),
        ("spec.state", Effect::Live),
        ("spec.runtime.logLevel", Effect::Live),
        ("spec.pod.serviceAccount.annotations", Effect::Nothing),
        ("spec.source.kafka", Effect::Recreates),
        ("spec.source.kafka.topics", Effect::Restarts),
        ("spec.sink.redis.hash.field.delimiter", Effect::Restarts),
        ("spec.pod.tolerations[].key", Effect::Restarts),
    ] {
        assert_eq!(effects.get(path), Some(&effect), "{path}");
    }
}

#[test]
fn the_yaml_reads_back_as_the_definition() {
    let read: CustomResourceDefinition = serde_saphyr::from_str(&crd_yaml()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), serde_json::to_value(crd()).unwrap());
}

#[test]
fn the_definition_fits_into_the_annotation_of_a_client_side_apply() {
    let bytes = serde_json::to_string(&crd()).unwrap().len();
    assert!(bytes <= MAX_CRD_BYTES, "{bytes} bytes of compact JSON, {MAX_CRD_BYTES} are allowed");
}

#[test]
fn only_formats_that_api_servers_know_are_used() {
    let wrong = complaints(|node| {
        let format = node.get("format")?.as_str()?;
        (!["int32", "int64", "date-time"].contains(&format)).then(|| format!("format {format}"))
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn nothing_hides_the_messages_of_the_rules() {
    let wrong = complaints(|node| {
        ["oneOf", "anyOf", "allOf", "not", "nullable", "x-kubernetes-preserve-unknown-fields"]
            .into_iter()
            .find(|keyword| node.get(*keyword).is_some())
            .map(str::to_owned)
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_text_list_map_and_number_is_bounded() {
    let wrong = complaints(|node| {
        let has = |keyword: &str| node.get(keyword).is_some();
        let bounded = match node["type"].as_str() {
            Some("string") => has("enum") || has("maxLength") || node["format"] == "date-time",
            Some("array") => has("maxItems") && has("items"),
            Some("integer") => has("minimum") && has("maximum"),
            Some("object") => !has("additionalProperties") || has("maxProperties"),
            Some("boolean") => true,
            _ => false,
        };
        (!bounded).then(|| format!("unbounded: {node}"))
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_field_is_described_in_one_sentence() {
    let wrong = complaints(|node| {
        // Entries of a list are described with the list.
        let Some(description) = node.get("description").and_then(Value::as_str) else {
            return (node["type"] == "object").then(|| "no description".to_owned());
        };
        let sentences = description.replace("e.g. ", "").trim_end_matches('.').split(". ").count();
        (description.chars().count() > MAX_DESCRIPTION || sentences != 1).then(|| description.to_owned())
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_default_fulfils_its_own_schema() {
    let wrong = complaints(|node| {
        let default = node.get("default")?;
        let fits = match (node["type"].as_str()?, default) {
            ("object", Value::Object(fields)) => {
                fields.keys().all(|name| node["properties"].get(name).is_some())
            }
            ("integer", Value::Number(number)) => {
                let number = number.as_f64()?;
                node["minimum"].as_f64()? <= number && number <= node["maximum"].as_f64()?
            }
            ("string", Value::String(_)) => {
                node.get("enum").is_none_or(|words| words.as_array().unwrap().contains(default))
            }
            ("boolean", Value::Bool(_)) | ("array", Value::Array(_)) => true,
            _ => false,
        };
        (!fits).then(|| format!("default {default}"))
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_rule_compiles_speaks_of_known_names_is_cheap_and_has_a_message() {
    let wrong = complaints(|node| {
        let compiled = compile_schema(node);
        for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let text = rule["rule"].as_str()?;
            let scope = check_rule_scope(text, ScopeContext::CrdValidation);
            let cost = estimate_rule_cost(text, &compiled);
            if !scope.is_empty() || !cost.is_empty() {
                return Some(format!("{scope:?} {cost:?}"));
            }
            if rule["message"].as_str().is_none_or(str::is_empty) {
                return Some(format!("no message: {text}"));
            }
            if let Some(path) = rule["fieldPath"].as_str() {
                // The API server refuses a definition whose field paths lead nowhere.
                let pointer = path.replace('.', "/properties/");
                if node.pointer(&pointer).is_none() {
                    return Some(format!("{path} leads nowhere"));
                }
            }
        }
        compiled.compilation_errors().first().map(ToString::to_string)
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_resource_has_status_scale_columns_and_selectable_fields() {
    let crd = serde_json::to_value(crd()).unwrap();
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["name"], connector_crds::VERSION);
    assert_eq!(crd["spec"]["group"], connector_crds::GROUP);
    assert_eq!(version["subresources"]["scale"]["specReplicasPath"], ".spec.replicas");
    let paths = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|entry| entry["jsonPath"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(paths(&version["selectableFields"]), [".status.type", ".spec.state"]);
    let schema = schema();
    let scale = version["subresources"]["scale"].as_object().unwrap();
    let named = scale.values().filter_map(Value::as_str).map(str::to_owned);
    for path in paths(&version["additionalPrinterColumns"])
        .into_iter()
        .chain(paths(&version["selectableFields"]))
        .chain(named)
        .filter(|path| !path.starts_with(".metadata") && !path.contains('['))
    {
        let pointer = path.replace('.', "/properties/");
        assert!(schema.pointer(&pointer).is_some(), "{path} leads nowhere");
    }
}
