//! The Wallaroo end: protocol, addresses, cookie.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretKeyRef;
use crate::rules::{self, ItemRules, Rules};
use crate::union::exactly_one;

/// How Wallaroo is reached and spoken to.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = Rules(&[&rules::COOKIE_OF_CONNECTOR]))]
pub struct WallarooSpec {
    /// Wire protocol; no default, for it cannot be detected safely.
    #[schemars(extend("x-effect" = "recreates"))]
    pub protocol: Protocol,
    /// Sources: source endpoints of the workers, `host:port` each; dialled in turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 260)), transform = ItemRules(&[&rules::HOST_PORT]))]
    pub connect: Vec<String>,
    /// Sinks: port that Wallaroo's workers dial; 0 only under `local` and in tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_535))]
    pub listen: Option<i32>,
    /// Cookie of the `Connector` protocol; absent: Wallaroo's own default `Dragons-Love-Tacos`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<SecretKeyRef>,
    /// Length header of `FramedTCP` sources; absent: 4 bytes, most significant byte first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framing: Option<FramingSpec>,
    /// How a `FramedTCP` sink splits Wallaroo's bytes into records; required there, and nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink_framing: Option<SinkFraming>,
    /// Largest frame in bytes, without its length header; fixed at 16384 in a `Connector` source.
    #[serde(default = "default_max_frame_bytes")]
    #[schemars(range(min = 64, max = 16_777_216))]
    pub max_frame_bytes: i32,
}

fn default_max_frame_bytes() -> i32 {
    rules::CONNECTOR_FRAME_BYTES
}

/// Wire protocol between connector and Wallaroo.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Wallaroo's TCPSource and TCPSink, every version.
    FramedTCP,
    /// What the connectors of 0.5.3 and 0.5.4 spoke.
    Stream05,
    /// What the connectors of 0.6.0 and 0.6.1 spoke.
    Stream06,
    /// The handshake protocol: acknowledgements and resume for sources, two-phase commit for sinks.
    Connector,
}

/// Length header of a plain framed stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FramingSpec {
    /// Width of the length header.
    #[serde(default)]
    pub header: HeaderWidth,
    /// Byte order of the length header.
    #[serde(default)]
    pub byte_order: ByteOrder,
}

/// Width of a length header in bits.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum HeaderWidth {
    /// One byte.
    U8,
    /// Two bytes.
    U16,
    /// Four bytes.
    #[default]
    U32,
    /// Eight bytes.
    U64,
}

/// Byte order of a length header.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum ByteOrder {
    /// Most significant byte first.
    #[default]
    BigEndian,
    /// Least significant byte first.
    LittleEndian,
}

/// How a plain sink splits Wallaroo's bytes into records.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = exactly_one)]
pub enum SinkFraming {
    /// Records end with a line feed, which is not part of them.
    Lines {},
    /// Each record after its length.
    LengthPrefixed(FramingSpec),
}
