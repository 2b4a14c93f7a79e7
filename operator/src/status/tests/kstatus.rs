//! What the reference implementation of kstatus, by which Helm and Flux wait, makes of the statuses that we write.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::*;

/// What an observer saw, and what it should make of it.
struct Seen {
    what: &'static str,
    object: Value,
    verdict: &'static str,
}

/// A life that is watched.
struct Watched {
    world: World,
    seen: Vec<Seen>,
}

impl Watched {
    fn new(spec: Value) -> Watched {
        Watched { world: World::of(connector(spec)), seen: Vec::new() }
    }

    /// The object as the API server holds it.
    fn sees(&mut self, what: &'static str, verdict: &'static str) -> &mut World {
        let object = json!({
            "apiVersion": "connectors.wallaroolabs.com/v1alpha1",
            "kind": "Connector",
            "metadata": {"name": "orders", "namespace": "shop", "generation": self.world.generation},
            "status": self.world.status,
        });
        self.seen.push(Seen { what, object, verdict });
        &mut self.world
    }
}

fn create_rollout_trouble_recovery_stop() -> Vec<Seen> {
    let mut life = Watched::new(kafka_source());
    let definition = serde_json::to_value(connector_crds::crd()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let unseen = schema["properties"]["status"]["default"].clone();
    life.world.status = serde_json::from_value(unseen).unwrap();
    life.sees("created, no operator has seen it", "InProgress").announce();
    life.sees("announced", "InProgress").step();
    life.sees("nothing made yet", "InProgress")
        .pod(false)
        .says(failed("Refused"), SideStatus::Waiting)
        .step();
    life.sees("pods start", "InProgress");
    life.world.pod(true).says(SideStatus::Connected, SideStatus::Connected).step();
    life.sees("running", "Current").says(failed("SessionLost"), SideStatus::Connected).step();
    life.sees("a blip", "Current").later(61).step();
    life.sees("an end is away", "InProgress");
    life.world.pod(false).says(SideStatus::Connected, failed("AuthFailed")).step();
    life.sees("the other end is away", "InProgress").pod(true);
    life.world.says(SideStatus::Connected, SideStatus::Connected).step();
    life.sees("recovered", "Current").generation = 2;
    life.sees("edited, not seen yet", "InProgress").announce();
    life.sees("edited, announced", "InProgress").workload.as_mut().unwrap().current = false;
    life.world.step();
    life.sees("rolls out", "InProgress").workload.as_mut().unwrap().current = true;
    life.world.step();
    life.sees("rolled out", "Current").generation = 3;
    life.world.step();
    life.sees("edited without a restart", "Current").generation = 4;
    life.world.progress = Progress::Invalid { reason: Reason::ConfigInvalid, message: "spec.pod: no".into() };
    life.world.step();
    life.sees("invalid", "Failed").generation = 5;
    life.world.progress = Progress::Applied;
    life.world.step();
    life.sees("corrected", "Current").pods.clear();
    life.world.runtimes.clear();
    life.world.workload = Some(Workload { current: true, rolled_out: true, ..Workload::default() });
    life.world.step();
    life.sees("the pod vanished", "InProgress").events =
        Some(PodTrouble { reason: Reason::QuotaExceeded, message: "exceeded quota".into() });
    life.world.step();
    life.sees("no quota", "Failed").events = None;
    life.world.pod(true).says(SideStatus::Connected, SideStatus::Connected).step();
    life.sees("quota again", "Current").generation = 6;
    life.world.connector.state = connector_crds::State::Paused;
    life.world.step();
    life.sees("paused", "Current").generation = 7;
    life.world.connector.state = connector_crds::State::Stopped;
    life.world.announce();
    life.sees("to be stopped", "InProgress").step();
    life.sees("stopping", "InProgress").pods.clear();
    life.world.runtimes.clear();
    life.world.workload = Some(Workload { current: true, rolled_out: true, ..Workload::default() });
    life.world.step();
    life.sees("stopped", "Current");
    life.seen
}

fn what_never_gets_there() -> Vec<Seen> {
    let mut life = Watched::new(redis_sink());
    life.world.progress = Progress::Conflict("Service shop/orders belongs to somebody else".into());
    life.world.step();
    life.sees("a name conflict", "Failed").progress = Progress::Waiting("it is being deleted".into());
    life.world.step();
    life.sees("waits for a deletion", "InProgress").progress = Progress::Applied;
    life.world.pod(false).says(SideStatus::Waiting, failed("Refused")).step();
    life.world.later(PROGRESS_DEADLINE.as_secs() + 1).step();
    life.sees("too long", "Failed").pod(true).says(SideStatus::Waiting, SideStatus::Connected).step();
    life.sees("nobody has dialled", "Current").progress = Progress::Recreating;
    life.world.step();
    life.sees("swapped", "InProgress");
    life.seen
}

#[test]
#[ignore = "needs Go: ./tasks kstatus"]
fn the_reference_implementation_of_kstatus_agrees() {
    let mut seen = create_rollout_trouble_recovery_stop();
    seen.extend(what_never_gets_there());
    let mut program = Command::new("go")
        .args(["run", "."])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/kstatus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Go runs the reference implementation");
    let mut input = program.stdin.take().unwrap();
    // All verdicts together fit into a pipe, so the program never waits for us to read them.
    for seen in &seen {
        writeln!(input, "{}", seen.object).unwrap();
    }
    drop(input);
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success(), "the reference implementation ends with {}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let verdicts: Vec<&str> = text.lines().filter_map(|line| line.split('\t').next()).collect();
    let expected: Vec<_> = seen.iter().map(|seen| (seen.what, seen.verdict)).collect();
    let found: Vec<_> = seen.iter().map(|seen| seen.what).zip(verdicts).collect();
    assert_eq!(found, expected);
    println!("kstatus agrees on {} statuses", expected.len());
}
