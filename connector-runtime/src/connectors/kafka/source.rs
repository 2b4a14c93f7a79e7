//! Kafka source: a thin adapter between the pump, librdkafka and [`Assignment`], which decides everything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use connector_crds::systems::kafka::KafkaSource as Spec;
use connector_native::kafka::{Message, PartitionMark};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use secrecy::ExposeSecret;
use tokio::sync::{oneshot, watch};
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use super::assignment::{Assignment, Commit, Event, Known, OutOfRange, Partition, Step};
use super::client::{self, Client, MOST_MESSAGES, Notes, Rebalance, Shared};
use super::config::{self, Settings};
use super::errors::{self, Disposition, Trouble, Until};
use super::lookup::{self, Found, Located};
use crate::connectors::Context;
use crate::record::{BatchBuilder, NO_TIME, Position, Record};
use crate::source::{BadRecord, ErrorClass, ResumeFrom, Source, SourceEvent, StreamKey, SystemError};

/// How often callbacks and timers are looked at when nothing wakes the source.
const TICK: Duration = Duration::from_millis(100);

/// How long the group waits for a stream that it wants back: several checkpoints of Wallaroo, and well below the time
/// after which it would throw this member out.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(20);

/// Pause after a question that failed, and after a commit that failed.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// How long partitions may refuse to be sought. librdkafka gives a partition up whose position a broker refused, and takes
/// no seek for it any more: another client does.
const SEEK_PATIENCE: Duration = Duration::from_secs(5);

/// How often brokers are asked again about streams that are out of range: a topic that was filled again has them go on.
const LOOK_BEYOND: Duration = Duration::from_secs(10);

/// How often a trouble that lasts is told. Below the 30 s after which the pump takes silence for success.
const TELL_AGAIN: Duration = Duration::from_secs(20);

/// Bytes of one batch, from which on another begins: what fits the caches on the way to the socket.
const BATCH_BYTES: usize = 1_048_576;

/// Records of one call at least, however large they are.
const FEWEST_MESSAGES: usize = 64;

/// Bytes of a bad record that are kept for the dead letter.
const HEAD_BYTES: usize = 65_536;

/// Longest wait of `check`.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// One question of `check` in its first second: errors are looked at in between, so that a wrong password is said at once.
const CHECK_SLICE: Duration = Duration::from_millis(100);

/// One question of `check` later: a broker far away answers too.
const CHECK_LONG_SLICE: Duration = Duration::from_secs(3);

/// Reads topics through a consumer group.
///
/// **Streams.** One a partition, named `<topic>:<topic id>/<partition>`: a topic that was made anew is another stream.
/// (A broker without topic ids: `<topic>:-/<partition>`.) Ids are compared whenever partitions are assigned and with
/// each refresh of the metadata, every 5 s (30 s with a pattern).
///
/// **Positions** are offset + 1, so that the acknowledged position is the offset that the group commits. `resume` checks
/// them against what the broker holds: the stream is stuck with `PositionOutOfRange` instead of a jump, and the others go on.
///
/// **The group's offset** counts as acknowledged only where this Connector wrote it (its note says so). A foreign one is a
/// place to start, like `startPosition` where there is none. A start that another look would answer otherwise (`Latest`,
/// `Timestamp`) is committed when it is first found.
///
/// **Rebalances** are cooperative, members static. What the group wants back is drained by the pump for up to 20 s.
///
/// **Rotation.** A changed password goes to the running client; changed certificates make a new client in the place of
/// the same member, without a rebalance: streams go on behind the last record that was taken.
pub struct KafkaSource {
    spec: Spec,
    context: Context,
    servers: String,
    host: String,
    mark: String,
    began: Instant,
    assignment: Assignment,
    client: Option<Client>,
    /// A client that is being ended; its successor waits for it.
    closing: Option<Pending<()>>,
    job: Option<Pending<anyhow::Result<Answer>>>,
    committing: Option<(Vec<Commit>, Pending<KafkaResult<()>>)>,
    ready: VecDeque<(StreamKey, SourceEvent)>,
    reader: Reader,
    trouble: Option<Trouble>,
    tell_at: Instant,
    look_beyond_at: Instant,
    /// Why a connection last failed.
    last_failure: Option<String>,
    /// Questions that failed since the last answer: a leader that is being chosen is no trouble yet.
    failures: u32,
    ask_at: Instant,
    commit_at: Instant,
    check_ids_at: Instant,
    tick_at: Instant,
    /// Since when no seek succeeded.
    unsought: Option<Instant>,
    secrets_changed: watch::Receiver<u64>,
}

