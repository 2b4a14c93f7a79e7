//! A random client against a random worker: nothing is lost, nothing stands still, and repeats come from reconnects only.

use std::collections::BTreeMap;

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use wallaroo_protocol::*;

use crate::support::{self, COOKIE, NOW};

/// A client and a worker over links of random chunks, with random barriers, losses, ends and refusals.
#[derive(Clone, Debug)]
enum Step {
    ClientToServer(u16),
    ServerToClient(u16),
    Send(u8, u8),
    Checkpoint,
    Lose,
    Rollback,
    End(u8),
    Tick(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..2_000_u16).prop_map(Step::ClientToServer),
        6 => (1..2_000_u16).prop_map(Step::ServerToClient),
        6 => (0..3_u8, 1..9_u8).prop_map(|(stream, count)| Step::Send(stream, count)),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Lose),
        1 => Just(Step::Rollback),
        1 => (0..3_u8).prop_map(Step::End),
        1 => (1..3_000_u16).prop_map(Step::Tick),
    ]
}

const RECORDS: u64 = 40;

/// A whole world: an external system with `RECORDS` numbered records a stream, our session, a worker with a registry.
struct World {
    now: Millis,
    credits: (u32, u32),
    client: SourceClient,
    server: SourceServer,
    to_server: BytesMut,
    to_client: BytesMut,
    /// Client: what is acknowledged, where reading continues, whether the stream is open or finished.
    committed: BTreeMap<StreamId, u64>,
    next: BTreeMap<StreamId, u64>,
    open: BTreeMap<StreamId, bool>,
    done: BTreeMap<StreamId, bool>,
    /// Worker: processed ids since the last rollback, positions of the last checkpoint.
    processed: BTreeMap<StreamId, Vec<u64>>,
    registry: BTreeMap<StreamId, Option<u64>>,
    checkpoint: BTreeMap<StreamId, Option<u64>>,
    losses: u32,
}

fn sessions(now: Millis, (max_credits, refill_credits): (u32, u32)) -> (SourceClient, SourceServer) {
    let config =
        SourceServerConfig { max_credits, refill_credits, ..SourceServerConfig::new(Cookie::new(COOKIE)) };
    let mut client = SourceClient::new(SourceClientConfig::new(Cookie::new(COOKIE), "p", "i"), now).unwrap();
    for stream in 0..3 {
        client.open(StreamId(stream), b"name", None, now).unwrap();
    }
    (client, SourceServer::new(config, now))
}

impl World {
    fn new(credits: (u32, u32)) -> World {
        let now = NOW;
        let (client, server) = sessions(now, credits);
        World {
            now,
            credits,
            client,
            server,
            to_server: BytesMut::new(),
            to_client: BytesMut::new(),
            committed: BTreeMap::new(),
            next: BTreeMap::new(),
            open: BTreeMap::new(),
            done: BTreeMap::new(),
            processed: BTreeMap::new(),
            registry: BTreeMap::new(),
            checkpoint: BTreeMap::new(),
            losses: 0,
        }
    }

    fn write(&mut self) {
        self.to_server.extend_from_slice(&self.client.poll_output().unwrap_or_default());
        self.to_client.extend_from_slice(&self.server.poll_output().unwrap_or_default());
    }

    fn server_reads(&mut self, bytes: usize) {
        self.write();
        let bytes = bytes.min(self.to_server.len());
        self.server.input().extend_from_slice(&self.to_server.split_to(bytes));
        self.server.handle_input(self.now).expect("an honest client breaks no rule");
        while let Some(event) = self.server.poll_event() {
            match event {
                SourceServerEvent::Hello { .. } | SourceServerEvent::Eos { .. } => {}
                SourceServerEvent::Notify { stream, .. } => {
                    // Now and then a refusal, as during a hand-over.
                    let known = self.registry.get(&stream).copied();
                    let success = !(self.losses + u32::from(self.now.0 as u16)).is_multiple_of(5);
                    self.server.notify_ack(stream, success, known.flatten());
                }
                SourceServerEvent::Records(run) => {
                    let processed = self.processed.entry(run.stream()).or_default();
                    processed.extend(run.iter().map(|record| record.id));
                }
                SourceServerEvent::Tolerated(tolerated) => panic!("{tolerated}"),
            }
        }
        self.write();
    }

    fn client_reads(&mut self, bytes: usize) {
        self.write();
        let bytes = bytes.min(self.to_client.len());
        self.client.input().extend_from_slice(&self.to_client.split_to(bytes));
        self.client.handle_input(self.now).expect("an honest worker breaks no rule");
        while let Some(event) = self.client.poll_event() {
            match event {
                SourceClientEvent::Ready { .. }
                | SourceClientEvent::Refused { .. }
                | SourceClientEvent::Checkpoint => {}
                SourceClientEvent::Opened { stream, position } => {
                    let committed = self.committed.get(&stream).copied();
                    assert!(position >= committed, "{position:?} went behind {committed:?}");
                    self.next.insert(stream, position.unwrap_or(0) + 1);
                    self.open.insert(stream, true);
                }
                SourceClientEvent::Acknowledged { stream, position } => {
                    let before = self.committed.insert(stream, position);
                    assert!(before.is_none_or(|before| before <= position), "{before:?} > {position}");
                    // An acknowledged record survives everything.
                    assert!(self.checkpoint[&stream] >= Some(position));
                }
                SourceClientEvent::Ended { stream, position } => {
                    self.open.insert(stream, false);
                    self.done.insert(stream, true);
                    assert_eq!(position.unwrap_or(0) + 1, self.next.get(&stream).copied().unwrap_or(1));
                }
                SourceClientEvent::Restart { address } => panic!("{address:?}"),
            }
        }
        self.write();
    }

