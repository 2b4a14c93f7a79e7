//! Tests of the position log, on a disk that loses what was not synced.

use proptest::prelude::*;

use super::*;
use crate::fake_disk::{Crash, FakeDisk};

fn directory() -> PathBuf {
    PathBuf::from("/state")
}

fn open(disk: &FakeDisk) -> PositionLog<FakeDisk> {
    PositionLog::open(disk, &directory(), "first").unwrap()
}

/// A system whose cursor behind record `n` is `c<n + 7>`, as if seven records were there before us.
fn cursor(position: Position) -> String {
    format!("c{}", position + 7)
}

fn read_to(log: &mut PositionLog<FakeDisk>, stream: &str, from: Position, to: Position) {
    for position in from + 1..=to {
        log.note(stream, position, &cursor(position)).unwrap();
    }
}

#[test]
fn a_stream_continues_at_the_greatest_anchor_below_what_wallaroo_has() {
    let disk = FakeDisk::default();
    let mut log = open(&disk);
    log.begin("shard-0", 0, &cursor(0)).unwrap();
    read_to(&mut log, "shard-0", 0, 5_500);
    for (position, anchor) in [(0, 0), (999, 0), (1_000, 1_000), (3_999, 3_000), (9_999, 5_000)] {
        let found = log.resume_point("shard-0", position).unwrap();
        assert_eq!((found.position, &found.cursor), (anchor, &cursor(anchor)), "{position}");
    }
    log.acknowledge([("shard-0", 4_200)]).unwrap();
    assert_eq!(log.acknowledged("shard-0"), Some(4_200));
    assert_eq!(log.resume_point("shard-0", 3_999), None);
    assert_eq!(log.resume_point("shard-0", 4_200).unwrap().position, 4_000);
    // Another process finds what is needed for any answer of Wallaroo at or beyond the acknowledged position.
    let again = open(&disk);
    assert_eq!(again.acknowledged("shard-0"), Some(4_200));
    assert_eq!(
        again.resume_point("shard-0", 5_400),
        Some(&Anchor { position: 4_000, cursor: cursor(4_000) })
    );
}

#[test]
fn nothing_is_written_before_an_acknowledgement_and_nothing_for_an_old_one() {
    let disk = FakeDisk::default();
    let mut log = open(&disk);
    assert!(!log.was_there());
    log.begin("s", 0, "start").unwrap();
    read_to(&mut log, "s", 0, 3_000);
    assert_eq!((disk.files(), disk.syncs()), (vec![], 0));
    log.acknowledge([("s", 10)]).unwrap();
    assert_eq!(disk.syncs(), 1);
    log.acknowledge([("s", 10), ("s", 9), ("unknown", 5)]).unwrap();
    assert_eq!(disk.syncs(), 1);
    assert!(open(&disk).was_there());
}

#[test]
fn memory_is_bounded_while_nothing_is_acknowledged_and_the_first_anchor_stays() {
    let disk = FakeDisk::default();
    let mut log = open(&disk);
    log.begin("s", 0, &cursor(0)).unwrap();
    for position in (0..10_000_000).step_by(500) {
        log.note("s", position, &cursor(position)).unwrap();
        assert!(log.streams["s"].anchors.len() <= MAX_ANCHORS);
    }
    assert_eq!(log.resume_point("s", 0).unwrap().position, 0);
    // What is read again for nothing grew with the bound, and not beyond.
    let far = log.resume_point("s", 9_999_000).unwrap().position;
    assert!(far > 9_800_000, "{far}");
    log.acknowledge([("s", 9_999_000)]).unwrap();
    assert_eq!(log.streams["s"].spacing, SPACING);
}

#[test]
fn a_finished_stream_is_known_until_it_is_forgotten() {
    let disk = FakeDisk::default();
    let mut log = open(&disk);
    log.begin("closed", 0, "a").unwrap();
    log.begin("open", 0, "b").unwrap();
    log.acknowledge([("closed", 3), ("open", 4)]).unwrap();
    log.finish("closed").unwrap();
    let mut again = open(&disk);
    assert!(again.is_finished("closed") && !again.is_finished("open"));
    assert_eq!(again.streams().collect::<Vec<_>>(), ["closed", "open"]);
    again.forget("closed").unwrap();
    assert_eq!(open(&disk).streams().collect::<Vec<_>>(), ["open"]);
}

#[test]
fn another_epoch_starts_with_nothing() {
    let disk = FakeDisk::default();
    let mut log = open(&disk);
    log.begin("s", 0, "a").unwrap();
    log.acknowledge([("s", 3)]).unwrap();
    let other = PositionLog::open(&disk, &directory(), "second \"epoch\"").unwrap();
    assert_eq!(other.acknowledged("s"), None);
}

