//! What is asked of the brokers, in calls that block: each is made by a task of its own.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use connector_crds::ConnectorIdentity;
use connector_crds::systems::kafka::{StartAt, StartPosition};
use connector_native::kafka::topic_ids;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::time::{Duration, Instant};

use super::assignment::{Known, Locate, Partition, Range, Start, Target};
use super::client::{Callbacks, list, position};
use crate::record::Position;
use crate::source::StreamKey;

/// Longest wait for one answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Id that stands for the topics of brokers that give none (Kafka before 2.8).
const NO_ID: &str = "-";

/// The note beside each offset that this Connector commits: who, and in which epoch; the topic's id follows. Names hold
/// no blank.
pub(super) fn mark(identity: &ConnectorIdentity) -> String {
    let epoch = if identity.epoch.is_empty() { "-" } else { &identity.epoch };
    format!("wallaroo-connector {}/{} {epoch}", identity.namespace, identity.name)
}

/// What a group's offset with this note is to the Connector of `mark`.
fn known(offset: Option<Position>, note: &str, mark: &str, id: &str) -> Known {
    let Some(offset) = offset else { return Known::Nothing };
    let who = |note: &str| note.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>();
    if note == format!("{mark} {id}") {
        Known::Ours(offset)
    } else if who(note) == who(mark) {
        // Of an earlier epoch, or of a topic that was made anew: to start over is what is asked for.
        Known::Nothing
    } else {
        Known::Foreign(offset)
    }
}

/// Ids of topics; those that do not exist are absent.
pub(super) fn ids(
    consumer: &BaseConsumer<Callbacks>,
    topics: &BTreeSet<String>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let Some(first) = topics.first() else { return Ok(BTreeMap::new()) };
    let metadata = consumer.fetch_metadata(Some(first), TIMEOUT)?;
    let names: Vec<String> = topics.iter().cloned().collect();
    let mut ids = topic_ids(consumer, metadata.orig_broker_id(), &names, TIMEOUT)?;
    for id in ids.values_mut() {
        // As Kafka's own tools write it; a slash would read like the one before the partition's number.
        *id = id.replace('+', "-").replace('/', "_");
    }
    let unknown: Vec<String> = names.into_iter().filter(|name| !ids.contains_key(name)).collect();
    for name in unknown {
        let metadata = consumer.fetch_metadata(Some(&name), TIMEOUT)?;
        let mut found = metadata.topics().iter().filter(|topic| topic.name() == name);
        if found.any(|topic| topic.error().is_none() && !topic.partitions().is_empty()) {
            ids.insert(name, NO_ID.to_owned());
        }
    }
    Ok(ids)
}

/// What was found, and why the rest was not.
pub(super) type Found<T> = (Vec<T>, Option<anyhow::Error>);

/// Topic id and group offset of each partition.
pub(super) fn identify(
    consumer: &BaseConsumer<Callbacks>,
    partitions: &[Partition],
    mark: &str,
) -> anyhow::Result<Found<(Partition, String, Known)>> {
    let ids = ids(consumer, &partitions.iter().map(|partition| partition.topic.clone()).collect())?;
    let committed = consumer.committed_offsets(list(partitions, Offset::Invalid)?, TIMEOUT)?;
    let (mut identified, mut missing) = (Vec::with_capacity(partitions.len()), None);
    for element in committed.elements() {
        if let Err(error) = element.error() {
            missing = Some(error.into());
            continue;
        }
        let Some(id) = ids.get(element.topic()) else {
            missing = Some(anyhow::anyhow!("topic {:?} does not exist", element.topic()));
            continue;
        };
        let known = known(position(element.offset()), element.metadata(), mark, id);
        let partition = Partition { topic: element.topic().to_owned(), number: element.partition() };
        identified.push((partition, id.clone(), known));
    }
    Ok((identified, missing))
}

/// A partition's range, and the start of one that nobody knows.
pub(super) type Located = (StreamKey, Target, Range, Option<Start>);

