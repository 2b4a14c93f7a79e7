//! An API server in memory, behind kube's client: enough rules to refuse what a real one refuses.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock;

use crate::names::FIELD_MANAGER;

/// One request, as `POST services/orders` or `PATCH connectors/orders/status`.
pub(super) type Call = String;

/// Everything that the server holds.
#[derive(Clone, Default)]
pub(super) struct Objects {
    /// By resource and name, e.g. `services/orders`.
    pub(super) all: BTreeMap<String, Value>,
    /// What was asked, reads included, Events excluded.
    pub(super) calls: Vec<Call>,
    /// Requests about Events.
    pub(super) events: usize,
    /// Requests that are answered with this status instead, e.g. `POST statefulsets/orders`.
    pub(super) failures: BTreeMap<Call, (u16, String)>,
    /// Every change in order: the object as it became, or what it was when it went.
    pub(super) log: Vec<Change>,
    /// Requests so far.
    pub(super) number: usize,
    /// What happens at a request, by its number.
    pub(super) faults: BTreeMap<usize, Fault>,
    /// Whether the process that asks has ended.
    pub(super) crashed: bool,
    uids: u64,
    versions: u64,
}

/// One change, as a watch tells it.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Resource and name.
    pub(super) key: String,
    /// The object; absent: it is gone.
    pub(super) object: Option<Value>,
}

/// What happens at one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process ends before it is sent.
    CrashBefore,
    /// The process ends when it is carried out and not answered yet.
    CrashAfter,
    /// It is not carried out, and answered with this status.
    Answer(u16),
}

/// The server.
#[derive(Clone, Default)]
pub(super) struct FakeApi(pub(super) Arc<Mutex<Objects>>);

impl FakeApi {
    /// A client of it.
    pub(super) fn client(&self) -> Client {
        let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        let objects = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Some((request, send)) = handle.next_request().await {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let path = head.uri.path().to_owned();
                let apply =
                    head.headers.get("content-type").is_some_and(|t| t == "application/apply-patch+yaml");
                let answer = objects.lock().unwrap().serve(&head.method, &path, apply, body);
                let Some((code, answer)) = answer else {
                    // Nobody is there to hear.
                    continue;
                };
                let response = Response::builder()
                    .status(StatusCode::from_u16(code).unwrap())
                    .body(Body::from(serde_json::to_vec(&answer).unwrap()))
                    .unwrap();
                send.send_response(response);
            }
        });
        Client::new(service, "shop")
    }

    /// The object under `resource/name`.
    pub(super) fn get(&self, key: &str) -> Option<Value> {
        self.0.lock().unwrap().all.get(key).cloned()
    }

    /// Changes what is there.
    pub(super) fn edit(&self, key: &str, edit: impl FnOnce(&mut Value)) {
        edit(self.0.lock().unwrap().all.get_mut(key).unwrap());
    }

    /// Every object of a resource.
    pub(super) fn list(&self, resource: &str) -> Vec<Value> {
        let prefix = format!("{resource}/");
        let objects = self.0.lock().unwrap();
        objects
            .all
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix))
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// What was asked since the last look.
    pub(super) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }
}

fn refusal(code: u16, message: &str) -> (u16, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        422 => "Invalid",
        _ => "",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": reason,
    });
    (code, status)
}

fn fields(value: &Value) -> Value {
    match value {
        Value::Object(all) => all.iter().map(|(name, value)| (format!("f:{name}"), fields(value))).collect(),
        // Lists are leaves here: owned whole.
        _ => json!({}),
    }
}

/// JSON merge patch (RFC 7386), without removal.
fn merge(live: &mut Value, patch: &Value) {
    match patch {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| merge(&mut live[name], value)),
        value => *live = value.clone(),
    }
}

impl Objects {
    /// Carries out and answers a request, unless something happens at it. No answer: the process that asked has ended.
    fn serve(&mut self, method: &Method, path: &str, apply: bool, body: Value) -> Option<(u16, Value)> {
        if self.crashed {
            return None;
        }
        self.number += 1;
        match self.faults.get(&self.number).copied() {
            Some(Fault::CrashBefore) => {
                self.crashed = true;
                None
            }
            Some(Fault::CrashAfter) => {
                self.recorded(|objects| objects.answer(method, path, apply, body));
                self.crashed = true;
                None
            }
            Some(Fault::Answer(code)) => Some(refusal(code, "injected")),
            None => Some(self.recorded(|objects| objects.answer(method, path, apply, body))),
        }
    }

    /// Does something, gives what changed a new version and puts it into the log.
    pub(super) fn recorded<T>(&mut self, act: impl FnOnce(&mut Objects) -> T) -> T {
        let before = self.all.clone();
        let done = act(self);
        let mut changed = Vec::new();
        for (key, object) in &mut self.all {
            if before.get(key) != Some(object) {
                self.versions += 1;
                object["metadata"]["resourceVersion"] = (1_000 + self.versions).to_string().into();
                changed.push(Change { key: key.clone(), object: Some(object.clone()) });
            }
        }
        for key in before.keys().filter(|key| !self.all.contains_key(*key)) {
            changed.push(Change { key: key.clone(), object: None });
        }
        self.log.extend(changed);
        done
    }

