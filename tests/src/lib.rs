//! Suites that cross crates, and what they share.

pub mod demo;
pub mod family;
pub mod golden;
pub mod gpu;
pub mod vectors;
