//! The golden vectors of the specification (§6): each decodes to what it says and encodes to the same bytes, and each invalid
//! input is met as §6 recommends.

#![allow(clippy::unwrap_used)] // a test file

mod support;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use support::{hex, unhex};
use wallaroo_protocol::frame::{self, FrameError};
use wallaroo_protocol::framing::{
    Decoder, Framing, FramingError, PlainError, PlainRecord, Width, encode_stream05,
};
use wallaroo_protocol::message::{DecodeError, Message};
use wallaroo_protocol::two_phase::TwoPhase;
use wallaroo_protocol::*;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/wire-vectors.json")).unwrap()
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("{field} in {value}"))
}

fn text(value: &Value, field: &str) -> Bytes {
    Bytes::from(value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}")).to_owned())
}

/// A `*_hex` field; null is the same as empty.
fn bytes(value: &Value, field: &str) -> Bytes {
    value[field].as_str().map(unhex).unwrap_or_default().into()
}

fn por(value: &Value) -> Option<u64> {
    Some(number(value, "point_of_ref")).filter(|por| *por != NONE)
}

fn stream(value: &Value) -> StreamId {
    StreamId(number(value, "stream_id"))
}

fn names(value: &Value, field: &str) -> Vec<Bytes> {
    let names = value[field].as_array().unwrap();
    names.iter().map(|name| Bytes::from(name.as_str().unwrap().to_owned())).collect()
}

/// What the vector says the frame means.
fn expected(kind: &str, fields: &Value) -> Message {
    match kind {
        "Hello" => Message::Hello {
            version: text(fields, "version"),
            cookie: text(fields, "cookie"),
            program: text(fields, "program_name"),
            instance: text(fields, "instance_name"),
        },
        "Ok" => Message::Ok { credits: number(fields, "initial_credits") as u32 },
        "Error" => Message::Error { message: text(fields, "message") },
        "Notify" => Message::Notify {
            stream: stream(fields),
            name: bytes(fields, "stream_name_hex"),
            position: por(fields),
        },
        "NotifyAck" => Message::NotifyAck {
            success: fields["notify_success"].as_bool().unwrap(),
            stream: stream(fields),
            position: por(fields),
        },
        "Ack" => Message::Ack {
            credits: number(fields, "credits") as u32,
            positions: fields["acks"]
                .as_array()
                .unwrap()
                .iter()
                .map(|entry| (stream(entry), por(entry)))
                .collect(),
        },
        "Restart" => Message::Restart {
            address: fields["address"]
                .as_str()
                .filter(|address| !address.is_empty())
                .map(|address| Bytes::from(address.to_owned())),
        },
        "EosMessage" => Message::Eos { stream: stream(fields) },
        "WorkersLeft" => {
            Message::WorkersLeft { rtag: number(fields, "rtag"), workers: names(fields, "leaving_workers") }
        }
        kind if kind.starts_with("Message") => Message::Data {
            stream: stream(fields),
            id: number(fields, "message_id"),
            time: fields["event_time"].as_i64().unwrap(),
            key: bytes(fields, "key_hex"),
            payload: bytes(fields, "message_hex"),
        },
        other => panic!("unknown message type {other}"),
    }
}

fn expected_inner(inner: &Value) -> TwoPhase {
    let transaction = || text(inner, "txn_id");
    let commit = || inner["commit"].as_bool().unwrap();
    match inner["type"].as_str().unwrap() {
        "ListUncommitted" => TwoPhase::ListUncommitted { rtag: number(inner, "rtag") },
        "ReplyUncommitted" => {
            TwoPhase::ReplyUncommitted { rtag: number(inner, "rtag"), transactions: names(inner, "txn_ids") }
        }
        "TwoPCPhase1" => TwoPhase::Phase1 {
            transaction: transaction(),
            ranges: inner["where_list"]
                .as_array()
                .unwrap()
                .iter()
                .map(|range| two_phase::Range {
                    stream: stream(range),
                    start: number(range, "start_por"),
                    end: number(range, "end_por"),
                })
                .collect(),
        },
        "TwoPCReply" => TwoPhase::Reply { transaction: transaction(), commit: commit() },
        "TwoPCPhase2" => TwoPhase::Phase2 { transaction: transaction(), commit: commit() },
        "WorkersLeft" => {
            TwoPhase::WorkersLeft { rtag: number(inner, "rtag"), workers: names(inner, "leaving_workers") }
        }
        other => panic!("unknown inner message {other}"),
    }
}

