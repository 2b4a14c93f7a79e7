//! Frames there and back, the examples of the specification, and bytes that are no frames.

use proptest::prelude::*;

use super::*;
use crate::record::NO_TIME;

fn bytes_of(frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    frame.put(&mut out);
    out
}

fn batch_of(payloads: &[&[u8]]) -> Batch {
    let mut builder = BatchBuilder::default();
    for (position, payload) in (1..).zip(payloads) {
        builder.push(Record { position, time: NO_TIME, key: b"k", payload });
    }
    builder.finish()
}

/// Every frame of the specification's table, by its example.
#[test]
fn the_examples_of_the_specification_are_what_is_sent() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/custom-protocol.md")).unwrap();
    let mut names = std::collections::BTreeSet::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("    ")) {
        let Some((name, hex)) = line.split_once(": ") else { continue };
        let hex: String = hex.split_whitespace().collect();
        let mut bytes: BytesMut =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let whole = bytes.clone();
        let frame = Frame::take(&mut bytes).unwrap_or_else(|error| panic!("{name}: {error}")).unwrap();
        assert!(bytes.is_empty(), "{name}: more than one frame");
        assert_eq!(frame.name(), name);
        assert_eq!(bytes_of(&frame), whole, "{name}");
        if let Frame::Batch(records) = &frame {
            assert_eq!(batch(records).unwrap().len(), records.count as usize);
        }
        names.insert(name.to_owned());
    }
    let all: std::collections::BTreeSet<String> =
        (0..=u8::MAX).map(name).filter(|name| *name != "unknown frame").map(str::to_owned).collect();
    assert_eq!(names, all, "the specification has an example of each frame");
}

#[test]
fn a_batch_is_cut_into_frames_that_fit_and_nothing_is_lost() {
    let large = vec![b'x'; 400_000];
    let whole = batch_of(&[&large, b"small", &large, &large, b"", &large]);
    let mut out = BytesMut::new();
    let (mut from, mut frames) = (0, 0);
    while from < whole.len() {
        from = put_batch(&mut out, 7, 3, &Place::Cursor("c".repeat(MAX_CURSOR_BYTES)), &whole, from);
        frames += 1;
    }
    assert_eq!(frames, 2);
    let mut found = Vec::new();
    while let Some(Frame::Batch(records)) = Frame::take(&mut out).unwrap() {
        assert_eq!((records.stream, records.reading), (7, 3));
        found.extend(batch(&records).unwrap().iter().map(|record| (record.position, record.payload.len())));
    }
    assert_eq!(found, [(1, 400_000), (2, 5), (3, 400_000), (4, 400_000), (5, 0), (6, 400_000)]);
}

#[test]
fn the_longest_record_fits_and_a_longer_one_is_told() {
    let mut builder = BatchBuilder::default();
    for bytes in [MAX_RECORD_BYTES, MAX_RECORD_BYTES + 1] {
        let payload = vec![0; bytes];
        builder.push(Record { position: bytes as u64, time: NO_TIME, key: b"", payload: &payload });
    }
    let both = builder.finish();
    let mut out = BytesMut::new();
    assert_eq!(put_batch(&mut out, 0, 0, &Place::None, &both, 0), 1);
    assert!(Frame::take(&mut out).unwrap().is_some());
    assert_eq!(put_batch(&mut out, 0, 0, &Place::None, &both, 1), 1);
    assert!(out.is_empty());
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_room_is_made() {
    for length in [0, MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
        let mut input = BytesMut::from(&length.to_be_bytes()[..]);
        assert_eq!(Frame::take(&mut input), Err(FrameError::Length(length)));
        assert!(input.capacity() < 1_024);
    }
}

proptest! {
    #[test]
    fn bytes_never_panic_and_are_read_back_as_they_are(body in proptest::collection::vec(any::<u8>(), 1..200)) {
        let mut input = BytesMut::new();
        input.put_u32(length(body.len()));
        input.put_slice(&body);
        if let Ok(Some(frame)) = Frame::take(&mut input.clone()) {
            // What is understood is one frame, and is written as it was.
            prop_assert_eq!(&bytes_of(&frame)[..], &input[..]);
            if let Frame::Batch(records) = frame {
                let _ = batch(&records);
            }
        }
    }

    #[test]
    fn a_frame_arrives_whole_however_it_is_cut(cut in 0_usize..40, stream: u32, position: u64) {
        let frame = Frame::Commit { stream, place: Place::Position(position) };
        let whole = bytes_of(&frame);
        let cut = cut.min(whole.len());
        let mut input = BytesMut::from(&whole[..cut]);
        let early = Frame::take(&mut input).unwrap();
        prop_assert_eq!(early.is_some(), cut == whole.len());
        if early.is_none() {
            input.extend_from_slice(&whole[cut..]);
            prop_assert_eq!(Frame::take(&mut input).unwrap(), Some(frame));
        }
    }
}
