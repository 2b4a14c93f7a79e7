//! Whatever is done to a log and wherever it crashes: promises hold, and recovery never refuses what a crash left.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<u8>),
    Prepare { vote: bool },
    Decide { commit: bool },
    Mark,
    Discard,
    Forget,
    Sync,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => proptest::collection::vec(1_u8..40, 1..5).prop_map(Op::Append),
        3 => prop::bool::weighted(0.9).prop_map(|vote| Op::Prepare { vote }),
        4 => prop::bool::weighted(0.7).prop_map(|commit| Op::Decide { commit }),
        2 => Just(Op::Mark),
        1 => Just(Op::Discard),
        1 => Just(Op::Forget),
        1 => Just(Op::Sync),
    ]
}

/// What was promised.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    /// Decided records.
    records: Vec<(u64, Vec<u8>)>,
    /// Records of the open transaction.
    open: Vec<(u64, Vec<u8>)>,
    committed: u64,
    received: u64,
    pending: Option<(String, bool)>,
    /// The last transaction, if it was a commit of nothing that no sync followed: its vote may be listed again.
    lazy: Option<String>,
    delivered: u64,
}

impl Model {
    fn apply(&mut self, op: &Op, number: usize) {
        match op {
            Op::Append(lengths) => {
                for length in lengths {
                    self.received += u64::from(*length);
                    self.open.push((self.received, payload(self.received, *length)));
                }
            }
            Op::Prepare { vote } => {
                self.pending = Some((format!("c{number}"), *vote));
                self.lazy = None;
            }
            Op::Decide { commit: true } => {
                let pending = self.pending.take().map(|(name, _)| name);
                self.lazy = pending.filter(|_| self.received == self.committed);
                self.records.append(&mut self.open);
                self.committed = self.received;
            }
            Op::Decide { commit: false } | Op::Discard => {
                let cut = self.pending.take().is_some() || self.received > self.committed;
                self.lazy = self.lazy.take().filter(|_| !cut);
                self.open.clear();
                self.received = self.committed;
            }
            Op::Mark => self.delivered = self.committed,
            Op::Sync => self.lazy = None,
            Op::Forget => {}
        }
    }

    fn allows(&self, op: &Op) -> bool {
        match op {
            Op::Append(_) | Op::Prepare { .. } | Op::Discard => self.pending.is_none(),
            Op::Decide { commit } => self.pending.as_ref().is_some_and(|(_, vote)| *vote || !commit),
            Op::Mark | Op::Forget | Op::Sync => true,
        }
    }
}

fn payload(end: u64, length: u8) -> Vec<u8> {
    (0..length).map(|n| (end as u8).wrapping_mul(31).wrapping_add(n)).collect()
}

fn run(log: &mut TxnLog<FakeDisk>, model: &Model, op: &Op, number: usize) -> Result<(), LogError> {
    match op {
        Op::Append(lengths) => {
            let mut end = model.received;
            let payloads: Vec<Vec<u8>> = lengths
                .iter()
                .map(|length| {
                    end += u64::from(*length);
                    payload(end, *length)
                })
                .collect();
            log.append(model.received, payloads.iter().map(Vec::as_slice), false)
        }
        Op::Prepare { vote } => {
            log.prepare(format!("c{number}").as_bytes(), *vote, model.committed, model.received)
        }
        Op::Decide { commit } => log.decide(*commit),
        Op::Mark => log.mark(model.committed, model.records.len() as u64),
        Op::Discard => log.discard_staged(),
        Op::Forget => log.forget(Instant::now(), Retain { time: Duration::ZERO, bytes: 0 }).map(|_| ()),
        Op::Sync => log.sync(),
    }
}

/// The same as the model, but for output without a vote, which a restart discards, and marks, which are lazy.
fn matches(log: &mut TxnLog<FakeDisk>, model: &Model) -> Result<(), String> {
    let state = log.state().clone();
    let pending = state.pending.as_ref();
    let named = pending.map(|p| (String::from_utf8_lossy(&p.transaction).into_owned(), p.vote));
    if (state.committed, &named) != (model.committed, &model.pending) {
        return Err(format!("{state:?} is not {model:?}"));
    }
    if state.delivered > model.delivered.max(log.retained_from()) {
        return Err(format!("delivered {} of {}", state.delivered, model.delivered));
    }
    if state.delivered_records
        != model.records.iter().filter(|(end, _)| *end <= state.delivered).count() as u64
    {
        return Err(format!("{} records up to {}", state.delivered_records, state.delivered));
    }
    let from = log.retained_from();
    let mut expected = model.records.clone();
    let voted = model.pending.as_ref().is_some_and(|(_, vote)| *vote);
    if voted {
        // What was promised has to be there when the decision comes.
        expected.extend(model.open.clone());
        log.decide(true).map_err(|error| error.to_string())?;
    }
    expected.retain(|(end, _)| *end > from);
    let found = read_from(log, from);
    if found != expected {
        return Err(format!("from {from}: found {found:?}, expected {expected:?}"));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn promises_hold_wherever_it_crashes(
        ops in proptest::collection::vec(op(), 1..60),
        dies_after in 0_u64..4_000,
        dies_at in prop::option::of(0_u64..120),
        power in prop::option::weighted(0.7, any::<u64>()),
        segment_bytes in 150_u64..800,
    ) {
        let disk = FakeDisk::default();
        let mut log = create(&disk);
        log.segment_bytes = segment_bytes;
        match dies_at {
            Some(call) => disk.die_at_call(call),
            None => disk.die_after(dies_after),
        }
        let (mut before, mut model) = (Model::default(), Model::default());
        for (number, op) in ops.iter().enumerate() {
            if !model.allows(op) {
                continue;
            }
            before = model.clone();
            model.apply(op, number);
            if run(&mut log, &before, op, number).is_err() {
                break;
            }
            before = model.clone();
        }
        drop(log);
        let crash = power.map_or(Crash::Process, |seed| Crash::Power { seed });
        disk.crash(crash);
        let bytes: Vec<_> = disk.files().iter().map(|file| (file.clone(), disk.bytes(file))).collect();
        let recovered = || -> TxnLog<FakeDisk> {
            for (file, bytes) in &bytes {
                disk.open(file).unwrap();
                disk.set_bytes(file, bytes.clone());
            }
            recover(&disk).unwrap()
        };
        // The call that was interrupted happened or not.
        let mut allowed = vec![model.clone(), before.clone()];
        for model in [&model, &before] {
            if let Some(name) = &model.lazy {
                allowed.push(Model { pending: Some((name.clone(), true)), open: Vec::new(), ..model.clone() });
            }
        }
        let outcomes: Vec<_> = allowed.iter().map(|model| matches(&mut recovered(), model)).collect();
        prop_assert!(outcomes.iter().any(Result::is_ok), "{outcomes:?}");
    }
}