/// Splits the one frame off `wire`, decodes it, and encodes it again.
fn connector_vector(name: &str, vector: &Value) {
    let wire = unhex(vector["hex"].as_str().unwrap());
    let mut input = BytesMut::from(&wire[..]);
    let body = frame::split(&mut input, DEFAULT_FRAME_LIMIT).unwrap().unwrap();
    assert!(input.is_empty(), "{name}");
    assert_eq!(body.len() as u64, number(vector, "body_len"), "{name}");
    assert_eq!(hex(&body), vector["hex_no_prefix"], "{name}");
    let message = Message::decode(body).unwrap();
    let fields = &vector["decoded"];
    assert_eq!(message, expected(vector["message_type"].as_str().unwrap(), fields), "{name}");
    let mut out = BytesMut::new();
    message.encode(&mut out).unwrap();
    // The proposal's RESTART is the tag alone; it is read, and written with a length.
    let again = if wire.len() == 5 { "000000050700000000".into() } else { hex(&wire) };
    assert_eq!(hex(&out), again, "{name}");
    if let Some(inner) = fields.get("inner") {
        let payload = bytes(fields, "message_hex");
        let decoded = TwoPhase::decode(payload.clone()).unwrap();
        assert_eq!(decoded, expected_inner(inner), "{name}");
        let mut out = BytesMut::new();
        decoded.encode(&mut out).unwrap();
        assert_eq!(hex(&out), hex(&wire), "{name}");
    }
}

fn framing_vector(name: &str, framing: Framing, vector: &Value) {
    let wire = unhex(vector["hex"].as_str().unwrap());
    let fields = &vector["decoded"];
    let payload = bytes(fields, "payload_hex");
    let mut decoder = Decoder::new(framing, 1 << 20);
    decoder.input().extend_from_slice(&wire);
    let record = PlainRecord { time: fields["event_time"].as_i64().unwrap_or(0), payload: &payload };
    let mut out = BytesMut::new();
    let encoded = framing.encode([record].into_iter(), 1 << 20, &mut out);
    if payload.is_empty() {
        // Never sent by us, whatever the framing.
        assert_eq!(encoded, Err(PlainError::Empty { index: 0 }), "{name}");
        assert!(out.is_empty(), "{name}");
        if framing == Framing::RAW_U32BE {
            assert_eq!(decoder.next_record(), Err(FramingError::Empty), "{name}");
            return;
        }
    }
    let read = decoder.next_record().unwrap().unwrap();
    assert_eq!(read.payload, payload, "{name}");
    decoder.finish().unwrap();
    match framing {
        Framing::Raw { .. } => assert_eq!(hex(&out), hex(&wire), "{name}"),
        Framing::Stream05 => {
            assert_eq!(read.key, text(fields, "partition"), "{name}");
            let sequence = fields["sequence"].as_i64().unwrap();
            let mut out = BytesMut::new();
            assert!(encode_stream05(&read.key, sequence, &payload, &mut out), "{name}");
            assert_eq!(hex(&out), hex(&wire), "{name}");
        }
        Framing::Stream06 => {
            assert_eq!(read.time, record.time, "{name}");
            if !payload.is_empty() {
                assert_eq!(hex(&out), hex(&wire), "{name}");
            }
        }
        Framing::HeadCompat => {
            assert_eq!(read.time, record.time, "{name}");
            assert_eq!(read.key, bytes(fields, "key_hex"), "{name}");
            assert_eq!(encoded, Err(PlainError::ReadOnly), "{name}");
        }
    }
}

/// Historic frames (appendix A) are not implemented: they must fail or be misread without harm, never panic.
fn pre_v3_vector(vector: &Value) {
    let mut input = BytesMut::from(&unhex(vector["hex"].as_str().unwrap())[..]);
    let body = frame::split(&mut input, DEFAULT_FRAME_LIMIT).unwrap().unwrap();
    match (vector["message_type"].as_str().unwrap(), Message::decode(body)) {
        ("Ok", Ok(Message::Ok { credits })) => {
            assert_eq!(u64::from(credits), number(&vector["decoded"], "initial_credits"));
        }
        ("Message", Ok(Message::Data { stream, .. })) => {
            assert_eq!(stream.0, number(&vector["decoded"], "stream_id"));
        }
        ("Message", Err(DecodeError::Truncated(_))) => {}
        (kind, other) => panic!("pre-v3 {kind} became {other:?}"),
    }
}

