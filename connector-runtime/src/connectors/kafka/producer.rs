//! A librdkafka producer: hands over a batch and waits for what became of each record. Its calls block.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::{Offset, TopicPartitionList};

use super::super::split::Split;
use super::config::Settings;
use crate::record::{Batch, Position};
use crate::sink::Rejected;

/// Longest call to the transaction coordinator.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for reports before the next look at them.
const LOOK: Duration = Duration::from_millis(1);

/// Records that are handed over before reports are taken in between.
const RECORDS_BETWEEN_LOOKS: usize = 1_024;

/// Beyond librdkafka's own timeout of a record: how long its report is waited for.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long what the client has to say is listened to after a call.
const LISTEN: Duration = Duration::from_millis(20);

/// Errors of the client that are kept for whoever asks why something failed.
const MAX_ERRORS: usize = 16;

/// Why a call failed.
pub(super) struct Failure {
    pub(super) code: Code,
    pub(super) reason: String,
}

impl From<KafkaError> for Failure {
    fn from(error: KafkaError) -> Failure {
        let reason = match &error {
            KafkaError::Transaction(cause) => cause.to_string(),
            other => other.to_string(),
        };
        let code = match &error {
            KafkaError::Transaction(cause) => cause.code(),
            other => other.rdkafka_error_code().unwrap_or(Code::Fail),
        };
        Failure { code, reason }
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Failure {
        Failure { code, reason: code.to_string() }
    }
}

/// What the broker said about the records of the batch under way.
#[derive(Debug, Default)]
struct Reports {
    outstanding: AtomicUsize,
    /// Number of the record in its batch, and why it was not written.
    failed: Mutex<Vec<(usize, Code)>>,
    errors: Mutex<VecDeque<(Code, String)>>,
}

/// librdkafka's callbacks.
pub(super) struct Callbacks(Arc<Reports>);

impl ClientContext for Callbacks {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "librdkafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        tracing::debug!(?code, "librdkafka: {reason}");
        let mut errors = self.0.errors.lock().unwrap_or_else(PoisonError::into_inner);
        // The last of each kind: some repeat with every attempt to connect.
        errors.retain(|(noted, _)| *noted != code);
        if errors.len() == MAX_ERRORS {
            errors.pop_front();
        }
        errors.push_back((code, reason.to_owned()));
    }
}

impl ProducerContext for Callbacks {
    /// Number of the record in its batch.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        if let Err((error, _)) = result {
            let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
            self.0.failed.lock().unwrap_or_else(PoisonError::into_inner).push((index, code));
        }
        self.0.outstanding.fetch_sub(1, Ordering::Release);
    }
}

/// Where a stream's position is kept: an offset of the topic's partition 0 in a group of the stream's own.
pub(super) struct Place {
    pub(super) group: Arc<ConsumerGroupMetadata>,
    pub(super) position: Position,
}

/// What an earlier attempt told of a record.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// A request with it and others was refused: it has to be sent alone.
    Suspect,
    /// It was refused alone, with the reason.
    Refused(String),
}

/// What became of a batch.
pub(super) enum Outcome {
    /// The brokers have all but these records, which can never be written.
    Written(Vec<Rejected>),
    /// Requests were refused: what is known of their records now. A transaction cannot be committed any more.
    Refused(Vec<(Position, Verdict)>),
}

/// A producer for one topic.
pub(super) struct Producer {
    client: BaseProducer<Callbacks>,
    reports: Arc<Reports>,
    topic: String,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Producer {
    /// Makes a producer. With `transactional` it takes over the transactional id: an earlier producer is fenced, and its open
    /// transaction is at its end when this returns.
    pub(super) fn new(settings: &Settings, topic: &str, transactional: bool) -> Result<Producer, Failure> {
        let reports = Arc::new(Reports::default());
        let client: BaseProducer<Callbacks> =
            settings.config.create_with_context(Callbacks(reports.clone()))?;
        let producer = Producer { client, reports, topic: topic.to_owned() };
        if transactional {
            let begun = producer.client.init_transactions(COORDINATOR_TIMEOUT);
            begun.map_err(|error| producer.blame(error.into()))?;
        }
        Ok(producer)
    }

    /// Asks for the topic.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let metadata = self.client.client().fetch_metadata(Some(&self.topic), COORDINATOR_TIMEOUT);
        let metadata = metadata.map_err(|error| self.blame(error.into()))?;
        let found = metadata.topics().iter().find(|topic| topic.name() == self.topic);
        match found.map(|topic| (topic.error(), topic.partitions().len())) {
            Some((None, 1..)) => Ok(()),
            Some((Some(error), _)) => Err(Code::from(error).into()),
            None | Some((None, 0)) => Err(Code::UnknownTopicOrPartition.into()),
        }
    }

    /// Begins a transaction.
    pub(super) fn begin(&self) -> Result<(), Failure> {
        self.client.begin_transaction().map_err(|error| self.blame(error.into()))
    }

    /// Ends a transaction that carries the positions. After an error its end is unknown until another producer took over.
    pub(super) fn commit(&self, places: &[Place]) -> Result<(), Failure> {
        let ended = places
            .iter()
            .try_for_each(|place| {
                let mut list = TopicPartitionList::with_capacity(1);
                let mut element = list.add_partition(&self.topic, 0);
                element.set_offset(Offset::Offset(i64::try_from(place.position).unwrap_or(i64::MAX)))?;
                self.client.send_offsets_to_transaction(&list, &place.group, COORDINATOR_TIMEOUT)
            })
            .and_then(|()| self.client.commit_transaction(COORDINATOR_TIMEOUT));
        ended.map_err(|error| self.blame(error.into()))
    }

