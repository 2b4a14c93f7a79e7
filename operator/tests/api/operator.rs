//! The operator as a process: its identity at the API server, its end, and its requests by the server's own audit log.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{Cluster, until};

/// Image of the runtime that the operator is told of.
pub(crate) const IMAGE: &str = "registry.example/connector-runtime:1";

/// A running operator; killed when it goes.
pub(crate) struct Operator {
    child: Child,
    /// Name by which the API server knows its requests.
    user: String,
    /// Port of its metrics.
    pub(crate) admin: u16,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

impl Operator {
    /// Starts one over the cluster's namespace that works at once.
    pub(crate) fn start(cluster: &Cluster) -> Operator {
        Operator::with(cluster, &cluster.namespace, IMAGE, &["--no-leader-election"])
    }

    /// Starts one that the API server calls `user`.
    pub(crate) fn with(cluster: &Cluster, user: &str, image: &str, arguments: &[&str]) -> Operator {
        let directory = tempfile::tempdir().unwrap();
        let config = fs::read_to_string(std::env::var_os("KUBECONFIG").unwrap()).unwrap();
        // The same rights under a name of its own, for the audit log.
        let acting = format!("user: {{as: {user}, as-groups: [\"system:masters\"], ");
        assert!(config.contains("user: {"), "the kubeconfig of tests/cluster/lib.sh has changed");
        let kubeconfig = directory.path().join("kubeconfig");
        fs::write(&kubeconfig, config.replacen("user: {", &acting, 1)).unwrap();
        let log = directory.path().join("log");
        // Free a moment ago; another process that takes it makes the start fail, which the tests see.
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(env!("CARGO_BIN_EXE_connector-operator"))
            .args(["run", "--runtime-image", image, "--namespace", &cluster.namespace])
            .args(["--admin", &format!("127.0.0.1:{admin}")])
            .args(arguments)
            .env("KUBECONFIG", &kubeconfig)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Operator { child, user: user.into(), admin, log, _directory: directory }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        until("the operator ends", || {
            let status = self.child.try_wait().unwrap();
            async move { status }
        })
        .await
    }

    /// Asks it to end, and waits.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// One of its metrics, by the start of its line; 0 where it is not there yet.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let text = get(self.admin, "/metrics").await.unwrap_or_default();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0.0)
    }

    /// Its requests so far but for watches, as the API server counted them: verb and resource with name.
    pub(crate) fn requests(&self) -> Vec<String> {
        requests(&self.user).into_iter().map(|(_, request)| request).collect()
    }

    /// Those that write.
    pub(crate) fn writes(&self) -> Vec<String> {
        let reads = |request: &String| request.starts_with("get ") || request.starts_with("list ");
        self.requests().into_iter().filter(|request| !reads(request)).collect()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the operator of {} said:\n{}", self.user, self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The requests of a user but for watches, with the times at which the API server got them.
pub(crate) fn requests(user: &str) -> Vec<(String, String)> {
    let log = std::env::var_os("AUDIT_LOG").expect("run this by tests/cluster/api --audit");
    let text = fs::read_to_string(log).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["impersonatedUser"]["username"] == user && line["verb"] != "watch")
        .map(|line| {
            let part = |name: &str| line["objectRef"][name].as_str().unwrap_or_default().to_owned();
            let (verb, sub) = (line["verb"].as_str().unwrap().to_owned(), part("subresource"));
            let sub = if sub.is_empty() { sub } else { format!("/{sub}") };
            let time = line["requestReceivedTimestamp"].as_str().unwrap().to_owned();
            (time, format!("{verb} {}/{}{sub}", part("resource"), part("name")))
        })
        .collect()
}

/// The body of an answer of the admin port.
async fn get(port: u16, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text.split_once("\r\n\r\n")?.1.to_owned())
}
