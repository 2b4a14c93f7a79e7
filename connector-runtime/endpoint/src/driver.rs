//! Sockets, timers and files around the cluster. Every task is owned by a `JoinSet` of its parent; the tracker only
//! tells when all of them are gone.

pub(crate) mod coordinator;
pub(crate) mod listener;
mod plain_source;
pub(crate) mod sink;
mod source;
mod write;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use wallaroo_protocol::Millis;

use crate::cluster::{Cluster, Wake};

/// Who waits for what. A listener is told when the membership changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sleeper {
    One(Wake),
    Listener(u64),
}

struct State {
    cluster: Cluster,
    sleepers: BTreeMap<Sleeper, Arc<Notify>>,
    listeners: u64,
}

/// The cluster and those who wait for its commands.
pub(crate) struct Shared<E> {
    pub(crate) env: E,
    pub(crate) tracker: TaskTracker,
    started: Instant,
    state: Mutex<State>,
}

impl<E> Shared<E> {
    pub(crate) fn new(env: E, cluster: Cluster) -> Shared<E> {
        let state = State { cluster, sleepers: BTreeMap::new(), listeners: 0 };
        Shared { env, tracker: TaskTracker::new(), started: Instant::now(), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `job` on the cluster and wakes those who have something to do because of it. Short: others wait.
    pub(crate) fn with<R>(&self, job: impl FnOnce(&mut Cluster) -> R) -> R {
        let mut state = self.lock();
        let result = job(&mut state.cluster);
        for wake in state.cluster.take_woken() {
            if let Some(sleeper) = state.sleepers.get(&Sleeper::One(wake)) {
                sleeper.notify_one();
            }
        }
        result
    }

    /// The waker of one sleeper; a wake-up before anyone waits is kept.
    pub(crate) fn sleeper(&self, wake: Wake) -> Arc<Notify> {
        self.lock().sleepers.entry(Sleeper::One(wake)).or_default().clone()
    }

    pub(crate) fn forget(&self, wake: Wake) {
        self.lock().sleepers.remove(&Sleeper::One(wake));
    }

    /// A waker for a change of membership.
    pub(crate) fn listener_sleeper(&self) -> Arc<Notify> {
        let mut state = self.lock();
        state.listeners += 1;
        let number = state.listeners;
        state.sleepers.entry(Sleeper::Listener(number)).or_default().clone()
    }

    /// Tells every listener that the membership has changed.
    pub(crate) fn wake_listeners(&self) {
        for (sleeper, notify) in &self.lock().sleepers {
            match sleeper {
                Sleeper::Listener(_) => notify.notify_one(),
                Sleeper::One(_) => {}
            }
        }
    }

    /// Milliseconds since the endpoint began, for the session machines.
    pub(crate) fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
