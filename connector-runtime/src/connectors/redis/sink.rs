//! Redis hash sink: each record one field of a hash, whole batches in few commands.

use std::collections::BTreeMap;

use async_trait::async_trait;
use connector_crds::systems::redis::RedisSink as Spec;
use futures::stream::FuturesOrdered;
use futures::{FutureExt as _, StreamExt as _};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisError, Value};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use super::super::{Context, set_position};
use super::connection::{connect, disposition, host_and_port};
use super::split::Split;
use crate::record::{Batch, Position};
use crate::secret::Secrets;
use crate::sink::{Rejected, Sink, SinkStream, SystemError, Written};
use crate::source::ErrorClass;

/// Fields of one `HSET` at most: one command holds the server for well below a millisecond.
const FIELDS_PER_COMMAND: usize = 512;

/// Field and value bytes of one `HSET`, aimed at.
const BYTES_PER_COMMAND: usize = 262_144;

/// Commands that are sent at once: the server works on them while the next ones are made.
const COMMANDS_PER_PIPELINE: usize = 2;

/// Writes each record as one field of a hash.
///
/// The fields of a batch are put into few `HSET` commands, pipelined over one connection, with the `EXPIRE` that `ttlSeconds`
/// asks for behind them; within a command the last value of a field wins, as it would with one command a record. The
/// target keeps no position: writing a batch again leaves the same hash once the last batch is written again (latest
/// value wins), so delivery is at least once and idempotent.
///
/// Durable means answered by the server. What the server itself then loses (a crash with `appendfsync everysec`, a
/// failover to a replica that was behind) is not noticed here.
///
/// A record that cannot be split is rejected. User, password, CA and client certificate are read at each dial, and the
/// connection is renewed before the next batch when a mounted Secret changed.
pub struct RedisHashSink {
    spec: Spec,
    split: Split,
    secrets: Secrets,
    changes: watch::Receiver<u64>,
    connection: Option<MultiplexedConnection>,
    written: BTreeMap<SinkStream, Position>,
}

