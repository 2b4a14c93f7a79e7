//! The stages of a run.

use wallaroo_endpoint::config::{Encoder, SinkConfig};
use wallaroo_endpoint::status::{SinkState, SinkStatus, SourceStatus};

use super::*;

const ORDER: [Stage; 9] = [
    Stage::StartingSinks,
    Stage::StartingWallaroo,
    Stage::Running,
    Stage::StoppingSources,
    Stage::SettlingWallaroo,
    Stage::StoppingWallaroo,
    Stage::SettlingSinks,
    Stage::StoppingSinks,
    Stage::Over,
];

#[test]
fn a_run_that_goes_well_passes_every_stage_in_order() {
    let all = Observation {
        sinks_listen: true,
        wallaroo_answers: true,
        complete: true,
        sources_gone: true,
        wallaroo_settled: true,
        wallaroo_gone: true,
        sinks_settled: true,
        sinks_gone: true,
        ..Observation::default()
    };
    for pair in ORDER.windows(2) {
        assert_eq!(next(pair[0], &all), Step::Go(pair[1]));
    }
    assert_eq!(next(Stage::Over, &all), Step::Stay);
}

#[test]
fn nothing_moves_on_before_its_time() {
    for stage in ORDER {
        assert_eq!(next(stage, &Observation::default()), Step::Stay, "{stage:?}");
    }
}

#[test]
fn an_interrupt_ends_in_the_same_order_from_the_sources_on() {
    for seen in [
        Observation { interrupted: true, ..Observation::default() },
        Observation { failed: true, ..Observation::default() },
    ] {
        for stage in [Stage::StartingSinks, Stage::StartingWallaroo, Stage::Running] {
            assert_eq!(next(stage, &seen), Step::Go(Stage::StoppingSources));
        }
        assert_eq!(next(Stage::StoppingSources, &seen), Step::Stay);
    }
}

#[test]
fn waiting_for_results_has_an_end_and_says_that_it_gave_up() {
    let late = Observation { in_stage: SETTLE_LIMIT, ..Observation::default() };
    assert_eq!(next(Stage::SettlingWallaroo, &late), Step::GiveUp(Stage::StoppingWallaroo));
    assert_eq!(next(Stage::SettlingSinks, &late), Step::GiveUp(Stage::StoppingSinks));
    let asked =
        Observation { in_stage: SETTLE_LIMIT_INTERRUPTED, interrupted: true, ..Observation::default() };
    assert_eq!(next(Stage::SettlingSinks, &asked), Step::GiveUp(Stage::StoppingSinks));
}

#[test]
fn a_sink_that_never_listens_does_not_keep_wallaroo_from_starting() {
    let late = Observation { in_stage: LISTEN_LIMIT, ..Observation::default() };
    assert_eq!(next(Stage::StartingSinks, &late), Step::Go(Stage::StartingWallaroo));
}

fn endpoint(protocol: SinkProtocol) -> (EndpointConfig, EndpointStatus) {
    let config = EndpointConfig {
        sinks: vec![SinkConfig {
            name: "out".into(),
            connect: "127.0.0.1:7200".into(),
            protocol,
            encoder: Encoder::Raw,
            retry_ms: None,
        }],
        ..EndpointConfig::default()
    };
    let status = EndpointStatus {
        sources: vec![SourceStatus {
            worker: "w".into(),
            source: "in".into(),
            address: "127.0.0.1:7100".into(),
            connections: 0,
        }],
        sinks: vec![SinkStatus {
            worker: "w".into(),
            sink: "out".into(),
            state: SinkState::Ready,
            records: 3,
            produced: 30,
            committed: 30,
            queued: 0,
            dropped: 0,
            commits: 1,
            aborts: 0,
            transaction: None,
            connections: 1,
        }],
        ..EndpointStatus::default()
    };
    (config, status)
}

#[test]
fn wallaroo_is_settled_when_all_results_are_committed() {
    let (config, status) = endpoint(SinkProtocol::connector());
    assert!(wallaroo_settled(&config, &status));
    let mut open = status.clone();
    open.sinks[0].committed = 29;
    assert!(!wallaroo_settled(&config, &open));
    let mut undecided = status.clone();
    undecided.sinks[0].transaction = Some("w:c_id=2".into());
    assert!(!wallaroo_settled(&config, &undecided));
    let mut unread = status;
    unread.sources[0].connections = 1;
    assert!(!wallaroo_settled(&config, &unread));
}

#[test]
fn a_plain_sink_is_settled_when_its_queue_is_empty() {
    let (config, mut status) = endpoint(SinkProtocol::FramedTcp);
    status.sinks[0].committed = 0;
    assert!(wallaroo_settled(&config, &status));
    status.sinks[0].queued = 1;
    assert!(!wallaroo_settled(&config, &status));
}

#[test]
fn a_sink_is_settled_when_nothing_changes_and_everything_is_durable() {
    let status = |read, acknowledged, committed| {
        let mut status = RuntimeStatus::default();
        status.records.read = read;
        status.streams.insert("w".into(), super::super::status::StreamStatus { acknowledged, committed });
        status
    };
    let done = status(3, Some(30), Some(30));
    assert!(sink_settled(&done, &done));
    assert!(!sink_settled(&status(2, Some(20), Some(20)), &done));
    let open = status(3, Some(30), Some(20));
    assert!(!sink_settled(&open, &open));
    let never = status(3, Some(30), None);
    assert!(!sink_settled(&never, &never));
}
