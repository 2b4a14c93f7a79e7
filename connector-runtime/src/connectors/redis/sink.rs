//! Redis hash sink: each record one field of a hash, whole batches in few commands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use connector_crds::systems::redis::RedisSink as Spec;
use futures::stream::FuturesOrdered;
use futures::{FutureExt as _, StreamExt as _};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisError, Value};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use super::super::Context;
use super::super::split::Split;
use super::connection::{connect, disposition, host_and_port};
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
/// `write` returns when the commands are on their way: the server works on one batch while the next one is made. Durable means answered by the server. What the server itself then loses (a crash with `appendfsync everysec`, a
/// failover to a replica that was behind) is not noticed here.
///
/// A record that cannot be split is rejected. User, password, CA and client certificate are read at each dial, and the
/// connection is renewed before the next batch when a mounted Secret changed.
pub struct RedisHashSink {
    spec: Spec,
    split: Split,
    secrets: Secrets,
    changes: watch::Receiver<u64>,
    connection: Option<Connection>,
    /// How far the server answered for each stream; the answers themselves write it.
    answered: BTreeMap<SinkStream, Arc<AtomicU64>>,
}

#[derive(Clone)]
struct Connection {
    link: MultiplexedConnection,
    /// Set by the answer that showed it: this connection is to be given up.
    failed: Arc<AtomicBool>,
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
            answered: BTreeMap::new(),
        })
    }

    /// The connection, dialled anew where there is none that works or a Secret changed.
    async fn connection(&mut self) -> Result<Connection, SystemError> {
        if self.changes.has_changed().unwrap_or(false) {
            self.changes.mark_unchanged();
            self.connection = None;
        }
        let connection = match self.connection.take().filter(|held| !held.failed.load(Relaxed)) {
            Some(connection) => connection,
            None => Connection {
                link: connect(&self.spec, &self.secrets).await?,
                failed: Arc::new(AtomicBool::new(false)),
            },
        };
        Ok(self.connection.insert(connection).clone())
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
                // Room for records of the usual size: more would be memory that is never used again as it is.
                let usual = batch.bytes() / batch.len() * fields;
                let room = BYTES_PER_COMMAND.min(usual) + hash.key.len() + 4;
                let mut cmd = Cmd::with_capacity(2 + 2 * fields, room);
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

    /// Sends a batch: pipelines are on their way while the next ones are made.
    async fn send(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        let Connection { link, failed } = self.connection().await?;
        let (mut next, mut rejected, mut some) = (0, Vec::new(), false);
        let mut asked = FuturesOrdered::new();
        let mut first = None;
        while next < batch.len() && first.is_none() {
            let mut pipeline = self.commands(batch, &mut next, &mut rejected);
            some |= !pipeline.is_empty();
            if let (Some(seconds), true) = (self.spec.hash.ttl_seconds, some && next >= batch.len()) {
                pipeline.cmd("EXPIRE").arg(self.spec.hash.key.as_bytes()).arg(seconds);
            }
            if pipeline.is_empty() {
                continue;
            }
            let link = link.clone();
            asked.push_back(async move { ask(link, &pipeline).await });
            // Polled once, the request is with the connection's task, which gets a turn to write it.
            first = asked.next().now_or_never().flatten().and_then(Result::err);
            yield_now().await;
        }
        let doing = format!("writing to hash {:?} at {}", self.spec.hash.key, self.spec.address);
        let answered = self.answered.entry(stream.clone()).or_default().clone();
        let position = batch.last_position();
        let answer = async move {
            // All of them, also behind an error: what is still out must not reach the server after a repetition.
            while let Some(answer) = asked.next().await {
                first = first.or(answer.err());
            }
            if let Some(error) = first {
                failed.store(true, Relaxed);
                return Err(disposition(&doing, error));
            }
            // Behind a failed batch nothing counts.
            if let (Some(position), false) = (position, failed.load(Relaxed)) {
                answered.store(position, Relaxed);
            }
            Ok(())
        };
        Ok(Written { rejected, answer: Some(answer.boxed()) })
    }
}

/// Sends a pipeline over a connection and takes its answers: the first error among them, if there is one.
async fn ask(mut link: MultiplexedConnection, pipeline: &Pipeline) -> Result<(), RedisError> {
    let answers = link.req_packed_commands(pipeline, 0, pipeline.len()).await?;
    let error = answers.into_iter().find_map(|answer| match answer {
        Value::ServerError(error) => Some(error.into()),
        _ => None,
    });
    error.map_or(Ok(()), Err)
}

#[async_trait]
impl Sink for RedisHashSink {
    async fn open(&mut self, stream: &SinkStream) -> Result<Option<Position>, SystemError> {
        self.answered.remove(stream);
        self.connection().await?;
        Ok(None)
    }

    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        self.send(stream, batch).await
    }

    fn durable(&self) -> Vec<(SinkStream, Position)> {
        let all = self.answered.iter().map(|(stream, position)| (stream.clone(), position.load(Relaxed)));
        all.filter(|(_, position)| *position > 0).collect()
    }

    async fn flush(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        // Nothing is accepted without the server's answer.
        Ok(())
    }

    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        self.answered.remove(stream);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("PING");
        let doing = format!("asking {}", self.spec.address);
        let asking = async {
            let connection = self.connection().await?;
            ask(connection.link, &pipeline).await.map_err(|error| disposition(&doing, error))
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
