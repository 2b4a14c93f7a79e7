//! The librdkafka client: its callbacks only take notes, which the source answers in its own turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use connector_native::kafka::{BatchQueue, set_sasl_credentials};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Duration;

use super::assignment::{Commit, Partition};
use super::config::{Fingerprint, Settings};
use crate::record::Position;

/// Messages that one call may hand over: their pointers stay within 64 KiB.
pub(super) const MOST_MESSAGES: usize = 8_192;

/// Notes of one kind that are kept; the source reads them at least ten times a second.
const MAX_ERRORS: usize = 64;

/// Callbacks served in one turn.
const MAX_SERVED: usize = 256;

/// Longest wait for librdkafka's own thread to take note of a seek.
const SEEK_TIMEOUT: Duration = Duration::from_millis(500);

/// What the group does with partitions.
#[derive(Debug)]
pub(super) enum Rebalance {
    Assigned(Vec<Partition>),
    Revoked(Vec<Partition>),
    Lost(Vec<Partition>),
}

/// What callbacks told.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) rebalances: VecDeque<Rebalance>,
    pub(super) errors: VecDeque<(RDKafkaErrorCode, String)>,
    /// Partitions whose records came through the consumer's own queue, where they must not.
    pub(super) strays: Vec<Partition>,
}

/// What a client shares with librdkafka's callbacks.
#[derive(Debug, Default)]
pub(super) struct Shared {
    notes: Mutex<Notes>,
    /// Callbacks served.
    served: AtomicU64,
    closing: AtomicBool,
    pub(super) wake: Notify,
}

impl Shared {
    fn note(&self, take: impl FnOnce(&mut Notes)) {
        self.served.fetch_add(1, Ordering::Relaxed);
        take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn take(&self) -> Notes {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// librdkafka's callbacks.
pub(super) struct Callbacks(Arc<Shared>);

impl ClientContext for Callbacks {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.served.fetch_add(1, Ordering::Relaxed);
        // What matters comes as an error too.
        tracing::debug!(facility, "librdkafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        tracing::debug!(?code, "librdkafka: {reason}");
        self.0.note(|notes| {
            if notes.errors.len() == MAX_ERRORS {
                notes.errors.pop_front();
            }
            notes.errors.push_back((code, reason.to_owned()));
        });
    }
}

impl ConsumerContext for Callbacks {
    /// Takes note; the source answers with [`Client::assign`] and [`Client::give_back`], and librdkafka waits for it.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigned = kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.0.closing.load(Ordering::Relaxed) {
            // Nobody reads notes any more, and closing waits for an answer.
            let answer = if assigned {
                consumer.incremental_assign(list)
            } else {
                consumer.incremental_unassign(list)
            };
            return answer.unwrap_or_else(|error| tracing::debug!("Answering a rebalance: {error}."));
        }
        let partitions = partitions(list);
        tracing::debug!(assigned, ?partitions, "Rebalance.");
        let rebalance = match assigned {
            true => Rebalance::Assigned(partitions),
            false if consumer.assignment_lost() => Rebalance::Lost(partitions),
            false => Rebalance::Revoked(partitions),
        };
        self.0.note(|notes| notes.rebalances.push_back(rebalance));
    }
}

/// A consumer, its queue, and what its callbacks told.
pub(super) struct Client {
    pub(super) queue: BatchQueue<Callbacks>,
    /// Readable when the queue gets something.
    pub(super) woken: UnixStream,
    pub(super) consumer: Arc<BaseConsumer<Callbacks>>,
    pub(super) shared: Arc<Shared>,
    pub(super) fingerprint: Fingerprint,
}

impl Client {
    /// A client that subscribes. Dials in the background.
    pub(super) fn new(settings: &Settings, topics: &[String]) -> anyhow::Result<Client> {
        let shared = Arc::new(Shared::default());
        let consumer = consumer(settings, &shared)?;
        let (queue, woken) = BatchQueue::new(consumer.clone(), MOST_MESSAGES)?;
        let woken = UnixStream::from_std(woken)?;
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        Ok(Client { queue, woken, consumer, shared, fingerprint: settings.fingerprint.clone() })
    }

    /// Serves callbacks and takes their notes.
    pub(super) fn serve(&self) -> Notes {
        serve(&self.consumer, &self.shared)
    }

    /// Takes new partitions, silent until they are sought.
    pub(super) fn assign(&self, partitions: &[Partition]) -> KafkaResult<()> {
        for partition in partitions {
            self.queue.forward(&partition.topic, partition.number, true);
        }
        // Paused first, so that nothing is fetched. At a number, so that nothing is asked: with `auto.offset.reset=error` an
        // answer that is an error would end the partition, and no seek begins one again.
        self.flow(partitions, false)?;
        self.consumer.incremental_assign(&list(partitions, Offset::Offset(0))?)
    }

