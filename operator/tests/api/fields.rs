//! Every field of the resource that carries a value, with a Connector that has it and another legal value for it.

use std::collections::BTreeMap;

use connector_crds::{Connector, Effect, crd, effects, read_connector, validate_update};
use connector_operator::build::needs_claim;
use connector_operator::validate::{ValidatedConnector, validate};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Changes of one field that are tried: the API server of Kubernetes may refuse what the definition leaves to it.
const ATTEMPTS: usize = 12;

/// One change of one field.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Path of the field, e.g. `spec.source.kafka.topics`.
    pub(crate) field: String,
    /// What the field reference says of it.
    pub(crate) effect: Effect,
    /// The spec before.
    pub(crate) before: Value,
    /// The spec after: differs in this field only.
    pub(crate) after: Value,
    /// Whether the way back is legal too.
    pub(crate) returns: bool,
}

#[derive(Deserialize)]
struct Table {
    bases: BTreeMap<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    base: String,
    #[serde(default)]
    patch: Option<Value>,
    #[serde(default)]
    old: Option<Value>,
    #[serde(default)]
    refused: Vec<Value>,
}

/// Texts of many shapes: the rules of each field choose.
const TEXTS: [&str; 22] = [
    "other",
    "a",
    "b1",
    "again-2",
    "x.txt",
    "/x",
    "other:9093",
    "10.0.0.1",
    "239.1.1.2",
    "127.0.0.2",
    "::",
    "1Gi",
    "3Gi",
    "20Gi",
    "750m",
    "3",
    "96Mi",
    "example.com/x",
    "2026-11-26",
    "registry.example/other:2",
    "NoSchedule",
    "%3C",
];

/// Specs with what no accepted case of the table has.
fn others() -> [Value; 4] {
    let tls = json!({
        "ca": {"name": "tls", "key": "ca.crt"},
        "certificate": {"name": "tls", "key": "tls.crt"}, "key": {"name": "tls", "key": "tls.key"},
    });
    let term =
        json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "kafka"}}});
    let listens = json!({"protocol": "Connector", "listen": 7200});
    [
        json!({"sink": {"kafka": {"bootstrapServers": ["kafka:9093"], "topic": "totals", "tls": tls}}, "wallaroo": listens}),
        json!({"wallaroo": listens, "sink": {"redis": {
            "address": "redis:6379", "hash": {"key": "totals"}, "tls": tls,
            "auth": {"username": "u", "password": {"name": "redis", "key": "password"}},
        }}}),
        json!({"source": {"generator": {}}, "wallaroo": {"protocol": "FramedTCP", "connect": ["a:1"]}, "pod": {
            "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
            "resources": {"requests": {"cpu": "100m"}},
        }}),
        json!({"sink": {"stdout": {}}, "wallaroo": {"protocol": "Stream06", "listen": 7200}, "pod": {"affinity": {
            "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]},
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [term],
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]},
        }}}),
    ]
}

/// The specs of the accepted cases, without what only an update would accept.
fn specs() -> Vec<Value> {
    let table: Table = serde_saphyr::from_str(include_str!("../../../crds/tests/cases.yaml")).unwrap();
    let accepted = table.cases.iter().filter(|case| case.refused.is_empty() && case.old.is_none());
    accepted
        .map(|case| {
            let mut object = table.bases[&case.base].clone();
            if let Some(patch) = &case.patch {
                merge(&mut object, patch);
            }
            object["spec"].clone()
        })
        .chain(others())
        .collect()
}

/// JSON merge patch (RFC 7386).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, field) in fields {
        if field.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name], field);
        }
    }
}

/// Changes of every field, by path, the best first; and the fields for which none was found.
pub(crate) fn changes() -> (Vec<Vec<Change>>, Vec<String>) {
    let specs = specs();
    let mut schema = serde_json::to_value(crd()).unwrap();
    let schema = schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].take();
    let mut leaves = BTreeMap::new();
    collect(&schema, "spec", &mut leaves);
    let (mut found, mut without) = (Vec::new(), Vec::new());
    for (path, effect) in effects() {
        let Some(node) = leaves.get(&path) else { continue };
        let changes = changes_of(&path, effect, node, &specs);
        if changes.is_empty() { without.push(path) } else { found.push(changes) }
    }
    (found, without)
}

/// Fields that carry a value themselves: those without fields below, and the choices of exactly one.
fn collect(schema: &Value, path: &str, leaves: &mut BTreeMap<String, Value>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let below = if field["items"]["properties"].is_object() { &field["items"] } else { field };
        let is_choice = ["spec.source", "spec.sink"].contains(&path.as_str());
        let marker = field["type"] == "object" && field["additionalProperties"].is_null();
        if is_choice || (!below["properties"].is_object() && !marker) {
            leaves.insert(path.clone(), field.clone());
        }
        let below_path = if field["items"]["properties"].is_object() { format!("{path}[]") } else { path };
        collect(below, &below_path, leaves);
    }
}

