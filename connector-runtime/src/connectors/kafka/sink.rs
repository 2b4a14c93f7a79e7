//! Kafka sink: writes records to a topic, exactly once by transactions that carry Wallaroo's positions.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use connector_crds::systems::kafka::KafkaSink as Spec;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Duration, Instant};

use super::super::Context;
use super::super::split::Split;
use super::config::{self, Settings};
use super::errors::refusal;
use super::producer::{Failure, Outcome, Place, Producer, Verdict};
use crate::record::{Batch, Position};
use crate::sink::{Sink, SinkStream, SystemError, Written};
use crate::source::ErrorClass;

/// Longest time between two ends of a transaction while records come: readers with `read_committed` see nothing earlier.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// Longest wait for the offset of a group.
const OFFSET_TIMEOUT: Duration = Duration::from_secs(10);

/// Refused positions that are remembered from one attempt to the next.
const MAX_REFUSED: usize = 10_000;

/// Writes each record to a topic.
///
/// The producer is idempotent with `acks=all`; a batch is accepted when the brokers have all of it.
///
/// **Exactly once** where positions are stable and `exactlyOnce` is set: batches are written in transactions that end
/// every 100 ms while records come, and at `flush`. Each carries the position of every stream that it wrote for, as the
/// committed offset of partition 0 of the topic in the group `<namespace>.<name>/<incarnation>/<worker>`; `open` reads it back after the
/// transactional id was taken over, so that it is final. Readers need `isolation.level=read_committed`. Otherwise
/// records are written at least once, and `open` knows nothing.
///
/// After every failure the producer is given up: a new one takes the transactional id over, which ends the open
/// transaction, and the pump asks for the positions again.
///
/// **Refused** are records that cannot be split into key and value, and those that the broker does not take: longer than
/// the topic's `max.message.bytes`, or without a key where the topic is compacted. Brokers refuse whole requests; the records of one are
/// sent one by one in the next attempt.
///
/// User, password and certificates are read when a producer is made, and it is made anew when a mounted Secret changed.
pub struct KafkaSink {
    spec: Spec,
    context: Context,
    split: Option<Arc<Split>>,
    transactional: bool,
    changes: watch::Receiver<u64>,
    producer: Option<Arc<Producer>>,
    streams: BTreeMap<SinkStream, Stream>,
    /// Since when a transaction is open.
    open_since: Option<Instant>,
}

/// One stream's positions.
#[derive(Default)]
struct Stream {
    /// Where they are kept; only with transactions.
    group: Option<Arc<ConsumerGroupMetadata>>,
    accepted: Option<Position>,
    durable: Option<Position>,
    /// Records beyond `durable` of requests that the broker refused.
    refused: BTreeMap<Position, Verdict>,
}

impl std::fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSink")
            .field("topic", &self.spec.topic)
            .field("transactional", &self.transactional)
            .field("connected", &self.producer.is_some())
            .finish_non_exhaustive()
    }
}

impl KafkaSink {
    /// A sink that dials with the first call.
    pub fn new(spec: &Spec, context: Context) -> KafkaSink {
        KafkaSink {
            spec: spec.clone(),
            split: spec.key.as_ref().map(|key| Arc::new(Split::new(key))),
            transactional: spec.exactly_once && context.stable_positions,
            changes: context.secrets.changes(),
            context,
            producer: None,
            streams: BTreeMap::new(),
            open_since: None,
        }
    }

    /// The producer, made where there is none.
    async fn producer(&mut self) -> Result<Arc<Producer>, SystemError> {
        if let Some(producer) = &self.producer {
            return Ok(producer.clone());
        }
        self.changes.mark_unchanged();
        let settings = config::producer(&self.spec, &self.context, self.transactional)?;
        let (topic, transactional) = (self.spec.topic.clone(), self.transactional);
        let made =
            self.ask("starting a producer", move || Producer::new(&settings, &topic, transactional)).await?;
        Ok(self.producer.insert(Arc::new(made)).clone())
    }

