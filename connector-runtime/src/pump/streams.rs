//! The streams of a source: where each stands at the system and at Wallaroo, and what is to be done next. Pure.
//!
//! ```text
//! Closed ──open──► Opening ──answer──► Resuming ──resume──► Open ──end──► Ending ──final ACK──► Leaving ──release──►
//!    ▲                │                    │                  │              │
//!    └────────────────┴──── session lost ──┴──────────────────┴──────────────┘
//! ```

mod flight;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::{Duration, Instant};
use wallaroo_protocol::StreamId;

use self::flight::Flight;
use crate::record::Position;
use crate::source::{ResumeFrom, StreamKey};
use crate::stream_id::{IdCollision, StreamIds};

/// Poison positions that one stream remembers at most; the lowest are forgotten first. Finding one takes several
/// sessions, so that many in one stretch that is never acknowledged mean another trouble.
const MAX_POISON: usize = 1_024;

/// Where a stream stands between the source and Wallaroo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No session knows it.
    Closed,
    /// Wallaroo was asked for it.
    Opening,
    /// Wallaroo answered; the source is told next.
    Resuming(ResumeFrom),
    /// Records flow.
    Open,
    /// Its end is on its way to Wallaroo, its last records may be unacknowledged.
    Ending,
    /// Wallaroo is done with it: commit, then release.
    Leaving,
    /// Never opened: another stream has its id.
    Barred,
}

/// What the system wants of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    Reading,
    /// No more records come.
    Exhausted,
    /// The system takes it back.
    Revoked {
        deadline: Instant,
    },
    /// The system took it back: nothing may be committed.
    Lost,
}

/// One stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Its name in the system.
    pub name: String,
    /// Its id at Wallaroo.
    pub id: StreamId,
    /// Where it stands.
    pub phase: Phase,
    /// Last position handed to this session.
    pub sent: Option<Position>,
    /// Last position that Wallaroo acknowledged to this process; never goes back.
    pub acknowledged: Option<Position>,
    /// Last position that the system was told to be done; never goes back.
    pub committed: Option<Position>,
    /// True once the source was told to pause it.
    pub paused: bool,
    fate: Fate,
    /// The source yields records of it (`resume` was called).
    resumed: bool,
    /// Record at which `onError: Stop` holds it in this session.
    held: Option<Position>,
    /// Record at which `onError: Stop` last held it.
    stopped_at: Option<Position>,
    /// Where this session started it: everything up to here is Wallaroo's word only, no acknowledgement.
    floor: Option<Position>,
    /// Last position dropped in this session by policy.
    passed: Option<Position>,
    /// Highest position dropped by policy in this process: such a record is not reported twice.
    dealt_with: Option<Position>,
    /// Records that Wallaroo cannot decode.
    poison: BTreeSet<Position>,
    flight: Flight,
}

impl Stream {
    /// The position that the system may forget up to: everything acknowledged, and what was dropped by policy behind
    /// it while nothing sent is unacknowledged.
    pub fn committable(&self) -> Option<Position> {
        let settled = self.acknowledged >= self.floor.max(self.sent);
        if settled { self.acknowledged.max(self.passed) } else { self.acknowledged }
    }

    /// The position named in NOTIFY: durable progress or nothing. What a worker echoes is then harmless.
    fn proposal(&self) -> Option<Position> {
        self.acknowledged.max(self.committed)
    }

    /// Lowest poison position in `from..=to`.
    pub fn poison_in(&self, from: Position, to: Position) -> Option<Position> {
        if self.poison.is_empty() { None } else { self.poison.range(from..=to).next().copied() }
    }

    fn uncommitted(&self) -> Option<Position> {
        if self.fate == Fate::Lost {
            return None;
        }
        self.committable().filter(|position| Some(*position) > self.committed)
    }
}

