//! Records of a transaction log: encoding, and reading with checksums.
//!
//! ```text
//! u32 length   bytes of the body
//! u32 crc32c   of the length and the body
//! body: u8 kind | u64 synced | fields, little-endian
//! ```
//!
//! `synced` is how much of the file was known to be on stable storage when the record was written. It is the evidence
//! by which a reader tells a write that never became durable (its end may be anything) from damage to what was.

use bytes::{BufMut, BytesMut};

/// Bytes before the body.
pub(super) const HEAD: usize = 8;

/// Kind and `synced`.
const BODY_HEAD: usize = 9;

/// Bytes that [`summary`] needs.
pub(super) const SUMMARY: usize = HEAD + BODY_HEAD;

/// Longest body: one message of the longest frame that a session accepts, and room for the fields.
pub(super) const MAX_BODY: usize = 17 * 1024 * 1024;

/// Version of this format.
const VERSION: u8 = 1;

/// First bytes of the first record's fields, so that a foreign file is recognised.
const MAGIC: [u8; 4] = *b"wtxl";

/// What a segment starts with: the state at its beginning, so that earlier segments can be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    pub(super) incarnation: u64,
    pub(super) segment: u64,
    pub(super) committed: u64,
    pub(super) delivered: u64,
    pub(super) records: u64,
    pub(super) delivered_records: u64,
    /// 0 for none.
    pub(super) held: u64,
    pub(super) worker: &'a [u8],
}

/// One record; its bytes are borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// The first record of a segment, and no other.
    Header(Header<'a>),
    /// Output.
    Data {
        /// Offset of its first byte.
        offset: u64,
        /// Decided at once: there are no checkpoints.
        decided: bool,
        /// Lengths of its messages.
        lengths: Lengths<'a>,
        /// The messages, one behind the other.
        bytes: &'a [u8],
    },
    /// A vote.
    Prepare {
        /// What it is on.
        transaction: &'a [u8],
        /// The vote.
        vote: bool,
        /// Offset of the first byte.
        start: u64,
        /// Offset behind the last byte.
        end: u64,
    },
    /// The decision to commit.
    Commit {
        /// What is decided.
        transaction: &'a [u8],
    },
    /// The decision to abort; what it discards was cut off before.
    RolledBack {
        /// What is decided.
        transaction: &'a [u8],
        /// Offset from which output comes again.
        start: u64,
    },
    /// Everything up to a position is durable at the target.
    Delivered {
        /// Offset behind the last byte.
        position: u64,
        /// Records up to there.
        records: u64,
    },
    /// The target refuses a record, and it may not be passed over.
    Held {
        /// Its position.
        position: u64,
    },
    /// The incarnation is over.
    Ended {
        /// Its undecided transaction is kept for someone to look at.
        in_doubt: bool,
    },
    /// Nothing but its `synced`.
    Synced,
}

/// Lengths of a data record's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths<'a>(&'a [u8]);

impl<'a> Lengths<'a> {
    /// From four bytes a message, little-endian; an incomplete last length is left out.
    pub fn new(bytes: &'a [u8]) -> Lengths<'a> {
        Lengths(&bytes[..bytes.len() - bytes.len() % 4])
    }

    pub(super) fn len(self) -> usize {
        self.0.len() / 4
    }

    /// Each length, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        self.0
            .chunks_exact(4)
            .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }
}

/// What stands at a place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A whole, sound record.
    Record {
        /// Itself.
        record: Record<'a>,
        /// How much of the file was known to be on stable storage when it was written.
        synced: u64,
        /// Its bytes in the file.
        length: usize,
    },
    /// The beginning of a record.
    Incomplete,
    /// Not a record.
    Bad(&'static str),
}

mod kind {
    pub(super) const HEADER: u8 = 1;
    pub(super) const DATA: u8 = 2;
    pub(super) const DECIDED: u8 = 3;
    pub(super) const PREPARE: u8 = 4;
    pub(super) const COMMIT: u8 = 5;
    pub(super) const ROLLED_BACK: u8 = 6;
    pub(super) const DELIVERED: u8 = 7;
    pub(super) const HELD: u8 = 8;
    pub(super) const ENDED: u8 = 9;
    pub(super) const SYNCED: u8 = 10;
}

/// Appends one record. `payloads` of data records: see [`put_data`].
pub(super) fn put(record: &Record<'_>, synced: u64, out: &mut BytesMut) {
    let start = begin(kind_of(record), synced, out);
    match *record {
        Record::Header(header) => {
            out.put_slice(&MAGIC);
            out.put_u8(VERSION);
            for word in [
                header.incarnation,
                header.segment,
                header.committed,
                header.delivered,
                header.records,
                header.delivered_records,
                header.held,
            ] {
                out.put_u64_le(word);
            }
            out.put_slice(header.worker);
        }
        Record::Data { offset, decided: _, lengths, bytes } => {
            out.put_u64_le(offset);
            out.put_u32_le(lengths.len() as u32);
            out.put_slice(lengths.0);
            out.put_slice(bytes);
        }
        Record::Prepare { transaction, vote, start, end } => {
            out.put_u8(u8::from(vote));
            out.put_u64_le(start);
            out.put_u64_le(end);
            out.put_slice(transaction);
        }
        Record::Commit { transaction } => out.put_slice(transaction),
        Record::RolledBack { transaction, start } => {
            out.put_u64_le(start);
            out.put_slice(transaction);
        }
        Record::Delivered { position, records } => {
            out.put_u64_le(position);
            out.put_u64_le(records);
        }
        Record::Held { position } => out.put_u64_le(position),
        Record::Ended { in_doubt } => out.put_u8(u8::from(in_doubt)),
        Record::Synced => {}
    }
    finish(start, out);
}

