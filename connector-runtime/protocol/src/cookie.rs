//! The shared secret of a connection, which never shows in logs.

use std::fmt;

use bytes::Bytes;

/// A cookie. `Debug` does not show it, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Cookie(Bytes);

impl Cookie {
    /// A cookie of these bytes; at most 65,535 reach the wire.
    pub fn new(cookie: impl Into<Bytes>) -> Cookie {
        Cookie(cookie.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie(redacted)")
    }
}
