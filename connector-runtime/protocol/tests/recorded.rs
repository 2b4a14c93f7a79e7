//! Sessions recorded on a real worker, replayed frame by frame against the machines of both roles.
//!
//! `golden/sessions.json` holds the frames. A third element `added` marks those that the recording leaves out and that are
//! needed to get there (an intro, data of a known length). Where a recorded peer breaks a rule, our machine of its role must
//! refuse to do the same; where it keeps them, our machine must say the same bytes.

#![allow(clippy::unwrap_used)] // a test file

mod support;

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use support::{COOKIE, NOW, describe, hex, messages, unhex};
use wallaroo_protocol::frame;
use wallaroo_protocol::message::Message;
use wallaroo_protocol::two_phase::TwoPhase;
use wallaroo_protocol::*;

#[derive(Deserialize)]
struct Session {
    name: String,
    side: String,
    about: String,
    /// The cluster takes checkpoints.
    #[serde(default = "yes")]
    resilience: bool,
    /// Records are missing in the recording: credits cannot be compared.
    #[serde(default)]
    abridged: bool,
    /// The sink prepared and was not heard.
    #[serde(default)]
    silent: bool,
    /// The recorded sink breaks the rules.
    #[serde(default)]
    rude: bool,
    state: Option<State>,
    frames: Vec<Vec<String>>,
}

#[derive(Deserialize)]
struct State {
    committed: u64,
    pending: Option<(String, bool, u64, u64)>,
}

fn yes() -> bool {
    true
}

impl Session {
    /// Who sent what, in order.
    fn steps(&self) -> Vec<(&str, Bytes)> {
        let step = |frame: &Vec<String>| {
            let wire = match frame[1].strip_prefix("records ") {
                Some(range) => {
                    let range: Vec<u64> = range.split(' ').map(|part| part.parse().unwrap()).collect();
                    let mut out = BytesMut::new();
                    (range[1]..=range[2])
                        .for_each(|id| out.extend_from_slice(&support::data(range[0], id, "x")));
                    out.freeze()
                }
                None => Bytes::from(unhex(&frame[1])),
            };
            (frame[0].clone(), wire)
        };
        let steps: Vec<_> = self.frames.iter().map(step).collect();
        self.frames.iter().zip(steps).map(|(frame, (_, wire))| (frame[0].as_str(), wire)).collect()
    }
}

fn sessions(side: &str) -> Vec<Session> {
    let all: Vec<Session> = serde_json::from_str(include_str!("golden/sessions.json")).unwrap();
    assert_eq!(all.len(), 50);
    all.into_iter().filter(|session| session.side == side).collect()
}

/// Takes the first frame off `wire`.
fn first_frame(wire: &mut BytesMut) -> Bytes {
    let length = 4 + frame::peek(wire, u32::MAX).unwrap().unwrap().len();
    wire.split_to(length).freeze()
}

/// A worker's source endpoint, told by the recording what the cluster decided.
struct ReplayedServer<'a> {
    session: &'a Session,
    server: SourceServer,
    said: BytesMut,
    ending: Vec<StreamId>,
}

impl ReplayedServer<'_> {
    fn reads(&mut self, wire: &[u8]) {
        self.server.input().extend_from_slice(wire);
        let result = self.server.handle_input(NOW);
        while let Some(event) = self.server.poll_event() {
            match event {
                SourceServerEvent::Eos { stream } => self.ending.push(stream),
                SourceServerEvent::Hello { .. }
                | SourceServerEvent::Notify { .. }
                | SourceServerEvent::Records(_)
                | SourceServerEvent::Tolerated(_) => {}
            }
        }
        assert_eq!(result.is_err(), self.server.is_over());
        self.collect();
    }

    fn collect(&mut self) {
        if let Some(out) = self.server.poll_output() {
            self.said.extend_from_slice(&out);
        }
    }

    /// Makes the server say `wire` if only the cluster can know what to say.
    fn decides(&mut self, wire: &Bytes) {
        match messages(wire).remove(0) {
            Message::NotifyAck { success, stream, position } => {
                self.server.notify_ack(stream, success, position);
            }
            Message::Ack { positions, .. } => {
                let list: Vec<_> = positions.iter().collect();
                if !self.session.abridged && self.session.resilience {
                    self.server.barrier();
                }
                for (stream, position) in &list {
                    let known = self.server.stream(*stream).map(|stream| stream.seen);
                    if !self.session.abridged {
                        assert_eq!(known, Some(*position), "{}: {}", self.session.name, describe(wire));
                    }
                }
                if !list.is_empty() && list.iter().all(|(stream, _)| self.ending.contains(stream)) {
                    self.ending.clear();
                    self.server.acknowledge_ended(&list);
                } else {
                    self.server.acknowledge(&list);
                }
            }
            Message::Restart { address } => {
                self.server.restart(address.as_deref().map(|address| std::str::from_utf8(address).unwrap()));
            }
            other => panic!("{}: the server did not say {other:?} by itself", self.session.name),
        }
        self.collect();
    }
}

