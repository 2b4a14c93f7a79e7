//! A Redis server double: enough of it for the hash sink, with faults on demand.
//!
//! It keeps hashes and expiries, checks users and databases, and answers what it does not know with the error that
//! Redis gives. It counts connections and commands, so that tests see what was really sent.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Longest bulk string that is accepted.
const MAX_BULK_BYTES: usize = 16 * 1_048_576;

type Hash = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the server knows and does.
#[derive(Debug, Default)]
pub struct State {
    /// Hashes by database and key.
    pub hashes: BTreeMap<(i64, Vec<u8>), Hash>,
    /// Keys that hold a string, so that `HSET` on them fails.
    pub strings: Vec<Vec<u8>>,
    /// Last `EXPIRE` of each key, in seconds.
    pub expiries: BTreeMap<Vec<u8>, i64>,
    /// Passwords by user; empty: no authentication.
    pub users: BTreeMap<String, String>,
    /// Answers to the next `HSET` commands, instead of executing them.
    pub refusals: VecDeque<String>,
    /// Connections accepted so far.
    pub connections: usize,
    /// Commands by name, of all connections.
    pub commands: BTreeMap<String, usize>,
}

/// A running server.
#[derive(Debug)]
pub struct FakeRedis {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    generation: watch::Sender<u64>,
    accepting: Option<JoinHandle<()>>,
}

impl FakeRedis {
    /// Starts a server on a free port of the loopback.
    pub async fn start() -> FakeRedis {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut server =
            FakeRedis { address, state: Arc::default(), generation: watch::channel(0).0, accepting: None };
        server.accept(listener);
        server
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What it knows; hold the guard briefly.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes every connection; new ones are accepted.
    pub fn drop_connections(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Closes every connection and accepts no more.
    pub async fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
        }
        self.drop_connections();
    }

    /// Accepts again on the same port, with the same data.
    pub async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the same port");
        self.accept(listener);
    }

    fn accept(&mut self, listener: TcpListener) {
        let (state, generation) = (self.state.clone(), self.generation.subscribe());
        self.accepting = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                state.lock().unwrap_or_else(PoisonError::into_inner).connections += 1;
                let (state, mut generation) = (state.clone(), generation.clone());
                generation.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = generation.changed() => {}
                        _ = serve(stream, &state) => {}
                    }
                });
            }
        }));
    }
}

impl Drop for FakeRedis {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

/// What a connection is.
#[derive(Debug, Default)]
struct Session {
    authenticated: bool,
    database: i64,
}

async fn serve(stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut session = Session::default();
    let mut answers = Vec::new();
    loop {
        let Some(command) = read_command(&mut stream).await? else { return Ok(()) };
        let answer = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            execute(&command, &mut session, &mut state)
        };
        answers.extend(answer.into_bytes());
        // Answers of a pipeline leave together.
        if stream.buffer().is_empty() {
            stream.write_all(&answers).await?;
            answers.clear();
        }
    }
}

async fn read_command(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<Vec<u8>>>> {
    let Some(count) = read_length(stream, b'*').await? else { return Ok(None) };
    let mut command = Vec::with_capacity(count.min(1_024));
    for _ in 0..count {
        let length = read_length(stream, b'$').await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if length > MAX_BULK_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bulk = vec![0; length + 2];
        stream.read_exact(&mut bulk).await?;
        bulk.truncate(length);
        command.push(bulk);
    }
    Ok(Some(command))
}

/// A line of `kind` and a number; `None` at the end of the connection.
async fn read_length(stream: &mut BufReader<TcpStream>, kind: u8) -> io::Result<Option<usize>> {
    let mut line = Vec::new();
    if stream.read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    let number = line.strip_prefix(&[kind]).and_then(|rest| rest.strip_suffix(b"\r\n"));
    let number = number.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn execute(command: &[Vec<u8>], session: &mut Session, state: &mut State) -> String {
    let text =
        |index: usize| String::from_utf8_lossy(command.get(index).map_or(&[][..], |arg| arg)).into_owned();
    let name = text(0).to_uppercase();
    *state.commands.entry(name.clone()).or_default() += 1;
    if name == "AUTH" {
        let (user, password) =
            if command.len() == 2 { ("default".into(), text(1)) } else { (text(1), text(2)) };
        session.authenticated = state.users.get(&user) == Some(&password);
        return if session.authenticated {
            "+OK\r\n".into()
        } else {
            "-WRONGPASS invalid username-password pair or user is disabled.\r\n".into()
        };
    }
    if !state.users.is_empty() && !session.authenticated {
        return "-NOAUTH Authentication required.\r\n".into();
    }
    match name.as_str() {
        "PING" => "+PONG\r\n".into(),
        "SELECT" => match text(1).parse() {
            Ok(database @ 0..16) => {
                session.database = database;
                "+OK\r\n".into()
            }
            _ => "-ERR DB index is out of range\r\n".into(),
        },
        "HSET" => {
            if let Some(refusal) = state.refusals.pop_front() {
                return format!("-{refusal}\r\n");
            }
            let (key, pairs) = match command {
                [_, key, pairs @ ..] if !pairs.is_empty() && pairs.len() % 2 == 0 => (key, pairs),
                _ => return "-ERR wrong number of arguments for 'hset' command\r\n".into(),
            };
            if state.strings.contains(key) {
                return "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n".into();
            }
            let hash = state.hashes.entry((session.database, key.clone())).or_default();
            let before = hash.len();
            for pair in pairs.chunks_exact(2) {
                hash.insert(pair[0].clone(), pair[1].clone());
            }
            format!(":{}\r\n", hash.len() - before)
        }
        "EXPIRE" => {
            let known =
                command.get(1).is_some_and(|key| state.hashes.contains_key(&(session.database, key.clone())));
            if let (true, Ok(seconds)) = (known, text(2).parse()) {
                state.expiries.insert(command[1].clone(), seconds);
            }
            format!(":{}\r\n", u8::from(known))
        }
        _ => format!("-ERR unknown command '{}'\r\n", text(0)),
    }
}
