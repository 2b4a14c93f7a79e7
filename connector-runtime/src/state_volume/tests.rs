//! Tests of claiming a state volume.

use bytes::Bytes;

use super::*;
use crate::fake_disk::{Crash, FakeDisk};
use crate::txn_log::TxnLog;

fn identity(system: &str) -> Identity {
    let connector =
        ConnectorIdentity { namespace: "shop".into(), name: "totals".into(), epoch: String::new() };
    Identity::new(&connector, system, Protocol::Connector)
}

fn state() -> &'static Path {
    Path::new("/state")
}

/// A log with one transaction; what is asked for of its way to the target is done.
fn log(disk: &FakeDisk, decided: bool, delivered: bool) {
    let mut log = TxnLog::create(disk, &txn_log::directory(state()), Bytes::from_static(b"w1"), 1).unwrap();
    log.append(0, [b"0123".as_slice()].into_iter(), false).unwrap();
    log.prepare(b"c1", true, 0, 4).unwrap();
    if decided {
        log.decide(true).unwrap();
    }
    if delivered {
        log.mark(4, 1).unwrap();
        log.sync().unwrap();
    }
}

#[test]
fn a_volume_is_claimed_once_and_stays_its_owners() {
    let disk = FakeDisk::default();
    assert_eq!(claim(&disk, state(), &identity("redis")).unwrap(), Claim::New);
    disk.crash(Crash::Power { seed: 1 });
    assert_eq!(claim(&disk, state(), &identity("redis")).unwrap(), Claim::Same);
    let text = String::from_utf8(disk.bytes(&state().join(FILE))).unwrap();
    assert!(text.contains("shop/totals") && text.contains("redis") && text.contains("Connector"), "{text}");
}

#[test]
fn each_part_of_the_identity_counts() {
    let mine = identity("redis");
    let others = [
        Identity { connector: "shop/other".into(), ..mine.clone() },
        Identity { system: "file".into(), ..mine.clone() },
        Identity { protocol: Protocol::FramedTCP, ..mine.clone() },
    ];
    for other in others {
        let disk = FakeDisk::default();
        claim(&disk, state(), &mine).unwrap();
        assert!(matches!(claim(&disk, state(), &other).unwrap(), Claim::Archived { .. }), "{other}");
    }
}

#[test]
fn delivered_state_of_another_is_archived_whole() {
    let disk = FakeDisk::default();
    claim(&disk, state(), &identity("redis")).unwrap();
    log(&disk, true, true);
    disk.open(&state().join("positions/topic")).unwrap();
    let Claim::Archived { before, to } = claim(&disk, state(), &identity("file")).unwrap() else {
        panic!("not archived")
    };
    assert_eq!(before, identity("redis"));
    disk.crash(Crash::Power { seed: 2 });
    let files = disk.files();
    let (kept, moved): (Vec<_>, Vec<_>) = files.iter().partition(|file| !file.starts_with(&to));
    assert_eq!(kept, [&state().join(FILE)]);
    assert_eq!(moved.len(), 4, "identity, positions, a segment and what its log kept back, not {moved:?}");
    assert_eq!(claim(&disk, state(), &identity("file")).unwrap(), Claim::Same);
}

#[test]
fn decided_or_voted_output_of_another_is_not_touched() {
    for decided in [true, false] {
        let disk = FakeDisk::default();
        claim(&disk, state(), &identity("redis")).unwrap();
        log(&disk, decided, false);
        let files: Vec<_> = disk.files().iter().map(|file| (file.clone(), disk.bytes(file))).collect();
        let error = claim(&disk, state(), &identity("file")).unwrap_err();
        assert!(matches!(&error, StateVolumeError::InUse { bytes: 4, .. }), "{error}");
        assert!(error.to_string().contains("Connector shop/totals with redis"), "{error}");
        assert_eq!(
            files,
            disk.files().iter().map(|file| (file.clone(), disk.bytes(file))).collect::<Vec<_>>()
        );
        assert_eq!(claim(&disk, state(), &identity("redis")).unwrap(), Claim::Same);
    }
}

#[test]
fn a_damaged_or_missing_identity_beside_undelivered_output_is_refused() {
    let disk = FakeDisk::default();
    claim(&disk, state(), &identity("redis")).unwrap();
    log(&disk, true, false);
    disk.set_bytes(&state().join(FILE), b"{\"connector\":".to_vec());
    let error = claim(&disk, state(), &identity("redis")).unwrap_err();
    assert!(matches!(&error, StateVolumeError::Unreadable { .. }), "{error}");
    disk.remove(&state().join(FILE)).unwrap();
    assert!(matches!(claim(&disk, state(), &identity("redis")), Err(StateVolumeError::Unreadable { .. })));
}

#[test]
fn a_crash_at_any_call_of_the_archiving_loses_nothing() {
    for call in 0.. {
        for crash in [Crash::Process, Crash::Power { seed: call }, Crash::Power { seed: call + 1_000 }] {
            let disk = FakeDisk::default();
            claim(&disk, state(), &identity("redis")).unwrap();
            log(&disk, true, true);
            disk.die_at_call(call);
            let interrupted = claim(&disk, state(), &identity("file")).is_err();
            disk.crash(crash);
            claim(&disk, state(), &identity("file")).unwrap();
            assert_eq!(claim(&disk, state(), &identity("file")).unwrap(), Claim::Same);
            let logs =
                disk.files().iter().filter(|file| file.extension().is_some_and(|e| e == "txn")).count();
            assert_eq!(logs, 1, "after call {call}");
            if !interrupted {
                return;
            }
        }
    }
}
