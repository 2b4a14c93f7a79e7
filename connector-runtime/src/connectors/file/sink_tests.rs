//! Tests of the file sink: a crash at every step, trouble on the way, and what a reader finds.

use std::fs::OpenOptions;

use tempfile::TempDir;

use super::*;
use crate::connectors::testing::context;
use crate::record::{BatchBuilder, NO_TIME, Record};

fn sink(directory: &Path, format: FileFormat) -> FileSink {
    FileSink::new(&Spec { path: "out/f".into(), format }, &context(directory))
}

fn stream(worker: &str) -> SinkStream {
    SinkStream { worker: worker.into(), incarnation: 1 }
}

fn batch(records: impl IntoIterator<Item = (Position, Vec<u8>)>) -> Batch {
    let mut builder = BatchBuilder::default();
    for (position, payload) in records {
        builder.push(Record { position, time: NO_TIME, key: &[], payload: &payload });
    }
    builder.finish()
}

/// Records `from + 1 ..= to` of a worker, each saying who it is.
fn numbered(worker: &str, from: Position, to: Position) -> Batch {
    batch((from + 1..=to).map(|position| (position, format!("{worker}{position}").into_bytes())))
}

fn lines(directory: &Path) -> Vec<String> {
    let text = fs::read_to_string(directory.join("out/f")).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(String::from).collect()
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Two workers write in turn; `b` is durable up to 2 and accepted up to 4, `a` durable up to 5 and accepted up to 7.
async fn two_workers(directory: &Path) -> (u64, usize) {
    let mut sink = sink(directory, FileFormat::Lines);
    assert_eq!(sink.open(&stream("a")).await.unwrap(), None);
    sink.write(&stream("a"), &numbered("a", 0, 5)).await.unwrap();
    sink.write(&stream("b"), &numbered("b", 0, 2)).await.unwrap();
    assert_eq!(sink.durable(), []);
    sink.flush(deadline()).await.unwrap();
    assert_eq!(sink.durable(), [(stream("a"), 5), (stream("b"), 2)]);
    let data = fs::metadata(directory.join("out/f")).unwrap().len();
    let journal = fs::read(directory.join("out/f.positions")).unwrap().len();
    sink.write(&stream("b"), &numbered("b", 2, 4)).await.unwrap();
    sink.write(&stream("a"), &numbered("a", 5, 7)).await.unwrap();
    sink.flush(deadline()).await.unwrap();
    (data, journal)
}

/// What the pump does after a restart: asks, and writes the rest.
async fn replay(directory: &Path) {
    let mut sink = sink(directory, FileFormat::Lines);
    for (worker, end) in [("a", 7), ("b", 4)] {
        let held = sink.open(&stream(worker)).await.unwrap().unwrap_or(0);
        assert!(held <= end);
        sink.write(&stream(worker), &numbered(worker, held, end)).await.unwrap();
    }
    sink.flush(deadline()).await.unwrap();
}

fn assert_each_once(directory: &Path, what: &str) {
    let mut lines = lines(directory);
    lines.sort();
    let mut expected: Vec<String> =
        (1..=7).map(|n| format!("a{n}")).chain((1..=4).map(|n| format!("b{n}"))).collect();
    expected.sort();
    assert_eq!(lines, expected, "{what}");
}

#[tokio::test]
async fn after_a_crash_at_any_byte_of_data_or_journal_every_record_is_there_once() {
    let directory = tempfile::tempdir().unwrap();
    let (durable, entries) = two_workers(directory.path()).await;
    let data = fs::read(directory.path().join("out/f")).unwrap();
    let journal = fs::read(directory.path().join("out/f.positions")).unwrap();
    let crash = |data: &[u8], journal: &[u8]| {
        // The same inode: a crash does not move files.
        fs::write(directory.path().join("out/f"), data).unwrap();
        fs::write(directory.path().join("out/f.positions"), journal).unwrap();
    };
    // Between the syncs: any part of the appended bytes may be there, no entry speaks of them.
    for cut in usize::try_from(durable).unwrap()..=data.len() {
        crash(&data[..cut], &journal[..entries]);
        replay(directory.path()).await;
        assert_each_once(directory.path(), &format!("data cut at {cut}"));
    }
    // While the entry is written: the data is whole, the entry is torn.
    for cut in entries..=journal.len() {
        crash(&data, &journal[..cut]);
        replay(directory.path()).await;
        assert_each_once(directory.path(), &format!("journal cut at {cut}"));
    }
    // Before the first entry's end: nothing of ours was appended.
    for cut in 0..=journal.iter().position(|b| *b == b'\n').unwrap() {
        crash(b"", &journal[..cut]);
        replay(directory.path()).await;
        assert_each_once(directory.path(), &format!("first entry cut at {cut}"));
    }
    // Power loss: appended bytes may read as zeros where no sync covered them.
    let mut zeros = data.clone();
    zeros[usize::try_from(durable).unwrap()..].fill(0);
    crash(&zeros, &journal[..entries]);
    replay(directory.path()).await;
    assert_each_once(directory.path(), "zeros");
}

#[tokio::test]
async fn what_a_file_held_before_the_first_record_stays() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("out")).unwrap();
    fs::write(directory.path().join("out/f"), "old\n").unwrap();
    let mut first = sink(directory.path(), FileFormat::Lines);
    first.write(&stream("a"), &numbered("a", 0, 2)).await.unwrap();
    drop(first);
    let mut second = sink(directory.path(), FileFormat::Lines);
    assert_eq!(second.open(&stream("a")).await.unwrap(), None);
    second.write(&stream("a"), &numbered("a", 0, 2)).await.unwrap();
    assert_eq!(lines(directory.path()), ["old", "a1", "a2"]);
}

