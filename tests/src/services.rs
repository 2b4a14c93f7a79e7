//! The real servers that `tests/services/run` starts: where they are, and how to break them.

use std::process::Command;

/// A value that the services' script hands over.
///
/// # Panics
/// When it is absent: a test that needs a server never passes without it.
pub fn environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test needs real servers, run it by `tests/services/run` or `./tasks services`")
    })
}

/// Runs `tests/services/SERVICE ARGUMENTS…`, e.g. `kafka kill`; returns when it is done.
///
/// # Panics
/// When the script fails.
pub fn control(service: &str, arguments: &[&str]) {
    environment("SERVICES_DIR");
    let script = format!("{}/services/{service}", env!("CARGO_MANIFEST_DIR"));
    let status = Command::new(&script).args(arguments).status().expect("the script starts");
    assert!(status.success(), "{script} {arguments:?}: {status}");
}
