//! The status server: `GET /status`, and `POST` for the remote control.

use std::io;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::TcpListener;

use crate::endpoint::{Control, EndpointError};
use crate::faults::FaultPlan;
use crate::status::Status;

/// A running status server; ends when dropped.
#[derive(Debug)]
pub struct Admin {
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Admin {
    /// The port that was bound.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Answer = Result<Json<serde_json::Value>, (StatusCode, String)>;

fn answer(result: Result<serde_json::Value, EndpointError>) -> Answer {
    result.map(Json).map_err(|error| (StatusCode::CONFLICT, error.to_string()))
}

async fn status(State(control): State<Control>) -> Json<Status> {
    Json(control.status())
}

async fn rollback(State(control): State<Control>) {
    control.rollback();
}

async fn stall(State(control): State<Control>) {
    control.stall();
}

async fn resume(State(control): State<Control>) {
    control.resume();
}

async fn faults(State(control): State<Control>, Json(plan): Json<FaultPlan>) -> Answer {
    answer(control.set_faults(plan).map(|()| serde_json::Value::Null).map_err(EndpointError::from))
}

async fn grow(State(control): State<Control>) -> Answer {
    answer(control.grow().await.map(Into::into))
}

async fn shrink(State(control): State<Control>, Path(worker): Path<String>) -> Answer {
    answer(control.shrink(&worker).map(|()| serde_json::Value::Null))
}

/// Binds `address` (`host:port`) and serves:
///
/// * `GET /status`: [`Status`] as JSON
/// * `POST /rollback`, `/stall`, `/resume`, `/grow`, `/shrink/{worker}`
/// * `POST /faults`: a [`FaultPlan`] as JSON
///
/// There is no access control: bind a loopback address.
pub async fn serve(address: &str, control: Control) -> io::Result<Admin> {
    let listener = TcpListener::bind(address).await?;
    let port = listener.local_addr()?.port();
    let router = Router::new()
        .route("/status", get(status))
        .route("/rollback", post(rollback))
        .route("/stall", post(stall))
        .route("/resume", post(resume))
        .route("/faults", post(faults))
        .route("/grow", post(grow))
        .route("/shrink/{worker}", post(shrink))
        .with_state(control);
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the status server ended");
        }
    });
    Ok(Admin { port, task })
}
