//! Attention ops and their block maps against what the reference's own code and GPU kernels computed.

use anyhow::{Context, Result, bail, ensure};
use turbo_ops::Attrs;
use turbo_ops::cases::rel_l2;
use turbo_ops::common::sums::{SUM_ROWS, sum_rows};
use turbo_pipeline::backend::Tensor;

use super::backend::Backend;
use super::ops::op;
use crate::family::{rel, wide};
use crate::vectors::{Family, Vectors};

/// Rows of a block map are decided where more than this share of the scores' deviation lies between the last kept and
/// the first rejected block: bf16 may turn what is nearer.
const DECIDED: f64 = 0.05;

fn whole([batch, heads]: [usize; 2]) -> Attrs {
    Attrs::new().int("batch", batch).int("heads", heads)
}

fn tiles(split: [usize; 2], block_q: usize, block_k: usize) -> Attrs {
    whole(split).int("block_q", block_q).int("block_k", block_k)
}

/// Sparse-linear attention in the f32 of the reference, from the inner values of its DiT.
pub(super) fn sla(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let common = Vectors::find("dit_sla_common.safetensors")?;
    let proj = Vectors::find("dit_sla_proj.safetensors")?;
    let stored = |leaf: &str| proj.f32(&format!("blocks.0.self_attn.attn_op.local_attn.proj_l.{leaf}"));
    let (weight, bias) = (stored("weight")?, stored("bias")?);
    let input = |leaf: &str| tokens(&common.f32(&format!("block0.{leaf}"))?);
    let (q, k, val) = (input("q")?, input("k")?, input("v")?);
    let o_l = common.f32("block0.o_l")?;
    let (split, d) = ([o_l.shape[0], o_l.shape[1]], o_l.shape[3]);
    // proj_l in f64, so that its rounding is not part of the comparison.
    let (w, b) = (wide(weight.as_f32()), wide(bias.as_f32()));
    let projected: Vec<f64> = (wide(o_l.as_f32()).chunks(d))
        .flat_map(|row| {
            let dot = |w: &[f64]| row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            w.chunks(d).zip(&b).map(|(w, b)| dot(w) + b).collect::<Vec<f64>>()
        })
        .collect();
    for (block_q, block_k) in [(128, 64), (64, 128)] {
        for ratio in ["topk25", "topk50"] {
            let case = format!("{block_q}x{block_k} {ratio}");
            family.attempt(&case, |family| {
                let v = Vectors::find(&format!("dit_sla_{block_q}x{block_k}.safetensors"))?;
                let name = |leaf: &str| format!("{ratio}.block0.{leaf}");
                let kept = lut(&v, &name("sparse_map"))?;
                let keep = kept.shape[3];
                // The scores that tell which rows are decided are the reference's.
                let scores = pooled_score(&q, &k, split, block_q, block_k)?;
                let expected = wide(&v.values(&name("pooled_score"))?);
                family.value(&format!("{case}: pooled_score"), rel_l2(&scores.concat(), &expected), 1e-5);
                let margins = margins(&scores, keep)?;
                let expected = wide(&v.values(&name("topk_margin"))?);
                family.value(&format!("{case}: topk_margin"), rel_l2(&margins, &expected), 1e-4);

                let attrs = tiles(split, block_q, block_k);
                family.attempt(&format!("{case}: map"), |family| {
                    let map = block_map(backend, split, [block_q, block_k, keep], [&q, &k])?;
                    if backend.is_exact() {
                        let same = map.iter().zip(kept.as_i32()).all(|(a, b)| *a == *b as f32);
                        family.holds(
                            &format!("{case}: map is exact"),
                            same && map.len() == kept.as_i32().len(),
                        );
                    } else {
                        let least = DECIDED * deviation(&scores);
                        let wrong = differing_rows(&map, &kept, &margins)?.filter(|margin| *margin > least);
                        family.value(&format!("{case}: wrong decided rows"), wrong.count() as f64, 0.0);
                    }
                    Ok(())
                });
                family.attempt(&format!("{case}: o"), |family| {
                    let inputs = [&q, &k, &val, &kept, &weight, &bias];
                    let o = op(backend, "TurboSla", &attrs, &inputs)?.swap_remove(0);
                    let o_s = v.f32(&name("o_s"))?;
                    let sum = o_s.as_f32().iter().zip(&projected).map(|(s, l)| (f64::from(*s) + l) as f32);
                    let expected = tokens(&Tensor::f32(o_s.shape.clone(), sum.collect()))?;
                    let bound = backend.bound(1e-5, 1e-2);
                    family.rel(&format!("{case}: o_s + proj_l(o_l)"), &o, expected.as_f32(), bound);
                    Ok(())
                });
                Ok(())
            });
        }
    }
    Ok(())
}

