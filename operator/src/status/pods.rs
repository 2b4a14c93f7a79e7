//! What a pod tells without being asked: trouble that the kubelet and the scheduler see. Pure.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::reason::Reason;
use crate::names::{ADMIN_PORT, RENDERING_ANNOTATION};

/// What is known of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Where its runtime serves its status, once it has an address.
    pub admin: Option<SocketAddr>,
    /// The rendering that it was made from.
    pub rendering: Option<String>,
    /// What its readiness says.
    pub ready: bool,
    /// Whether its container runs.
    pub running: bool,
    /// Whether it is being deleted.
    pub ending: bool,
    /// When it is to be gone, its grace period included.
    pub gone_by: Option<Timestamp>,
    /// What keeps it from running.
    pub trouble: Option<PodTrouble>,
}

/// What keeps a pod from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTrouble {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// Words of the kubelet for an image that it cannot have.
const PULL_FAILURES: [&str; 5] =
    ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"];

/// Words of the kubelet for a container that it cannot make or start.
const START_FAILURES: [&str; 4] =
    ["CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PostStartHookError"];

/// A pod that is there this long after its grace period has nobody who ends it: the kubelet needs seconds.
const OVERDUE: SignedDuration = SignedDuration::from_secs(30);

impl PodFacts {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> PodFacts {
        let status = pod.status.clone().unwrap_or_default();
        let condition = |type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_);
        PodFacts {
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            admin: admin(pod),
            rendering: pod
                .metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(RENDERING_ANNOTATION).cloned()),
            ready: condition("Ready").is_some_and(|ready| ready.status == "True")
                && pod.metadata.deletion_timestamp.is_none(),
            running: containers(pod)
                .any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some())),
            ending: pod.metadata.deletion_timestamp.is_some(),
            gone_by: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
            trouble: trouble(pod),
        }
    }

    /// What keeps it from running, or from ending.
    pub fn trouble_at(&self, now: Timestamp) -> Option<PodTrouble> {
        let overdue = self.gone_by.is_some_and(|gone_by| now.duration_since(gone_by) > OVERDUE);
        self.trouble.clone().or_else(|| {
            overdue.then(|| PodTrouble {
                reason: Reason::NodeLost,
                message: format!("Pod {}: it is to end, and its node does not say that it has", self.name),
            })
        })
    }
}

fn admin(pod: &Pod) -> Option<SocketAddr> {
    let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    let ports = pod.spec.as_ref()?.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let port = ports.into_iter().find(|port| port.name.as_deref() == Some(ADMIN_PORT))?.container_port;
    Some((ip, u16::try_from(port).ok()?).into())
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten())
}

/// Whether the node does not answer. The node's own controller says so in two ways: it sets `Ready` to `False` and leaves what
/// the kubelet said last as it was (a kubelet never says that all containers are ready and the pod is not, but for
/// readiness gates, which our pods have none of); later it evicts the pod.
fn node_lost(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let is = |type_: &str, value: &str| {
        let found = |c: &&PodCondition| c.type_ == type_ && c.status == value;
        status.conditions.iter().flatten().find(found)
    };
    let gates = pod.spec.as_ref().is_some_and(|spec| spec.readiness_gates.iter().flatten().next().is_some());
    let left_as_it_was = !gates && is("Ready", "False").is_some() && is("ContainersReady", "True").is_some();
    let evicted = is("DisruptionTarget", "True")
        .is_some_and(|condition| condition.reason.as_deref() == Some("DeletionByTaintManager"));
    status.reason.as_deref() == Some("NodeLost") || left_as_it_was || evicted
}

/// How a container ended.
fn last_words(ended: &ContainerStateTerminated) -> String {
    if ended.reason.as_deref() == Some("OOMKilled") {
        return "the runtime was ended because it used more memory than its limit".into();
    }
    let said = ended.message.as_deref().unwrap_or_default().lines().last().unwrap_or_default();
    format!("the runtime ended with code {}: {said}", ended.exit_code)
}

fn trouble(pod: &Pod) -> Option<PodTrouble> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let found = |reason, message: String| Some(PodTrouble { reason, message });
    if node_lost(pod) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("its node");
        return found(Reason::NodeLost, format!("Pod {name}: node {node} does not answer"));
    }
    for container in containers(pod) {
        let Some(state) = &container.state else { continue };
        let word = state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
        if PULL_FAILURES.contains(&word) {
            // The kubelet's own words take turns; this sentence stays.
            let image = container.image.as_str();
            return found(Reason::ImagePullFailed, format!("Pod {name}: image {image} cannot be pulled"));
        }
        if START_FAILURES.contains(&word) {
            let said = state.waiting.as_ref().and_then(|waiting| waiting.message.as_deref());
            let said = said.unwrap_or("no reason given");
            return found(
                Reason::ContainerNotStarted,
                format!("Pod {name}: the container cannot be started ({word}): {said}"),
            );
        }
        let before = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let crashed = match &state.terminated {
            Some(ended) => Some(ended).filter(|ended| ended.exit_code != 0),
            None => before.filter(|_| word == "CrashLoopBackOff"),
        };
        if let Some(ended) = crashed {
            return found(Reason::CrashLooping, format!("Pod {name}: {}", last_words(ended)));
        }
    }
    let scheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled");
    match scheduled {
        Some(condition) if condition.status == "False" => found(
            Reason::Unschedulable,
            format!(
                "Pod {name}: no node takes it: {}",
                condition.message.as_deref().unwrap_or("no reason given")
            ),
        ),
        Some(_) | None => None,
    }
}
