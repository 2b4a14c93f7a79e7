//! UDP: one datagram, one record, in both directions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{self, ItemRules, Rules};

/// Receives datagrams.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UdpSource {
    /// Port to receive on; 0 only under `local` and in tests.
    #[schemars(range(min = 0, max = 65_535))]
    pub port: i32,
    /// Address to bind; a pod has no other than the wildcard address.
    #[serde(default = "default_bind")]
    #[schemars(length(min = 1, max = 45), transform = Rules(&[&rules::IP_ADDRESS]))]
    pub bind: String,
    /// Multicast groups to join.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 45)), transform = ItemRules(&[&rules::MULTICAST_ADDRESS]))]
    pub multicast_groups: Vec<String>,
    /// Receive buffer of the socket in bytes (`SO_RCVBUF`; the kernel may grant less).
    #[serde(default = "default_receive_buffer")]
    #[schemars(range(min = 4_096, max = 268_435_456))]
    pub receive_buffer_bytes: i32,
}

fn default_bind() -> String {
    "0.0.0.0".into()
}

fn default_receive_buffer() -> i32 {
    4_194_304
}

/// Sends datagrams.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UdpSink {
    /// Host to send to, resolved anew when sending fails.
    #[schemars(length(min = 1, max = 253), transform = Rules(&[&rules::HOST_WITHOUT_PORT]))]
    pub host: String,
    /// Port to send to.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
}
