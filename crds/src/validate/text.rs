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

/// Twin of `AMOUNT`.
pub(super) fn is_amount(text: &str) -> bool {
    let number = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    let (whole, decimals) =
        number.split_once('.').map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    let digits = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"].contains(&unit)
        && digits(whole, 9)
        && decimals.is_none_or(|decimals| digits(decimals, 3))
}

/// Bytes of a volume's size; `None` for a text that is none. Twin of `VOLUME_SIZE`.
pub(super) fn volume_bytes(text: &str) -> Option<u64> {
    let number = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let shift = match &text[number.len()..] {
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        _ => return None,
    };
    let plain =
        number.len() <= 6 && !number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| number.parse::<u64>().ok()).flatten().map(|number| number << shift)
}
