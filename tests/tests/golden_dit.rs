//! The DiT against the reference, on the CPU.

use turbo_tests::golden::on_cpu;

#[test]
fn golden_dit_t2v() {
    on_cpu("dit_t2v");
}

#[test]
fn golden_dit_names() {
    on_cpu("dit_names");
}

#[test]
fn golden_dit_i2v() {
    on_cpu("dit_i2v");
}

#[test]
fn golden_dit_sla() {
    on_cpu("dit_sla");
}

#[test]
fn golden_dit_w8a8() {
    on_cpu("dit_w8a8");
}

#[test]
fn golden_gpu_dit() {
    on_cpu("gpu dit");
}