#[test]
fn all_118_vectors_decode_and_encode() {
    let golden = golden();
    let vectors = golden["vectors"].as_array().unwrap();
    for vector in vectors {
        let name = vector["name"].as_str().unwrap();
        match vector["protocol"].as_str().unwrap() {
            "connector-v3" | "connector-v3-2pc" => connector_vector(name, vector),
            "connector-pre-v3" => pre_v3_vector(vector),
            "tcp-framed" => framing_vector(name, Framing::RAW_U32BE, vector),
            "stream-framing-0.5.3" => framing_vector(name, Framing::Stream05, vector),
            "stream-framing-0.6.0/0.6.1" => framing_vector(name, Framing::Stream06, vector),
            "stream-framing-head-buggy" => framing_vector(name, Framing::HeadCompat, vector),
            other => panic!("unknown protocol {other}"),
        }
    }
    assert_eq!(vectors.len(), 118);
}

/// How the machine of the role that receives it reacts to an input.
fn reaction(name: &str, wire: &[u8]) -> String {
    let now = Millis(0);
    let cookie = Cookie::new("");
    let mut server = SourceServer::new(SourceServerConfig::new(cookie.clone()), now);
    let mut client = SourceClient::new(SourceClientConfig::new(cookie.clone(), "p", "i"), now).unwrap();
    let mut sink = SinkServer::new(SinkServerConfig::new(cookie), now);
    match name {
        "ack_count_too_large" | "ok_trailing_bytes" | "notify_ack_bool_2" => {
            if name != "ok_trailing_bytes" {
                client.input().extend_from_slice(&unhex("000000050100000005"));
                client.open(StreamId(1), b"s", None, now).unwrap();
                client.handle_input(now).unwrap();
                assert_eq!(client.poll_event(), Some(SourceClientEvent::Ready { credits: 5 }));
            }
            client.input().extend_from_slice(wire);
            match client.handle_input(now) {
                Ok(()) => format!("{:?}", client.poll_event()),
                Err(error) => format!("{error:?}, over: {}", client.is_over()),
            }
        }
        "phase2_bool_2" => {
            support::sink_intro(&mut sink, WorkerState::default());
            sink.input().extend_from_slice(wire);
            format!("{:?}, over: {}", sink.handle_input(now), sink.is_over())
        }
        _ => {
            if name == "eos_proposal_form" {
                support::open_stream(&mut server, StreamId(1), None);
            }
            server.input().extend_from_slice(wire);
            let result = server.handle_input(now);
            while let Some(event) = server.poll_event() {
                if let SourceServerEvent::Eos { stream } = event {
                    return format!("{result:?}, eos {stream}");
                }
            }
            let said = server.poll_output().map_or(String::new(), |out| support::describe(&out));
            format!("{result:?}, said: {said}")
        }
    }
}

#[test]
fn all_11_invalid_inputs_are_met_as_recommended() {
    let unable = "ERROR Unable to decode message";
    let want = [
        ("zero_length_frame", "Err(Frame(Zero)), said: ".to_owned()),
        ("unknown_tag_10", format!("Err(Decode(UnknownTag(10))), said: {unable}")),
        ("truncated_hello", format!("Err(Decode(Truncated(\"version\"))), said: {unable}")),
        ("truncated_message", format!("Err(Decode(Truncated(\"MESSAGE\"))), said: {unable}")),
        ("ack_count_too_large", "Decode(Truncated(\"acks\")), over: true".to_owned()),
        ("eos_proposal_form", "Ok(()), eos 1".to_owned()),
        ("ok_trailing_bytes", "Some(Ready { credits: 5 })".to_owned()),
        ("notify_ack_bool_2", "Some(Refused { stream: StreamId(1) })".to_owned()),
        ("phase2_bool_2", "Err(Decode(NotABool { field: \"commit\", value: 2 })), over: true".to_owned()),
        ("frame_too_large", "Err(Frame(TooLarge { length: 16385, limit: 16384 })), said: ".to_owned()),
        ("hello_twice", "Err(SecondHello), said: OK 500 ERROR Bad protocol FSM state".to_owned()),
    ];
    let golden = golden();
    let invalid = golden["invalid"].as_array().unwrap();
    let got: Vec<_> = invalid
        .iter()
        .map(|input| {
            let name = input["name"].as_str().unwrap();
            (name, reaction(name, &unhex(input["hex"].as_str().unwrap())))
        })
        .collect();
    assert_eq!(got, want);
}

