//! A worker's source endpoint on a real socket: the protocol crate's session under rules that a test may change at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, Instant, interval};
use wallaroo_protocol::{
    Cookie, Millis, SourceServer, SourceServerConfig, SourceServerEvent, StreamId, Tolerated,
};

/// Time between checkpoints: short, so that tests are.
const CHECKPOINT: Duration = Duration::from_millis(10);

/// What the worker does, and what it has seen.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) cookie: &'static str,
    pub(crate) max_credits: u32,
    pub(crate) refill_credits: u32,
    pub(crate) checkpoints: bool,
    /// NOTIFYs to refuse.
    pub(crate) refuse: u32,
    /// Streams whose NOTIFY is always refused.
    pub(crate) closed: BTreeSet<String>,
    /// Answers to give instead of the registry's.
    pub(crate) answers: Vec<Option<u64>>,
    /// Close the connection after so many records.
    pub(crate) close_after: Option<usize>,
    /// Close connections at EOS, so many times.
    pub(crate) drop_at_eos: u32,
    /// Sent instead of reading on, once for each.
    pub(crate) restarts: Vec<Option<String>>,
    /// A payload that cannot be decoded.
    pub(crate) poison: Option<Vec<u8>>,

    /// Last checkpointed position of each stream.
    pub(crate) registry: BTreeMap<StreamId, Option<u64>>,
    pub(crate) names: BTreeMap<StreamId, String>,
    /// Position proposed with each NOTIFY.
    pub(crate) proposals: Vec<(String, Option<u64>)>,
    /// Everything that ran, in order.
    pub(crate) processed: Vec<(String, u64, Vec<u8>)>,
    pub(crate) connections: usize,
    pub(crate) eos: usize,
    pub(crate) violations: Vec<Tolerated>,
    /// Closes every connection that is older than this counter's value.
    pub(crate) generation: u64,
}

/// A handle on a worker that runs until the test's runtime ends.
#[derive(Clone)]
pub(crate) struct Worker {
    rules: Arc<Mutex<Rules>>,
    pub(crate) port: u16,
}

