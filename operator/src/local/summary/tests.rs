//! Summary and table lines for made-up states of two Connectors.

use std::path::Path;

use wallaroo_endpoint::status::BadInput;

use super::*;
use crate::local::plan::{Plan, Settings, plan};
use crate::local::process::ProcessState;
use crate::local::status::{SideStatus, StreamStatus, Trouble};
use crate::local::view;
use crate::manifests;

const MANIFESTS: &str = "
{apiVersion: connectors.wallaroolabs.com/v1alpha1, kind: Connector, metadata: {name: in},
 spec: {source: {file: {path: in.txt}}, wallaroo: {protocol: Connector, connect: ['localhost:7100']}}}
---
{apiVersion: connectors.wallaroolabs.com/v1alpha1, kind: Connector, metadata: {name: out, namespace: other},
 spec: {sink: {stdout: {}}, wallaroo: {protocol: Connector, listen: 7200}}}
";

fn planned(text: &str) -> Plan {
    let settings = Settings {
        working_directory: "/".into(),
        state_directory: "/nowhere".into(),
        log_level: "warn".into(),
        embedded: None,
    };
    plan(&manifests::parse(Path::new("m.yaml"), text).unwrap(), &settings, || Ok(1)).unwrap()
}

fn status(read: u64, written: u64) -> RuntimeStatus {
    let mut status = RuntimeStatus::default();
    (status.wallaroo, status.external) = (SideStatus::Connected, SideStatus::Connected);
    (status.records.read, status.records.written) = (read, written);
    status
}

#[test]
fn every_rejected_record_has_its_reason() {
    let plan = planned(MANIFESTS);
    let mut source = status(1_000, 990);
    source.records.dropped.insert("decode".into(), 7);
    source.records.dead_letters = 3;
    let sink = status(988, 988);
    let mut wallaroo = EndpointStatus { records_in: 990, results: 988, ..EndpointStatus::default() };
    wallaroo.bad_input.insert("not a number".into(), BadInput { count: 2, example: "x".into() });
    let connectors = [(&plan.runtimes[0], Some(&source)), (&plan.runtimes[1], Some(&sink))];
    let last = Last { connectors: &connectors, wallaroo: Some(&wallaroo) };
    assert_eq!(totals(last), Totals { taken: 1_000, written: 988, rejected: 12 });
    assert_eq!(
        lines(last)[1..],
        [
            "Summary",
            "  in (FileSource): 1,000 records read, 990 sent to Wallaroo",
            "  other/out (StdoutSink): 988 records received, 988 written",
            "  (wallaroo): 990 records processed, 988 results",
            "  Records in: 1,000, out: 988, rejected: 12",
            "    7 dropped by in: decode",
            "    3 written to the dead letter of in",
            "    2 refused by the application: not a number; the first: \"x\"",
        ]
    );
}

#[test]
fn a_connector_that_said_nothing_is_not_counted_as_nothing() {
    let plan = planned(MANIFESTS);
    let connectors = [(&plan.runtimes[0], None)];
    let lines = lines(Last { connectors: &connectors, wallaroo: None });
    assert!(lines.iter().any(|line| line.contains("gave no account of itself")), "{lines:?}");
}

#[test]
fn the_state_of_a_connector_is_the_truth_in_one_cell() {
    let plan = planned(MANIFESTS);
    let (source, sink) = (&plan.runtimes[0], &plan.runtimes[1]);
    let cell = |plan, process: Option<&ProcessState>, status: Option<&RuntimeStatus>| {
        view::connector(plan, process, status, 0).cells[5].clone()
    };
    let running = Some(&ProcessState::Running);
    let good = status(1, 1);
    assert_eq!(cell(source, None, None), "Waiting");
    assert_eq!(cell(source, running, None), "Starting");
    assert_eq!(cell(source, running, Some(&good)), "Running");

    let trouble = |reason: &str| Trouble { reason: reason.into(), message: "why".into() };
    let mut bad = good.clone();
    bad.wallaroo = SideStatus::Failed(trouble("Refused"));
    assert_eq!(cell(source, running, Some(&bad)), "Wallaroo/Refused: why");
    bad.external = SideStatus::Failed(trouble("AuthFailed"));
    assert_eq!(cell(source, running, Some(&bad)), "External/AuthFailed: why");
    bad.stalled = Some(trouble("RecordRejected"));
    assert_eq!(cell(source, running, Some(&bad)), "Stalled/RecordRejected: why");

    let mut waiting = good.clone();
    waiting.wallaroo = SideStatus::Waiting;
    assert_eq!(cell(source, running, Some(&waiting)), "Connecting");
    assert_eq!(cell(sink, running, Some(&waiting)), "Listening");

    let mut complete = good.clone();
    complete.complete = true;
    let over = ProcessState::Over { failure: None };
    assert_eq!(cell(source, running, Some(&complete)), "Complete");
    assert_eq!(cell(source, Some(&over), Some(&complete)), "Complete");
    assert_eq!(cell(source, Some(&over), Some(&good)), "Ended");
    let failed = ProcessState::Over { failure: Some("it broke".into()) };
    assert_eq!(cell(source, Some(&failed), Some(&good)), "Failed: it broke");
    let restarting = ProcessState::Restarting { ended: "signal: 9".into() };
    assert_eq!(cell(source, Some(&restarting), Some(&good)), "Restarting: signal: 9");
}

#[test]
fn a_connector_that_is_to_be_stopped_or_paused_says_so() {
    let state = |state: &str| {
        planned(&MANIFESTS.replace("spec: {source", &format!("spec: {{state: {state}, source")))
    };
    let stopped = state("Stopped");
    assert!(!stopped.runtimes[0].runs());
    assert_eq!(view::connector(&stopped.runtimes[0], None, None, 0).cells[5], "Stopped");
    let paused = state("Paused");
    let row = view::connector(&paused.runtimes[0], Some(&ProcessState::Running), Some(&status(0, 0)), 0);
    assert_eq!(row.cells[5], "Paused");
}

#[test]
fn the_acknowledged_position_is_shown_for_one_stream_and_counted_for_many() {
    let plan = planned(MANIFESTS);
    let cell = |status: &RuntimeStatus| {
        view::connector(&plan.runtimes[0], Some(&ProcessState::Running), Some(status), 0).cells[4].clone()
    };
    let mut status = status(0, 0);
    assert_eq!(cell(&status), "-");
    let stream = |acknowledged| StreamStatus { acknowledged, committed: None };
    status.streams.insert("a".into(), stream(Some(77)));
    assert_eq!(cell(&status), "77");
    status.streams.insert("b".into(), stream(None));
    assert_eq!(cell(&status), "1 of 2 streams");
}
