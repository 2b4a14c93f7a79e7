//! Scripted peers: a connector on the source side, a sink on the other.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use connector_env::TokioEnv;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use wallaroo_endpoint::config::{SinkConfig, SinkProtocol, SourceConfig, SourceProtocol};
use wallaroo_endpoint::{Control, Endpoint, EndpointConfig, Status};
use wallaroo_protocol::message::{Message, SINK_VERSION, SOURCE_VERSION};
use wallaroo_protocol::two_phase::{CONTROL_STREAM, DATA_STREAM, TwoPhase};
use wallaroo_protocol::{StreamId, frame};

/// Nothing in these tests takes this long unless it fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const COOKIE: &str = "Dragons-Love-Tacos";

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// An endpoint with one connector source `in`, quick checkpoints and these sinks.
pub(crate) fn config(sinks: Vec<SinkConfig>) -> EndpointConfig {
    EndpointConfig {
        sources: vec![SourceConfig::new("in", "127.0.0.1:0", SourceProtocol::connector())],
        sinks,
        checkpoint_interval_ms: 20,
        ..EndpointConfig::default()
    }
}

pub(crate) fn sink_config(name: &str, address: &str, protocol: SinkProtocol) -> SinkConfig {
    SinkConfig { retry_ms: Some(10), ..SinkConfig::new(name, address, protocol) }
}

pub(crate) async fn start(config: EndpointConfig) -> (Endpoint, Control, String) {
    let source = config.sources[0].name.clone();
    let endpoint = Endpoint::start(TokioEnv, config).await.unwrap();
    let address = endpoint.address(&source).unwrap();
    let control = endpoint.control();
    (endpoint, control, address)
}

pub(crate) async fn until(control: &Control, what: &str, condition: impl FnMut(&Status) -> bool) -> Status {
    control.wait_for(what, DEADLINE, condition).await.unwrap()
}

