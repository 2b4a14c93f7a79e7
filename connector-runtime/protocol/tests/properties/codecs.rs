//! Round trips, splits and garbage.

use crate::support::{self, NOW, encoded, hello};
use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use wallaroo_protocol::frame;
use wallaroo_protocol::framing::{Decoder, Endian, Framing, PlainRecord, Width};
use wallaroo_protocol::message::Message;
use wallaroo_protocol::two_phase::{Range, TwoPhase};
use wallaroo_protocol::*;

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn stream() -> impl Strategy<Value = StreamId> {
    any::<u64>().prop_map(StreamId)
}

fn position() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![Just(None), (0..u64::MAX).prop_map(Some)]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (bytes(9), bytes(9), bytes(9), bytes(300)).prop_map(|(version, cookie, program, instance)| {
            Message::Hello { version, cookie, program, instance }
        }),
        any::<u32>().prop_map(|credits| Message::Ok { credits }),
        bytes(300).prop_map(|message| Message::Error { message }),
        (stream(), bytes(300), position()).prop_map(|(stream, name, position)| Message::Notify {
            stream,
            name,
            position
        }),
        (any::<bool>(), stream(), position()).prop_map(|(success, stream, position)| Message::NotifyAck {
            success,
            stream,
            position
        }),
        (stream(), any::<u64>(), any::<i64>(), bytes(20), bytes(300))
            .prop_map(|(stream, id, time, key, payload)| Message::Data { stream, id, time, key, payload }),
        (any::<u32>(), vec((stream(), position()), 0..9)).prop_map(|(credits, positions)| {
            Message::Ack { credits, positions: positions.into_iter().collect() }
        }),
        bytes(30).prop_map(|text| Message::Restart { address: Some(text).filter(|text| !text.is_empty()) }),
        stream().prop_map(|stream| Message::Eos { stream }),
        (any::<u64>(), vec(bytes(9), 0..5))
            .prop_map(|(rtag, workers)| Message::WorkersLeft { rtag, workers }),
    ]
}

fn two_phase() -> impl Strategy<Value = TwoPhase> {
    let range =
        (stream(), any::<u64>(), any::<u64>()).prop_map(|(stream, start, end)| Range { stream, start, end });
    prop_oneof![
        any::<u64>().prop_map(|rtag| TwoPhase::ListUncommitted { rtag }),
        (any::<u64>(), vec(bytes(20), 0..4))
            .prop_map(|(rtag, transactions)| TwoPhase::ReplyUncommitted { rtag, transactions }),
        (bytes(90), vec(range, 0..4))
            .prop_map(|(transaction, ranges)| TwoPhase::Phase1 { transaction, ranges }),
        (bytes(90), any::<bool>()).prop_map(|(transaction, commit)| TwoPhase::Reply { transaction, commit }),
        (bytes(90), any::<bool>()).prop_map(|(transaction, commit)| TwoPhase::Phase2 { transaction, commit }),
        (any::<u64>(), vec(bytes(9), 0..5))
            .prop_map(|(rtag, workers)| TwoPhase::WorkersLeft { rtag, workers }),
    ]
}

fn framing() -> impl Strategy<Value = Framing> {
    let width = prop_oneof![Just(Width::One), Just(Width::Two), Just(Width::Four), Just(Width::Eight)];
    let endian = prop_oneof![Just(Endian::Big), Just(Endian::Little)];
    prop_oneof![
        (width, endian).prop_map(|(width, endian)| Framing::Raw { width, endian }),
        Just(Framing::Stream05),
        Just(Framing::Stream06),
    ]
}

/// What came of some input at a worker's source endpoint: everything but where runs were cut.
fn served(pieces: &[&[u8]]) -> (Vec<String>, Bytes) {
    let config =
        SourceServerConfig { max_credits: 20, refill_credits: 5, ..SourceServerConfig::new(Cookie::new("")) };
    let mut server = SourceServer::new(config, NOW);
    let (mut seen, mut said) = (Vec::new(), BytesMut::new());
    for piece in pieces {
        server.input().extend_from_slice(piece);
        let result = server.handle_input(NOW);
        while let Some(event) = server.poll_event() {
            match event {
                SourceServerEvent::Records(run) => {
                    seen.extend(run.iter().map(|record| format!("{} {record:?}", run.stream())));
                }
                // It depends on what was written in between.
                SourceServerEvent::Tolerated(Tolerated::CreditsOverrun { .. }) => {}
                event @ SourceServerEvent::Notify { stream, position, .. } => {
                    seen.push(format!("{event:?}"));
                    server.notify_ack(stream, true, position);
                }
                event @ (SourceServerEvent::Hello { .. }
                | SourceServerEvent::Eos { .. }
                | SourceServerEvent::Tolerated(_)) => seen.push(format!("{event:?}")),
            }
        }
        if let Err(error) = result {
            seen.push(error.to_string());
        }
        said.extend_from_slice(&server.poll_output().unwrap_or_default());
    }
    (seen, said.freeze())
}

