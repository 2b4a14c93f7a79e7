//! Any [`Sink`] as a custom connector's process.

use std::collections::BTreeMap;
use std::path::Path;

use tokio::time::{Duration, Instant};

use super::link::{self, GuestLink};
use super::{Ended, GuestError, MakeSink, start};
use crate::connectors::custom::frame::{self, Frame, Place, Request};
use crate::record::Position;
use crate::sink::{Sink, SinkStream};
use crate::source::SystemError;

/// Serves the runtime behind `socket` until it is told to leave by SIGTERM of the process or ends by itself: a sink is not told over
/// the socket. `make` is called for each connection, so that a sink always starts from nothing.
///
/// # Errors
/// What makes no sense to try again.
pub async fn serve_sink(socket: &Path, name: &str, make: &mut MakeSink<'_>) -> Result<(), GuestError> {
    loop {
        match serve(socket, name, make).await {
            Ended::Told => return Ok(()),
            Ended::Gone => tracing::info!("The runtime is gone; dialling again."),
            Ended::Failed(error) => return Err(error),
        }
    }
}

/// One connection.
struct Served {
    link: GuestLink,
    sink: Box<dyn Sink>,
    streams: BTreeMap<u32, SinkStream>,
    /// What the runtime was told.
    told: BTreeMap<u32, Position>,
}

async fn serve(socket: &Path, name: &str, make: &mut MakeSink<'_>) -> Ended {
    let (link, hello) = match link::dial(socket, name, "sink").await {
        Ok(greeted) => greeted,
        Err(ended) => return ended,
    };
    let sink = match make(&start(&hello)) {
        Ok(sink) => sink,
        Err(error) => {
            // The runtime shows it; should it be gone, the process says it by ending.
            let text = error.to_string();
            let _ = link.send(&Frame::Error { stream: None, permanent: true, text }).await;
            return Ended::Failed(error.into());
        }
    };
    let mut served = Served { link, sink, streams: BTreeMap::new(), told: BTreeMap::new() };
    loop {
        let frame = match served.link.receive().await {
            Ok(frame) => frame,
            Err(ended) => return ended,
        };
        match served.on_frame(frame).await {
            Ok(false) => {}
            Ok(true) => return Ended::Told,
            Err(ended) => return ended,
        }
    }
}

impl Served {
    /// True when told to leave.
    async fn on_frame(&mut self, frame: Frame) -> Result<bool, Ended> {
        let answer = match frame {
            Frame::Attach { stream, incarnation, worker } => {
                let opened = SinkStream { worker, incarnation };
                self.streams.insert(stream, opened.clone());
                self.told.remove(&stream);
                let position = self.sink.open(&opened).await;
                position.map(|position| {
                    let place = position.map_or(Place::None, Place::Position);
                    Frame::Attached { stream, place }
                })
            }
            Frame::Batch(records) => {
                let batch = frame::batch(&records)?;
                let stream = self.stream(records.stream)?;
                self.sink.deliver(&stream, &batch).await.map(|rejected| {
                    let number = |index| u32::try_from(index).unwrap_or(u32::MAX);
                    let rejected =
                        rejected.into_iter().map(|refused| (number(refused.index), refused.reason));
                    Frame::Written { stream: records.stream, rejected: rejected.collect() }
                })
            }
            Frame::Flush(millis) => {
                let deadline = Instant::now() + Duration::from_millis(millis.into());
                self.sink.flush(deadline).await.map(|()| Frame::Done(Request::Flush))
            }
            Frame::Archive(stream) => {
                let name = self.stream(stream)?;
                self.streams.remove(&stream);
                self.told.remove(&stream);
                self.sink.archive(&name).await.map(|()| Frame::Done(Request::Archive))
            }
            Frame::Check => self.sink.check().await.map(|()| Frame::Done(Request::Check)),
            Frame::Close(_) => {
                self.link.send(&Frame::Done(Request::Close)).await?;
                return Ok(true);
            }
            other => {
                return Err(Ended::Failed(GuestError::Refused(format!(
                    "it sent {} to a sink",
                    other.name()
                ))));
            }
        };
        match answer {
            Ok(answer) => {
                self.tell_durable().await?;
                self.link.send(&answer).await?;
            }
            Err(error) => self.report(&error).await?,
        }
        Ok(false)
    }

    fn stream(&self, number: u32) -> Result<SinkStream, Ended> {
        let stream = self.streams.get(&number).cloned();
        stream.ok_or_else(|| Ended::Failed(GuestError::Refused(format!("it never attached stream {number}"))))
    }

    async fn tell_durable(&mut self) -> Result<(), Ended> {
        for (stream, position) in self.sink.durable() {
            let number = self.streams.iter().find(|(_, known)| **known == stream).map(|(number, _)| *number);
            if let Some(number) = number
                && self.told.insert(number, position) != Some(position)
            {
                self.link.send(&Frame::Durable { stream: number, position }).await?;
            }
        }
        Ok(())
    }

    async fn report(&mut self, error: &SystemError) -> Result<(), Ended> {
        let permanent = matches!(error, SystemError::Permanent { .. });
        let text = match error {
            SystemError::Transient { context, cause: Some(cause), .. } => format!("{context}: {cause:#}"),
            SystemError::Transient { context, cause: None, .. } | SystemError::Permanent { context, .. } => {
                context.clone()
            }
        };
        self.link.send(&Frame::Error { stream: None, permanent, text }).await
    }
}
