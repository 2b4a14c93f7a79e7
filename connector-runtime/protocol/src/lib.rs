//! Wallaroo's wire protocols without I/O.
