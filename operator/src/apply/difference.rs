//! Whether a live object differs in a field that we set, or one of our fields is no longer ours. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Map, Value};

use crate::names::FIELD_MANAGER;

/// Lists that several writers share, with the fields that name an entry (Kubernetes API: `listType=map`). Every other
/// list has one owner, who sets it whole.
const SHARED_LISTS: [(&str, &[&str]); 7] = [
    ("containers", &["name"]),
    ("volumes", &["name"]),
    ("env", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("ownerReferences", &["uid"]),
    ("ports", &["port", "containerPort", "protocol"]),
];

/// True when every field of `desired` is in `live` with the same value. What others set beside it is theirs.
pub fn holds(desired: &Value, live: &Value) -> bool {
    field_holds("", desired, live)
}

fn field_holds(name: &str, desired: &Value, live: &Value) -> bool {
    if is_empty(desired) {
        return is_empty(live) || matches!((desired, live), (Value::Object(_), Value::Object(_)));
    }
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => desired
            .iter()
            .all(|(name, value)| field_holds(name, value, live.get(name).unwrap_or(&Value::Null))),
        (Value::Array(desired), Value::Array(live)) => match shared(name) {
            Some(keys) => desired.iter().all(|entry| {
                live.iter().find(|other| same_entry(keys, entry, other)).is_some_and(|l| holds(entry, l))
            }),
            None => desired.len() == live.len() && desired.iter().zip(live).all(|(d, l)| holds(d, l)),
        },
        (desired, live) => desired == live,
    }
}

/// The API server drops what is empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn shared(list: &str) -> Option<&'static [&'static str]> {
    SHARED_LISTS.iter().find(|(name, _)| *name == list).map(|(_, keys)| *keys)
}

fn same_entry(keys: &[&str], one: &Value, other: &Value) -> bool {
    keys.iter().all(|key| one.get(key).is_none_or(|value| other.get(key) == Some(value)))
}

/// Owners of our writes: whether the live object says that every field of `desired` is ours.
///
/// A server that keeps no record of owners (`managedFields` cleared by somebody) answers false: the next apply brings it back.
pub fn owns(desired: &Value, managed_fields: &[ManagedFieldsEntry]) -> bool {
    let ours: Vec<&Value> = managed_fields
        .iter()
        .filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.subresource.is_none())
        .filter_map(|entry| entry.fields_v1.as_ref().map(|fields| &fields.0))
        .collect();
    let Value::Object(fields) = desired else { return false };
    // Identity is the object's own, and nobody's field.
    fields.iter().filter(|(name, _)| !["apiVersion", "kind"].contains(&name.as_str())).all(|(name, value)| {
        let below = |part: &str, of: &Value| match of {
            Value::Object(all) => Value::Object(
                all.iter()
                    .filter(|(name, _)| part != "metadata" || !["name", "namespace"].contains(&name.as_str()))
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect::<Map<_, _>>(),
            ),
            other => other.clone(),
        };
        owned(name, &below(name, value), &ours)
    })
}

/// Whether one of the sets below holds the field `name` with everything in `value`.
fn owned(name: &str, value: &Value, sets: &[&Value]) -> bool {
    if is_empty(value) {
        return true;
    }
    let key = format!("f:{name}");
    let nodes: Vec<&Value> = sets.iter().filter_map(|set| set.get(&key)).collect();
    if nodes.is_empty() {
        return false;
    }
    // A leaf stands for everything below it: a plain value, or a list or map that is owned whole.
    if nodes.iter().any(|node| node.as_object().is_some_and(|fields| fields.keys().all(|key| key == "."))) {
        return true;
    }
    match value {
        Value::Object(fields) => fields.iter().all(|(name, value)| owned(name, value, &nodes)),
        Value::Array(items) => items.iter().all(|item| {
            nodes.iter().filter_map(|node| node.as_object()).flatten().any(|(key, _)| {
                key.strip_prefix("k:")
                    .and_then(|text| serde_json::from_str::<Value>(text).ok())
                    .is_some_and(|entry| part_of(&entry, item))
                    || key
                        .strip_prefix("v:")
                        .and_then(|text| serde_json::from_str::<Value>(text).ok())
                        .is_some_and(|entry| entry == *item)
            })
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

/// Whether a key of a list's entry names this entry; a key may hold defaults that we did not write.
fn part_of(key: &Value, entry: &Value) -> bool {
    key.as_object().is_some_and(|fields| {
        fields.iter().all(|(name, value)| entry.get(name).is_none_or(|given| given == value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_and_other_writers_are_no_difference() {
        let desired =
            json!({"spec": {"replicas": 1, "template": {"containers": [{"name": "a", "image": "i:1"}]}}});
        let live = json!({"spec": {"replicas": 1, "revisionHistoryLimit": 10, "template": {"containers": [
            {"name": "sidecar", "image": "s"}, {"name": "a", "image": "i:1", "imagePullPolicy": "Always"}]}}});
        assert!(holds(&desired, &live));
    }

    #[test]
    fn a_field_that_differs_is_missing_or_is_in_another_order_is_a_difference() {
        for (desired, live) in [
            (json!({"a": 1}), json!({"a": 2})),
            (json!({"a": 1}), json!({})),
            (json!({"args": ["a", "b"]}), json!({"args": ["b", "a"]})),
            (json!({"args": ["a"]}), json!({"args": ["a", "b"]})),
            (json!({"ports": [{"port": 1}]}), json!({"ports": [{"port": 2}]})),
            (json!({"immutable": true}), json!({"immutable": null})),
        ] {
            assert!(!holds(&desired, &live), "{desired} {live}");
        }
    }

    #[test]
    fn what_is_empty_is_as_good_as_absent() {
        assert!(holds(&json!({"annotations": {}, "sources": []}), &json!({})));
        assert!(holds(&json!({"emptyDir": {}}), &json!({"emptyDir": {"medium": ""}})));
    }

    fn entry(manager: &str, fields: &Value) -> ManagedFieldsEntry {
        serde_json::from_value(json!({"manager": manager, "operation": "Apply", "fieldsV1": fields})).unwrap()
    }

    #[test]
    fn a_field_that_another_took_is_no_longer_ours() {
        let desired = json!({
            "metadata": {"name": "n", "labels": {"a": "b"}, "ownerReferences": [{"uid": "u", "name": "n"}]},
            "spec": {"replicas": 1, "ports": [{"port": 1, "name": "x"}], "args": ["a"]},
        });
        let metadata = json!({"f:labels": {"f:a": {}}, "f:ownerReferences": {"k:{\"uid\":\"u\"}": {}}});
        let all = json!({"f:metadata": metadata, "f:spec": {
            "f:replicas": {}, "f:args": {}, "f:ports": {"k:{\"port\":1,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}}}}});
        assert!(owns(&desired, &[entry(FIELD_MANAGER, &all)]));
        assert!(!owns(&desired, &[entry("kubectl", &all)]));
        let mut without = all.clone();
        without["f:spec"].as_object_mut().unwrap().remove("f:replicas");
        assert!(!owns(&desired, &[entry(FIELD_MANAGER, &without)]));
        let mut other_port = all;
        other_port["f:spec"]["f:ports"] = json!({"k:{\"port\":2,\"protocol\":\"TCP\"}": {}});
        assert!(!owns(&desired, &[entry(FIELD_MANAGER, &other_port)]));
        assert!(!owns(&desired, &[]));
    }
}
