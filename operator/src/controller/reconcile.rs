//! One reconciliation: from what the watches hold to a cluster and a status that are as they should be.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use connector_crds::{ConditionStatus, Connector, ConnectorStatus};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::runtime::controller::Action;
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;

use super::admission::{Refusal, admit, unreadable};
use super::context::{Context, ReconcileError};
use super::inquiry::{ask_events, ask_runtimes};
use super::metrics::key;
use super::objects::Objects;
use super::pace::{Pace, back_off, pause, seed};
use super::plan::{Observed, plan, workload};
use super::stores::Watched;
use crate::apply::io::{self, ApplyError};
use crate::build::Owner;
use crate::names::FIELD_MANAGER;
use crate::status::conditions::find;
use crate::status::{ConditionType, Facts, PodFacts, Progress, announce, compute};
use crate::validate::ValidatedConnector;

/// Reconciles one Connector, and counts it.
pub async fn reconcile(watched: Arc<Watched>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let started = Instant::now();
    let result = match &watched.0 {
        Ok(connector) => Box::pin(readable(&context, connector)).await,
        Err(invalid) => {
            let refusal = unreadable(&invalid.error);
            Box::pin(unreadable_status(&context, &invalid.metadata, &refusal)).await
        }
    };
    context.metrics.reconciled(result.is_ok(), started.elapsed().as_secs_f64());
    let uid = watched.meta().uid.clone().unwrap_or_default();
    let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
    match &result {
        Ok(_) => {
            let meta = watched.meta();
            let name = key(meta.namespace.as_deref(), meta.name.as_deref().unwrap_or_default());
            context.metrics.backlog().reconciled(&name, started);
            failures.remove(&uid);
        }
        Err(_) => *failures.entry(uid).or_default() += 1,
    }
    result
}

/// When to try again.
pub fn after_error(watched: &Watched, error: &ReconcileError, context: &Context) -> Action {
    let uid = watched.meta().uid.clone().unwrap_or_default();
    let failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let count = failures.get(&uid).copied().unwrap_or(1);
    let name = watched.name_any();
    tracing::warn!(connector = name, namespace = watched.namespace(), %error, "Not reconciled, tried again later.");
    Action::requeue(back_off(count, error.retry_after(), seed(&uid)))
}

async fn readable(context: &Context, connector: &Connector) -> Result<Action, ReconcileError> {
    if connector.metadata.deletion_timestamp.is_some() {
        // Owner references remove what is ours.
        return Ok(Action::await_change());
    }
    let owner = Owner {
        name: connector.name_any(),
        namespace: connector.namespace().unwrap_or_default(),
        uid: connector.uid().unwrap_or_default(),
    };
    let mut pass = Pass {
        context,
        generation: connector.metadata.generation.unwrap_or_default(),
        about: connector.object_ref(&()),
        observed: context.stores.observe(&owner.namespace, &owner.name),
        status: connector.status.clone().unwrap_or_default(),
        owner,
    };
    let pods = pass.observed.pod_facts();
    match admit(connector, &context.settings) {
        Ok(valid) => Box::pin(pass.carry_out(&valid, &pods)).await,
        Err(Refusal { reason, message }) => {
            let facts = Facts {
                generation: pass.generation,
                connector: None,
                progress: Progress::Invalid { reason, message },
                workload: workload(&pass.observed, &pass.owner, None),
                pods: &pods,
                events: None,
                runtimes: &BTreeMap::new(),
                pending_change: pass.status.pending_change.clone(),
                previous: &pass.status,
                now: context.outside.now(),
            };
            let status = compute(&facts);
            pass.write(status).await?;
            Ok(Action::requeue(pause(Pace::Settled, seed(&pass.owner.uid))))
        }
    }
}

/// One pass over one readable Connector.
struct Pass<'a> {
    context: &'a Context,
    owner: Owner,
    generation: i64,
    about: ObjectReference,
    observed: Observed,
    /// The status as it was last written.
    status: ConnectorStatus,
}