#[test]
fn the_source_server_says_what_the_worker_said() {
    for session in &sessions("source") {
        let config = SourceServerConfig::new(Cookie::new(COOKIE));
        let server = SourceServer::new(config, NOW);
        let mut replay = ReplayedServer { session, server, said: BytesMut::new(), ending: Vec::new() };
        for (from, wire) in session.steps() {
            if from == "client" {
                replay.reads(&wire);
                continue;
            }
            if replay.said.is_empty() {
                replay.decides(&wire);
            }
            assert!(!replay.said.is_empty(), "{}: silence instead of {}", session.name, describe(&wire));
            let said = first_frame(&mut replay.said);
            let (mut got, mut want) = (messages(&said).remove(0), messages(&wire).remove(0));
            if session.abridged
                && let (Message::Ack { credits, .. }, Message::Ack { credits: other, .. }) =
                    (&mut got, &mut want)
            {
                *credits = *other;
            }
            assert_eq!(got, want, "{} ({})", session.name, session.about);
            if !session.abridged {
                assert_eq!(hex(&said), hex(&wire), "{} ({})", session.name, session.about);
            }
        }
        assert!(replay.said.is_empty(), "{}: said too much: {}", session.name, describe(&replay.said));
    }
}

/// What a client must conclude from the worker's frames.
#[derive(Default)]
struct ClientModel {
    open: BTreeMap<StreamId, Option<u64>>,
    acked: BTreeMap<StreamId, u64>,
    ended: Vec<StreamId>,
}

impl ClientModel {
    fn expects(&mut self, message: &Message, pending: &mut Vec<StreamId>) -> Vec<SourceClientEvent> {
        let something = |position: Option<u64>| position.filter(|position| *position != 0);
        match message {
            Message::Ok { credits } => vec![SourceClientEvent::Ready { credits: *credits }],
            Message::NotifyAck { success, stream, position } => {
                let Some(at) = pending.iter().position(|other| other == stream) else { return Vec::new() };
                if !success {
                    return vec![SourceClientEvent::Refused { stream: *stream }];
                }
                pending.remove(at);
                self.open.insert(*stream, something(*position));
                vec![SourceClientEvent::Opened { stream: *stream, position: something(*position) }]
            }
            Message::Ack { positions, .. } => {
                let mut events = Vec::new();
                if !positions.is_empty() {
                    events.push(SourceClientEvent::Checkpoint);
                }
                for (stream, position) in positions.iter() {
                    let Some(last) = self.open.get(&stream).copied() else { continue };
                    let acked = self.acked.get(&stream).copied();
                    if let Some(position) = something(position).filter(|position| Some(*position) > acked) {
                        self.acked.insert(stream, position);
                        events.push(SourceClientEvent::Acknowledged { stream, position });
                    }
                    let position = self.acked.get(&stream).copied();
                    if self.ended.contains(&stream) && position == last {
                        self.open.remove(&stream);
                        events.push(SourceClientEvent::Ended { stream, position });
                    }
                }
                events
            }
            Message::Restart { address } => {
                let address = address.as_ref().map(|address| String::from_utf8_lossy(address).into_owned());
                vec![SourceClientEvent::Restart { address }]
            }
            other => panic!("a worker said {other:?}"),
        }
    }
}

