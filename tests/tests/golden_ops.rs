//! Single ops against what the reference's own code and GPU kernels computed, on the CPU.

use turbo_tests::golden::on_cpu;

#[test]
fn golden_w8a8() {
    on_cpu("w8a8");
}

#[test]
fn golden_sla_ops() {
    on_cpu("sla ops");
}

#[test]
fn golden_gpu_attention() {
    on_cpu("gpu attention");
}

#[test]
fn golden_gpu_linear() {
    on_cpu("gpu linear");
}
