//! Which partitions are ours and what each needs next: assign, revoke, lose, resume, drain, commit. Pure.
//!
//! ```text
//! assigned ─identified─► Waiting ─resume─► Locating ─in range─► Seeking ─► Reading
//!                           ▲  Opened         │ ▲                             │
//!                                             ▼ │ asked again                 └─ revoked ─► released ─► given back
//!                                            Beyond
//! ```
//!
//! Time is milliseconds of any clock. A position is the offset of the next record (offset + 1 of the last one), so that
//! the position that Wallaroo acknowledges is the offset to commit.

#[cfg(test)]
#[path = "assignment_tests.rs"]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::record::Position;
use crate::source::{ResumeFrom, StreamKey};

/// How long after the deadline a revoked stream is given back although nobody released it, in milliseconds: its owner
/// acts at the deadline, so this only shows when it does not run.
pub const GRACE_MILLIS: u64 = 2_000;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// Name of the topic.
    pub topic: String,
    /// Number.
    pub number: i32,
}

/// What the group's offset of a partition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Known {
    /// There is none.
    Nothing,
    /// Somebody else wrote it: no more than a place to start.
    Foreign(Position),
    /// This Connector wrote it: everything before it was acknowledged.
    Ours(Position),
}

/// Where a stream is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// There.
    At(Position),
    /// Where the configuration says that an unknown partition starts.
    Start,
}

/// What a broker holds of a partition: offsets of the first record, and of the next one to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// Of the first record.
    pub first: Position,
    /// Of the next record to be written.
    pub next: Position,
}

/// Where an unknown partition starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Start {
    /// There.
    pub at: Position,
    /// The same question may get another answer later, so the answer is committed.
    pub pin: bool,
}

/// What the pump is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A stream exists.
    Opened {
        /// Handle.
        key: StreamKey,
        /// Lasting name.
        name: String,
        /// What this Connector committed before.
        committed: Option<Position>,
    },
    /// The group wants it back.
    Revoking {
        /// Handle.
        key: StreamKey,
        /// Until then.
        deadline: u64,
    },
    /// It is gone.
    Lost {
        /// Handle.
        key: StreamKey,
    },
}

/// What the adapter does next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Commit, and report each with [`Assignment::commit_answer`].
    Commit(Vec<Commit>),
    /// Give all of these back to the group, in one call.
    GiveBack(Vec<Partition>),
    /// Ask for topic ids and the group's offsets, and report each with [`Assignment::identified`].
    Identify(Vec<Partition>),
    /// Ask for what the broker holds, and report each with [`Assignment::located`].
    Locate(Vec<Locate>),
    /// Read on there, then [`Assignment::sought`].
    Seek {
        /// Handle.
        key: StreamKey,
        /// Partition.
        partition: Partition,
        /// Where to.
        position: Position,
    },
    /// Let records come, or not.
    Flow {
        /// Partition.
        partition: Partition,
        /// Come.
        on: bool,
    },
}

/// A position to commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Commit {
    /// Partition.
    pub partition: Partition,
    /// Id of its topic.
    pub id: String,
    /// Position.
    pub position: Position,
}

/// A partition whose range is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Locate {
    /// Handle.
    pub key: StreamKey,
    /// Partition.
    pub partition: Partition,
    /// Where it is to go on.
    pub to: Target,
}

/// A stream that cannot go on where it has to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutOfRange {
    /// Partition.
    pub partition: Partition,
    /// Where it has to go on.
    pub position: Position,
    /// What the broker holds.
    pub range: Range,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Waiting,
    Locating(Target),
    Seeking(Position),
    Reading,
    Beyond { to: Target, position: Position, range: Range, said: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    Ours,
    Revoked { deadline: u64 },
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stream {
    partition: Partition,
    /// Id of the topic; empty before the stream is announced.
    id: String,
    phase: Phase,
    fate: Fate,
    /// What this phase has to ask, or to do, is under way.
    asked: bool,
    /// The present client has it, and its topic is the one it was opened with.
    attached: bool,
    identified: bool,
    /// Records come from the client.
    flowing: bool,
    paused: bool,
    released: bool,
    known: Known,
    /// Where reading has come to.
    next: Position,
    /// To be committed; on its way; committed. Each never goes back.
    wanted: Option<Position>,
    sending: Option<Position>,
    confirmed: Option<Position>,
}

impl Stream {
    fn new(partition: Partition) -> Stream {
        Stream {
            partition,
            id: String::new(),
            phase: Phase::Waiting,
            fate: Fate::Ours,
            asked: false,
            attached: true,
            identified: false,
            flowing: false,
            paused: false,
            released: false,
            known: Known::Nothing,
            next: 0,
            wanted: None,
            sending: None,
            confirmed: None,
        }
    }

    fn announced(&self) -> bool {
        !self.id.is_empty()
    }

    fn usable(&self) -> bool {
        self.fate == Fate::Ours && self.attached && self.identified
    }

    fn uncommitted(&self) -> bool {
        self.fate != Fate::Lost && self.wanted > self.confirmed
    }

    /// What it was asked, or how far it had come, is asked of the broker again.
    fn look_again(&mut self) {
        let to = match self.phase {
            Phase::Waiting => return,
            Phase::Locating(to) | Phase::Beyond { to, .. } => to,
            Phase::Seeking(position) => Target::At(position),
            Phase::Reading => Target::At(self.next),
        };
        self.phase = Phase::Locating(to);
        self.asked = false;
    }
}

/// The partitions of one member of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Assignment {
    streams: BTreeMap<StreamKey, Stream>,
    opened: u32,
    /// Partitions of a revocation that were not given back yet.
    leaving: BTreeSet<Partition>,
    events: VecDeque<Event>,
    /// The client was replaced and has no assignment yet.
    fresh: bool,
}

