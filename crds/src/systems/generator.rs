//! Generator: made-up records at a given rate.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Makes numbered records.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GeneratorSource {
    /// Records a second; absent: as fast as Wallaroo takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000), extend("x-unit" = "records/s"))]
    pub rate: Option<i32>,
    /// Bytes of each record; the record's number in decimal, padded with dots.
    #[serde(default = "default_size")]
    #[schemars(range(min = 20, max = 16_357), extend("x-unit" = "bytes"))]
    pub size: i32,
    /// Records in all; absent: without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_i64), extend("x-unit" = "records"))]
    pub count: Option<i64>,
}

fn default_size() -> i32 {
    100
}
