//! The operator in a simulated cluster, disturbed in every way that finds most defects of operators: it crashes before and after each
//! request, each request fails, each change is missed, and reads come from a view that is behind.
//!
//! Oracle: it always reaches the state of an undisturbed run and stays there; nothing foreign is touched, pods of two
//! `StatefulSet`s never meet, claims are never lost, conditions are legal, and `Ready` means connected.

mod controllers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use futures::FutureExt as _;
use k8s_openapi::jiff::Timestamp;

use super::fake_api::{FakeApi, Fault};
use super::*;
use crate::names::APPLIED_ANNOTATION;
use crate::runtime_status::{RuntimeStatus, SideStatus};

/// Rounds in which everything comes to rest: many times what the longest scenario takes.
const ROUNDS: usize = 120;

/// Rounds without a change after which nothing will change any more.
const CALM: usize = 2;

/// What the user does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Create,
    Edit,
    Scale,
    Pause,
    Stop,
    Swap,
    Rotate,
    Delete,
    DeleteAndCreate,
}

fn spec() -> Value {
    let mut spec = redis_sink();
    spec["sink"]["redis"]["auth"] = json!({"username": "u", "password": {"name": "redis", "key": "one"}});
    // The policy under which a careless swap loses what is not delivered.
    spec["storage"] = json!({"whenDeleted": "Delete", "size": "2Gi"});
    spec
}

/// How reads lag behind.
#[derive(Clone, Debug, Default)]
struct View {
    /// What the watches have told.
    objects: BTreeMap<String, Value>,
    /// Changes that were looked at.
    told: usize,
    /// Changes that are never told, by their number.
    missed: BTreeSet<usize>,
    /// Changes of this resource wait.
    held: Option<String>,
    /// The view is so many changes behind.
    lag: usize,
}

/// A cluster, an operator and its view.
struct World {
    api: FakeApi,
    view: View,
    clock: Arc<AtomicI64>,
    incarnations: u64,
    /// Pods that were ever made.
    pods: BTreeSet<String>,
}

impl World {
    fn new() -> World {
        let world = World {
            api: FakeApi::default(),
            view: View::default(),
            clock: Arc::new(AtomicI64::new(1_790_000_000)),
            incarnations: 0,
            pods: BTreeSet::new(),
        };
        let foreign = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other", "namespace": "shop", "uid": "x"}});
        world
            .api
            .0
            .lock()
            .unwrap()
            .recorded(|objects| objects.all.insert("configmaps/other".into(), foreign));
        world
    }

    fn act(&mut self, action: Action) {
        self.incarnations += 1;
        let connector = |spec: Value, incarnation: u64| {
            json!({
                "apiVersion": "connectors.wallaroolabs.com/v1alpha1", "kind": "Connector",
                "metadata": {"name": "orders", "namespace": "shop", "uid": format!("connector-{incarnation}"), "generation": 1},
                "spec": spec,
            })
        };
        let made = connector(spec(), self.incarnations);
        self.api.0.lock().unwrap().recorded(|objects| {
            let key = "connectors/orders";
            let mut change = |edit: &dyn Fn(&mut Value)| {
                let connector = objects.all.get_mut(key).unwrap();
                edit(&mut connector["spec"]);
                connector["metadata"]["generation"] =
                    (connector["metadata"]["generation"].as_i64().unwrap() + 1).into();
            };
            match action {
                Action::Create => drop(objects.all.insert(key.into(), made)),
                Action::Edit => change(&|spec| spec["restartNonce"] = "again".into()),
                // A sink over `Connector` has one pod: another size of nothing and back is a stop.
                Action::Scale => change(&|spec| spec["replicas"] = 0.into()),
                Action::Pause => change(&|spec| spec["state"] = "Paused".into()),
                Action::Stop => change(&|spec| spec["state"] = "Stopped".into()),
                Action::Swap => change(&|spec| spec["sink"] = json!({"file": {"path": "out"}})),
                Action::Rotate => change(&|spec| {
                    spec["sink"]["redis"]["auth"]["password"]["key"] = "two".into();
                }),
                Action::Delete => drop(objects.all.remove(key)),
                Action::DeleteAndCreate => {
                    objects.all.remove(key);
                }
            }
        });
        if action == Action::DeleteAndCreate {
            // Two changes: the second comes before anybody has looked.
            let again = connector(spec(), self.incarnations + 1_000);
            self.api
                .0
                .lock()
                .unwrap()
                .recorded(|objects| objects.all.insert("connectors/orders".into(), again));
        }
    }

