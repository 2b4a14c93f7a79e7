//! Tests of reading one file.

use std::io::Write;

use proptest::prelude::*;

use super::*;

fn reader(content: &[u8], format: FileFormat, max: usize) -> (Reader, File) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    (Reader::new(file.try_clone().unwrap(), "f".into(), format, max), file)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Record(Position, Vec<u8>),
    Bad(Position, String),
}

/// Everything behind `from`, in steps of at most `records`.
fn read(reader: &mut Reader, from: Position, records: usize, last: bool) -> Vec<Seen> {
    reader.seek(from).unwrap();
    read_on(reader, records, last)
}

fn read_on(reader: &mut Reader, records: usize, last: bool) -> Vec<Seen> {
    let mut builder = BatchBuilder::default();
    let mut seen = Vec::new();
    loop {
        match reader.step(&mut builder, records, last).unwrap() {
            Step::Batch(batch) => {
                assert!(batch.len() <= records);
                seen.extend(batch.iter().map(|r| Seen::Record(r.position, r.payload.to_vec())));
            }
            Step::Bad { position, reason, .. } => seen.push(Seen::Bad(position, reason.to_string())),
            Step::Wait => {
                assert!(!last);
                return seen;
            }
            Step::End => {
                assert!(last);
                return seen;
            }
        }
    }
}

fn record(position: Position, payload: &[u8]) -> Seen {
    Seen::Record(position, payload.to_vec())
}

#[test]
fn a_line_is_any_bytes_and_its_position_is_the_offset_behind_its_line_feed() {
    let content = b"a\n\xff\xfe\r\n\nlast";
    let (mut reader, mut file) = reader(content, FileFormat::Lines, 100);
    let empty = Seen::Bad(7, "record is empty, which Wallaroo cannot carry".into());
    let whole = [record(2, b"a"), record(6, b"\xff\xfe\r"), empty];
    assert_eq!(read(&mut reader, 0, 10, false), whole);
    file.write_all(b" line\n").unwrap();
    assert_eq!(read_on(&mut reader, 10, false), [record(17, b"last line")]);
}

#[test]
fn a_last_line_without_line_feed_is_a_record_of_a_complete_file_only() {
    let (mut reader, mut file) = reader(b"a\nlast", FileFormat::Lines, 100);
    assert_eq!(read(&mut reader, 0, 10, false), [record(2, b"a")]);
    assert_eq!(read_on(&mut reader, 10, true), [record(6, b"last")]);
    // Its line feed comes later: no empty record.
    file.write_all(b"\nnext\n").unwrap();
    assert_eq!(read(&mut reader, 6, 10, true), [record(12, b"next")]);
    assert_eq!(read(&mut reader, 2, 10, true), [record(7, b"last"), record(12, b"next")]);
}

#[test]
fn a_line_beyond_the_limit_is_one_bad_record_however_long_it_is() {
    for long in [11, 300_000, 1_000_000] {
        let mut content = b"a\n".to_vec();
        content.extend(vec![b'x'; long]);
        content.extend(b"\n0123456789\n");
        let (mut reader, _file) = reader(&content, FileFormat::Lines, 10);
        let behind = long as u64 + 3;
        let bad = Seen::Bad(behind, format!("record of {long} bytes is longer than the limit of 10"));
        let expected = [record(2, b"a"), bad, record(behind + 11, b"0123456789")];
        assert_eq!(read(&mut reader, 0, 10, false), expected);
        // Also when it is the file's unfinished end.
        content.truncate(long + 2);
        let (mut reader, _file) = self::reader(&content, FileFormat::Lines, 10);
        assert_eq!(read(&mut reader, 0, 10, false), [record(2, b"a")]);
        let seen = read_on(&mut reader, 10, true);
        if long <= 10 + READ_BYTES {
            assert!(matches!(&seen[..], [Seen::Bad(..)]), "{seen:?}");
        }
    }
}

#[test]
fn a_length_prefixed_record_is_any_bytes_and_bad_ones_are_passed() {
    let mut content = Vec::new();
    for payload in [b"a\nb".to_vec(), vec![], vec![7; 50_000], b"end".to_vec()] {
        content.extend((payload.len() as u32).to_be_bytes());
        content.extend(payload);
    }
    let (mut reader, mut file) = reader(&content, FileFormat::LengthPrefixed, 10);
    let expected = [
        record(7, b"a\nb"),
        Seen::Bad(11, "record is empty, which Wallaroo cannot carry".into()),
        Seen::Bad(50_015, "record of 50000 bytes is longer than the limit of 10".into()),
        record(50_022, b"end"),
    ];
    assert_eq!(read(&mut reader, 0, 10, false), expected);
    assert_eq!(read(&mut reader, 11, 10, false), expected[2..]);
    file.write_all(b"\0\0\0\x05half").unwrap();
    assert_eq!(read_on(&mut reader, 10, false), []);
    let cut = "file ends within a record: 8 bytes after offset 50022 are incomplete";
    assert_eq!(read_on(&mut reader, 10, true), [Seen::Bad(50_030, cut.into())]);
}

#[test]
fn a_length_that_makes_no_sense_is_permanent_and_names_the_offset() {
    let (mut reader, _file) = reader(b"\0\0\0\x01atext", FileFormat::LengthPrefixed, 10);
    let mut builder = BatchBuilder::default();
    assert!(matches!(reader.step(&mut builder, 10, false).unwrap(), Step::Batch(_)));
    let error = reader.step(&mut builder, 10, false).unwrap_err();
    assert!(matches!(error, SystemError::Permanent { reason: "MalformedFile", .. }));
    assert!(error.to_string().contains("at offset 5"), "{error}");
}

#[test]
fn a_file_shorter_than_the_position_is_permanent_and_stays_so() {
    let (mut reader, file) = reader(b"a\nb\n", FileFormat::Lines, 10);
    let out_of_range = |error: SystemError| {
        assert!(matches!(error, SystemError::Permanent { reason: "PositionOutOfRange", .. }), "{error:?}");
    };
    out_of_range(reader.seek(5).unwrap_err());
    assert_eq!(read(&mut reader, 0, 10, false).len(), 2);
    file.set_len(2).unwrap();
    for _ in 0..2 {
        out_of_range(reader.step(&mut BatchBuilder::default(), 10, false).unwrap_err());
    }
}

proptest! {
    #[test]
    fn reading_from_any_position_gives_the_rest_whatever_the_batch_size(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..60),
        records in 1..70_usize,
        lines in any::<bool>(),
    ) {
        let format = if lines { FileFormat::Lines } else { FileFormat::LengthPrefixed };
        let mut content = Vec::new();
        let mut expected = Vec::new();
        for payload in &payloads {
            let before = content.len();
            if super::super::framing::append(format, payload, &mut content).is_err() {
                prop_assert_eq!(content.len(), before);
                continue;
            }
            let position = content.len() as u64;
            let written = if lines { payload.strip_suffix(b"\n").unwrap_or(payload) } else { payload };
            expected.push(match written.len() {
                0 => Seen::Bad(position, "record is empty, which Wallaroo cannot carry".into()),
                length if length > 30 => {
                    Seen::Bad(position, format!("record of {length} bytes is longer than the limit of 30"))
                }
                _ => record(position, written),
            });
        }
        let (mut reader, _file) = reader(&content, format, 30);
        let mut from = 0;
        for start in 0..=expected.len() {
            prop_assert_eq!(&read(&mut reader, from, records, true), &expected[start..]);
            if let Some(Seen::Record(position, _) | Seen::Bad(position, _)) = expected.get(start) {
                from = *position;
            }
        }
    }
}