/// What the reference's GPU kernels gave, in bf16.
pub(super) fn gpu(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let v = Vectors::find("gpu/ops.safetensors")?;
    let shape = v.f32("attn.q")?.shape;
    let split = [shape[0], shape[2]];
    let input = |leaf: &str| joined(&v.f32(&format!("attn.{leaf}"))?);
    let (q, k, val) = (input("q")?, input("k")?, input("v")?);
    for (block_q, block_k) in [(64, 128), (128, 64)] {
        let name = format!("sparse_map_bq{block_q}_bk{block_k}");
        family.attempt(&name, |family| {
            let expected = lut(&v, &format!("attn.{name}"))?;
            let keep = expected.shape[3];
            family.holds(&format!("{name} keeps a quarter"), keep == shape[1].div_ceil(block_k) / 4);
            let map = block_map(backend, split, [block_q, block_k, keep], [&q, &k])?;
            let scores = pooled_score(&q, &k, split, block_q, block_k)?;
            let (least, margins) = (DECIDED * deviation(&scores), margins(&scores, keep)?);
            let differing: Vec<f64> = differing_rows(&map, &expected, &margins)?.collect();
            let decided = margins.iter().filter(|margin| **margin > least).count();
            println!("{name}: {decided} of {} rows decided, {} differ", margins.len(), differing.len());
            // The reference pools and multiplies in bf16, which may turn what is nearly equal.
            let wrong = differing.iter().filter(|margin| **margin > least).count();
            family.value(&format!("{name}: wrong decided rows"), wrong as f64, 0.0);
            family.holds(&format!("{name}: most rows are decided"), 2 * decided > margins.len());
            Ok(())
        });
    }

    let (weight, bias) = (v.f32("attn.proj_l.weight")?, v.f32("attn.proj_l.bias")?);
    // The last input of what smooths keys; other ops leave it out.
    let k_sums = sums(&k, split[0])?;
    let sparse = |name: &str, attrs: &Attrs, map: &str| -> Result<Vec<f32>> {
        let inputs = [&q, &k, &val, &lut(&v, map)?, &weight, &bias, &k_sums];
        Ok(op(backend, name, attrs, &inputs)?.swap_remove(0))
    };
    family.attempt("sla", |family| {
        let o = sparse("TurboSla", &tiles(split, 128, 64), "attn.sparse_map_bq128_bk64")?;
        family.rel("sla", &o, &v.values("attn.sla_bq128_bk64.o")?, 1e-2);
        Ok(())
    });
    let fp8 = tiles(split, 64, 128).choice("pv", "fp8");
    family.attempt("sagesla", |family| {
        let map = "attn.sparse_map_bq64_bk128";
        let expected = v.values("attn.sagesla_sm90.o")?;
        let own = family.rel("sagesla", &sparse("TurboSageSla", &fp8, map)?, &expected, 4e-2);
        let exact = sparse("TurboSla", &tiles(split, 64, 128), map)?;
        let other = rel(&exact, &expected);
        println!("sagesla: {own:.2e} from the GPU's, without quantisation {other:.2e}");
        family.holds("TurboSageSla is closer to sagesla than TurboSla is", own < other);
        Ok(())
    });
    let dense = v.values("attn.dense.o")?;
    let all = |name: &str, attrs: &Attrs| -> Result<Vec<f32>> {
        Ok(op(backend, name, attrs, &[&q, &k, &val, &k_sums])?.swap_remove(0))
    };
    family.attempt("dense", |family| {
        let o = all("TurboAttention", &whole(split))?;
        family.rel("dense", &o, &dense, 1e-2);
        Ok(())
    });
    family.attempt("sage against dense", |family| {
        let error = family.rel("sage against dense", &all("TurboSageAttention", &fp8)?, &dense, 6e-2);
        println!("sage attention: {error:.2e} from dense");
        Ok(())
    });
    Ok(())
}

/// `[b, heads, l, d]` as the ops take it, `[b * l, heads * d]`.
fn tokens(x: &Tensor) -> Result<Tensor> {
    let &[b, heads, l, d] = x.shape.as_slice() else { bail!("{:?} are no heads", x.shape) };
    let x = x.as_f32();
    let mut out = Vec::with_capacity(x.len());
    for i in 0..b * l * heads {
        let (batch, token, head) = (i / (l * heads), i / heads % l, i % heads);
        let at = ((batch * heads + head) * l + token) * d;
        out.extend_from_slice(&x[at..at + d]);
    }
    Ok(Tensor::f32(vec![b * l, heads * d], out))
}

