//! Generator: see [`GeneratorSource`].

mod source;

pub use source::GeneratorSource;
