//! Counts every request to the API server, watches included, at the one place that all of them pass.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::{Method, Request, Response, Uri};
use kube::client::Body;
use tower::{Layer, Service};

use super::Metrics;

/// Wraps a client's service.
#[derive(Clone, Debug)]
pub struct CountRequests(pub Arc<Metrics>);

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, service: S) -> Counted<S> {
        Counted { service, metrics: Arc::clone(&self.0) }
    }
}

/// A service whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    service: S,
    metrics: Arc<Metrics>,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let resource = resource(request.uri().path());
        let verb = verb(request.method(), request.uri(), resource.named);
        let metrics = Arc::clone(&self.metrics);
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().map(|answer| answer.status().as_u16()).ok();
            metrics.requested(verb, resource.label, code);
            answer
        })
    }
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    /// `pods`, `connectors/status`.
    label: String,
    /// Whether it is one object.
    named: bool,
}

fn resource(path: &str) -> Named {
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    let skipped = match parts.next() {
        Some("api") => 1,
        Some("apis") => 2,
        Some(_) | None => return Named { label: "other".into(), named: false },
    };
    let mut parts = parts.skip(skipped);
    let mut resource = parts.next();
    let mut name = parts.next();
    let mut sub = parts.next();
    if resource == Some("namespaces") && sub.is_some() {
        (resource, name, sub) = (sub, parts.next(), parts.next());
    }
    let label = match (resource, sub) {
        (Some(resource), Some(sub)) => format!("{resource}/{sub}"),
        (Some(resource), None) => resource.to_owned(),
        (None, _) => "other".into(),
    };
    Named { label, named: name.is_some() }
}

/// The verb, as RBAC calls it.
fn verb(method: &Method, uri: &Uri, named: bool) -> &'static str {
    let watches = uri.query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
    match (method.as_str(), named) {
        ("GET", _) if watches => "watch",
        ("GET", true) => "get",
        ("GET", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_called_what_rbac_calls_them() {
        let of = |method: Method, uri: &str| {
            let uri: Uri = uri.parse().unwrap();
            let resource = resource(uri.path());
            (verb(&method, &uri, resource.named), resource.label)
        };
        let group = "/apis/connectors.wallaroolabs.com/v1alpha1";
        for (method, uri, verb, label) in [
            (Method::GET, "/api/v1/pods?limit=500".to_owned(), "list", "pods"),
            (Method::GET, "/api/v1/namespaces/shop/pods?&watch=true&limit=1".into(), "watch", "pods"),
            (Method::GET, format!("{group}/namespaces/shop/connectors/orders"), "get", "connectors"),
            (
                Method::PATCH,
                format!("{group}/namespaces/shop/connectors/orders/status"),
                "patch",
                "connectors/status",
            ),
            (Method::POST, "/apis/apps/v1/namespaces/shop/statefulsets".into(), "create", "statefulsets"),
            (Method::DELETE, "/api/v1/namespaces/shop/configmaps/a".into(), "delete", "configmaps"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/shop/leases/l".into(), "update", "leases"),
            (Method::GET, "/version".into(), "list", "other"),
        ] {
            assert_eq!(of(method, &uri), (verb, label.to_owned()), "{uri}");
        }
    }
}