/// A call that blocks, in a thread of its own: unlike a runtime's, it holds no process back that has to end.
type Pending<T> = oneshot::Receiver<T>;

fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
    let (tell, told) = oneshot::channel();
    let thread = std::thread::Builder::new().name("kafka-call".to_owned());
    if let Err(error) = thread.spawn(move || tell.send(call())) {
        // The call is dropped, which ends the wait for it: it is made again.
        tracing::warn!("No thread for a call of librdkafka: {error}.");
    }
    told
}

/// What a pending call gave, if it returned.
fn returned<T>(pending: &mut Pending<T>) -> Option<anyhow::Result<T>> {
    match pending.try_recv() {
        Ok(value) => Some(Ok(value)),
        Err(oneshot::error::TryRecvError::Empty) => None,
        Err(error @ oneshot::error::TryRecvError::Closed) => Some(Err(error.into())),
    }
}

/// What a pending call gives; never without one.
async fn some<T>(pending: Option<&mut Pending<T>>) -> Result<T, oneshot::error::RecvError> {
    match pending {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    }
}

/// The answer to a question.
enum Answer {
    Identified(Found<(Partition, String, Known)>),
    Located(Found<Located>),
    Ids(BTreeMap<String, String>),
    Reachable,
}

impl KafkaSource {
    /// A source that dials with the first `next`.
    pub fn new(spec: &Spec, context: &Context) -> KafkaSource {
        // In a pod that is the pod's name, with its ordinal.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        KafkaSource::on_host(spec, context, host.trim())
    }

    /// The same on a host of this name: two members of a group may not have the same one.
    pub fn on_host(spec: &Spec, context: &Context, host: &str) -> KafkaSource {
        let now = Instant::now();
        KafkaSource {
            spec: spec.clone(),
            servers: spec.bootstrap_servers.join(","),
            host: host.to_owned(),
            mark: lookup::mark(&context.identity),
            began: now,
            assignment: Assignment::default(),
            client: None,
            closing: None,
            job: None,
            committing: None,
            ready: VecDeque::new(),
            reader: Reader::new(context),
            trouble: None,
            tell_at: now,
            look_beyond_at: now,
            last_failure: None,
            failures: 0,
            ask_at: now,
            commit_at: now,
            check_ids_at: now,
            tick_at: now,
            unsought: None,
            secrets_changed: context.secrets.changes(),
            context: context.clone(),
        }
    }

