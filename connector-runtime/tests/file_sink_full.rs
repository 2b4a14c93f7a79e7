//! A file sink whose append fails half way, as on a full disk.
//!
//! Alone in its binary because it starts a process: between fork and exec a child holds the locks of every open file, which
//! tests beside it would find taken.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use connector_crds::systems::file::{FileFormat, FileSink as Spec};
use connector_crds::{ConnectorIdentity, InFlight};
use connector_runtime::board::Board;
use connector_runtime::connectors::Context;
use connector_runtime::connectors::file::FileSink;
use connector_runtime::record::{Batch, BatchBuilder, NO_TIME, Position, Record};
use connector_runtime::secret::Secrets;
use connector_runtime::sink::{Sink, SinkStream, SystemError};
use tokio::time::{Duration, Instant};

/// Set in the process that runs under a file size limit.
const LIMITED: &str = "FILE_SINK_TEST_DIRECTORY";

/// The kernel refuses to let a file grow beyond the limit in the middle of a write, as it does on a full disk. Only a
/// process of its own can have the limit, so this test starts itself again under one.
#[test]
fn an_append_that_fails_half_way_leaves_whole_records_and_the_batch_can_be_given_again() {
    if let Some(directory) = std::env::var_os(LIMITED) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(fill(Path::new(&directory)));
    }
    let directory = tempfile::tempdir().unwrap();
    let name = "an_append_that_fails_half_way_leaves_whole_records_and_the_batch_can_be_given_again";
    // Its output goes through pipes, which have no size limit: a file, as under a redirected test run, has.
    let output = Command::new("sh")
        .args(["-c", r#"trap "" XFSZ; ulimit -f 16; exec "$0" --exact "$1""#])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(LIMITED, directory.path())
        .output()
        .unwrap();
    assert!(output.status.success() && output.status.signal().is_none(), "{output:?}");
    // Every accepted record is whole, and the one after the failure is the last.
    let text = fs::read_to_string(directory.path().join("out/f")).unwrap();
    assert!(text.ends_with('\n'));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() > 5);
    let (last, full) = lines.split_last().unwrap();
    assert_eq!(*last, "small");
    assert!(full.iter().all(|line| line.len() == 1_000));
}

/// Writes until the limit, then a batch that still fits.
async fn fill(directory: &Path) {
    let context = Context {
        identity: ConnectorIdentity {
            namespace: "default".into(),
            name: "test".into(),
            epoch: String::new(),
        },
        base: directory.to_owned(),
        state: directory.join("state"),
        socket: std::path::PathBuf::new(),
        secrets: Secrets::new(directory.join("secrets")).0,
        board: Board::new(),
        max_payload_bytes: 16_357,
        in_flight: InFlight::default(),
        stable_positions: true,
    };
    let mut sink = FileSink::new(&Spec { path: "out/f".into(), format: FileFormat::Lines }, &context);
    let stream = SinkStream { worker: "a".into(), incarnation: 1 };
    let mut position = 0;
    let error = loop {
        position += 1;
        match sink.write(&stream, &one(position, &[b'x'; 1_000])).await {
            Ok(_) => assert!(position < 1_000, "there is no limit"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SystemError::Transient { .. }), "{error:?}");
    assert!(error.to_string().starts_with("writing to file"), "{error}");
    sink.write(&stream, &one(position, b"small")).await.unwrap();
    sink.flush(Instant::now() + Duration::from_secs(10)).await.unwrap();
    assert_eq!(sink.durable(), [(stream, position)]);
}

fn one(position: Position, payload: &[u8]) -> Batch {
    let mut builder = BatchBuilder::default();
    builder.push(Record { position, time: NO_TIME, key: &[], payload });
    builder.finish()
}