/// What the broker holds of each partition. One that cannot be asked holds back no other, and a broker that does not
/// answer is waited for once.
pub(super) fn locate(
    consumer: &BaseConsumer<Callbacks>,
    wanted: &[Locate],
    start: &StartPosition,
) -> anyhow::Result<Found<Located>> {
    let leaders = leaders(consumer, wanted.iter().map(|wanted| wanted.partition.topic.as_str()).collect())?;
    let (mut located, mut missing) = (Vec::with_capacity(wanted.len()), None);
    let mut silent = BTreeSet::new();
    for Locate { key, partition, to } in wanted {
        let leader = leaders.get(partition).filter(|leader| !silent.contains(*leader));
        let Some(leader) = leader else {
            let Partition { topic, number } = partition;
            missing.get_or_insert_with(|| {
                anyhow::anyhow!("partition {number} of topic {topic:?} has no leader")
            });
            continue;
        };
        let began = Instant::now();
        match look(consumer, partition, *to, start) {
            Ok((range, start)) => located.push((*key, *to, range, start)),
            Err(error) => {
                if began.elapsed() >= TIMEOUT {
                    silent.insert(*leader);
                }
                missing = Some(error);
            }
        }
    }
    Ok((located, missing))
}

/// The broker that leads each partition, of those that have one.
fn leaders(
    consumer: &BaseConsumer<Callbacks>,
    topics: BTreeSet<&str>,
) -> anyhow::Result<BTreeMap<Partition, i32>> {
    let mut leaders = BTreeMap::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
        let partitions = metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions);
        let led = partitions.filter(|partition| partition.leader() >= 0);
        leaders
            .extend(led.map(|led| (Partition { topic: topic.to_owned(), number: led.id() }, led.leader())));
    }
    Ok(leaders)
}

/// Where a partition begins or ends. Not by `fetch_watermarks`, which asks for both at once: when the first half is refused
/// and the second half is answered it may say that the partition begins at its end, and a stream from the earliest record would
/// start there.
fn edge(consumer: &BaseConsumer<Callbacks>, partition: &Partition, edge: Offset) -> anyhow::Result<Position> {
    let found = consumer.offsets_for_times(list(std::slice::from_ref(partition), edge)?, TIMEOUT)?;
    let elements = found.elements();
    let element = elements.first().context("the broker's answer is empty")?;
    element.error()?;
    position(element.offset()).context("the broker gave no offset")
}

fn look(
    consumer: &BaseConsumer<Callbacks>,
    partition: &Partition,
    to: Target,
    start: &StartPosition,
) -> anyhow::Result<(Range, Option<Start>)> {
    let range = Range {
        first: edge(consumer, partition, Offset::Beginning)?,
        next: edge(consumer, partition, Offset::End)?,
    };
    let start = match to {
        Target::At(_) => None,
        Target::Start => Some(match start.at {
            StartAt::Earliest => Start { at: range.first, pin: false },
            StartAt::Latest => Start { at: range.next, pin: true },
            StartAt::Offset => {
                Start { at: Position::try_from(start.offset.unwrap_or(0)).unwrap_or(0), pin: false }
            }
            StartAt::Timestamp => {
                let time = Offset::Offset(start.timestamp.unwrap_or(0));
                let found =
                    consumer.offsets_for_times(list(std::slice::from_ref(partition), time)?, TIMEOUT)?;
                let elements = found.elements();
                elements.iter().try_for_each(rdkafka::topic_partition_list::TopicPartitionListElem::error)?;
                let at = elements.first().and_then(|element| position(element.offset()));
                // Every record is older: the next one.
                Start { at: at.unwrap_or(range.next).clamp(range.first, range.next), pin: true }
            }
        }),
    };
    Ok((range, start))
}

/// Asks a broker for anything: whether one answers.
pub(super) fn probe(consumer: &BaseConsumer<Callbacks>, topic: Option<&str>) -> anyhow::Result<()> {
    consumer.fetch_metadata(topic, TIMEOUT)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str, epoch: &str) -> ConnectorIdentity {
        ConnectorIdentity { namespace: "ns".into(), name: name.into(), epoch: epoch.into() }
    }

    #[test]
    fn only_an_offset_that_this_connector_wrote_for_this_topic_counts_as_acknowledged() {
        let mark = mark(&identity("c", ""));
        let ours = format!("{mark} topic-id");
        assert_eq!(known(None, "", &mark, "topic-id"), Known::Nothing);
        assert_eq!(known(Some(7), &ours, &mark, "topic-id"), Known::Ours(7));
        for foreign in ["", "someone else", "wallaroo-connector ns/other - topic-id"] {
            assert_eq!(known(Some(7), foreign, &mark, "topic-id"), Known::Foreign(7), "{foreign}");
        }
    }

    #[test]
    fn an_offset_of_another_epoch_or_of_a_topic_made_anew_is_no_offset() {
        let (old, new) = (mark(&identity("c", "1")), mark(&identity("c", "2")));
        assert_eq!(known(Some(7), &format!("{old} id"), &new, "id"), Known::Nothing);
        assert_eq!(known(Some(7), &format!("{new} old-id"), &new, "id"), Known::Nothing);
    }
}
