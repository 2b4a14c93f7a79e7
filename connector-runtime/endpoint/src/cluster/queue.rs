//! Results waiting for a sink link: encoded bytes in blocks, so that a result costs no allocation of its own.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use crate::config::{Encoder, SinkProtocol};

/// A block is full at this size: large enough for one write, small enough to go out soon.
const BLOCK_BYTES: usize = 64 * 1024;

/// How a sink's results become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// The result and a line feed.
    Lines,
    /// u32 big-endian length, then the result.
    LengthPrefixed,
    /// The result alone.
    Raw,
    /// The frame of 0.5.3: u32 little-endian length, u16 little-endian length of the metadata, sequence −1, payload.
    Stream05,
    /// The frame of 0.6.0: u32 little-endian length, i64 event time 0, payload.
    Stream06,
}

impl Coding {
    pub(crate) fn of(protocol: &SinkProtocol, encoder: Encoder) -> Coding {
        match (protocol, encoder) {
            (SinkProtocol::Stream05, _) => Coding::Stream05,
            (SinkProtocol::Stream06, _) => Coding::Stream06,
            (SinkProtocol::Connector { .. } | SinkProtocol::FramedTcp, Encoder::Lines) => Coding::Lines,
            (SinkProtocol::Connector { .. } | SinkProtocol::FramedTcp, Encoder::LengthPrefixed) => {
                Coding::LengthPrefixed
            }
            (SinkProtocol::Connector { .. } | SinkProtocol::FramedTcp, Encoder::Raw) => Coding::Raw,
        }
    }

    /// Results come from frames and words, which are far below 4 GiB, so the length fields cannot overflow.
    fn put(self, result: &[u8], out: &mut BytesMut) {
        let length = result.len() as u32;
        match self {
            Coding::Lines => {
                out.put_slice(result);
                out.put_u8(b'\n');
            }
            Coding::LengthPrefixed => {
                out.put_u32(length);
                out.put_slice(result);
            }
            Coding::Raw => out.put_slice(result),
            Coding::Stream05 => {
                out.put_u32_le(length + 10);
                out.put_u16_le(8);
                out.put_i64_le(-1);
                out.put_slice(result);
            }
            Coding::Stream06 => {
                out.put_u32_le(length + 8);
                out.put_i64_le(0);
                out.put_slice(result);
            }
        }
    }
}

/// Encoded results that follow each other.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// Offset of the first byte in the link's output.
    pub(crate) offset: u64,
    bytes: BytesMut,
    /// End of each result in `bytes`.
    ends: Vec<u32>,
}

impl Block {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn results(&self) -> usize {
        self.ends.len()
    }

    /// The encoded results, one by one.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let result = &self.bytes[start..*end as usize];
            start = *end as usize;
            result
        })
    }

    /// All bytes, back to back.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// A link's queue. Offsets count bytes since the start of the link's output.
#[derive(Debug)]
pub(crate) struct OutputQueue {
    coding: Coding,
    blocks: VecDeque<Block>,
    bytes: usize,
    end: u64,
    sealed: bool,
}

impl OutputQueue {
    pub(crate) fn new(coding: Coding, offset: u64) -> OutputQueue {
        OutputQueue { coding, blocks: VecDeque::new(), bytes: 0, end: offset, sealed: false }
    }

    /// Offset behind the last result.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes waiting.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Offset of the next byte to be taken.
    pub(crate) fn start(&self) -> u64 {
        self.end - self.bytes as u64
    }

    /// Appends a result.
    pub(crate) fn push(&mut self, result: &[u8]) {
        let fits = !self.sealed && self.blocks.back().is_some_and(|block| block.len() < BLOCK_BYTES);
        if !fits {
            self.sealed = false;
            let bytes = BytesMut::with_capacity(BLOCK_BYTES + result.len());
            self.blocks.push_back(Block { offset: self.end, bytes, ends: Vec::new() });
        }
        if let Some(block) = self.blocks.back_mut() {
            let before = block.len();
            self.coding.put(result, &mut block.bytes);
            block.ends.push(block.bytes.len() as u32);
            let added = block.len() - before;
            self.bytes += added;
            self.end += added as u64;
        }
    }

    /// The next result begins a new block, so that none reaches across this point.
    pub(crate) fn seal(&mut self) {
        self.sealed = true;
    }

    /// The oldest block, if it begins before `limit`.
    pub(crate) fn take(&mut self, limit: Option<u64>) -> Option<Block> {
        if limit.is_some_and(|limit| self.start() >= limit) {
            return None;
        }
        let block = self.blocks.pop_front()?;
        self.bytes -= block.len();
        Some(block)
    }

    /// Forgets what waits; the next result stands at `offset`.
    pub(crate) fn reset(&mut self, offset: u64) {
        self.blocks.clear();
        self.bytes = 0;
        self.end = offset;
        self.sealed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(coding: Coding, result: &[u8]) -> Vec<u8> {
        let mut queue = OutputQueue::new(coding, 0);
        queue.push(result);
        queue.take(None).unwrap().into_bytes().to_vec()
    }

    #[test]
    fn codings_are_those_of_the_protocol_page() {
        assert_eq!(encoded(Coding::Lines, b"ab"), b"ab\n");
        assert_eq!(encoded(Coding::Raw, b"ab"), b"ab");
        assert_eq!(encoded(Coding::LengthPrefixed, b"ab"), b"\0\0\0\x02ab");
        assert_eq!(encoded(Coding::Stream05, b"ab"), b"\x0c\0\0\0\x08\0\xff\xff\xff\xff\xff\xff\xff\xffab");
        assert_eq!(encoded(Coding::Stream06, b"ab"), b"\x0a\0\0\0\0\0\0\0\0\0\0\0ab");
    }

    #[test]
    fn no_block_reaches_across_a_seal() {
        let mut queue = OutputQueue::new(Coding::Raw, 100);
        queue.push(b"before");
        queue.seal();
        let barrier = queue.end();
        queue.push(b"after");
        assert_eq!((barrier, queue.end(), queue.bytes()), (106, 111, 11));
        let block = queue.take(Some(barrier)).unwrap();
        assert_eq!((block.offset, block.iter().collect::<Vec<_>>()), (100, vec![&b"before"[..]]));
        assert!(queue.take(Some(barrier)).is_none());
        assert_eq!(queue.start(), barrier);
        assert_eq!(queue.take(None).unwrap().offset, barrier);
    }

    #[test]
    fn results_share_blocks_of_bounded_size() {
        let mut queue = OutputQueue::new(Coding::Raw, 0);
        for _ in 0..3_000 {
            queue.push(&[7; 100]);
        }
        let sizes: Vec<usize> = std::iter::from_fn(|| queue.take(None)).map(|block| block.len()).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 300_000);
        assert!(sizes.len() < 6 && sizes.iter().all(|size| *size <= BLOCK_BYTES + 100), "{sizes:?}");
    }

    #[test]
    fn a_reset_forgets_and_goes_back() {
        let mut queue = OutputQueue::new(Coding::Raw, 0);
        queue.push(b"abc");
        queue.reset(1);
        assert_eq!((queue.end(), queue.bytes(), queue.take(None).is_none()), (1, 0, true));
    }
}
