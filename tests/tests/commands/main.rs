//! turbo-compile and turbo-run as their users meet them: processes with a terminal, a full disk, Ctrl-C.
//!
//! The commands are the ones beside this test: `cargo test --workspace` builds them, as does
//! `cargo build -p turbo-compile -p turbo-run` with the same profile. Runs that need ONNX Runtime are skipped with
//! a printed line where its library is not found, unless `TURBO_REQUIRE_ORT` is set.

#![cfg(unix)]

mod make;
mod stop;
mod support;
