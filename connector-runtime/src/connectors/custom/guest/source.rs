//! Any [`Source`] as a custom connector's process.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::BytesMut;
use tokio::time::{Duration, Instant};

use super::link::{self, GuestLink};
use super::{Ended, GuestError, MakeSource, start};
use crate::connectors::custom::frame::{Frame, Place, RECORD_OVERHEAD, Request, put_batch};
use crate::record::{Batch, Position};
use crate::source::{ResumeFrom, Source, SourceEvent, StreamKey, SystemError};

/// Pause after a passing error of the system.
const RETRY: Duration = Duration::from_secs(1);

/// Serves the runtime behind `socket` until it tells to leave. `make` is called for each connection, so that a source always starts from
/// nothing. Its positions are the source's own: `positions: Ordered`.
///
/// # Errors
/// What makes no sense to try again.
pub async fn serve_source(socket: &Path, name: &str, make: &mut MakeSource<'_>) -> Result<(), GuestError> {
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
    source: Box<dyn Source>,
    readings: BTreeMap<StreamKey, u32>,
    credit: (u64, u64),
    /// A batch that waits for credit, and the number of its first record that is not sent.
    held: Option<(StreamKey, Batch, usize)>,
}

async fn serve(socket: &Path, name: &str, make: &mut MakeSource<'_>) -> Ended {
    let (link, hello) = match link::dial(socket, name, "source").await {
        Ok(greeted) => greeted,
        Err(ended) => return ended,
    };
    let source = match make(&start(&hello)) {
        Ok(source) => source,
        Err(error) => {
            // The runtime shows it; should it be gone, the process says it by ending.
            let text = error.to_string();
            let _ = link.send(&Frame::Error { stream: None, permanent: true, text }).await;
            return Ended::Failed(error.into());
        }
    };
    let credit = (u64::from(hello.credit_records), u64::from(hello.credit_bytes));
    let mut served = Served { link, source, readings: BTreeMap::new(), credit, held: None };
    match served.run().await {
        Ok(()) => Ended::Told,
        Err(ended) => ended,
    }
}

impl Served {
    async fn run(&mut self) -> Result<(), Ended> {
        loop {
            self.send_held().await?;
            tokio::select! {
                biased;
                frame = self.link.receive() => {
                    if self.on_frame(frame?).await? {
                        return Ok(());
                    }
                }
                event = self.source.next(), if self.held.is_none() => match event {
                    Ok(event) => self.on_event(event).await?,
                    Err(error) => {
                        self.report(&error).await?;
                        tokio::time::sleep(RETRY).await;
                    }
                },
            }
        }
    }

    async fn report(&mut self, error: &SystemError) -> Result<(), Ended> {
        let (permanent, text) = match error {
            SystemError::Transient { context, cause: Some(cause), .. } => {
                (false, format!("{context}: {cause:#}"))
            }
            SystemError::Transient { context, cause: None, .. } => (false, context.clone()),
            SystemError::Permanent { context, .. } => (true, context.clone()),
        };
        self.link.send(&Frame::Error { stream: None, permanent, text }).await
    }

    /// Sends what the credit allows of the batch that waits.
    async fn send_held(&mut self) -> Result<(), Ended> {
        while let Some((stream, batch, from)) = self.held.take() {
            let Some(reading) = self.readings.get(&stream).copied() else { continue };
            let (mut records, mut bytes) = (0, 0);
            for record in batch.iter_from(from) {
                let size = (record.key.len() + record.payload.len()) as u64;
                if records + 1 > self.credit.0 || bytes + size > self.credit.1 {
                    break;
                }
                records += 1;
                bytes += size;
            }
            if records == 0 {
                self.held = Some((stream, batch, from));
                return Ok(());
            }
            let part = part(&batch, from, usize::try_from(records).unwrap_or(usize::MAX));
            let mut output = BytesMut::new();
            let mut sent = 0;
            while sent < part.len() {
                let next = put_batch(&mut output, stream.0, reading, &Place::None, &part, sent);
                if next == sent {
                    let size = RECORD_OVERHEAD + part.bytes();
                    let what = format!("a record of about {size} bytes does not fit a frame");
                    return Err(Ended::Failed(GuestError::Refused(what)));
                }
                sent = next;
            }
            self.credit.0 -= records;
            self.credit.1 -= bytes;
            self.link.send_bytes(&output).await?;
            if from + sent < batch.len() {
                self.held = Some((stream, batch, from + sent));
            }
        }
        Ok(())
    }

