//! Supervision of real processes.

use std::fs;

use tokio::time::timeout;

use super::*;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

struct Trial {
    directory: tempfile::TempDir,
    process: Process,
    lines: mpsc::Receiver<LogLine>,
}

/// Runs a shell script as the process; `$D` is a directory of its own.
fn start(script: &str) -> Trial {
    let directory = tempfile::tempdir().unwrap();
    let spec = ProcessSpec {
        name: "trial".into(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), format!("D={}; {script}", directory.path().display()).into()],
        address_file: directory.path().join("address"),
        address_on_stdout: false,
        drain_timeout: Duration::from_secs(20),
    };
    let (log, lines) = mpsc::channel(16);
    Trial { process: Process::start(spec, log), directory, lines }
}

impl Trial {
    async fn line(&mut self) -> String {
        timeout(DEADLINE, self.lines.recv()).await.expect("no line in time").expect("log closed").text
    }

    async fn over(&mut self) -> Option<String> {
        let over = |state: &ProcessState| matches!(state, ProcessState::Over { .. });
        let state = timeout(DEADLINE, self.process.state.wait_for(over)).await.expect("not over in time");
        match state.unwrap().clone() {
            ProcessState::Over { failure } => failure,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_killed_process_is_started_again_and_its_stale_address_is_gone() {
    let mut trial = start(
        r"[ -e $D/address ] && echo stale >&2
           if [ -e $D/second ]; then echo second >&2; exec sleep 60; fi
           touch $D/second $D/address; echo first >&2; kill -9 $$",
    );
    assert_eq!(trial.line().await, "first");
    assert_eq!(trial.line().await, "second");
    assert_eq!(trial.process.restarts(), 1);
    assert_eq!(trial.process.state(), ProcessState::Running);
    trial.process.wish(Wish::Kill);
    assert_eq!(trial.over().await, None);
}

#[tokio::test]
async fn a_drain_lets_the_process_end_by_itself() {
    let mut trial = start(
        r"trap 'echo drained >$D/result; exit 0' TERM; echo ready >&2
           while :; do sleep 0.05; done",
    );
    assert_eq!(trial.line().await, "ready");
    trial.process.wish(Wish::Drain);
    assert_eq!(trial.over().await, None);
    assert_eq!(fs::read_to_string(trial.directory.path().join("result")).unwrap(), "drained\n");
}

#[tokio::test]
async fn a_process_that_ignores_the_drain_is_gone_when_that_is_asked_for() {
    let mut trial = start("trap '' TERM; echo ready >&2; while :; do sleep 0.05; done");
    assert_eq!(trial.line().await, "ready");
    trial.process.wish(Wish::Drain);
    trial.process.wish(Wish::Kill);
    assert_eq!(trial.over().await, None);
}

#[tokio::test]
async fn a_failure_names_the_process_its_code_and_its_last_words() {
    let mut trial = start("echo 'no such field' >&2; exit 2");
    let failure = trial.over().await.expect("no failure");
    assert_eq!(failure, "trial: ended with exit status: 2: no such field");
}

#[tokio::test]
async fn a_missing_binary_is_a_failure_at_once() {
    let spec = ProcessSpec {
        name: "trial".into(),
        program: "/nonexistent/binary".into(),
        arguments: Vec::new(),
        address_file: "/nonexistent/address".into(),
        address_on_stdout: false,
        drain_timeout: Duration::ZERO,
    };
    let (log, _lines) = mpsc::channel(1);
    let mut process = Process::start(spec, log);
    let over = |state: &ProcessState| matches!(state, ProcessState::Over { failure: Some(_) });
    timeout(DEADLINE, process.state.wait_for(over)).await.expect("not over in time").unwrap();
}
