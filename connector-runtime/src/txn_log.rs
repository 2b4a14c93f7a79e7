//! The transaction log: what makes a vote a promise, and a sink's target free to be slow, away, or to go back.
//!
//! One log for each incarnation of a worker's output: segments of checksummed records that are only appended to.
//!
//! | Call | On disk |
//! |---|---|
//! | [`TxnLog::append`] | staged output; not synced |
//! | [`TxnLog::prepare`] | the vote; synced with all before it, so that the answer may be sent |
//! | [`TxnLog::decide`] | the decision; synced, so that delivery may begin. An abort cuts the output off |
//! | [`TxnLog::mark`] | how far the target holds everything durably; not synced: delivery from an older mark repeats |
//! | [`TxnLog::hold`] | a refused record that nothing may pass over; synced |
//! | [`TxnLog::end`] | the incarnation is over; synced |
//! | [`TxnLog::forget`] | removes segments that are durable at the target and out of retention |
//!
//! On a full volume a log still votes, decides, and begins a next segment, with room that it kept back: what is decided can be delivered, and
//! what is delivered can be forgotten.
//!
//! A transaction never crosses segments: a new one begins only where nothing is undecided. Recovery reads everything,
//! cuts a write that never became durable, discards output without a vote, and refuses a log that lost what was durable:
//! it names the file and the offset and changes nothing.

mod directory;
mod error;
mod read;
mod record;
mod recover;
mod reserve;
mod segment;
mod state;

/// Records and what they do to a log's state, without a disk: for models that explore every state, and for who judges a file.
pub mod decisions {
    pub use super::record::{Header, Lengths, Parsed, Record, parse};
    pub use super::state::LogState;
}

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use connector_env::Env;
use tokio::time::{Duration, Instant};

pub use self::directory::directory;
pub use self::error::LogError;
pub use self::read::{Cursor, Limits};
use self::record::{Header, Record};
pub use self::recover::{kept_in_doubt, undelivered};
use self::reserve::Reserve;
use self::segment::{Segment, Window};
pub use self::state::LogState;

/// Length at which a segment is closed: small enough to give space back soon, large enough to make few files.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// Output bytes of one data record, unless a single message is longer: what a reader has in memory at a time.
const RECORD_BYTES: usize = 256 * 1024;

/// How long delivered output is kept, should the target go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retain {
    /// Time since it was durable at the target.
    pub time: Duration,
    /// Bytes of delivered segments; more than that is forgotten earlier.
    pub bytes: u64,
}

impl Default for Retain {
    fn default() -> Retain {
        Retain { time: Duration::from_secs(30), bytes: 64 * 1024 * 1024 }
    }
}

/// What becomes of a voted, undecided transaction when its incarnation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InDoubt {
    /// It is decided to commit.
    Commit,
    /// It is kept as it is.
    Keep,
    /// It is cut off.
    Discard,
}

/// The log of one incarnation of a worker's output.
#[derive(Debug)]
pub struct TxnLog<E: Env> {
    env: E,
    directory: PathBuf,
    worker: Bytes,
    incarnation: u64,
    /// In order; the last one is written to.
    segments: VecDeque<Segment<E::File>>,
    reserve: Reserve<E::File>,
    state: LogState,
    /// Where in the last segment begins what an abort cuts off.
    open_at: Option<u64>,
    buffer: BytesMut,
    window: Window,
    segment_bytes: u64,
}

impl<E: Env> TxnLog<E> {
    /// Begins a log. Durable on return; without room nothing is left behind.
    pub fn create(env: &E, directory: &Path, worker: Bytes, incarnation: u64) -> Result<TxnLog<E>, LogError> {
        env.create_dir_all(directory).map_err(LogError::io(directory))?;
        if let Some(parent) = directory.parent() {
            env.sync_dir(parent).map_err(LogError::sync(parent))?;
        }
        let reserve = Reserve::at(directory::reserve_path(directory, &worker, incarnation));
        let mut log = TxnLog {
            env: env.clone(),
            directory: directory.to_owned(),
            worker,
            incarnation,
            segments: VecDeque::new(),
            reserve,
            state: LogState::default(),
            open_at: None,
            buffer: BytesMut::new(),
            window: Window::default(),
            segment_bytes: SEGMENT_BYTES,
        };
        log.add_segment(1)?;
        log.reserve.fill(env)?;
        Ok(log)
    }

