//! Makes the objects of one Connector as they are planned, and removes what is not wanted any more.

use connector_crds::Connector;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::claims::{makes_claims, release, retains, too_small};
use super::context::Context;
use super::plan::{Observed, Plan, is_owned, untold_pods};
use crate::apply::io::{self, Applied, ApplyError, Deletion, Kind};
use crate::apply::step::is_left_over;
use crate::build::Owner;
use crate::names::{LIVE_ANNOTATION, selector_text};
use crate::status::Progress;

/// The objects of one Connector.
pub struct Objects<'a> {
    /// What may be used.
    pub context: &'a Context,
    /// The Connector.
    pub owner: &'a Owner,
    /// What the watches hold of it.
    pub observed: &'a Observed,
    /// Whether this generation was looked at before.
    pub known: bool,
}

impl Objects<'_> {
    /// Makes every object, in order; stops at the first that has to wait.
    pub async fn apply(&self, plan: &Plan) -> Result<Progress, ApplyError> {
        let (observed, desired) = (self.observed, &plan.desired);
        self.clear().await?;
        if let (Some(kept), Some(old)) = (&plan.ends_first, observed.stateful_set.as_deref()) {
            return self.end(kept, old).await;
        }
        // What was made before and is missing now may be missing because the Connector is, and our watch is behind.
        if self.known && self.misses_something(plan) && !self.is_alive().await? {
            return Err(ApplyError::Gone);
        }
        let name = |metadata: &kube::core::ObjectMeta| metadata.name.clone().unwrap_or_default();
        macro_rules! step {
            ($kind:literal, $desired:expr, $live:expr) => {
                if let Some(stop) = self.one($kind, $desired, $live).await? {
                    return Ok(stop);
                }
            };
        }
        if let Some(account) = &desired.service_account {
            step!("ServiceAccount", account, observed.service_account.as_deref());
        }
        for map in [&desired.rendering, &desired.live] {
            step!("ConfigMap", map, observed.config_map(&name(&map.metadata)));
        }
        if let Some(service) = &desired.service {
            step!("Service", service, observed.service.as_deref());
        }
        if let Some(budget) = &desired.disruption_budget {
            step!("PodDisruptionBudget", budget, observed.disruption_budget.as_deref());
        }
        if let Some(policy) = &desired.network_policy {
            step!("NetworkPolicy", policy, observed.network_policy.as_deref());
        }
        step!("StatefulSet", &desired.stateful_set, observed.stateful_set.as_deref());
        self.tidy(plan).await?;
        self.keep_claims(&desired.stateful_set).await?;
        Ok(Progress::Applied)
    }

    async fn one<K: Kind>(
        &self,
        kind: &'static str,
        desired: &K,
        live: Option<&K>,
    ) -> Result<Option<Progress>, ApplyError> {
        let name = || format!("{kind} {}/{}", self.owner.namespace, desired.name_any());
        Ok(match io::apply(&self.context.client, self.owner, desired, live).await? {
            Applied::Done { written } => {
                if written {
                    self.context.metrics.wrote(kind, "apply");
                }
                None
            }
            Applied::Waiting => {
                Some(Progress::Waiting(format!("{} is still being deleted or changed", name())))
            }
            Applied::Conflict => {
                Some(Progress::Conflict(format!("{} exists and belongs to somebody else", name())))
            }
        })
    }

    fn misses_something(&self, plan: &Plan) -> bool {
        let (observed, desired) = (self.observed, &plan.desired);
        let has =
            |map: &ConfigMap| observed.config_map(map.metadata.name.as_deref().unwrap_or_default()).is_some();
        observed.stateful_set.is_none()
            || !has(&desired.rendering)
            || !has(&desired.live)
            || (desired.service_account.is_some() && observed.service_account.is_none())
            || (desired.service.is_some() && observed.service.is_none())
            || (desired.disruption_budget.is_some() && observed.disruption_budget.is_none())
            || (desired.network_policy.is_some() && observed.network_policy.is_none())
    }

    /// Deletes what an earlier Connector of this name left: the garbage collector does it too, but it learns of a new kind of
    /// owner up to 30 s late (its resync of the discovery), and nothing of ours can be made until then.
    async fn clear(&self) -> Result<(), ApplyError> {
        let observed = self.observed;
        let left_over = |metadata: &kube::core::ObjectMeta| is_left_over(self.owner, metadata);
        let any = observed.stateful_set.iter().any(|it| left_over(&it.metadata))
            || observed.config_maps.iter().any(|it| left_over(&it.metadata))
            || observed.service.iter().any(|it| left_over(&it.metadata))
            || observed.service_account.iter().any(|it| left_over(&it.metadata))
            || observed.disruption_budget.iter().any(|it| left_over(&it.metadata))
            || observed.network_policy.iter().any(|it| left_over(&it.metadata));
        // Our watch may be behind, and the owner be alive: the API server itself has to say that it is ours that lives.
        if !any || !self.is_alive().await? {
            return Ok(());
        }
        macro_rules! delete {
            ($kind:literal, $found:expr, $how:expr) => {
                for found in $found.iter().filter(|found| left_over(&found.metadata)) {
                    self.context.metrics.wrote($kind, "delete");
                    io::delete(&self.context.client, &self.owner.namespace, found.as_ref(), $how).await?;
                }
            };
        }
        delete!("StatefulSet", observed.stateful_set, Deletion::Foreground);
        delete!("ConfigMap", observed.config_maps, Deletion::Background);
        delete!("Service", observed.service, Deletion::Background);
        delete!("ServiceAccount", observed.service_account, Deletion::Background);
        delete!("PodDisruptionBudget", observed.disruption_budget, Deletion::Background);
        delete!("NetworkPolicy", observed.network_policy, Deletion::Background);
        Ok(())
    }

    /// Whether the Connector of this name is this very one, by the API server's own word.
    async fn is_alive(&self) -> Result<bool, ApplyError> {
        let resource = ApiResource::erase::<Connector>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), &self.owner.namespace, &resource);
        let live = api.get_opt(&self.owner.name).await.map_err(|cause| ApplyError::Api {
            kind: "Connector".into(),
            name: self.owner.name.clone(),
            cause: Box::new(cause),
        })?;
        Ok(live.is_some_and(|live| {
            live.metadata.uid.as_ref() == Some(&self.owner.uid) && live.metadata.deletion_timestamp.is_none()
        }))
    }

    /// Ends the pods of the system before. What is in their claims may not be delivered yet, so the claims are made to outlive
    /// the `StatefulSet` first; it is deleted in the very version that says so.
    async fn end(&self, kept: &StatefulSet, old: &StatefulSet) -> Result<Progress, ApplyError> {
        if old.metadata.deletion_timestamp.is_some() {
            return Ok(Progress::Recreating);
        }
        if makes_claims(old) {
            if let Some(stop) = self.one("StatefulSet", kept, Some(old)).await? {
                return Ok(stop);
            }
            if !retains(old) {
                return Ok(Progress::Recreating);
            }
            let (client, namespace) = (&self.context.client, &self.owner.namespace);
            // The watch may be behind; what would be lost here is lost for good.
            let labels = selector_text(&self.owner.name);
            let claims = io::list::<PersistentVolumeClaim>(client, namespace, &labels).await?;
            for claim in &claims {
                if !self.release(claim, old.metadata.uid.as_deref().unwrap_or_default()).await? {
                    return Ok(Progress::Recreating);
                }
            }
        }
        self.context.metrics.wrote("StatefulSet", "delete");
        io::delete(&self.context.client, &self.owner.namespace, old, Deletion::ForegroundAsSeen).await?;
        Ok(Progress::Recreating)
    }

    /// Takes the `StatefulSet` of this uid out of a claim's owners; false: the claim has changed meanwhile.
    async fn release(&self, claim: &PersistentVolumeClaim, set: &str) -> Result<bool, ApplyError> {
        let Some(patch) = release(claim, set) else { return Ok(true) };
        self.context.metrics.wrote("PersistentVolumeClaim", "release");
        let (client, namespace) = (&self.context.client, &self.owner.namespace);
        io::patch_as_seen::<PersistentVolumeClaim>(client, namespace, &claim.name_any(), patch).await
    }

    /// Gives claims the room that the spec asks for, and takes them from a `StatefulSet` that they are to outlive: its
    /// controller forgets those whose pods are not there.
    async fn keep_claims(&self, desired: &StatefulSet) -> Result<(), ApplyError> {
        let observed = self.observed;
        let set = observed.stateful_set.as_deref().filter(|set| is_owned(self.owner, &set.metadata));
        if let Some(set) = set.filter(|set| retains(set)) {
            for claim in &observed.claims {
                self.release(claim, set.metadata.uid.as_deref().unwrap_or_default()).await?;
            }
        }
        let mut templates = desired.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
        let size = templates.find_map(|template| {
            template.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
        });
        let Some(size) = size else { return Ok(()) };
        for claim in too_small(&observed.claims, &size.0) {
            self.context.metrics.wrote("PersistentVolumeClaim", "grow");
            let patch = json!({
                "metadata": {"uid": claim.metadata.uid},
                "spec": {"resources": {"requests": {"storage": size}}},
            });
            let (client, namespace) = (&self.context.client, &self.owner.namespace);
            io::merge::<PersistentVolumeClaim>(client, namespace, &claim.name_any(), &patch).await?;
        }
        Ok(())
    }

    /// Removes what is ours and not wanted any more, and tells pods of the live file.
    async fn tidy(&self, plan: &Plan) -> Result<(), ApplyError> {
        let (observed, desired) = (self.observed, &plan.desired);
        if desired.service_account.is_none() {
            self.remove("ServiceAccount", observed.service_account.as_deref()).await?;
        }
        if desired.service.is_none() {
            self.remove("Service", observed.service.as_deref()).await?;
        }
        if desired.disruption_budget.is_none() {
            self.remove("PodDisruptionBudget", observed.disruption_budget.as_deref()).await?;
        }
        if desired.network_policy.is_none() {
            self.remove("NetworkPolicy", observed.network_policy.as_deref()).await?;
        }
        for name in &plan.superfluous {
            self.remove("ConfigMap", observed.config_map(name)).await?;
        }
        for pod in untold_pods(observed, &plan.live) {
            let patch = json!({"metadata": {
                "uid": pod.metadata.uid,
                "annotations": {LIVE_ANNOTATION: plan.live},
            }});
            self.context.metrics.wrote("Pod", "annotate");
            let (client, namespace) = (&self.context.client, &self.owner.namespace);
            io::merge::<Pod>(client, namespace, &pod.name_any(), &patch).await?;
        }
        Ok(())
    }

    async fn remove<K: Kind>(&self, kind: &'static str, live: Option<&K>) -> Result<(), ApplyError> {
        let Some(live) =
            live.filter(|live| is_owned(self.owner, live.meta()) && live.meta().deletion_timestamp.is_none())
        else {
            return Ok(());
        };
        self.context.metrics.wrote(kind, "delete");
        io::delete(&self.context.client, &self.owner.namespace, live, Deletion::Background).await
    }
}
