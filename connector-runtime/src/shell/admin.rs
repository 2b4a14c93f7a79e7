//! The admin port: `/livez`, `/readyz`, `/metrics`, `/status`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use connector_crds::LiveConfig;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::metrics;
use super::readiness::{self, Direction};
use crate::board::Board;

/// Media type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the admin server reads.
#[derive(Debug)]
pub struct Admin {
    /// The pump's board.
    pub board: Board,
    /// Direction of the connector.
    pub direction: Direction,
    /// The live configuration in force.
    pub live: watch::Receiver<LiveConfig>,
    /// Metrics over the same board.
    pub registry: Registry,
}

/// Binds the admin port and writes the bound address into `address_file`, whole or not at all.
pub async fn bind(address: &str, address_file: Option<&Path>) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    if let Some(path) = address_file {
        let unfinished = path.with_extension("new");
        std::fs::write(&unfinished, listener.local_addr()?.to_string())?;
        std::fs::rename(&unfinished, path)?;
    }
    Ok(listener)
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, admin: Admin) -> io::Result<()> {
    let router = axum::Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(serve_metrics))
        .route("/status", get(status))
        .with_state(Arc::new(admin));
    axum::serve(listener, router).await
}

/// 200 while the pump's loop turns; external trouble never fails it.
async fn livez(State(admin): State<Arc<Admin>>) -> Response {
    if readiness::alive(&admin.board) {
        "ok\n".into_response()
    } else {
        let silent = admin.board.silent_for().as_secs();
        (StatusCode::SERVICE_UNAVAILABLE, format!("the pump has not turned for {silent} s\n")).into_response()
    }
}

/// 200 while data can move, with hysteresis; otherwise the reason in one line.
async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let state = admin.live.borrow().state;
    match readiness::ready(&admin.board, admin.direction, state) {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn serve_metrics(State(admin): State<Arc<Admin>>) -> Response {
    match metrics::render(&admin.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn status(State(admin): State<Arc<Admin>>) -> Response {
    Json(admin.board.snapshot()).into_response()
}