    /// The worker's name.
    pub fn worker(&self) -> &Bytes {
        &self.worker
    }

    /// The incarnation's number; later ones have greater numbers.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// What the log says.
    pub fn state(&self) -> &LogState {
        &self.state
    }

    /// The smallest position from which delivery can be repeated.
    pub fn retained_from(&self) -> u64 {
        self.segments.front().map_or(0, |segment| segment.first)
    }

    /// True if nothing was ever received, decided or voted for.
    pub fn is_pristine(&self) -> bool {
        self.state == LogState::default()
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// Bytes that the last segment keeps of what came before the undecided output, and that nothing frees before that is decided.
    pub fn kept_before_open(&self) -> u64 {
        self.open_at.unwrap_or(0)
    }

    /// True if [`TxnLog::forget`] will free space with time.
    pub fn has_closed_segments(&self) -> bool {
        self.segments.len() > 1
    }

    /// Appends messages, the first at `offset`; they continue what is there, or with `decided` leave a gap at most. Not
    /// synced. Without room nothing is appended; what is decided in the last segment can then be forgotten with it.
    pub fn append<'a>(
        &mut self,
        offset: u64,
        payloads: impl Iterator<Item = &'a [u8]> + Clone,
        decided: bool,
    ) -> Result<(), LogError> {
        self.rotate_if_due()?;
        let settled = self.state.is_settled();
        let synced = self.active()?.synced();
        self.buffer.clear();
        let (mut at, mut count) = (offset, 0);
        let mut rest = payloads.peekable();
        loop {
            let (mut bytes, mut messages) = (0, 0);
            let mut ahead = rest.clone();
            while let Some(payload) = ahead.peek() {
                if messages > 0 && bytes + payload.len() > RECORD_BYTES {
                    break;
                }
                bytes += payload.len();
                messages += 1;
                ahead.next();
            }
            record::put_data(at, decided, rest.clone().take(messages), synced, &mut self.buffer);
            at += bytes as u64;
            count += messages as u64;
            rest = ahead;
            if rest.peek().is_none() {
                break;
            }
        }
        // Judged before it is written: a log that cannot be read again is worse than an error.
        let mut state = self.state.clone();
        let active = self.active()?;
        let begins = active.length;
        state
            .output(offset, at - offset, count, decided)
            .map_err(|what| LogError::Misuse { path: active.path.clone(), what })?;
        if let Err(error) = Self::append_to(&mut self.segments, &self.buffer) {
            if settled && matches!(error, LogError::NoSpace { .. }) && self.has_decided_output()? {
                self.rotate()?;
            }
            return Err(error);
        }
        if settled && !decided && !state.is_settled() {
            self.open_at = Some(begins);
        }
        self.state = state;
        Ok(())
    }

    /// Records a vote; durable on return, together with everything before it.
    pub fn prepare(&mut self, transaction: &[u8], vote: bool, start: u64, end: u64) -> Result<(), LogError> {
        self.rotate_if_due()?;
        let begins = self.active()?.length;
        self.write(&Record::Prepare { transaction, vote, start, end })?;
        self.open_at.get_or_insert(begins);
        self.sync()
    }

    /// Records the decision on the pending transaction; durable on return. A commit of nothing is not synced: if it is lost, the
    /// worker decides again.
    pub fn decide(&mut self, commit: bool) -> Result<(), LogError> {
        let path = self.active()?.path.clone();
        let Some(pending) = self.state.pending.clone() else {
            return Err(LogError::Misuse { path, what: "a decision without a vote" });
        };
        if commit {
            self.write(&Record::Commit { transaction: &pending.transaction })?;
            self.open_at = None;
            return if pending.end > pending.start { self.sync() } else { Ok(()) };
        }
        self.cut_open()?;
        let start = self.state.committed;
        self.write_if_room(&Record::RolledBack { transaction: &pending.transaction, start })?;
        self.sync()
    }

