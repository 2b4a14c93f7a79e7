//! The control loop: watches, reconciles, writes, and nothing while nothing changes.
//!
//! [`admission`], [`plan`] and [`pace`] decide (pure); [`stores`] hold what the watches saw; [`reconcile`] joins them with
//! [`crate::apply`] and [`crate::status`]; [`lease`] lets one operator of several work; [`run`] starts and ends it all.

pub mod admin;
pub mod admission;
pub mod args;
pub mod context;
pub mod inquiry;
pub mod lease;
pub mod metrics;
pub mod notify;
pub mod pace;
pub mod plan;
pub mod reconcile;
pub mod run;
pub mod stores;

#[cfg(test)]
mod tests;
