//! Splits a plain connection's bytes into records.

use bytes::{Buf as _, BytesMut};
use connector_crds::{ByteOrder, HeaderWidth, Protocol, SinkFraming};
use wallaroo_protocol::framing::{Decoder, Endian, Framing, FramingError, Read, Width};

use crate::record::NO_TIME;

/// Longest record, in bytes: what a worker sends has no limit of its own.
const MAX_RECORD_BYTES: usize = 16 * 1024 * 1024;

/// Room for one read.
const READ_CHUNK: usize = 64 * 1024;

/// A piece of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A record, and the bytes that it took of the connection.
    Record { time: i64, key: &'a [u8], payload: &'a [u8], taken: u64 },
    /// A line that is too long was passed over.
    TooLong { taken: u64 },
}

/// The splitter of one connection.
#[derive(Debug)]
pub(super) enum Splitter {
    Frames(Decoder),
    Lines(Lines),
}

impl Splitter {
    pub(super) fn new(protocol: Protocol, framing: SinkFraming) -> Splitter {
        let framing = match (protocol, framing) {
            (Protocol::Stream05, _) => Framing::Stream05,
            (Protocol::Stream06, _) => Framing::Stream06,
            (Protocol::FramedTCP | Protocol::Connector, SinkFraming::LengthPrefixed(spec)) => Framing::Raw {
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
            },
            (Protocol::FramedTCP | Protocol::Connector, SinkFraming::Lines {}) => {
                return Splitter::Lines(Lines::new(MAX_RECORD_BYTES));
            }
        };
        Splitter::Frames(Decoder::new(framing, MAX_RECORD_BYTES))
    }

    pub(super) fn input(&mut self) -> &mut BytesMut {
        match self {
            Splitter::Frames(decoder) => decoder.input(),
            Splitter::Lines(lines) => lines.input(),
        }
    }

    /// Hands over everything that is complete. After an error the connection is useless.
    pub(super) fn split(&mut self, mut each: impl FnMut(Piece<'_>)) -> Result<(), FramingError> {
        match self {
            Splitter::Frames(decoder) => decoder.read_all(|Read { time, key, payload, frame }| {
                each(Piece::Record { time, key, payload, taken: frame as u64 });
            }),
            Splitter::Lines(lines) => {
                lines.split(each);
                Ok(())
            }
        }
    }

    /// Checks at the end of the connection that no record is incomplete.
    pub(super) fn finish(&self) -> Result<(), FramingError> {
        match self {
            Splitter::Frames(decoder) => decoder.finish(),
            Splitter::Lines(lines) => match lines.buffered() {
                0 => Ok(()),
                bytes => Err(FramingError::Truncated { bytes }),
            },
        }
    }
}

/// Splits at line feeds, which are not part of the records. A line above the limit is passed over.
#[derive(Debug)]
pub(super) struct Lines {
    input: BytesMut,
    /// Bytes of `input` without a line feed.
    scanned: usize,
    limit: usize,
    /// Bytes of a line that is too long.
    skipped: u64,
}

impl Lines {
    fn new(limit: usize) -> Lines {
        Lines { input: BytesMut::new(), scanned: 0, limit, skipped: 0 }
    }

    fn input(&mut self) -> &mut BytesMut {
        if self.input.capacity() - self.input.len() < READ_CHUNK / 2 {
            self.input.reserve(READ_CHUNK);
        }
        &mut self.input
    }

    fn buffered(&self) -> usize {
        self.input.len() + self.skipped as usize
    }