    /// Does something that blocks; a failure gives the producer up, and what was not durable is not accepted either.
    async fn ask<R: Send + 'static>(
        &mut self,
        doing: &str,
        call: impl FnOnce() -> Result<R, Failure> + Send + 'static,
    ) -> Result<R, SystemError> {
        let answer = spawn_blocking(call)
            .await
            .unwrap_or_else(|panic| Err(Failure { code: Code::Fail, reason: panic.to_string() }));
        match answer {
            Ok(answer) => Ok(answer),
            Err(failure) => {
                self.give_up();
                Err(self.judge(doing, failure))
            }
        }
    }

    fn give_up(&mut self) {
        if let Some(producer) = self.producer.take() {
            // Its end waits for the brokers.
            drop(spawn_blocking(move || drop(producer)));
        }
        self.open_since = None;
        for stream in self.streams.values_mut() {
            stream.accepted = stream.durable;
        }
    }

    /// What a failure asks for. Nothing but another configuration helps where a second Connector has the same identity.
    fn judge(&self, doing: &str, failure: Failure) -> SystemError {
        let topic = &self.spec.topic;
        let Failure { code, reason } = failure;
        let (context, class) = match code {
            Code::ProducerFenced | Code::Fenced | Code::InvalidProducerEpoch => (
                format!(
                    "{doing}: another producer took over this Connector's transactional id; it runs twice, or in \
                     another cluster under the same namespace and name"
                ),
                ErrorClass::Rejected,
            ),
            _ if refusal(&reason).is_some() => (format!("{doing} at Kafka: {reason}"), ErrorClass::Auth),
            Code::Authentication | Code::SaslAuthenticationFailed => {
                (format!("{doing} at Kafka: {reason}"), ErrorClass::Auth)
            }
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed => {
                (format!("{doing}: Kafka refuses access: {reason}"), ErrorClass::Auth)
            }
            Code::UnknownTopicOrPartition | Code::UnknownTopic => {
                (format!("{doing}: topic {topic:?} does not exist"), ErrorClass::Rejected)
            }
            Code::OperationTimedOut | Code::MessageTimedOut | Code::RequestTimedOut => {
                (format!("{doing}: no answer from {} in time", self.servers()), ErrorClass::Timeout)
            }
            Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve => {
                (format!("{doing}: connecting to {}: {reason}", self.servers()), ErrorClass::Connect)
            }
            _ => (format!("{doing}: {reason}"), ErrorClass::Rejected),
        };
        SystemError::Transient { context, class, cause: None }
    }

    fn servers(&self) -> String {
        self.spec.bootstrap_servers.join(",")
    }

    /// Ends the open transaction; everything accepted is durable then.
    async fn commit(&mut self) -> Result<(), SystemError> {
        if self.transactional {
            if self.open_since.is_none() {
                return Ok(());
            }
            let places: Vec<Place> = self
                .streams
                .values()
                .filter(|stream| stream.accepted != stream.durable)
                .filter_map(|s| Some(Place { group: s.group.clone()?, position: s.accepted? }))
                .collect();
            let producer = self.producer().await?;
            self.ask("ending a transaction", move || producer.commit(&places)).await?;
            self.open_since = None;
        }
        for stream in self.streams.values_mut() {
            stream.durable = stream.accepted;
            if let Some(durable) = stream.durable {
                stream.refused.retain(|position, _| *position > durable);
            }
        }
        Ok(())
    }

    /// Takes a changed Secret up where nothing is under way.
    async fn take_up_secrets(&mut self) -> Result<(), SystemError> {
        if self.changes.has_changed().unwrap_or(false) {
            self.commit().await?;
            self.give_up();
        }
        Ok(())
    }

    /// Remembers what the broker refused, so that the next attempt finds the records to blame or goes on without them.
    fn refused(&mut self, stream: &SinkStream, refused: Vec<(Position, Verdict)>) -> SystemError {
        let count = refused.len();
        let known = &mut self.streams.entry(stream.clone()).or_default().refused;
        known.extend(refused);
        while known.len() > MAX_REFUSED {
            known.pop_last();
        }
        self.give_up();
        SystemError::Transient {
            context: format!(
                "the brokers of topic {:?} refuse a request of {count} records; trying them one by one",
                self.spec.topic
            ),
            class: ErrorClass::Rejected,
            cause: None,
        }
    }
}

