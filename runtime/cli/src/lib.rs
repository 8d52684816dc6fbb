//! The command turbo-run.