/// Appends a data record of these messages, whose lengths are known first.
pub(super) fn put_data<'a>(
    offset: u64,
    decided: bool,
    payloads: impl Iterator<Item = &'a [u8]> + Clone,
    synced: u64,
    out: &mut BytesMut,
) {
    let start = begin(if decided { kind::DECIDED } else { kind::DATA }, synced, out);
    out.put_u64_le(offset);
    let count = out.len();
    out.put_u32_le(0);
    let mut messages = 0_u32;
    for payload in payloads.clone() {
        out.put_u32_le(payload.len() as u32);
        messages += 1;
    }
    out[count..count + 4].copy_from_slice(&messages.to_le_bytes());
    for payload in payloads {
        out.put_slice(payload);
    }
    finish(start, out);
}

fn kind_of(record: &Record<'_>) -> u8 {
    match record {
        Record::Header(_) => kind::HEADER,
        Record::Data { decided: false, .. } => kind::DATA,
        Record::Data { decided: true, .. } => kind::DECIDED,
        Record::Prepare { .. } => kind::PREPARE,
        Record::Commit { .. } => kind::COMMIT,
        Record::RolledBack { .. } => kind::ROLLED_BACK,
        Record::Delivered { .. } => kind::DELIVERED,
        Record::Held { .. } => kind::HELD,
        Record::Ended { .. } => kind::ENDED,
        Record::Synced => kind::SYNCED,
    }
}

fn begin(kind: u8, synced: u64, out: &mut BytesMut) -> usize {
    let start = out.len();
    out.put_u64_le(0);
    out.put_u8(kind);
    out.put_u64_le(synced);
    start
}

fn finish(start: usize, out: &mut BytesMut) {
    let length = (out.len() - start - HEAD) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(length, &out[start + HEAD..]);
    out[start + 4..start + HEAD].copy_from_slice(&checksum.to_le_bytes());
}

fn checksum(length: u32, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length.to_le_bytes()), body)
}

/// Length of the whole record that `bytes` start with, as far as they tell; [`HEAD`] where that is impossible.
pub(super) fn whole_length(bytes: &[u8]) -> usize {
    let length = bytes.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    if length <= MAX_BODY { HEAD + length } else { HEAD }
}

/// The `synced` of what may be a record, without its checksum.
pub(super) fn summary(bytes: &[u8]) -> Option<u64> {
    let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    let mut fields = Fields(bytes.get(HEAD..SUMMARY)?);
    let known = (kind::HEADER..=kind::SYNCED).contains(&fields.u8()?);
    let synced = fields.u64()?;
    (known && (BODY_HEAD..=MAX_BODY).contains(&length)).then_some(synced)
}

/// Reads the record that `bytes` start with.
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else {
        return Parsed::Incomplete;
    };
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let expected = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let body_length = length as usize;
    if !(BODY_HEAD..=MAX_BODY).contains(&body_length) {
        return Parsed::Bad("impossible length");
    }
    let Some(body) = rest.get(..body_length) else {
        return Parsed::Incomplete;
    };
    if checksum(length, body) != expected {
        return Parsed::Bad("checksum differs");
    }
    let mut fields = Fields(body);
    let record =
        fields.u8().zip(fields.u64()).and_then(|(kind, synced)| Some((fields.record(kind)?, synced)));
    match record {
        Some((record, synced)) => Parsed::Record { record, synced, length: HEAD + body_length },
        None => Parsed::Bad("unknown record"),
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u32(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*first))
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first)
    }

    fn record(&mut self, kind: u8) -> Option<Record<'a>> {
        Some(match kind {
            kind::HEADER => {
                if self.take(MAGIC.len())? != MAGIC || self.u8()? != VERSION {
                    return None;
                }
                Record::Header(Header {
                    incarnation: self.u64()?,
                    segment: self.u64()?,
                    committed: self.u64()?,
                    delivered: self.u64()?,
                    records: self.u64()?,
                    delivered_records: self.u64()?,
                    held: self.u64()?,
                    worker: self.0,
                })
            }
            kind::DATA | kind::DECIDED => {
                let offset = self.u64()?;
                let count = self.u32()? as usize;
                let lengths = Lengths(self.take(count.checked_mul(4)?)?);
                let bytes = self.0;
                let total = lengths.iter().try_fold(0_usize, usize::checked_add)?;
                if total != bytes.len() || offset.checked_add(total as u64).is_none() {
                    return None;
                }
                Record::Data { offset, decided: kind == kind::DECIDED, lengths, bytes }
            }
            kind::PREPARE => Record::Prepare {
                vote: self.bool()?,
                start: self.u64()?,
                end: self.u64()?,
                transaction: self.0,
            },
            kind::COMMIT => Record::Commit { transaction: self.0 },
            kind::ROLLED_BACK => Record::RolledBack { start: self.u64()?, transaction: self.0 },
            kind::DELIVERED => Record::Delivered { position: self.u64()?, records: self.u64()? },
            kind::HELD => Record::Held { position: self.u64()? },
            kind::ENDED => Record::Ended { in_doubt: self.bool()? },
            kind::SYNCED => Record::Synced,
            _ => return None,
        })
    }
}