/// A connection that speaks frames.
pub(crate) struct Peer {
    stream: TcpStream,
    input: BytesMut,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).unwrap();
        Peer { stream, input: BytesMut::new() }
    }

    pub(crate) async fn dial(address: &str) -> Peer {
        Peer::new(soon("connect", TcpStream::connect(address)).await.unwrap())
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn send(&mut self, messages: &[Message]) {
        let mut out = BytesMut::new();
        for message in messages {
            message.encode(&mut out).unwrap();
        }
        self.raw(&out).await;
    }

    /// As `send`, to a side that may have closed.
    pub(crate) async fn try_send(&mut self, messages: &[Message]) -> std::io::Result<()> {
        let mut out = BytesMut::new();
        for message in messages {
            message.encode(&mut out).unwrap();
        }
        self.stream.write_all(&out).await
    }

    pub(crate) async fn send_inner(&mut self, inner: TwoPhase) {
        let mut out = BytesMut::new();
        inner.encode(&mut out).unwrap();
        self.raw(&out).await;
    }

    /// The next frame; `None` when the other side has closed. Cancel-safe.
    pub(crate) async fn try_next(&mut self) -> Option<Message> {
        loop {
            if let Some(body) = frame::split(&mut self.input, u32::MAX).unwrap() {
                return Some(Message::decode(body).unwrap());
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Option<Message> {
        soon("a frame", self.try_next()).await
    }

    /// Waits for the other side to close without saying anything more.
    pub(crate) async fn closed(&mut self) {
        assert_eq!(self.next().await, None);
    }

    pub(crate) async fn error(&mut self) -> String {
        match self.next().await {
            Some(Message::Error { message }) => String::from_utf8(message.to_vec()).unwrap(),
            other => panic!("expected ERROR, got {other:?}"),
        }
    }
}

pub(crate) fn hello(version: &[u8], cookie: &str) -> Message {
    Message::Hello {
        version: Bytes::copy_from_slice(version),
        cookie: Bytes::copy_from_slice(cookie.as_bytes()),
        program: Bytes::from_static(b"tests"),
        instance: Bytes::from_static(b"one"),
    }
}

pub(crate) fn record(stream: u64, id: u64, payload: &[u8]) -> Message {
    Message::Data {
        stream: StreamId(stream),
        id,
        time: 0,
        key: Bytes::new(),
        payload: Bytes::copy_from_slice(payload),
    }
}

pub(crate) fn eos(stream: u64) -> Message {
    Message::Eos { stream: StreamId(stream) }
}

/// Credits and positions of an ACK.
pub(crate) type Ack = (u32, Vec<(u64, Option<u64>)>);

/// A connector on a source.
pub(crate) struct Source {
    pub(crate) peer: Peer,
    pub(crate) credits: u32,
}

impl Source {
    pub(crate) async fn open(address: &str) -> Source {
        let mut peer = Peer::dial(address).await;
        peer.send(&[hello(SOURCE_VERSION, COOKIE)]).await;
        match peer.next().await {
            Some(Message::Ok { credits }) => Source { peer, credits },
            other => panic!("expected OK, got {other:?}"),
        }
    }

    pub(crate) fn notify_message(stream: u64, position: Option<u64>) -> Message {
        let name = Bytes::from(format!("stream-{stream}"));
        Message::Notify { stream: StreamId(stream), name, position }
    }

    /// Success and position of the answer; acknowledgements before it are skipped.
    pub(crate) async fn notify(&mut self, stream: u64, position: Option<u64>) -> (bool, Option<u64>) {
        self.peer.send(&[Source::notify_message(stream, position)]).await;
        loop {
            match self.peer.next().await {
                Some(Message::NotifyAck { success, stream: of, position }) if of == StreamId(stream) => {
                    return (success, position);
                }
                Some(Message::Ack { .. }) => {}
                other => panic!("expected NOTIFY_ACK, got {other:?}"),
            }
        }
    }

    pub(crate) async fn send(&mut self, stream: u64, ids: impl IntoIterator<Item = u64>, payload: &str) {
        let records: Vec<Message> =
            ids.into_iter().map(|id| record(stream, id, format!("{payload}{id}").as_bytes())).collect();
        self.peer.send(&records).await;
    }

    pub(crate) async fn ack(&mut self) -> Ack {
        match self.peer.next().await {
            Some(Message::Ack { credits, positions }) => {
                (credits, positions.iter().map(|(stream, position)| (stream.0, position)).collect())
            }
            other => panic!("expected ACK, got {other:?}"),
        }
    }

    /// Waits until `id` is acknowledged.
    pub(crate) async fn acked(&mut self, stream: u64, id: u64) {
        while !self.ack().await.1.contains(&(stream, Some(id))) {}
    }

    /// Reads to the end of the connection; true if the last frame was RESTART.
    pub(crate) async fn read_to_end(&mut self) -> Option<String> {
        let mut last = None;
        while let Some(message) = self.peer.next().await {
            last = match message {
                Message::Restart { address } => {
                    address.map(|address| String::from_utf8(address.to_vec()).unwrap())
                }
                _ => None,
            };
        }
        last
    }
}

/// The socket of a sink.
pub(crate) struct SinkSocket {
    listener: TcpListener,
}

/// A connection of a worker to a sink, after the intro.
pub(crate) struct SinkPeer {
    pub(crate) peer: Peer,
    pub(crate) worker: String,
    pub(crate) rtag: u64,
    pub(crate) stream_name: String,
}

impl SinkSocket {
    pub(crate) async fn bind() -> (SinkSocket, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (SinkSocket { listener }, address)
    }

    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    pub(crate) async fn accept_peer(&self) -> Peer {
        Peer::new(soon("a worker's connection", self.listener.accept()).await.unwrap().0)
    }

    /// A connection whose intro was read and answered with this list of undecided transactions. Connections that the
    /// worker closes during the intro are skipped.
    pub(crate) async fn accept(&self, undecided: &[&str]) -> SinkPeer {
        loop {
            let mut peer = self.accept_peer().await;
            if let Some(intro) = read_intro(&mut peer).await {
                let mut sink = SinkPeer::from_parts(peer, intro);
                sink.answer(undecided).await;
                return sink;
            }
        }
    }
}

/// The three frames of the intro; `None` when the worker closes before their end.
async fn read_intro(peer: &mut Peer) -> Option<IntroFrames> {
    let Message::Hello { version, cookie, program, instance } = peer.next().await? else {
        panic!("the intro begins with HELLO")
    };
    assert_eq!(
        (&version[..], &cookie[..], &program[..]),
        (SINK_VERSION, COOKIE.as_bytes(), &b"endpoint"[..])
    );
    let Message::Notify { stream, name, .. } = peer.next().await? else { panic!("NOTIFY follows") };
    assert_eq!(stream, DATA_STREAM);
    let TwoPhase::ListUncommitted { rtag } = inner(peer.next().await?) else { panic!("the list follows") };
    Some(IntroFrames { worker: text(&instance), rtag, stream_name: text(&name) })
}

pub(crate) struct IntroFrames {
    worker: String,
    rtag: u64,
    stream_name: String,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The inner message of a frame on stream 0.
pub(crate) fn inner(message: Message) -> TwoPhase {
    match message {
        Message::Data { stream, id: 0, time: 0, payload, .. } if stream == CONTROL_STREAM => {
            TwoPhase::decode(payload).unwrap()
        }
        other => panic!("expected a message of two-phase commit, got {other:?}"),
    }
}

impl SinkPeer {
    pub(crate) async fn answer(&mut self, undecided: &[&str]) {
        let transactions = undecided.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect();
        self.peer
            .send(&[
                Message::Ok { credits: 500 },
                Message::NotifyAck { success: true, stream: DATA_STREAM, position: Some(0) },
            ])
            .await;
        self.peer.send_inner(TwoPhase::ReplyUncommitted { rtag: self.rtag, transactions }).await;
    }

    pub(crate) async fn vote(&mut self, transaction: &str, commit: bool) {
        let transaction = Bytes::copy_from_slice(transaction.as_bytes());
        self.peer.send_inner(TwoPhase::Reply { transaction, commit }).await;
    }

    /// Output up to the next PHASE1, and that: offset of the first byte (if any), bytes, transaction, range.
    pub(crate) async fn until_phase1(&mut self) -> (Option<u64>, Vec<u8>, String, (u64, u64)) {
        let (mut first, mut bytes) = (None, Vec::new());
        loop {
            match self.peer.next().await.expect("output or PHASE1") {
                Message::Data { stream, id, payload, .. } if stream == DATA_STREAM => {
                    first = first.or(Some(id));
                    assert_eq!(id, first.unwrap() + bytes.len() as u64, "offsets are contiguous");
                    bytes.extend_from_slice(&payload);
                }
                message => match inner(message) {
                    TwoPhase::Phase1 { transaction, ranges } => {
                        assert_eq!(ranges.len(), 1);
                        let range = (ranges[0].start, ranges[0].end);
                        return (first, bytes, text(&transaction), range);
                    }
                    other => panic!("expected PHASE1, got {other:?}"),
                },
            }
        }
    }

    pub(crate) async fn phase2(&mut self) -> (String, bool) {
        match inner(self.peer.next().await.expect("PHASE2")) {
            TwoPhase::Phase2 { transaction, commit } => (text(&transaction), commit),
            other => panic!("expected PHASE2, got {other:?}"),
        }
    }

    /// Takes part in rounds with yes until a round with output ends; returns its bytes and transaction.
    pub(crate) async fn commit_output(&mut self) -> (u64, Vec<u8>, String) {
        loop {
            let (first, bytes, transaction, _) = self.until_phase1().await;
            self.vote(&transaction, true).await;
            assert_eq!(self.phase2().await, (transaction.clone(), true));
            if let Some(first) = first {
                return (first, bytes, transaction);
            }
        }
    }
}

/// What one worker has written to an honest sink.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelf {
    pub(crate) bytes: Vec<u8>,
    pub(crate) committed: usize,
    pub(crate) pending: Option<(String, usize)>,
    pub(crate) commits: u64,
    pub(crate) aborts: u64,
    pub(crate) departed: bool,
}

/// A sink that follows every rule, keeps its state over connections, and can be told to die.
pub(crate) struct HonestSink {
    pub(crate) address: String,
    shelves: Arc<Mutex<BTreeMap<String, Shelf>>>,
    task: JoinHandle<()>,
}

impl Drop for HonestSink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HonestSink {
    pub(crate) async fn start() -> HonestSink {
        let (socket, address) = SinkSocket::bind().await;
        let shelves: Arc<Mutex<BTreeMap<String, Shelf>>> = Arc::default();
        let shared = shelves.clone();
        let task = tokio::spawn(async move {
            let mut workers = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = socket.listener.accept().await {
                workers.spawn(honest(Peer::new(stream), shared.clone()));
            }
        });
        HonestSink { address, shelves, task }
    }

    pub(crate) fn shelf(&self, worker: &str) -> Shelf {
        self.shelves.lock().unwrap().get(worker).cloned().unwrap_or_default()
    }

    /// The committed output of all workers as text.
    pub(crate) fn committed(&self) -> String {
        let shelves = self.shelves.lock().unwrap();
        shelves.values().map(|shelf| text(&shelf.bytes[..shelf.committed])).collect()
    }

    pub(crate) async fn until_committed(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        soon(what, async {
            loop {
                let committed = self.committed();
                if condition(&committed) {
                    return committed;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }
}

async fn honest(mut peer: Peer, shelves: Arc<Mutex<BTreeMap<String, Shelf>>>) {
    let Some(intro) = read_intro(&mut peer).await else { return };
    let worker = intro.worker.clone();
    let with =
        |job: &mut dyn FnMut(&mut Shelf)| job(shelves.lock().unwrap().entry(worker.clone()).or_default());
    let mut undecided = None;
    with(&mut |shelf| {
        let kept = shelf.pending.as_ref().map_or(shelf.committed, |(_, end)| *end);
        shelf.bytes.truncate(kept);
        undecided = shelf.pending.as_ref().map(|(transaction, _)| transaction.clone());
    });
    let mut sink = SinkPeer::from_parts(peer, intro);
    sink.answer(&undecided.iter().map(String::as_str).collect::<Vec<_>>()).await;
    while let Some(message) = sink.peer.try_next().await {
        match message {
            Message::Data { stream, id, payload, .. } if stream == DATA_STREAM => with(&mut |shelf| {
                assert!(shelf.pending.is_none(), "output while a transaction is pending");
                assert_eq!(id, shelf.bytes.len() as u64, "output continues where it stopped");
                shelf.bytes.extend_from_slice(&payload);
            }),
            message => match inner(message) {
                TwoPhase::Phase1 { transaction, ranges } => {
                    with(&mut |shelf| {
                        assert_eq!(
                            (ranges[0].start, ranges[0].end),
                            (shelf.committed as u64, shelf.bytes.len() as u64)
                        );
                        shelf.pending = Some((text(&transaction), shelf.bytes.len()));
                    });
                    sink.vote(&text(&transaction), true).await;
                }
                TwoPhase::Phase2 { transaction, commit } => with(&mut |shelf| {
                    let (pending, end) = shelf.pending.take().expect("a pending transaction");
                    assert_eq!(pending, text(&transaction));
                    if commit {
                        shelf.committed = end;
                        shelf.commits += 1;
                    } else {
                        shelf.bytes.truncate(shelf.committed);
                        shelf.aborts += 1;
                    }
                }),
                TwoPhase::WorkersLeft { workers, .. } => {
                    for worker in workers {
                        let mut shelves = shelves.lock().unwrap();
                        shelves.entry(text(&worker)).or_default().departed = true;
                    }
                }
                other => panic!("a worker sent {other:?}"),
            },
        }
    }
}

impl SinkPeer {
    fn from_parts(peer: Peer, intro: IntroFrames) -> SinkPeer {
        SinkPeer { peer, worker: intro.worker, rtag: intro.rtag, stream_name: intro.stream_name }
    }
}
