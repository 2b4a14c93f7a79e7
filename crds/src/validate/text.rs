//! Forms of texts: the twins of the patterns in [`crate::rules`].

use std::net::IpAddr;

/// Twin of [`crate::rules::HOST_PORT`].
pub(super) fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port))
}

fn is_host(host: &str) -> bool {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
        return !inner.is_empty() && inner.bytes().all(address);
    }
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    host.bytes().next().is_some_and(word)
        && host.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0') && port.parse::<u16>().is_ok()
}

/// Twin of CEL's `isIP`: no zone, no leading zeros, no IPv4 written as IPv6.
pub(super) fn is_ip(text: &str) -> bool {
    match text.parse() {
        Ok(IpAddr::V4(_)) => true,
        Ok(IpAddr::V6(address)) => address.to_ipv4_mapped().is_none(),
        Err(_) => false,
    }
}

/// Twin of [`crate::rules::MULTICAST_ADDRESS`].
pub(super) fn is_multicast(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok_and(|address| address.is_multicast())
}

/// Twin of [`crate::rules::HOST_WITHOUT_PORT`].
pub(super) fn is_host_without_port(text: &str) -> bool {
    !text.contains(':') || is_ip(text)
}

/// Twin of [`crate::rules::NAME_LABEL`].
pub(super) fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(|byte| plain(*byte))
        && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
}
