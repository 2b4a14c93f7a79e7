//! Nothing is written by a process that may not lead any more, at the one place that all requests pass.
//!
//! A process that was paused wakes with watches full of changes, and would act on them before it looks at its Lease. The fence
//! knows until when the last renewal holds, on this process's own clock; a write after that is refused before it is sent. What is
//! left is the time between this look and the socket.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::http::{Method, Request};
use futures::future::Either;
use kube::client::Body;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

/// Until when this process may write.
#[derive(Clone, Debug)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

/// The answer to a write that comes too late.
#[derive(Debug, thiserror::Error)]
#[error("not written: the Lease may be another's by now")]
pub struct TooLate;

impl Fence {
    /// Closed: nothing may be written until [`Fence::open_until`].
    pub fn closed() -> Fence {
        Fence(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    /// Never in the way: this process is the only one.
    pub fn open() -> Fence {
        Fence(Arc::new(Mutex::new(None)))
    }

    /// Lets writes pass until then.
    pub fn open_until(&self, end: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }

    fn lets(&self, method: &Method, path: &str) -> bool {
        let reads = *method == Method::GET;
        // The Lease itself is guarded by its version.
        let of_lease = path.contains("/leases");
        let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reads || of_lease || end.is_none_or(|end| Instant::now() < end)
    }
}

impl<S> Layer<S> for Fence {
    type Service = Fenced<S>;

    fn layer(&self, service: S) -> Fenced<S> {
        Fenced { service, fence: self.clone() }
    }
}

/// A service behind a fence.
#[derive(Clone, Debug)]
pub struct Fenced<S> {
    service: S,
    fence: Fence,
}

impl<S> Service<Request<Body>> for Fenced<S>
where
    S: Service<Request<Body>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = if self.fence.lets(request.method(), request.uri().path()) {
            Either::Left(self.service.call(request))
        } else {
            Either::Right(ready(Err(TooLate)))
        };
        Box::pin(async move {
            match answer {
                Either::Left(answer) => answer.await.map_err(Into::into),
                Either::Right(refused) => refused.await.map_err(Into::into),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_needs_a_lease_that_holds() {
        let fence = Fence::closed();
        let path = "/apis/apps/v1/namespaces/shop/statefulsets/orders";
        assert!(!fence.lets(&Method::PATCH, path));
        assert!(fence.lets(&Method::GET, path));
        assert!(fence.lets(&Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/shop/leases/operator"));
        fence.open_until(Instant::now() + Duration::from_secs(11));
        assert!(fence.lets(&Method::PATCH, path));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(!fence.lets(&Method::PATCH, path));
        assert!(Fence::open().lets(&Method::DELETE, path));
    }
}
