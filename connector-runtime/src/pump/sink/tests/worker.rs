//! A worker's side of a connection to a sink.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};
use wallaroo_protocol::{Cookie, Millis, SinkClient, SinkClientConfig, SinkClientEvent};

/// Longest wait for anything; far more than a loaded machine needs.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) struct Worker {
    socket: TcpStream,
    session: SinkClient,
    /// Offset behind what was sent.
    pub(super) sent: u64,
}

impl Worker {
    /// Dials; the intro is written.
    pub(super) async fn dial(address: &str, name: &str) -> Worker {
        Worker::dial_with(address, name, "Dragons-Love-Tacos").await
    }

    pub(super) async fn dial_with(address: &str, name: &str, cookie: &'static str) -> Worker {
        let mut worker = Worker::connect(address, name, cookie).await;
        worker.write().await;
        worker
    }

    async fn connect(address: &str, name: &str, cookie: &'static str) -> Worker {
        let config = SinkClientConfig::new(Cookie::new(cookie), "app", name);
        let session = SinkClient::new(config, Millis(0)).unwrap();
        Worker { socket: TcpStream::connect(address).await.unwrap(), session, sent: 0 }
    }

    /// Connects; what it says does not arrive before [`Worker::arrives`].
    pub(super) async fn delayed(address: &str, name: &str) -> Worker {
        Worker::connect(address, name, "Dragons-Love-Tacos").await
    }

    pub(super) async fn arrives(&mut self) {
        self.write().await;
    }

    /// Dials and expects that nothing is undecided.
    pub(super) async fn ready(address: &str, name: &str) -> Worker {
        let mut worker = Worker::dial(address, name).await;
        assert_eq!(worker.event().await, Some(SinkClientEvent::Ready));
        worker
    }

    /// Dials and expects that one transaction is undecided.
    pub(super) async fn listed(address: &str, name: &str, transaction: &str) -> Worker {
        let mut worker = Worker::dial(address, name).await;
        let transactions = vec![Bytes::copy_from_slice(transaction.as_bytes())];
        assert_eq!(worker.event().await, Some(SinkClientEvent::Uncommitted { transactions }));
        worker
    }

    async fn write(&mut self) {
        while let Some(out) = self.session.poll_output() {
            // The sink may have closed already; the test then sees that while reading.
            let _ = self.socket.write_all(&out).await;
        }
    }

    /// The next event; `None` at the end of the connection.
    pub(super) async fn event(&mut self) -> Option<SinkClientEvent> {
        timeout(DEADLINE, async {
            loop {
                if let Some(event) = self.session.poll_event() {
                    return Some(event);
                }
                match self.socket.read_buf(self.session.input()).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => self.session.handle_input(Millis(0)).expect("the sink keeps to the protocol"),
                }
            }
        })
        .await
        .expect("an event in time")
    }

    pub(super) async fn closed(&mut self) {
        assert_eq!(self.event().await, None);
    }

    /// True if nothing comes for a moment: for what must *not* happen.
    pub(super) async fn is_silent(&mut self, moment: Duration) -> bool {
        timeout(moment, self.event()).await.is_err()
    }

    /// Sends messages from `offset` on.
    pub(super) async fn send_at(&mut self, offset: u64, payloads: &[&str]) {
        self.sent = self.session.send(offset, payloads.iter().map(|p| p.as_bytes())).unwrap();
        self.write().await;
    }

    pub(super) async fn send(&mut self, payloads: &[&str]) {
        self.send_at(self.sent, payloads).await;
    }

    pub(super) async fn ask(&mut self, transaction: &str, start: u64, end: u64) {
        self.session.phase1(transaction.as_bytes(), start, end).unwrap();
        self.write().await;
    }

    pub(super) async fn vote(&mut self) -> bool {
        match self.event().await {
            Some(SinkClientEvent::Vote { commit, .. }) => commit,
            other => panic!("{other:?} in place of a vote"),
        }
    }

    pub(super) async fn decide(&mut self, transaction: &str, commit: bool) {
        self.session.phase2(transaction.as_bytes(), commit).unwrap();
        self.write().await;
    }

    /// A whole round up to the vote.
    pub(super) async fn prepare(&mut self, transaction: &str, payloads: &[&str]) -> bool {
        let start = self.sent;
        self.send(payloads).await;
        self.ask(transaction, start, self.sent).await;
        self.vote().await
    }

    /// A whole round.
    pub(super) async fn commit(&mut self, transaction: &str, payloads: &[&str]) {
        assert!(self.prepare(transaction, payloads).await, "{transaction} was voted for");
        self.decide(transaction, true).await;
    }

    pub(super) async fn left(&mut self, names: &[&str]) {
        let names = names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
        self.session.workers_left(names).unwrap();
        self.write().await;
    }

    /// Everything until the connection ends, as text.
    pub(super) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        timeout(DEADLINE, self.socket.read_to_end(&mut rest)).await.expect("an end in time").unwrap();
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Raw bytes, for what the session would not send.
    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes).await;
    }
}