    fn millis(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn settings(&self) -> Result<Settings, SystemError> {
        config::settings(&self.spec, &self.context, &self.host)
    }

    /// Makes the client, unless there is one or its predecessor is still ending.
    fn connect(&mut self) -> Result<(), SystemError> {
        if self.client.is_some() || self.closing.is_some() {
            return Ok(());
        }
        self.secrets_changed.mark_unchanged();
        let settings = self.settings()?;
        let client = Client::new(&settings, &config::subscription(&self.spec));
        self.client = Some(client.map_err(|error| SystemError::Permanent {
            reason: "ConfigInvalid",
            context: format!("librdkafka refuses its configuration: {error:#}"),
        })?);
        Ok(())
    }

    /// Ends the client; another one takes the member's place.
    fn replace(&mut self) {
        let Some(client) = self.client.take() else { return };
        self.assignment.replaced();
        // They hold the client too.
        let (job, committing) = (self.job.take(), self.committing.take());
        self.closing = Some(blocking(move || {
            job.map(Pending::blocking_recv);
            committing.map(|(_, pending)| pending.blocking_recv());
            drop(client);
        }));
    }

    /// Takes up changed Secrets.
    fn rotate(&mut self) -> Result<(), SystemError> {
        if !self.secrets_changed.has_changed().unwrap_or(false) {
            return Ok(());
        }
        self.secrets_changed.mark_unchanged();
        let settings = self.settings()?;
        let Some(client) = &mut self.client else { return Ok(()) };
        if settings.fingerprint.tls != client.fingerprint.tls {
            tracing::info!("Certificates changed: another client takes this member's place.");
            self.replace();
        } else if settings.fingerprint.password != client.fingerprint.password
            && let (Some(password), Some(sasl)) = (&settings.password, &self.spec.sasl)
        {
            match client.set_password(&sasl.username, password.expose_secret()) {
                Ok(()) => {
                    tracing::info!("The password changed: new connections use it.");
                    client.fingerprint = settings.fingerprint;
                }
                Err(error) => {
                    tracing::warn!("The client does not take the new password: {error}.");
                    self.replace();
                }
            }
        }
        Ok(())
    }

    /// Takes what callbacks told.
    fn take_notes(&mut self) -> Result<(), SystemError> {
        let Some(client) = &self.client else { return Ok(()) };
        let Notes { rebalances, errors, strays } = client.serve();
        let until = self.millis() + REVOKE_TIMEOUT.as_millis() as u64;
        for rebalance in rebalances {
            let answered = match rebalance {
                Rebalance::Assigned(partitions) => {
                    self.assignment.assigned(&partitions);
                    self.trouble = None;
                    client.assign(&partitions)
                }
                Rebalance::Revoked(partitions) if !partitions.is_empty() => {
                    self.assignment.revoked(&partitions, until);
                    Ok(())
                }
                Rebalance::Lost(partitions) | Rebalance::Revoked(partitions) => {
                    self.assignment.lost(&partitions);
                    client.give_back(&partitions)
                }
            };
            if let Err(error) = answered {
                // The group would wait for this member.
                let error = self.broken("answering a rebalance", &error);
                self.replace();
                return Err(error);
            }
        }
        for partition in strays {
            client.queue.forward(&partition.topic, partition.number, true);
            self.assignment.refused(&partition);
        }
        self.take_errors(errors)
    }

    fn take_errors(&mut self, errors: VecDeque<(RDKafkaErrorCode, String)>) -> Result<(), SystemError> {
        for (code, reason) in errors {
            match errors::disposition(code, &reason, &self.servers, self.last_failure.as_deref()) {
                Disposition::Tell(trouble) => self.have(trouble),
                Disposition::Remember => self.last_failure = Some(reason),
                Disposition::Fatal => {
                    let fatal = self.client.as_ref().and_then(|c| c.consumer.client().fatal_error());
                    let (code, reason) = fatal.unwrap_or((code, reason));
                    self.replace();
                    return Err(errors::fatal(code, &reason));
                }
                Disposition::Ignore => {}
            }
        }
        Ok(())
    }

    /// A trouble began. One of credentials is not hidden behind the lost connection that it causes.
    fn have(&mut self, trouble: Trouble) {
        let known = self.trouble.as_ref();
        if known.is_some_and(|known| known.class == ErrorClass::Auth && trouble.class == ErrorClass::Connect)
        {
            return;
        }
        if trouble.until == Until::Assignment && !self.assignment.is_empty() {
            // Other topics go on: this one is waited for.
            tracing::warn!("{}.", trouble.context);
            return;
        }
        if known.is_none_or(|known| known.context != trouble.context) {
            self.tell_at = Instant::now();
        }
        self.trouble = Some(trouble);
    }

    /// A broker answered.
    fn reachable(&mut self) {
        if self.trouble.as_ref().is_some_and(|trouble| trouble.until == Until::Answer) {
            self.trouble = None;
        }
    }

    fn broken(&self, doing: &str, error: &dyn std::fmt::Display) -> SystemError {
        let context = format!("{doing} at {}: {error}", self.servers);
        SystemError::Transient { context, class: ErrorClass::Protocol, cause: None }
    }

    /// Takes up what was answered, also while records never cease and nothing is waited for.
    fn take_answers(&mut self) {
        if let Some(answer) = self.job.as_mut().and_then(returned) {
            self.job = None;
            self.answered(answer.flatten());
        }
        if let Some(result) = self.committing.as_mut().and_then(|(_, pending)| returned(pending)) {
            self.committed(result);
        }
        let now = Instant::now();
        if now >= self.tick_at {
            self.tick_at = now + TICK;
            if self.job.is_none() {
                self.assignment.ask_again();
            }
            if !self.assignment.is_seeking() {
                self.unsought = None;
            }
        }
    }

    /// Does everything that the assignment asks for now.
    fn step(&mut self) {
        self.take_answers();
        let now = Instant::now();
        self.assignment.expire(self.millis());
        while let Some(client) = &self.client {
            let lookup = self.job.is_none() && now >= self.ask_at;
            let commit = self.committing.is_none() && now >= self.commit_at;
            let Some(step) = self.assignment.next_step(lookup, commit) else { break };
            let consumer = client.consumer.clone();
            let done = match step {
                Step::Commit(commits) => {
                    let mark = self.mark.clone();
                    let call = commits.clone();
                    let pending = blocking(move || client::commit(&consumer, &call, &mark));
                    self.committing = Some((commits, pending));
                    Ok(())
                }
                Step::GiveBack(partitions) => {
                    let given = client.give_back(&partitions);
                    if let Err(error) = given {
                        // The group would wait for this member.
                        tracing::warn!("Giving partitions back failed, another client takes over: {error}.");
                        self.replace();
                    }
                    continue;
                }
                Step::Identify(partitions) => {
                    let mark = self.mark.clone();
                    self.ask(move || lookup::identify(&consumer, &partitions, &mark).map(Answer::Identified));
                    Ok(())
                }
                Step::Locate(wanted) => {
                    let start = self.spec.start_position.clone();
                    self.ask(move || lookup::locate(&consumer, &wanted, &start).map(Answer::Located));
                    Ok(())
                }
                Step::Seek { key, partition, position } => {
                    let sought = client.seek(&partition, position);
                    if sought.is_ok() {
                        self.unsought = None;
                        self.assignment.sought(key, position);
                    } else if now.duration_since(*self.unsought.get_or_insert(now)) > SEEK_PATIENCE {
                        self.unsought = None;
                        let Partition { topic, number } = &partition;
                        tracing::warn!(
                            topic,
                            number,
                            "A partition cannot be read on, another client takes over."
                        );
                        self.replace();
                        continue;
                    }
                    // Refused while librdkafka still begins with the partition: asked again with the next tick.
                    sought
                }
                Step::Flow { partition, on } => client.flow(&[partition], on),
            };
            if let Err(error) = done {
                tracing::debug!("{error}.");
            }
        }
        if self.job.is_some() || now < self.ask_at {
            return;
        }
        let Some(client) = &self.client else { return };
        let consumer = client.consumer.clone();
        if self.trouble.as_ref().is_some_and(|trouble| trouble.until == Until::Answer) {
            let topic = self.spec.topics.first().cloned();
            self.ask(move || lookup::probe(&consumer, topic.as_deref()).map(|()| Answer::Reachable));
        } else if now >= self.check_ids_at && !self.assignment.is_empty() {
            let topics = self.assignment.topics().into_iter().map(str::to_owned).collect();
            self.check_ids_at =
                now + Duration::from_millis(u64::from(config::metadata_interval_ms(&self.spec)));
            self.ask(move || lookup::ids(&consumer, &topics).map(Answer::Ids));
        }
    }

    fn ask(&mut self, question: impl FnOnce() -> anyhow::Result<Answer> + Send + 'static) {
        self.job = Some(blocking(question));
    }

    fn committed(&mut self, result: anyhow::Result<KafkaResult<()>>) {
        let Some((commits, _)) = self.committing.take() else { return };
        let result = result.and_then(|result| Ok(result?));
        for Commit { partition, position, .. } in &commits {
            self.assignment.commit_answer(partition, *position, result.is_ok());
        }
        if let Err(error) = result {
            tracing::debug!("A commit failed and is made again: {error}.");
            self.commit_at = Instant::now() + ASK_AGAIN;
        }
    }

    fn answered(&mut self, answer: anyhow::Result<Answer>) {
        let silent = answer.is_err();
        let (found, missing) = match answer {
            Ok(Answer::Identified((all, missing))) => {
                for (partition, id, known) in &all {
                    self.assignment.identified(partition, id, *known);
                }
                (!all.is_empty(), missing)
            }
            Ok(Answer::Located((all, missing))) => {
                for (key, to, range, start) in &all {
                    self.assignment.located(*key, *to, *range, *start);
                }
                (!all.is_empty(), missing)
            }
            Ok(Answer::Ids(ids)) => {
                self.assignment.check_ids(&ids);
                (true, None)
            }
            Ok(Answer::Reachable) => (true, None),
            Err(error) => (false, Some(error)),
        };
        self.assignment.ask_again();
        if found {
            self.reachable();
        }
        let Some(error) = missing else {
            self.failures = 0;
            return;
        };
        tracing::debug!("A question to the brokers failed and is asked again: {error:#}.");
        self.failures += 1;
        self.ask_at = Instant::now() + ASK_AGAIN;
        if !silent && self.assignment.is_reading() {
            if self.failures == 2 {
                tracing::warn!("Some partitions wait, the others go on: {error:#}.");
            }
        } else if self.failures > 1 && self.trouble.is_none() {
            let reason = self.last_failure.clone().unwrap_or_else(|| format!("{error:#}"));
            let context = format!("asking {}: {reason}", self.servers);
            self.have(Trouble { context, class: ErrorClass::Timeout, until: Until::Answer });
        }
    }

    /// What is to be told now.
    fn tell(&mut self) -> Result<Option<SourceEvent>, SystemError> {
        if let Some(event) = self.assignment.next_event() {
            return Ok(Some(match event {
                Event::Opened { key, name, committed } => {
                    SourceEvent::Opened { stream: key, name, committed }
                }
                Event::Revoking { key, deadline } => SourceEvent::Revoking {
                    stream: key,
                    deadline: self.began + Duration::from_millis(deadline),
                },
                Event::Lost { key } => SourceEvent::Lost { stream: key },
            }));
        }
        if let Some((stream, OutOfRange { partition, position, range })) = self.assignment.out_of_range() {
            self.look_beyond_at = Instant::now() + LOOK_BEYOND;
            return Ok(Some(SourceEvent::Stuck {
                stream,
                reason: "PositionOutOfRange",
                context: format!(
                    "partition {} of topic {:?} holds offsets {} to {}, and the stream has to go on at {position}; \
                     `positionReset` with a new value starts it over",
                    partition.number, partition.topic, range.first, range.next
                ),
            }));
        }
        let now = Instant::now();
        if now >= self.look_beyond_at {
            self.look_beyond_at = now + LOOK_BEYOND;
            self.assignment.look_beyond_again();
        }
        if let Some(trouble) = &self.trouble
            && now >= self.tell_at
        {
            self.tell_at = now + TELL_AGAIN;
            return Err(trouble.error());
        }
        let Self { ready, assignment, .. } = self;
        ready.retain(|(key, _)| assignment.is_ours(*key));
        let next = ready.iter().position(|(key, _)| assignment.yields(*key));
        Ok(next.and_then(|next| ready.remove(next)).map(|(_, event)| event))
    }

    /// Takes records from librdkafka; false when there were none.
    fn read(&mut self) -> Result<bool, SystemError> {
        let Some(client) = &mut self.client else { return Ok(false) };
        // The bytes first, so that what comes between them and the queue wakes again.
        while matches!(client.woken.try_read(&mut [0; 64]), Ok(n) if n > 0) {}
        let (assignment, ready, reader) = (&mut self.assignment, &mut self.ready, &mut self.reader);
        let drained = client.queue.drain(reader.most, |message| reader.visit(message, assignment, ready));
        reader.end_of_call(drained, assignment, ready);
        let mut errors = VecDeque::new();
        for (partition, code) in reader.errors.drain(..) {
            match code {
                RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
                    assignment.refused(&partition);
                }
                _ => errors.push_back((code, format!("topic {:?}: {code}", partition.topic))),
            }
        }
        if !self.ready.is_empty() {
            self.reachable();
        }
        self.take_errors(errors)?;
        Ok(drained > 0)
    }