fn changes_of(path: &str, effect: Effect, node: &Value, specs: &[Value]) -> Vec<Change> {
    let pointer = path.trim_start_matches("spec").replace("[]", "/0").replace('.', "/");
    let elsewhere: Vec<Option<Value>> = specs.iter().map(|spec| spec.pointer(&pointer).cloned()).collect();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    // What a claim needs is no matter for a Connector without one: see the field reference.
    let of_claim = ["spec.storage.size", "spec.storage.class", "spec.storage.ephemeral"].contains(&path);
    let (mut both_ways, mut one_way) = (Vec::new(), Vec::new());
    // Without pods a change does nothing to pods.
    let has_pods = |spec: &Value| spec["state"] != "Stopped" && spec["replicas"] != 0;
    for before in specs.iter().filter(|spec| has_pods(spec)) {
        let Some(valid_before) = valid(before).filter(|valid| !of_claim || needs_claim(valid)) else {
            continue;
        };
        // An optional object above is made where that is legal.
        let has_parent = parent.is_empty() || before.pointer(parent).is_some_and(Value::is_object);
        if !has_parent
            && !parent.rsplit_once('/').is_some_and(|(above, _)| {
                !parent.contains("/0")
                    && (above.is_empty() || before.pointer(above).is_some_and(Value::is_object))
            })
        {
            continue;
        }
        let now = before.pointer(&pointer).cloned();
        let seen = elsewhere.iter().flatten().cloned();
        for value in seen.chain(candidates(node, now.as_ref())).map(Some).chain([None]) {
            if value == now {
                continue;
            }
            let mut after = before.clone();
            let Some(fields) = object_at(&mut after, parent) else { continue };
            match value {
                Some(value) => drop(fields.insert(name.to_owned(), value)),
                None => drop(fields.remove(name)),
            }
            let Some(valid_after) = valid(&after) else { continue };
            let stops = path != "spec.state" && !has_pods(&after);
            if stops || canonical(before) == canonical(&after) || !is_update(before, &after) {
                continue;
            }
            if of_claim && path != "spec.storage.ephemeral" && !needs_claim(&valid_after) {
                continue;
            }
            if path == "spec.source" || path == "spec.sink" {
                // Another system, not another setting of the same.
                if valid_before.system.type_name() == valid_after.system.type_name() {
                    continue;
                }
            }
            let change = Change {
                field: path.to_owned(),
                effect,
                returns: is_update(&after, before),
                before: before.clone(),
                after,
            };
            if change.returns {
                both_ways.push(change);
            } else {
                one_way.push(change);
            }
            if both_ways.len() >= ATTEMPTS {
                return both_ways;
            }
        }
    }
    both_ways.extend(one_way);
    both_ways.truncate(ATTEMPTS);
    both_ways
}

fn object_at<'a>(spec: &'a mut Value, pointer: &str) -> Option<&'a mut Map<String, Value>> {
    let mut at = spec;
    for part in pointer.split('/').skip(1) {
        at = match at {
            Value::Array(items) => items.get_mut(part.parse::<usize>().ok()?)?,
            Value::Object(fields) => fields.entry(part).or_insert_with(|| json!({})),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return None,
        };
    }
    at.as_object_mut()
}

/// Values of a type that differ from the one that is there; what the rules refuse is left out later.
fn candidates(node: &Value, now: Option<&Value>) -> Vec<Value> {
    let now = now.or(node.get("default"));
    if let Some(words) = node["enum"].as_array() {
        return words.clone();
    }
    match node["type"].as_str() {
        Some("boolean") => vec![true.into(), false.into()],
        Some("integer") => {
            let bound = |name: &str| node[name].as_f64().map(|bound| bound as i64);
            let now = now.and_then(Value::as_i64).unwrap_or(10);
            [now + 1, now * 2, now - 1, now / 2, 65_536, 7_000]
                .into_iter()
                .chain(bound("minimum"))
                .chain(bound("maximum"))
                .map(Value::from)
                .collect()
        }
        Some("string") => {
            let changed = now.and_then(Value::as_str).map(|now| [format!("{now}x"), format!("{now}1")]);
            changed.into_iter().flatten().chain(TEXTS.map(str::to_owned)).map(Value::from).collect()
        }
        Some("array") => {
            let items = now.and_then(Value::as_array).cloned().unwrap_or_default();
            let longer = candidates(&node["items"], items.first()).into_iter().map(|item| {
                let mut items = items.clone();
                items.push(item);
                Value::from(items)
            });
            let fewer = items.split_last().map(|(_, rest)| Value::from(rest.to_vec()));
            longer.chain(fewer).collect()
        }
        Some("object") if node["additionalProperties"].is_object() => TEXTS
            .iter()
            .map(|key| {
                let mut map = now.cloned().unwrap_or_else(|| json!({}));
                map[*key] = "x".into();
                map
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn object(spec: &Value) -> Value {
    json!({
        "apiVersion": "connectors.wallaroolabs.com/v1alpha1", "kind": "Connector",
        "metadata": {"name": "campaign", "namespace": "campaign"}, "spec": spec,
    })
}

fn valid(spec: &Value) -> Option<ValidatedConnector> {
    let valid = validate(&read_connector(&object(spec)).ok()?).ok()?;
    let has_port = valid.wallaroo.listen != Some(0) && spec.pointer("/source/udp/port") != Some(&json!(0));
    has_port.then_some(valid)
}

/// The spec with its defaults.
fn canonical(spec: &Value) -> Value {
    let connector: Connector = serde_json::from_value(object(spec)).unwrap();
    serde_json::to_value(connector.spec).unwrap()
}

fn is_update(before: &Value, after: &Value) -> bool {
    let read = |spec: &Value| read_connector(&object(spec)).unwrap();
    validate_update(&read(after), &read(before)).is_empty()
}

#[test]
fn every_field_has_a_change() {
    let (changes, without) = changes();
    for change in changes.iter().flatten() {
        println!("{} {:?} returns {}", change.field, change.effect, change.returns);
    }
    assert_eq!(without, Vec::<String>::new(), "{} changes", changes.len());
}
