//! A custom connector's process as a sink.

use std::collections::BTreeMap;

use async_trait::async_trait;
use connector_crds::systems::custom::{CustomSink as Spec, SinkPositions};
use tokio::time::{Duration, Instant, timeout_at};

use super::super::Context;
use super::VERSION;
use super::frame::{self, Frame, Place, Request};
use super::link::{Hello, Incoming, Link, failed, violation};
use crate::record::{Batch, Position};
use crate::sink::{Rejected, Sink, SinkStream, SystemError, Written};
use crate::source::ErrorClass;

/// Longest wait for an answer to ATTACH, BATCH, ARCHIVE and CHECK: what a target may take for one batch.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// Writes to a process in a container beside this one.
///
/// A batch is accepted when the process answers it with WRITTEN, and durable as far as its DURABLE says. With `positions: Ordered` the
/// process keeps the position with the data and tells it in ATTACHED; with `None` what it tells is not asked.
pub struct CustomSink {
    link: Link,
    positions: SinkPositions,
    attached: BTreeMap<SinkStream, u32>,
    next_number: u32,
    durable: BTreeMap<SinkStream, Position>,
    /// Last position that was accepted of each open stream; `None` before the first.
    accepted: BTreeMap<SinkStream, Option<Position>>,
}

impl CustomSink {
    /// A sink that listens with the first call.
    pub fn new(spec: &Spec, context: &Context) -> CustomSink {
        let hello = Hello {
            version: VERSION,
            role: "sink".into(),
            namespace: context.identity.namespace.clone(),
            name: context.identity.name.clone(),
            positions: spec.positions.as_str().into(),
            config: spec.process.config.clone(),
            max_payload_bytes: frame::MAX_RECORD_BYTES as u64,
            credit_records: 0,
            credit_bytes: 0,
        };
        CustomSink {
            link: Link::new(context, &spec.process, &hello),
            positions: spec.positions,
            attached: BTreeMap::new(),
            next_number: 0,
            durable: BTreeMap::new(),
            accepted: BTreeMap::new(),
        }
    }

    /// Waits until a process is there.
    async fn up(&mut self) -> Result<(), SystemError> {
        while !self.link.is_up() {
            self.attached.clear();
            self.link.receive().await?;
        }
        Ok(())
    }

    /// Waits for the answer that `wanted` recognises, and takes note of what else is told.
    ///
    /// An answer that does not come in time leaves the connection in a state that nobody knows, so it ends.
    async fn answer<T>(
        &mut self,
        deadline: Instant,
        what: &str,
        wanted: impl Fn(Frame) -> Result<T, Frame>,
    ) -> Result<T, SystemError> {
        loop {
            let Ok(incoming) = timeout_at(deadline, self.link.receive()).await else {
                self.link.hang_up();
                return Err(SystemError::Transient {
                    context: format!("the custom connector did not answer {what} in time"),
                    class: ErrorClass::Timeout,
                    cause: None,
                });
            };
            let frame = match incoming? {
                Incoming::Frame(frame) => frame,
                Incoming::Connected => {
                    self.attached.clear();
                    return Err(failed(false, format!("it was replaced before it answered {what}")));
                }
            };
            match wanted(frame) {
                Ok(answer) => return Ok(answer),
                Err(other) => self.told(other)?,
            }
        }
    }

    /// Takes note of what is told without being asked.
    fn told(&mut self, frame: Frame) -> Result<(), SystemError> {
        match frame {
            Frame::Durable { stream, position } => {
                let Some((name, _)) = self.attached.iter().find(|(_, number)| **number == stream) else {
                    return Err(self.broken(&format!("DURABLE names stream {stream}, which is not attached")));
                };
                super::super::set_position(&mut self.durable, &name.clone(), position);
                Ok(())
            }
            Frame::Ready => Ok(()),
            Frame::Error { stream: _, permanent, text } => {
                // Whatever was asked is not done, and an answer may still follow: another connection starts from nothing.
                self.link.hang_up();
                Err(failed(permanent, text))
            }
            other => Err(self.broken(&format!("a sink sent {} where it was not asked for", other.name()))),
        }
    }

    fn broken(&mut self, what: &str) -> SystemError {
        let error = violation(what);
        self.link.refuse(&error.to_string());
        error
    }

    fn number(&self, stream: &SinkStream) -> Result<u32, SystemError> {
        let attached = self.attached.get(stream).filter(|_| self.link.is_up());
        attached.copied().ok_or_else(|| failed(false, "it was replaced by another process".into()))
    }

