//! Nothing is allocated per frame: the number of allocations of a batch does not depend on how many frames it has.

#![allow(clippy::unwrap_used)] // a test file

mod support;

use allocation_counter::measure;
use bytes::BytesMut;
use support::{NOW, client, client_opens, hex, open_stream, server, sink, sink_intro};
use wallaroo_protocol::framing::{Decoder, Framing, PlainRecord};
use wallaroo_protocol::*;

const S: StreamId = StreamId(7);
const FEW: u64 = 100;
const MANY: u64 = 400;

#[test]
fn the_counter_counts() {
    assert_eq!(measure(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(10)))).count_total, 1);
}

#[test]
fn encoding_a_batch_allocates_nothing_once_its_buffer_is_there() {
    let mut client = client(1_000_000);
    client_opens(&mut client, 7, None);
    let payload = [b'x'; 100];
    let mut next = 1;
    let mut batch = |records: u64| {
        let info = measure(|| {
            let ids = next..next + records;
            let records =
                ids.map(|id| OutRecord { id, time: 5, key: b"key", payload: std::hint::black_box(&payload) });
            client.send(S, records).unwrap();
            drop(std::hint::black_box(client.poll_output()));
        });
        next += records;
        info.count_total
    };
    // The first batches grow the buffer; then its memory comes back each time.
    (0..5).for_each(|_| _ = batch(MANY));
    assert_eq!((batch(FEW), batch(MANY), batch(FEW), batch(MANY)), (0, 0, 0, 0));
}

#[test]
fn encoding_plain_records_allocates_nothing_once_the_buffer_is_there() {
    let payload = [b'x'; 100];
    let mut out = BytesMut::with_capacity(1 << 20);
    for framing in [Framing::RAW_U32BE, Framing::Stream05, Framing::Stream06] {
        out.clear();
        let info = measure(|| {
            let records = (0..MANY).map(|time| PlainRecord { time: time.cast_signed(), payload: &payload });
            framing.encode(std::hint::black_box(records), 1_000, &mut out).unwrap();
        });
        assert_eq!(info.count_total, 0, "{framing:?}");
    }
}

/// The frames of `count` records.
fn frames(first: u64, count: u64, stream: u64) -> BytesMut {
    let mut wire = BytesMut::new();
    for id in first..first + count {
        wire.extend_from_slice(&support::data(stream, id, "twenty bytes of text"));
    }
    wire
}

#[test]
fn decoding_a_run_allocates_the_same_for_few_and_for_many_frames() {
    let mut server = server(1_000_000, 1_000);
    open_stream(&mut server, S, None);
    let mut next = 1;
    let mut run = |records: u64| {
        let wire = frames(next, records, 7);
        server.input().extend_from_slice(&wire);
        next += records;
        let info = measure(|| {
            server.handle_input(NOW).unwrap();
            let Some(SourceServerEvent::Records(run)) = server.poll_event() else { panic!("no run") };
            assert_eq!(run.iter().map(|record| record.payload.len() as u64).sum::<u64>(), 20 * records);
            assert_eq!(run.len() as u64, records);
        });
        assert!(server.poll_event().is_none());
        info.count_total
    };
    run(1);
    let (few, many) = (run(FEW), run(MANY));
    assert_eq!(few, many);
    // At most: the event queue, and the buffer's switch to shared ownership.
    assert!(many <= 2, "{many} allocations for {MANY} frames");
}

#[test]
fn a_sink_s_data_and_its_payload_slices_allocate_the_same_for_few_and_for_many_frames() {
    let mut sink = sink();
    sink_intro(&mut sink, WorkerState::default());
    let mut offset = 0;
    let mut run = |records: u64| {
        let mut wire = BytesMut::new();
        for _ in 0..records {
            wire.extend_from_slice(&support::data(1, offset, "twenty bytes of text"));
            offset += 20;
        }
        sink.input().extend_from_slice(&wire);
        let info = measure(|| {
            sink.handle_input(NOW).unwrap();
            let Some(SinkServerEvent::Data(run)) = sink.poll_event() else { panic!("no run") };
            assert_eq!(run.payloads().map(|payload| payload.len() as u64).sum::<u64>(), 20 * records);
        });
        info.count_total
    };
    run(1);
    let (few, many) = (run(FEW), run(MANY));
    assert_eq!(few, many);
    assert!(many <= 2, "{many} allocations for {MANY} frames");
}

#[test]
fn reading_plain_records_allocates_the_same_for_few_and_for_many_frames() {
    for framing in [Framing::RAW_U32BE, Framing::Stream05, Framing::Stream06] {
        let mut decoder = Decoder::new(framing, 1_000);
        let mut read = |records: u64| {
            let mut wire = BytesMut::new();
            let plain = (0..records).map(|_| PlainRecord { time: 0, payload: b"twenty bytes of text" });
            framing.encode(plain, 1_000, &mut wire).unwrap();
            decoder.input().extend_from_slice(&wire);
            let mut count = 0;
            let info = measure(|| {
                while let Some(record) = decoder.next_record().unwrap() {
                    assert_eq!(record.payload.len(), 20);
                    count += 1;
                }
            });
            assert_eq!(count, records);
            info.count_total
        };
        read(1);
        let (few, many) = (read(FEW), read(MANY));
        assert_eq!(few, many, "{framing:?}");
        assert!(many <= 1, "{framing:?}: {many} allocations for {MANY} frames");
    }
}

#[test]
fn a_length_field_alone_buys_no_memory() {
    let mut sink = SinkServer::new(SinkServerConfig::new(Cookie::new("")), NOW);
    sink.input().extend_from_slice(&[0x00, 0xff, 0xff, 0xff]);
    let info = measure(|| {
        sink.handle_input(NOW).unwrap();
        std::hint::black_box(sink.input());
    });
    assert!(info.bytes_max < 1 << 18, "{} bytes for a length of 16 MiB", info.bytes_max);
    // A count of entries neither.
    for (name, wire) in [
        ("ACK", "0000000906ffffffffffffffff"),
        ("PHASE1", "00000024050000000000000000000000000000000000000000000000000000cb000174ffffffff"),
        (
            "REPLY_UNCOMMITTED",
            "00000028050000000000000000000000000000000000000000000000000000ca0000000000012fd2ffffffff",
        ),
    ] {
        let wire = support::unhex(wire);
        let body = bytes::Bytes::from(wire[4..].to_vec());
        let info = measure(|| {
            let refused = match message::Message::decode(body.clone()) {
                Ok(message::Message::Data { payload, .. }) => two_phase::TwoPhase::decode(payload).is_err(),
                other => other.is_err(),
            };
            assert!(refused, "{name} {}", hex(&wire));
        });
        assert!(info.bytes_max < 1_000, "{name}: {} bytes", info.bytes_max);
    }
}
