//! The golden suites: what of the reference's vectors is compared with what our graphs compute, on either backend.
//!
//! A suite says which graph runs over which vectors and gives both tolerances, for f32 code and for bf16 code. On the
//! CPU the suites are tests; the GPU program runs the same ones through TensorRT.

mod attention;
mod backend;
mod compiled;
mod cpu;
mod dit;
#[cfg(test)]
mod dry;
mod e2e;
mod forward;
mod ops;
mod sampler;
mod tensorrt;
mod umt5;
mod vae;

use anyhow::Result;

pub use backend::{Backend, Loaded, Outputs};
pub use compiled::Compiled;
pub use cpu::Cpu;
pub use tensorrt::TensorRt;

use crate::vectors::Family;

/// Makes the comparisons of one family.
pub type Suite = fn(&dyn Backend, &mut Family) -> Result<()>;

/// Every suite by the name of its family, small graphs first.
pub const SUITES: [(&str, Suite); 16] = [
    ("w8a8", ops::w8a8),
    ("sla ops", attention::sla),
    ("gpu linear", ops::gpu_linear),
    ("gpu attention", attention::gpu),
    ("umt5", umt5::suite),
    ("dit_t2v", dit::t2v),
    ("dit_names", dit::names),
    ("dit_i2v", dit::i2v),
    ("dit_sla", dit::sla),
    ("dit_w8a8", dit::w8a8),
    ("gpu dit", dit::gpu),
    ("sampler_t2v own network", sampler::t2v),
    ("sampler_i2v own network", sampler::i2v),
    ("vae", vae::suite),
    ("e2e_t2v", e2e::t2v),
    ("e2e_i2v", e2e::i2v),
];

/// Runs a suite on a backend.
pub fn run(name: &str, suite: Suite, backend: &dyn Backend) -> Family {
    let mut family = Family::new(name);
    family.attempt("the rest", |family| suite(backend, family));
    family
}

/// Runs a suite on the CPU, as a test: what is too far panics.
///
/// # Panics
/// There is no such suite, or one of its cases failed.
pub fn on_cpu(name: &str) {
    let found = SUITES.iter().find(|(suite, _)| *suite == name);
    let (_, suite) = found.unwrap_or_else(|| panic!("no suite {name}"));
    let Some(cpu) = Cpu::open() else { return };
    drop(run(name, *suite, &cpu));
}