#[test]
fn the_source_client_says_what_the_recorded_client_said_or_refuses_to() {
    let (mut same, mut refused) = (0, 0);
    for session in &sessions("source") {
        if ["A5", "A6", "A7"].contains(&session.name.as_str()) {
            continue; // no HELLO, an unknown tag, a torn frame: ours has no way to send them
        }
        let steps = session.steps();
        let Message::Hello { cookie, program, instance, version } = messages(&steps[0].1).remove(0) else {
            panic!("{} starts without HELLO", session.name);
        };
        if version != message::SOURCE_VERSION {
            continue; // ours only has one
        }
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let config = SourceClientConfig::new(Cookie::new(cookie), text(&program), text(&instance));
        let mut client = SourceClient::new(config, NOW).unwrap();
        let (mut model, mut asked) = (ClientModel::default(), Vec::new());
        let mut said = BytesMut::new();
        for (from, wire) in steps {
            if from == "client" {
                for message in messages(&wire) {
                    let did = match &message {
                        Message::Hello { .. } => true,
                        Message::Notify { stream, name, position } => {
                            if asked.contains(stream) {
                                // Refused before: ours asks again by its timer.
                                client.handle_timeout(NOW.after(2_000)).unwrap();
                                true
                            } else {
                                let opened = client.open(*stream, name, *position, NOW).is_ok();
                                if opened {
                                    asked.push(*stream);
                                }
                                opened
                            }
                        }
                        Message::Data { stream, id, time, key, payload } => {
                            let record = OutRecord { id: *id, time: *time, key, payload };
                            match client.send(*stream, std::iter::once(record)) {
                                Ok(taken) => {
                                    // The recorded client overran its credits in D4.
                                    assert!(taken == 1 || client.credits() == 0, "{}", session.name);
                                    if taken == 1 {
                                        model.open.insert(*stream, Some(*id));
                                    }
                                    taken == 1
                                }
                                Err(SendError::Empty { .. }) => {
                                    // It counts all the same: send something instead.
                                    let record = OutRecord { payload: b"x", ..record };
                                    assert_eq!(client.send(*stream, std::iter::once(record)), Ok(1));
                                    model.open.insert(*stream, Some(*id));
                                    client.poll_output().unwrap();
                                    false
                                }
                                Err(_) => false,
                            }
                        }
                        Message::Eos { stream } => {
                            let ended = client.end(*stream, NOW).is_ok();
                            if ended {
                                model.ended.push(*stream);
                            }
                            ended
                        }
                        _ => false, // ours has no way to say it
                    };
                    if let Some(out) = client.poll_output() {
                        said.extend_from_slice(&out);
                    }
                    if did {
                        same += 1;
                        assert_eq!(first_frame(&mut said), support::encoded(&message), "{}", session.name);
                    } else {
                        refused += 1;
                    }
                    assert!(said.is_empty(), "{}: said too much", session.name);
                }
                continue;
            }
            let message = messages(&wire).remove(0);
            client.input().extend_from_slice(&wire);
            let result = client.handle_input(NOW);
            if let Message::Error { .. } = message {
                let error = result.unwrap_err();
                assert!(!format!("{error} {error:?}").contains(COOKIE), "{}: {error}", session.name);
                assert!(client.is_over(), "{}", session.name);
                continue;
            }
            if session.name == "D4" && result.is_err() {
                // It acknowledges records for which our client had no credits.
                assert!(matches!(result, Err(SourceClientError::AcknowledgedBeyondSent { .. })));
                break;
            }
            result.unwrap_or_else(|error| panic!("{}: {error}", session.name));
            let events: Vec<_> = std::iter::from_fn(|| client.poll_event()).collect();
            if session.abridged || client.is_over() {
                continue; // what it acknowledges is not in the recording
            }
            assert_eq!(events, model.expects(&message, &mut asked), "{}: {}", session.name, describe(&wire));
        }
    }
    assert!(same > 90, "{same} frames were compared");
    assert!(refused > 5, "{refused} frames broke a rule");
}

fn worker_state(session: &Session) -> WorkerState {
    let state = session.state.as_ref().unwrap();
    let pending = state.pending.as_ref().map(|(transaction, vote, start, end)| Pending {
        transaction: transaction.clone().into(),
        vote: *vote,
        start: *start,
        end: *end,
    });
    let received = pending.as_ref().filter(|pending| pending.vote).map_or(state.committed, |p| p.end);
    WorkerState { committed: state.committed, received, pending }
}

