//! TLS: the same block in every system.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretKeyRef;
use crate::rules::{self, Rules};

/// Encrypts the connection to the external system.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = Rules(&[&rules::CERTIFICATE_WITH_KEY]))]
pub struct TlsSpec {
    /// PEM certificates to trust; absent: the certificates of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<SecretKeyRef>,
    /// PEM certificate chain to present; needs `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<SecretKeyRef>,
    /// PEM private key of `certificate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretKeyRef>,
}
