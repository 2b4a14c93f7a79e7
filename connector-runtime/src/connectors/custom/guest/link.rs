//! The process's end of the socket: dials, greets, answers PING while the system is at work.

use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Duration, sleep};

use super::{Ended, GuestError};
use crate::connectors::custom::frame::Frame;
use crate::connectors::custom::link::Greeting;
use crate::connectors::custom::{Hello, VERSION};

/// Frames that wait for the system, at most: the runtime sends a sink one batch at a time.
const WAITING_FRAMES: usize = 16;

/// Between two attempts to dial: the runtime is on the same machine.
const REDIAL: Duration = Duration::from_millis(200);

/// A greeted connection.
pub(super) struct GuestLink {
    writer: Arc<Mutex<OwnedWriteHalf>>,
    frames: mpsc::Receiver<Result<Frame, Ended>>,
    reader: JoinHandle<()>,
}

impl Drop for GuestLink {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Dials until the runtime answers and says HELLO.
pub(super) async fn dial(path: &Path, name: &str, role: &str) -> Result<(GuestLink, Hello), Ended> {
    let stream = loop {
        match UnixStream::connect(path).await {
            Ok(stream) => break stream,
            Err(_) => sleep(REDIAL).await,
        }
    };
    let (mut reader, mut writer) = stream.into_split();
    let mut input = BytesMut::new();
    let hello: Hello = match read(&mut reader, &mut input).await? {
        Frame::Hello(text) => serde_json::from_str(&text).map_err(|error| {
            Ended::Failed(GuestError::Refused(format!("its HELLO is not understood: {error}")))
        })?,
        other => return Err(Ended::Failed(GuestError::Refused(format!("it said {} first", other.name())))),
    };
    let (is, wanted) =
        (format!("{role} of version {VERSION}"), format!("{} of version {}", hello.role, hello.version));
    if is != wanted {
        return Err(Ended::Failed(GuestError::Mismatch { wanted, is }));
    }
    let greeting = Greeting { version: VERSION, name: name.to_owned() };
    let mut output = BytesMut::new();
    Frame::Hello(serde_json::to_string(&greeting).unwrap_or_default()).put(&mut output);
    writer.write_all(&output).await?;
    let writer = Arc::new(Mutex::new(writer));
    let (sender, frames) = mpsc::channel(WAITING_FRAMES);
    let pongs = Arc::clone(&writer);
    let reader = tokio::spawn(async move {
        loop {
            let frame = match read(&mut reader, &mut input).await {
                Ok(Frame::Ping(number)) => match put(&pongs, &Frame::Pong(number)).await {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
                other => other,
            };
            let over = frame.is_err();
            if sender.send(frame).await.is_err() || over {
                return;
            }
        }
    });
    Ok((GuestLink { writer, frames, reader }, hello))
}

impl GuestLink {
    /// Waits for the next frame; cancel-safe.
    pub(super) async fn receive(&mut self) -> Result<Frame, Ended> {
        match self.frames.recv().await {
            Some(Ok(Frame::Error { text, .. })) => Err(Ended::Failed(GuestError::Refused(text))),
            Some(frame) => frame,
            None => Err(Ended::Gone),
        }
    }

    pub(super) async fn send(&self, frame: &Frame) -> Result<(), Ended> {
        put(&self.writer, frame).await
    }

    pub(super) async fn send_bytes(&self, bytes: &[u8]) -> Result<(), Ended> {
        Ok(self.writer.lock().await.write_all(bytes).await?)
    }
}

async fn put(writer: &Mutex<OwnedWriteHalf>, frame: &Frame) -> Result<(), Ended> {
    let mut output = BytesMut::new();
    frame.put(&mut output);
    Ok(writer.lock().await.write_all(&output).await?)
}

async fn read(reader: &mut OwnedReadHalf, input: &mut BytesMut) -> Result<Frame, Ended> {
    loop {
        if let Some(frame) = Frame::take(input)? {
            return Ok(frame);
        }
        if reader.read_buf(input).await? == 0 {
            return Err(Ended::Gone);
        }
    }
}
