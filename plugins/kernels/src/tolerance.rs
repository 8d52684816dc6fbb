//! How far each output may be from the reference on a GPU.

use turbo_ops::{Op, Tol};

use crate::elements::Element;

/// What is allowed of an output, by activation type.
#[derive(Clone, Copy)]
enum Bound {
    /// Nothing, whatever the case says.
    Exact,
    /// What the case says.
    Case,
    /// What the case says, and this relative error more with bf16 and f16.
    More { bf16: f64, f16: f64 },
    /// What the case says, and this relative error more.
    Always(f64),
}

/// Rounding to nearest moves a value by up to 2^-9 of it in bf16 and 2^-12 in f16; this is about two of those.
const ROUNDED: Bound = Bound::More { bf16: 4e-3, f16: 6e-4 };

struct Row {
    op: &'static str,
    output: &'static str,
    bound: Bound,
    because: &'static str,
}

const fn row(op: &'static str, output: &'static str, bound: Bound, because: &'static str) -> Row {
    Row { op, output, bound, because }
}

/// Every output of every op.
const TABLE: &[Row] = &[
    row(
        "TurboAttention",
        "o",
        Bound::More { bf16: 6e-3, f16: 6e-3 },
        "tensor cores take the probabilities in 16 bits; the output is rounded",
    ),
    row(
        "TurboBlockMap",
        "lut",
        Bound::Exact,
        "means and scores are f64; keys count from the first one, which moves all scores of a query block alike",
    ),
    row("TurboLinear", "y", ROUNDED, "sums are f32; the output is rounded"),
    row("TurboNorm", "y", ROUNDED, "the output is rounded"),
    row("TurboNormQuantize", "q", Bound::Case, "nothing between norm and quantisation is rounded to T"),
    row("TurboNormQuantize", "s", Bound::Case, "scales are f32"),
    row("TurboNormRope", "y", ROUNDED, "the output is rounded"),
    row("TurboNormRope", "sums", ROUNDED, "sums are of the rounded output"),
    row(
        "TurboQuantize",
        "q",
        Bound::Exact,
        "inputs are exact in every type, each step is one IEEE operation",
    ),
    row("TurboQuantize", "s", Bound::Exact, "one IEEE division"),
    row("TurboSageAttention", "o", ROUNDED, "the case allows for INT8 and FP8 steps; the output is rounded"),
    row(
        "TurboSageSla",
        "o",
        Bound::More { bf16: 6e-3, f16: 6e-3 },
        "as TurboSageAttention, and tensor cores take the linear branch's features in 16 bits",
    ),
    row(
        "TurboSla",
        "o",
        Bound::More { bf16: 8e-3, f16: 8e-3 },
        "tensor cores take probabilities and the linear branch's features in 16 bits; the output is rounded",
    ),
    row("TurboW8A8Linear", "y", ROUNDED, "sums are f32; the output is rounded"),
    row("TurboW8A8LinearQkv", "yq", ROUNDED, "sums are f32; the output is rounded"),
    row("TurboW8A8LinearQkv", "yk", ROUNDED, "sums are f32; the output is rounded"),
    row("TurboW8A8LinearQkv", "yv", ROUNDED, "sums are f32; the output is rounded"),
    row(
        "TurboW8A8LinearQuantize",
        "yq",
        Bound::Case,
        "nothing between linear and quantisation is rounded to T",
    ),
    row(
        "TurboW8A8LinearQuantize",
        "ys",
        Bound::Always(5e-4),
        "for outputs in eight bits the tanh of GELU is the GPU's own, which is good to 2^-11",
    ),
    row("TurboW8A8LinearResidual", "y", ROUNDED, "sums are f32; the output is rounded"),
];

/// What a kernel is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// The f64 reference.
    Reference,
    /// The CPU kernel, which is itself as far from the reference as the case allows.
    CpuKernel,
}

/// The tolerance of an output; none for an output that the table lacks.
pub fn tolerance(op: &Op, output: usize, case: Tol, activation: Element, against: Against) -> Option<Tol> {
    let name = op.outputs.get(output)?.name;
    let row = TABLE.iter().find(|row| row.op == op.name && row.output == name)?;
    let times = if against == Against::CpuKernel { 2.0 } else { 1.0 };
    Some(match (row.bound, case) {
        (Bound::Exact, _) | (_, Tol::Exact) => Tol::Exact,
        (_, Tol::OffByOne(share, because)) => Tol::OffByOne(times * share, because),
        (_, Tol::E4m3(bound, because)) => Tol::E4m3(times * bound, because),
        (Bound::Case, Tol::Rel(bound, because)) => Tol::Rel(times * bound, because),
        (Bound::Always(more), Tol::Rel(bound, _)) => Tol::Rel(times * bound + more, row.because),
        (Bound::More { bf16, f16 }, Tol::Rel(bound, because)) => match activation {
            Element::Bf16 => Tol::Rel(times * bound + bf16, row.because),
            Element::F16 => Tol::Rel(times * bound + f16, row.because),
            _ => Tol::Rel(times * bound, because),
        },
    })
}

/// The largest error that a tolerance takes.
pub fn limit(tolerance: Tol) -> f64 {
    match tolerance {
        Tol::Rel(bound, _) | Tol::OffByOne(bound, _) | Tol::E4m3(bound, _) => bound,
        Tol::Exact => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use turbo_ops::{ALL, Ty};

    use super::*;

    #[test]
    fn every_output_has_one_row_and_every_row_an_output() {
        let outputs: Vec<_> =
            ALL.iter().flat_map(|op| op.outputs.iter().map(|def| (op.name, def.name))).collect();
        let rows: Vec<_> = TABLE.iter().map(|row| (row.op, row.output)).collect();
        assert_eq!(rows, outputs);
        assert!(TABLE.iter().all(|row| !row.because.is_empty()));
    }

    #[test]
    fn every_case_has_a_tolerance_that_rounding_and_one_tanh_loosen() {
        for op in ALL {
            for case in (op.cases)() {
                for (output, (def, &own)) in op.outputs.iter().zip(&case.tol).enumerate() {
                    let of = |activation| {
                        let found = tolerance(op, output, own, activation, Against::Reference).unwrap();
                        limit(found)
                    };
                    let [single, bf16, half] = [Element::F32, Element::Bf16, Element::F16].map(of);
                    let own_tanh = op.name == "TurboW8A8LinearQuantize" && def.name == "ys";
                    assert_eq!(single > limit(own), own_tanh, "{} {}", op.name, def.name);
                    assert!(half <= bf16 && bf16 <= 2e-2, "{} {}", op.name, def.name);
                    let rounded = def.ty == Ty::T || def.name == "sums";
                    assert_eq!(bf16 > single, rounded, "{} {}", op.name, def.name);
                }
            }
        }
    }

    #[test]
    fn block_maps_and_quantised_inputs_are_exact() {
        for op in [&turbo_ops::block_map::OP, &turbo_ops::quantize::OP] {
            let own = (op.cases)()[0].tol[0];
            assert_eq!(tolerance(op, 0, own, Element::Bf16, Against::CpuKernel), Some(Tol::Exact));
        }
    }
}
