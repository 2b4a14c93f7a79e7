//! Which address is dialled next. Pure.

use wallaroo_protocol::{AddressError, restart_target};

/// Failed dials of an address that RESTART named before the configured ones are tried again.
const REDIRECT_ATTEMPTS: u32 = 3;

/// The configured addresses in rotation, and the one that a worker sent us to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Targets {
    configured: Vec<String>,
    next: usize,
    redirect: Option<Redirect>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Redirect {
    address: String,
    failures: u32,
}

impl Targets {
    /// `None` without an address.
    pub(super) fn new(configured: Vec<String>) -> Option<Targets> {
        (!configured.is_empty()).then_some(Targets { configured, next: 0, redirect: None })
    }

    /// The address to dial.
    pub(super) fn current(&self) -> &str {
        match &self.redirect {
            Some(redirect) => &redirect.address,
            None => &self.configured[self.next],
        }
    }

    /// Dialling the address, or the session there, did not work: the next one's turn, in the end.
    pub(super) fn failed(&mut self) {
        match &mut self.redirect {
            Some(redirect) if redirect.failures + 1 < REDIRECT_ATTEMPTS => redirect.failures += 1,
            Some(_) => self.redirect = None,
            None => self.next = (self.next + 1) % self.configured.len(),
        }
    }

    /// The address works.
    pub(super) fn worked(&mut self) {
        if let Some(redirect) = &mut self.redirect {
            redirect.failures = 0;
        }
    }

    /// A worker sent RESTART.
    pub(super) fn restart(&mut self, address: Option<&str>) -> Result<(), AddressError> {
        let Some(address) = address else { return Ok(()) };
        let (host, port) = split(self.current());
        let (host, port) = restart_target(host, port, Some(address))?;
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        if address != self.current() {
            self.redirect = Some(Redirect { address, failures: 0 });
        }
        Ok(())
    }
}

/// Host (without brackets) and port of an address that was dialled.
fn split(address: &str) -> (&str, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (host, port.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(configured: &[&str]) -> Targets {
        Targets::new(configured.iter().map(|address| (*address).to_owned()).collect()).unwrap()
    }

    #[test]
    fn configured_addresses_take_turns() {
        let mut targets = targets(&["a:1", "b:1"]);
        assert_eq!(targets.current(), "a:1");
        targets.failed();
        assert_eq!(targets.current(), "b:1");
        targets.failed();
        assert_eq!(targets.current(), "a:1");
        assert_eq!(Targets::new(Vec::new()), None);
    }

    #[test]
    fn restart_names_the_next_address_and_a_wildcard_keeps_the_host() {
        let mut targets = targets(&["worker-0:7100", "other:7100"]);
        targets.restart(None).unwrap();
        assert_eq!(targets.current(), "worker-0:7100");
        targets.restart(Some("0.0.0.0:7101")).unwrap();
        assert_eq!(targets.current(), "worker-0:7101");
        targets.restart(Some("worker-1:7102")).unwrap();
        assert_eq!(targets.current(), "worker-1:7102");
        targets.restart(Some("[fd00::7]:7103")).unwrap();
        assert_eq!(targets.current(), "[fd00::7]:7103");
        targets.restart(Some("[::]:7104")).unwrap();
        assert_eq!(targets.current(), "[fd00::7]:7104");
        assert!(targets.restart(Some("nowhere")).is_err());
        assert_eq!(targets.current(), "[fd00::7]:7104");
    }

    #[test]
    fn an_address_from_restart_that_does_not_work_gives_way_to_the_configured_ones() {
        let mut targets = targets(&["a:1", "b:1"]);
        targets.restart(Some("c:1")).unwrap();
        targets.failed();
        targets.failed();
        targets.worked();
        targets.failed();
        targets.failed();
        assert_eq!(targets.current(), "c:1");
        targets.failed();
        assert_eq!(targets.current(), "a:1");
    }
}
