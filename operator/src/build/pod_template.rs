//! The pod of a Connector: one container that passes the *restricted* Pod Security Standard.

use std::collections::{BTreeMap, BTreeSet};

use connector_crds::{Paths, Resources, SecretKeyRef, SinkSpec, SourceSpec, Toleration};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, KeyToPath, LocalObjectReference, ObjectFieldSelector, PodSecurityContext,
    PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource, ResourceRequirements, SeccompProfile,
    SecretProjection, SecurityContext, Toleration as KubeToleration, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::quantity::{canonical, exceeds};
use super::{Placement, needs_claim, scheduling, sidecar};
use crate::names;
use crate::secret_references::secret_references;
use crate::settings::OperatorSettings;
use crate::validate::{System, ValidatedConnector};

/// Where everything of ours is mounted.
const ETC: &str = "/etc/wallaroo-connector";
/// Where the state volume is mounted.
const STATE: &str = "/var/lib/wallaroo-connector";
/// Admin ports: the second where a Connector listens on the first.
const ADMIN_PORTS: [i32; 2] = [9_180, 9_181];
/// Neither root nor anybody else: the `nonroot` user of distroless images.
const USER: i64 = 65_532;
/// Seconds beyond the drain until the kubelet kills: to end sockets and processes.
const GRACE_SECONDS: i64 = 10;
/// A wedged runtime has nothing to drain.
const WEDGED_GRACE_SECONDS: i64 = 5;
/// Least default limit of memory, in MiB: a runtime at rest takes 15, librdkafka's buffers some more.
const MEMORY_LIMIT_MIB: i64 = 256;

/// Where a runtime in a pod finds its files.
pub fn placement(connector: &ValidatedConnector) -> Placement {
    Placement {
        paths: Paths {
            secrets: format!("{ETC}/secrets"),
            state: format!("{STATE}/state"),
            live: format!("{ETC}/live/live.json"),
            base: format!("{STATE}/files"),
            socket: sidecar::socket(connector),
        },
        admin: format!("0.0.0.0:{}", admin_port(connector)),
        drain_timeout_seconds: connector.runtime.drain_timeout_seconds.unsigned_abs(),
    }
}

/// The admin port: one that the Connector does not use itself.
pub fn admin_port(connector: &ValidatedConnector) -> i32 {
    let [first, second] = ADMIN_PORTS;
    if connector.wallaroo.listen == Some(first) { second } else { first }
}

/// The port that others reach the pods at: Wallaroo a sink, senders a UDP source.
pub fn served_port(connector: &ValidatedConnector) -> Option<(i32, &'static str)> {
    match &connector.system {
        System::Sink(
            SinkSpec::Custom(_)
            | SinkSpec::File(_)
            | SinkSpec::Kafka(_)
            | SinkSpec::Redis(_)
            | SinkSpec::Stdout(_)
            | SinkSpec::Udp(_),
        ) => connector.wallaroo.listen.map(|port| (port, "TCP")),
        System::Source(SourceSpec::Udp(udp)) => Some((udp.port, "UDP")),
        System::Source(
            SourceSpec::Custom(_) | SourceSpec::File(_) | SourceSpec::Generator(_) | SourceSpec::Kafka(_),
        ) => None,
    }
}

