//! Reading: unknown fields get a hint from the strict pass and are ignored by the types; no secret is shown.

#![allow(clippy::unwrap_used, reason = "what a test reads is known; a panic is a failed test")]

use connector_crds::{
    Connector, FieldError, RuntimeConfig, read_connector, read_runtime_config, unknown_fields,
    unknown_runtime_config_fields, validate,
};
use serde_json::{Value, json};

fn manifest() -> Value {
    json!({
        "apiVersion": "connectors.wallaroolabs.com/v1alpha1",
        "kind": "Connector",
        "metadata": {"name": "orders-in", "namespace": "shop"},
        "spec": {
            "source": {"kafka": {"bootstrapServers": ["kafka:9092"], "topics": ["orders"]}},
            "wallaroo": {"protocol": "Connector", "connect": ["localhost:7100"]},
        },
    })
}

fn config() -> Value {
    json!({
        "identity": {"namespace": "shop", "name": "orders-in"},
        "source": {"file": {"path": "a"}},
        "wallaroo": {"protocol": "Connector", "connect": ["localhost:7100"]},
        "paths": {"secrets": "/s", "state": "/t", "live": "/l", "base": "/b"},
        "admin": "127.0.0.1:0",
    })
}

/// The manifest with one field more.
fn with(pointer: &str, name: &str) -> Value {
    let mut manifest = manifest();
    manifest.pointer_mut(pointer).unwrap()[name] = json!({});
    manifest
}

fn said(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_manifest_without_unknown_fields_has_none() {
    assert_eq!(unknown_fields(&manifest()), []);
    assert_eq!(unknown_runtime_config_fields(&config()), []);
}

#[test]
fn a_misspelt_field_gets_the_one_that_was_meant() {
    let cases = [
        ("/spec/source/kafka", "topic", "spec.source.kafka.topic: unknown field; did you mean topics?"),
        (
            "/spec/source/kafka",
            "bootstrap_servers",
            "spec.source.kafka.bootstrap_servers: unknown field; did you mean bootstrapServers?",
        ),
        ("/spec/source", "kafak", "spec.source.kafak: unknown field; did you mean kafka?"),
        ("/spec/wallaroo", "Connect", "spec.wallaroo.Connect: unknown field; did you mean connect?"),
        ("/metadata", "lables", "metadata.lables: unknown field; did you mean labels?"),
        (
            "/spec/source/kafka",
            "bootstrap",
            "spec.source.kafka.bootstrap: unknown field; did you mean bootstrapServers?",
        ),
        ("", "specs", "specs: unknown field; did you mean spec?"),
    ];
    for (pointer, name, sentence) in cases {
        assert_eq!(said(&unknown_fields(&with(pointer, name))), [sentence]);
    }
}

#[test]
fn a_misplaced_field_gets_its_place() {
    assert_eq!(
        said(&unknown_fields(&with("/spec", "topics"))),
        ["spec.topics: unknown field here; did you mean spec.source.kafka.topics?"]
    );
    assert_eq!(
        said(&unknown_fields(&with("/spec/source/kafka", "cookie"))),
        ["spec.source.kafka.cookie: unknown field here; did you mean spec.wallaroo.cookie?"]
    );
}

#[test]
fn a_field_that_resembles_nothing_gets_the_names_that_there_are() {
    assert_eq!(
        said(&unknown_fields(&with("/spec/source", "mongodb"))),
        ["spec.source.mongodb: unknown field; there are custom, file, generator, kafka, udp"]
    );
}

#[test]
fn unknown_fields_in_lists_and_below_unknown_fields_are_found_once() {
    let mut manifest = manifest();
    manifest["status"] = json!({"conditions": [{"type": "Ready", "why": 1}]});
    manifest["spec"]["zzz"] = json!({"below": {"deeper": 1}});
    let paths: Vec<String> = unknown_fields(&manifest).into_iter().map(|error| error.path).collect();
    assert_eq!(paths, ["spec.zzz", "status.conditions[0].why"]);
}

#[test]
fn strict_reading_refuses_what_the_types_ignore() {
    let newer = with("/spec/wallaroo", "compression");
    let connector: Connector = serde_json::from_value(newer.clone()).unwrap();
    assert_eq!(validate(&connector), []);
    assert_eq!(connector, serde_json::from_value(manifest()).unwrap());
    let errors = read_connector(&newer).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].path, "spec.wallaroo.compression");
}

#[test]
fn every_type_ignores_unknown_fields() {
    let mut newer = manifest();
    for pointer in ["", "/spec", "/spec/wallaroo", "/spec/source/kafka"] {
        newer.pointer_mut(pointer).unwrap()["fromTheFuture"] = json!([1]);
    }
    newer["spec"]["delivery"] = json!({"fromTheFuture": 1, "inFlight": {"fromTheFuture": 1}});
    newer["spec"]["storage"] = json!({"fromTheFuture": 1});
    newer["status"] =
        json!({"fromTheFuture": 1, "delivery": {"guarantee": "AtLeastOnce", "scope": "None", "x": 1}});
    let connector: Connector = serde_json::from_value(newer).unwrap();
    assert_eq!(validate(&connector), []);
    let mut newer = config();
    newer["fromTheFuture"] = json!(1);
    newer["paths"]["fromTheFuture"] = json!(1);
    let _: RuntimeConfig = serde_json::from_value(newer.clone()).unwrap();
    assert_eq!(unknown_runtime_config_fields(&newer).len(), 2);
}