/// What the driver does next for one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask Wallaroo for it, then [`Streams::asked`].
    Open {
        /// Handle.
        key: StreamKey,
        /// Id.
        id: StreamId,
        /// Position for NOTIFY.
        proposal: Option<Position>,
    },
    /// Call `resume`, then [`Streams::resumed`].
    Resume {
        /// Handle.
        key: StreamKey,
        /// From where.
        from: ResumeFrom,
    },
    /// End it at Wallaroo, then [`Streams::ending`].
    End {
        /// Handle.
        key: StreamKey,
        /// Id.
        id: StreamId,
    },
    /// End it at Wallaroo if `end` says so, call `release`, then [`Streams::remove`].
    Release {
        /// Handle.
        key: StreamKey,
        /// Id that this session still holds and nobody ended.
        end: Option<StreamId>,
    },
}

/// All streams of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Streams {
    table: BTreeMap<StreamKey, Stream>,
    /// Ids that the present session holds, also of streams that left the table before their end was acknowledged.
    session: BTreeMap<StreamId, StreamKey>,
    ids: StreamIds,
    /// Records and bytes of a chunk of in-flight accounting.
    chunk: (u64, u64),
    /// Records and bytes sent and not acknowledged (with receipts: not received).
    in_flight: (u64, u64),
    /// Records received and not old enough to count as acknowledged.
    settling: u64,
    completed: u64,
}

impl Streams {
    /// No streams yet; the bounds decide how finely records in flight are accounted.
    pub fn new(in_flight_records: u64, in_flight_bytes: u64) -> Streams {
        /// Parts of the in-flight bound that are accounted one by one: enough that reading goes on smoothly.
        const PARTS: u64 = 64;
        let chunk = ((in_flight_records / PARTS).clamp(1, 16_384), (in_flight_bytes / PARTS).max(1));
        Streams { chunk, ..Streams::default() }
    }

    /// The source opened a stream. With an id that another stream has, it is kept and never opened at Wallaroo.
    pub fn opened(
        &mut self,
        key: StreamKey,
        name: String,
        id: StreamId,
        committed: Option<Position>,
    ) -> Result<(), IdCollision> {
        let claimed = self.ids.claim(id, &name);
        let stream = Stream {
            name,
            id,
            phase: if claimed.is_ok() { Phase::Closed } else { Phase::Barred },
            sent: None,
            acknowledged: None,
            committed,
            paused: false,
            fate: Fate::Reading,
            resumed: false,
            held: None,
            stopped_at: None,
            floor: None,
            passed: None,
            dealt_with: None,
            poison: BTreeSet::new(),
            flight: Flight::default(),
        };
        self.table.insert(key, stream);
        claimed
    }

    /// A stream.
    pub fn get(&self, key: StreamKey) -> Option<&Stream> {
        self.table.get(&key)
    }

    /// All streams, in the order of their handles.
    pub fn iter(&self) -> impl Iterator<Item = (StreamKey, &Stream)> {
        self.table.iter().map(|(key, stream)| (*key, stream))
    }

    /// True without streams.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Streams that came to their end, were acknowledged, committed and released.
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Records and bytes sent and not acknowledged (with receipts: not received by the worker's kernel).
    pub fn in_flight(&self) -> (u64, u64) {
        self.in_flight
    }

    /// Records sent and not acknowledged in either sense.
    pub fn outstanding(&self) -> u64 {
        self.in_flight.0 + self.settling
    }

    /// The record that is outstanding alone, if it is exactly one.
    pub fn sole_outstanding(&self) -> Option<(StreamKey, Position)> {
        if self.outstanding() != 1 {
            return None;
        }
        self.table.iter().find_map(|(key, stream)| Some((*key, stream.flight.last()?)))
    }

    /// True if records of the stream go to Wallaroo now; those that were read before its end still do.
    pub fn sends(&self, key: StreamKey) -> bool {
        self.get(key).is_some_and(|stream| {
            stream.phase == Phase::Open
                && stream.held.is_none()
                && matches!(stream.fate, Fate::Reading | Fate::Exhausted)
        })
    }

    /// The streams whose pause has to change, with whether they are to be paused; marks them so.
    pub fn pauses(&mut self, all: bool) -> impl Iterator<Item = (StreamKey, bool)> + '_ {
        self.table.iter_mut().filter_map(move |(key, stream)| {
            let flows = stream.phase == Phase::Open && stream.held.is_none() && !all;
            // Before its first `resume` a stream yields nothing, and neither once it is at its end or taken back.
            let yields = stream.resumed && stream.fate == Fate::Reading && stream.phase != Phase::Leaving;
            (yields && stream.paused == flows).then(|| {
                stream.paused = !flows;
                (*key, stream.paused)
            })
        })
    }

