//! Frames a second of the codecs, beside a copy of the same bytes in memory.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use wallaroo_protocol::framing::{Decoder, Framing, PlainRecord};
use wallaroo_protocol::message::Message;
use wallaroo_protocol::{
    Cookie, Millis, OutRecord, SourceClient, SourceClientConfig, SourceServer, SourceServerConfig,
    SourceServerEvent, StreamId, message,
};

const NOW: Millis = Millis(0);
const S: StreamId = StreamId(7);
const FRAMES: u64 = 1_000;

fn fed(session_input: &mut BytesMut, bytes: &[u8]) {
    session_input.extend_from_slice(bytes);
}

fn wire(message: &Message) -> BytesMut {
    let mut out = BytesMut::new();
    message.encode(&mut out).expect("a short message");
    out
}

fn client() -> SourceClient {
    let config = SourceClientConfig::new(Cookie::new("cookie"), "bench", "bench");
    let mut client = SourceClient::new(config, NOW).expect("short names");
    fed(client.input(), &wire(&Message::Ok { credits: u32::MAX }));
    client.open(S, b"name", None, NOW).expect("a new stream");
    fed(client.input(), &wire(&Message::NotifyAck { success: true, stream: S, position: None }));
    client.handle_input(NOW).expect("a valid handshake");
    while client.poll_event().is_some() {}
    client.poll_output();
    client
}

fn server() -> SourceServer {
    let config = SourceServerConfig {
        max_credits: u32::MAX,
        refill_credits: 0,
        ..SourceServerConfig::new(Cookie::new("cookie"))
    };
    let mut server = SourceServer::new(config, NOW);
    let mut hello = client_hello();
    hello.extend_from_slice(&wire(&Message::Notify { stream: S, name: "name".into(), position: None }));
    fed(server.input(), &hello);
    server.handle_input(NOW).expect("a valid handshake");
    while server.poll_event().is_some() {}
    server.notify_ack(S, true, None);
    server.poll_output();
    server
}

fn client_hello() -> BytesMut {
    wire(&Message::Hello {
        version: Bytes::from_static(message::SOURCE_VERSION),
        cookie: "cookie".into(),
        program: "bench".into(),
        instance: "bench".into(),
    })
}

fn records(first: u64, payload: &[u8]) -> impl Iterator<Item = OutRecord<'_>> {
    (first..first + FRAMES).map(move |id| OutRecord { id, time: 1, key: b"", payload })
}

fn codec(criterion: &mut Criterion) {
    for size in [100, 256] {
        let payload = vec![b'x'; size];
        let mut group = criterion.benchmark_group(format!("{size} B"));
        group.throughput(Throughput::Elements(FRAMES));

        let plain = || (0..FRAMES).map(|_| PlainRecord { time: 1, payload: &payload });
        let mut out = BytesMut::with_capacity(1 << 20);
        group.bench_function("FramedTCP encode", |bench| {
            bench.iter(|| {
                out.clear();
                Framing::RAW_U32BE.encode(plain(), 16_384, &mut out).expect("short records")
            });
        });
        let plain_frames = out.clone().freeze();
        group.bench_function("FramedTCP decode", |bench| {
            let mut decoder = Decoder::new(Framing::RAW_U32BE, 16_384);
            bench.iter(|| {
                decoder.input().extend_from_slice(&plain_frames);
                let mut bytes = 0;
                while let Ok(Some(record)) = decoder.next_record() {
                    bytes += record.payload.len();
                }
                bytes
            });
        });

        group.bench_function("Connector encode", |bench| {
            let mut client = client();
            let mut next = 1;
            bench.iter(|| {
                if client.credits() < FRAMES {
                    fed(
                        client.input(),
                        &wire(&Message::Ack { credits: u32::MAX, positions: [].into_iter().collect() }),
                    );
                    client.handle_input(NOW).expect("an ACK");
                }
                let taken = client.send(S, records(next, black_box(&payload))).expect("short records");
                next += taken as u64;
                client.poll_output().map(|out| out.len())
            });
        });
        let frames = {
            let mut client = client();
            client.send(S, records(1, &payload)).expect("short records");
            client.poll_output().expect("frames")
        };
        group.bench_function("Connector decode", |bench| {
            bench.iter_batched_ref(
                server,
                |server| {
                    fed(server.input(), &frames);
                    server.handle_input(NOW).expect("valid frames");
                    let mut bytes = 0;
                    while let Some(event) = server.poll_event() {
                        if let SourceServerEvent::Records(run) = event {
                            bytes += run.iter().map(|record| record.payload.len()).sum::<usize>();
                        }
                    }
                    bytes
                },
                BatchSize::SmallInput,
            );
        });

        // The ceiling: one copy of the same bytes.
        let mut copy = BytesMut::with_capacity(1 << 20);
        group.bench_function("memory copy of the Connector frames", |bench| {
            bench.iter(|| {
                copy.clear();
                copy.extend_from_slice(black_box(&frames));
                copy.len()
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2));
    targets = codec
}
criterion_main!(benches);