    async fn wait(&mut self) {
        let tick = self.tick_at;
        let Self { client, closing, job, committing, .. } = self;
        let woken = async {
            let Some(client) = client else { return std::future::pending().await };
            tokio::select! {
                biased;
                () = client.shared.wake.notified() => {}
                _ = client.woken.readable() => {}
            }
        };
        tokio::select! {
            biased;
            answer = some(job.as_mut()) => {
                self.job = None;
                self.answered(answer.unwrap_or_else(|error| Err(error.into())));
            }
            result = some(committing.as_mut().map(|(_, pending)| pending)) => {
                self.committed(result.map_err(anyhow::Error::from));
            }
            _ = some(closing.as_mut()) => self.closing = None,
            () = woken => {}
            () = sleep_until(tick) => {}
        }
    }
}

/// Makes batches of messages.
struct Reader {
    builder: BatchBuilder,
    /// The partition of the batch that is being built, whose it is, and the last position of it.
    run: Option<Run>,
    errors: Vec<(Partition, RDKafkaErrorCode)>,
    /// Messages to take with one call: about two batches of bytes.
    most: usize,
    bound: usize,
    max_payload: usize,
    bytes: usize,
}

#[derive(Clone, Copy)]
struct Run {
    mark: PartitionMark,
    owner: Option<StreamKey>,
    last: Position,
}

