//! Tests of the transaction log, on a disk that loses what was not synced.

mod crashes;

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;

use super::*;
use crate::fake_disk::{Crash, FakeDisk};
use crate::record::BatchBuilder;

const LIMITS: Limits = Limits { records: 1_000, bytes: 1_000_000 };

pub(super) fn path() -> PathBuf {
    PathBuf::from("/state/txn-log")
}

pub(super) fn create(disk: &FakeDisk) -> TxnLog<FakeDisk> {
    TxnLog::create(disk, &path(), Bytes::from_static(b"worker-1"), 1).unwrap()
}

/// A log on a volume that had no room to keep back.
fn create_without_reserve(disk: &FakeDisk) -> TxnLog<FakeDisk> {
    disk.set_capacity(Some(disk.used() + 1_000));
    let log = create(disk);
    disk.set_capacity(None);
    log
}

pub(super) fn recover(disk: &FakeDisk) -> Result<TxnLog<FakeDisk>, LogError> {
    let mut logs = TxnLog::recover_all(disk, &path())?;
    Ok(logs.remove(&b"worker-1"[..]).expect("the worker's log").remove(0))
}

pub(super) fn append(log: &mut TxnLog<FakeDisk>, payloads: &[&[u8]]) -> Result<(), LogError> {
    let offset = log.state().received;
    log.append(offset, payloads.iter().copied(), false)
}

fn transaction(log: &mut TxnLog<FakeDisk>, name: &str, payloads: &[&[u8]]) {
    append(log, payloads).unwrap();
    let (start, end) = (log.state().committed, log.state().received);
    log.prepare(name.as_bytes(), true, start, end).unwrap();
    log.decide(true).unwrap();
}

/// Every decided record from `position` on, with its position.
pub(super) fn read_from(log: &mut TxnLog<FakeDisk>, position: u64) -> Vec<(u64, Vec<u8>)> {
    let mut cursor = log.seek(position).unwrap().expect("position is retained");
    let mut records = Vec::new();
    let mut builder = BatchBuilder::default();
    loop {
        log.read(&mut cursor, Limits { records: 2, bytes: 1_000_000 }, &mut builder).unwrap();
        let batch = builder.finish();
        if batch.is_empty() {
            return records;
        }
        records.extend(batch.iter().map(|record| (record.position, record.payload.to_vec())));
    }
}

#[test]
fn a_decided_transaction_is_read_back_message_by_message() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    append(&mut log, &[b"one", b"two"]).unwrap();
    append(&mut log, &[b"three"]).unwrap();
    assert_eq!(read_from(&mut log, 0), []);
    log.prepare(b"c2", true, 0, 11).unwrap();
    assert_eq!(read_from(&mut log, 0), []);
    log.decide(true).unwrap();
    let expected = [(3, b"one".to_vec()), (6, b"two".to_vec()), (11, b"three".to_vec())];
    assert_eq!(read_from(&mut log, 0), expected);
    assert_eq!(read_from(&mut log, 3), expected[1..]);
    assert_eq!(read_from(&mut log, 5), expected[1..], "a record that is there in part is given again");
    assert_eq!(read_from(&mut log, 11), []);
    drop(log);
    assert_eq!(read_from(&mut recover(&disk).unwrap(), 0), expected);
}

#[test]
fn an_aborted_transaction_leaves_nothing_and_its_offsets_come_again() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    transaction(&mut log, "c1", &[b"kept"]);
    log.mark(4, 1).unwrap();
    append(&mut log, &[b"gone", b"gone too"]).unwrap();
    log.prepare(b"c2", true, 4, 16).unwrap();
    log.decide(false).unwrap();
    assert_eq!((log.state().received, log.state().records, log.state().delivered), (4, 1, 4));
    transaction(&mut log, "c3", &[b"another"]);
    let expected = [(4, b"kept".to_vec()), (11, b"another".to_vec())];
    assert_eq!(read_from(&mut log, 0), expected);
    drop(log);
    let mut log = recover(&disk).unwrap();
    assert_eq!((read_from(&mut log, 0), log.state().delivered), (expected.to_vec(), 4));
}

#[test]
fn a_reader_that_waits_behind_an_undecided_round_survives_its_abort() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    transaction(&mut log, "c1", &[b"kept"]);
    log.prepare(b"c2", true, 4, 4).unwrap();
    let mut cursor = log.seek(4).unwrap().unwrap();
    log.decide(false).unwrap();
    transaction(&mut log, "c3", &[b"next"]);
    let mut builder = BatchBuilder::default();
    log.read(&mut cursor, LIMITS, &mut builder).unwrap();
    assert_eq!(builder.finish().get(0).unwrap().payload, b"next");
}

