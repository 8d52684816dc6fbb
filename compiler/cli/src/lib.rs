//! Checkpoint to engine file: what the command `turbo-compile` does, as a library.
//!
//! [`compile()`] finds the networks in what the user named ([`inputs`]), completes the choices ([`resolve`]),
//! decides what is stored of each weight ([`stored`]), builds the stages as graphs ([`stages`]) and writes one
//! engine file. Nothing is written before everything that can be known beforehand has been checked.

pub mod choices;
pub mod compile;
pub mod engines;
mod error;
pub mod inputs;
pub mod inspect;
mod manifest;
pub mod network;
mod one_or_many;
pub mod parser;
mod phases;
pub mod resolve;
pub mod stages;
pub mod stored;

pub use choices::Choices;
pub use compile::{NoProgress, Prepared, Progress, Report, compile};
pub use error::CompileError;
pub use inputs::Inputs;
