//! Single ops through ONNX Runtime against what the reference's own code and GPU kernels computed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

use std::sync::Arc;

use turbo_graph::{DType, Graph};
use turbo_ops::cases::rel_l2;
use turbo_ops::{Attrs, Ty};
use turbo_pipeline::backend::{Options, Runtime, Session, Tensor};
use turbo_tests::vectors::{Family, Vectors, file, gpu_file, runtime};

/// Side of a quantisation block.
const BLOCK: usize = 128;

/// Runs one node of an op, its inputs and outputs those of the graph.
fn op(runtime: &Runtime, name: &str, attrs: &Attrs, inputs: &[&Tensor]) -> Vec<Tensor> {
    let op = turbo_ops::find(name).unwrap();
    let mut g = Graph::new(name);
    let values: Vec<_> = (op.inputs.iter().zip(inputs))
        .map(|(def, tensor)| {
            let dtype = match def.ty {
                Ty::T | Ty::F32 => DType::F32,
                Ty::I8 => DType::I8,
                Ty::I32 => DType::I32,
            };
            g.input(def.name, dtype, &tensor.shape)
        })
        .collect();
    for (def, value) in op.outputs.iter().zip(op.node(&mut g, attrs, &values)) {
        g.output(&format!("{}_out", def.name), value);
    }
    let graph = turbo_onnx::encode_with_weight_inputs(&g.finish().unwrap()).unwrap();
    let options = Options { stage: name, graph: &graph, weights: vec![], cancelled: Arc::default() };
    let mut session = Session::load(runtime, options).unwrap();
    let named: Vec<_> = op.inputs.iter().map(|def| def.name).zip(inputs.iter().copied()).collect();
    session.run(&named).unwrap().into_iter().map(|(_, tensor)| tensor).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

fn i8s(v: &Vectors, name: &str) -> Tensor {
    let (shape, values) = v.i64(name);
    Tensor::i8(shape, values.into_iter().map(|x| i8::try_from(x).unwrap()).collect())
}

/// `[b, heads, l, d]` as the ops take it, `[b, l, heads * d]`.
fn tokens(x: &Tensor) -> Tensor {
    let &[b, heads, l, d] = x.shape.as_slice() else { panic!("{:?}", x.shape) };
    let x = x.as_f32();
    let mut out = Vec::with_capacity(x.len());
    for i in 0..b * l * heads {
        let (batch, token, head) = (i / (l * heads), i / heads % l, i % heads);
        let at = ((batch * heads + head) * l + token) * d;
        out.extend_from_slice(&x[at..at + d]);
    }
    Tensor::f32(vec![b, l, heads * d], out)
}

/// `[b, l, heads, d]` with its last two axes joined.
fn joined(x: &Tensor) -> Tensor {
    let &[b, l, heads, d] = x.shape.as_slice() else { panic!("{:?}", x.shape) };
    Tensor::f32(vec![b, l, heads * d], x.as_f32().to_vec())
}

/// A map of kept blocks `[b, heads, q blocks, k blocks]` as the ascending list that the ops take.
fn lut(v: &Vectors, name: &str) -> Tensor {
    let (mut shape, map) = v.i64(name);
    let blocks = shape.pop().unwrap();
    let rows = map.chunks(blocks);
    let kept = |row: &[i64]| (0..).zip(row).filter(|(_, keep)| **keep != 0).map(|(i, _)| i).collect();
    let lists: Vec<Vec<i32>> = rows.map(kept).collect();
    let keep = lists[0].len();
    assert!(keep > 0 && lists.iter().all(|list| list.len() == keep), "{name}: rows keep different numbers");
    shape.push(keep);
    Tensor::i32(shape, lists.concat())
}

/// Scores that decide a block map, `[b * heads * q blocks][k blocks]`, in f64; `q` and `k` are `[b, l, heads * d]`.
fn pooled_score(q: &Tensor, k: &Tensor, heads: usize, block_q: usize, block_k: usize) -> Vec<Vec<f64>> {
    let &[b, l, c] = q.shape.as_slice() else { panic!("{:?}", q.shape) };
    let d = c / heads;
    let pool = |x: &Tensor, batch: usize, head: usize, block: usize| -> Vec<Vec<f64>> {
        let row = |t: usize| &x.as_f32()[(batch * l + t) * c + head * d..][..d];
        let mean = |from: usize, to: usize| -> Vec<f64> {
            let sum = |i: usize| (from..to).map(|t| f64::from(row(t)[i])).sum::<f64>();
            (0..d).map(|i| sum(i) / (to - from) as f64).collect()
        };
        (0..l).step_by(block).map(|from| mean(from, l.min(from + block))).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut scores = Vec::new();
    for (batch, head) in (0..b).flat_map(|batch| (0..heads).map(move |head| (batch, head))) {
        let mean = pool(k, batch, head, l).remove(0);
        let keys: Vec<Vec<f64>> = (pool(k, batch, head, block_k).iter())
            .map(|key| key.iter().zip(&mean).map(|(k, mean)| k - mean).collect())
            .collect();
        for query in pool(q, batch, head, block_q) {
            scores.push(keys.iter().map(|key| dot(&query, key)).collect());
        }
    }
    scores
}

/// Gap between the last kept and the first rejected score of each row.
fn margins(scores: &[Vec<f64>], keep: usize) -> Vec<f64> {
    let gap = |row: &Vec<f64>| {
        let mut row = row.clone();
        row.sort_by(|a, b| b.total_cmp(a));
        row[keep - 1] - row[keep]
    };
    scores.iter().map(gap).collect()
}

fn deviation(scores: &[Vec<f64>]) -> f64 {
    let all = scores.concat();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt()
}

fn tiles(heads: usize, block_q: usize, block_k: usize) -> Attrs {
    Attrs::new().int("heads", heads).int("block_q", block_q).int("block_k", block_k)
}

/// The largest; NaN if there is one, which `max` would drop.
fn largest_or_nan(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most })
}

