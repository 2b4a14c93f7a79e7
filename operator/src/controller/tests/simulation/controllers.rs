//! What runs beside the operator in a simulated cluster: the controller of `StatefulSet`s, the garbage collector, the kubelet.
//!
//! They follow pkg/controller/statefulset and pkg/controller/garbagecollector of Kubernetes 1.36 as far as our objects need it. One
//! step is one look of each at what there is; pods take a step to start and one to end.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::fake_api::Objects;
use crate::build::rendering::hash;

/// One look of each controller.
pub(super) fn step(objects: &mut Objects) {
    kubelet(objects);
    collect_garbage(objects);
    let sets: Vec<String> = keys(objects, "statefulsets/");
    for key in sets {
        stateful_set(objects, &key);
    }
}

fn keys(objects: &Objects, prefix: &str) -> Vec<String> {
    objects.all.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
}

fn is_ending(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

fn end(object: &mut Value) {
    if !is_ending(object) {
        object["metadata"]["deletionTimestamp"] = "2026-11-25T02:00:00Z".into();
    }
}

/// Uids of the owners of an object.
fn owners(object: &Value) -> Vec<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array();
    owners.into_iter().flatten().filter_map(|owner| owner["uid"].as_str()).collect()
}

/// Pods that are asked to end do, others become ready.
fn kubelet(objects: &mut Objects) {
    objects.all.retain(|key, pod| !(key.starts_with("pods/") && is_ending(pod)));
    for (_, pod) in objects.all.iter_mut().filter(|(key, _)| key.starts_with("pods/")) {
        pod["status"] = json!({
            "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "connector", "image": "i:1", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {}},
            }],
        });
    }
}

/// What has owners and none of them is there goes; what is deleted in the foreground goes when nothing it owns is left.
fn collect_garbage(objects: &mut Objects) {
    let uids: BTreeSet<String> = objects
        .all
        .values()
        .filter_map(|object| object["metadata"]["uid"].as_str())
        .map(str::to_owned)
        .collect();
    let orphans: Vec<String> = objects
        .all
        .iter()
        .filter(|(_, object)| {
            !owners(object).is_empty() && owners(object).iter().all(|uid| !uids.contains(*uid))
        })
        .map(|(key, _)| key.clone())
        .collect();
    for key in orphans {
        if key.starts_with("pods/") {
            end(objects.all.get_mut(&key).unwrap());
        } else {
            objects.all.remove(&key);
        }
    }
    for key in keys(objects, "statefulsets/") {
        if !is_ending(&objects.all[&key]) {
            continue;
        }
        let uid = objects.all[&key]["metadata"]["uid"].as_str().unwrap().to_owned();
        let mut left = false;
        for (_, pod) in objects.all.iter_mut().filter(|(key, _)| key.starts_with("pods/")) {
            if owners(pod).contains(&uid.as_str()) {
                end(pod);
                left = true;
            }
        }
        if !left {
            objects.all.remove(&key);
        }
    }
}

fn stateful_set(objects: &mut Objects, key: &str) {
    let set = objects.all[key].clone();
    if is_ending(&set) {
        return;
    }
    let (name, uid) = (set["metadata"]["name"].as_str().unwrap(), set["metadata"]["uid"].as_str().unwrap());
    let replicas = set["spec"]["replicas"].as_i64().unwrap();
    let template = &set["spec"]["template"];
    let revision = hash(&[("template".to_owned(), template.to_string())].into());
    let owner =
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name, "uid": uid, "controller": true});
    let goes_with_it = set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete";
    for ordinal in 0..replicas {
        let pod_key = format!("pods/{name}-{ordinal}");
        let claim_key = format!("persistentvolumeclaims/state-{name}-{ordinal}");
        let claims = set["spec"]["volumeClaimTemplates"].as_array().is_some_and(|claims| !claims.is_empty());
        if claims {
            if !objects.all.contains_key(&claim_key) {
                let mut claim = set["spec"]["volumeClaimTemplates"][0].clone();
                claim["metadata"]["name"] = format!("state-{name}-{ordinal}").into();
                claim["metadata"]["namespace"] = "shop".into();
                claim["metadata"]["labels"] = set["spec"]["selector"]["matchLabels"].clone();
                claim["metadata"]["uid"] = objects.uid().into();
                claim["status"] = json!({"phase": "Bound"});
                objects.all.insert(claim_key.clone(), claim);
            }
            let claim = objects.all.get_mut(&claim_key).unwrap();
            if owners(claim).iter().any(|other| *other != uid) {
                // A claim that goes with another StatefulSet is waited for.
                continue;
            }
            if goes_with_it != owners(claim).contains(&uid) {
                claim["metadata"]["ownerReferences"] = if goes_with_it { json!([owner]) } else { json!([]) };
            }
        }
        if !objects.all.contains_key(&pod_key) {
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"]});
            pod["metadata"]["name"] = format!("{name}-{ordinal}").into();
            pod["metadata"]["namespace"] = "shop".into();
            pod["metadata"]["uid"] = objects.uid().into();
            pod["metadata"]["ownerReferences"] = json!([owner]);
            pod["metadata"]["labels"]["controller-revision-hash"] = revision.clone().into();
            objects.all.insert(pod_key, pod);
        }
    }
    let mine = |pod: &Value| owners(pod).contains(&uid);
    let ordinal = |key: &str| key.rsplit('-').next().and_then(|text| text.parse::<i64>().ok()).unwrap();
    let is_ready = |pod: &Value| pod["status"]["conditions"][0]["status"] == "True" && !is_ending(pod);
    let is_new = |pod: &Value| pod["metadata"]["labels"]["controller-revision-hash"] == revision.as_str();
    let mut pods: Vec<String> = keys(objects, "pods/");
    pods.retain(|key| mine(&objects.all[key]));
    let surplus = |key: &String| ordinal(key) >= replicas;
    for key in pods.iter().filter(|key| surplus(key)) {
        end(objects.all.get_mut(key).unwrap());
    }
    let wanted: Vec<&String> = pods.iter().filter(|key| !surplus(key)).collect();
    if wanted.iter().all(|key| is_ready(&objects.all[*key]))
        && let Some(old) = wanted.iter().rev().find(|key| !is_new(&objects.all[**key]))
    {
        end(objects.all.get_mut(*old).unwrap());
    }
    let count = |is: &dyn Fn(&Value) -> bool| pods.iter().filter(|key| is(&objects.all[*key])).count();
    let status = json!({
        "observedGeneration": set["metadata"]["generation"], "replicas": pods.len(),
        "readyReplicas": count(&is_ready), "updatedReplicas": count(&is_new),
        "currentRevision": if count(&is_new) == pods.len() { revision.as_str() } else { "old" }, "updateRevision": revision,
    });
    objects.all.get_mut(key).unwrap()["status"] = status;
}
