//! What README and docs tell people to type is what runs here: every command of theirs is found, and is either run by
//! this test or a recipe that `.ci/run` runs.

#![allow(clippy::unwrap_used)] // the whole file is test code, also outside `#[test]` functions

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use connector_tests::binaries::binary;
use connector_tests::processes::{PATIENCE, free_port, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A generator that ends, and nothing else: also a run against a Wallaroo of one's own comes to its end.
const MANIFEST: &str = "apiVersion: connectors.wallaroolabs.com/v1alpha1
kind: Connector
metadata: {name: numbers-in}
spec:
  source: {generator: {count: 1000, size: 20}}
  wallaroo: {protocol: Connector, connect: ['127.0.0.1:7100']}
";

/// Longest a command of the README takes on a busy machine.
const DEADLINE: Duration = Duration::from_mins(2);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The commands of a page: lines of `sh` blocks, continued lines joined, and indented lines, without their remarks.
fn commands(page: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut fence: Option<&str> = None;
    let mut continues = false;
    for line in page.lines() {
        if let Some(language) = line.strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(language) };
            continue;
        }
        let command = match fence {
            Some("sh") => line,
            None if continues || line.starts_with("    ") => line,
            Some(_) | None => continue,
        };
        let command = command.split(" #").next().unwrap_or_default().trim();
        let (command, more) = match command.strip_suffix('\\') {
            Some(command) => (command.trim_end(), true),
            None => (command, false),
        };
        match found.last_mut() {
            Some(last) if continues => *last = format!("{last} {command}"),
            _ if command.is_empty() => {}
            _ => found.push(command.to_owned()),
        }
        continues = more;
    }
    found
}

#[test]
fn commands_are_found() {
    let page = "text\n```sh\na -b \\\n    c # said\n```\n```yaml\nd\n```\n\n    e f  # said\n";
    assert_eq!(commands(page), ["a -b c", "e f"]);
}

/// A directory in which the commands of a page make sense, at ports of its own.
struct Place {
    directory: tempfile::TempDir,
    ports: Vec<(String, String)>,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let ports: Vec<_> = ["7100", "7200", "7300"]
            .into_iter()
            .map(|port| (port.to_owned(), free_port().unwrap().to_string()))
            .collect();
        let place = Place { directory, ports };
        let path = place.directory.path();
        fs::create_dir(path.join("manifests")).unwrap();
        fs::write(path.join("manifests/in.yaml"), place.here(MANIFEST)).unwrap();
        let endpoint =
            r#"{"sources": [{"name": "in", "listen": "127.0.0.1:7100", "protocol": {"Connector": {}}}]}"#;
        fs::write(path.join("endpoint.json"), place.here(endpoint)).unwrap();
        place
    }

    /// A text with its ports replaced.
    fn here(&self, text: &str) -> String {
        self.ports.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    /// A command of a page, with the binaries in the search path.
    fn command(&self, command: &str) -> Command {
        let binaries = binary("connector-operator").unwrap().parent().unwrap().to_owned();
        let path = std::env::join_paths(
            std::iter::once(binaries)
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        )
        .unwrap();
        let mut shell = Command::new("timeout");
        shell
            .arg(DEADLINE.as_secs().to_string())
            .args(["bash", "-euc", &format!("exec {}", self.here(command))])
            .current_dir(self.directory.path())
            .env("PATH", path)
            .stdin(Stdio::null());
        shell
    }

    /// Runs to the end; both outputs.
    fn run(&self, command: &str) -> String {
        let output = self.command(command).output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command}: {}\n{text}", output.status);
        text
    }

    /// Starts a command that serves until it is told to end.
    fn serve(&self, command: &str) -> Serving {
        let child = self.command(command).stdout(Stdio::null()).spawn().unwrap();
        Serving(child)
    }
}

/// A process that is ended with this.
struct Serving(std::process::Child);

impl Drop for Serving {
    fn drop(&mut self) {
        // `timeout` passes the signal on.
        let _ = kill(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let recipes = fs::read_to_string(root().join(".ci/run")).unwrap();
    let mut ran = 0;
    for command in commands(&readme) {
        let words: Vec<_> = command.split(' ').collect();
        match words[..] {
            // `.ci/run` takes the first two out of the README, and names the others.
            ["./tasks", "try" | "test"] => {}
            ["./tasks", recipe] => assert!(recipes.contains(&format!("./tasks {recipe}\n")), "{command}"),
            ["connector-operator", ..] => {
                let place = Place::new();
                let own = command.ends_with("local -f manifests/");
                let wallaroo =
                    own.then(|| place.serve("wallaroo-endpoint --source in=Connector@127.0.0.1:7100"));
                let text = place.run(&command);
                drop(wallaroo);
                let expected = match words[1] {
                    "local" => "numbers-in (GeneratorSource): 1,000 records read, 1,000 sent to Wallaroo",
                    _ => "numbers-in (GeneratorSource): valid",
                };
                assert!(text.contains(expected), "{command}: {text}");
                ran += 1;
            }
            _ => panic!("README.md: nothing runs {command:?}"),
        }
    }
    assert!(ran >= 4, "only {ran} commands of the operator found: are they still indented by four?");
}

#[test]
fn the_commands_of_the_endpoint_page_do_what_it_says() {
    let page = fs::read_to_string(root().join("docs/endpoint.md")).unwrap();
    let commands: Vec<_> = commands(&page).into_iter().filter(|line| !line.starts_with(['{', '"'])).collect();
    let [serve, ask] = &commands[..] else { panic!("{commands:#?}") };
    let place = Place::new();
    let _serving = place.serve(serve);
    let mut status = String::new();
    wait_for("the endpoint's status", PATIENCE, || {
        let output = place.command(ask).output()?;
        status = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(output.status.success())
    })
    .unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["violations"], serde_json::json!([]), "{status}");
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    pages_below(&root().join("docs"), &mut pages);
    pages_below(&root().join("examples"), &mut pages);
    let mut followed = 0;
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.contains(char::is_whitespace) {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(to.exists(), "{}: {target} is not there", page.display());
            if !anchor.is_empty() {
                let anchors = anchors(&fs::read_to_string(&to).unwrap());
                assert!(anchors.iter().any(|known| known == anchor), "{}: {target}", page.display());
            }
            followed += 1;
        }
    }
    assert!(followed > 10, "{followed}");
}

fn pages_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> Vec<String> {
    page.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}
