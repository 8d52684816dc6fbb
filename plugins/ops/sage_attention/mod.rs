//! `o = sage_softmax(q, k) v`: dense SageAttention, INT8 QK and FP8 or half PV.
//!
//! SageAttention2, arXiv:2411.10958; see [`crate::common::attn`].

use crate::attention::{INPUTS, cases, cpu, expand, reference};
use crate::cases::sample_inputs;
use crate::common::attn::Form;
use crate::common::sums::{SUM_ROWS, sums_of};
use crate::sage_sla::{PV, SAGE_DOC, key_sums};
use crate::sla::{ATTRS, OUTPUTS, heads_and_batch_divide};
use crate::{Attrs, Case, Dim, Op, Tensor, Tol};

fn blocks(attrs: &Attrs) -> [usize; 2] {
    ["block_q", "block_k"].map(|name| attrs.get_int(name))
}

const SUMS: &[Dim] = &[
    Dim::Attr("batch"),
    Dim::CeilDiv(&Dim::Div(&Dim::Axis("n"), &Dim::Attr("batch")), &Dim::Const(SUM_ROWS)),
    Dim::Axis("c"),
];

/// The op.
pub const OP: Op = Op {
    name: "TurboSageAttention",
    version: 3,
    summary: "o = sage_softmax(q, k) v",
    doc: SAGE_DOC,
    attrs: &[ATTRS[0], ATTRS[1], ATTRS[2], ATTRS[3], PV],
    inputs: &[INPUTS[0], INPUTS[1], INPUTS[2], key_sums(SUMS)],
    outputs: OUTPUTS,
    constraint: heads_and_batch_divide,
    reference: |attrs, inputs| reference(Form::sage(attrs), blocks(attrs), attrs, inputs),
    cpu: |attrs, inputs, outputs| cpu(Form::sage(attrs), blocks(attrs), attrs, inputs, outputs),
    expand: Some(|g, attrs, inputs| expand(Form::sage(attrs), blocks(attrs), g, attrs, inputs)),
    sample,
    cases: || {
        let because = "f32 rounding moves values across INT8 and FP8 steps";
        let with = |pv: &'static str, q: usize, k: usize| {
            move |attrs: Attrs, _: usize| attrs.int("block_q", q).int("block_k", k).choice("pv", pv)
        };
        let mut all = cases(with("fp8", 128, 64), Tol::Rel(5e-3, because));
        all.extend(cases(with("f16", 64, 128), Tol::Rel(2e-3, because)).into_iter().map(|mut case| {
            case.name += " f16";
            case
        }));
        all
    },
};

fn sample(case: &Case) -> Vec<Tensor> {
    let mut tensors = sample_inputs(&OP, case);
    tensors[3] = sums_of(&tensors[1], tensors[1].shape[0] / case.attrs.get_int("batch"));
    tensors
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }
}
