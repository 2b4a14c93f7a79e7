//! The program itself: kill -9 and recovery, graceful stop, exit codes, words for people.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use wallaroo_endpoint::Status;
use wallaroo_endpoint::config::SinkProtocol;

use crate::peers::*;

struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    source: String,
    admin: Option<u64>,
}

impl Program {
    async fn start(arguments: &[&str]) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_wallaroo-endpoint"))
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line =
            soon("the first line", lines.next_line()).await.unwrap().expect("it says where it listens");
        let ready: Value = serde_json::from_str(&line).unwrap();
        let source = ready["sources"][0]["address"].as_str().unwrap().to_owned();
        Program { child, lines, source, admin: ready["admin_port"].as_u64() }
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// SIGTERM; exit code and final status.
    async fn terminate(mut self) -> (Option<i32>, Status) {
        let id = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        let line = soon("the last line", self.lines.next_line()).await.unwrap().expect("a final status");
        let code = soon("the end", self.child.wait()).await.unwrap().code();
        (code, serde_json::from_str(&line).unwrap())
    }
}

fn write_config(directory: &Path, sink: Option<&str>) -> String {
    let config = wallaroo_endpoint::EndpointConfig {
        state_directory: Some(directory.join("state")),
        ..config(
            sink.map(|address| sink_config("out", address, SinkProtocol::connector())).into_iter().collect(),
        )
    };
    let path = directory.join("endpoint.json");
    std::fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_killed_endpoint_recovers_its_last_checkpoint_and_a_stopped_one_forgets() {
    let directory = tempfile::tempdir().unwrap();
    let honest = HonestSink::start().await;
    let path = write_config(directory.path(), Some(&honest.address));
    let program = Program::start(&["--config", &path]).await;
    let mut source = Source::open(&program.source).await;
    source.notify(1, None).await;
    source.send(1, 1..=10, "r").await;
    source.acked(1, 10).await;
    // These reach the sink's socket or not, but no checkpoint.
    source.send(1, 11..=15, "lost").await;
    program.kill().await;

    let program = Program::start(&["--config", &path]).await;
    let mut source = reopen(&program.source).await;
    let (success, position) = source.notify(1, None).await;
    // The five records may have made it into a checkpoint before the kill.
    assert!(success && matches!(position, Some(10..=15)), "{position:?}");
    let next = position.unwrap() + 1;
    source.send(1, next..=20, "r").await;
    source.acked(1, 20).await;
    let committed = honest.until_committed("20 records", |text| text.lines().count() >= 20).await;
    let expected: String = (1..=20)
        .map(|id| if (11..next).contains(&id) { format!("lost{id}\n") } else { format!("r{id}\n") })
        .collect();
    assert_eq!(committed, expected);
    drop(source);
    let (code, status) = program.terminate().await;
    assert_eq!((code, status.violations), (Some(0), vec![]));

    // The honest sink is of no use for the fresh cluster that follows: only the source side is looked at.
    let path = write_config(directory.path(), None);
    let program = Program::start(&["--config", &path]).await;
    let mut source = Source::open(&program.source).await;
    assert_eq!(source.notify(1, None).await, (true, None), "a graceful stop deletes the recovery file");
    program.kill().await;
}

async fn reopen(address: &str) -> Source {
    use wallaroo_protocol::message::{Message, SOURCE_VERSION};
    loop {
        let mut peer = Peer::dial(address).await;
        let _ = peer.try_send(&[hello(SOURCE_VERSION, COOKIE)]).await;
        if let Some(Message::Ok { credits }) = peer.next().await {
            return Source { peer, credits };
        }
    }
}

#[tokio::test]
async fn an_endpoint_killed_under_load_again_and_again_loses_and_repeats_nothing() {
    const LAST: u64 = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let honest = HonestSink::start().await;
    let path = write_config(directory.path(), Some(&honest.address));
    let mut acked = 0;
    for round in 1..=4 {
        let program = Program::start(&["--config", &path]).await;
        let mut source = reopen(&program.source).await;
        let (success, position) = source.notify(1, None).await;
        assert!(success && position.unwrap_or(0) >= acked, "an acknowledged record is never asked for again");
        let mut next = position.unwrap_or(0) + 1;
        let goal = if round == 4 { LAST } else { LAST / 5 * round };
        let mut credits = u64::from(source.credits) - 1;
        while acked < goal {
            let end = (next + credits.saturating_sub(1)).min(LAST + 1);
            source.send(1, next..end, "r").await;
            credits -= end - next;
            next = end;
            let (more, positions) = source.ack().await;
            credits += u64::from(more);
            acked = positions.first().and_then(|(_, position)| *position).unwrap_or(acked).max(acked);
        }
        program.kill().await;
    }
    // The last decision may be missing: the restarted endpoint repeats it.
    let _program = Program::start(&["--config", &path]).await;
    let committed =
        honest.until_committed("every record", |text| text.lines().count() >= LAST as usize).await;
    let expected: String = (1..=LAST).map(|id| format!("r{id}\n")).collect();
    assert!(committed == expected, "every record once, in order");
}

#[tokio::test]
async fn a_violation_makes_the_exit_code_3() {
    let program = Program::start(&["--source", "in=Connector@127.0.0.1:0", "--log", "off"]).await;
    let mut peer = Peer::dial(&program.source).await;
    peer.send(&[hello(b"0.0.2", COOKIE)]).await;
    assert_eq!(peer.error().await, "Unknown protocol version: 0.0.2");
    let (code, status) = program.terminate().await;
    assert_eq!((code, status.violations[0].rule.as_str()), (Some(3), "§2.3"));
}

#[tokio::test]
async fn the_status_server_answers_and_controls() {
    let program = Program::start(&["--source", "in=FramedTCP@127.0.0.1:0", "--admin", "127.0.0.1:0"]).await;
    let admin = format!("127.0.0.1:{}", program.admin.unwrap());
    let request = async |head: &str, body: &str| -> (String, String) {
        let mut stream = TcpStream::connect(&admin).await.unwrap();
        let request = format!(
            "{head} HTTP/1.1\r\nHost: endpoint\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    };
    let mut sender = TcpStream::connect(&program.source).await.unwrap();
    sender.write_all(b"\0\0\0\x02ab").await.unwrap();
    let status = soon("the record", async {
        loop {
            let (head, body) = request("GET /status", "").await;
            assert_eq!(head, "HTTP/1.1 200 OK");
            let status: Status = serde_json::from_str(&body).unwrap();
            if status.records_in == 1 {
                return status;
            }
        }
    })
    .await;
    assert_eq!(status.workers, ["initializer"]);
    assert_eq!(request("POST /faults", r#"{"split_writes": 0}"#).await.0, "HTTP/1.1 409 Conflict");
    assert_eq!(request("POST /faults", r#"{"silent": true}"#).await.0, "HTTP/1.1 200 OK");
    assert_eq!(request("POST /grow", "").await.1, "\"worker1\"");
    assert_eq!(request("POST /shrink/worker7", "").await.1, "worker7 is no worker of this cluster");
    let (code, _) = program.terminate().await;
    assert_eq!(code, Some(0));
}

async fn output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_wallaroo-endpoint")).args(arguments).output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn mistakes_are_answered_with_a_sentence_that_names_them() {
    let (code, _, error) = output(&["--source", "in=Kafka@127.0.0.1:0"]).await;
    assert_eq!(code, Some(1));
    assert_eq!(
        error.trim_end(),
        "wallaroo-endpoint: --source in=Kafka@127.0.0.1:0: expected NAME=PROTOCOL@HOST:PORT with a protocol of Connector, FramedTCP, Stream05 or Stream06"
    );
    let (code, _, error) = output(&[]).await;
    assert_eq!((code, error.trim_end()), (Some(1), "wallaroo-endpoint: sources: name at least one source"));
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let (code, _, error) = output(&["--source", &format!("in=FramedTCP@{address}")]).await;
    assert_eq!(code, Some(1));
    assert!(
        error.contains(&format!("source in: cannot listen on {address}: Address already in use")),
        "{error}"
    );
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("checkpoint.json"), "nonsense").unwrap();
    let state = directory.path().to_str().unwrap();
    let (code, _, error) =
        output(&["--source", "in=FramedTCP@127.0.0.1:0", "--state-directory", state]).await;
    assert_eq!(code, Some(1));
    assert!(error.contains("checkpoint.json: not a whole recovery file"), "{error}");
    let unknown = directory.path().join("unknown.json");
    std::fs::write(&unknown, r#"{"sorces": []}"#).unwrap();
    let (code, _, error) = output(&["--config", unknown.to_str().unwrap()]).await;
    assert_eq!(code, Some(1));
    assert!(error.contains("unknown field `sorces`"), "{error}");
}

#[tokio::test]
async fn the_help_has_examples_and_a_printed_configuration_is_accepted() {
    let (code, help, _) = output(&["--help"]).await;
    assert_eq!(code, Some(0));
    for part in ["Examples:", "--application celsius", "Exit code:", "NAME=PROTOCOL@HOST:PORT"] {
        assert!(help.contains(part), "{part} is missing in:\n{help}");
    }
    let arguments =
        ["--source", "in=Connector@127.0.0.1:0", "--sink", "out=Stream06@127.0.0.1:7200", "--print-config"];
    let (code, printed, _) = output(&arguments).await;
    assert_eq!(code, Some(0));
    let config = wallaroo_endpoint::EndpointConfig::from_json(&printed).unwrap();
    assert_eq!((config.sources.len(), config.sinks[0].protocol.clone()), (1, SinkProtocol::Stream06));
    assert!(!format!("{config:?}").contains(COOKIE), "Debug shows no cookie");
}