    /// Cuts off output that has no vote: the connection that brought it is gone, and it will come again.
    pub fn discard_staged(&mut self) -> Result<(), LogError> {
        if self.state.pending.is_some() || self.state.is_settled() {
            return Ok(());
        }
        self.cut_open()?;
        self.sync()
    }

    /// Everything up to `position`, in number `records`, is durable at the target. Not synced. Without room the mark on disk stays
    /// older, so that more is repeated after a crash.
    pub fn mark(&mut self, position: u64, records: u64) -> Result<(), LogError> {
        let mark = Record::Delivered { position, records };
        if !self.write_if_room(&mark)? {
            let path = self.active()?.path.clone();
            self.state.apply(&mark).map_err(|what| LogError::Misuse { path, what })?;
        }
        self.note_durable(Instant::now());
        Ok(())
    }

    /// The target refuses the record at `position`: durable on return.
    pub fn hold(&mut self, position: u64) -> Result<(), LogError> {
        self.write(&Record::Held { position })?;
        self.sync()
    }

    /// Ends the incarnation; durable on return. Returns the transaction that was in doubt.
    pub fn end(&mut self, in_doubt: InDoubt) -> Result<Option<Bytes>, LogError> {
        let pending = self.state.pending.clone();
        let doubtful = pending.as_ref().is_some_and(|pending| pending.vote);
        match (doubtful, in_doubt) {
            (true, InDoubt::Commit) => self.decide(true)?,
            (true, InDoubt::Discard) => self.decide(false)?,
            (true, InDoubt::Keep) => {}
            (false, _) if pending.is_some() => self.decide(false)?,
            (false, _) => self.discard_staged()?,
        }
        self.write(&Record::Ended { in_doubt: doubtful && in_doubt == InDoubt::Keep })?;
        self.sync()?;
        Ok(pending.filter(|pending| pending.vote).map(|pending| pending.transaction))
    }

