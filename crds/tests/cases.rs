//! One table of accepted and refused Connectors, run through CEL, `read_connector`, `validate` and a real API server: all agree.

#![allow(clippy::unwrap_used, reason = "what a test reads is known; a panic is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use connector_crds::{Connector, FieldError, RuntimeConfig, crd, read_connector, validate, validate_update};
use kube::core::cel::{CompiledSchema, ErrorKind, Validator, compile_schema};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    bases: BTreeMap<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    base: String,
    #[serde(default)]
    patch: Option<Value>,
    #[serde(default)]
    old: Option<Value>,
    #[serde(default)]
    refused: Vec<Refusal>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusal {
    by: By,
    path: String,
    message: String,
}

#[derive(Deserialize, PartialEq, Eq, Clone, Copy)]
#[serde(rename_all = "camelCase")]
enum By {
    Rule,
    Schema,
}

impl Table {
    fn read() -> Table {
        serde_saphyr::from_str(include_str!("cases.yaml")).unwrap()
    }

    /// The object of a case, and the stored one of an update.
    fn objects(&self, case: &Case) -> (Value, Option<Value>) {
        let base = self.bases.get(&case.base).unwrap_or_else(|| panic!("{}: no such base", case.name));
        let patched = |patch: Option<&Value>| {
            let mut object = base.clone();
            if let Some(patch) = patch {
                merge(&mut object, patch);
            }
            object
        };
        (patched(case.patch.as_ref()), case.old.as_ref().map(|old| patched(Some(old))))
    }
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
    let object = target.as_object_mut().unwrap();
    for (name, field) in fields {
        if field.is_null() {
            object.remove(name);
        } else {
            merge(object.entry(name.clone()).or_insert(Value::Null), field);
        }
    }
}

