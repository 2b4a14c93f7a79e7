//! Reads one file from a byte offset on: large reads, records found with memchr, one arena a batch.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use connector_crds::systems::file::FileFormat;

use crate::record::{Batch, BatchBuilder, NO_TIME, Position, Record};
use crate::source::{BadRecord, ErrorClass, SystemError};

/// Bytes of one read: large enough that the system call costs little beside the copying, small enough for a cache.
const READ_BYTES: usize = 262_144;

/// Bytes of a bad record that are handed on for the dead letter.
const HEAD_BYTES: usize = 65_536;

/// A length beyond this is no record but a file of another format, or damage: the upper limit of `maxRecordBytes`.
const LENGTH_LIMIT: u32 = 16_777_216;

/// Bytes of a length prefix.
const PREFIX: usize = 4;

/// What reading on came to.
#[derive(Debug)]
pub(super) enum Step {
    /// Records.
    Batch(Batch),
    /// One record that cannot be handed over.
    Bad { position: Position, reason: BadRecord, payload: Bytes },
    /// Nothing more now.
    Wait,
    /// Nothing more ever.
    End,
}

/// A file being read. The position of a record is the offset of the first byte behind it and its separator.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    path: String,
    format: FileFormat,
    max_record: usize,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// File offset of `buffer[start]`: the position of the last record that was passed.
    offset: u64,
    skipping: Option<Skip>,
    swallow_line_feed: bool,
}

/// A line that is longer than allowed, on the way to its end.
#[derive(Debug)]
struct Skip {
    head: Bytes,
    bytes: u64,
}

/// What `Reader::scan` found at the front of the buffer.
enum Found {
    More,
    Bad { length: usize, reason: BadRecord, payload: Bytes },
}

impl Reader {
    pub(super) fn new(file: File, path: String, format: FileFormat, max_record: usize) -> Reader {
        Reader {
            file,
            path,
            format,
            max_record,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            offset: 0,
            skipping: None,
            swallow_line_feed: false,
        }
    }

    /// Continues behind `position`, whatever was read before.
    ///
    /// # Errors
    /// `Permanent/PositionOutOfRange` when the file is shorter.
    pub(super) fn seek(&mut self, position: Position) -> Result<(), SystemError> {
        let length = self.length()?;
        if position > length {
            return Err(self.out_of_range(position, length));
        }
        self.offset = position;
        (self.start, self.end) = (0, 0);
        self.skipping = None;
        // A last line without line feed was a record when the file was finished; its line feed may have come since.
        self.swallow_line_feed = false;
        if self.format == FileFormat::Lines && position > 0 {
            let mut before = [0];
            let read = self.file.read_at(&mut before, position - 1).map_err(|e| self.failed(e))?;
            self.swallow_line_feed = read == 1 && before != *b"\n";
        }
        Ok(())
    }

    /// Reads on: at most `records` records, at most one read. With `last` the file is taken as complete.
    ///
    /// # Errors
    /// `Permanent/PositionOutOfRange` when the file became shorter than what was read,
    /// `Permanent/MalformedFile` when a length prefix makes no sense; otherwise transient.
    pub(super) fn step(
        &mut self,
        builder: &mut BatchBuilder,
        records: usize,
        last: bool,
    ) -> Result<Step, SystemError> {
        loop {
            let found = match self.format {
                FileFormat::Lines => self.scan_lines(builder, records),
                FileFormat::LengthPrefixed => self.scan_prefixed(builder, records)?,
            };
            if !builder.is_empty() {
                return Ok(Step::Batch(builder.finish()));
            }
            if let Found::Bad { length, reason, payload } = found {
                self.consume(length);
                return Ok(Step::Bad { position: self.offset, reason, payload });
            }
            if self.fill()? == 0 {
                let length = self.length()?;
                let read = self.offset + (self.end - self.start) as u64;
                if length < read {
                    return Err(self.out_of_range(read, length));
                }
                return Ok(if last { self.finish(builder, length) } else { Step::Wait });
            }
        }
    }

    /// Lines in the buffer. A bad one is returned when it is the first.
    fn scan_lines(&mut self, builder: &mut BatchBuilder, records: usize) -> Found {
        let mut window = &self.buffer[self.start..self.end];
        if self.swallow_line_feed && !window.is_empty() {
            self.swallow_line_feed = false;
            if window[0] == b'\n' {
                self.start += 1;
                self.offset += 1;
                window = &window[1..];
            }
        }
        if let Some(skip) = &mut self.skipping {
            let Some(at) = memchr::memchr(b'\n', window) else {
                skip.bytes += window.len() as u64;
                self.offset += window.len() as u64;
                self.start = self.end;
                return Found::More;
            };
            let reason = BadRecord::TooLarge { bytes: skip.bytes + at as u64, limit: self.max_record as u64 };
            let payload = std::mem::take(&mut skip.head);
            self.skipping = None;
            return Found::Bad { length: at + 1, reason, payload };
        }
        let base = self.offset;
        let mut from = 0;
        let mut found = Found::More;
        for at in memchr::memchr_iter(b'\n', window) {
            let line = &window[from..at];
            let reason = if line.is_empty() {
                BadRecord::Empty
            } else if line.len() > self.max_record {
                BadRecord::TooLarge { bytes: line.len() as u64, limit: self.max_record as u64 }
            } else {
                from = at + 1;
                builder.push(Record { position: base + from as u64, time: NO_TIME, key: &[], payload: line });
                if builder.len() >= records {
                    break;
                }
                continue;
            };
            if builder.is_empty() {
                found = Found::Bad { length: line.len() + 1, reason, payload: head(line) };
            }
            break;
        }
        if builder.is_empty() && matches!(found, Found::More) && window.len() > self.max_record {
            // Its end is not here, and it is too long already.
            self.skipping = Some(Skip { head: head(window), bytes: window.len() as u64 });
            from = window.len();
        }
        self.consume(from);
        found
    }

