//! Small steps that several tests take: hex, one-line views of frames, sessions brought to their working state.

#![allow(dead_code, clippy::unwrap_used)] // each test binary uses a part

use std::fmt::Write;

use bytes::{Bytes, BytesMut};
use wallaroo_protocol::frame;
use wallaroo_protocol::message::Message;
use wallaroo_protocol::two_phase::TwoPhase;
use wallaroo_protocol::*;

pub(crate) const COOKIE: &str = "Dragons-Love-Tacos";

pub(crate) const NOW: Millis = Millis(1_000);

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "odd hex {text}");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The messages in whole frames.
pub(crate) fn messages(wire: &[u8]) -> Vec<Message> {
    let mut wire = BytesMut::from(wire);
    let mut messages = Vec::new();
    while let Some(body) = frame::split(&mut wire, u32::MAX).unwrap() {
        messages.push(Message::decode(body).unwrap());
    }
    assert!(wire.is_empty(), "half a frame: {}", hex(&wire));
    messages
}

fn lossy(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One line for whole frames.
pub(crate) fn describe(wire: &[u8]) -> String {
    let position = |position: Option<u64>| position.map_or("NONE".to_owned(), |p| p.to_string());
    let one = |message: Message| match message {
        Message::Hello { version, cookie, program, instance } => {
            format!("HELLO {} {} {} {}", lossy(&version), lossy(&cookie), lossy(&program), lossy(&instance))
        }
        Message::Ok { credits } => format!("OK {credits}"),
        Message::Error { message } => format!("ERROR {}", lossy(&message)),
        Message::Notify { stream, name, position: p } => {
            format!("NOTIFY {stream} {} {}", lossy(&name), position(p))
        }
        Message::NotifyAck { success, stream, position: p } => {
            format!("NOTIFY_ACK {success} {stream} {}", position(p))
        }
        Message::Data { stream: StreamId(0), payload, .. } => {
            format!("{:?}", TwoPhase::decode(payload).unwrap())
        }
        Message::Data { stream, id, payload, .. } => format!("MESSAGE {stream} {id} {}", lossy(&payload)),
        Message::Ack { credits, positions } => {
            let entries: Vec<_> =
                positions.iter().map(|(stream, p)| format!("{stream}:{}", position(p))).collect();
            format!("ACK {credits} [{}]", entries.join(" "))
        }
        Message::Restart { address } => {
            format!("RESTART {}", address.as_ref().map(lossy).unwrap_or_default())
        }
        Message::Eos { stream } => format!("EOS {stream}"),
        Message::WorkersLeft { workers, .. } => format!("WORKERS_LEFT {workers:?}"),
    };
    messages(wire).into_iter().map(one).collect::<Vec<_>>().join(" ")
}

pub(crate) fn encoded(message: &Message) -> BytesMut {
    let mut out = BytesMut::new();
    message.encode(&mut out).unwrap();
    out
}

pub(crate) fn hello(version: &str, cookie: &str) -> BytesMut {
    encoded(&Message::Hello {
        version: version.to_owned().into(),
        cookie: cookie.to_owned().into(),
        program: "app".into(),
        instance: "worker-0".into(),
    })
}

pub(crate) fn data(stream: u64, id: u64, payload: &str) -> BytesMut {
    encoded(&Message::Data {
        stream: StreamId(stream),
        id,
        time: 0,
        key: Bytes::new(),
        payload: payload.to_owned().into(),
    })
}

pub(crate) fn notify(stream: u64, name: &str, position: Option<u64>) -> BytesMut {
    encoded(&Message::Notify { stream: StreamId(stream), name: name.to_owned().into(), position })
}

pub(crate) fn eos(stream: u64) -> BytesMut {
    encoded(&Message::Eos { stream: StreamId(stream) })
}

pub(crate) fn ack(credits: u32, positions: &[(u64, Option<u64>)]) -> BytesMut {
    let positions = positions.iter().map(|(stream, position)| (StreamId(*stream), *position)).collect();
    encoded(&Message::Ack { credits, positions })
}

pub(crate) fn inner(message: &TwoPhase) -> BytesMut {
    let mut out = BytesMut::new();
    message.encode(&mut out).unwrap();
    out
}

pub(crate) fn phase1(transaction: &str, start: u64, end: u64) -> BytesMut {
    let ranges = vec![two_phase::Range { stream: StreamId(1), start, end }];
    inner(&TwoPhase::Phase1 { transaction: transaction.to_owned().into(), ranges })
}

pub(crate) fn phase2(transaction: &str, commit: bool) -> BytesMut {
    inner(&TwoPhase::Phase2 { transaction: transaction.to_owned().into(), commit })
}

/// A source client behind OK.
pub(crate) fn client(credits: u32) -> SourceClient {
    let config = SourceClientConfig::new(Cookie::new(COOKIE), "program", "instance");
    let mut client = SourceClient::new(config, NOW).unwrap();
    client.poll_output().unwrap();
    client.input().extend_from_slice(&encoded(&Message::Ok { credits }));
    client.handle_input(NOW).unwrap();
    assert_eq!(client.poll_event(), Some(SourceClientEvent::Ready { credits }));
    client
}

/// Gives bytes to a client and returns all events.
pub(crate) fn client_reads(client: &mut SourceClient, wire: &[u8]) -> Vec<SourceClientEvent> {
    client.input().extend_from_slice(wire);
    client.handle_input(NOW).unwrap();
    std::iter::from_fn(|| client.poll_event()).collect()
}

/// Opens a stream of a client; the worker answers `position`.
pub(crate) fn client_opens(client: &mut SourceClient, stream: u64, position: Option<u64>) {
    let id = StreamId(stream);
    client.open(id, b"name", None, NOW).unwrap();
    let ack = encoded(&Message::NotifyAck { success: true, stream: id, position });
    let opened = SourceClientEvent::Opened { stream: id, position };
    assert_eq!(client_reads(client, &ack), [opened]);
    client.poll_output();
}

pub(crate) fn record(id: u64, payload: &str) -> OutRecord<'_> {
    OutRecord { id, time: 0, key: b"", payload: payload.as_bytes() }
}