impl Pass<'_> {
    async fn carry_out(
        &mut self,
        connector: &ValidatedConnector,
        pods: &[PodFacts],
    ) -> Result<Action, ReconcileError> {
        let plan = plan(connector, &self.owner, &self.observed, &self.context.settings);
        let known = self.status.observed_generation == Some(self.generation);
        let (nobody, empty) = (BTreeMap::new(), ConnectorStatus::default());
        let facts = Facts {
            generation: self.generation,
            connector: Some(connector),
            progress: Progress::Applied,
            workload: workload(&self.observed, &self.owner, Some(&plan)),
            pods,
            events: None,
            runtimes: &nobody,
            pending_change: plan.pending_change.clone(),
            previous: &empty,
            now: self.context.outside.now(),
        };
        // Said once a generation: what is stalled has been looked at, and saying it again would wake us for ever.
        let announced = known
            && [ConditionType::Reconciling, ConditionType::Stalled]
                .into_iter()
                .any(|type_| find(&self.status.conditions, type_).is_some());
        if plan.changes_pods && !announced {
            let status = announce(&Facts { previous: &self.status, ..facts.clone() });
            self.write(status).await?;
        }
        let objects = Objects { context: self.context, owner: &self.owner, observed: &self.observed, known };
        let progress = match objects.apply(&plan).await {
            Ok(progress) => progress,
            Err(ApplyError::Refused { kind, name, message }) => {
                Progress::Refused(format!("{kind} {name}: {message}"))
            }
            // The watch will say so.
            Err(ApplyError::Gone) => return Ok(Action::await_change()),
            Err(error) => return Err(error.into()),
        };
        let runtimes = ask_runtimes(&self.context.outside, &self.status.conditions, &facts).await;
        let set = self.observed.stateful_set.as_deref();
        let events = ask_events(&self.context.client, set, &self.status.conditions, &facts).await;
        let status = compute(&Facts {
            progress: progress.clone(),
            previous: &self.status,
            runtimes: &runtimes,
            events,
            ..facts
        });
        self.write(status).await?;
        let pace = self.pace(&progress);
        Ok(Action::requeue(pause(pace, seed(&self.owner.uid))))
    }

    /// Writes the status if it differs, and Events about what changed.
    async fn write(&mut self, status: ConnectorStatus) -> Result<(), ReconcileError> {
        if status == self.status {
            return Ok(());
        }
        // Untyped: the answer holds the spec, which need not be readable.
        let resource = ApiResource::erase::<Connector>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), &self.owner.namespace, &resource);
        let patch = json!({
            "apiVersion": Connector::api_version(&()),
            "kind": Connector::kind(&()),
            "metadata": {"name": self.owner.name, "uid": self.owner.uid},
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.context.metrics.wrote("Connector", "status");
        match api.patch_status(&self.owner.name, &params, &Patch::Apply(&patch)).await {
            Ok(_) => {}
            // It is gone, or another one of this name.
            Err(error) if [404, 409].contains(&io::code(&error)) => return Ok(()),
            Err(error) => return Err(ReconcileError::Status(Box::new(error))),
        }
        let context = self.context;
        context.notifier.notify(&context.metrics, &self.about, &self.status, &status).await;
        self.status = status;
        Ok(())
    }

    fn pace(&self, progress: &Progress) -> Pace {
        match progress {
            Progress::Waiting(_) | Progress::Recreating => return Pace::Waiting,
            Progress::Invalid { .. } | Progress::Refused(_) | Progress::Conflict(_) => return Pace::NotReady,
            Progress::Applied => {}
        }
        match find(&self.status.conditions, ConditionType::Ready) {
            Some(ready) if ready.status == ConditionStatus::True => {
                let connected = [ConditionType::WallarooConnected, ConditionType::ExternalConnected]
                    .into_iter()
                    .filter_map(|type_| find(&self.status.conditions, type_))
                    .all(|end| end.status == ConditionStatus::True);
                let source = self.status.listen_address.is_none();
                if connected && source { Pace::Settled } else { Pace::Listening }
            }
            Some(_) | None => Pace::NotReady,
        }
    }
}

/// Says that a Connector cannot be read; its own status is read first, so that the same is not written twice.
async fn unreadable_status(
    context: &Context,
    metadata: &kube::core::ObjectMeta,
    refusal: &Refusal,
) -> Result<Action, ReconcileError> {
    if metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let name = metadata.name.clone().unwrap_or_default();
    let failed = |error| ReconcileError::Status(Box::new(error));
    let resource = ApiResource::erase::<Connector>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &resource);
    let Some(live) = api.get_opt(&name).await.map_err(failed)? else { return Ok(Action::await_change()) };
    let previous: ConnectorStatus = live
        .data
        .get("status")
        .and_then(|status| serde_json::from_value(status.clone()).ok())
        .unwrap_or_default();
    let owner = Owner { name, namespace, uid: metadata.uid.clone().unwrap_or_default() };
    let observed = context.stores.observe(&owner.namespace, &owner.name);
    let pods = observed.pod_facts();
    let status = compute(&Facts {
        generation: metadata.generation.unwrap_or_default(),
        connector: None,
        progress: Progress::Invalid { reason: refusal.reason, message: refusal.message.clone() },
        workload: workload(&observed, &owner, None),
        pods: &pods,
        events: None,
        runtimes: &BTreeMap::new(),
        pending_change: previous.pending_change.clone(),
        previous: &previous,
        now: context.outside.now(),
    });
    let about = live.object_ref(&resource);
    let uid = owner.uid.clone();
    let generation = metadata.generation.unwrap_or_default();
    let mut pass = Pass { context, owner, generation, about, observed, status: previous };
    pass.write(status).await?;
    Ok(Action::requeue(pause(Pace::Settled, seed(&uid))))
}
