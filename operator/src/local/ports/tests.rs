//! A taken port is a sentence.

use std::path::Path;

use super::*;
use crate::local::plan::{Settings, plan};
use crate::manifests;

fn errors(manifest: &str) -> Vec<String> {
    let text = format!(
        "{{apiVersion: connectors.wallaroolabs.com/v1alpha1, kind: Connector, metadata: {{name: it}}, spec: {manifest}}}"
    );
    let settings = Settings {
        working_directory: "/".into(),
        state_directory: "/nowhere".into(),
        log_level: "warn".into(),
        embedded: None,
    };
    let manifests = manifests::parse(Path::new("m.yaml"), &text).unwrap();
    check(&plan(&manifests, &settings, free_port).unwrap()).iter().map(ToString::to_string).collect()
}

#[test]
fn a_port_that_is_taken_names_connector_and_field() {
    let taken = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let sink =
        |port| format!("{{sink: {{stdout: {{}}}}, wallaroo: {{protocol: Connector, listen: {port}}}}}");
    let [error] = &errors(&sink(port))[..] else { panic!("not one error") };
    for word in ["it (m.yaml, document 1)", "spec.wallaroo.listen", &port.to_string()] {
        assert!(error.contains(word), "{error}");
    }
    drop(taken);
    assert_eq!(errors(&sink(port)), Vec::<String>::new());
    assert_eq!(errors(&sink(0)), Vec::<String>::new());
}

#[test]
fn a_taken_udp_port_names_its_field() {
    let taken = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = format!(
        "{{source: {{udp: {{port: {port}}}}}, wallaroo: {{protocol: FramedTCP, connect: ['localhost:7100']}}}}"
    );
    let [error] = &errors(&text)[..] else { panic!("not one error") };
    assert!(error.contains("spec.source.udp.port"), "{error}");
}
