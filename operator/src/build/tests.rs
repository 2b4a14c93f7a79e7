//! What a Connector becomes: snapshots through the real validation, and the rules of each object.

use std::collections::BTreeSet;

use connector_crds::{Connector, Guarantee, UpgradePolicy};
use serde_json::{Value, json};

use super::objects::{Desired, Owner, build};
use super::rendering::Rendering;
use super::upgrade::{choose, superfluous};
use crate::settings::{Allow, OperatorSettings};
use crate::validate::{ValidatedConnector, validate};

pub(crate) fn settings() -> OperatorSettings {
    OperatorSettings {
        runtime_image: "registry.example/connector-runtime:1".into(),
        allow: Allow::default(),
        network_policies: false,
    }
}

pub(crate) fn owner() -> Owner {
    Owner { name: "orders".into(), namespace: "shop".into(), uid: "uid-1".into() }
}

/// A Connector through the real validation.
#[expect(clippy::needless_pass_by_value, reason = "each test makes its own")]
pub(crate) fn connector(spec: Value) -> ValidatedConnector {
    let connector: Connector = serde_json::from_value(json!({
        "apiVersion": "connectors.wallaroolabs.com/v1alpha1",
        "kind": "Connector",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-1"},
        "spec": spec,
    }))
    .unwrap();
    validate(&connector).unwrap_or_else(|errors| panic!("{errors:?}"))
}

pub(crate) fn kafka_source() -> Value {
    json!({
        "source": {"kafka": {
            "bootstrapServers": ["kafka:9093"],
            "topics": ["orders"],
            "tls": {"ca": {"name": "kafka", "key": "ca.crt"}},
            "sasl": {"mechanism": "PLAIN", "username": "u", "password": {"name": "kafka", "key": "password"}},
        }},
        "wallaroo": {"protocol": "Connector", "connect": ["count-0.count:7100"]},
    })
}

pub(crate) fn redis_sink() -> Value {
    json!({
        "sink": {"redis": {"address": "redis:6379", "hash": {"key": "totals"}}},
        "wallaroo": {"protocol": "Connector", "listen": 7200},
    })
}

fn udp_source() -> Value {
    json!({
        "source": {"udp": {"port": 5140}},
        "wallaroo": {"protocol": "FramedTCP", "connect": ["count-0.count:7100"]},
        "replicas": 2,
    })
}

pub(crate) fn desired(spec: Value) -> Desired {
    let connector = connector(spec);
    build(&connector, &owner(), &Rendering::of(&connector, &settings()), &settings())
}