    /// Length-prefixed records in the buffer. A bad one is returned when it is the first.
    fn scan_prefixed(&mut self, builder: &mut BatchBuilder, records: usize) -> Result<Found, SystemError> {
        while builder.len() < records {
            let window = &self.buffer[self.start..self.end];
            let Some((prefix, rest)) = window.split_first_chunk::<PREFIX>() else { break };
            let length = u32::from_be_bytes(*prefix);
            if length > LENGTH_LIMIT {
                if !builder.is_empty() {
                    break;
                }
                return Err(SystemError::Permanent {
                    reason: "MalformedFile",
                    context: format!(
                        "file {} has a record length of {length} at offset {}, beyond {LENGTH_LIMIT}: it is not \
                         length-prefixed, or damaged",
                        self.path, self.offset
                    ),
                });
            }
            let size = length as usize;
            if size == 0 || size > self.max_record {
                let whole = self.offset + (PREFIX + size) as u64;
                // A record of which a part is missing waits; the end of the file tells.
                if builder.is_empty() && self.length()? >= whole {
                    let payload = self.read_head(size)?;
                    let reason = match size {
                        0 => BadRecord::Empty,
                        _ => BadRecord::TooLarge { bytes: u64::from(length), limit: self.max_record as u64 },
                    };
                    return Ok(Found::Bad { length: PREFIX + size, reason, payload });
                }
                break;
            }
            let Some(payload) = rest.get(..size) else { break };
            let position = self.offset + (PREFIX + size) as u64;
            builder.push(Record { position, time: NO_TIME, key: &[], payload });
            self.consume(PREFIX + size);
        }
        Ok(Found::More)
    }

    /// What is left in the buffer at the end of a complete file.
    fn finish(&mut self, builder: &mut BatchBuilder, length: u64) -> Step {
        let rest = &self.buffer[self.start..self.end];
        if let Some(skip) = self.skipping.take() {
            let reason = BadRecord::TooLarge { bytes: skip.bytes, limit: self.max_record as u64 };
            return Step::Bad { position: self.offset, reason, payload: skip.head };
        }
        if rest.is_empty() {
            return Step::End;
        }
        match self.format {
            FileFormat::Lines => {
                let position = self.offset + rest.len() as u64;
                builder.push(Record { position, time: NO_TIME, key: &[], payload: rest });
                self.consume(self.end - self.start);
                Step::Batch(builder.finish())
            }
            FileFormat::LengthPrefixed => {
                let reason = BadRecord::Malformed(format!(
                    "file ends within a record: {} bytes after offset {} are incomplete",
                    length - self.offset,
                    self.offset
                ));
                let payload = head(rest);
                self.offset = length;
                (self.start, self.end) = (0, 0);
                Step::Bad { position: length, reason, payload }
            }
        }
    }

    /// Passes `length` bytes, which may reach beyond the buffer.
    fn consume(&mut self, length: usize) {
        self.offset += length as u64;
        self.start = (self.start + length).min(self.end);
    }

    /// One read behind what the buffer holds; 0 at the end of the file, or when a record that is bad already fills it.
    fn fill(&mut self) -> Result<usize, SystemError> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; READ_BYTES + self.max_record + PREFIX];
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let most = self.buffer.len().min(self.end + READ_BYTES);
        loop {
            match self.file.read_at(&mut self.buffer[self.end..most], self.offset + self.end as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
                Ok(read) => {
                    self.end += read;
                    return Ok(read);
                }
            }
        }
    }

    /// The first bytes of the record at the front, `size` bytes long.
    fn read_head(&self, size: usize) -> Result<Bytes, SystemError> {
        let mut bytes = vec![0; size.min(HEAD_BYTES)];
        self.file.read_exact_at(&mut bytes, self.offset + PREFIX as u64).map_err(|e| self.failed(e))?;
        Ok(bytes.into())
    }

    /// The file's length now.
    pub(super) fn length(&self) -> Result<u64, SystemError> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|error| self.failed(error))
    }

    fn out_of_range(&self, position: u64, length: u64) -> SystemError {
        SystemError::Permanent {
            reason: "PositionOutOfRange",
            context: format!(
                "position {position} is beyond the end of file {} ({length} bytes): it was truncated or replaced in \
                 place; restore it, or start over with another `positionReset`",
                self.path
            ),
        }
    }

    fn failed(&self, error: io::Error) -> SystemError {
        SystemError::Transient {
            context: format!("reading file {}: {error}", self.path),
            class: ErrorClass::Connect,
            cause: Some(error.into()),
        }
    }
}

/// The first bytes of a bad record.
fn head(record: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&record[..record.len().min(HEAD_BYTES)])
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
