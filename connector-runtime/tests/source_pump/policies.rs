//! Records that can never be handed over.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use connector_crds::OnError;
use connector_runtime::board::DropReason;
use connector_runtime::pump::dead_letter::{DeadLetter, Letter};
use connector_runtime::pump::source::{Outcome, SourcePumpConfig};
use connector_runtime::source::{BadRecord, ErrorClass, SourceEvent, SystemError};
use tokio::time::Duration;

use crate::harness::{config, start, start_with, stays, until};
use crate::scripted::{Scripted, payload};
use crate::worker::Worker;

fn with(worker: &Worker, on_error: OnError) -> SourcePumpConfig {
    SourcePumpConfig { on_error, ..config(&worker.address()) }
}

/// Records 1 to 9, of which 4 is too long and 9 is empty.
fn two_bad(finite: bool) -> Scripted {
    let source = Scripted::new(4);
    let records = (1..=9).map(|n| match n {
        4 => (n, vec![b'x'; 16_358]),
        9 => (n, Vec::new()),
        _ => (n, payload("a", n)),
    });
    source.add("a", records.collect(), finite);
    source
}

#[derive(Clone, Default)]
struct Letters {
    written: Arc<Mutex<Vec<(u64, usize, String)>>>,
    failures: Arc<Mutex<u32>>,
}

#[async_trait]
impl DeadLetter for Letters {
    async fn write(&mut self, letter: Letter<'_>) -> Result<(), SystemError> {
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(SystemError::Transient {
                context: "disk full".into(),
                class: ErrorClass::Rejected,
                cause: None,
            });
        }
        let entry = (letter.position, letter.payload.len(), letter.reason.to_owned());
        self.written.lock().unwrap().push(entry);
        Ok(())
    }
}

#[tokio::test]
async fn drop_passes_bad_records_and_their_positions_count_also_at_the_end() {
    let worker = Worker::start().await;
    let source = two_bad(true);
    let pump = start(&source, with(&worker, OnError::Drop));
    let board = pump.board.clone();
    assert_eq!(pump.outcome().await, Outcome::Completed);
    assert_eq!(worker.distinct("a"), [1, 2, 3, 5, 6, 7, 8]);
    assert_eq!(source.committed("a"), Some(9), "the last record is a dropped one");
    let dropped = board.snapshot().records.dropped;
    assert_eq!(dropped[DropReason::TooLarge.label()], 1);
    assert_eq!(dropped[DropReason::Decode.label()], 1);
}

#[tokio::test]
async fn the_longest_record_passes() {
    let worker = Worker::start().await;
    let source = Scripted::new(4);
    source.add("a", vec![(1, vec![b'x'; 16_357])], true);
    assert_eq!(start(&source, with(&worker, OnError::Stop)).outcome().await, Outcome::Completed);
    assert_eq!(worker.ran("a"), 1);
}

#[tokio::test]
async fn a_dead_letter_is_durable_before_the_position_moves_past_it() {
    let worker = Worker::start().await;
    let source = two_bad(true);
    let letters = Letters::default();
    *letters.failures.lock().unwrap() = 2;
    let pump = start_with(&source, with(&worker, OnError::DeadLetter), Some(Box::new(letters.clone())));
    until("the failure shows", || pump.stalled_reason().as_deref() == Some("DeadLetterFailed")).await;
    assert!(source.committed("a") <= Some(3));
    let board = pump.board.clone();
    assert_eq!(pump.outcome().await, Outcome::Completed);
    let written = letters.written.lock().unwrap().clone();
    let positions: Vec<_> = written.iter().map(|(position, bytes, _)| (*position, *bytes)).collect();
    assert_eq!(positions, [(4, 16_358), (9, 0)]);
    assert!(written[0].2.contains("16358") && written[0].2.contains("16357"), "{}", written[0].2);
    assert_eq!(board.snapshot().records.dead_letters, 2);
    assert_eq!(source.committed("a"), Some(9));
    assert_eq!(board.snapshot().stalled, None);
}

#[tokio::test]
async fn a_bad_record_that_is_read_again_is_reported_once() {
    let worker = Worker::start().await;
    worker.rules().checkpoints = false;
    let source = two_bad(false);
    let letters = Letters::default();
    let pump = start_with(&source, with(&worker, OnError::DeadLetter), Some(Box::new(letters.clone())));
    until("all ran", || worker.ran("a") == 7 && letters.written.lock().unwrap().len() == 2).await;
    worker.close_all();
    until("all ran again", || worker.ran("a") == 14).await;
    worker.rules().checkpoints = true;
    until("all is committed", || source.committed("a") == Some(9)).await;
    assert_eq!(letters.written.lock().unwrap().len(), 2);
    pump.stop().await;
}

#[tokio::test]
async fn stop_holds_its_stream_by_name_and_position_and_others_go_on() {
    let worker = Worker::start().await;
    let source = two_bad(true).topic("b", 500, false);
    let pump = start(&source, with(&worker, OnError::Stop));
    until("the other is done", || source.committed("b") == Some(500)).await;
    until("what is before it is committed", || source.committed("a") == Some(3)).await;
    let stalled = pump.board.snapshot().stalled.unwrap();
    assert_eq!(stalled.reason, "RecordRejected");
    for part in ["\"a\"", "position 4", "16358"] {
        assert!(stalled.message.contains(part), "{}", stalled.message);
    }
    worker.close_all();
    until("a new session", || source.resumes("a").len() == 2).await;
    stays("it does not pass", Duration::from_millis(50), || worker.distinct("a") == [1, 2, 3]).await;
    assert_eq!(pump.stalled_reason().as_deref(), Some("RecordRejected"));
    pump.stop().await;
}

#[tokio::test]
async fn a_malformed_record_of_the_source_follows_the_same_policy() {
    let worker = Worker::start().await;
    let source = Scripted::new(4).topic("a", 3, false);
    let pump = start(&source, with(&worker, OnError::Drop));
    until("the good ones are committed", || source.committed("a") == Some(3)).await;
    source.event(SourceEvent::BadRecord {
        stream: source.key("a"),
        position: 4,
        reason: BadRecord::Malformed("line is not UTF-8".into()),
        payload: Bytes::from_static(b"\xff"),
    });
    until("its position counts", || source.committed("a") == Some(4)).await;
    assert_eq!(pump.board.snapshot().records.dropped[DropReason::Decode.label()], 1);
    pump.stop().await;
}

#[tokio::test]
async fn a_record_that_wallaroo_cannot_decode_is_found_and_dropped() {
    let worker = Worker::start().await;
    worker.rules().poison = Some(payload("a", 137));
    let source = Scripted::new(64).topic("a", 300, true).topic("b", 300, true);
    let letters = Letters::default();
    let pump = start_with(&source, with(&worker, OnError::DeadLetter), Some(Box::new(letters.clone())));
    assert_eq!(pump.outcome().await, Outcome::Completed);
    let written = letters.written.lock().unwrap().clone();
    assert_eq!(written.len(), 1, "{written:?}");
    assert_eq!(written[0].0, 137);
    assert_eq!(worker.distinct("a"), (1..=300).filter(|n| *n != 137).collect::<Vec<_>>());
    assert_eq!(worker.distinct("b"), (1..=300).collect::<Vec<_>>());
    assert_eq!((source.committed("a"), source.committed("b")), (Some(300), Some(300)));
}
