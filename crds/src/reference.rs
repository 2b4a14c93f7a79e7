//! The field reference: a page for people, generated from the schema.

use std::fmt::Write as _;

use serde_json::Value;

use crate::crd::{connector_schema, plain_spec_schema};
use crate::union;

/// Renders every field of a Connector as Markdown: path, type, default, bounds, description, and the rules between fields.
pub fn field_reference() -> String {
    let mut page = String::from(
        "# Field reference\n\n\
         <!-- Generated from crds/src. To renew: cargo run -q -p connector-crds --bin crdgen reference > docs/reference.md -->\n\n\
         Every field of `Connector` (`connectors.wallaroolabs.com/v1alpha1`). A field without default and without *required* may be absent.\n\
         Sizes are in bytes, lengths of texts in characters. *key of a Secret* stands for `{name, key}`: name of a Secret in the Connector's\n\
         namespace, and key in it; 1 to 253 characters each.\n",
    );
    section(&mut page, "Spec", &plain_spec_schema(), "spec");
    rules(&mut page);
    section(&mut page, "Status", &connector_schema()["properties"]["status"], "status");
    page
}

fn section(page: &mut String, title: &str, schema: &Value, path: &str) {
    let _ = write!(
        page,
        "\n## {title}\n\n| Field | Type | Default | Bounds | What it is |\n|---|---|---|---|---|\n"
    );
    fields(page, schema, path);
}

fn fields(page: &mut String, schema: &Value, path: &str) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let union = union::members(schema).is_some();
    let mut properties: Vec<_> = schema["properties"].as_object().into_iter().flatten().collect();
    properties.sort_unstable_by_key(|(name, _)| *name);
    for (name, field) in properties {
        let (field, description) = unwrapped(field);
        let path = format!("{path}.{name}");
        let presence = if required.contains(&name.as_str()) {
            "*required*".to_owned()
        } else if union {
            "*one of*".to_owned()
        } else {
            default(&field)
        };
        let _ = writeln!(
            page,
            "| `{path}` | {} | {presence} | {} | {} |",
            kind(&field),
            bounds(&field),
            cell(&format!("{description}{}", values(&field))),
        );
        if is_secret(&field) {
            continue;
        }
        fields(page, &field, &path);
        if let Some(items) = field.get("items") {
            fields(page, items, &format!("{path}[]"));
        }
    }
}

/// A field's schema without the wrapping of an optional one, and its own description.
fn unwrapped(field: &Value) -> (Value, String) {
    let inner = match field["anyOf"].as_array() {
        Some(branches) => branches.iter().find(|branch| branch.get("nullable").is_none()).unwrap_or(field),
        None => field,
    };
    let description = field.get("description").or(inner.get("description")).and_then(Value::as_str);
    let mut schema = inner.clone();
    if let (Some(object), Some(value)) = (schema.as_object_mut(), field.get("default")) {
        object.insert("default".into(), value.clone());
    }
    (schema, description.unwrap_or_default().to_owned())
}

/// Whether a field is a [`crate::SecretKeyRef`], which is explained once.
fn is_secret(field: &Value) -> bool {
    field["properties"].as_object().is_some_and(|properties| {
        properties.len() == 2 && properties.contains_key("key") && properties.contains_key("name")
    })
}

fn kind(field: &Value) -> &'static str {
    if field.get("oneOf").is_some() || field.get("enum").is_some() {
        return "word";
    }
    match (field["type"].as_str(), field["format"].as_str()) {
        (Some("string"), Some("date-time")) => "time",
        (Some("string"), _) => "text",
        (Some("integer"), _) => "whole number",
        (Some("boolean"), _) => "true or false",
        (Some("array"), _) => match field["items"]["type"].as_str() {
            Some("string") => "list of texts",
            _ => "list of objects",
        },
        _ if field.get("additionalProperties").is_some() => "map of texts",
        _ if is_secret(field) => "key of a Secret",
        _ if union::members(field).is_some() => "object, exactly one field",
        _ => "object",
    }
}

fn default(field: &Value) -> String {
    match field.get("default") {
        None | Some(Value::Null) => String::new(),
        // The fields below state theirs.
        Some(Value::Object(_)) if union::members(field).is_none() => String::new(),
        Some(Value::String(text)) => format!("`{text}`"),
        Some(value) => format!("`{value}`"),
    }
}

fn bounds(field: &Value) -> String {
    // kube's schema types keep bounds as floating point; ours are whole and stay below 2^53.
    let number =
        |value: &Value| value.as_i64().or(value.as_f64().map(|value| value as i64)).unwrap_or_default();
    let between = |least: &Value, most: &Value, unit: &str| match (least, most) {
        (Value::Null, Value::Null) => String::new(),
        (Value::Null, most) => format!("up to {}{unit}", number(most)),
        (least, Value::Null) => format!("from {}{unit}", number(least)),
        (least, most) => format!("{} to {}{unit}", number(least), number(most)),
    };
    match field["type"].as_str() {
        Some("integer") => between(&field["minimum"], &field["maximum"], ""),
        Some("string") => between(&field["minLength"], &field["maxLength"], " characters"),
        Some("array") => {
            let entries = between(&field["minItems"], &field["maxItems"], " entries");
            let each = bounds(&field["items"]);
            if each.is_empty() { entries } else { format!("{entries}, each {each}") }
        }
        _ => match field["maxProperties"].as_u64() {
            Some(most) => format!("up to {most} entries"),
            None => String::new(),
        },
    }
}

/// The words of an enumeration, each with what it means where that is known.
fn values(field: &Value) -> String {
    let mut text = String::new();
    for value in field["oneOf"].as_array().into_iter().flatten() {
        let name = value["enum"][0].as_str().or(value["const"].as_str()).unwrap_or_default();
        let meaning = value["description"].as_str().unwrap_or_default();
        let _ = write!(text, " `{name}`: {meaning}");
    }
    for value in field["enum"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let _ = write!(text, " `{value}`.");
    }
    text
}

fn rules(page: &mut String) {
    page.push_str("\n## Rules between fields\n\nRefused at apply, each with this sentence.\n\n| Where | Sentence |\n|---|---|\n");
    rules_below(page, connector_schema(), "");
}

fn rules_below(page: &mut String, schema: &Value, path: &str) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let place = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
        let place = place.strip_prefix('.').unwrap_or(&place);
        let place = if place.is_empty() { "metadata.name" } else { place };
        let _ = writeln!(page, "| `{place}` | {} |", cell(rule["message"].as_str().unwrap_or_default()));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        rules_below(page, field, &format!("{path}.{name}"));
        rules_below(page, &field["items"], &format!("{path}.{name}[]"));
    }
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
