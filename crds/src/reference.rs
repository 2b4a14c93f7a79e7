//! The field reference: a page for people, generated from the schema.

use std::fmt::Write as _;

use serde_json::Value;

use crate::crd::{connector_schema, plain_spec_schema};
use crate::effect::Effect;
use crate::union;

/// Renders every field of a Connector as Markdown: path, type, default, unit, bounds, what a change does, description, and the
/// rules between fields.
pub fn field_reference() -> String {
    let mut page = String::from(
        "# Field reference\n\n\
         <!-- Generated from crds/src. To renew: cargo run -q -p connector-crds --bin crdgen reference > docs/reference.md -->\n\n\
         Every field of `Connector` (`connectors.wallaroolabs.com/v1alpha1`). A field without default and without *required* may be absent.\n\
         Lengths of texts are in characters. *key of a Secret* stands for `{name, key}`: name of a Secret in the Connector's\n\
         namespace, and key in it; 1 to 253 characters each.\n\n\
         What a change does:\n\n\
         | Word | Meaning |\n|---|---|\n\
         | nothing | No pod is touched, and the running ones do not notice. |\n\
         | live | The running pods take it up without a restart, within seconds. |\n\
         | scales | Pods are added or removed, the others stay. |\n\
         | restarts | The pods are replaced one after the other: each drains, then its successor starts. |\n\
         | recreates | All pods drain and end before the first new one starts. |\n\n\
         A Connector whose pods have no claim (it needs no state, or `storage.ephemeral` is true) has nothing to recreate for the sake of\n\
         `storage`: there a change of `storage.size` restarts and one of `storage.class` does nothing.\n",
    );
    page.push_str(
        "\n## Spec\n\n| Field | Type | Default | Unit | Bounds | A change | What it is |\n|---|---|---|---|---|---|---|\n",
    );
    fields(&mut page, &plain_spec_schema(), "spec", Some(Effect::Restarts));
    rules(&mut page);
    page.push_str("\n## Status\n\n| Field | Type | Bounds | What it is |\n|---|---|---|---|\n");
    fields(&mut page, &connector_schema()["properties"]["status"], "status", None);
    page
}

/// One row a field. `inherited` is what a change does unless the field says otherwise; absent: nobody changes these fields.
fn fields(page: &mut String, schema: &Value, path: &str, inherited: Option<Effect>) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let union = union::members(schema).is_some();
    let mut properties: Vec<_> = schema["properties"].as_object().into_iter().flatten().collect();
    properties.sort_unstable_by_key(|(name, _)| *name);
    for (name, field) in properties {
        let effect = inherited.map(|inherited| Effect::of(field, inherited));
        let unit = unit(name, field);
        let (field, description) = unwrapped(field);
        let path = format!("{path}.{name}");
        let presence = if required.contains(&name.as_str()) {
            "*required*".to_owned()
        } else if union {
            "*one of*".to_owned()
        } else {
            default(&field)
        };
        let (kind, bounds) = (kind(&field), bounds(&field));
        let what = cell(&format!("{description}{}", values(&field)));
        let _ = match effect {
            Some(effect) => {
                let effect = effect.as_str();
                writeln!(page, "| `{path}` | {kind} | {presence} | {unit} | {bounds} | {effect} | {what} |")
            }
            None => writeln!(page, "| `{path}` | {kind} | {bounds} | {what} |"),
        };
        if is_secret(&field) {
            continue;
        }
        let below = effect.map(|effect| effect.below(&field));
        fields(page, &field, &path, below);
        if let Some(items) = field.get("items") {
            fields(page, items, &format!("{path}[]"), below);
        }
    }
}

/// The unit of a number: what its schema states, else what its name ends with.
fn unit(name: &str, field: &Value) -> String {
    if let Some(unit) = field.get("x-unit").and_then(Value::as_str) {
        return unit.to_owned();
    }
    [("Seconds", "s"), ("Ms", "ms"), ("Bytes", "bytes"), ("bytes", "bytes")]
        .into_iter()
        .find(|(ending, _)| name.ends_with(ending))
        .map_or_else(String::new, |(_, unit)| unit.to_owned())
}

/// A field's schema without the wrapping of an optional one, and its own description.
pub(crate) fn unwrapped(field: &Value) -> (Value, String) {
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
