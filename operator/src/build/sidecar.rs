//! The container of a custom connector: a native sidecar, so that it is there before the runtime and outlives its drain.

use connector_crds::systems::custom::CustomProcess;
use connector_crds::{SinkSpec, SourceSpec};
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, EnvVar, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::pod_template::{self, amounts, mount as mounted, restricted};
use crate::names;
use crate::validate::{System, ValidatedConnector};

/// Directory of the socket, in both containers.
const DIRECTORY: &str = "/run/wallaroo-connector";
/// Directory of the Secrets in the sidecar.
const SECRETS: &str = "/run/wallaroo-connector-secrets";
/// Name of the volume that both share.
const VOLUME: &str = "socket";
/// Name of the volume of its Secrets.
const SECRETS_VOLUME: &str = "custom-secrets";
/// It holds a socket, which takes no room.
const VOLUME_SIZE: &str = "1Mi";
/// Default limit of memory: nothing is known of the process.
const MEMORY_LIMIT: &str = "256Mi";

/// The process of a custom connector.
pub fn process(connector: &ValidatedConnector) -> Option<&CustomProcess> {
    match &connector.system {
        System::Source(SourceSpec::Custom(custom)) => Some(&custom.process),
        System::Sink(SinkSpec::Custom(custom)) => Some(&custom.process),
        System::Source(_) | System::Sink(_) => None,
    }
}

/// Where the runtime listens for the process; empty without one.
pub(super) fn socket(connector: &ValidatedConnector) -> String {
    process(connector).map(|_| format!("{DIRECTORY}/socket")).unwrap_or_default()
}

/// The runtime's mount of the shared directory.
pub(super) fn mount(connector: &ValidatedConnector) -> Option<VolumeMount> {
    process(connector).map(|_| mounted(VOLUME, DIRECTORY, None, false))
}

/// The shared directory, and the Secrets of the process.
pub(super) fn volumes(connector: &ValidatedConnector) -> Vec<Volume> {
    let Some(process) = process(connector) else { return Vec::new() };
    let shared = Volume {
        name: VOLUME.into(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: Some(Quantity(VOLUME_SIZE.into())),
        }),
        ..Volume::default()
    };
    let secrets = pod_template::secrets(SECRETS_VOLUME, process.secrets.iter().cloned());
    std::iter::once(shared).chain(secrets).collect()
}

/// The container. It runs in the same restricted context as the runtime, and gets its own Secrets alone.
pub(super) fn sidecar(connector: &ValidatedConnector) -> Option<Container> {
    let process = process(connector)?;
    let variable = |name: &str, value: &str| EnvVar {
        name: name.into(),
        value: Some(value.into()),
        ..EnvVar::default()
    };
    let mut mounts = vec![mounted(VOLUME, DIRECTORY, None, false)];
    if !process.secrets.is_empty() {
        mounts.push(mounted(SECRETS_VOLUME, SECRETS, None, true));
    }
    let list = |texts: &[String]| (!texts.is_empty()).then(|| texts.to_vec());
    Some(Container {
        name: names::CUSTOM_CONTAINER.into(),
        image: Some(process.image.clone()),
        command: list(&process.command),
        args: list(&process.args),
        env: Some(vec![
            variable("WALLAROO_CONNECTOR_SOCKET", &format!("{DIRECTORY}/socket")),
            variable("WALLAROO_CONNECTOR_SECRETS", SECRETS),
        ]),
        resources: Some(amounts(&process.resources, MEMORY_LIMIT)),
        restart_policy: Some("Always".into()),
        security_context: Some(restricted()),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(mounts),
        ..Container::default()
    })
}
