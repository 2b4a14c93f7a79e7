//! The runtime's end of the socket: listens, greets, asks for signs of life, and moves frames both ways.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use connector_crds::SecretKeyRef;
use connector_crds::systems::custom::CustomProcess;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use super::super::Context;
use super::VERSION;
use super::frame::{Frame, FrameError};
use crate::secret::Secrets;
use crate::source::{ErrorClass, SystemError};

/// Silence of the socket after which it is said that no process has dialled: about what one takes to start.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);

/// How long a process may take from dialling to its HELLO.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two PINGs.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait for a PONG: four PINGs.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes that wait for a process that does not read, at most: what its records may take, once more.
const MAX_WAITING_BYTES: usize = 8 * 1_048_576;

/// Room for one read.
const READ_BYTES: usize = 65_536;

/// What the runtime tells the process first: the JSON of its HELLO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Version of the protocol.
    pub version: u32,
    /// `source` or `sink`.
    pub role: String,
    /// Namespace of the Connector.
    pub namespace: String,
    /// Name of the Connector.
    pub name: String,
    /// `Ordered`, `Opaque` or `None`.
    pub positions: String,
    /// `config` of the manifest.
    pub config: BTreeMap<String, String>,
    /// Longest payload that Wallaroo takes, in bytes; sources.
    pub max_payload_bytes: u64,
    /// Records that may be sent before CREDIT allows more; sources.
    pub credit_records: u32,
    /// Key and payload bytes that may be sent before CREDIT allows more; sources.
    pub credit_bytes: u32,
}

/// What the process answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Greeting {
    pub(super) version: u32,
    /// What the process calls itself, for the log.
    #[serde(default)]
    pub(super) name: String,
}

/// What came in.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A process has dialled and said HELLO. What an earlier connection numbered means nothing any more.
    Connected,
    /// A frame.
    Frame(Frame),
}

struct Connection {
    stream: UnixStream,
    input: BytesMut,
    output: BytesMut,
    greeted: bool,
    since: Instant,
    next_ping: Instant,
    /// Number and time of the PING that waits for its PONG.
    asked: Option<(u64, Instant)>,
    pings: u64,
}

/// The runtime's end.
pub(super) struct Link {
    path: PathBuf,
    secrets: (Secrets, Vec<SecretKeyRef>),
    hello: String,
    listener: Option<UnixListener>,
    connection: Option<Connection>,
    waiting_since: Option<Instant>,
}

impl Link {
    /// An end that listens with its first call.
    pub(super) fn new(context: &Context, process: &CustomProcess, hello: &Hello) -> Link {
        // Texts, numbers and a map of texts: this cannot fail.
        let hello = serde_json::to_string(hello).unwrap_or_default();
        let secrets = (context.secrets.clone(), process.secrets.clone());
        Link {
            path: context.socket.clone(),
            secrets,
            hello,
            listener: None,
            connection: None,
            waiting_since: None,
        }
    }

