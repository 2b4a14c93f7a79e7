//! Who may reach the pods of a Connector: rendered where the operator is told to.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::objects::{Owner, label_selector, metadata};
use super::pod_template::served_port;
use crate::names;
use crate::validate::{System, ValidatedConnector};

/// Lets in what a Connector is made for, and nothing else; what it dials itself is not restricted, for only its author
/// knows where the systems are.
///
/// The admin port (operator, metrics) and a sink's port (Wallaroo's workers) are open to pods of the cluster, a source's
/// port to every sender.
pub(super) fn network_policy(connector: &ValidatedConnector, owner: &Owner) -> NetworkPolicy {
    let pods_of_the_cluster = || NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    let open = |port: &str, protocol: &str, from: Option<Vec<NetworkPolicyPeer>>| NetworkPolicyIngressRule {
        from,
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::String(port.into())),
            protocol: Some(protocol.into()),
            ..NetworkPolicyPort::default()
        }]),
    };
    let mut ingress = vec![open(names::ADMIN_PORT, "TCP", Some(vec![pods_of_the_cluster()]))];
    if let Some((_, protocol)) = served_port(connector) {
        let from = match &connector.system {
            System::Source(_) => None,
            System::Sink(_) => Some(vec![pods_of_the_cluster()]),
        };
        ingress.push(open(names::RECORDS_PORT, protocol, from));
    }
    NetworkPolicy {
        metadata: metadata(owner, owner.name.clone(), &[]),
        spec: Some(NetworkPolicySpec {
            ingress: Some(ingress),
            pod_selector: Some(label_selector(&owner.name)),
            policy_types: Some(vec!["Ingress".into()]),
            ..NetworkPolicySpec::default()
        }),
    }
}