    /// Tells the view what it is to hear.
    fn tell(&mut self) {
        let log = self.api.0.lock().unwrap().log.clone();
        let end = log.len().saturating_sub(self.view.lag);
        let View { objects, told, missed, held, .. } = &mut self.view;
        let begin = *told;
        for (number, change) in log.iter().enumerate().take(end).skip(begin) {
            if missed.contains(&number) {
                *told = number + 1;
                continue;
            }
            if held.as_ref().is_some_and(|resource| change.key.starts_with(resource.as_str())) {
                // The rest of this watch waits; other watches go on. It is told when it is released, by a new list.
                *told = number + 1;
                continue;
            }
            match &change.object {
                Some(object) => drop(objects.insert(change.key.clone(), object.clone())),
                None => drop(objects.remove(&change.key)),
            }
            *told = number + 1;
        }
    }

    /// A new list of everything: after a start, or when a watch was interrupted.
    fn list(&mut self) {
        let objects = self.api.0.lock().unwrap();
        self.view.objects = objects.all.clone();
        self.view.told = objects.log.len();
    }

    /// One reconciliation with what the view holds. False: the process crashed in it.
    async fn reconcile(&self) -> bool {
        let Some(connector) = self.view.objects.get("connectors/orders") else { return true };
        let mut writers = Writers::default();
        let of = |resource: &str| -> Vec<Value> {
            let prefix = format!("{resource}/");
            let found = self.view.objects.iter().filter(|(key, _)| key.starts_with(&prefix));
            labelled(found.map(|(_, object)| object.clone()).collect())
        };
        fill(&mut writers.connectors, std::slice::from_ref(connector));
        fill(&mut writers.stateful_sets, &of("statefulsets"));
        fill(&mut writers.config_maps, &of("configmaps"));
        fill(&mut writers.services, &of("services"));
        fill(&mut writers.service_accounts, &of("serviceaccounts"));
        fill(&mut writers.disruption_budgets, &of("poddisruptionbudgets"));
        fill(&mut writers.network_policies, &of("networkpolicies"));
        fill(&mut writers.pods, &of("pods"));
        fill(&mut writers.claims, &of("persistentvolumeclaims"));
        let client = self.api.client();
        let reporter = Reporter { controller: "test".into(), instance: Some("test".into()) };
        let clock = Arc::clone(&self.clock);
        let connected = || {
            let status = RuntimeStatus {
                wallaroo: SideStatus::Connected,
                external: SideStatus::Connected,
                ..RuntimeStatus::default()
            };
            async { Some(status) }.boxed()
        };
        let context = Arc::new(Context {
            notifier: Notifier::new(Recorder::new(client.clone(), reporter)),
            client,
            settings: settings(),
            stores: writers.stores(),
            outside: Outside::of(
                move || Timestamp::from_second(clock.load(Relaxed)).unwrap(),
                move |_| connected(),
            ),
            metrics: Arc::new(Metrics::default()),
            failures: Mutex::new(HashMap::new()),
        });
        let watched: Watched = serde_json::from_value(connector.clone()).unwrap();
        let crashed = std::future::poll_fn(|cx| {
            if self.api.0.lock().unwrap().crashed {
                return std::task::Poll::Ready(());
            }
            // The server runs on this thread: it is looked at again after it has had its turn.
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        });
        tokio::select! {
            biased;
            () = crashed => false,
            // What failed is tried again in the next round.
            _ = reconcile(Arc::new(watched), context) => true,
        }
    }

    /// One round: the operator, then everybody else.
    async fn round(&mut self) {
        self.clock.fetch_add(1, Relaxed);
        self.tell();
        if !self.reconcile().await {
            // The next process begins with a list.
            self.api.0.lock().unwrap().crashed = false;
            self.list();
        }
        self.api.0.lock().unwrap().recorded(controllers::step);
        self.check();
    }

    /// Until nothing changes any more.
    async fn settle(&mut self, what: &str) {
        let (mut calm, mut before) = (0, None);
        for _ in 0..ROUNDS {
            self.round().await;
            let now = self.api.0.lock().unwrap().log.len();
            calm = if before == Some(now) { calm + 1 } else { 0 };
            before = Some(now);
            if calm >= CALM {
                return;
            }
        }
        panic!("{what}: it never comes to rest");
    }

