//! Unknown fields, each with a hint at what was meant.

use serde_json::Value;

use super::FieldError;
use super::shape::join;

/// Names that a hint lists at most.
const MAX_NAMES: usize = 12;

/// Places that a hint names at most.
const MAX_PLACES: usize = 2;

/// Fields of an object beside `spec` and `status`; the schema leaves them to the API server.
const OBJECT_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Fields of `metadata` (Kubernetes API, `ObjectMeta`).
const METADATA_FIELDS: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Looks through a whole manifest, `metadata` included.
pub(super) fn connector(schema: &Value, manifest: &Value, errors: &mut Vec<FieldError>) {
    let walk = Walk { root: schema, also: &OBJECT_FIELDS };
    walk.object(schema, manifest, "", errors);
    if let Some(metadata) = manifest.get("metadata").and_then(Value::as_object) {
        for name in metadata.keys().filter(|name| !METADATA_FIELDS.contains(&name.as_str())) {
            let message = walk.message(name, &METADATA_FIELDS);
            errors.push(FieldError { path: join("metadata", name), message });
        }
    }
}

/// Looks through an object that the schema describes whole.
pub(super) fn object(schema: &Value, value: &Value, errors: &mut Vec<FieldError>) {
    Walk { root: schema, also: &[] }.object(schema, value, "", errors);
}

struct Walk<'a> {
    root: &'a Value,
    /// Known at the root beside what the schema says.
    also: &'a [&'a str],
}

impl Walk<'_> {
    fn object(&self, schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        match value {
            // The names in a map are the user's.
            Value::Object(_) if schema.get("additionalProperties").is_some() => {}
            Value::Object(fields) => {
                let properties = schema["properties"].as_object();
                for (name, field) in fields {
                    if let Some(field_schema) = properties.and_then(|properties| properties.get(name)) {
                        self.object(field_schema, field, &join(path, name), errors);
                    } else if !(path.is_empty() && self.also.contains(&name.as_str())) {
                        let mut known: Vec<&str> =
                            properties.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
                        if path.is_empty() {
                            known.extend(self.also);
                        }
                        errors
                            .push(FieldError { path: join(path, name), message: self.message(name, &known) });
                    }
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.object(&schema["items"], item, &format!("{path}[{index}]"), errors);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn message(&self, name: &str, known: &[&str]) -> String {
        if let Some(meant) = nearest(name, known) {
            return format!("unknown field; did you mean {meant}?");
        }
        let mut places = Vec::new();
        find(self.root, name, "", &mut places);
        places.retain(|place| place.split('.').next() != Some("status"));
        if !places.is_empty() && places.len() <= MAX_PLACES {
            return format!("unknown field here; did you mean {}?", places.join(" or "));
        }
        if known.is_empty() {
            return "unknown field; there are none here".into();
        }
        let more = if known.len() > MAX_NAMES { ", …" } else { "" };
        let names = &known[..known.len().min(MAX_NAMES)];
        format!("unknown field; there are {}{more}", names.join(", "))
    }
}

/// Letters of a name that are enough to take it for the beginning of another one.
const MIN_PREFIX: usize = 3;

/// The one known name that a misspelt one resembles, or begins: units at the end of a name are forgotten easily.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let name = plain(name);
    // A third of the letters may be wrong: enough for a slip or a plural, too little to make another word of it.
    let allowed = (name.chars().count() / 3).max(1);
    let resembling = known
        .iter()
        .map(|candidate| (strsim::osa_distance(&name, &plain(candidate)), *candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate);
    let begun = || {
        let mut longer = known.iter().copied().filter(|candidate| plain(candidate).starts_with(&name));
        longer.next().filter(|_| name.len() >= MIN_PREFIX && longer.next().is_none())
    };
    resembling.or_else(begun)
}

/// All places of a schema where a field has this name.
fn find(schema: &Value, name: &str, path: &str, places: &mut Vec<String>) {
    for (field, below) in schema["properties"].as_object().into_iter().flatten() {
        let path = join(path, field);
        if field == name {
            places.push(path.clone());
        }
        find(below, name, &path, places);
    }
}
