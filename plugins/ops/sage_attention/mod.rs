//! `o = sage_softmax(q, k) v`: dense SageAttention, INT8 QK and FP8 or half PV.
//!
//! SageAttention2, arXiv:2411.10958; see [`crate::common::attn`].

use crate::attention::{INPUTS, cases, cpu, expand, reference};
use crate::block_map::heads_and_batch_divide;
use crate::cases::sample_inputs;
use crate::common::attn::Form;
use crate::sage_sla::{PV, SAGE_DOC};
use crate::sla::{ATTRS, OUTPUTS};
use crate::{Attrs, Op, Tol};

fn blocks(attrs: &Attrs) -> [usize; 2] {
    ["block_q", "block_k"].map(|name| attrs.get_int(name))
}

/// The op.
pub const OP: Op = Op {
    name: "TurboSageAttention",
    version: 2,
    summary: "o = sage_softmax(q, k) v",
    doc: SAGE_DOC,
    attrs: &[ATTRS[0], ATTRS[1], ATTRS[2], ATTRS[3], PV],
    inputs: INPUTS,
    outputs: OUTPUTS,
    constraint: heads_and_batch_divide,
    reference: |attrs, inputs| reference(Form::sage(attrs), blocks(attrs), attrs, inputs),
    cpu: |attrs, inputs, outputs| cpu(Form::sage(attrs), blocks(attrs), attrs, inputs, outputs),
    expand: Some(|g, attrs, inputs| expand(Form::sage(attrs), blocks(attrs), g, attrs, inputs)),
    sample: |case| sample_inputs(&OP, case),
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

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }
}