/// The same for a sink.
fn sunk(pieces: &[&[u8]]) -> (Vec<String>, Bytes) {
    let mut sink = SinkServer::new(SinkServerConfig::new(Cookie::new("")), NOW);
    let (mut seen, mut said) = (Vec::new(), BytesMut::new());
    for piece in pieces {
        sink.input().extend_from_slice(piece);
        let mut result = sink.handle_input(NOW);
        while let Some(event) = sink.poll_event() {
            match &event {
                SinkServerEvent::Data(run) => {
                    seen.extend(run.iter().map(|record| format!("{record:?}")));
                    continue;
                }
                SinkServerEvent::Hello { .. } => result = sink.accept(WorkerState::default(), NOW),
                SinkServerEvent::Prepare { .. } => sink.voted(),
                _ => {}
            }
            seen.push(format!("{event:?}"));
        }
        if let Err(error) = result {
            seen.push(error.to_string());
        }
        said.extend_from_slice(&sink.poll_output().unwrap_or_default());
    }
    (seen, said.freeze())
}

/// Bytes, and places where the peer waits for an answer before it goes on.
#[derive(Clone, Debug, Default)]
struct Wire {
    bytes: BytesMut,
    waits: Vec<usize>,
}

impl Wire {
    fn wait(&mut self) {
        self.waits.push(self.bytes.len());
    }

    /// Cut at random places and where the peer waits.
    fn pieces(&self, cuts: &[prop::sample::Index]) -> Vec<&[u8]> {
        let length = self.bytes.len();
        let cuts = cuts.iter().map(|cut| cut.index(length + 1));
        let mut places: Vec<_> = cuts.chain(self.waits.iter().copied()).chain([0, length]).collect();
        places.sort_unstable();
        places.windows(2).map(|pair| &self.bytes[pair[0]..pair[1]]).collect()
    }
}

/// Cuts `wire` at random places.
fn pieces<'a>(wire: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<_> =
        cuts.iter().map(|cut| cut.index(wire.len() + 1)).chain([0, wire.len()]).collect();
    places.sort_unstable();
    places.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect()
}

/// Frames that a client might send to a worker, few streams and small ids so that they meet.
fn source_frames() -> impl Strategy<Value = Wire> {
    let frame = prop_oneof![
        1 => (1_u64..4).prop_map(|stream| support::notify(stream, "name", None)),
        6 => (1_u64..4, 1_u64..60).prop_map(|(stream, id)| support::data(stream, id, "payload")),
        1 => (1_u64..4).prop_map(support::eos),
        1 => message().prop_filter("ends the session early", |message| !matches!(message, Message::Error { .. }))
            .prop_map(|message| encoded(&message)),
    ];
    vec(frame, 0..60).prop_map(|frames| {
        let mut wire = Wire { bytes: hello("0.0.1", ""), ..Wire::default() };
        (1..4).for_each(|stream| wire.bytes.extend_from_slice(&support::notify(stream, "name", None)));
        wire.wait();
        for frame in frames {
            wire.bytes.extend_from_slice(&frame);
        }
        wire
    })
}