    /// What to do next; `None` when everything waits for somebody else. `session` and `source` tell whether they can be
    /// called now, `kept` which streams have records that are read and not sent yet.
    pub fn next_action(
        &self,
        now: Instant,
        session: bool,
        source: bool,
        kept: impl Fn(StreamKey) -> bool,
    ) -> Option<Action> {
        self.table.iter().find_map(|(&key, stream)| {
            let action = self.action(key, stream, now, &kept)?;
            let possible = match &action {
                Action::Open { .. } | Action::End { .. } => session,
                Action::Resume { .. } | Action::Release { .. } => source,
            };
            possible.then_some(action)
        })
    }

    fn action(
        &self,
        key: StreamKey,
        stream: &Stream,
        now: Instant,
        kept: &impl Fn(StreamKey) -> bool,
    ) -> Option<Action> {
        let id = stream.id;
        let held_by_session = self.session.get(&id) == Some(&key);
        let release = |end: bool| Some(Action::Release { key, end: (end && held_by_session).then_some(id) });
        match (stream.phase, stream.fate) {
            (phase, Fate::Lost) => release(!matches!(phase, Phase::Ending | Phase::Leaving)),
            (Phase::Closed, Fate::Reading | Fate::Exhausted) => (!self.session.contains_key(&id))
                .then_some(Action::Open { key, id, proposal: stream.proposal() }),
            (Phase::Resuming(from), Fate::Reading | Fate::Exhausted) => Some(Action::Resume { key, from }),
            (Phase::Open, Fate::Exhausted) => (!kept(key)).then_some(Action::End { key, id }),
            (Phase::Open | Phase::Resuming(_), Fate::Revoked { .. }) => Some(Action::End { key, id }),
            (Phase::Opening, Fate::Revoked { .. }) => release(true), // given up before Wallaroo answered
            (Phase::Closed | Phase::Barred | Phase::Leaving, Fate::Revoked { deadline }) => {
                (stream.uncommitted().is_none() || deadline <= now).then(|| release(false)).flatten()
            }
            (Phase::Ending, Fate::Revoked { deadline }) => {
                (deadline <= now).then(|| release(false)).flatten()
            }
            (Phase::Leaving, Fate::Reading | Fate::Exhausted) => {
                stream.uncommitted().is_none().then(|| release(false)).flatten()
            }
            (Phase::Open, Fate::Reading)
            | (Phase::Opening | Phase::Ending | Phase::Barred, Fate::Reading | Fate::Exhausted) => None,
        }
    }

