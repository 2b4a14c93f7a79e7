//! Tests of the file source: resume, rotation, what a new process remembers.

use std::fs::OpenOptions;
use std::io::Write;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::connectors::testing::context;

const WAIT: Duration = Duration::from_secs(20);

fn source(directory: &TempDir, at_end: AtEnd) -> FileSource {
    let spec = Spec { path: "in.log".into(), format: FileFormat::Lines, at_end, max_record_bytes: 100 };
    FileSource::new(&spec, &context(directory.path()))
}

fn add(directory: &TempDir, name: &str, text: &str) {
    let path = directory.path().join(name);
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

async fn event(source: &mut FileSource) -> SourceEvent {
    timeout(WAIT, source.next()).await.expect("an event in time").unwrap()
}

async fn opened(source: &mut FileSource) -> (StreamKey, String, Option<Position>) {
    match event(source).await {
        SourceEvent::Opened { stream, name, committed } => (stream, name, committed),
        other => panic!("{other:?}"),
    }
}

async fn lines(source: &mut FileSource, count: usize) -> Vec<(StreamKey, Position, String)> {
    let mut lines = Vec::new();
    while lines.len() < count {
        let SourceEvent::Batch { stream, batch } = event(source).await else { panic!("{lines:?}") };
        lines.extend(
            batch.iter().map(|r| (stream, r.position, String::from_utf8(r.payload.to_vec()).unwrap())),
        );
    }
    lines
}

async fn ended(source: &mut FileSource) -> StreamKey {
    match event(source).await {
        SourceEvent::Ended { stream } => stream,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_finished_file_ends_and_a_new_process_continues_behind_what_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    add(&directory, "in.log", "a\nb\nc");
    let mut first = source(&directory, AtEnd::Finish);
    let (stream, name, committed) = opened(&mut first).await;
    assert_eq!(committed, None);
    first.resume(stream, ResumeFrom::Committed).await.unwrap();
    assert_eq!(lines(&mut first, 3).await[2], (stream, 5, "c".into()));
    assert_eq!(ended(&mut first).await, stream);
    first.commit(&[(stream, 2)]).await.unwrap();
    first.commit(&[(stream, 2)]).await.unwrap();
    first.close(Instant::now() + WAIT).await.unwrap();

    let mut second = source(&directory, AtEnd::Finish);
    assert_eq!(opened(&mut second).await, (stream, name, Some(2)));
    second.resume(stream, ResumeFrom::Committed).await.unwrap();
    assert_eq!(lines(&mut second, 2).await, [(stream, 4, "b".into()), (stream, 5, "c".into())]);
    // Wallaroo's answer goes before the commit.
    second.resume(stream, ResumeFrom::After(0)).await.unwrap();
    assert_eq!(lines(&mut second, 3).await[0], (stream, 2, "a".into()));
    ended(&mut second).await;
    second.resume(stream, ResumeFrom::After(4)).await.unwrap();
    assert_eq!(lines(&mut second, 1).await, [(stream, 5, "c".into())]);
}

#[tokio::test(start_paused = true)]
async fn another_epoch_forgets_what_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    add(&directory, "in.log", "a\nb\n");
    let mut first = source(&directory, AtEnd::Follow);
    let (stream, ..) = opened(&mut first).await;
    first.resume(stream, ResumeFrom::Committed).await.unwrap();
    lines(&mut first, 2).await;
    first.commit(&[(stream, 4)]).await.unwrap();
    first.close(Instant::now() + WAIT).await.unwrap();
    let mut second = source(&directory, AtEnd::Follow);
    second.epoch = "again".into();
    assert_eq!(opened(&mut second).await.2, None);
}

#[tokio::test(start_paused = true)]
async fn a_rotated_file_is_finished_before_the_new_one_opens() {
    let directory = tempfile::tempdir().unwrap();
    add(&directory, "in.log", "a\n");
    let mut source = source(&directory, AtEnd::Follow);
    let (old, old_name, _) = opened(&mut source).await;
    source.resume(old, ResumeFrom::Committed).await.unwrap();
    assert_eq!(lines(&mut source, 1).await, [(old, 2, "a".into())]);

    fs::rename(directory.path().join("in.log"), directory.path().join("in.log.1")).unwrap();
    add(&directory, "in.log.1", "b\n");
    add(&directory, "in.log", "new\n");
    assert_eq!(lines(&mut source, 1).await, [(old, 4, "b".into())]);
    add(&directory, "in.log.1", "tail");
    assert_eq!(lines(&mut source, 1).await, [(old, 8, "tail".into())]);
    assert_eq!(ended(&mut source).await, old);

    let (new, new_name, committed) = opened(&mut source).await;
    assert!(new != old && new_name != old_name && committed.is_none());
    source.resume(new, ResumeFrom::Committed).await.unwrap();
    assert_eq!(lines(&mut source, 1).await, [(new, 4, "new".into())]);
    // The old stream can still be repeated until it is released.
    source.resume(old, ResumeFrom::After(4)).await.unwrap();
    assert_eq!(lines(&mut source, 1).await, [(old, 8, "tail".into())]);
    assert_eq!(ended(&mut source).await, old);
    source.commit(&[(old, 8)]).await.unwrap();
    source.release(old).await.unwrap();
    assert_eq!(source.positions.as_ref().unwrap().begun("in.log").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_rotated_while_the_process_was_down_is_found_and_finished_first() {
    let directory = tempfile::tempdir().unwrap();
    add(&directory, "in.log", "a\nb\n");
    let mut first = source(&directory, AtEnd::Follow);
    let (stream, name, _) = opened(&mut first).await;
    first.resume(stream, ResumeFrom::Committed).await.unwrap();
    lines(&mut first, 2).await;
    first.commit(&[(stream, 2)]).await.unwrap();
    first.close(Instant::now() + WAIT).await.unwrap();
    fs::rename(directory.path().join("in.log"), directory.path().join("renamed")).unwrap();
    add(&directory, "in.log", "new\n");

    let mut second = source(&directory, AtEnd::Follow);
    let (old, old_name, committed) = opened(&mut second).await;
    assert_eq!((old_name, committed), (name, Some(2)));
    second.resume(old, ResumeFrom::Committed).await.unwrap();
    assert_eq!(lines(&mut second, 1).await, [(old, 4, "b".into())]);
    assert_eq!(ended(&mut second).await, old);
    let (new, _, committed) = opened(&mut second).await;
    assert_eq!(committed, None);
    second.resume(new, ResumeFrom::Committed).await.unwrap();
    assert_eq!(lines(&mut second, 1).await, [(new, 4, "new".into())]);
}

#[tokio::test(start_paused = true)]
async fn a_truncated_file_is_permanent_and_never_starts_over() {
    let directory = tempfile::tempdir().unwrap();
    add(&directory, "in.log", "aaaa\nb\n");
    let mut source = source(&directory, AtEnd::Follow);
    let (stream, ..) = opened(&mut source).await;
    source.resume(stream, ResumeFrom::Committed).await.unwrap();
    lines(&mut source, 2).await;
    fs::write(directory.path().join("in.log"), "c\n").unwrap();
    for _ in 0..2 {
        let error = timeout(WAIT, source.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, SystemError::Permanent { reason: "PositionOutOfRange", .. }), "{error:?}");
    }
    let error = source.resume(stream, ResumeFrom::After(7)).await.unwrap_err();
    assert!(matches!(error, SystemError::Permanent { reason: "PositionOutOfRange", .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_file_is_transient_until_it_appears_and_a_directory_is_permanent() {
    let directory = tempfile::tempdir().unwrap();
    let mut source = source(&directory, AtEnd::Follow);
    let error = source.next().await.unwrap_err();
    assert!(matches!(error, SystemError::Transient { class: ErrorClass::Connect, .. }));
    assert!(error.to_string().contains("in.log"), "{error}");
    fs::create_dir(directory.path().join("in.log")).unwrap();
    let error = source.check().await.unwrap_err();
    assert!(matches!(error, SystemError::Permanent { reason: "NotAFile", .. }));
    fs::remove_dir(directory.path().join("in.log")).unwrap();
    add(&directory, "in.log", "a\n");
    source.check().await.unwrap();
    opened(&mut source).await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_state_file_is_refused_by_name_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    add(&directory, "in.log", "a\n");
    let state = directory.path().join("state/file-positions.json");
    fs::create_dir(state.parent().unwrap()).unwrap();
    fs::write(&state, "{\"version\": 1, ").unwrap();
    let error = source(&directory, AtEnd::Follow).next().await.unwrap_err();
    assert!(matches!(error, SystemError::Permanent { reason: "StateFileCorrupt", .. }), "{error:?}");
    assert!(error.to_string().contains("file-positions.json"), "{error}");
    assert_eq!(fs::read_to_string(&state).unwrap(), "{\"version\": 1, ");
}
