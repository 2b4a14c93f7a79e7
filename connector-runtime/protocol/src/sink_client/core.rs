//! Decisions of a worker's sink session. No time, no payloads, so that a model can explore it.

use bytes::Bytes;

use super::error::SinkMisuse;

/// How far the session is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The intro was sent; `REPLY_UNCOMMITTED` is awaited.
    #[default]
    Intro,
    /// A listed transaction waits for its decision.
    WaitingForRollback,
    /// Nothing is outstanding.
    Ready,
    /// PHASE1 was sent.
    Voting,
    /// The vote came.
    Voted,
    /// Finished.
    Over,
}

/// Why a vote is wrong.
pub enum VoteError {
    /// The intro is not complete.
    NotReady,
    /// Nobody asked for it: a worker would abort.
    Unasked,
}

/// The decision state of a [`super::SinkClient`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SinkClientCore {
    phase: Phase,
    ok: bool,
    notify_acked: bool,
    transaction: Option<Bytes>,
}

impl SinkClientCore {
    /// How far the session is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The outstanding or listed transaction.
    pub fn transaction(&self) -> Option<&Bytes> {
        self.transaction.as_ref()
    }

    /// True if nothing is outstanding.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// True once `NOTIFY_ACK` came.
    pub fn notify_acked(&self) -> bool {
        self.notify_acked
    }

    /// Ends the session.
    pub fn close(&mut self) {
        self.phase = Phase::Over;
    }

    /// False if OK has no place here. It may be missing altogether (§8).
    pub fn ok(&mut self) -> bool {
        let legal = self.phase == Phase::Intro && !self.ok && !self.notify_acked;
        self.ok = true;
        legal
    }

    /// `NOTIFY_ACK` came; false if it has no place here.
    pub fn notify_ack(&mut self) -> bool {
        let legal = self.phase == Phase::Intro && !self.notify_acked;
        self.notify_acked = true;
        legal
    }

    /// `REPLY_UNCOMMITTED` came, with at most one transaction.
    pub fn listed(&mut self, transaction: Option<Bytes>) {
        self.phase = if transaction.is_some() { Phase::WaitingForRollback } else { Phase::Ready };
        self.transaction = transaction;
    }

    /// Fails once the session is over.
    pub fn may_talk(&self) -> Result<(), SinkMisuse> {
        if self.phase == Phase::Over { Err(SinkMisuse::Over) } else { Ok(()) }
    }

    /// Output flows also without `REPLY_UNCOMMITTED`, and beside a listed transaction that the worker does not know (§8).
    pub fn may_send(&self) -> Result<(), SinkMisuse> {
        match self.phase {
            Phase::Intro | Phase::WaitingForRollback | Phase::Ready => Ok(()),
            Phase::Voting | Phase::Voted => Err(SinkMisuse::OutputWhileVoting),
            Phase::Over => Err(SinkMisuse::Over),
        }
    }

    /// PHASE1 is sent for `transaction`.
    pub fn phase1(&mut self, transaction: Bytes) -> Result<(), SinkMisuse> {
        match self.phase {
            Phase::Ready => {
                self.phase = Phase::Voting;
                self.transaction = Some(transaction);
                Ok(())
            }
            Phase::Intro | Phase::WaitingForRollback | Phase::Voting | Phase::Voted => {
                Err(SinkMisuse::NotReady)
            }
            Phase::Over => Err(SinkMisuse::Over),
        }
    }

    /// A vote came.
    pub fn vote(&mut self, transaction: &Bytes) -> Result<(), VoteError> {
        match self.phase {
            Phase::Intro | Phase::WaitingForRollback => Err(VoteError::NotReady),
            Phase::Voting if self.transaction.as_ref() == Some(transaction) => {
                self.phase = Phase::Voted;
                Ok(())
            }
            Phase::Voting | Phase::Voted | Phase::Ready | Phase::Over => Err(VoteError::Unasked),
        }
    }

    /// PHASE2 is sent for `transaction`.
    pub fn phase2(&mut self, transaction: &[u8], commit: bool) -> Result<(), SinkMisuse> {
        let named = self.transaction.as_ref().is_some_and(|own| own == transaction);
        match self.phase {
            Phase::Voted | Phase::WaitingForRollback if named => {}
            Phase::Voting if named && !commit => {}
            Phase::Intro | Phase::WaitingForRollback | Phase::Ready | Phase::Voting | Phase::Voted => {
                return Err(SinkMisuse::NothingToDecide);
            }
            Phase::Over => return Err(SinkMisuse::Over),
        }
        self.phase = Phase::Ready;
        self.transaction = None;
        Ok(())
    }
}