/// The position that a stream's group holds, and the group as transactions name it. Blocks.
fn read_position(
    settings: &Settings,
    topic: &str,
) -> Result<(Option<Position>, Arc<ConsumerGroupMetadata>), Failure> {
    let reader: BaseConsumer = settings.config.create()?;
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition(topic, 0);
    let offsets = reader.committed_offsets(list, OFFSET_TIMEOUT)?;
    let offset = offsets.find_partition(topic, 0).map(|found| {
        found.error()?;
        Ok(found.offset())
    });
    let position = match offset.transpose().map_err(|error: KafkaError| Failure::from(error))? {
        Some(Offset::Offset(offset)) => Position::try_from(offset).ok(),
        Some(Offset::Beginning | Offset::End | Offset::Stored | Offset::Invalid | Offset::OffsetTail(_))
        | None => None,
    };
    let group = reader.group_metadata().ok_or(Failure::from(Code::UnknownGroup))?;
    Ok((position, Arc::new(group)))
}

#[async_trait]
impl Sink for KafkaSink {
    async fn open(&mut self, stream: &SinkStream) -> Result<Option<Position>, SystemError> {
        // First the transactional id: then no earlier producer can change the position any more.
        self.producer().await?;
        if !self.transactional {
            return Ok(None);
        }
        let identity = &self.context.identity;
        let group =
            format!("{}.{}/{}/{}", identity.namespace, identity.name, stream.incarnation, stream.worker);
        let settings = config::group_reader(&self.spec, &self.context, &group)?;
        let topic = self.spec.topic.clone();
        let (position, group) =
            self.ask("reading a position", move || read_position(&settings, &topic)).await?;
        let known = self.streams.entry(stream.clone()).or_default();
        known.group = Some(group);
        known.durable = position;
        known.accepted = position;
        Ok(position)
    }

    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        self.take_up_secrets().await?;
        let producer = self.producer().await?;
        if self.transactional && self.open_since.is_none() {
            let begun = producer.clone();
            self.ask("beginning a transaction", move || begun.begin()).await?;
            self.open_since = Some(Instant::now());
        }
        let (records, split) = (batch.clone(), self.split.clone());
        let refused = self.streams.get(stream).map(|known| known.refused.clone()).unwrap_or_default();
        let doing = format!("writing to topic {:?}", self.spec.topic);
        let outcome = self.ask(&doing, move || producer.write(&records, split.as_deref(), &refused)).await?;
        let rejected = match outcome {
            Outcome::Written(rejected) => rejected,
            Outcome::Refused(refused) => return Err(self.refused(stream, refused)),
        };
        let known = self.streams.entry(stream.clone()).or_default();
        known.accepted = batch.last_position().or(known.accepted);
        if !self.transactional {
            known.durable = known.accepted;
        }
        // A position with refused records in front of it counts only when the pump has dealt with them.
        let due = self.open_since.is_some_and(|since| since.elapsed() >= COMMIT_INTERVAL);
        if due && rejected.is_empty() {
            self.commit().await?;
        }
        Ok(Written::rejecting(rejected))
    }

    fn durable(&self) -> Vec<(SinkStream, Position)> {
        let durable = |(stream, known): (&SinkStream, &Stream)| Some((stream.clone(), known.durable?));
        self.streams.iter().filter_map(durable).collect()
    }

    async fn flush(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        self.commit().await
    }

    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        self.commit().await?;
        // Its group has no member: the broker forgets its offset by itself.
        self.streams.remove(stream);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        let producer = self.producer().await?;
        let doing = format!("asking for topic {:?}", self.spec.topic);
        self.ask(&doing, move || producer.check()).await
    }
}
