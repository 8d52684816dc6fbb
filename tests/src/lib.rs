//! Suites that cross crates, and what they share.

pub mod demo;
pub mod gpu;
pub mod vectors;
