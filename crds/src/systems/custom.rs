//! Custom connectors: a user's own process, in any language, beside the runtime.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretKeyRef;
use crate::pod::Resources;

/// A user's process that yields records.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CustomSource {
    /// The process.
    #[serde(flatten)]
    pub process: CustomProcess,
    /// What the process says of where a record stands; decides what is promised.
    pub positions: SourcePositions,
}

/// A user's process that takes records.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CustomSink {
    /// The process.
    #[serde(flatten)]
    pub process: CustomProcess,
    /// What the target keeps of where a record stands; decides what is promised.
    pub positions: SinkPositions,
}

/// A user's process and what it is given.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CustomProcess {
    /// Image of its container; not used under `local`.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Command line without arguments; absent: the image's entry point; required under `local`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 1024)))]
    pub command: Vec<String>,
    /// Arguments; `command` and `args` are no place for secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    pub args: Vec<String>,
    /// What the process is told with the first frame; no place for secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = config_map)]
    pub config: BTreeMap<String, String>,
    /// Keys of Secrets that the process finds as files `<name>/<key>` in the directory that it is told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub secrets: Vec<SecretKeyRef>,
    /// CPU and memory of its container; what is absent gets a value from the operator.
    #[serde(default)]
    pub resources: Resources,
}

/// What a custom source says of where a record stands.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum SourcePositions {
    /// A 64-bit number that rises: the process can read again from any.
    Ordered,
    /// A text of its own, a cursor: the process can read again from any, in the same order.
    Opaque,
    /// Nothing: what was taken is gone.
    None,
}

impl SourcePositions {
    /// The word of the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            SourcePositions::Ordered => "Ordered",
            SourcePositions::Opaque => "Opaque",
            SourcePositions::None => "None",
        }
    }
}

/// What a custom sink's target keeps of where a record stands.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum SinkPositions {
    /// The position, together with the data: nothing is written twice.
    Ordered,
    /// Nothing: a record may be written twice.
    None,
}

impl SinkPositions {
    /// The word of the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            SinkPositions::Ordered => "Ordered",
            SinkPositions::None => "None",
        }
    }
}

/// Entries of `config`, at most.
const MAX_ENTRIES: u32 = 64;

/// Characters of a value of `config`, at most.
const MAX_VALUE: u32 = 4_096;

fn config_map(schema: &mut schemars::Schema) {
    schema.insert("maxProperties".into(), MAX_ENTRIES.into());
    if let Some(values) = schema.get_mut("additionalProperties").and_then(serde_json::Value::as_object_mut) {
        values.insert("maxLength".into(), MAX_VALUE.into());
    }
}