#[test]
fn what_the_log_cannot_hold_is_refused_by_name() {
    let mut log = open(&FakeDisk::default());
    let oversized = "x".repeat(1_025);
    for (refused, words) in [
        (log.begin("", 0, "a"), "name"),
        (log.begin(&oversized, 0, "a"), "name"),
        (log.begin("s", 0, &oversized), "stream s: its cursor"),
        (log.note("s", 1, "a"), "stream s: it was not begun"),
    ] {
        let error = refused.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    for number in 0..MAX_STREAMS {
        log.begin(&number.to_string(), 0, "a").unwrap();
    }
    assert!(log.begin("one more", 0, "a").is_err());
}

#[test]
fn every_damaged_byte_is_noticed_and_nothing_is_touched() {
    let disk = FakeDisk::default();
    let mut log = open(&disk);
    log.begin("s", 0, "a").unwrap();
    log.acknowledge([("s", 3)]).unwrap();
    let path = directory().join(FILE);
    let whole = disk.bytes(&path);
    for index in 0..whole.len() {
        for damaged in
            [[&whole[..index], &[whole[index] ^ 1], &whole[index + 1..]].concat(), whole[..index].to_vec()]
        {
            disk.set_bytes(&path, damaged.clone());
            let error = PositionLog::open(&disk, &directory(), "first").unwrap_err();
            assert!(matches!(error, PositionLogError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("/state/positions.log"), "{error}");
            assert_eq!(disk.bytes(&path), damaged);
        }
    }
}

#[test]
fn a_full_or_failing_disk_changes_nothing_and_the_call_can_be_made_again() {
    let disk = FakeDisk::default();
    let mut log = open(&disk);
    log.begin("s", 0, &cursor(0)).unwrap();
    read_to(&mut log, "s", 0, 2_000);
    log.acknowledge([("s", 500)]).unwrap();
    disk.set_capacity(Some(disk.used() + 3));
    assert!(matches!(log.acknowledge([("s", 1_500)]).unwrap_err(), PositionLogError::Io { .. }));
    disk.set_capacity(None);
    disk.fail_syncs(true);
    log.acknowledge([("s", 1_500)]).unwrap_err();
    assert_eq!((log.acknowledged("s"), open(&disk).acknowledged("s")), (Some(500), Some(500)));
    disk.fail_syncs(false);
    log.acknowledge([("s", 1_500)]).unwrap();
    assert_eq!(open(&disk).acknowledged("s"), Some(1_500));
}

/// One life of a source: it reads, acknowledges, and dies at some changing call.
#[derive(Clone, Debug)]
struct Life {
    steps: Vec<(usize, u64)>,
    dies_at: u64,
    power: Option<u64>,
    /// Wallaroo answers with this much beyond what was acknowledged.
    ahead: u64,
}

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let steps = prop::collection::vec((0..3_usize, 1..4_000_u64), 1..12);
    let life = (steps, 0..40_u64, prop::option::of(any::<u64>()), 0..3_000_u64)
        .prop_map(|(steps, dies_at, power, ahead)| Life { steps, dies_at, power, ahead });
    prop::collection::vec(life, 1..8)
}

proptest! {
    /// Whatever dies whenever: an acknowledgement that was reported is never forgotten, one that was not asked for never appears,
    /// and from what is found every later record can be read again.
    #[test]
    fn after_any_crash_every_stream_continues(lives in lives()) {
        let disk = FakeDisk::default();
        let names = ["a", "b", "c"];
        // Up to where acknowledgements were reported as durable, and asked for.
        let mut reported = [0; 3];
        let mut asked = [0; 3];
        for life in lives {
            let mut log = open(&disk);
            let mut read_up_to = [0; 3];
            for (index, name) in names.into_iter().enumerate() {
                let known = log.acknowledged(name).unwrap_or(0);
                prop_assert!((reported[index]..=asked[index]).contains(&known), "{name}: {known}");
                log.begin(name, 0, &cursor(0)).unwrap();
                let answer = known + life.ahead;
                let anchor = log.resume_point(name, answer).unwrap();
                prop_assert!(anchor.position <= answer);
                prop_assert_eq!(&anchor.cursor, &cursor(anchor.position));
                // Records are counted again from the anchor: the same ones have the same positions.
                read_up_to[index] = anchor.position;
                reported[index] = known;
                asked[index] = known;
            }
            disk.die_at_call(life.dies_at);
            for (index, count) in life.steps {
                let name = names[index];
                let to = read_up_to[index] + count;
                read_to(&mut log, name, read_up_to[index], to);
                read_up_to[index] = to;
                let position = to.saturating_sub(500).max(asked[index]);
                asked[index] = position;
                match log.acknowledge([(name, position)]) {
                    Ok(()) => reported[index] = position,
                    Err(PositionLogError::Io { .. }) => break,
                    Err(other) => panic!("{other}"),
                }
            }
            disk.crash(life.power.map_or(Crash::Process, |seed| Crash::Power { seed }));
        }
    }
}
