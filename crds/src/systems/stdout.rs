//! Standard output: one record a line, for trials.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Writes each record and a line feed to the standard output of the runtime.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StdoutSink {}