#[test]
fn a_null_counts_as_absent() {
    let mut with_null = manifest();
    with_null["spec"]["wallaroo"]["listen"] = Value::Null;
    with_null["spec"]["delivery"] = Value::Null;
    with_null["spec"]["sink"] = Value::Null;
    assert_eq!(read_connector(&with_null).unwrap(), read_connector(&manifest()).unwrap());
}

#[test]
fn shape_errors_come_all_together_and_none_is_said_twice() {
    let mut wrong = manifest();
    wrong["spec"]["wallaroo"] = json!({"connect": "localhost:7100", "listen": true});
    wrong["spec"]["source"]["kafka"]["sasl"] = json!({"mechanism": "plain", "username": "u"});
    let errors = read_connector(&wrong).unwrap_err();
    assert_eq!(
        said(&errors),
        [
            "spec.source.kafka.sasl.password: must be set",
            "spec.source.kafka.sasl.mechanism: must be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, is \"plain\"",
            "spec.wallaroo.protocol: must be set",
            "spec.wallaroo.connect: must be a list, is a text",
            "spec.wallaroo.listen: must be a whole number, is true",
        ]
    );
}

#[test]
fn a_document_that_is_no_object_is_refused() {
    for document in [json!(null), json!([]), json!("Connector"), json!({}), json!({"spec": 1})] {
        let errors = read_connector(&document).unwrap_err();
        assert!(!errors.is_empty(), "{document}");
        assert!(!read_runtime_config(&document).unwrap_err().is_empty(), "{document}");
    }
}

#[test]
fn a_rendering_is_read_strictly_on_request() {
    let read = read_runtime_config(&config()).unwrap();
    assert_eq!(read.drain_timeout_seconds, 30);
    let mut wrong = config();
    wrong["drainTimeout"] = json!(5);
    wrong["identity"]["name"] = json!("");
    wrong["wallaroo"]["listen"] = json!(-1);
    assert_eq!(
        said(&read_runtime_config(&wrong).unwrap_err()),
        [
            "drainTimeout: unknown field; did you mean drainTimeoutSeconds?",
            "identity.name: must have 1 to 253 characters, has 0",
            "wallaroo.listen: must be from 0 to 65535, is -1",
            "wallaroo.listen: listen is for sinks: a source dials Wallaroo at wallaroo.connect",
        ]
    );
    let mut wrong = config();
    wrong["wallaroo"]["connect"] = json!([]);
    let errors = read_runtime_config(&wrong).unwrap_err();
    assert_eq!(errors[0].path, "wallaroo.connect");
}

#[test]
fn what_is_written_reads_back_the_same() {
    let connector = read_connector(&manifest()).unwrap();
    let written = serde_json::to_value(&connector).unwrap();
    assert_eq!(unknown_fields(&written), []);
    assert_eq!(read_connector(&written).unwrap(), connector);
    let config = read_runtime_config(&config()).unwrap();
    let written = serde_json::to_value(&config).unwrap();
    assert_eq!(read_runtime_config(&written).unwrap(), config);
}

#[test]
fn defaults_are_those_of_the_schema() {
    let connector = read_connector(&manifest()).unwrap();
    let crd = serde_json::to_value(connector_crds::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut defaulted = kube::core::cel::apply_defaults(schema, &manifest());
    // Defaulting reaches into defaults on the API server, and in one more step here.
    defaulted = kube::core::cel::apply_defaults(schema, &defaulted);
    assert_eq!(defaulted["spec"]["replicas"], 1);
    assert_eq!(defaulted["spec"]["delivery"]["inFlight"]["records"], 1_000_000);
    // The status is the operator's; its default tells tools that no operator has seen the object yet.
    assert_eq!(defaulted["status"]["observedGeneration"], -1);
    assert_eq!(serde_json::from_value::<Connector>(defaulted).unwrap().spec, connector.spec);
}

#[test]
fn an_inline_secret_is_refused_and_not_repeated() {
    let mut inline = manifest();
    inline["spec"]["wallaroo"]["cookie"] = json!("Top-Secret");
    inline["spec"]["source"]["kafka"]["password"] = json!("hunter2");
    let errors = read_connector(&inline).unwrap_err();
    assert_eq!(errors.len(), 2);
    let text = format!("{errors:?} {}", said(&errors).join(" "));
    assert!(!text.contains("Top-Secret") && !text.contains("hunter2"), "{text}");
}

#[test]
fn debug_shows_the_name_of_a_secret_and_has_no_value_to_show() {
    let mut with_secret = manifest();
    with_secret["spec"]["wallaroo"]["cookie"] =
        json!({"name": "wallaroo", "key": "cookie", "value": "hunter2"});
    let connector: Connector = serde_json::from_value(with_secret).unwrap();
    let text = format!("{connector:?}");
    assert!(text.contains("wallaroo") && !text.contains("hunter2"), "{text}");
}