impl Reader {
    fn new(context: &Context) -> Reader {
        let bound = usize::try_from(context.in_flight.records).unwrap_or(1).clamp(1, MOST_MESSAGES);
        Reader {
            builder: BatchBuilder::default(),
            run: None,
            errors: Vec::new(),
            most: FEWEST_MESSAGES.min(bound),
            bound,
            max_payload: context.max_payload_bytes,
            bytes: 0,
        }
    }

    fn visit(
        &mut self,
        message: Message<'_>,
        assignment: &mut Assignment,
        ready: &mut VecDeque<(StreamKey, SourceEvent)>,
    ) {
        let (number, offset) = message.place();
        if let Some(code) = message.error() {
            self.errors.push((Partition { topic: message.topic().to_owned(), number }, code));
            return;
        }
        let run = match self.run {
            Some(run) if run.mark == message.mark() => run,
            _ => {
                self.flush(assignment, ready);
                let reader = assignment.reader(&Partition { topic: message.topic().to_owned(), number });
                let (owner, last) = reader.map_or((None, 0), |(key, last)| (Some(key), last));
                Run { mark: message.mark(), owner, last }
            }
        };
        self.run = Some(run);
        let (Some(stream), Ok(offset)) = (run.owner, Position::try_from(offset)) else { return };
        let position = offset + 1;
        if position <= run.last {
            return;
        }
        self.run = Some(Run { last: position, ..run });
        let payload = message.payload();
        let key = message.key().unwrap_or_default();
        let length = payload.map_or(0, <[u8]>::len);
        self.bytes += length + key.len();
        let reason = match payload {
            None => BadRecord::Malformed(
                "record is a tombstone (it has no value), which Wallaroo cannot carry".into(),
            ),
            Some([]) => BadRecord::Empty,
            Some(payload) if payload.len() > self.max_payload => {
                BadRecord::TooLarge { bytes: length as u64, limit: self.max_payload as u64 }
            }
            Some(payload) => {
                let time = message.timestamp().unwrap_or(NO_TIME);
                self.builder.push(Record { position, time, key, payload });
                if self.builder.bytes() >= BATCH_BYTES {
                    self.flush(assignment, ready);
                }
                return;
            }
        };
        self.flush(assignment, ready);
        let head = payload.unwrap_or_default();
        let payload = Bytes::copy_from_slice(&head[..length.min(HEAD_BYTES)]);
        ready.push_back((stream, SourceEvent::BadRecord { stream, position, reason, payload }));
    }

