//! Prompt (and image) to frames against the reference, on the CPU.

use turbo_tests::golden::on_cpu;

#[test]
fn golden_e2e_t2v() {
    on_cpu("e2e_t2v");
}

#[test]
fn golden_e2e_i2v() {
    on_cpu("e2e_i2v");
}
