//! Whole trajectories of the sampler with our own network against the reference, on the CPU.

use turbo_tests::golden::on_cpu;

#[test]
fn golden_sampler_t2v_own_network() {
    on_cpu("sampler_t2v own network");
}

#[test]
fn golden_sampler_i2v_own_network() {
    on_cpu("sampler_i2v own network");
}
