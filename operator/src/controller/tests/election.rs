//! Two processes and one Lease.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::fake_api::FakeApi;
use crate::controller::fence::Fence;
use crate::controller::lease::{DURATION, Election, GIVE_UP, RENEWAL};

fn election(api: &FakeApi, identity: &str) -> Election {
    Election::new(api.client(), "shop", "operator", identity, Fence::closed())
}

fn holder(api: &FakeApi) -> String {
    api.get("leases/operator").unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_the_other_takes_over_from_a_paused_leader() {
    let api = FakeApi::default();
    let (first, second) = (election(&api, "first"), election(&api, "second"));
    timeout(DURATION, first.lead()).await.unwrap();
    let follower = tokio::spawn({
        let second = second.clone();
        async move {
            second.lead().await;
            Instant::now()
        }
    });
    // While the first renews, the second waits.
    assert!(timeout(DURATION * 4, first.keep()).await.is_err());
    assert!(!follower.is_finished());
    assert_eq!(holder(&api), "first");
    // Now the first is paused: nobody polls it.
    let paused = Instant::now();
    let led = timeout(DURATION * 3, follower).await.unwrap().unwrap();
    let silence = led - paused;
    assert!(silence + RENEWAL > DURATION && silence < DURATION * 2, "{silence:?}");
    assert_eq!(holder(&api), "second");
    // It wakes and finds that it lost.
    let woken = timeout(RENEWAL * 2, first.keep()).await;
    assert!(woken.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_api_server_is_away_gives_up_before_another_may_lead() {
    let api = FakeApi::default();
    let first = election(&api, "first");
    timeout(DURATION, first.lead()).await.unwrap();
    let since = Instant::now();
    api.0.lock().unwrap().failures = [("GET leases/operator".to_owned(), (503, "away".to_owned()))].into();
    timeout(DURATION * 2, first.keep()).await.unwrap();
    assert!(since.elapsed() <= GIVE_UP + Duration::from_secs(1), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_given_back_is_taken_at_once() {
    let api = FakeApi::default();
    let (first, second) = (election(&api, "first"), election(&api, "second"));
    timeout(DURATION, first.lead()).await.unwrap();
    first.release().await;
    let since = Instant::now();
    timeout(DURATION, second.lead()).await.unwrap();
    assert!(since.elapsed() < RENEWAL);
    assert_eq!(holder(&api), "second");
}
