//! Where RESTART sends a client (§3.8).

/// An address that RESTART may not carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no port behind a last colon.
    #[error("RESTART address {0:?} has no port")]
    NoPort(String),
    /// The port is not a number from 1 to 65535.
    #[error("RESTART address {0:?} has a bad port")]
    BadPort(String),
}

/// The endpoint to dial after RESTART, given the one that sent it.
///
/// No address means the same endpoint again. The port is behind the *last* colon, brackets around an IPv6 host are
/// taken off, and a wildcard host (empty, `0.0.0.0`, `::`, `*`) stands for the current host: workers announce
/// what they listen on, which is not always what can be dialled.
pub fn restart_target(
    current_host: &str,
    current_port: u16,
    address: Option<&str>,
) -> Result<(String, u16), AddressError> {
    let Some(address) = address.map(str::trim).filter(|address| !address.is_empty()) else {
        return Ok((current_host.to_owned(), current_port));
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| AddressError::NoPort(address.to_owned()))?;
    let port = match port.parse() {
        Ok(0) | Err(_) => return Err(AddressError::BadPort(address.to_owned())),
        Ok(port) => port,
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let wildcard = matches!(host, "" | "0.0.0.0" | "::" | "*" | "0:0:0:0:0:0:0:0");
    Ok((if wildcard { current_host } else { host }.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(address: &str) -> (String, u16) {
        restart_target("worker-0", 7100, Some(address)).unwrap()
    }

    #[test]
    fn hosts_ports_brackets_and_wildcards() {
        let here = |port| ("worker-0".to_owned(), port);
        assert_eq!(restart_target("worker-0", 7100, None).unwrap(), here(7100));
        assert_eq!(target(""), here(7100));
        assert_eq!(target("10.0.0.7:7101"), ("10.0.0.7".to_owned(), 7101));
        assert_eq!(target("[fd00::7]:7101"), ("fd00::7".to_owned(), 7101));
        assert_eq!(target("fd00::7:7101"), ("fd00::7".to_owned(), 7101));
        for wildcard in ["0.0.0.0:7102", "[::]:7102", ":::7102", ":7102", "*:7102"] {
            assert_eq!(target(wildcard), here(7102), "{wildcard}");
        }
    }

    #[test]
    fn addresses_without_a_usable_port_are_refused() {
        for bad in ["worker-1", "worker-1:", "worker-1:http", "worker-1:0", "worker-1:65536", "[::1]"] {
            assert!(restart_target("worker-0", 7100, Some(bad)).is_err(), "{bad}");
        }
    }
}