/// The complete template, but for the name of its rendering: that follows from the content (see
/// [`super::rendering::Rendering::pod_template`]).
pub fn pod_template(connector: &ValidatedConnector, settings: &OperatorSettings) -> PodTemplateSpec {
    let pod = &connector.pod;
    let name = &connector.identity.name;
    let mut labels = pod.labels.clone();
    labels.extend(names::selector(name));
    labels.insert("app.kubernetes.io/name".into(), "connector-runtime".into());
    labels.insert("app.kubernetes.io/instance".into(), name.clone());
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(pod.annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            affinity: pod.affinity.as_ref().map(|affinity| scheduling::affinity(affinity, name)),
            automount_service_account_token: Some(false),
            init_containers: sidecar::sidecar(connector).map(|sidecar| vec![sidecar]),
            containers: vec![container(connector, settings)],
            enable_service_links: Some(false),
            image_pull_secrets: some(
                pod.image_pull_secrets
                    .iter()
                    .map(|name| LocalObjectReference { name: name.clone() })
                    .collect::<Vec<_>>(),
                Vec::is_empty,
            ),
            node_selector: some(pod.node_selector.clone(), BTreeMap::is_empty),
            priority_class_name: pod.priority_class_name.clone(),
            security_context: Some(PodSecurityContext {
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".into()),
                run_as_group: Some(USER),
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            service_account_name: Some(pod.service_account_name.clone().unwrap_or_else(|| name.clone())),
            termination_grace_period_seconds: Some(
                i64::from(connector.runtime.drain_timeout_seconds) + GRACE_SECONDS,
            ),
            tolerations: some(pod.tolerations.iter().map(toleration).collect(), Vec::is_empty),
            topology_spread_constraints: some(
                pod.topology_spread_constraints
                    .iter()
                    .map(|spread| scheduling::spread(spread, name))
                    .collect::<Vec<_>>(),
                Vec::is_empty,
            ),
            volumes: Some(volumes(connector)),
            ..PodSpec::default()
        }),
    }
}

fn container(connector: &ValidatedConnector, settings: &OperatorSettings) -> Container {
    let mut ports = vec![ContainerPort {
        container_port: admin_port(connector),
        name: Some(names::ADMIN_PORT.into()),
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    }];
    if let Some((port, protocol)) = served_port(connector) {
        ports.push(ContainerPort {
            container_port: port,
            name: Some(names::RECORDS_PORT.into()),
            protocol: Some(protocol.into()),
            ..ContainerPort::default()
        });
    }
    Container {
        name: names::CONTAINER.into(),
        image: Some(connector.runtime.image.clone().unwrap_or_else(|| settings.runtime_image.clone())),
        args: Some(
            ["run", "--config", &format!("{ETC}/config/config.json"), "--instance", "$(POD_NAME)"]
                .into_iter()
                .chain(["--log-format", "json"])
                .map(str::to_owned)
                .collect(),
        ),
        env: Some(vec![EnvVar {
            name: "POD_NAME".into(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".into()),
                    field_path: "metadata.name".into(),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        }]),
        ports: Some(ports),
        resources: Some(resources(connector)),
        liveness_probe: Some(Probe {
            period_seconds: Some(10),
            failure_threshold: Some(2),
            termination_grace_period_seconds: Some(WEDGED_GRACE_SECONDS),
            ..probe("/livez")
        }),
        readiness_probe: Some(Probe {
            period_seconds: Some(5),
            failure_threshold: Some(1),
            ..probe("/readyz")
        }),
        security_context: Some(restricted()),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(mounts(connector)),
        ..Container::default()
    }
}

/// What the *restricted* Pod Security Standard asks of a container, and a read-only root besides.
pub(super) fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Capabilities::default() }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String(names::ADMIN_PORT.into()),
            ..HTTPGetAction::default()
        }),
        timeout_seconds: Some(2),
        ..Probe::default()
    }
}

fn mounts(connector: &ValidatedConnector) -> Vec<VolumeMount> {
    let mut mounts = vec![
        mount("config", &format!("{ETC}/config"), None, true),
        mount("live", &format!("{ETC}/live"), None, true),
    ];
    if !secret_references(connector).is_empty() {
        mounts.push(mount("secrets", &format!("{ETC}/secrets"), None, true));
    }
    mounts.extend(sidecar::mount(connector));
    mounts.push(mount(names::STATE_VOLUME, &format!("{STATE}/state"), Some("state"), false));
    mounts.push(mount(names::STATE_VOLUME, &format!("{STATE}/files"), Some("files"), false));
    mounts
}