#[test]
fn a_vote_is_synced_and_output_is_not() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    let before = disk.syncs();
    append(&mut log, &[b"staged"]).unwrap();
    assert_eq!(disk.syncs(), before);
    log.prepare(b"c2", true, 0, 6).unwrap();
    assert_eq!(disk.syncs(), before + 1);
    log.decide(true).unwrap();
    assert_eq!(disk.syncs(), before + 2);
    log.mark(6, 1).unwrap();
    log.prepare(b"c3", true, 6, 6).unwrap();
    log.decide(true).unwrap();
    assert_eq!(disk.syncs(), before + 3, "a commit of nothing costs no sync of its own");
}

#[test]
fn output_without_a_vote_is_gone_after_a_restart_and_a_voted_transaction_is_listed() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    transaction(&mut log, "c1", &[b"kept"]);
    append(&mut log, &[b"staged"]).unwrap();
    drop(log);
    disk.crash(Crash::Process);
    let mut log = recover(&disk).unwrap();
    let state = log.state().worker_state();
    assert_eq!((state.committed, state.received, state.pending), (4, 4, None));
    append(&mut log, &[b"in doubt"]).unwrap();
    log.prepare(b"c3", true, 4, 12).unwrap();
    drop(log);
    disk.crash(Crash::Power { seed: 3 });
    let mut log = recover(&disk).unwrap();
    let state = log.state().worker_state();
    assert_eq!((state.committed, state.received), (4, 12));
    assert_eq!(state.pending.unwrap().transaction, "c3");
    log.decide(true).unwrap();
    assert_eq!(read_from(&mut log, 4), [(12, b"in doubt".to_vec())]);
}

#[test]
fn a_vote_to_abort_is_remembered_and_never_becomes_a_commit() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    append(&mut log, &[b"poisoned"]).unwrap();
    log.prepare(b"c2", false, 0, 20).unwrap();
    drop(log);
    let mut log = recover(&disk).unwrap();
    let state = log.state().worker_state();
    assert_eq!((state.received, state.pending.unwrap().vote), (0, false));
    assert!(matches!(log.decide(true), Err(LogError::Misuse { .. })));
    log.decide(false).unwrap();
    assert_eq!(log.state().received, 0);
}

#[test]
fn segments_are_forgotten_when_durable_and_out_of_retention_and_not_before() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    log.segment_bytes = 200;
    let started = Instant::now();
    for n in 0..20 {
        transaction(&mut log, &format!("c{n}"), &[format!("record {n:02}").as_bytes()]);
    }
    assert!(log.segments.len() > 5);
    let retain = Retain { time: Duration::from_secs(30), bytes: 1_000_000 };
    assert_eq!(log.forget(started + Duration::from_hours(1), retain).unwrap(), 0, "nothing is delivered");
    log.mark(90, 10).unwrap();
    assert_eq!(log.forget(started + Duration::from_secs(29), retain).unwrap(), 0, "still retained");
    assert_eq!(read_from(&mut log, 0).len(), 20, "a target that went back gets all again");
    assert!(log.forget(started + Duration::from_secs(40), retain).unwrap() > 0);
    let from = log.retained_from();
    assert!(from > 0 && from <= 90, "{from}");
    assert_eq!(log.seek(from - 1).unwrap(), None);
    assert_eq!(read_from(&mut log, 90).len(), 10);
    log.mark(180, 20).unwrap();
    let small = Retain { time: Duration::from_secs(30), bytes: 400 };
    log.forget(Instant::now(), small).unwrap();
    assert!(log.disk_bytes() <= 400 + 300, "more than the bytes to retain is forgotten at once");
    drop(log);
    let log = recover(&disk).unwrap();
    assert_eq!((log.state().committed, log.state().delivered, log.state().records), (180, 180, 20));
}