#[tokio::test]
async fn positions_of_another_state_directory_count_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    two_workers(directory.path()).await;
    fs::remove_dir_all(directory.path().join("state")).unwrap();
    // A new cluster whose workers have the names of the old one.
    let mut sink = sink(directory.path(), FileFormat::Lines);
    assert_eq!(sink.open(&stream("a")).await.unwrap(), None);
    sink.write(&stream("a"), &numbered("new", 0, 1)).await.unwrap();
    sink.flush(deadline()).await.unwrap();
    let lines = lines(directory.path());
    assert_eq!((lines.len(), lines.last().map(String::as_str)), (12, Some("new1")));
}

#[tokio::test]
async fn a_file_moved_away_keeps_the_positions_and_a_new_one_is_begun() {
    let directory = tempfile::tempdir().unwrap();
    let mut running = sink(directory.path(), FileFormat::Lines);
    running.write(&stream("a"), &numbered("a", 0, 2)).await.unwrap();
    fs::rename(directory.path().join("out/f"), directory.path().join("out/f.1")).unwrap();
    running.flush(deadline()).await.unwrap();
    running.write(&stream("a"), &numbered("a", 2, 3)).await.unwrap();
    running.flush(deadline()).await.unwrap();
    assert_eq!(fs::read_to_string(directory.path().join("out/f.1")).unwrap(), "a1\na2\n");
    assert_eq!(lines(directory.path()), ["a3"]);
    drop(running);
    // Held open, so that the file system cannot use the inode again.
    let _held = fs::File::open(directory.path().join("out/f")).unwrap();
    fs::remove_file(directory.path().join("out/f")).unwrap();
    let mut restarted = sink(directory.path(), FileFormat::Lines);
    assert_eq!(restarted.open(&stream("a")).await.unwrap(), Some(3));
    assert_eq!(lines(directory.path()), [""; 0]);
}

#[tokio::test]
async fn a_file_that_lost_its_end_goes_back_to_what_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    let (durable, _) = two_workers(directory.path()).await;
    let file = OpenOptions::new().write(true).open(directory.path().join("out/f")).unwrap();
    file.set_len(durable + 1).unwrap();
    let mut restarted = sink(directory.path(), FileFormat::Lines);
    assert_eq!(restarted.open(&stream("a")).await.unwrap(), Some(5));
    assert_eq!(restarted.open(&stream("b")).await.unwrap(), Some(2));
    drop(restarted);
    file.set_len(0).unwrap();
    let mut restarted = sink(directory.path(), FileFormat::Lines);
    assert_eq!(restarted.open(&stream("a")).await.unwrap(), None);
}

