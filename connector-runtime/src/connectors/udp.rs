//! UDP: see [`UdpSource`] and [`UdpSink`].

mod sink;
mod source;

pub use sink::UdpSink;
pub use source::UdpSource;

/// Longest payload of a UDP datagram over IPv4, in bytes (65,535 − 20 of IP − 8 of UDP).
pub const MAX_DATAGRAM_BYTES: usize = 65_507;
