//! The result of a step of a benchmark.

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