    fn checkpoint(&mut self) {
        self.server.barrier();
        let streams: Vec<_> = self.server.streams().collect();
        let positions = |phase| -> Vec<_> {
            let streams = streams.iter().filter(|(_, stream)| stream.phase == phase);
            streams.map(|(id, stream)| (*id, stream.acked)).collect()
        };
        let (open, closing) = (positions(ServerStreamPhase::Open), positions(ServerStreamPhase::Closing));
        for (id, acked) in open.iter().chain(&closing) {
            self.registry.insert(*id, *acked);
        }
        self.checkpoint = self.registry.clone();
        self.server.acknowledge(&open);
        self.server.acknowledge_ended(&closing);
        self.write();
    }

    /// The connection dies; a rollback also undoes what was processed since the last checkpoint.
    fn lose(&mut self, rollback: bool) {
        self.losses += 1;
        for (id, stream) in self.server.streams() {
            self.registry.insert(id, stream.acked);
        }
        if rollback {
            self.registry = self.checkpoint.clone();
            for (stream, processed) in &mut self.processed {
                let kept = self.checkpoint.get(stream).copied().flatten();
                processed.retain(|id| Some(*id) <= kept);
            }
        }
        (self.client, self.server) = sessions(self.now, self.credits);
        self.to_server.clear();
        self.to_client.clear();
        self.open.clear();
        self.done.clear();
    }

    fn send(&mut self, stream: StreamId, count: u64) {
        if self.open.get(&stream) != Some(&true) || !self.client.core().is_open(stream) {
            return;
        }
        let next = self.next[&stream];
        let last = (next + count).min(RECORDS + 1);
        let taken = self.client.send(stream, (next..last).map(|id| support::record(id, "payload"))).unwrap();
        self.next.insert(stream, next + taken as u64);
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::ClientToServer(bytes) => self.server_reads(usize::from(*bytes)),
            Step::ServerToClient(bytes) => self.client_reads(usize::from(*bytes)),
            Step::Send(stream, count) => self.send(StreamId(u64::from(*stream)), u64::from(*count)),
            Step::Checkpoint => self.checkpoint(),
            Step::Lose => self.lose(false),
            Step::Rollback => self.lose(true),
            Step::End(stream) => {
                let stream = StreamId(u64::from(*stream));
                if self.client.core().is_open(stream) {
                    self.client.end(stream, self.now).unwrap();
                }
            }
            Step::Tick(time) => {
                self.now = self.now.after(u64::from(*time));
                // A NOTIFY may be late on a slow link: then the session is lost.
                if self.client.handle_timeout(self.now).is_err() {
                    self.lose(false);
                }
            }
        }
    }

    /// Lets everything flow until all records are acknowledged.
    fn finish(&mut self) {
        for _ in 0..400 {
            self.now = self.now.after(333);
            if self.client.handle_timeout(self.now).is_err() {
                self.lose(false);
            }
            for stream in (0..3).map(StreamId) {
                self.send(stream, RECORDS);
                if self.next.get(&stream) == Some(&(RECORDS + 1)) && self.client.core().is_open(stream) {
                    self.client.end(stream, self.now).unwrap();
                }
                // Ended too early by the random part: again.
                if self.done.get(&stream) == Some(&true)
                    && self.committed.get(&stream) != Some(&RECORDS)
                    && self.client.open(stream, b"name", None, self.now).is_ok()
                {
                    self.done.insert(stream, false);
                }
            }
            self.server_reads(usize::MAX);
            self.checkpoint();
            self.client_reads(usize::MAX);
            if (0..3).all(|stream| self.committed.get(&StreamId(stream)) == Some(&RECORDS)) {
                return;
            }
        }
        panic!("deadlock: {:?} {:?} {:?}", self.client.core(), self.server.core(), self.committed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_random_client_and_a_random_server_lose_nothing_repeat_only_what_a_reconnect_repeats_and_never_stop(
        credits in prop_oneof![Just((2, 0)), Just((3, 1)), Just((10, 8)), Just((500, 50))],
        steps in vec(step(), 0..150),
    ) {
        let mut world = World::new(credits);
        for step in &steps {
            world.run(step);
        }
        world.finish();
        for stream in (0..3).map(StreamId) {
            let processed = &world.processed[&stream];
            // Nothing lost, in order, and repeats only after a plain reconnect (§7.4).
            for id in 1..=RECORDS {
                let times = processed.iter().filter(|processed| **processed == id).count() as u32;
                prop_assert!(times >= 1, "record {id} of stream {stream} is lost");
                prop_assert!(times <= 1 + world.losses, "record {id} of stream {stream} came {times} times");
            }
            if world.losses == 0 {
                prop_assert!(processed.is_sorted());
            }
        }
    }
}