    async fn on_event(&mut self, event: SourceEvent) -> Result<(), Ended> {
        let place = |position: Option<Position>| position.map_or(Place::None, Place::Position);
        let frame = match event {
            SourceEvent::Connected => Frame::Ready,
            SourceEvent::Opened { stream, name, committed } => {
                Frame::Open { stream: stream.0, name, committed: place(committed) }
            }
            SourceEvent::Batch { stream, batch } => {
                self.held = Some((stream, batch, 0));
                return Ok(());
            }
            SourceEvent::BadRecord { stream, position, reason, payload } => {
                let reading = self.readings.get(&stream).copied().unwrap_or_default();
                // One bad record may exceed the credit by its own size only where its bytes are not sent.
                let payload =
                    if (payload.len() as u64) <= self.credit.1 { payload } else { bytes::Bytes::new() };
                self.credit.0 = self.credit.0.saturating_sub(1);
                self.credit.1 -= payload.len() as u64;
                let reason = reason.to_string();
                Frame::BadRecord { stream: stream.0, reading, position, reason, payload }
            }
            SourceEvent::Revoking { stream, deadline } => {
                let left = deadline.saturating_duration_since(Instant::now()).as_millis();
                Frame::Revoke { stream: stream.0, millis: u32::try_from(left).unwrap_or(u32::MAX) }
            }
            SourceEvent::Lost { stream } => Frame::Lost(stream.0),
            SourceEvent::Ended { stream } => Frame::End(stream.0),
            SourceEvent::Stuck { stream, reason: _, context } => {
                Frame::Error { stream: Some(stream.0), permanent: true, text: context }
            }
        };
        self.link.send(&frame).await
    }

    /// True when told to leave.
    async fn on_frame(&mut self, frame: Frame) -> Result<bool, Ended> {
        let result = match frame {
            Frame::Resume { stream, reading, after } => {
                let stream = StreamKey(stream);
                if self.held.as_ref().is_some_and(|(held, _, _)| *held == stream) {
                    self.held = None;
                }
                self.readings.insert(stream, reading);
                let from = match after {
                    Place::Position(position) => ResumeFrom::After(position),
                    Place::None | Place::Cursor(_) => ResumeFrom::Committed,
                };
                self.source.resume(stream, from).await
            }
            Frame::Credit { records, bytes } => {
                self.credit.0 += u64::from(records);
                self.credit.1 += u64::from(bytes);
                Ok(())
            }
            Frame::Commit { stream, place: Place::Position(position) } => {
                self.source.commit(&[(StreamKey(stream), position)]).await
            }
            Frame::Release(stream) => {
                let stream = StreamKey(stream);
                self.readings.remove(&stream);
                self.source.release(stream).await
            }
            Frame::Pause(stream) => {
                self.source.pause(StreamKey(stream));
                Ok(())
            }
            Frame::Unpause(stream) => {
                self.source.unpause(StreamKey(stream));
                Ok(())
            }
            Frame::Check => match self.source.check().await {
                Ok(()) => return self.link.send(&Frame::Done(Request::Check)).await.map(|()| false),
                failed => failed,
            },
            Frame::Close(millis) => {
                let deadline = Instant::now() + Duration::from_millis(millis.into());
                match self.source.close(deadline).await {
                    Ok(()) => return self.link.send(&Frame::Done(Request::Close)).await.map(|()| true),
                    Err(error) => {
                        self.report(&error).await?;
                        return Ok(true);
                    }
                }
            }
            other => {
                return Err(Ended::Failed(GuestError::Refused(format!(
                    "it sent {} to a source",
                    other.name()
                ))));
            }
        };
        if let Err(error) = result {
            self.report(&error).await?;
        }
        Ok(false)
    }
}

/// Records `from..from + count` of a batch.
fn part(batch: &Batch, from: usize, count: usize) -> Batch {
    if from == 0 && count >= batch.len() {
        return batch.clone();
    }
    let mut builder = crate::record::BatchBuilder::default();
    batch.iter_from(from).take(count).for_each(|record| builder.push(record));
    builder.finish()
}