    /// Gives partitions back to the group.
    pub(super) fn give_back(&self, partitions: &[Partition]) -> KafkaResult<()> {
        for partition in partitions {
            self.queue.forward(&partition.topic, partition.number, false);
        }
        self.consumer.incremental_unassign(&list(partitions, Offset::Invalid)?)
    }

    /// Lets records of partitions come, or not.
    pub(super) fn flow(&self, partitions: &[Partition], on: bool) -> KafkaResult<()> {
        if partitions.is_empty() {
            return Ok(());
        }
        let list = list(partitions, Offset::Invalid)?;
        if on { self.consumer.resume(&list) } else { self.consumer.pause(&list) }
    }

    /// Reads on at `position`. What was fetched before does not come any more.
    pub(super) fn seek(&self, partition: &Partition, position: Position) -> KafkaResult<()> {
        let to = Offset::Offset(i64::try_from(position).unwrap_or(i64::MAX));
        let sought =
            self.consumer.seek_partitions(list(std::slice::from_ref(partition), to)?, SEEK_TIMEOUT)?;
        sought.elements().iter().try_for_each(TopicPartitionListElem::error)
    }

    /// Gives new credentials to the client's next connections.
    pub(super) fn set_password(&self, user: &str, password: &str) -> std::io::Result<()> {
        set_sasl_credentials(&self.consumer, user, password)
    }
}

/// Leaves the group and ends the client. Blocks while librdkafka's threads end.
impl Drop for Client {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        // A rebalance that was noted and not answered: closing would wait for the answer.
        for rebalance in self.shared.take().rebalances {
            let answered = match rebalance {
                Rebalance::Assigned(partitions) => self.assign(&partitions),
                Rebalance::Revoked(partitions) | Rebalance::Lost(partitions) => self.give_back(&partitions),
            };
            answered.unwrap_or_else(|error| tracing::debug!("Answering a rebalance: {error}."));
        }
    }
}

/// A client without queue and group, for a look at the system.
pub(super) fn consumer(
    settings: &Settings,
    shared: &Arc<Shared>,
) -> KafkaResult<Arc<BaseConsumer<Callbacks>>> {
    let mut consumer: BaseConsumer<Callbacks> =
        settings.config.create_with_context(Callbacks(shared.clone()))?;
    let wake = shared.clone();
    consumer.set_nonempty_callback(move || wake.wake.notify_one());
    Ok(Arc::new(consumer))
}

/// Commits. Blocks until the group's coordinator answered, or for the session timeout; not cancelled by anything. With
/// several partitions it fails when all failed: one that is refused alone (its topic was deleted) counts as committed.
pub(super) fn commit(consumer: &BaseConsumer<Callbacks>, commits: &[Commit], mark: &str) -> KafkaResult<()> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for Commit { partition, id, position } in commits {
        let mut element = list.add_partition(&partition.topic, partition.number);
        element.set_offset(Offset::Offset(i64::try_from(*position).unwrap_or(i64::MAX)))?;
        element.set_metadata(format!("{mark} {id}"));
    }
    consumer.commit(&list, CommitMode::Sync)
}

/// Serves callbacks of a consumer and takes their notes.
pub(super) fn serve(consumer: &BaseConsumer<Callbacks>, shared: &Shared) -> Notes {
    for _ in 0..MAX_SERVED {
        let before = shared.served.load(Ordering::Relaxed);
        match consumer.poll(Duration::ZERO) {
            Some(Ok(stray)) => {
                let partition = Partition { topic: stray.topic().into(), number: stray.partition() };
                shared.note(|notes| notes.strays.push(partition));
            }
            None if before == shared.served.load(Ordering::Relaxed) => break,
            Some(Err(_)) | None => {} // noted by the callbacks
        }
    }
    shared.take()
}

pub(super) fn list(partitions: &[Partition], offset: Offset) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition_offset(&partition.topic, partition.number, offset)?;
    }
    Ok(list)
}

fn partitions(list: &TopicPartitionList) -> Vec<Partition> {
    let partition =
        |e: &TopicPartitionListElem<'_>| Partition { topic: e.topic().into(), number: e.partition() };
    list.elements().iter().map(partition).collect()
}

/// A numbered offset; `None` for a logical one.
pub(super) fn position(offset: Offset) -> Option<Position> {
    match offset {
        Offset::Offset(offset) => Position::try_from(offset).ok(),
        Offset::Beginning | Offset::End | Offset::Stored | Offset::Invalid | Offset::OffsetTail(_) => None,
    }
}
