//! The kill campaign in short: what `./tasks kill` does with a million records from Kafka, here with what needs no server.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use connector_crds::Protocol;
use connector_tests::binaries::binary;
use connector_tests::kill::account::Account;
use connector_tests::kill::campaign::{self, Report, Victim};
use connector_tests::kill::chain::Plan;
use connector_tests::kill::feed::Feed;
use wallaroo_endpoint::config::ReleasePosition;

/// Enough for several kills of each process at the rate below.
const RECORDS: u64 = 20_000;

/// Spreads them over five seconds.
const RATE: u64 = 4_000;

/// Time between two kills.
const EVERY: Duration = Duration::from_millis(700);

fn campaign(feed: Feed, protocol: Protocol) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let plan = Plan {
        runtime: binary("connector-runtime").unwrap(),
        endpoint: binary("wallaroo-endpoint").unwrap(),
        directory: directory.path().to_owned(),
        feed,
        protocol,
        release: match protocol {
            Protocol::Connector => ReleasePosition::LastSeen,
            _ => ReleasePosition::LastAcked,
        },
        records: RECORDS,
        size: 100,
        rate: Some(RATE),
    };
    let victims = Victim::all(&plan.feed);
    let report = campaign::run(plan, &victims, EVERY).unwrap();
    println!("{report}");
    assert!(report.kills[..3].iter().all(|kills| *kills > 0), "{report}");
    report.verdict().unwrap();
    report
}

#[test]
fn a_growing_file_arrives_exactly_once_whatever_is_killed() {
    let report = campaign(Feed::File, Protocol::Connector);
    assert_eq!(report.output, Account::default());
}

#[test]
fn generated_records_arrive_exactly_once_whatever_is_killed() {
    let report = campaign(Feed::Generator, Protocol::Connector);
    assert_eq!(report.output, Account::default());
}

#[test]
fn over_a_plain_protocol_what_the_workers_kernel_had_for_less_than_the_commit_delay_is_sent_again() {
    let report = campaign(Feed::File, Protocol::FramedTCP);
    assert_eq!(report.processed.lost, 0, "{report}");
    assert!(report.processed.repeats > 0, "a kill repeats what was not committed: {report}");
}