    fn split(&mut self, mut each: impl FnMut(Piece<'_>)) {
        let mut at = 0;
        while let Some(found) = memchr::memchr(b'\n', &self.input[self.scanned..]) {
            let line = &self.input[at..self.scanned + found];
            at = self.scanned + found + 1;
            self.scanned = at;
            let skipped = std::mem::take(&mut self.skipped);
            let length = skipped + line.len() as u64;
            each(if length > self.limit as u64 {
                Piece::TooLong { taken: length + 1 }
            } else {
                Piece::Record { time: NO_TIME, key: &[], payload: line, taken: length + 1 }
            });
        }
        self.input.advance(at);
        self.scanned = self.input.len();
        if self.scanned > self.limit || self.skipped > 0 {
            self.skipped += self.input.len() as u64;
            self.input.clear();
            self.scanned = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;
    use connector_crds::FramingSpec;
    use wallaroo_protocol::framing::PlainRecord;

    fn split(mut splitter: Splitter, pieces: &[&[u8]]) -> (Vec<Vec<u8>>, u64) {
        let (mut records, mut taken) = (Vec::new(), 0);
        for piece in pieces {
            splitter.input().put_slice(piece);
            let each = |piece: Piece<'_>| match piece {
                Piece::Record { payload, taken: bytes, .. } => {
                    records.push(payload.to_vec());
                    taken += bytes;
                }
                Piece::TooLong { taken: bytes } => taken += bytes,
            };
            splitter.split(each).unwrap();
        }
        splitter.finish().unwrap();
        (records, taken)
    }

    fn framed(framing: Framing) -> Vec<u8> {
        let mut out = BytesMut::new();
        let records = [b"one".as_slice(), b"2", b"and three"].map(|payload| PlainRecord { time: 7, payload });
        framing.encode(records.into_iter(), 1_000, &mut out).unwrap();
        out.to_vec()
    }

    #[test]
    fn every_framing_gives_the_same_records_wherever_the_bytes_are_split() {
        let prefixed = |header, byte_order| SinkFraming::LengthPrefixed(FramingSpec { header, byte_order });
        let raw = |width, endian| Framing::Raw { width, endian };
        let cases = [
            (Protocol::FramedTCP, SinkFraming::Lines {}, b"one\n2\nand three\n".to_vec()),
            (
                Protocol::FramedTCP,
                prefixed(HeaderWidth::U32, ByteOrder::BigEndian),
                framed(raw(Width::Four, Endian::Big)),
            ),
            (
                Protocol::FramedTCP,
                prefixed(HeaderWidth::U16, ByteOrder::LittleEndian),
                framed(raw(Width::Two, Endian::Little)),
            ),
            (Protocol::Stream05, SinkFraming::Lines {}, framed(Framing::Stream05)),
            (Protocol::Stream06, SinkFraming::Lines {}, framed(Framing::Stream06)),
        ];
        for (protocol, framing, bytes) in cases {
            for cut in 0..=bytes.len() {
                let (records, taken) =
                    split(Splitter::new(protocol, framing), &[&bytes[..cut], &bytes[cut..]]);
                assert_eq!(
                    records,
                    [b"one".to_vec(), b"2".to_vec(), b"and three".to_vec()],
                    "{protocol:?} cut at {cut}"
                );
                assert_eq!(taken, bytes.len() as u64);
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(split(Splitter::new(protocol, framing), &single).0.len(), 3);
        }
    }

    #[test]
    fn a_line_above_the_limit_is_passed_over_and_the_next_one_is_read() {
        for piece in [1, 3, 100] {
            let mut lines = Lines::new(4);
            let (mut records, mut long, mut taken) = (Vec::new(), 0, 0);
            for chunk in b"1234\n12345\n\n123456789\nok\n".chunks(piece) {
                lines.input().put_slice(chunk);
                lines.split(|piece| match piece {
                    Piece::Record { payload, taken: bytes, .. } => {
                        records.push(payload.to_vec());
                        taken += bytes;
                    }
                    Piece::TooLong { taken: bytes } => {
                        long += 1;
                        taken += bytes;
                    }
                });
                assert!(lines.input.len() <= 100);
            }
            assert_eq!(records, [&b"1234"[..], b"", b"ok"], "in pieces of {piece}");
            assert_eq!((long, taken), (2, 25));
        }
    }

    #[test]
    fn an_unfinished_line_is_an_error_at_the_end() {
        let mut splitter = Splitter::new(Protocol::FramedTCP, SinkFraming::Lines {});
        splitter.input().put_slice(b"whole\nhal");
        let mut whole = 0;
        splitter.split(|_| whole += 1).unwrap();
        assert_eq!(whole, 1);
        assert_eq!(splitter.finish(), Err(FramingError::Truncated { bytes: 3 }));
    }
}
