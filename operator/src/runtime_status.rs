//! What a runtime says about itself: `GET /status` of its admin port.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take: the other side is on this machine, or in this cluster.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Longest answer that is read, in bytes: a thousand listed streams take a fraction of it.
const MAX_ANSWER_BYTES: u64 = 8 * 1024 * 1024;

/// The part of a runtime's status that is looked at.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeStatus {
    /// The Wallaroo end.
    pub wallaroo: SideStatus,
    /// The external end.
    pub external: SideStatus,
    /// Set while the connector waits for a change by someone.
    pub stalled: Option<Trouble>,
    /// The last error since the process began.
    pub last_error: Option<RuntimeError>,
    /// Address that is listened on.
    pub listen: Option<String>,
    /// A finite source is at its end, and everything is acknowledged and committed.
    pub complete: bool,
    /// Per stream.
    pub streams: BTreeMap<String, StreamStatus>,
    /// Records.
    pub records: RecordCounts,
}

/// The last error of the data path.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeError {
    /// Which end: `wallaroo` or `external`.
    pub side: String,
    /// What happened.
    pub message: String,
    /// Milliseconds since the Unix epoch.
    pub unix_millis: i64,
}

/// How one end is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(tag = "state")]
pub enum SideStatus {
    /// Nothing tried yet.
    #[default]
    Waiting,
    /// Data can move.
    Connected,
    /// It cannot.
    Failed(Trouble),
}

/// A reason and a sentence.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Trouble {
    /// Reason in CamelCase.
    pub reason: String,
    /// What happened.
    pub message: String,
}

/// Positions of one stream.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct StreamStatus {
    /// Last position that Wallaroo acknowledged (sources) or decided (sinks).
    pub acknowledged: Option<u64>,
    /// Last position committed at the external system (sources) or durable there (sinks).
    pub committed: Option<u64>,
}

/// Records in, out and dropped.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct RecordCounts {
    /// Taken from the sending end.
    pub read: u64,
    /// Handed to the receiving end.
    pub written: u64,
    /// Written to the dead letter.
    pub dead_letters: u64,
    /// Dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// Asks for a status. `None` while there is no answer.
pub async fn fetch<T: DeserializeOwned>(address: Option<SocketAddr>) -> Option<T> {
    let address = address?;
    let body = timeout(TIMEOUT, get(address, "/status")).await.ok()?.ok()?;
    match serde_json::from_slice(&body) {
        Ok(status) => Some(status),
        Err(error) => {
            tracing::warn!(%address, %error, "Status is not understood.");
            None
        }
    }
}

/// The body of an HTTP answer with status 200. The connection serves this one request.
async fn get(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
    body(&answer).map(<[u8]>::to_vec)
}

/// The body of an answer that its sender ended by closing.
fn body(answer: &[u8]) -> io::Result<&[u8]> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(|| invalid("the answer has no end of its head"))?;
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    let head = str::from_utf8(head).map_err(|_| invalid("the head is not text"))?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(invalid("the answer is not 200"));
    }
    let field = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
    };
    if field("transfer-encoding").is_some() {
        return Err(invalid("the body is in chunks, which this reader does not know"));
    }
    let length = field("content-length").and_then(|(_, value)| value.trim().parse::<usize>().ok());
    match length {
        Some(length) if length > body.len() => Err(invalid("the body is cut short")),
        Some(length) => Ok(&body[..length]),
        None => Ok(body),
    }
}

#[cfg(test)]
mod tests {
    use super::{RuntimeStatus, SideStatus, body};

    #[test]
    fn an_answer_is_taken_whole_or_refused() {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(body(ok).unwrap(), b"{}");
        for bad in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}"[..],
            b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"",
        ] {
            assert!(body(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_runtime_of_another_version_is_understood_as_far_as_possible() {
        let status: RuntimeStatus = serde_json::from_str(
            r#"{"wallaroo":{"state":"Failed","reason":"WrongCookie","message":"refused"},"new":1,
                "records":{"read":3,"dropped":{"decode":1}}}"#,
        )
        .unwrap();
        assert!(matches!(status.wallaroo, SideStatus::Failed(trouble) if trouble.reason == "WrongCookie"));
        assert_eq!(status.records.read, 3);
        assert_eq!(status.records.dropped["decode"], 1);
    }
}