/// Quantised values that differ from the stored ones, by their places and how far they are off.
fn differing(found: &Tensor, stored: &Tensor) -> Vec<(usize, i32)> {
    assert_eq!(found.shape, stored.shape);
    let pairs = found.as_i8().iter().zip(stored.as_i8()).enumerate();
    pairs.map(|(i, (&a, &b))| (i, i32::from(a) - i32::from(b))).filter(|(_, off)| *off != 0).collect()
}

/// The W8A8 linear of stored operands of case `case`; no bias where `bias` is `None`.
fn linear(runtime: &Runtime, v: &Vectors, case: &str, bias: Option<Tensor>) -> Vec<f32> {
    let name = |leaf: &str| format!("{case}.{leaf}");
    let (q, w) = (i8s(v, &name("x_q")), i8s(v, &name("w_q")));
    let n = w.shape[0];
    let bias = bias.unwrap_or_else(|| Tensor::f32(vec![n], vec![0.0; n]));
    let attrs = Attrs::new().choice("activation", "none").choice("dtype", "f32");
    let inputs = [&q, &v.f32(&name("x_s")), &w, &v.f32(&name("w_s")), &bias];
    op(runtime, "TurboW8A8Linear", &attrs, &inputs)[0].as_f32().to_vec()
}

#[test]
fn golden_w8a8() {
    let Some(path) = file("w8a8.safetensors") else { return };
    let Some(runtime) = runtime() else { return };
    let v = Vectors::open(&path);
    let mut family = Family::new("w8a8");
    for name in ["a.x", "a.w", "b.x", "b.w", "tie.x"] {
        let x = v.f32(name);
        let out = op(&runtime, "TurboQuantize", &Attrs::new(), &[&x]);
        let scales = v.f32(&format!("{name}_s"));
        family.holds(&format!("{name}: scales are exact"), out[1].as_f32() == scales.as_f32());
        let wrong = differing(&out[0], &i8s(&v, &format!("{name}_q")));
        // In f32 a product this close to a half may land on either side of it.
        let near_half = |i: usize| {
            let (row, column, width) = (i / x.shape[1], i % x.shape[1], scales.shape[1]);
            let scale = scales.as_f32()[row / BLOCK * width + column / BLOCK];
            let turned = f64::from(x.as_f32()[i]) / f64::from(scale);
            (turned - turned.floor() - 0.5).abs() < 1e-5
        };
        let bad = wrong.iter().filter(|(i, off)| off.abs() > 1 || !near_half(*i)).count();
        println!("{name}: {} values off by one at ties, {bad} elsewhere", wrong.len() - bad);
        family.value(&format!("{name}: wrong values"), bad as f64, 0.0);
    }
    for case in ["a", "b"] {
        let expected = v.f32(&format!("{case}.y_f32"));
        let y = linear(&runtime, &v, case, None);
        let largest = expected.as_f32().iter().fold(0.0, |m: f32, y| m.max(y.abs()));
        assert_eq!(y.len(), expected.as_f32().len());
        let off = y.iter().zip(expected.as_f32()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
        let furthest = largest_or_nan(off);
        family.value(&format!("{case}.y_f32, furthest"), furthest / f64::from(largest), 1e-6);
    }
    // The stored sum was rounded to bf16 before the bias and again after it.
    let y = linear(&runtime, &v, "a", Some(v.f32("a.bias")));
    family.rel("a.y_linear_bf16", &y, v.f32("a.y_linear_bf16").as_f32(), 4e-3);
}

#[test]
fn golden_sla_ops() {
    let (Some(common), Some(proj)) = (file("dit_sla_common.safetensors"), file("dit_sla_proj.safetensors"))
    else {
        return;
    };
    let Some(runtime) = runtime() else { return };
    let (common, proj) = (Vectors::open(&common), Vectors::open(&proj));
    let stored = |leaf: &str| proj.f32(&format!("blocks.0.self_attn.attn_op.local_attn.proj_l.{leaf}"));
    let (weight, bias) = (stored("weight"), stored("bias"));
    let [q, k, val] = ["q", "k", "v"].map(|leaf| tokens(&common.f32(&format!("block0.{leaf}"))));
    let o_l = common.f32("block0.o_l");
    let (heads, d) = (o_l.shape[1], o_l.shape[3]);
    // proj_l in f64, so that its rounding is not part of the comparison.
    let (w, b) = (wide(weight.as_f32()), wide(bias.as_f32()));
    let projected: Vec<f64> = (wide(o_l.as_f32()).chunks(d))
        .flat_map(|row| {
            let dot = |w: &[f64]| row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            w.chunks(d).zip(&b).map(|(w, b)| dot(w) + b).collect::<Vec<f64>>()
        })
        .collect();
    let mut family = Family::new("sla ops");
    for (block_q, block_k) in [(128, 64), (64, 128)] {
        let Some(path) = file(&format!("dit_sla_{block_q}x{block_k}.safetensors")) else { continue };
        let v = Vectors::open(&path);
        for ratio in ["topk25", "topk50"] {
            let case = format!("{block_q}x{block_k} {ratio}");
            let name = |leaf: &str| format!("{ratio}.block0.{leaf}");
            let kept = lut(&v, &name("sparse_map"));
            let keep = kept.shape[3];
            let attrs = tiles(heads, block_q, block_k);
            let map = &op(&runtime, "TurboBlockMap", &attrs.clone().int("keep", keep), &[&q, &k])[0];
            family.holds(&format!("{case}: map is exact"), map.as_i32() == kept.as_i32());
            // The scores that the tests on GPU vectors lean on are the reference's.
            let scores = pooled_score(&q, &k, heads, block_q, block_k);
            let expected = wide(v.f32(&name("pooled_score")).as_f32());
            family.value(&format!("{case}: pooled_score"), rel_l2(&scores.concat(), &expected), 1e-5);
            let expected = wide(v.f32(&name("topk_margin")).as_f32());
            family.value(&format!("{case}: topk_margin"), rel_l2(&margins(&scores, keep), &expected), 1e-4);

            let inputs = [&q, &k, &val, &kept, &weight, &bias];
            let o = &op(&runtime, "TurboSla", &attrs, &inputs)[0];
            let o_s = v.f32(&name("o_s"));
            let sum = o_s.as_f32().iter().zip(&projected).map(|(s, l)| (f64::from(*s) + l) as f32).collect();
            let expected = tokens(&Tensor::f32(o_s.shape.clone(), sum));
            family.rel(&format!("{case}: o_s + proj_l(o_l)"), o.as_f32(), expected.as_f32(), 1e-5);
        }
    }
}

#[test]
fn golden_gpu_attention() {
    let Some(path) = gpu_file("ops.safetensors") else { return };
    let Some(runtime) = runtime() else { return };
    let v = Vectors::open(&path);
    if v.get("attn.q").is_none() {
        return println!("skipped: no attention in the small subset");
    }
    let heads = v.f32("attn.q").shape[2];
    let [q, k, val] = ["q", "k", "v"].map(|leaf| joined(&v.f32(&format!("attn.{leaf}"))));
    let mut family = Family::new("gpu attention");
    for (block_q, block_k) in [(64, 128), (128, 64)] {
        let name = format!("sparse_map_bq{block_q}_bk{block_k}");
        let expected = lut(&v, &format!("attn.{name}"));
        let keep = expected.shape[3];
        family.holds(&format!("{name} keeps a quarter"), keep == q.shape[1].div_ceil(block_k) / 4);
        let attrs = tiles(heads, block_q, block_k).int("keep", keep);
        let map = &op(&runtime, "TurboBlockMap", &attrs, &[&q, &k])[0];
        let scores = pooled_score(&q, &k, heads, block_q, block_k);
        let (least, margins) = (0.05 * deviation(&scores), margins(&scores, keep));
        let rows = map.as_i32().chunks(keep).zip(expected.as_i32().chunks(keep)).zip(&margins);
        let differing: Vec<f64> = rows.filter(|((a, b), _)| a != b).map(|(_, margin)| *margin).collect();
        let decided = margins.iter().filter(|margin| **margin > least).count();
        println!("{name}: {decided} of {} rows decided, {} differ", margins.len(), differing.len());
        // The reference pools and multiplies in bf16, which may turn what is nearly equal.
        let wrong = differing.iter().filter(|margin| **margin > least).count();
        family.value(&format!("{name}: wrong decided rows"), wrong as f64, 0.0);
        family.holds(&format!("{name}: most rows are decided"), 2 * decided > margins.len());
    }

    let (weight, bias) = (v.f32("attn.proj_l.weight"), v.f32("attn.proj_l.bias"));
    let sparse = |name: &str, attrs: &Attrs, map: &str| {
        let kept = lut(&v, map);
        op(&runtime, name, attrs, &[&q, &k, &val, &kept, &weight, &bias])[0].as_f32().to_vec()
    };
    let o = sparse("TurboSla", &tiles(heads, 128, 64), "attn.sparse_map_bq128_bk64");
    family.rel("sla", &o, v.f32("attn.sla_bq128_bk64.o").as_f32(), 1e-2);

    let (map, attrs) = ("attn.sparse_map_bq64_bk128", tiles(heads, 64, 128));
    let fp8 = attrs.choice("pv", "fp8");
    let expected = v.f32("attn.sagesla_sm90.o");
    let o = sparse("TurboSageSla", &fp8, map);
    let own = family.rel("sagesla", &o, expected.as_f32(), 4e-2);
    let exact = sparse("TurboSla", &tiles(heads, 64, 128), map);
    let other = rel_l2(&wide(&exact), &wide(expected.as_f32()));
    println!("sagesla: {own:.2e} from the GPU's, without quantisation {other:.2e}");
    family.holds("TurboSageSla is closer to sagesla than TurboSla is", own < other);

    let dense = v.f32("attn.dense.o");
    let o = op(&runtime, "TurboAttention", &Attrs::new().int("heads", heads), &[&q, &k, &val]);
    family.rel("dense", o[0].as_f32(), dense.as_f32(), 1e-2);
    let o = op(&runtime, "TurboSageAttention", &fp8, &[&q, &k, &val]);
    let error = family.rel("sage against dense", o[0].as_f32(), dense.as_f32(), 6e-2);
    println!("sage attention: {error:.2e} from dense");
}

#[test]
fn golden_gpu_linear() {
    let Some(path) = gpu_file("ops.safetensors") else { return };
    let Some(runtime) = runtime() else { return };
    let v = Vectors::open(&path);
    let cases: Vec<String> =
        (0..).map(|i| format!("lin{i}")).take_while(|c| v.get(&format!("{c}.x")).is_some()).collect();
    if cases.is_empty() {
        return println!("skipped: no linear in the small subset");
    }
    let mut family = Family::new("gpu linear");
    for case in &cases {
        for side in ["x", "w"] {
            let name = format!("{case}.{side}");
            let out = op(&runtime, "TurboQuantize", &Attrs::new(), &[&v.f32(&name)]);
            let scales = v.f32(&format!("{name}_s"));
            assert_eq!(out[1].shape, scales.shape, "{name}_s");
            let off = out[1].as_f32().iter().zip(scales.as_f32()).map(|(a, b)| f64::from((a - b).abs() / b));
            let off = largest_or_nan(off);
            family.value(&format!("{name}_s"), off, 1e-6);
            // The reference builds with fast maths: its 128 / amax is approximate.
            let wrong = differing(&out[0], &i8s(&v, &format!("{name}_q")));
            let share = wrong.len() as f64 / out[0].as_i8().len() as f64;
            println!("{name}_q: {} values differ, {:.3} %", wrong.len(), 100.0 * share);
            family.holds(&format!("{name}_q is at most 1 off"), wrong.iter().all(|(_, off)| off.abs() == 1));
            family.value(&format!("{name}_q, share that differs"), share, 5e-3);
        }
        let y = linear(&runtime, &v, case, None);
        family.rel(&format!("{case}.y"), &y, v.f32(&format!("{case}.y")).as_f32(), 5e-3);
    }
}
