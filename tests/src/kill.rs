//! What the program `kill` is made of: a chain of real processes, kills, and an account of every record.

pub mod account;
pub mod campaign;
pub mod chain;
pub mod feed;
pub mod pressure;
pub mod tap;
