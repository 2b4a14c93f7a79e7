//! The least of an HTTP client: one request, one answer, for the status servers of our own processes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// Longest wait for an answer. A stopped process never gives one.
const TIMEOUT: Duration = Duration::from_secs(5);

/// `GET path`; the body when the status is 200.
///
/// # Errors
/// When nobody answers in 5 s, or with another status.
pub fn get(address: &str, path: &str) -> anyhow::Result<String> {
    request(address, "GET", path)
}

/// `GET path` of a JSON document.
///
/// # Errors
/// As [`get`]; and when it is no JSON.
pub fn get_json(address: &str, path: &str) -> anyhow::Result<Value> {
    let body = get(address, path)?;
    serde_json::from_str(&body).with_context(|| format!("{address}{path} is no JSON: {body:?}"))
}

/// `POST path` without a body.
///
/// # Errors
/// As [`get`].
pub fn post(address: &str, path: &str) -> anyhow::Result<String> {
    request(address, "POST", path)
}

fn request(address: &str, method: &str, path: &str) -> anyhow::Result<String> {
    let what = || format!("{method} http://{address}{path}");
    let parsed: SocketAddr = address.parse().with_context(what)?;
    let mut socket = TcpStream::connect_timeout(&parsed, TIMEOUT).with_context(what)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).with_context(what)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).with_context(what)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("{}: cut short", what()) };
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "{}: {status} {body}", what());
    // Our servers answer with a length, never in chunks.
    ensure!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{}: chunked", what());
    Ok(body.to_owned())
}