#[test]
fn what_was_forgotten_counts_as_delivered_though_the_mark_was_lost() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    log.segment_bytes = 100;
    for n in 0..6 {
        transaction(&mut log, &format!("c{n}"), &[b"0123456789"]);
    }
    log.mark(60, 6).unwrap();
    log.forget(Instant::now(), Retain { time: Duration::ZERO, bytes: 0 }).unwrap();
    let (from, records) = (log.retained_from(), log.segments[0].first_records);
    drop(log);
    let active = disk.files().into_iter().rfind(|file| file.extension() == Some("txn".as_ref())).unwrap();
    let mut bytes = disk.bytes(&active);
    let mark = bytes.len() - 33; // the unsynced mark
    bytes.truncate(mark);
    disk.set_bytes(&active, bytes);
    let log = recover(&disk).unwrap();
    assert!(from > 0);
    assert_eq!((log.state().delivered, log.state().delivered_records), (from, records));
}

#[test]
fn a_worker_that_is_idle_for_ever_does_not_fill_the_volume() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    log.segment_bytes = 1_000;
    let kept_back = disk.used() - log.disk_bytes();
    transaction(&mut log, "c0", &[b"once"]);
    log.mark(4, 1).unwrap();
    for round in 0..200 {
        transaction(&mut log, &format!("c{round}"), &[]);
        log.forget(Instant::now(), Retain { time: Duration::ZERO, bytes: 0 }).unwrap();
    }
    assert!(disk.used() < kept_back + 1_400, "{}", disk.used());
    drop(log);
    assert_eq!(recover(&disk).unwrap().state().committed, 4);
}

#[test]
fn a_segment_that_has_no_room_for_its_successor_goes_on() {
    let disk = FakeDisk::default();
    let mut log = create_without_reserve(&disk);
    log.segment_bytes = 120;
    transaction(&mut log, "c1", &[b"first"]);
    disk.set_capacity(Some(disk.used() + 80));
    append(&mut log, &[b"more"]).unwrap();
    assert_eq!(log.segments.len(), 1);
    disk.set_capacity(None);
    log.prepare(b"c2", true, 5, 9).unwrap();
    log.decide(true).unwrap();
    transaction(&mut log, "c3", &[b"third"]);
    assert_eq!((log.segments.len(), read_from(&mut log, 0).len()), (2, 3));
    drop(log);
    assert_eq!(read_from(&mut recover(&disk).unwrap(), 0).len(), 3);
}

#[test]
fn without_room_nothing_changes_and_the_same_call_works_later() {
    let disk = FakeDisk::default();
    let mut log = create_without_reserve(&disk);
    transaction(&mut log, "c1", &[b"kept"]);
    append(&mut log, &[b"staged"]).unwrap();
    let (state, used) = (log.state().clone(), disk.used());
    disk.set_capacity(Some(used + 10));
    let big = [7; 100];
    assert!(matches!(append(&mut log, &[&big]), Err(LogError::NoSpace { needed, .. }) if needed > 100));
    assert!(matches!(log.prepare(b"c2", true, 4, 10), Err(LogError::NoSpace { .. })));
    assert_eq!((log.state(), disk.used()), (&state, used));
    disk.set_capacity(None);
    append(&mut log, &[&big]).unwrap();
    log.prepare(b"c2", true, 4, 110).unwrap();
    disk.set_capacity(Some(disk.used()));
    assert!(matches!(log.decide(true), Err(LogError::NoSpace { .. })));
    disk.set_capacity(None);
    log.decide(true).unwrap();
    drop(log);
    assert_eq!(read_from(&mut recover(&disk).unwrap(), 0).len(), 3);
}

#[test]
fn on_a_full_volume_what_was_delivered_makes_room_for_what_comes() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    transaction(&mut log, "c1", &[&[1; 5_000]]);
    disk.set_capacity(Some(disk.used() + 100));
    let now = Instant::now();
    let retain = Retain { time: Duration::ZERO, bytes: 0 };
    for round in 2..200_u8 {
        // Nothing of the one before is delivered yet: no room, and it will not come by itself.
        assert!(matches!(append(&mut log, &[&[round; 5_000]]), Err(LogError::NoSpace { .. })));
        let state = log.state();
        let (position, records) = (state.committed, state.committed_records);
        log.mark(position, records).unwrap();
        assert!(log.forget(now, retain).unwrap() >= 5_000, "the segment was closed though it is short");
        transaction(&mut log, &format!("c{round}"), &[&[round; 5_000]]);
    }
    drop(log);
    let mut log = recover(&disk).unwrap();
    assert_eq!((log.state().committed, log.state().records), (199 * 5_000, 199));
    assert_eq!(read_from(&mut log, 198 * 5_000), [(199 * 5_000, vec![199; 5_000])]);
}