impl Assignment {
    /// True without streams.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// True while a position waits for its commit.
    pub fn uncommitted(&self) -> bool {
        self.streams.values().any(Stream::uncommitted)
    }

    /// True while any stream is read.
    pub fn is_reading(&self) -> bool {
        self.streams.values().any(|stream| stream.usable() && stream.phase == Phase::Reading)
    }

    /// True while any stream waits for its seek.
    pub fn is_seeking(&self) -> bool {
        self.streams.values().any(|stream| stream.usable() && matches!(stream.phase, Phase::Seeking(_)))
    }

    /// Topics of the streams that stand.
    pub fn topics(&self) -> BTreeSet<&str> {
        self.streams.values().filter(|s| s.fate != Fate::Lost).map(|s| s.partition.topic.as_str()).collect()
    }

    fn owner(&mut self, partition: &Partition) -> Option<(StreamKey, &mut Stream)> {
        let mut streams = self.streams.iter_mut();
        streams
            .find(|(_, stream)| stream.fate != Fate::Lost && stream.partition == *partition)
            .map(|(key, stream)| (*key, stream))
    }

    /// The group gave these to us. Nothing of them flows yet.
    pub fn assigned(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some((_, stream)) = self.owner(partition) {
                (stream.attached, stream.identified, stream.flowing, stream.asked) =
                    (true, false, false, false);
            } else {
                self.track(partition.clone());
            }
        }
        if std::mem::take(&mut self.fresh) {
            // The group gave them to somebody else meanwhile.
            self.lose(|stream| !stream.attached);
        }
    }

    fn track(&mut self, partition: Partition) {
        self.streams.insert(StreamKey(self.opened), Stream::new(partition));
        self.opened += 1;
    }

    /// The group wants these back by `deadline`.
    pub fn revoked(&mut self, partitions: &[Partition], deadline: u64) {
        self.leaving.extend(partitions.iter().cloned());
        for partition in partitions {
            let Some((key, stream)) = self.owner(partition) else { continue };
            if stream.announced() {
                stream.fate = Fate::Revoked { deadline };
                self.events.push_back(Event::Revoking { key, deadline });
            } else {
                self.streams.remove(&key);
            }
        }
    }

    /// The group took these back. The client gives them up at once.
    pub fn lost(&mut self, partitions: &[Partition]) {
        self.leaving.retain(|leaving| !partitions.contains(leaving));
        self.lose(|stream| partitions.contains(&stream.partition));
    }

    fn lose(&mut self, which: impl Fn(&Stream) -> bool) {
        let Assignment { streams, events, .. } = self;
        streams.retain(|key, stream| {
            if stream.fate == Fate::Lost || !which(stream) {
                return true;
            }
            stream.fate = Fate::Lost;
            if stream.announced() && !stream.released {
                events.push_back(Event::Lost { key: *key });
            }
            stream.announced() && !stream.released
        });
    }

    /// Another client takes this member's place. What was being revoked is gone with the earlier one.
    pub fn replaced(&mut self) {
        self.leaving.clear();
        self.lose(|stream| stream.fate != Fate::Ours || !stream.announced());
        self.fresh = true;
        for stream in self.streams.values_mut() {
            (stream.attached, stream.identified, stream.flowing, stream.asked) = (false, false, false, false);
            stream.sending = None;
        }
    }

    /// The answer to [`Step::Identify`]: the stream is announced, or goes on with another client. A topic of another id is
    /// another stream.
    pub fn identified(&mut self, partition: &Partition, id: &str, known: Known) {
        self.check_id(partition, id);
        let Some((key, stream)) = self.owner(partition) else { return };
        if stream.identified || stream.fate != Fate::Ours {
            return;
        }
        stream.identified = true;
        stream.asked = false;
        if stream.announced() {
            return stream.look_again();
        }
        id.clone_into(&mut stream.id);
        stream.known = known;
        let committed = match known {
            Known::Ours(position) => Some(position).filter(|position| *position > 0),
            Known::Nothing | Known::Foreign(_) => None,
        };
        let name = format!("{}:{id}/{}", partition.topic, partition.number);
        self.events.push_back(Event::Opened { key, name, committed });
    }

    /// The topic has this id now: a stream of another one is lost, and another one takes its place.
    pub fn check_id(&mut self, partition: &Partition, id: &str) {
        let Some((_, stream)) = self.owner(partition) else { return };
        if stream.fate == Fate::Ours && stream.announced() && stream.id != id {
            let (partition, attached) = (stream.partition.clone(), stream.attached);
            self.lose(|stream| stream.partition == partition);
            if attached {
                self.track(partition);
            }
        }
    }

    /// The topics have these ids now.
    pub fn check_ids(&mut self, ids: &BTreeMap<String, String>) {
        let partitions: Vec<_> = self.streams.values().map(|stream| stream.partition.clone()).collect();
        for partition in partitions {
            if let Some(id) = ids.get(&partition.topic) {
                self.check_id(&partition, id);
            }
        }
    }

    /// The pump says where a stream goes on. False for a stream that was released or never opened.
    pub fn resume(&mut self, key: StreamKey, from: ResumeFrom) -> bool {
        let Some(stream) = self.streams.get_mut(&key) else { return false };
        let to = match (from, stream.known) {
            (ResumeFrom::After(position), _) => Target::At(position),
            (ResumeFrom::Committed, known) => match (stream.wanted, known) {
                (Some(position), _) | (None, Known::Ours(position) | Known::Foreign(position)) => {
                    Target::At(position)
                }
                (None, Known::Nothing) => Target::Start,
            },
        };
        stream.phase = Phase::Locating(to);
        stream.asked = false;
        true
    }

    /// The answer to [`Step::Locate`]; `start` for a stream that goes on at the configured start.
    pub fn located(&mut self, key: StreamKey, to: Target, range: Range, start: Option<Start>) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if stream.phase != Phase::Locating(to) || !stream.asked {
            return;
        }
        stream.asked = false;
        let position = match (to, start) {
            (Target::At(position), _) => position,
            (Target::Start, Some(start)) => start.at,
            (Target::Start, None) => return,
        };
        if position < range.first || position > range.next {
            stream.phase = Phase::Beyond { to, position, range, said: false };
            return;
        }
        if to == Target::Start && start.is_some_and(|start| start.pin) {
            stream.wanted = stream.wanted.max(Some(position));
        }
        stream.next = position;
        stream.phase = Phase::Seeking(position);
    }

    /// The client reads on at `position`.
    pub fn sought(&mut self, key: StreamKey, position: Position) {
        if let Some(stream) = self.streams.get_mut(&key)
            && stream.phase == Phase::Seeking(position)
            && stream.asked
        {
            stream.phase = Phase::Reading;
            stream.asked = false;
        }
    }

    /// Nothing that was asked is under way any more: it is asked again.
    pub fn ask_again(&mut self) {
        self.streams.values_mut().for_each(|stream| stream.asked = false);
    }

    /// The broker refuses the position that the partition reads at.
    pub fn refused(&mut self, partition: &Partition) {
        if let Some((_, stream)) = self.owner(partition)
            && stream.phase == Phase::Reading
        {
            stream.look_again();
        }
    }

    /// A stream that cannot go on, said once for each answer of the broker.
    pub fn out_of_range(&mut self) -> Option<(StreamKey, OutOfRange)> {
        self.streams.iter_mut().filter(|(_, stream)| stream.usable()).find_map(|(key, stream)| {
            let Phase::Beyond { position, range, said, .. } = &mut stream.phase else { return None };
            if std::mem::replace(said, true) {
                return None;
            }
            let (position, range) = (*position, *range);
            Some((*key, OutOfRange { partition: stream.partition.clone(), position, range }))
        })
    }

    /// Asks the broker again about the streams that cannot go on.
    pub fn look_beyond_again(&mut self) {
        for stream in self.streams.values_mut() {
            if matches!(stream.phase, Phase::Beyond { .. }) {
                stream.look_again();
            }
        }
    }

    /// Whose records of this partition are, and the position that they have to be beyond; `None` if nobody's.
    pub fn reader(&mut self, partition: &Partition) -> Option<(StreamKey, Position)> {
        let (key, stream) = self.owner(partition)?;
        (stream.usable() && stream.phase == Phase::Reading).then_some((key, stream.next))
    }

    /// Records up to `last` were taken.
    pub fn read(&mut self, key: StreamKey, last: Position) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.next = stream.next.max(last);
        }
    }

    /// True while the stream may be yielded from.
    pub fn yields(&self, key: StreamKey) -> bool {
        self.streams.get(&key).is_some_and(|stream| stream.fate == Fate::Ours && !stream.paused)
    }

    /// True while the stream is ours: what was read of it may still be yielded.
    pub fn is_ours(&self, key: StreamKey) -> bool {
        self.streams.get(&key).is_some_and(|stream| stream.fate == Fate::Ours)
    }

    /// Pauses a stream or ends that.
    pub fn pause(&mut self, key: StreamKey, paused: bool) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.paused = paused;
        }
    }

    /// Everything up to `position` is acknowledged.
    pub fn commit(&mut self, key: StreamKey, position: Position) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.wanted = stream.wanted.max(Some(position));
        }
    }

    /// What became of a commit. One that failed is made again.
    pub fn commit_answer(&mut self, partition: &Partition, position: Position, done: bool) {
        let Some((key, stream)) = self.owner(partition) else { return };
        if stream.sending == Some(position) {
            stream.sending = None;
            if done {
                stream.confirmed = stream.confirmed.max(Some(position));
            }
            self.settle(key);
        }
    }

    /// The pump is done with the stream.
    pub fn release(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.released = true;
            self.settle(key);
        }
    }

    /// Forgets a released stream once its commit is through.
    fn settle(&mut self, key: StreamKey) {
        if self.streams.get(&key).is_some_and(|stream| stream.released && !stream.uncommitted()) {
            self.streams.remove(&key);
        }
    }

    /// Gives up what was to be given back by now.
    pub fn expire(&mut self, now: u64) {
        self.streams.retain(|_, stream| match stream.fate {
            Fate::Revoked { deadline } => !stream.released || now < deadline,
            Fate::Ours | Fate::Lost => true,
        });
        self.lose(|stream| match stream.fate {
            Fate::Revoked { deadline } => now >= deadline + GRACE_MILLIS,
            Fate::Ours | Fate::Lost => false,
        });
    }

    /// What the pump is told next.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What the adapter does next. `lookup`: it can ask the broker something; `commit`: it can commit now.
    pub fn next_step(&mut self, lookup: bool, commit: bool) -> Option<Step> {
        if commit && let Some(step) = self.commits() {
            return Some(step);
        }
        let held = self.streams.values().any(|stream| matches!(stream.fate, Fate::Revoked { .. }));
        if !held && !self.leaving.is_empty() {
            return Some(Step::GiveBack(std::mem::take(&mut self.leaving).into_iter().collect()));
        }
        if lookup && let Some(step) = self.identify().or_else(|| self.locate()) {
            return Some(step);
        }
        self.streams.iter_mut().find_map(|(&key, stream)| {
            if let Phase::Seeking(position) = stream.phase
                && stream.usable()
                && !stream.asked
            {
                stream.asked = true;
                return Some(Step::Seek { key, partition: stream.partition.clone(), position });
            }
            let on = stream.usable() && stream.phase == Phase::Reading && !stream.paused;
            (stream.attached && stream.fate != Fate::Lost && stream.flowing != on).then(|| {
                stream.flowing = on;
                Step::Flow { partition: stream.partition.clone(), on }
            })
        })
    }

    fn commits(&mut self) -> Option<Step> {
        let ready = |stream: &&mut Stream| {
            stream.uncommitted() && stream.attached && stream.identified && stream.sending.is_none()
        };
        let commits: Vec<_> = self
            .streams
            .values_mut()
            .filter(ready)
            .filter_map(|stream| {
                stream.sending = stream.wanted;
                let (partition, id) = (stream.partition.clone(), stream.id.clone());
                stream.wanted.map(|position| Commit { partition, id, position })
            })
            .collect();
        (!commits.is_empty()).then_some(Step::Commit(commits))
    }

    fn identify(&mut self) -> Option<Step> {
        let unknown = self.streams.values_mut();
        let unknown = unknown.filter(|s| s.fate == Fate::Ours && s.attached && !s.identified && !s.asked);
        let partitions: Vec<_> = unknown
            .map(|stream| {
                stream.asked = true;
                stream.partition.clone()
            })
            .collect();
        (!partitions.is_empty()).then_some(Step::Identify(partitions))
    }

    fn locate(&mut self) -> Option<Step> {
        let wanted = self.streams.iter_mut().filter_map(|(&key, stream)| match stream.phase {
            Phase::Locating(to) if stream.usable() && !stream.asked => {
                stream.asked = true;
                Some(Locate { key, partition: stream.partition.clone(), to })
            }
            Phase::Waiting
            | Phase::Locating(_)
            | Phase::Seeking(_)
            | Phase::Reading
            | Phase::Beyond { .. } => None,
        });
        let wanted: Vec<_> = wanted.collect();
        (!wanted.is_empty()).then_some(Step::Locate(wanted))
    }
}