    /// Makes everything durable.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.active()?.sync()
    }

    /// Removes segments whose output is durable at the target and out of retention. Returns the bytes freed.
    pub fn forget(&mut self, now: Instant, retain: Retain) -> Result<u64, LogError> {
        self.note_durable(now);
        let closed = self.segments.len().saturating_sub(1);
        let mut retained: u64 = self
            .segments
            .iter()
            .take(closed)
            .filter(|segment| segment.durable_since.is_some())
            .map(|segment| segment.length)
            .sum();
        let mut freed = 0;
        while self.segments.len() > 1 {
            let Some(front) = self.segments.front() else { break };
            let Some(since) = front.durable_since else { break };
            if now.saturating_duration_since(since) < retain.time && retained <= retain.bytes {
                break;
            }
            let length = front.length;
            self.remove_front()?;
            retained = retained.saturating_sub(length);
            freed += length;
        }
        self.reserve.fill(&self.env)?;
        Ok(freed)
    }

    /// Removes the log. Interrupted, what is left is still a log with the same end.
    pub fn remove(mut self) -> Result<(), LogError> {
        self.reserve.remove(&self.env)?;
        while !self.segments.is_empty() {
            self.remove_front()?;
        }
        Ok(())
    }

    fn remove_front(&mut self) -> Result<(), LogError> {
        if let Some(front) = self.segments.pop_front() {
            self.env.remove(&front.path).map_err(LogError::io(&front.path))?;
            // One at a time, so that after a power loss no segment is missing between others.
            self.env.sync_dir(&self.directory).map_err(LogError::sync(&self.directory))?;
        }
        Ok(())
    }

    fn note_durable(&mut self, now: Instant) {
        let closed = self.segments.len().saturating_sub(1);
        let delivered = self.state.delivered;
        for segment in self.segments.iter_mut().take(closed) {
            if segment.last <= delivered {
                segment.durable_since.get_or_insert(now);
            } else {
                segment.durable_since = None;
            }
        }
    }

    fn active(&mut self) -> Result<&mut Segment<E::File>, LogError> {
        Self::last(&mut self.segments)
    }

    fn last(segments: &mut VecDeque<Segment<E::File>>) -> Result<&mut Segment<E::File>, LogError> {
        segments.back_mut().ok_or(LogError::Misuse { path: PathBuf::new(), what: "a removed log is used" })
    }

    fn append_to(segments: &mut VecDeque<Segment<E::File>>, bytes: &[u8]) -> Result<(), LogError> {
        Self::last(segments)?.append(bytes)
    }

    /// Appends one record and applies it, at need with the room that was kept back.
    fn write(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        loop {
            match self.try_write(record) {
                Err(LogError::NoSpace { .. }) if self.reserve.give_up()? => {}
                other => return other,
            }
        }
    }

    fn try_write(&mut self, record: &Record<'_>) -> Result<(), LogError> {
        let segment = Self::last(&mut self.segments)?;
        let mut state = self.state.clone();
        state.apply(record).map_err(|what| LogError::Misuse { path: segment.path.clone(), what })?;
        self.buffer.clear();
        record::put(record, segment.synced(), &mut self.buffer);
        segment.append(&self.buffer)?;
        self.state = state;
        Ok(())
    }

    /// Appends and applies a record that nothing depends on; false without room.
    fn write_if_room(&mut self, record: &Record<'_>) -> Result<bool, LogError> {
        match self.try_write(record) {
            Ok(()) => Ok(true),
            Err(LogError::NoSpace { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Cuts the undecided end off the last segment, and writes again what was written among it.
    fn cut_open(&mut self) -> Result<(), LogError> {
        if let Some(open_at) = self.open_at.take() {
            self.active()?.cut(open_at)?;
            self.window.clear();
        }
        self.state.discard();
        let (position, records) = (self.state.delivered, self.state.delivered_records);
        let held = self.state.held;
        if position > 0 {
            self.write_if_room(&Record::Delivered { position, records })?;
        }
        if let Some(position) = held {
            self.write_if_room(&Record::Held { position })?;
        }
        Ok(())
    }

    fn rotate_if_due(&mut self) -> Result<(), LogError> {
        let full = self.active()?.length >= self.segment_bytes;
        let short = self.reserve.is_short() && self.has_decided_output()?;
        if self.state.is_settled() && (full || short) { self.rotate() } else { Ok(()) }
    }

    /// True if the last segment holds what can be forgotten once it is closed.
    fn has_decided_output(&mut self) -> Result<bool, LogError> {
        let committed = self.state.committed;
        Ok(self.active()?.first < committed)
    }

    /// Begins a next segment. Nothing may be undecided.
    fn rotate(&mut self) -> Result<(), LogError> {
        let active = self.active()?;
        // Only the last segment may end in a write that was lost.
        active.seal()?;
        let next = active.number + 1;
        loop {
            match self.add_segment(next) {
                Err(LogError::NoSpace { .. }) if self.reserve.give_up()? => {}
                // The old one goes on for as long as it can.
                Err(LogError::NoSpace { .. }) => return Ok(()),
                other => return other,
            }
        }
    }

    fn add_segment(&mut self, number: u64) -> Result<(), LogError> {
        let path = directory::segment_path(&self.directory, &self.worker, self.incarnation, number);
        let state = &self.state;
        let header = Header {
            incarnation: self.incarnation,
            segment: number,
            committed: state.committed,
            delivered: state.delivered,
            records: state.committed_records,
            delivered_records: state.delivered_records,
            held: state.held.unwrap_or(0),
            worker: &self.worker,
        };
        self.buffer.clear();
        record::put(&Record::Header(header), 0, &mut self.buffer);
        let mut segment = segment::create(&self.env, &self.directory, path, number, &self.buffer)?;
        segment.first = state.committed;
        segment.first_records = state.committed_records;
        if let Some(closed) = self.segments.back_mut() {
            closed.last = state.committed;
        }
        self.segments.push_back(segment);
        self.open_at = None;
        self.note_durable(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