impl Worker {
    pub(crate) async fn start() -> Worker {
        let rules = Rules {
            cookie: "Dragons-Love-Tacos",
            max_credits: 500,
            refill_credits: 50,
            checkpoints: true,
            refuse: 0,
            closed: BTreeSet::new(),
            answers: Vec::new(),
            close_after: None,
            drop_at_eos: 0,
            restarts: Vec::new(),
            poison: None,
            registry: BTreeMap::new(),
            names: BTreeMap::new(),
            proposals: Vec::new(),
            processed: Vec::new(),
            connections: 0,
            eos: 0,
            violations: Vec::new(),
            generation: 0,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let worker =
            Worker { rules: Arc::new(Mutex::new(rules)), port: listener.local_addr().unwrap().port() };
        let accepting = worker.clone();
        tokio::spawn(async move {
            loop {
                let (link, _) = listener.accept().await.unwrap();
                link.set_nodelay(true).unwrap();
                accepting.rules().connections += 1;
                tokio::spawn(serve(link, accepting.clone()));
            }
        });
        worker
    }

    pub(crate) fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap()
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Closes all connections without a word, as a rollback does.
    pub(crate) fn close_all(&self) {
        self.rules().generation += 1;
    }

    /// Distinct records of a stream that ran, in order of first appearance.
    pub(crate) fn distinct(&self, stream: &str) -> Vec<u64> {
        let mut seen = BTreeSet::new();
        let rules = self.rules();
        let records = rules.processed.iter().filter(|(name, _, _)| name == stream);
        records.filter(|(_, id, _)| seen.insert(*id)).map(|(_, id, _)| *id).collect()
    }

    pub(crate) fn connections(&self) -> usize {
        self.rules().connections
    }

    pub(crate) fn eos(&self) -> usize {
        self.rules().eos
    }

    /// How often records of a stream ran.
    pub(crate) fn ran(&self, stream: &str) -> usize {
        self.rules().processed.iter().filter(|(name, _, _)| name == stream).count()
    }
}

/// The part of a stream's wire name that the system gave it.
fn system_name(name: &[u8]) -> String {
    String::from_utf8_lossy(name).rsplit('/').next().unwrap_or_default().to_owned()
}

async fn serve(mut link: TcpStream, worker: Worker) {
    let config = {
        let rules = worker.rules();
        let mut config = SourceServerConfig::new(Cookie::new(rules.cookie));
        config.max_credits = rules.max_credits;
        config.refill_credits = rules.refill_credits;
        config
    };
    let generation = worker.rules().generation;
    let started = Instant::now();
    let mut server = SourceServer::new(config, Millis(0));
    let mut ticks = interval(CHECKPOINT);
    let mut taken = 0;
    loop {
        let now = Millis(started.elapsed().as_millis() as u64);
        let step = tokio::select! {
            read = link.read_buf(server.input()) => matches!(read, Ok(n) if n > 0),
            _ = ticks.tick() => {
                checkpoint(&mut server, &worker);
                worker.rules().generation == generation
            }
        };
        if !step {
            break;
        }
        let handled = server.handle_input(now);
        let mut open = true; // what was read before an error still counts
        while open && let Some(event) = server.poll_event() {
            open = on_event(&mut server, &worker, event, &mut taken);
        }
        if let Some(output) = server.poll_output()
            && link.write_all(&output).await.is_err()
        {
            break;
        }
        if !open || handled.is_err() {
            break;
        }
    }
}

/// A whole checkpoint: what was seen by now is durable.
fn checkpoint(server: &mut SourceServer, worker: &Worker) {
    let mut rules = worker.rules();
    if !rules.checkpoints {
        return;
    }
    server.barrier();
    let streams: Vec<_> = server.streams().collect();
    let (mut open, mut closing) = (Vec::new(), Vec::new());
    for (id, stream) in streams {
        use wallaroo_protocol::ServerStreamPhase::{Closing, Open, Pending};
        match stream.phase {
            Pending => {}
            Open => open.push((id, stream.acked)),
            Closing => closing.push((id, stream.acked)),
        }
    }
    for (id, position) in open.iter().chain(&closing) {
        rules.registry.insert(*id, *position);
    }
    server.acknowledge(&open);
    server.acknowledge_ended(&closing);
}

/// False to close the connection.
fn on_event(server: &mut SourceServer, worker: &Worker, event: SourceServerEvent, taken: &mut usize) -> bool {
    let mut rules = worker.rules();
    match event {
        SourceServerEvent::Hello { .. } => {
            if rules.restarts.is_empty() {
                return true;
            }
            let address = rules.restarts.remove(0);
            server.restart(address.as_deref());
            true // the client closes
        }
        SourceServerEvent::Notify { stream, name, position } => {
            let name = system_name(&name);
            rules.names.insert(stream, name.clone());
            rules.proposals.push((name.clone(), position));
            if rules.refuse > 0 || rules.closed.contains(&name) {
                rules.refuse = rules.refuse.saturating_sub(1);
                server.notify_ack(stream, false, position);
                return true;
            }
            let known = rules.registry.get(&stream).copied().flatten();
            let answer = if rules.answers.is_empty() { known } else { rules.answers.remove(0) };
            server.notify_ack(stream, true, answer);
            true
        }
        SourceServerEvent::Records(run) => {
            let name = rules.names[&run.stream()].clone();
            for record in &run {
                if rules.poison.as_deref() == Some(record.payload) {
                    server.error("Unable to decode message");
                    return false;
                }
                rules.processed.push((name.clone(), record.id, record.payload.to_vec()));
                *taken += 1;
                if rules.close_after.is_some_and(|limit| *taken >= limit) {
                    return false;
                }
            }
            true
        }
        SourceServerEvent::Eos { stream } => {
            rules.eos += 1;
            if rules.drop_at_eos > 0 {
                rules.drop_at_eos -= 1;
                return false;
            }
            if !rules.checkpoints {
                // Without resilience the end is acknowledged at once.
                let seen = server.stream(stream).and_then(|stream| stream.seen);
                server.acknowledge_ended(&[(stream, seen)]);
            }
            true
        }
        SourceServerEvent::Tolerated(what) => {
            rules.violations.push(what);
            true
        }
    }
}
