//! The worker's side: votes, decisions, rollback and recovery, as the protocol's specification has them (§4.7).

use super::world::{Down, Up, World};

impl World {
    /// The worker's end is gone.
    pub(crate) fn worker_closes(&mut self, cut: bool) {
        if let Some(link) = self.current().and_then(|id| self.links.get_mut(&id)) {
            link.worker = None;
            link.up.clear();
            if cut {
                link.down.clear();
            }
            link.down.push_back(Down::Fin);
        }
        (self.ready, self.carried) = (false, false);
        self.forget_links();
    }

    pub(crate) fn worker_loses(&mut self, cut: bool) {
        let mattered = self.ready || self.carried;
        self.worker_closes(cut);
        if mattered && !self.rolling_back {
            self.lost = true;
            // After a yes the checkpoint may still complete: the vote is a promise.
            self.pending = self.pending.take().filter(|pending| pending.agreed);
        }
    }

    pub(crate) fn begin_rollback(&mut self) {
        self.worker_closes(false);
        self.recover();
        self.rolling_back = true;
    }

    pub(crate) fn recover(&mut self) {
        self.pending = None;
        self.lost = false;
        if self.output.len() > self.completed.output.len() {
            self.generation += 1;
        }
        self.output.clone_from(&self.completed.output);
    }

    pub(crate) fn at_worker(&mut self, id: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let (Some(message), Some(core)) = (link.up.pop_front(), link.worker.as_mut()) else { return };
        match message {
            Up::Listed(transactions) => {
                if !core.ok() || !core.notify_ack() || transactions.len() > 1 {
                    return self.breaks("an intro that kills the worker");
                }
                core.listed(transactions.first().cloned());
                if self.lost {
                    return self.begin_rollback();
                }
                if let Some(transaction) = transactions.into_iter().next() {
                    if !self.rolling_back {
                        return self.breaks("a transaction that nobody decides");
                    }
                    let commit = self.completed.transaction.as_ref() == Some(&transaction);
                    if core.phase2(&transaction, commit).is_err() {
                        return self.breaks("a decision that may not be sent");
                    }
                    link.down.push_back(Down::Phase2 { transaction, commit });
                }
                (self.ready, self.rolling_back) = (true, false);
            }
            Up::Vote { transaction, commit } => {
                let asked = core.vote(&transaction).is_ok();
                match self.pending.as_mut().filter(|pending| pending.transaction == transaction) {
                    Some(pending) if asked && commit => pending.agreed = true,
                    Some(_) | None => self.breaks("a vote that is not asked for, or no"),
                }
            }
            Up::Fin => self.worker_loses(true),
        }
    }
}
