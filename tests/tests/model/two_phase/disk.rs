//! A transaction log on a disk that loses what was not synced; its state is computed by the product.

use bytes::Bytes;
use connector_runtime::txn_log::decisions::{Lengths, LogState, Record};

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    Data { offset: u64, byte: u8 },
    Prepare { transaction: Bytes, start: u64, end: u64 },
    Commit { transaction: Bytes },
    RolledBack { transaction: Bytes, start: u64 },
}

impl Entry {
    pub(crate) fn record(&self) -> Record<'_> {
        match self {
            Entry::Data { offset, byte } => Record::Data {
                offset: *offset,
                decided: false,
                lengths: Lengths::new(&[1, 0, 0, 0]),
                bytes: std::slice::from_ref(byte),
            },
            Entry::Prepare { transaction, start, end } => {
                Record::Prepare { transaction, vote: true, start: *start, end: *end }
            }
            Entry::Commit { transaction } => Record::Commit { transaction },
            Entry::RolledBack { transaction, start } => Record::RolledBack { transaction, start: *start },
        }
    }
}

/// The log's file: what a process sees, and what a power loss leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    pub(crate) live: Vec<Entry>,
    pub(crate) durable: Vec<Entry>,
}

impl Disk {
    pub(crate) fn sync(&mut self) {
        self.durable.clone_from(&self.live);
    }

    pub(crate) fn lose_unsynced(&mut self) {
        self.live.clone_from(&self.durable);
    }

    /// What a process that starts now makes of it.
    pub(crate) fn read(&self) -> Result<LogState, &'static str> {
        let mut state = LogState::default();
        for entry in &self.live {
            state.apply(&entry.record())?;
        }
        Ok(state)
    }

    /// Cuts off everything behind the last place at which nothing was undecided.
    pub(crate) fn cut(&mut self) {
        let mut state = LogState::default();
        let mut settled = 0;
        for (index, entry) in self.live.iter().enumerate() {
            if state.apply(&entry.record()).is_err() {
                break;
            }
            if state.is_settled() {
                settled = index + 1;
            }
        }
        self.live.truncate(settled);
    }

    /// The output byte at this offset, as a reader comes upon it.
    pub(crate) fn byte_at(&self, wanted: u64) -> Option<u8> {
        self.live.iter().find_map(|entry| match entry {
            Entry::Data { offset, byte } => (*offset == wanted).then_some(*byte),
            Entry::Prepare { .. } | Entry::Commit { .. } | Entry::RolledBack { .. } => None,
        })
    }

    /// True if a power loss leaves the vote on this transaction.
    pub(crate) fn promises(&self, wanted: &Bytes) -> bool {
        self.durable.iter().any(|entry| match entry {
            Entry::Prepare { transaction, .. } => transaction == wanted,
            Entry::Data { .. } | Entry::Commit { .. } | Entry::RolledBack { .. } => false,
        })
    }
}
