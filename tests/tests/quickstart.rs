//! `connector-operator local` with the real binaries, on the manifests of the quickstart and on broken ones.

#![allow(clippy::unwrap_used)] // the whole file is test code, also outside `#[test]` functions

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use connector_tests::binaries::binary;

/// Longer than a run takes on a busy machine.
const DEADLINE: Duration = Duration::from_mins(2);

/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// A copy of the quickstart with ports of its own, so that it may run beside anything.
struct Copy {
    directory: tempfile::TempDir,
    sink_port: u16,
}

impl Copy {
    fn new() -> Copy {
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples/quickstart");
        let directory = tempfile::tempdir().unwrap();
        let (source_port, sink_port) = (free_port(), free_port());
        fs::copy(
            original.join("seattle-temperatures.csv"),
            directory.path().join("seattle-temperatures.csv"),
        )
        .unwrap();
        for manifest in ["temperatures-in.yaml", "temperatures-out.yaml"] {
            let text = fs::read_to_string(original.join(manifest))
                .unwrap()
                .replace("7100", &source_port.to_string())
                .replace("7200", &sink_port.to_string());
            fs::write(directory.path().join(manifest), text).unwrap();
        }
        Copy { directory, sink_port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn change(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{file} has no {from:?}");
        fs::write(self.path(file), text.replace(from, to)).unwrap();
    }

    fn command(&self, application: &str) -> Command {
        let mut command = Command::new(binary("connector-operator").unwrap());
        command
            .current_dir(self.directory.path())
            .args(["local", "-f", ".", "--wallaroo", "embedded", "--app", application, "--state", "state"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs to the end; what was printed on the standard error, and the exit code.
    fn run(&self) -> (String, Option<i32>) {
        let output = finish(self.command("celsius").spawn().unwrap());
        (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Waits for a process with a deadline; its pipes are read meanwhile.
fn finish(child: Child) -> Output {
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    let (done, waited) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if waited.recv_timeout(DEADLINE).is_err() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    guard.join().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.signal(), Some(9), "not over in {DEADLINE:?}: {text}");
    output
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in {DEADLINE:?}");
        std::thread::sleep(LOOK);
    }
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

/// What the application makes of the input, worked out here again.
fn expected(input: &str) -> Vec<String> {
    input
        .lines()
        .filter_map(|line| {
            let (time, celsius) = line.rsplit_once(',')?;
            let celsius: f64 = celsius.parse().ok()?;
            Some(format!("{time},{:.1}", ((celsius * 1.8 + 32.0) * 10.0).round() / 10.0))
        })
        .collect()
}

fn written(copy: &Copy) -> Vec<String> {
    let text = fs::read_to_string(copy.path("fahrenheit.csv")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_quickstart_accounts_for_every_line() {
    let copy = Copy::new();
    let input = fs::read_to_string(copy.path("seattle-temperatures.csv")).unwrap();
    let expected = expected(&input);
    assert_eq!((input.lines().count(), expected.len()), (8_761, 8_759));
    let (text, code) = copy.run();
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(written(&copy), expected);
    for words in [
        "Records in: 8,761, out: 8,759, rejected: 2",
        "2 refused by the application",
        "temperatures-in (FileSource): 8,761 records read, 8,761 sent to Wallaroo",
        "temperatures-out (FileSink): 8,759 records received, 8,759 written",
        "CONNECTOR",
    ] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    // The secrets and renderings of the run are gone, its state is not.
    assert!(!copy.path("state/run").exists());
    assert!(copy.path("state/state/connectors/default/temperatures-in").exists());

    // Once more: everything was acknowledged, so nothing is read and nothing is written twice.
    let (text, code) = copy.run();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Records in: 0, out: 0, rejected: 0"), "{text}");
    assert_eq!(written(&copy), expected);
}

#[test]
fn killed_processes_are_started_again_and_nothing_is_lost_or_written_twice() {
    let copy = Copy::new();
    copy.change(
        "temperatures-in.yaml",
        "    file:\n      path: seattle-temperatures.csv # relative to this manifest\n      atEnd: Finish",
        "    generator: {rate: 2000, size: 40, count: 8000}",
    );
    let child = copy.command("identity").spawn().unwrap();
    // The names are those of the process table, which keeps 15 bytes.
    for (part, name, processes) in
        [(500, "connector-runti", 2), (2_500, "wallaroo-endpoi", 1), (4_500, "connector-runti", 2)]
    {
        wait_until("records in the file", || written(&copy).len() > part);
        let killed = children_of(child.id(), name);
        assert_eq!(killed.len(), processes, "{name}");
        for pid in killed {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }
    let output = finish(child);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let numbers: Vec<u64> =
        written(&copy).iter().map(|line| line.trim_end_matches('.').parse().unwrap()).collect();
    assert_eq!(numbers, (1..=8_000).collect::<Vec<_>>(), "{text}");
}

/// The processes of a name that a `local` process keeps.
fn children_of(parent: u32, name: &str) -> Vec<nix::unistd::Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        // Fields of `stat` after the name in parentheses: state, parent.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let is_child = tail.split_whitespace().nth(1) == Some(&parent.to_string());
        if is_child && head.ends_with(&format!("({name}")) {
            found.extend(
                head.split(' ').next().and_then(|pid| pid.parse().ok()).map(nix::unistd::Pid::from_raw),
            );
        }
    }
    found
}

#[test]
fn the_plain_protocols_bring_everything_through_in_both_directions() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, spec: String| {
        let text = format!(
            "apiVersion: connectors.wallaroolabs.com/v1alpha1\nkind: Connector\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        );
        fs::write(directory.path().join(name).with_extension("yaml"), text).unwrap();
    };
    let mut expected = Vec::new();
    for (index, protocol) in ["FramedTCP", "Stream05", "Stream06"].into_iter().enumerate() {
        let (size, count) = (30 + index, 1_000);
        write(
            &format!("in-{index}"),
            format!(
                "{{source: {{generator: {{size: {size}, count: {count}}}}}, \
                 wallaroo: {{protocol: {protocol}, connect: ['localhost:{}']}}}}",
                free_port()
            ),
        );
        expected.extend((1..=count).map(|number| format!("{number:.<size$}")));
        let framing = if protocol == "FramedTCP" { ", sinkFraming: {lines: {}}" } else { "" };
        write(
            &format!("out-{index}"),
            format!(
                "{{sink: {{file: {{path: out-{index}.txt}}}}, wallaroo: {{protocol: {protocol}, listen: 0{framing}}}}}"
            ),
        );
    }
    let child = Command::new(binary("connector-operator").unwrap())
        .current_dir(directory.path())
        .args(["local", "-f", ".", "--wallaroo", "embedded"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = finish(child);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    expected.sort();
    for index in 0..3 {
        let written = fs::read_to_string(directory.path().join(format!("out-{index}.txt"))).unwrap();
        let mut lines: Vec<_> = written.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, expected, "out-{index}: {text}");
    }
    assert!(text.contains("Records in: 3,000, out: 9,000, rejected: 0"), "{text}");
}

#[test]
fn an_endless_run_drains_on_the_first_signal() {
    let copy = Copy::new();
    copy.change("temperatures-in.yaml", "atEnd: Finish", "atEnd: Follow");
    let child = copy.command("celsius").spawn().unwrap();
    wait_until("all lines in the file", || written(&copy).len() == 8_759);
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    let output = finish(child);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Draining") && text.contains("out: 8,759"), "{text}");
}

#[test]
fn a_second_signal_ends_everything_at_once() {
    let copy = Copy::new();
    copy.change("temperatures-in.yaml", "atEnd: Finish", "atEnd: Follow");
    let errors = copy.path("errors.txt");
    let said = |words: &str| fs::read_to_string(&errors).unwrap_or_default().contains(words);
    let child = copy.command("celsius").stderr(fs::File::create(&errors).unwrap()).spawn().unwrap();
    wait_until("all lines in the file", || written(&copy).len() == 8_759);
    let kept: Vec<_> = ["connector-runti", "wallaroo-endpoi"]
        .into_iter()
        .flat_map(|name| children_of(child.id(), name))
        .collect();
    assert_eq!(kept.len(), 3);
    // A stopped process drains for as long as one likes.
    for pid in &kept {
        nix::sys::signal::kill(*pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    }
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    wait_until("a word about draining", || said("Draining"));
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    let output = finish(child);
    assert_eq!(output.status.code(), Some(1));
    assert!(said("Ending at once"));
    wait_until("no process left", || {
        kept.iter().all(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Gone, or waiting to be reaped by whoever takes orphans.
            stat.rsplit_once(')').is_none_or(|(_, tail)| tail.trim_start().starts_with('Z'))
        })
    });
}

#[test]
fn a_bad_manifest_starts_nothing_and_names_the_field() {
    let copy = Copy::new();
    copy.change("temperatures-in.yaml", "path:", "pfad:");
    let (text, code) = copy.run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("spec.source.file.pfad"), "{text}");
    assert!(!copy.path("state").exists());
}

#[test]
fn a_taken_port_starts_nothing_and_names_the_field() {
    let copy = Copy::new();
    let _taken = TcpListener::bind(("0.0.0.0", copy.sink_port)).unwrap();
    let (text, code) = copy.run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("temperatures-out") && text.contains("spec.wallaroo.listen"), "{text}");
}

#[test]
fn check_judges_manifests_without_starting_anything() {
    let copy = Copy::new();
    let check = || {
        Command::new(binary("connector-operator").unwrap())
            .arg("check")
            .arg("-f")
            .arg(copy.directory.path())
            .output()
            .unwrap()
    };
    let good = check();
    assert!(good.status.success());
    let text = String::from_utf8_lossy(&good.stdout);
    assert!(text.contains("temperatures-in (FileSource): valid"), "{text}");
    copy.change("temperatures-out.yaml", "kind: Connector", "kind: Conector");
    let bad = check();
    assert_eq!(bad.status.code(), Some(1));
    let text = String::from_utf8_lossy(&bad.stderr);
    assert!(text.contains("Conector") && text.contains("temperatures-out.yaml"), "{text}");
}
