//! Files: lines or length-prefixed records in, lines or length-prefixed records out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Reads one file.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FileSource {
    /// Path of the file; under `local` relative to the manifest's directory.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
    /// How records are separated.
    #[serde(default)]
    pub format: FileFormat,
    /// What happens at the end of the file.
    #[serde(default)]
    pub at_end: AtEnd,
    /// Longest accepted record in bytes; a longer one is a bad record.
    #[serde(default = "default_max_record_bytes")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_record_bytes: i32,
}

fn default_max_record_bytes() -> i32 {
    16_384
}

/// How records are separated in a file.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum FileFormat {
    /// One record a line, without its line feed (a carriage return before it stays).
    #[default]
    Lines,
    /// Each record after its length as 4 bytes big-endian.
    LengthPrefixed,
}

/// What a file source does at the end of the file.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum AtEnd {
    /// Waits for more, also across rotation by rename.
    #[default]
    Follow,
    /// Ends the stream; the Connector is complete when Wallaroo has acknowledged everything.
    Finish,
}

/// Appends to one file.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FileSink {
    /// Path of the file; under `local` relative to the manifest's directory.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
    /// How records are separated.
    #[serde(default)]
    pub format: FileFormat,
}
