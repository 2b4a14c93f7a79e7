//! Many Connectors: `SCALE_CONNECTORS` of them, the operator's memory, the time until every object is written, and how long one more
//! takes while the others rest. `CONNECTORS=N ./tasks scale` prints the figures.

use std::fs;
use std::time::Duration;

use connector_crds::Connector;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{ListParams, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::{Cluster, from, sink, source};
use crate::operator::{IMAGE, Operator};

/// Creations that are under way at the same time.
const CONCURRENCY: usize = 32;

/// Connectors that are applied one after the other while the rest are at rest.
const SINGLE: usize = 200;

/// How long everything may take.
const DEADLINE: Duration = Duration::from_mins(30);

fn spec(index: usize) -> Value {
    if index.is_multiple_of(2) { source() } else { sink() }
}

/// MiB of memory of a process: now, and at most so far.
fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    (mib("VmRSS:"), mib("VmHWM:"))
}

/// Seconds of processor time of a process.
fn processor(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // User and system time in ticks of 10 ms (proc(5)).
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

async fn count(sets: &Api<StatefulSet>) -> usize {
    let page = sets.list(&ListParams::default().limit(1)).await.unwrap();
    page.items.len() + usize::try_from(page.metadata.remaining_item_count.unwrap_or(0)).unwrap()
}

/// Waits until there are so many, and nothing waits to be reconciled.
async fn settled(operator: &Operator, sets: &Api<StatefulSet>, connectors: usize) {
    let end = Instant::now() + DEADLINE;
    loop {
        let waiting = operator.metric("wallaroo_operator_reconcile_queue_depth").await;
        if waiting < 1.0 && count(sets).await >= connectors {
            return;
        }
        assert!(Instant::now() < end, "{} of {connectors} StatefulSets", count(sets).await);
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes API server: ./tasks scale"]
async fn many_connectors() {
    let connectors: usize = std::env::var("SCALE_CONNECTORS").map_or(200, |text| text.parse().unwrap());
    let cluster = Cluster::new("scale").await;
    let operator = Operator::start(&cluster);
    let api: Api<Connector> = cluster.api();
    let sets: Api<StatefulSet> = cluster.api();
    let create = async |index: usize| {
        let object: Connector = from(json!({"metadata": {"name": format!("c{index}")}, "spec": spec(index)}));
        api.create(&PostParams::default(), &object).await.unwrap();
    };
    let started = Instant::now();
    futures::stream::iter(0..connectors).for_each_concurrent(CONCURRENCY, create).await;
    let created = started.elapsed();
    settled(&operator, &sets, connectors).await;
    let written = started.elapsed();
    let (rss, most) = memory(operator.pid());
    let cpu = processor(operator.pid());
    println!(
        "scale: {connectors} Connectors created in {:.1} s, all objects written after {:.1} s",
        created.as_secs_f64(),
        written.as_secs_f64()
    );
    println!("scale: operator {rss} MiB, at most {most} MiB, {cpu:.1} s of processor time");

    // One more, while the others rest.
    let (made, mut seen) = mpsc::unbounded_channel();
    let watched = sets.clone();
    let watching = tokio::spawn(async move {
        let mut events = watcher::watcher(watched, watcher::Config::default()).boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(set)) => drop(made.send((set.name_any(), Instant::now()))),
                Ok(Event::InitDone) => drop(made.send((String::new(), Instant::now()))),
                Ok(Event::Init | Event::InitApply(_) | Event::Delete(_)) | Err(_) => {}
            }
        }
    });
    let mut next = async |name: &str| loop {
        let (seen, at) = timeout(DEADLINE, seen.recv()).await.unwrap().unwrap();
        if seen == name {
            return at;
        }
    };
    next("").await;
    let mut times = Vec::new();
    for index in connectors..connectors + SINGLE {
        let started = Instant::now();
        create(index).await;
        // The StatefulSet is the last of the objects.
        times.push(next(&format!("c{index}")).await - started);
    }
    watching.abort();
    times.sort();
    let at =
        |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
    println!("scale: apply to objects at rest: p50 {:.1} ms, p99 {:.1} ms of {SINGLE}", at(50), at(99));

    // Another process takes over.
    operator.stop().await;
    let started = Instant::now();
    let second = Operator::with(&cluster, "scale-2", IMAGE, &["--no-leader-election"]);
    let all = (connectors + SINGLE) as f64;
    let end = Instant::now() + DEADLINE;
    while second.metric("wallaroo_operator_reconcile_total{result=\"ok\"}").await < all {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(200)).await;
    }
    let (rss, most) = memory(second.pid());
    println!(
        "scale: a restart reconciles all in {:.1} s, {rss} MiB, at most {most} MiB, {:.1} s of processor time, {} writes",
        started.elapsed().as_secs_f64(),
        processor(second.pid()),
        second.writes().len()
    );
    assert_eq!(second.writes(), Vec::<String>::new());
}