/// A source server behind HELLO.
pub(crate) fn server(max: u32, refill: u32) -> SourceServer {
    let config = SourceServerConfig {
        max_credits: max,
        refill_credits: refill,
        ..SourceServerConfig::new(Cookie::new(COOKIE))
    };
    let mut server = SourceServer::new(config, NOW);
    server_reads(&mut server, &hello("0.0.1", COOKIE)).unwrap();
    assert_eq!(describe(&server.poll_output().unwrap()), format!("OK {max}"));
    server
}

/// Gives bytes to a server and returns all events; those before an error are dropped.
pub(crate) fn server_reads(
    server: &mut SourceServer,
    wire: &[u8],
) -> Result<Vec<SourceServerEvent>, SourceServerError> {
    server.input().extend_from_slice(wire);
    server.handle_input(NOW)?;
    Ok(std::iter::from_fn(|| server.poll_event()).collect())
}

/// What the server has to say, in one line.
pub(crate) fn server_says(server: &mut SourceServer) -> String {
    server.poll_output().map_or(String::new(), |out| describe(&out))
}

/// Opens a stream at a server that is in any state before or after HELLO with an empty cookie.
pub(crate) fn open_stream(server: &mut SourceServer, stream: StreamId, position: Option<u64>) {
    if server.core().phase() == SourceServerPhase::Connected {
        server_reads(server, &hello("0.0.1", "")).unwrap();
    }
    server_reads(server, &notify(stream.0, "name", None)).unwrap();
    server.notify_ack(stream, true, position);
    server.poll_output();
}

/// A sink session right after HELLO.
pub(crate) fn sink() -> SinkServer {
    let mut sink = SinkServer::new(SinkServerConfig::new(Cookie::new(COOKIE)), NOW);
    sink.input().extend_from_slice(&hello("v0.0.1", COOKIE));
    sink.handle_input(NOW).unwrap();
    let hello = SinkServerEvent::Hello { application: "app".into(), worker: "worker-0".into() };
    assert_eq!(sink.poll_event(), Some(hello));
    sink
}

/// Brings a sink session through the intro; returns what it answered.
pub(crate) fn sink_intro(sink: &mut SinkServer, state: WorkerState) -> String {
    if sink.core().phase() == SinkServerPhase::AwaitHello {
        sink.input().extend_from_slice(&hello("v0.0.1", ""));
        sink.handle_input(NOW).unwrap();
        sink.poll_event().unwrap();
    }
    sink.input().extend_from_slice(&notify(1, "app-w-worker-0-id-1", Some(0)));
    sink.input().extend_from_slice(&inner(&TwoPhase::ListUncommitted { rtag: FIRST_RTAG }));
    sink.accept(state, NOW).unwrap();
    sink_says(sink)
}

/// Gives bytes to a sink and returns all events.
pub(crate) fn sink_reads(
    sink: &mut SinkServer,
    wire: &[u8],
) -> Result<Vec<SinkServerEvent>, SinkServerError> {
    sink.input().extend_from_slice(wire);
    sink.handle_input(NOW)?;
    Ok(std::iter::from_fn(|| sink.poll_event()).collect())
}

/// What the sink has to say, in one line.
pub(crate) fn sink_says(sink: &mut SinkServer) -> String {
    sink.poll_output().map_or(String::new(), |out| describe(&out))
}

/// A worker's sink session, its intro sent.
pub(crate) fn worker() -> SinkClient {
    let mut worker =
        SinkClient::new(SinkClientConfig::new(Cookie::new(COOKIE), "app", "worker-0"), NOW).unwrap();
    worker.poll_output().unwrap();
    worker
}

/// Gives bytes to a worker's sink session and returns all events.
pub(crate) fn worker_reads(
    worker: &mut SinkClient,
    wire: &[u8],
) -> Result<Vec<SinkClientEvent>, SinkClientError> {
    worker.input().extend_from_slice(wire);
    worker.handle_input(NOW)?;
    Ok(std::iter::from_fn(|| worker.poll_event()).collect())
}

/// The three answers of a sink to the intro.
pub(crate) fn intro_answers(transactions: &[&str]) -> BytesMut {
    let mut out = encoded(&Message::Ok { credits: 500 });
    out.extend_from_slice(&encoded(&Message::NotifyAck {
        success: true,
        stream: StreamId(1),
        position: Some(0),
    }));
    let transactions = transactions.iter().map(|name| Bytes::from((*name).to_owned())).collect();
    out.extend_from_slice(&inner(&TwoPhase::ReplyUncommitted { rtag: FIRST_RTAG, transactions }));
    out
}