impl std::fmt::Debug for RedisHashSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisHashSink")
            .field("address", &self.spec.address)
            .field("key", &self.spec.hash.key)
            .field("connected", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

impl RedisHashSink {
    /// A sink that dials with the first call.
    ///
    /// # Errors
    /// `Permanent/InvalidAddress` when the address is not `host:port`.
    pub fn new(spec: &Spec, context: &Context) -> Result<RedisHashSink, SystemError> {
        host_and_port(&spec.address)?;
        Ok(RedisHashSink {
            spec: spec.clone(),
            split: Split::new(&spec.hash.field),
            secrets: context.secrets.clone(),
            changes: context.secrets.changes(),
            connection: None,
            written: BTreeMap::new(),
        })
    }

    /// The connection, dialled anew where there is none or a Secret changed.
    async fn connection(&mut self) -> Result<&mut MultiplexedConnection, SystemError> {
        if self.changes.has_changed().unwrap_or(false) {
            self.changes.mark_unchanged();
            self.connection = None;
        }
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.spec, &self.secrets).await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// The next commands of a batch, from record `next` on, which moves behind them; records without a place in them are rejected.
    fn commands(&self, batch: &Batch, next: &mut usize, rejected: &mut Vec<Rejected>) -> Pipeline {
        let hash = &self.spec.hash;
        let mut pipeline = Pipeline::with_capacity(COMMANDS_PER_PIPELINE + 1);
        let mut command: Option<(Cmd, usize, usize)> = None;
        for record in batch.iter_from(*next) {
            let index = *next;
            *next += 1;
            let (field, value) = match self.split.apply(record.payload) {
                Ok(split) => split,
                Err(reason) => {
                    rejected.push(Rejected { index, reason });
                    continue;
                }
            };
            let (cmd, fields, bytes) = command.get_or_insert_with(|| {
                let fields = FIELDS_PER_COMMAND.min(batch.len() - index);
                let mut cmd = Cmd::with_capacity(
                    2 + 2 * fields,
                    BYTES_PER_COMMAND.min(batch.bytes()) + hash.key.len() + 4,
                );
                cmd.arg("HSET").arg(hash.key.as_bytes());
                (cmd, 0, 0)
            });
            cmd.arg(field).arg(value);
            *fields += 1;
            *bytes += field.len() + value.len();
            let full = *fields >= FIELDS_PER_COMMAND || *bytes >= BYTES_PER_COMMAND;
            if full && let Some((cmd, _, _)) = command.take() {
                pipeline.add_command(cmd);
                if pipeline.len() >= COMMANDS_PER_PIPELINE {
                    break;
                }
            }
        }
        if let Some((cmd, _, _)) = command {
            pipeline.add_command(cmd);
        }
        pipeline
    }

    /// Writes a batch: pipelines are on their way while the next ones are made. The records that were rejected.
    async fn write_commands(&mut self, batch: &Batch) -> Result<Vec<Rejected>, SystemError> {
        let connection = self.connection().await?.clone();
        let doing = || format!("writing to hash {:?} at {}", self.spec.hash.key, self.spec.address);
        let (mut next, mut rejected, mut some) = (0, Vec::new(), false);
        let mut answers = FuturesOrdered::new();
        while next < batch.len() {
            let mut pipeline = self.commands(batch, &mut next, &mut rejected);
            some |= !pipeline.is_empty();
            if let (Some(seconds), true) = (self.spec.hash.ttl_seconds, some && next >= batch.len()) {
                pipeline.cmd("EXPIRE").arg(self.spec.hash.key.as_bytes()).arg(seconds);
            }
            if pipeline.is_empty() {
                continue;
            }
            let connection = connection.clone();
            answers.push_back(async move { ask(connection, &pipeline).await });
            // Polled once, the request is with the connection's task, which gets a turn to write it.
            if let Some(Some(Err(error))) = answers.next().now_or_never() {
                return Err(disposition(&doing(), error));
            }
            yield_now().await;
        }
        while let Some(answer) = answers.next().await {
            answer.map_err(|error| disposition(&doing(), error))?;
        }
        Ok(rejected)
    }
}

/// Sends a pipeline over a connection and takes its answers: the first error among them, if there is one.
async fn ask(mut connection: MultiplexedConnection, pipeline: &Pipeline) -> Result<(), RedisError> {
    let answers = connection.req_packed_commands(pipeline, 0, pipeline.len()).await?;
    let error = answers.into_iter().find_map(|answer| match answer {
        Value::ServerError(error) => Some(error.into()),
        _ => None,
    });
    error.map_or(Ok(()), Err)
}

#[async_trait]
impl Sink for RedisHashSink {
    async fn open(&mut self, _stream: &SinkStream) -> Result<Option<Position>, SystemError> {
        self.connection().await?;
        Ok(None)
    }

    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        let rejected = match self.write_commands(batch).await {
            Ok(rejected) => rejected,
            Err(error) => {
                self.connection = None;
                return Err(error);
            }
        };
        if let Some(position) = batch.last_position() {
            set_position(&mut self.written, stream, position);
        }
        Ok(Written { rejected })
    }

    fn durable(&self) -> Vec<(SinkStream, Position)> {
        self.written.iter().map(|(stream, position)| (stream.clone(), *position)).collect()
    }

    async fn flush(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        // `write` returns with the server's answer.
        Ok(())
    }

    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        self.written.remove(stream);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("PING");
        let doing = format!("asking {}", self.spec.address);
        let asking = async {
            let connection = self.connection().await?.clone();
            ask(connection, &pipeline).await.map_err(|error| disposition(&doing, error))
        };
        match timeout_at(Instant::now() + CHECK_TIMEOUT, asking).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.connection = None;
                Err(error)
            }
            Err(_) => Err(SystemError::Transient {
                context: format!("{doing}: no answer in time"),
                class: ErrorClass::Timeout,
                cause: None,
            }),
        }
    }
}

/// Longest wait of a check: a probe has to answer while someone looks at it.
const CHECK_TIMEOUT: tokio::time::Duration = tokio::time::Duration::from_secs(5);
