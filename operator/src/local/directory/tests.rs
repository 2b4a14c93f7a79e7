//! Files of a run: private, locked, cleared.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::local::plan::{Settings, plan};
use crate::manifests;

const MANIFESTS: &str = "
{apiVersion: connectors.wallaroolabs.com/v1alpha1, kind: Connector, metadata: {name: in},
 spec: {source: {file: {path: in.txt}},
        wallaroo: {protocol: Connector, connect: ['localhost:7100'], cookie: {name: wallaroo, key: cookie}}}}
---
{apiVersion: v1, kind: Secret, metadata: {name: wallaroo}, stringData: {cookie: canary}}
";

fn planned(root: &Path) -> Plan {
    let settings = Settings {
        working_directory: root.to_owned(),
        state_directory: root.to_owned(),
        log_level: "warn".into(),
        embedded: None,
    };
    plan(&manifests::parse(Path::new("m.yaml"), MANIFESTS).unwrap(), &settings, || Ok(1)).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn secrets_are_files_that_only_their_owner_reads_and_are_gone_after_the_run() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("made/on/demand");
    let directory = Directory::take(&root, false).unwrap();
    let plan = planned(&root);
    directory.write(&plan).unwrap();
    let paths = &plan.runtimes[0].config.paths;
    let secret = Path::new(&paths.secrets).join("wallaroo/cookie");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "canary");
    assert_eq!(mode(&secret), 0o600);
    assert_eq!(mode(Path::new(&paths.secrets)), 0o700);
    assert_eq!(mode(&root), 0o700);
    assert!(config_file(&plan.runtimes[0]).exists() && Path::new(&paths.live).exists());
    drop(directory);
    assert!(!secret.exists());
    assert!(Path::new(&paths.state).exists());
}

#[test]
fn a_directory_serves_one_run_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let first = Directory::take(root.path(), false).unwrap();
    assert!(matches!(Directory::take(root.path(), true), Err(DirectoryError::InUse { .. })));
    drop(first);
    Directory::take(root.path(), false).unwrap();
}

#[test]
fn state_stays_unless_the_run_is_to_be_fresh() {
    let root = tempfile::tempdir().unwrap();
    let plan = planned(root.path());
    let position = Path::new(&plan.runtimes[0].config.paths.state).join("position");
    let begin = |fresh: bool| {
        let directory = Directory::take(root.path(), fresh).unwrap();
        directory.write(&plan).unwrap();
    };
    begin(false);
    fs::write(&position, "7").unwrap();
    begin(false);
    assert_eq!(fs::read_to_string(&position).unwrap(), "7");
    begin(true);
    assert!(!position.exists());
}
