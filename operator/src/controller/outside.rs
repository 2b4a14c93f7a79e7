//! What is neither in the cluster's API nor pure: the time, and what runtimes answer. A simulation brings its own.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;

use crate::runtime_status::{RuntimeStatus, fetch};

/// What a runtime answers; `None`: it does not.
pub type Answer = BoxFuture<'static, Option<RuntimeStatus>>;

/// The time, and what runtimes answer.
#[derive(Clone)]
pub struct Outside {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ask: Arc<dyn Fn(Option<SocketAddr>) -> Answer + Send + Sync>,
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outside")
    }
}

impl Outside {
    /// This machine's clock, and runtimes at their admin ports.
    pub fn real() -> Outside {
        Outside::of(Timestamp::now, |address| fetch(address).boxed())
    }

    /// Another clock, and other runtimes.
    pub fn of(
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        ask: impl Fn(Option<SocketAddr>) -> Answer + Send + Sync + 'static,
    ) -> Outside {
        Outside { now: Arc::new(now), ask: Arc::new(ask) }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// Asks a runtime for its status; absent address: its pod has none yet.
    pub fn ask(&self, runtime: Option<SocketAddr>) -> Answer {
        (self.ask)(runtime)
    }
}
