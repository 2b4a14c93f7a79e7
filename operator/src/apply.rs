//! Makes the cluster hold what is desired, and nothing that is not ours touched.
//!
//! [`difference`] and [`step`] decide (pure); [`io`] carries out. An object that the watch does not hold is created with
//! a POST, so that somebody else's is never adopted; every later write carries the uid that was seen.

pub mod difference;
pub mod io;
pub mod step;