    /// Shows an open stream to a process that came after the one that had it. It may go on only where nothing is missing between what
    /// was accepted and what is durable; else the pump has to begin anew.
    async fn attach_again(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        let Some(accepted) = self.accepted.get(stream).copied() else {
            return Err(failed(false, format!("stream of {} was not opened", stream.worker)));
        };
        let durable = self.durable.get(stream).copied();
        let held = self.open(stream).await?;
        let kept = match self.positions {
            SinkPositions::Ordered => held,
            SinkPositions::None => durable,
        };
        if kept != accepted {
            return Err(failed(false, "it was replaced by another process".into()));
        }
        self.accepted.insert(stream.clone(), accepted);
        if let Some(position) = kept {
            self.durable.insert(stream.clone(), position);
        }
        Ok(())
    }

    async fn done(&mut self, request: Request, deadline: Instant, what: &str) -> Result<(), SystemError> {
        self.answer(deadline, what, |frame| match frame {
            Frame::Done(done) if done == request => Ok(()),
            other => Err(other),
        })
        .await
    }
}

#[async_trait]
impl Sink for CustomSink {
    async fn open(&mut self, stream: &SinkStream) -> Result<Option<Position>, SystemError> {
        self.up().await?;
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1);
        self.attached.insert(stream.clone(), number);
        self.durable.remove(stream);
        let (incarnation, worker) = (stream.incarnation, stream.worker.clone());
        self.link.send(&Frame::Attach { stream: number, incarnation, worker });
        let place = self
            .answer(Instant::now() + ANSWER_TIMEOUT, "ATTACH", |frame| match frame {
                Frame::Attached { stream, place } if stream == number => Ok(place),
                other => Err(other),
            })
            .await?;
        let position = match (self.positions, place) {
            (SinkPositions::Ordered, Place::Position(position)) => Some(position),
            (SinkPositions::Ordered, Place::None) | (SinkPositions::None, _) => None,
            (SinkPositions::Ordered, Place::Cursor(_)) => {
                return Err(self.broken("ATTACHED holds a cursor, and `positions` is Ordered"));
            }
        };
        if let Some(position) = position {
            self.durable.insert(stream.clone(), position);
        }
        self.accepted.insert(stream.clone(), position);
        Ok(position)
    }

    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        if self.number(stream).is_err() {
            self.attach_again(stream).await?;
        }
        let mut rejected = Vec::new();
        let mut from = 0;
        while from < batch.len() {
            let number = self.number(stream)?;
            let Some(output) = self.link.output() else { continue };
            let next = frame::put_batch(output, number, 0, &Place::None, batch, from);
            if next == from {
                let reason = format!("record is longer than {} bytes", frame::MAX_RECORD_BYTES);
                rejected.push(Rejected { index: from, reason });
                from += 1;
                continue;
            }
            let refused = self
                .answer(Instant::now() + ANSWER_TIMEOUT, "BATCH", |frame| match frame {
                    Frame::Written { stream, rejected } if stream == number => Ok(rejected),
                    other => Err(other),
                })
                .await?;
            for (index, reason) in refused {
                let index = from + index as usize;
                let follows = rejected.last().is_none_or(|last: &Rejected| last.index < index);
                if index >= next || !follows {
                    return Err(
                        self.broken("WRITTEN refuses records that are not in the batch, or not in order")
                    );
                }
                rejected.push(Rejected { index, reason });
            }
            from = next;
        }
        if let Some(last) = batch.last_position() {
            self.accepted.insert(stream.clone(), Some(last));
        }
        Ok(Written::rejecting(rejected))
    }

    fn durable(&self) -> Vec<(SinkStream, Position)> {
        self.durable.iter().map(|(stream, position)| (stream.clone(), *position)).collect()
    }

    async fn flush(&mut self, deadline: Instant) -> Result<(), SystemError> {
        self.up().await?;
        let left = deadline.saturating_duration_since(Instant::now());
        self.link.send(&Frame::Flush(u32::try_from(left.as_millis()).unwrap_or(u32::MAX)));
        self.done(Request::Flush, deadline, "FLUSH").await
    }

    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        self.durable.remove(stream);
        // A process that did not see it on this connection gets to know it first.
        if self.number(stream).is_err() {
            self.open(stream).await?;
        }
        let number = self.number(stream)?;
        self.link.send(&Frame::Archive(number));
        self.done(Request::Archive, Instant::now() + ANSWER_TIMEOUT, "ARCHIVE").await?;
        self.attached.remove(stream);
        self.accepted.remove(stream);
        self.durable.remove(stream);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        self.up().await?;
        self.link.send(&Frame::Check);
        self.done(Request::Check, Instant::now() + ANSWER_TIMEOUT, "CHECK").await
    }
}
