//! The text encoder and the VAE against the reference, on the CPU.

use turbo_tests::golden::on_cpu;

#[test]
fn golden_umt5() {
    on_cpu("umt5");
}

#[test]
fn golden_vae() {
    on_cpu("vae");
}
