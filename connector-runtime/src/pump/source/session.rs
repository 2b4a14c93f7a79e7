//! One session with a worker, in either kind of protocol.

use bytes::{Bytes, BytesMut};
use wallaroo_protocol::framing::{PlainError, PlainRecord};
use wallaroo_protocol::message::MESSAGE_OVERHEAD;
use wallaroo_protocol::{
    Millis, OutRecord, SendError, SourceClient, SourceClientError, SourceClientEvent, StreamError, StreamId,
};

use crate::pump::source_plain::PlainSession;
use crate::record::{Batch, Position};
use crate::source::BadRecord;

/// Bytes of a MESSAGE frame beside key and payload.
const FRAME_OVERHEAD: usize = wallaroo_protocol::frame::PREFIX + MESSAGE_OVERHEAD;

/// A session.
#[derive(Debug)]
pub(super) enum Session {
    Connector(Box<SourceClient>),
    Plain(PlainSession),
}

/// What became of records that were offered.
#[derive(Debug)]
pub(super) struct Sent {
    /// Records taken from the front.
    pub(super) records: usize,
    /// Their payload and key bytes.
    pub(super) bytes: u64,
    /// Why the record behind them was not taken, where that is its own fault.
    pub(super) refused: Option<Refused>,
}

/// Why a record was not taken.
#[derive(Debug)]
pub(super) enum Refused {
    Bad(BadRecord),
    /// It does not come after this one.
    WentBack {
        last: Position,
    },
    /// Its position cannot be carried.
    ReservedPosition,
}

impl Session {
    pub(super) fn input(&mut self) -> &mut BytesMut {
        match self {
            Session::Connector(client) => client.input(),
            Session::Plain(plain) => plain.input(),
        }
    }

    pub(super) fn handle_input(&mut self, now: Millis) -> Result<(), SourceClientError> {
        match self {
            Session::Connector(client) => client.handle_input(now),
            Session::Plain(_) => Ok(()),
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<SourceClientEvent> {
        match self {
            Session::Connector(client) => client.poll_event(),
            Session::Plain(plain) => plain.poll_event(),
        }
    }

    pub(super) fn poll_output(&mut self) -> Option<Bytes> {
        match self {
            Session::Connector(client) => client.poll_output(),
            Session::Plain(plain) => plain.poll_output(),
        }
    }

    pub(super) fn output_len(&self) -> usize {
        match self {
            Session::Connector(client) => client.output_len(),
            Session::Plain(plain) => plain.output_len(),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        match self {
            Session::Connector(client) => client.poll_timeout(),
            Session::Plain(_) => None,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Millis) -> Result<(), SourceClientError> {
        match self {
            Session::Connector(client) => client.handle_timeout(now),
            Session::Plain(_) => Ok(()),
        }
    }

    /// Credits left; `None` without credits in the protocol.
    pub(super) fn credits(&self) -> Option<u64> {
        match self {
            Session::Connector(client) => Some(client.credits()),
            Session::Plain(_) => None,
        }
    }

    pub(super) fn open(
        &mut self,
        stream: StreamId,
        name: &str,
        position: Option<Position>,
        now: Millis,
    ) -> Result<(), StreamError> {
        match self {
            Session::Connector(client) => client.open(stream, name.as_bytes(), position, now),
            Session::Plain(plain) => {
                plain.open(stream);
                Ok(())
            }
        }
    }

    pub(super) fn end(&mut self, stream: StreamId, now: Millis) -> Result<(), StreamError> {
        match self {
            Session::Connector(client) => client.end(stream, now),
            Session::Plain(_) => Ok(()),
        }
    }

    /// Encodes records number `from` and up, `most` at most, as far as credits reach.
    pub(super) fn send(&mut self, stream: StreamId, batch: &Batch, from: usize, most: usize) -> Sent {
        let before = self.output_len();
        let records = batch.iter_from(from).take(most);
        let (taken, overhead, refused) = match self {
            Session::Connector(client) => {
                let records = records.map(|record| OutRecord {
                    id: record.position,
                    time: record.time,
                    key: record.key,
                    payload: record.payload,
                });
                match client.send(stream, records) {
                    Ok(taken) => (taken, FRAME_OVERHEAD, None),
                    Err(error) => (error.index().unwrap_or(0), FRAME_OVERHEAD, refused_by_client(&error)),
                }
            }
            Session::Plain(plain) => {
                let overhead = plain.overhead();
                let records =
                    records.map(|record| PlainRecord { time: record.time, payload: record.payload });
                match plain.send(records) {
                    Ok(taken) => (taken, overhead, None),
                    Err(error) => (error.index().unwrap_or(0), overhead, refused_by_framing(&error)),
                }
            }
        };
        let grown = self.output_len() - before;
        Sent { records: taken, bytes: (grown - taken * overhead) as u64, refused }
    }
}

fn refused_by_client(error: &SendError) -> Option<Refused> {
    Some(match *error {
        SendError::NotOpen { .. } => return None,
        SendError::NotIncreasing { last, .. } => Refused::WentBack { last },
        SendError::ReservedId { .. } => Refused::ReservedPosition,
        SendError::TooLarge { size, limit, .. } => {
            let overhead = MESSAGE_OVERHEAD;
            let (bytes, limit) =
                (size.saturating_sub(overhead) as u64, limit.saturating_sub(overhead) as u64);
            Refused::Bad(BadRecord::TooLarge { bytes, limit })
        }
        SendError::KeyTooLong { length, .. } => {
            Refused::Bad(BadRecord::TooLarge { bytes: length as u64, limit: u64::from(u16::MAX) })
        }
        SendError::Empty { .. } => Refused::Bad(BadRecord::Empty),
    })
}

fn refused_by_framing(error: &PlainError) -> Option<Refused> {
    Some(match *error {
        PlainError::Empty { .. } => Refused::Bad(BadRecord::Empty),
        PlainError::TooLarge { size, limit, .. } => {
            Refused::Bad(BadRecord::TooLarge { bytes: size as u64, limit })
        }
        // No manifest can ask for a framing that is for reading only.
        PlainError::ReadOnly => return None,
    })
}
