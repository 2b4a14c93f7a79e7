//! The contract of `Source` and `Sink` as checks that run over any system, in-process fake or real server.
//!
//! A system takes part by a *fixture*: how to point a spec at it, how to put records in or take them out, how to
//! break it. The checks are plain functions over a fixture, so that the suite of fakes and the suite of real servers
//! run the same code.

use std::path::Path;

use connector_crds::{ConnectorIdentity, InFlight, SecretKeyRef};
use connector_runtime::board::Board;
use connector_runtime::connectors::Context;
use connector_runtime::secret::Secrets;
use connector_runtime::source::{ErrorClass, SystemError};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::Duration;

pub mod sink;
pub mod source;

/// Longest wait for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long something that must not happen is waited for.
pub const QUIET: Duration = Duration::from_millis(60);

/// Pause between two attempts after a transient error.
const BACK_OFF: Duration = Duration::from_millis(10);

/// The secret of every fixture: no text for people may contain it.
pub const CANARY: &str = "canary-5f1c9a";

/// What a connector under test lives in: a directory with state and Secrets.
#[derive(Debug)]
pub struct World {
    directory: TempDir,
    secrets: Secrets,
    changed: watch::Sender<u64>,
    board: Board,
}

impl Default for World {
    fn default() -> Self {
        World::new()
    }
}

impl World {
    /// An empty world.
    pub fn new() -> World {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join("state")).expect("a state directory");
        let (secrets, changed) = Secrets::new(directory.path().join("secrets"));
        World { directory, secrets, changed, board: Board::new() }
    }

    /// Its directory: relative paths of specs are resolved against it.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Mounts a Secret with one key, or changes it; connectors are told.
    pub fn secret(&self, name: &str, value: &str) -> SecretKeyRef {
        let reference = SecretKeyRef { name: name.into(), key: "value".into() };
        let path = self.secrets.path(&reference);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory for the Secret");
        std::fs::write(path, value).expect("the Secret");
        self.changed.send_modify(|generation| *generation += 1);
        reference
    }

    /// What the connectors of this world tell.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// A context as the runtime builds it; each call stands for a new process on the same volume.
    pub fn context(&self) -> Context {
        Context {
            identity: ConnectorIdentity {
                namespace: "tests".into(),
                name: "conformance".into(),
                epoch: String::new(),
            },
            base: self.path().to_owned(),
            state: self.path().join("state"),
            socket: self.path().join("socket"),
            secrets: self.secrets.clone(),
            board: self.board.clone(),
            max_payload_bytes: 1_048_576,
            in_flight: InFlight::default(),
            stable_positions: true,
        }
    }
}

/// What a system can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// Any bytes.
    Anything,
    /// Any bytes but a line feed.
    AllButLineFeed,
}

/// What a fixture can do about something that not every system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// It did it.
    Done,
    /// The system has nothing of the kind, for this reason.
    NotApplicable(&'static str),
}

/// The records of a check: every single byte, then longer binaries; each different, each one that `carries` allows.
pub fn payloads(carries: Carries) -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut payloads: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    for length in 2..46 {
        // A length of a few bytes up to 2 KiB, and the number in front so that no two are equal.
        let mut payload = format!("{length}:").into_bytes();
        let more = usize::try_from(random() % 2_000).expect("small");
        payload.extend((0..more).map(|_| random() as u8));
        payloads.push(payload);
    }
    if carries == Carries::AllButLineFeed {
        for payload in &mut payloads {
            payload.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b'N');
        }
        payloads.sort();
        payloads.dedup();
    }
    payloads
}

/// Asserts that an error blames the credentials, and shows no secret.
fn assert_refused(error: &SystemError) {
    match error {
        SystemError::Transient { class: ErrorClass::Auth, .. } | SystemError::Permanent { .. } => {}
        SystemError::Transient { class, .. } => panic!("wrong credentials are of class {class:?}: {error}"),
    }
    assert_no_secret(&format!("{error} {error:?}"));
}

/// Asserts that a text for people shows no secret.
fn assert_no_secret(text: &str) {
    assert!(!text.contains(CANARY), "a secret is shown: {text}");
}
