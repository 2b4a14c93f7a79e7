//! Which ports are free now: asked before anything starts, so that a taken one is a sentence and not a crash.

use std::io;
use std::net::{TcpListener, UdpSocket};

use connector_crds::SourceSpec;

use super::plan::Plan;

/// A port that something else holds, or that may not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{owner}: {field}: {address} cannot be bound: {cause}")]
pub struct PortError {
    /// The Connector and its place, or the embedded Wallaroo.
    owner: String,
    /// Path of the field.
    field: String,
    /// What was tried.
    address: String,
    /// What came back.
    #[source]
    cause: io::Error,
}

/// A port that is free on this machine at this moment.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Tries every fixed port of a plan once.
pub fn check(plan: &Plan) -> Vec<PortError> {
    let mut errors = Vec::new();
    let mut tcp = |owner: String, field: String, address: String| {
        if let Err(cause) = TcpListener::bind(&address) {
            errors.push(PortError { owner, field, address, cause });
        }
    };
    for (index, source) in plan.endpoint.iter().flat_map(|endpoint| &endpoint.sources).enumerate() {
        let owner = "the embedded Wallaroo".to_owned();
        tcp(owner, format!("sources[{index}].listen"), source.listen.clone());
    }
    for runtime in plan.runtimes.iter().filter(|runtime| runtime.runs()) {
        let owner = format!("{} ({})", runtime.label, runtime.place);
        if let Some(port) = runtime.config.wallaroo.listen {
            tcp(owner, "spec.wallaroo.listen".into(), format!("0.0.0.0:{port}"));
        }
    }
    for runtime in plan.runtimes.iter().filter(|runtime| runtime.runs()) {
        if let Some(SourceSpec::Udp(udp)) = &runtime.config.source {
            let address = if udp.bind.contains(':') {
                format!("[{}]:{}", udp.bind, udp.port)
            } else {
                format!("{}:{}", udp.bind, udp.port)
            };
            if let Err(cause) = UdpSocket::bind(&address) {
                errors.push(PortError {
                    owner: format!("{} ({})", runtime.label, runtime.place),
                    field: "spec.source.udp.port".into(),
                    address,
                    cause,
                });
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests;