    /// A uid that no other object has.
    pub(super) fn uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{}", self.uids)
    }

    fn answer(&mut self, method: &Method, path: &str, apply: bool, body: Value) -> (u16, Value) {
        let parts: Vec<&str> = path.split('/').skip_while(|part| *part != "namespaces").skip(2).collect();
        let [resource, rest @ ..] = &parts[..] else { panic!("{path}") };
        let named = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let name = rest.first().map_or(named, |name| (*name).to_owned());
        let key = format!("{resource}/{name}");
        if *resource == "events" {
            self.events += 1;
            return if method == Method::GET {
                (200, json!({"items": [], "metadata": {}}))
            } else {
                (201, body)
            };
        }
        let sub = rest.get(1).map(|sub| format!("/{sub}")).unwrap_or_default();
        let call = format!("{method} {key}{sub}");
        self.calls.push(call.clone());
        if let Some((code, message)) = self.failures.get(&call) {
            return refusal(*code, message);
        }
        let live = self.all.get(&key).cloned();
        match (method.as_str(), live) {
            ("POST", Some(_)) => refusal(409, "already exists"),
            ("POST", None) => {
                self.uids += 1;
                let mut object = body;
                let owned = fields(&object);
                object["metadata"]["uid"] = format!("uid-of-{name}-{}", self.uids).into();
                object["metadata"]["resourceVersion"] = "1".into();
                object["metadata"]["generation"] = 1.into();
                object["metadata"]["creationTimestamp"] =
                    format!("2026-11-25T00:{:02}:{:02}Z", self.uids / 60, self.uids % 60).into();
                object["metadata"]["managedFields"] =
                    json!([{"manager": FIELD_MANAGER, "operation": "Update", "fieldsV1": owned}]);
                self.all.insert(key, object.clone());
                (201, object)
            }
            ("GET", None) if name.is_empty() => {
                let prefix = format!("{resource}/");
                let items = self.all.iter().filter(|(key, _)| key.starts_with(&prefix));
                let items: Vec<&Value> = items.map(|(_, object)| object).collect();
                (200, json!({"items": items, "metadata": {}}))
            }
            (_, None) => refusal(404, "not found"),
            ("GET", Some(live)) => (200, live),
            ("DELETE", Some(mut live)) => {
                let asked = &body["preconditions"];
                let is_seen = |field: &str| asked[field].is_null() || asked[field] == live["metadata"][field];
                if asked["uid"].is_null() || !is_seen("uid") || !is_seen("resourceVersion") {
                    return refusal(409, "precondition");
                }
                if body["propagationPolicy"] == "Foreground" {
                    live["metadata"]["deletionTimestamp"] = "2026-11-25T01:00:00Z".into();
                    self.all.insert(key, live.clone());
                } else {
                    self.all.remove(&key);
                }
                (200, live)
            }
            ("PUT", Some(live)) => {
                let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
                if version(&body) != version(&live) {
                    return refusal(409, "the object has been modified");
                }
                let mut next = body;
                let number: u64 = version(&live).as_str().unwrap().parse().unwrap();
                next["metadata"]["resourceVersion"] = (number + 1).to_string().into();
                self.all.insert(key, next.clone());
                (200, next)
            }
            ("PATCH", Some(live)) => self.patch(&key, live, apply, sub == "/status", body),
            (other, Some(_)) => panic!("{other} {path}"),
        }
    }

    fn patch(&mut self, key: &str, mut live: Value, apply: bool, status: bool, body: Value) -> (u16, Value) {
        if let Value::Array(operations) = &body {
            for operation in operations {
                let path = operation["path"].as_str().unwrap();
                let Some(at) = live.pointer_mut(path) else { return refusal(422, "no such path") };
                match operation["op"].as_str().unwrap() {
                    "test" if *at != operation["value"] => return refusal(422, "test"),
                    "test" => {}
                    "remove" => {
                        let (list, index) = path.rsplit_once('/').unwrap();
                        live.pointer_mut(list)
                            .and_then(Value::as_array_mut)
                            .unwrap()
                            .remove(index.parse().unwrap());
                    }
                    _ => *at = operation["value"].clone(),
                }
            }
            self.all.insert(key.into(), live.clone());
            return (200, live);
        }
        if body["metadata"]["uid"] != live["metadata"]["uid"] {
            return refusal(409, "uid");
        }
        if status {
            live["status"] = body["status"].clone();
        } else if apply {
            let mut next = body;
            for kept in ["uid", "creationTimestamp", "resourceVersion", "deletionTimestamp"] {
                if !live["metadata"][kept].is_null() {
                    next["metadata"][kept] = live["metadata"][kept].clone();
                }
            }
            let generation = live["metadata"]["generation"].as_i64().unwrap_or(0);
            let changed = next["spec"] != live["spec"];
            next["metadata"]["generation"] = (generation + i64::from(changed)).into();
            if live["immutable"] == true && live["data"] != next["data"] {
                return refusal(422, "immutable");
            }
            next["metadata"]["managedFields"] =
                json!([{"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields(&next)}]);
            if !live["status"].is_null() {
                next["status"] = live["status"].clone();
            }
            live = next;
        } else {
            merge(&mut live, &body);
        }
        self.all.insert(key.into(), live.clone());
        (200, live)
    }
}
