//! Bad manifests, each with the sentence that a user reads.

use super::*;

const SOURCE: &str = "
apiVersion: connectors.wallaroolabs.com/v1alpha1
kind: Connector
metadata: {name: orders-in}
spec:
  source: {file: {path: orders.txt}}
  wallaroo: {protocol: FramedTCP, connect: ['localhost:7100']}
";

fn errors(text: &str) -> Vec<String> {
    match parse(Path::new("m.yaml"), text) {
        Ok(manifests) => missing_secrets(&manifests).iter().map(ToString::to_string).collect(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// The one error of a text, which must name all the given words.
fn refused(text: &str, words: &[&str]) {
    let errors = errors(text);
    assert!(
        errors.iter().any(|error| words.iter().all(|word| error.contains(word))),
        "expected {words:?} in {errors:#?}"
    );
}

#[test]
fn a_good_manifest_is_taken() {
    assert_eq!(errors(SOURCE), Vec::<String>::new());
}

#[test]
fn an_unknown_field_is_named() {
    refused(&SOURCE.replace("path:", "pfad:"), &["Connector default/orders-in", "spec.source.file.pfad"]);
    refused(&format!("{SOURCE}  sorce: {{}}\n"), &["spec.sorce"]);
    refused(&SOURCE.replace("metadata: {", "metadata: {nmae: x, "), &["metadata.nmae"]);
}

#[test]
fn both_and_neither_of_source_and_sink_are_refused() {
    let both = SOURCE.replace("  wallaroo", "  sink: {stdout: {}}\n  wallaroo");
    refused(&both, &["orders-in", "source", "sink"]);
    refused(&SOURCE.replace("  source: {file: {path: orders.txt}}\n", ""), &["orders-in", "source", "sink"]);
}

#[test]
fn a_missing_field_and_a_wrong_type_name_their_place() {
    refused(&SOURCE.replace("protocol: FramedTCP, ", ""), &["spec.wallaroo", "protocol"]);
    refused(&SOURCE.replace("path: orders.txt", "path: [1]"), &["spec.source.file.path"]);
    refused(&SOURCE.replace("FramedTCP", "Framed"), &["spec.wallaroo.protocol", "Framed"]);
}

#[test]
fn an_unknown_kind_is_refused_by_name() {
    refused("{apiVersion: v1, kind: ConfigMap, metadata: {name: x}}", &["ConfigMap", "m.yaml, document 1"]);
    refused(&SOURCE.replace("v1alpha1", "v9"), &["v9"]);
}

#[test]
fn text_that_is_not_yaml_names_file_and_line() {
    refused("a: [1,\nb: }", &["m.yaml", "not YAML", "line"]);
}

#[test]
fn a_name_that_is_no_name_is_refused() {
    for name in ["''", "../../etc", "Orders", "-a", "a..b"] {
        refused(&SOURCE.replace("orders-in", name), &["metadata.name"]);
    }
    refused(&SOURCE.replace("{name:", "{namespace: a/b, name:"), &["metadata.namespace"]);
}

#[test]
fn two_objects_of_one_name_are_refused() {
    refused(&format!("{SOURCE}---{SOURCE}"), &["orders-in", "document 2", "document 1"]);
}

#[test]
fn a_secret_that_is_not_in_the_files_is_named_with_the_field() {
    let text = SOURCE.replace("FramedTCP", "Connector, cookie: {name: wallaroo, key: cookie}");
    refused(&text, &["spec.wallaroo.cookie", "no Secret \"wallaroo\""]);
    let secret = "---\n{apiVersion: v1, kind: Secret, metadata: {name: wallaroo}, stringData: {other: x}}";
    refused(&format!("{text}{secret}"), &["spec.wallaroo.cookie", "no key \"cookie\""]);
    let elsewhere = secret.replace("{name:", "{namespace: other, name:").replace("other: x", "cookie: x");
    refused(&format!("{text}{elsewhere}"), &["spec.wallaroo.cookie", "namespace \"default\""]);
    assert_eq!(errors(&format!("{text}{}", secret.replace("other", "cookie"))), Vec::<String>::new());
}

#[test]
fn secrets_are_read_like_the_api_server_reads_them_and_never_shown() {
    let text = format!(
        "{SOURCE}---\n{{apiVersion: v1, kind: Secret, metadata: {{name: s}}, type: Opaque, \
         data: {{a: Y2FuYXJ5, b: b2xk}}, stringData: {{b: canary}}}}"
    );
    let manifests = parse(Path::new("m.yaml"), &text).unwrap();
    let value = |key: &str| {
        manifests.secret("default", &SecretKeyRef { name: "s".into(), key: key.into() }).map(<[u8]>::to_vec)
    };
    assert_eq!(value("a").as_deref(), Some(&b"canary"[..]));
    assert_eq!(value("b").as_deref(), Some(&b"canary"[..]));
    let shown = format!("{manifests:?}");
    assert!(!shown.contains("canary") && !shown.contains("99, 97"), "{shown}");
}

#[test]
fn a_bad_secret_names_the_key_and_never_the_value() {
    let secret = |data: &str| format!("{{apiVersion: v1, kind: Secret, metadata: {{name: s}}, {data}}}");
    refused(&secret("data: {password: 'canary!'}"), &["data.password", "base64"]);
    refused(&secret("stringData: {password: 12}"), &["stringData.password"]);
    refused(&secret("stringData: {'../x': a}"), &["../x"]);
    refused(&secret("dta: {}"), &["dta", "unknown field"]);
    assert!(!errors(&secret("data: {password: 'canary!'}")).concat().contains("canary"));
}

#[test]
fn directories_are_read_in_order_and_files_without_a_connector_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("b.yml", SOURCE);
    write("a.yaml", &SOURCE.replace("orders-in", "first"));
    write("notes.txt", "not a manifest");
    let manifests = read(&[directory.path().to_owned()]).unwrap();
    let names: Vec<_> =
        manifests.connectors.iter().map(|loaded| loaded.connector.identity.name.as_str()).collect();
    assert_eq!(names, ["first", "orders-in"]);
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(read(&[empty.path().to_owned()]).unwrap_err()[..], [ManifestError::NoConnector { .. }]));
    let missing = read(&[directory.path().join("missing.yaml")]).unwrap_err();
    assert!(matches!(missing[..], [ManifestError::Unreadable { .. }]), "{missing:?}");
}
