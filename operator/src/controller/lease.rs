//! Leader election: one operator of several works, by a Lease of `coordination.k8s.io/v1`.
//!
//! Guarantees: a process that could not renew for [`GIVE_UP`] writes nothing any more ([`super::fence`]) and says so, before another
//! may take over, on its own clock. A holder's silence is measured from when we first saw its last renewal, so that clocks need not agree.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};

use super::fence::Fence;
use crate::apply::io::code;
use crate::names::FIELD_MANAGER;

/// A holder that is silent for this long has lost it.
pub const DURATION: Duration = Duration::from_secs(15);

/// How often a holder renews: three attempts fit into [`DURATION`].
pub const RENEWAL: Duration = Duration::from_secs(4);

/// A holder that could not renew for this long gives up: well before others may take over.
pub const GIVE_UP: Duration = Duration::from_secs(11);

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(3);

/// What to do with a lease. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is none: create it.
    Create,
    /// It is ours, free, or its holder is silent: write it.
    Take,
    /// Its holder lives.
    Wait,
}

/// What was last seen of a lease.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    mark: Option<(Option<String>, Option<MicroTime>)>,
    since: Option<Instant>,
}

impl Seen {
    /// Decides, and remembers since when the lease has been as it is.
    pub fn decide(&mut self, lease: Option<&LeaseSpec>, identity: &str, now: Instant) -> Decision {
        let Some(lease) = lease else { return Decision::Create };
        let mark = (lease.holder_identity.clone(), lease.renew_time.clone());
        if self.mark.as_ref() != Some(&mark) {
            self.mark = Some(mark);
            self.since = Some(now);
        }
        let holder = lease.holder_identity.as_deref().unwrap_or_default();
        let granted = u64::try_from(lease.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
        let silent = self.since.is_some_and(|since| now - since > Duration::from_secs(granted));
        if holder.is_empty() || holder == identity || silent { Decision::Take } else { Decision::Wait }
    }
}

/// What came of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// This process holds the lease.
    Held,
    /// Another does.
    Other,
    /// The lease changed in between.
    Raced,
}

/// One process's part in an election.
#[derive(Clone)]
pub struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    fence: Fence,
}

/// Why a process does not lead any more.
#[derive(Debug, thiserror::Error)]
#[error("the Lease is held by another, or could not be renewed for {} seconds", GIVE_UP.as_secs())]
pub struct Lost;

impl Election {
    /// Takes part under `identity`, which no other process has; opens `fence` while this process may write.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, fence: Fence) -> Election {
        let (name, identity) = (name.into(), identity.into());
        Election { api: Api::namespaced(client, namespace), name, identity, fence }
    }

    /// Waits until this process leads. Cancel-safe: a lease that was taken runs out.
    pub async fn lead(&self) {
        let mut seen = Seen::default();
        loop {
            let started = Instant::now();
            match timeout(REQUEST, self.attempt(&mut seen)).await {
                Ok(Ok(Attempt::Held)) => {
                    self.fence.open_until(started + GIVE_UP);
                    return;
                }
                Ok(Ok(Attempt::Other | Attempt::Raced)) | Err(_) => {}
                Ok(Err(error)) => tracing::warn!(%error, lease = self.name, "The Lease cannot be had."),
            }
            sleep(RENEWAL / 2).await;
        }
    }

    /// Renews until that fails for too long; then nothing may be written any more.
    pub async fn keep(&self) -> Lost {
        let mut seen = Seen::default();
        let mut renewed = Instant::now();
        loop {
            sleep(RENEWAL).await;
            let started = Instant::now();
            match timeout(REQUEST, self.attempt(&mut seen)).await {
                Ok(Ok(Attempt::Held)) => {
                    renewed = started;
                    self.fence.open_until(started + GIVE_UP);
                }
                // Another took it: that ends it at once.
                Ok(Ok(Attempt::Other)) => return Lost,
                // Somebody wrote between our look and our write, perhaps we ourselves a moment ago.
                Ok(Ok(Attempt::Raced)) => {}
                Ok(Err(error)) => tracing::warn!(%error, lease = self.name, "The Lease was not renewed."),
                Err(_) => tracing::warn!(lease = self.name, "The Lease was not renewed in time."),
            }
            if renewed.elapsed() + RENEWAL > GIVE_UP {
                return Lost;
            }
        }
    }

    /// Gives the lease back, so that another need not wait for it to run out.
    pub async fn release(&self) {
        let given_back = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = Some(String::new());
                self.api.replace(&self.name, &params(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        if let Ok(Err(error)) = timeout(REQUEST, given_back).await {
            tracing::warn!(%error, "The Lease was not given back; it runs out.");
        }
    }

    /// One look and, where it may, one write.
    async fn attempt(&self, seen: &mut Seen) -> Result<Attempt, kube::Error> {
        let live = self.api.get_opt(&self.name).await?;
        let spec = live.as_ref().and_then(|lease| lease.spec.as_ref());
        let written = match seen.decide(spec, &self.identity, Instant::now()) {
            Decision::Wait => return Ok(Attempt::Other),
            Decision::Create => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(self.spec(None)) };
                self.api.create(&params(), &lease).await.map(drop)
            }
            Decision::Take => {
                // The version that was read goes with it: of two that take it, one is refused.
                let mut lease = live.unwrap_or_default();
                lease.spec = Some(self.spec(lease.spec.as_ref()));
                self.api.replace(&self.name, &params(), &lease).await.map(drop)
            }
        };
        match written {
            Ok(()) => Ok(Attempt::Held),
            Err(error) if code(&error) == 409 => Ok(Attempt::Raced),
            Err(error) => Err(error),
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let ours = before.filter(|spec| spec.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            acquire_time: ours.map_or_else(|| now.clone(), |spec| spec.acquire_time.clone()),
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            lease_transitions: Some(if ours.is_some() { transitions } else { transitions + 1 }),
            renew_time: now,
            ..LeaseSpec::default()
        }
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_renews_is_left_alone_and_a_silent_one_is_not() {
        let mut seen = Seen::default();
        let start = Instant::now();
        assert_eq!(seen.decide(None, "a", start), Decision::Create);
        // Whatever the holder's clock says, its silence counts from our first look.
        assert_eq!(seen.decide(Some(&held_by("b", 5)), "a", start), Decision::Wait);
        let later = start + Duration::from_secs(14);
        assert_eq!(seen.decide(Some(&held_by("b", 6)), "a", later), Decision::Wait);
        let silent = later + Duration::from_secs(15);
        assert_eq!(seen.decide(Some(&held_by("b", 6)), "a", silent), Decision::Wait);
        let longer = silent + Duration::from_millis(1);
        assert_eq!(seen.decide(Some(&held_by("b", 6)), "a", longer), Decision::Take);
    }

    #[tokio::test(start_paused = true)]
    async fn ours_and_a_released_one_are_taken_at_once() {
        let mut seen = Seen::default();
        assert_eq!(seen.decide(Some(&held_by("a", 1)), "a", Instant::now()), Decision::Take);
        assert_eq!(seen.decide(Some(&held_by("", 1)), "a", Instant::now()), Decision::Take);
    }

    #[test]
    fn a_holder_gives_up_before_another_takes_over() {
        assert!(RENEWAL + REQUEST < GIVE_UP);
        assert!(GIVE_UP + REQUEST < DURATION);
    }
}
