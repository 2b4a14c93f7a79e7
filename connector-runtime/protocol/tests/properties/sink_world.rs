//! A sink against a worker with losses at every point of a round: exactly what was committed is published.

use proptest::collection::vec;
use proptest::prelude::*;
use wallaroo_protocol::*;

use crate::support::{COOKIE, NOW};

/// A sink with durable state against a worker that keeps its output and rolls back: losses at every point.
#[derive(Clone, Debug)]
enum SinkStep {
    Output(u8),
    Round { vote_lost: bool, decision_lost: bool, other_sink_aborts: bool },
    Lose,
}

fn sink_step() -> impl Strategy<Value = SinkStep> {
    prop_oneof![
        4 => (1..20_u8).prop_map(SinkStep::Output),
        3 => (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(vote_lost, decision_lost, other)| {
            SinkStep::Round { vote_lost, decision_lost: decision_lost && !vote_lost, other_sink_aborts: other }
        }),
        1 => Just(SinkStep::Lose),
    ]
}

struct SinkWorld {
    worker: SinkClient,
    sink: SinkServer,
    rtag: u64,
    /// Worker: all output so far, its committed offset, how far it was sent.
    output: Vec<u8>,
    committed: u64,
    sent: u64,
    round: u64,
    /// Sink's disk.
    disk: WorkerState,
    prepared: Vec<u8>,
    published: Vec<u8>,
    staged: Vec<u8>,
}

impl SinkWorld {
    fn new() -> SinkWorld {
        let mut world = SinkWorld {
            worker: SinkClient::new(SinkClientConfig::new(Cookie::new(COOKIE), "app", "w"), NOW).unwrap(),
            sink: SinkServer::new(SinkServerConfig::new(Cookie::new(COOKIE)), NOW),
            rtag: FIRST_RTAG,
            output: Vec::new(),
            committed: 0,
            sent: 0,
            round: 0,
            disk: WorkerState::default(),
            prepared: Vec::new(),
            published: Vec::new(),
            staged: Vec::new(),
        };
        assert_eq!(world.exchange(), [SinkClientEvent::Ready]);
        world
    }

    /// Moves all bytes both ways.
    fn exchange(&mut self) -> Vec<SinkClientEvent> {
        let mut events = Vec::new();
        loop {
            let (out, back) = (self.worker.poll_output(), self.sink.poll_output());
            if out.is_none() && back.is_none() {
                return events;
            }
            self.sink.input().extend_from_slice(&out.unwrap_or_default());
            self.sink.handle_input(NOW).unwrap();
            while let Some(event) = self.sink.poll_event() {
                self.on_sink(event);
            }
            self.worker.input().extend_from_slice(&back.unwrap_or_default());
            self.worker.handle_input(NOW).unwrap();
            events.extend(std::iter::from_fn(|| self.worker.poll_event()));
        }
    }

    fn on_sink(&mut self, event: SinkServerEvent) {
        match event {
            SinkServerEvent::Hello { .. } => self.sink.accept(self.disk.clone(), NOW).unwrap(),
            SinkServerEvent::Data(run) => {
                let at = self.published.len() + self.prepared.len() + self.staged.len();
                assert_eq!(run.first_id() as usize, at);
                run.payloads().for_each(|payload| self.staged.extend_from_slice(&payload));
            }
            SinkServerEvent::Prepare { transaction, start, end, vote } => {
                assert!(vote, "nothing is missing");
                self.prepared = std::mem::take(&mut self.staged);
                assert_eq!(self.prepared.len() as u64, end - start);
                let pending = Some(Pending { transaction, vote, start, end });
                self.disk = WorkerState { committed: start, received: end, pending };
                self.sink.voted();
            }
            SinkServerEvent::Decide { commit, .. } => {
                let prepared = std::mem::take(&mut self.prepared);
                if commit {
                    self.published.extend_from_slice(&prepared);
                }
                let committed = self.published.len() as u64;
                self.disk = WorkerState { committed, received: committed, pending: None };
            }
            event => panic!("{event:?}"),
        }
    }

    /// The connection dies, and the sink with it; the worker comes back and rolls back to `committed`.
    fn reconnect(&mut self, outcome: bool) {
        self.rtag += 1;
        self.staged.clear();
        let config =
            SinkClientConfig { rtag: self.rtag, ..SinkClientConfig::new(Cookie::new(COOKIE), "app", "w") };
        self.worker = SinkClient::new(config, NOW).unwrap();
        self.sink = SinkServer::new(SinkServerConfig::new(Cookie::new(COOKIE)), NOW);
        for event in self.exchange() {
            match event {
                SinkClientEvent::Ready => {}
                SinkClientEvent::Uncommitted { transactions } => {
                    self.worker.phase2(&transactions[0], outcome).unwrap();
                    self.exchange();
                }
                event @ SinkClientEvent::Vote { .. } => panic!("{event:?}"),
            }
        }
        // Rolled back: what follows may differ from what was discarded.
        self.output.truncate(self.committed as usize);
        self.sent = self.committed;
    }

    fn run(&mut self, step: &SinkStep) {
        match step {
            SinkStep::Output(length) => {
                let fresh: Vec<u8> = (0..*length).map(|byte| byte.wrapping_add(self.rtag as u8)).collect();
                self.output.extend_from_slice(&fresh);
                self.sent = self.worker.send(self.sent, fresh.chunks(7)).unwrap();
                self.exchange();
            }
            SinkStep::Round { vote_lost, decision_lost, other_sink_aborts } => {
                self.round += 1;
                let transaction = format!("t:c_id={}", self.round);
                self.worker.phase1(transaction.as_bytes(), self.committed, self.sent).unwrap();
                let votes = self.exchange();
                assert!(matches!(&votes[..], [SinkClientEvent::Vote { commit: true, .. }]), "{votes:?}");
                if *vote_lost || *other_sink_aborts {
                    self.reconnect(false);
                    return;
                }
                self.committed = self.sent;
                if *decision_lost {
                    self.reconnect(true);
                    return;
                }
                self.worker.phase2(transaction.as_bytes(), true).unwrap();
                self.exchange();
            }
            SinkStep::Lose => self.reconnect(false),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sink_publishes_exactly_what_the_worker_committed(steps in vec(sink_step(), 0..60)) {
        let mut world = SinkWorld::new();
        for step in &steps {
            world.run(step);
            prop_assert_eq!(&world.published[..], &world.output[..world.committed as usize]);
        }
    }
}
