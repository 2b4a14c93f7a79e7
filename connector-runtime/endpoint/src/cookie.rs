//! The shared secret in a configuration.

use serde::{Deserialize, Serialize};

/// Cookie of every Wallaroo example, and the one that Wallaroo's sink command line always sends (§2.3).
pub const DEFAULT_COOKIE: &str = "Dragons-Love-Tacos";

/// The shared secret of a source or sink. `Debug` does not show it.
#[derive(Clone, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct CookieText(String);

impl CookieText {
    /// A cookie of this text.
    pub fn new(text: impl Into<String>) -> CookieText {
        CookieText(text.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Default for CookieText {
    fn default() -> Self {
        CookieText(DEFAULT_COOKIE.to_owned())
    }
}

impl std::fmt::Debug for CookieText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CookieText(redacted)")
    }
}
