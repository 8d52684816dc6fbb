//! `o = sage_sparse_softmax(q, k) v + proj_l(linear_attention(q, k, v))`: sparse-linear attention whose sparse
//! branch is SageAttention.
//!
//! TurboDiffusion `SLA/core.py` (`SageSparseLinearAttention`) over SpargeAttn; see [`crate::common::attn`].

use crate::common::attn::Form;
use crate::common::sums::SUM_ROWS;
use crate::sla::{ATTRS, INPUTS, OUTPUTS, cases, cpu, expand, heads_and_batch_divide, reference, sample};
use crate::{AttrDef, AttrKind, Dim, Op, TensorDef, Tol, Ty};

/// The type of probabilities and values.
pub const PV: AttrDef = AttrDef {
    name: "pv",
    kind: AttrKind::Choice(&["fp8", "f16"]),
    doc: "type of probabilities and values: E4M3 (values scaled per channel) or half",
};

/// What the SageAttention form means, for the ops' documentation.
pub const SAGE_DOC: &str = "Keys have their mean over all tokens, from `k_sums`, subtracted. Queries and keys become INT8 \
    per block: scale = max|x| / 127 + 1e-7, rounded half away from zero; sums are exact. Probabilities are \
    2^(s - max + 8.807) in E4M3 and values E4M3 per channel at scale max|v| / 2.25 (`pv` fp8), or both half without \
    offset (`pv` f16). `max` is the row's maximum over this and all earlier kept key blocks; what was summed before is \
    rescaled when it grows. The denominator sums probabilities before rounding (fp8) or after it (f16). Order and width \
    of accumulation are free.";

/// What tells the mean of keys: the sums of their rows.
pub const fn key_sums(dims: &'static [Dim]) -> TensorDef {
    TensorDef { name: "k_sums", ty: Ty::F32, dims, doc: "sums of keys, of TurboNormRope" }
}

const SUMS: &[Dim] = &[
    Dim::Attr("batch"),
    Dim::CeilDiv(&Dim::Div(&Dim::Axis("m"), &Dim::Attr("batch")), &Dim::Const(SUM_ROWS)),
    Dim::Axis("c"),
];

/// The op.
pub const OP: Op = Op {
    name: "TurboSageSla",
    version: 3,
    summary: "o = sage_sparse_softmax(q, k) v + proj_l(linear_attention(q, k, v))",
    doc: SAGE_DOC,
    attrs: &[ATTRS[0], ATTRS[1], ATTRS[2], ATTRS[3], PV],
    inputs: &[INPUTS[0], INPUTS[1], INPUTS[2], INPUTS[3], INPUTS[4], INPUTS[5], key_sums(SUMS)],
    outputs: OUTPUTS,
    constraint: heads_and_batch_divide,
    reference: |attrs, inputs| reference(Form::sage(attrs), attrs, inputs),
    cpu: |attrs, inputs, outputs| cpu(Form::sage(attrs), attrs, inputs, outputs),
    expand: Some(|g, attrs, inputs| expand(Form::sage(attrs), g, attrs, inputs)),
    sample: |case| sample(&OP, case),
    cases: || {
        let because = "f32 rounding moves values across INT8 and FP8 steps";
        let mut all = cases(|attrs| attrs.choice("pv", "fp8"), Tol::Rel(5e-3, because));
        all.extend(cases(|attrs| attrs.choice("pv", "f16"), Tol::Rel(2e-3, because)).into_iter().map(
            |mut case| {
                case.name += " f16";
                case
            },
        ));
        all
    },
};

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        for (name, errors) in crate::cases::run_cpu_cases(&super::OP).unwrap() {
            println!("{name}: {errors:?}");
        }
    }
}