#[test]
fn a_frame_above_the_limit_is_refused_before_its_body_arrives() {
    assert_eq!(
        frame::peek(&[0, 0, 0x40, 1], SOURCE_FRAME_LIMIT),
        Err(FrameError::TooLarge { length: 16_385, limit: 16_384 })
    );
    assert_eq!(frame::peek(&[0, 0, 0x40, 0], SOURCE_FRAME_LIMIT), Ok(None));
}

#[test]
fn raw_prefixes_of_every_width_and_order() {
    for width in [Width::One, Width::Two, Width::Four, Width::Eight] {
        for endian in [framing::Endian::Big, framing::Endian::Little] {
            let framing = Framing::Raw { width, endian };
            let mut out = BytesMut::new();
            let records = [b"one".as_slice(), b"three"].map(|payload| PlainRecord { time: 7, payload });
            assert_eq!(framing.encode(records.into_iter(), 100, &mut out), Ok(2));
            assert_eq!(out.len(), 2 * framing.overhead() + 8);
            let low = if endian == framing::Endian::Big { width.bytes() - 1 } else { 0 };
            assert_eq!(out[low], 3);
            let mut decoder = Decoder::new(framing, 100);
            decoder.input().extend_from_slice(&out);
            assert_eq!(decoder.next_record().unwrap().unwrap().payload, "one");
            assert_eq!(decoder.next_record().unwrap().unwrap().payload, "three");
            assert_eq!(decoder.next_record(), Ok(None));
            assert_eq!(decoder.finish(), Ok(()));
        }
    }
}

#[test]
fn a_record_that_a_prefix_cannot_count_is_refused_by_number_and_nothing_of_it_is_written() {
    let framing = Framing::Raw { width: Width::One, endian: framing::Endian::Big };
    let (small, large) = ([1; 255], [2; 256]);
    let mut out = BytesMut::new();
    let records = [&small[..], &large[..], &small[..]].map(|payload| PlainRecord { time: 0, payload });
    let error = framing.encode(records.into_iter(), usize::MAX, &mut out).unwrap_err();
    assert_eq!(error, PlainError::TooLarge { index: 1, size: 256, limit: 255 });
    assert_eq!((error.index(), out.len()), (Some(1), 256));
}

#[test]
fn frames_shorter_than_their_metadata_are_refused() {
    for (framing, wire) in [
        (Framing::Stream05, "090000000800ffffffffffffff"),
        (Framing::Stream05, "0a0000000900ffffffffffffffff"),
        (Framing::Stream05, "0a0000000700ffffffffffffffff"),
        (Framing::Stream06, "0700000000000000000000"),
        (Framing::HeadCompat, "0000000f0000000000000000000000"),
        (Framing::HeadCompat, "00000003000000"),
        // key longer than the body
        (Framing::HeadCompat, "000000110000000000000000000000026b"),
    ] {
        let mut decoder = Decoder::new(framing, 1000);
        decoder.input().extend_from_slice(&unhex(wire));
        assert!(matches!(decoder.next_record(), Err(FramingError::TooShort { .. })), "{framing:?} {wire}");
    }
    let mut decoder = Decoder::new(Framing::RAW_U32BE, 1000);
    decoder.input().extend_from_slice(&unhex("000003e9"));
    assert_eq!(decoder.next_record(), Err(FramingError::TooLarge { length: 1001, limit: 1000 }));
    let mut decoder = Decoder::new(Framing::RAW_U32BE, 1000);
    decoder.input().extend_from_slice(&unhex("00000005aabb"));
    assert_eq!(decoder.next_record(), Ok(None));
    assert_eq!(decoder.finish(), Err(FramingError::Truncated { bytes: 6 }));
}
