//! The "session" of the plain framings (`FramedTCP`, stream 0.5.3 and 0.6): no handshake, no answer, only frames.
//!
//! It has the shape of the connector protocol's session, so that one pump drives both. Every stream opens at once, with
//! nothing known of it. What counts as acknowledged is decided outside, by the bytes that the worker's kernel has.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use connector_crds::{ByteOrder, FramingSpec, HeaderWidth, Protocol};
use wallaroo_protocol::framing::{Endian, Framing, PlainError, PlainRecord, Width};
use wallaroo_protocol::{SourceClientEvent, StreamId};

/// Room for one read. A worker sends nothing; the read is there to notice its end.
const READ_CHUNK: usize = 4_096;

/// Frames of records, and nothing else.
#[derive(Debug)]
pub struct PlainSession {
    framing: Framing,
    limit: usize,
    input: BytesMut,
    output: BytesMut,
    events: VecDeque<SourceClientEvent>,
}

impl PlainSession {
    /// A session on a connection just made. `limit` bounds what a length header may say, in bytes.
    pub fn new(framing: Framing, limit: usize) -> PlainSession {
        PlainSession {
            framing,
            limit,
            input: BytesMut::new(),
            output: BytesMut::new(),
            events: VecDeque::new(),
        }
    }

    /// The buffer to read into.
    pub fn input(&mut self) -> &mut BytesMut {
        self.input.clear();
        self.input.reserve(READ_CHUNK);
        &mut self.input
    }

    /// Opens a stream; answered at once, with nothing known.
    pub fn open(&mut self, stream: StreamId) {
        self.events.push_back(SourceClientEvent::Opened { stream, position: None });
    }

    /// Next thing that happened.
    pub fn poll_event(&mut self) -> Option<SourceClientEvent> {
        self.events.pop_front()
    }

    /// Frames records, as many as fit before the first that cannot be framed.
    pub fn send<'a>(&mut self, records: impl Iterator<Item = PlainRecord<'a>>) -> Result<usize, PlainError> {
        self.framing.encode(records, self.limit, &mut self.output)
    }

    /// Bytes on the wire beside each payload.
    pub fn overhead(&self) -> usize {
        self.framing.overhead()
    }

    /// Everything to write, as one buffer.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        (!self.output.is_empty()).then(|| self.output.split().freeze())
    }

    /// Bytes waiting in [`PlainSession::poll_output`].
    pub fn output_len(&self) -> usize {
        self.output.len()
    }
}

/// The framing that a manifest asks for; `None` for the `Connector` protocol.
pub fn framing(protocol: Protocol, spec: FramingSpec) -> Option<Framing> {
    match protocol {
        Protocol::FramedTCP => Some(Framing::Raw {
            width: match spec.header {
                HeaderWidth::U8 => Width::One,
                HeaderWidth::U16 => Width::Two,
                HeaderWidth::U32 => Width::Four,
                HeaderWidth::U64 => Width::Eight,
            },
            endian: match spec.byte_order {
                ByteOrder::BigEndian => Endian::Big,
                ByteOrder::LittleEndian => Endian::Little,
            },
        }),
        Protocol::Stream05 => Some(Framing::Stream05),
        Protocol::Stream06 => Some(Framing::Stream06),
        Protocol::Connector => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(protocol: Protocol, header: HeaderWidth, byte_order: ByteOrder) -> Vec<u8> {
        let framing = framing(protocol, FramingSpec { header, byte_order }).unwrap();
        let mut session = PlainSession::new(framing, 16_384);
        let records = [PlainRecord { time: 7, payload: b"ab" }, PlainRecord { time: 8, payload: b"c" }];
        assert_eq!(session.send(records.into_iter()).unwrap(), 2);
        assert_eq!(session.output_len(), 2 * session.overhead() + 3);
        session.poll_output().unwrap().to_vec()
    }

    #[test]
    fn each_protocol_and_header_of_a_manifest_has_its_bytes() {
        use ByteOrder::{BigEndian, LittleEndian};
        use Protocol::{FramedTCP, Stream05, Stream06};
        assert_eq!(framed(FramedTCP, HeaderWidth::U8, BigEndian), b"\x02ab\x01c");
        assert_eq!(framed(FramedTCP, HeaderWidth::U16, LittleEndian), b"\x02\x00ab\x01\x00c");
        assert_eq!(framed(FramedTCP, HeaderWidth::U32, BigEndian), b"\x00\x00\x00\x02ab\x00\x00\x00\x01c");
        assert_eq!(framed(FramedTCP, HeaderWidth::U64, BigEndian)[..8], [0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(framed(Stream05, HeaderWidth::U32, BigEndian)[..4], [12, 0, 0, 0]);
        assert_eq!(framed(Stream06, HeaderWidth::U32, BigEndian)[..13], *b"\x0a\0\0\0\x07\0\0\0\0\0\0\0a");
        assert_eq!(super::framing(Protocol::Connector, FramingSpec::default()), None);
    }

    #[test]
    fn a_record_that_cannot_be_framed_stops_behind_those_that_can() {
        let mut session = PlainSession::new(Framing::RAW_U32BE, 4);
        let records = [PlainRecord { time: 0, payload: b"ab" }, PlainRecord { time: 0, payload: b"abcde" }];
        let refused = session.send(records.into_iter()).unwrap_err();
        assert_eq!(refused, PlainError::TooLarge { index: 1, size: 5, limit: 4 });
        assert_eq!(session.output_len(), 6);
    }
}
