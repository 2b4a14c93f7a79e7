//! Messages of two-phase commit (§2.3), which travel as the payload of a MESSAGE on stream 0.

use bytes::{BufMut, Bytes, BytesMut};

use crate::message::{self, DecodeError, put_data};
use crate::wire::{EncodeError, Fields, StreamId, check_str16, put_str16};

/// Stream of these messages.
pub const CONTROL_STREAM: StreamId = StreamId(0);

/// Stream of a worker's output.
pub const DATA_STREAM: StreamId = StreamId(1);

/// A part of a transaction: bytes `start..end` of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// The stream; 1 in practice.
    pub stream: StreamId,
    /// Offset of the first byte.
    pub start: u64,
    /// Offset behind the last byte.
    pub end: u64,
}

/// One inner message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TwoPhase {
    /// The worker asks which transactions are undecided.
    ListUncommitted {
        /// Number of the request.
        rtag: u64,
    },
    /// The sink's answer.
    ReplyUncommitted {
        /// Number of the request.
        rtag: u64,
        /// Undecided transactions.
        transactions: Vec<Bytes>,
    },
    /// The worker asks for a vote.
    Phase1 {
        /// The transaction.
        transaction: Bytes,
        /// What it covers.
        ranges: Vec<Range>,
    },
    /// The sink's vote.
    Reply {
        /// The transaction.
        transaction: Bytes,
        /// The vote.
        commit: bool,
    },
    /// The worker's decision; it has no answer.
    Phase2 {
        /// The transaction.
        transaction: Bytes,
        /// The decision.
        commit: bool,
    },
    /// Workers that left the cluster; it has no answer.
    WorkersLeft {
        /// Number of the request.
        rtag: u64,
        /// Names.
        workers: Vec<Bytes>,
    },
}

/// Bytes of one entry of a PHASE1 list.
const RANGE: usize = 24;

impl TwoPhase {
    /// Reads the payload of a MESSAGE on stream 0. Truth values other than 0 and 1 are refused (§7.14).
    pub fn decode(payload: Bytes) -> Result<TwoPhase, DecodeError> {
        let mut fields = Fields(payload);
        Ok(match fields.u8("tag")? {
            201 => TwoPhase::ListUncommitted { rtag: fields.u64("rtag")? },
            202 => TwoPhase::ReplyUncommitted {
                rtag: fields.u64("rtag")?,
                transactions: message::names(&mut fields, "txn_id")?,
            },
            203 => {
                let transaction = fields.str16("txn_id")?;
                let count = fields.u32("count")? as usize;
                if count > fields.0.len() / RANGE {
                    return Err(DecodeError::Truncated("where_list"));
                }
                let range = |fields: &mut Fields| {
                    Ok(Range {
                        stream: StreamId(fields.u64("stream_id")?),
                        start: fields.u64("start_por")?,
                        end: fields.u64("end_por")?,
                    })
                };
                let ranges = (0..count).map(|_| range(&mut fields)).collect::<Result<_, DecodeError>>()?;
                TwoPhase::Phase1 { transaction, ranges }
            }
            204 => TwoPhase::Reply {
                transaction: fields.str16("txn_id")?,
                commit: fields.strict_bool("commit")?,
            },
            205 => TwoPhase::Phase2 {
                transaction: fields.str16("txn_id")?,
                commit: fields.strict_bool("commit")?,
            },
            206 => {
                let (rtag, workers) = message::workers_left(&mut fields)?;
                TwoPhase::WorkersLeft { rtag, workers }
            }
            unknown => return Err(DecodeError::UnknownTag(unknown)),
        })
    }

    /// Length of the payload.
    pub fn payload_len(&self) -> Result<usize, EncodeError> {
        Ok(1 + match self {
            TwoPhase::ListUncommitted { .. } => 8,
            TwoPhase::ReplyUncommitted { transactions, .. } => 12 + message::names_len(transactions)?,
            TwoPhase::Phase1 { transaction, ranges } => {
                check_str16(transaction, "txn_id")? + 4 + RANGE * ranges.len()
            }
            TwoPhase::Reply { transaction, .. } | TwoPhase::Phase2 { transaction, .. } => {
                check_str16(transaction, "txn_id")? + 1
            }
            TwoPhase::WorkersLeft { workers, .. } => 12 + message::names_len(workers)?,
        })
    }

    /// Appends the payload. On error nothing was appended.
    pub fn encode_payload(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.reserve(self.payload_len()?);
        match self {
            TwoPhase::ListUncommitted { rtag } => {
                out.put_u8(201);
                out.put_u64(*rtag);
            }
            TwoPhase::ReplyUncommitted { rtag, transactions } => {
                out.put_u8(202);
                out.put_u64(*rtag);
                message::put_names(out, transactions);
            }
            TwoPhase::Phase1 { transaction, ranges } => {
                out.put_u8(203);
                put_str16(out, transaction);
                out.put_u32(ranges.len() as u32);
                for range in ranges {
                    out.put_u64(range.stream.0);
                    out.put_u64(range.start);
                    out.put_u64(range.end);
                }
            }
            TwoPhase::Reply { transaction, commit } => {
                out.put_u8(204);
                put_str16(out, transaction);
                out.put_u8(u8::from(*commit));
            }
            TwoPhase::Phase2 { transaction, commit } => {
                out.put_u8(205);
                put_str16(out, transaction);
                out.put_u8(u8::from(*commit));
            }
            TwoPhase::WorkersLeft { rtag, workers } => {
                out.put_u8(206);
                message::put_workers_left(out, *rtag, workers);
            }
        }
        Ok(())
    }

    /// Appends the whole frame: this message as the payload of a MESSAGE. On error nothing was appended.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        let mut payload = BytesMut::with_capacity(self.payload_len()?);
        self.encode_payload(&mut payload)?;
        if payload.len() > u32::MAX as usize - message::MESSAGE_OVERHEAD {
            return Err(EncodeError::FrameTooLong { length: payload.len() });
        }
        put_data(out, CONTROL_STREAM, 0, 0, &[], &payload);
        Ok(())
    }

    /// Name of the message, as in the specification.
    pub fn name(&self) -> &'static str {
        match self {
            TwoPhase::ListUncommitted { .. } => "LIST_UNCOMMITTED",
            TwoPhase::ReplyUncommitted { .. } => "REPLY_UNCOMMITTED",
            TwoPhase::Phase1 { .. } => "PHASE1",
            TwoPhase::Reply { .. } => "REPLY",
            TwoPhase::Phase2 { .. } => "PHASE2",
            TwoPhase::WorkersLeft { .. } => "WORKERS_LEFT",
        }
    }
}