    /// Hands over the batch that was built.
    fn flush(&mut self, assignment: &mut Assignment, ready: &mut VecDeque<(StreamKey, SourceEvent)>) {
        let Some(Run { owner: Some(stream), last, .. }) = self.run else { return };
        assignment.read(stream, last);
        if !self.builder.is_empty() {
            let batch = self.builder.finish();
            ready.push_back((stream, SourceEvent::Batch { stream, batch }));
        }
    }

    fn end_of_call(
        &mut self,
        drained: usize,
        assignment: &mut Assignment,
        ready: &mut VecDeque<(StreamKey, SourceEvent)>,
    ) {
        self.flush(assignment, ready);
        self.run = None;
        if let Some(average) = std::mem::take(&mut self.bytes).checked_div(drained) {
            let most = (2 * BATCH_BYTES) / average.max(1);
            self.most = most.clamp(FEWEST_MESSAGES, MOST_MESSAGES).min(self.bound);
        }
    }
}

#[async_trait]
impl Source for KafkaSource {
    async fn next(&mut self) -> Result<SourceEvent, SystemError> {
        loop {
            self.connect()?;
            self.rotate()?;
            self.take_notes()?;
            self.step();
            if let Some(event) = self.tell()? {
                return Ok(event);
            }
            if !self.read()? {
                self.wait().await;
            }
        }
    }