/// Frames that a worker might send to a sink: mostly contiguous output and rounds.
fn sink_frames() -> impl Strategy<Value = Wire> {
    vec((0..10_u8, 0..4_u64), 0..50).prop_map(|steps| {
        let mut wire = Wire { bytes: hello("v0.0.1", ""), ..Wire::default() };
        wire.bytes.extend_from_slice(&support::notify(1, "name", None));
        let (mut committed, mut offset) = (0, 0);
        for (step, number) in steps {
            match step {
                0..6 => {
                    let payload = "x".repeat(number as usize);
                    wire.bytes.extend_from_slice(&support::data(1, offset, &payload));
                    offset += number;
                }
                6 | 7 => {
                    wire.bytes.extend_from_slice(&support::phase1("t", committed, offset));
                    wire.wait();
                    wire.bytes.extend_from_slice(&support::phase2("t", true));
                    committed = offset;
                }
                8 => wire.bytes.extend_from_slice(&support::phase2("unknown", number == 0)),
                _ => wire.bytes.extend_from_slice(&support::data(1, offset + number, "")),
            }
        }
        wire
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encode_and_decode_are_inverse(message in message()) {
        let mut wire = encoded(&message);
        prop_assert_eq!(wire.len(), 4 + message.body_len().unwrap());
        let body = frame::split(&mut wire, u32::MAX).unwrap().unwrap();
        prop_assert!(wire.is_empty());
        prop_assert_eq!(Message::decode(body).unwrap(), message);
    }

    #[test]
    fn encode_and_decode_of_two_phase_commit_are_inverse(message in two_phase()) {
        let mut payload = BytesMut::new();
        message.encode_payload(&mut payload).unwrap();
        prop_assert_eq!(payload.len(), message.payload_len().unwrap());
        prop_assert_eq!(TwoPhase::decode(payload.freeze()).unwrap(), message);
    }

    #[test]
    fn plain_records_survive_any_split(
        framing in framing(),
        records in vec((any::<i64>(), vec(any::<u8>(), 1..200)), 0..20),
        cuts in vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut wire = BytesMut::new();
        let plain = records.iter().map(|(time, payload)| PlainRecord { time: *time, payload });
        prop_assert_eq!(framing.encode(plain, 1_000, &mut wire), Ok(records.len()));
        let mut decoder = Decoder::new(framing, 1_000);
        let mut borrowing = decoder.clone();
        let (mut read, mut borrowed) = (Vec::new(), Vec::new());
        for piece in pieces(&wire, &cuts) {
            borrowing.input().extend_from_slice(piece);
            borrowing.read_all(|record| borrowed.push((record.time, record.payload.to_vec()))).unwrap();
            decoder.input().extend_from_slice(piece);
            while let Some(record) = decoder.next_record().unwrap() {
                let time = if framing == Framing::Stream06 { record.time } else { 0 };
                read.push((time, record.payload.to_vec()));
            }
        }
        prop_assert_eq!(decoder.finish(), Ok(()));
        prop_assert_eq!(borrowing.finish(), Ok(()));
        prop_assert_eq!(&borrowed, &read);
        let sent: Vec<_> = records
            .into_iter()
            .map(|(time, payload)| (if framing == Framing::Stream06 { time } else { 0 }, payload))
            .collect();
        prop_assert_eq!(read, sent);
    }

    #[test]
    fn any_split_gives_the_same_events_at_a_source_server(
        wire in source_frames(),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let (seen, said) = served(&wire.pieces(&cuts));
        let bytewise: Vec<_> = wire.bytes.chunks(1).collect();
        prop_assert_eq!(&seen, &served(&bytewise).0);
        // NOTIFY is answered by the driver between two reads, so the whole at once answers later frames first; the frames are
        // the same.
        prop_assert!(said.starts_with(&[0, 0, 0, 5, 1]));
    }

    #[test]
    fn any_split_gives_the_same_events_and_answers_at_a_sink(
        wire in sink_frames(),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytewise: Vec<_> = wire.bytes.chunks(1).collect();
        prop_assert_eq!(sunk(&wire.pieces(&cuts)), sunk(&bytewise));
    }

    #[test]
    fn garbage_never_panics_and_never_holds_more_than_the_limit(
        wire in vec(prop_oneof![3 => Just(0_u8), 3 => 0..12_u8, 1 => any::<u8>()], 0..2_000),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
        valid_first in any::<bool>(),
    ) {
        let limit = 4 + SOURCE_FRAME_LIMIT as usize;
        let cookie = || Cookie::new("");
        let mut server = SourceServer::new(SourceServerConfig::new(cookie()), NOW);
        let mut client = SourceClient::new(SourceClientConfig::new(cookie(), "p", "i"), NOW).unwrap();
        let config = SinkServerConfig { max_frame: SOURCE_FRAME_LIMIT, ..SinkServerConfig::new(cookie()) };
        let mut sink = SinkServer::new(config, NOW);
        let config = SinkClientConfig::new(cookie(), "app", "w");
        let mut worker = SinkClient::new(SinkClientConfig { max_frame: SOURCE_FRAME_LIMIT, ..config }, NOW).unwrap();
        let mut plain = Decoder::new(Framing::HeadCompat, 1_000);
        let mut borrowing = plain.clone();
        if valid_first {
            support::open_stream(&mut server, StreamId(0), None);
            client.input().extend_from_slice(&encoded(&Message::Ok { credits: 10 }));
            client.open(StreamId(0), b"s", None, NOW).unwrap();
            support::sink_intro(&mut sink, WorkerState::default());
            worker.input().extend_from_slice(&support::intro_answers(&[]));
        }
        for piece in pieces(&wire, &cuts) {
            server.input().extend_from_slice(piece);
            let _ = server.handle_input(NOW);
            client.input().extend_from_slice(piece);
            let _ = client.handle_input(NOW);
            sink.input().extend_from_slice(piece);
            let _ = sink.handle_input(NOW);
            worker.input().extend_from_slice(piece);
            let _ = worker.handle_input(NOW);
            plain.input().extend_from_slice(piece);
            borrowing.input().extend_from_slice(piece);
            let mut read = Vec::new();
            let borrowed = borrowing.read_all(|record| read.push((record.time, record.key.to_vec(), record.payload.to_vec())));
            let mut records = read.into_iter();
            let ended = loop {
                match plain.next_record() {
                    Ok(Some(record)) => {
                        let record = (record.time, record.key.to_vec(), record.payload.to_vec());
                        prop_assert_eq!(records.next(), Some(record));
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            prop_assert_eq!(records.next(), None);
            prop_assert_eq!(borrowed, ended);
            for held in [server.buffered(), client.buffered(), worker.buffered()] {
                prop_assert!(held < limit);
            }
            // A sink that waits for its driver holds what one read brought.
            prop_assert!(sink.buffered() < limit + wire.len());
        }
    }
}
