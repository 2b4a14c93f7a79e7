//! Shape and bounds: walks a value beside its schema, as the API server does.

use serde_json::Value;

use super::FieldError;
use crate::union;

/// Checks types, required fields, unions, enumerations, lengths and ranges of everything that the schema knows.
///
/// A field that is null counts as absent. Unknown fields are not looked at.
pub(super) fn check(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut report = |message: String| errors.push(FieldError { path: path.to_owned(), message });
    let fits = match (schema["type"].as_str(), value) {
        (Some("object"), Value::Object(_))
        | (Some("array"), Value::Array(_))
        | (Some("string"), Value::String(_))
        | (Some("boolean"), Value::Bool(_)) => true,
        (Some("integer"), Value::Number(number)) => number.is_i64() || number.is_u64(),
        _ => false,
    };
    if !fits {
        report(format!("must be {}, is {}", wanted(schema), given(value)));
        return;
    }
    match value {
        Value::Object(fields) => object(schema, fields, path, errors),
        Value::Array(items) => {
            if let Some(message) = outside(schema, "Items", items.len() as u64, "entries") {
                report(message);
            }
            if let Some(item_schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    check(item_schema, item, &format!("{path}[{index}]"), errors);
                }
            }
        }
        Value::String(text) => {
            if let Some(values) = schema["enum"].as_array() {
                if !values.contains(value) {
                    report(format!("must be {}, is {text:?}", alternatives(values)));
                }
            } else if let Some(message) = outside(schema, "Length", text.chars().count() as u64, "characters")
            {
                report(message);
            }
        }
        Value::Number(number) => {
            let number = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
            let (least, most) = (bound(schema, "minimum"), bound(schema, "maximum"));
            if let (Some(number), Some(least), Some(most)) = (number, least, most)
                && !(least..=most).contains(&number)
            {
                report(format!("must be from {least} to {most}, is {number}"));
            }
        }
        Value::Bool(_) | Value::Null => {}
    }
}

fn object(schema: &Value, fields: &serde_json::Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    let set = |name: &str| fields.get(name).filter(|field| !field.is_null());
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if set(name).is_none() {
            errors.push(FieldError { path: join(path, name), message: "must be set".into() });
        }
    }
    if let Some(members) = union::members(schema)
        && members.iter().filter(|name| set(name).is_some()).count() != 1
    {
        errors.push(FieldError { path: path.to_owned(), message: union::message(&members) });
    }
    for (name, field_schema) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(field) = set(name) {
            check(field_schema, field, &join(path, name), errors);
        }
    }
    if let Some(values) = schema.get("additionalProperties") {
        let most = schema["maxProperties"].as_u64().unwrap_or(u64::MAX);
        if fields.len() as u64 > most {
            let message = format!("must have at most {most} entries, has {}", fields.len());
            errors.push(FieldError { path: path.to_owned(), message });
        }
        for (name, field) in fields {
            check(values, field, &join(path, name), errors);
        }
    }
}

/// A bound of a schema: kube's schema types keep it as floating point, and ours stay below 2^53.
fn bound(schema: &Value, name: &str) -> Option<i128> {
    let bound = &schema[name];
    bound.as_i64().or_else(|| bound.as_f64().map(|bound| bound as i64)).map(i128::from)
}

/// A sentence when a size is outside of `minX` and `maxX`.
fn outside(schema: &Value, bound: &str, size: u64, unit: &str) -> Option<String> {
    let least = schema[format!("min{bound}")].as_u64().unwrap_or(0);
    let most = schema[format!("max{bound}")].as_u64().unwrap_or(u64::MAX);
    if (least..=most).contains(&size) {
        None
    } else if most == u64::MAX {
        Some(format!("must have at least {least} {unit}, has {size}"))
    } else {
        Some(format!("must have {least} to {most} {unit}, has {size}"))
    }
}

fn wanted(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        return alternatives(values);
    }
    match schema["type"].as_str() {
        Some("object") => "an object",
        Some("array") => "a list",
        Some("string") => "a text",
        Some("boolean") => "true or false",
        Some("integer") => "a whole number",
        Some(other) => other,
        None => "something else",
    }
    .to_owned()
}

fn given(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => format!("the number {value}"),
        Value::String(_) => "a text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

fn alternatives(values: &[Value]) -> String {
    let names: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
    match names.as_slice() {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        names => names.concat(),
    }
}

/// The path of a field of an object.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
