//! Snapshots of what manifests become, through the real validation.

#![allow(clippy::unwrap_used)] // the whole file is test code, also outside `#[test]` functions

use std::path::{Path, PathBuf};

use connector_operator::local::plan::{Embedded, Plan, PlanError, Settings, plan};
use connector_operator::manifests::{self, Manifests};
use wallaroo_endpoint::config::{Application, EndpointConfig};
use wallaroo_endpoint::faults::FaultPlan;

const FIXTURES: [&str; 7] =
    ["kafka-source", "udp-source", "generator-source", "file-sink", "redis-sink", "udp-sink", "stdout-sink"];

fn fixture(name: &str) -> Manifests {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let text = std::fs::read_to_string(directory.join(name).with_extension("yaml")).unwrap();
    let file = PathBuf::from("manifests").join(name).with_extension("yaml");
    let manifests = manifests::parse(&file, &text).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
    assert!(manifests::missing_secrets(&manifests).is_empty(), "{name}");
    manifests
}

fn all() -> Manifests {
    let mut all = Manifests::default();
    for name in FIXTURES {
        let manifests = fixture(name);
        all.connectors.extend(manifests.connectors);
        all.secrets.extend(manifests.secrets);
    }
    all
}

fn planned(manifests: &Manifests, embedded: Option<Embedded>) -> Result<Plan, Vec<PlanError>> {
    let settings = Settings {
        working_directory: "/home/user".into(),
        state_directory: "/home/user/.wallaroo-connectors".into(),
        log_level: "warn".into(),
        embedded,
    };
    plan(manifests, &settings, || Ok(40_000))
}

fn derived() -> Embedded {
    Embedded::Derived { application: Application::WordCount }
}

#[test]
fn each_manifest_renders_as_it_did() {
    for name in FIXTURES {
        let plan = planned(&fixture(name), None).unwrap();
        let [runtime] = &plan.runtimes[..] else { panic!("{name}: {plan:?}") };
        insta::assert_yaml_snapshot!(name, (runtime.type_name, &runtime.config, &runtime.live));
    }
}

#[test]
fn the_embedded_wallaroo_is_made_from_the_manifests() {
    let plan = planned(&all(), Some(derived())).unwrap();
    let mut config = serde_json::to_value(plan.endpoint.unwrap()).unwrap();
    // Nothing is to go wrong; which faults there are is the endpoint's own business.
    let faults = config.as_object_mut().unwrap().remove("faults").unwrap();
    assert_eq!(faults, serde_json::to_value(FaultPlan::default()).unwrap());
    insta::assert_yaml_snapshot!("embedded", config);
}

#[test]
fn with_the_embedded_wallaroo_sources_dial_this_machine() {
    let plan = planned(&all(), Some(derived())).unwrap();
    let dialled: Vec<_> = plan.runtimes.iter().flat_map(|runtime| &runtime.config.wallaroo.connect).collect();
    assert_eq!(dialled, ["127.0.0.1:7100", "127.0.0.1:7101", "127.0.0.1:7102"]);
}

#[test]
fn without_it_they_dial_what_the_manifest_says() {
    let plan = planned(&all(), None).unwrap();
    assert_eq!(plan.runtimes[0].config.wallaroo.connect, ["count-0.count:7100", "count-1.count:7100"]);
    assert_eq!(plan.endpoint, None);
}

#[test]
fn no_secret_value_is_in_a_rendering_or_in_what_debug_shows() {
    let plan = planned(&all(), None).unwrap();
    for runtime in &plan.runtimes {
        let config = serde_json::to_string(&runtime.config).unwrap();
        assert!(!config.contains("canary"), "{config}");
        assert!(!format!("{runtime:?}").contains("canary"));
    }
    let values: Vec<_> =
        plan.runtimes.iter().flat_map(|runtime| &runtime.secrets).map(|s| &s.value).collect();
    assert_eq!(
        values,
        [&b"canary-ca"[..], b"canary-password", b"canary-cookie", b"canary-redis"]
            .map(<[u8]>::to_vec)
            .iter()
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_run_ends_by_itself_only_when_every_source_does() {
    let ends = |names: &[&str], embedded: Option<Embedded>| {
        let mut manifests = Manifests::default();
        for name in names {
            manifests.connectors.extend(fixture(name).connectors);
        }
        planned(&manifests, embedded).unwrap().ends()
    };
    assert!(ends(&["generator-source"], None));
    assert!(ends(&["generator-source", "file-sink"], Some(derived())));
    // Nobody here knows when a Wallaroo elsewhere has sent its last result.
    assert!(!ends(&["generator-source", "file-sink"], None));
    assert!(!ends(&["generator-source", "udp-source"], None));
    assert!(!ends(&["file-sink"], None));
}

fn refused(manifests: &Manifests, embedded: Option<Embedded>, words: &[&str]) {
    let errors = planned(manifests, embedded).unwrap_err();
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert!(
        texts.iter().any(|text| words.iter().all(|word| text.contains(word))),
        "expected {words:?} in {texts:?}"
    );
}

#[test]
fn two_sinks_on_one_port_are_refused() {
    let mut manifests = fixture("redis-sink");
    manifests.connectors.extend(fixture("udp-sink").connectors);
    manifests.connectors[1].connector.wallaroo.listen = Some(7201);
    refused(&manifests, None, &["alerts-out", "spec.wallaroo.listen", "7201", "totals-live"]);
}

#[test]
fn two_protocols_on_one_port_are_refused() {
    let mut manifests = fixture("udp-source");
    manifests.connectors.extend(fixture("generator-source").connectors);
    manifests.connectors[1].connector.wallaroo.connect = vec!["elsewhere:7101".into()];
    refused(&manifests, Some(derived()), &["load", "7101", "metrics-in", "protocol"]);
}

#[test]
fn an_embedded_wallaroo_without_a_source_is_refused() {
    refused(&fixture("file-sink"), Some(derived()), &["embedded", "source"]);
}

#[test]
fn a_given_configuration_must_have_the_ports_of_the_manifests() {
    let config = |workers: u32| {
        let text = format!(
            r#"{{"workers": {workers}, "sources": [{{"name": "in", "listen": "127.0.0.1:7101",
                "protocol": {{"Stream06": {{}}}}}}]}}"#
        );
        Some(Embedded::Given(Box::new(EndpointConfig::from_json(&text).unwrap())))
    };
    refused(&fixture("generator-source"), config(1), &["load", "spec.wallaroo.connect", "7102"]);
    // The second worker listens on the next port.
    let plan = planned(&fixture("generator-source"), config(2)).unwrap();
    let endpoint = plan.endpoint.unwrap();
    assert_eq!(endpoint.workers, 2);
    assert!(endpoint.admin.is_some() && endpoint.state_directory.is_some());
}
