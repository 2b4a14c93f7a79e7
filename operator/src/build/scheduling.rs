//! Affinity and spreading: from the resource's selection to the API's types.

use connector_crds::{
    Affinity, NodeAffinity, NodeOperator, NodeTerm, PodAffinity, PodTerm, Spread, Unsatisfiable,
};
use k8s_openapi::api::core::v1::{
    Affinity as KubeAffinity, NodeAffinity as KubeNodeAffinity, NodeSelector, NodeSelectorRequirement,
    NodeSelectorTerm, PodAffinity as KubePodAffinity, PodAffinityTerm, PodAntiAffinity,
    PreferredSchedulingTerm, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::objects::label_selector;

/// The pods' affinity; terms without labels speak of the pods of `connector`.
pub(super) fn affinity(given: &Affinity, connector: &str) -> KubeAffinity {
    KubeAffinity {
        node_affinity: given.node_affinity.as_ref().map(node_affinity),
        pod_affinity: given.pod_affinity.as_ref().map(|given| {
            let (required, preferred) = pod_terms(given, connector);
            KubePodAffinity {
                required_during_scheduling_ignored_during_execution: required,
                preferred_during_scheduling_ignored_during_execution: preferred,
            }
        }),
        pod_anti_affinity: given.pod_anti_affinity.as_ref().map(|given| {
            let (required, preferred) = pod_terms(given, connector);
            PodAntiAffinity {
                required_during_scheduling_ignored_during_execution: required,
                preferred_during_scheduling_ignored_during_execution: preferred,
            }
        }),
    }
}

/// One constraint on the spread of the pods of `connector`.
pub(super) fn spread(given: &Spread, connector: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        label_selector: Some(label_selector(connector)),
        max_skew: given.max_skew,
        topology_key: given.topology_key.clone(),
        when_unsatisfiable: match given.when_unsatisfiable {
            Unsatisfiable::DoNotSchedule => "DoNotSchedule",
            Unsatisfiable::ScheduleAnyway => "ScheduleAnyway",
        }
        .into(),
        ..TopologySpreadConstraint::default()
    }
}

fn node_affinity(given: &NodeAffinity) -> KubeNodeAffinity {
    let NodeAffinity {
        required_during_scheduling_ignored_during_execution: required,
        preferred_during_scheduling_ignored_during_execution: preferred,
    } = given;
    KubeNodeAffinity {
        required_during_scheduling_ignored_during_execution: required.as_ref().map(|selector| NodeSelector {
            node_selector_terms: selector.node_selector_terms.iter().map(node_term).collect(),
        }),
        preferred_during_scheduling_ignored_during_execution: list(preferred, |wish| {
            PreferredSchedulingTerm { preference: node_term(&wish.preference), weight: wish.weight }
        }),
    }
}

fn node_term(given: &NodeTerm) -> NodeSelectorTerm {
    NodeSelectorTerm {
        match_expressions: list(&given.match_expressions, |expression| NodeSelectorRequirement {
            key: expression.key.clone(),
            operator: match expression.operator {
                NodeOperator::In => "In",
                NodeOperator::NotIn => "NotIn",
                NodeOperator::Exists => "Exists",
                NodeOperator::DoesNotExist => "DoesNotExist",
            }
            .into(),
            values: list(&expression.values, String::clone),
        }),
        ..NodeSelectorTerm::default()
    }
}

fn pod_terms(
    given: &PodAffinity,
    connector: &str,
) -> (Option<Vec<PodAffinityTerm>>, Option<Vec<WeightedPodAffinityTerm>>) {
    let PodAffinity {
        required_during_scheduling_ignored_during_execution: required,
        preferred_during_scheduling_ignored_during_execution: preferred,
    } = given;
    let weighted = list(preferred, |wish| WeightedPodAffinityTerm {
        pod_affinity_term: pod_term(&wish.pod_affinity_term, connector),
        weight: wish.weight,
    });
    (list(required, |term| pod_term(term, connector)), weighted)
}

fn pod_term(given: &PodTerm, connector: &str) -> PodAffinityTerm {
    let selector = given.label_selector.as_ref().map(|labels| LabelSelector {
        match_labels: Some(labels.match_labels.clone()),
        ..LabelSelector::default()
    });
    PodAffinityTerm {
        label_selector: Some(selector.unwrap_or_else(|| label_selector(connector))),
        topology_key: given.topology_key.clone(),
        ..PodAffinityTerm::default()
    }
}

/// The entries, or nothing where there are none: the API server drops empty lists.
fn list<T, U>(given: &[T], each: impl FnMut(&T) -> U) -> Option<Vec<U>> {
    (!given.is_empty()).then(|| given.iter().map(each).collect())
}