/// Ours and the user's container share the socket alone, and the user's gets its own Secrets alone.
#[test]
fn a_custom_connector_runs_beside_the_runtime_in_the_same_restricted_context() {
    let mut spec = kafka_source();
    spec["source"] = json!({"custom": {
        "image": "registry.example/ticks:1",
        "args": ["--every", "2"],
        "config": {"a": "b"},
        "secrets": [{"name": "ticks", "key": "token"}],
        "positions": "Opaque",
    }});
    spec["wallaroo"]["cookie"] = json!({"name": "wallaroo", "key": "cookie"});
    let set = serde_json::to_value(desired(spec).stateful_set).unwrap();
    let pod = &set["spec"]["template"]["spec"];
    let [custom] = pod["initContainers"].as_array().unwrap().as_slice() else { panic!("{pod}") };
    let runtime = &pod["containers"][0];
    assert_eq!(custom["restartPolicy"], "Always");
    assert_eq!(custom["image"], "registry.example/ticks:1");
    assert_eq!(custom["args"], json!(["--every", "2"]));
    assert_eq!(custom["securityContext"], runtime["securityContext"]);
    let mounts = |container: &Value| -> BTreeSet<String> {
        let mounts = container["volumeMounts"].as_array().unwrap();
        mounts.iter().map(|mount| mount["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(mounts(custom), BTreeSet::from(["socket".to_owned(), "custom-secrets".to_owned()]));
    assert!(mounts(runtime).is_superset(&BTreeSet::from(["socket".to_owned(), "secrets".to_owned()])));
    let volume = |name: &str| {
        let volumes = pod["volumes"].as_array().unwrap();
        volumes.iter().find(|volume| volume["name"] == name).unwrap().to_string()
    };
    assert!(volume("custom-secrets").contains("token") && !volume("custom-secrets").contains("cookie"));
    assert!(volume("secrets").contains("cookie"));
    assert!(set["spec"]["volumeClaimTemplates"].is_array(), "cursors outlive the pod");
}

fn snapshot(name: &str, desired: &Desired) {
    insta::assert_yaml_snapshot!(
        name,
        (
            &desired.service_account,
            &desired.rendering,
            &desired.live,
            &desired.service,
            &desired.disruption_budget,
            &desired.stateful_set
        )
    );
}

#[test]
fn each_kind_of_connector_becomes_what_it_did() {
    snapshot("kafka-source", &desired(kafka_source()));
    snapshot("redis-sink", &desired(redis_sink()));
    snapshot("udp-source", &desired(udp_source()));
}

fn with(mut spec: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let mut at = &mut spec;
    for part in parent.split('/').skip(1) {
        at = &mut at[part];
    }
    at[name] = value;
    spec
}

fn rendered(spec: Value) -> Rendering {
    Rendering::of(&connector(spec), &settings())
}

#[test]
fn what_takes_effect_without_a_restart_changes_no_rendering() {
    let before = rendered(kafka_source());
    for (pointer, value) in [
        ("/replicas", json!(3)),
        ("/state", json!("Paused")),
        ("/runtime", json!({"logLevel": "debug"})),
        ("/runtime", json!({"upgradePolicy": "Immediate"})),
        ("/storage", json!({"whenDeleted": "Delete", "whenScaled": "Delete"})),
        ("/pod", json!({"serviceAccount": {"annotations": {"a": "b"}}})),
    ] {
        assert_eq!(rendered(with(kafka_source(), pointer, value)), before, "{pointer}");
    }
}

#[test]
fn what_needs_a_restart_changes_the_rendering() {
    let before = rendered(kafka_source());
    for (pointer, value) in [
        ("/restartNonce", json!("2")),
        ("/positionReset", json!("2")),
        ("/runtime", json!({"drainTimeoutSeconds": 60})),
        ("/runtime", json!({"image": "other:1"})),
        ("/pod", json!({"labels": {"a": "b"}})),
        ("/pod", json!({"resources": {"limits": {"cpu": "3"}}})),
        ("/source/kafka/topics", json!(["other"])),
        ("/wallaroo/connect", json!(["other:1"])),
        ("/delivery", json!({"commitDelayMs": 5})),
        ("/storage", json!({"retainSeconds": 5})),
    ] {
        let after = rendered(with(kafka_source(), pointer, value));
        assert_ne!(after.name, before.name, "{pointer}");
        assert_ne!(after.spec, before.spec, "{pointer}");
        assert!(!after.replaces(&before), "{pointer}");
    }
}

#[test]
fn another_system_protocol_or_shape_of_volume_ends_the_old_pods_first() {
    let before = rendered(redis_sink());
    for (pointer, value) in [
        ("/sink", json!({"stdout": {}})),
        ("/wallaroo/protocol", json!("Stream06")),
        ("/storage", json!({"size": "4Gi"})),
        ("/storage", json!({"ephemeral": true})),
    ] {
        assert!(rendered(with(redis_sink(), pointer, value)).replaces(&before), "{pointer}");
    }
}

#[test]
fn a_stored_rendering_reads_back_as_it_was() {
    let connector = connector(kafka_source());
    let rendering = Rendering::of(&connector, &settings());
    let stored = build(&connector, &owner(), &rendering, &settings()).rendering;
    assert_eq!(Rendering::read(&stored).unwrap(), rendering);
    let mut damaged = stored.clone();
    damaged.data.as_mut().unwrap().remove("spec.json");
    assert!(Rendering::read(&damaged).unwrap_err().to_string().contains("spec.json"));
}

#[test]
fn an_upgrade_of_the_operator_waits_for_a_change_of_the_spec() {
    let stored = rendered(kafka_source());
    let newer =
        OperatorSettings { runtime_image: "registry.example/connector-runtime:2".into(), ..settings() };
    let fresh = Rendering::of(&connector(kafka_source()), &newer);

    let kept = choose(Some(&stored), fresh.clone(), UpgradePolicy::OnSpecChange);
    assert_eq!(kept.rendering, stored);
    assert_eq!(
        kept.pending_change.unwrap(),
        "pod.spec.containers[0].image: registry.example/connector-runtime:1 → registry.example/connector-runtime:2"
    );

    let immediate = choose(Some(&stored), fresh.clone(), UpgradePolicy::Immediate);
    assert_eq!((immediate.rendering, immediate.pending_change), (fresh, None));

    let nonce = with(kafka_source(), "/restartNonce", json!("again"));
    let taken_up = Rendering::of(&connector(nonce), &newer);
    let chosen = choose(Some(&stored), taken_up.clone(), UpgradePolicy::OnSpecChange);
    assert_eq!((chosen.rendering, chosen.pending_change), (taken_up, None));
}

#[test]
fn a_field_that_a_newer_definition_adds_with_its_default_is_no_difference() {
    let stored = rendered(kafka_source());
    let config_map = build(&connector(kafka_source()), &owner(), &stored, &settings()).rendering;
    let mut older = config_map;
    let text = older.data.as_mut().unwrap().get_mut("spec.json").unwrap();
    let mut spec: Value = serde_json::from_str(text).unwrap();
    assert!(spec["delivery"].as_object_mut().unwrap().remove("commitDelayMs").is_some());
    assert!(spec.as_object_mut().unwrap().remove("storage").is_some());
    *text = spec.to_string();
    let older = Rendering::read(&older).unwrap();
    let chosen = choose(Some(&older), stored, UpgradePolicy::OnSpecChange);
    assert_eq!(chosen.rendering, older);
}

#[test]
fn the_newest_three_renderings_and_those_in_use_are_kept() {
    let stored: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
    let needed = BTreeSet::from(["a".to_owned()]);
    assert_eq!(superfluous(&stored, &needed), ["b"]);
    assert!(superfluous(&stored[..3], &BTreeSet::new()).is_empty());
}

#[test]
fn names_and_labels_have_at_most_63_characters() {
    let mut connector = connector(redis_sink());
    connector.identity.name = "n".repeat(52);
    let owner = Owner { name: connector.identity.name.clone(), ..owner() };
    let desired = build(&connector, &owner, &Rendering::of(&connector, &settings()), &settings());
    for metadata in [&desired.rendering.metadata, &desired.live.metadata, &desired.stateful_set.metadata] {
        assert!(metadata.name.as_ref().unwrap().len() <= 63);
        assert!(metadata.labels.as_ref().unwrap().values().all(|value| value.len() <= 63));
    }
}

#[test]
fn a_stopped_connector_has_no_pod_and_keeps_everything_else() {
    let stopped = desired(with(redis_sink(), "/state", json!("Stopped")));
    assert_eq!(stopped.stateful_set.spec.unwrap().replicas, Some(0));
    assert!(stopped.service.is_some() && stopped.disruption_budget.is_none());
}

#[test]
fn claims_stay_while_stopped_and_go_when_scaled_down_if_asked() {
    let spec = with(redis_sink(), "/storage", json!({"whenScaled": "Delete"}));
    let when_scaled = |spec: Value| {
        let set = desired(spec).stateful_set.spec.unwrap();
        set.persistent_volume_claim_retention_policy.unwrap().when_scaled.unwrap()
    };
    assert_eq!(when_scaled(spec.clone()), "Delete");
    assert_eq!(when_scaled(with(spec, "/state", json!("Stopped"))), "Retain");
}

#[test]
fn a_promise_that_rests_on_state_is_weaker_without_a_claim() {
    let promise = |spec: Value| connector(with(spec, "/storage", json!({"ephemeral": true}))).promise();
    assert_eq!(connector(redis_sink()).promise().guarantee, Guarantee::AtLeastOnce);
    assert_eq!(promise(redis_sink()).guarantee, Guarantee::BestEffort);
    // Kafka's records and Wallaroo's positions are elsewhere.
    assert_eq!(promise(kafka_source()), connector(kafka_source()).promise());
}

#[test]
fn a_network_policy_lets_in_what_a_connector_is_made_for() {
    let settings = OperatorSettings { network_policies: true, ..settings() };
    let rules = |spec: Value| {
        let connector = connector(spec);
        let desired = build(&connector, &owner(), &Rendering::of(&connector, &settings), &settings);
        let spec = serde_json::to_value(desired.network_policy.unwrap().spec).unwrap();
        assert_eq!(spec["policyTypes"], json!(["Ingress"]));
        assert_eq!(spec["podSelector"]["matchLabels"], json!(crate::names::selector("orders")));
        spec["ingress"].clone()
    };
    let open = |port: &str, protocol: &str| json!({"ports": [{"port": port, "protocol": protocol}]});
    let in_cluster = |mut rule: Value| {
        rule["from"] = json!([{"namespaceSelector": {}}]);
        rule
    };
    let admin = in_cluster(open("admin", "TCP"));
    assert_eq!(rules(kafka_source()), json!([admin]));
    assert_eq!(rules(redis_sink()), json!([admin, in_cluster(open("records", "TCP"))]));
    assert_eq!(rules(udp_source()), json!([admin, open("records", "UDP")]));
    assert_eq!(desired(redis_sink()).network_policy, None);
}

#[test]
fn affinity_and_spread_reach_the_pod_with_the_connectors_own_labels() {
    let host = json!({"topologyKey": "kubernetes.io/hostname"});
    let given = json!({
        "affinity": {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["slow"]}]}]}},
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 7, "podAffinityTerm":
                {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "kafka"}}}}]},
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [host]},
        },
        "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "zone"}],
    });
    let set = desired(with(kafka_source(), "/pod", given.clone())).stateful_set;
    let pod = serde_json::to_value(set.spec.unwrap().template.spec).unwrap();
    let own = json!({"matchLabels": crate::names::selector("orders")});
    let mut expected = given;
    expected["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"] =
        own.clone();
    expected["topologySpreadConstraints"][0]["whenUnsatisfiable"] = "DoNotSchedule".into();
    expected["topologySpreadConstraints"][0]["labelSelector"] = own;
    assert_eq!(pod["affinity"], expected["affinity"]);
    assert_eq!(pod["topologySpreadConstraints"], expected["topologySpreadConstraints"]);
}

