//! Reading logs back from disk: judging all of them before one is changed, then settling each.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use connector_env::{Env, File};
use tokio::time::Instant;

use super::error::LogError;
use super::record::{Header, Record};
use super::reserve::Reserve;
use super::segment::{Segment, Window};
use super::state::LogState;
use super::{SEGMENT_BYTES, TxnLog, directory};

impl<E: Env> TxnLog<E> {
    /// Every log of a directory by worker, the incarnations in order. A log whose very beginning never became durable is
    /// removed: nothing was ever written to it.
    pub fn recover_all(env: &E, directory: &Path) -> Result<BTreeMap<Bytes, Vec<TxnLog<E>>>, LogError> {
        let mut logs: BTreeMap<Bytes, Vec<TxnLog<E>>> = BTreeMap::new();
        for recovered in Self::read_all(env, directory)? {
            if let Some(log) = recovered.settle(env, directory)? {
                logs.entry(log.worker.clone()).or_default().push(log);
            }
        }
        Ok(logs)
    }

    fn read_all(env: &E, directory: &Path) -> Result<Vec<Recovered<E>>, LogError> {
        // All are judged before one is touched: a refusal changes nothing.
        let found = directory::list(env, directory)?;
        found
            .into_iter()
            .map(|((_, incarnation), segments)| Recovered::read(env, directory, incarnation, segments))
            .collect()
    }
}

/// Bytes in the logs of a directory that were decided or voted for, and are not durable at the target. Changes nothing.
pub fn undelivered<E: Env>(env: &E, directory: &Path) -> Result<u64, LogError> {
    let logs = TxnLog::read_all(env, directory)?;
    Ok(logs.iter().filter_map(|recovered| recovered.log.as_ref()).map(|log| waiting(log.state())).sum())
}

/// Hands over every record of the transactions that are kept because their cluster ended before it decided, in order: worker,
/// incarnation, payload. Changes nothing.
pub fn kept_in_doubt<E: Env>(
    env: &E,
    directory: &Path,
    mut each: impl FnMut(&[u8], u64, &[u8]),
) -> Result<(), LogError> {
    for log in TxnLog::read_all(env, directory)?.iter().filter_map(|recovered| recovered.log.as_ref()) {
        let voted = log.state.pending.as_ref().is_some_and(|pending| pending.vote);
        let (Some(true), true, Some(open_at)) = (log.state.ended, voted, log.open_at) else { continue };
        let Some(last) = log.segments.back() else { continue };
        last.scan(true, |at, record, _| {
            let Record::Data { lengths, mut bytes, .. } = *record else { return Ok(()) };
            for length in lengths.iter().take_while(|_| at >= open_at) {
                let (payload, rest) = bytes.split_at(length); // the sum was checked
                bytes = rest;
                each(&log.worker, log.incarnation, payload);
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn waiting(state: &LogState) -> u64 {
    let voted = state.pending.as_ref().filter(|pending| pending.vote);
    state.undelivered() + voted.map_or(0, |pending| pending.end - pending.start)
}

/// A log as it was found on disk, not yet changed.
struct Recovered<E: Env> {
    log: Option<TxnLog<E>>,
    /// How much of the last segment is sound.
    sound: u64,
    /// A segment whose creation never became durable.
    leftover: Option<PathBuf>,
}

impl<E: Env> Recovered<E> {
    fn read(
        env: &E,
        directory: &Path,
        incarnation: u64,
        files: Vec<(u64, PathBuf)>,
    ) -> Result<Recovered<E>, LogError> {
        let count = files.len();
        let mut log = TxnLog {
            env: env.clone(),
            directory: directory.to_owned(),
            worker: Bytes::new(),
            incarnation,
            segments: VecDeque::new(),
            reserve: Reserve::at(PathBuf::new()),
            state: LogState::default(),
            open_at: None,
            buffer: BytesMut::new(),
            window: Window::default(),
            segment_bytes: SEGMENT_BYTES,
        };
        let mut sound = 0;
        for (index, (number, path)) in files.into_iter().enumerate() {
            let last = index + 1 == count;
            let file = env.open(&path).map_err(LogError::io(&path))?;
            let length = file.len().map_err(LogError::io(&path))?;
            let mut segment = Segment::new(path, number, file, length);
            if let Some(before) = log.segments.back()
                && number != before.number + 1
            {
                let what = format!("segment {} is missing before this one", before.number + 1);
                return Err(segment.corrupt(0, what));
            }
            let mut first = None;
            let TxnLog { state, open_at, worker, segments, .. } = &mut log;
            let end = segment.scan(last, |at, record, _| {
                if at > 0 {
                    let settled = state.is_settled();
                    state.apply(record)?;
                    if state.is_settled() {
                        *open_at = None;
                    } else if settled {
                        *open_at = Some(at);
                    }
                    return Ok(());
                }
                let Record::Header(header) = record else { return Err("not a transaction log".to_owned()) };
                if header.segment != number || header.incarnation != incarnation {
                    let Header { segment, incarnation, .. } = header;
                    return Err(format!(
                        "it is segment {segment} of incarnation {incarnation} under another name"
                    ));
                }
                if segments.is_empty() {
                    *worker = Bytes::copy_from_slice(header.worker);
                } else if !state.follows(header) || worker != header.worker {
                    return Err("it does not continue the segment before it".to_owned());
                }
                *state = LogState::at(header);
                *open_at = None;
                first = Some((header.committed, header.records));
                Ok(())
            })?;
            let Some((committed, records)) = first else {
                // The creation of the last segment never became durable; the one before it was complete by then.
                if !last {
                    return Err(segment.corrupt(0, "the header is missing"));
                }
                let sound = log.segments.back().map_or(0, |segment| segment.length);
                let log = (!log.segments.is_empty()).then_some(log);
                return Ok(Recovered { log, sound, leftover: Some(segment.path) });
            };
            segment.first = committed;
            segment.first_records = records;
            if let Some(before) = log.segments.back_mut() {
                before.last = committed;
            }
            log.segments.push_back(segment);
            sound = end;
        }
        // What was removed was durable at the target, also when the mark that said so was lost.
        if let Some(front) = log.segments.front()
            && log.state.delivered < front.first
        {
            log.state.delivered = front.first;
            log.state.delivered_records = front.first_records;
        }
        Ok(Recovered { log: (!log.segments.is_empty()).then_some(log), sound, leftover: None })
    }

    /// Brings the disk to what was recovered: cuts a write that never became durable, and output without a vote.
    fn settle(self, env: &E, directory: &Path) -> Result<Option<TxnLog<E>>, LogError> {
        if let Some(leftover) = self.leftover {
            env.remove(&leftover).map_err(LogError::io(&leftover))?;
            env.sync_dir(directory).map_err(LogError::sync(directory))?;
        }
        let Some(mut log) = self.log else { return Ok(None) };
        let active = log.active()?;
        if self.sound < active.length {
            tracing::warn!(
                file = %active.path.display(),
                from = self.sound,
                bytes = active.length - self.sound,
                "a write that never became durable is cut off"
            );
            active.cut(self.sound)?;
        }
        // What an earlier process wrote without a sync may be in memory only.
        active.sync()?;
        log.discard_staged()?;
        log.reserve = Reserve::at(directory::reserve_path(directory, &log.worker, log.incarnation));
        log.reserve.fill(env)?;
        log.note_durable(Instant::now());
        Ok(Some(log))
    }
}