#[test]
fn the_sink_server_says_what_the_recorded_sink_said() {
    for session in sessions("sink").iter().filter(|session| !session.rude) {
        let mut sink = SinkServer::new(SinkServerConfig::new(Cookie::new(COOKIE)), NOW);
        let (mut said, mut recorded, mut received) = (BytesMut::new(), BytesMut::new(), BytesMut::new());
        let mut votes_heard = session
            .steps()
            .iter()
            .filter(|(from, wire)| {
                *from == "sink"
                    && matches!(messages(wire).remove(0), Message::Data { payload, .. }
                    if matches!(TwoPhase::decode(payload.clone()).unwrap(), TwoPhase::Reply { .. }))
            })
            .count();
        for (from, wire) in session.steps() {
            if from == "sink" {
                recorded.extend_from_slice(&wire);
                continue;
            }
            sink.input().extend_from_slice(&wire);
            sink.handle_input(NOW).unwrap_or_else(|error| panic!("{}: {error}", session.name));
            while let Some(event) = sink.poll_event() {
                match event {
                    SinkServerEvent::Hello { .. } => sink.accept(worker_state(session), NOW).unwrap(),
                    SinkServerEvent::Prepare { .. } => {
                        if votes_heard > 0 {
                            votes_heard -= 1;
                            sink.voted();
                        }
                    }
                    SinkServerEvent::Data(run) => run.payloads().for_each(|p| received.extend_from_slice(&p)),
                    SinkServerEvent::Decide { .. } | SinkServerEvent::WorkersLeft { .. } => {}
                    event @ (SinkServerEvent::UnknownDecision { .. }
                    | SinkServerEvent::FreshCluster { .. }
                    | SinkServerEvent::Poisoned { .. }) => panic!("{}: {event:?}", session.name),
                }
            }
            if let Some(out) = sink.poll_output() {
                said.extend_from_slice(&out);
            }
        }
        assert_eq!(describe(&said), describe(&recorded), "{} ({})", session.name, session.about);
        assert_eq!(hex(&said), hex(&recorded), "{} ({})", session.name, session.about);
        assert!(!session.silent || sink.core().pending().is_some(), "{}", session.name);
    }
}

#[test]
fn the_sink_client_says_what_the_worker_said() {
    for session in &sessions("sink") {
        let mut steps: VecDeque<_> = session.steps().into();
        // F1's sink says OK before it has seen HELLO.
        let hello = steps.iter().find(|(from, _)| *from == "worker").unwrap();
        let Message::Hello { cookie, program, instance, .. } = messages(&hello.1).remove(0) else { panic!() };
        let own = |what: &str| {
            session.steps().iter().filter(|(from, _)| *from == "worker").find_map(|(_, wire)| match messages(
                wire,
            )
            .remove(0)
            {
                Message::Notify { name, position, .. } if what == "notify" => Some((name, position.unwrap())),
                Message::Data { stream: StreamId(0), payload, .. } if what == "list" => {
                    match TwoPhase::decode(payload).unwrap() {
                        TwoPhase::ListUncommitted { rtag } => Some((Bytes::new(), rtag)),
                        _ => None,
                    }
                }
                _ => None,
            })
        };
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let (stream_name, notify_position) = own("notify").unwrap();
        let config = SinkClientConfig {
            stream_name: text(&stream_name),
            notify_position,
            rtag: own("list").map_or(FIRST_RTAG, |(_, rtag)| rtag),
            ..SinkClientConfig::new(Cookie::new(cookie), text(&program), text(&instance))
        };
        let mut worker = SinkClient::new(config, NOW).unwrap();
        let mut said = BytesMut::new();
        while let Some((from, wire)) = steps.pop_front() {
            if from == "sink" {
                worker.input().extend_from_slice(&wire);
                if let Err(error) = worker.handle_input(NOW) {
                    assert!(session.rude, "{}: {error}", session.name);
                }
                while worker.poll_event().is_some() {}
                continue;
            }
            if let Message::Data { stream, id, payload, .. } = messages(&wire).remove(0) {
                if stream == StreamId(1) {
                    worker.send(id, [&payload[..]]).unwrap();
                } else {
                    let name = &session.name;
                    match TwoPhase::decode(payload).unwrap() {
                        TwoPhase::Phase1 { transaction, ranges } => worker
                            .phase1(&transaction, ranges[0].start, ranges[0].end)
                            .unwrap_or_else(|error| panic!("{name}: {error}")),
                        TwoPhase::Phase2 { transaction, commit } => worker
                            .phase2(&transaction, commit)
                            .unwrap_or_else(|error| panic!("{name}: {error}")),
                        TwoPhase::WorkersLeft { workers, .. } => worker.workers_left(workers).unwrap(),
                        TwoPhase::ListUncommitted { .. } => {} // part of the intro
                        TwoPhase::ReplyUncommitted { .. } | TwoPhase::Reply { .. } => panic!("{name}"),
                    }
                }
            }
            if let Some(out) = worker.poll_output() {
                said.extend_from_slice(&out);
            }
            let next = first_frame(&mut said);
            assert_eq!(describe(&next), describe(&wire), "{} ({})", session.name, session.about);
            assert_eq!(hex(&next), hex(&wire), "{} ({})", session.name, session.about);
        }
        assert_eq!(worker.is_over(), session.rude, "{}", session.name);
    }
}