fn schema() -> Value {
    serde_json::to_value(crd()).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// What the CEL rules of the definition say, as the API server would.
fn by_cel(schema: &CompiledSchema, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let Err(errors) = Validator::new().validate_compiled(schema, object, old) else { return Vec::new() };
    errors
        .into_iter()
        .map(|error| {
            assert_eq!(error.kind, ErrorKind::ValidationFailure, "{error}");
            // The schema holds no metadata, so a rule about it has no path.
            let path =
                if error.field_path.is_empty() { "metadata.name".to_owned() } else { error.field_path };
            FieldError { path, message: error.message }
        })
        .collect()
}

/// What our own code says, from the manifest as it was written.
fn by_twin(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    match read_connector(object) {
        Err(errors) => errors,
        Ok(connector) => {
            assert_eq!(validate(&connector), [], "strict reading and validation differ");
            old.map_or_else(Vec::new, |old| validate_update(&connector, &read_connector(old).unwrap()))
        }
    }
}

fn sorted(errors: &[FieldError]) -> BTreeSet<(&str, &str)> {
    errors.iter().map(|error| (error.path.as_str(), error.message.as_str())).collect()
}

#[test]
fn each_case_is_judged_as_the_table_says_and_cel_agrees_with_the_twins() {
    let table = Table::read();
    let compiled = compile_schema(&schema());
    let mut wrong = Vec::new();
    for case in &table.cases {
        let (object, old) = table.objects(case);
        let twin = by_twin(&object, old.as_ref());
        let found = |refusal: &Refusal| {
            twin.iter().any(|error| error.path == refusal.path && error.message.contains(&refusal.message))
        };
        if twin.len() != case.refused.len() || !case.refused.iter().all(found) {
            wrong.push(format!("{}: found {twin:?}", case.name));
        }
        // CEL knows nothing of the schema's bounds; the API server does not run it on objects that break them.
        if case.refused.iter().all(|refusal| refusal.by == By::Rule) {
            let cel = by_cel(&compiled, &object, old.as_ref());
            if sorted(&cel) != sorted(&twin) {
                wrong.push(format!("{}: CEL found {cel:?}, the twins {twin:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn names_of_cases_are_unique() {
    let table = Table::read();
    let names: BTreeSet<&str> = table.cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), table.cases.len());
}

#[test]
fn each_rule_of_the_definition_has_a_case_that_it_refuses() {
    let table = Table::read();
    let compiled = compile_schema(&schema());
    let mut refused = BTreeSet::new();
    let by_rule = |case: &&Case| case.refused.iter().all(|refusal| refusal.by == By::Rule);
    for case in table.cases.iter().filter(by_rule) {
        let (object, old) = table.objects(case);
        for error in by_cel(&compiled, &object, old.as_ref()) {
            refused.insert((place_of(&error.path), error.message));
        }
    }
    let mut rules = BTreeSet::new();
    collect_rules(&schema(), "", &mut rules);
    assert!(rules.len() > 25, "the definition has lost its rules: {rules:?}");
    let without: Vec<_> = rules.difference(&refused).collect();
    assert!(without.is_empty(), "rules without a refused case in tests/cases.yaml: {without:#?}");
}

/// A path with every index as `[]`.
fn place_of(path: &str) -> String {
    path.chars().filter(|character| !character.is_ascii_digit()).collect()
}

fn collect_rules(schema: &Value, path: &str, rules: &mut BTreeSet<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let place = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
        let place = if place.is_empty() { "metadata.name".into() } else { place[1..].to_owned() };
        rules.insert((place, rule["message"].as_str().unwrap().to_owned()));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        collect_rules(field, &format!("{path}.{name}"), rules);
        collect_rules(&field["items"], &format!("{path}.{name}[]"), rules);
    }
}

#[test]
fn texts_are_judged_alike_by_the_patterns_and_their_twins() {
    let addresses = [
        "a:1",
        "a:65535",
        "a:65536",
        "a:65529",
        "a:66000",
        "a:59999",
        "a:99999",
        "a:0",
        "a:01",
        "a:",
        ":1",
        "a",
        "",
        "a:-1",
        "a:+1",
        "a:1 ",
        " a:1",
        "a b:1",
        "a:1\n",
        "a.b.c:80",
        "a.b.c.:80",
        "-a:1",
        "_a:1",
        ".a:1",
        "a-:1",
        "1.2.3.4:5",
        "[::1]:80",
        "::1:80",
        "[]:80",
        "[::1]",
        "[::1]80",
        "[fe80::1%eth0]:80",
        "ä:1",
        "a:१",
        "http://a:1",
        "a:b:1",
        "a:100000",
        "a:6553",
        "a:65530",
    ];
    let ips = [
        "0.0.0.0",
        "::",
        "1.2.3.4",
        "1.2.3",
        "01.2.3.4",
        "1.2.3.4.5",
        "256.1.1.1",
        "fe80::1%eth0",
        "::ffff:1.2.3.4",
        "::ffff:102:304",
        "fd00::1",
        "localhost",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.0",
        "223.1.1.1",
        "ff02::1",
        "FF02::1",
        "ff::1",
        "[::1]",
        "collector",
        "collector:1",
        "a:b",
        " ::",
    ];
    let names = ["a", "a-b", "a1", "1a", "-a", "a-", "A", "a.b", "a_b", "", "ä", "a\n"];
    let manifest = |spec: Value| json!({"metadata": {"name": "a"}, "spec": spec});
    let source = |system: Value| {
        manifest(json!({"source": system, "wallaroo": {"protocol": "FramedTCP", "connect": ["a:1"]}}))
    };
    let mut objects = Vec::new();
    for address in addresses {
        objects.push(manifest(json!({
            "source": {"file": {"path": "a"}}, "wallaroo": {"protocol": "FramedTCP", "connect": [address]},
        })));
    }
    for ip in ips {
        objects.push(source(json!({"udp": {"port": 1, "bind": ip}})));
        objects.push(source(json!({"udp": {"port": 1, "multicastGroups": [ip]}})));
        objects.push(manifest(json!({
            "sink": {"udp": {"host": ip, "port": 1}},
            "wallaroo": {"protocol": "Stream06", "listen": 1},
        })));
    }
    for name in names {
        let mut object = source(json!({"generator": {}}));
        object["metadata"]["name"] = name.into();
        objects.push(object);
    }
    let compiled = compile_schema(&schema());
    let (mut accepted, mut refused) = (0, 0);
    for object in &objects {
        let mut complete = object.clone();
        merge(
            &mut complete,
            &json!({"apiVersion": "connectors.wallaroolabs.com/v1alpha1", "kind": "Connector"}),
        );
        let connector: Connector = serde_json::from_value(complete.clone()).unwrap();
        let cel = by_cel(&compiled, &complete, None);
        // An empty text breaks its length, which CEL does not look at.
        let twin: Vec<_> = validate(&connector)
            .into_iter()
            .filter(|error| !error.message.starts_with("must have"))
            .collect();
        assert_eq!(sorted(&cel), sorted(&twin), "{object}");
        if twin.is_empty() { accepted += 1 } else { refused += 1 }
    }
    assert!(accepted > 20 && refused > 20, "{accepted} accepted, {refused} refused: the texts test nothing");
}

#[test]
fn a_rendering_is_judged_like_the_spec_that_it_came_from() {
    let table = Table::read();
    let mut refused = 0;
    for case in table.cases.iter().filter(|case| case.old.is_none()) {
        let (object, _) = table.objects(case);
        let Ok(connector) = serde_json::from_value::<Connector>(object) else { continue };
        let spec = &connector.spec;
        let config: RuntimeConfig = serde_json::from_value(json!({
            "identity": {"namespace": "default", "name": "a"},
            "source": spec.source, "sink": spec.sink, "wallaroo": spec.wallaroo,
            "delivery": spec.delivery, "storage": spec.storage,
            "paths": {"secrets": "/s", "state": "/t", "live": "/l", "base": "/b"},
            "admin": "127.0.0.1:0",
        }))
        .unwrap();
        // Replicas, name, state, pods and the claim of the volume are the operator's business.
        let operators = ["metadata.name", "spec.replicas", "spec.pod.", "spec.runtime.", "spec.storage.size"];
        let of_spec: Vec<_> = validate(&connector)
            .into_iter()
            .filter(|error| !operators.iter().any(|path| error.path.starts_with(path)))
            .map(|error| FieldError {
                path: error.path.trim_start_matches("spec").trim_start_matches('.').to_owned(),
                ..error
            })
            .collect();
        let of_config = connector_crds::validate_runtime_config(&config);
        assert_eq!(sorted(&of_config), sorted(&of_spec), "{}", case.name);
        refused += usize::from(!of_config.is_empty());
    }
    assert!(refused > 20, "only {refused} renderings were refused");
}

#[test]
fn the_examples_are_valid() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut found = 0;
    for folder in std::fs::read_dir(directory).unwrap() {
        let folder = folder.unwrap().path();
        for file in std::fs::read_dir(&folder).into_iter().flatten() {
            let file = file.unwrap().path();
            if file.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(&std::fs::read_to_string(&file).unwrap()).unwrap();
            for document in documents.iter().filter(|document| document["kind"] == "Connector") {
                if let Err(errors) = read_connector(document) {
                    panic!("{}: {errors:?}", file.display());
                }
                found += 1;
            }
        }
    }
    assert!(found > 0, "no example was found");
}

/// `kubectl` with a manifest on its standard input; what it said on its standard error when it failed.
fn kubectl(arguments: &[&str], manifest: &Value) -> Result<(), String> {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is there: run this by tests/cluster/api");
    child.stdin.take().unwrap().write_all(manifest.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
#[ignore = "needs a Kubernetes API server: tests/cluster/api"]
fn a_real_api_server_judges_each_case_in_the_same_words() {
    assert!(std::env::var_os("KUBECONFIG").is_some(), "run this by tests/cluster/api or ./tasks api");
    let definition = serde_json::to_value(crd()).unwrap();
    kubectl(&["apply", "--server-side", "-f", "-"], &definition).unwrap();
    kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "-f", "-"], &definition).unwrap();
    let table = Table::read();
    let namespaces: BTreeSet<String> = table
        .cases
        .iter()
        .filter_map(|case| Some(table.objects(case).0["metadata"]["namespace"].as_str()?.to_owned()))
        .collect();
    for name in namespaces {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        kubectl(&["apply", "-f", "-"], &namespace).unwrap();
    }
    let mut wrong = Vec::new();
    for case in &table.cases {
        let (object, old) = table.objects(case);
        let judged = match &old {
            None => kubectl(&["create", "--dry-run=server", "-f", "-"], &object),
            Some(old) => {
                kubectl(&["create", "-f", "-"], old).unwrap_or_else(|error| panic!("{}: {error}", case.name));
                let judged = kubectl(&["replace", "--dry-run=server", "-f", "-"], &object);
                kubectl(&["delete", "-f", "-"], old).unwrap();
                judged
            }
        };
        match judged {
            Ok(()) if case.refused.is_empty() => {}
            Ok(()) => wrong.push(format!("{}: accepted", case.name)),
            Err(said) if case.refused.is_empty() => wrong.push(format!("{}: {said}", case.name)),
            Err(said) => {
                // What the schema itself forbids is said in the API server's own words, and then rules do not run.
                let rules = case.refused.iter().all(|refusal| refusal.by == By::Rule);
                let missing = case.refused.iter().find(|refusal| rules && !said.contains(&refusal.message));
                if let Some(refusal) = missing {
                    wrong.push(format!("{}: no {:?} in {said}", case.name, refusal.message));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), table.cases.len(), wrong.join("\n"));
    println!("{} cases judged alike by the API server", table.cases.len());
}