#[test]
fn what_fits_is_voted_for_and_decided_though_nothing_else_fits() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    append(&mut log, &[&[1; 5_000]]).unwrap();
    disk.set_capacity(Some(disk.used()));
    log.prepare(b"c1", true, 0, 5_000).unwrap();
    log.decide(true).unwrap();
    assert!(disk.used() <= 65_536 + log.disk_bytes(), "no more than the volume has");
    disk.crash(Crash::Power { seed: 1 });
    drop(log);
    let mut log = recover(&disk).unwrap();
    assert_eq!(read_from(&mut log, 0), [(5_000, vec![1; 5_000])]);
    log.mark(5_000, 1).unwrap();
    assert!(matches!(append(&mut log, &[&vec![2; 70_000]]), Err(LogError::NoSpace { .. })));
    log.forget(Instant::now(), Retain { time: Duration::ZERO, bytes: 0 }).unwrap();
    transaction(&mut log, "c2", &[b"goes on"]);
}

#[test]
fn a_removed_log_leaves_nothing_behind() {
    let disk = FakeDisk::default();
    create(&disk).remove().unwrap();
    assert_eq!(disk.files(), [] as [PathBuf; 0]);
}

#[test]
fn after_a_failed_sync_the_vote_is_not_promised_and_recovery_starts_from_disk() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    transaction(&mut log, "c1", &[b"kept"]);
    append(&mut log, &[b"staged"]).unwrap();
    disk.fail_syncs(true);
    assert!(matches!(log.prepare(b"c2", true, 4, 10), Err(LogError::SyncFailed { .. })));
    drop(log);
    for seed in 0..50 {
        let copy = disk.copy();
        copy.crash(Crash::Power { seed });
        assert_eq!(recover(&copy).unwrap().state().committed, 4);
    }
}

/// A log of which everything was synced, and then used a little.
fn synced_log(disk: &FakeDisk) -> (PathBuf, LogState) {
    let mut log = create(disk);
    transaction(&mut log, "c1", &[b"first", b"second"]);
    append(&mut log, &[b"third"]).unwrap();
    log.prepare(b"c2", true, 11, 16).unwrap();
    let state = log.state().clone();
    (disk.files()[0].clone(), state)
}

#[test]
fn damage_to_what_was_durable_is_refused_with_file_and_offset_and_nothing_is_changed() {
    let disk = FakeDisk::default();
    let (file, state) = synced_log(&disk);
    let good = disk.bytes(&file);
    let evidence = good.len() - 17; // the last record only says that all before it is durable
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        disk.set_bytes(&file, bytes.clone());
        match recover(&disk) {
            Err(LogError::Corrupt { path, offset, .. }) => {
                assert_eq!(path, file);
                assert!(offset <= at as u64);
                assert!(at < evidence, "byte {at}");
                assert_eq!(disk.bytes(&file), bytes, "nothing is changed");
            }
            Ok(log) => {
                assert!(at >= evidence, "byte {at} was damaged and nobody noticed");
                assert_eq!(log.state(), &state);
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
}

#[test]
fn a_missing_segment_is_refused() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    log.segment_bytes = 100;
    for n in 0..6 {
        transaction(&mut log, &format!("c{n}"), &[b"0123456789"]);
    }
    drop(log);
    let middle = disk.files()[1].clone();
    disk.remove(&middle).unwrap();
    let error = recover(&disk).unwrap_err();
    assert!(error.to_string().contains("segment 2 is missing"), "{error}");
}

#[test]
fn a_file_of_somebody_else_is_refused() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    transaction(&mut log, "c1", &[b"x"]);
    drop(log);
    let file = disk.files()[0].clone();
    let bytes = disk.bytes(&file);
    disk.remove(&file).unwrap();
    let other = path().join("worker-1.00000000000000000002.00000000000000000001.txn");
    disk.open(&other).unwrap();
    disk.set_bytes(&other, bytes);
    assert!(matches!(recover(&disk), Err(LogError::Corrupt { offset: 0, .. })));
}

#[test]
fn a_log_whose_creation_was_lost_never_was() {
    let disk = FakeDisk::default();
    disk.open(&path().join("worker-1.00000000000000000001.00000000000000000001.txn")).unwrap();
    assert!(TxnLog::recover_all(&disk, &path()).unwrap().is_empty());
    assert_eq!(disk.files().len(), 0);
}