pub(super) fn mount(name: &str, path: &str, sub_path: Option<&str>, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        sub_path: sub_path.map(str::to_owned),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn resources(connector: &ValidatedConnector) -> ResourceRequirements {
    // What is in flight is held once in batches and once in buffers of client and socket.
    let in_flight_mib = connector.delivery.in_flight.bytes / (1024 * 1024);
    let memory = format!("{}Mi", MEMORY_LIMIT_MIB.max(MEMORY_LIMIT_MIB / 2 + 2 * in_flight_mib));
    amounts(&connector.pod.resources, &memory)
}

/// Requests and limits of a container; what was not given gets these defaults.
pub(super) fn amounts(given: &Resources, memory_limit: &str) -> ResourceRequirements {
    let (cpu, memory) = (
        bounds(given.requests.cpu.as_deref(), "100m", given.limits.cpu.as_deref(), "2"),
        bounds(given.requests.memory.as_deref(), "64Mi", given.limits.memory.as_deref(), memory_limit),
    );
    let amounts = |cpu: String, memory: String| {
        BTreeMap::from([("cpu".into(), Quantity(cpu)), ("memory".into(), Quantity(memory))])
    };
    ResourceRequirements {
        requests: Some(amounts(cpu.0, memory.0)),
        limits: Some(amounts(cpu.1, memory.1)),
        ..ResourceRequirements::default()
    }
}

/// Request and limit of one resource. The API server refuses a limit below the request, so a default gives way to what was
/// given.
fn bounds(
    request: Option<&str>,
    default_request: &str,
    limit: Option<&str>,
    default_limit: &str,
) -> (String, String) {
    let (request, limit) = match (request, limit) {
        (Some(request), Some(limit)) => (request, limit),
        (Some(request), None) if exceeds(request, default_limit) => (request, request),
        (Some(request), None) => (request, default_limit),
        (None, Some(limit)) if exceeds(default_request, limit) => (limit, limit),
        (None, Some(limit)) => (default_request, limit),
        (None, None) => (default_request, default_limit),
    };
    (canonical(request), canonical(limit))
}

fn toleration(given: &Toleration) -> KubeToleration {
    KubeToleration {
        key: given.key.clone(),
        operator: Some(given.operator.as_str().into()),
        value: given.value.clone(),
        effect: given.effect.map(|effect| effect.as_str().into()),
        toleration_seconds: given.toleration_seconds,
    }
}

fn volumes(connector: &ValidatedConnector) -> Vec<Volume> {
    let config = |name: &str, config_map: String, file: &str| Volume {
        name: name.into(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map,
            items: Some(vec![KeyToPath { key: file.into(), path: file.into(), mode: None }]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let mut volumes = vec![
        config("config", String::new(), "config.json"),
        config("live", names::live(&connector.identity.name), "live.json"),
    ];
    let references = secret_references(connector).into_iter().map(|reference| reference.secret);
    volumes.extend(secrets("secrets", references));
    volumes.extend(sidecar::volumes(connector));
    if !needs_claim(connector) {
        volumes.push(Volume {
            name: names::STATE_VOLUME.into(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity(canonical(&connector.volume.size))),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes
}

/// One source a Secret, optional: what is missing is named by the runtime, and read when it appears.
pub(super) fn secrets(volume: &str, references: impl Iterator<Item = SecretKeyRef>) -> Option<Volume> {
    let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for reference in references {
        keys.entry(reference.name).or_default().insert(reference.key);
    }
    let sources: Vec<VolumeProjection> = keys
        .into_iter()
        .map(|(name, keys)| VolumeProjection {
            secret: Some(SecretProjection {
                items: Some(
                    keys.into_iter()
                        .map(|key| KeyToPath { path: format!("{name}/{key}"), key, mode: None })
                        .collect(),
                ),
                name,
                optional: Some(true),
            }),
            ..VolumeProjection::default()
        })
        .collect();
    (!sources.is_empty()).then(|| Volume {
        name: volume.into(),
        projected: Some(ProjectedVolumeSource { sources: Some(sources), ..ProjectedVolumeSource::default() }),
        ..Volume::default()
    })
}

/// The value, or nothing where it is empty: the API server drops empty lists.
fn some<T>(value: T, is_empty: impl Fn(&T) -> bool) -> Option<T> {
    (!is_empty(&value)).then_some(value)
}
