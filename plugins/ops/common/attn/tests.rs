//! What the op cases cannot say: independence of threads, and rows without any kept block.

use super::*;
use crate::cases::Rng;
use crate::common::sums::{SUM_ROWS, sum_rows};
use crate::{Data, Tensor};

fn random(shape: [usize; 2], seed: u64) -> Tensor {
    let mut rng = Rng::new(seed);
    let values = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor { shape: shape.to_vec(), data: Data::F32(values) }
}

fn run(form: Form, threads: usize, kept: impl Fn(usize, usize) -> Vec<usize> + Sync + Send) -> Vec<f32> {
    let [batch, heads, d, l] = [2, 3, 20, 150];
    let tensors: Vec<Tensor> = (0..3).map(|i| random([batch * l, heads * d], i)).collect();
    let qkv = [tensors[0].view(), tensors[1].view(), tensors[2].view()];
    let sums: Vec<f32> = sum_rows(tensors[1].view().f32(), [l, heads * d]).collect();
    let sums = Tensor { shape: vec![batch, l.div_ceil(SUM_ROWS), heads * d], data: Data::F32(sums) };
    let key_sums = (form != Form::Exact).then(|| sums.view());
    let mut out = vec![f32::NAN; batch * l * heads * d];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    pool.install(|| {
        Attention { form, qkv, batch, heads, blocks: [64, 32], key_sums, proj: None }.run(&mut out, kept)
    });
    out
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for form in [Form::Exact, Form::SageFp8, Form::SageF16] {
        let kept = |head: usize, block: usize| vec![head % 4, 4 - block % 2];
        let one = run(form, 1, kept);
        assert!(one.iter().all(|v| v.is_finite()));
        assert_eq!(one, run(form, 3, kept), "{form:?}");
    }
}

#[test]
fn a_row_without_blocks_is_zero() {
    for form in [Form::Exact, Form::SageFp8, Form::SageF16] {
        assert!(run(form, 2, |_, _| Vec::new()).iter().all(|&v| v == 0.0), "{form:?}");
    }
}