#[test]
fn the_admin_port_gives_way_to_a_sink() {
    let connector = connector(with(redis_sink(), "/wallaroo/listen", json!(9180)));
    assert_eq!(super::pod_template::admin_port(&connector), 9181);
}

#[test]
fn a_default_gives_way_to_a_request_above_or_a_limit_below_it() {
    let spec =
        with(kafka_source(), "/pod", json!({"resources": {"requests": {"cpu": "2500m", "memory": "0.5Gi"}}}));
    let pod = desired(spec).stateful_set.spec.unwrap().template.spec.unwrap();
    let limits = pod.containers[0].resources.as_ref().unwrap().limits.clone().unwrap();
    assert_eq!((limits["cpu"].0.as_str(), limits["memory"].0.as_str()), ("2500m", "512Mi"));
    let spec =
        with(kafka_source(), "/pod", json!({"resources": {"limits": {"cpu": "50m", "memory": "48Mi"}}}));
    let pod = desired(spec).stateful_set.spec.unwrap().template.spec.unwrap();
    let requests = pod.containers[0].resources.as_ref().unwrap().requests.clone().unwrap();
    assert_eq!((requests["cpu"].0.as_str(), requests["memory"].0.as_str()), ("50m", "48Mi"));
}

#[test]
fn memory_follows_what_may_be_in_flight() {
    let spec = with(redis_sink(), "/delivery", json!({"inFlight": {"bytes": 1_073_741_824}}));
    let pod = desired(spec).stateful_set.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.containers[0].resources.as_ref().unwrap().limits.as_ref().unwrap()["memory"].0, "2176Mi");
}