/// `[b, l, heads, d]` as the ops take it.
fn joined(x: &Tensor) -> Result<Tensor> {
    let &[b, l, heads, d] = x.shape.as_slice() else { bail!("{:?} are no heads", x.shape) };
    Ok(Tensor::f32(vec![b * l, heads * d], x.as_f32().to_vec()))
}

/// The sums that TurboNormRope gives of rows `[b * l, c]`.
fn sums(x: &Tensor, b: usize) -> Result<Tensor> {
    let &[rows, c] = x.shape.as_slice() else { bail!("{:?} are no rows", x.shape) };
    let l = rows / b;
    Ok(Tensor::f32(vec![b, l.div_ceil(SUM_ROWS), c], sum_rows(x.as_f32(), [l, c]).collect()))
}

/// The blocks that `TurboBlockMap` keeps.
fn block_map(
    backend: &dyn Backend,
    [b, heads]: [usize; 2],
    [block_q, block_k, keep]: [usize; 3],
    [q, k]: [&Tensor; 2],
) -> Result<Vec<f32>> {
    let attrs = Attrs::new()
        .int("tokens", q.shape[0] / b)
        .int("heads", heads)
        .int("block_q", block_q)
        .int("block_k", block_k)
        .int("keep", keep);
    Ok(op(backend, "TurboBlockMap", &attrs, &[&sums(q, b)?, &sums(k, b)?])?.swap_remove(0))
}

/// A map of kept blocks `[b, heads, q blocks, k blocks]` as the ascending list that the ops take.
fn lut(v: &Vectors, name: &str) -> Result<Tensor> {
    let (mut shape, map) = v.i64(name)?;
    let blocks = shape.pop().with_context(|| format!("{name} is a number"))?;
    let rows = map.chunks(blocks);
    let kept = |row: &[i64]| (0..).zip(row).filter(|(_, keep)| **keep != 0).map(|(i, _)| i).collect();
    let lists: Vec<Vec<i32>> = rows.map(kept).collect();
    let keep = lists.first().map_or(0, Vec::len);
    ensure!(
        keep > 0 && lists.iter().all(|list| list.len() == keep),
        "{name}: rows keep different numbers, or none"
    );
    shape.push(keep);
    Ok(Tensor::i32(shape, lists.concat()))
}

/// Margins of the rows of a map that are not as expected.
fn differing_rows<'a>(
    map: &'a [f32],
    expected: &'a Tensor,
    margins: &'a [f64],
) -> Result<impl Iterator<Item = f64> + 'a> {
    let wanted = expected.as_i32();
    ensure!(map.len() == wanted.len(), "{} blocks, expected {}", map.len(), wanted.len());
    let keep = wanted.len() / margins.len().max(1);
    let same = |a: &[f32], b: &[i32]| a.iter().zip(b).all(|(a, b)| *a == *b as f32);
    let rows = map.chunks(keep).zip(wanted.chunks(keep)).zip(margins);
    Ok(rows.filter(move |((a, b), _)| !same(a, b)).map(|(_, margin)| *margin))
}

/// Scores that decide a block map, `[b * heads * q blocks][k blocks]`, in f64; `q` and `k` are `[b * l, heads * d]`.
fn pooled_score(
    q: &Tensor,
    k: &Tensor,
    [b, heads]: [usize; 2],
    block_q: usize,
    block_k: usize,
) -> Result<Vec<Vec<f64>>> {
    let &[rows, c] = q.shape.as_slice() else { bail!("{:?} are no rows", q.shape) };
    let (l, d) = (rows / b, c / heads);
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
    Ok(scores)
}

/// Gap between the last kept and the first rejected score of each row.
fn margins(scores: &[Vec<f64>], keep: usize) -> Result<Vec<f64>> {
    let gap = |row: &Vec<f64>| {
        let mut row = row.clone();
        row.sort_by(|a, b| b.total_cmp(a));
        Some(row.get(keep.checked_sub(1)?)? - row.get(keep)?)
    };
    scores.iter().map(gap).collect::<Option<_>>().context("every block is kept")
}

fn deviation(scores: &[Vec<f64>]) -> f64 {
    let all = scores.concat();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt()
}
