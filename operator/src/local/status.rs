//! What a runtime and the endpoint say about themselves: `GET /status` of their admin ports.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use serde::Deserialize;
pub use wallaroo_endpoint::status::Status as EndpointStatus;

pub use crate::runtime_status::{RecordCounts, RuntimeStatus, SideStatus, StreamStatus, Trouble, fetch};

/// Where a runtime serves its status, as it wrote into a file of its own. `None` before it has.
pub fn runtime_address(file: &Path) -> Option<SocketAddr> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Where the endpoint serves its status: the first line of its standard output says the port. `None` before it is
/// there.
pub fn endpoint_address(output: &Path) -> Option<SocketAddr> {
    #[derive(Deserialize)]
    struct Listening {
        admin_port: u16,
    }
    let text = std::fs::read_to_string(output).ok()?;
    let listening: Listening = serde_json::from_str(text.lines().next()?).ok()?;
    Some((Ipv4Addr::LOCALHOST, listening.admin_port).into())
}

/// What the endpoint had seen at its end: the last line of its standard output. `None` when it ended without one.
pub fn endpoint_last(output: &Path) -> Option<EndpointStatus> {
    let text = std::fs::read_to_string(output).ok()?;
    serde_json::from_str(text.lines().nth(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::{endpoint_address, endpoint_last, runtime_address};

    #[test]
    fn addresses_are_read_when_they_are_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let says = |text: &str| std::fs::write(file.path(), text).unwrap();
        assert_eq!(runtime_address(file.path()), None);
        says("127.0.0.1:4000\n");
        assert_eq!(runtime_address(file.path()).unwrap().port(), 4000);
        says("{\"sources\":[],\"admin_po");
        assert_eq!(endpoint_address(file.path()), None);
        says("{\"sources\":[],\"admin_port\":4001}\n");
        assert_eq!(endpoint_address(file.path()).unwrap().port(), 4001);
        assert_eq!(endpoint_last(file.path()), None);
    }
}
