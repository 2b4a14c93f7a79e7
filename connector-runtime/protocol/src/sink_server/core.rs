//! Decisions of a sink session: offsets, votes, transactions (§4.5, §4.6). No time, no payloads, so that a model can explore it.

use bytes::Bytes;

use crate::two_phase::{DATA_STREAM, Range};

/// How far the session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// HELLO is awaited.
    AwaitHello,
    /// The driver loads the worker's state.
    AwaitAccept,
    /// OK was sent, NOTIFY is awaited.
    Intro,
    /// NOTIFY was answered.
    Serving,
    /// The driver archives the state of an older cluster.
    AwaitRestart,
    /// Finished.
    Over,
}

impl Phase {
    /// When that is, for people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::AwaitHello => "before HELLO",
            Phase::AwaitAccept | Phase::Intro => "before NOTIFY",
            Phase::Serving | Phase::AwaitRestart => "after the intro",
            Phase::Over => "after the end of the session",
        }
    }
}

/// When output counts as delivered by Wallaroo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SinkMode {
    /// At its commit.
    #[default]
    TwoPhase,
    /// At its receipt: for clusters without resilience, which never ask for a vote. Gaps are taken as they are: such a cluster
    /// never sends anything again.
    OnReceipt,
}

/// A transaction with a vote and without a decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    /// The transaction.
    pub transaction: Bytes,
    /// How the sink voted.
    pub vote: bool,
    /// Offset of its first byte.
    pub start: u64,
    /// Offset behind its last byte.
    pub end: u64,
}

/// What a sink durably knows of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkerState {
    /// Offset behind the last committed byte (with [`SinkMode::OnReceipt`]: behind the last delivered one).
    pub committed: u64,
    /// Offset behind the last byte that is kept: the pending transaction's end if it was voted for, otherwise `committed`.
    pub received: u64,
    /// At most one transaction can be undecided: with two the worker process would abort.
    pub pending: Option<Pending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// The driver makes the vote durable.
    Preparing,
    /// REPLY was sent on this connection.
    Voted,
    /// From the worker's state, not yet on any list of this connection.
    Loaded,
    /// Listed in `REPLY_UNCOMMITTED` on this connection.
    Listed,
}

/// What becomes of a message of output.
pub enum DataStep {
    /// Take it.
    Take,
    /// It has no bytes: no effect.
    Empty,
    /// Its bytes are published: drop it.
    Repeat,
    /// It leaves a gap or overlaps: drop it and vote *no*.
    Poison {
        /// The offset that should have come.
        expected: u64,
        /// True for the first one.
        news: bool,
    },
    /// It comes from a fresh cluster.
    Fresh {
        /// The connection has to be closed.
        close_first: bool,
        /// A transaction that nobody will decide.
        in_doubt: Option<Bytes>,
    },
    /// A transaction is undecided: an error.
    WhilePending,
}

/// What becomes of a PHASE1.
pub enum PrepareStep {
    /// Make it durable and vote.
    Vote {
        /// Offset of its first byte.
        start: u64,
        /// Offset behind its last byte.
        end: u64,
        /// The vote.
        vote: bool,
    },
    /// It comes from a fresh cluster.
    Fresh {
        /// The connection has to be closed.
        close_first: bool,
        /// A transaction that nobody will decide.
        in_doubt: Option<Bytes>,
    },
    /// A transaction is undecided: an error.
    WhilePending,
}

/// What becomes of a PHASE2.
pub enum DecideStep {
    /// Publish or discard.
    Decided,
    /// Decided earlier: ignore it.
    Unknown,
    /// A commit of what was voted down: fatal.
    Inconsistent,
    /// The vote was not sent yet: an error.
    BeforeVote,
}

/// The decision state of a [`super::SinkServer`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SinkServerCore {
    phase: Phase,
    mode: SinkMode,
    committed: u64,
    received: u64,
    pending: Option<(Pending, Stage)>,
    poisoned: bool,
    /// Data or a phase 1 came on this connection: it is no longer a cluster's first sign of life.
    started: bool,
    /// A transaction was listed on this connection.
    listed: bool,
}

impl SinkServerCore {
    /// The state before HELLO.
    pub fn new(mode: SinkMode) -> SinkServerCore {
        SinkServerCore {
            phase: Phase::AwaitHello,
            mode,
            committed: 0,
            received: 0,
            pending: None,
            poisoned: false,
            started: false,
            listed: false,
        }
    }

    /// How far the session is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Offset behind the last committed byte.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Offset behind the last byte taken.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The transaction with a vote and without a decision.
    pub fn pending(&self) -> Option<&Pending> {
        self.pending.as_ref().map(|(pending, _)| pending)
    }

    /// True if the next vote will be *no*.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Ends the session.
    pub fn close(&mut self) {
        self.phase = Phase::Over;
    }

    /// A valid HELLO came.
    pub fn hello(&mut self) {
        self.phase = Phase::AwaitAccept;
    }

