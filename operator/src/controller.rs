//! The control loop: watches, reconciles, writes, and nothing while nothing changes.
//!
//! [`admission`], [`plan`] and [`pace`] decide (pure); [`stores`] hold what the watches saw; [`objects`] makes
//! what is planned by [`crate::apply`], and [`reconcile`] joins it all with [`crate::status`]; [`lease`] lets one operator of
//! several work, and [`fence`] no other write; [`run`] starts and ends it all.

pub mod admin;
pub mod admission;
pub mod args;
pub mod claims;
pub mod context;
pub mod fence;
pub mod inquiry;
pub mod lease;
pub mod metrics;
pub mod notify;
pub mod objects;
pub mod outside;
pub mod pace;
pub mod plan;
pub mod reconcile;
pub mod run;
pub mod stores;

#[cfg(test)]
mod tests;