#[tokio::test]
async fn an_archived_stream_is_forgotten_durably_and_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    two_workers(directory.path()).await;
    let mut first = sink(directory.path(), FileFormat::Lines);
    first.archive(&stream("a")).await.unwrap();
    drop(first);
    let mut second = sink(directory.path(), FileFormat::Lines);
    assert_eq!(second.open(&stream("a")).await.unwrap(), None);
    assert_eq!(second.open(&stream("b")).await.unwrap(), Some(4));
}

#[tokio::test]
async fn without_stable_positions_nothing_is_cut_off_and_no_position_returned() {
    let directory = tempfile::tempdir().unwrap();
    two_workers(directory.path()).await;
    let plain = || {
        let mut context = context(directory.path());
        context.stable_positions = false;
        FileSink::new(&Spec { path: "out/f".into(), format: FileFormat::Lines }, &context)
    };
    let mut first = plain();
    assert_eq!(first.open(&stream("a")).await.unwrap(), None);
    first.write(&stream("a"), &numbered("x", 0, 1)).await.unwrap();
    first.flush(deadline()).await.unwrap();
    assert_eq!(first.durable(), [(stream("a"), 1)]);
    drop(first);
    plain().check().await.unwrap();
    let mut again = sink(directory.path(), FileFormat::Lines);
    assert_eq!(again.open(&stream("a")).await.unwrap(), None);
    assert_eq!(lines(directory.path()).len(), 12);
}

#[tokio::test]
async fn every_byte_survives_length_prefixed_and_all_but_the_line_feed_survive_lines() {
    let directory = tempfile::tempdir().unwrap();
    let payloads = || (1..).zip((0..=255_u8).map(|byte| vec![b'<', byte, b'>']));
    let mut prefixed = sink(directory.path(), FileFormat::LengthPrefixed);
    assert!(prefixed.write(&stream("a"), &batch(payloads())).await.unwrap().rejected.is_empty());
    let bytes = fs::read(directory.path().join("out/f")).unwrap();
    let expected: Vec<u8> = payloads().flat_map(|(_, p)| [&[0, 0, 0, 3], &p[..]].concat()).collect();
    assert_eq!(bytes, expected);

    let directory = tempfile::tempdir().unwrap();
    let mut lines = sink(directory.path(), FileFormat::Lines);
    let written = lines.write(&stream("a"), &batch(payloads())).await.unwrap();
    assert_eq!(written.rejected.iter().map(|r| r.index).collect::<Vec<_>>(), [usize::from(b'\n')]);
    assert!(written.rejected[0].reason.contains("line feed"), "{}", written.rejected[0].reason);
    lines.write(&stream("a"), &batch([(300, b"with its own\n".to_vec())])).await.unwrap();
    let bytes = fs::read(directory.path().join("out/f")).unwrap();
    assert!(bytes.ends_with(b"<\xff>\nwith its own\n"));
}

#[tokio::test]
async fn a_second_writer_is_kept_out_and_a_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = sink(directory.path(), FileFormat::Lines);
    first.check().await.unwrap();
    let mut second = sink(directory.path(), FileFormat::Lines);
    let error = second.check().await.unwrap_err();
    assert!(matches!(error, SystemError::Transient { .. }));
    assert!(error.to_string().ends_with("it is locked; another process writes to it"), "{error}");
    drop(first);
    second.check().await.unwrap();
    let other: TempDir = tempfile::tempdir().unwrap();
    fs::create_dir_all(other.path().join("out/f")).unwrap();
    let error = sink(other.path(), FileFormat::Lines).check().await.unwrap_err();
    assert!(error.to_string().contains("out/f"), "{error}");
}

#[tokio::test]
async fn a_damaged_journal_is_refused_and_nothing_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    two_workers(directory.path()).await;
    let journal = directory.path().join("out/f.positions");
    let mut damaged = fs::read(&journal).unwrap();
    damaged[0] ^= 1;
    fs::write(&journal, &damaged).unwrap();
    let before = fs::read(directory.path().join("out/f")).unwrap();
    let error = sink(directory.path(), FileFormat::Lines).open(&stream("a")).await.unwrap_err();
    assert!(matches!(error, SystemError::Permanent { reason: "JournalCorrupt", .. }), "{error:?}");
    assert_eq!(fs::read(directory.path().join("out/f")).unwrap(), before);
    assert_eq!(fs::read(&journal).unwrap(), damaged);
}