    /// True if OK is due.
    pub fn accept(&mut self, state: WorkerState) -> bool {
        let first = match self.phase {
            Phase::AwaitAccept => true,
            Phase::AwaitRestart => false,
            Phase::AwaitHello | Phase::Intro | Phase::Serving | Phase::Over => return false,
        };
        self.phase = if first { Phase::Intro } else { Phase::Serving };
        self.committed = state.committed;
        self.received = state.received.max(state.committed);
        self.pending = state.pending.map(|pending| (pending, Stage::Loaded));
        self.poisoned = false;
        self.started = !first;
        first
    }

    /// NOTIFY came; returns the offset to answer.
    pub fn notify(&mut self) -> u64 {
        self.phase = Phase::Serving;
        self.committed
    }

    /// What to answer to `LIST_UNCOMMITTED`; `None` before NOTIFY.
    pub fn list(&mut self) -> Option<Vec<Bytes>> {
        if self.phase != Phase::Serving {
            return None;
        }
        match &mut self.pending {
            None | Some((_, Stage::Preparing)) => Some(Vec::new()),
            Some((pending, stage)) => {
                *stage = Stage::Listed;
                self.listed = true;
                Some(vec![pending.transaction.clone()])
            }
        }
    }

    fn fresh(&mut self) -> (bool, Option<Bytes>) {
        let close_first = self.listed;
        self.phase = if close_first { Phase::Over } else { Phase::AwaitRestart };
        (close_first, self.pending.as_ref().map(|(pending, _)| pending.transaction.clone()))
    }

    /// Judges a message of `length` payload bytes at `offset`; [`SinkServerCore::take`] then takes it.
    pub fn data(&mut self, offset: u64, length: u64) -> DataStep {
        let first = !self.started;
        match &self.pending {
            Some((_, Stage::Preparing | Stage::Voted)) => return DataStep::WhilePending,
            Some((_, Stage::Loaded | Stage::Listed)) => {
                let (close_first, in_doubt) = self.fresh();
                return DataStep::Fresh { close_first, in_doubt };
            }
            None if first && offset == 0 && self.committed > 0 => {
                let (close_first, in_doubt) = self.fresh();
                return DataStep::Fresh { close_first, in_doubt };
            }
            None => {}
        }
        self.started = true;
        if length == 0 {
            return DataStep::Empty;
        }
        if offset == self.received && !self.poisoned {
            return DataStep::Take;
        }
        match self.mode {
            SinkMode::OnReceipt => {
                if offset > self.received {
                    self.received = offset;
                    return DataStep::Take;
                }
                DataStep::Repeat
            }
            SinkMode::TwoPhase => {
                if offset.checked_add(length).is_some_and(|end| end <= self.committed) {
                    return DataStep::Repeat;
                }
                let news = !self.poisoned;
                self.poisoned = true;
                DataStep::Poison { expected: self.received, news }
            }
        }
    }

    /// Takes a message that continues what was received; false if it does not.
    pub fn take(&mut self, offset: u64, length: u64) -> bool {
        let continues = offset == self.received && !self.poisoned && self.pending.is_none();
        match (continues, offset.checked_add(length)) {
            (true, Some(end)) => {
                self.received = end;
                true
            }
            (true | false, _) => false,
        }
    }

    /// PHASE1 came: judges it by the rules of §4.5.
    pub fn prepare(&mut self, transaction: &Bytes, ranges: &[Range]) -> PrepareStep {
        let range = match ranges {
            [range] if range.stream == DATA_STREAM => Some(*range),
            _ => None,
        };
        let from_zero = range.is_some_and(|range| range.start == 0);
        if !self.started && from_zero && self.committed > 0 {
            let (close_first, in_doubt) = self.fresh();
            return PrepareStep::Fresh { close_first, in_doubt };
        }
        if self.pending.is_some() {
            return PrepareStep::WhilePending;
        }
        self.started = true;
        let (start, end) = range.map_or((self.committed, self.committed), |range| (range.start, range.end));
        let starts = match self.mode {
            SinkMode::TwoPhase => start == self.committed,
            SinkMode::OnReceipt => true,
        };
        let vote = range.is_some() && starts && start <= end && end == self.received && !self.poisoned;
        let pending = Pending { transaction: transaction.clone(), vote, start, end };
        self.pending = Some((pending, Stage::Preparing));
        PrepareStep::Vote { start, end, vote }
    }

    /// The vote to send, once.
    pub fn voted(&mut self) -> Option<(Bytes, bool)> {
        match &mut self.pending {
            Some((pending, stage @ Stage::Preparing)) if self.phase == Phase::Serving => {
                *stage = Stage::Voted;
                Some((pending.transaction.clone(), pending.vote))
            }
            Some(_) | None => None,
        }
    }

    /// PHASE2 came.
    pub fn decide(&mut self, transaction: &Bytes, commit: bool) -> DecideStep {
        let Some((pending, stage)) =
            self.pending.as_ref().filter(|(pending, _)| pending.transaction == transaction)
        else {
            return DecideStep::Unknown;
        };
        if *stage == Stage::Preparing {
            return DecideStep::BeforeVote;
        }
        if commit && !pending.vote {
            return DecideStep::Inconsistent;
        }
        if commit {
            self.committed = pending.end;
            self.received = self.received.max(pending.end);
        } else {
            self.received = self.committed;
        }
        self.pending = None;
        self.poisoned = false;
        DecideStep::Decided
    }
}
