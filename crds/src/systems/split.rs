//! Records that carry a key: the same block in every sink that wants one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::union::exactly_one;

/// How a record splits into key and value.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = exactly_one)]
pub enum KeySplit {
    /// The key ends at the first occurrence of this text; the rest is the value.
    Delimiter(#[schemars(length(min = 1, max = 16))] String),
    /// The key's length as 4 bytes big-endian, the key, the value.
    LengthPrefix {},
}

impl Default for KeySplit {
    fn default() -> Self {
        KeySplit::Delimiter(":".into())
    }
}