    /// Writes a batch and waits until the brokers have all of it. Records that `known` has as refused are not sent.
    pub(super) fn write(
        &self,
        batch: &Batch,
        split: Option<&Split>,
        known: &BTreeMap<Position, Verdict>,
    ) -> Result<Outcome, Failure> {
        self.failed().clear();
        let deadline = Instant::now() + REPORT_TIMEOUT;
        let sent = self.send_all(batch, split, known, deadline);
        let settled = self.settle(deadline);
        let failed = std::mem::take(&mut *self.failed());
        let refused: Vec<_> = failed
            .iter()
            .filter(|(_, code)| is_refusal(*code))
            .filter_map(|(index, code)| {
                let position = batch.get(*index)?.position;
                let alone = known.contains_key(&position) || batch.len() == 1;
                Some((position, if alone { Verdict::Refused(said(*code)) } else { Verdict::Suspect }))
            })
            .collect();
        if !refused.is_empty() {
            // Whatever else failed is a consequence: the transaction takes nothing more.
            return Ok(Outcome::Refused(refused));
        }
        let rejected = sent?;
        settled?;
        match failed.first() {
            Some((_, code)) => Err(self.blame((*code).into())),
            None => Ok(Outcome::Written(rejected)),
        }
    }

    /// Hands a batch over; the records that are rejected at once.
    fn send_all(
        &self,
        batch: &Batch,
        split: Option<&Split>,
        known: &BTreeMap<Position, Verdict>,
        deadline: Instant,
    ) -> Result<Vec<Rejected>, Failure> {
        let mut rejected = Vec::new();
        for (index, record) in batch.iter().enumerate() {
            if index % RECORDS_BETWEEN_LOOKS == RECORDS_BETWEEN_LOOKS - 1 {
                self.client.poll(Duration::ZERO);
            }
            let verdict = known.get(&record.position);
            if let Some(Verdict::Refused(reason)) = verdict {
                rejected.push(Rejected { index, reason: reason.clone() });
                continue;
            }
            let (key, value) = match split.map(|split| split.apply(record.payload)) {
                None => (None, record.payload),
                Some(Ok((key, value))) => (Some(key), value),
                Some(Err(reason)) => {
                    rejected.push(Rejected { index, reason });
                    continue;
                }
            };
            let alone = verdict.is_some();
            if alone {
                self.settle(deadline)?;
            }
            if let Err(code) = self.send(index, key, value, record.time, deadline) {
                if !is_refusal(code) {
                    return Err(self.blame(code.into()));
                }
                rejected.push(Rejected { index, reason: said(code) });
            }
            if alone {
                self.settle(deadline)?;
            }
        }
        Ok(rejected)
    }

    /// Waits until it is known what became of everything that was sent.
    fn settle(&self, deadline: Instant) -> Result<(), Failure> {
        while self.reports.outstanding.load(Ordering::Acquire) > 0 {
            if Instant::now() > deadline {
                return Err(self.blame(Code::OperationTimedOut.into()));
            }
            self.client.poll(LOOK);
        }
        Ok(())
    }

    fn send(
        &self,
        index: usize,
        key: Option<&[u8]>,
        value: &[u8],
        time: i64,
        deadline: Instant,
    ) -> Result<(), Code> {
        // A time of 0 is "now" to librdkafka too.
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.topic, index)
            .payload(value)
            .timestamp(time);
        if let Some(key) = key {
            record = record.key(key);
        }
        self.reports.outstanding.fetch_add(1, Ordering::Relaxed);
        loop {
            let Err((error, again)) = self.client.send(record) else { return Ok(()) };
            let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
            if code != Code::QueueFull || Instant::now() > deadline {
                self.reports.outstanding.fetch_sub(1, Ordering::Relaxed);
                return Err(code);
            }
            self.client.poll(LOOK);
            record = again;
        }
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, Vec<(usize, Code)>> {
        self.reports.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A failure, or where only time ran out, what the client said meanwhile about its connections.
    fn blame(&self, failure: Failure) -> Failure {
        match failure.code {
            Code::OperationTimedOut | Code::MessageTimedOut | Code::RequestTimedOut => {
                self.client.poll(LISTEN);
                let mut errors = self.reports.errors.lock().unwrap_or_else(PoisonError::into_inner);
                let rank = |code: Code| match code {
                    Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL => 2,
                    Code::AllBrokersDown => 0,
                    _ => 1,
                };
                let worst = errors.drain(..).max_by_key(|(code, _)| rank(*code));
                worst.map_or(failure, |(code, reason)| Failure { code, reason })
            }
            _ => failure,
        }
    }
}

/// Why a record is refused, for people.
fn said(code: Code) -> String {
    match code {
        Code::MessageSizeTooLarge => "the record is longer than the topic's max.message.bytes".into(),
        Code::InvalidRecord => {
            "the broker refuses the record as invalid: a compacted topic wants a key".into()
        }
        other => format!("the broker refuses the record: {other}"),
    }
}

/// True where a broker refuses the record itself: no other attempt can change that.
fn is_refusal(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::InvalidRecord | Code::InvalidMessageSize)
}