    async fn resume(&mut self, stream: StreamKey, from: ResumeFrom) -> Result<(), SystemError> {
        self.ready.retain(|(key, _)| *key != stream);
        if self.assignment.resume(stream, from) {
            return Ok(());
        }
        Err(SystemError::Permanent {
            reason: "UnknownStream",
            context: "the stream was released or never opened".into(),
        })
    }

    async fn commit(&mut self, positions: &[(StreamKey, Position)]) -> Result<(), SystemError> {
        for (stream, position) in positions {
            self.assignment.commit(*stream, *position);
        }
        self.step();
        Ok(())
    }

    async fn release(&mut self, stream: StreamKey) -> Result<(), SystemError> {
        self.ready.retain(|(key, _)| *key != stream);
        self.assignment.release(stream);
        self.step();
        Ok(())
    }

    fn pause(&mut self, stream: StreamKey) {
        self.assignment.pause(stream, true);
        self.step();
    }

    fn unpause(&mut self, stream: StreamKey) {
        self.assignment.pause(stream, false);
        self.step();
    }

    async fn close(&mut self, deadline: Instant) -> Result<(), SystemError> {
        let mut result = Ok(());
        while self.client.is_some() && self.assignment.uncommitted() {
            if Instant::now() >= deadline {
                result = Err(SystemError::Transient {
                    context: format!("committing the last positions at {}: no answer in time", self.servers),
                    class: ErrorClass::Timeout,
                    cause: None,
                });
                break;
            }
            self.take_notes()?;
            self.step();
            let _ = timeout_at(deadline, self.wait()).await;
        }
        self.ready.clear();
        self.replace();
        if let Some(closing) = self.closing.take() {
            // Beyond the deadline the process ends, and the client with it.
            let _ = timeout_at(deadline, closing).await;
        }
        result
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        let settings = self.settings()?;
        let topics = self.spec.topics.clone();
        let servers = self.servers.clone();
        let looked = blocking(move || look(&settings, &topics, &servers)).await;
        looked.map_err(|error| self.broken("looking", &error))?
    }
}

/// Dials, authenticates and looks for the topics.
fn look(settings: &Settings, topics: &[String], servers: &str) -> Result<(), SystemError> {
    let transient = |context, class| SystemError::Transient { context, class, cause: None };
    let shared = Arc::new(Shared::default());
    let consumer = client::consumer(settings, &shared).map_err(|error| SystemError::Permanent {
        reason: "ConfigInvalid",
        context: format!("librdkafka refuses its configuration: {error}"),
    })?;
    let began = Instant::now();
    let (deadline, mut slice) = (began + CHECK_TIMEOUT, CHECK_SLICE);
    let mut last = None;
    let mut wanted = topics.iter();
    let mut topic = wanted.next();
    loop {
        match consumer.fetch_metadata(topic.map(String::as_str), slice) {
            Ok(metadata) => {
                let missing = topic.is_some_and(|topic| {
                    metadata.topics().iter().any(|t| t.name() == topic && t.error().is_some())
                });
                if let Some(topic) = topic.filter(|_| missing) {
                    let context =
                        format!("waiting for a topic: topic {topic:?} does not exist or may not be read");
                    return Err(transient(context, ErrorClass::Rejected));
                }
                topic = wanted.next();
                if topic.is_none() {
                    return Ok(());
                }
            }
            Err(error) if Instant::now() >= deadline => {
                let reason = last.unwrap_or_else(|| error.to_string());
                return Err(transient(format!("connecting to {servers}: {reason}"), ErrorClass::Timeout));
            }
            Err(_) => {
                if Instant::now() > began + CHECK_SLICE * 10 {
                    slice = CHECK_LONG_SLICE;
                }
                for (code, reason) in client::serve(&consumer, &shared).errors {
                    match errors::disposition(code, &reason, servers, last.as_deref()) {
                        Disposition::Tell(trouble) => return Err(trouble.error()),
                        Disposition::Fatal => return Err(errors::fatal(code, &reason)),
                        Disposition::Remember => last = Some(reason),
                        Disposition::Ignore => {}
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for KafkaSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSource").field("servers", &self.servers).finish_non_exhaustive()
    }
}