    /// What holds at every moment.
    fn check(&mut self) {
        let objects = self.api.0.lock().unwrap();
        let foreign = &objects.all["configmaps/other"]["metadata"];
        assert_eq!(foreign["uid"], "x");
        assert!(foreign["labels"].is_null() && foreign["managedFields"].is_null(), "a foreign write");
        let pods = objects.all.iter().filter(|(key, _)| key.starts_with("pods/"));
        let mut owners = BTreeSet::new();
        for (_, pod) in pods {
            owners.insert(pod["metadata"]["ownerReferences"][0]["uid"].to_string());
            self.pods.insert(pod["metadata"]["uid"].to_string());
        }
        assert!(owners.len() <= 1, "pods of two StatefulSets meet");
        let Some(connector) = objects.all.get("connectors/orders").filter(|c| !c["status"].is_null()) else {
            return;
        };
        let status: ConnectorStatus = serde_json::from_value(connector["status"].clone()).unwrap();
        let is = |type_| find(&status.conditions, type_).is_some_and(|c| c.status == ConditionStatus::True);
        let (ready, stalled) = (is(ConditionType::Ready), is(ConditionType::Stalled));
        let reconciling = is(ConditionType::Reconciling);
        assert!(u8::from(ready) + u8::from(stalled) + u8::from(reconciling) <= 1, "{status:?}");
        let running = find(&status.conditions, ConditionType::Ready).is_some_and(|c| c.reason == "Running");
        if ready && running {
            let ends = [ConditionType::WallarooConnected, ConditionType::ExternalConnected];
            assert!(ends.into_iter().all(is), "ready and not connected: {status:?}");
        }
    }

    /// What was reached, without what two runs do not share.
    fn reached(&self) -> BTreeMap<String, Value> {
        let objects = self.api.0.lock().unwrap();
        let in_force = objects.all.get("statefulsets/orders").map(|set| {
            let annotations = &set["spec"]["template"]["metadata"]["annotations"];
            format!("configmaps/{}", annotations[RENDERING_ANNOTATION].as_str().unwrap())
        });
        let mut found = BTreeMap::new();
        for (key, object) in &objects.all {
            let rendering = key.starts_with("configmaps/orders-") && key != "configmaps/orders-live";
            // Older renderings are kept for a while.
            if rendering && in_force.as_ref() != Some(key) {
                continue;
            }
            let mut object = object.clone();
            let metadata = object["metadata"].as_object_mut().unwrap();
            // A claim is the same one or it is lost.
            let claim = key.starts_with("persistentvolumeclaims/");
            for name in ["resourceVersion", "generation", "managedFields", "creationTimestamp"] {
                metadata.remove(name);
            }
            if !claim {
                metadata.remove("uid");
            }
            for owner in
                metadata.get_mut("ownerReferences").and_then(Value::as_array_mut).into_iter().flatten()
            {
                owner["uid"] = Value::Null;
            }
            if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.remove(APPLIED_ANNOTATION);
            }
            if let Some(status) = object["status"].as_object_mut() {
                status.remove("observedGeneration");
                for condition in
                    status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten()
                {
                    condition.as_object_mut().unwrap().remove("lastTransitionTime");
                }
            }
            found.insert(key.clone(), object);
        }
        found
    }
}

/// A world in which the action is about to happen.
async fn before(action: Action) -> World {
    let mut world = World::new();
    if action != Action::Create {
        world.act(Action::Create);
        world.settle("the creation").await;
    }
    world.api.0.lock().unwrap().number = 0;
    world
}

impl World {
    /// The same world again.
    fn copy(&self) -> World {
        let objects = self.api.0.lock().unwrap().clone();
        World {
            api: FakeApi(Arc::new(Mutex::new(objects))),
            view: self.view.clone(),
            clock: Arc::new(AtomicI64::new(self.clock.load(Relaxed))),
            incarnations: self.incarnations,
            pods: self.pods.clone(),
        }
    }
}

/// How an action goes undisturbed: what it reaches, the requests and the changes that it takes, the pods that it makes.
struct Course {
    action: Action,
    before: World,
    reached: BTreeMap<String, Value>,
    requests: usize,
    changes: std::ops::Range<usize>,
    pods: usize,
}

