//! Standard output sink: each record and a line feed, one write a batch.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::super::set_position;
use crate::record::{Batch, Position};
use crate::sink::{Sink, SinkStream, SystemError, Written};
use crate::source::ErrorClass;

/// Writes each record and a line feed to the standard output.
///
/// Bytes pass unchanged, line feeds inside a record too: this sink is for trials. Durable means handed to the kernel.
/// The target keeps no position.
pub struct StdoutSink {
    output: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    buffer: Vec<u8>,
    written: BTreeMap<SinkStream, Position>,
}

impl std::fmt::Debug for StdoutSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StdoutSink").field("written", &self.written).finish_non_exhaustive()
    }
}

impl StdoutSink {
    /// Writes to the process's standard output.
    pub fn new(spec: &connector_crds::systems::stdout::StdoutSink) -> StdoutSink {
        let connector_crds::systems::stdout::StdoutSink {} = spec;
        StdoutSink::to(tokio::io::stdout())
    }

    /// Writes to anything else, for tests.
    pub fn to(output: impl AsyncWrite + Send + Sync + Unpin + 'static) -> StdoutSink {
        StdoutSink { output: Box::new(output), buffer: Vec::new(), written: BTreeMap::new() }
    }
}

fn failed(error: std::io::Error) -> SystemError {
    SystemError::Transient {
        context: format!("writing to the standard output: {error}"),
        class: ErrorClass::Connect,
        cause: Some(error.into()),
    }
}

#[async_trait]
impl Sink for StdoutSink {
    async fn open(&mut self, _stream: &SinkStream) -> Result<Option<Position>, SystemError> {
        Ok(None)
    }

    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        self.buffer.clear();
        self.buffer.reserve(batch.bytes() + batch.len());
        for record in batch.iter() {
            self.buffer.extend_from_slice(record.payload);
            self.buffer.push(b'\n');
        }
        self.output.write_all(&self.buffer).await.map_err(failed)?;
        self.output.flush().await.map_err(failed)?;
        if let Some(position) = batch.last_position() {
            set_position(&mut self.written, stream, position);
        }
        Ok(Written::default())
    }

    fn durable(&self) -> Vec<(SinkStream, Position)> {
        self.written.iter().map(|(stream, position)| (stream.clone(), *position)).collect()
    }

    async fn flush(&mut self, deadline: Instant) -> Result<(), SystemError> {
        match timeout_at(deadline, self.output.flush()).await {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(SystemError::Transient {
                context: "the standard output takes nothing".into(),
                class: ErrorClass::Timeout,
                cause: None,
            }),
        }
    }

    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        self.written.remove(stream);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, NO_TIME, Record};
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_batch_is_written_once_with_a_line_feed_after_each_record() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut sink = StdoutSink::to(ours);
        let stream = SinkStream { worker: "w".into(), incarnation: 1 };
        let mut builder = BatchBuilder::default();
        for (position, payload) in [(3, &b"a"[..]), (9, b"b\xff\nc")] {
            builder.push(Record { position, time: NO_TIME, key: &[], payload });
        }
        assert!(sink.write(&stream, &builder.finish()).await.unwrap().rejected.is_empty());
        let mut bytes = [0; 64];
        let read = theirs.read(&mut bytes).await.unwrap();
        assert_eq!(&bytes[..read], b"a\nb\xff\nc\n");
        assert_eq!(sink.durable(), [(stream, 9)]);
        drop(theirs);
        builder.push(Record { position: 10, time: NO_TIME, key: &[], payload: b"x" });
        let stream = SinkStream { worker: "w".into(), incarnation: 1 };
        let error = sink.write(&stream, &builder.finish()).await.unwrap_err();
        assert!(matches!(error, SystemError::Transient { .. }), "{error}");
        assert_eq!(sink.durable(), [(stream, 9)]);
    }
}