    /// When the next revoked stream has to be released.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.table.values().filter_map(|stream| match stream.fate {
            Fate::Revoked { deadline } => Some(deadline),
            Fate::Reading | Fate::Exhausted | Fate::Lost => None,
        });
        deadlines.min()
    }

    /// Wallaroo was asked for the stream.
    pub fn asked(&mut self, key: StreamKey) {
        if let Some(stream) = self.table.get_mut(&key) {
            stream.phase = Phase::Opening;
            self.session.insert(stream.id, key);
        }
    }

    /// Wallaroo's answer decides where the stream goes on; without one: behind the last record that it acknowledged to
    /// this process, else where the system committed.
    pub fn answered(&mut self, id: StreamId, position: Option<Position>) {
        let Some(stream) = self.session.get(&id).and_then(|key| self.table.get_mut(key)) else { return };
        if stream.phase == Phase::Opening {
            let from = position.or(stream.acknowledged).map_or(ResumeFrom::Committed, ResumeFrom::After);
            stream.floor = position;
            stream.phase = Phase::Resuming(from);
        }
    }

    /// The source goes on with the stream: what it yields from now on is new.
    pub fn resumed(&mut self, key: StreamKey) {
        if let Some(stream) = self.table.get_mut(&key)
            && matches!(stream.phase, Phase::Resuming(_))
        {
            stream.phase = Phase::Open;
            stream.fate = Fate::Reading;
            stream.resumed = true;
            stream.held = None;
        }
    }

    /// Records of the stream went into the session; the last byte of the last one is number `end` of the session.
    pub fn sent(&mut self, key: StreamKey, records: u64, bytes: u64, last: Position, end: u64) {
        if let Some(stream) = self.table.get_mut(&key) {
            stream.sent = Some(last);
            stream.flight.sent(records, bytes, last, end, self.chunk);
            self.in_flight.0 += records;
            self.in_flight.1 += bytes;
        }
    }

    /// A record of the stream is dropped by policy: its position counts once everything before it is acknowledged.
    /// True if it is the first time in this process.
    pub fn passed(&mut self, key: StreamKey, position: Position) -> bool {
        let Some(stream) = self.table.get_mut(&key) else { return false };
        let first = !self::is_dealt_with(stream, position);
        stream.passed = stream.passed.max(Some(position));
        stream.dealt_with = stream.dealt_with.max(Some(position));
        stream.poison.remove(&position);
        first
    }

    /// True if this record was dropped by policy before, in an earlier session of this process.
    pub fn dealt_with(&self, key: StreamKey, position: Position) -> bool {
        self.get(key).is_some_and(|stream| is_dealt_with(stream, position))
    }

    /// `onError: Stop` holds the stream at a record.
    pub fn hold(&mut self, key: StreamKey, position: Position) {
        if let Some(stream) = self.table.get_mut(&key) {
            stream.held = Some(position);
            stream.stopped_at = Some(position);
        }
    }

    /// Streams that got past the record which `onError: Stop` had held them at.
    pub fn past_their_stop(&mut self) -> Vec<StreamKey> {
        let stopped = self.table.iter_mut().filter_map(|(key, stream)| {
            let past =
                stream.held.is_none() && stream.stopped_at.is_some() && stream.sent >= stream.stopped_at;
            past.then(|| {
                stream.stopped_at = None;
                *key
            })
        });
        stopped.collect()
    }

    /// The record is not in the stream any more.
    pub fn forget_poison(&mut self, key: StreamKey, position: Position) {
        if let Some(stream) = self.table.get_mut(&key) {
            stream.poison.remove(&position);
        }
    }

    /// True while the end of a stream is on its way.
    pub fn any_ending(&self) -> bool {
        self.table.values().any(|stream| stream.phase == Phase::Ending)
    }

    /// Wallaroo cannot decode this record.
    pub fn poison(&mut self, key: StreamKey, position: Position) {
        if let Some(stream) = self.table.get_mut(&key) {
            stream.poison.insert(position);
            if stream.poison.len() > MAX_POISON {
                stream.poison.pop_first();
            }
        }
    }

    /// Wallaroo has everything of the stream up to `position`. Returns the records that are in flight no more.
    pub fn acknowledge(&mut self, id: StreamId, position: Position) -> u64 {
        let Some(stream) = self.session.get(&id).and_then(|key| self.table.get_mut(key)) else { return 0 };
        let (flight, settling) = stream.flight.acknowledge(position);
        self.in_flight.0 -= flight.0;
        self.in_flight.1 -= flight.1;
        self.settling -= settling;
        acknowledged(stream, position);
        flight.0 + settling
    }

    /// The worker's kernel has the session's bytes up to number `offset` (plain framings, or `ackMode: OnReceipt`).
    /// Receipts within `spread` of each other count as of the last of them.
    pub fn received(&mut self, offset: u64, now: Instant, spread: Duration) {
        for stream in self.table.values_mut() {
            let (records, bytes) = stream.flight.received(offset, now, spread);
            self.in_flight.0 -= records;
            self.in_flight.1 -= bytes;
            self.settling += records;
        }
    }

    /// What was received at `before` or earlier counts as acknowledged. Returns the number of records.
    pub fn settle(&mut self, before: Instant) -> u64 {
        let mut settled = 0;
        for stream in self.table.values_mut() {
            let (records, position) = stream.flight.settle(before);
            settled += records;
            if let Some(position) = position {
                acknowledged(stream, position);
            }
        }
        self.settling -= settled;
        settled
    }

    /// Plain framings: a stream that ends has ended once everything sent counts as acknowledged. The ids that did.
    pub fn settled_ends(&self) -> Vec<StreamId> {
        let ends = self.table.values().filter(|stream| stream.phase == Phase::Ending);
        ends.filter(|stream| stream.flight.is_empty()).map(|stream| stream.id).collect()
    }

    /// The system has no more records of the stream.
    pub fn exhausted(&mut self, key: StreamKey) {
        if let Some(stream) = self.table.get_mut(&key)
            && stream.fate == Fate::Reading
        {
            stream.fate = Fate::Exhausted;
        }
    }

    /// The system wants the stream back by `deadline`.
    pub fn revoked(&mut self, key: StreamKey, deadline: Instant) {
        if let Some(stream) = self.table.get_mut(&key)
            && stream.fate != Fate::Lost
        {
            stream.fate = Fate::Revoked { deadline };
        }
    }

    /// The system took the stream back.
    pub fn lost(&mut self, key: StreamKey) {
        if let Some(stream) = self.table.get_mut(&key) {
            stream.fate = Fate::Lost;
        }
    }

    /// The stream's end is on its way.
    pub fn ending(&mut self, key: StreamKey) {
        if let Some(stream) = self.table.get_mut(&key) {
            stream.phase = Phase::Ending;
        }
    }

    /// Wallaroo acknowledged the stream's end, and with it everything sent.
    pub fn ended(&mut self, id: StreamId, position: Option<Position>) {
        if let Some(position) = position {
            self.acknowledge(id, position);
        }
        let Some(key) = self.session.remove(&id) else { return };
        if let Some(stream) = self.table.get_mut(&key) {
            stream.phase = Phase::Leaving;
        }
    }

    /// The session is gone: nothing unacknowledged counts as received. Returns the records that were outstanding.
    pub fn session_lost(&mut self) -> u64 {
        let outstanding = self.outstanding();
        self.session.clear();
        self.in_flight = (0, 0);
        self.settling = 0;
        for stream in self.table.values_mut() {
            stream.flight = Flight::default();
            stream.phase = match stream.phase {
                Phase::Leaving => Phase::Leaving,
                Phase::Barred => Phase::Barred,
                Phase::Closed | Phase::Opening | Phase::Resuming(_) | Phase::Open | Phase::Ending => {
                    // What was sent stays counted in `floor`, so that nothing dropped behind it is committed.
                    stream.floor = stream.floor.max(stream.sent);
                    stream.passed = None;
                    stream.sent = None;
                    Phase::Closed
                }
            };
        }
        outstanding
    }

    /// Positions that the system may be told, and was not yet.
    pub fn commits(&self) -> Vec<(StreamKey, Position)> {
        let table = self.table.iter();
        table.filter_map(|(key, stream)| Some((*key, stream.uncommitted()?))).collect()
    }

    /// The system was told that these positions are done.
    pub fn committed(&mut self, positions: &[(StreamKey, Position)]) {
        for (key, position) in positions {
            if let Some(stream) = self.table.get_mut(key) {
                stream.committed = stream.committed.max(Some(*position));
            }
        }
    }

    /// The stream was released. Its id stays taken in this session until its end is acknowledged.
    pub fn remove(&mut self, key: StreamKey) -> Option<Stream> {
        let stream = self.table.remove(&key)?;
        let (flight, settling) = stream.flight.total();
        self.in_flight.0 -= flight.0;
        self.in_flight.1 -= flight.1;
        self.settling -= settling;
        if stream.phase != Phase::Barred && self.table.values().all(|other| other.id != stream.id) {
            self.ids.give_back(stream.id);
        }
        if stream.phase == Phase::Leaving && matches!(stream.fate, Fate::Reading | Fate::Exhausted) {
            self.completed += 1;
        }
        Some(stream)
    }
}

fn is_dealt_with(stream: &Stream, position: Position) -> bool {
    !stream.poison.contains(&position) && Some(position) <= stream.dealt_with
}

fn acknowledged(stream: &mut Stream, position: Position) {
    stream.acknowledged = stream.acknowledged.max(Some(position));
    if stream.poison.first().is_some_and(|first| *first <= position) {
        stream.poison = stream.poison.split_off(&position.saturating_add(1));
    }
}