impl Course {
    async fn of(action: Action) -> Course {
        let before = before(action).await;
        let mut world = before.copy();
        let begin = world.api.0.lock().unwrap().log.len();
        world.act(action);
        world.settle("undisturbed").await;
        let (requests, end) = {
            let objects = world.api.0.lock().unwrap();
            (objects.number, objects.log.len())
        };
        let (reached, pods) = (world.reached(), world.pods.len());
        Course { action, before, reached, requests, changes: begin..end, pods }
    }

    /// One disturbed run.
    async fn disturbed(&self, how: &str, disturb: impl FnOnce(&mut World)) {
        let what = format!("{:?}, {how}", self.action);
        let mut world = self.before.copy();
        disturb(&mut world);
        world.act(self.action);
        world.settle(&what).await;
        // The disturbance is over: a watch that lost something lists again at the latest when it is interrupted.
        world.api.0.lock().unwrap().faults.clear();
        world.view = View::default();
        world.list();
        world.settle(&what).await;
        let reached = world.reached();
        for key in self.reached.keys().chain(reached.keys()) {
            assert_eq!(reached.get(key), self.reached.get(key), "{what}: {key}");
        }
        assert_eq!(
            world.pods.len(),
            self.pods,
            "{what}: pods were made that an undisturbed run does not make"
        );
        let number = world.api.0.lock().unwrap().number;
        world.round().await;
        assert_eq!(world.api.0.lock().unwrap().number, number, "{what}: at rest something is asked");
    }
}

/// Watches that may be behind alone.
const RESOURCES: [&str; 7] = [
    "connectors/",
    "statefulsets/",
    "pods/",
    "configmaps/",
    "persistentvolumeclaims/",
    "services/",
    "serviceaccounts/",
];

/// Every disturbance of one action.
async fn exhaust(action: Action) {
    let course = Course::of(action).await;
    let mut runs = BTreeMap::<&str, usize>::new();
    for request in 1..=course.requests {
        for fault in [
            Fault::CrashBefore,
            Fault::CrashAfter,
            Fault::Answer(409),
            Fault::Answer(429),
            Fault::Answer(500),
        ] {
            let disturb = |world: &mut World| {
                world.api.0.lock().unwrap().faults.insert(request, fault);
            };
            course.disturbed(&format!("request {request}: {fault:?}"), disturb).await;
            let kind = if matches!(fault, Fault::Answer(_)) { "failed requests" } else { "crashes" };
            *runs.entry(kind).or_default() += 1;
        }
    }
    for change in course.changes.clone() {
        let disturb = |world: &mut World| {
            world.view.missed.insert(change);
        };
        course.disturbed(&format!("change {change} is missed"), disturb).await;
        *runs.entry("missed changes").or_default() += 1;
    }
    for lag in 1..=course.changes.len() {
        course.disturbed(&format!("{lag} changes behind"), |world| world.view.lag = lag).await;
        *runs.entry("stale views").or_default() += 1;
    }
    for resource in RESOURCES {
        let disturb = |world: &mut World| world.view.held = Some(resource.to_owned());
        course.disturbed(&format!("{resource} are not told"), disturb).await;
        *runs.entry("stale views").or_default() += 1;
    }
    println!("simulated API server: {action:?}: {} runs, {runs:?}", runs.values().sum::<usize>());
}

macro_rules! actions {
    ($($name:ident: $action:ident,)*) => {
        $(#[tokio::test]
        async fn $name() {
            exhaust(Action::$action).await;
        })*
    };
}

// One test an action, so that they share the processors.
actions! {
    a_creation_disturbed_anywhere_ends_as_it_should: Create,
    an_edit_disturbed_anywhere_ends_as_it_should: Edit,
    a_scaling_disturbed_anywhere_ends_as_it_should: Scale,
    a_pause_disturbed_anywhere_ends_as_it_should: Pause,
    a_stop_disturbed_anywhere_ends_as_it_should: Stop,
    a_swap_disturbed_anywhere_ends_as_it_should: Swap,
    a_rotation_disturbed_anywhere_ends_as_it_should: Rotate,
    a_deletion_disturbed_anywhere_ends_as_it_should: Delete,
    a_deletion_and_creation_disturbed_anywhere_ends_as_it_should: DeleteAndCreate,
}