    /// True when a process is there and has said HELLO.
    pub(super) fn is_up(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.greeted)
    }

    /// Gives a frame to the process; what its socket does not take now is kept, within a bound. Without a process the frame is
    /// dropped: the next one starts from nothing.
    pub(super) fn send(&mut self, frame: &Frame) {
        if let Some(connection) = self.connection.as_mut().filter(|connection| connection.greeted) {
            frame.put(&mut connection.output);
        }
    }

    /// As [`Link::send`], for who encodes by itself.
    pub(super) fn output(&mut self) -> Option<&mut BytesMut> {
        self.connection
            .as_mut()
            .filter(|connection| connection.greeted)
            .map(|connection| &mut connection.output)
    }

    /// Waits for what comes in; meanwhile sends what waits, and asks for signs of life. Cancel-safe.
    ///
    /// # Errors
    /// The process is gone, silent, or breaks the protocol; then the next call waits for another one. [`ErrorClass::Connect`] every
    /// few seconds while none dials.
    pub(super) async fn receive(&mut self) -> Result<Incoming, SystemError> {
        let received = self.step().await;
        if received.is_err() {
            self.connection = None;
        }
        received
    }

    async fn step(&mut self) -> Result<Incoming, SystemError> {
        if self.connection.is_none() {
            self.accept().await?;
        }
        let Some(connection) = &mut self.connection else {
            return Err(gone("the custom connector is not there".into(), None));
        };
        loop {
            let frame = Frame::take(&mut connection.input).map_err(|error| broken(&error))?;
            match frame {
                Some(Frame::Hello(text)) if !connection.greeted => {
                    connection.greet(&text)?;
                    return Ok(Incoming::Connected);
                }
                Some(frame) if !connection.greeted => {
                    return Err(violation(&format!("its first frame is {}, not HELLO", frame.name())));
                }
                Some(Frame::Pong(number)) => connection.pong(number),
                Some(frame) => return Ok(Incoming::Frame(frame)),
                None => connection.exchange().await?,
            }
        }
    }

    async fn accept(&mut self) -> Result<(), SystemError> {
        // The process reads them itself; here a missing one gets its name into the status.
        for secret in &self.secrets.1 {
            self.secrets.0.read(secret)?;
        }
        let listener = match &mut self.listener {
            Some(listener) => listener,
            none => none.insert(listen(&self.path).map_err(|error| {
                let context = format!("listening on socket {}", self.path.display());
                SystemError::Transient { context, class: ErrorClass::Connect, cause: Some(error.into()) }
            })?),
        };
        let now = Instant::now();
        let since = *self.waiting_since.get_or_insert(now);
        let Ok(accepted) = timeout_at(since + DIAL_PATIENCE, listener.accept()).await else {
            self.waiting_since = None;
            let text = format!(
                "no custom connector has dialled socket {} for {} s: does its container run?",
                self.path.display(),
                DIAL_PATIENCE.as_secs()
            );
            return Err(gone(text, None));
        };
        self.waiting_since = None;
        let (stream, _) = accepted.map_err(|error| gone("accepting a connection".into(), Some(error)))?;
        let now = Instant::now();
        let mut output = BytesMut::new();
        Frame::Hello(self.hello.clone()).put(&mut output);
        self.connection = Some(Connection {
            stream,
            input: BytesMut::new(),
            output,
            greeted: false,
            since: now,
            next_ping: now + PING_INTERVAL,
            asked: None,
            pings: 0,
        });
        Ok(())
    }

    /// Tells the process why it is left, as far as its socket takes it at once, and leaves it.
    pub(super) fn refuse(&mut self, text: &str) {
        self.send(&Frame::Error { stream: None, permanent: true, text: text.to_owned() });
        if let Some(connection) = self.connection.take() {
            // It is left in any case; the log of the runtime has the sentence too.
            let _ = connection.stream.try_write(&connection.output);
        }
    }

    /// Forgets the process.
    pub(super) fn hang_up(&mut self) {
        self.connection = None;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.listener.is_some() {
            // A file that stays is removed by the next process that listens.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Connection {
    fn greet(&mut self, text: &str) -> Result<(), SystemError> {
        let greeting: Greeting = serde_json::from_str(text)
            .map_err(|error| violation(&format!("its HELLO is not the JSON that is wanted: {error}")))?;
        if greeting.version != VERSION {
            return Err(violation(&format!(
                "it speaks version {} of the protocol, this runtime speaks {VERSION}",
                greeting.version
            )));
        }
        tracing::info!(name = greeting.name, "The custom connector is there.");
        self.greeted = true;
        Ok(())
    }

    fn pong(&mut self, number: u64) {
        if self.asked.is_some_and(|(asked, _)| asked == number) {
            self.asked = None;
        }
    }

    /// Writes, reads or waits: one of them.
    async fn exchange(&mut self) -> Result<(), SystemError> {
        let now = Instant::now();
        let limit = match self.asked {
            _ if !self.greeted => self.since + GREETING_TIMEOUT,
            Some((_, since)) => since + PONG_TIMEOUT,
            None => self.next_ping,
        };
        if self.greeted && self.asked.is_none() && now >= self.next_ping {
            self.pings += 1;
            self.asked = Some((self.pings, now));
            self.next_ping = now + PING_INTERVAL;
            Frame::Ping(self.pings).put(&mut self.output);
            return Ok(());
        }
        if self.output.len() > MAX_WAITING_BYTES {
            return Err(gone("the custom connector does not read what it is sent".into(), None));
        }
        self.input.reserve(READ_BYTES);
        let (mut reader, mut writer) = self.stream.split();
        tokio::select! {
            biased;
            read = reader.read_buf(&mut self.input) => match read {
                Ok(0) => return Err(gone("the custom connector closed its connection".into(), None)),
                Ok(_) => {}
                Err(error) => return Err(gone("reading from the custom connector".into(), Some(error))),
            },
            written = writer.write_buf(&mut self.output), if !self.output.is_empty() => {
                written.map_err(|error| gone("writing to the custom connector".into(), Some(error)))?;
            }
            () = sleep_until(limit) => {
                if !self.greeted {
                    return Err(timed_out("HELLO", GREETING_TIMEOUT));
                }
                if self.asked.is_some_and(|(_, since)| since.elapsed() >= PONG_TIMEOUT) {
                    return Err(timed_out("PONG", PONG_TIMEOUT));
                }
            }
        }
        Ok(())
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // The process may run as another user of the pod's group.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn gone(context: String, cause: Option<io::Error>) -> SystemError {
    SystemError::Transient { context, class: ErrorClass::Connect, cause: cause.map(Into::into) }
}

fn timed_out(what: &str, limit: Duration) -> SystemError {
    SystemError::Transient {
        context: format!("the custom connector sent no {what} within {} s", limit.as_secs()),
        class: ErrorClass::Timeout,
        cause: None,
    }
}

fn broken(error: &FrameError) -> SystemError {
    violation(&format!("it sent {error}"))
}

/// What the process did against the protocol.
pub(super) fn violation(what: &str) -> SystemError {
    SystemError::Transient {
        context: format!("the custom connector breaks the protocol: {what}"),
        class: ErrorClass::Protocol,
        cause: None,
    }
}

/// What the process tells of its system.
pub(super) fn failed(permanent: bool, text: String) -> SystemError {
    if permanent {
        SystemError::Permanent { reason: super::FAILED, context: text }
    } else {
        SystemError::Transient {
            context: format!("the custom connector: {text}"),
            class: ErrorClass::Connect,
            cause: None,
        }
    }
}