#[test]
fn the_end_of_an_incarnation_settles_its_doubtful_transaction_as_asked() {
    for (policy, committed, pending) in
        [(InDoubt::Commit, 8, false), (InDoubt::Keep, 4, true), (InDoubt::Discard, 4, false)]
    {
        let disk = FakeDisk::default();
        let mut log = create(&disk);
        transaction(&mut log, "c1", &[b"kept"]);
        append(&mut log, &[b"more"]).unwrap();
        log.prepare(b"c2", true, 4, 8).unwrap();
        assert_eq!(log.end(policy).unwrap().unwrap(), "c2");
        drop(log);
        let log = recover(&disk).unwrap();
        let state = log.state();
        assert_eq!(
            (state.committed, state.pending.is_some(), state.ended),
            (committed, pending, Some(pending))
        );
        let waiting = undelivered(&disk, &path()).unwrap();
        assert_eq!(waiting, if policy == InDoubt::Discard { 4 } else { 8 });
    }
}

#[test]
fn a_transaction_that_is_kept_in_doubt_can_be_read_and_no_other_can() {
    let kept = |disk: &FakeDisk| {
        let mut found = Vec::new();
        kept_in_doubt(disk, &path(), |worker, incarnation, payload| {
            found.push((worker.to_vec(), incarnation, payload.to_vec()));
        })
        .unwrap();
        found
    };
    for policy in [InDoubt::Commit, InDoubt::Keep, InDoubt::Discard] {
        let disk = FakeDisk::default();
        let mut log = create(&disk);
        transaction(&mut log, "c1", &[b"decided"]);
        append(&mut log, &[b"one", b"two"]).unwrap();
        log.prepare(b"c2", true, 7, 13).unwrap();
        assert_eq!(kept(&disk), [], "its cluster may still decide");
        log.end(policy).unwrap();
        // A later incarnation does not hide it.
        TxnLog::create(&disk, &path(), Bytes::from_static(b"worker-1"), 2).unwrap();
        let expected =
            [(b"worker-1".to_vec(), 1, b"one".to_vec()), (b"worker-1".to_vec(), 1, b"two".to_vec())];
        let expected: &[_] = if policy == InDoubt::Keep { &expected } else { &[] };
        assert_eq!(kept(&disk), expected);
    }
}

#[test]
fn output_at_receipt_is_decided_at_once_and_may_leave_gaps() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    log.append(0, [b"one".as_slice()].into_iter(), true).unwrap();
    log.append(10, [b"two".as_slice()].into_iter(), true).unwrap();
    assert!(matches!(log.append(5, [b"x".as_slice()].into_iter(), true), Err(LogError::Misuse { .. })));
    drop(log);
    assert_eq!(read_from(&mut recover(&disk).unwrap(), 0), [(3, b"one".to_vec()), (13, b"two".to_vec())]);
}

#[test]
fn long_and_strange_worker_names_have_logs_of_their_own() {
    let disk = FakeDisk::default();
    let names = [
        b"a.b".to_vec(),
        b"a%2eb".to_vec(),
        b"".to_vec(),
        b"%".to_vec(),
        vec![b'x'; 300],
        vec![b'x'; 301],
        vec![0xff],
    ];
    for name in &names {
        TxnLog::create(&disk, &path(), Bytes::from(name.clone()), 1).unwrap();
    }
    let found = TxnLog::recover_all(&disk, &path()).unwrap();
    assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), names.into_iter().map(Bytes::from).collect());
    assert!(disk.files().iter().all(|file| file.file_name().unwrap().len() <= 255));
}

#[test]
fn a_message_above_the_record_size_and_many_small_ones_are_read_in_bounded_batches() {
    let disk = FakeDisk::default();
    let mut log = create(&disk);
    let large = vec![1; RECORD_BYTES + 1];
    let small = vec![2_u8; 1_000];
    let payloads: Vec<&[u8]> =
        std::iter::once(&large[..]).chain(std::iter::repeat_n(&small[..], 1_000)).collect();
    transaction(&mut log, "c1", &payloads);
    let mut cursor = log.seek(0).unwrap().unwrap();
    let mut builder = BatchBuilder::default();
    let mut sizes = Vec::new();
    loop {
        log.read(&mut cursor, Limits { records: 300, bytes: 100_000 }, &mut builder).unwrap();
        let batch = builder.finish();
        if batch.is_empty() {
            break;
        }
        sizes.push(batch.len());
        assert!(batch.len() == 1 || batch.bytes() <= 100_000);
    }
    assert_eq!(sizes.iter().sum::<usize>(), 1_001);
    assert_eq!(sizes[0], 1);
}
